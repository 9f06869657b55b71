package iptables

import (
	"slices"
	"strconv"
)

// Chains of ours that the hooks go to.
const (
	preroutingChain  = "cali-PREROUTING"
	inputChain       = "cali-INPUT"
	forwardChain     = "cali-FORWARD"
	outputChain      = "cali-OUTPUT"
	postroutingChain = "cali-POSTROUTING"
)

// constant makes what never changes.
func (s *ruleset) constant(e *edit) {
	s.put(e, Filter, "/verdicts", s.verdicts(Filter))
	s.put(e, Raw, "/verdicts", s.verdicts(Raw))
	s.put(e, Mangle, "/verdicts", s.verdicts(Mangle))
}

// frame makes the chains that hooks go to, and the hooks, for the host endpoints that there are.
func (s *ruleset) frame(e *edit, f features) {
	s.put(e, Filter, "/frame", []Chain{s.input(f), s.toHost(), s.forward(f), s.output(f)})
	s.hooked(e, Filter, s.filterHooks(f))
	hook := func(from, to string) Hook { return Hook{Chain: from, Rule: Rule{Action: Jump(to)}} }

	var rawChains []Chain
	rawHooks := sourceHooks(s.prefix)
	if f.untracked {
		rawHooks = append(rawHooks,
			Hook{Chain: "PREROUTING", Rule: Rule{Match: []string{"!", "-i", s.prefix + "+"}, Action: Jump(untrackedIn)}},
			Hook{Chain: "OUTPUT", Rule: Rule{Match: []string{"!", "-o", s.prefix + "+"}, Action: Jump(untrackedOut)}})
	}
	s.put(e, Raw, "/frame", rawChains)
	s.hooked(e, Raw, rawHooks)

	var mangle []Chain
	var hooks []Hook
	if f.preDNAT {
		mangle = append(mangle, Chain{Name: preroutingChain, Rules: []Rule{{Match: []string{"!", "-i", s.prefix + "+"}, Action: Jump(preDNAT)}}})
		hooks = append(hooks, hook("PREROUTING", preroutingChain))
	}
	if f.any {
		mangle = append(mangle, Chain{Name: postroutingChain, Rules: []Rule{{Match: marked(s.marks.Translated), Action: Jump(translated)}}})
		hooks = append(hooks, hook("POSTROUTING", postroutingChain))
	}
	s.put(e, Mangle, "/frame", mangle)
	s.hooked(e, Mangle, hooks)
}

// filterHooks let what is established and not forbidden pass at once, where it is forwarded: most
// packets are of that kind, and to go to a chain costs each of them. Without host endpoints
// what is not of workloads goes nowhere at all; above all tunnels' packets do not.
func (s *ruleset) filterHooks(f features) []Hook {
	in, out := []string{"-i", s.prefix + "+"}, []string{"-o", s.prefix + "+"}
	hook := func(chain string, action Action, match ...[]string) Hook {
		return Hook{Chain: chain, Rule: Rule{Match: slices.Concat(match...), Action: action}}
	}
	known, allowed := state(established), []string{"-m", "connmark", "--mark", hexMask0(s.marks.Forbidden)}
	hooks := []Hook{
		hook("FORWARD", Accept(), in, known, allowed),
		hook("FORWARD", Accept(), out, known, allowed),
		hook("FORWARD", Jump(forwardChain)),
	}
	if f.any || f.untracked {
		return append(hooks, hook("INPUT", Jump(inputChain)), hook("OUTPUT", Jump(outputChain)))
	}
	return append(hooks, hook("INPUT", Jump(inputChain), in), hook("OUTPUT", Jump(outputChain), out))
}

func (s *ruleset) hooked(e *edit, t Table, hooks []Hook) {
	s.hooks[t], e.hooks[t] = hooks, hooks
}

// forbidden drops what belongs to connections that policy once allowed and now forbids.
func (s *ruleset) forbidden() Rule {
	f := s.marks.Forbidden
	return Rule{Match: []string{"-m", "connmark", "--mark", hexMask(f, f)}, Action: Drop(), Comment: "policy forbids the connection now"}
}

// The endpoint's part of a way: the verdict bits are cleared, the chain of the endpoint is
// found, and what it does not allow ends, be it that there is no such chain.
func (s *ruleset) ask(match []string, root string) []Rule {
	and := func(more ...string) []string { return append(match[:len(match):len(match)], more...) }
	return []Rule{
		{Match: match, Action: clearBits(s.verdict())},
		{Match: match, Action: Jump(root)},
		{Match: and(unmarked(s.marks.Accept)...), Action: Drop(), Comment: "no endpoint allows it"},
	}
}

