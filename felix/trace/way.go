package trace

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// way is one packet on its way.
type way struct {
	prog      *policy.Program
	pkt       Packet
	untracked bool
	record    bool
	stages    []Stage
}

// end is an interface on the packet's way, as dispatch sees it.
type end struct {
	name     string
	workload bool
	ep       *policy.Endpoint // nil: nobody's
}

// dispatch finds the endpoint of an interface.
func dispatch(prog *policy.Program, name string) end {
	if name == "" {
		return end{}
	}
	e := end{name: name, workload: strings.HasPrefix(name, WorkloadPrefix)}
	if ep, ok := prog.Endpoints[name]; ok && name != "*" {
		e.ep = &ep
		e.workload = ep.ID.Kind == model.EndpointWorkload
		return e
	}
	if ep, ok := prog.Endpoints["*"]; ok && !e.workload {
		e.ep = &ep
	}
	return e
}

func (e end) host() bool { return !e.workload && e.ep != nil }

// walk takes the packet along its way; false: it was dropped.
func (w *way) walk() bool {
	in, out := dispatch(w.prog, w.pkt.In), dispatch(w.prog, w.pkt.Out)
	switch {
	case in.workload:
		if !w.source(in) {
			return false
		}
	case in.host():
		if !w.unrouted(UntrackedIngress, in, &in.ep.UntrackedIngress) {
			return false
		}
		if !w.untracked && !w.unrouted(PreDNAT, in, &in.ep.PreDNAT) {
			return false
		}
	}
	switch {
	case w.pkt.In == "" && w.pkt.Out == "":
		return true
	case w.pkt.In == "":
		return w.output(out)
	case w.pkt.Out == "":
		return w.input(in)
	}
	return w.forward(in, out)
}

// source is the check of a workload's source address.
func (w *way) source(in end) bool {
	if in.ep == nil {
		return w.note(SourceCheck, in, outcome{action: policy.Deny, reason: ByNoEndpoint})
	}
	o := outcome{action: policy.Deny, reason: BySource}
	if slices.ContainsFunc(in.ep.Sources, func(n netip.Prefix) bool { return n.Contains(w.pkt.Src) }) {
		o.action = policy.Allow
	}
	return w.note(SourceCheck, in, o)
}

// unrouted is a point before the packet is tracked, or before it is translated. A failsafe
// port goes on, and so does, where nothing is tracked yet, what answers one.
func (w *way) unrouted(at Point, e end, path *policy.Path) bool {
	p := w.pkt
	if at != UntrackedEgress {
		p = p.first()
	}
	there, back := w.prog.Host.FailsafeIn, w.prog.Host.FailsafeOut
	if at == UntrackedEgress {
		there, back = back, there
	}
	other := p.Src
	if at == UntrackedEgress {
		other = p.Dst
	}
	if failsafe(there, p.Protocol, p.DstPort, other) || at != PreDNAT && failsafe(back, p.Protocol, p.SrcPort, other) {
		return w.note(at, e, outcome{reason: ByFailsafe})
	}
	o := w.path(path, &p)
	if at != PreDNAT && o.action == policy.Allow {
		w.untracked = true
	}
	return w.note(at, e, o)
}

// input is the way to the host itself.
func (w *way) input(in end) bool {
	if in.workload {
		if !w.note(WorkloadEgress, in, w.path(&in.ep.Egress, &w.pkt)) {
			return false
		}
		o := outcome{reason: BySetting, action: policy.Deny}
		switch w.prog.Host.EndpointToHost {
		case model.EndpointToHostAccept:
			o.action = policy.Allow
		case model.EndpointToHostReturn:
			o.action = 0
		}
		return w.note(ToHost, in, o)
	}
	if in.ep == nil {
		return true
	}
	p := &w.pkt
	return w.note(HostIngress, in, w.host(&in.ep.Ingress, failsafe(w.prog.Host.FailsafeIn, p.Protocol, p.DstPort, p.Src)))
}

