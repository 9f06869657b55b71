package watch_test

import (
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// TestRestoredBackup brings the API server back with what it held earlier. The agent must
// come to know that, though every resourceVersion that it has seen is then in the future:
// such a watch stands, and tells nothing.
func TestRestoredBackup(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+poolObject("p", "10.244.0.0/16"))
	restore, err := server.Backup()
	if err != nil {
		t.Fatal(err)
	}
	apply(t, poolObject("q", "10.245.0.0/16")+blockYAML(0, 0, "n1", ""))
	remove(t, "ippools", "", "p")
	r := start(t, server.Config)
	r.await("what is lost later", func(s *model.Snapshot) bool {
		return len(s.Pools) == 1 && s.Pools[0].Name == "q" && len(s.Blocks) == 1
	})
	// Those that ended younger than a second client-go begins with a list in any case.
	stood := time.Now()
	eventually(t, "watches of more than a second", func() bool { return time.Since(stood) > 1500*time.Millisecond }, r.logged)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	r.await("the backup", func(s *model.Snapshot) bool {
		return len(s.Pools) == 1 && s.Pools[0].Name == "p" && len(s.Blocks) == 0
	})
	apply(t, poolObject("z", "10.246.0.0/16"))
	r.await("what comes afterwards", func(s *model.Snapshot) bool { return len(s.Pools) == 2 })
}
