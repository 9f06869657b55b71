// Package trace owns the answer to one question: what do the rules of this node do with a
// packet, and which of them decide? It walks a policy.Program as the kernel walks what the
// backends make of it. It is pure: causewayctl explains verdicts with it, and who cuts
// forbidden connections asks it for each of them.
//
// A packet stands for the first of its connection, in the direction of the one who opened
// it. Later packets and replies are connection tracking's and are not asked about, but for
// what is untracked, where each packet stands for itself.
//
// Neighbour discovery, ARP and what else a link needs to work at all are not policy's and
// not traced.
package trace

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// Packet is a packet and its way through the node.
type Packet struct {
	// Src and Dst are of one family, as the policy of workloads sees them: with addresses of
	// Services already translated.
	Src, Dst netip.Addr
	Protocol uint8 // IANA
	// SrcPort and DstPort are looked at for protocols with ports only, ICMPType and ICMPCode
	// for ICMP and ICMPv6 only.
	SrcPort, DstPort   uint16
	ICMPType, ICMPCode uint8
	// In is the interface that it comes in by, Out the one it leaves by. Empty: it begins,
	// or ends, on the host.
	In, Out string
	// FirstDst and FirstDstPort are the destination before the addresses of Services were
	// translated. A FirstDst that is not valid: nothing was translated.
	FirstDst     netip.Addr
	FirstDstPort uint16
}

func (p Packet) String() string {
	var b strings.Builder
	end := func(a netip.Addr, port uint16) string {
		if HasPorts(p.Protocol) {
			return netip.AddrPortFrom(a, port).String()
		}
		return a.String()
	}
	link := func(name string) string {
		if name == "" {
			return "host"
		}
		return name
	}
	fmt.Fprintf(&b, "protocol %d %s > %s, %s > %s", p.Protocol, end(p.Src, p.SrcPort), end(p.Dst, p.DstPort), link(p.In), link(p.Out))
	if p.Protocol == model.ProtocolICMP || p.Protocol == model.ProtocolICMPv6 {
		fmt.Fprintf(&b, ", type %d code %d", p.ICMPType, p.ICMPCode)
	}
	if p.FirstDst.IsValid() {
		fmt.Fprintf(&b, ", first to %s", end(p.FirstDst, p.FirstDstPort))
	}
	return b.String()
}

// first is the packet as it is before addresses of Services are translated.
func (p Packet) first() Packet {
	if p.FirstDst.IsValid() {
		p.Dst, p.DstPort = p.FirstDst, p.FirstDstPort
	}
	return p
}

// HasPorts reports whether packets of the protocol have ports that rules can match.
func HasPorts(protocol uint8) bool {
	switch protocol {
	case model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP, model.ProtocolUDPLite:
		return true
	}
	return false
}

// WorkloadPrefix begins the names of all links to workloads, and of no other interface. A
// link with such a name that no endpoint has is that of a workload without rules: nothing passes it.
const WorkloadPrefix = "cali"

// Point is a place on a packet's way where it can end, in the order of the way.
type Point uint8

// The points. A packet meets those that lie on its way.
const (
	SourceCheck      Point = iota // may the workload send from this address?
	UntrackedIngress              // host endpoint, before connection tracking
	PreDNAT                       // host endpoint, before addresses of Services are translated
	ForwardIngress                // host endpoint, forwarded in by it
	WorkloadEgress
	ToHost          // from a workload to its own host: HostPolicy.EndpointToHost
	HostIngress     // host endpoint, to the host itself
	WorkloadIngress // never asked about what the workload's own host sends
	ForwardEgress   // host endpoint, forwarded out by it
	// UntrackedEgress is a host endpoint's, for what begins on the host: where the kernel
	// begins to track a forwarded packet nobody knows yet where it will leave.
	UntrackedEgress
	HostEgress // host endpoint, from the host itself
)

var pointNames = [...]string{"source check", "untracked ingress", "pre-DNAT", "forward ingress", "workload egress", "to host",
	"host ingress", "workload ingress", "forward egress", "untracked egress", "host egress"}

func (p Point) String() string { return pointNames[p] }

// Reason is what decided at a point.
type Reason uint8

// The reasons.
const (
	ByRule       Reason = iota + 1 // the last of Stage.Hits
	ByTier                         // the end of Stage.Tier
	ByDefault                      // no tier decided: the endpoint's profile
	ByNothing                      // no tier decided, and the packet goes on
	ByFailsafe                     // a failsafe port
	ByUntracked                    // an untracked policy allowed it before
	BySource                       // the address is, or is not, one that the workload sends from
	BySetting                      // HostPolicy.EndpointToHost
	ByNoEndpoint                   // the link is a workload's of whom there are no rules
)

var reasonNames = [...]string{"none", "rule", "end of tier", "default", "no policy", "failsafe port", "untracked policy",
	"source address", "defaultEndpointToHostAction", "no such endpoint"}

func (r Reason) String() string { return reasonNames[r] }

// Hit is a rule that matched the packet.
type Hit struct {
	Tier   string
	Chain  policy.ChainID
	Index  int // policy.Rule.Index: of the rule in the policy
	Action policy.Action
}

// Stage is what happened at one point.
type Stage struct {
	Point     Point
	Endpoint  model.PolicyEndpointID // zero where the point is no endpoint's
	Interface string                 // that of the endpoint
	// Decision is Allow or Deny; 0: nothing decided, the packet went on.
	Decision policy.Action
	Reason   Reason
	Tier     string // with ByRule and ByTier
	Hits     []Hit  // the rules that matched, staged and logging ones too, in order
}

// Result is what becomes of a packet. Of a packet that is not allowed the last stage has
// decided.
type Result struct {
	Allowed   bool
	Untracked bool // an untracked policy allowed it: its connection is not tracked
	Stages    []Stage
}

func (r Result) String() string {
	var b strings.Builder
	if r.Allowed {
		b.WriteString("allowed")
	} else {
		b.WriteString("denied")
	}
	if r.Untracked {
		b.WriteString(", untracked")
	}
	for _, s := range r.Stages {
		fmt.Fprintf(&b, "\n  %s", s.Point)
		b.WriteString(" " + s.Interface)
		if s.Endpoint.Name != "" {
			fmt.Fprintf(&b, " (%s)", s.Endpoint)
		}
		switch s.Decision {
		case policy.Allow, policy.Deny:
			fmt.Fprintf(&b, ": %s by %s", s.Decision, s.Reason)
		default:
			fmt.Fprintf(&b, ": goes on, by %s", s.Reason)
		}
		if s.Tier != "" {
			fmt.Fprintf(&b, ", tier %s", s.Tier)
		}
		for _, h := range s.Hits {
			fmt.Fprintf(&b, "\n    %s rule %d: %s", h.Chain, h.Index, h.Action)
		}
	}
	return b.String()
}

// Trace says what becomes of the packet, and why.
func Trace(prog *policy.Program, p Packet) Result {
	w := way{prog: prog, pkt: p, record: true}
	allowed := w.walk()
	return Result{Allowed: allowed, Untracked: w.untracked, Stages: w.stages}
}

// Allowed is Trace's answer without the reasons, at less cost.
func Allowed(prog *policy.Program, p Packet) bool {
	w := way{prog: prog, pkt: p}
	return w.walk()
}
