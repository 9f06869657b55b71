package model

import (
	"cmp"
	"net/netip"
	"slices"
)

// Owner says which part of Causeway wants a route. Its value is the route's
// administrative distance: where two owners want the same prefix the lower one wins, and
// when its route goes the next one takes over.
type Owner uint8

// The owners, best first.
const (
	OwnerWorkload Owner = 10  // a pod on this node
	OwnerBlock    Owner = 20  // blackhole of a block this node owns
	OwnerTunnel   Owner = 30  // VXLAN and IPIP routes made from blocks
	OwnerBGP      Owner = 200 // learned over BGP
)

func (o Owner) String() string {
	switch o {
	case OwnerWorkload:
		return "workload"
	case OwnerBlock:
		return "block"
	case OwnerTunnel:
		return "tunnel"
	case OwnerBGP:
		return "bgp"
	}
	return "unknown"
}

// RouteType is the kernel's route type (rtnetlink(7), rtm_type).
type RouteType uint8

// The types in use.
const (
	RouteUnicast RouteType = iota
	RouteBlackhole
)

// NextHop is one way out. Either Addr or Device is set, or both.
type NextHop struct {
	// Addr is the gateway. Without Device it is resolved through the kernel's own
	// table; with Device it is used as it is.
	Addr netip.Addr
	// Device is the outgoing interface's name; without Addr the prefix is on that link.
	Device string
	// OnLink tells the kernel to believe that Addr is reachable on Device.
	OnLink bool
}

// Compare orders next hops, so that equal sets have equal slices.
func (h NextHop) Compare(o NextHop) int {
	return cmp.Or(h.Addr.Compare(o.Addr), cmp.Compare(h.Device, o.Device))
}

// Route is a candidate for the kernel's main table.
type Route struct {
	Prefix   netip.Prefix // masked
	Type     RouteType
	NextHops []NextHop // sorted, without duplicates; several mean ECMP; empty for blackhole
	Metric   int       // kernel priority; 0 means the route table's default, 1024
}

// Equal reports whether two candidates ask for the same thing.
func (r Route) Equal(o Route) bool {
	return r.Prefix == o.Prefix && r.Type == o.Type && r.Metric == o.Metric && slices.Equal(r.NextHops, o.NextHops)
}

// RouteUpdate is a change of one owner's candidates. A prefix stands in at most one of
// Set and Delete.
type RouteUpdate struct {
	Set    []Route
	Delete []netip.Prefix
}
