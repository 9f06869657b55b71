package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// Policy brings policy into the kernel: chains by way of one Reconciler per family, sets by
// way of felix/ipset. Its methods may be called from anywhere; Run does the work.
//
// The tables filter and mangle are its own: nobody else may call Set for them. Table raw it
// shares with ReversePath and EncapGuard, whose rules stay; it sets the chain
// ReversePathChain and the table's hooks.
//
// What is changed takes the way of policy.Delta: sets that come or grow first, then
// one transaction for all chains of a table, then sets that go. A packet of one endpoint
// meets its old rules or its new ones, never some of both (I2), and only chains that differ
// are written (I8).
type Policy struct {
	log      *slog.Logger
	sets     *ipset.Reconciler
	owner    string
	families []*policyFamily

	poke chan struct{}

	mu      sync.Mutex
	queue   []policyStep
	put     uint64           // steps put into the queue
	done    uint64           // and taken into the kernel, or refused by it
	round   chan struct{}    // closed when done grows, and replaced
	unready map[string]error // sets that are not as wanted
	setsErr error
}

// policyFamily is one family's rules. rules and mangle are guarded by Policy.mu.
type policyFamily struct {
	to     *Reconciler
	rules  *ruleset
	mangle map[string]Chain // all of table mangle's
}

type policyStep struct {
	delta  *policy.Delta
	synced bool
	guards map[Family]model.EncapGuard
}

// PolicyConfig says what a Policy works with.
type PolicyConfig struct {
	Log *slog.Logger // required
	// Rules are the Reconcilers of one or both families. Required: at least one. Whoever
	// runs them may have called Set for tables raw and nat before.
	Rules []*Reconciler
	Sets  *ipset.Reconciler // required
	// SetOwner is who declares the sets, one of ipset.Config.Owners. Required.
	SetOwner string
	// Workloads begins the names of workloads' interfaces, and of no other. Optional: Prefix.
	Workloads string
	// Marks are the bits to use. Optional: those of policy.DefaultMarkMask.
	Marks policy.Marks
	// Known are interfaces of workloads that an earlier agent made rules for: those stay until a
	// delta has the endpoint, or InSync. Other workloads' interfaces let nothing pass until then. Host
	// endpoints stay as they are until InSync. Optional.
	Known []string
}

// NewPolicy makes a Policy and declares what holds before the first delta. Call it before
// the Reconcilers run: then nothing that an earlier agent left is gone in between.
func NewPolicy(cfg PolicyConfig) (*Policy, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("iptables: PolicyConfig.Log is missing")
	case len(cfg.Rules) == 0:
		return nil, errors.New("iptables: PolicyConfig.Rules is empty; it must have a Reconciler")
	case cfg.Sets == nil:
		return nil, errors.New("iptables: PolicyConfig.Sets is missing")
	case cfg.SetOwner == "":
		return nil, errors.New("iptables: PolicyConfig.SetOwner is missing; it must be one of ipset.Config.Owners")
	}
	if cfg.Workloads == "" {
		cfg.Workloads = Prefix
	}
	if cfg.Marks == (policy.Marks{}) {
		cfg.Marks, _ = policy.NewMarks(policy.DefaultMarkMask)
	}
	p := &Policy{
		log: cfg.Log.With("reconciler", "policy"), sets: cfg.Sets, owner: cfg.SetOwner,
		poke: make(chan struct{}, 1), round: make(chan struct{}), unready: map[string]error{},
	}
	for _, r := range cfg.Rules {
		f := &policyFamily{to: r, rules: newRuleset(dialect{r.family, cfg.Marks}, cfg.Workloads, cfg.Known), mangle: map[string]Chain{}}
		if !r.declared(Raw) {
			r.Set(Raw, ReversePath(cfg.Workloads))
		}
		r.Set(Filter, TableState{})
		f.write(f.rules.begin())
		p.families = append(p.families, f)
	}
	return p, nil
}

// Guards names those of workloads' interfaces that have rules of policy in the kernel, an earlier
// agent's before there is a Policy.
func (r *Reconciler) Guards(ctx context.Context, interfaces []string) ([]string, error) {
	text, err := r.kernel.Save(ctx, Filter)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	var out []string
	for _, name := range interfaces {
		if bytes.Contains(text, []byte("\n:"+ingressChain(name)+" ")) {
			out = append(out, name)
		}
	}
	return out, nil
}

