package felixtest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// TestWrongProgramIsFound shows that the comparison sees: a program with one kind of fault
// in it does not agree with the golden model for long.
func TestWrongProgramIsFound(t *testing.T) {
	rule := func(f func(r *policy.Rule)) func(*policy.Program) {
		return func(p *policy.Program) {
			for id, c := range p.Chains {
				c.IPv4, c.IPv6 = slices.Clone(c.IPv4), slices.Clone(c.IPv6)
				for _, rules := range [][]policy.Rule{c.IPv4, c.IPv6} {
					for i := range rules {
						f(&rules[i])
					}
				}
				p.Chains[id] = c
			}
		}
	}
	peers := func(f func(*policy.Peer)) func(*policy.Program) {
		return rule(func(r *policy.Rule) { f(&r.Src); f(&r.Dst) })
	}
	paths := func(f func(*policy.Path)) func(*policy.Program) {
		return func(p *policy.Program) {
			for name, e := range p.Endpoints {
				for _, path := range e.Paths() {
					path.Tiers = slices.Clone(path.Tiers)
					f(path)
				}
				p.Endpoints[name] = e
			}
		}
	}
	endpoints := func(f func(*policy.Endpoint)) func(*policy.Program) {
		return func(p *policy.Program) {
			for name, e := range p.Endpoints {
				f(&e)
				p.Endpoints[name] = e
			}
		}
	}
	becomes := func(from, to policy.Action) func(*policy.Program) {
		return rule(func(r *policy.Rule) {
			if r.Action == from {
				r.Action = to
			}
		})
	}
	ranges := func(f func(*model.PortRange)) func(*policy.Program) {
		return peers(func(p *policy.Peer) {
			p.Ports, p.NotPorts = slices.Clone(p.Ports), slices.Clone(p.NotPorts)
			for _, of := range [][]model.PortRange{p.Ports, p.NotPorts} {
				for i := range of {
					f(&of[i])
				}
			}
		})
	}
	sets := func(kind policy.SetKind) func(*policy.Program) {
		return func(p *policy.Program) {
			for id := range p.Sets {
				if k, _, _ := policy.KindOf(id); k == kind {
					p.Sets[id] = nil
				}
			}
		}
	}
	for name, spoil := range map[string]func(*policy.Program){
		"pass is allow":           becomes(policy.Pass, policy.Allow),
		"pass is deny":            becomes(policy.Pass, policy.Deny),
		"pass is return":          becomes(policy.Pass, policy.Return),
		"log is allow":            becomes(policy.Log, policy.Allow),
		"staged is enforced":      becomes(policy.Return, policy.Deny),
		"no protocol":             rule(func(r *policy.Rule) { r.Protocol = 0 }),
		"no notProtocol":          rule(func(r *policy.Rule) { r.NotProtocol = 0 }),
		"no ICMP":                 rule(func(r *policy.Rule) { r.ICMP = nil }),
		"no notICMP":              rule(func(r *policy.Rule) { r.NotICMP = nil }),
		"no net":                  peers(func(p *policy.Peer) { p.Net = netip.Prefix{} }),
		"no notNet":               peers(func(p *policy.Peer) { p.NotNet = netip.Prefix{} }),
		"no set":                  peers(func(p *policy.Peer) { p.In = nil }),
		"one set of several":      peers(func(p *policy.Peer) { p.In = p.In[:min(1, len(p.In))] }),
		"no notSet":               peers(func(p *policy.Peer) { p.NotIn = nil }),
		"no port":                 peers(func(p *policy.Peer) { p.Ports = nil }),
		"no notPort":              peers(func(p *policy.Peer) { p.NotPorts = nil }),
		"no named port":           peers(func(p *policy.Peer) { p.InPort = nil }),
		"no named notPort":        peers(func(p *policy.Peer) { p.NotInPort = nil }),
		"first port missing":      ranges(func(r *model.PortRange) { r.First = min(r.First+1, 65535) }),
		"one port too many":       ranges(func(r *model.PortRange) { r.Last = min(r.Last, 65534) + 1 }),
		"ends exchanged":          rule(func(r *policy.Rule) { r.Src, r.Dst = r.Dst, r.Src }),
		"addresses missing":       sets(policy.SetIP),
		"networks missing":        sets(policy.SetNet),
		"addresses and ports too": sets(policy.SetIPPort),
		"last policy missing":     paths(func(p *policy.Path) { tiers(p, func(t *policy.Tier) { t.Chains = t.Chains[:len(t.Chains)-1] }) }),
		"policies in wrong order": paths(func(p *policy.Path) {
			tiers(p, func(t *policy.Tier) { t.Chains = slices.Clone(t.Chains); slices.Reverse(t.Chains) })
		}),
		"tiers in wrong order":  paths(func(p *policy.Path) { slices.Reverse(p.Tiers) }),
		"end of tier passes":    paths(func(p *policy.Path) { tiers(p, func(t *policy.Tier) { t.End = policy.Pass }) }),
		"end of tier denies":    paths(func(p *policy.Path) { tiers(p, func(t *policy.Tier) { t.End = policy.Deny }) }),
		"default allows":        paths(func(p *policy.Path) { p.Default = policy.Allow }),
		"directions exchanged":  endpoints(func(e *policy.Endpoint) { e.Ingress, e.Egress = e.Egress, e.Ingress }),
		"forward as local":      endpoints(func(e *policy.Endpoint) { e.ForwardIngress, e.ForwardEgress = e.Ingress, e.Egress }),
		"nothing forwarded out": endpoints(func(e *policy.Endpoint) { e.ForwardEgress = policy.Path{} }),
		"no untracked ingress":  endpoints(func(e *policy.Endpoint) { e.UntrackedIngress = policy.Path{} }),
		"no untracked egress":   endpoints(func(e *policy.Endpoint) { e.UntrackedEgress = policy.Path{} }),
		"no preDNAT":            endpoints(func(e *policy.Endpoint) { e.PreDNAT = policy.Path{} }),
		"any source": endpoints(func(e *policy.Endpoint) {
			e.Sources = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}),
		"endpoint missing":         func(p *policy.Program) { delete(p.Endpoints, "eth0"); delete(p.Endpoints, "cali1") },
		"failsafes missing":        func(p *policy.Program) { p.Host.FailsafeIn, p.Host.FailsafeOut = nil, nil },
		"pods never to their host": func(p *policy.Program) { p.Host.EndpointToHost = model.EndpointToHostDrop },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed < 400; seed++ {
				g := NewGenerator(seed)
				trial := NewTrial()
				for _, c := range g.Start() {
					if err := trial.Change(c); err != nil {
						t.Fatal(err)
					}
				}
				if err := trial.Flush(); err != nil {
					t.Fatal(err)
				}
				spoil(trial.Program)
				for range 400 {
					if trial.Ask(g.Packet()) != nil {
						return
					}
				}
			}
			t.Error("nobody noticed")
		})
	}
}

// TestPacketsReachEveryPoint shows that random packets end at every point and for every
// reason that the tracer knows.
func TestPacketsReachEveryPoint(t *testing.T) {
	points, reasons := map[trace.Point]int{}, map[trace.Reason]int{}
	for seed := range uint64(40) {
		g := NewGenerator(seed)
		trial := NewTrial()
		for _, c := range g.Start() {
			if err := trial.Change(c); err != nil {
				t.Fatal(err)
			}
		}
		if err := trial.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			r := trace.Trace(trial.Program, g.Packet())
			for _, s := range r.Stages {
				reasons[s.Reason]++
			}
			if !r.Allowed {
				points[r.Stages[len(r.Stages)-1].Point]++
			}
		}
	}
	for at := trace.SourceCheck; at <= trace.HostEgress; at++ {
		if points[at] == 0 {
			t.Errorf("no packet ended at %s", at)
		}
	}
	for by := trace.ByRule; by <= trace.ByNoEndpoint; by++ {
		if reasons[by] == 0 {
			t.Errorf("nothing was decided by %s", by)
		}
	}
	t.Log(points, reasons)
}

func tiers(p *policy.Path, f func(*policy.Tier)) {
	for i := range p.Tiers {
		f(&p.Tiers[i])
	}
}
