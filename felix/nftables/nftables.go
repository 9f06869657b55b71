// Package nftables owns policy in the kernel where nftables is asked for: the table
// "causeway" of family inet, all of it, and nothing else.
//
// The table holds base chains around the places where services are translated, a chain of
// each policy and direction, chains of each endpoint, which verdict maps find by the
// interface's name whatever their number, and the sets that rules ask. What a delta changes
// goes into the kernel as one transaction: a packet meets the rules and sets of before or of
// after (I2), and only what differs is written (I8). One more leads pods that had no chains to
// theirs, once they stand. nft(8) does it, by knftables; where only members of sets and maps change,
// as for a CNI ADD, netlink does it alone.
//
// The kernel is read over netlink, at the start, after somebody else has changed the table,
// and now and then. In between what we wrote is what stands there: each rule carries the
// digest of its text in its comment, and each transaction a number that tells it from others'.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// TableName is the table, of family inet, that is ours.
const TableName = "causeway"

// Prefix begins the names of workloads' interfaces unless Config.Workloads says otherwise.
const Prefix = "cali"

// Config says what a Policy works with.
type Config struct {
	Log *slog.Logger // required
	// Workloads begins the names of workloads' interfaces, and of no other. Optional: Prefix.
	Workloads string
	// Marks are the bits to use. Optional: those of policy.DefaultMarkMask.
	Marks policy.Marks
	// Known are interfaces of workloads that an earlier agent made rules for: those stay until a
	// delta has the endpoint, or InSync. Other workloads' interfaces let nothing pass until then. Host
	// endpoints stay as they are until InSync. Optional.
	Known []string
	// Guarded are those of Known for whom rules of an earlier agent stand that brought them into the
	// kernel by other means, iptables: what those let pass passes here, too, until a delta has the
	// endpoint, or InSync. Those rules are to stay until then. Optional.
	Guarded []string
	// Kernel is where the table stands. Optional: a Host of the network namespace that Run is called in.
	Kernel Kernel
	// Healed is called when the table is again as it should be that somebody else had changed: what it
	// was to keep out may have come in meanwhile. It must not wait. Optional.
	Healed func()
	// Resync is how often the table is compared with what is wanted without being asked for;
	// default as in package reconcile.
	Resync time.Duration
}

// Policy brings policy into the kernel. Its methods may be called from anywhere; Run does
// the work. From Run on, before the first delta, workloads that are not Known let nothing pass.
type Policy struct {
	log    *slog.Logger
	kernel Kernel
	loop   *reconcile.Loop
	heal   *healer

	mu      sync.Mutex
	pending []*step       // that are not in the kernel yet, in their order
	round   chan struct{} // closed when some are, or a round has failed, and replaced
	once    bool          // a round has ended
	stood   bool          // one has ended well
	err     error         // of the last one

	// rules and table are Run's to change; others read them with mu held.
	rules *ruleset
	table *table
	begun bool // the kernel was read, and the rules are those of an agent that runs

	// Of Run's goroutine.
	due      time.Time     // when what was refused is tried again
	patience time.Duration // what it waited for that
	clumsy   string        // why netlink alone did not do, the last time
	unread   bool          // the last try to read the table failed: the next round begins with it
	changed  bool          // somebody else has changed the table, and it is not healed yet
	healed   func()        // Config.Healed
}

// New makes a Policy. It touches nothing until Run.
func New(cfg Config) (*Policy, error) {
	if cfg.Log == nil {
		return nil, errors.New("nftables: Config.Log is missing")
	}
	if cfg.Workloads == "" {
		cfg.Workloads = Prefix
	}
	if !expressible(cfg.Workloads) {
		return nil, fmt.Errorf("nftables: Config.Workloads is %q; it must be letters and digits", cfg.Workloads)
	}
	if cfg.Marks == (policy.Marks{}) {
		cfg.Marks, _ = policy.NewMarks(policy.DefaultMarkMask)
	}
	if cfg.Kernel == nil {
		cfg.Kernel = NewHost()
	}
	t := newTable()
	p := &Policy{
		log: cfg.Log.With("reconciler", "nftables"), kernel: cfg.Kernel, healed: cfg.Healed, round: make(chan struct{}),
		table: t, rules: newRuleset(dialect{cfg.Marks}, t, cfg.Workloads, cfg.Known, cfg.Guarded),
	}
	p.loop = (&reconcile.Loop{Name: "nftables", Log: cfg.Log, Apply: p.apply, Resync: cfg.Resync}).Init()
	p.heal = &healer{every: time.Second, poke: p.loop.PokeResync}
	return p, nil
}

func (p *Policy) String() string { return "nftables" }

// Apply has a delta brought into the kernel after all before it. It does not change it; nor
// may anybody else from then on.
func (p *Policy) Apply(d *policy.Delta) {
	if !d.Empty() {
		p.add(step{delta: d})
	}
}

