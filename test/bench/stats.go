package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// median of xs; NaN of none.
func median(xs []float64) float64 { return percentile(xs, 50) }

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

// medianInterval is the 95 % percentile bootstrap interval of the median of xs. The same
// xs give the same interval.
func medianInterval(xs []float64) (low, high float64) {
	const resamples = 10_000
	if len(xs) == 0 {
		return math.NaN(), math.NaN()
	}
	r := rand.New(rand.NewPCG(1, 2))
	medians, sample := make([]float64, resamples), make([]float64, len(xs))
	for i := range medians {
		for j := range sample {
			sample[j] = xs[r.IntN(len(xs))]
		}
		medians[i] = median(sample)
	}
	return percentile(medians, 2.5), percentile(medians, 97.5)
}

// Comparison is one measure of Causeway and of what it is compared with, taken in pairs.
type Comparison struct {
	Name     string    `json:"name"`
	Versus   string    `json:"versus"`
	Unit     string    `json:"unit"`
	Causeway []float64 `json:"causeway"` // one figure per pair
	Peer     []float64 `json:"peer"`     // its partner
	// Goal is the most that the median of ratios may be; 0: there is no goal.
	Goal float64 `json:"goal,omitempty"`
	// Least is the least that the median of ratios may be; 0: there is none.
	Least float64 `json:"least,omitempty"`

	MedianCauseway float64 `json:"medianCauseway"`
	MedianPeer     float64 `json:"medianPeer"`
	Ratio          float64 `json:"ratio"`     // median of causeway/peer over the pairs
	RatioLow       float64 `json:"ratioLow"`  // of a 95 % bootstrap interval
	RatioHigh      float64 `json:"ratioHigh"` // of a 95 % bootstrap interval
}

// add appends a pair.
func (c *Comparison) add(causeway, peer float64) {
	c.Causeway, c.Peer = append(c.Causeway, causeway), append(c.Peer, peer)
}

// finish works out medians and ratio.
func (c *Comparison) finish() {
	ratios := make([]float64, len(c.Causeway))
	for i := range ratios {
		ratios[i] = c.Causeway[i] / c.Peer[i]
	}
	c.MedianCauseway, c.MedianPeer, c.Ratio = median(c.Causeway), median(c.Peer), median(ratios)
	c.RatioLow, c.RatioHigh = medianInterval(ratios)
}

// Figure is one number that is compared with nothing but a goal.
type Figure struct {
	Name  string    `json:"name"`
	Unit  string    `json:"unit"`
	Value float64   `json:"value"`
	Each  []float64 `json:"each,omitempty"` // what Value is the median of
	Goal  float64   `json:"goal,omitempty"` // the most that Value may be; 0: there is no goal
}
