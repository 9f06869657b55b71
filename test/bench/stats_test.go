package main

import (
	"math"
	"testing"
)

func TestPercentile(t *testing.T) {
	xs := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{0: 1, 25: 2, 50: 3, 90: 4.6, 100: 5} {
		if got := percentile(xs, p); math.Abs(got-want) > 1e-9 {
			t.Errorf("percentile %v of %v: %v, want %v", p, xs, got, want)
		}
	}
	if xs[0] != 5 {
		t.Error("percentile sorted its argument")
	}
	if got := median([]float64{1, 2}); got != 1.5 {
		t.Errorf("median of 1, 2: %v", got)
	}
	if !math.IsNaN(median(nil)) {
		t.Error("median of nothing is a number")
	}
}

func TestMedianInterval(t *testing.T) {
	low, high := medianInterval([]float64{2, 2, 2})
	if low != 2 || high != 2 {
		t.Errorf("interval of a constant: %v to %v", low, high)
	}
	xs := []float64{1, 1.1, 0.9, 1.2, 0.8, 1, 1.05, 0.95, 1, 3}
	low, high = medianInterval(xs)
	if low > 1 || high < 1 || high > 1.3 || low < 0.8 {
		t.Errorf("interval %v to %v: one outlier must not widen it so", low, high)
	}
	if l, h := medianInterval(xs); l != low || h != high {
		t.Error("the same values gave another interval")
	}
}

func TestComparison(t *testing.T) {
	var c Comparison
	c.add(1, 2)
	c.add(3, 4)
	c.add(10, 1) // noise hit one side of one pair
	c.finish()
	if c.Ratio != 0.75 || c.MedianCauseway != 3 || c.MedianPeer != 2 {
		t.Errorf("%+v", c)
	}
}
