package conntrack_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/conntrack"
)

func udp(from, first, to, replyTo string, mark uint32) conntrack.Flow {
	return conntrack.Flow{Protocol: 17, Source: ap(from), First: ap(first), Destination: ap(to), ReplyTo: ap(replyTo), Mark: mark}
}

func sortedKeys(flows map[string]conntrack.Flow) []string {
	out := make([]string, 0, len(flows))
	for s := range flows {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// TestFlows: which flows are an address's, of either family, alone and among many.
func TestFlows(t *testing.T) {
	n := &node{name: namespace(t)}
	n.table = conntrack.NewTableIn(entering(n.name))
	all := []conntrack.Flow{
		udp("10.0.0.1:1", "10.0.0.2:53", "10.0.0.2:53", "10.0.0.1:1", 5),
		udp("10.0.0.1:2", "10.96.0.1:53", "10.0.0.3:5353", "10.0.0.1:2", 0),
		udp("10.0.0.4:1", "10.96.0.1:53", "10.0.0.3:5353", "192.0.2.1:7", 0),
		udp("10.0.0.4:2", "10.96.0.1:53", "10.0.0.4:5353", "192.0.2.1:8", 0),
		udp("[fd00::1]:1", "[fd00::2]:53", "[fd00::2]:53", "[fd00::1]:1", 0),
		udp("[fd00::3]:1", "[fd96::1]:53", "[fd00::2]:53", "[fd00::3]:1", 1<<31),
	}
	if err := n.table.Create(all); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		addrs []string
		want  []int
	}{
		"all":            {nil, []int{0, 1, 2, 3, 4, 5}},
		"opener":         {[]string{"10.0.0.1"}, []int{0, 1}},
		"translated to":  {[]string{"10.0.0.3"}, []int{1, 2}},
		"itself":         {[]string{"10.0.0.4"}, []int{2, 3}},
		"service":        {[]string{"10.96.0.1"}, nil},
		"masquerade":     {[]string{"192.0.2.1"}, nil},
		"mapped":         {[]string{"::ffff:10.0.0.2"}, []int{0}},
		"IPv6":           {[]string{"fd00::3"}, []int{5}},
		"both families":  {[]string{"fd00::1", "10.0.0.2"}, []int{0, 4}},
		"many":           {[]string{"10.0.0.1", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.2"}, []int{0, 1}},
		"nobody":         {[]string{}, nil},
		"nobody we know": {[]string{"10.0.0.77", "fd00::77"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var addrs []netip.Addr
			if c.addrs != nil {
				addrs = []netip.Addr{}
			}
			for _, a := range c.addrs {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			got, want := map[string]conntrack.Flow{}, map[string]conntrack.Flow{}
			if err := n.table.Flows(t.Context(), addrs, func(f *conntrack.Flow) { got[f.String()] = f.Clone() }); err != nil {
				t.Fatal(err)
			}
			for _, i := range c.want {
				want[all[i].String()] = all[i]
				if g := got[all[i].String()]; g.Mark != all[i].Mark {
					t.Errorf("%s: mark %#x", &all[i], g.Mark)
				}
			}
			if g, w := sortedKeys(got), sortedKeys(want); !slices.Equal(g, w) {
				t.Errorf("got  %q\nwant %q", g, w)
			}
		})
	}
}

// TestMark changes one bit of many flows, of which some are gone and one is another now.
func TestMark(t *testing.T) {
	n := &node{name: namespace(t)}
	n.table = conntrack.NewTableIn(entering(n.name))
	var all []conntrack.Flow
	for i := range 700 {
		all = append(all, udp(fmt.Sprintf("10.0.0.1:%d", i+1), "10.96.0.1:53", "10.0.0.3:53", fmt.Sprintf("10.0.0.1:%d", i+1), uint32(i%2)*bit|0x4001))
	}
	if err := n.table.Create(all); err != nil {
		t.Fatal(err)
	}
	var set, clear []conntrack.Flow
	for _, f := range n.flows(t) {
		if f.Mark&bit == 0 {
			set = append(set, f)
		} else {
			clear = append(clear, f)
		}
	}
	gone := map[uint16]bool{5: true, 300: true}
	if d, err := n.table.Delete(t.Context(), 0, func(f *conntrack.Flow) bool { return gone[f.Source.Port()] }); d != 2 || err != nil {
		t.Fatal(d, err)
	}
	if err := n.table.Create([]conntrack.Flow{udp("10.0.0.1:5", "10.96.0.1:53", "10.0.0.4:53", "10.0.0.1:5", 0)}); err != nil {
		t.Fatal(err)
	}
	others, err := n.table.Mark(t.Context(), bit, set, clear)
	if err != nil {
		t.Fatal(err)
	}
	if len(others) != 1 || others[0].Source.Port() != 5 || others[0].Destination != ap("10.0.0.4:53") {
		t.Errorf("others: %v", others)
	}
	after := n.flows(t)
	if len(after) != 699 {
		t.Errorf("%d flows; marking made or ended some", len(after))
	}
	for s, f := range after {
		want := uint32(0x4001)
		if f.Source.Port()%2 == 1 { // the first has none
			want |= bit
		}
		if f.Source.Port() != 5 && f.Mark != want {
			t.Errorf("%s: mark %#x, want %#x", s, f.Mark, want)
		}
	}
}

// TestForget deletes what names an address, wherever, for several callers at once.
func TestForget(t *testing.T) {
	n := &node{name: namespace(t)}
	n.table = conntrack.NewTableIn(entering(n.name))
	err := n.table.Create([]conntrack.Flow{
		udp("10.0.0.1:1", "10.0.0.2:53", "10.0.0.2:53", "10.0.0.1:1", 0),
		udp("10.0.0.3:1", "10.96.0.1:53", "10.0.0.1:53", "10.0.0.3:1", 0),
		udp("10.0.0.3:2", "10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:2", 0),
		udp("10.0.0.3:3", "10.0.0.2:53", "10.0.0.2:53", "10.0.0.1:3", 0),
		udp("10.0.0.5:1", "10.0.0.2:53", "10.0.0.2:53", "10.0.0.5:1", 0),
		udp("[fd00::1]:1", "[fd00::2]:53", "[fd00::2]:53", "[fd00::1]:1", 0),
		udp("10.0.0.11:1", "10.0.0.2:53", "10.0.0.2:53", "10.0.0.11:1", 0),
		udp("[fd00::11]:1", "[fd00::2]:53", "[fd00::2]:53", "[fd00::11]:1", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := n.table.Forget(t.Context()); d != 0 || err != nil {
		t.Error(d, err)
	}
	var wg sync.WaitGroup
	for _, addrs := range [][]string{{"10.0.0.1"}, {"10.0.0.5"}, {"fd00::1", "10.0.0.99"}} {
		wg.Go(func() {
			var a []netip.Addr
			for _, s := range addrs {
				a = append(a, netip.MustParseAddr(s))
			}
			if _, err := n.table.Forget(t.Context(), a...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := []string{"protocol 17 10.0.0.11:1 > 10.0.0.2:53", "protocol 17 [fd00::11]:1 > [fd00::2]:53"}
	if got := sortedKeys(n.flows(t)); !slices.Equal(got, want) {
		t.Errorf("left: %q", got)
	}
}

// TestForgetIn deletes what names an address of a prefix, wherever, but those that are kept.
func TestForgetIn(t *testing.T) {
	n := &node{name: namespace(t)}
	n.table = conntrack.NewTableIn(entering(n.name))
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26"), netip.MustParsePrefix("fd00::/122")}
	none := func(netip.Addr) bool { return false }
	if d, err := n.table.ForgetIn(t.Context(), prefixes, none); d != 0 || err != nil {
		t.Error("of an empty table:", d, err)
	}
	err := n.table.Create([]conntrack.Flow{
		udp("10.0.0.1:1", "10.9.0.2:53", "10.9.0.2:53", "10.0.0.1:1", 0), // each place
		udp("10.9.0.3:1", "10.0.0.1:53", "10.9.0.1:53", "10.9.0.3:1", 0),
		udp("10.9.0.3:2", "10.96.0.1:53", "10.0.0.1:53", "10.9.0.3:2", 0),
		udp("10.9.0.3:3", "10.9.0.2:53", "10.9.0.2:53", "10.0.0.1:3", 0),
		udp("10.0.0.5:1", "10.0.0.1:53", "10.0.0.1:53", "10.0.0.5:1", 0),     // one end is kept, and the other not
		udp("10.0.0.5:1", "10.0.0.6:53", "10.0.0.6:53", "10.0.0.5:1", 0),     // both are kept
		udp("10.0.0.5:1", "10.0.0.64:53", "10.0.0.64:53", "10.0.0.5:1", 0),   // in no prefix
		udp("[fd00::1]:1", "[fd01::2]:53", "[fd01::2]:53", "[fd00::1]:1", 0), // of the other family
		udp("[fd00::40]:1", "[fd01::2]:53", "[fd01::2]:53", "[fd00::40]:1", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	keep := func(a netip.Addr) bool {
		return a == netip.MustParseAddr("10.0.0.5") || a == netip.MustParseAddr("10.0.0.6")
	}
	if d, err := n.table.ForgetIn(t.Context(), prefixes, keep); d != 6 || err != nil {
		t.Errorf("%d forgotten, want 6; %v", d, err)
	}
	want := []string{"protocol 17 10.0.0.5:1 > 10.0.0.64:53", "protocol 17 10.0.0.5:1 > 10.0.0.6:53", "protocol 17 [fd00::40]:1 > [fd01::2]:53"}
	if got := sortedKeys(n.flows(t)); !slices.Equal(got, want) {
		t.Errorf("left: %q", got)
	}
	if d, err := n.table.ForgetIn(t.Context(), prefixes[1:], none); d != 0 || err != nil {
		t.Error("again:", d, err)
	}
}

// TestInheritsNothing gives a pod's address to another one while the peer goes on sending.
func TestInheritsNothing(t *testing.T) {
	n := newNode(t)
	for _, v6 := range []bool{false, true} {
		server, other := podAddr(v6, 1), podAddr(v6, 2)
		iptables := "iptables-legacy"
		if v6 {
			iptables = "ip6tables-legacy"
		}
		in := "ip netns exec " + n.name + " " + iptables
		shell(t, in+" -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT")
		k := dial(t, "udp", n.pods[0], netip.AddrPortFrom(server, 8000), n.pods[1], netip.AddrPortFrom(server, 8000))
		keep := dial(t, "tcp", n.pods[0], netip.AddrPortFrom(other, 8000), n.pods[2], netip.AddrPortFrom(other, 8000))
		// The new owner's policy lets nobody in; what is established passes.
		shell(t, in+" -A FORWARD -d "+server.String()+" -j DROP")
		shell(t, in+" -A FORWARD -s "+server.String()+" -j DROP")
		k.hears(t)
		if d, err := n.table.Forget(t.Context(), server); d != 1 || err != nil {
			t.Fatal(d, err)
		}
		k.cut(t, time.Now())
		keep.hears(t)
		keep.whole(t)
	}
}
