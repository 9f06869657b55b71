package nftables

import "time"

// HealEvery sets how soon after a change of somebody else's was undone the next one is. Call it before Run.
func (p *Policy) HealEvery(d time.Duration) { p.heal.every = d }
