package gobgp

import (
	"net/netip"
	"testing"
)

// TestAddressesOfNodes holds what is done with routes to nodes' own addresses: nobody teaches
// this node its own, and what an eBGP peer says of a neighbour's is passed on to nobody; also
// where it was passed on before the neighbour was known to be a node.
func TestAddressesOfNodes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ext, internal := l.router(65001), l.router(ownASN)
	const own, near, later, plain = "192.0.2.1/32", "192.0.2.7/32", "192.0.2.8/32", "192.0.2.9/32"
	addr := func(p string) netip.Addr { return netip.MustParsePrefix(p).Addr() }
	l.want.Own = []netip.Addr{addr(own), netip.MustParseAddr("fd00::1")}
	l.want.Near = []netip.Addr{addr(near), netip.MustParseAddr("fd00::7")}
	l.start()
	ext.bird([]string{own, near, later, plain}, "")
	internal.bird([]string{own, "198.51.100.0/24"}, "")
	l.up(ext, internal)
	l.eventually("what is no node's address goes on", func() bool { return internal.has(plain) && internal.has(later) })
	l.eventually("all but the node's own address is learned", func() bool {
		return len(l.routes.via(near)) == 1 && len(l.routes.via(later)) == 1 && len(l.routes.via("198.51.100.0/24")) == 1
	})
	if internal.has(near) {
		t.Error("a neighbour's address as told by an eBGP peer was passed on")
	}
	if via := l.routes.via(own); via != nil || ext.has(own) || internal.has(own) {
		t.Errorf("the node's own address was learned, via %v", via)
	}

	// A node joins whose address was passed on already.
	l.want.Near = append(l.want.Near, addr(later))
	l.set()
	l.eventually("it is withdrawn", func() bool { return !internal.has(later) })
	if !internal.has(plain) || internal.has(near) {
		t.Error("other routes changed with it")
	}
	// It leaves, and so does the first one.
	l.want.Near = l.want.Near[:0]
	l.set()
	l.eventually("both are passed on", func() bool { return internal.has(later) && internal.has(near) })

	// The node gets another address.
	l.want.Own = []netip.Addr{addr(plain)}
	l.set()
	l.eventually("the new one is unlearned, the old one learned", func() bool {
		return l.routes.via(plain) == nil && !internal.has(plain) && len(l.routes.via(own)) == 1
	})
	for _, r := range []*router{ext, internal} {
		if s := l.status(r.addr); s.Flaps != 0 || s.State != "Established" {
			t.Errorf("%s: %+v", r.name, s)
		}
	}
}

// TestNoAdvertise: what an eBGP peer marks NO_ADVERTISE is used and passed on to nobody (RFC
// 1997).
func TestNoAdvertise(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ext, internal := l.router(65001), l.router(ownASN)
	l.start()
	ext.birdFilter([]string{"192.0.2.0/24", "198.51.100.0/24"}, "if net = 192.0.2.0/24 then bgp_community.add((65535, 65282));")
	internal.bird(nil, "")
	l.up(ext, internal)
	l.eventually("the other route at the internal peer", func() bool { return internal.has("198.51.100.0/24") })
	l.eventually("both at the node", func() bool { return l.routes.len() == 2 })
	if internal.has("192.0.2.0/24") {
		t.Error("a route marked NO_ADVERTISE was passed on")
	}
}
