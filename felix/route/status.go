package route

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// statusMost bounds the lists of a Status; the counts tell the rest.
const statusMost = 100

// Status is what a Table has done and what keeps it from doing more.
type Status struct {
	Ready      bool          `json:"ready"`                // the kernel's routes were read
	Synced     bool          `json:"synced"`               // every owner is in sync: nothing stale is kept
	WaitingFor []string      `json:"waitingFor,omitempty"` // owners that are not in sync
	Owners     []OwnerStatus `json:"owners"`               // best first
	Pending    int           `json:"pending"`              // prefixes still to be looked at
	Stale      int           `json:"stale"`                // routes of an earlier life, kept until Synced

	Unresolved    []Unresolved `json:"unresolved,omitempty"` // at most 100
	Conflicts     []Conflict   `json:"conflicts,omitempty"`  // at most 100
	Failures      []Failure    `json:"failures,omitempty"`   // at most 100
	LeftOut       []LeftOut    `json:"leftOut,omitempty"`    // at most 100
	ConflictCount int          `json:"conflictCount"`
	FailureCount  int          `json:"failureCount"`
	LeftOutCount  int          `json:"leftOutCount"`
}

// OwnerStatus counts one owner's routes.
type OwnerStatus struct {
	Owner      model.Owner `json:"-"`
	Name       string      `json:"name"`
	InSync     bool        `json:"inSync"`
	Candidates int         `json:"candidates"`
	Installed  int         `json:"installed"` // candidates that stand in the kernel
}

// Unresolved is a next hop that is not reachable.
type Unresolved struct {
	Addr       netip.Addr `json:"addr,omitzero"`
	Device     string     `json:"device,omitempty"`
	Candidates int        `json:"candidates"` // that ask for it, perhaps among others
}

// Conflict is a foreign route in the place of ours.
type Conflict struct {
	Prefix  netip.Prefix `json:"prefix"`
	Metric  int          `json:"metric"`
	Foreign string       `json:"foreign"` // as ip(8) shows it
}

// Failure is a route that the kernel refuses or somebody contests.
type Failure struct {
	Prefix  netip.Prefix `json:"prefix"`
	Error   string       `json:"error"`
	Tries   int          `json:"tries"`
	RetryAt time.Time    `json:"retryAt"`
}

// Status tells how things are now.
func (t *Table) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.core.status()
}

func (c *core) status() Status {
	s := Status{
		Ready: c.ready, Synced: c.synced, Stale: c.staleCount,
		ConflictCount: len(c.conflicts), FailureCount: len(c.failed),
		LeftOut: c.leftOut(statusMost), LeftOutCount: len(c.guard.shunned),
	}
	for _, o := range c.waitingFor() {
		s.WaitingFor = append(s.WaitingFor, o.String())
	}
	for _, o := range c.owners[1:] {
		if o.owner != 0 {
			s.Owners = append(s.Owners, OwnerStatus{o.owner, o.owner.String(), o.synced, len(o.cands), o.installed})
		}
	}
	slices.SortFunc(s.Owners, func(a, b OwnerStatus) int { return cmp.Compare(a.Owner, b.Owner) })
	s.Pending = c.pending
	for _, n := range c.hops {
		if len(n.answer) > 0 || n.dirty {
			continue
		}
		u := Unresolved{Addr: n.asked.Addr, Device: n.asked.Device}
		for set := range n.sets {
			u.Candidates += len(set.users)
		}
		s.Unresolved = append(s.Unresolved, u)
	}
	slices.SortFunc(s.Unresolved, func(a, b Unresolved) int { return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Device, b.Device)) })
	s.Unresolved = s.Unresolved[:min(len(s.Unresolved), statusMost)]
	for e := range c.conflicts {
		if k := e.choose(); k != nil && len(s.Conflicts) < statusMost {
			if f := e.conflict(k.metric); f != nil {
				s.Conflicts = append(s.Conflicts, Conflict{e.prefix, int(k.metric), c.describe(f)})
			}
		}
	}
	slices.SortFunc(s.Conflicts, func(a, b Conflict) int { return a.Prefix.Compare(b.Prefix) })
	for e, f := range c.failed {
		if len(s.Failures) < statusMost {
			s.Failures = append(s.Failures, Failure{e.prefix, f.err.Error(), f.tries, f.retryAt})
		}
	}
	slices.SortFunc(s.Failures, func(a, b Failure) int { return a.Prefix.Compare(b.Prefix) })
	return s
}

// wakeAt is when the core wants to be driven again without being told anything.
func (c *core) wakeAt() time.Time {
	if c.retryAt.IsZero() || !c.resyncAt.IsZero() && c.resyncAt.Before(c.retryAt) {
		return c.resyncAt
	}
	return c.retryAt
}
