package route

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Divert makes every next hop of an owner's candidates, those that stand and those to come,
// go through via before it is used: what via returns is resolved and programmed in its
// place. Called again it moves the routes, make before break; nil gives the owner's own next
// hops back. via is called by the goroutine in Run, once for each next hop of each route at
// every Divert and every Update; it must answer alike for the same question. Divert does
// not wait: see Settle.
func (t *Table) Divert(owner model.Owner, via func(netip.Prefix, model.NextHop) model.NextHop) {
	t.ask(request{kind: reqDivert, owner: owner, via: via})
}

// Settle blocks until everything that was asked before the call has been written to the
// kernel or refused by it; Status tells of what was refused. Run must be running.
func (t *Table) Settle(ctx context.Context) error { return t.settled(ctx, &waiter{all: true}) }

// Synced blocks until every owner of Config.Owners is in sync and the stale routes of an
// earlier life are gone. Run must be running.
func (t *Table) Synced(ctx context.Context) error {
	return t.settled(ctx, &waiter{all: true, synced: true})
}

func (t *Table) settled(ctx context.Context, w *waiter) error {
	w.done = make(chan error, 1)
	t.ask(request{kind: reqWait, waiter: w})
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.given.Store(true)
		t.loop.Poke()
		return fmt.Errorf("routes: %w", context.Cause(ctx))
	}
}

// asked is what candidates ask for that Divert made something else of; shared by all that
// ask for the same.
type asked struct {
	key   string
	hops  []model.NextHop
	users int
}

// divert makes via the owner's, and moves its candidates.
func (c *core) divert(owner model.Owner, via func(netip.Prefix, model.NextHop) model.NextHop) {
	o := c.index(owner)
	own := &c.owners[o]
	if own.via = via; via == nil && len(c.asked) == 0 {
		return
	}
	var hops []model.NextHop
	for _, k := range own.cands {
		if k.set == nil {
			continue
		}
		hops = k.original(hops[:0])
		now, orig := c.diverted(o, k.entry.prefix, hops)
		c.keep(k, orig)
		if k.set.asks(now) {
			continue
		}
		set := c.internSet(now)
		c.unuse(k)
		k.set = set
		c.use(k)
		delete(c.failed, k.entry)
		c.enqueue(k.entry)
		c.changed(k.entry.prefix)
	}
}

// original appends what k's owner asked for.
func (k *cand) original(out []model.NextHop) []model.NextHop {
	if k.asked != nil {
		return append(out, k.asked.hops...)
	}
	for _, n := range k.set.hops {
		out = append(out, n.asked)
	}
	return out
}

// asks reports whether s is the set of these normal next hops.
func (s *nextHopSet) asks(hops []model.NextHop) bool {
	return slices.EqualFunc(s.hops, hops, func(n *nextHop, h model.NextHop) bool { return n.asked == h })
}

// diverted is what becomes of hops at p. orig keeps them when they become something else.
// The result is good until the next call.
func (c *core) diverted(o ownerIndex, p netip.Prefix, hops []model.NextHop) (now []model.NextHop, orig *asked) {
	hops = normalNextHops(hops)
	via := c.owners[o].via
	if via == nil {
		return hops, nil
	}
	c.hopScratch = c.hopScratch[:0]
	moved := false
	for _, h := range hops {
		n := via(p, h)
		moved = moved || n != h
		c.hopScratch = append(c.hopScratch, n)
	}
	if !moved {
		return hops, nil
	}
	c.key = appendAsked(c.key[:0], hops)
	if orig = c.asked[string(c.key)]; orig == nil {
		orig = &asked{key: string(c.key), hops: slices.Clone(hops)}
		c.asked[orig.key] = orig
	}
	return normalNextHops(c.hopScratch), orig
}

// keep makes a what k keeps of its owner's wish; nil: its set is what was asked for.
func (c *core) keep(k *cand, a *asked) {
	if a != nil {
		a.users++
	}
	if old := k.asked; old != nil {
		if old.users--; old.users == 0 {
			delete(c.asked, old.key)
		}
	}
	k.asked = a
}
