package felixtest

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// Packet makes a packet that is likely to be at the edge of what the World's policies say:
// addresses of endpoints and the first, last and next ones of networks, ports of rules and
// those beside them.
func (g *Generator) Packet() trace.Packet {
	for {
		if p := g.packet(); g.World.Possible(p) {
			return p
		}
	}
}

func (g *Generator) packet() trace.Packet {
	v6 := g.in(40)
	p := trace.Packet{Src: g.address(v6), Dst: g.address(v6)}
	p.Protocol = one[uint8](g, 6, 6, 6, 17, 17, 132, 136, 47, 1)
	if p.Protocol == 1 && v6 {
		p.Protocol = model.ProtocolICMPv6
	}
	p.SrcPort, p.DstPort = g.edge(), g.edge()
	p.ICMPType, p.ICMPCode = one[uint8](g, 0, 3, 8, 128, 253, 254), one[uint8](g, 0, 1, 254, 255)
	if g.in(20) {
		g.aimAtPort(&p)
	}
	p.In, p.Out = g.link(p.Src), g.link(p.Dst)
	if p.In == "" && p.Out == "" || p.In == p.Out {
		p.Out = one(g, "eth0", "eth1", "eth2")
	}
	if g.in(4) { // from the host out
		p.Src, p.In, p.Out = hostAddr(v6, 1), "", one(g, "eth0", "eth1")
	}
	if g.in(10) {
		p.FirstDst, p.FirstDstPort = g.address(v6), g.edge()
	}
	return p
}

// aimAtPort makes one end of the packet a named port of an endpoint.
func (g *Generator) aimAtPort(p *trace.Packet) {
	ids := slices.SortedFunc(maps.Keys(g.World.Endpoints), model.PolicyEndpointID.Compare)
	if len(ids) == 0 {
		return
	}
	e := g.World.Endpoints[ids[g.IntN(len(ids))]]
	i := slices.IndexFunc(e.Addresses, func(a netip.Addr) bool { return a.Is6() == p.Src.Is6() })
	if i < 0 || len(e.Ports) == 0 {
		return
	}
	port := one(g, e.Ports...)
	p.Protocol = port.Protocol
	if g.in(70) {
		p.Dst, p.DstPort = e.Addresses[i], port.Port
	} else {
		p.Src, p.SrcPort = e.Addresses[i], port.Port
	}
}

func (g *Generator) address(v6 bool) netip.Addr {
	switch n := g.IntN(20); {
	case n < 12:
		return addr(v6, 1+g.IntN(pods))
	case n < 15:
		return hostAddr(v6, 1+g.IntN(5))
	case n < 16:
		return addr(v6, 15+g.IntN(12))
	}
	net := g.net()
	for net.Addr().Is6() != v6 {
		net = g.net()
	}
	a := net.Addr()
	if g.in(50) {
		b := a.AsSlice()
		for bit := net.Bits(); bit < len(b)*8; bit++ {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
		a, _ = netip.AddrFromSlice(b)
	}
	switch next := a.Next(); {
	case g.in(30) && next.IsValid():
		return next
	case g.in(30) && a.Prev().IsValid():
		return a.Prev()
	}
	return a
}

// edge is a port at the end of a range that a rule of this generator has, or beside it.
func (g *Generator) edge() uint16 {
	if g.in(60) {
		return one[uint16](g, 80, 80, 53, 81, 99, 22)
	}
	at := one(g, 0, 22, 50, 53, 54, 79, 80, 83, 81, 84, 99, 110, 1000, 1001, 1023, 1024, 1030, 4053, 5000, 65535)
	return uint16(min(max(at+g.IntN(3)-1, 0), 65535))
}

// link is the interface behind which an address is, seldom a wrong one.
func (g *Generator) link(a netip.Addr) string {
	if !g.in(4) {
		ids := slices.SortedFunc(maps.Keys(g.World.Endpoints), model.PolicyEndpointID.Compare)
		for _, id := range ids {
			if e := g.World.Endpoints[id]; id.Kind == model.EndpointWorkload && e.Interface != "" && slices.Contains(e.Addresses, a) {
				return e.Interface
			}
		}
		if a == hostAddr(a.Is6(), 1) || a == hostAddr(a.Is6(), 2) {
			return ""
		}
		return one(g, "eth0", "eth0", "eth1", "eth2")
	}
	return one(g, "", "eth0", "cali0", "cali1", "cali2", "cali99")
}
