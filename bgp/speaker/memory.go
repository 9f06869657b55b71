package speaker

import (
	"math"
	"runtime/debug"

	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/internal/heap"
)

// The heap of the speaker may grow to several times what is in use (heap.PercentOfMuch) as long as
// that is little. Routes that come and go by the hundred thousand would take gigabytes so: from
// the soft limit on it is collected sooner. A limit that leaves no room above what is in use
// would make the collector run all the time, and the speaker too slow for its hold timers; so
// the limit moves up with it.

// paceMemory keeps the pace of collections and the limit where they should be, after each of them.
func paceMemory(m child.Memory) {
	heap.Pace()
	set := func() { debug.SetMemoryLimit(limitFor(heap.Live(), m)) }
	set()
	heap.AfterEachCollection(set)
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
