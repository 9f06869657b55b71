package enforce

import (
	"context"
	"errors"

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
}

// Status returns the state as it is now.
func (e *Enforcer) Status() Status {
	e.mu.Lock()
	st := Status{Synced: e.synced, Waiting: len(e.gathered) > 0, Missing: e.missing, Flows: e.cutter.Stats()}
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
