package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// TestFans: whoever goes by the fans asks, of any packet, exactly the chains that ask for its port, and all that are
// bound to none, in order.
func TestFans(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	protocols := []uint8{model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP}
	deep, folded := 0, 0
	for range 500 {
		wide := []int{1, 3, 60000}[r.IntN(3)]
		chains := make([]*Chain, r.IntN(200))
		for i := range chains {
			chains[i] = &Chain{}
			for range r.IntN(4) {
				first := r.IntN(65536)
				rule := Rule{Protocol: protocols[r.IntN(3)]}
				rule.Dst.Ports = []model.PortRange{{First: uint16(first), Last: uint16(min(first+r.IntN(wide), 65535))}}
				if r.IntN(400) == 0 {
					rule.Dst.Ports = nil
				}
				if r.IntN(2) == 0 {
					chains[i].IPv4 = append(chains[i].IPv4, rule)
				} else {
					chains[i].IPv6 = append(chains[i].IPv6, rule)
				}
			}
			if r.IntN(300) == 0 {
				chains[i] = nil
			}
		}
		all := fans(make([]ChainID, len(chains)), asking(chains), 3)
		folded += len(all)
		for range 20 {
			protocol, port := protocols[r.IntN(3)], uint16(r.IntN(65536))
			if len(chains) > 0 && r.IntN(2) == 0 { // one that is asked for, or beside it
				if c := chains[r.IntN(len(chains))]; c != nil && len(c.IPv4) > 0 && len(c.IPv4[0].Dst.Ports) > 0 {
					protocol, port = c.IPv4[0].Protocol, c.IPv4[0].Dst.Ports[0].Last+uint16(r.IntN(2))
				}
			}
			var want []int
			for i, c := range chains {
				if c == nil || c.asksFor(protocol, port) {
					want = append(want, i)
				}
			}
			got, depth := askedByFans(t, all, len(chains), protocol, port)
			deep = max(deep, depth)
			// Those outside of fans are asked in any case.
			if got = slices.DeleteFunc(got, func(i int) bool { return chains[i] != nil && !chains[i].asksFor(protocol, port) && !inFan(all, i) }); !slices.Equal(got, want) {
				t.Fatalf("protocol %d port %d: asked %v, want %v", protocol, port, got, want)
			}
		}
	}
	if folded < 100 || deep < 3 {
		t.Errorf("%d fans, at most %d nodes deep: the test reaches little", folded, deep)
	}
}

func asking(chains []*Chain) []asked {
	out := make([]asked, len(chains))
	for i, c := range chains {
		if c != nil {
			out[i] = c.asked()
		}
	}
	return out
}

func inFan(all []Fan, i int) bool {
	return slices.ContainsFunc(all, func(f Fan) bool { return f.From <= i && i < f.To })
}

func (c *Chain) asksFor(protocol uint8, port uint16) bool {
	return slices.ContainsFunc(slices.Concat(c.IPv4, c.IPv6), func(r Rule) bool {
		return len(r.Dst.Ports) == 0 || r.Protocol == protocol && slices.ContainsFunc(r.Dst.Ports, func(p model.PortRange) bool { return p.First <= port && port <= p.Last })
	})
}

// askedByFans goes the way of a packet as a backend lays it.
func askedByFans(t *testing.T, all []Fan, chains int, protocol uint8, port uint16) (out []int, depth int) {
	for i := 0; i < chains; i++ {
		f := slices.IndexFunc(all, func(f Fan) bool { return f.From == i })
		if f < 0 {
			out = append(out, i)
			continue
		}
		nodes := all[f].Tree()
		for at, n := 0, 1; at >= 0; n++ {
			depth = max(depth, n)
			ways := slices.DeleteFunc(slices.Clone(nodes[at].Ways), func(w FanWay) bool { return w.Protocol != protocol || port < w.Ports.First || w.Ports.Last < port })
			if len(nodes[at].Ways) > 3*16 || len(ways) > 1 {
				t.Fatalf("node %d of %+v: %d ways, %v match", at, all[f], len(nodes[at].Ways), ways)
			}
			for _, of := range nodes[at].Chains {
				out = append(out, i+of)
			}
			switch at = -1; {
			case len(ways) == 1 && ways[0].Node > 0:
				at = ways[0].Node
			case len(ways) == 1:
				out = append(out, i+ways[0].Chain)
			}
		}
		i = all[f].To - 1
	}
	return out, depth
}

