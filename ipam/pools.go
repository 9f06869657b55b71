package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

const (
	stashMin  = 8                // addresses put by in a pool that this node has served
	stashMax  = 64               // the same, after ADDs came faster than refills; half a block at most
	stashCalm = 5 * time.Minute  // without such a burst the stash is small again
	recent    = 10 * time.Second // how long a pool that had nothing free is tried last

	hostnameLabel = "kubernetes.io/hostname"
)

// pool is what the Allocator keeps of a pool beside the snapshot's model.Pool. It is
// under Allocator.mu.
type pool struct {
	stash  []netip.Addr // in order of use; entries that are no longer stashed are skipped
	target int          // how many to put by; 0 until an ADD was served
	missed time.Time    // when an ADD last found the stash empty
	grown  uint64       // the refill after which target grew last
	demand int          // Assigns that wait for a refill
	full   bool         // no block of the pool is left to claim

	refilled time.Time // when a refill began last that nobody waited for
	started  uint64    // refills begun
	err      error     // of the last refill; nil when it brought something
	errStart uint64    // which refill that was
	errAt    time.Time
	// searched is when all nodes' blocks were last searched, if nothing was found.
	searched time.Time
}

// grow doubles what is put by, once for each refill that ADDs had to wait for. Half of a
// block stays for those who borrow.
func (p *pool) grow(mp *model.Pool, now time.Time) {
	p.missed = now
	if p.target == 0 || p.grown == p.started {
		return
	}
	block := 1 << (mp.CIDR.Addr().BitLen() - mp.BlockSize)
	p.grown = p.started
	p.target = max(p.target, min(2*p.target, stashMax, block/2))
}

// want is one address that an ADD needs: a certain one, or one of some pools.
type want struct {
	addr  netip.Addr
	pools []string // names, in the order in which to try them
	// unused says of the family's other pools why they are not tried.
	unused []error
}

// pin is what a compiled selector of internal/selector can do beyond model.Selector: tell
// the only value of a label that it lets through.
type pin interface {
	Pins(label string) (value string, ok bool)
}

// unusable says why a pool gives this node no new workload addresses, or nil.
func unusable(p *model.Pool, node *model.Node, private bool) error {
	return closed(p, model.UseWorkload, node, private)
}

// closed says why a pool gives this node no new addresses for such a use, or nil.
func closed(p *model.Pool, use model.Use, node *model.Node, private bool) error {
	switch {
	case p.Disabled:
		return fmt.Errorf("pool %s: .spec.disabled is true", p.Name)
	case !p.Allows(use):
		return fmt.Errorf("pool %s: .spec.allowedUses lacks %s", p.Name, use)
	case p.NodeSelector != nil && !p.NodeSelector.Matches(node.Labels):
		return fmt.Errorf("pool %s: .spec.nodeSelector %q does not select node %s", p.Name, p.NodeSelector, node.Name)
	case private && !pinned(p, node):
		return fmt.Errorf("pool %s: .spec.nodeSelector must name this node alone (%s == %q) in a folder that no other node shares", p.Name, hostnameLabel, node.Name)
	}
	return nil
}

func pinned(p *model.Pool, node *model.Node) bool {
	s, ok := p.NodeSelector.(pin)
	if !ok {
		return false
	}
	v, ok := s.Pins(hostnameLabel)
	return ok && (v == node.Labels[hostnameLabel] || v == node.Name)
}

// refuses says why a pool gives this namespace nothing, or nil. A pool without a
// namespaceSelector serves all; one with a selector needs the namespace's labels.
func refuses(p *model.Pool, req model.AddressRequest) error {
	switch {
	case p.NamespaceSelector == nil || p.NamespaceSelector.String() == "all()":
		return nil
	case req.NamespaceLabels == nil:
		return fmt.Errorf("pool %s: has a namespaceSelector and the labels of namespace %q are not known", p.Name, req.Namespace)
	case !p.NamespaceSelector.Matches(req.NamespaceLabels):
		return fmt.Errorf("pool %s: .spec.namespaceSelector %q does not select namespace %q", p.Name, p.NamespaceSelector, req.Namespace)
	}
	return nil
}

// node returns the snapshot and this node in it. a.mu is held.
func (a *Allocator) node() (*model.Node, error) {
	if a.snap == nil {
		return nil, fmt.Errorf("%w: pools and nodes were not read yet", ErrNotReady)
	}
	n := a.snap.Node(a.cfg.Node)
	if n == nil {
		return nil, fmt.Errorf("%w: there is no Node %s in the datastore", ErrNotReady, a.cfg.Node)
	}
	return n, nil
}

