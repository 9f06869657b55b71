package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	storeTimeout = 10 * time.Second // of a pass of Run
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 15 * time.Second
	readPatience = 3 * time.Second // for which the first ADD of a restarted agent waits for the Store
)

// Run does what need not be done while an ADD or DEL waits: it reads the Store, refills
// the stash, writes attributes and releases in batches, and gives back empty blocks. It
// returns nil when ctx is cancelled.
func (a *Allocator) Run(ctx context.Context) error {
	backoff := time.Duration(0)
	failing := false
	if a.lockWriter(ctx) != nil {
		return nil
	}
	a.tellTunnels() // what the journal says holds also while the Store is away
	a.unlockWriter()
	for {
		wait := a.cfg.Resync/2 + rand.N(a.cfg.Resync/2)
		if backoff > 0 {
			wait = backoff
		} else {
			wait = min(wait, a.soon())
		}
		timer := time.NewTimer(wait)
		if backoff > 0 {
			// Pokes do not cut a backoff short; an ADD that needs the Store tries it itself.
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		} else {
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-a.poke:
				a.gather(ctx, timer)
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
		err := a.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrClosed):
			return err
		case err != nil:
			if !failing {
				a.log.Error("blocks cannot be brought up to date; trying again", "error", err)
			}
			failing = true
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			backoff += rand.N(backoff / 5) // nodes do not march in step
		default:
			if failing {
				a.log.Info("blocks are up to date again")
			}
			failing, backoff = false, 0
		}
	}
}

// gather waits, after a poke, for more to write: until the batch that a low stash allows
// or the longer one of everything else is over.
func (a *Allocator) gather(ctx context.Context, timer *time.Timer) {
	for began := time.Now(); ; {
		left := a.patience() - time.Since(began)
		if left <= 0 {
			return
		}
		timer.Reset(left)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-a.poke: // perhaps the stash is low by now
		}
	}
}

// patience is how long what is to be written may wait for more. Where a pool has no block
// left, another node may be waiting for what is given back.
func (a *Allocator) patience() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.sure() || len(a.lowPools()) > 0 || a.tunnels.hurry {
		return a.cfg.Batch
	}
	for _, p := range a.pools {
		if p.full {
			return a.cfg.Batch
		}
	}
	return max(a.cfg.Batch, a.cfg.Linger)
}

// soon returns how long Run may rest for what memory knows of: blocks that will have been
// empty long enough, pools that had nothing free.
func (a *Allocator) soon() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.cfg.Resync
	if len(a.empty) > 0 {
		d = min(d, a.cfg.BlockIdle+a.cfg.Batch)
	}
	for _, p := range a.pools {
		if p.err != nil && p.target > 0 {
			d = min(d, recent)
		}
	}
	return min(d, a.tunnelsDue())
}

func (a *Allocator) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := a.lockWriter(ctx); err != nil {
		return err
	}
	defer a.unlockWriter()
	a.mu.Lock()
	ready := a.snap != nil
	closed := a.closed
	sure := a.sure()
	a.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if !ready {
		return nil // Set pokes
	}
	if !sure || a.cfg.Now().Sub(a.lastSync) >= a.cfg.Resync/2 {
		if err := a.resync(ctx); err != nil {
			return err
		}
	}
	return a.tidy(ctx)
}

