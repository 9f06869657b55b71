package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// Chains and sets of workloads. What a workload's chain lets pass carries the accept bit when it
// returns, so that a chain that somebody flushed lets nothing pass.
const (
	toWorkload   = "to-workload"   // map: the interface that a packet leaves by → chain of ingress
	fromWorkload = "from-workload" // map: the one that it came by → chain of egress
	askIngress   = "workload-ingress"
	askEgress    = "workload-egress"
	sourceCheck  = "workload-source"
	sources4     = "sources-4" // sets: interface and address that it may send from
	sources6     = "sources-6"
	grants4      = "grants-4" // and whole prefixes (allowedSourcePrefixes)
	grants6      = "grants-6"
)

func ingressChain(iface string) string { return ifaceChain("wi-", iface) }
func egressChain(iface string) string  { return ifaceChain("we-", iface) }

// ruleset is the desired policy. It is pure: deltas go in, and change the desired table.
type ruleset struct {
	dialect
	t      *table
	prefix string // begins the names of workloads' interfaces, and of no other
	// adopting: not all is known yet. What an earlier agent left for the interfaces of kept and
	// for hosts stays.
	adopting bool
	kept     map[string]bool
	guarded  map[string]bool // of kept: by others' rules

	host      *model.HostPolicy // nil: not known yet
	guards    [2]model.EncapGuard
	chains    map[policy.ChainID]policy.Chain
	endpoints map[string]policy.Endpoint // by interface
	unsayable map[string]error           // endpoints whose interface's name no rule can have

	fans   policy.FanUse
	groups map[string]map[string]bool            // what was last said of chains that are made together
	sends  map[string]map[string]map[string]bool // interface → set → keys: what it may send from
}

func newRuleset(d dialect, t *table, prefix string, known, guarded []string) *ruleset {
	s := &ruleset{
		dialect: d, t: t, prefix: prefix, adopting: true, kept: map[string]bool{}, guarded: map[string]bool{}, chains: map[policy.ChainID]policy.Chain{},
		endpoints: map[string]policy.Endpoint{}, unsayable: map[string]error{}, groups: map[string]map[string]bool{},
		sends: map[string]map[string]map[string]bool{},
	}
	for _, name := range known {
		if s.workloads(name) && expressible(name) {
			s.kept[name] = true
		}
	}
	for _, name := range guarded {
		if s.kept[name] {
			s.guarded[name] = true
		}
	}
	t.keep = true
	return s
}

func (s *ruleset) workloads(name string) bool { return strings.HasPrefix(name, s.prefix) }

// put says what chains a group has now; those that it had before and has no more go.
func (s *ruleset) put(group string, chains []*chain) {
	now := map[string]bool{}
	for _, c := range chains {
		now[c.name] = true
		s.t.setChain(c)
	}
	for name := range s.groups[group] {
		if !now[name] {
			s.t.removeChain(name)
		}
	}
	s.groups[group] = now
	if len(now) == 0 {
		delete(s.groups, group)
	}
}

// begin makes what holds before the first delta. The table's actual state is known: what an earlier
// agent said of the sources of interfaces that are kept is wanted, too.
func (s *ruleset) begin() {
	for _, x := range []set{
		{name: toWorkload, kind: kindDispatch}, {name: fromWorkload, kind: kindDispatch},
		{name: sources4, kind: kindSource, family: policy.IPv4}, {name: sources6, kind: kindSource, family: policy.IPv6},
		{name: grants4, kind: kindGrant, family: policy.IPv4}, {name: grants6, kind: kindGrant, family: policy.IPv6},
	} {
		s.t.setSet(&x)
		is := s.t.actual.sets[x.name]
		if is == nil || x.kind == kindDispatch || is.keyLen != x.keyLen() {
			continue
		}
		for key := range is.members {
			if iface := keyIface(key); s.kept[iface] {
				s.t.setMember(x.name, key, "")
				if s.sends[iface] == nil {
					s.sends[iface] = map[string]map[string]bool{sources4: {}, sources6: {}, grants4: {}, grants6: {}}
				}
				s.sends[iface][x.name][key] = true
			}
		}
	}
	for name := range s.kept {
		if s.wasOpen(name) {
			s.dispatch(name, leave, leave)
			continue
		}
		s.dispatch(name, ingressChain(name), egressChain(name))
		unknown := rule{"counter drop", "not known yet"}
		if _, there := s.t.actual.chains[ingressChain(name)]; s.guarded[name] && !there {
			unknown = rule{setBits(s.marks.Accept), "guarded by rules of iptables"}
			s.sources(name, []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)})
		}
		s.put(name, []*chain{
			{name: ingressChain(name), rules: []rule{unknown}, adopt: true}, {name: egressChain(name), rules: []rule{unknown}, adopt: true},
		})
	}
	s.constant()
	s.hosts()
}

