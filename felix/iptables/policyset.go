package iptables

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// ruleset is the desired policy of one family as chains. It is pure: deltas go in, edits
// come out.
type ruleset struct {
	dialect
	prefix string // begins the names of workloads' interfaces, and of no other
	// adopting: not all is known yet. What an earlier agent left for the interfaces of kept and
	// for hosts stays.
	adopting bool
	kept     map[string]bool // the value: it has chains; else it is open, as a member of a set

	host      *model.HostPolicy // nil: not known yet
	chains    map[policy.ChainID]policy.Chain
	endpoints map[string]policy.Endpoint // by interface
	// translated are the chains that stand in table mangle, too, for packets of the host's own
	// that were given another destination.
	translated map[policy.ChainID]bool
	guard      model.EncapGuard

	fans policy.FanUse

	groups map[group][]Chain // what was last said of chains that are made together
	hooks  map[Table][]Hook
}

// group is chains that are made together; what is not made again is deleted.
type group struct {
	table Table
	name  string // what they are about
}

// edit is what changes in the tables.
type edit struct {
	chains map[Table]map[string]*Chain // nil: deleted
	hooks  map[Table][]Hook
}

func newEdit() *edit {
	return &edit{chains: map[Table]map[string]*Chain{}, hooks: map[Table][]Hook{}}
}

func (e *edit) set(t Table, name string, c *Chain) {
	if e.chains[t] == nil {
		e.chains[t] = map[string]*Chain{}
	}
	e.chains[t][name] = c
}

func newRuleset(d dialect, prefix string, known []string) *ruleset {
	s := &ruleset{
		dialect: d, prefix: prefix, adopting: true, kept: map[string]bool{},
		chains: map[policy.ChainID]policy.Chain{}, endpoints: map[string]policy.Endpoint{},
		translated: map[policy.ChainID]bool{}, groups: map[group][]Chain{}, hooks: map[Table][]Hook{},
	}
	for _, name := range known {
		s.kept[name] = true
	}
	return s
}

// put says what chains a group has now.
func (s *ruleset) put(e *edit, t Table, name string, chains []Chain) {
	g := group{t, name}
	old := map[string]Chain{}
	for _, c := range s.groups[g] {
		old[c.Name] = c
	}
	for _, c := range chains {
		if was, ok := old[c.Name]; !ok || !reflect.DeepEqual(was, c) {
			e.set(t, c.Name, &c)
		}
		delete(old, c.Name)
	}
	for name := range old {
		e.set(t, name, nil)
	}
	if chains == nil {
		delete(s.groups, g)
	} else {
		s.groups[g] = chains
	}
}

// begin is what holds before the sets of workloads' own addresses are there and read: all that an
// earlier agent left for workloads stays as it is, and where there is nothing no workload's packet passes.
func (s *ruleset) begin() *edit {
	e := newEdit()
	s.constant(e)
	s.put(e, Filter, "/workloads", []Chain{{Name: toWorkload, Adopt: true}, {Name: fromWorkload, Adopt: true}})
	s.sources(e)
	s.hosts(e)
	return e
}

// start is what holds before the first delta, once those sets are read. open says which
// interfaces an earlier agent left open: those need no chains.
func (s *ruleset) start(e *edit, open func(string) bool) {
	for name := range s.kept {
		if s.kept[name] = !open(name); s.kept[name] {
			s.keep(e, name)
		}
	}
	s.workloads(e)
}

// inSync ends what was kept of an earlier agent.
func (s *ruleset) inSync(e *edit) {
	if !s.adopting {
		return
	}
	s.adopting = false
	for name := range s.kept {
		s.put(e, Filter, name, nil)
	}
	s.kept = map[string]bool{}
	s.workloads(e)
	s.sources(e)
	s.hosts(e)
}

func layerTable(l policy.Layer) Table {
	return [...]Table{policy.LayerFilter: Filter, policy.LayerUntracked: Raw, policy.LayerPreDNAT: Mangle}[l]
}

