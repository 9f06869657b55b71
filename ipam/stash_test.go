package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// TestOneWriteForMany: N concurrent ADDs cost about one write, and one fsync.
func TestOneWriteForMany(t *testing.T) {
	s := ipamtest.NewStore()
	var syncs atomic.Int64
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/16", 24)), func(c *ipam.Config) {
		c.SyncFile = func(f *os.File) error { syncs.Add(1); time.Sleep(2 * time.Millisecond); return nil }
	})
	b.flush()
	b.client.Faults(0, 20*time.Millisecond, false)
	before := syncs.Load()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := b.Assign(ctx, req(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.Writes(); n > 10 {
		t.Errorf("100 ADDs at once cost %d writes, want 10 at most", n)
	}
	if n := syncs.Load() - before; n > 50 {
		t.Errorf("100 ADDs at once cost %d fsyncs, want 50 at most", n)
	}
}

// TestWritesLinger: what is not urgent waits for more, also where nobody speaks of tunnels.
func TestWritesLinger(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/16", 24))
	b := open(t, "n1", s, snap, func(c *ipam.Config) { c.Batch, c.Linger = time.Millisecond, time.Hour })
	b.add(req("first"))
	b.Set(snap)
	b.flush()
	before := s.Writes()
	run, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- b.Run(run) }()
	b.add(req("second"))
	<-time.After(100 * time.Millisecond) // a hundred times Batch
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if n := s.Writes() - before; n > 0 {
		t.Errorf("an address out of a full stash was written %d times before its time", n)
	}
}

// TestStoreAway: the stash serves ADDs, also across a restart, and DELs are kept (I4).
func TestStoreAway(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 26))
	b := open(t, "n1", s, snap)
	first := b.add(req("c0"))
	b.flush()
	b.client.Faults(0, 0, true)
	for i := range 4 {
		b.add(req(fmt.Sprint("a", i)))
	}
	b.reopen(snap)
	b.add(req("b1"))
	if eps, err := b.Release(ctx, "c0", ""); err != nil || len(eps) != 1 {
		t.Fatalf("DEL with the Store away: %v %v", eps, err)
	}
	if eps, err := b.Release(ctx, "nobody", ""); eps != nil || err != nil {
		t.Errorf("DEL of nothing with the Store away: %v %v", eps, err)
	}
	for i := 0; ; i++ {
		if _, err := b.Assign(ctx, req(fmt.Sprint("d", i))); err != nil {
			if !errors.Is(err, ipamtest.ErrAway) {
				t.Errorf("with an empty stash: %v", err)
			}
			break
		}
	}
	b.reopen(snap)
	b.client.Faults(0, 0, false)
	b.flush()
	if h := handle(t, s, first[0]); h != "" {
		t.Errorf("%s has the handle %q after the DEL", first[0], h)
	}
	if h := handle(t, s, strs(b.Endpoints()[0].Addresses)[0]); !strings.HasPrefix(h, "net.") {
		t.Errorf("an endpoint of the outage has the handle %q", h)
	}
}

func BenchmarkAssign(b *testing.B) {
	for name, sync := range map[string]func(*os.File) error{"fsync": nil, "nosync": func(*os.File) error { return nil }} {
		b.Run(name, func(b *testing.B) {
			x := open(b, "n1", ipamtest.NewStore(), snapshot(pool(b, "a", "10.0.0.0/8", 20)), func(c *ipam.Config) { c.SyncFile = sync })
			b.ResetTimer()
			for i := range b.N {
				id := fmt.Sprint(i)
				if _, err := x.Assign(ctx, req(id)); err != nil {
					b.Fatal(err)
				}
				if i%4 == 3 { // refills and releases are Run's work
					b.StopTimer()
					for k := i - 3; k <= i; k++ {
						x.Release(ctx, fmt.Sprint(k), "eth0")
					}
					if err := x.Flush(ctx, false); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// TestStashOfANamespace: what is put by for pods of one namespace is given to none of another.
func TestStashOfANamespace(t *testing.T) {
	b := open(t, "n1", ipamtest.NewStore(), snapshot(
		pool(t, "a", "10.0.0.0/24", 26, func(p *model.Pool) { p.NamespaceSelector = sel(t, "team == 'x'") }),
		pool(t, "b", "10.0.1.0/24", 26)))
	for i := range 20 {
		r := req(fmt.Sprint(i))
		want := "10.0.1."
		r.NamespaceLabels = map[string]string{"team": "y"}
		if i%2 == 0 {
			r.NamespaceLabels, want = map[string]string{"team": "x"}, "10.0.0."
		}
		if got := b.add(r); !strings.HasPrefix(got[0], want) {
			t.Errorf("a pod of team %s got %v", r.NamespaceLabels["team"], got)
		}
		b.flush()
	}
	r := req("unknown")
	if got := b.add(r); !strings.HasPrefix(got[0], "10.0.1.") {
		t.Errorf("a pod of a namespace that is not known got %v", got)
	}
}

// TestBurstsGrowTheStash: ADDs that find the stash empty make it larger, and calm makes it
// small again, which frees what others may need.
func TestBurstsGrowTheStash(t *testing.T) {
	s := ipamtest.NewStore()
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/16", 24)))
	stash := func() int {
		n := 0
		for _, blk := range blocks(t, s) {
			for _, slot := range blk.Slots {
				if slot.Handle == ipam.StashPrefix+"n1" {
					n++
				}
			}
		}
		return n
	}
	b.add(req("first"))
	b.flush()
	if n := stash(); n < 4 || n > 16 {
		t.Errorf("at rest %d addresses are put by, want 4 to 16", n)
	}
	for i := range 150 {
		b.add(req(fmt.Sprint(i)))
	}
	b.flush()
	if n := stash(); n < 32 {
		t.Errorf("after a burst %d addresses are put by, want 32 at least", n)
	}
	b.now.Add(600)
	b.flush()
	if n := stash(); n > 16 {
		t.Errorf("after a calm %d addresses are put by, want 16 at most", n)
	}
}

// TestSearchesAreRare: a pool that has nothing does not make a node read all blocks for
// every ADD.
func TestSearchesAreRare(t *testing.T) {
	s := &countingStore{Store: ipamtest.NewStore()}
	snap := snapshot(pool(t, "a", "10.0.0.0/30", 30))
	b := open(t, "n1", s, snap, func(c *ipam.Config) { c.SearchEvery = 10 * time.Second })
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	s.lists.Store(0)
	for i := range 10 {
		if _, err := b.Assign(ctx, req(fmt.Sprint("x", i))); !errors.Is(err, ipam.ErrExhausted) {
			t.Fatal(err)
		}
		b.now.Add(1)
		// In a large cluster some other node always comes or changes.
		other := *snap
		other.Nodes = append(slices.Clone(snap.Nodes), model.Node{Name: fmt.Sprint("other-", i)})
		b.Set(&other)
	}
	if n := s.lists.Load(); n != 1 {
		t.Errorf("all blocks were read %d times within 10 s, want once", n)
	}
	b.Release(ctx, "0", "")
	b.flush()
	b.add(req("y")) // of our own, at once
	b.now.Add(10)
	if _, err := b.Assign(ctx, req("z")); !errors.Is(err, ipam.ErrExhausted) || s.lists.Load() < 2 {
		t.Errorf("after 10 s: %v, %d searches", err, s.lists.Load())
	}
}

type countingStore struct {
	*ipamtest.Store
	lists atomic.Int64 // of all blocks
}

func (c *countingStore) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	if q == (ipam.Query{}) {
		c.lists.Add(1)
	}
	return c.Store.List(ctx, q)
}
