package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/causeway-net/causeway/felix/enforce"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/status"
)

// problems joins what the parts found wrong with objects. What two of them say of one field is
// said once, by the first.
func problems(of ...[]model.Problem) []model.Problem {
	type key struct {
		object  model.Object
		field   string
		ignored bool
	}
	said := map[key]struct{}{}
	var out []model.Problem
	for _, part := range of {
		for _, p := range part {
			if _, is := said[key{p.Object, p.Field, p.Ignored}]; !is {
				out = append(out, p)
			}
		}
		for _, p := range part {
			said[key{p.Object, p.Field, p.Ignored}] = struct{}{}
		}
	}
	return out
}

// policyStatus is what enforces policy, and how far it is.
func (a *agent) policyStatus() status.Policy {
	st := a.policy.Status()
	out := status.Policy{
		Synced: st.Synced, Waiting: st.Waiting, Backend: a.packetFilter(),
		Endpoints: st.Size.Endpoints, Policies: st.Size.Policies, Chains: st.Size.Chains, Sets: st.Size.Sets, Members: st.Size.Members,
		Changes: st.Changes.Count, ChangeSeconds: st.Changes.Took.Seconds(), LastChange: st.Changes.Last.Seconds(),
		Connections: status.Connections{
			Rounds: st.Flows.Rounds, Failures: st.Flows.Failures, Cut: st.Flows.Cut, Restored: st.Flows.Cleared, Held: st.Flows.Marked, Delay: st.Flows.LastDelay.Seconds(),
		},
	}
	if st.Waiting {
		out.Missing = st.Missing
	}
	if st.Err != nil {
		out.Error = st.Err.Error()
	}
	if a.announce != nil {
		told := a.announce.Status()
		out.Announcements = &told
	}
	return out
}

// policyTrouble says what keeps policy from being in force as the datastore has it, or nil.
func (a *agent) policyTrouble() error {
	switch st := a.policy.Status(); {
	case st.Err != nil:
		return fmt.Errorf("%s: %w", a.policy, st.Err)
	case st.Waiting:
		return fmt.Errorf("%s: changes wait for what was not read yet: %s", a.policy, cmp.Or(strings.Join(st.Missing, ", "), "pods or services that policies name"))
	}
	return nil
}

// packetFilter names what enforces policy; empty until the first snapshot has said it.
func (a *agent) packetFilter() string {
	select {
	case <-a.told:
	default:
		return ""
	}
	if a.nftables {
		return "nftables"
	}
	return fmt.Sprintf("iptables (%s)", cmp.Or(string(a.rules[0].Status().Backend), "auto"))
}

// policyDetail lists policies and endpoints, with what their rules counted.
func (a *agent) policyDetail(ctx context.Context) status.PolicyDetail {
	var out status.PolicyDetail
	counters, err := a.policy.Counters(ctx)
	if err != nil {
		out.CountersError = err.Error()
	}
	type rule struct {
		chain policy.ChainID
		index int
	}
	sums := map[rule]policy.Counter{}
	for _, c := range counters {
		sum := sums[rule{c.Chain, c.Index}]
		sum.Packets, sum.Bytes = sum.Packets+c.Packets, sum.Bytes+c.Bytes
		sums[rule{c.Chain, c.Index}] = sum
	}
	for _, p := range a.policy.Policies() {
		to := status.PolicyInForce{
			ID: p.ID, Tier: p.Tier, TierOrder: order(p.TierOrder), Order: order(p.Order), Endpoints: p.Locals, Staged: p.ID.Kind.Staged(),
			Untracked: p.Layer == policy.LayerUntracked, PreDNAT: p.Layer == policy.LayerPreDNAT, Ingress: p.Holds[policy.Ingress], Egress: p.Holds[policy.Egress],
		}
		for d, actions := range p.Rules {
			direction := policy.Direction(d)
			for i, action := range actions {
				n := sums[rule{policy.ChainID{Policy: p.ID, Direction: direction}, i}]
				to.Rules = append(to.Rules, status.PolicyRule{Direction: direction.String(), Index: i, Action: action.String(), Packets: n.Packets, Bytes: n.Bytes})
			}
		}
		out.Policies = append(out.Policies, to)
	}
	for _, ep := range a.policy.Endpoints() {
		out.Endpoints = append(out.Endpoints, endpointStatus(&ep))
	}
	return out
}

