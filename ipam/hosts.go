package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// A block that holds the address of a node, or of a BGP peer on a node's subnet, is never
// claimed. Its blackhole and its advert are more specific than that subnet: they would cut
// this node, and all who hear the advert, off from that address. The way to the API server
// may be among it, so that not even the removal of the pool would be heard. A peer that is on
// no node's subnet may be a pod, which has its address out of a block.

// host returns an address in p that a node, or a peer on a node's subnet, has, and whose it
// is. a.mu is held.
func (a *Allocator) host(p netip.Prefix) (addr netip.Addr, whose string, ok bool) {
	if a.snap == nil {
		return netip.Addr{}, "", false
	}
	for i := range a.snap.Nodes {
		n := &a.snap.Nodes[i]
		for _, own := range [...]netip.Prefix{n.IPv4, n.IPv6} {
			if own.IsValid() && p.Contains(own.Addr()) {
				return own.Addr(), "Node " + n.Name, true
			}
		}
	}
	for i := range a.snap.Peers {
		if at := a.snap.Peers[i].PeerIP; at.IsValid() && p.Contains(at) && a.beside(at) {
			return at, "the peer of BGPPeer " + a.snap.Peers[i].Name, true
		}
	}
	return netip.Addr{}, "", false
}

// beside reports whether addr stands in the subnet of a node. a.mu is held.
func (a *Allocator) beside(addr netip.Addr) bool {
	return slices.ContainsFunc(a.snap.Nodes, func(n model.Node) bool { return n.IPv4.Contains(addr) || n.IPv6.Contains(addr) })
}

// aroundHosts returns the pools that would serve this node and in which blocks are left
// out because of the addresses of nodes and peers. a.mu is held.
func (a *Allocator) aroundHosts() []model.Problem {
	if a.snap == nil {
		return nil
	}
	node := a.snap.Node(a.cfg.Node)
	if node == nil {
		return nil
	}
	var out []model.Problem
	for i := range a.snap.Pools {
		p := &a.snap.Pools[i]
		if unusable(p, node, a.cfg.Private) != nil {
			continue
		}
		if addr, whose, ok := a.host(p.CIDR); ok {
			out = append(out, model.Problem{
				Object: model.Object{Kind: "IPPool", Name: p.Name}, Field: ".spec.cidr", Ignored: true,
				Message: fmt.Sprintf("is %s, which holds %s, the address of %s; blocks around addresses of nodes and peers are not used; make a pool that has none of them", p.CIDR, addr, whose),
			})
		}
	}
	return out
}