// write hands an edit to the Reconciler.
func (f *policyFamily) write(e *edit) {
	for _, t := range []Table{Raw, Mangle, Filter} {
		chains := e.chains[t]
		if t == Mangle {
			if len(chains) == 0 && e.hooks[t] == nil {
				continue
			}
			for name, c := range chains {
				if c == nil {
					delete(f.mangle, name)
				} else {
					f.mangle[name] = *c
				}
			}
			// A hook costs each packet: where no host endpoint needs the table there is none.
			state := TableState{Hooks: f.rules.hooks[t], IfThere: f.rules.adopting || len(f.rules.hooks[t]) == 0}
			if len(state.Hooks) > 0 {
				state.Chains = slices.Collect(maps.Values(f.mangle))
			}
			f.to.Set(t, state)
			continue
		}
		var set []Chain
		var del []string
		for name, c := range chains {
			if c == nil {
				del = append(del, name)
			} else {
				set = append(set, *c)
			}
		}
		if len(set)+len(del) > 0 {
			f.to.Update(t, set, del)
		}
		if hooks := e.hooks[t]; hooks != nil {
			f.to.SetHooks(t, hooks)
		}
	}
}

// Apply has a delta brought into the kernel after all before it. The delta is then no
// longer the caller's.
func (p *Policy) Apply(d *policy.Delta) {
	if !d.Empty() {
		p.add(policyStep{delta: d})
	}
}

// InSync says that all endpoints and policies that were there at the start have been
// applied: what an earlier agent left goes, and host endpoints come into force.
func (p *Policy) InSync() { p.add(policyStep{synced: true}) }

// SetEncapsulation says which encapsulated packets of nodes host endpoints let pass, in each
// family. Who may send them EncapGuard asks.
func (p *Policy) SetEncapsulation(v4, v6 model.EncapGuard) {
	p.add(policyStep{guards: map[Family]model.EncapGuard{IPv4: v4, IPv6: v6}})
}

func (p *Policy) add(s policyStep) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, s)
	p.put++
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// retrySets is how often sets that could not be made are asked about.
const retrySets = 2 * time.Second

// Run brings deltas into the kernel until ctx is done. It may be called once; the
// Reconcilers run beside it.
func (p *Policy) Run(ctx context.Context) error {
	retry := time.NewTimer(retrySets)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.poke:
			p.mu.Lock()
			steps, put := p.queue, p.put
			p.queue = nil
			p.mu.Unlock()
			p.step(ctx, steps)
			if ctx.Err() != nil {
				return nil
			}
			p.mu.Lock()
			p.done = put
			close(p.round)
			p.round = make(chan struct{})
			p.mu.Unlock()
		case <-retry.C:
			p.askSets(ctx)
		}
		retry.Reset(retrySets)
	}
}

// step brings what has gathered into the kernel, all at once.
func (p *Policy) step(ctx context.Context, steps []policyStep) {
	var names, gone []string
	synced := false
	for _, s := range steps {
		synced = synced || s.synced
		if s.delta == nil {
			continue
		}
		touched, left := p.declare(s.delta)
		names = append(names, touched...)
		gone = slices.DeleteFunc(gone, func(n string) bool { return slices.Contains(touched, n) })
		gone = append(gone, left...)
	}
	if synced {
		p.sets.InSync(p.owner)
	}
	if len(names) > 0 {
		slices.Sort(names)
		p.await(ctx, slices.Compact(names))
	}
	p.mu.Lock()
	for _, f := range p.families {
		e := newEdit()
		for _, s := range steps {
			switch {
			case s.delta != nil:
				f.rules.apply(e, s.delta)
			case s.synced:
				f.rules.inSync(e)
			case s.guards != nil:
				f.rules.guard = s.guards[f.rules.family]
				f.rules.hosts(e)
			}
		}
		f.write(e)
	}
	p.mu.Unlock()
	for _, f := range p.families {
		if err := f.to.wait(ctx); err != nil {
			return
		}
	}
	if len(gone) > 0 {
		p.sets.Delete(gone...)
		p.mu.Lock()
		for _, name := range gone {
			delete(p.unready, name)
		}
		p.mu.Unlock()
	}
}

// await waits for sets, and notes what is wrong with them: rules that need one that is not
// there are refused by the kernel, and come when it does.
func (p *Policy) await(ctx context.Context, names []string) {
	err := p.sets.Wait(ctx, names...)
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		delete(p.unready, name)
	}
	p.setsErr = nil
	if err == nil {
		return
	}
	p.setsErr = err
	bad := p.sets.Status().Errs
	for _, name := range names {
		if bad[name] != nil {
			p.unready[name] = bad[name]
		}
	}
	p.log.Warn("sets of policy are not as wanted", "error", err)
}

