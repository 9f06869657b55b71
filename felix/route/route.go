// Package route owns the kernel's FIB: every route of Causeway's protocol number in the
// main table, and nothing else. Owners (pods, blocks, tunnels, BGP) hand in candidates;
// the best owner's stands, and when it goes the next one takes over. Next hops without a
// device are resolved through the kernel's own routes, which the package follows by
// netlink, and a route whose next hops are all lost is withdrawn.
//
// One goroutine does it all: Table collects what callers want, core decides (pure), and
// sockets reads and writes the kernel. Routes are known by their protocol number alone: what an
// earlier life left is adopted as it stands, and pruned only when every owner is in sync.
package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// Config of a Table.
type Config struct {
	Log *slog.Logger // required
	// Owners are those whose InSync opens the pruning of stale routes; required.
	Owners   []model.Owner
	Protocol int // rtm_protocol that marks our routes, 5-255; default DefaultProtocol
	Metric   int // of routes that name none; default 1024
	// NetNS is the path of the network namespace to work in; empty: that of the thread
	// that calls Run.
	NetNS string
	// Resync is the longest time between two dumps of the kernel's routes (default 90 s).
	// Between dumps the table lives on notifications.
	Resync time.Duration
}

// DefaultProtocol is the protocol number (rtm_protocol) of Causeway's routes.
const DefaultProtocol = 82

// chunk is how many routes one pass writes before it looks at events and requests again.
const chunk = 1024

// Table is the desired and the actual state of Causeway's routes.
type Table struct {
	log  *slog.Logger
	loop *reconcile.Loop
	open func(poke func()) (kernel, error)

	inMu  sync.Mutex
	inbox []request

	mu   sync.Mutex // guards core
	core *core

	ready atomic.Bool // the kernel was read in full once

	kernel    kernel // of the goroutine in Run
	wake      *time.Timer
	shunnedAt time.Time // when a route that is left out was last logged
}

// request is one call that waits for Run to take it; exactly one of its parts is set.
type request struct {
	owner   model.Owner
	update  *model.RouteUpdate
	replace []model.Route
	waiter  *waiter
	metrics [2]uint32 // IPv4's and IPv6's
	own     []netip.Addr
	others  []netip.Addr
	kind    requestKind
	via     func(netip.Prefix, model.NextHop) model.NextHop
}

type requestKind uint8

const (
	reqUpdate requestKind = iota + 1
	reqReplace
	reqInSync
	reqWait
	reqMetric
	reqGuard
	reqDivert
)

// New makes a Table; nothing is read or written before Run.
func New(cfg Config) (*Table, error) {
	if cfg.Log == nil {
		return nil, errors.New("route: Config.Log is required")
	}
	if len(cfg.Owners) == 0 || len(cfg.Owners) >= ownerCount {
		return nil, fmt.Errorf("route: Config.Owners must name 1 to %d owners, whose InSync opens pruning", ownerCount-1)
	}
	if cfg.Protocol == 0 {
		cfg.Protocol = DefaultProtocol
	}
	if cfg.Protocol < 5 || cfg.Protocol > 255 {
		return nil, fmt.Errorf("route: Config.Protocol %d: 5 to 255 (0-4 are the kernel's and the administrator's)", cfg.Protocol)
	}
	if cfg.Metric == 0 {
		cfg.Metric = 1024
	}
	if cfg.Metric < 0 {
		return nil, fmt.Errorf("route: Config.Metric %d: must be positive", cfg.Metric)
	}
	t := &Table{
		log:  cfg.Log.With("reconciler", "route"),
		core: newCore(uint8(cfg.Protocol), uint32(cfg.Metric), cfg.Owners),
		open: func(poke func()) (kernel, error) { return openSockets(cfg.NetNS, uint8(cfg.Protocol), poke) },
	}
	t.loop = (&reconcile.Loop{Name: "route", Log: cfg.Log, Apply: t.apply, Resync: cfg.Resync}).Init()
	return t, nil
}

