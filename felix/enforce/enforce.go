// Package enforce is policy on this node: what the datastore tells and what is attached
// go into the engine (felix/policy), what the engine makes of it into the kernel, and what
// stands there to the judge of established flows (felix/conntrack). It decides nothing
// itself but when: nothing is let through, and nothing removed, for want of what was not read yet.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/task"
	"github.com/causeway-net/causeway/internal/watch"
)

// Backend brings rules into the kernel; felix/iptables.Policy and felix/nftables.Policy are ones.
type Backend interface {
	// Run works until ctx is cancelled.
	Run(ctx context.Context) error
	// Apply has a delta brought into the kernel after all before it. It does not change it.
	Apply(*policy.Delta)
	// InSync says that all that was there at the start has been applied.
	InSync()
	// SetEncapsulation says which encapsulated packets of nodes host endpoints let pass.
	SetEncapsulation(v4, v6 model.EncapGuard)
	// Wait returns when all that was applied before the call is in the kernel, or why what concerns the
	// interfaces (without any: anything) is not.
	Wait(ctx context.Context, interfaces ...string) error
	Counters(ctx context.Context) ([]policy.Counter, error)
}

// Local is where this node says what is attached; watch.Policies is one.
type Local interface {
	Attach(model.Endpoint) (seq uint64)
	Detach(model.AttachmentKey)
}

// Flows are the kernel's connections; conntrack.Table is.
type Flows interface {
	conntrack.Kernel
	// Route says which interface the host reaches an address by.
	Route(netip.Addr) string
	// Forget deletes the connections of addresses.
	Forget(ctx context.Context, addrs ...netip.Addr) (int, error)
	// ForgetIn deletes those of all addresses of some prefixes but those that are kept.
	ForgetIn(ctx context.Context, prefixes []netip.Prefix, keep func(netip.Addr) bool) (int, error)
}

// Config says what an Enforcer works with.
type Config struct {
	Log    *slog.Logger  // required
	Engine policy.Config // optional
	Local  Local         // required
	// Needs tells the datastore what the policies in force need beyond what it tells anyway, and
	// reports whether that was read; another update follows when not. Optional: nothing more
	// is to be had.
	Needs func(pods bool, service func(model.ServiceID) bool) (known bool)
	Flows Flows        // optional: the connections of this network namespace
	Marks policy.Marks // required: the backend's
	// Routed returns when the kernel has the routes of blocks that SetBlocks told, so that nothing leads
	// to their addresses which pods do not have. Optional: it has them before.
	Routed func(ctx context.Context, blocks ...netip.Prefix) error
	// Patience is how long Attach waits for what was not read yet, which may be long with an API
	// server away. Then the pod starts with nothing passing. Default 3 s.
	Patience time.Duration
}

// Enforcer is the way of policy from the datastore into the kernel. Its methods may be called
// from anywhere.
type Enforcer struct {
	cfg    Config
	judge  *conntrack.Judge
	cutter *conntrack.Cutter
	start  chan struct{} // closed by Use
	wake   chan struct{} // capacity 1: standing has something
	dirty  chan struct{} // capacity 1: so has clearance

	mu       sync.Mutex // guards what follows
	engine   *policy.Engine
	backend  Backend // nil before Use
	retire   func(context.Context) error
	encap    [2]model.EncapGuard
	gathered []*policy.Delta // not handed to the backend yet
	complete bool            // the last update left nothing to wait for
	missing  []string        // what it waits for, as far as the datastore names it
	synced   bool            // the backend was told InSync
	told     uint64          // Seq that the engine knows
	given    uint64          // and the backend
	news     chan struct{}   // closed when one of them grows, and replaced
	standing []*policy.Delta // handed to the backend, not to the judge yet
	addrs    *clearance
	began    time.Time // of the last Publish
	since    time.Time // that of the first change in standing
	changes  Changes

	// forgetting is held while connections are forgotten, and taken before mu: by any number of
	// Attach, which share a walk (conntrack.Table.Forget), or by one walk that nobody waits for.
	forgetting sync.RWMutex
}

