package nftables

import (
	"maps"
	"time"
)

// Leave is the verdict of a member that leaves the chain.
const Leave = leave

// Without is a state without a set.
func (s State) Without(set string) State {
	s.sets = maps.Clone(s.sets)
	delete(s.sets, set)
	return s
}

// HealEvery sets how soon after a change of somebody else's was undone the next one is. Call it before Run.
func (p *Policy) HealEvery(d time.Duration) { p.heal.every = d }