// apply takes in a delta.
func (s *ruleset) apply(e *edit, d *policy.Delta) {
	var hosts, names, sources bool
	if d.Host != nil {
		hosts, s.host = true, d.Host
	}
	for _, c := range d.Chains {
		name, t := s.policyChain(c.ID), layerTable(c.Layer)
		if old, ok := s.chains[c.ID]; ok && layerTable(old.Layer) != t {
			e.set(layerTable(old.Layer), name, nil)
		}
		s.chains[c.ID] = c
		made := s.chain(&c)
		e.set(t, name, &made)
		if s.translated[c.ID] {
			e.set(Mangle, name, &made)
		}
	}
	workload := func(name string) bool { return strings.HasPrefix(name, s.prefix) }
	for _, ep := range d.Endpoints {
		old, had := s.endpoints[ep.Interface]
		ruled := s.ruled(ep.Interface)
		s.endpoints[ep.Interface] = ep
		if !workload(ep.Interface) {
			hosts = true
			continue
		}
		delete(s.kept, ep.Interface)
		names = names || ruled != s.ruled(ep.Interface)
		sources = sources || s.granted(&ep) != nil || had && s.granted(&old) != nil
		s.put(e, Filter, ep.Interface, s.workload(&ep))
		s.fan(e, ep.Interface, &ep.Ingress, &ep.Egress)
	}
	for _, name := range d.GoneEndpoints {
		ep, ruled := s.endpoints[name], s.ruled(name)
		delete(s.endpoints, name)
		if !workload(name) {
			hosts = true
			continue
		}
		names, sources = names || ruled, sources || s.granted(&ep) != nil
		s.put(e, Filter, name, nil)
		s.fan(e, name)
	}
	for _, id := range d.GoneChains {
		e.set(layerTable(s.chains[id].Layer), s.policyChain(id), nil)
		delete(s.chains, id)
	}
	if names {
		s.workloads(e)
	}
	if sources {
		s.sources(e)
	}
	if hosts {
		s.hosts(e)
	}
}

// verdicts makes the chains that set the mark of a verdict, which each table has of its own.
func (s *ruleset) verdicts(table Table) []Chain {
	out := []Chain{
		{Name: allowChain, Rules: []Rule{{Action: setBits(s.marks.Accept)}}},
		{Name: passChain, Rules: []Rule{{Action: setBits(s.marks.Pass)}}},
	}
	if table == Raw {
		out = append(out, Chain{Name: noTrackChain, Rules: []Rule{{Action: setBits(s.marks.Untracked)}, {Action: Target("CT", "--notrack")}}})
	}
	return out
}

// verdict is the bits that the chains of one endpoint leave; they are cleared before.
func (s *ruleset) verdict() uint32 { return s.marks.Accept | s.marks.Pass }

// asking has a chain asked; after others: unless one of those has decided.
func (s *ruleset) asking(chain string, after bool) Rule {
	r := Rule{Action: Jump(chain)}
	if after {
		r.Match = unmarked(s.verdict())
	}
	return r
}

// path makes the rules of a path. The verdict bits are clear before. allowed is what
// happens to what a rule allows, and fallen to what meets a default that allows.
func (s *ruleset) path(p *policy.Path, allowed, fallen Action) []Rule {
	var out []Rule
	for i, tier := range p.Tiers {
		if i > 0 {
			out = append(out, Rule{Action: clearBits(s.marks.Pass)})
		}
		first := len(out)
		ask := func(chain string) { out = append(out, s.asking(chain, len(out) > first)) }
		done := 0 // up to here chains are asked
		for k := range tier.Fans {
			f := &tier.Fans[k]
			for _, id := range tier.Chains[done:f.From] {
				ask(s.policyChain(id))
			}
			if len(f.Ranges) > 0 {
				ask(s.fanChain(f.ID, &policy.FanNode{}))
			}
			done = f.To
		}
		for _, id := range tier.Chains[done:] {
			ask(s.policyChain(id))
		}
		out = append(out, Rule{Match: marked(s.marks.Accept), Action: allowed})
		if tier.End == policy.Deny {
			out = append(out, Rule{Match: unmarked(s.marks.Pass), Action: Drop(), Comment: "end of tier " + tier.Name})
		}
	}
	switch {
	case p.Default == policy.Deny:
		out = append(out, Rule{Action: Drop(), Comment: "no policy allows it"})
	case p.Default == policy.Allow && fallen != nil:
		out = append(out, Rule{Action: fallen})
	}
	return out
}