// wants works out which addresses a request needs: those asked for, as Calico has it, and
// nothing else; or else one of each family that has pools for it. a.mu is held.
func (a *Allocator) wants(req model.AddressRequest) ([]want, error) {
	node, err := a.node()
	if err != nil {
		return nil, err
	}
	if len(req.Addresses) > 0 {
		var out []want
		for _, addr := range req.Addresses {
			addr = addr.Unmap().WithZone("")
			if err := a.mayGive(addr, node, req); err != nil {
				return nil, err
			}
			if slices.ContainsFunc(out, func(w want) bool { return w.addr.Is4() == addr.Is4() }) {
				return nil, fmt.Errorf("requested addresses %v: want at most one of each family", req.Addresses)
			}
			out = append(out, want{addr: addr})
		}
		slices.SortFunc(out, func(x, y want) int { return x.addr.Compare(y.addr) })
		return out, nil
	}
	var (
		out  []want
		errs []error
	)
	for _, is4 := range []bool{true, false} {
		names := req.IPv6Pools
		if is4 {
			names = req.IPv4Pools
		}
		var w want
		if len(names) > 0 {
			if w.pools, err = a.namedPools(names, is4, node, req); err != nil {
				return nil, err
			}
		} else {
			w.pools, w.unused = a.automaticPools(is4, node, req)
			errs = append(errs, w.unused...)
		}
		if len(w.pools) > 0 {
			out = append(out, w)
		}
	}
	if len(out) == 0 {
		if len(errs) == 0 {
			errs = append(errs, errors.New("there is no IPPool"))
		}
		return nil, fmt.Errorf("%w on node %s: %w", ErrNoPool, a.cfg.Node, reasons(errs))
	}
	return out, nil
}

func (a *Allocator) automaticPools(is4 bool, node *model.Node, req model.AddressRequest) (names []string, why []error) {
	for i := range a.snap.Pools {
		p := &a.snap.Pools[i]
		if p.CIDR.Addr().Is4() != is4 {
			continue
		}
		err := unusable(p, node, a.cfg.Private)
		switch {
		case err != nil:
		case p.Manual:
			err = fmt.Errorf("pool %s: .spec.assignmentMode is Manual", p.Name)
		case req.Key != model.AttachmentKey{}:
			err = refuses(p, req)
		}
		if err != nil {
			why = append(why, err)
			continue
		}
		names = append(names, p.Name)
	}
	return names, why
}