// New makes an Enforcer. Nothing is enforced before Use.
func New(cfg Config) (*Enforcer, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("enforce: Config.Log is missing")
	case cfg.Local == nil:
		return nil, errors.New("enforce: Config.Local is missing")
	}
	if cfg.Flows == nil {
		cfg.Flows = conntrack.NewTable()
	}
	if cfg.Patience == 0 {
		cfg.Patience = 3 * time.Second
	}
	e := &Enforcer{
		cfg: cfg, judge: conntrack.NewJudge(cfg.Flows.Route), engine: policy.New(cfg.Engine),
		start: make(chan struct{}), wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), news: make(chan struct{}), addrs: newClearance(),
	}
	var err error
	e.cutter, err = conntrack.New(conntrack.Config{Log: cfg.Log, Bit: cfg.Marks.Forbidden, Verdict: e.judge.Verdict, Kernel: cfg.Flows})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Enforcer) String() string { return "policy" }

// Use says which backend enforces. It is called once. retire is called when all that was there at the
// start stands in the kernel: what another backend left of an earlier agent can go.
func (e *Enforcer) Use(b Backend, retire func(context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.backend, e.retire = b, retire
	b.SetEncapsulation(e.encap[0], e.encap[1])
	e.began = time.Now()
	close(e.start)
	e.hand()
	e.tell()
}

// SetEncapsulation says which encapsulated packets of nodes host endpoints let pass.
func (e *Enforcer) SetEncapsulation(v4, v6 model.EncapGuard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.encap = [2]model.EncapGuard{v4, v6}
	if e.backend != nil {
		e.backend.SetEncapsulation(v4, v6)
	}
}

// Publish takes an update of the datastore. Updates come one after the other.
func (e *Enforcer) Publish(u *watch.PolicyUpdate) {
	began := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.began = began
	if err := u.Apply(e.engine); err != nil {
		// What was in force of it stays so, and Problems says why.
		e.cfg.Log.Warn("policy", "problem", err)
	}
	if d := e.engine.Flush(); !d.Empty() {
		e.gathered = append(e.gathered, d)
	}
	known := e.cfg.Needs == nil || e.cfg.Needs(e.engine.NeedsRemotePods(), e.engine.NeedsService)
	e.told = max(e.told, u.Seq)
	// What is recalled stands in for all that was not read.
	e.complete, e.missing = u.Recalled || len(u.Pending) == 0 && known, u.Pending
	e.hand()
	e.tell()
}

// hand gives the backend what it may have. It is called with mu held.
func (e *Enforcer) hand() {
	if e.backend == nil || !e.complete {
		return
	}
	for _, d := range e.gathered {
		e.backend.Apply(d)
	}
	if len(e.gathered) > 0 && len(e.standing) == 0 {
		e.since = e.began
	}
	e.standing = append(e.standing, e.gathered...)
	e.gathered = nil
	if !e.synced {
		e.synced = true
		e.backend.InSync()
	}
	e.given = e.told
	e.poke()
}

// Reconsider has all established flows judged again. It is called when rules or sets stand again that
// somebody else had taken away: flows that began meanwhile would pass for ever.
func (e *Enforcer) Reconsider() { e.cutter.Poke() }

// tell wakes who waits for the engine or the backend to know something. It is called with mu
// held.
func (e *Enforcer) tell() {
	close(e.news)
	e.news = make(chan struct{})
}

func (e *Enforcer) poke() { signal(e.wake) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Restore says what an earlier agent attached. Its rules stay until new ones are made.
func (e *Enforcer) Restore(eps ...model.Endpoint) {
	for _, ep := range eps {
		e.cfg.Local.Attach(ep)
		e.mu.Lock()
		e.addrs.attach(ep.Key, ep.Addresses)
		e.addrs.clear(ep.Addresses) // what is there is its own
		e.mu.Unlock()
	}
}

// Attach returns when the pod's rules are in the kernel. Where they cannot be made because
// the datastore was not read, it returns too: nothing passes by an interface without rules, in neither
// direction, and they come when it is.
func (e *Enforcer) Attach(ctx context.Context, ep model.Endpoint) error {
	seq := e.cfg.Local.Attach(ep)
	// No route leads to the addresses yet. What was established with who had them before would pass
	// whatever the new one's rules say.
	if err := e.forget(ctx, ep); err != nil {
		return fmt.Errorf("policy of %s: %w", ep.HostInterface, err)
	}
	patience := time.NewTimer(e.cfg.Patience)
	defer patience.Stop()
	for late := false; ; {
		e.mu.Lock()
		b, given, told, news, missing := e.backend, e.given, e.told, e.news, e.missing
		e.mu.Unlock()
		switch {
		case b != nil && given >= seq:
			return b.Wait(ctx, ep.HostInterface)
		case b != nil && told >= seq && late:
			e.cfg.Log.Warn("a pod starts without its policy, which is not known yet: nothing passes until it is",
				"attachment", ep.Key.String(), "interface", ep.HostInterface, "missing", missing)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("policy of %s: %w", ep.HostInterface, ctx.Err())
		case <-patience.C:
			late = true
		case <-news:
		}
	}
}

// Detach takes the pod's rules away, and the connections of its addresses: whoever gets them next
// has nothing to do with those. It does not wait.
func (e *Enforcer) Detach(ep model.Endpoint) {
	e.cfg.Local.Detach(ep.Key)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs.detach(ep.Key, ep.Addresses)
	signal(e.dirty)
}

// retryRetire is when what another backend left is tried to be taken away again.
const retryRetire = 5 * time.Second

// Run enforces until ctx is cancelled.
func (e *Enforcer) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.start:
	}
	e.mu.Lock()
	backend, retire := e.backend, e.retire
	e.mu.Unlock()
	follow := func(ctx context.Context) error { return e.follow(ctx, backend, retire) }
	return task.Run(ctx, e.cfg.Log, task.Func("rules", backend.Run), e.cutter, task.Func("flows", follow), task.Func("addresses", e.clean))
}

