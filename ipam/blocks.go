package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// conflictTries bounds how often a block is read again because another node was faster.
const conflictTries = 16

// marks is what a write of a block marks beside what the state says; the zero marks is
// nothing.
type marks struct {
	n      int           // up to so many free addresses
	exact  netip.Addr    // this one, which it then takes, and not others
	tunnel *model.Tunnel // they are that of a tunnel; nil: our stash
}

// less returns m with n addresses fewer.
func (m marks) less(n int) marks {
	m.n -= n
	return m
}

// writeBlock brings a block up to what the state says and marks what m says: one write for
// everything. It returns how many it marked. It begins with b, the block as it was just
// read and absorbed, or if that is nil with the last known version. ErrNotFound when the
// block does not exist. The writer's token is held.
func (a *Allocator) writeBlock(ctx context.Context, cidr netip.Prefix, b *Block, m marks) (int, error) {
	if _, stale := a.stale[cidr]; b == nil && !stale {
		b = a.blocks[cidr]
	}
	for range conflictTries {
		if b == nil {
			var err error
			if b, err = a.readBlock(ctx, cidr); err != nil {
				return 0, err
			}
		}
		c := b.Clone()
		a.mu.Lock()
		settled := a.settle(c)
		got, err := a.mark(c, m)
		if err != nil || settled == 0 && got == 0 {
			a.absorb(b) // nothing to write; so it is not dirty
			if err == nil {
				a.take(m.exact)
			}
			a.mu.Unlock()
			return 0, err
		}
		c.rested(a.cfg.Now(), a.cooldown())
		a.mu.Unlock()
		if settled > 0 {
			// What the block is to say must not be taken back by a crash: an address
			// that is free here and in use in the journal would have two owners.
			if err := a.journal.commit(a.journal.last(), true); err != nil {
				return 0, err
			}
			// Of a new address before the old one is free, and that rests from then on.
			if a.tellTunnels() {
				continue
			}
		}
		err = a.cfg.Store.Update(ctx, c)
		a.mu.Lock()
		if err == nil {
			a.absorb(c)
			a.take(m.exact)
			a.mu.Unlock()
			return got, nil
		}
		// Another node wrote, or nobody knows what is there.
		a.stale[cidr], a.dirty[cidr] = struct{}{}, struct{}{}
		if errors.Is(err, ErrNotFound) {
			a.vanish(cidr)
		}
		a.mu.Unlock()
		if !errors.Is(err, ErrConflict) {
			return 0, fmt.Errorf("write block %s: %w", cidr, err)
		}
		b = nil
	}
	return 0, fmt.Errorf("write block %s: %w, %d times in a row", cidr, ErrConflict, conflictTries)
}

// readBlock reads a block and takes note of what it says.
func (a *Allocator) readBlock(ctx context.Context, cidr netip.Prefix) (*Block, error) {
	b, err := a.cfg.Store.Get(ctx, cidr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(err, ErrNotFound) {
		a.vanish(cidr)
	}
	if err != nil {
		return nil, fmt.Errorf("read block %s: %w", cidr, err)
	}
	a.absorb(b)
	return b, nil
}

func (a *Allocator) cooldown() time.Duration {
	if a.snap == nil {
		return 0
	}
	return a.snap.IPAM.Cooldown
}

// settle writes into b what the state says and b does not, and returns how many slots it
// changed. a.mu is held.
func (a *Allocator) settle(b *Block) int {
	n := 0
	type freed struct {
		i  int
		at time.Time
	}
	var free []freed
	for addr, h := range a.state.byBlock[b.CIDR] {
		i := b.Ordinal(addr)
		s := b.Slots[i]
		switch {
		case h.state == inUse && !h.written && (s.Handle == "" || s.Handle == a.stashHandle() || s.Handle == h.handle):
			b.set(i, h.handle, a.attributes(h))
			n++
		case h.state == freeing && !h.taken && s.Handle != "" && (s.Handle == a.stashHandle() || s.Handle == h.handle):
			at := h.at
			if a.isTunnel(h.handle) {
				at = later(at, a.tunnels.heard) // until then it was used
			}
			free = append(free, freed{i, at})
			n++
		}
	}
	slices.SortFunc(free, func(x, y freed) int { return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.i, y.i)) })
	for _, f := range free {
		b.release(f.i, f.at)
	}
	return n
}