func (a *Allocator) namedPools(names []string, is4 bool, node *model.Node, req model.AddressRequest) ([]string, error) {
	var out []string
	for _, name := range names {
		i := slices.IndexFunc(a.snap.Pools, func(p model.Pool) bool { return p.Name == name || p.CIDR.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("requested pool %q: %w: no IPPool has that name or CIDR", name, ErrNoPool)
		}
		p := &a.snap.Pools[i]
		if p.CIDR.Addr().Is4() != is4 {
			return nil, fmt.Errorf("requested pool %q: %w: %s is of the other IP family", name, ErrNoPool, p.CIDR)
		}
		err := unusable(p, node, a.cfg.Private)
		if err == nil {
			err = refuses(p, req)
		}
		if err != nil {
			return nil, fmt.Errorf("requested pool %q: %w: %w", name, ErrNoPool, err)
		}
		out = append(out, p.Name)
	}
	return out, nil
}

// mayGive says why a requested address may not be given to a pod here, or nil. The pool's
// nodeSelector counts when a block has to be claimed for it.
func (a *Allocator) mayGive(addr netip.Addr, node *model.Node, req model.AddressRequest) error {
	p := a.poolOf(addr)
	switch {
	case p == nil:
		return fmt.Errorf("requested address %s: %w: no IPPool contains it", addr, ErrNotInPool)
	case p.Disabled:
		return fmt.Errorf("requested address %s: %w: pool %s is disabled", addr, ErrNotInPool, p.Name)
	case !p.Allows(model.UseWorkload):
		return fmt.Errorf("requested address %s: %w: .spec.allowedUses of pool %s lacks Workload", addr, ErrNotInPool, p.Name)
	case a.cfg.Private && !pinned(p, node):
		return fmt.Errorf("requested address %s: %w: %w", addr, ErrNotInPool, unusable(p, node, true))
	case a.reserved(addr):
		return fmt.Errorf("requested address %s: %w", addr, ErrReserved)
	}
	if err := refuses(p, req); err != nil {
		return fmt.Errorf("requested address %s: %w: %w", addr, ErrNotInPool, err)
	}
	return nil
}

// poolNamed returns the pool with that name, or nil. a.mu is held.
func (a *Allocator) poolNamed(name string) *model.Pool {
	if a.snap == nil {
		return nil
	}
	i := slices.IndexFunc(a.snap.Pools, func(p model.Pool) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &a.snap.Pools[i]
}

// poolOf returns the pool that contains an address, or nil. a.mu is held.
func (a *Allocator) poolOf(addr netip.Addr) *model.Pool {
	if a.snap == nil {
		return nil
	}
	i := slices.IndexFunc(a.snap.Pools, func(p model.Pool) bool { return p.CIDR.Contains(addr) })
	if i < 0 {
		return nil
	}
	return &a.snap.Pools[i]
}

// reserved reports whether an IPReservation covers addr. a.mu is held.
func (a *Allocator) reserved(addr netip.Addr) bool {
	return slices.ContainsFunc(a.snap.Reservations, func(r netip.Prefix) bool { return r.Contains(addr) })
}

// whollyReserved reports whether no address of a block may be given out, and returns a
// reserved prefix around the block, or the block. a.mu is held.
func (a *Allocator) whollyReserved(block netip.Prefix) (netip.Prefix, bool) {
	if _, _, ok := a.host(block); ok {
		return block, true
	}
	touched := false
	for _, r := range a.snap.Reservations {
		if r.Bits() <= block.Bits() && r.Contains(block.Addr()) {
			return r, true
		}
		touched = touched || r.Overlaps(block)
	}
	if !touched {
		return netip.Prefix{}, false
	}
	for addr, end := block.Addr(), lastAddr(block); ; addr = addr.Next() {
		if !a.reserved(addr) {
			return netip.Prefix{}, false
		}
		if addr == end {
			return block, true
		}
	}
}

// poolState returns what is kept of the pool with that name. a.mu is held.
func (a *Allocator) poolState(name string) *pool {
	p := a.pools[name]
	if p == nil {
		p = &pool{}
		a.pools[name] = p
	}
	return p
}

// sortStash puts every stashed address into the stash of the pool it now belongs to.
// a.mu is held.
func (a *Allocator) sortStash() {
	for name, p := range a.pools {
		p.stash, p.err, p.errAt, p.searched = nil, nil, time.Time{}, time.Time{}
		p.full = a.noneLeft(a.poolNamed(name))
		if a.poolNamed(name) == nil && p.demand == 0 {
			delete(a.pools, name)
		}
	}
	var free []*hold
	for _, h := range a.state.holds {
		h.queued = false
		if h.state == stashed && !h.taken {
			free = append(free, h)
		}
	}
	slices.SortFunc(free, func(x, y *hold) int { return x.addr.Compare(y.addr) })
	for _, h := range free {
		a.putBy(h)
	}
}

// noneLeft reports whether every block of a pool is known to have an owner. a.mu is held.
func (a *Allocator) noneLeft(mp *model.Pool) bool {
	if mp == nil || a.named.IsZero() {
		return false
	}
	for range claimable(mp.CIDR, mp.BlockSize, a.cfg.Node, &a.claimed, a.whollyReserved) {
		return false
	}
	return true
}

// putBy puts a stashed address at the end of its pool's stash, if the pool may use it.
// a.mu is held.
func (a *Allocator) putBy(h *hold) {
	node, err := a.node()
	if err != nil {
		return
	}
	mp := a.poolOf(h.addr)
	if mp == nil || a.reserved(h.addr) || unusable(mp, node, a.cfg.Private) != nil {
		return
	}
	h.queued = true
	if p := a.poolState(mp.Name); !slices.Contains(p.stash, h.addr) {
		p.stash = append(p.stash, h.addr)
	}
}

// takeStashed takes the first address of a pool's stash, or nil. a.mu is held.
func (a *Allocator) takeStashed(p *pool) *hold {
	for len(p.stash) > 0 {
		h := a.state.holds[p.stash[0]]
		p.stash = p.stash[1:]
		if h == nil || h.state != stashed || h.taken || !h.queued {
			continue
		}
		h.queued, h.taken = false, true
		return h
	}
	return nil
}

// putBack undoes a take. a.mu is held.
func (a *Allocator) putBack(h *hold) {
	h.taken = false
	if h.state == stashed {
		a.putBy(h)
	} else {
		a.dirty[h.block] = struct{}{}
	}
}

// stashSize counts the addresses that takeStashed would give. a.mu is held.
func (a *Allocator) stashSize(p *pool) int {
	n := 0
	for _, addr := range p.stash {
		if h := a.state.holds[addr]; h != nil && h.state == stashed && !h.taken && h.queued {
			n++
		}
	}
	return n
}
