package iptables

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
)

// Counter is a Kernel that can say how much each rule met.
type Counter interface {
	// Count returns one table as iptables-save -c prints it: each rule after its packets and
	// bytes in brackets.
	Count(ctx context.Context, table Table) ([]byte, error)
}

// Count runs iptables-save -c.
func (h *Host) Count(ctx context.Context, table Table) ([]byte, error) {
	p, _, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = h.in(func() (err error) {
		out, err = save(ctx, p, table, "-c")
		return err
	})
	return out, err
}

// Counters reads how much the rules of policies met, both families and all tables together, sorted
// by chain, index, action and family. A rule that stands in the kernel as several counts as
// one. Rules that are not there yet, or no more wanted, are left out.
func (p *Policy) Counters(ctx context.Context) ([]policy.Counter, error) {
	var out []policy.Counter
	var errs []error
	for _, f := range p.families {
		k, ok := f.to.kernel.(Counter)
		if !ok {
			return nil, errors.New("iptables: this kernel does not count")
		}
		p.mu.Lock()
		known, used := f.rules.counted()
		p.mu.Unlock()
		sums := map[counted]*policy.Counter{}
		for _, t := range used {
			text, err := k.Count(ctx, t)
			if err == nil {
				err = count(text, known, sums, policy.Family(f.rules.family))
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: counters of table %s: %w", f.to, t, err))
			}
		}
		for _, c := range sums {
			out = append(out, *c)
		}
	}
	slices.SortFunc(out, func(a, b policy.Counter) int {
		return cmp.Or(a.Chain.Compare(b.Chain), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Family, b.Family))
	})
	return out, errors.Join(errs...)
}

// counted is a rule as it is counted.
type counted struct {
	chain  policy.ChainID
	index  int
	action policy.Action
}

// counted says which rule of policy each rule in the kernel comes of, by its chain and
// digest, and which tables they stand in.
func (s *ruleset) counted() (known map[[2]string]counted, used []Table) {
	known = map[[2]string]counted{}
	for id, c := range s.chains {
		name := s.policyChain(id)
		if t := layerTable(c.Layer); !slices.Contains(used, t) {
			used = append(used, t)
		}
		if s.translated[id] && !slices.Contains(used, Mangle) {
			used = append(used, Mangle)
		}
		rules := c.IPv4
		if s.family == IPv6 {
			rules = c.IPv6
		}
		for i := range rules {
			for _, made := range s.rule(nil, &rules[i], remark(id, &rules[i])) {
				if l, err := compile(made); err == nil {
					known[[2]string{name, l.digest}] = counted{id, rules[i].Index, rules[i].Action}
				}
			}
		}
	}
	return known, used
}

// count adds up the counters of a saved table.
func count(text []byte, known map[[2]string]counted, sums map[counted]*policy.Counter, f policy.Family) error {
	for l := range bytes.Lines(text) {
		line := string(l)
		if !strings.HasPrefix(line, "[") {
			continue
		}
		numbers, rest, ok := strings.Cut(line[1:], "] -A ")
		packets, size, ok2 := strings.Cut(numbers, ":")
		if !ok || !ok2 {
			return fmt.Errorf("line %.60q is not understood", line)
		}
		chain, spec, _ := strings.Cut(rest, " ")
		if !strings.HasPrefix(chain, "cali-p-") {
			continue
		}
		digest, _ := cutMark(split(strings.TrimSpace(spec)))
		rule, ok := known[[2]string{chain, digest}]
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(packets, 10, 64)
		b, err2 := strconv.ParseUint(size, 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("line %.60q: %w", line, err)
		}
		c := sums[rule]
		if c == nil {
			c = &policy.Counter{Chain: rule.chain, Index: rule.index, Action: rule.action, Family: f}
			sums[rule] = c
		}
		c.Packets += n
		c.Bytes += b
	}
	return nil
}
