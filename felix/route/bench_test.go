package route

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// manyPrefixes makes n different /24 below 11.0.0.0.
func manyPrefixes(n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 11<<24+uint32(i)<<8)
		out[i] = netip.PrefixFrom(netip.AddrFrom4(b), 24)
	}
	return out
}

// BenchmarkProgram measures Update to kernel for a full table behind two next hops, then
// the loss of one of them; per route, as b.Elapsed/b.N.
func BenchmarkProgram(b *testing.B) {
	for _, size := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				ns := newNetNS(b)
				for i := range 2 {
					ns.ip(fmt.Sprintf("link add e%d type veth peer name f%d", i, i))
					ns.ip(fmt.Sprintf("addr add 10.0.%d.1/24 dev e%d", i, i))
					ns.ip(fmt.Sprintf("link set e%d up", i))
					ns.ip(fmt.Sprintf("link set f%d up", i))
				}
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				table, stop := startTable(b, ns.path(), slog.New(slog.DiscardHandler))
				prefixes := manyPrefixes(size)
				ctx := context.Background()
				if err := table.Wait(ctx, prefixes[0]); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				start := time.Now()
				for _, p := range prefixes {
					table.Update(model.OwnerBGP, model.RouteUpdate{Set: []model.Route{{Prefix: p, NextHops: []model.NextHop{
						{Addr: netip.MustParseAddr("10.0.0.2")}, {Addr: netip.MustParseAddr("10.0.1.2")}}}}})
				}
				if err := table.Wait(ctx, prefixes...); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(size)/time.Since(start).Seconds(), "routes/s")
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(size), "B/route")
				start = time.Now()
				ns.ip("link set f1 down")
				eventually(b, func() string {
					s := table.Status()
					if len(s.Unresolved) == 1 && s.Pending == 0 {
						return ""
					}
					return "link loss not seen"
				})
				if err := table.Wait(ctx, prefixes...); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/linkloss")
				stop()
				b.StartTimer()
			}
		})
	}
}

// startTable runs a Table in a namespace until stop.
func startTable(t testing.TB, path string, log *slog.Logger, owners ...model.Owner) (table *Table, stop func()) {
	t.Helper()
	if len(owners) == 0 {
		owners = []model.Owner{model.OwnerBGP}
	}
	table, err := New(Config{Log: log, Owners: owners, NetNS: path})
	if err != nil {
		t.Fatal(err)
	}
	return table, runTable(t, table)
}

func runTable(t testing.TB, table *Table) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- table.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}
