package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/causeway-net/causeway/internal/model"
)

// orphan is an address that a block gives to a container of this node and that no
// endpoint of the journal has.
type orphan struct {
	block          netip.Prefix
	handle, ifName string // ifName is empty in blocks that Calico wrote
	namespace, pod string
}

func (o orphan) is(network, containerID, ifName string) bool {
	n, c, ok := splitHandle(o.handle)
	return ok && c == containerID && (network == "" || n == network) && (ifName == "" || o.ifName == "" || o.ifName == ifName)
}

// keyLocks serialises what concerns one container.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is given up
}

func (l *keyLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[id]
		if !ok {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			l.held[id] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, id)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s: another request for it is under way: %w", id, ctx.Err())
		}
	}
}

// Assign gives addresses to an attachment. When it returns they are in the journal, on
// disk. The same key gets the same addresses again, whatever else the request says. In
// the usual case the addresses come out of the stash and the Store is not called.
//
// Errors: ErrNotReady, ErrNoPool, ErrExhausted, and for requested addresses
// ErrAddressInUse, ErrNotInPool and ErrReserved; anything else is the Store's or the
// disk's. After an error nothing is assigned.
func (a *Allocator) Assign(ctx context.Context, req model.AddressRequest) (model.Endpoint, error) {
	if req.Key.ContainerID == "" || req.Key.IfName == "" {
		return model.Endpoint{}, fmt.Errorf("assign %s: want a container id and an interface name", req.Key)
	}
	unlock, err := a.keys.lock(ctx, req.Key.ContainerID)
	if err != nil {
		return model.Endpoint{}, fmt.Errorf("assign %s: %w", req.Key, err)
	}
	defer unlock()
	ep, err := a.assign(ctx, req)
	if err != nil {
		return model.Endpoint{}, fmt.Errorf("assign %s: %w", req.Key, err)
	}
	return ep, nil
}

func (a *Allocator) assign(ctx context.Context, req model.AddressRequest) (model.Endpoint, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return model.Endpoint{}, ErrClosed
	}
	if at := a.state.endpoints[req.Key]; at != nil {
		defer a.mu.Unlock()
		return at.endpoint(), nil
	}
	if len(req.NoIPAM) > 0 {
		a.mu.Unlock()
		return a.assignOutside(req)
	}
	wants, err := a.wants(req)
	a.mu.Unlock()
	if err != nil {
		return model.Endpoint{}, err
	}
	// Also for this: the key's addresses may stand in a block and not in a lost journal.
	if err := a.readFirst(ctx); err != nil {
		return model.Endpoint{}, err
	}
	if ep, ok, err := a.adoptOrphan(req); ok || err != nil {
		return ep, err
	}

	holds := make([]*hold, 0, len(wants))
	for _, w := range wants {
		h, err := a.acquire(ctx, w)
		if err != nil {
			a.mu.Lock()
			for _, h := range holds {
				a.putBack(h)
			}
			a.mu.Unlock()
			a.wake()
			return model.Endpoint{}, err
		}
		holds = append(holds, h)
	}

	ep := newEndpoint(req)
	var blocks []netip.Prefix
	for _, h := range holds {
		ep.Addresses = append(ep.Addresses, h.addr)
		blocks = append(blocks, h.block)
	}
	a.mu.Lock()
	// Nothing but Assign changes a hold that is taken, so they still are what they were.
	b := a.recordEndpoint(ep, blocks)
	a.mu.Unlock()
	if err := a.journal.commit(b, true); err != nil {
		a.mu.Lock()
		a.record(record{Kind: recDrop, Key: &req.Key})
		for _, h := range holds {
			r := record{Kind: recStash, Addrs: []netip.Addr{h.addr}, Block: h.block}
			if h.state == freeing {
				r.Kind, r.Handle, r.At = recFree, h.handle, h.at
			}
			a.record(r)
			a.putBack(a.state.holds[h.addr])
		}
		a.mu.Unlock()
		return model.Endpoint{}, err
	}
	a.wake()
	ep.Addresses = slices.Clone(ep.Addresses)
	return ep, nil
}

