package conntrack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/reconcile"
)

const (
	// settle is when a round is repeated for what it was about: a packet that was on its way when
	// the rules changed can make an entry of a flow that the old ones allowed, after the table
	// was read. What begins later meets the new rules.
	settle = 250 * time.Millisecond
	// rest bounds how long the Cutter waits after a round before the next one. It waits four
	// times as long as the round took, so that it takes a fifth of a CPU at most however often it is poked,
	// unless a round takes more than a sixteenth of a second.
	rest = 250 * time.Millisecond
	// changes is how many marks are changed at once.
	changes = 512
	// again bounds how often marks are changed again in one round because other flows were
	// found in the place of those that were meant.
	again = 4
)

// Verdict is what policy says of a flow.
type Verdict uint8

// The verdicts.
const (
	Leave Verdict = iota // nobody here answers for either end: the flow stays as it is
	Pass                 // allowed: the bit is cleared
	Cut                  // forbidden: the bit is set
)

// Kernel is the table of connections as a Cutter needs it; Table is the real one.
type Kernel interface {
	Flows(ctx context.Context, addrs []netip.Addr, each func(*Flow)) error
	Mark(ctx context.Context, mask uint32, set, clear []Flow) (others []Flow, err error)
	Master(ctx context.Context, f *Flow) (master Flow, ok bool, err error)
	Own(ctx context.Context) (map[netip.Addr]struct{}, error)
}

// Config configures a Cutter.
type Config struct {
	Log *slog.Logger // required
	// Bit is the bit of the connection's mark that says forbidden (policy.Marks.Forbidden); required. Rules
	// drop packets of connections that have it before they accept what is established.
	Bit uint32
	// Verdict judges a flow as if it began now, by the rules that stand in the kernel;
	// required: Judge.Verdict. It must not keep the Flow. It is called from one goroutine at a
	// time, many times in a row.
	Verdict func(*Flow) Verdict
	Kernel  Kernel // optional: a Table of the network namespace that Run is called in
	// Resync is how often all flows are judged without being asked for; default as in
	// package reconcile.
	Resync time.Duration
}

// Cutter marks the flows that policy forbids, and clears the mark of those that it allows
// again. New makes one; Run works.
type Cutter struct {
	cfg    Config
	kernel Kernel
	loop   *reconcile.Loop

	mu      sync.Mutex // guards what follows
	synced  bool
	pending scope
	stats   Stats

	// Of Run's goroutine.
	looks []look
	ended time.Time     // when the last round ended
	took  time.Duration // and how long it was
}

// Stats counts what a Cutter has done since it was made.
type Stats struct {
	Rounds, Failures uint64
	Read             uint64 // flows that the kernel has shown
	Cut, Cleared     uint64 // marks set and cleared
	Marked           int    // flows that bore the bit after the last round over all flows
	// LastRound is how long the last round took, and LastDelay how long after the first Poke that it was
	// about it ended.
	LastRound, LastDelay time.Duration
}

// scope is which flows are looked at.
type scope struct {
	all   bool
	addrs map[netip.Addr]struct{}
	since time.Time // of the first Poke in it; zero: none
}

func (s *scope) empty() bool { return !s.all && len(s.addrs) == 0 }

func (s *scope) add(o scope) {
	if s.since.IsZero() || !o.since.IsZero() && o.since.Before(s.since) {
		s.since = o.since
	}
	s.all = s.all || o.all
	if s.all {
		s.addrs = nil
		return
	}
	if s.addrs == nil && len(o.addrs) > 0 {
		s.addrs = make(map[netip.Addr]struct{}, len(o.addrs))
	}
	for a := range o.addrs {
		s.addrs[a] = struct{}{}
	}
}

// list is nil for all flows.
func (s *scope) list() []netip.Addr {
	if s.all {
		return nil
	}
	out := make([]netip.Addr, 0, len(s.addrs))
	for a := range s.addrs {
		out = append(out, a)
	}
	return out
}

// look is a round that is to be repeated.
type look struct {
	scope
	due   time.Time
	timer *time.Timer
}

// New makes a Cutter. It judges nothing before InSync.
func New(cfg Config) (*Cutter, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("conntrack: Config.Log is required")
	case cfg.Verdict == nil:
		return nil, errors.New("conntrack: Config.Verdict is required")
	case bits.OnesCount32(cfg.Bit) != 1:
		return nil, fmt.Errorf("conntrack: Config.Bit is %#x; it must be one bit", cfg.Bit)
	}
	c := &Cutter{cfg: cfg, kernel: cfg.Kernel}
	if c.kernel == nil {
		c.kernel = NewTable()
	}
	c.loop = (&reconcile.Loop{Name: "conntrack", Log: cfg.Log, Apply: c.apply, Resync: cfg.Resync, MaxBackoff: 5 * time.Second}).Init()
	return c, nil
}

func (c *Cutter) String() string { return c.loop.Name }

// InSync says that from now on Verdict knows all policy that is in force, so that flows
// can be judged. The first time all are, those too that began before this agent did.
func (c *Cutter) InSync() {
	c.mu.Lock()
	if !c.synced {
		c.synced = true
		c.pending.add(scope{all: true, since: time.Now()})
	}
	c.mu.Unlock()
	c.loop.Poke()
}

