package link

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/nodeaddr"
)

const patience = 30 * time.Second // bounds every wait

// inNamespace runs the calling test again in a process of its own, in a network namespace of
// its own, and reports whether this is that process.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "CAUSEWAY_LINK_TEST_NAMESPACE"
	if os.Getenv(mark) != "" {
		return true
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	if testing.Verbose() {
		cmd.Args = append(cmd.Args, "-test.v")
	}
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a namespace (needs root): %v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("in a namespace:\n%s", out)
	}
	return false
}

// rig is Uplinks that run, and what they said.
type rig struct {
	*testing.T
	u *Uplinks

	mu      sync.Mutex
	mtus    []int
	changes []string
}

func (r *rig) ip(args string) {
	r.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		r.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

func start(t *testing.T, v4, v6 string, settle time.Duration) *rig {
	t.Helper()
	r := &rig{T: t}
	cfg := Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Resync: time.Hour, Settle: settle}
	var err4, err6 error
	cfg.IPv4, err4 = nodeaddr.Parse(v4, false)
	cfg.IPv6, err6 = nodeaddr.Parse(v6, true)
	if err4 != nil || err6 != nil {
		t.Fatal(err4, err6)
	}
	cfg.Changed = func(mtu int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.mtus = append(r.mtus, mtu)
	}
	cfg.OnChange = func(v4, v6 netip.Prefix) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changes = append(r.changes, fmt.Sprintf("%s %s", v4, v6))
	}
	r.u = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return r
}

// until waits for holds, which otherwise says what is.
func (r *rig) until(want string, is func() string) {
	r.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		have := is()
		if have == want {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("not within %v: %s, want %s", patience, have, want)
		}
	}
}

func (r *rig) detected() string {
	v4, v6 := r.u.Detected()
	return fmt.Sprintf("%s %s", v4, v6)
}

func (r *rig) mtuNow() string { return fmt.Sprint(r.u.MTU(), " ", r.u.Names()) }

func (r *rig) told() (mtus []int, changes []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mtus), slices.Clone(r.changes)
}

// locate makes a snapshot with one node and returns how it comes back.
func (r *rig) locate(v4, v6 string) string {
	prefix := func(s string) (p netip.Prefix) {
		if s != "" {
			p = netip.MustParsePrefix(s)
		}
		return p
	}
	snap := &model.Snapshot{Nodes: []model.Node{{Name: "a"}, {Name: "n", IPv4: prefix(v4), IPv6: prefix(v6)}, {Name: "z"}}}
	got := r.u.Locate(snap, "n")
	if n := snap.Node("n"); n.IPv4 != prefix(v4) || n.IPv6 != prefix(v6) {
		r.Errorf("the snapshot itself was changed to %v %v", n.IPv4, n.IPv6)
	}
	n := got.Node("n")
	if same := n.IPv4 == prefix(v4) && n.IPv6 == prefix(v6); same != (got == snap) {
		r.Error("a copy of the snapshot where nothing changes, or none where something does")
	}
	return fmt.Sprintf("%s %s", n.IPv4, n.IPv6)
}

// TestRun: links come, change and go; what Uplinks says follows the kernel's notices alone,
// and who asked for it is told of each change, once.
func TestRun(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := start(t, "", "", 0)
	r.u.SetNodeAddrs(netip.MustParseAddr("192.0.2.1"))
	r.ip("link add up0 mtu 1450 type veth peer name far0")
	r.ip("link add up1 mtu 1280 type veth peer name far1")
	r.ip("link set up0 up")
	r.ip("addr add 192.0.2.1/24 dev up0")
	r.until("1450 [up0]", r.mtuNow)
	r.ip("link set up0 mtu 1300")
	r.until("1300 [up0]", r.mtuNow)
	r.u.SetMTUPattern("^up")
	r.until("1300 [up0]", r.mtuNow) // the other one is down
	r.ip("link set up1 up")
	r.until("1280 [up0 up1]", r.mtuNow)
	r.u.SetMTUPattern("(")
	r.u.SetMTUPattern("nothing")
	r.until("1280 []", r.mtuNow)
	if err := r.u.Trouble(); err == nil || !strings.Contains(err.Error(), `mtuIfacePattern "nothing"`) {
		t.Errorf("trouble: %v", err)
	}
	r.u.SetMTUPattern("")
	r.until("1300 [up0]", r.mtuNow)
	// The tunnel's own device and pods' links are no uplinks, whatever address they have.
	r.ip("link add vxlan.calico mtu 1230 type vxlan id 4096 dstport 4789 dev up0")
	r.ip("addr add 192.0.2.1/32 dev vxlan.calico")
	r.ip("link set up0 mtu 1400")
	r.until("1400 [up0]", r.mtuNow)
	if got := r.locate("192.0.2.1/24", "fd00::1/64"); got != "192.0.2.1/24 fd00::1/64" {
		t.Errorf("Locate without a method: %s", got)
	}
	r.until("1450 1300 1280 1300 1400", func() string {
		mtus, _ := r.told()
		// Losing all uplinks changes no MTU, and tells it once more when it is known again.
		return strings.Trim(fmt.Sprint(slices.Compact(mtus)), "[]")
	})
	if _, changes := r.told(); len(changes) > 0 {
		t.Errorf("addresses are not to be looked for, and were told: %q", changes)
	}
}

