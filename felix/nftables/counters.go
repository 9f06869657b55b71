package nftables

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
)

// counted is a rule as it is counted.
type counted struct {
	chain  policy.ChainID
	index  int
	action policy.Action
	family policy.Family
}

// Counters reads how much the rules of policies met, sorted by chain, index, action and
// family. A rule that stands in the kernel as several counts as one. Rules that are not there
// yet, or no more wanted, are left out. A policy that changes counts from zero.
func (p *Policy) Counters(ctx context.Context) ([]policy.Counter, error) {
	p.mu.Lock()
	known := p.rules.counted()
	p.mu.Unlock()
	sums := map[counted]*policy.Counter{}
	err := p.kernel.Count(ctx, func(chain, comment string, packets, bytes uint64) {
		c, ok := known[[2]string{chain, comment[:min(len(comment), digestLen)]}]
		if !ok {
			return
		}
		if sums[c] == nil {
			sums[c] = &policy.Counter{Chain: c.chain, Index: c.index, Action: c.action, Family: c.family}
		}
		sums[c].Packets += packets
		sums[c].Bytes += bytes
	})
	if err != nil {
		return nil, fmt.Errorf("counters of table inet %s: %w", TableName, err)
	}
	out := make([]policy.Counter, 0, len(sums))
	for _, c := range sums {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b policy.Counter) int {
		return cmp.Or(a.Chain.Compare(b.Chain), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Family, b.Family))
	})
	return out, nil
}

// counted says which rule of policy each rule in the kernel comes of, by its chain and digest.
func (s *ruleset) counted() map[[2]string]counted {
	out := map[[2]string]counted{}
	for id, c := range s.chains {
		for _, x := range []struct {
			name   string
			rules  []policy.Rule
			family policy.Family
		}{{s.policyChain(id), c.IPv4, policy.IPv4}, {s.chain6(id), c.IPv6, policy.IPv6}} {
			for i := range x.rules {
				for _, made := range s.dialect.rules(nil, id, x.rules[i:i+1], x.family) {
					out[[2]string{x.name, made.digest()}] = counted{id, x.rules[i].Index, x.rules[i].Action, x.family}
				}
			}
		}
	}
	return out
}
