package iptables

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
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
//
// Chains hold no addresses of workloads: those are members of two sets (role), so that to attach a
// workload whose chains were made ahead, or one that no policy selects, changes sets alone. Sets are
// declared as soon as Apply is called, and not when the rules of deltas before are written: more in
// a set that no rule names yet does nothing, and who waits for sets waits for no program.
type Policy struct {
	log      *slog.Logger
	sets     *ipset.Reconciler
	owner    string
	prefix   string // begins the names of workloads' interfaces, and of no other
	families []*policyFamily

	poke chan struct{}

	mu      sync.Mutex
	queue   []policyStep
	flight  []policyStep     // taken out of the queue and not done
	put     uint64           // steps put into the queue
	done    uint64           // and taken into the kernel, or refused by it
	round   chan struct{}    // closed when done grows, and replaced
	unready map[string]error // sets that are not as wanted
	setsErr error

	members   *membership
	endpoints map[string]*placed        // by interface, as last applied
	chains    map[policy.ChainID]uint64 // the step that last changed a policy's chain
	frame     uint64                    // the step that last changed what every workload needs
	gone      map[string]uint64         // sets given up → the step whose rules name them no more
}

// placed is an endpoint and the step that last changed its own rules.
type placed struct {
	policy.Endpoint
	step uint64
}

// policyFamily is one family's rules. rules and mangle are guarded by Policy.mu.
type policyFamily struct {
	to     *Reconciler
	rules  *ruleset
	mangle map[string]Chain // all of table mangle's
}

type policyStep struct {
	begin   bool // the first: what holds before any delta
	delta   *policy.Delta
	touched []string // sets that were declared for it
	synced  bool
	guards  map[Family]model.EncapGuard
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
		log: cfg.Log.With("reconciler", "policy"), sets: cfg.Sets, owner: cfg.SetOwner, prefix: cfg.Workloads,
		poke: make(chan struct{}, 1), round: make(chan struct{}), unready: map[string]error{},
		members: newMembership(cfg.Known), endpoints: map[string]*placed{}, chains: map[policy.ChainID]uint64{}, gone: map[string]uint64{},
	}
	first := policyStep{begin: true}
	for _, r := range cfg.Rules {
		f := &policyFamily{to: r, rules: newRuleset(dialect{r.family, cfg.Marks}, cfg.Workloads, cfg.Known), mangle: map[string]Chain{}}
		if !r.declared(Raw) {
			r.Set(Raw, ReversePath(cfg.Workloads))
		}
		r.Set(Filter, TableState{})
		f.write(f.rules.begin())
		p.families = append(p.families, f)
		for _, m := range roles {
			set := ipset.Set{Name: memberSet(r.family, m), Type: ipset.HashNetIface, Family: ipset.Family(r.family), Adopt: p.members.adopted.of(m)}
			cfg.Sets.Replace(set)
			first.touched = append(first.touched, set.Name)
		}
	}
	// Rules that name these sets come once they are there.
	p.add(first)
	p.frame = p.put
	return p, nil
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
// longer the caller's. It does not block.
func (p *Policy) Apply(d *policy.Delta) {
	if d.Empty() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Sets of policies before the addresses of workloads: a member lets its workload send.
	touched := p.declare(d)
	p.add(policyStep{delta: d, touched: append(touched, p.update(p.place(d))...)})
}

// InSync says that all endpoints and policies that were there at the start have been
// applied: what an earlier agent left goes, and host endpoints come into force.
func (p *Policy) InSync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(policyStep{synced: true, touched: p.update(p.members.inSync())})
	p.frame = p.put
	p.sets.InSync(p.owner)
}

// SetEncapsulation says which encapsulated packets of nodes host endpoints let pass, in each
// family. Who may send them EncapGuard asks.
func (p *Policy) SetEncapsulation(v4, v6 model.EncapGuard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(policyStep{guards: map[Family]model.EncapGuard{IPv4: v4, IPv6: v6}})
}

