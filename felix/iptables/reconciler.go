package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/reconcile"
)

// Reconciler brings one family's iptables to the desired state. Its methods may be called
// from anywhere; Run does the work.
type Reconciler struct {
	family Family
	kernel Kernel
	log    *slog.Logger
	loop   *reconcile.Loop
	resync time.Duration // configured; 0: by what the kernel tells
	mended func()        // Config.Healed

	watching chan struct{} // closed once it is known whether the kernel tells of changes
	heal     *time.Timer   // pokes the loop for drift that came too soon after the last
	// healEvery keeps us from racing somebody who undoes our changes as we undo theirs.
	healEvery time.Duration

	mu        sync.Mutex
	resyncSet time.Duration // SetResync's; 0: resync
	pending   map[Table]*change
	set       map[Table]bool            // tables that Set was called for
	hooked    map[Table]map[string]bool // chains of others that have hooks of ours
	drifted   map[Table]bool            // somebody else changed what is ours
	healed    time.Time                 // when drift last poked the loop
	told      bool                      // the kernel tells of changes
	anew      bool                      // refusals are to be tried again now
	wanted    uint64                    // counts Set, Update, SetHooks and Retry
	done      uint64                    // the value of wanted that the last round took in
	round     chan struct{}             // closed when a round ends, and replaced
	err       error                     // of the last round
	status    Status

	// The rest belongs to the goroutine of Run.
	tables map[Table]*table
}

// New makes the Reconciler of one family. It does nothing until Run.
func New(cfg Config) (*Reconciler, error) {
	switch {
	case cfg.Family != IPv4 && cfg.Family != IPv6:
		return nil, fmt.Errorf("iptables: Config.Family is %d; it must be IPv4 or IPv6", cfg.Family)
	case cfg.Log == nil:
		return nil, errors.New("iptables: Config.Log is missing")
	case cfg.Backend != Auto && cfg.Backend != NFT && cfg.Backend != Legacy:
		return nil, fmt.Errorf("iptables: Config.Backend is %q; it must be %q, %q or empty", cfg.Backend, NFT, Legacy)
	case cfg.LockTimeout < 0 || cfg.LockTimeout > 0 && cfg.LockTimeout < time.Second:
		return nil, fmt.Errorf("iptables: Config.LockTimeout is %s; it must be at least 1s, or 0 for %s", cfg.LockTimeout, DefaultLockTimeout)
	case cfg.Resync < 0:
		return nil, fmt.Errorf("iptables: Config.Resync is %s; it must be positive, or 0 for the default", cfg.Resync)
	}
	r := &Reconciler{
		family: cfg.Family, kernel: cfg.Kernel, resync: cfg.Resync, mended: cfg.Healed, healEvery: time.Second,
		watching: make(chan struct{}), round: make(chan struct{}),
		pending: map[Table]*change{}, set: map[Table]bool{}, hooked: map[Table]map[string]bool{},
		drifted: map[Table]bool{}, tables: map[Table]*table{},
	}
	if r.kernel == nil {
		r.kernel = NewHost(cfg.Family, cfg.Backend, cfg.LockTimeout)
	}
	r.log = cfg.Log.With("reconciler", r.String())
	r.loop = (&reconcile.Loop{Name: r.String(), Log: cfg.Log, Apply: r.apply, Resync: cfg.Resync}).Init()
	r.status.Family = cfg.Family
	return r, nil
}

