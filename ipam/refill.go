package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// acquire takes one address that answers w out of the stash, after a refill if need be.
func (a *Allocator) acquire(ctx context.Context, w want) (*hold, error) {
	if w.addr.IsValid() {
		return a.acquireStatic(ctx, w.addr)
	}
	var (
		said  = map[string]error{} // by the pool's name
		later []string
	)
	// First the pools in their order; one that lately had nothing is left for the end, so
	// that it costs nothing while another has.
	for _, name := range w.pools {
		a.mu.Lock()
		p := a.poolState(name)
		h := a.takeStashed(p)
		if h != nil {
			a.served(name, p)
		}
		waiting := h == nil && p.err != nil && a.cfg.Now().Sub(p.errAt) < recent
		a.mu.Unlock()
		if h != nil {
			return h, nil
		}
		if waiting {
			later = append(later, name)
			continue
		}
		h, err := a.await(ctx, name)
		if err == nil {
			return h, nil
		}
		said[name] = err
	}
	for _, name := range later {
		h, err := a.await(ctx, name)
		if err == nil {
			return h, nil
		}
		said[name] = err
	}
	var why reasons
	exhausted := true
	for _, name := range w.pools {
		why = append(why, said[name])
		exhausted = exhausted && (errors.Is(said[name], ErrExhausted) || errors.Is(said[name], ErrNoPool))
	}
	if !exhausted {
		return nil, w.refused(why) // the Store has failed
	}
	return nil, fmt.Errorf("%w on node %s: %w", ErrExhausted, a.cfg.Node, w.refused(why))
}

// served notes that an ADD got an address of the pool. a.mu is held.
func (a *Allocator) served(name string, p *pool) {
	if mp := a.poolNamed(name); p.target == 0 && mp != nil && !mp.Manual {
		p.target = stashMin
	}
}

// await gets an address of a pool whose stash was empty. All that wait at a moment are
// served by one refill, and share its error.
func (a *Allocator) await(ctx context.Context, name string) (*hold, error) {
	a.mu.Lock()
	p := a.poolState(name)
	if mp := a.poolNamed(name); mp != nil {
		p.grow(mp, a.cfg.Now())
	}
	p.demand++
	seen := p.started
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		p.demand--
		a.mu.Unlock()
	}()
	if err := a.lockForAdd(ctx); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	defer a.unlockWriter()

	a.mu.Lock()
	h := a.takeStashed(p)
	failed := p.err != nil && p.errStart > seen
	err := p.err
	a.mu.Unlock()
	switch {
	case h != nil:
		return a.tookFrom(name, h), nil
	case failed:
		return nil, err
	}
	if err := a.ensureRead(ctx); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	err = a.refill(ctx, name, true)
	a.mu.Lock()
	h = a.takeStashed(p)
	a.mu.Unlock()
	switch {
	case h != nil:
		return a.tookFrom(name, h), nil
	case err == nil: // someone without a wait took what came
		err = because(ErrExhausted, "pool %s: other ADDs took what was free", name)
	}
	return nil, err
}

func (a *Allocator) tookFrom(name string, h *hold) *hold {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.served(name, a.poolState(name))
	return h
}

