package iptables_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// BenchmarkPolicy measures, from Apply to Wait, 1,000 policies and 10,000 pods: the start, and changes.
func BenchmarkPolicy(b *testing.B) {
	for _, backend := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		b.Run(string(backend), func(b *testing.B) {
			engine := kerneltest.Large(b, 1000, 10000)
			first := engine.Flush()
			lab := kerneltest.New(b, kerneltest.Config{})
			r := startPolicy(b, lab, backend)
			apply := func(d *policy.Delta) (took time.Duration, bytes int) {
				b.Helper()
				for _, to := range r.to {
					to.took()
				}
				began := time.Now()
				r.Apply(d)
				if err := r.Wait(context.Background()); err != nil {
					b.Fatal(err)
				}
				took = time.Since(began)
				for _, to := range r.to {
					for _, s := range to.took() {
						bytes += len(s)
					}
				}
				return took, bytes
			}
			r.InSync()
			took, bytes := apply(first)
			b.Logf("start: %v, %d bytes, %d chains, %d sets", took.Round(time.Millisecond), bytes, len(first.Chains), len(first.NewSets))
			var known []string
			for _, e := range first.Endpoints {
				known = append(known, e.Interface)
			}
			r.stop()
			r = startPolicy(b, lab, backend, known...)
			took, bytes = apply(engine.Whole())
			r.InSync()
			b.Logf("restart: %v, %d bytes", took.Round(time.Millisecond), bytes)
			change := func(name string, f func(n int)) {
				b.Run(name, func(b *testing.B) {
					var all []time.Duration
					n, sum := 0, 0
					for b.Loop() {
						f(n)
						n++
						took, bytes := apply(engine.Flush())
						all, sum = append(all, took), sum+bytes
					}
					slices.Sort(all)
					b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-p50")
					b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "ms-p99")
					b.ReportMetric(float64(sum/len(all)), "bytes/op")
				})
			}
			change("label", func(n int) { kerneltest.Must(b, engine.SetEndpoint(kerneltest.LargePod(500, n%2*20))) })
			change("policy", func(n int) {
				p := model.Policy{ID: model.PolicyID{Kind: model.PolicyKubernetes, Namespace: "ns3", Name: "p3"}, Tier: model.TierDefault, Order: model.KubernetesPolicyOrder,
					Subject: model.Subject{Selector: "all()"}, ForIngress: true, Ingress: []model.Rule{kerneltest.Port(model.RuleAllow, 6, 80+n%2)}}
				kerneltest.Must(b, engine.SetPolicy(p))
			})
			change("pod", func(n int) {
				e := kerneltest.LargePod(7, 7)
				e.ID.Name, e.Interface = "new", "calinew"
				e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(n >> 8), byte(n)})}
				if n%2 == 0 {
					kerneltest.Must(b, engine.SetEndpoint(e))
				} else {
					engine.RemoveEndpoint(e.ID)
				}
			})
		})
	}
}

// BenchmarkDispatch measures what a first packet from outside to a pod costs the kernel with the
// rules of 1, 10, 110 and 500 pods, and with none: nanoseconds, the sending counted in.
func BenchmarkDispatch(b *testing.B) {
	for _, backend := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		for _, n := range []int{0, 1, 10, 110, 500} {
			b.Run(fmt.Sprintf("%s-%d", backend, n), func(b *testing.B) {
				const iface = "cali9e3779b97f4"
				to := netip.MustParseAddr("10.0.0.1")
				l := kerneltest.New(b, kerneltest.Config{Links: []string{"eth0", iface}, Routes: map[netip.Prefix]string{netip.PrefixFrom(to, 32): iface}})
				if n > 0 {
					e := policy.New(policy.Config{})
					e.SetNamespace(model.Namespace{Name: "red"})
					for i := range n {
						x := kerneltest.LargePod(i, 1)
						x.ID.Namespace = "red"
						x.Interface = fmt.Sprintf("cali%011x", uint64(i+1)*0x9e3779b97f4a&0xfffffffffff)
						if i == 0 {
							x.Interface, x.Addresses = iface, []netip.Addr{to}
						}
						kerneltest.Must(b, e.SetEndpoint(x))
					}
					r := startPolicy(b, l, backend)
					r.Apply(e.Flush())
					r.InSync()
					if err := r.Wait(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
				packets := make([]trace.Packet, 20000)
				for i := range packets {
					packets[i] = trace.Packet{Src: netip.AddrFrom4([4]byte{203, 0, 113, byte(i >> 12)}), Dst: to, Protocol: 17, SrcPort: uint16(1024 + i), DstPort: 80, In: "eth0", Out: iface}
				}
				best := time.Duration(1 << 62)
				for b.Loop() {
					kerneltest.Must(b, l.Forget())
					runtime.GC()
					began := time.Now()
					kerneltest.Must(b, l.Inject(packets))
					best = min(best, time.Since(began))
				}
				b.ReportMetric(float64(best.Nanoseconds())/float64(len(packets)), "ns/packet")
			})
		}
	}
}

// BenchmarkAttach measures an ADD, from Apply to Wait, beside 110 pods: of a pod that no policy selects, and of one
// whose object was there before; one address, and one of each family.
func BenchmarkAttach(b *testing.B) {
	for _, backend := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		engine := kerneltest.Large(b, 1000, 110)
		engine.SetNamespace(model.Namespace{Name: "open"})
		// Rules of a family come with the first pod that has an address of it.
		six := kerneltest.LargePod(200, 7)
		six.Addresses = append(six.Addresses, netip.MustParseAddr("fd00::c8"))
		kerneltest.Must(b, engine.SetEndpoint(six))
		lab := kerneltest.New(b, kerneltest.Config{})
		r := startPolicy(b, lab, backend)
		r.Apply(engine.Flush())
		r.InSync()
		if err := r.Wait(context.Background()); err != nil {
			b.Fatal(err)
		}
		for _, namespace := range []string{"open", "ns7"} {
			for _, dual := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%s/dual=%v", backend, namespace, dual), func(b *testing.B) {
					e := kerneltest.LargePod(7, 7)
					e.ID.Namespace, e.ID.Name, e.Interface = namespace, "new", "calinew"
					var all []time.Duration
					for n := 0; b.Loop(); n++ {
						b.StopTimer()
						e.Addresses = nil
						kerneltest.Must(b, engine.SetEndpoint(e))
						r.Apply(engine.Flush())
						if err := r.Wait(context.Background()); err != nil {
							b.Fatal(err)
						}
						if n == 0 {
							r.took()
						}
						e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(n >> 8), byte(n)})}
						if dual {
							e.Addresses = append(e.Addresses, netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(n >> 8), 15: byte(n)}))
						}
						kerneltest.Must(b, engine.SetEndpoint(e))
						d := engine.Flush()
						b.StartTimer()
						began := time.Now()
						r.Apply(d)
						if err := r.Wait(context.Background(), e.Interface); err != nil {
							b.Fatal(err)
						}
						all = append(all, time.Since(began))
					}
					slices.Sort(all)
					b.ReportMetric(float64(all[len(all)/2].Microseconds()), "us-p50")
					b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "us-p99")
					if scripts := r.took(); len(scripts) > 0 {
						b.Errorf("%d transactions of iptables-restore: %.1000s", len(scripts), scripts)
					}
				})
			}
		}
		r.stop()
	}
}