// mark gives free slots of b to our stash or to a tunnel, as m says, and returns how many.
// An exact address that is in our stash already counts as none. a.mu is held.
func (a *Allocator) mark(b *Block, m marks) (int, error) {
	var picks []int
	if m.exact.IsValid() {
		i := b.Ordinal(m.exact)
		switch h := b.Slots[i].Handle; h {
		case "":
			picks = []int{i}
		case a.stashHandle():
			// Ours; what rested was freed by settle.
		default:
			return 0, fmt.Errorf("address %s: %w: block %s gives it to %s", m.exact, ErrAddressInUse, b.CIDR, h)
		}
	} else if m.n > 0 {
		picks = b.pick(m.n, a.cfg.Now(), a.cooldown(), func(addr netip.Addr) bool {
			// A hold whose slot is free is one that its block lost, or frees right now.
			return a.state.holds[addr] != nil || a.reserved(addr)
		})
	}
	for _, i := range picks {
		if m.tunnel != nil {
			b.set(i, TunnelHandle(*m.tunnel, a.cfg.Node), a.tunnelAttributes(*m.tunnel))
			continue
		}
		at := b.Slots[i].ReleasedAt
		b.set(i, a.stashHandle(), map[string]string{AttrNode: a.cfg.Node, AttrType: "stash"})
		if at.Add(a.cooldown()).After(a.cfg.Now()) {
			b.Slots[i].ReleasedAt = at
		}
	}
	return len(picks), nil
}

// take takes exact, if it is valid and marked as our stash. One that still rested stays
// freeing in the journal until it is an endpoint's: nobody but who named it may have it
// sooner. a.mu is held.
func (a *Allocator) take(exact netip.Addr) {
	if !exact.IsValid() {
		return
	}
	if h := a.state.holds[exact]; h != nil && h.state != inUse {
		h.taken, h.queued = true, false
	}
}

// attributes returns what the block says of an address in use. a.mu is held.
func (a *Allocator) attributes(h *hold) map[string]string {
	if h.ofTunnel() {
		return a.tunnelAttributes(h.tunnel)
	}
	at := a.state.endpoints[h.key]
	m := map[string]string{AttrNode: a.cfg.Node, AttrInterface: h.key.IfName, AttrTimestamp: at.at.UTC().Format("2006-01-02 15:04:05.999999999 -0700 MST")}
	if at.ep.Pod != "" {
		m[AttrPod], m[AttrNamespace] = at.ep.Pod, at.ep.Namespace
	}
	return m
}