// Flush does at once what Run does in time: afterwards the blocks say what the journal
// says. With resync it first reads this node's blocks. It needs a snapshot.
func (a *Allocator) Flush(ctx context.Context, resync bool) error {
	if err := a.lockWriter(ctx); err != nil {
		return err
	}
	defer a.unlockWriter()
	if resync {
		if err := a.resync(ctx); err != nil {
			return err
		}
	}
	if err := a.ensureRead(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	a.hurryTunnels()
	a.mu.Unlock()
	return a.tidy(ctx)
}

// sure reports whether this node's blocks were read since New, and since a snapshot last
// gave reason to doubt what was read. a.mu is held.
func (a *Allocator) sure() bool { return a.synced && a.settled == a.doubts }

// readFirst reads this node's blocks before an address is given, if they were not read
// since New or are in doubt: a node that was gone for long may find that its stash was
// freed, and that others have what its journal has.
//
// With the Store away a whole journal that nothing contradicts is believed, so that a
// restarted agent serves all the same.
func (a *Allocator) readFirst(ctx context.Context) error {
	a.mu.Lock()
	sure := a.sure()
	doubtful := a.settled != a.doubts || !a.synced && !a.state.whole
	away := a.cfg.Now().Sub(a.unreadAt) < recent
	a.mu.Unlock()
	if sure || away && !doubtful {
		return nil
	}
	if doubtful {
		return a.read(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	if err := a.read(limited); err != nil {
		a.mu.Lock()
		a.unreadAt = a.cfg.Now()
		a.mu.Unlock()
	}
	return ctx.Err()
}

// read makes sure that this node's blocks were read since New, and since they were in doubt.
func (a *Allocator) read(ctx context.Context) error {
	if err := a.lockForAdd(ctx); err != nil {
		return err
	}
	defer a.unlockWriter()
	return a.ensureRead(ctx)
}

func (a *Allocator) ensureRead(ctx context.Context) error {
	a.mu.Lock()
	sure := a.sure()
	a.mu.Unlock()
	if sure {
		return nil
	}
	if err := a.resync(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// tidy sees to the tunnels' addresses, returns stashed addresses that are of no use, refills
// the stash, writes what is dirty and gives back empty blocks. The writer's token is held.
func (a *Allocator) tidy(ctx context.Context) error {
	errs := []error{a.tidyTunnels(ctx)}
	a.mu.Lock()
	for cidr := range a.relent {
		if a.blocks[cidr] != nil { // a write begins with a reading then
			a.stale[cidr], a.dirty[cidr] = struct{}{}, struct{}{}
		}
	}
	clear(a.relent)
	a.returnStash()
	refills := a.lowPools()
	a.mu.Unlock()
	for _, name := range refills {
		if err := a.refill(ctx, name, false); err != nil && !errors.Is(err, ErrExhausted) && !errors.Is(err, ErrNoPool) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, a.flush(ctx), a.giveBack(ctx))
	if err := a.journal.commit(a.journal.last(), false); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// returnStash begins to free stashed addresses that no ADD may use (their pool is gone,
// disabled or elsewhere, they are reserved), and those of pools that have no block left,
// where another node may be waiting for them. a.mu is held.
func (a *Allocator) returnStash() {
	now := a.cfg.Now()
	for name, p := range a.pools {
		mp := a.poolNamed(name)
		if p.target > stashMin && now.Sub(p.missed) > stashCalm {
			p.target = stashMin
			for n := a.stashSize(p) - 2*p.target; n > 0 && mp != nil; n-- {
				a.takeStashed(p).taken = false
			}
		}
		if mp == nil || p.demand > 0 {
			continue
		}
		if mp.Manual || p.full && !a.snap.IPAM.StrictAffinity {
			for h := a.takeStashed(p); h != nil; h = a.takeStashed(p) {
				h.taken = false
			}
		}
	}
	for _, h := range slices.Collect(maps.Values(a.state.holds)) {
		if h.state == stashed && !h.taken && !h.queued {
			a.record(record{Kind: recFree, Addrs: []netip.Addr{h.addr}, Block: h.block})
			a.dirty[h.block] = struct{}{}
		}
	}
}

// lowPools returns the pools whose stash wants a refill. a.mu is held.
func (a *Allocator) lowPools() []string {
	node, err := a.node()
	if err != nil {
		return nil
	}
	var out []string
	for name, p := range a.pools {
		mp := a.poolNamed(name)
		if mp != nil && unusable(mp, node, a.cfg.Private) == nil && 2*a.stashSize(p) <= p.target && p.target > 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// flush writes every block that does not say what the state says.
func (a *Allocator) flush(ctx context.Context) error {
	a.mu.Lock()
	dirty := slices.SortedFunc(maps.Keys(a.dirty), netip.Prefix.Compare)
	a.mu.Unlock()
	var errs []error
	for _, cidr := range dirty {
		_, err := a.writeBlock(ctx, cidr, nil, marks{})
		if errors.Is(err, ErrNotFound) {
			err = a.restore(ctx, cidr)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restore creates a block again that someone removed while pods or tunnels of this node had
// addresses in it.
func (a *Allocator) restore(ctx context.Context, cidr netip.Prefix) error {
	a.mu.Lock()
	n := len(a.state.byBlock[cidr])
	a.mu.Unlock()
	if n == 0 {
		return nil
	}
	a.log.Error("block was removed while this node has addresses in it; claiming it again", "block", cidr.String(), "addresses", n)
	_, err := a.create(ctx, cidr, marks{})
	if errors.Is(err, ErrExists) {
		a.lastSync = time.Time{} // the next pass finds where the addresses belong
	}
	return err
}

// giveBack deletes blocks that no pod uses: all of a pool that this node may not use,
// and all but one of the others once they were empty for a while and nothing in them
// rests. It first frees the stash in them and only then deletes the block, so that a
// delete whose answer is lost and that is done late never meets an address in use: to
// use the block again it has to be written, which ends that delete's revision.
func (a *Allocator) giveBack(ctx context.Context) error {
	var errs []error
	for _, cidr := range a.superfluous() {
		if _, err := a.writeBlock(ctx, cidr, nil, marks{}); err != nil {
			if !errors.Is(err, ErrNotFound) {
				errs = append(errs, err)
			}
			continue
		}
		b := a.blocks[cidr]
		a.mu.Lock()
		// A borrower may have taken and given back an address meanwhile: with the block
		// the rest of that address would be forgotten.
		ok := b != nil && len(a.state.byBlock[cidr]) == 0 && b.Free() == len(b.Slots) && !b.resting(a.cfg.Now(), a.cooldown())
		a.mu.Unlock()
		if !ok {
			continue
		}
		err := a.cfg.Store.Delete(ctx, b)
		a.mu.Lock()
		a.stale[cidr] = struct{}{}
		if err == nil || errors.Is(err, ErrNotFound) {
			a.vanish(cidr)
			a.log.Info("empty block given back", "block", cidr.String())
			err = nil
		}
		a.mu.Unlock()
		if errors.Is(err, ErrConflict) {
			// Another node borrows from it; it is ours still.
			err = a.meet(ctx, cidr)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delete block %s: %w", cidr, err))
		}
	}
	return errors.Join(errs...)
}

// superfluous returns the empty blocks that may go, after it began to free the stash in
// them.
func (a *Allocator) superfluous() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	node, err := a.node()
	if err != nil {
		return nil
	}
	now := a.cfg.Now()
	kept := map[string]bool{}
	var out []netip.Prefix
	// Those with a stash first: they are kept, so that nothing has to be freed.
	cidrs := slices.SortedFunc(maps.Keys(a.blocks), func(x, y netip.Prefix) int {
		if d := len(a.state.byBlock[y]) - len(a.state.byBlock[x]); d != 0 {
			return d
		}
		return x.Compare(y)
	})
	for _, cidr := range cidrs {
		b := a.blocks[cidr]
		ours := b.Node() == a.cfg.Node
		if !ours && b.Affinity != "" || !a.unused(b) {
			delete(a.empty, cidr)
			continue
		}
		mp := a.poolOf(cidr.Addr())
		usable := ours && mp != nil && unusable(mp, node, a.cfg.Private) == nil
		if usable && !kept[mp.Name] {
			kept[mp.Name] = true
			delete(a.empty, cidr)
			continue
		}
		since, ok := a.empty[cidr]
		if !ok {
			since = now
			a.empty[cidr] = now
		}
		if usable && now.Sub(since) < a.cfg.BlockIdle || b.resting(now, a.cooldown()) {
			continue
		}
		for addr := range a.state.byBlock[cidr] {
			a.record(record{Kind: recFree, Addrs: []netip.Addr{addr}, Block: cidr})
		}
		out = append(out, cidr)
	}
	return out
}

// unused reports whether a block has no address but stash of ours that nobody takes.
// a.mu is held.
func (a *Allocator) unused(b *Block) bool {
	holds := a.state.byBlock[b.CIDR]
	for _, h := range holds {
		if h.state != stashed || h.taken {
			return false
		}
	}
	return len(b.Slots)-b.Free() <= len(holds)
}
