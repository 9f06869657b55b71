// Package dataplane decides what should stand in the kernel of this node: pure functions
// from the snapshot and the attached pods to candidate routes and link settings. It
// touches nothing itself; the kernel reconcilers beside it do.
package dataplane

import (
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// WorkloadRoutes are the routes to a pod of this node: each of its addresses on its link.
// An endpoint that is not wired yet has none.
func WorkloadRoutes(ep model.Endpoint) []model.Route {
	if !ep.Wired() {
		return nil
	}
	routes := make([]model.Route, 0, len(ep.Addresses))
	for _, a := range ep.Addresses {
		routes = append(routes, model.Route{
			Prefix:   netip.PrefixFrom(a, a.BitLen()),
			NextHops: []model.NextHop{{Device: ep.HostInterface}},
		})
	}
	return routes
}

// Prefixes lists the prefixes of routes.
func Prefixes(routes []model.Route) []netip.Prefix {
	ps := make([]netip.Prefix, len(routes))
	for i, r := range routes {
		ps[i] = r.Prefix
	}
	return ps
}

// OwnBlocks are the blocks that the node owns.
func OwnBlocks(snap *model.Snapshot, node string) []netip.Prefix {
	var own []netip.Prefix
	for _, b := range snap.Blocks {
		if b.Node == node {
			own = append(own, b.CIDR)
		}
	}
	return own
}

// Lent lists the addresses of the node's blocks that others have: pods of other nodes, and
// tunnels, its own among them.
func Lent(snap *model.Snapshot, node string) []netip.Addr {
	var lent []netip.Addr
	for _, b := range snap.Blocks {
		if b.Node != node {
			continue
		}
		for _, l := range b.Lent {
			lent = append(lent, l.Addr)
		}
	}
	own := OwnBlocks(snap, node)
	for _, n := range snap.Nodes {
		for _, t := range n.Tunnels {
			if slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(t.Addr) }) {
				lent = append(lent, t.Addr)
			}
		}
	}
	return lent
}

// BlockRoutes are the blackholes of the blocks that this node owns: the block is
// advertised as a whole, so what it holds no pod for must die here and not loop back to
// the router that sent it. A block of a single address needs none.
func BlockRoutes(own []netip.Prefix) []model.Route {
	var routes []model.Route
	for _, p := range own {
		if !p.IsSingleIP() {
			routes = append(routes, model.Route{Prefix: p, Type: model.RouteBlackhole})
		}
	}
	return routes
}

// Outside lists the addresses of a pod that none of the node's own blocks covers (borrowed
// or asked for by name): nobody would find them by the blocks' adverts. An endpoint that is
// not wired yet has none.
func Outside(own []netip.Prefix, ep model.Endpoint) []netip.Addr {
	if !ep.Wired() {
		return nil
	}
	var out []netip.Addr
	for _, a := range ep.Addresses {
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}