func (r *Reconciler) String() string {
	if r.family == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// Set declares all that is wanted in a table. From the first Set on, chains of ours that
// are not wanted are pruned: call it once what it is made of is complete. Setting what is
// set already changes nothing. It panics when there is no such table.
func (r *Reconciler) Set(t Table, s TableState) {
	r.must(t)
	c := &change{whole: true, ifThere: s.IfThere, chains: compileAll(s.Chains), hooks: compileHooks(s.Hooks)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set[t] = true
	r.pending[t] = c
	r.hooked[t] = map[string]bool{}
	for chain := range c.hooks {
		r.hooked[t][chain] = true
	}
	r.wanted++
	r.loop.Poke()
}

// Update changes some chains of a table and leaves all others and the hooks as they are;
// only these chains are written (I8). A chain that stands in both set and del is set. It
// panics when Set has not been called for the table.
func (r *Reconciler) Update(t Table, set []Chain, del []string) {
	r.must(t)
	chains := compileAll(set)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.set[t] {
		panic(fmt.Sprintf("iptables: Update of table %s before Set", t))
	}
	c := r.pending[t]
	if c == nil {
		c = &change{chains: map[string]*compiled{}}
		r.pending[t] = c
	}
	for _, name := range del {
		c.chains[name] = nil
	}
	maps.Copy(c.chains, chains)
	r.wanted++
	r.loop.Poke()
}

// declared reports whether Set was called for a table.
func (r *Reconciler) declared(t Table) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set[t]
}

// SetHooks changes the hooks of a table, all of them, and leaves its chains as they are. It
// panics when Set has not been called for the table.
func (r *Reconciler) SetHooks(t Table, hooks []Hook) {
	r.must(t)
	lines := compileHooks(hooks)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.set[t] {
		panic(fmt.Sprintf("iptables: SetHooks of table %s before Set", t))
	}
	c := r.pending[t]
	if c == nil {
		c = &change{chains: map[string]*compiled{}}
		r.pending[t] = c
	}
	c.hooks, c.rehook = lines, true
	r.hooked[t] = map[string]bool{}
	for chain := range lines {
		r.hooked[t][chain] = true
	}
	r.wanted++
	r.loop.Poke()
}

// Retry has everything that the kernel refused tried again now, and not only when its time
// comes: what it lacked, such as a set, is there.
func (r *Reconciler) Retry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.anew = true
	r.wanted++
	r.loop.Poke()
}

func (r *Reconciler) must(t Table) {
	if !slices.Contains(tables, t) {
		panic(fmt.Sprintf("iptables: there is no table %q", t))
	}
}

// compileAll makes the text of chains, by name. Two of one name refuse each other.
func compileAll(chains []Chain) map[string]*compiled {
	out := make(map[string]*compiled, len(chains))
	for _, c := range chains {
		n := compileChain(c)
		if out[c.Name] != nil {
			n = &compiled{name: c.Name, fallback: n.fallback, err: errors.New("it is given twice")}
		}
		out[c.Name] = n
	}
	return out
}

