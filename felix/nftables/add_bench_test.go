package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/internal/model"
)

// clumsy is a kernel that only nft writes to.
type clumsy struct{ *written }

func (clumsy) Edit(context.Context, []nftables.Member) error { return errors.ErrUnsupported }

// BenchmarkAdd measures what a CNI ADD waits for, from Apply to Wait, beside 1,000 policies and
// 10,000 pods: of a pod that no policy selects, and of one whose chains were made ahead. By
// netlink as it is, and by nft for comparison.
func BenchmarkAdd(b *testing.B) {
	for _, by := range []string{"netlink", "nft"} {
		engine := kerneltest.Large(b, 1000, 10000)
		engine.SetNamespace(model.Namespace{Name: "free"})
		six := kerneltest.LargePod(20000, 49) // the first of its family brings sets of it
		six.Addresses = []netip.Addr{netip.MustParseAddr("fd00::ffff")}
		kerneltest.Must(b, engine.SetEndpoint(six))
		lab := kerneltest.New(b, kerneltest.Config{})
		to := &written{Host: nftables.NewHost().Within(lab.Within)}
		var r *rig
		if by == "nft" {
			r = startOn(b, clumsy{to}, nil)
		} else {
			r = startOn(b, to, nil)
		}
		r.Apply(engine.Flush())
		r.InSync()
		kerneltest.Must(b, r.Wait(context.Background()))
		for _, kind := range []string{"open", "expected"} {
			b.Run(by+"/"+kind, func(b *testing.B) {
				var all []time.Duration
				n, used := 0, time.Duration(0)
				for b.Loop() {
					b.StopTimer()
					e := kerneltest.LargePod(7, 7)
					e.ID.Name, e.Interface, e.Addresses = kind, "cali"+kind, nil
					if kind == "open" {
						e.ID.Namespace = "free"
						engine.RemoveEndpoint(e.ID)
					} else {
						kerneltest.Must(b, engine.SetEndpoint(e))
					}
					r.Apply(engine.Flush())
					kerneltest.Must(b, r.Wait(context.Background()))
					e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(n >> 8), byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", n+1))}
					n++
					kerneltest.Must(b, engine.SetEndpoint(e))
					d, before := engine.Flush(), cpu(b)
					b.StartTimer()
					began := time.Now()
					r.Apply(d)
					err := r.Wait(context.Background(), e.Interface)
					all = append(all, time.Since(began))
					b.StopTimer()
					used += cpu(b) - before
					kerneltest.Must(b, err)
					b.StartTimer()
				}
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs-p50")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "µs-p99")
				b.ReportMetric(float64(used.Microseconds())/float64(len(all)), "µs-cpu/op")
			})
		}
		r.Stop()
	}
}
