package ipam

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

const (
	samples    = 8   // blocks that are read by name before all are searched
	searchPage = 100 // blocks of which the emptiest are tried first
)

// borrow marks addresses, as m says, in blocks that are not known to have any: our own, in
// which a borrower may have freed some, and, unless strictAffinity forbids it, those of
// others.
//
// Reading all blocks of a cluster to find an address is what a full pool invites every
// node to do with every ADD. So a few blocks picked at random are asked first, which do
// while a pool is not quite full and spread the borrowers; then all, page by page, until
// there is enough; and where there was nothing, not again before SearchEvery.
func (a *Allocator) borrow(ctx context.Context, mp *model.Pool, m marks) (int, error) {
	a.mu.Lock()
	strict := a.snap.IPAM.StrictAffinity
	since := a.cfg.Now().Sub(a.poolState(mp.Name).searched)
	a.mu.Unlock()
	if since < a.cfg.SearchEvery {
		return 0, because(ErrExhausted, "no block had a free address %s ago", since.Round(time.Second))
	}
	s := search{a: a, pool: mp, marks: m}
	err := s.run(ctx, strict)
	if s.got == 0 && err == nil {
		a.mu.Lock()
		a.poolState(mp.Name).searched = a.cfg.Now()
		a.mu.Unlock()
		if strict {
			return 0, because(ErrExhausted, "IPAMConfiguration strictAffinity keeps it from other nodes' blocks")
		}
		return 0, because(ErrExhausted, "no block of another node has a free address")
	}
	return s.got, err
}

// search is one borrow. The writer's token is held.
type search struct {
	a     *Allocator
	pool  *model.Pool
	marks marks
	got   int
	errs  reasons
}

func (s *search) run(ctx context.Context, strict bool) error {
	own, err := Collect(s.a.cfg.Store.List(ctx, Query{Owner: s.a.cfg.Node}))
	if err != nil {
		return err
	}
	s.try(ctx, own)
	if strict || s.got >= s.marks.n {
		return s.errs.orNil()
	}
	var picked []*Block
	for _, cidr := range s.sample() {
		b, err := s.a.cfg.Store.Get(ctx, cidr)
		switch {
		case err == nil:
			picked = append(picked, b)
		case ctx.Err() != nil:
			return err
		}
		// One that went, or that cannot be read, is no place to borrow from.
	}
	s.try(ctx, picked)
	if s.got >= s.marks.n {
		return s.errs.orNil()
	}
	var page []*Block
	for b, err := range s.a.cfg.Store.List(ctx, Query{}) {
		if err != nil {
			return err
		}
		if b.Free() == 0 || !s.pool.CIDR.Contains(b.CIDR.Addr()) {
			continue
		}
		if page = append(page, b); len(page) == searchPage {
			s.try(ctx, page)
			page = nil
			if s.got >= s.marks.n {
				return s.errs.orNil()
			}
		}
	}
	s.try(ctx, page)
	return s.errs.orNil()
}

// sample picks some of the pool's blocks that are not ours.
func (s *search) sample() []netip.Prefix {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	theirs := map[netip.Prefix]bool{}
	for _, cidr := range s.a.claimed {
		if b := s.a.blocks[cidr]; s.pool.CIDR.Contains(cidr.Addr()) && (b == nil || b.Node() != s.a.cfg.Node) {
			theirs[cidr] = true
		}
	}
	out := slices.SortedFunc(maps.Keys(theirs), netip.Prefix.Compare)
	rand.Shuffle(len(out), func(i, k int) { out[i], out[k] = out[k], out[i] })
	return out[:min(samples, len(out))]
}

// try marks addresses in blocks as they were just read, the emptiest first: its owner
// misses an address least.
func (s *search) try(ctx context.Context, blocks []*Block) {
	slices.SortFunc(blocks, func(x, y *Block) int {
		return cmp.Or(cmp.Compare(y.Free(), x.Free()), x.CIDR.Compare(y.CIDR))
	})
	for _, b := range blocks {
		nodes := b.Affinity == "" || b.Node() != ""
		if s.got >= s.marks.n || b.Free() == 0 || !nodes || !s.pool.CIDR.Contains(b.CIDR.Addr()) {
			continue
		}
		s.a.mu.Lock()
		s.a.absorb(b)
		s.a.mu.Unlock()
		k, err := s.a.writeBlock(ctx, b.CIDR, b, s.marks.less(s.got))
		s.got += k
		if err != nil && !errors.Is(err, ErrNotFound) {
			s.errs = append(s.errs, err)
		}
	}
}