// wasOpen reports whether an earlier agent made a workload one that no policy selects.
func (s *ruleset) wasOpen(iface string) bool {
	for _, name := range []string{toWorkload, fromWorkload} {
		is := s.t.actual.sets[name]
		if is == nil || is.members[ifaceKey(iface)] != leave {
			return false
		}
	}
	return true
}

// inSync ends what was kept of an earlier agent.
func (s *ruleset) inSync() {
	if !s.adopting {
		return
	}
	s.adopting, s.t.keep = false, false
	for name := range s.kept {
		s.forget(name)
	}
	clear(s.kept)
	s.hosts()
	s.t.all()
}

// encapsulation says which encapsulated packets pass host endpoints.
func (s *ruleset) encapsulation(guards [2]model.EncapGuard) {
	for i, g := range guards {
		if g.IPIP != s.guards[i].IPIP || g.VXLANPort != s.guards[i].VXLANPort {
			s.guards = guards
			s.hosts()
			return
		}
	}
}

// apply takes in a delta.
func (s *ruleset) apply(d *policy.Delta) {
	hosts := d.Host != nil
	if d.Host != nil {
		s.host = d.Host
	}
	for i := range d.NewSets {
		s.newSet(&d.NewSets[i])
	}
	for _, c := range d.ChangedSets {
		x := s.t.sets[string(c.ID)]
		for _, m := range c.Add {
			s.t.setMember(x.name, x.memberKey(m), "")
		}
		for _, m := range c.Remove {
			s.t.removeMember(x.name, x.memberKey(m))
		}
	}
	for i := range d.Chains {
		c := &d.Chains[i]
		s.chains[c.ID] = *c
		v4, v6 := s.chainsOf(c)
		s.t.setChain(v4)
		if v6 != nil {
			s.t.setChain(v6)
		} else {
			s.t.removeChain(s.chain6(c.ID))
		}
	}
	for _, ep := range d.Endpoints {
		was, known := s.endpoints[ep.Interface]
		s.endpoints[ep.Interface] = ep
		delete(s.unsayable, ep.Interface)
		if ep.Interface != "*" && !expressible(ep.Interface) {
			s.unsayable[ep.Interface] = fmt.Errorf("interface %q: no rule of nftables can name it; letters and digits can", ep.Interface)
		}
		switch {
		case !s.workloads(ep.Interface):
			hosts = true
		case known && s.unsayable[ep.Interface] == nil && sameChains(&was, &ep):
			s.sources(ep.Interface, ep.Sources)
		default:
			s.workload(&ep)
		}
	}
	for _, name := range d.GoneEndpoints {
		delete(s.endpoints, name)
		delete(s.unsayable, name)
		if s.workloads(name) {
			s.forget(name) // one that no rule can name has left nothing
		} else {
			hosts = true
		}
	}
	for _, id := range d.GoneChains {
		s.t.removeChain(s.policyChain(id))
		s.t.removeChain(s.chain6(id))
		delete(s.chains, id)
	}
	if hosts {
		s.hosts()
	}
	for _, id := range d.GoneSets {
		s.t.removeSet(string(id))
	}
}

var setKinds = [...]kind{policy.SetIP: kindIP, policy.SetNet: kindNet, policy.SetIPPort: kindIPPort}

func (s *ruleset) newSet(from *policy.Set) {
	x := &set{name: string(from.ID), kind: setKinds[from.Kind], family: from.Family, comment: from.Origin, members: make(map[string]string, len(from.Members))}
	for _, m := range from.Members {
		x.members[x.memberKey(m)] = ""
	}
	s.t.setSet(x)
}

// dispatch lets a workload's chains be found. One that no policy selects has none: the chain that
// asks is left before it drops what nobody allows. A chain for all of those would do as well, but
// whenever a map gets a member that calls one the kernel walks all ways through the table
// (nft_table_validate): 10 ms with 110 pods of 10 policies each.
func (s *ruleset) dispatch(iface, to, from string) {
	s.t.setMember(toWorkload, ifaceKey(iface), to)
	s.t.setMember(fromWorkload, ifaceKey(iface), from)
}

