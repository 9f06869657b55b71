package kube

import (
	"cmp"
	"slices"
	"time"
)

// Status is what a Source says of itself, for readiness and causewayctl.
type Status struct {
	// Synced: a snapshot was published, so that everything needed was read once.
	Synced bool `json:"synced"`
	// Since is when it was.
	Since time.Time `json:"since,omitzero"`
	// Revision of the last snapshot.
	Revision uint64 `json:"revision"`
	// Answering: no watch goes without an answer. What is known stays in force when not.
	Answering bool `json:"answering"`
	// Watches, sorted by name.
	Watches []WatchStatus `json:"watches"`
}

// WatchStatus is the state of one watch.
type WatchStatus struct {
	Name    string    `json:"name"`             // the resource, and what it is narrowed to
	Needed  bool      `json:"needed,omitempty"` // the first snapshot waits for it
	Synced  time.Time `json:"synced,omitzero"`  // when all objects were first read; zero: never
	Objects int       `json:"objects"`
	// Failing is why the watch does not stand; empty when it does or was not tried yet.
	Failing      string    `json:"failing,omitempty"`
	FailingSince time.Time `json:"failingSince,omitzero"`
	Failures     int       `json:"failures,omitempty"` // in a row
}

// Status may be called at any time, also before Run.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Synced: !s.ready.IsZero(), Since: s.ready, Revision: s.revision, Answering: s.away == 0}
	for _, f := range s.feeds {
		out.Watches = append(out.Watches, f.status())
	}
	if s.policy != nil {
		for _, f := range s.policy.feeds() {
			out.Watches = append(out.Watches, f.status())
		}
	}
	if s.allBlocks != nil {
		out.Watches = append(out.Watches, s.allBlocks.status())
	}
	for _, f := range s.secrets {
		out.Watches = append(out.Watches, f.status())
	}
	slices.SortFunc(out.Watches, func(a, b WatchStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (f *feed) status() WatchStatus {
	out := WatchStatus{
		Name: f.name, Needed: f.needed, Synced: f.synced, Objects: f.contents.len(),
		FailingSince: f.failingSince, Failures: f.failures,
	}
	if f.failing != nil {
		out.Failing = f.failing.Error()
	}
	return out
}
