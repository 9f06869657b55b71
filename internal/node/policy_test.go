package node

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestGrievance: a trouble is told of when it lasts, again while it does, and once when it is over.
func TestGrievance(t *testing.T) {
	var g grievance
	bad, start := errors.New("no such match"), time.Unix(1e9, 0)
	for _, s := range []struct {
		at   time.Duration
		why  error
		want string
	}{
		{0, nil, ""}, {time.Second, bad, ""}, {30 * time.Second, bad, ""}, {30500 * time.Millisecond, nil, ""}, // short
		{40 * time.Second, bad, ""}, {70 * time.Second, bad, ReasonPolicyFailing}, {71 * time.Second, bad, ""},
		{31 * time.Minute, bad, ""}, {32 * time.Minute, bad, ReasonPolicyFailing},
		{33 * time.Minute, nil, ReasonPolicyEnforced}, {34 * time.Minute, nil, ""}, {35 * time.Minute, bad, ""}, {36 * time.Minute, bad, ReasonPolicyFailing},
	} {
		_, reason, note := g.decide(start.Add(s.at), s.why)
		if reason != s.want || reason == ReasonPolicyFailing && !strings.Contains(note, "no such match") {
			t.Errorf("after %s: %s %q, want %q", s.at, reason, note, s.want)
		}
	}
}