// InSync says that all endpoints and policies that were there at the start have been
// applied: what an earlier agent left goes, and host endpoints come into force.
func (p *Policy) InSync() { p.add(step{synced: true}) }

// SetEncapsulation says which encapsulated packets of nodes host endpoints let pass, in
// each family. Who may send them felix/encapguard asks.
func (p *Policy) SetEncapsulation(v4, v6 model.EncapGuard) {
	p.add(step{guards: &[2]model.EncapGuard{{IPIP: v4.IPIP, VXLANPort: v4.VXLANPort}, {VXLANPort: v6.VXLANPort}}})
}

func (p *Policy) add(s step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending = append(p.pending, &s)
	p.loop.Poke()
}

// Run brings deltas into the kernel and keeps the table as it should be until ctx is done.
// It may be called once.
func (p *Policy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { p.watch(ctx) })
	defer wg.Wait()
	defer p.heal.stop()
	return p.loop.Run(ctx)
}

// apply is one round. Light steps come first, and those that wait for them learn of it at once.
func (p *Policy) apply(ctx context.Context, resync bool) error {
	p.mu.Lock()
	seen := slices.Clone(p.pending)
	var light []*step
	if p.begun {
		light = p.rules.ahead(seen)
	}
	p.mu.Unlock()
	if len(light) > 0 {
		_ = p.bring(ctx, light) // what is wrong is wrong below, too
	}
	if again := p.retry(); resync || again || p.unread || !p.begun {
		p.unread = true
		if err := p.read(ctx); err != nil {
			p.ended(ctx, nil, err, seen...)
			return err
		}
	}
	p.mu.Lock()
	rest := slices.Clone(p.pending)
	p.mu.Unlock()
	err := p.bring(ctx, rest)
	if ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(err, p.table.refusals(nil))
}

// bring takes in steps, all at once, and brings the kernel there.
func (p *Policy) bring(ctx context.Context, steps []*step) error {
	p.mu.Lock()
	if !p.begun {
		p.rules.begin()
		p.begun = true
	}
	for _, s := range steps {
		switch {
		case s.delta != nil:
			p.rules.apply(s.delta)
		case s.synced:
			p.rules.inSync()
		default:
			p.rules.encapsulation(*s.guards)
		}
	}
	p.mu.Unlock()
	err := p.write(ctx)
	if err == nil && p.changed {
		p.changed = false
		if p.healed != nil {
			p.healed()
		}
	}
	p.ended(ctx, steps, err)
	return err
}

// ended tells those that wait what has become of the steps that were taken in, or that none could be.
func (p *Policy) ended(ctx context.Context, steps []*step, err error, tried ...*step) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.once, p.stood = err, true, p.stood || err == nil
	for _, s := range steps {
		s.done = true
	}
	for _, s := range tried {
		s.tried = true
	}
	p.pending = slices.DeleteFunc(p.pending, func(s *step) bool { return s.done })
	close(p.round)
	p.round = make(chan struct{})
}

// Waits before what was refused is tried again: the first, and the longest.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// retry reports whether it is time to try again what was refused, and has it tried.
func (p *Policy) retry() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.table.refused) == 0 {
		p.patience = 0
		return false
	}
	if time.Now().Before(p.due) {
		return false
	}
	p.patience = min(max(2*p.patience, firstRetry), lastRetry)
	p.due = time.Now().Add(p.patience)
	p.table.retry()
	return true
}