func (t *Table) String() string { return "route" }

// Update changes an owner's candidates. It does not wait; the Table keeps u.
func (t *Table) Update(owner model.Owner, u model.RouteUpdate) {
	if len(u.Set)+len(u.Delete) > 0 {
		t.ask(request{kind: reqUpdate, owner: owner, update: &u})
	}
}

// Replace makes routes the whole of an owner's candidates. It does not wait; the Table
// keeps routes.
func (t *Table) Replace(owner model.Owner, routes []model.Route) {
	t.ask(request{kind: reqReplace, owner: owner, replace: routes})
}

// SetResync is Config.Resync from the next dump on; 0 means that of the Config.
func (t *Table) SetResync(d time.Duration) { t.loop.SetResync(d) }

// SetMetric gives an owner's routes that name no metric one of their own, by family; 0
// means Config.Metric. Routes that stand at the old one move, make before break.
func (t *Table) SetMetric(owner model.Owner, v4, v6 int) {
	t.ask(request{kind: reqMetric, owner: owner, metrics: [2]uint32{uint32(max(v4, 0)), uint32(max(v6, 0))}})
}

// Guard names the addresses that learned routes must not lead astray: those of this node,
// which are learned from nobody, and those of other nodes and of peers, which are not
// learned while the kernel has them on a connected subnet. It does not wait.
func (t *Table) Guard(own, others []netip.Addr) {
	t.ask(request{kind: reqGuard, own: slices.Clone(own), others: slices.Clone(others)})
}

// InSync says that all of an owner's candidates have been handed in once. When every owner
// of Config.Owners said so, stale routes of an earlier life are pruned.
func (t *Table) InSync(owner model.Owner) { t.ask(request{kind: reqInSync, owner: owner}) }

// Wait blocks until the kernel has what was asked for prefixes (a route, or none) before
// the call, and returns what is in the way: an error that wraps ErrConflict, ErrUnresolved,
// ErrContested or the kernel's errno. The Table goes on trying. Run must be running.
func (t *Table) Wait(ctx context.Context, prefixes ...netip.Prefix) error {
	w := &waiter{done: make(chan error, 1)}
	for _, p := range prefixes {
		w.left = append(w.left, p.Masked())
	}
	t.ask(request{kind: reqWait, waiter: w})
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("routes %v: %w", prefixes, context.Cause(ctx))
	}
}

func (t *Table) ask(r request) {
	t.inMu.Lock()
	t.inbox = append(t.inbox, r)
	t.inMu.Unlock()
	t.loop.Poke()
}

// take moves the requests from the inbox to the core, and
// reports whether it took any.
func (t *Table) take() bool {
	t.inMu.Lock()
	in := t.inbox
	t.inbox = nil
	t.inMu.Unlock()
	for _, r := range in {
		switch r.kind {
		case reqUpdate:
			t.core.update(r.owner, *r.update)
		case reqReplace:
			t.core.replace(r.owner, r.replace)
		case reqInSync:
			t.core.inSync(r.owner)
		case reqWait:
			t.core.await(r.waiter)
		case reqMetric:
			t.core.setMetric(r.owner, r.metrics[0], r.metrics[1])
		case reqGuard:
			t.core.setGuard(r.own, r.others)
		case reqDivert:
			t.core.divert(r.owner, r.via)
		}
	}
	return len(in) > 0
}

// Ready reports whether the kernel's routes were read since Run began. It never waits.
func (t *Table) Ready() bool { return t.ready.Load() }

// Run keeps the kernel as the owners want it until ctx is cancelled. It removes nothing
// when it ends (I3).
func (t *Table) Run(ctx context.Context) error {
	t.wake = time.AfterFunc(time.Hour, t.loop.Poke)
	defer t.wake.Stop()
	defer t.closeKernel()
	return t.loop.Run(ctx)
}

func (t *Table) closeKernel() {
	if t.kernel != nil {
		t.kernel.close()
		t.kernel = nil
	}
}

