package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/ipam/manifest"
)

// TestLedgerVersions: what the watch tells late changes nothing; what it tells after the
// API server came back from a backup, with lower numbers, does.
func TestLedgerVersions(t *testing.T) {
	now := t0
	var changes []string
	l := newLedger(discard, func() time.Time { return now }, func(_, e *entry) {
		changes = append(changes, e.obj.ResourceVersion)
	})
	told := func(version string) {
		o := manifest.ToV3(testBlock("a", "a/p"), 1)
		o.UID, o.ResourceVersion = "u", version
		l.put(o)
	}
	wrote := func(version string) {
		o := manifest.ToV3(testBlock("a", "a/p"), 1)
		o.UID, o.ResourceVersion = "u", version
		l.written(o)
	}
	for _, step := range []struct {
		put     func(string)
		version string
		after   time.Duration
	}{
		{told, "10", 0}, {wrote, "12", 0},
		{told, "11", time.Second}, // late
		{told, "12", time.Second},
		{told, "7", time.Second}, // restored
		{wrote, "9", time.Second},
		{told, "8", 2 * watchLag}, // restored
	} {
		now = now.Add(step.after)
		step.put(step.version)
	}
	if got := strings.Join(changes, " "); got != "10 12 12 7 9 8" {
		t.Errorf("versions %s, want 10 12 12 7 9 8", got)
	}
}
