package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

const (
	// cleanGather is how long addresses of pods that go are gathered: each walk over the table
	// of connections takes milliseconds of a CPU, and who gets one of them sooner walks himself.
	cleanGather = 200 * time.Millisecond
	// cleanRetry is when blocks that could not be made clear are tried again, and how long one try waits
	// for their routes.
	cleanRetry = 5 * time.Second
)

// SetBlocks says which blocks of addresses are this node's, and which addresses others have of them.
// Connections of who had the addresses before are forgotten, once the blocks are routed
// nowhere, so that it need not be done when a pod is attached. It does not wait for that.
func (e *Enforcer) SetBlocks(own []netip.Prefix, lent []netip.Addr) {
	var routed []netip.Prefix
	for _, p := range own {
		if !p.IsSingleIP() { // such a block has no blackhole (felix/dataplane, BlockRoutes)
			routed = append(routed, p)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs.setBlocks(routed)
	e.addrs.taken(lent)
	signal(e.dirty)
}

// Taken says that others than pods of this node have addresses of its blocks, as tunnels have. Whoever gets
// one of them next has their connections forgotten first.
func (e *Enforcer) Taken(addrs ...netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs.taken(addrs)
}

// forget gives the pod its addresses and deletes the connections of who had them before. It walks
// over the table of connections only where an address is not clear.
func (e *Enforcer) forget(ctx context.Context, ep model.Endpoint) error {
	e.mu.Lock()
	e.addrs.attach(ep.Key, ep.Addresses)
	due := e.addrs.dirty(ep.Addresses)
	e.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	e.forgetting.RLock()
	defer e.forgetting.RUnlock()
	e.mu.Lock()
	due = e.addrs.dirty(ep.Addresses) // not those that a walk before this one has made clear
	e.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	if _, err := e.cfg.Flows.Forget(ctx, due...); err != nil {
		return fmt.Errorf("forgetting connections of %v: %w", due, err)
	}
	e.clear(due)
	return nil
}

func (e *Enforcer) clear(addrs []netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs.clear(addrs)
}

// clean forgets connections that nobody waits for to be forgotten, until ctx is cancelled.
func (e *Enforcer) clean(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.dirty:
		}
		// A block that is new is asked for addresses right away.
		if err := e.cleanBlocks(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Log.Debug("connections of addresses of this node's blocks are looked for at each ADD; trying again", "error", err)
			time.AfterFunc(cleanRetry, func() { signal(e.dirty) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(cleanGather):
		}
		e.sweep(ctx)
	}
}

// sweep forgets the connections of who is gone. An address that was handed on is not among
// them: Attach took it out.
func (e *Enforcer) sweep(ctx context.Context) {
	e.forgetting.Lock()
	defer e.forgetting.Unlock()
	e.mu.Lock()
	leaving := e.addrs.sweep()
	e.mu.Unlock()
	if len(leaving) == 0 {
		return
	}
	if _, err := e.cfg.Flows.Forget(ctx, leaving...); err == nil {
		e.clear(leaving)
	} else if ctx.Err() == nil {
		e.cfg.Log.Warn("connections of pods that are gone stay in the kernel until their addresses are handed on", "addresses", leaving, "error", err)
	}
}

// cleanBlocks makes those blocks clear that are not. The order is what makes it true afterwards:
// first the blackholes, so that nothing can lead to an address that no pod has; then the
// connections that stood until then go.
func (e *Enforcer) cleanBlocks(ctx context.Context) error {
	e.mu.Lock()
	blocks := e.addrs.waiting()
	e.mu.Unlock()
	late := e.unrouted(ctx, blocks)
	if len(blocks) == 0 {
		return late
	}
	e.forgetting.Lock()
	defer e.forgetting.Unlock()
	e.mu.Lock()
	w := e.addrs.begin(blocks)
	e.mu.Unlock()
	own, err := e.cfg.Flows.Own(ctx)
	if err != nil {
		return err
	}
	known := map[netip.Addr]bool{}
	keep := func(a netip.Addr) bool {
		kept, seen := known[a]
		if seen {
			return kept
		}
		if _, kept = w.held[a]; !kept {
			// The host itself, or somebody whom a route leads to all the same.
			if _, kept = own[a]; !kept {
				kept = e.cfg.Flows.Route(a) != ""
			}
			if kept {
				w.taken[a] = struct{}{}
			}
		}
		known[a] = kept
		return kept
	}
	if _, err := e.cfg.Flows.ForgetIn(ctx, slices.SortedFunc(maps.Keys(w.blocks), netip.Prefix.Compare), keep); err != nil {
		return err
	}
	for a := range own { // connections of theirs come at any time
		w.taken[a] = struct{}{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs.end(w)
	return late
}

// unrouted takes out the blocks whose routes are not in the kernel, and says why they are not.
func (e *Enforcer) unrouted(ctx context.Context, blocks map[netip.Prefix]*block) error {
	if e.cfg.Routed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cleanRetry)
	defer cancel()
	var errs []error
	for p := range blocks {
		if err := e.cfg.Routed(ctx, p); err != nil {
			errs = append(errs, err)
			delete(blocks, p)
		}
	}
	return errors.Join(errs...)
}