// workload makes the chains of one workload, and its members of sets.
func (s *ruleset) workload(ep *policy.Endpoint) {
	if s.unsayable[ep.Interface] != nil {
		return // nothing finds it, and nothing passes
	}
	delete(s.kept, ep.Interface)
	s.sources(ep.Interface, ep.Sources)
	if ep.Open() {
		s.put(ep.Interface, nil)
		s.fan(ep.Interface)
		s.dispatch(ep.Interface, leave, leave)
		return
	}
	allow := setBits(s.marks.Accept)
	who := rule{"counter", ep.ID.String()} // so that the table can be read
	s.put(ep.Interface, []*chain{
		{name: ingressChain(ep.Interface), rules: append([]rule{who}, s.path(&ep.Ingress, "return", allow)...)},
		{name: egressChain(ep.Interface), rules: append([]rule{who}, s.path(&ep.Egress, "return", allow)...)},
	})
	s.fan(ep.Interface, &ep.Ingress, &ep.Egress)
	s.dispatch(ep.Interface, ingressChain(ep.Interface), egressChain(ep.Interface))
}

// forget takes a workload's chains and members away.
func (s *ruleset) forget(iface string) {
	s.put(iface, nil)
	s.fan(iface)
	s.sources(iface, nil)
	s.t.removeMember(toWorkload, ifaceKey(iface))
	s.t.removeMember(fromWorkload, ifaceKey(iface))
}

// sources says what a workload may send from.
func (s *ruleset) sources(iface string, from []netip.Prefix) {
	want := map[string]map[string]bool{sources4: {}, sources6: {}, grants4: {}, grants6: {}}
	for _, n := range from {
		held := func(o netip.Prefix) bool { return o != n && o.Bits() < n.Bits() && o.Contains(n.Addr()) }
		six := familyOf(n.Addr()) == policy.IPv6
		switch {
		case slices.ContainsFunc(from, held): // ranges of one set must not overlap
		case n.IsSingleIP() && six:
			want[sources6][sourceKey(iface, n)] = true
		case n.IsSingleIP():
			want[sources4][sourceKey(iface, n)] = true
		case six:
			want[grants6][grantKey(iface, n)] = true
		default:
			want[grants4][grantKey(iface, n)] = true
		}
	}
	for name, keys := range want {
		for key := range s.sends[iface][name] {
			if !keys[key] {
				s.t.removeMember(name, key)
			}
		}
		for key := range keys {
			s.t.setMember(name, key, "")
		}
	}
	if s.sends[iface] = want; len(from) == 0 {
		delete(s.sends, iface)
	}
}

// needs names the chains and sets that decide on the packets of an endpoint.
func (s *ruleset) needs(ep *policy.Endpoint) map[string]bool {
	out := map[string]bool{}
	for _, name := range []string{forwardChain, inputChain, outputChain, rawChain, rawOutChain, mangleChain, postroutingChain} {
		out[name] = true
	}
	if s.workloads(ep.Interface) {
		for _, name := range []string{askIngress, askEgress, sourceCheck, ingressChain(ep.Interface), egressChain(ep.Interface),
			toWorkload, fromWorkload, sources4, sources6, grants4, grants6, toHost, toHostEnd} {
			out[name] = true
		}
		for id := range s.fans.Of(ep.Interface) {
			maps.Copy(out, s.groups[fanGroup+id])
		}
	} else {
		for _, p := range places {
			out[p.root], out[ifaceChain(p.prefix, ep.Interface)] = true, true
		}
	}
	for _, path := range ep.Paths() {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				out[s.policyChain(id)], out[s.chain6(id)] = true, true
				c := s.chains[id]
				for _, set := range c.Sets() {
					out[string(set)] = true
				}
			}
		}
	}
	delete(out, "")
	return out
}

func (s *ruleset) hostEndpoints() []policy.Endpoint {
	var out []policy.Endpoint
	for _, name := range slices.Sorted(maps.Keys(s.endpoints)) {
		if !s.workloads(name) && s.unsayable[name] == nil {
			out = append(out, s.endpoints[name])
		}
	}
	return out
}
