package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// The errors that Wait and Status report, wrapped with the route.
var (
	// ErrConflict: somebody else's route stands at the prefix and metric.
	ErrConflict = errors.New("a foreign route stands at this prefix and metric; remove it or give it another metric")
	// ErrUnresolved: there are candidates and none of their next hops is reachable.
	ErrUnresolved = errors.New("no next hop is reachable")
	// ErrLeftOut: the route would lead an address of a node or a peer astray (Guard).
	ErrLeftOut = errors.New("it is more specific than the connected subnet on which a node or a peer has its address")
	// ErrContested: somebody keeps changing the route back.
	ErrContested = errors.New("somebody keeps removing or changing this route; find who with: ip monitor route")
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// fightLimit is how often a route that others touch is put right at once within
	// fightWindow; after that it waits for its backoff.
	fightLimit  = 5
	fightWindow = time.Second
)

// failure is a route that the kernel refused, or that somebody contests.
type failure struct {
	entry   *entry
	err     error
	tries   int
	retryAt time.Time
}

// heals counts how often others touched a route since.
type heals struct {
	since time.Time
	count int
}

// choose returns the candidate that stands for the prefix: the best owner's that leads
// somewhere.
func (e *entry) choose() *cand {
	for k := e.cands; k != nil; k = k.next {
		if !k.shunned && (k.set == nil || k.set.group != nil) {
			return k
		}
	}
	return nil
}

func (k *cand) typ() uint8 {
	if k.set == nil {
		return typeBlackhole
	}
	return typeUnicast
}

// wanted is the group the kernel shall have for k. Its set holds it until done.
func (c *core) wanted(k *cand) *group {
	if k.set == nil {
		return c.empty
	}
	return k.set.group
}

// conflict returns the foreign route at the key of ours, or nil.
func (e *entry) conflict(metric uint32) *fibEntry {
	for f := e.fib; f != nil; f = f.next {
		if !f.ours && f.at(0, metric) {
			return f
		}
	}
	return nil
}

// next hands out the writes that are due, at most about limit; sets come before deletes.
func (c *core) next(limit int) []op {
	if !c.ready {
		return nil
	}
	var ops []op
	for _, f := range c.evict {
		if f.group != nil { // still there
			ops = append(ops, deletion(f))
		}
	}
	clear(c.evict)
	c.evict = c.evict[:0]
	pop := func(q []*entry) []*entry {
		i := 0
		for ; i < len(q) && len(ops) < limit; i++ {
			e := q[i]
			q[i] = nil
			if !e.queued {
				continue
			}
			e.queued, e.rush = false, false
			c.pending--
			ops = c.plan(e, ops)
			c.drop(e)
		}
		if i == len(q) {
			return q[:0]
		}
		return q[i:]
	}
	c.urgent = pop(c.urgent)
	before := len(c.queue)
	c.queue = pop(c.queue)
	c.taken += uint64(before - len(c.queue))
	if cap(c.queue) > 4096 && len(c.queue) == 0 {
		c.queue = nil
	}
	slices.SortStableFunc(ops, func(a, b op) int { return int(bit(a.verb == opDelete)) - int(bit(b.verb == opDelete)) })
	return ops
}

// plan appends what brings e from what the kernel has to what is wanted. A route that is
// in the way at another metric goes after its successor is in.
func (c *core) plan(e *entry, ops []op) []op {
	k := e.choose()
	if k != nil && e.conflict(k.metric) != nil {
		if _, ok := c.conflicts[e]; !ok {
			c.conflicts[e] = struct{}{}
			c.freshConflict = append(c.freshConflict, e)
		}
		k = nil
	} else {
		delete(c.conflicts, e)
	}
	var exact, same *fibEntry
	if k != nil {
		g := c.wanted(k)
		for f := e.fib; f != nil; f = f.next {
			if f.ours && f.at(0, k.metric) {
				if f.group == g && f.typ == k.typ() && !f.odd && !f.unsure {
					exact = f
				} else {
					same = f
				}
			}
		}
		if exact == nil {
			if c.contested(e) {
				return ops
			}
			o := op{verb: opAdd, prefix: e.prefix, typ: k.typ(), metric: k.metric, hops: g.hops, entry: e, group: g, owner: k.owner}
			if same != nil {
				o.verb, o.at = opReplace, same
			}
			return append(ops, o)
		}
		c.installed(e, k.owner)
	} else {
		c.installed(e, 0)
	}
	extra := false
	for f := e.fib; f != nil; f = f.next {
		extra = extra || f.ours && f != exact && !f.stale
	}
	if extra && c.contested(e) {
		return ops
	}
	delete(c.failed, e)
	for f := e.fib; extra && f != nil; f = f.next {
		if f.ours && f != exact && !f.stale {
			ops = append(ops, deletion(f))
		}
	}
	return ops
}