// read learns what stands in the kernel.
func (p *Policy) read(ctx context.Context) error {
	now, err := p.kernel.Read(ctx)
	if err != nil {
		return fmt.Errorf("read table inet %s: %w", TableName, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := p.table.see(now)
	p.unread = false
	if p.begun && len(changed) > 0 {
		p.changed = true
		p.log.Info("the table is not as it was left", "what", changed)
	}
	return nil
}

// tries bounds how often one round writes: for somebody else's changes that come between,
// and for each object that the kernel refuses.
const tries = 50

// write brings the kernel from what stands there to what is wanted. An object that is
// refused costs itself only: a chain drops, a member is left out, until it changes or the next resync.
func (p *Policy) write(ctx context.Context) error {
	for {
		more, err := p.writePlan(ctx)
		if err != nil || !more {
			return err
		}
	}
}

// writePlan brings one transaction into the kernel, and says whether another one must follow.
func (p *Policy) writePlan(ctx context.Context) (more bool, err error) {
	for n := range tries {
		p.mu.Lock()
		plan := p.table.plan(p.kernel.NewTransaction())
		p.mu.Unlock()
		if plan == nil {
			return false, nil
		}
		if err = p.transact(ctx, plan); err == nil {
			p.mu.Lock()
			p.table.stands(plan)
			p.mu.Unlock()
			return len(plan.held) > 0, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		// What we take to be there may not be there any more.
		if err2 := p.read(ctx); err2 != nil {
			return false, errors.Join(err, err2)
		}
		if n == 0 {
			continue
		}
		who, ok := plan.culprit(err)
		if !ok {
			break
		}
		p.mu.Lock()
		p.table.refuse(who, err)
		p.mu.Unlock()
	}
	return false, fmt.Errorf("write table inet %s: %w", TableName, err)
}

// transact brings a plan into the kernel: without nft where that can be. What the kernel
// refuses so goes to nft as well, which says what it is about.
func (p *Policy) transact(ctx context.Context, plan *plan) error {
	if !plan.edits() {
		return p.kernel.Run(ctx, plan.tx)
	}
	err := p.kernel.Edit(ctx, plan.members)
	if err == nil {
		p.clumsy = ""
		return nil
	}
	if s := err.Error(); s != p.clumsy && ctx.Err() == nil {
		p.clumsy = s
		p.log.Warn("members of sets are not to be changed over netlink; nft tries", "error", err)
	}
	return p.kernel.Run(ctx, plan.tx)
}

// Wait blocks until all that was applied before the call and decides on the interfaces' packets is in the
// kernel, and what holds before. Its error says what of their rules and sets is not, and why; that
// is retried nevertheless. Without interfaces it means everything. Only Run makes it come true.
func (p *Policy) Wait(ctx context.Context, interfaces ...string) error {
	p.mu.Lock()
	var want []*step
	for _, iface := range interfaces {
		want = append(want, p.rules.concern(p.pending, iface)...)
	}
	if len(interfaces) == 0 {
		want = slices.Clone(p.pending)
	}
	for !p.once || slices.ContainsFunc(want, func(s *step) bool { return !s.done && !s.tried }) {
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
	if p.err != nil {
		return fmt.Errorf("policy: %w", p.err)
	}
	if len(interfaces) == 0 {
		return p.table.refusals(nil)
	}
	var errs []error
	for _, iface := range interfaces {
		ep, ok := p.rules.endpoints[iface]
		if !ok {
			errs = append(errs, fmt.Errorf("policy: interface %s is no endpoint's", iface))
			continue
		}
		var needs map[string]bool
		if len(p.table.refused) > 0 {
			needs = p.rules.needs(&ep)
		}
		if err := errors.Join(p.rules.unsayable[iface], p.table.refusals(needs)); err != nil {
			errs = append(errs, fmt.Errorf("policy: %s: %w", ep.ID, err))
		}
	}
	return errors.Join(errs...)
}

// Ready says why the table has never been brought into the kernel since the start; nil once it was. What the
// kernel refuses of it, and whatever comes after, is no matter of Ready.
func (p *Policy) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.stood:
		return nil
	case p.err != nil:
		return fmt.Errorf("policy: %w", p.err)
	}
	return fmt.Errorf("policy: table inet %s is not in the kernel yet", TableName)
}

// Status is what a Policy says about itself.
type Status struct {
	Endpoints, Policies int   // wanted; a policy counts once for each direction
	Chains, Sets        int   // in the kernel
	Waiting             int   // steps that are not in the kernel yet
	Known               int   // interfaces whose rules are still an earlier agent's
	Healed              int   // how often somebody else's change to the table was seen
	Err                 error // why the table is not as wanted
}

// Status returns the state.
func (p *Policy) Status() Status {
	healed := p.heal.seen()
	p.mu.Lock()
	defer p.mu.Unlock()
	return Status{
		Endpoints: len(p.rules.endpoints), Policies: len(p.rules.chains), Chains: len(p.table.actual.chains), Sets: len(p.table.actual.sets),
		Waiting: len(p.pending), Known: len(p.rules.kept), Healed: healed, Err: errors.Join(p.err, p.table.refusals(nil)),
	}
}

// watch listens for changes that others make, and has them undone.
func (p *Policy) watch(ctx context.Context) {
	const again = time.Second
	failing := ""
	for ctx.Err() == nil {
		err := p.kernel.Watch(ctx, p.loop.PokeResync, func(tx Change) {
			p.mu.Lock()
			ours := slices.ContainsFunc(tx.Numbers, p.table.ours)
			p.mu.Unlock()
			if !ours {
				p.heal.drift()
			}
		})
		if ctx.Err() != nil {
			return
		}
		if s := fmt.Sprint(err); s != failing {
			failing = s
			p.log.Warn("cannot listen for changes that others make to the table; the resync finds them", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// healer asks for resyncs when somebody else has changed the table: at once, but not all
// the time, so that we do not race somebody who undoes our changes as we undo theirs.
type healer struct {
	every time.Duration
	poke  func()

	mu    sync.Mutex
	last  time.Time
	timer *time.Timer
	count int
}

func (h *healer) drift() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	if h.timer != nil {
		return // it comes
	}
	wait := h.every - time.Since(h.last)
	if h.last.IsZero() || wait <= 0 {
		h.last = time.Now()
		h.poke()
		return
	}
	h.timer = time.AfterFunc(wait, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.timer, h.last = nil, time.Now()
		h.poke()
	})
}

func (h *healer) seen() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

func (h *healer) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
}