// Chains of workloads. What they let pass carries the accept bit when they return, so that
// a chain that somebody flushed lets nothing pass.
const (
	toWorkload   = "cali-wl-ingress" // finds the chain of the interface that the packet leaves by
	fromWorkload = "cali-wl-egress"  // and of that it came by
)

// ifaceChain names a chain of an interface; names that cannot stand in a chain's are hashed. A
// hash is longer than any interface's name.
func ifaceChain(prefix, name string) string {
	if quote(name) != name || name == "*" {
		return hashed(prefix, name)
	}
	return prefix + name
}

func ingressChain(iface string) string { return ifaceChain("cali-wi-", iface) }
func egressChain(iface string) string  { return ifaceChain("cali-we-", iface) }
func sourceChain(iface string) string  { return ifaceChain("cali-ws-", iface) }

// ruled reports whether a workload's interface has chains of its own.
func (s *ruleset) ruled(iface string) bool {
	ep, ok := s.endpoints[iface]
	return ok && !unruled(&ep) || s.kept[iface]
}

// workload makes the chains of one workload; none where membership in a set says it all. They hold
// no address of its own, so that they can be made before it has any: who is no member of the
// set of sources sends nothing.
func (s *ruleset) workload(ep *policy.Endpoint) []Chain {
	if unruled(ep) {
		return nil
	}
	who := ep.ID.String()
	refused := []Rule{{Action: Drop(), Comment: who + ": its rules are refused"}}
	in := Chain{Name: ingressChain(ep.Interface), Fallback: refused, Rules: s.path(&ep.Ingress, Return(), Goto(allowChain))}
	out := Chain{Name: egressChain(ep.Interface), Fallback: refused}
	spoofed := Rule{Action: Drop(), Comment: who + ": not its address"}
	var chains []Chain
	if s.granted(ep) == nil {
		spoofed.Match = []string{"-m", "set", "!", "--match-set", memberSet(s.family, source), "src,src"}
		out.Rules = append(out.Rules, spoofed)
	} else {
		// What many may be granted alike cannot be members: see ipset.MaxInterfaces.
		var sources []Rule
		for _, n := range ep.Sources {
			if s.family.of(n.Addr()) {
				sources = append(sources, Rule{Match: Source(n), Action: Return()})
			}
		}
		chains = append(chains, Chain{Name: sourceChain(ep.Interface), Fallback: refused, Rules: append(sources, spoofed)})
		out.Rules = append(out.Rules, Rule{Action: Jump(sourceChain(ep.Interface))})
	}
	out.Rules = append(out.Rules, s.path(&ep.Egress, Return(), Goto(allowChain))...)
	return append(chains, in, out)
}

// keep makes the chains of a workload that an earlier agent knew: as they are.
func (s *ruleset) keep(e *edit, iface string) {
	unknown := []Rule{{Action: Drop(), Comment: "not known yet"}}
	s.put(e, Filter, iface, []Chain{
		{Name: ingressChain(iface), Rules: unknown, Adopt: true},
		{Name: egressChain(iface), Rules: unknown, Adopt: true},
	})
}