// follow tells the judge what stands in the kernel, and whose connections it changes.
func (e *Enforcer) follow(ctx context.Context, backend Backend, retire func(context.Context) error) error {
	for begun, retired := false, false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		}
		e.mu.Lock()
		deltas, synced, since := e.standing, e.synced, e.since
		e.standing = nil
		e.mu.Unlock()
		if len(deltas) > 0 || synced && !begun {
			// Rules that the kernel refuses are reported by the backend and tried again; flows are
			// judged by what is wanted.
			if err := backend.Wait(ctx); ctx.Err() != nil {
				return nil
			} else if err != nil {
				e.cfg.Log.Debug("rules are not all in force", "error", err)
			} else if len(deltas) > 0 {
				e.took(time.Since(since))
			}
			e.reconsider(deltas)
		}
		if synced && !begun {
			begun = true
			e.cutter.InSync()
		}
		if begun && !retired {
			// What stays knows no new pod, and lets nothing of it pass.
			err := retire(ctx)
			if retired = err == nil; !retired && ctx.Err() == nil {
				e.cfg.Log.Warn("rules that an earlier agent made with another backend stay beside ours; trying again", "error", err)
				time.AfterFunc(retryRetire, e.poke)
			}
		}
	}
}

// reconsider has the flows judged anew that the deltas concern.
func (e *Enforcer) reconsider(deltas []*policy.Delta) {
	for _, d := range deltas {
		concern, err := e.judge.Apply(d)
		if err != nil {
			e.cfg.Log.Error("connections are judged by all rules anew", "error", err)
			e.restart()
			return
		}
		concern.Poke(e.cutter)
	}
}

// restart gives the judge all rules, unless some are gathered still: they would be in it, and do
// not fit twice. The next delta comes here again.
func (e *Enforcer) restart() {
	e.mu.Lock()
	if len(e.gathered) > 0 {
		e.mu.Unlock()
		return
	}
	whole := e.engine.Whole()
	e.standing = nil
	e.mu.Unlock()
	e.judge.Reset()
	if _, err := e.judge.Apply(whole); err != nil {
		e.cfg.Log.Error("established connections are left as they are", "error", err)
		return
	}
	e.cutter.Poke()
}
