package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Standing is a policy in force, as who looks at the node sees it.
type Standing struct {
	ID        model.PolicyID
	Tier      string
	TierOrder float64 // math.Inf(1): the last
	Order     float64 // within the tier; math.Inf(1): the last
	Locals    int     // endpoints of this node that it holds for, without those that are only expected
	Layer     Layer
	// Holds says which directions it holds for, by Direction, and Rules what its rules do:
	// a staged policy's, what they would do.
	Holds [2]bool
	Rules [2][]Action
}

// Policies lists the policies in force, whether they hold for an endpoint of this node or not, in the
// order in which they are asked.
func (e *Engine) Policies() []Standing {
	of := make([]*policy, 0, len(e.policies))
	for _, p := range e.policies {
		if p.now != nil {
			of = append(of, p)
		}
	}
	slices.SortFunc(of, e.comparePolicies)
	out := make([]Standing, len(of))
	for i, p := range of {
		out[i] = Standing{ID: p.id, Tier: p.now.tier, TierOrder: e.tiers[p.now.tier].Order, Order: p.now.order, Locals: p.attached(), Layer: p.now.layer, Holds: p.now.holds}
		for d, rules := range p.now.rules {
			for j := range rules {
				out[i].Rules[d] = append(out[i].Rules[d], rules[j].would)
			}
		}
	}
	return out
}

// attached counts the local endpoints that the policy holds for, without those that are only expected.
func (p *policy) attached() (n int) {
	if p.now == nil {
		return 0
	}
	for g := range p.subject.groups {
		for _, it := range g.items {
			if ep := it.endpoint; p.now.holdsFor(ep) && !ep.expected() {
				n++
			}
		}
	}
	return n
}

// expected is Endpoint.Expected before the next Flush.
func (ep *endpoint) expected() bool {
	return ep.id.Kind == model.EndpointWorkload && len(ep.sources) == 0
}

// Endpoints lists the endpoints of this node as of the last Flush, by interface, without workloads that
// are only expected: nobody has these interfaces. They are the engine's: not to be changed.
func (e *Engine) Endpoints() []Endpoint {
	out := make([]Endpoint, 0, len(e.shown))
	for _, ep := range e.shown {
		if !ep.Expected() {
			out = append(out, *ep)
		}
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return strings.Compare(a.Interface, b.Interface) })
	return out
}

// Addresses are those of an endpoint anywhere, if it is known here.
func (e *Engine) Addresses(id model.PolicyEndpointID) (addrs []netip.Addr, known bool) {
	ep := e.endpoints[id]
	if ep == nil {
		return nil, false
	}
	for _, p := range ep.item.prefixes {
		addrs = append(addrs, p.Addr())
	}
	return addrs, true
}

// Size is how much stands in force as of the last Flush.
type Size struct {
	Endpoints int // without those that are only expected
	Policies  int // with a chain
	Chains    int // of policies, one for each direction
	Sets      int // of one family
	Members   int
}

// Size counts without listing.
func (e *Engine) Size() Size {
	var out Size
	for _, ep := range e.shown {
		if !ep.Expected() {
			out.Endpoints++
		}
	}
	for _, p := range e.policies {
		n := 0
		for _, c := range p.chains {
			if c != nil {
				n++
			}
		}
		out.Chains += n
		out.Policies += min(n, 1)
	}
	for _, s := range e.sets {
		for i := range s.fam {
			switch f := &s.fam[i]; {
			case f.id == "":
			case f.kind == SetNet:
				out.Sets, out.Members = out.Sets+1, out.Members+len(f.shown)
			default:
				out.Sets, out.Members = out.Sets+1, out.Members+len(f.live)
			}
		}
	}
	return out
}
