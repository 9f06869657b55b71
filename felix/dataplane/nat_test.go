package dataplane

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, prefix(s))
	}
	return out
}

func TestOutgoingNAT(t *testing.T) {
	pods := []model.Use{model.UseWorkload, model.UseTunnel}
	pools := []model.Pool{
		{Name: "a", CIDR: prefix("10.244.0.0/16"), NATOutgoing: true, AllowedUses: pods},
		{Name: "b", CIDR: prefix("10.100.0.0/24"), AllowedUses: pods},
		{Name: "c", CIDR: prefix("10.99.0.0/24"), NATOutgoing: true, Disabled: true, AllowedUses: pods},
		{Name: "d", CIDR: prefix("fd00:10:244::/64"), NATOutgoing: true, AllowedUses: pods},
		{Name: "lb", CIDR: prefix("192.0.2.128/25"), NATOutgoing: true, AllowedUses: []model.Use{model.UseLoadBalancer}},
	}
	nodes := []model.Node{
		{Name: "a", IPv4: prefix("192.0.2.10/24"), IPv6: prefix("fd00::a/64")},
		{Name: "b", IPv4: prefix("192.0.2.11/24")}, {Name: "c"}, {Name: "d", IPv4: prefix("10.244.9.9/32")},
	}
	sources, all := prefixes("10.99.0.0/24", "10.244.0.0/16"), prefixes("10.99.0.0/24", "10.100.0.0/24", "10.244.0.0/16", "192.0.2.128/25")
	six := prefixes("fd00:10:244::/64")
	for _, c := range []struct {
		name   string
		pools  []model.Pool
		felix  model.Felix
		v4, v6 model.OutgoingNAT
	}{
		{"nothing known", nil, model.Felix{}, model.OutgoingNAT{}, model.OutgoingNAT{}},
		{"no pool wants it", pools[1:2], model.Felix{NATExcludesHosts: true, NATInterface: "eth0"}, model.OutgoingNAT{}, model.OutgoingNAT{}},
		{"for load balancers alone", pools[4:], model.Felix{}, model.OutgoingNAT{}, model.OutgoingNAT{}},
		{"pools only", pools, model.Felix{}, model.OutgoingNAT{Sources: sources, Exempt: all}, model.OutgoingNAT{Sources: six, Exempt: six}},
		{"hosts, too", pools, model.Felix{NATExcludesHosts: true},
			model.OutgoingNAT{Sources: sources, Exempt: prefixes("10.99.0.0/24", "10.100.0.0/24", "10.244.0.0/16", "192.0.2.10/31", "192.0.2.128/25")},
			model.OutgoingNAT{Sources: six, Exempt: prefixes("fd00::a/128", "fd00:10:244::/64")}},
		{"address of one family", pools, model.Felix{NATOutgoingAddress: addr("198.51.100.1"), NATPorts: model.PortRange{First: 1000, Last: 2000}, NATInterface: "eth+"},
			model.OutgoingNAT{Sources: sources, Exempt: all, Address: addr("198.51.100.1"), Ports: model.PortRange{First: 1000, Last: 2000}, Interface: "eth+"},
			model.OutgoingNAT{Sources: six, Exempt: six, Ports: model.PortRange{First: 1000, Last: 2000}, Interface: "eth+"}},
		{"of the other", pools, model.Felix{NATOutgoingAddress: addr("2001:db8::1")},
			model.OutgoingNAT{Sources: sources, Exempt: all}, model.OutgoingNAT{Sources: six, Exempt: six, Address: addr("2001:db8::1")}},
	} {
		snap := &model.Snapshot{Pools: c.pools, Nodes: nodes, Felix: c.felix}
		if got := OutgoingNAT(snap, false); !got.Equal(c.v4) {
			t.Errorf("%s: IPv4:\n%+v, want\n%+v", c.name, got, c.v4)
		}
		if got := OutgoingNAT(snap, true); !got.Equal(c.v6) {
			t.Errorf("%s: IPv6:\n%+v, want\n%+v", c.name, got, c.v6)
		}
	}
}

// TestAggregate compares random prefixes of a /24 with the set of their addresses: it is the
// same set, and no prefix can be joined with its sibling or is in another.
func TestAggregate(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		var in []netip.Prefix
		for range random.IntN(40) {
			in = append(in, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(256))}), 32-random.IntN(random.IntN(9)+1)).Masked())
		}
		holds := func(ps []netip.Prefix, a netip.Addr) bool {
			return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		out := aggregate(slices.Clone(in))
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			if holds(in, a) != holds(out, a) {
				t.Fatalf("%s is in %v: %v; in %v: %v", a, in, holds(in, a), out, holds(out, a))
			}
		}
		for i, p := range out {
			for _, q := range out[i+1:] {
				if p.Overlaps(q) || p.Addr().Compare(q.Addr()) >= 0 {
					t.Fatalf("%v of %v: %s and %s", out, in, p, q)
				}
				if p.Bits() == q.Bits() && netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked() == netip.PrefixFrom(q.Addr(), q.Bits()-1).Masked() {
					t.Fatalf("%v of %v: %s and %s can be joined", out, in, p, q)
				}
			}
		}
	}
}