// TestFanThatIsNoShortcut: ranges that overlap without end, and runs that are short, are left as they are.
func TestFanThatIsNoShortcut(t *testing.T) {
	var nested, few []*Chain
	for i := range 100 {
		c := &Chain{IPv4: []Rule{{Protocol: model.ProtocolTCP}}}
		c.IPv4[0].Dst.Ports = []model.PortRange{{First: uint16(i), Last: uint16(1000 - i)}}
		nested = append(nested, c)
		if i < 3 {
			few = append(few, c)
		}
	}
	ids := make([]ChainID, len(nested))
	if got := fans(ids, asking(nested), 3); len(got) > 0 {
		t.Errorf("nested ranges: %d ranges", len(got[0].Ranges))
	}
	if got := fans(ids, asking(few), 4); len(got) > 0 {
		t.Errorf("three chains: %+v", got)
	}
	if got := fans(ids, asking(few), 3); len(got) != 1 || len(got[0].Ranges) != 5 {
		t.Errorf("three chains of which three are a run: %+v", got)
	}
}

// TestFanFollowsPorts: a policy that asks for another port changes the endpoints' ways; one that
// changes otherwise does not.
func TestFanFollowsPorts(t *testing.T) {
	e := New(Config{FanLeast: 3})
	must(t, e.SetTier(model.Tier{Name: "default", DefaultAction: model.RuleDeny}))
	e.SetNamespace(model.Namespace{Name: "red"})
	must(t, e.SetEndpoint(model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointWorkload, Namespace: "red", Name: "a"}, Interface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}))
	set := func(i, port int, selector string) {
		t.Helper()
		p := allow()
		p.ID.Name = fmt.Sprintf("p%d", i)
		p.Ingress[0].Destination.Ports = []model.RulePort{{First: port, Last: port}}
		p.Ingress[0].Source.Selector = selector
		must(t, e.SetPolicy(p))
	}
	for i := range 4 {
		set(i, 80+2*i, "")
	}
	d := e.Flush()
	if len(d.Endpoints) != 1 || len(d.Endpoints[0].Ingress.Tiers[0].Fans) != 1 || len(d.Endpoints[0].Ingress.Tiers[0].Fans[0].Ranges) != 4 {
		t.Fatalf("%+v", d.Endpoints)
	}
	set(1, 82, "has(a)")
	if d = e.Flush(); len(d.Chains) != 1 || len(d.Endpoints) != 0 {
		t.Errorf("another peer: chains %v, endpoints %v", d.Chains, d.Endpoints)
	}
	set(1, 83, "has(a)")
	if d = e.Flush(); len(d.Chains) != 1 || len(d.Endpoints) != 1 || d.Endpoints[0].Ingress.Tiers[0].Fans[0].Ranges[1].Ports.First != 83 {
		t.Errorf("another port: chains %v, endpoints %+v", d.Chains, d.Endpoints)
	}
	e.RemovePolicy(model.PolicyID{Kind: model.PolicyNamespaced, Namespace: "red", Name: "p0"})
	e.RemovePolicy(model.PolicyID{Kind: model.PolicyNamespaced, Namespace: "red", Name: "p1"})
	if d = e.Flush(); len(d.Endpoints) != 1 || len(d.Endpoints[0].Ingress.Tiers[0].Fans) != 0 {
		t.Errorf("two are left: %+v", d.Endpoints)
	}
}

// TestFanUse: a fan is made once for all interfaces that go by it, whichever path names it and wherever in a
// tier it is, made anew when its ranges change, and gone with the last of them.
func TestFanUse(t *testing.T) {
	ids := make([]ChainID, 3)
	for i := range ids {
		ids[i].Policy.Name = fmt.Sprint(i)
	}
	path := func(from, port int) *Path {
		f := Fan{ID: "x", From: from, To: from + 2}
		for i := range 2 {
			f.Ranges = append(f.Ranges, FanRange{model.ProtocolTCP, model.PortRange{First: uint16(port + i), Last: uint16(port + i)}, []int{i}})
		}
		return &Path{Tiers: []Tier{{Chains: slices.Concat(ids[:from], ids[1:]), Fans: []Fan{f}}}}
	}
	var u FanUse
	set := func(iface string, wantMade, wantGone int, paths ...*Path) {
		t.Helper()
		made, gone := u.Set(iface, paths...)
		if len(made) != wantMade || len(gone) != wantGone {
			t.Errorf("%s: made %+v, gone %v; want %d and %d", iface, made, gone, wantMade, wantGone)
		}
		for _, f := range made {
			if !slices.Equal(f.Run, ids[1:]) {
				t.Errorf("it stands for %v", f.Run)
			}
		}
	}
	set("cali1", 1, 0, path(0, 80))
	set("cali2", 0, 0, path(1, 80))
	set("cali2", 1, 0, path(1, 90))
	set("cali1", 0, 0, path(0, 90))
	set("cali1", 0, 0)
	if of := u.Of("cali2"); !of["x"] || len(u.Of("cali1")) > 0 {
		t.Errorf("cali2 goes by %v", of)
	}
	set("cali2", 0, 1)
	set("cali1", 1, 0, path(0, 90))
}