// apply makes passes until nothing is left to do now.
func (t *Table) apply(ctx context.Context, resync bool) error {
	if t.kernel == nil {
		k, err := t.open(t.loop.Poke)
		if err != nil {
			t.mu.Lock()
			t.take() // what is asked for meanwhile is kept once, and not as often as it is asked
			t.mu.Unlock()
			return err
		}
		t.kernel = k
		resync = true
	}
	var set, deleted int
	start := time.Now()
	for ctx.Err() == nil {
		ops, again, err := t.prepare(ctx, resync)
		if err != nil {
			t.closeKernel() // a new socket starts clean, and with a dump
			return err
		}
		resync = false
		if len(ops) > 0 {
			first, failed, err := t.kernel.write(ops)
			t.mu.Lock()
			if err != nil {
				t.core.lostTrack(ops)
			} else {
				t.core.done(ops, first, failed)
			}
			t.mu.Unlock()
			if err != nil {
				t.closeKernel()
				return err
			}
			for i := range ops {
				if _, bad := failed[i]; bad {
				} else if ops[i].verb == opDelete {
					deleted++
				} else {
					set++
				}
			}
		}
		t.mu.Lock()
		t.core.answer()
		t.report()
		wake := t.core.wakeAt()
		t.mu.Unlock()
		if len(ops) == 0 && !again {
			if !wake.IsZero() {
				t.wake.Reset(max(time.Until(wake), time.Millisecond))
			}
			break
		}
	}
	if set+deleted > 0 {
		t.log.Info("routes changed", "set", set, "deleted", deleted, "took", time.Since(start).Round(time.Microsecond))
	}
	return nil
}

// prepare takes requests and events, dumps if need be, and decides what to write. again:
// there may be more to do although there are no writes.
func (t *Table) prepare(ctx context.Context, resync bool) (ops []op, again bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.core
	c.now = time.Now()
	// Requests come first: an event that came before a request was made is seen then too.
	again = t.take()
	overrun := t.kernel.drain(c.tell)
	if overrun != nil && !errors.Is(overrun, errOverrun) {
		return nil, false, overrun
	}
	if overrun != nil {
		t.log.Warn("netlink events were lost; reading the kernel's routes anew")
	}
	if resync || overrun != nil || !c.resyncAt.IsZero() && !c.now.Before(c.resyncAt) {
		if err := t.dump(ctx); err != nil {
			return nil, false, err
		}
		if overrun = t.kernel.drain(c.tell); overrun != nil {
			c.wantDump(0)
		}
	}
	c.retry()
	c.settle()
	return c.next(chunk), again, nil
}

// dump reads the kernel whole. The kernel interrupts a dump when routes change under it
// (NLM_F_DUMP_INTR); it is then read again.
func (t *Table) dump(ctx context.Context) error {
	var err error
	for range 10 {
		t.core.beginDump()
		if err = t.kernel.dump(ctx, t.core.tell); err == nil {
			t.core.endDump()
			t.ready.Store(true)
			return nil
		}
		if !errors.Is(err, errInterrupted) || ctx.Err() != nil {
			break
		}
	}
	return err
}

// report logs what newly went wrong; a few by name, the rest by number.
func (t *Table) report() {
	const most = 10
	c := t.core
	t.reportShunned()
	for i, f := range c.fresh {
		if i == most {
			t.log.Warn("more routes failed", "count", len(c.fresh)-most)
			break
		}
		t.log.Warn("route failed", "prefix", f.entry.prefix, "error", f.err)
	}
	for i, e := range c.freshConflict {
		if i == most {
			t.log.Warn("more foreign routes in the way", "count", len(c.freshConflict)-most)
			break
		}
		t.log.Warn("foreign route in the way", "prefix", e.prefix, "error", c.state(e))
	}
	clear(c.fresh)
	clear(c.freshConflict)
	c.fresh, c.freshConflict = c.fresh[:0], c.freshConflict[:0]
}
