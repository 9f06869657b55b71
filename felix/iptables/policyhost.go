package iptables

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// Chains that find those of host endpoints, and end what workloads send to their host.
const (
	hostIngress  = "cali-hep-in"      // filter INPUT
	hostEgress   = "cali-hep-out"     // filter OUTPUT
	hostForwIn   = "cali-hep-fwd-in"  // filter FORWARD, before the workloads'
	hostForwOut  = "cali-hep-fwd-out" // and after them
	untrackedIn  = "cali-untracked-in"
	untrackedOut = "cali-untracked-out"
	preDNAT      = "cali-pre-dnat"
	translated   = "cali-translated" // mangle POSTROUTING: egress of what OUTPUT saw with another destination
	toHost       = "cali-wl-host"
	toHostEnd    = "cali-wl-host-end"
)

// features says which chains of host endpoints anything needs.
type features struct{ any, forward, untracked, preDNAT bool }

func (s *ruleset) hostEndpoints() (out []policy.Endpoint, f features) {
	for _, name := range slices.Sorted(maps.Keys(s.endpoints)) { // "*" comes first or not, it does not matter
		ep := s.endpoints[name]
		if strings.HasPrefix(name, s.prefix) {
			continue
		}
		says := func(p *policy.Path) bool { return len(p.Tiers) > 0 || p.Default == policy.Deny }
		out = append(out, ep)
		f.any = true
		f.forward = f.forward || says(&ep.ForwardIngress) || says(&ep.ForwardEgress)
		f.untracked = f.untracked || says(&ep.UntrackedIngress) || says(&ep.UntrackedEgress)
		f.preDNAT = f.preDNAT || says(&ep.PreDNAT)
	}
	return out, f
}

// hosts makes all chains of host endpoints, and those that depend on whether there are any. Until all
// is known what an earlier agent left of them stays, with the chains that lead to them.
func (s *ruleset) hosts(e *edit) {
	if s.adopting {
		s.adopt(e)
		return
	}
	eps, f := s.hostEndpoints()
	s.translate(e, eps)
	var filter, raw, mangle []Chain
	if f.any {
		filter = append(filter, s.place(eps, hostIngress, "-i", "cali-hi-", s.hostIn)...)
		filter = append(filter, s.place(eps, hostEgress, "-o", "cali-ho-", s.hostOut)...)
		mangle = append(mangle, s.place(eps, translated, "-o", "cali-ht-", s.hostTranslated)...)
	}
	if f.forward {
		filter = append(filter, s.place(eps, hostForwIn, "-i", "cali-hfi-", func(ep *policy.Endpoint) []Rule { return s.path(&ep.ForwardIngress, Return(), nil) })...)
		filter = append(filter, s.place(eps, hostForwOut, "-o", "cali-hfo-", func(ep *policy.Endpoint) []Rule { return s.path(&ep.ForwardEgress, Return(), nil) })...)
	}
	if f.untracked {
		raw = append(raw, s.place(eps, untrackedIn, "-i", "cali-hui-", s.untrackedIn)...)
		raw = append(raw, s.place(eps, untrackedOut, "-o", "cali-huo-", s.untrackedOut)...)
	}
	if f.preDNAT {
		mangle = append(mangle, s.place(eps, preDNAT, "-i", "cali-hpd-", s.preDNAT)...)
	}
	end := Chain{Name: toHostEnd}
	switch {
	case s.host == nil || s.host.EndpointToHost == model.EndpointToHostDrop:
		end.Rules = []Rule{{Action: Drop(), Comment: "defaultEndpointToHostAction"}}
	case s.host.EndpointToHost == model.EndpointToHostAccept:
		end.Rules = []Rule{{Action: Accept(), Comment: "defaultEndpointToHostAction"}}
	}
	s.put(e, Filter, "/hosts", append(filter, end))
	s.put(e, Raw, "/hosts", raw)
	s.put(e, Mangle, "/hosts", mangle)
	s.frame(e, f)
}

// adopt keeps what leads to host endpoints as an earlier agent left it.
func (s *ruleset) adopt(e *edit) {
	kept := func(names ...string) (out []Chain) {
		for _, name := range names {
			out = append(out, Chain{Name: name, Adopt: true})
		}
		return out
	}
	end := Chain{Name: toHostEnd, Adopt: true, Rules: []Rule{{Action: Drop(), Comment: "not known yet"}}}
	s.put(e, Filter, "/hosts", append(kept(hostIngress, hostEgress, hostForwIn, hostForwOut), end))
	s.put(e, Raw, "/hosts", kept(untrackedIn, untrackedOut))
	s.put(e, Mangle, "/hosts", kept(preDNAT, translated))
	s.frame(e, features{true, true, true, true})
}

