package ipset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/reconcile"
)

// Reconciler brings our ipsets to the desired state. Its methods may be called from
// anywhere; Run does the work.
type Reconciler struct {
	cfg    Config
	kernel Kernel
	log    *slog.Logger
	loop   *reconcile.Loop

	mu       sync.Mutex
	pending  []change         // in the order of their numbers
	passed   int              // how many of pending were let wait by meanwhile
	behind   map[string]bool  // the sets of those
	marks    map[string]*mark // by set; gone with Delete
	declared int              // how many sets are wanted
	unsynced map[string]bool  // owners that have not called InSync
	wanted   uint64           // the number of the last change
	done     uint64           // all up to this one are in the kernel, or failed
	news     chan struct{}    // closed when sets are done, and replaced
	err      error            // of the last round as a whole
	errs     map[string]error
	status   Status

	// The rest belongs to the goroutine of Run.
	sets    map[string]*set
	dirty   map[*set]struct{} // those that may not be as wanted
	known   bool              // the kernel's sets were read
	looked  time.Time         // when the headers were last read
	took    time.Duration     // how long that took
	every   time.Duration     // how often to look at them
	synced  bool              // all owners are in sync
	members int               // wanted, of all sets
	again   bool              // a set was left half done that no work under way will come to
	healed  uint64
	said    uint64 // healed, when Config.Healed was last called
	written uint64
}

// mark says how far the changes of one set have come.
type mark struct {
	declared     bool
	wanted, done uint64 // numbers of changes
}

// change is one call of Replace, Update, Delete or InSync.
type change struct {
	number      uint64
	name        string // nothing: InSync
	kind        kind
	whole       bool // add is all that is wanted; otherwise only members change
	gone        bool
	add, remove []Member
	adopt       func(Member) bool
	err         error // the set cannot be
}

// New makes a Reconciler. It does nothing until Run.
func New(cfg Config) (*Reconciler, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	r := &Reconciler{
		cfg: cfg, kernel: cfg.Kernel, log: cfg.Log.With("reconciler", "ipset"), every: cfg.Glance,
		marks: map[string]*mark{}, behind: map[string]bool{}, unsynced: map[string]bool{}, news: make(chan struct{}),
		errs: map[string]error{},
		sets: map[string]*set{}, dirty: map[*set]struct{}{},
	}
	for _, o := range cfg.Owners {
		r.unsynced[o] = true
	}
	r.loop = (&reconcile.Loop{Name: "ipset", Log: cfg.Log, Apply: r.apply, Resync: cfg.Resync}).Init()
	return r, nil
}

func (r *Reconciler) String() string { return "ipset" }

