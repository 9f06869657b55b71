package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Flush says what has changed for the packet filter since the last Flush. The Delta is the
// caller's.
func (e *Engine) Flush() *Delta {
	e.flushes++
	d := &Delta{}
	if e.hostNew {
		h := e.host
		d.Host, e.hostNew = &h, false
	}
	render := e.activate()
	e.flushSets(d, render)
	for p := range render {
		e.flushChains(d, p)
	}
	for iface := range e.dirtyInterfaces {
		e.flushInterface(d, iface)
	}
	clear(e.dirtyInterfaces)
	sortDelta(d)
	return d
}

// activate brings in the policies that have come into force for a local endpoint and takes
// out those that no longer are. It returns the policies whose chains may change.
func (e *Engine) activate() map[*policy]struct{} {
	render := make(map[*policy]struct{}, len(e.dirtyPolicies))
	for p := range e.dirtyPolicies {
		want := p.now
		if want != nil && p.locals == 0 && !want.needed {
			want = nil
		}
		if p.gone {
			delete(e.policies, p.id)
		}
		if want == p.shown {
			continue
		}
		p.shown = want
		render[p] = struct{}{}
	}
	clear(e.dirtyPolicies)
	if e.seenNew {
		// Rules and sets of the family come up where there were none.
		e.seenNew = false
		for _, p := range e.policies {
			if p.shown != nil {
				render[p] = struct{}{}
			}
		}
	}
	for p := range render {
		e.takeUp(p)
	}
	return render
}

// takeUp counts the policy as a user of the sets that its rules now name. The new ones come
// first, so that a set that stays is not made again.
func (e *Engine) takeUp(p *policy) {
	old := p.used
	p.used = nil
	if p.shown != nil {
		seen := map[usedSet]struct{}{}
		p.shown.each(e.seen, func(u setUse) {
			key := usedSet{e.sets[u.form.definition], u.fam}
			if _, have := seen[key]; have && key.set != nil {
				return
			}
			key.set = e.use(u)
			seen[key] = struct{}{}
			p.used = append(p.used, key)
		})
	}
	for _, u := range old {
		e.unuse(u.set, u.fam)
	}
}

// flushSets tells of the sets, and adds to render the policies that name one whose ID changes.
func (e *Engine) flushSets(d *Delta, render map[*policy]struct{}) {
	renamed := map[*set]struct{}{}
	for s := range e.dirtySets {
		for i := range families {
			f := &s.fam[i]
			switch {
			case s.uses[i] == 0:
				if f.id != "" {
					d.GoneSets = append(d.GoneSets, f.retire())
				}
			case f.id == "":
				d.NewSets = append(d.NewSets, s.whole(i))
			case f.kind != s.kindNow(i):
				d.GoneSets = append(d.GoneSets, f.retire())
				d.NewSets = append(d.NewSets, s.whole(i))
				renamed[s] = struct{}{}
			default:
				if c := s.changes(i); len(c.Add)+len(c.Remove) > 0 {
					d.ChangedSets = append(d.ChangedSets, c)
				}
			}
		}
		if s.uses == [2]int{} {
			e.forget(s)
		}
	}
	clear(e.dirtySets)
	if len(renamed) == 0 {
		return
	}
	for _, p := range e.policies {
		if slices.ContainsFunc(p.used, func(u usedSet) bool { _, is := renamed[u.set]; return is }) {
			render[p] = struct{}{}
		}
	}
}

func (e *Engine) flushChains(d *Delta, p *policy) {
	for dir := range p.chains {
		id := ChainID{p.id, Direction(dir)}
		have := p.chains[dir]
		if p.shown == nil || !p.shown.holds[dir] {
			if have != nil {
				d.GoneChains = append(d.GoneChains, id)
				p.chains[dir], p.asked[dir] = nil, nil
			}
			continue
		}
		c := e.chain(id, p.shown)
		if have != nil && have.Equal(c) {
			continue
		}
		p.chains[dir] = c
		d.Chains = append(d.Chains, *c)
		was, now := p.asked[dir], c.asked()
		p.asked[dir] = now
		if have != nil && ((was == nil) != (now == nil) || !slices.Equal(was, now)) {
			e.refan(p)
		}
	}
}

