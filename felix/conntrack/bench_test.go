package conntrack_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/felixtest"
)

// full is a node whose table has this many connections, between 110 pods and 10,000 others.
func full(b *testing.B, size int) *node {
	n := &node{name: namespace(b)}
	n.table = conntrack.NewTableIn(entering(n.name))
	flows := make([]conntrack.Flow, 0, size)
	for i := range size {
		from := fmt.Sprintf("10.1.%d.%d:%d", i/250%40, i%250, 1024+i%60000)
		to := fmt.Sprintf("10.65.0.%d:%d", i%110, 1+i/110)
		flows = append(flows, udp(from, to, to, from, 0))
	}
	if err := n.table.Create(flows); err != nil {
		b.Fatal(err)
	}
	return n
}

// cpu reports the processor time of an operation, which a busy machine does not stretch.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Microseconds())/1000/float64(b.N), "cpu-ms/op") }
}

// BenchmarkTable has 200,000 connections.
func BenchmarkTable(b *testing.B) {
	n := full(b, 200_000)
	pod := netip.MustParseAddr("10.65.0.7")
	read := func(addrs ...netip.Addr) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			defer cpu(b)()
			for b.Loop() {
				count := 0
				if err := n.table.Flows(b.Context(), addrs, func(*conntrack.Flow) { count++ }); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(count), "flows")
			}
		}
	}
	b.Run("all", read())
	b.Run("one-address", read(pod))
	b.Run("three-addresses", read(pod, pod.Next(), pod.Next().Next()))
	b.Run("no-such-address", read(netip.MustParseAddr("10.99.0.1")))
	b.Run("forget-nobody", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			if _, err := n.table.Forget(b.Context(), netip.MustParseAddr("10.99.0.1")); err != nil {
				b.Fatal(err)
			}
		}
	})
	// From the poke to the last mark, with a verdict that costs nothing.
	p := &oracle{}
	c := n.running(b, p)
	c.InSync()
	until(b, "the first rounds", func() bool { return c.Stats().Rounds == 2 })
	for _, who := range []struct {
		name  string
		addrs []netip.Addr
		flows uint64
	}{{"cut-one", []netip.Addr{pod}, 200_000 / 110}, {"cut-all", nil, 200_000}} {
		b.Run(who.name, func(b *testing.B) {
			defer cpu(b)()
			for b.Loop() {
				for _, forbidden := range []bool{true, false} {
					before := c.Stats()
					p.forbid(func(f *conntrack.Flow) bool { return forbidden && (who.addrs == nil || f.Destination.Addr() == pod) })
					began := time.Now()
					c.Poke(who.addrs...)
					until(b, "the marks", func() bool {
						s := c.Stats()
						return s.Cut+s.Cleared-before.Cut-before.Cleared >= who.flows
					})
					if forbidden {
						b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-cut")
					}
				}
			}
		})
	}
}

// BenchmarkVerdict judges flows by the rules of a random cluster.
func BenchmarkVerdict(b *testing.B) {
	g, trial := felixtest.NewGenerator(1), felixtest.NewTrial()
	for _, c := range g.Start() {
		if err := trial.Change(c); err != nil {
			b.Fatal(err)
		}
	}
	j := conntrack.NewJudge(nil)
	if _, err := j.Apply(trial.Engine.Flush()); err != nil {
		b.Fatal(err)
	}
	flows := make([]conntrack.Flow, 1000)
	for i := range flows {
		p := g.Packet()
		from, to := netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort)
		flows[i] = conntrack.Flow{Protocol: p.Protocol, Source: from, Destination: to, First: to, ReplyTo: from}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		j.Verdict(&flows[i%len(flows)])
	}
}