// refill marks addresses as stash: as many as the Assigns that wait and the target call
// for. Own blocks come first, then a new block, then, for Assigns that wait, the blocks of
// others. The writer's token is held.
func (a *Allocator) refill(ctx context.Context, name string, urgent bool) error {
	a.mu.Lock()
	p := a.poolState(name)
	mp := a.poolNamed(name)
	if now := a.cfg.Now(); !urgent && mp != nil {
		// A stash that lasts less long than other writes wait costs writes of its own.
		if now.Sub(p.refilled) < a.cfg.Linger {
			p.grow(mp, now)
		}
		p.refilled = now
	}
	p.started++
	start := p.started
	n := p.demand + p.target - a.stashSize(p)
	if p.full && !a.snap.IPAM.StrictAffinity {
		n = p.demand - a.stashSize(p)
	}
	if n <= 0 && urgent {
		n = 1
	}
	a.mu.Unlock()
	if mp == nil {
		return because(ErrNoPool, "pool %s: it was removed", name)
	}
	if n <= 0 {
		return nil
	}
	got, err := a.fetch(ctx, mp, n, urgent)
	if err != nil {
		err = fmt.Errorf("pool %s (%s): %w", name, mp.CIDR, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case got > 0 || err == nil:
		p.err = nil
	case ctx.Err() == nil:
		p.err, p.errStart, p.errAt = err, start, a.cfg.Now()
	}
	if got > 0 && urgent {
		return nil
	}
	return err
}

// fetch marks up to n addresses of a pool and returns how many. Unless it is urgent it
// leaves other nodes' blocks alone, and claims a block only when the stash is empty.
func (a *Allocator) fetch(ctx context.Context, mp *model.Pool, n int, urgent bool) (got int, err error) {
	var errs reasons
	for _, cidr := range a.ownBlocks(mp.CIDR) {
		if got >= n {
			return got, nil
		}
		k, err := a.writeBlock(ctx, cidr, nil, marks{n: n - got})
		got += k
		if err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	a.mu.Lock()
	stash, waiting := a.stashSize(a.poolState(mp.Name)), a.poolState(mp.Name).demand
	a.mu.Unlock()
	if len(errs) == 0 && (urgent && got < waiting || stash == 0) {
		k, err := a.claim(ctx, mp, n-got)
		got += k
		if err != nil {
			errs = append(errs, err)
		}
	}
	if got < waiting && urgent && (len(errs) == 0 || errors.Is(errs, ErrExhausted)) {
		k, err := a.borrow(ctx, mp, marks{n: waiting - got})
		got += k
		if err != nil {
			errs = append(errs, err)
		}
	}
	return got, together(errs)
}

// ownBlocks returns this node's blocks inside a prefix, in order.
func (a *Allocator) ownBlocks(within netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for cidr, b := range a.blocks {
		if b.Node() == a.cfg.Node && within.Contains(cidr.Addr()) {
			out = append(out, cidr)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// mayClaim says why this node may claim no further block of a pool for such a use, or nil.
func (a *Allocator) mayClaim(mp *model.Pool, use model.Use) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	node, err := a.node()
	if err != nil {
		return err
	}
	if err := closed(mp, use, node, a.cfg.Private); err != nil {
		return because(ErrNoPool, "%v", err)
	}
	if !a.snap.IPAM.AutoAllocateBlocks {
		return because(ErrExhausted, "blocks of node %s are full and IPAMConfiguration autoAllocateBlocks is false", a.cfg.Node)
	}
	own := 0
	for cidr, b := range a.blocks {
		if b.Node() == a.cfg.Node && cidr.Addr().Is4() == mp.CIDR.Addr().Is4() {
			own++
		}
	}
	if own >= a.snap.IPAM.MaxBlocksPerHost {
		return because(ErrExhausted, "blocks of node %s are full and it has %d, which is IPAMConfiguration maxBlocksPerHost", a.cfg.Node, own)
	}
	return nil
}

// claim creates blocks of a pool until n addresses are marked or none is left to claim.
func (a *Allocator) claim(ctx context.Context, mp *model.Pool, n int) (got int, err error) {
	for got < n {
		if err := a.mayClaim(mp, model.UseWorkload); err != nil {
			return got, err
		}
		k, err := a.claimOne(ctx, mp, marks{n: n - got})
		if err != nil {
			return got, err
		}
		got += k
		a.mu.Lock()
		waiting := a.poolState(mp.Name).demand
		a.mu.Unlock()
		if got >= waiting {
			break // the rest of the stash is not worth another block
		}
	}
	return got, nil
}

// maxClashes is how many claims may fail against another node's before the names of all
// blocks are read again.
const maxClashes = 2

// claimOne creates one block of a pool. Which are free it knows from names that may be
// old: the create decides. Before it says that none is left it reads them anew.
func (a *Allocator) claimOne(ctx context.Context, mp *model.Pool, m marks) (int, error) {
	fresh := false // the names were just read
	if a.named.IsZero() {
		if err := a.readNames(ctx, false); err != nil {
			return 0, err
		}
	}
	for {
		k, err := a.claimKnown(ctx, mp, m)
		if k > 0 || err != nil && !errors.Is(err, ErrExists) {
			return k, err
		}
		if err == nil && (fresh || a.namedFresh && a.cfg.Now().Sub(a.named) < a.cfg.SearchEvery) {
			a.mu.Lock()
			a.poolState(mp.Name).full = true
			at, whose, hosts := a.host(mp.CIDR)
			a.mu.Unlock()
			if hosts {
				return 0, because(ErrExhausted, "every block has an owner or an address of a node or peer, as %s of %s", at, whose)
			}
			return 0, because(ErrExhausted, "every block has an owner")
		}
		if err := a.readNames(ctx, true); err != nil {
			return 0, err
		}
		fresh = true
	}
}

// claimKnown creates a block that is not known to exist: 0, nil when there is none, and
// ErrExists after maxClashes.
func (a *Allocator) claimKnown(ctx context.Context, mp *model.Pool, m marks) (int, error) {
	reserved := func(p netip.Prefix) (netip.Prefix, bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.whollyReserved(p)
	}
	clashes := 0
	for cidr := range claimable(mp.CIDR, mp.BlockSize, a.cfg.Node, &a.claimed, reserved) {
		k, err := a.create(ctx, cidr, m)
		if err == nil || !errors.Is(err, ErrExists) {
			return k, err
		}
		// create made it known
		if clashes++; clashes == maxClashes {
			return 0, err
		}
	}
	return 0, nil
}

// create claims a block in which it marks what m says. After ErrExists the block that is in
// the way is known.
func (a *Allocator) create(ctx context.Context, cidr netip.Prefix, m marks) (int, error) {
	a.mu.Lock()
	b := NewBlock(cidr, a.cfg.Node, a.cfg.Now().UTC().Truncate(1e9))
	a.settle(b)
	got, err := a.mark(b, m)
	a.mu.Unlock()
	if err != nil {
		return 0, err
	}
	err = a.cfg.Store.Create(ctx, b)
	if errors.Is(err, ErrExists) {
		return 0, errors.Join(err, a.meet(ctx, cidr))
	}
	if err != nil {
		return 0, fmt.Errorf("claim block %s: %w", cidr, err)
	}
	a.log.Info("block claimed", "block", cidr.String())
	a.mu.Lock()
	a.absorb(b)
	a.take(m.exact)
	a.mu.Unlock()
	return got, nil
}

// meet learns of the block that was in the way of a claim. One that is ours after all (the
// answer to its creation was lost) is used like any other from then on.
func (a *Allocator) meet(ctx context.Context, cidr netip.Prefix) error {
	b, err := a.cfg.Store.Get(ctx, cidr)
	switch {
	case err == nil:
		a.mu.Lock()
		a.absorb(b)
		a.mu.Unlock()
		return nil
	case !errors.Is(err, ErrNotFound):
		// It cannot be read: still it is somebody's.
		a.mu.Lock()
		a.claimed.add(cidr)
		a.mu.Unlock()
		return nil
	}
	// Of another size, or gone again.
	if err := a.readNames(ctx, true); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claimed.add(cidr)
	return nil
}

// acquireStatic gets one certain address. It does not wait for a cooldown: whoever names
// an address wants that one now, as a pod that was only restarted does.
func (a *Allocator) acquireStatic(ctx context.Context, addr netip.Addr) (*hold, error) {
	h, err := a.takeExact(addr)
	if h != nil || err != nil {
		return h, err
	}
	if err := a.lockForAdd(ctx); err != nil {
		return nil, fmt.Errorf("address %s: %w", addr, err)
	}
	defer a.unlockWriter()
	if err := a.ensureRead(ctx); err != nil {
		return nil, fmt.Errorf("address %s: %w", addr, err)
	}
	// The block may come and go under another node's hands; three rounds see a change.
	for try := 0; ; try++ {
		if h, err := a.takeExact(addr); h != nil || err != nil {
			return h, err
		}
		err := a.markExact(ctx, addr)
		if err == nil {
			a.mu.Lock()
			h := a.state.holds[addr]
			a.mu.Unlock()
			return h, nil
		}
		if try == 2 || !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrExists) {
			return nil, err
		}
	}
}

// takeExact takes addr out of our stash: nil, nil when it is not ours.
func (a *Allocator) takeExact(addr netip.Addr) (*hold, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.state.holds[addr]
	o, orphaned := a.orphans[addr]
	switch {
	case orphaned:
		return nil, fmt.Errorf("address %s: %w: block %s gives it to %s", addr, ErrAddressInUse, o.block, o.handle)
	case h == nil:
		return nil, nil
	case h.taken:
		return nil, fmt.Errorf("address %s: %w: another request is just taking it", addr, ErrAddressInUse)
	case h.state == inUse:
		return nil, fmt.Errorf("address %s: %w by %s", addr, ErrAddressInUse, h.owner())
	case h.state == freeing:
		return nil, nil // its block will tell
	}
	h.taken, h.queued = true, false
	return h, nil
}

// markExact marks addr in its block and takes it, claiming the block if there is none.
func (a *Allocator) markExact(ctx context.Context, addr netip.Addr) error {
	a.mu.Lock()
	mp := a.poolOf(addr)
	strict := a.snap.IPAM.StrictAffinity
	a.mu.Unlock()
	if mp == nil {
		return fmt.Errorf("address %s: %w", addr, ErrNotInPool)
	}
	cidr, ok := a.claimed.containing(addr)
	if !ok {
		cidr = netip.PrefixFrom(addr, mp.BlockSize).Masked()
	}
	b, err := a.readBlock(ctx, cidr)
	if errors.Is(err, ErrNotFound) {
		if err := a.mayClaim(mp, model.UseWorkload); err != nil {
			return fmt.Errorf("address %s: block %s does not exist: %w", addr, cidr, err)
		}
		cidr = netip.PrefixFrom(addr, mp.BlockSize).Masked()
		a.mu.Lock()
		at, whose, ok := a.host(cidr)
		a.mu.Unlock()
		if ok {
			return fmt.Errorf("address %s: %w: block %s holds %s, the address of %s, and is not used", addr, ErrReserved, cidr, at, whose)
		}
		_, err := a.create(ctx, cidr, marks{exact: addr})
		return err
	}
	if err != nil {
		return err
	}
	if strict && b.Node() != a.cfg.Node {
		return fmt.Errorf("address %s: %w: block %s belongs to %q and IPAMConfiguration strictAffinity is true", addr, ErrNotInPool, cidr, b.Affinity)
	}
	_, err = a.writeBlock(ctx, cidr, b, marks{exact: addr})
	return err
}