// refan has the endpoints of a policy looked at that may have fans: the chain of one direction asks
// for other ports than it did.
func (e *Engine) refan(p *policy) {
	if p.subject == nil {
		return
	}
	for g := range p.subject.groups {
		for _, it := range g.items {
			iface := it.endpoint.iface
			if ep := e.shown[iface]; ep != nil && ep.longest() >= e.fanLeast { // others are looked at anyway, or have none
				e.dirtyInterfaces[iface] = struct{}{}
			}
		}
	}
}

// longest is how many chains a tier of a workload has at most.
func (ep *Endpoint) longest() (n int) {
	for _, path := range [...]*Path{&ep.Ingress, &ep.Egress} {
		for i := range path.Tiers {
			n = max(n, len(path.Tiers[i].Chains))
		}
	}
	return n
}

func (e *Engine) flushInterface(d *Delta, iface string) {
	have := e.shown[iface]
	of := e.byInterface[iface]
	if len(of) == 0 {
		if have != nil {
			delete(e.shown, iface)
			d.GoneEndpoints = append(d.GoneEndpoints, iface)
		}
		return
	}
	now := e.endpoint(of[0])
	if have != nil && have.Equal(now) {
		return
	}
	e.shown[iface] = now
	d.Endpoints = append(d.Endpoints, *now)
}

func sortDelta(d *Delta) {
	slices.SortFunc(d.NewSets, func(a, b Set) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(d.ChangedSets, func(a, b SetChange) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(d.Chains, func(a, b Chain) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(d.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.Interface, b.Interface) })
	slices.Sort(d.GoneEndpoints)
	slices.SortFunc(d.GoneChains, ChainID.Compare)
	slices.Sort(d.GoneSets)
}

// Whole is everything that stands in force as of the last Flush, as a Delta onto nothing: for a
// backend that has lost its place. What was set since is not in it.
func (e *Engine) Whole() *Delta {
	h := e.host
	d := &Delta{Host: &h}
	for _, s := range e.sets {
		for i := range families {
			if f := &s.fam[i]; f.id != "" {
				d.NewSets = append(d.NewSets, Set{ID: f.id, Kind: f.kind, Family: families[i], Origin: s.String(), Members: f.told()})
			}
		}
	}
	for _, p := range e.policies {
		for _, c := range p.chains {
			if c != nil {
				d.Chains = append(d.Chains, *c)
			}
		}
	}
	for _, ep := range e.shown {
		d.Endpoints = append(d.Endpoints, *ep)
	}
	sortDelta(d)
	return d
}

// told lists the members that the backend has.
func (f *content) told() []Member {
	var out []Member
	if f.kind == SetNet {
		for m := range f.shown {
			out = append(out, m)
		}
	} else {
		for m := range f.live {
			if in, pending := f.pending[m]; !pending || !in {
				out = append(out, m)
			}
		}
		for m, in := range f.pending {
			if !in {
				out = append(out, m)
			}
		}
	}
	slices.SortFunc(out, Member.Compare)
	return out
}

// Chain returns the chain as of the last Flush; ok is false when no local endpoint needs it.
func (e *Engine) Chain(id ChainID) (c Chain, ok bool) {
	p := e.policies[id.Policy]
	if p == nil || p.chains[id.Direction] == nil {
		return Chain{}, false
	}
	return *p.chains[id.Direction], true
}

// Applies reports for how many local endpoints a policy is in force, without those that are only expected.
func (e *Engine) Applies(id model.PolicyID) int {
	if p := e.policies[id]; p != nil {
		return p.attached()
	}
	return 0
}
