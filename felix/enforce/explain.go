package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// elsewhere is the interface of whom the host has no way to.
const elsewhere = "*"

// End is one end of a connection: a pod, or, where Addr is valid, an address.
type End struct {
	Namespace, Name string
	Addr            netip.Addr
}

// Question is a connection that somebody would open.
type Question struct {
	From, To End
	Protocol uint8 // IANA
	// Ports are looked at for protocols with ports only, ICMPType and ICMPCode for ICMP and
	// ICMPv6 only.
	SourcePort, Port   uint16
	ICMPType, ICMPCode uint8
}

// Answer is what the rules that stand in this node's kernel do with the first packet of a
// connection.
type Answer struct {
	Packet trace.Packet
	// From and To are the workloads of this node that the ends are; a zero ID: it is none, and what
	// its own node's rules say is not in Result.
	From, To model.PolicyEndpointID
	Result   trace.Result
}

// Explain answers for each family that both ends have an address of. The error says which end it
// cannot find, and what to ask instead.
func (e *Enforcer) Explain(ctx context.Context, q Question) ([]Answer, error) {
	endpoints := e.Endpoints()
	own, err := e.cfg.Flows.Own(ctx)
	if err != nil {
		return nil, fmt.Errorf("this host's addresses: %w", err)
	}
	froms, err := e.addresses("from", q.From)
	if err != nil {
		return nil, err
	}
	tos, err := e.addresses("to", q.To)
	if err != nil {
		return nil, err
	}
	var out []Answer
	for _, from := range froms {
		for _, to := range tos {
			if from.Is4() != to.Is4() || slices.ContainsFunc(out, func(a Answer) bool { return a.Packet.Src.Is4() == from.Is4() }) {
				continue
			}
			if icmp := q.Protocol == model.ProtocolICMP; icmp && !from.Is4() || q.Protocol == model.ProtocolICMPv6 && from.Is4() {
				continue
			}
			a := Answer{Packet: trace.Packet{
				Src: from, Dst: to, Protocol: q.Protocol, SrcPort: q.SourcePort, DstPort: q.Port, ICMPType: q.ICMPType, ICMPCode: q.ICMPCode,
			}}
			a.Packet.In, a.From = e.side(endpoints, own, from)
			a.Packet.Out, a.To = e.side(endpoints, own, to)
			a.Result = e.Trace(a.Packet)
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("from has the addresses %v and to %v: of no family that the protocol has do both have one", froms, tos)
	}
	return out, nil
}

// addresses are those that an end may have.
func (e *Enforcer) addresses(which string, end End) ([]netip.Addr, error) {
	if end.Addr.IsValid() {
		return []netip.Addr{end.Addr.Unmap().WithZone("")}, nil
	}
	if end.Name == "" {
		return nil, errors.New(which + ": is missing; must be NAMESPACE/POD or an address")
	}
	id := model.PolicyEndpointID{Kind: model.EndpointWorkload, Namespace: end.Namespace, Name: end.Name}
	e.mu.Lock()
	addrs, known := e.engine.Addresses(id)
	e.mu.Unlock()
	switch {
	case !known:
		return nil, fmt.Errorf("%s: %s is not on this node, and no policy here selects pods of other nodes by which it would be known; give its address", which, id)
	case len(addrs) == 0:
		return nil, fmt.Errorf("%s: %s has no address yet", which, id)
	}
	return addrs, nil
}

// side says by which interface the host reaches an address, "" for its own, and which workload of
// this node has it.
func (e *Enforcer) side(endpoints []policy.Endpoint, own map[netip.Addr]struct{}, a netip.Addr) (iface string, id model.PolicyEndpointID) {
	for i := range endpoints {
		if endpoints[i].ID.Kind == model.EndpointWorkload && slices.Contains(endpoints[i].Addresses, a) {
			return endpoints[i].Interface, endpoints[i].ID
		}
	}
	if _, is := own[a]; is {
		return "", id
	}
	if iface = e.cfg.Flows.Route(a); iface == "" {
		return elsewhere, id
	}
	return iface, id
}
