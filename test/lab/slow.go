package lab

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// SlowVar names the environment variable that says how many times longer than on an
// ordinary computer things may take: on an emulated one, under a profiler. It is a number
// of at least 1, and 1 when it is not set.
const SlowVar = "CAUSEWAY_TEST_SLOW"

var slowness = sync.OnceValues(func() (float64, error) { return parseSlowness(os.Getenv(SlowVar)) })

func parseSlowness(s string) (float64, error) {
	if s == "" {
		return 1, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 1 && n <= 1000) {
		return 1, fmt.Errorf("%s=%q: must be a number from 1 to 1000", SlowVar, s)
	}
	return n, nil
}

// Slow is how long something may take here that may take d on an ordinary computer. It is
// for deadlines and limits, not for how long something is watched.
func Slow(d time.Duration) time.Duration {
	n, _ := slowness() // Up refuses to begin with a wrong one
	return time.Duration(float64(d) * n)
}

// SlowRate is how many times a second something may be asked of this computer that an
// ordinary one does n times a second; at least 1.
func SlowRate(n int) int {
	by, _ := slowness()
	return max(1, int(float64(n)/by))
}
