package nftables

import (
	"fmt"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// The base chains, in the order of a packet's way. kube-proxy translates a Service's address at
// priority -100, in either of its modes: untracked policy and what workloads send from are asked
// before connection tracking (-200), preDNAT between the two, and all else after. The source
// of what leaves is translated later (100).
const (
	rawChain         = "raw-prerouting"
	mangleChain      = "mangle-prerouting"
	inputChain       = "filter-input"
	forwardChain     = "filter-forward"
	outputChain      = "filter-output"
	rawOutChain      = "raw-output"
	postroutingChain = "mangle-postrouting"
)

var bases = map[string]base{
	rawChain:         {knftables.PreroutingHook, -300},
	mangleChain:      {knftables.PreroutingHook, -150},
	inputChain:       {knftables.InputHook, 0},
	forwardChain:     {knftables.ForwardHook, 0},
	outputChain:      {knftables.OutputHook, 0},
	rawOutChain:      {knftables.OutputHook, -300},
	postroutingChain: {knftables.PostroutingHook, -150},
}

// Chains that end what workloads send to their host.
const (
	toHost    = "workload-host"
	toHostEnd = "workload-host-end"
)

// in and out match what comes from a workload and what goes to one; others the opposite.
func (s *ruleset) in() string     { return "iifname " + quoted(s.prefix+"*") }
func (s *ruleset) out() string    { return "oifname " + quoted(s.prefix+"*") }
func (s *ruleset) notIn() string  { return "iifname != " + quoted(s.prefix+"*") }
func (s *ruleset) notOut() string { return "oifname != " + quoted(s.prefix+"*") }

// tracked ends what connection tracking knows: what belongs to a connection was allowed, and
// what it takes for nonsense nobody allows.
const tracked = "ct state vmap { established : accept, related : accept, invalid : drop }"

func chainOf(name string, rules ...rule) *chain {
	c := &chain{name: name, rules: rules}
	if b, ok := bases[name]; ok {
		c.base = &b
	}
	return c
}

func r(parts ...string) rule               { return rule{text: and(parts...)} }
func (x rule) because(comment string) rule { x.comment = comment; return x }
func appendIf(on bool, to []rule, rs ...rule) []rule {
	if on {
		return append(to, rs...)
	}
	return to
}

// Messages of ICMPv6 (RFC 4861, RFC 2710, RFC 3810).
const (
	// A link works by these: multicast listeners, router solicitation, neighbour solicitation
	// and advertisement. Connection tracking knows nothing of them.
	linkMessages = "icmpv6 type { 130, 131, 132, 133, 135, 136, 143 }"
	// Only routers send these, and no workload is one: router advertisement, redirect.
	routerMessages = "icmpv6 type { 134, 137 }"
)

// constant makes what never changes.
func (s *ruleset) constant() {
	ask := func(name, dispatch string) *chain {
		return chainOf(name,
			r(clearBits(s.verdict())),
			r(dispatch),
			r(unmarked(s.marks.Accept), "counter drop").because("no endpoint allows it"))
	}
	s.put("/workloads", []*chain{
		ask(askEgress, "iifname vmap @"+fromWorkload),
		ask(askIngress, "oifname vmap @"+toWorkload),
		chainOf(toHost,
			r("meta nfproto ipv6", linkMessages, "accept"),
			r("meta nfproto ipv6", routerMessages, "counter drop").because("a workload is no router"),
			r(tracked),
			r("jump", askEgress),
			r("goto", toHostEnd)),
		// A workload sends from its own addresses only, and is told apart by nothing else. What a link lives
		// on comes from addresses of the link, or from none; never from the host's own.
		chainOf(sourceCheck,
			r("iifname . ip saddr @"+sources4, "return"),
			r("iifname . ip6 saddr @"+sources6, "return"),
			r("iifname . ip saddr @"+grants4, "return"),
			r("iifname . ip6 saddr @"+grants6, "return"),
			r("ip6 saddr fe80::/10 fib saddr . iif type != local", linkMessages, "return"),
			r("ip6 saddr ::", linkMessages, "return"),
			r("counter drop").because("a source that is not the workload's")),
	})
}

// frame makes the base chains, for the host endpoints that there are. One that nobody needs
// is not there: each costs every packet.
func (s *ruleset) frame(f features) {
	forbidden := r("ct mark and " + fmt.Sprintf("%#x", s.marks.Forbidden) + " != 0 counter drop").because("policy forbids the connection now")
	untracked := r(marked(s.marks.Untracked), "accept")

	raw := []rule{r(s.in(), "goto", sourceCheck)}
	raw = appendIf(f.untracked, raw, r("jump", untrackedIn))

	input := appendIf(f.untracked, []rule{forbidden}, untracked)
	input = append(input, r(s.in(), "goto", toHost))
	// Who may send what nodes encapsulate felix/encapguard asks.
	input = appendIf(f.any, input, append(s.tunnels("fib daddr type local"), r("jump", hostIngress))...)

	forward := []rule{forbidden, r(s.in(), tracked), r(s.out(), tracked)}
	forward = appendIf(f.forward, forward, r(s.notIn(), "jump", hostForwIn))
	forward = append(forward, r(s.in(), "jump", askEgress), r(s.out(), "jump", askIngress))
	forward = appendIf(f.forward, forward, r(s.notOut(), "jump", hostForwOut))

	// The host reaches its own workloads. The kernel does not tell here by which interface
	// a packet will leave whose destination was translated after its first route: postrouting
	// asks for that one, once it is known.
	output := appendIf(f.untracked, []rule{forbidden}, untracked)
	output = appendIf(f.any, output, append(s.tunnels("fib saddr type local"),
		r("ct status dnat", setBits(s.marks.Translated), "return"),
		r(s.notOut(), "jump", hostEgress))...)

	chains := []*chain{chainOf(rawChain, raw...), chainOf(inputChain, input...), chainOf(forwardChain, forward...), chainOf(outputChain, output...)}
	if f.untracked {
		chains = append(chains, chainOf(rawOutChain, r(s.notOut(), "jump", untrackedOut)))
	}
	if f.preDNAT {
		chains = append(chains, chainOf(mangleChain, r(s.notIn(), "jump", preDNAT)))
	}
	if f.any {
		chains = append(chains, chainOf(postroutingChain, r(marked(s.marks.Translated), "jump", translated)))
	}
	s.put("/frame", chains)
}

// tunnels lets the node's own encapsulated packets pass host endpoints.
func (s *ruleset) tunnels(local string) []rule {
	var out []rule
	for i, f := range []policy.Family{policy.IPv4, policy.IPv6} {
		add := func(match string) {
			nfproto := fmt.Sprintf("meta nfproto ipv%d", f)
			out = append(out, r(nfproto, match, local, "accept").because("encapsulated by nodes"))
		}
		if s.guards[i].IPIP {
			add("meta l4proto 4")
		}
		if p := s.guards[i].VXLANPort; p != 0 {
			add(fmt.Sprintf("meta l4proto 17 th dport %d", p))
		}
	}
	return out
}

// Chains that find those of host endpoints.
const (
	hostIngress  = "host-ingress"     // input
	hostEgress   = "host-egress"      // output
	hostForwIn   = "host-forward-in"  // forward, before the workloads'
	hostForwOut  = "host-forward-out" // and after them
	untrackedIn  = "host-untracked-in"
	untrackedOut = "host-untracked-out"
	preDNAT      = "host-pre-dnat"
	translated   = "host-translated" // postrouting: egress of what output saw with another destination
)

// features says which chains of host endpoints anything needs.
type features struct{ any, forward, untracked, preDNAT bool }

// place is where host endpoints are asked.
type place struct {
	root   string // finds the chain of the interface
	prefix string // begins that chain's name
	end    string // iif or oif
	on     func(features) bool
	rules  func(*ruleset, *policy.Endpoint) []rule
}

// places are all of them.
var places = []place{
	{hostIngress, "hi-", "iifname", func(f features) bool { return f.any }, (*ruleset).hostIn},
	{hostEgress, "ho-", "oifname", func(f features) bool { return f.any }, (*ruleset).hostOut},
	{translated, "ht-", "oifname", func(f features) bool { return f.any }, (*ruleset).hostTranslated},
	{hostForwIn, "hfi-", "iifname", func(f features) bool { return f.forward }, (*ruleset).hostForwardIn},
	{hostForwOut, "hfo-", "oifname", func(f features) bool { return f.forward }, (*ruleset).hostForwardOut},
	{untrackedIn, "hui-", "iifname", func(f features) bool { return f.untracked }, (*ruleset).untrackedIn},
	{untrackedOut, "huo-", "oifname", func(f features) bool { return f.untracked }, (*ruleset).untrackedOut},
	{preDNAT, "hpd-", "iifname", func(f features) bool { return f.preDNAT }, (*ruleset).preDNAT},
}

// hosts makes all chains of host endpoints, and those that depend on whether there are any. Until all
// is known what an earlier agent left of them stays, with the chains that lead to them.
func (s *ruleset) hosts() {
	end := chainOf(toHostEnd)
	if s.adopting {
		end.adopt = true
		end.rules = []rule{r("counter drop").because("not known yet")}
		if len(s.guarded) > 0 {
			end.rules = []rule{r("accept").because("guarded by rules of iptables")}
		}
		chains := []*chain{end}
		for _, p := range places {
			chains = append(chains, &chain{name: p.root, adopt: true})
		}
		s.put("/hosts", chains)
		s.frame(features{true, true, true, true})
		return
	}
	switch {
	case s.host == nil || s.host.EndpointToHost == model.EndpointToHostDrop:
		end.rules = []rule{r("counter drop").because("defaultEndpointToHostAction")}
	case s.host.EndpointToHost == model.EndpointToHostAccept:
		end.rules = []rule{r("accept").because("defaultEndpointToHostAction")}
	}
	eps := s.hostEndpoints()
	var f features
	for i := range eps {
		ep := &eps[i]
		says := func(p *policy.Path) bool { return len(p.Tiers) > 0 || p.Default == policy.Deny }
		f.any = true
		f.forward = f.forward || says(&ep.ForwardIngress) || says(&ep.ForwardEgress)
		f.untracked = f.untracked || says(&ep.UntrackedIngress) || says(&ep.UntrackedEgress)
		f.preDNAT = f.preDNAT || says(&ep.PreDNAT)
	}
	chains := []*chain{end}
	for _, p := range places {
		if p.on(f) {
			chains = append(chains, s.place(eps, p)...)
		}
	}
	s.put("/hosts", chains)
	s.frame(f)
}

// place makes the chains of all host endpoints at one place, and its root.
func (s *ruleset) place(eps []policy.Endpoint, p place) []*chain {
	root := chainOf(p.root, s.before(p.root)...)
	var (
		out  []*chain
		find []string
		rest []rule
	)
	for i := range eps {
		ep := &eps[i]
		name := ifaceChain(p.prefix, ep.Interface)
		out = append(out, &chain{name: name, rules: p.rules(s, ep)})
		if ep.Interface == "*" { // the host's talk with itself is nobody's
			rest = []rule{r(p.end, quoted("lo"), "return"), r("goto", name).because(ep.ID.String())}
		} else {
			find = append(find, quoted(ep.Interface)+" : goto "+name)
		}
	}
	if len(find) > 0 {
		root.rules = append(root.rules, r(p.end, "vmap {", strings.Join(find, ", "), "}"))
	}
	root.rules = append(root.rules, rest...)
	return append(out, root)
}

// before is what comes before the host endpoints at one place.
func (s *ruleset) before(root string) []rule {
	const known = "ct state established,related"
	clear := r(clearBits(s.verdict()))
	switch root {
	case hostForwIn, hostForwOut, preDNAT:
		return []rule{r(marked(s.marks.Untracked), "return"), r(known, "return"), clear}
	case untrackedIn, untrackedOut:
		return []rule{r(clearBits(s.verdict() | s.marks.Untracked))}
	case translated:
		return []rule{r(clearBits(s.verdict() | s.marks.Translated)), r(s.out(), "return"), r(known, "return")}
	}
	return []rule{r(known, "accept"), clear}
}

func (s *ruleset) hostIn(ep *policy.Endpoint) []rule {
	return append(s.failsafes("dport", "saddr", "accept", false), s.path(&ep.Ingress, "accept", "accept")...)
}

func (s *ruleset) hostOut(ep *policy.Endpoint) []rule {
	return append(s.failsafes("dport", "daddr", "accept", true), s.path(&ep.Egress, "accept", "accept")...)
}

func (s *ruleset) hostTranslated(ep *policy.Endpoint) []rule {
	return append(s.failsafes("dport", "daddr", "return", true), s.path(&ep.Egress, "return", "")...)
}

func (s *ruleset) hostForwardIn(ep *policy.Endpoint) []rule {
	return s.path(&ep.ForwardIngress, "return", "")
}

func (s *ruleset) hostForwardOut(ep *policy.Endpoint) []rule {
	return s.path(&ep.ForwardEgress, "return", "")
}

// noTrack is what becomes of what an untracked policy allows.
func (s *ruleset) noTrack() string { return setBits(s.marks.Untracked) + " notrack return" }

// Before connection tracking what answers a failsafe port must pass, too.
func (s *ruleset) untrackedIn(ep *policy.Endpoint) []rule {
	safe := append(s.failsafes("dport", "saddr", "return", false), s.failsafes("sport", "saddr", "return", true)...)
	return append(safe, s.path(&ep.UntrackedIngress, s.noTrack(), s.noTrack())...)
}

func (s *ruleset) untrackedOut(ep *policy.Endpoint) []rule {
	safe := append(s.failsafes("dport", "daddr", "return", true), s.failsafes("sport", "daddr", "return", false)...)
	return append(safe, s.path(&ep.UntrackedEgress, s.noTrack(), s.noTrack())...)
}

func (s *ruleset) preDNAT(ep *policy.Endpoint) []rule {
	return append(s.failsafes("dport", "saddr", "return", false), s.path(&ep.PreDNAT, "return", "")...)
}

// failsafes makes the rules of the ports that host endpoints never close: those of
// connections to the host, or out from it. other is the address of the other end.
func (s *ruleset) failsafes(port, other, verdict string, out bool) []rule {
	if s.host == nil {
		return nil
	}
	list := s.host.FailsafeIn
	if out {
		list = s.host.FailsafeOut
	}
	var rules []rule
	for _, f := range list {
		from := ""
		if f.Net.IsValid() {
			from = "meta nfproto " + fmt.Sprintf("ipv%d", familyOf(f.Net.Addr()))
			if f.Net.Bits() > 0 {
				from = ip(familyOf(f.Net.Addr())) + " " + other + " " + f.Net.Masked().String()
			}
		}
		rules = append(rules, r(from, fmt.Sprintf("meta l4proto %d th %s %d", f.Protocol, port, f.Port), verdict).because("failsafe port"))
	}
	return rules
}