func newEndpoint(req model.AddressRequest) model.Endpoint {
	return model.Endpoint{Key: req.Key, Network: req.Network, Namespace: req.Namespace, Pod: req.Pod, PodUID: req.PodUID}
}

// recordEndpoint makes ep an endpoint and its blocks dirty. a.mu is held.
func (a *Allocator) recordEndpoint(ep model.Endpoint, blocks []netip.Prefix) *batch {
	b := a.record(record{Kind: recSet, Endpoint: &ep, Blocks: blocks, At: a.cfg.Now()})
	for _, block := range blocks {
		a.touch(block)
	}
	return b
}

// touch notes that a block has to be written. An address without a block, which was given
// without IPAM, has nothing to write. a.mu is held.
func (a *Allocator) touch(block netip.Prefix) {
	if block.IsValid() {
		a.dirty[block] = struct{}{}
	}
}

// adoptOrphan returns the endpoint whose addresses the blocks already give to this key.
func (a *Allocator) adoptOrphan(req model.AddressRequest) (model.Endpoint, bool, error) {
	a.mu.Lock()
	ep := newEndpoint(req)
	for addr, o := range a.orphans {
		if o.is(req.Network, req.Key.ContainerID, req.Key.IfName) {
			ep.Addresses = append(ep.Addresses, addr)
		}
	}
	if len(ep.Addresses) == 0 {
		a.mu.Unlock()
		return model.Endpoint{}, false, nil
	}
	slices.SortFunc(ep.Addresses, netip.Addr.Compare)
	var blocks []netip.Prefix
	for _, addr := range ep.Addresses {
		blocks = append(blocks, a.orphans[addr].block)
		delete(a.orphans, addr)
	}
	b := a.recordEndpoint(ep, blocks)
	a.mu.Unlock()
	// Not undone on an error: the addresses are this key's in any case.
	if err := a.journal.commit(b, true); err != nil {
		return model.Endpoint{}, false, err
	}
	a.log.Info("endpoint found again in its blocks", "key", req.Key.String(), "addresses", ep.Addresses)
	a.wake()
	ep.Addresses = slices.Clone(ep.Addresses)
	return ep, true, nil
}

// Wired notes in the journal how an endpoint was wired. It does not wait for the disk: a
// process that is killed loses no written record, and when the whole node goes down the
// wiring is gone with it.
func (a *Allocator) Wired(ctx context.Context, ep model.Endpoint) error {
	unlock, err := a.keys.lock(ctx, ep.Key.ContainerID)
	if err != nil {
		return fmt.Errorf("wired %s: %w", ep.Key, err)
	}
	defer unlock()
	a.mu.Lock()
	at := a.state.endpoints[ep.Key]
	if at == nil || !slices.Equal(at.ep.Addresses, ep.Addresses) {
		a.mu.Unlock()
		return fmt.Errorf("wired %s: there is no such endpoint with addresses %v", ep.Key, ep.Addresses)
	}
	ep.Addresses = slices.Clone(ep.Addresses)
	b := a.record(record{Kind: recSet, Endpoint: &ep, Blocks: at.blocks, At: at.at})
	a.mu.Unlock()
	if err := a.journal.commit(b, false); err != nil {
		return fmt.Errorf("wired %s: %w", ep.Key, err)
	}
	return nil
}

// Release takes back the addresses of one interface of a container, or of all if ifName
// is empty, and returns the endpoints that were. When it returns nil that is on disk; the
// blocks learn it later. Where nothing is to be released it returns nil, nil. On an error
// the endpoints are gone from memory all the same and the addresses are used for nothing
// else; the call has to be repeated until it succeeds.
func (a *Allocator) Release(ctx context.Context, containerID, ifName string) ([]model.Endpoint, error) {
	eps, err := a.release(ctx, "", containerID, ifName)
	if err != nil {
		return eps, fmt.Errorf("release container %s interface %q: %w", containerID, ifName, err)
	}
	return eps, nil
}