// output is the way from the host itself.
func (w *way) output(out end) bool {
	if !out.host() {
		return true // to its own workloads the host sends what it likes
	}
	if !w.unrouted(UntrackedEgress, out, &out.ep.UntrackedEgress) {
		return false
	}
	p := &w.pkt
	return w.note(HostEgress, out, w.host(&out.ep.Egress, failsafe(w.prog.Host.FailsafeOut, p.Protocol, p.DstPort, p.Dst)))
}

// forward is the way from one interface to another. An untracked policy's word holds for the
// host's endpoints; a workload's policy decides nevertheless.
func (w *way) forward(in, out end) bool {
	if in.host() && !w.note(ForwardIngress, in, w.through(&in.ep.ForwardIngress)) {
		return false
	}
	if in.workload && !w.note(WorkloadEgress, in, w.path(&in.ep.Egress, &w.pkt)) {
		return false
	}
	if out.workload {
		o := outcome{action: policy.Deny, reason: ByNoEndpoint}
		if out.ep != nil {
			o = w.path(&out.ep.Ingress, &w.pkt)
		}
		if !w.note(WorkloadIngress, out, o) {
			return false
		}
	}
	return !out.host() || w.note(ForwardEgress, out, w.through(&out.ep.ForwardEgress))
}

func (w *way) host(path *policy.Path, safe bool) outcome {
	if safe {
		return outcome{action: policy.Allow, reason: ByFailsafe}
	}
	return w.through(path)
}

func (w *way) through(path *policy.Path) outcome {
	if w.untracked {
		return outcome{action: policy.Allow, reason: ByUntracked}
	}
	return w.path(path, &w.pkt)
}

// failsafe reports whether a port is one that host endpoints never close.
func failsafe(ports []model.FailsafePort, protocol uint8, port uint16, other netip.Addr) bool {
	return HasPorts(protocol) && slices.ContainsFunc(ports, func(f model.FailsafePort) bool {
		return f.Protocol == protocol && f.Port == port && (!f.Net.IsValid() || f.Net.Contains(other))
	})
}

// outcome is what a point comes to.
type outcome struct {
	action policy.Action // Allow, Deny, or 0: goes on
	reason Reason
	tier   string
	hits   []Hit
}

// note records the stage and reports whether the packet lives on.
func (w *way) note(at Point, e end, o outcome) bool {
	if w.record {
		s := Stage{Point: at, Interface: e.name, Decision: o.action, Reason: o.reason, Tier: o.tier, Hits: o.hits}
		if e.ep != nil {
			s.Endpoint = e.ep.ID
		}
		w.stages = append(w.stages, s)
	}
	return o.action != policy.Deny
}

// path asks the tiers of a path.
func (w *way) path(path *policy.Path, p *Packet) (o outcome) {
	for i := range path.Tiers {
		tier := &path.Tiers[i]
		end, hit := w.tier(tier, p, &o.hits)
		switch {
		case end == policy.Pass:
			continue
		case hit:
			o.reason = ByRule
		default:
			o.reason = ByTier
		}
		o.action, o.tier = end, tier.Name
		return o
	}
	o.action, o.reason = path.Default, ByDefault
	if o.action == 0 {
		o.reason = ByNothing
	}
	return o
}

// tier asks the chains of a tier. hit: a rule decided, not the tier's end.
func (w *way) tier(tier *policy.Tier, p *Packet, hits *[]Hit) (action policy.Action, hit bool) {
	for _, id := range tier.Chains {
		chain := w.prog.Chains[id]
		rules := chain.IPv4
		if p.Src.Is6() {
			rules = chain.IPv6
		}
	chain:
		for i := range rules {
			r := &rules[i]
			if !w.matches(r, p) {
				continue
			}
			if w.record {
				*hits = append(*hits, Hit{Tier: tier.Name, Chain: id, Index: r.Index, Action: r.Action})
			}
			switch r.Action {
			case policy.Allow, policy.Deny, policy.Pass:
				return r.Action, true
			case policy.Return:
				break chain
			}
		}
	}
	return tier.End, false
}
