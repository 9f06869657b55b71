// Package heap owns the pace at which the processes of a node collect garbage: with little in
// use memory is spared, with much processor time is.
package heap

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The percentages by which the heap grows from one collection to the next (Go's GOGC). At rest
// a few MB are in use, and to collect them takes a few milliseconds; what a larger percentage lets lie
// about, and what it tears to pieces at the start, is then most of the memory of a node's
// agent. While a large table comes in, collections are what costs most.
const (
	PercentOfLittle = 40
	PercentOfMuch   = 400
	// Much is from where on a heap is large, in bytes in use. From here on the first collections of
	// a heap that grows fast are all done.
	Much = 16 << 20
)

// percentFor is the percentage where live bytes of the heap are in use and was has been the
// last one. Around Much it stays as it was.
func percentFor(live int64, was int) int {
	switch {
	case live >= Much:
		return PercentOfMuch
	case live < Much/4*3:
		return PercentOfLittle
	}
	return was
}

// Pace sets the percentage, at first that of little, and then after each collection, for the
// life of the process. It is called once.
func Pace() {
	percent := PercentOfLittle
	debug.SetGCPercent(percent)
	set := func() {
		if p := percentFor(Live(), percent); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
	}
	AfterEachCollection(set)
	time.AfterFunc(settled, debug.FreeOSMemory)
}

// settled is how long after the start what it took and let go is given back to the kernel. The
// runtime keeps it for what comes next, and at rest nothing like a start comes.
const settled = 30 * time.Second

// Live is the heap that the last collection found in use, in bytes; 0 before the first.
func Live() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(min(s[0].Value.Uint64(), math.MaxInt64/2))
}

// AfterEachCollection calls f some time after each garbage collection: the finalizer of an
// object that nothing refers to runs then, and makes the next one.
func AfterEachCollection(f func()) {
	type sentinel struct{ _ [16]byte } // not one of the tiny objects, which are collected in batches
	var arm func()
	arm = func() {
		runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
			f()
			arm()
		})
	}
	arm()
}