// add is called with mu held.
func (p *Policy) add(s policyStep) {
	p.queue = append(p.queue, s)
	p.put++
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// place notes which rules the next step, which is d's, changes, and returns how workloads' addresses change
// in the sets. It is called with mu held.
func (p *Policy) place(d *policy.Delta) (edits []memberEdit) {
	n := p.put + 1
	if d.Host != nil {
		p.frame = n
	}
	for i := range d.Chains {
		p.chains[d.Chains[i].ID] = n
	}
	for _, id := range d.GoneChains {
		delete(p.chains, id)
	}
	for i := range d.Endpoints {
		ep := &d.Endpoints[i]
		old, step := p.endpoints[ep.Interface], n
		switch {
		case !strings.HasPrefix(ep.Interface, p.prefix):
		case unruled(ep):
			step = 0 // it has no rules of its own
		case old != nil && sameRules(&old.Endpoint, ep):
			step = old.step
		}
		p.endpoints[ep.Interface] = &placed{*ep, step}
		if strings.HasPrefix(ep.Interface, p.prefix) {
			edits = append(edits, p.members.place(ep, n)...)
		}
	}
	for _, iface := range d.GoneEndpoints {
		delete(p.endpoints, iface)
		if strings.HasPrefix(iface, p.prefix) {
			edits = append(edits, p.members.vacate(iface)...)
		}
	}
	return edits
}

// sameRules reports whether two states of one workload's endpoint have the same chains.
func sameRules(a, b *policy.Endpoint) bool {
	granted := func(e *policy.Endpoint) bool { return len(own(e)) != len(e.Sources) }
	return a.ID == b.ID && !unruled(a) && !unruled(b) && a.Ingress.Equal(&b.Ingress) && a.Egress.Equal(&b.Egress) &&
		(!granted(a) && !granted(b) || slices.Equal(a.Sources, b.Sources) && slices.Equal(a.Addresses, b.Addresses))
}

// update declares changes of workloads' addresses, and returns the sets. It is called with mu held, so
// that edits come in the order in which membership made them.
func (p *Policy) update(edits []memberEdit) (touched []string) {
	for _, f := range p.families {
		for _, r := range roles {
			var add, remove []ipset.Member
			for _, e := range edits {
				if e.role == r {
					add, remove = f.members(add, e.iface, e.add), f.members(remove, e.iface, e.remove)
				}
			}
			if len(add)+len(remove) > 0 {
				name := memberSet(f.rules.family, r)
				p.sets.Update(name, add, remove)
				touched = append(touched, name)
			}
		}
	}
	return touched
}

// members appends those of the family.
func (f *policyFamily) members(to []ipset.Member, iface string, addrs []netip.Addr) []ipset.Member {
	for _, a := range addrs {
		if f.rules.family.of(a) {
			to = append(to, ipset.Member{Prefix: netip.PrefixFrom(a, a.BitLen()), Interface: iface})
		}
	}
	return to
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
			put := p.put
			p.flight, p.queue = p.queue, nil
			p.mu.Unlock()
			p.step(ctx, p.flight, put)
			if ctx.Err() != nil {
				return nil
			}
			p.mu.Lock()
			p.done, p.flight = put, nil
			close(p.round)
			p.round = make(chan struct{})
			p.mu.Unlock()
		case <-retry.C:
			p.askSets(ctx)
			p.leave(ctx, p.done)
		}
		retry.Reset(retrySets)
	}
}

// step brings what has gathered into the kernel, all at once. upTo counts its last step.
func (p *Policy) step(ctx context.Context, steps []policyStep, upTo uint64) {
	var names []string
	for _, s := range steps {
		names = append(names, s.touched...)
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
			case s.begin:
				f.rules.start(e, p.members.adopted.open)
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
	p.leave(ctx, upTo)
}

// leave takes away what the rules of steps up to that one let go of: sets that none of them names,
// and workloads from the set of a role that is theirs no more. An open workload that policies
// select now has met none of its new chains so far, and meets all of them at once from here on. While a table
// cannot be written it stays as it was.
func (p *Policy) leave(ctx context.Context, upTo uint64) {
	written := true
	for _, f := range p.families {
		s := f.to.Status()
		written = written && s.Backend != Auto && s.Tables[Filter].Err == nil
	}
	p.mu.Lock()
	var gone, left []string
	for name, n := range p.gone {
		if n <= upTo {
			gone = append(gone, name)
			delete(p.gone, name)
			delete(p.unready, name)
		}
	}
	if len(gone) > 0 {
		p.sets.Delete(gone...)
	}
	if written {
		left = p.update(p.members.settle(upTo))
	}
	p.mu.Unlock()
	if len(left) > 0 {
		p.await(ctx, left)
	}
}

// await waits for sets, and notes what is wrong with them: rules that need one that is not
// there are refused by the kernel, and come when it does.
func (p *Policy) await(ctx context.Context, names []string) {
	err := p.sets.Wait(ctx, names...)
	if ctx.Err() != nil {
		return
	}
	bad := p.sets.Status().Errs
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		delete(p.unready, name)
		if bad[name] != nil {
			p.unready[name] = bad[name]
		}
	}
	switch {
	case err != nil:
		p.setsErr = err
		p.log.Warn("sets of policy are not as wanted", "error", err)
	case len(p.unready) == 0:
		p.setsErr = nil
	}
}

// askSets has rules that were refused tried again once their sets are there: those that did not come, and
// those of workloads' addresses, which somebody may have destroyed with the rules that name them.
func (p *Policy) askSets(ctx context.Context) {
	p.mu.Lock()
	names := slices.Collect(maps.Keys(p.unready))
	p.mu.Unlock()
	for _, f := range p.families {
		refused := f.to.Status().Tables[Filter].Refused
		if refused["chain "+toWorkload] != nil || refused["chain "+fromWorkload] != nil {
			names = append(names, memberSet(f.rules.family, opened), memberSet(f.rules.family, source))
		}
	}
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

// declare declares what a delta, which is the next step, says of sets, but those that go. It is
// called with mu held.
func (p *Policy) declare(d *policy.Delta) (touched []string) {
	var sets []ipset.Set
	for _, s := range d.NewSets {
		if p.serves(s.Family) {
			name := setName(s.ID)
			sets = append(sets, ipset.Set{Name: name, Type: setTypes[s.Kind], Family: ipset.Family(s.Family), Members: members(s.Members)})
			touched = append(touched, name)
			delete(p.gone, name)
		}
	}
	if len(sets) > 0 {
		p.sets.Replace(sets...)
	}
	for _, c := range d.ChangedSets {
		if p.serves(c.Family) {
			p.sets.Update(setName(c.ID), members(c.Add), members(c.Remove))
			touched = append(touched, setName(c.ID))
		}
	}
	for _, id := range d.GoneSets {
		p.gone[setName(id)] = p.put + 1
	}
	return touched
}

func members(in []policy.Member) []ipset.Member {
	out := make([]ipset.Member, len(in))
	for i, m := range in {
		out[i] = ipset.Member{Prefix: m.Prefix, Protocol: m.Protocol, Port: m.Port}
	}
	return out
}
