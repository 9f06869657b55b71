package trace

import (
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// matches reports whether all that the rule says holds for the packet.
func (w *way) matches(r *policy.Rule, p *Packet) bool {
	if r.Protocol != 0 && r.Protocol != p.Protocol || r.NotProtocol != 0 && r.NotProtocol == p.Protocol {
		return false
	}
	if r.ICMP != nil && !icmp(r.ICMP, p) || r.NotICMP != nil && icmp(r.NotICMP, p) {
		return false
	}
	return w.peer(&r.Src, p.Src, p.SrcPort, p.Protocol) && w.peer(&r.Dst, p.Dst, p.DstPort, p.Protocol)
}

func icmp(m *policy.ICMPMatch, p *Packet) bool {
	return (p.Protocol == model.ProtocolICMP || p.Protocol == model.ProtocolICMPv6) && m.Type == p.ICMPType && (m.AnyCode || m.Code == p.ICMPCode)
}

// peer matches one end of the packet's way.
func (w *way) peer(m *policy.Peer, a netip.Addr, port uint16, protocol uint8) bool {
	if m.Net.IsValid() && !m.Net.Contains(a) || m.NotNet.IsValid() && m.NotNet.Contains(a) {
		return false
	}
	ranged := func(r model.PortRange) bool { return r.First <= port && port <= r.Last }
	if len(m.Ports) > 0 && !(HasPorts(protocol) && slices.ContainsFunc(m.Ports, ranged)) {
		return false
	}
	if len(m.NotPorts) > 0 && HasPorts(protocol) && slices.ContainsFunc(m.NotPorts, ranged) {
		return false
	}
	holds := func(id policy.SetID) bool { return w.holds(id, a) }
	holdsPort := func(id policy.SetID) bool {
		if !HasPorts(protocol) {
			return false
		}
		_, ok := w.prog.Sets[id][policy.Member{Prefix: netip.PrefixFrom(a, a.BitLen()), Protocol: protocol, Port: port}]
		return ok
	}
	return all(m.In, holds) && !slices.ContainsFunc(m.NotIn, holds) && all(m.InPort, holdsPort) && !slices.ContainsFunc(m.NotInPort, holdsPort)
}

func all(ids []policy.SetID, f func(policy.SetID) bool) bool {
	for _, id := range ids {
		if !f(id) {
			return false
		}
	}
	return true
}

// holds reports whether the address is in a set of addresses or networks. Sets know the
// prefixes they hold, not what is in them, so every length is asked for.
func (w *way) holds(id policy.SetID, a netip.Addr) bool {
	set := w.prog.Sets[id]
	if len(set) == 0 {
		return false
	}
	least := a.BitLen()
	if kind, _, _ := policy.KindOf(id); kind == policy.SetNet {
		least = 0
	}
	for bits := a.BitLen(); bits >= least; bits-- {
		n, err := a.Prefix(bits)
		if err != nil {
			return false
		}
		if _, ok := set[policy.Member{Prefix: n}]; ok {
			return true
		}
	}
	return false
}
