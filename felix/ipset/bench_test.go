package ipset_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
)

// filled is 1,000 sets with 100,000 members: one of 10,000, and the others equal.
func filled() []ipset.Set {
	sets := make([]ipset.Set, 1000)
	for i := range sets {
		sets[i] = ipset.Set{Name: fmt.Sprintf("cali40s%021d", i), Type: ipset.HashIP, Family: ipset.IPv4}
		n := 90
		if i == 0 {
			n = 10_000
		}
		for j := range n {
			sets[i].Members = append(sets[i].Members, address(10, i*100+j))
		}
	}
	return sets
}

func address(first byte, n int) ipset.Member {
	return ipset.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(n >> 16), byte(n >> 8), byte(n)}), 32)}
}

func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkMember is one member more or less in a set of 10,000 beside 999 others, from the
// call to the kernel: by a Reconciler, and by a process of the ipset program.
func BenchmarkMember(b *testing.B) {
	r := realRig(b)
	rec, _ := r.start(b, func(c *ipset.Config) { c.Glance = ipset.DefaultGlance })
	sets := filled()
	rec.Replace(sets...)
	wait(b, rec)
	var took []time.Duration
	one := func(b *testing.B, i int) {
		at := time.Now()
		m := []ipset.Member{address(11, i/2)}
		if i%2 == 0 {
			rec.Update(sets[0].Name, m, nil)
		} else {
			rec.Update(sets[0].Name, nil, m)
		}
		wait(b, rec, sets[0].Name)
		took = append(took, time.Since(at))
	}
	b.Run("netlink", func(b *testing.B) {
		took = nil
		for i := 0; b.Loop(); i++ {
			one(b, i)
		}
		quantiles(b, took)
	})
	// The same in the only set that there is.
	b.Run("alone", func(b *testing.B) {
		rec, _ := realRig(b).start(b, func(c *ipset.Config) { c.Glance = ipset.DefaultGlance })
		rec.Replace(ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4})
		wait(b, rec)
		took = nil
		for i := 0; b.Loop(); i++ {
			at := time.Now()
			m := address(11, i/2)
			m.Interface = "cali0123456789a"
			if i%2 == 0 {
				rec.Update("cali40i", []ipset.Member{m}, nil)
			} else {
				rec.Update("cali40i", nil, []ipset.Member{m})
			}
			wait(b, rec, "cali40i")
			took = append(took, time.Since(at))
		}
		quantiles(b, took)
	})
	// As a quiet machine has it: everything sleeps before each change.
	b.Run("quiet", func(b *testing.B) {
		took = nil
		pause := time.NewTicker(5 * time.Millisecond)
		defer pause.Stop()
		for i := 0; b.Loop(); i++ {
			<-pause.C
			one(b, i)
		}
		quantiles(b, took)
	})
	// While all members of all sets are read again without a pause.
	b.Run("resync", func(b *testing.B) {
		took = nil
		for i := 0; b.Loop(); i++ {
			rec.PokeResync()
			one(b, i)
		}
		quantiles(b, took)
	})
	// While another owner makes 500 more sets, and gives them up.
	b.Run("install", func(b *testing.B) {
		took = nil
		more := slices.Clone(sets[500:])
		var names []string
		for i := range more {
			more[i].Name = "cali40n" + more[i].Name[7:]
			names = append(names, more[i].Name)
		}
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				rec.Replace(more...)
				rec.Wait(b.Context(), names...)
				rec.Delete(names...)
				select {
				case <-done:
					return
				default:
				}
			}
		})
		for i := 0; b.Loop(); i++ {
			at := time.Now()
			rec.Update(sets[0].Name, []ipset.Member{address(11, i)}, nil)
			wait(b, rec, sets[0].Name)
			took = append(took, time.Since(at))
		}
		close(done)
		wg.Wait()
		quantiles(b, took)
	})
	b.Run("program", func(b *testing.B) {
		var took []time.Duration
		enter := entering(r.netns)
		for i := 0; b.Loop(); i++ {
			at := time.Now()
			err := enter(func() error {
				cmd := exec.Command("ipset", "restore")
				cmd.Stdin = strings.NewReader(fmt.Sprintf("%s %s 12.0.0.1\n", []string{"add", "del"}[i%2], sets[1].Name))
				return cmd.Run()
			})
			if err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(at))
		}
		quantiles(b, took)
	})
}

// BenchmarkInstall makes 1,000 sets with 100,000 members.
func BenchmarkInstall(b *testing.B) {
	sets := filled()
	b.Run("netlink", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			r := realRig(b)
			rec, stop := r.start(b, nil)
			b.StartTimer()
			rec.Replace(sets...)
			wait(b, rec)
			b.StopTimer()
			stop()
			b.StartTimer()
		}
	})
	b.Run("program", func(b *testing.B) {
		var text strings.Builder
		for _, s := range sets {
			fmt.Fprintf(&text, "create %s hash:ip hashsize 64 maxelem 1048576\n", s.Name)
			for _, m := range s.Members {
				fmt.Fprintf(&text, "add %s %s\n", s.Name, m)
			}
		}
		for b.Loop() {
			b.StopTimer()
			r := realRig(b)
			b.StartTimer()
			err := entering(r.netns)(func() error {
				cmd := exec.Command("ipset", "restore")
				cmd.Stdin = strings.NewReader(text.String())
				return cmd.Run()
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkLook is what stands still and is looked at: headers every few seconds, and
// members at a resync.
func BenchmarkLook(b *testing.B) {
	r := realRig(b)
	rec, _ := r.start(b, func(c *ipset.Config) { c.Glance = time.Hour })
	rec.Replace(filled()...)
	wait(b, rec)
	b.Run("headers", func(b *testing.B) {
		for b.Loop() {
			if _, err := r.kernel.Headers(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("resync", func(b *testing.B) {
		for b.Loop() {
			rec.PokeResync()
			before := rec.Status()
			rec.Update("cali40s000000000000000000001", nil, nil)
			wait(b, rec)
			if s := rec.Status(); s.Members != before.Members || s.Healed != 0 {
				b.Fatalf("%+v", s)
			}
		}
	})
}