// TestFollowKernel: the address in force follows the kernel's, but not at once, and not while
// its link is down.
func TestFollowKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const settle = 400 * time.Millisecond
	r := start(t, "first-found", "first-found", settle)
	r.ip("link set lo up")
	r.ip("link add docker0 type bridge")
	r.ip("link add eth0 type veth peer name far0")
	r.ip("link add eth1 type veth peer name far1")
	for _, l := range []string{"docker0", "eth0", "eth1", "far0", "far1"} {
		r.ip("link set " + l + " up")
	}
	r.ip("addr add 172.17.0.1/16 dev docker0")
	r.ip("addr add 192.0.2.100/32 dev eth0")
	r.ip("addr add 192.0.2.1/24 dev eth0")
	r.ip("addr add 2001:db8::1/64 dev eth0 nodad")
	r.ip("addr add 10.0.0.1/24 dev eth1")
	if r.detected() != "invalid Prefix invalid Prefix" {
		t.Errorf("%s before the datastore was read", r.detected())
	}
	const both = "192.0.2.1/24 2001:db8::1/64"
	if got := r.locate("203.0.113.1/32", ""); got != both {
		t.Fatalf("first: %s", got)
	}
	told := func(want ...string) {
		t.Helper()
		r.until(strings.Join(want, ", "), func() string { _, c := r.told(); return strings.Join(c, ", ") })
	}
	told(both)

	// A flap: the address is back before it counts.
	r.ip("addr del 192.0.2.1/24 dev eth0")
	r.ip("addr add 192.0.2.1/24 dev eth0")
	// A link that is down keeps its addresses in force; IPv6's are gone from it.
	r.ip("link set eth0 down")
	r.until("true", func() string {
		err := r.u.Trouble()
		return fmt.Sprint(err != nil && strings.Contains(err.Error(), "the node's IPv6 address was not found, and 2001:db8::1/64 stays in force"))
	})
	r.until(both, r.detected)
	r.ip("link set eth0 up")
	r.ip("addr add 2001:db8::1/64 dev eth0 nodad")
	told(both)
	r.until("<nil>", func() string { return fmt.Sprint(r.u.Trouble()) })

	// Another address of the link, and another link when the first is gone.
	r.ip("addr add 2001:db8::2/64 dev eth0 nodad")
	r.ip("addr del 2001:db8::1/64 dev eth0")
	before := time.Now()
	r.until("192.0.2.1/24 2001:db8::2/64", r.detected)
	told(both, "192.0.2.1/24 2001:db8::2/64")
	if took := time.Since(before); took < settle {
		t.Errorf("another address counted after %v", took)
	}
	r.ip("link del eth0")
	told(both, "192.0.2.1/24 2001:db8::2/64", "10.0.0.1/24 2001:db8::2/64")
	if got := r.locate("192.0.2.1/24", "2001:db8::2/64"); got != "10.0.0.1/24 2001:db8::2/64" {
		t.Errorf("Locate after the change: %s", got)
	}
	if n := r.u.AddressChanges(); n != 2 {
		t.Errorf("%d changes counted, want 2", n)
	}
	// The MTU is that of the link which has the new address.
	r.ip("link set eth1 mtu 1234")
	r.until("1234 [eth1]", r.mtuNow)
}

// TestRestart: what an agent finds that starts while the link is down is what was in force.
func TestRestart(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := start(t, "first-found", "none", time.Millisecond)
	r.ip("link add eth0 type veth peer name far0")
	r.ip("link add eth1 type veth peer name far1")
	r.ip("link set eth1 up")
	r.ip("addr add 192.0.2.1/24 dev eth0")
	r.ip("addr add 10.0.0.1/24 dev eth1")
	if got := r.locate("192.0.2.1/24", "2001:db8::1/64"); got != "192.0.2.1/24 invalid Prefix" {
		t.Errorf("with the link of the address down: %s", got)
	}
	r.until("192.0.2.1/24 invalid Prefix", func() string { _, c := r.told(); return strings.Join(c, ", ") })
}

// TestCanReach asks the kernel's routes, follows them, and takes no virtual address.
func TestCanReach(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := start(t, "can-reach=198.51.100.7", "can-reach=2001:db8:ff::7", 50*time.Millisecond)
	r.ip("link set lo up")
	for _, l := range []string{"eth0", "eth1"} {
		r.ip("link add " + l + " type veth peer name far" + l)
		r.ip("link set far" + l + " up")
		r.ip("link set " + l + " up")
	}
	r.ip("addr add 192.0.2.1/24 dev eth0")
	r.ip("addr add 10.0.0.1/24 dev eth1")
	r.ip("addr add 2001:db8::1/64 dev eth0 nodad")
	r.locate("", "")
	r.until("invalid Prefix invalid Prefix", r.detected)
	if err := r.u.Trouble(); err == nil || !strings.Contains(err.Error(), "can-reach=198.51.100.7: no route to 198.51.100.7: network is unreachable") {
		t.Errorf("trouble without a route: %v", err)
	}
	r.ip("route add default via 192.0.2.254")
	r.ip("-6 route add default via 2001:db8::254")
	r.until("192.0.2.1/24 2001:db8::1/64", r.detected)
	r.ip("route add 198.51.100.0/24 via 10.0.0.254")
	r.until("10.0.0.1/24 2001:db8::1/64", r.detected)
	// The destination is a virtual address that comes to this node.
	r.ip("addr add 198.51.100.7/32 dev eth0")
	r.until("192.0.2.1/24 2001:db8::1/64", r.detected)
	if n := r.u.AddressChanges(); n != 2 {
		t.Errorf("%d changes counted, want 2", n)
	}
}

// TestCanReachName goes by a name of /etc/hosts.
func TestCanReachName(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := start(t, "can-reach=localhost", "", time.Millisecond)
	r.ip("link set lo up")
	r.locate("", "")
	// The kernel sends to 127.0.0.1 from 127.0.0.1, which is the address of no node.
	r.until("true", func() string {
		err := r.u.Trouble()
		return fmt.Sprint(err != nil && strings.Contains(err.Error(), "can-reach=localhost: the kernel sends from 127.0.0.1, which no link that leads out of the node has"))
	})
}
