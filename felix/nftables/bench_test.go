package nftables_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// cpu is what this process and its children have taken of processors.
func cpu(t testing.TB) time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		kerneltest.Must(t, unix.Getrusage(who, &u))
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// BenchmarkPolicy measures, from Apply to Wait, 1,000 policies and 10,000 pods: the start, and changes.
func BenchmarkPolicy(b *testing.B) {
	engine := kerneltest.Large(b, 1000, 10000)
	// A list of 10,000 networks, as reputation feeds have them.
	feed := model.NetworkSet{ID: model.NetworkSetID{Name: "feed"}, Labels: map[string]string{"feed": "yes"}}
	for i := range 10000 {
		feed.Nets = append(feed.Nets, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), 0}), 25))
	}
	block := kerneltest.Global("feed", "app == 'a3'", policy.Ingress, model.Rule{Action: model.RuleDeny, Source: model.EntityRule{Selector: "has(feed)"}})
	kerneltest.Must(b, engine.SetNetworkSet(feed), engine.SetPolicy(block))
	first := engine.Flush()
	lab := kerneltest.New(b, kerneltest.Config{})
	r := start(b, lab)
	apply := func(d *policy.Delta) (took time.Duration, bytes int) {
		b.Helper()
		r.to.took()
		began := time.Now()
		r.Apply(d)
		kerneltest.Must(b, r.Wait(context.Background()))
		return time.Since(began), r.to.bytes()
	}
	r.InSync()
	before := cpu(b)
	took, bytes := apply(first)
	b.Logf("start: %v, %v of processors, %d bytes, %d chains, %d sets", took.Round(time.Millisecond), (cpu(b) - before).Round(time.Millisecond), bytes, len(first.Chains), len(first.NewSets))
	var known []string
	for _, e := range first.Endpoints {
		known = append(known, e.Interface)
	}
	r.Stop()
	r = start(b, lab, known...)
	took, bytes = apply(engine.Whole())
	r.InSync()
	kerneltest.Must(b, r.Wait(context.Background()))
	b.Logf("restart: %v, %d bytes", took.Round(time.Millisecond), bytes)
	lab.Run(b, "nft", "delete", "table", "inet", nftables.TableName)
	began := time.Now()
	kerneltest.Eventually(b, func() string {
		if !strings.Contains(lab.Run(b, "nft", "list", "tables"), nftables.TableName) {
			return "the table is not back"
		}
		return ""
	})
	b.Logf("back after it was deleted: %v", time.Since(began).Round(time.Millisecond))
	change := func(name string, f func(n int)) {
		b.Run(name, func(b *testing.B) {
			var all []time.Duration
			n, sum, used := 0, 0, time.Duration(0)
			for b.Loop() {
				f(n)
				n++
				d, before := engine.Flush(), cpu(b)
				took, bytes := apply(d)
				used += cpu(b) - before
				all, sum = append(all, took), sum+bytes
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "ms-p99")
			b.ReportMetric(float64(used.Microseconds())/1000/float64(len(all)), "ms-cpu/op")
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
	change("network", func(n int) {
		other := feed
		other.Nets = append(slices.Clone(feed.Nets), netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 127, byte(n), 0}), 25))
		kerneltest.Must(b, engine.SetNetworkSet(other))
	})
}

// BenchmarkDispatch measures what a first packet from outside to a pod costs the kernel with the
// rules of 1, 10, 110 and 500 pods, and with none: nanoseconds, the sending counted in.
func BenchmarkDispatch(b *testing.B) {
	for _, n := range []int{0, 1, 10, 110, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			to, iface := netip.MustParseAddr("10.0.0.1"), kerneltest.LargeInterface(0)
			l := kerneltest.New(b, kerneltest.Config{Links: []string{"eth0", iface}, Routes: map[netip.Prefix]string{netip.PrefixFrom(to, 32): iface}})
			if n > 0 {
				e := policy.New(policy.Config{})
				e.SetNamespace(model.Namespace{Name: "red"})
				for i := range n {
					x := kerneltest.LargePod(i, 1)
					x.ID.Namespace, x.Interface = "red", kerneltest.LargeInterface(i)
					if i == 0 {
						x.Addresses = []netip.Addr{to}
					}
					kerneltest.Must(b, e.SetEndpoint(x))
				}
				r := start(b, l)
				r.Apply(e.Flush())
				r.InSync()
				kerneltest.Must(b, r.Wait(context.Background()))
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
