package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/internal/model"
)

const never, always, cross = model.EncapNever, model.EncapAlways, model.EncapCrossSubnet

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// cluster is nodes a (this one), b in its subnet and c in another, each with a block.
func cluster(ipip, vxlan model.EncapMode) *model.Snapshot {
	end := func(v4, v6 string) (out [model.Tunnels]model.TunnelEnd) {
		out[model.TunnelVXLAN4].Addr, out[model.TunnelVXLAN6].Addr = addr(v4), addr(v6)
		return out
	}
	six := vxlan
	return &model.Snapshot{
		BlocksKnown: true,
		Nodes: []model.Node{
			{Name: "a", IPv4: prefix("192.0.2.1/24"), IPv6: prefix("fd00:a::1/64"), Tunnels: end("10.1.0.1", "fd01::1")},
			{Name: "b", IPv4: prefix("192.0.2.2/24"), IPv6: prefix("fd00:a::2/64"), Tunnels: end("10.1.1.1", "fd01::1:1")},
			{Name: "c", IPv4: prefix("198.51.100.3/24"), IPv6: prefix("fd00:c::3/64"), Tunnels: end("10.1.2.1", "fd01::2:1")},
		},
		Pools: []model.Pool{
			{Name: "four", CIDR: prefix("10.1.0.0/16"), IPIPMode: ipip, VXLANMode: vxlan},
			{Name: "six", CIDR: prefix("fd01::/64"), IPIPMode: never, VXLANMode: six},
		},
		Blocks: []model.Block{
			{CIDR: prefix("10.1.0.0/26"), Node: "a"}, {CIDR: prefix("10.1.1.0/26"), Node: "b"}, {CIDR: prefix("10.1.2.0/26"), Node: "c"},
			{CIDR: prefix("fd01::1:0/122"), Node: "b"}, {CIDR: prefix("fd01::2:0/122"), Node: "c"},
		},
	}
}

func newNode(t testing.TB) *node {
	return &node{
		t: t, devices: map[model.Tunnel][]model.TunnelPeer{}, routes: map[netip.Prefix]model.NextHop{},
		learned: map[netip.Prefix]model.NextHop{
			prefix("10.1.1.0/26"): {Addr: addr("192.0.2.2")}, prefix("10.1.2.0/26"): {Addr: addr("198.51.100.3")},
			prefix("fd01::1:0/122"): {Addr: addr("fd00:a::2")}, prefix("fd01::2:0/122"): {Addr: addr("fd00:c::3")},
			prefix("203.0.113.0/24"): {Addr: addr("198.51.100.3")}, // no pod's
		},
	}
}

// check compares the node with what the snapshot says; nothing may be left over.
func (n *node) check(when string, snap *model.Snapshot) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	want := dataplane.NewOverlay(snap, "a")
	routes := map[netip.Prefix]model.NextHop{}
	for p, h := range n.learned {
		routes[p] = want.Via(p, h)
	}
	for _, r := range want.Routes() {
		routes[r.Prefix] = r.NextHops[0]
	}
	v4, v6 := want.Guard()
	switch {
	case !maps.Equal(routes, n.routes):
		n.bad("routes are\n  %v, want\n  %v", n.routes, routes)
	case !slices.Equal(slices.Sorted(maps.Keys(n.devices)), want.Wants()):
		n.bad("devices are %v, want %v", slices.Sorted(maps.Keys(n.devices)), want.Wants())
	case n.addresses != setOf(want.Wants()):
		n.bad("addresses are %v, want %v", n.addresses.list(), want.Wants())
	case !sameGuard(n.guard[0], v4) || !sameGuard(n.guard[1], v6):
		n.bad("guard is %+v, want %+v %+v", n.guard, v4, v6)
	}
	for _, d := range want.Devices(1500, [model.Tunnels]netip.Addr{}) {
		if got := n.devices[d.Tunnel]; !slices.EqualFunc(got, d.Peers, func(a, b model.TunnelPeer) bool { return a.Node == b.Node && a.Addr == b.Addr }) {
			n.bad("peers of %s are %v, want %v", d.Tunnel, got, d.Peers)
		}
	}
	if len(n.wrong) > 0 {
		n.t.Fatalf("%s:\n%s\nafter\n  %s", when, strings.Join(n.wrong, "\n"), strings.Join(n.journal, "\n  "))
	}
}

