package ipset

// Within makes h work in a namespace that enter enters.
func (h *Host) Within(enter func(func() error) error) *Host {
	h.enter = enter
	return h
}

// PokeResync has everything read again.
func (r *Reconciler) PokeResync() { r.loop.PokeResync() }
