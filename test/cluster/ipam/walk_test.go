package ipam_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
	"github.com/causeway-net/causeway/ipam/kube"
)

var (
	seed  = flag.Uint64("ipam.seed", 0, "seed of the random walks; 0: a new one")
	walks = flag.Int("ipam.walks", 3, "how many random walks")
)

// TestWalk is ipam's random walk, with its golden model (I1), over the real API server: one
// client for each node, whose requests fail, are lost, or clash.
func TestWalk(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	for i := range uint64(*walks) {
		t.Run(fmt.Sprint(first+i), func(t *testing.T) {
			ready(t)
			var (
				mu    sync.Mutex
				roads = map[string]*road{}
				kept  = map[string]*kube.Store{}
			)
			ipamtest.Walk{
				Seed: first + i, Steps: 120, Run: i%2 == 1,
				Open: func(node string) ipam.Store {
					mu.Lock()
					defer mu.Unlock()
					if kept[node] == nil {
						roads[node] = newRoad(first + i)
						kept[node] = store(t, node, roads[node].wrap)
					}
					return kept[node]
				},
				Faults: func(node string, rate float64, away bool) {
					mu.Lock()
					defer mu.Unlock()
					roads[node].faults(rate/2, away)
				},
			}.Do(t)
		})
	}
}

// TestLastBlock: two nodes that both want the last block, and then the last address.
func TestLastBlock(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%t", strict), func(t *testing.T) {
			ready(t)
			for round := range 5 {
				s := snapshot(2*round+2, pool(t, "p", fmt.Sprintf("10.%d.0.0/30", round), 30))
				s.IPAM.StrictAffinity = strict
				var (
					wg    sync.WaitGroup
					mu    sync.Mutex
					given []netip.Addr
					by    = map[string]int{}
				)
				var nodes []*ipam.Allocator
				for i := range 2 {
					node := name(2*round + i)
					nodes = append(nodes, allocator(t, node, store(t, node), s))
				}
				for i := range 12 { // for four addresses
					wg.Go(func() {
						ep, err := nodes[i%2].Assign(t.Context(), request(fmt.Sprintf("c%d-%d", round, i)))
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err == nil:
							given = append(given, ep.Addresses...)
							by[name(i%2)]++
						case !errors.Is(err, ipam.ErrExhausted):
							t.Errorf("Assign: %v, want ErrExhausted", err)
						}
					})
				}
				wg.Wait()
				slices.SortFunc(given, netip.Addr.Compare)
				if unique := slices.Compact(slices.Clone(given)); len(unique) != len(given) {
					t.Errorf("an address was given twice: %v", given)
				}
				if len(given) != 4 && !strict {
					// One node's stash may hold an address for a moment; then it goes back.
					eventually(t, "the rest is given", func() bool {
						for i := range 2 {
							if ep, err := nodes[i].Assign(t.Context(), request(fmt.Sprintf("late%d-%d-%d", round, i, len(given)))); err == nil {
								given = append(given, ep.Addresses...)
							}
						}
						return len(given) == 4
					})
				}
				if strict && (len(by) != 1 || len(given) != 4) {
					t.Errorf("with strictAffinity %v got %v, want one node to have all four", by, given)
				}
				var own []*ipam.Block
				for _, b := range all(t, ipam.Query{}) {
					if s.Pools[0].CIDR.Contains(b.CIDR.Addr()) {
						own = append(own, b)
					}
				}
				if len(own) != 1 {
					t.Errorf("%d blocks of a pool that has one", len(own))
				}
			}
		})
	}
}

// TestServerDies: the API server is killed under ADDs and DELs and comes back. Pods get
// addresses out of the stash meanwhile, and afterwards the blocks say what is true.
func TestServerDies(t *testing.T) {
	ready(t)
	s := snapshot(2, pool(t, "p", "10.0.0.0/22", 26))
	golden := ipamtest.NewModel()
	nodes := map[string]*ipam.Allocator{}
	for i := range 2 {
		nodes[name(i)] = allocator(t, name(i), store(t, name(i)), s)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for node, a := range nodes {
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					churn(t, golden, s, node, a, fmt.Sprintf("%s-%d-%d", node, w, i))
				}
			})
		}
	}
	eventually(t, "pods run", func() bool { return len(golden.Live(name(0))) > 3 && len(golden.Live(name(1))) > 3 })
	server.StopAPI()
	before := len(nodes[name(0)].Endpoints())
	eventually(t, "the stash serves or is empty", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		req := request(fmt.Sprintf("away-%d", time.Now().UnixNano()))
		ep, err := nodes[name(0)].Assign(ctx, req)
		if err == nil {
			if err := golden.Assigned(name(0), req, ep, s, time.Now()); err != nil {
				t.Error(err)
			}
		}
		return err != nil || len(nodes[name(0)].Endpoints()) > before
	})
	if err := server.StartAPI(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an ADD works again", func() bool {
		req := request(fmt.Sprintf("back-%d", time.Now().UnixNano()))
		ep, err := nodes[name(1)].Assign(t.Context(), req)
		if err == nil {
			if err := golden.Assigned(name(1), req, ep, s, time.Now()); err != nil {
				t.Error(err)
			}
		}
		return err == nil
	})
	close(stop)
	wg.Wait()
	for _, a := range nodes {
		eventually(t, "everything is written", func() bool { return a.Flush(t.Context(), true) == nil })
	}
	endpoints := map[string][]model.Endpoint{}
	for node, a := range nodes {
		endpoints[node] = a.Endpoints()
	}
	if err := golden.Settled(all(t, ipam.Query{}), endpoints); err != nil {
		t.Error(err)
	}
}

// churn lets a pod begin, and most end.
func churn(t *testing.T, m *ipamtest.Model, s *model.Snapshot, node string, a *ipam.Allocator, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	req := request(id)
	ep, err := a.Assign(ctx, req)
	if err == nil {
		if err := m.Assigned(node, req, ep, s, time.Now()); err != nil {
			t.Error(err)
		}
		if rand.IntN(20) == 0 {
			return
		}
		m.Dead(ipamtest.Holder{Node: node, Key: req.Key}, time.Now())
	}
	if _, err := a.Release(context.Background(), id, ""); err != nil {
		t.Errorf("DEL %s: %v", id, err)
	}
}
