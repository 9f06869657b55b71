package link

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/nodeaddr"
)

func TestUplinks(t *testing.T) {
	a := netip.MustParseAddr
	lo := seen("lo", "loopback", 65536, "10.9.9.9/32", "10.0.0.1/32")
	lo.Loopback = true
	eth0 := seen("eth0", "device", 1500, "10.0.0.1/24", "10.0.0.77/32", "fd00::1/64")
	eth1 := seen("eth1", "device", 1400, "10.0.1.1/23")
	down := seen("eth2", "device", 1200, "10.0.2.1/24")
	down.Up = false
	all := []seenLink{
		lo, eth0, eth1, down,
		seen("dummy0", "dummy", 1000, "10.8.8.8/32"),
		seen("cali0", "veth", 900, "10.0.3.1/32"),
		seen("docker0", "bridge", 1280, "172.17.0.1/16"),
		seen("vxlan.calico", "vxlan", 1350, "10.0.3.7/32"),
		seen("vxlan-v6.calico", "vxlan", 1330, "fd00::3:7/128"),
		seen("tunl0", "ipip", 1380, "10.0.3.8/32"),
		seen("wireguard.cali", "wireguard", 1340, "10.0.3.9/32"),
	}
	for _, c := range []struct {
		name    string
		node    []netip.Addr
		pattern string
		names   []string
		mtu     int
	}{
		{"one uplink", []netip.Addr{a("10.0.0.1"), a("fd00::1")}, "", []string{"eth0"}, 1500},
		{"two families on two links", []netip.Addr{a("10.0.1.1"), a("fd00::1")}, "", []string{"eth0", "eth1"}, 1400},
		{"loopback", []netip.Addr{a("10.9.9.9")}, "", []string{"eth0", "eth1"}, 1400},
		{"dummy", []netip.Addr{a("10.8.8.8")}, "", []string{"eth0", "eth1"}, 1400},
		{"address nowhere", []netip.Addr{a("192.0.2.1")}, "", nil, 0},
		{"an address of a tunnel", []netip.Addr{a("10.0.3.7")}, "", nil, 0},
		{"a pattern, wherever the address is", []netip.Addr{a("10.0.0.1")}, "^eth[12]", []string{"eth1"}, 1400},
		{"a pattern for all", nil, ".*", []string{"lo", "eth0", "eth1", "dummy0", "docker0"}, 1000},
		{"a pattern for a link that is down", nil, "eth2", []string{"eth2"}, 1200},
		{"a pattern for tunnels", nil, "cali|tunl", nil, 0},
	} {
		var pattern *regexp.Regexp
		if c.pattern != "" {
			pattern = regexp.MustCompile(c.pattern)
		}
		names, mtu := uplinks(all, c.node, pattern)
		if !slices.Equal(names, c.names) || mtu != c.mtu {
			t.Errorf("%s: %v %d, want %v %d", c.name, names, mtu, c.names, c.mtu)
		}
	}
	inner := []seenLink{lo, seen("docker0", "bridge", 1280, "172.17.0.1/16")}
	if names, mtu := uplinks(inner, []netip.Addr{a("10.9.9.9")}, nil); mtu != 1280 {
		t.Errorf("a link that is no uplink by its name, and no other: %v %d", names, mtu)
	}
}

// seen is a link that is up.
func seen(name, kind string, mtu int, addrs ...string) seenLink {
	l := seenLink{mtu: mtu, Link: nodeaddr.Link{Name: name, Kind: kind, Up: true, Running: true}}
	for _, s := range addrs {
		l.Addrs = append(l.Addrs, nodeaddr.Addr{Prefix: netip.MustParsePrefix(s)})
	}
	return l
}

// TestSubnets: the length comes from the link that holds the address, and never shrinks to
// that of a copy on the loopback.
func TestSubnets(t *testing.T) {
	p := netip.MustParsePrefix
	lo := seen("lo", "loopback", 65536, "10.0.0.1/32", "10.9.9.9/32")
	lo.Loopback = true
	got := subnets([]seenLink{lo, seen("eth0", "device", 1500, "10.0.0.1/24", "10.0.0.77/32", "fd00::1/64"), seen("cali0", "veth", 1500, "10.5.0.1/16")})
	for a, want := range map[string]string{"10.0.0.1": "10.0.0.1/24", "10.9.9.9": "10.9.9.9/32", "10.0.0.77": "10.0.0.77/32", "fd00::1": "fd00::1/64"} {
		if have := got[netip.MustParseAddr(a)]; have != p(want) {
			t.Errorf("%s: %v, want %s", a, have, want)
		}
	}
	if _, ok := got[netip.MustParseAddr("10.5.0.1")]; ok {
		t.Error("an address of a pod's link counts as the node's")
	}
}

// TestApply looks at a real uplink in a network namespace: forwarding is switched on, and
// the MTU is the uplink's, also after it changed.
func TestApply(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread dies with the test and takes the namespace along
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("link", "add", "up0", "mtu", "1450", "type", "veth", "peer", "name", "far0")
	ip("link", "set", "up0", "up")
	ip("addr", "add", "192.0.2.1/24", "dev", "up0")

	u := New(Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Resync: time.Minute})
	if err := u.apply(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	if u.Ready() == nil {
		t.Error("ready before anybody knows the node's addresses")
	}
	u.SetNodeAddrs(netip.MustParseAddr("192.0.2.1"))
	if u.Ready() == nil {
		t.Error("ready before the links were read")
	}
	// Apply and ip run on this thread, in the namespace; TestRun has a process of its own.
	apply := func() {
		t.Helper()
		if err := u.apply(context.Background(), true); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := u.Subnet(netip.MustParseAddr("192.0.2.1")); err != nil || p != netip.MustParsePrefix("192.0.2.1/24") {
		t.Errorf("subnet: %v %v", p, err)
	}
	if p, err := u.Subnet(netip.MustParseAddr("192.0.2.77")); err == nil {
		t.Errorf("subnet of an address that no link has: %v", p)
	}
	apply()
	if u.MTU() != 1450 || !slices.Equal(u.Names(), []string{"up0"}) {
		t.Errorf("uplinks %v, MTU %d", u.Names(), u.MTU())
	}
	if ready, trouble := u.Ready(), u.Trouble(); ready != nil || trouble != nil {
		t.Errorf("ready: %v, trouble: %v", ready, trouble)
	}
	ip("link", "set", "up0", "mtu", "1300")
	apply()
	if u.MTU() != 1300 {
		t.Errorf("MTU %d after a change to 1300", u.MTU())
	}
	u.SetNodeAddrs(netip.MustParseAddr("192.0.2.77"))
	apply()
	if ready, trouble := u.Ready(), u.Trouble(); ready != nil || trouble == nil {
		t.Errorf("an address that no link has: ready: %v, trouble: %v", ready, trouble)
	}
	if u.MTU() != 1300 {
		t.Errorf("MTU %d after the uplink was lost, want that of before", u.MTU())
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if v := u.readSysctl(name); v != "1" {
			t.Errorf("%s is %q", name, v)
		}
	}
}