// deletion takes away f and nothing that merely stands beside it: IPv6 deletes hop by hop,
// since others' hops may have merged with ours.
func deletion(f *fibEntry) op {
	o := op{verb: opDelete, prefix: f.entry.prefix, typ: f.typ, tos: f.tos, metric: f.metric, entry: f.entry, at: f}
	if !f.unsure || f.entry.prefix.Addr().Is6() {
		o.hops = f.group.hops
	}
	return o
}

// contested reports whether others touched e so often that it has to wait.
func (c *core) contested(e *entry) bool {
	h := c.healed[e]
	if h == nil || h.count <= fightLimit || c.now.Sub(h.since) >= fightWindow {
		return false
	}
	h.count = fightLimit - 1 // once more after the backoff
	c.fail(e, ErrContested)
	return true
}

// installed notes whose candidate stands in the kernel.
func (c *core) installed(e *entry, o ownerIndex) {
	if e.owner != o {
		c.owners[e.owner].installed--
		c.owners[o].installed++
		e.owner = o
	}
}

// done takes the outcome of ops, of which the first has sequence number first.
func (c *core) done(ops []op, first uint64, failed map[int]error) {
	c.lastSeq = first + uint64(len(ops)) - 1
	for i := range ops {
		o := &ops[i]
		err := failed[i]
		if o.verb == opDelete {
			if errors.Is(err, syscall.ESRCH) {
				err = nil // it is gone already
			}
			if err != nil {
				c.fail(o.entry, fmt.Errorf("delete: %w", err))
				continue
			}
			c.remove(o.at)
			if o.entry.queued { // stays until its turn
				continue
			}
			c.drop(o.entry)
			continue
		}
		if err != nil {
			if errors.Is(err, syscall.EEXIST) {
				err = fmt.Errorf("%w (%w)", ErrConflict, err)
				c.wantDump(0)
			}
			if o.at != nil {
				o.at.unsure = true // an IPv6 replace can fail half way
				if !exhausted(err) {
					c.evict = append(c.evict, o.at)
				}
			}
			c.installed(o.entry, 0)
			c.fail(o.entry, err)
			continue
		}
		f := o.at
		if f == nil {
			f = &fibEntry{entry: o.entry, next: o.entry.fib, metric: o.metric, proto: c.proto, ours: true}
			o.entry.fib = f
		}
		f.typ, f.seq, f.gen, f.odd, f.unsure = o.typ, first+uint64(i), c.gen, false, false
		c.regroup(f, o.group)
		c.installed(o.entry, o.owner)
		delete(c.failed, o.entry)
		for g := o.entry.fib; g != nil; g = g.next {
			if g.ours && g != f {
				// With twins at the key it is not known which one the kernel took.
				g.unsure = g.unsure || g.at(f.tos, f.metric)
				c.enqueue(o.entry)
			}
		}
	}
}

// exhausted reports whether the kernel refused for want of memory. The route that was to be
// replaced stays then; otherwise it goes, since it leads where it should not.
func exhausted(err error) bool {
	return errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOSPC)
}

// lostTrack says that the fate of ops is not known: a dump will tell.
func (c *core) lostTrack(ops []op) {
	for i := range ops {
		if f := ops[i].at; f != nil {
			f.unsure = true
		}
		c.enqueue(ops[i].entry)
	}
	for _, w := range c.waiters {
		w.mark = 0 // what it waited for is in the queue once more
	}
	c.resyncAt = c.now
}

func (c *core) fail(e *entry, err error) {
	f := c.failed[e]
	if f == nil {
		f = &failure{entry: e}
		c.failed[e] = f
	}
	err = fmt.Errorf("route %s: %w", e.prefix, err)
	if f.err == nil || f.err.Error() != err.Error() {
		c.fresh = append(c.fresh, f)
	}
	f.err = err
	f.retryAt = c.now.Add(min(minBackoff<<min(f.tries, 16), maxBackoff))
	f.tries++
	if c.retryAt.IsZero() || f.retryAt.Before(c.retryAt) {
		c.retryAt = f.retryAt
	}
}

