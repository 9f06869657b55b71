package speaker

import (
	"math"
	"testing"

	"github.com/causeway-net/causeway/bgp/child"
)

func TestLimitFor(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		live int64
		m    child.Memory
		want int64
	}{
		{0, child.Memory{}, math.MaxInt64},
		{10 * mb, child.Memory{Soft: 512 * mb}, 512 * mb},
		{400 * mb, child.Memory{Soft: 512 * mb}, 600 * mb},
		{2000 * mb, child.Memory{Soft: 512 * mb}, 3000 * mb},
		{400 * mb, child.Memory{Soft: 320 * mb, Ceiling: 512 * mb}, 448 * mb},
		{400 * mb, child.Memory{Soft: 100 * mb, Ceiling: 104 * mb}, 100 * mb},
	} {
		if got := limitFor(c.live, c.m); got != c.want {
			t.Errorf("live %d, %+v: %d, want %d", c.live, c.m, got, c.want)
		}
	}
}
