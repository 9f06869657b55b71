package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// assignOutside gives an attachment exactly the addresses of req.NoIPAM. They stand in the
// journal and in no block: this node sees to it that no two of its pods have one, and who
// asks for them sees to it that no other node's pod has.
func (a *Allocator) assignOutside(req model.AddressRequest) (model.Endpoint, error) {
	a.mu.Lock()
	if _, err := a.node(); err != nil {
		a.mu.Unlock()
		return model.Endpoint{}, err
	}
	ep := newEndpoint(req)
	for _, addr := range req.NoIPAM {
		addr = addr.Unmap().WithZone("")
		if err := a.mayGiveOutside(addr); err != nil {
			a.mu.Unlock()
			return model.Endpoint{}, fmt.Errorf("address %s without IPAM: %w", addr, err)
		}
		if slices.ContainsFunc(ep.Addresses, func(b netip.Addr) bool { return b.Is4() == addr.Is4() }) {
			a.mu.Unlock()
			return model.Endpoint{}, fmt.Errorf("addresses %v without IPAM: want at most one of each family", req.NoIPAM)
		}
		ep.Addresses = append(ep.Addresses, addr)
	}
	slices.SortFunc(ep.Addresses, netip.Addr.Compare)
	b := a.recordEndpoint(ep, make([]netip.Prefix, len(ep.Addresses)))
	a.mu.Unlock()
	if err := a.journal.commit(b, true); err != nil {
		a.mu.Lock()
		a.record(record{Kind: recDrop, Key: &req.Key})
		a.mu.Unlock()
		return model.Endpoint{}, err
	}
	ep.Addresses = slices.Clone(ep.Addresses)
	return ep, nil
}

// mayGiveOutside says why an address may not be given without IPAM, or nil. a.mu is held.
func (a *Allocator) mayGiveOutside(addr netip.Addr) error {
	if !addr.IsGlobalUnicast() {
		return fmt.Errorf("%w: want a unicast address of global scope", ErrNotInPool)
	}
	if p := a.poolOf(addr); p != nil {
		return fmt.Errorf("%w: it lies in pool %s (%s); ask for it with cni.projectcalico.org/ipAddrs", ErrAddressInUse, p.Name, p.CIDR)
	}
	if o, ok := a.orphans[addr]; ok {
		return fmt.Errorf("%w: block %s gives it to %s", ErrAddressInUse, o.block, o.handle)
	}
	if h := a.state.holds[addr]; h != nil {
		if h.state == inUse {
			return fmt.Errorf("%w by %s", ErrAddressInUse, h.owner())
		}
		return fmt.Errorf("%w: block %s of a pool that is gone has it", ErrAddressInUse, h.block)
	}
	for i := range a.snap.Nodes {
		if n := &a.snap.Nodes[i]; n.IPv4.Addr() == addr || n.IPv6.Addr() == addr {
			return fmt.Errorf("%w: it is that of node %s", ErrAddressInUse, n.Name)
		}
	}
	return nil
}
