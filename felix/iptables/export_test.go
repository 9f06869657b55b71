package iptables

import "time"

// Within makes h work in a namespace that enter enters.
func (h *Host) Within(enter func(func() error) error) *Host {
	h.enter = enter
	return h
}

// HealEvery replaces the shortest time between two heals.
func (r *Reconciler) HealEvery(d time.Duration) { r.healEvery = d }

// PokeResync has everything read again.
func (r *Reconciler) PokeResync() { r.loop.PokeResync() }
