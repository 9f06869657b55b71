package dataplane

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// OutgoingNAT decides what leaves a node under another source, for one family: connections
// from the networks of pools with natOutgoing to anything outside all pools, and with
// natOutgoingExclusions IPPoolsAndHostIPs outside the nodes' addresses, too.
//
// As in Calico every pool counts as a destination, whatever its use and whether it is
// disabled: its pods live on. Nothing sends from a pool for load balancers alone, so that it
// is no source. Sources are pools and not the addresses of this node's pods, so that no pod
// starts to send before its address is among them.
func OutgoingNAT(snap *model.Snapshot, v6 bool) model.OutgoingNAT {
	var out model.OutgoingNAT
	for i := range snap.Pools {
		p := &snap.Pools[i]
		if p.CIDR.Addr().Is6() != v6 {
			continue
		}
		out.Exempt = append(out.Exempt, p.CIDR)
		if p.NATOutgoing && (p.Allows(model.UseWorkload) || p.Allows(model.UseTunnel)) {
			out.Sources = append(out.Sources, p.CIDR)
		}
	}
	if len(out.Sources) == 0 {
		return model.OutgoingNAT{}
	}
	if snap.Felix.NATExcludesHosts {
		for i := range snap.Nodes {
			p := snap.Nodes[i].IPv4
			if v6 {
				p = snap.Nodes[i].IPv6
			}
			if a := p.Addr(); a.IsValid() {
				out.Exempt = append(out.Exempt, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	out.Sources, out.Exempt = aggregate(out.Sources), aggregate(out.Exempt)
	out.Ports, out.Interface = snap.Felix.NATPorts, snap.Felix.NATInterface
	if a := snap.Felix.NATOutgoingAddress; a.IsValid() && a.Is6() == v6 {
		out.Address = a
	}
	return out
}

// aggregate covers exactly the addresses of ps with as few prefixes as can be, sorted.
func aggregate(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	// No two of out overlap or can be joined. Sorted as ps are, the next one is inside the
	// last of out, or behind it.
	var out []netip.Prefix
	for _, p := range ps {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
		for n := len(out); n > 1 && p.Bits() > 0; n = len(out) {
			whole := netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			if last := out[n-2]; last.Bits() != p.Bits() || last.Addr() != whole.Addr() {
				break
			}
			p = whole
			out = append(out[:n-2], p)
		}
	}
	return out
}