func (a *Allocator) release(ctx context.Context, network, containerID, ifName string) ([]model.Endpoint, error) {
	unlock, err := a.keys.lock(ctx, containerID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, ErrClosed
	}
	out := a.state.list(func(ep model.Endpoint) bool {
		return ep.Key.ContainerID == containerID && (ifName == "" || ep.Key.IfName == ifName) && (network == "" || ep.Network == network)
	})
	known := a.synced || a.state.whole
	a.mu.Unlock()
	if len(out) == 0 && !known {
		if err := a.read(ctx); err != nil {
			return nil, err
		}
	}

	a.mu.Lock()
	now := a.cfg.Now()
	for _, ep := range out {
		for _, block := range a.state.endpoints[ep.Key].blocks {
			a.touch(block)
		}
		a.record(record{Kind: recDel, Key: &ep.Key, At: now})
	}
	out = append(out, a.releaseOrphans(network, containerID, ifName)...)
	a.mu.Unlock()
	// Also when nothing was found: the record of an earlier, failed call may be waiting.
	if err := a.journal.commit(a.journal.last(), true); err != nil {
		return out, err
	}
	if len(out) > 0 {
		a.wake()
		return out, nil
	}
	return nil, nil
}

// releaseOrphans releases what only the blocks know of a container. a.mu is held.
func (a *Allocator) releaseOrphans(network, containerID, ifName string) []model.Endpoint {
	byKey := map[model.AttachmentKey]*model.Endpoint{}
	var out []model.Endpoint
	for addr, o := range a.orphans {
		if !o.is(network, containerID, ifName) {
			continue
		}
		delete(a.orphans, addr)
		a.record(record{Kind: recFree, Addrs: []netip.Addr{addr}, Block: o.block, Handle: o.handle, At: a.cfg.Now()})
		a.dirty[o.block] = struct{}{}
		net, _, _ := splitHandle(o.handle)
		k := model.AttachmentKey{ContainerID: containerID, IfName: o.ifName}
		if byKey[k] == nil {
			byKey[k] = &model.Endpoint{Key: k, Network: net, Namespace: o.namespace, Pod: o.pod}
		}
		byKey[k].Addresses = append(byKey[k].Addresses, addr)
	}
	for _, ep := range byKey {
		slices.SortFunc(ep.Addresses, netip.Addr.Compare)
		out = append(out, *ep)
	}
	slices.SortFunc(out, func(x, y model.Endpoint) int { return compareKeys(x.Key, y.Key) })
	return out
}

// Retain is garbage collection (CNI spec 1.1.0, GC): it releases exactly the endpoints of
// that network that keep does not list, and returns them.
func (a *Allocator) Retain(ctx context.Context, network string, keep []model.AttachmentKey) ([]model.Endpoint, error) {
	kept := make(map[model.AttachmentKey]bool, len(keep))
	containers := make(map[string]bool, len(keep))
	for _, k := range keep {
		kept[k] = true
		containers[k.ContainerID] = true
	}
	a.mu.Lock()
	known := a.synced || a.state.whole
	a.mu.Unlock()
	var errs []error
	if !known {
		if err := a.read(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	a.mu.Lock()
	doomed := map[model.AttachmentKey]bool{}
	for k, at := range a.state.endpoints {
		if at.ep.Network == network && !kept[k] {
			doomed[k] = true
		}
	}
	for _, o := range a.orphans {
		n, c, ok := splitHandle(o.handle)
		k := model.AttachmentKey{ContainerID: c, IfName: o.ifName}
		if ok && n == network && !kept[k] && (o.ifName != "" || !containers[c]) {
			doomed[k] = true
		}
	}
	a.mu.Unlock()
	keys := make([]model.AttachmentKey, 0, len(doomed))
	for k := range doomed {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	var out []model.Endpoint
	for _, k := range keys {
		eps, err := a.release(ctx, network, k.ContainerID, k.IfName)
		out = append(out, eps...)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", k, err))
		}
	}
	// Also when nothing was found: the record of an earlier, failed call may be waiting.
	errs = append(errs, a.journal.commit(a.journal.last(), true))
	if err := errors.Join(errs...); err != nil {
		return out, fmt.Errorf("retain network %s: %w", network, err)
	}
	return out, nil
}