// retry queues the failures whose time has come.
func (c *core) retry() {
	if c.retryAt.IsZero() || c.now.Before(c.retryAt) {
		return
	}
	c.retryAt = time.Time{}
	for e, f := range c.failed {
		switch {
		case !f.retryAt.After(c.now):
			c.enqueue(e)
		case c.retryAt.IsZero() || f.retryAt.Before(c.retryAt):
			c.retryAt = f.retryAt
		}
	}
	for e, h := range c.healed {
		at := h.since.Add(fightWindow)
		switch {
		case !at.After(c.now):
			delete(c.healed, e)
		case c.retryAt.IsZero() || at.Before(c.retryAt):
			c.retryAt = at
		}
	}
}

// retrySoon gives failures another chance, since a link or an address came. When a great
// many fail, the table is full, and that will not help.
func (c *core) retrySoon() {
	if len(c.failed) > 1024 {
		return
	}
	for e, f := range c.failed {
		if !errors.Is(f.err, ErrContested) {
			c.enqueue(e)
		}
	}
}

// heal counts that somebody else touched our route at e.
func (c *core) heal(e *entry) {
	h := c.healed[e]
	if h == nil || c.now.Sub(h.since) >= fightWindow {
		if h == nil {
			h = &heals{}
			c.healed[e] = h
		}
		h.since, h.count = c.now, 0
	}
	h.count++
	if at := c.now.Add(fightWindow); c.retryAt.IsZero() || at.Before(c.retryAt) {
		c.retryAt = at // to forget it
	}
}

// waiter is a call of Wait, or of Settle or Synced.
type waiter struct {
	left []netip.Prefix
	errs []error
	done chan error // of capacity 1

	all    bool // everything is waited for
	synced bool // and all owners
	// mark is core.queued when there was first nothing in the way but the queue; 0: not yet.
	mark  uint64
	given atomic.Bool // up: nobody waits any more
}

// await takes a waiter; its prefixes go ahead of all others.
func (c *core) await(w *waiter) {
	for _, p := range w.left {
		if e, ok := c.entries.Get(p); ok && e.queued && !e.rush {
			e.rush = true
			c.urgent = append(c.urgent, e)
		}
	}
	c.waiters = append(c.waiters, w)
}

// answer tells the waiters whose prefixes have all settled.
func (c *core) answer() {
	if !c.ready || len(c.waiters) == 0 {
		return
	}
	c.waiters = slices.DeleteFunc(c.waiters, func(w *waiter) bool {
		if w.all {
			return c.answerAll(w)
		}
		// From the end, up to the first that has not settled, so that many prefixes are not
		// looked at again after every chunk.
		for ; len(w.left) > 0; w.left = w.left[:len(w.left)-1] {
			e, ok := c.entries.Get(w.left[len(w.left)-1])
			if !ok {
				continue
			}
			if e.queued {
				return false
			}
			if err := c.state(e); err != nil {
				w.errs = append(w.errs, err)
			}
		}
		w.done <- errors.Join(w.errs...)
		return true
	})
}

// answerAll reports whether what was queued when w came has left the queue, or nobody wants
// to know. Everything that was asked before is in the queue by then: settle has run.
func (c *core) answerAll(w *waiter) bool {
	if w.given.Load() {
		return true
	}
	if w.synced && !c.synced {
		return false
	}
	if w.mark == 0 {
		w.mark = c.queued
	}
	if c.taken < w.mark || len(c.evict) > 0 {
		return false
	}
	w.done <- nil
	return true
}

// state is what keeps e from being as it should, or nil.
func (c *core) state(e *entry) error {
	if f := c.failed[e]; f != nil {
		return f.err
	}
	k := e.choose()
	if k == nil {
		if e.cands == nil {
			return nil
		}
		if _, ok := c.guard.shunned[e]; ok && e.cands.next == nil {
			return fmt.Errorf("route %s: %w", e.prefix, ErrLeftOut)
		}
		return fmt.Errorf("route %s: %w", e.prefix, ErrUnresolved)
	}
	if f := e.conflict(k.metric); f != nil {
		return fmt.Errorf("route %s: %w: %s", e.prefix, ErrConflict, c.describe(f))
	}
	return nil
}
