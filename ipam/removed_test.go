package ipam_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// TestJournalRemoved: somebody removes the journal, or its folder, under a running agent.
// The next agent must know the pods all the same, those from before and those since.
func TestJournalRemoved(t *testing.T) {
	remove := map[string]func(t *testing.T, dir string){
		"content": func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || len(names) == 0 {
				t.Fatalf("%s: %v, %v", dir, names, err)
			}
			for _, n := range names {
				if err := os.Remove(n); err != nil {
					t.Fatal(err)
				}
			}
		},
		"folder": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
	}
	for what, rm := range remove {
		for then, again := range map[string]func(*box){
			"an ADD follows":  func(b *box) { b.add(req("2")) },
			"nothing happens": func(b *box) { b.flush() }, // as at every resync
		} {
			t.Run(what+" removed, "+then, func(t *testing.T) {
				snap := snapshot(pool(t, "a", "10.0.0.0/24", 26))
				b := open(t, "n1", ipamtest.NewStore(), snap)
				b.add(req("1"))
				b.flush()
				rm(t, b.cfg.JournalDir)
				again(b)
				want := b.Endpoints()
				b.reopen(snap)
				got := b.Endpoints()
				if len(got) != len(want) || len(got) == 0 {
					t.Errorf("the next agent knows %d pods, want %d", len(got), len(want))
				}
			})
		}
	}
}
