package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// percentile returns the p-th percentile (0 to 100) of xs, interpolated between its two
// neighbours; NaN of none.
func percentile(xs []float64, p float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(xs))
	at := p / 100 * float64(len(s)-1)
	low := int(math.Floor(at))
	if low+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// Pair is what was measured of both sides, and of a plugin that does nothing, in one
// stretch of time; ms.
type Pair struct {
	Causeway, Peer, Floor []float64
}

// net returns both sides' figures without the driver's own cost, which is the median of
// its floor in the same pair.
func (p Pair) net() (causeway, peer []float64) {
	floor := percentile(p.Floor, 50)
	less := func(xs []float64) []float64 {
		out := make([]float64, len(xs))
		for i, x := range xs {
			out[i] = x - floor
		}
		return out
	}
	return less(p.Causeway), less(p.Peer)
}

// Ratio compares percentiles of two sides, with a 95 % interval.
type Ratio struct {
	Causeway, Peer   float64 // ms
	Value, Low, High float64
}

// ratioOf compares the p-th percentiles of all pairs together. The interval is that of a
// bootstrap which draws whole pairs, because what disturbs one ADD disturbs its
// neighbours, too. The same pairs give the same interval.
func ratioOf(pairs []Pair, p float64) Ratio {
	const resamples = 2000
	type sides struct{ causeway, peer []float64 }
	all := make([]sides, len(pairs))
	for i, pair := range pairs {
		all[i].causeway, all[i].peer = pair.net()
	}
	at := func(pick func(i int) int) (causeway, peer float64) {
		var a, b []float64
		for i := range all {
			a, b = append(a, all[pick(i)].causeway...), append(b, all[pick(i)].peer...)
		}
		return percentile(a, p), percentile(b, p)
	}
	var r Ratio
	r.Causeway, r.Peer = at(func(i int) int { return i })
	r.Value = r.Causeway / r.Peer
	rng := rand.New(rand.NewPCG(1, 2))
	values := make([]float64, resamples)
	for i := range values {
		drawn := make([]int, len(all))
		for j := range drawn {
			drawn[j] = rng.IntN(len(all))
		}
		a, b := at(func(j int) int { return drawn[j] })
		values[i] = a / b
	}
	r.Low, r.High = percentile(values, 2.5), percentile(values, 97.5)
	return r
}
