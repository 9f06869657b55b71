// Package ipamtest is what ipam is tested with: a Store in memory, a client of any Store
// that fails in all the ways in which a network and an API server do, a slow model of
// what is allowed, and a random walk of many nodes that holds an Allocator against it.
package ipamtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"math/rand/v2"

	"github.com/causeway-net/causeway/ipam"
)

// Store is an ipam.Store in memory. Like a real one it refuses a block that contradicts
// itself.
type Store struct {
	mu     sync.Mutex
	blocks map[netip.Prefix]*ipam.Block
	rev    uint64
	writes int
}

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{blocks: map[netip.Prefix]*ipam.Block{}} }

// Writes returns how many writes were done.
func (s *Store) Writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *Store) put(b *ipam.Block) {
	s.rev++
	s.writes++
	b.Revision = strconv.FormatUint(s.rev, 10)
	s.blocks[b.CIDR] = b.Clone()
}

// Create implements ipam.Store.
func (s *Store) Create(_ context.Context, b *ipam.Block) error {
	if err := b.Check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for cidr := range s.blocks {
		if cidr.Overlaps(b.CIDR) {
			return fmt.Errorf("block %s: %w: %s", b.CIDR, ipam.ErrExists, cidr)
		}
	}
	s.put(b)
	return nil
}

func (s *Store) same(b *ipam.Block) error {
	old, ok := s.blocks[b.CIDR]
	if !ok {
		return fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrNotFound)
	}
	if old.Revision != b.Revision {
		return fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrConflict)
	}
	return nil
}

// Update implements ipam.Store.
func (s *Store) Update(_ context.Context, b *ipam.Block) error {
	if err := b.Check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.same(b); err != nil {
		return err
	}
	s.put(b)
	return nil
}

// Delete implements ipam.Store.
func (s *Store) Delete(_ context.Context, b *ipam.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.same(b); err != nil {
		return err
	}
	delete(s.blocks, b.CIDR)
	s.writes++
	return nil
}

// Get implements ipam.Store.
func (s *Store) Get(_ context.Context, cidr netip.Prefix) (*ipam.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blocks[cidr]
	if !ok {
		return nil, fmt.Errorf("block %s: %w", cidr, ipam.ErrNotFound)
	}
	return b.Clone(), nil
}

// List implements ipam.Store.
func (s *Store) List(_ context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*ipam.Block
	for _, b := range s.blocks {
		if q.Selects(b) {
			out = append(out, b.Clone())
		}
	}
	return func(yield func(*ipam.Block, error) bool) {
		for _, b := range out {
			if !yield(b, nil) {
				return
			}
		}
	}
}

// Claimed implements ipam.Store.
func (s *Store) Claimed(context.Context, bool) ([]netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.blocks)), nil
}

// ErrAway is what a Client answers while its Store is away.
var ErrAway = errors.New("the store is away")

// Ghosts are writes whose sender was told that they failed and that are done later, when
// the sender may be another process already.
type Ghosts struct {
	mu      sync.Mutex
	pending []func()
}

// Strike does a random share of the pending writes.
func (g *Ghosts) Strike(rng *rand.Rand, share float64) {
	g.mu.Lock()
	var now, later []func()
	for _, f := range g.pending {
		if rng.Float64() < share {
			now = append(now, f)
		} else {
			later = append(later, f)
		}
	}
	g.pending = later
	g.mu.Unlock()
	for _, f := range now {
		f()
	}
}

func (g *Ghosts) add(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = append(g.pending, f)
}

// Client is one process's way to a Store, with the faults that such a way has. It
// implements ipam.Store.
type Client struct {
	Store  ipam.Store
	Ghosts *Ghosts

	mu    sync.Mutex
	rng   *rand.Rand
	rate  float64
	delay time.Duration
	away  bool
	dead  bool
}

// NewClient returns a Client without faults.
func NewClient(s ipam.Store, g *Ghosts, seed uint64) *Client {
	return &Client{Store: s, Ghosts: g, rng: rand.New(rand.NewPCG(seed, 1))}
}

// Faults sets the share of calls that fail somehow, the longest delay of a call, and
// whether the Store is away altogether.
func (c *Client) Faults(rate float64, delay time.Duration, away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate, c.delay, c.away = rate, delay, away
}

// Kill ends the client with its process: nothing passes any more but its ghosts.
func (c *Client) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

type fault int

const (
	none    fault = iota
	refused       // not done
	lost          // done, and the answer lost
	ghost         // done later
	clash         // a conflict out of the blue, as a cache in between may cause
)

func (c *Client) roll(ctx context.Context, write bool) fault {
	c.mu.Lock()
	f := none
	switch {
	case c.dead || c.away:
		f = refused
	case c.rng.Float64() < c.rate:
		f = refused
		if write {
			f = []fault{refused, lost, ghost, clash}[c.rng.IntN(4)]
		}
	}
	var d time.Duration
	if c.delay > 0 {
		d = time.Duration(c.rng.Int64N(int64(c.delay)))
	}
	c.mu.Unlock()
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return refused
		}
	}
	return f
}

func (c *Client) write(ctx context.Context, b *ipam.Block, do func(context.Context, *ipam.Block) error) error {
	switch c.roll(ctx, true) {
	case refused:
		return ErrAway
	case lost:
		do(context.WithoutCancel(ctx), b.Clone())
		return ErrAway
	case ghost:
		late := b.Clone()
		c.Ghosts.add(func() { do(context.Background(), late) })
		return ErrAway
	case clash:
		if b.Revision != "" {
			return fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrConflict)
		}
	}
	return do(ctx, b)
}

// Create implements ipam.Store.
func (c *Client) Create(ctx context.Context, b *ipam.Block) error {
	return c.write(ctx, b, c.Store.Create)
}

// Update implements ipam.Store.
func (c *Client) Update(ctx context.Context, b *ipam.Block) error {
	return c.write(ctx, b, c.Store.Update)
}

// Delete implements ipam.Store.
func (c *Client) Delete(ctx context.Context, b *ipam.Block) error {
	return c.write(ctx, b, c.Store.Delete)
}

// Get implements ipam.Store.
func (c *Client) Get(ctx context.Context, cidr netip.Prefix) (*ipam.Block, error) {
	if c.roll(ctx, false) != none {
		return nil, ErrAway
	}
	return c.Store.Get(ctx, cidr)
}

// List implements ipam.Store. It may fail at any block.
func (c *Client) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	return func(yield func(*ipam.Block, error) bool) {
		for b, err := range c.Store.List(ctx, q) {
			if c.roll(ctx, false) != none {
				yield(nil, ErrAway)
				return
			}
			if !yield(b, err) {
				return
			}
		}
		if c.roll(ctx, false) != none {
			yield(nil, ErrAway)
		}
	}
}

// Claimed implements ipam.Store.
func (c *Client) Claimed(ctx context.Context, fresh bool) ([]netip.Prefix, error) {
	if c.roll(ctx, false) != none {
		return nil, ErrAway
	}
	return c.Store.Claimed(ctx, fresh)
}