// Poke asks that the flows of these local endpoints be judged again; without addresses, all
// flows. It is called after a change of policy that concerns them stands in the kernel
// and Verdict knows it: a flow that begins later is met by the rules themselves.
func (c *Cutter) Poke(addrs ...netip.Addr) {
	s := scope{all: len(addrs) == 0, addrs: make(map[netip.Addr]struct{}, len(addrs)), since: time.Now()}
	for _, a := range addrs {
		s.addrs[a.Unmap()] = struct{}{}
	}
	c.mu.Lock()
	c.pending.add(s)
	c.mu.Unlock()
	c.loop.Poke()
}

// Stats returns the counters.
func (c *Cutter) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Run judges until ctx is cancelled.
func (c *Cutter) Run(ctx context.Context) error {
	defer func() {
		for _, l := range c.looks {
			l.timer.Stop()
		}
	}()
	return c.loop.Run(ctx)
}

// apply is one round.
func (c *Cutter) apply(ctx context.Context, resync bool) error {
	if wait := time.Until(c.ended.Add(min(4*c.took, rest))); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
	c.mu.Lock()
	if !c.synced {
		c.mu.Unlock()
		return nil
	}
	fresh := c.pending
	c.pending = scope{}
	c.mu.Unlock()
	var work scope
	work.add(fresh)
	later := c.looks[:0]
	for _, l := range c.looks {
		if time.Until(l.due) > 0 {
			later = append(later, l)
			continue
		}
		l.since = time.Time{}
		work.add(l.scope)
	}
	c.looks = later
	if resync {
		work.add(scope{all: true})
	}
	if work.empty() {
		return nil
	}
	began := time.Now()
	r := round{c: c, ctx: ctx}
	err := r.run(work.list())
	c.ended, c.took = time.Now(), time.Since(began)

	if err == nil && !fresh.empty() {
		c.looks = append(c.looks, look{scope: fresh, due: time.Now().Add(settle), timer: time.AfterFunc(settle, c.loop.Poke)})
	}
	if n := r.cut + r.cleared; n > 0 {
		c.cfg.Log.Info("connections judged anew", "cut", r.cut, "allowed", r.cleared, "read", r.read, "took", c.took)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.stats
	s.Rounds++
	s.Read += r.read
	s.Cut += r.cut
	s.Cleared += r.cleared
	s.LastRound = c.took
	if err != nil {
		s.Failures++
		c.pending.add(work)
		return err
	}
	if work.all {
		s.Marked = max(0, r.marked+int(r.cut)-int(r.cleared))
	}
	if !work.since.IsZero() {
		s.LastDelay = c.ended.Sub(work.since)
	}
	return nil
}

// round looks at flows once.
type round struct {
	c   *Cutter
	ctx context.Context
	own map[netip.Addr]struct{}

	set, clear         []Flow // not yet written
	related            []Flow // not yet judged: they go with their masters
	errs               []error
	read, cut, cleared uint64
	marked             int // flows that had the bit when they were read
}

func (r *round) run(addrs []netip.Addr) error {
	own, err := r.c.kernel.Own(r.ctx)
	if err != nil {
		return err
	}
	r.own = own
	err = r.c.kernel.Flows(r.ctx, addrs, func(f *Flow) {
		r.read++
		if f.Mark&r.c.cfg.Bit != 0 {
			r.marked++
		}
		if f.Expected() {
			r.related = append(r.related, f.Clone())
			return
		}
		r.weigh(f, f)
		if len(r.set)+len(r.clear) >= changes {
			r.write()
		}
	})
	r.errs = append(r.errs, err)
	for i := range r.related {
		r.relate(&r.related[i])
	}
	r.write()
	return errors.Join(r.errs...)
}

// weigh judges a flow by another one, or by itself.
func (r *round) weigh(f, by *Flow) {
	_, by.FromHost = r.own[by.Source.Addr()]
	_, by.ToHost = r.own[by.Destination.Addr()]
	marked := f.Mark&r.c.cfg.Bit != 0
	switch v := r.c.cfg.Verdict(by); {
	case v == Cut && !marked:
		r.set = append(r.set, f.Clone())
	case v == Pass && marked:
		r.clear = append(r.clear, f.Clone())
	}
}

// relate judges an expected flow by what it belongs to; one whose master is gone is left.
func (r *round) relate(f *Flow) {
	by := *f
	for range again {
		master, ok, err := r.c.kernel.Master(r.ctx, &by)
		if err != nil {
			r.errs = append(r.errs, err)
		}
		if err != nil || !ok {
			return
		}
		if by = master; !by.Expected() {
			r.weigh(f, &by)
			return
		}
	}
}

// write changes marks. Where another flow was found than the one that was judged, that
// one is judged and written at once.
func (r *round) write() {
	for try := 1; len(r.set)+len(r.clear) > 0; try++ {
		set, clear := r.set, r.clear
		r.set, r.clear = nil, nil
		others, err := r.c.kernel.Mark(r.ctx, r.c.cfg.Bit, set, clear)
		if err != nil {
			r.errs = append(r.errs, err)
			return
		}
		r.cut += uint64(len(set))
		r.cleared += uint64(len(clear))
		if r.c.cfg.Log.Enabled(r.ctx, slog.LevelDebug) {
			for i := range set {
				r.c.cfg.Log.Debug("connection cut", "flow", set[i].String())
			}
		}
		if len(others) > 0 && try == again {
			r.errs = append(r.errs, fmt.Errorf("%d connections were replaced while they were marked", len(others)))
			return
		}
		for i := range others {
			if f := &others[i]; f.Expected() {
				r.relate(f)
			} else {
				r.weigh(f, f)
			}
		}
	}
}
