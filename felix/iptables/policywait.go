package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/policy"
)

// Wait blocks until what was applied before the call is in the kernel: all of it, or with
// interfaces the sets, and the rules that decide on their packets. It does not wait for steps
// that write other rules. Its error says what of the interfaces' rules and sets is not as wanted, and
// why; that is retried nevertheless. Without interfaces it means everything. Only Run and
// the Reconcilers' make it come true.
func (p *Policy) Wait(ctx context.Context, interfaces ...string) error {
	p.mu.Lock()
	if len(interfaces) > 0 {
		defer p.mu.Unlock()
		return p.waitFor(ctx, interfaces)
	}
	defer p.mu.Unlock()
	if err := p.reach(ctx, p.put); err != nil {
		return err
	}
	errs := []error{p.setsErr}
	for _, f := range p.families {
		errs = append(errs, f.to.Status().Err)
	}
	return errors.Join(errs...)
}

// reach waits until steps up to that one are done. It is called with mu held, and lets it go meanwhile.
func (p *Policy) reach(ctx context.Context, step uint64) error {
	for p.done < step {
		round := p.round
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			p.mu.Lock()
			return fmt.Errorf("policy: %w", ctx.Err())
		case <-round:
		}
		p.mu.Lock()
	}
	return nil
}

// waitFor is called with mu held, and lets it go while it waits.
func (p *Policy) waitFor(ctx context.Context, interfaces []string) error {
	var step uint64
	var eps []*placed // as they are now: what comes later is not waited for
	var errs []error
	for _, iface := range interfaces {
		ep := p.endpoints[iface]
		if ep == nil {
			errs = append(errs, fmt.Errorf("policy: interface %s is no endpoint's", iface))
			continue
		}
		eps, step = append(eps, ep), max(step, p.needs(ep))
	}
	if len(eps) == 0 {
		return errors.Join(errs...)
	}
	var sets, others []string
	for _, s := range slices.Concat(p.flight, p.queue) {
		others = append(others, s.touched...)
	}
	for _, ep := range eps {
		if strings.HasPrefix(ep.Interface, p.prefix) {
			for _, f := range p.families {
				sets = append(sets, memberSet(f.rules.family, roleOf(&ep.Endpoint)))
			}
		}
	}
	p.mu.Unlock()
	// What is wrong with sets of others' rules is theirs to say (I6).
	if len(others) > 0 {
		_ = p.sets.Wait(ctx, others...)
	}
	if len(sets) > 0 {
		if err := p.sets.Wait(ctx, sets...); err != nil {
			errs = append(errs, fmt.Errorf("policy: addresses of interfaces: %w", err))
		}
	}
	bad := p.sets.Status().Errs
	p.mu.Lock()
	if err := p.reach(ctx, step); err != nil {
		return err
	}
	for _, ep := range eps {
		var wrong []error
		for _, f := range p.families {
			wrong = append(wrong, f.wrong(&ep.Endpoint), f.lacks(&ep.Endpoint, bad))
		}
		if _, still := p.members.leaving[ep.Interface]; still && p.endpoints[ep.Interface] == ep && !unruled(&ep.Endpoint) {
			wrong = append(wrong, errors.New("its rules are not in force yet; what held before does"))
		}
		if err := errors.Join(wrong...); err != nil {
			errs = append(errs, fmt.Errorf("policy: %s: %w", ep.ID, err))
		}
	}
	return errors.Join(errs...)
}

// needs is the step with which the last of the rules came that decide on an endpoint's packets. It is
// called with mu held.
func (p *Policy) needs(ep *placed) uint64 {
	if !strings.HasPrefix(ep.Interface, p.prefix) {
		return p.put // host endpoints share chains
	}
	step := max(p.frame, ep.step)
	for _, path := range [...]*policy.Path{&ep.Ingress, &ep.Egress} {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				step = max(step, p.chains[id])
			}
		}
	}
	return step
}

// wrong says what of an endpoint's rules the kernel has not taken.
func (f *policyFamily) wrong(ep *policy.Endpoint) error {
	s := f.to.Status()
	if s.Backend == Auto {
		return s.Err // not even begun
	}
	trouble := false
	for _, ts := range s.Tables {
		trouble = trouble || ts.Err != nil || len(ts.Refused) > 0
	}
	if !trouble { // nothing to name: this is on the way of every ADD
		return nil
	}
	var errs []error
	for t, chains := range f.rules.needs(ep) {
		ts := s.Tables[t]
		errs = append(errs, ts.Err)
		for _, c := range chains {
			if err := ts.Refused["chain "+c]; err != nil {
				errs = append(errs, fmt.Errorf("%s: table %s: chain %s: %w", f.to, t, c, err))
			}
		}
		for o, err := range ts.Refused {
			if strings.HasPrefix(o, "hooks") {
				errs = append(errs, fmt.Errorf("%s: table %s: %s: %w", f.to, t, o, err))
			}
		}
	}
	return errors.Join(errs...)
}

// lacks says which sets that an endpoint's rules need are not as wanted.
func (f *policyFamily) lacks(ep *policy.Endpoint, bad map[string]error) error {
	if len(bad) == 0 {
		return nil
	}
	found := map[string]error{}
	for _, path := range ep.Paths() {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				c := f.rules.chains[id]
				for _, set := range c.Sets() {
					if err := bad[setName(set)]; err != nil {
						found[setName(set)] = fmt.Errorf("%s: set %s: %w", id, setName(set), err)
					}
				}
			}
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(found)) {
		errs = append(errs, found[name])
	}
	return errors.Join(errs...)
}

// PolicyStatus is what a Policy says about itself.
type PolicyStatus struct {
	Endpoints, Chains int   // wanted
	Waiting           int   // deltas that are not in the kernel yet
	Known             int   // interfaces whose rules are still an earlier agent's
	SetsErr           error // why sets are not as wanted; chains are in Reconciler.Status
}

// Status returns the state.
func (p *Policy) Status() PolicyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.families[0].rules
	return PolicyStatus{Endpoints: len(r.endpoints), Chains: len(r.chains), Waiting: int(p.put - p.done), Known: len(r.kept), SetsErr: p.setsErr}
}

// Guards names those of workloads' interfaces that have rules of policy in the kernel, an earlier
// agent's before there is a Policy: chains of their own, or both a place among the open ones and the rules
// that let those pass.
func (r *Reconciler) Guards(ctx context.Context, interfaces []string) ([]string, error) {
	text, err := r.kernel.Save(ctx, Filter)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	open := map[string]bool{}
	if name := " " + memberSet(r.family, opened) + " "; bytes.Contains(text, []byte(name+"dst,dst ")) && bytes.Contains(text, []byte(name+"src,src ")) {
		if open, err = r.open(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
	}
	var out []string
	for _, name := range interfaces {
		if open[name] || bytes.Contains(text, []byte("\n:"+ingressChain(name)+" ")) {
			out = append(out, name)
		}
	}
	return out, nil
}

// open lists the interfaces that are open in either family. Only the host has sets.
func (r *Reconciler) open(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	h, ok := r.kernel.(interface{ in(func() error) error })
	if !ok {
		return out, nil
	}
	err := h.in(func() error {
		sets := ipset.NewHost()
		defer sets.Close()
		for _, f := range []Family{IPv4, IPv6} {
			err := sets.List(ctx, memberSet(f, opened), func(ipset.Header) {}, func(m ipset.Listed) { out[m.Interface] = true })
			if err != nil && !errors.Is(err, ipset.ErrNotExist) {
				return fmt.Errorf("ipset %s: %w", memberSet(f, opened), err)
			}
		}
		return nil
	})
	return out, err
}