func (s *ruleset) input(f features) Chain {
	rules := []Rule{s.forbidden()}
	if f.untracked {
		rules = append(rules, Rule{Match: marked(s.marks.Untracked), Action: Accept()})
	}
	rules = append(rules, Rule{Match: []string{"-i", s.prefix + "+"}, Action: Goto(toHost)})
	if f.any {
		// Who may send these EncapGuard has asked, in table raw.
		rules = append(rules, s.tunnels("--dst-type")...)
		rules = append(rules, Rule{Action: Jump(hostIngress)})
	}
	return Chain{Name: inputChain, Rules: rules}
}

// tunnels lets the node's own encapsulated packets pass host endpoints.
func (s *ruleset) tunnels(local string) []Rule {
	var out []Rule
	add := func(match ...string) {
		out = append(out, Rule{Match: append(match, "-m", "addrtype", local, "LOCAL"), Action: Accept(), Comment: "encapsulated by nodes"})
	}
	if s.guard.IPIP {
		add("-p", "4")
	}
	if s.guard.VXLANPort != 0 {
		add("-p", "udp", "-m", "udp", "--dport", strconv.Itoa(int(s.guard.VXLANPort)))
	}
	return out
}

// Messages of ICMPv6 (RFC 4861, RFC 2710, RFC 3810).
var (
	// A link works by these: multicast listeners, router solicitation, neighbour solicitation
	// and advertisement. Connection tracking knows nothing of them.
	linkMessages = []string{"130", "131", "132", "133", "135", "136", "143"}
	// Only routers send these, and no workload is one: router advertisement, redirect.
	routerMessages = []string{"134", "137"}
)

// toHost is the way from workloads to their host.
func (s *ruleset) toHost() Chain {
	c := Chain{Name: toHost}
	if s.family == IPv6 {
		for _, t := range linkMessages {
			c.Rules = append(c.Rules, Rule{Match: []string{"-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", t}, Action: Accept()})
		}
		for _, t := range routerMessages {
			c.Rules = append(c.Rules, Rule{Match: []string{"-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", t}, Action: Drop(), Comment: "a workload is no router"})
		}
	}
	c.Rules = append(c.Rules,
		Rule{Match: state(established), Action: Accept()},
		Rule{Match: state("INVALID"), Action: Drop()},
	)
	c.Rules = append(c.Rules, s.ask(nil, fromWorkload)...)
	c.Rules = append(c.Rules, Rule{Action: Goto(toHostEnd)})
	return c
}

// forward decides on what filterHooks leaves.
func (s *ruleset) forward(f features) Chain {
	in, out := []string{"-i", s.prefix + "+"}, []string{"-o", s.prefix + "+"}
	rules := []Rule{s.forbidden()}
	for _, end := range [][]string{in, out} {
		rules = append(rules, Rule{Match: append(end[:2:2], state("INVALID")...), Action: Drop()})
	}
	if f.forward {
		rules = append(rules, Rule{Match: append([]string{"!"}, in...), Action: Jump(hostForwIn)})
	}
	rules = append(rules, s.ask(in, fromWorkload)...)
	rules = append(rules, s.ask(out, toWorkload)...)
	if f.forward {
		rules = append(rules, Rule{Match: append([]string{"!"}, out...), Action: Jump(hostForwOut)})
	}
	rules = append(rules, Rule{Match: in, Action: Accept()}, Rule{Match: out, Action: Accept()})
	return Chain{Name: forwardChain, Rules: rules}
}

// output lets the host reach its own workloads. The kernel does not tell here by which interface
// a packet will leave whose destination was translated after its first route: table mangle asks for
// that one, once it is known.
func (s *ruleset) output(f features) Chain {
	rules := []Rule{s.forbidden()}
	if f.untracked {
		rules = append(rules, Rule{Match: marked(s.marks.Untracked), Action: Accept()})
	}
	if f.any {
		rules = append(rules, s.tunnels("--src-type")...)
		rules = append(rules,
			Rule{Match: state("DNAT"), Action: setBits(s.marks.Translated)},
			Rule{Match: state("DNAT"), Action: Return()},
			Rule{Match: []string{"!", "-o", s.prefix + "+"}, Action: Jump(hostEgress)})
	}
	return Chain{Name: outputChain, Rules: rules}
}
