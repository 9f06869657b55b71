package speaker

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/causeway-net/causeway/bgp/child"
)

// The heap of the speaker may grow to several times what is in use (child.GCPercent) as long as
// that is little. Routes that come and go by the hundred thousand would take gigabytes so: from
// the soft limit on it is collected sooner. A limit that leaves no room above what is in use
// would make the collector run all the time, and the speaker too slow for its hold timers; so
// the limit moves up with it.

// paceMemory keeps the limit where it should be, after each collection.
func paceMemory(m child.Memory) {
	set := func() { debug.SetMemoryLimit(limitFor(live(), m)) }
	set()
	afterEachCollection(set)
}

// limitFor is the limit of the Go runtime's memory when live bytes of the heap are in use.
func limitFor(live int64, m child.Memory) int64 {
	if m.Soft <= 0 {
		return math.MaxInt64
	}
	limit := max(m.Soft, live+live/2)
	if m.Ceiling > 0 {
		// Close to the ceiling, slow is better than dead.
		limit = min(limit, max(m.Soft, m.Ceiling-m.Ceiling/8))
	}
	return limit
}

// live is the heap that the last collection found in use, in bytes.
func live() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(min(s[0].Value.Uint64(), math.MaxInt64/2))
}

// afterEachCollection calls f some time after each garbage collection: the finalizer of an
// object that nothing refers to runs then, and makes the next one.
func afterEachCollection(f func()) {
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