// Wait blocks until everything that was set before the call is in the kernel. Otherwise
// its error says what is not: tables that could not be written and every chain that was
// refused; they are retried nevertheless. Only Run makes it come true.
func (r *Reconciler) Wait(ctx context.Context) error {
	if err := r.wait(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// WaitChains is Wait for whoever needs some chains only: refusals of others are none of
// its business (I6). Hooks that go to one of them are.
func (r *Reconciler) WaitChains(ctx context.Context, t Table, chains ...string) error {
	if err := r.wait(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status.Backend == Auto {
		return r.err // not even begun
	}
	ts, ok := r.status.Tables[t]
	if !ok {
		return fmt.Errorf("iptables: table %s was never set", t)
	}
	errs := []error{ts.Err}
	for _, c := range chains {
		if err := ts.Refused["chain "+c]; err != nil {
			errs = append(errs, fmt.Errorf("table %s: chain %s: %w", t, c, err))
		}
		if err := ts.unhooked[c]; err != nil {
			errs = append(errs, fmt.Errorf("table %s: hooks that go to chain %s: %w", t, c, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Reconciler) wait(ctx context.Context) error {
	r.mu.Lock()
	for want := r.wanted; r.done < want; {
		round := r.round
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", r, ctx.Err())
		case <-round:
		}
		r.mu.Lock()
	}
	r.mu.Unlock()
	return nil
}

// Status is what a Reconciler says about itself.
type Status struct {
	Family  Family
	Backend Backend // Auto until it is known
	Watched bool    // the kernel tells of changes that others make
	Err     error   // of the last round, all tables and refusals joined
	Tables  map[Table]TableStatus
}

// TableStatus is one table's part of Status.
type TableStatus struct {
	Chains, Rules int              // wanted, of ours; hooks not counted
	Refused       map[string]error // by "chain NAME" or "hooks of NAME": not as wanted, and why
	// Pinned names chains that are not wanted and cannot be deleted, because a rule
	// that is not ours goes to them; the value is the chain in which that rule stands.
	Pinned  map[string]string
	Written time.Time // when it was last changed by us; zero when it was found right
	Err     error     // why the table as a whole is not as wanted

	unhooked map[string]error // chains that refused hooks go to
}

// Status returns the state after the last round. Its maps are the caller's.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Watched, s.Err = r.told, r.err
	s.Tables = maps.Clone(s.Tables)
	return s
}

// Run reconciles until ctx is done. It may be called once.
func (r *Reconciler) Run(ctx context.Context) error {
	r.heal = time.AfterFunc(time.Hour, r.loop.Poke)
	r.heal.Stop()
	defer func() { r.heal.Stop() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { r.watch(ctx) })
	return r.loop.Run(ctx)
}

// watch turns the kernel's events into rounds.
func (r *Reconciler) watch(ctx context.Context) {
	var once sync.Once
	known := func() { once.Do(func() { close(r.watching) }) }
	again := false
	for ctx.Err() == nil {
		err := r.kernel.Watch(ctx, func() {
			r.mu.Lock()
			r.told = true
			r.mu.Unlock()
			known()
			if again { // what happened meanwhile is unknown
				r.changed([]Change{{}})
			}
		}, r.changed)
		r.mu.Lock()
		r.told = false
		r.mu.Unlock()
		known()
		switch {
		case ctx.Err() != nil || errors.Is(err, ErrUnwatchable):
			return
		default:
			r.log.Warn("cannot watch iptables", "error", err)
		}
		again = true
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
}

// changed notes what somebody else did, where it may concern us, and has it healed.
func (r *Reconciler) changed(changes []Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	relevant := false
	for _, c := range changes {
		for t := range r.set {
			if c.Table == "" || c.Table == t && (c.Chain == "" || ours(c.Chain) || r.hooked[t][c.Chain]) {
				r.drifted[t] = true
				relevant = true
			}
		}
	}
	if !relevant {
		return
	}
	if wait := r.healEvery - time.Since(r.healed); wait > 0 {
		r.heal.Reset(wait)
		return
	}
	r.healed = time.Now()
	r.loop.Poke()
}

// Force makes Run use that backend of the host, whatever Config says; Auto changes nothing.
// It must be called before Run.
func (r *Reconciler) Force(b Backend) {
	if h, ok := r.kernel.(*Host); ok && b != Auto {
		r.kernel = NewHost(r.family, b, h.timeout)
	}
}

// SetResync is Config.Resync from the next round on; 0 means that of the Config.
func (r *Reconciler) SetResync(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resyncSet = d
}

// apply is one round of the loop.
func (r *Reconciler) apply(ctx context.Context, resync bool) error {
	backend, err := r.kernel.Backend(ctx)
	if err == nil {
		select { // the watch must listen before anything is read
		case <-r.watching:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	wanted, pending, drifted, anew := r.wanted, r.pending, r.drifted, r.anew
	if err != nil {
		r.finish(wanted, Auto, fmt.Errorf("%s: %w", r, err))
		return err
	}
	r.pending, r.drifted, r.anew = map[Table]*change{}, map[Table]bool{}, false
	if len(drifted) > 0 {
		r.healed = time.Now()
	}
	r.loop.Resync = cmp.Or(r.resyncSet, r.resync)
	if r.loop.Resync == 0 {
		r.loop.Resync = resyncWhereNotKnown
		if r.told {
			r.loop.Resync = resyncWhereWatched
		}
	}
	r.mu.Unlock()

	var errs []error
	for _, name := range tables {
		t := r.tables[name]
		if c := pending[name]; c != nil {
			if t == nil {
				t = newTable(name)
				r.tables[name] = t
			}
			t.absorb(c)
		}
		if t == nil {
			continue
		}
		if anew {
			t.again()
		}
		if resync || drifted[name] || t.err != nil {
			t.now = nil
		}
		t.err = r.bring(ctx, t, pending[name] == nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, t.errs()...)
		if t.err == nil && !t.swept {
			r.sweep(ctx, t)
		}
	}
	for i, e := range errs {
		errs[i] = fmt.Errorf("%s: %w", r, e)
	}
	err = errors.Join(errs...)
	r.mu.Lock()
	r.finish(wanted, backend, err)
	return err
}

// finish ends a round: it publishes what came of it. It is called with mu held and lets
// it go.
func (r *Reconciler) finish(wanted uint64, b Backend, err error) {
	defer r.mu.Unlock()
	r.done, r.err = wanted, err
	r.status.Backend = b
	r.status.Tables = make(map[Table]TableStatus, len(r.tables))
	for name, t := range r.tables {
		s := TableStatus{Chains: len(t.want), Rules: t.rules, Written: t.wrote, Err: t.err,
			Refused: make(map[string]error, len(t.refused)), Pinned: map[string]string{}, unhooked: map[string]error{}}
		if t.ifThere && t.now != nil && t.now.bare() {
			s.Chains, s.Rules = 0, 0
		}
		for o, x := range t.refused {
			s.Refused[o.String()] = x.err
			if h := t.hooks[o.chain]; o.hooks && h != nil {
				for _, l := range slices.Concat(h.head, h.tail) {
					s.unhooked[l.callee] = x.err
				}
			}
		}
		if t.now != nil {
			for chain, by := range t.now.callers {
				if t.want[chain] == nil {
					s.Pinned[chain] = by
				}
			}
		}
		r.status.Tables[name] = s
	}
	close(r.round)
	r.round = make(chan struct{})
}

// bring makes a table what it should be, as far as the kernel lets it. The error is about
// the table as a whole; refusals stand in t.
func (r *Reconciler) bring(ctx context.Context, t *table, drift bool) error {
	fresh, conflicts := false, 0
	for round := 0; ; round++ {
		if round == maxRounds { // a mistake here must not spin
			t.now = nil
			return fmt.Errorf("%d transactions did not bring it to the desired state", round)
		}
		if t.now == nil {
			if err := r.read(ctx, t); err != nil {
				return err
			}
			t.all()
			drift = drift && t.read
			t.read, fresh = true, true
		}
		if t.ifThere && t.now.bare() {
			t.clean()
			return nil
		}
		t.validate(time.Now(), r.loop.Resync)
		parts := t.plan()
		if len(parts) == 0 {
			t.clean()
			return nil
		}
		err := r.write(ctx, t, parts, drift)
		var no *RestoreError
		switch {
		case err == nil:
			continue
		case !errors.As(err, &no) || no.Temporary():
			t.now = nil
			return err
		case !fresh || conflicts < maxConflicts && conflict(no):
			if fresh {
				conflicts++
			}
			t.now = nil // our picture may be old
			continue
		}
		if err := r.isolate(ctx, t, parts); err != nil {
			t.now = nil
			return err
		}
	}
}

// maxConflicts is how often one round reads a table anew because what it was about to
// change had changed.
const maxConflicts = 3

// maxRounds bounds one round of the loop; conflicts, isolation and the deletions that
// follow it need fewer.
const maxRounds = 20

// conflict reports whether a refusal may be due to somebody else's change between our
// reading and writing: a command that found something else than it named. The legacy
// programs give no reason beyond the line.
func conflict(no *RestoreError) bool {
	for _, s := range []string{"does a matching rule exist", "Index of", "No chain/target/match"} {
		if strings.Contains(no.Message, s) {
			return true
		}
	}
	return len(no.Lines) > 0 && strings.HasSuffix(no.Message, "failed")
}

// read takes the table from the kernel and finds out which of our rules are as we wrote
// them.
func (r *Reconciler) read(ctx context.Context, t *table) error {
	wanted := t.name
	if t.ifThere {
		wanted = "" // to read a table by its name makes it
	}
	text, err := r.kernel.Save(ctx, wanted)
	if err != nil {
		return err
	}
	all, err := parseSave(text)
	if err != nil {
		return err
	}
	now := all[t.name]
	if now == nil && t.ifThere {
		now = newActual()
	}
	if now == nil {
		return fmt.Errorf("iptables-save does not show table %s", t.name)
	}
	if err := r.verify(ctx, t, now); err != nil {
		return err
	}
	t.now = now
	return nil
}