// Replace declares sets with all their members. Of a set that stands already only the
// difference is written; what it is made of is read before the call returns.
func (r *Reconciler) Replace(sets ...Set) {
	changes := make([]change, len(sets))
	for i := range sets {
		s := &sets[i]
		changes[i] = change{name: s.Name, whole: true, kind: kind{s.Type, s.Family}, add: slices.Clone(s.Members), adopt: s.Adopt, err: r.cfg.check(s)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range changes {
		m := r.mark(changes[i].name)
		if !m.declared {
			m.declared = true
			r.declared++
		}
		r.change(&changes[i])
	}
}

// mark is called with mu held.
func (r *Reconciler) mark(name string) *mark {
	m := r.marks[name]
	if m == nil {
		m = &mark{}
		r.marks[name] = m
	}
	return m
}

// Update changes members of a set that was declared by Replace. A member in both lists is
// there afterwards. To add what is there, or to remove what is not, changes nothing. A small
// change that only adds does not wait for those of other sets that were asked for before;
// one that removes comes after all that they add.
func (r *Reconciler) Update(name string, add, remove []Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mark(name)
	r.change(&change{name: name, add: slices.Clone(add), remove: slices.Clone(remove)})
}

// Delete gives sets up. Each goes when no rule refers to it any more, and keeps its members
// until then: it may be called before the rules have changed.
func (r *Reconciler) Delete(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		if m := r.marks[n]; m != nil && m.declared {
			r.declared--
		}
		delete(r.marks, n)
		r.change(&change{name: n, gone: true})
	}
}

// InSync says that an owner of Config.Owners has declared all its sets. It panics when there
// is no such owner.
func (r *Reconciler) InSync(owner string) {
	if !slices.Contains(r.cfg.Owners, owner) {
		panic(fmt.Sprintf("ipset: there is no owner %q", owner))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.unsynced[owner] {
		return
	}
	delete(r.unsynced, owner)
	r.change(&change{})
}

// change is called with mu held.
func (r *Reconciler) change(c *change) {
	r.wanted++
	c.number = r.wanted
	if m := r.marks[c.name]; m != nil {
		m.wanted = c.number
	}
	r.pending = append(r.pending, *c)
	r.loop.Poke()
}

// Wait blocks until what was declared before the call is in the kernel, and returns why the
// named sets are not as wanted, if so; they are retried nevertheless. Changes of other sets
// are not waited for. Without names it means all sets. Deleted ones are not waited for. Only
// Run makes it come true.
func (r *Reconciler) Wait(ctx context.Context, names ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	want, wants := r.wanted, make([]uint64, len(names))
	for i, n := range names {
		if m := r.marks[n]; m != nil {
			wants[i] = m.wanted
		}
	}
	for !r.reached(want, names, wants) {
		news := r.news
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			r.mu.Lock()
			return fmt.Errorf("ipset: %w", ctx.Err())
		case <-news:
		}
		r.mu.Lock()
	}
	if r.err != nil {
		return r.err
	}
	var errs []error
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(r.errs))
	}
	for _, n := range names {
		switch err := r.errs[n]; {
		case err != nil:
			errs = append(errs, err)
		case r.marks[n] == nil || !r.marks[n].declared:
			errs = append(errs, fmt.Errorf("ipset %s: it was never declared", n))
		}
	}
	return errors.Join(errs...)
}

// reached reports whether all changes up to number want are done, or at least, of each named
// set, those up to its number in wants. It is called with mu held.
func (r *Reconciler) reached(want uint64, names []string, wants []uint64) bool {
	if r.done >= want {
		return true
	}
	for i, n := range names {
		if m := r.marks[n]; m != nil && m.done < wants[i] {
			return false
		}
	}
	return len(names) > 0
}

// Status is what a Reconciler says about itself.
type Status struct {
	Sets, Members int // wanted
	// Leaving counts sets that are not wanted and stand as long as a rule refers to them, or
	// until all owners are in sync.
	Leaving int
	Healed  uint64           // members and sets put right after somebody else's change
	Written uint64           // members added and deleted, sets made and destroyed
	Errs    map[string]error // by set: why it is not as wanted
	Err     error            // of the last round, all joined
}

// Status returns the state after the last round. Its map is the caller's.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Errs = maps.Clone(r.errs)
	return s
}

// Run reconciles until ctx is done. It may be called once.
func (r *Reconciler) Run(ctx context.Context) error {
	if c, ok := r.kernel.(io.Closer); ok {
		defer c.Close()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		look := time.NewTicker(r.cfg.Glance)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				r.loop.Poke()
			}
		}
	})
	return r.loop.Run(ctx)
}

