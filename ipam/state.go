package ipam

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// holdState says what an address of ours is.
type holdState uint8

const (
	stashed holdState = iota // marked as our stash in its block, given to nobody
	inUse                    // an endpoint's, or a tunnel's
	freeing                  // given back; its block may not know it yet
)

// hold is an address that is ours, as the journal has it.
type hold struct {
	addr   netip.Addr
	block  netip.Prefix // the zero Prefix: given without IPAM, no block has it
	state  holdState
	key    model.AttachmentKey // inUse: whose; the zero key: the tunnel's
	tunnel model.Tunnel        // inUse without a key: whose
	handle string              // inUse, freeing: the handle the block shows or will show
	at     time.Time           // freeing: when it was released; zero when it was never used

	// What follows is not in the journal.
	taken   bool   // stashed, or freeing if it was named: an Assign is about to use it
	queued  bool   // stashed: stands in its pool's stash
	written bool   // inUse: the block says so
	lost    string // inUse: to whom else the block gives the address
}

// ofTunnel reports whether the address is that of a tunnel.
func (h *hold) ofTunnel() bool { return h.state == inUse && h.key == model.AttachmentKey{} }

// owner names whose an address in use is.
func (h *hold) owner() string {
	if h.ofTunnel() {
		return "tunnel " + h.tunnel.Device()
	}
	return h.key.String()
}

// attached is an endpoint and where its addresses lie.
type attached struct {
	ep     model.Endpoint
	blocks []netip.Prefix // of ep.Addresses, in that order
	at     time.Time      // when it was assigned
}

func (at *attached) endpoint() model.Endpoint {
	ep := at.ep
	ep.Addresses = slices.Clone(ep.Addresses)
	return ep
}

// state is what a journal says: the endpoints and the addresses held.
//
// Invariants: every address of an endpoint has a hold that is inUse with its key, every one
// of a tunnel has a hold that is inUse without a key, and every hold that is inUse has its
// endpoint or tunnel; byBlock indexes holds.
type state struct {
	node      string
	endpoints map[model.AttachmentKey]*attached
	holds     map[netip.Addr]*hold
	byBlock   map[netip.Prefix]map[netip.Addr]*hold
	tunnels   [model.Tunnels]netip.Addr // this node's ends; the zero Addr: it has none
	whole     bool                      // no address of this node is unknown here
}

func newState() state {
	return state{
		endpoints: map[model.AttachmentKey]*attached{},
		holds:     map[netip.Addr]*hold{},
		byBlock:   map[netip.Prefix]map[netip.Addr]*hold{},
	}
}

// handleOf returns the IPAM handle of an endpoint, as Calico builds it.
func handleOf(network, containerID string) string { return network + "." + containerID }

// splitHandle undoes handleOf. Container ids of the runtimes are hex numbers; a network's
// name may have dots.
func splitHandle(h string) (network, containerID string, ok bool) {
	i := strings.LastIndexByte(h, '.')
	if i < 0 {
		return "", "", false
	}
	return h[:i], h[i+1:], true
}

// hold makes h the hold of its address.
func (s *state) hold(h *hold) {
	s.forget(h.addr)
	s.holds[h.addr] = h
	m := s.byBlock[h.block]
	if m == nil {
		m = map[netip.Addr]*hold{}
		s.byBlock[h.block] = m
	}
	m[h.addr] = h
}

func (s *state) forget(a netip.Addr) {
	h := s.holds[a]
	if h == nil {
		return
	}
	delete(s.holds, a)
	if m := s.byBlock[h.block]; len(m) > 1 {
		delete(m, a)
	} else {
		delete(s.byBlock, h.block)
	}
}

