package link

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUplinks(t *testing.T) {
	a := netip.MustParseAddr
	on := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	lo := seenLink{name: "lo", mtu: 65536, up: true, loopback: true, addrs: on("10.9.9.9/32", "10.0.0.1/32")}
	eth0 := seenLink{name: "eth0", mtu: 1500, up: true, addrs: on("10.0.0.1/24", "10.0.0.77/32", "fd00::1/64")}
	eth1 := seenLink{name: "eth1", mtu: 1400, up: true, addrs: on("10.0.1.1/23")}
	down := seenLink{name: "eth2", mtu: 1200, addrs: on("10.0.2.1/24")}
	pod := seenLink{name: "cali0", mtu: 900, up: true, addrs: on("10.0.3.1/32")}
	all := []seenLink{lo, eth0, eth1, down, pod}
	for _, c := range []struct {
		name  string
		node  []netip.Addr
		names []string
		mtu   int
	}{
		{"one uplink", []netip.Addr{a("10.0.0.1"), a("fd00::1")}, []string{"eth0"}, 1500},
		{"two families on two links", []netip.Addr{a("10.0.1.1"), a("fd00::1")}, []string{"eth0", "eth1"}, 1400},
		{"loopback", []netip.Addr{a("10.9.9.9")}, []string{"eth0", "eth1"}, 1400},
		{"address nowhere", []netip.Addr{a("192.0.2.1")}, nil, 0},
	} {
		names, mtu := uplinks(all, c.node)
		if !slices.Equal(names, c.names) || mtu != c.mtu {
			t.Errorf("%s: %v %d, want %v %d", c.name, names, mtu, c.names, c.mtu)
		}
	}
}

// TestSubnets: the length comes from the link that holds the address, and never shrinks to
// that of a copy on the loopback.
func TestSubnets(t *testing.T) {
	p := netip.MustParsePrefix
	got := subnets([]seenLink{
		{name: "lo", loopback: true, addrs: []netip.Prefix{p("10.0.0.1/32"), p("10.9.9.9/32")}},
		{name: "eth0", addrs: []netip.Prefix{p("10.0.0.1/24"), p("10.0.0.77/32"), p("fd00::1/64")}},
		{name: "cali0", addrs: []netip.Prefix{p("10.5.0.1/16")}},
	})
	for a, want := range map[string]string{"10.0.0.1": "10.0.0.1/24", "10.9.9.9": "10.9.9.9/32", "10.0.0.77": "10.0.0.77/32", "fd00::1": "fd00::1/64"} {
		if have := got[netip.MustParseAddr(a)]; have != p(want) {
			t.Errorf("%s: %v, want %s", a, have, want)
		}
	}
	if _, ok := got[netip.MustParseAddr("10.5.0.1")]; ok {
		t.Error("an address of a pod's link counts as the node's")
	}
}

// TestRun follows a real uplink in a network namespace: forwarding is switched on, and
// the MTU is the uplink's, also after it changed.
func TestRun(t *testing.T) {
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
	// Apply and ip run on this thread, in the namespace; Run's subscriptions are covered
	// by the topologies, where a whole agent lives in one.
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
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if v := u.readSysctl(name); v != "1" {
			t.Errorf("%s is %q", name, v)
		}
	}
}
