package felixtest

import (
	"fmt"

	"github.com/causeway-net/causeway/felix/policy"
)

// CheckDelta reports whether a delta, applied field after field to the program, ever leaves
// a rule that names a set that is not there, or an endpoint that names a chain that is not
// there (I2). Within a field any order must do. It does not change the program.
func CheckDelta(p *policy.Program, d *policy.Delta) error {
	sets, chains, endpoints := map[policy.SetID]bool{}, map[policy.ChainID]policy.Chain{}, map[string]policy.Endpoint{}
	for id := range p.Sets {
		sets[id] = true
	}
	for id, c := range p.Chains {
		chains[id] = c
	}
	for name, e := range p.Endpoints {
		endpoints[name] = e
	}
	for _, s := range d.NewSets {
		if sets[s.ID] {
			return fmt.Errorf("delta: new set %s is there already", s.ID)
		}
		if kind, family, ok := policy.KindOf(s.ID); !ok || kind != s.Kind || family != s.Family {
			return fmt.Errorf("delta: the name of set %s does not say its kind %d and family %d", s.ID, s.Kind, s.Family)
		}
		sets[s.ID] = true
	}
	for _, s := range d.ChangedSets {
		if _, there := p.Sets[s.ID]; !there {
			return fmt.Errorf("delta: changed set %s is not there", s.ID)
		}
	}
	for _, c := range d.Chains {
		if err := namesSets(sets, &c); err != nil {
			return fmt.Errorf("delta: new %w", err)
		}
		chains[c.ID] = c
	}
	for _, e := range d.Endpoints {
		if err := namesChains(chains, &e); err != nil {
			return fmt.Errorf("delta: new %w", err)
		}
		endpoints[e.Interface] = e
	}
	for _, name := range d.GoneEndpoints {
		if _, there := endpoints[name]; !there {
			return fmt.Errorf("delta: gone endpoint %s is not there", name)
		}
		delete(endpoints, name)
	}
	for _, id := range d.GoneChains {
		if _, there := chains[id]; !there {
			return fmt.Errorf("delta: gone chain %s is not there", id)
		}
		delete(chains, id)
	}
	for _, e := range endpoints {
		if err := namesChains(chains, &e); err != nil {
			return fmt.Errorf("delta: after chains are gone %w", err)
		}
	}
	for _, id := range d.GoneSets {
		if !sets[id] {
			return fmt.Errorf("delta: gone set %s is not there", id)
		}
		delete(sets, id)
	}
	for _, c := range chains {
		if err := namesSets(sets, &c); err != nil {
			return fmt.Errorf("delta: after sets are gone %w", err)
		}
	}
	return nil
}

func namesSets(sets map[policy.SetID]bool, c *policy.Chain) error {
	for _, rules := range [][]policy.Rule{c.IPv4, c.IPv6} {
		for _, r := range rules {
			for _, peer := range []policy.Peer{r.Src, r.Dst} {
				for _, ids := range [][]policy.SetID{peer.In, peer.NotIn, peer.InPort, peer.NotInPort} {
					for _, id := range ids {
						if !sets[id] {
							return fmt.Errorf("chain %s rule %d names set %s, which is not there", c.ID, r.Index, id)
						}
					}
				}
			}
		}
	}
	return nil
}

func namesChains(chains map[policy.ChainID]policy.Chain, e *policy.Endpoint) error {
	for _, path := range []policy.Path{e.Ingress, e.Egress, e.ForwardIngress, e.ForwardEgress, e.UntrackedIngress, e.UntrackedEgress, e.PreDNAT} {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				if _, there := chains[id]; !there {
					return fmt.Errorf("endpoint %s names chain %s, which is not there", e.Interface, id)
				}
			}
		}
	}
	return nil
}
