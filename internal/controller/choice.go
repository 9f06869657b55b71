package controller

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

// errNoFreeAddress is the answer when the pools have none left.
var errNoFreeAddress = errors.New("no free address")

// choice is an address that a Service may get: a slot of a block, which is to be claimed
// first when entry is nil.
type choice struct {
	entry *entry
	cidr  netip.Prefix
	addr  netip.Addr
}

// choose picks an address that answers the want. blocks are all that exist, sorted by
// address.
func choose(w want, v *view, blocks []*entry, now time.Time) (choice, error) {
	if w.addr.IsValid() {
		return exact(w.pools[0], w.addr, v, blocks)
	}
	if w.prefer.IsValid() {
		if pool := poolOf(v, w.prefer); pool != nil {
			if c, err := exact(pool, w.prefer, v, blocks); err == nil {
				return c, nil
			}
		}
	}
	var names []string
	for _, pool := range w.pools {
		if c, ok := anyOf(pool, v, blocks, now); ok {
			return c, nil
		}
		names = append(names, pool.Name)
	}
	return choice{}, fmt.Errorf("%w in IPPool %v", errNoFreeAddress, names)
}

// exact picks one address.
func exact(pool *model.Pool, a netip.Addr, v *view, blocks []*entry) (choice, error) {
	if reserved(v.snap.Reservations, a) {
		return choice{}, fmt.Errorf("address %s is reserved by an IPReservation", a)
	}
	for _, e := range blocks {
		if !e.cidr.IsValid() || !e.cidr.Contains(a) {
			continue
		}
		if e.block == nil {
			return choice{}, fmt.Errorf("address %s: its block %s makes no sense", a, e.cidr)
		}
		if s := e.block.Slots[e.block.Ordinal(a)]; s.Handle != "" {
			return choice{}, fmt.Errorf("address %s is in use by %s", a, holder(s))
		}
		return choice{e, e.cidr, a}, nil
	}
	cidr, err := a.Prefix(pool.BlockSize)
	if err != nil {
		return choice{}, fmt.Errorf("IPPool %s: blockSize: %w", pool.Name, err)
	}
	for _, e := range blocks {
		if e.cidr.IsValid() && e.cidr.Overlaps(cidr) {
			return choice{}, fmt.Errorf("address %s: its block %s overlaps the block %s of another size", a, cidr, e.cidr)
		}
	}
	return choice{nil, cidr, a}, nil
}

// holder names who has an address.
func holder(s ipam.Slot) string {
	switch {
	case s.Attrs[attrService] != "":
		return "Service " + s.Attrs[ipam.AttrNamespace] + "/" + s.Attrs[attrService]
	case s.Attrs[ipam.AttrPod] != "":
		return "Pod " + s.Attrs[ipam.AttrNamespace] + "/" + s.Attrs[ipam.AttrPod]
	case s.Attrs[ipam.AttrNode] != "":
		return "Node " + s.Attrs[ipam.AttrNode]
	}
	return s.Handle
}

// anyOf picks the address of a pool that was idle longest in a block of ours, or the first
// of a new block.
func anyOf(pool *model.Pool, v *view, blocks []*entry, now time.Time) (choice, bool) {
	var taken []netip.Prefix
	for _, e := range blocks {
		if !e.cidr.IsValid() || !e.cidr.Overlaps(pool.CIDR) {
			continue
		}
		taken = append(taken, e.cidr)
		if e.block == nil || e.block.Affinity != loadBalancerAffinity {
			continue
		}
		for _, i := range e.block.Unallocated {
			a := e.block.Addr(i)
			if resting(e.block.Slots[i], v.cooldown(), now) || reserved(v.snap.Reservations, a) || !pool.CIDR.Contains(a) {
				continue
			}
			return choice{e, e.cidr, a}, true
		}
	}
	for _, r := range v.snap.Reservations {
		if r.Overlaps(pool.CIDR) && r.Bits() <= pool.BlockSize {
			taken = append(taken, r)
		}
	}
	for {
		cidr, ok := firstGap(pool.CIDR, pool.BlockSize, taken)
		if !ok {
			return choice{}, false
		}
		for a := cidr.Addr(); cidr.Contains(a); a = a.Next() {
			if !reserved(v.snap.Reservations, a) {
				return choice{nil, cidr, a}, true
			}
		}
		taken = append(taken, cidr) // reserved address by address
	}
}

// firstGap returns the first block of a pool that overlaps none of taken.
func firstGap(pool netip.Prefix, size int, taken []netip.Prefix) (netip.Prefix, bool) {
	taken = slices.Clone(taken)
	slices.SortFunc(taken, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
	next := pool.Masked().Addr()
	for _, t := range taken {
		cidr := netip.PrefixFrom(next, size)
		if end := after(t); !cidr.Overlaps(t) && t.Addr().Compare(next) > 0 {
			break
		} else if !end.IsValid() {
			return netip.Prefix{}, false
		} else if end.Compare(next) > 0 {
			// The next block's boundary at or behind the end of what is in the way.
			next = boundary(end, size)
			if !next.IsValid() || !pool.Contains(next) {
				return netip.Prefix{}, false
			}
		}
	}
	return netip.PrefixFrom(next, size), pool.Contains(next)
}

// after returns the first address behind a prefix; the zero Addr when there is none.
func after(p netip.Prefix) netip.Addr {
	host := p.Addr().BitLen() - p.Bits()
	return plus(p.Masked().Addr(), new(big.Int).Lsh(big.NewInt(1), uint(host)))
}

// boundary returns a if a block of that size begins there, or else where the next begins.
func boundary(a netip.Addr, size int) netip.Addr {
	p := netip.PrefixFrom(a, size).Masked()
	if p.Addr() == a {
		return a
	}
	return after(p)
}

func plus(a netip.Addr, n *big.Int) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), n)
	b := sum.Bytes()
	size := a.BitLen() / 8
	if len(b) > size {
		return netip.Addr{}
	}
	out, _ := netip.AddrFromSlice(append(make([]byte, size-len(b)), b...))
	return out
}