// apply is one round of the loop: what was asked for first, and then a look at what others
// did.
func (r *Reconciler) apply(ctx context.Context, resync bool) error {
	now := time.Now()
	whole := r.changes(ctx, now, &resync)
	if whole == nil {
		whole = r.heal(ctx, now, resync)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if whole != nil {
		r.known = false // what the kernel holds must be read anew
		if errors.Is(whole, ErrUnsupported) && len(r.sets) == 0 {
			whole = nil // nobody needs it
		}
	}
	if r.again {
		r.loop.Poke()
	}
	return r.finish(whole)
}

// changes brings what was asked for.
func (r *Reconciler) changes(ctx context.Context, now time.Time, resync *bool) error {
	if r.known {
		if err := r.meanwhile(ctx, now, false); err != nil {
			return err
		}
	}
	r.takeAll()
	if !r.known {
		*resync = false // this is one
		if err := r.look(ctx, now, true); err != nil {
			return err
		}
	}
	return r.bring(ctx, now, true)
}

// heal looks at what stands in the kernel when it is time to, and puts right what is not as
// it should be.
func (r *Reconciler) heal(ctx context.Context, now time.Time, resync bool) error {
	if err := r.look(ctx, now, resync); err != nil {
		return err
	}
	return r.bring(ctx, now, false)
}

// takeAll takes all changes into the desired state.
func (r *Reconciler) takeAll() {
	r.mu.Lock()
	pending := r.pending
	r.pending, r.passed = nil, 0
	clear(r.behind)
	if synced := len(r.unsynced) == 0; synced && !r.synced {
		r.synced, r.looked = true, time.Time{} // what nobody wants goes now
	}
	r.mu.Unlock()
	for i := range pending {
		r.absorb(&pending[i])
	}
}

// finish ends a round: whatever it took in is done or failed.
func (r *Reconciler) finish(whole error) error {
	errs := map[string]error{}
	for s := range r.dirty {
		if s.err != nil {
			errs[s.name] = s.err
		}
	}
	all := []error{whole}
	for _, n := range slices.Sorted(maps.Keys(errs)) {
		all = append(all, errs[n])
	}
	err := errors.Join(all...)
	if whole != nil {
		// Until each of them is settled: another one may be sooner, and says that the kernel was reached.
		for s := range r.dirty {
			errs[s.name] = cmp.Or(s.err, whole)
		}
	}
	if r.healed > r.said && r.cfg.Healed != nil {
		r.cfg.Healed()
	}
	r.said = r.healed

	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = r.wanted
	if len(r.pending) > 0 {
		r.done = r.pending[0].number - 1
	}
	r.err, r.errs, r.status.Err = whole, errs, err
	r.tell()
	return err
}

// tell wakes those who wait. It is called with mu held.
func (r *Reconciler) tell() {
	r.status.Sets, r.status.Members, r.status.Leaving = r.declared, r.members, max(0, len(r.sets)-r.declared)
	r.status.Healed, r.status.Written = r.healed, r.written
	close(r.news)
	r.news = make(chan struct{})
}

// settle says of sets that they are as wanted, or why not.
func (r *Reconciler) settle(sets []*set) {
	if len(sets) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range sets {
		if m := r.marks[s.name]; m != nil {
			m.done = max(m.done, s.absorbed)
		}
		if s.err != nil {
			r.errs[s.name] = s.err
		} else {
			delete(r.errs, s.name)
		}
	}
	r.err = nil // the kernel was reached
	r.tell()
}

// absorb takes one change into the desired state.
func (r *Reconciler) absorb(c *change) {
	if c.name == "" {
		return
	}
	s := r.sets[c.name]
	if s == nil {
		if c.gone {
			return
		}
		s = newSet(c.name)
		s.read = r.known
		r.sets[c.name] = s
	}
	r.dirty[s] = struct{}{}
	s.absorbed = c.number
	before := s.wants
	switch {
	case c.gone:
		s.kind, s.invalid, s.released = kind{}, nil, true
		s.clearAll(want | kept)
		s.bad, s.refused, s.waiting, s.full = nil, nil, nil, false
		s.adopt, s.spurned = nil, nil
		if s.header != nil {
			s.header.References = 0 // not known now: try
		}
	case c.whole:
		s.bad, s.refused, s.waiting = nil, nil, nil
		if c.err != nil {
			s.kind, s.invalid = kind{}, c.err
			s.clearAll(want | kept)
			break
		}
		was := s.kind
		s.kind, s.invalid, s.released = c.kind, nil, false
		s.clearAll(own | half)
		s.keep(c.adopt, was)
		for _, m := range c.add {
			s.declare(m, true)
		}
	case !s.wanted():
		s.invalid = errors.Join(s.invalid, errors.New("members of it were changed before it was declared"))
	default:
		for _, m := range c.remove {
			s.declare(m, false)
		}
		s.letIn()
		for _, m := range c.add {
			s.declare(m, true)
		}
	}
	r.members += s.wants - before
	s.retry = time.Time{}
}
