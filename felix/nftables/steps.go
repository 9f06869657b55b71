package nftables

import (
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// step is one thing that is to be taken in.
type step struct {
	delta  *policy.Delta
	synced bool
	guards *[2]model.EncapGuard

	tried bool // a round has failed since it was put there
	done  bool // it is in the kernel, or refused by it
}

// touched is what steps change, by name.
type touched struct {
	all    bool // what nobody can tell apart
	ifaces map[string]bool
	chains map[policy.ChainID]bool
	sets   map[policy.SetID]bool // those that chains among them name, too
}

func (t *touched) add(d *policy.Delta) {
	if d == nil || d.Host != nil {
		t.all = true
		return
	}
	for i := range d.NewSets {
		t.sets[d.NewSets[i].ID] = true
	}
	for i := range d.ChangedSets {
		t.sets[d.ChangedSets[i].ID] = true
	}
	for _, id := range d.GoneSets {
		t.sets[id] = true
	}
	for i := range d.Chains {
		t.chains[d.Chains[i].ID] = true
		for _, id := range d.Chains[i].Sets() {
			t.sets[id] = true
		}
	}
	for _, id := range d.GoneChains {
		t.chains[id] = true
	}
	for i := range d.Endpoints {
		t.ifaces[d.Endpoints[i].Interface] = true
	}
	for _, name := range d.GoneEndpoints {
		t.ifaces[name] = true
	}
}

// meets reports whether a delta that is light has to do with any of it.
func (t *touched) meets(d *policy.Delta) bool {
	return t.all ||
		slices.ContainsFunc(d.ChangedSets, func(c policy.SetChange) bool { return t.sets[c.ID] }) ||
		slices.ContainsFunc(d.GoneEndpoints, func(name string) bool { return t.ifaces[name] }) ||
		slices.ContainsFunc(d.Endpoints, func(ep policy.Endpoint) bool {
			return t.ifaces[ep.Interface] || len(t.chains) > 0 && slices.ContainsFunc(chainsOf(&ep), func(id policy.ChainID) bool { return t.chains[id] })
		})
}

// chainsOf are the chains of policies that an endpoint names.
func chainsOf(ep *policy.Endpoint) []policy.ChainID {
	var out []policy.ChainID
	for _, path := range ep.Paths() {
		for _, tier := range path.Tiers {
			out = append(out, tier.Chains...)
		}
	}
	return out
}

// light reports whether a delta changes members of sets alone, as far as can be told: what an ADD waits for.
func (s *ruleset) light(d *policy.Delta) bool {
	if d == nil || d.Host != nil || len(d.NewSets)+len(d.Chains)+len(d.GoneChains)+len(d.GoneSets) > 0 {
		return false
	}
	chainless := func(name string) bool {
		_, has := s.groups[name]
		return s.workloads(name) && !has
	}
	for i := range d.Endpoints {
		ep := &d.Endpoints[i]
		was, ok := s.endpoints[ep.Interface]
		if !(ep.Open() && chainless(ep.Interface)) && !(ok && s.workloads(ep.Interface) && sameChains(&was, ep)) {
			return false
		}
	}
	return !slices.ContainsFunc(d.GoneEndpoints, func(name string) bool { return !chainless(name) })
}

// sameChains reports whether two versions of a workload differ in its addresses and sources only.
func sameChains(a, b *policy.Endpoint) bool {
	return a.ID == b.ID && a.Ingress.Equal(&b.Ingress) && a.Egress.Equal(&b.Egress)
}

// ahead picks the light steps that have nothing to do with any step before them that is not
// picked: they need not wait for those. What has to do with each other keeps its order.
func (s *ruleset) ahead(pending []*step) []*step {
	var out []*step
	before := touched{ifaces: map[string]bool{}, chains: map[policy.ChainID]bool{}, sets: map[policy.SetID]bool{}}
	for _, x := range pending {
		if s.light(x.delta) && !before.meets(x.delta) {
			out = append(out, x)
		} else {
			before.add(x.delta)
		}
	}
	return out
}

// concern picks the steps that decide on an endpoint's packets, or of which nobody can tell.
func (s *ruleset) concern(pending []*step, iface string) []*step {
	named := func(d *policy.Delta) int {
		return slices.IndexFunc(d.Endpoints, func(ep policy.Endpoint) bool { return ep.Interface == iface })
	}
	ep := s.endpoints[iface]
	for _, x := range pending {
		if x.delta != nil {
			if i := named(x.delta); i >= 0 {
				ep = x.delta.Endpoints[i]
			}
		}
	}
	chains := map[policy.ChainID]bool{}
	for _, id := range chainsOf(&ep) {
		chains[id] = true
	}
	var sets map[policy.SetID]bool // what those chains name
	var out []*step
	for _, x := range pending {
		d := x.delta
		concerns := d == nil || d.Host != nil || named(d) >= 0 || slices.Contains(d.GoneEndpoints, iface)
		if !concerns && len(chains) > 0 {
			if sets == nil {
				sets = map[policy.SetID]bool{}
				for id := range chains {
					c := s.chains[id]
					for _, set := range c.Sets() {
						sets[set] = true
					}
				}
			}
			concerns = slices.ContainsFunc(d.Chains, func(c policy.Chain) bool { return chains[c.ID] }) ||
				slices.ContainsFunc(d.ChangedSets, func(c policy.SetChange) bool { return sets[c.ID] })
		}
		if concerns {
			out = append(out, x)
		}
	}
	return out
}
