package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Blocks that a cluster has before their names are read with care: few are read at every
// resync, so that a small pool that runs out is soon known to be full and gives up its
// stashes; many are read once an hour, and when a claim finds them to have changed.
const (
	fewBlocks  = 512
	namesEvery = time.Hour
)

// resync reads this node's blocks, and those in which it has addresses, and compares them
// with the state.
func (a *Allocator) resync(ctx context.Context) error {
	a.journal.restore()
	a.mu.Lock()
	doubts := a.doubts
	a.mu.Unlock()
	list, err := Collect(a.cfg.Store.List(ctx, Query{Owner: a.cfg.Node}))
	if err == nil {
		var borrowed []*Block
		borrowed, err = Collect(a.cfg.Store.List(ctx, Query{Borrower: a.cfg.Node}))
		list = append(list, borrowed...)
	}
	if err != nil {
		return fmt.Errorf("read blocks: %w", err)
	}
	there := make(map[netip.Prefix]bool, len(list))
	for _, b := range list {
		there[b.CIDR] = true
	}
	var gone []netip.Prefix
	lost := false
	for _, cidr := range a.expected() {
		if there[cidr] {
			continue
		}
		// Somebody else's by now, or Calico's, which keeps no label of borrowers.
		b, err := a.cfg.Store.Get(ctx, cidr)
		switch {
		case err == nil:
			there[cidr] = true
			list = append(list, b)
		case errors.Is(err, ErrNotFound):
			gone = append(gone, cidr)
			a.mu.Lock()
			lost = lost || len(a.state.byBlock[cidr]) > 0
			a.mu.Unlock()
		default:
			a.log.Warn("block cannot be read and is left alone", "block", cidr.String(), "error", err)
		}
	}
	if a.namesDue() || lost {
		if err := a.readNames(ctx, lost); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range list {
		a.claimed.add(b.CIDR)
	}
	if lost {
		a.rehome()
	}
	for _, cidr := range gone {
		a.vanish(cidr)
	}
	for _, b := range list {
		a.absorb(b)
	}
	for name, p := range a.pools {
		if mp := a.poolNamed(name); mp != nil {
			p.full = a.noneLeft(mp)
			p.errAt = time.Time{}
		}
	}
	a.synced, a.adopt, a.settled, a.lastSync = true, true, doubts, a.cfg.Now()
	if len(a.orphans) == 0 && !a.state.whole {
		a.record(record{Kind: recWhole})
	}
	return nil
}

// expected returns the blocks that must be there as far as this node knows: its own, and
// those in which it holds addresses.
func (a *Allocator) expected() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := map[netip.Prefix]bool{}
	for cidr := range a.blocks {
		known[cidr] = true
	}
	for cidr := range a.state.byBlock {
		known[cidr] = true
	}
	for _, o := range a.orphans {
		known[o.block] = true
	}
	delete(known, netip.Prefix{}) // of addresses without IPAM
	return slices.SortedFunc(maps.Keys(known), netip.Prefix.Compare)
}

// namesDue reports whether a resync reads which blocks exist: not before this node has
// claimed, or tried to.
func (a *Allocator) namesDue() bool {
	return !a.named.IsZero() && (len(a.claimed) <= fewBlocks || a.cfg.Now().Sub(a.named) >= namesEvery)
}

// rehome moves holds to the block that contains them now, which has another size than the
// one they were made in if an operator changed the pool and removed the block. a.mu is
// held.
func (a *Allocator) rehome() {
	for _, h := range slices.Collect(maps.Values(a.state.holds)) {
		cidr, ok := a.claimed.containing(h.addr)
		if !ok || cidr == h.block || !h.block.IsValid() {
			continue
		}
		a.touch(cidr)
		switch h.state {
		case stashed:
			if !h.taken { // without a mark in its block it is nobody's; with one it is adopted
				a.record(record{Kind: recGone, Addrs: []netip.Addr{h.addr}})
			}
		case freeing:
			a.record(record{Kind: recFree, Addrs: []netip.Addr{h.addr}, Block: cidr, Handle: h.handle, At: h.at})
		case inUse:
			if h.ofTunnel() {
				a.record(a.tunnelRecord(h.tunnel, h.addr, cidr))
				continue
			}
			at := a.state.endpoints[h.key]
			ep, blocks := at.endpoint(), slices.Clone(at.blocks)
			blocks[slices.Index(ep.Addresses, h.addr)] = cidr
			a.record(record{Kind: recSet, Endpoint: &ep, Blocks: blocks, At: at.at})
		}
	}
}
