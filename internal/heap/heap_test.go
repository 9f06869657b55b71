package heap

import (
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		live      int64
		was, want int
	}{
		{0, PercentOfLittle, PercentOfLittle},
		{5 * mb, PercentOfMuch, PercentOfLittle},
		{13 * mb, PercentOfLittle, PercentOfLittle},
		{13 * mb, PercentOfMuch, PercentOfMuch},
		{16 * mb, PercentOfLittle, PercentOfMuch},
		{400 * mb, PercentOfMuch, PercentOfMuch},
	} {
		if got := percentFor(c.live, c.was); got != c.want {
			t.Errorf("live %d after %d %%: %d, want %d", c.live, c.was, got, c.want)
		}
	}
}

// TestPace has the runtime follow a heap that grows and shrinks.
func TestPace(t *testing.T) {
	Pace()
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	become := func(want uint64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); percent() != want; {
			if time.Now().After(deadline) {
				t.Fatalf("%d %%, want %d; %d bytes are in use", percent(), want, Live())
			}
			runtime.GC()
			runtime.Gosched()
		}
	}
	become(PercentOfLittle)
	table := make([][]byte, 2*Much>>10)
	for i := range table {
		table[i] = make([]byte, 1<<10)
	}
	become(PercentOfMuch)
	runtime.KeepAlive(table)
	table = nil
	become(PercentOfLittle)
}

func TestAfterEachCollection(t *testing.T) {
	var n atomic.Int32
	AfterEachCollection(func() { n.Add(1) })
	for deadline := time.Now().Add(20 * time.Second); n.Load() < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("called %d times", n.Load())
		}
		runtime.GC()
		runtime.Gosched()
	}
	if Live() == 0 {
		t.Error("no live heap")
	}
}
