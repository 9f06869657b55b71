package ipam_test

import (
	"flag"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/file"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

var (
	seed  = flag.Uint64("ipam.seed", 0, "seed of the random walks; 0: a new one")
	walks = flag.Int("ipam.walks", 12, "how many random walks")
)

// TestWalk holds invariant I1 against the golden model.
func TestWalk(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	for i := range uint64(*walks) {
		t.Run("memory", func(t *testing.T) {
			t.Parallel()
			s := ipamtest.NewStore()
			ipamtest.Walk{Seed: first + i, Steps: 300, Run: i%2 == 1, Open: func(string) ipam.Store { return s }}.Do(t)
		})
	}
	for i := range uint64(max(1, *walks/6)) {
		t.Run("file", func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ipamtest.Walk{Seed: first + i, Steps: 120, Run: i%2 == 1, Open: func(node string) ipam.Store {
				s, err := file.New(file.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}}.Do(t)
		})
	}
}
