package ipset_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
)

// holds reads which of these members stand in a set.
func holds(ctx context.Context, k ipset.Kernel, name string) (map[ipset.Member]bool, error) {
	out := map[ipset.Member]bool{}
	err := k.List(ctx, name, func(ipset.Header) {}, func(l ipset.Listed) { out[l.Member] = true })
	return out, err
}

// TestWaitTells: many owners change members of shared sets at once, of which one grows beyond
// its limits and shrinks, while others make and delete large sets, all is read again and
// again, and the way to the kernel breaks. Whenever Wait says that a change is in the kernel,
// it is, and stays.
func TestWaitTells(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rounds, checks := 150, r.kernel
		if r.fake == nil {
			rounds = 40
			host := ipset.NewHost().Within(entering(r.netns))
			defer host.Close()
			checks = host
		}
		rec, _ := r.start(t, func(c *ipset.Config) { c.MaxElem, c.Glance = 8, 3*time.Millisecond })
		names := []string{"cali40a", "cali40b", "cali40i"}
		types := []ipset.Type{ipset.HashIP, ipset.HashNet, ipset.HashNetIface}
		for i, name := range names {
			rec.Replace(ipset.Set{Name: name, Type: types[i], Family: ipset.IPv4})
		}
		rec.InSync("test")
		ctx, stop := context.WithCancel(t.Context())
		broken := errors.New("no way")
		var owners, others sync.WaitGroup
		for n := range 4 {
			owners.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(n)))
				mine := [3]map[ipset.Member]bool{{}, {}, {}}
				for range rounds {
					i := rng.IntN(3)
					var add, remove []ipset.Member
					for range rng.IntN(4) {
						m := ips(fmt.Sprintf("10.%d.0.%d", n, 1+rng.IntN(12)))[0]
						if types[i] == ipset.HashNetIface {
							m.Interface = fmt.Sprintf("eth%d", rng.IntN(2))
						}
						switch {
						case slices.Contains(add, m) || slices.Contains(remove, m):
						case mine[i][m]:
							remove = append(remove, m)
							mine[i][m] = false
						default:
							add = append(add, m)
							mine[i][m] = true
						}
					}
					rec.Update(names[i], add, remove)
					for {
						err := rec.Wait(ctx, names[i])
						if err == nil {
							break
						}
						if !errors.Is(err, broken) {
							t.Error(err)
							return
						}
						// The round failed; the next one is poked by another change.
						rec.Update(names[i], nil, nil)
					}
					there, err := holds(ctx, checks, names[i])
					for err != nil { // the broken way was ours
						there, err = holds(ctx, checks, names[i])
					}
					for m, want := range mine[i] {
						if there[m] != want {
							t.Errorf("%s: member %s is there: %t, want %t", names[i], m, there[m], want)
							return
						}
					}
				}
			})
		}
		others.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 99))
			for k := 0; ctx.Err() == nil; k++ {
				name := fmt.Sprintf("cali40big%d", k%3)
				rec.Replace(ipset.Set{Name: name, Type: ipset.HashIP, Family: ipset.IPv4, Members: addresses(11, rng.IntN(5000))})
				if r.fake != nil && k%4 == 0 {
					r.fake.Fail(append(make([]error, rng.IntN(6)), broken)...)
				}
				if k%3 == 0 {
					rec.PokeResync()
				}
				_ = rec.Wait(ctx, name)
				rec.Delete(name)
			}
		})
		owners.Wait()
		stop()
		others.Wait()
	})
}
