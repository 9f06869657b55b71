package enforce

import (
	"context"
	"errors"
	"time"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// Status is what an Enforcer says of itself.
type Status struct {
	// Synced: the rules of what was there at the start were handed to the backend; before,
	// those of an earlier agent hold.
	Synced bool
	// Waiting: changes are held back until what they need was read; Missing names it as
	// far as it is known.
	Waiting bool
	Missing []string
	Err     error // why rules are not in the kernel
	Flows   conntrack.Stats
	Size    policy.Size
	Changes Changes
}

// Changes are those that the datastore told and the kernel took.
type Changes struct {
	Count uint64
	// Took is how long they took together, from when the datastore told all that they need
	// until they stood in the kernel, and Last the last of them.
	Took, Last time.Duration
}

// took counts a change that stands in the kernel.
func (e *Enforcer) took(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changes.Count++
	e.changes.Took += d
	e.changes.Last = d
}

// Status returns the state as it is now.
func (e *Enforcer) Status() Status {
	e.mu.Lock()
	st := Status{Synced: e.synced, Waiting: len(e.gathered) > 0, Missing: e.missing, Flows: e.cutter.Stats(), Size: e.engine.Size(), Changes: e.changes}
	b := e.backend
	e.mu.Unlock()
	if b != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := b.Wait(ctx); !errors.Is(err, context.Canceled) { // what is on its way is no trouble
			st.Err = err
		}
	}
	return st
}

// Problems are what is wrong with policies as only the engine sees it, such as a tier that
// is not there. They are sorted.
func (e *Enforcer) Problems() []model.Problem {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engine.Problems()
}

// Applies reports for how many endpoints of this node a policy is in force.
func (e *Enforcer) Applies(id model.PolicyID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engine.Applies(id)
}

// Policies lists the policies in force, in the order in which they are asked; see Applies.
func (e *Enforcer) Policies() []policy.Standing {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engine.Policies()
}

// Endpoints lists the endpoints of this node, by interface. They are not to be changed.
func (e *Enforcer) Endpoints() []policy.Endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engine.Endpoints()
}

// Counters say how much met each rule of the policies in force here; none before Use.
func (e *Enforcer) Counters(ctx context.Context) ([]policy.Counter, error) {
	e.mu.Lock()
	b := e.backend
	e.mu.Unlock()
	if b == nil {
		return nil, nil
	}
	return b.Counters(ctx)
}

// Trace says what the rules that stand in the kernel do with a packet.
func (e *Enforcer) Trace(p trace.Packet) trace.Result { return e.judge.Trace(p) }
