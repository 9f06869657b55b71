package ipset

import (
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
	pending  []change
	declared map[string]bool // sets that are wanted
	unsynced map[string]bool // owners that have not called InSync
	wanted   uint64          // counts changes
	done     uint64          // the value of wanted that the last round took in
	round    chan struct{}   // closed when a round ends, and replaced
	err      error           // of the last round as a whole
	errs     map[string]error
	status   Status

	// The rest belongs to the goroutine of Run.
	sets    map[string]*set
	dirty   map[*set]struct{} // those that may not be as wanted
	known   bool              // the kernel's sets were read
	looked  time.Time         // when the headers were last read
	every   time.Duration     // how often to look at them
	synced  bool              // all owners are in sync
	members int               // wanted, of all sets
	healed  uint64
	written uint64
}

// change is one call of Replace, Update or Delete.
type change struct {
	name        string
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
		declared: map[string]bool{}, unsynced: map[string]bool{}, round: make(chan struct{}),
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
	for _, c := range changes {
		r.declared[c.name] = true
	}
	r.change(changes...)
}

// Update changes members of a set that was declared by Replace. A member in both lists is
// there afterwards. To add what is there, or to remove what is not, changes nothing.
func (r *Reconciler) Update(name string, add, remove []Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change(change{name: name, add: slices.Clone(add), remove: slices.Clone(remove)})
}

// Delete gives sets up. Each goes when no rule refers to it any more, and keeps its members
// until then: it may be called before the rules have changed.
func (r *Reconciler) Delete(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		delete(r.declared, n)
		r.change(change{name: n, gone: true})
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
	r.change()
}

// change is called with mu held.
func (r *Reconciler) change(c ...change) {
	r.pending = append(r.pending, c...)
	r.wanted++
	r.loop.Poke()
}

// Wait blocks until what was declared before the call is in the kernel, and returns why the
// named sets are not as wanted, if so; they are retried nevertheless. Without names it means
// all sets. Deleted ones are not waited for. Only Run makes it come true.
func (r *Reconciler) Wait(ctx context.Context, names ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for want := r.wanted; r.done < want; {
		round := r.round
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			r.mu.Lock()
			return fmt.Errorf("ipset: %w", ctx.Err())
		case <-round:
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
		case !r.declared[n]:
			errs = append(errs, fmt.Errorf("ipset %s: it was never declared", n))
		}
	}
	return errors.Join(errs...)
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

// apply is one round of the loop.
func (r *Reconciler) apply(ctx context.Context, resync bool) error {
	r.mu.Lock()
	wanted, pending := r.wanted, r.pending
	r.pending = nil
	if synced := len(r.unsynced) == 0; synced && !r.synced {
		r.synced, r.looked = true, time.Time{} // what nobody wants goes now
	}
	r.mu.Unlock()

	now := time.Now()
	for i := range pending {
		r.absorb(&pending[i])
	}
	whole := r.look(ctx, now, resync)
	if whole == nil {
		whole = r.bring(ctx, now)
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

	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.err, r.errs = wanted, whole, errs
	r.status = Status{
		Sets: len(r.declared), Members: r.members, Leaving: max(0, len(r.sets)-len(r.declared)),
		Healed: r.healed, Written: r.written, Err: err,
	}
	close(r.round)
	r.round = make(chan struct{})
	return err
}

// absorb takes one change into the desired state.
func (r *Reconciler) absorb(c *change) {
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