// absorb takes note of what a block says, as it was read or written last: it settles what
// we waited for, adopts stash marks of ours that we did not know (their write's answer
// was lost) and reports what contradicts the state. a.mu and the writer's token are held.
func (a *Allocator) absorb(b *Block) {
	dirty := false
	var gone []netip.Addr
	for addr, h := range a.state.byBlock[b.CIDR] {
		s := b.Slots[b.Ordinal(addr)]
		stash := s.Handle == a.stashHandle()
		switch {
		case h.state == freeing && (stash || s.Handle == h.handle && h.handle != ""):
			dirty = dirty || !h.taken
		case h.state == freeing && !h.taken:
			gone = append(gone, addr)
		case h.state == freeing:
		case h.state == inUse && s.Handle == h.handle && s.Attrs[AttrInterface] == h.key.IfName:
			h.written, h.lost = true, ""
		case h.state == inUse && (stash || s.Handle == h.handle):
			h.written, dirty = false, true
		case h.state == inUse && s.Handle == "":
			if h.written {
				a.log.Error("block lost an address that is in use; marking it again", "block", b.CIDR.String(), "address", addr.String(), "key", h.owner())
			}
			h.written, h.lost, dirty = false, "", true
		case h.ofTunnel():
			if h.lost == "" {
				a.log.Warn("address of a tunnel of this node is given to another holder in its block; taking another",
					"block", b.CIDR.String(), "address", addr.String(), "device", h.tunnel.Device(), "holder", s.Handle, "node", s.Attrs[AttrNode])
			}
			h.written, h.lost = false, holder(s)
		case h.state == inUse:
			if h.lost == "" {
				a.log.Error("address of a pod of this node is given to another holder in its block; delete one of the two pods",
					"block", b.CIDR.String(), "address", addr.String(), "key", h.key.String(), "holder", s.Handle, "node", s.Attrs[AttrNode])
			}
			h.written, h.lost = false, holder(s)
		case stash || h.taken:
			// Stashed, as it should be; or an Assign has it and will mark it again.
		case s.Handle != "" && s.Attrs[AttrNode] == a.cfg.Node:
			// It was written as an endpoint's that then did not come to be.
			a.record(record{Kind: recFree, Addrs: []netip.Addr{addr}, Block: b.CIDR, Handle: s.Handle, At: a.cfg.Now()})
			dirty = true
		default:
			a.log.Warn("block lost a stash mark of this node", "block", b.CIDR.String(), "address", addr.String(), "holder", s.Handle)
			gone = append(gone, addr)
		}
	}
	if len(gone) > 0 {
		a.record(record{Kind: recGone, Addrs: gone})
	}
	var found, used []netip.Addr
	for i, s := range b.Slots {
		if s.Handle == "" {
			continue
		}
		addr := b.Addr(i)
		switch {
		case a.state.holds[addr] != nil:
			delete(a.orphans, addr)
			continue
		case a.isTunnel(s.Handle):
			if a.adoptTunnel(addr, b.CIDR, s.Handle) {
				dirty = true
			}
		case s.Handle == a.stashHandle() && s.ReleasedAt.Add(a.cooldown()).After(a.cfg.Now()):
			a.record(record{Kind: recFree, Addrs: []netip.Addr{addr}, Block: b.CIDR, At: s.ReleasedAt})
			dirty = true
		case s.Handle == a.stashHandle() && a.adopt:
			found = append(found, addr)
		case s.Handle == a.stashHandle():
			used = append(used, addr)
		case s.Attrs[AttrNode] == a.cfg.Node && (s.Attrs[AttrPod] != "" || s.Attrs[AttrInterface] != ""):
			if _, ok := a.orphans[addr]; !ok {
				a.log.Warn("block gives an address to a container of this node that the journal does not know; it stays so until DEL or GC names it",
					"block", b.CIDR.String(), "address", addr.String(), "handle", s.Handle)
			}
			a.orphans[addr] = orphan{b.CIDR, s.Handle, s.Attrs[AttrInterface], s.Attrs[AttrNamespace], s.Attrs[AttrPod]}
			continue
		}
		delete(a.orphans, addr)
	}
	for addr, o := range a.orphans {
		if o.block == b.CIDR && b.Slots[b.Ordinal(addr)].Handle != o.handle {
			delete(a.orphans, addr)
		}
	}
	if len(found) > 0 {
		a.record(record{Kind: recStash, Addrs: found, Block: b.CIDR})
		for _, addr := range found {
			a.putBy(a.state.holds[addr])
		}
	}
	if len(used) > 0 {
		// The journal was lost, and with it whether these were given to a pod: let them
		// rest as if they had.
		a.record(record{Kind: recFree, Addrs: used, Block: b.CIDR, At: a.cfg.Now()})
		dirty = true
	}

	a.claimed.add(b.CIDR)
	delete(a.stale, b.CIDR)
	if dirty {
		a.dirty[b.CIDR] = struct{}{}
	} else {
		delete(a.dirty, b.CIDR)
	}
	if b.Node() == a.cfg.Node || len(a.state.byBlock[b.CIDR]) > 0 {
		a.blocks[b.CIDR] = b
	} else {
		delete(a.blocks, b.CIDR)
	}
}

// vanish takes note that a block does not exist. The addresses of pods in it stay, and
// make it dirty. a.mu and the writer's token are held.
func (a *Allocator) vanish(cidr netip.Prefix) {
	delete(a.blocks, cidr)
	delete(a.empty, cidr)
	delete(a.dirty, cidr)
	delete(a.stale, cidr)
	a.claimed.remove(cidr)
	if mp := a.poolOf(cidr.Addr()); mp != nil {
		a.poolState(mp.Name).full = false
	}
	for addr, o := range a.orphans {
		if o.block == cidr {
			delete(a.orphans, addr)
		}
	}
	var gone []netip.Addr
	for addr, h := range a.state.byBlock[cidr] {
		if h.state == inUse || h.taken {
			h.written = false
			a.dirty[cidr] = struct{}{}
			continue
		}
		gone = append(gone, addr)
	}
	if len(gone) > 0 {
		a.record(record{Kind: recGone, Addrs: gone})
	}
}

// readNames learns which blocks exist. The writer's token is held.
func (a *Allocator) readNames(ctx context.Context, fresh bool) error {
	list, err := a.cfg.Store.Claimed(ctx, fresh)
	if err != nil {
		return fmt.Errorf("read the names of all blocks: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortFunc(list, netip.Prefix.Compare)
	a.claimed = a.claimed[:0]
	for _, cidr := range list {
		if other, ok := a.claimed.overlapping(cidr); ok {
			a.log.Error("blocks overlap; remove the one that was made by hand", "block", cidr.String(), "other", other.String())
			continue
		}
		a.claimed = append(a.claimed, cidr)
	}
	for cidr := range a.blocks { // the list may be older than these
		a.claimed.add(cidr)
	}
	a.named, a.namedFresh = a.cfg.Now(), fresh
	return nil
}