// TestOrder changes modes live, both ways, and looks at what was done in which order.
func TestOrder(t *testing.T) {
	n := newNode(t)
	a := n.start()
	a.tell()
	for i, snap := range []*model.Snapshot{
		cluster(never, never), cluster(never, cross), cluster(never, always), cluster(never, never),
		cluster(cross, never), cluster(always, never), cluster(never, always), cluster(always, never), cluster(never, never),
	} {
		n.mu.Lock()
		n.journal = nil
		n.mu.Unlock()
		a.Overlay.Set(snap)
		a.idle(dataplane.NewOverlay(snap, "a"), "")
		n.check(fmt.Sprintf("step %d", i), snap)
	}
	// The same again says nothing.
	n.mu.Lock()
	calls := n.calls
	n.mu.Unlock()
	a.Overlay.Set(cluster(never, never))
	a.loop.Poke()
	a.SetMTU(1500)
	if st := a.Overlay.Status(); st.Error != "" || st.Waiting != "" || len(st.Tunnels) != 0 {
		t.Errorf("status %+v", st)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, line := range n.journal[len(n.journal)-(n.calls-calls):] {
		if !strings.Contains(line, "wait") {
			t.Errorf("nothing changed and %s", line)
		}
	}
}

// TestJournal is the order in full, for one change there and back.
func TestJournal(t *testing.T) {
	n := newNode(t)
	a := n.start()
	a.tell()
	step := func(snap *model.Snapshot, want ...string) {
		t.Helper()
		n.mu.Lock()
		n.journal = nil
		n.mu.Unlock()
		a.Overlay.Set(snap)
		a.idle(dataplane.NewOverlay(snap, "a"), "")
		n.mu.Lock()
		defer n.mu.Unlock()
		var got []string
		for _, line := range n.journal {
			_, what, _ := strings.Cut(line, " ")
			if len(got) == 0 || got[len(got)-1] != what { // waits may come again
				got = append(got, what)
			}
		}
		got = slices.DeleteFunc(got, func(s string) bool { return s == "wait for devices" || s == "guarded" })
		if !slices.Equal(got, want) {
			t.Errorf("it did\n  %s\nand not\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
	step(cluster(never, never), "divert", "keep true", "devices []", "guard false 0 0", "addresses []", "in sync", "settle")
	step(cluster(never, cross), "guard false 4789 4789", "addresses [vxlan vxlan-v6]", "devices [vxlan/2 vxlan-v6/2]",
		"divert", "routes: 4 set, 0 deleted", "settle")
	step(cluster(never, always), "divert", "routes: 2 set, 0 deleted", "settle")
	step(cluster(never, never), "devices []", "divert", "routes: 0 set, 4 deleted", "settle", "keep false", "keep true",
		"guard false 0 0", "addresses []")
	step(cluster(always, never), "guard true 0 0", "addresses [ipip]", "devices [ipip/0]", "divert", "settle")
}

// TestKilled kills the agent at every step of every change, starts another one and looks
// whether it ends right (I5).
func TestKilled(t *testing.T) {
	modes := [][2]model.EncapMode{{never, never}, {never, cross}, {never, always}, {always, never}, {cross, never}}
	for _, from := range modes {
		for _, to := range modes {
			t.Run(fmt.Sprintf("%v to %v", from, to), func(t *testing.T) {
				t.Parallel()
				before, after := cluster(from[0], from[1]), cluster(to[0], to[1])
				for kill := 1; ; kill++ {
					n := newNode(t)
					a := n.start()
					a.tell()
					a.Overlay.Set(before)
					a.idle(dataplane.NewOverlay(before, "a"), "")
					n.check("before", before)
					n.mu.Lock()
					n.killAt = n.calls + kill
					n.mu.Unlock()
					a.Overlay.Set(after)
					survived := a.idle(dataplane.NewOverlay(after, "a"), "")
					a.stop()
					// Another one, which BGP tells something only later.
					n.mu.Lock()
					n.killAt = 0
					stood := maps.Clone(n.routes)
					n.mu.Unlock()
					b := n.start()
					b.Overlay.Set(after)
					b.idle(dataplane.NewOverlay(after, "a"), "the route table")
					n.mu.Lock()
					for p := range stood {
						if _, ok := n.routes[p]; !ok {
							t.Errorf("killed at %d: %s was lost before BGP spoke", kill, p)
						}
					}
					n.mu.Unlock()
					b.tell()
					b.loop.Poke()
					b.idle(dataplane.NewOverlay(after, "a"), "")
					n.check(fmt.Sprintf("killed at %d", kill), after)
					b.stop()
					if survived {
						if kill < 2 && from != to {
							t.Errorf("only %d steps", kill)
						}
						return
					}
				}
			})
		}
	}
}

// TestPeers: nodes come, go, and change their addresses; no route leads to a peer that the
// device does not know.
func TestPeers(t *testing.T) {
	n := newNode(t)
	a := n.start()
	a.tell()
	step := func(when string, snap *model.Snapshot) {
		t.Helper()
		a.Overlay.Set(snap)
		a.idle(dataplane.NewOverlay(snap, "a"), "")
		n.check(when, snap)
	}
	snap := cluster(never, always)
	snap.Nodes[2].Tunnels = [model.Tunnels]model.TunnelEnd{}
	step("c has no tunnel address", snap)
	step("c has", cluster(never, always))
	snap = cluster(never, always)
	snap.Nodes[2].Tunnels[model.TunnelVXLAN4].Addr = addr("10.1.2.9")
	step("c has another", snap)
	snap = cluster(never, always)
	snap.Nodes[1].IPv4 = prefix("192.0.2.77/24")
	n.mu.Lock()
	n.learned[prefix("10.1.1.0/26")] = model.NextHop{Addr: addr("192.0.2.77")}
	n.mu.Unlock()
	step("b has another node address", snap)
	snap = cluster(never, always)
	snap.Nodes = snap.Nodes[:2]
	n.mu.Lock()
	n.learned = map[netip.Prefix]model.NextHop{}
	n.mu.Unlock()
	step("c is gone", snap)
}

// TestImpossible: a device that cannot be made holds what would go through it; what stood
// stays, a pool that is new gets no way at all, other tunnels go on, and when the device
// comes all is as it should be.
func TestImpossible(t *testing.T) {
	n := newNode(t)
	n.noIPIP = true
	a := n.start()
	a.tell()
	before := cluster(never, cross)
	a.Overlay.Set(before)
	a.idle(dataplane.NewOverlay(before, "a"), "")
	n.check("before", before)
	stood := maps.Clone(n.routes)

	after := cluster(always, never)
	after.Pools[1].VXLANMode = always
	after.Pools = append(after.Pools, model.Pool{Name: "new", CIDR: prefix("10.2.0.0/16"), IPIPMode: always, VXLANMode: never})
	n.mu.Lock()
	n.learned[prefix("10.2.2.0/26")] = model.NextHop{Addr: addr("198.51.100.3")}
	n.mu.Unlock()
	a.Overlay.Set(after)
	a.idle(dataplane.NewOverlay(after, "a"), "")
	n.mu.Lock()
	for p, h := range n.routes {
		if was := stood[p]; p.Addr().Is4() && h != was {
			t.Errorf("%s led to %v and leads to %v", p, was, h)
		}
	}
	if h, ok := n.routes[prefix("10.2.2.0/26")]; ok {
		t.Errorf("the new pool's block leads to %v", h)
	}
	if h := n.routes[prefix("fd01::1:0/122")]; h.Device != "vxlan-v6.calico" {
		t.Errorf("IPv6 did not go on: %v", h)
	}
	if len(n.wrong) > 0 {
		t.Errorf("%s\n%s", strings.Join(n.wrong, "\n"), strings.Join(n.journal, "\n"))
	}
	n.mu.Unlock()
	st := a.Overlay.Status()
	if !strings.Contains(st.Error, "ipip") || !strings.Contains(st.Error, "makes no ipip") || len(st.Tunnels) != 3 || !st.Tunnels[0].Held || st.Tunnels[0].There || st.Tunnels[2].Held || !st.Tunnels[2].There {
		t.Errorf("status %+v", st)
	}
	n.mu.Lock()
	n.noIPIP = false
	n.mu.Unlock()
	deadline := time.Now().Add(10 * time.Second)
	for a.Overlay.Status().Error != "" || a.Overlay.Status().Waiting != "" {
		if time.Now().After(deadline) {
			t.Fatalf("the device came, and %+v", a.Overlay.Status())
		}
		time.Sleep(time.Millisecond)
	}
	a.idle(dataplane.NewOverlay(after, "a"), "")
	n.check("the device came", after)
}

// TestImpossibleAtFirst: learned routes that stood directly do so until there is a tunnel.
func TestImpossibleAtFirst(t *testing.T) {
	n := newNode(t)
	n.noIPIP = true
	a := n.start()
	a.tell()
	before, after := cluster(never, never), cluster(always, never)
	a.Overlay.Set(before)
	a.idle(dataplane.NewOverlay(before, "a"), "")
	n.check("before", before)
	stood := maps.Clone(n.routes)
	a.Overlay.Set(after)
	a.idle(dataplane.NewOverlay(after, "a"), "")
	n.mu.Lock()
	if !maps.Equal(n.routes, stood) {
		t.Errorf("routes were\n  %v\nand are\n  %v", stood, n.routes)
	}
	n.mu.Unlock()
	if st := a.Overlay.Status(); st.Error == "" || !st.Tunnels[0].Held {
		t.Errorf("status %+v", st)
	}
	a.Overlay.Set(before)
	a.idle(dataplane.NewOverlay(before, "a"), "")
	n.check("given up", before)
}

// TestBeforeBGP switches encapsulation off while a restarted agent's sessions are not up yet:
// the routes that it made stay until the learned ones can take their places.
func TestBeforeBGP(t *testing.T) {
	n := newNode(t)
	a := n.start()
	on, off := cluster(never, cross), cluster(never, never)
	a.Overlay.Set(on)
	a.idle(dataplane.NewOverlay(on, "a"), "")
	a.Overlay.Set(off)
	a.idle(dataplane.NewOverlay(off, "a"), "the route table")
	n.mu.Lock()
	if len(n.routes) != 4 {
		t.Errorf("routes are %v", n.routes)
	}
	n.mu.Unlock()
	a.tell()
	a.idle(dataplane.NewOverlay(off, "a"), "")
	n.check("BGP has spoken", off)
}

// TestUnknown: what is not known yet proves nothing.
func TestUnknown(t *testing.T) {
	n := newNode(t)
	a := n.start()
	a.tell()
	snap := cluster(never, always)
	a.Overlay.Set(snap)
	a.idle(dataplane.NewOverlay(snap, "a"), "")
	n.check("all is known", snap)

	stranger := cluster(never, never)
	stranger.Nodes = stranger.Nodes[1:]
	a.Overlay.Set(stranger)
	if st := a.Overlay.Status(); !st.NoNode {
		t.Errorf("a snapshot without this node: %+v", st)
	}
	n.check("without this node", snap)

	fewer := cluster(never, always)
	fewer.BlocksKnown, fewer.Blocks = false, fewer.Blocks[:1]
	n.mu.Lock()
	n.learned = map[netip.Prefix]model.NextHop{} // so that only the blocks' routes count
	n.routes = maps.Clone(n.routes)
	delete(n.routes, prefix("203.0.113.0/24"))
	n.mu.Unlock()
	a.Overlay.Set(fewer)
	a.idle(dataplane.NewOverlay(fewer, "a"), "")
	n.check("the blocks are not known", snap)
	fewer = cluster(never, always)
	fewer.Blocks = fewer.Blocks[:2]
	a.Overlay.Set(fewer)
	a.idle(dataplane.NewOverlay(fewer, "a"), "")
	n.check("they are known and fewer", fewer)
}

// TestWaitsForMTU: no device is made with an MTU that is a guess.
func TestWaitsForMTU(t *testing.T) {
	n := newNode(t)
	a := n.start()
	a.tell()
	a.Overlay.mu.Lock()
	a.in.mtu = 0
	a.Overlay.mu.Unlock()
	snap := cluster(never, always)
	a.Overlay.Set(snap)
	a.idle(dataplane.NewOverlay(snap, "a"), "the uplink's MTU")
	n.mu.Lock()
	if len(n.devices) > 0 {
		t.Errorf("devices %v", n.devices)
	}
	n.mu.Unlock()
	a.SetMTU(1400)
	deadline := time.Now().Add(10 * time.Second)
	for a.Overlay.Status().Waiting != "" {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", a.Overlay.Status())
		}
		time.Sleep(time.Millisecond)
	}
	n.check("the MTU is known", snap)
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Config needs") {
		t.Errorf("New: %v", err)
	}
}
