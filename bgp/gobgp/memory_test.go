package gobgp

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var flapping = flag.Int("flapping", 2*fullTable, "how many prefixes come and go in TestFlapping")

// TestFlapping lets a table come and go, and bounds the memory that the speaker takes for it:
// what is withdrawn is garbage, and is collected before it piles up.
func TestFlapping(t *testing.T) {
	l := newLab(t)
	big := l.router(65001)
	routes := make([]string, *flapping)
	for i := range routes {
		routes[i] = fmt.Sprintf("20.%d.%d.%d/32", i>>16, i>>8&255, i&255)
	}
	l.start()
	big.bird(routes, "")
	have := func(n int) {
		t.Helper()
		l.within(2*time.Minute, fmt.Sprintf("%d routes", n), func() bool { return l.routes.len() == n })
	}
	have(len(routes))
	pid := l.inst.Load().PID()
	t.Logf("with %d routes: %d MB", len(routes), memory(t, pid, "VmRSS"))
	for range 2 {
		big.birdc("disable", "static1")
		have(0)
		big.birdc("enable", "static1")
		have(len(routes))
	}
	peak := memory(t, pid, "VmHWM")
	t.Logf("after they came and went twice: %d MB, at most %d MB", memory(t, pid, "VmRSS"), peak)
	// The soft limit, and what is not heap. Without the limit it is 900 MB for 200,000.
	if most := 640 + max(0, *flapping-200_000)/1000; peak > most {
		t.Errorf("the speaker took %d MB, want at most %d MB", peak, most)
	}
}

// memory is a line of /proc/pid/status, in MB.
func memory(t *testing.T, pid int, what string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, what+":"); ok {
			kb, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb >> 10
		}
	}
	t.Fatalf("no %s in the status of process %d", what, pid)
	return 0
}