// apply does what a record says. Both a running Allocator and the replay change the state
// here and nowhere else, so that they agree.
func (s *state) apply(r record) {
	switch r.Kind {
	case recNode:
		s.node = r.Node
	case recSet:
		if r.Endpoint == nil || len(r.Blocks) != len(r.Endpoint.Addresses) {
			return
		}
		s.set(&attached{*r.Endpoint, r.Blocks, r.At})
	case recDel, recDrop:
		if r.Key == nil {
			return
		}
		at := s.endpoints[*r.Key]
		if at == nil {
			return
		}
		delete(s.endpoints, *r.Key)
		for i, a := range at.ep.Addresses {
			if h := s.holds[a]; h == nil || h.state != inUse || h.key != *r.Key {
				continue
			}
			if r.Kind == recDrop || !at.blocks[i].IsValid() {
				s.forget(a)
				continue
			}
			s.hold(&hold{addr: a, block: at.blocks[i], state: freeing, handle: handleOf(at.ep.Network, at.ep.Key.ContainerID), at: r.At})
		}
	case recStash:
		for _, a := range r.Addrs {
			s.hold(&hold{addr: a, block: r.Block, state: stashed})
		}
	case recFree:
		for _, a := range r.Addrs {
			s.hold(&hold{addr: a, block: r.Block, state: freeing, handle: r.Handle, at: r.At})
		}
	case recGone:
		for _, a := range r.Addrs {
			s.forget(a)
		}
	case recTunnel:
		s.setTunnel(r)
	case recWhole:
		s.whole = true
	}
}

// setTunnel makes an address that of a tunnel. The one that it had is to be freed.
func (s *state) setTunnel(r record) {
	t, ok := tunnelNamed(r.Tunnel)
	if !ok {
		return
	}
	var addr netip.Addr
	if len(r.Addrs) > 0 {
		addr = r.Addrs[0]
	}
	if h := s.holds[s.tunnels[t]]; h != nil && h.addr != addr && h.ofTunnel() {
		s.hold(&hold{addr: h.addr, block: h.block, state: freeing, handle: h.handle, at: r.At})
	}
	s.tunnels[t] = addr
	if addr.IsValid() {
		s.hold(&hold{addr: addr, block: r.Block, state: inUse, handle: r.Handle, tunnel: t})
	}
}

func (s *state) set(at *attached) {
	old := s.endpoints[at.ep.Key]
	if old != nil {
		for _, a := range old.ep.Addresses {
			if !slices.Contains(at.ep.Addresses, a) {
				s.forget(a)
			}
		}
	}
	s.endpoints[at.ep.Key] = at
	for i, a := range at.ep.Addresses {
		if h := s.holds[a]; h != nil && h.state == inUse && h.key == at.ep.Key && h.block == at.blocks[i] {
			continue // only its wiring is new
		}
		s.hold(&hold{addr: a, block: at.blocks[i], state: inUse, key: at.ep.Key, handle: handleOf(at.ep.Network, at.ep.Key.ContainerID)})
	}
}

// records returns the shortest journal that leads to this state.
func (s *state) records(node string) []record {
	out := []record{{Kind: recNode, Version: journalVersion, Node: node}}
	if s.whole {
		out = append(out, record{Kind: recWhole})
	}
	for _, h := range s.holds {
		switch h.state {
		case stashed:
			out = append(out, record{Kind: recStash, Addrs: []netip.Addr{h.addr}, Block: h.block})
		case freeing:
			out = append(out, record{Kind: recFree, Addrs: []netip.Addr{h.addr}, Block: h.block, Handle: h.handle, At: h.at})
		}
	}
	for t, addr := range s.tunnels {
		if h := s.holds[addr]; h != nil {
			out = append(out, record{Kind: recTunnel, Tunnel: model.Tunnel(t).String(), Addrs: []netip.Addr{addr}, Block: h.block, Handle: h.handle})
		}
	}
	for _, at := range s.endpoints {
		ep := at.ep
		out = append(out, record{Kind: recSet, Endpoint: &ep, Blocks: at.blocks, At: at.at})
	}
	return out
}

// list returns the endpoints that keep says, sorted by key.
func (s *state) list(keep func(model.Endpoint) bool) []model.Endpoint {
	out := make([]model.Endpoint, 0, len(s.endpoints))
	for at := range maps.Values(s.endpoints) {
		if keep(at.ep) {
			out = append(out, at.endpoint())
		}
	}
	slices.SortFunc(out, func(x, y model.Endpoint) int { return compareKeys(x.Key, y.Key) })
	return out
}

func compareKeys(x, y model.AttachmentKey) int {
	return cmp.Or(cmp.Compare(x.ContainerID, y.ContainerID), cmp.Compare(x.IfName, y.IfName))
}
