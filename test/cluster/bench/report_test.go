package main

import (
	"math"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/cluster/bench/requests"
)

// TestRatio: the driver's cost is taken off both sides, each pair's own.
func TestRatio(t *testing.T) {
	pairs := []Pair{
		{Causeway: []float64{3, 4, 5}, Peer: []float64{8, 10, 12}, Floor: []float64{2, 2, 2}},
		{Causeway: []float64{13, 14, 15}, Peer: []float64{18, 20, 22}, Floor: []float64{12, 12, 12}},
	}
	r := ratioOf(pairs, 50)
	if r.Causeway != 2 || r.Peer != 8 || r.Value != 0.25 {
		t.Errorf("got %+v, want 2 ms against 8 ms", r)
	}
	if r.Low > r.Value || r.High < r.Value || r != ratioOf(pairs, 50) {
		t.Errorf("interval %v to %v around %v, want it to hold the ratio, and the same again", r.Low, r.High, r.Value)
	}
	for p, want := range map[float64]float64{0: 1, 25: 2, 90: 4.6, 100: 5} {
		if got := percentile([]float64{5, 3, 1, 4, 2}, p); math.Abs(got-want) > 1e-9 {
			t.Errorf("percentile %v is %v, want %v", p, got, want)
		}
	}
}

// TestMarkdown: a figure beyond its goal says so; the document keeps what is not ours.
func TestMarkdown(t *testing.T) {
	slow := Pair{Causeway: []float64{9}, Peer: []float64{10}, Floor: []float64{0}}
	r := Report{Command: "make bench-cluster", Latencies: []Latency{{Burst: true, Known: true, Pairs: []Pair{slow}}},
		Costs: []Cost{{Name: "in bursts", Addresses: 10, Goal: 0.2, Requests: requests.Cost{Writes: 1}}}}
	text := r.Markdown()
	for _, want := range []string{
		"| 8 at once, a pod of the API | 50 | 9.00 | 10.0 | **0.90** | 0.90 – 0.90 | ≤ 0.5: **missed** |",
		"| in bursts | 10 | 0.100 | 0.000 | 0 | writes ≤ 0.2: met, reads ≤ 0: met |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	out, err := between("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n", text)
	if err != nil || !strings.HasPrefix(out, "before\n"+beginMark) || !strings.HasSuffix(out, endMark+"\nafter\n") || strings.Contains(out, "old") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := between("no marks", text); err == nil {
		t.Error("a document without marks is no error")
	}
}
