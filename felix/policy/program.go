package policy

import (
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Program is everything that stands in force: what all deltas together come to. It is what a
// backend's state must mean, what the tracer walks, and what a backend is given as a whole
// when it has lost its place.
type Program struct {
	Host      model.HostPolicy
	Sets      map[SetID]map[Member]struct{}
	Chains    map[ChainID]Chain
	Endpoints map[string]Endpoint // by interface
}

// NewProgram makes an empty Program.
func NewProgram() *Program {
	return &Program{Sets: map[SetID]map[Member]struct{}{}, Chains: map[ChainID]Chain{}, Endpoints: map[string]Endpoint{}}
}

// Apply applies a delta in its order. The error says which step would have left a rule
// that names what is not there, or changed what is not as the delta says; the Program is
// then not to be used any more.
func (p *Program) Apply(d *Delta) error {
	if d.Host != nil {
		p.Host = *d.Host
	}
	for _, s := range d.NewSets {
		if _, there := p.Sets[s.ID]; there {
			return fmt.Errorf("set %s: made twice", s.ID)
		}
		m := make(map[Member]struct{}, len(s.Members))
		for _, x := range s.Members {
			m[x] = struct{}{}
		}
		if len(m) != len(s.Members) {
			return fmt.Errorf("set %s: a member is there twice", s.ID)
		}
		p.Sets[s.ID] = m
	}
	for _, c := range d.ChangedSets {
		if err := p.changeSet(c); err != nil {
			return err
		}
	}
	for _, c := range d.Chains {
		if err := p.namedSets(&c); err != nil {
			return err
		}
		p.Chains[c.ID] = c
	}
	for _, e := range d.Endpoints {
		if err := p.namedChains(&e); err != nil {
			return err
		}
		p.Endpoints[e.Interface] = e
	}
	for _, i := range d.GoneEndpoints {
		if _, there := p.Endpoints[i]; !there {
			return fmt.Errorf("interface %s: removed and was not there", i)
		}
		delete(p.Endpoints, i)
	}
	for _, id := range d.GoneChains {
		if _, there := p.Chains[id]; !there {
			return fmt.Errorf("chain %s: removed and was not there", id)
		}
		delete(p.Chains, id)
	}
	for _, id := range d.GoneSets {
		if _, there := p.Sets[id]; !there {
			return fmt.Errorf("set %s: removed and was not there", id)
		}
		delete(p.Sets, id)
	}
	return nil
}

// Check looks at the whole: every chain and set that is named is there, and none is there
// that nothing names, but those of policies that are assumed to be needed.
func (p *Program) Check() error {
	for _, c := range p.Chains {
		if err := p.namedSets(&c); err != nil {
			return err
		}
	}
	for _, e := range p.Endpoints {
		if err := p.namedChains(&e); err != nil {
			return err
		}
	}
	named := map[SetID]bool{}
	for _, c := range p.Chains {
		for _, id := range c.Sets() {
			named[id] = true
		}
	}
	for id := range p.Sets {
		if !named[id] {
			return fmt.Errorf("set %s: no chain names it", id)
		}
	}
	return nil
}

func (p *Program) changeSet(c SetChange) error {
	m, there := p.Sets[c.ID]
	if !there {
		return fmt.Errorf("set %s: changed and is not there", c.ID)
	}
	for _, x := range c.Remove {
		if _, there := m[x]; !there {
			return fmt.Errorf("set %s: member %v removed and was not there", c.ID, x)
		}
		delete(m, x)
	}
	for _, x := range c.Add {
		if _, there := m[x]; there {
			return fmt.Errorf("set %s: member %v added and was there", c.ID, x)
		}
		m[x] = struct{}{}
	}
	return nil
}

func (p *Program) namedSets(c *Chain) error {
	for _, id := range c.Sets() {
		if _, there := p.Sets[id]; !there {
			return fmt.Errorf("chain %s: names set %s, which is not there", c.ID, id)
		}
	}
	return nil
}

func (p *Program) namedChains(e *Endpoint) error {
	for _, path := range e.Paths() {
		for _, t := range path.Tiers {
			for _, id := range t.Chains {
				if _, there := p.Chains[id]; !there {
					return fmt.Errorf("interface %s: names chain %s, which is not there", e.Interface, id)
				}
			}
		}
	}
	return nil
}

// Sets lists the sets that the chain's rules name, sorted.
func (c *Chain) Sets() []SetID {
	var out []SetID
	for _, rules := range [2][]Rule{c.IPv4, c.IPv6} {
		for i := range rules {
			for _, e := range [2]*Peer{&rules[i].Src, &rules[i].Dst} {
				out = append(append(append(append(out, e.In...), e.NotIn...), e.InPort...), e.NotInPort...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Paths lists the endpoint's paths, all seven.
func (e *Endpoint) Paths() [7]*Path {
	return [7]*Path{&e.Ingress, &e.Egress, &e.ForwardIngress, &e.ForwardEgress, &e.UntrackedIngress, &e.UntrackedEgress, &e.PreDNAT}
}
