package kerneltest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

var (
	packets = flag.Int("kernel-packets", 1500, "how many packets a random differential test sends through the kernel")
	seed    = flag.Uint64("kernel-seed", 0, "seed of its first random cluster; 0: of the time")
)

// Backend is what brings policy into the kernel: felix/iptables and felix/nftables.
type Backend interface {
	Apply(*policy.Delta)
	InSync()
	Wait(ctx context.Context, interfaces ...string) error
}

const (
	changesPerCluster = 12
	packetsPerChange  = 60
)

// RandomConfig is the shape of a Lab that felixtest.Generator's clusters fit into.
func RandomConfig() Config {
	c := Config{Links: []string{"eth0", "eth1", "eth2"}}
	for i := range 7 {
		c.Links = append(c.Links, fmt.Sprintf("cali%d", i))
	}
	c.Links = append(c.Links, "cali99")
	for _, a := range []string{"192.168.0.1", "192.168.0.2", "fd01::1", "fd01::2"} {
		c.Host = append(c.Host, netip.MustParseAddr(a))
	}
	c.Routes = routes(nil)
	return c
}

// routes are the ways to the endpoints of a cluster, and to everybody else.
func routes(w *felixtest.World) map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	for p, link := range map[string]string{
		"0.0.0.0/0": "eth0", "::/0": "eth0", "192.168.0.0/29": "eth1", "fd01::/125": "eth1", "10.0.0.16/29": "eth1", "fd00::10/125": "eth1",
		"128.0.0.0/1": "eth2", "2001:db8::/64": "eth2", "10.0.0.30/32": "cali99",
	} {
		out[netip.MustParsePrefix(p)] = link
	}
	if w == nil {
		return out
	}
	for _, e := range w.Endpoints {
		if e.ID.Kind != model.EndpointWorkload || e.Interface == "" {
			continue
		}
		for _, a := range e.Addresses {
			p := netip.PrefixFrom(a, a.BitLen())
			if old := out[p]; old == "" || !strings.HasPrefix(old, trace.WorkloadPrefix) || e.Interface < old {
				out[p] = e.Interface
			}
		}
	}
	return out
}

// Differential changes random clusters step by step, has the backend bring each step into
// the kernel, and sends random packets: the golden model says which must arrive. start makes and
// runs the backend in a Lab; a new one for each cluster.
func Differential(t *testing.T, start func(*testing.T, *Lab) Backend) {
	first := *seed
	if first == 0 {
		first = rand.Uint64()
	}
	began := time.Now()
	sent, allowed, clusters := 0, 0, uint64(0)
	for ; sent < *packets && !t.Failed(); clusters++ {
		t.Run(fmt.Sprintf("seed=%d", first+clusters), func(t *testing.T) {
			l := New(t, RandomConfig())
			n, ok := cluster(t, l, start(t, l), first+clusters)
			sent, allowed = sent+n, allowed+ok
		})
	}
	t.Logf("seed %d: %d packets in %d clusters, %d allowed, in %v", first, sent, clusters, allowed, time.Since(began).Round(time.Millisecond))
}

func cluster(t *testing.T, l *Lab, b Backend, seed uint64) (sent, allowed int) {
	g := felixtest.NewGenerator(seed)
	trial := felixtest.NewTrial()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	flush := func() {
		t.Helper()
		d := trial.Engine.Flush()
		if err := trial.Program.Apply(d); err != nil {
			t.Fatal(err)
		}
		b.Apply(d)
		if err := l.SetRoutes(routes(trial.World)); err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	change := func(c felixtest.Change) {
		t.Helper()
		if err := trial.Change(c); err != nil {
			t.Fatal(err)
		}
	}
	fire := func(n int) {
		t.Helper()
		var shots []trace.Packet
		var want []bool
		for tries := 0; len(shots) < n && tries < 100*n; tries++ {
			p := g.Packet()
			p.FirstDst, p.FirstDstPort = netip.Addr{}, 0
			if p.Protocol == 1 {
				p.ICMPType = 8
			}
			if p.Protocol == 58 {
				p.ICMPType = 128
			}
			p.Out, _ = l.Out(p.Dst)
			if !l.Possible(p) || !trial.World.Possible(p) || twice(trial.World, l, p) {
				continue
			}
			v := trial.World.Verdict(p)
			shots, want = append(shots, p), append(want, v.Allowed)
			if v.Allowed {
				allowed++
			}
		}
		wrong, err := l.Check(shots, want)
		if err != nil {
			t.Fatal(err)
		}
		sent += len(shots)
		for _, i := range wrong[:min(len(wrong), 5)] {
			v := trial.World.Verdict(shots[i])
			t.Errorf("seed %d: %s\narrived: %v\ngolden model: allowed %v, at %s\ntracer: %s", seed, shots[i], !want[i], v.Allowed, v.At, trace.Trace(trial.Program, shots[i]))
		}
		if len(wrong) > 0 {
			t.Fatalf("%d of %d packets", len(wrong), len(shots))
		}
	}
	for _, c := range g.Start() {
		change(c)
	}
	flush()
	b.InSync()
	flush()
	fire(4 * packetsPerChange)
	for range changesPerCluster {
		change(g.Next())
		if g.IntN(100) < 80 {
			flush()
			fire(packetsPerChange)
		}
	}
	flush()
	return sent, allowed
}

// twice reports whether a workload sends from an address of its own to which the way leads
// to another workload, which has it too: the kernel has one route back.
func twice(w *felixtest.World, l *Lab, p trace.Packet) bool {
	if !strings.HasPrefix(p.In, trace.WorkloadPrefix) {
		return false
	}
	back, _ := l.Out(p.Src)
	if back == p.In {
		return false
	}
	return slices.ContainsFunc(slices.Collect(endpoints(w)), func(e model.PolicyEndpoint) bool {
		return e.Interface == p.In && slices.Contains(e.Addresses, p.Src)
	})
}

func endpoints(w *felixtest.World) func(func(model.PolicyEndpoint) bool) {
	return func(yield func(model.PolicyEndpoint) bool) {
		for _, e := range w.Endpoints {
			if !yield(e) {
				return
			}
		}
	}
}