// order is one that JSON can say: nil for the last.
func order(v float64) *float64 {
	if math.IsInf(v, 0) {
		return nil
	}
	return &v
}

func endpointStatus(ep *policy.Endpoint) status.PolicyEndpoint {
	out := status.PolicyEndpoint{Kind: "Pod", Namespace: ep.ID.Namespace, Name: ep.ID.Name, Interface: ep.Interface, Addresses: ep.Addresses}
	host := ep.ID.Kind == model.EndpointHost
	if host {
		out.Kind = "HostEndpoint"
	}
	for _, x := range []struct {
		place string
		path  *policy.Path
		all   bool
	}{
		{"untracked ingress", &ep.UntrackedIngress, false}, {"pre-DNAT", &ep.PreDNAT, false}, {"forward ingress", &ep.ForwardIngress, host},
		{"ingress", &ep.Ingress, true}, {"egress", &ep.Egress, true}, {"forward egress", &ep.ForwardEgress, host}, {"untracked egress", &ep.UntrackedEgress, false},
	} {
		if !x.all && len(x.path.Tiers) == 0 {
			continue
		}
		to := status.PolicyPath{Place: x.place, Default: decision(x.path.Default)}
		for _, t := range x.path.Tiers {
			tier := status.PolicyTier{Name: t.Name, End: t.End.String()}
			for _, c := range t.Chains {
				tier.Policies = append(tier.Policies, c.Policy)
			}
			to.Tiers = append(to.Tiers, tier)
		}
		out.Paths = append(out.Paths, to)
	}
	return out
}

func decision(a policy.Action) string {
	if a == 0 {
		return "go on"
	}
	return a.String()
}

// explain says what becomes of a connection.
func (a *agent) explain(ctx context.Context, q status.Question) ([]status.Answer, error) {
	answers, err := a.policy.Explain(ctx, enforce.Question{
		From: enforce.End(q.From), To: enforce.End(q.To), Protocol: q.Protocol, Port: q.Port, SourcePort: q.SourcePort, ICMPType: q.ICMPType, ICMPCode: q.ICMPCode,
	})
	if err != nil {
		return nil, err
	}
	would := map[model.PolicyID]policy.Standing{}
	for _, p := range a.policy.Policies() {
		if p.ID.Kind.Staged() {
			would[p.ID] = p
		}
	}
	out := make([]status.Answer, len(answers))
	for i, x := range answers {
		to := &out[i]
		*to = status.Answer{Packet: x.Packet.String(), Allowed: x.Result.Allowed, Untracked: x.Result.Untracked}
		for _, end := range []struct {
			link string
			id   model.PolicyEndpointID
			addr netip.Addr
		}{{x.Packet.In, x.From, x.Packet.Src}, {x.Packet.Out, x.To, x.Packet.Dst}} {
			if end.link != "" && !strings.HasPrefix(end.link, trace.WorkloadPrefix) {
				to.Elsewhere = append(to.Elsewhere, end.addr.String())
			}
		}
		for _, s := range x.Result.Stages {
			stage := status.Stage{Place: s.Point.String(), Interface: s.Interface, Decision: decision(s.Decision), Reason: s.Reason.String(), Tier: s.Tier}
			if s.Endpoint.Name != "" {
				stage.Endpoint = s.Endpoint.String()
			}
			for _, h := range s.Hits {
				hit := status.Hit{Tier: h.Tier, Policy: h.Chain.Policy, Direction: h.Chain.Direction.String(), Index: h.Index, Action: h.Action.String(), Staged: h.Chain.Policy.Kind.Staged()}
				if p, is := would[h.Chain.Policy]; is && h.Index < len(p.Rules[h.Chain.Direction]) {
					hit.Action = p.Rules[h.Chain.Direction][h.Index].String()
				}
				stage.Hits = append(stage.Hits, hit)
			}
			to.Stages = append(to.Stages, stage)
		}
	}
	return out, nil
}