// workloads makes the chains that find a workload's. What is open is asked first: whoever is in that set
// has no chains, or has them no more, or not yet.
func (s *ruleset) workloads(e *edit) {
	var names []string
	for name := range s.endpoints {
		if strings.HasPrefix(name, s.prefix) && s.ruled(name) {
			names = append(names, name)
		}
	}
	for name, chains := range s.kept {
		if chains {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	open := func(chains []Chain, ends string) []Chain {
		root := &chains[0]
		// Without the set nobody is open; those with chains need not suffer for it.
		root.Fallback = root.Rules
		root.Rules = append([]Rule{{Match: []string{"-m", "set", "--match-set", memberSet(s.family, opened), ends}, Action: Goto(allowChain)}}, root.Rules...)
		return chains
	}
	in := dispatch(names, "-o", toWorkload, func(b string) string { return ifaceChain("cali-di-", b) }, ingressChain)
	out := dispatch(names, "-i", fromWorkload, func(b string) string { return ifaceChain("cali-de-", b) }, egressChain)
	s.put(e, Filter, "/workloads", append(open(in, "dst,dst"), open(out, "src,src")...))
}

// granted lists the sources that the route back does not tell to be the workload's.
func (s *ruleset) granted(ep *policy.Endpoint) []Rule {
	var out []Rule
	for _, n := range ep.Sources {
		if s.family.of(n.Addr()) && !(n.IsSingleIP() && slices.Contains(ep.Addresses, n.Addr())) {
			out = append(out, Rule{Match: append(Source(n), "-i", ep.Interface), Action: Return()})
		}
	}
	return out
}

// sources makes the chain of table raw that drops what comes from others' addresses, as
// ReversePath has it, with the exceptions.
func (s *ruleset) sources(e *edit) {
	c := ReversePath(s.prefix).Chains[0]
	c.Fallback, c.Adopt = c.Rules, s.adopting
	if !s.adopting {
		var granted []Rule
		for _, name := range slices.Sorted(maps.Keys(s.endpoints)) {
			if ep := s.endpoints[name]; strings.HasPrefix(name, s.prefix) {
				granted = append(granted, s.granted(&ep)...)
			}
		}
		c.Rules = append(granted, c.Rules...)
	}
	s.put(e, Raw, "/sources", []Chain{c})
}

// needs lists the chains that decide on the packets of an interface, by table.
func (s *ruleset) needs(ep *policy.Endpoint) map[Table][]string {
	out := map[Table][]string{}
	add := func(t Table, p *policy.Path, chains ...string) {
		out[t] = append(out[t], chains...)
		for _, tier := range p.Tiers {
			for _, id := range tier.Chains {
				out[t] = append(out[t], s.policyChain(id))
			}
		}
	}
	if strings.HasPrefix(ep.Interface, s.prefix) {
		add(Filter, &ep.Ingress, forwardChain, toWorkload)
		add(Filter, &ep.Egress, inputChain, fromWorkload)
		add(Raw, &policy.Path{}, ReversePathChain)
		if !unruled(ep) {
			add(Filter, &policy.Path{}, ingressChain(ep.Interface), egressChain(ep.Interface), sourceChain(ep.Interface))
			for id := range s.fans.Of(ep.Interface) {
				for _, c := range s.groups[group{Filter, fanGroup + id}] {
					add(Filter, &policy.Path{}, c.Name)
				}
			}
		}
		return out
	}
	at := func(prefix string) string { return ifaceChain(prefix, ep.Interface) }
	add(Filter, &ep.Ingress, inputChain, hostIngress, at("cali-hi-"))
	add(Filter, &ep.Egress, outputChain, hostEgress, at("cali-ho-"))
	add(Mangle, &ep.Egress, postroutingChain, translated, at("cali-ht-"))
	add(Filter, &ep.ForwardIngress, forwardChain, hostForwIn, at("cali-hfi-"))
	add(Filter, &ep.ForwardEgress, hostForwOut, at("cali-hfo-"))
	add(Raw, &ep.UntrackedIngress, untrackedIn, at("cali-hui-"))
	add(Raw, &ep.UntrackedEgress, untrackedOut, at("cali-huo-"))
	add(Mangle, &ep.PreDNAT, preroutingChain, preDNAT, at("cali-hpd-"))
	return out
}