// askSets has rules that were refused tried again once their sets are there.
func (p *Policy) askSets(ctx context.Context) {
	p.mu.Lock()
	names := slices.Sorted(maps.Keys(p.unready))
	p.mu.Unlock()
	if len(names) == 0 || p.sets.Wait(ctx, names...) != nil {
		return
	}
	p.mu.Lock()
	p.unready, p.setsErr = map[string]error{}, nil
	p.mu.Unlock()
	for _, f := range p.families {
		f.to.Retry()
	}
}

var setTypes = [...]ipset.Type{policy.SetIP: ipset.HashIP, policy.SetNet: ipset.HashNet, policy.SetIPPort: ipset.HashIPPort}

func (p *Policy) serves(f policy.Family) bool {
	return slices.ContainsFunc(p.families, func(x *policyFamily) bool { return uint8(x.rules.family) == uint8(f) })
}

// declare declares what a delta says of sets, but those that go.
func (p *Policy) declare(d *policy.Delta) (touched, gone []string) {
	var sets []ipset.Set
	for _, s := range d.NewSets {
		if p.serves(s.Family) {
			sets = append(sets, ipset.Set{Name: setName(s.ID), Type: setTypes[s.Kind], Family: ipset.Family(s.Family), Members: members(s.Members)})
			touched = append(touched, setName(s.ID))
		}
	}
	p.sets.Replace(sets...)
	for _, c := range d.ChangedSets {
		if p.serves(c.Family) {
			p.sets.Update(setName(c.ID), members(c.Add), members(c.Remove))
			touched = append(touched, setName(c.ID))
		}
	}
	for _, id := range d.GoneSets {
		gone = append(gone, setName(id))
	}
	return touched, gone
}

func members(in []policy.Member) []ipset.Member {
	out := make([]ipset.Member, len(in))
	for i, m := range in {
		out[i] = ipset.Member{Prefix: m.Prefix, Protocol: m.Protocol, Port: m.Port}
	}
	return out
}

// Wait blocks until all that was applied before the call is in the kernel. Its error says
// what of the interfaces' rules and sets is not, and why; that is retried nevertheless.
// Without interfaces it means everything. Only Run and the Reconcilers' make it come true.
func (p *Policy) Wait(ctx context.Context, interfaces ...string) error {
	p.mu.Lock()
	for want := p.put; p.done < want; {
		round := p.round
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("policy: %w", ctx.Err())
		case <-round:
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	if len(interfaces) == 0 {
		errs := []error{p.setsErr}
		for _, f := range p.families {
			errs = append(errs, f.to.Status().Err)
		}
		return errors.Join(errs...)
	}
	var errs []error
	for _, iface := range interfaces {
		for _, f := range p.families {
			ep, ok := f.rules.endpoints[iface]
			if !ok {
				errs = append(errs, fmt.Errorf("policy: interface %s is no endpoint's", iface))
				break
			}
			if err := errors.Join(f.wrong(&ep), p.lacks(f, &ep)); err != nil {
				errs = append(errs, fmt.Errorf("policy: %s: %w", ep.ID, err))
			}
		}
	}
	return errors.Join(errs...)
}

// wrong says what of an endpoint's rules the kernel has not taken.
func (f *policyFamily) wrong(ep *policy.Endpoint) error {
	s := f.to.Status()
	if s.Backend == Auto {
		return s.Err // not even begun
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
			if len(o) > 5 && o[:5] == "hooks" {
				errs = append(errs, fmt.Errorf("%s: table %s: %s: %w", f.to, t, o, err))
			}
		}
	}
	return errors.Join(errs...)
}

// lacks says which sets that an endpoint's rules need are not as wanted.
func (p *Policy) lacks(f *policyFamily, ep *policy.Endpoint) error {
	if len(p.unready) == 0 {
		return nil
	}
	bad := map[string]error{}
	for _, path := range ep.Paths() {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				c := f.rules.chains[id]
				for _, set := range c.Sets() {
					if err := p.unready[setName(set)]; err != nil {
						bad[setName(set)] = fmt.Errorf("%s: set %s: %w", id, setName(set), err)
					}
				}
			}
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		errs = append(errs, bad[name])
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