// translate keeps the chains that table mangle needs beside table filter.
func (s *ruleset) translate(e *edit, eps []policy.Endpoint) {
	need := map[policy.ChainID]bool{}
	for i := range eps {
		for _, t := range eps[i].Egress.Tiers {
			for _, id := range t.Chains {
				need[id] = true
				if c, ok := s.chains[id]; ok && !s.translated[id] {
					made := s.chain(&c)
					e.set(Mangle, made.Name, &made)
				}
			}
		}
	}
	for id := range s.translated {
		if !need[id] {
			e.set(Mangle, s.policyChain(id), nil)
		}
	}
	s.translated = need
}

// place makes the chains of all host endpoints at one place, and root, which finds them.
func (s *ruleset) place(eps []policy.Endpoint, root, flag, prefix string, rules func(*policy.Endpoint) []Rule) []Chain {
	at := Chain{Name: root, Rules: s.before(root)}
	var out []Chain
	var rest []Rule
	for i := range eps {
		ep := &eps[i]
		name := ifaceChain(prefix, ep.Interface)
		out = append(out, Chain{Name: name, Rules: rules(ep)})
		if ep.Interface == "*" { // the host's talk with itself is nobody's
			rest = []Rule{{Match: []string{flag, "lo"}, Action: Return()}, {Action: Goto(name)}}
		} else {
			at.Rules = append(at.Rules, Rule{Match: []string{flag, ep.Interface}, Action: Goto(name)})
		}
	}
	at.Rules = append(at.Rules, rest...)
	return append(out, at)
}

// before is what comes before the host endpoints at one place.
func (s *ruleset) before(root string) []Rule {
	clear := Rule{Action: clearBits(s.verdict())}
	untracked := Rule{Match: marked(s.marks.Untracked), Action: Return()}
	known := Rule{Match: state(established), Action: Return()}
	switch root {
	case hostForwIn, hostForwOut, preDNAT:
		return []Rule{untracked, known, clear}
	case untrackedIn, untrackedOut:
		return []Rule{{Action: clearBits(s.verdict() | s.marks.Untracked)}}
	case translated:
		return []Rule{{Action: clearBits(s.verdict() | s.marks.Translated)}, {Match: []string{"-o", s.prefix + "+"}, Action: Return()}, known}
	}
	return []Rule{{Match: state(established), Action: Accept()}, clear}
}

func (s *ruleset) hostIn(ep *policy.Endpoint) []Rule {
	return append(s.failsafes("--dports", "-s", Accept(), false), s.path(&ep.Ingress, Accept(), Accept())...)
}

func (s *ruleset) hostOut(ep *policy.Endpoint) []Rule {
	return append(s.failsafes("--dports", "-d", Accept(), true), s.path(&ep.Egress, Accept(), Accept())...)
}

func (s *ruleset) hostTranslated(ep *policy.Endpoint) []Rule {
	return append(s.failsafes("--dports", "-d", Return(), true), s.path(&ep.Egress, Return(), nil)...)
}

// Before connection tracking what answers a failsafe port must pass, too.
func (s *ruleset) untrackedIn(ep *policy.Endpoint) []Rule {
	safe := append(s.failsafes("--dports", "-s", Return(), false), s.failsafes("--sports", "-s", Return(), true)...)
	return append(safe, s.path(&ep.UntrackedIngress, Goto(noTrackChain), Goto(noTrackChain))...)
}

func (s *ruleset) untrackedOut(ep *policy.Endpoint) []Rule {
	safe := append(s.failsafes("--dports", "-d", Return(), true), s.failsafes("--sports", "-d", Return(), false)...)
	return append(safe, s.path(&ep.UntrackedEgress, Goto(noTrackChain), Goto(noTrackChain))...)
}

func (s *ruleset) preDNAT(ep *policy.Endpoint) []Rule {
	return append(s.failsafes("--dports", "-s", Return(), false), s.path(&ep.PreDNAT, Return(), nil)...)
}

// failsafes makes the rules of the ports that host endpoints never close: those of
// connections to the host, or out from it.
func (s *ruleset) failsafes(ports, other string, a Action, out bool) []Rule {
	if s.host == nil {
		return nil
	}
	list := s.host.FailsafeIn
	if out {
		list = s.host.FailsafeOut
	}
	var rules []Rule
	for _, f := range list {
		var m []string
		if f.Net.IsValid() {
			if !s.family.of(f.Net.Addr()) {
				continue
			}
			if f.Net.Bits() > 0 {
				m = append(m, other, f.Net.Masked().String())
			}
		}
		m = append(m, "-p", protocol(f.Protocol), "-m", "multiport", ports, strconv.Itoa(int(f.Port)))
		rules = append(rules, Rule{Match: m, Action: a, Comment: "failsafe port"})
	}
	return rules
}
