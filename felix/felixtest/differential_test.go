package felixtest

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	packets = flag.Int("packets", 20000, "how many packets golden model and engine are asked about")
	seed    = flag.Uint64("seed", 0, "seed of the first random cluster; 0: of the time")
)

const (
	changesPerCluster = 30
	packetsPerChange  = 16
)

// TestEngineAgainstGoldenModel changes random clusters step by step. After each step the
// engine's delta must apply in its order, and the tracer and the golden model must agree
// about random packets; now and then a fresh engine must come to the same program.
func TestEngineAgainstGoldenModel(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64()
	}
	t.Logf("seed %d", first)
	start := time.Now()
	asked, allowed, clusters := 0, 0, uint64(0)
	for ; asked < *packets; clusters++ {
		g := NewGenerator(first + clusters)
		trial := NewTrial()
		var history []Change
		check := func(err error) {
			if err != nil {
				t.Fatalf("seed %d, after %d changes:\n%s", first+clusters, len(history), Explain(history, err))
			}
		}
		change := func(c Change) {
			history = append(history, c)
			check(trial.Change(c))
		}
		ask := func(n int) {
			check(trial.Flush())
			for range n {
				p := g.Packet()
				asked++
				check(trial.Ask(p))
				if trial.World.Verdict(p).Allowed {
					allowed++
				}
			}
		}
		for _, c := range g.Start() {
			change(c)
		}
		ask(packetsPerChange * 4)
		for i := range changesPerCluster {
			change(g.Next())
			if g.in(80) { // or else the next change falls into the same flush
				ask(packetsPerChange)
			}
			if i%10 == 9 {
				check(trial.Flush())
				check(trial.Fresh())
			}
		}
	}
	t.Logf("%d packets in %d clusters, %d allowed, in %v", asked, clusters, allowed, time.Since(start).Round(time.Millisecond))
	if share := float64(allowed) / float64(asked); share < 0.1 || share > 0.9 {
		t.Errorf("%.0f %% of the packets are allowed: the generator says nothing", 100*share)
	}
}
