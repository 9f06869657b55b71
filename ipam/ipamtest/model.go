package ipamtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

// Holder is a pod interface on a node.
type Holder struct {
	Node string
	Key  model.AttachmentKey
}

// device is what holds the address of a node's tunnel.
func device(node string, t model.Tunnel) Holder {
	return Holder{node, model.AttachmentKey{IfName: t.Device()}}
}

// Model is the slow, golden model of what addresses may do. It is told what pods and tunnels
// have seen, and returns an error for what must not be.
type Model struct {
	mu       sync.Mutex
	live     map[Holder]model.Endpoint
	tunnels  map[string][model.Tunnels]netip.Addr // by node
	owner    map[netip.Addr]Holder
	released map[netip.Addr]time.Time
}

// NewModel returns a Model without pods.
func NewModel() *Model {
	return &Model{live: map[Holder]model.Endpoint{}, tunnels: map[string][model.Tunnels]netip.Addr{}, owner: map[netip.Addr]Holder{}, released: map[netip.Addr]time.Time{}}
}

// Assigned is told of an answer to an ADD: the pod lives from now on.
func (m *Model) Assigned(node string, req model.AddressRequest, ep model.Endpoint, s *model.Snapshot, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := Holder{node, req.Key}
	if ep.Key != req.Key {
		return fmt.Errorf("%v got the endpoint of %v", h, ep.Key)
	}
	if old, ok := m.live[h]; ok {
		if !slices.Equal(old.Addresses, ep.Addresses) {
			return fmt.Errorf("%v had %v and got %v", h, old.Addresses, ep.Addresses)
		}
		return nil
	}
	families := map[bool]int{}
	for _, a := range ep.Addresses {
		if other, ok := m.owner[a]; ok {
			return fmt.Errorf("I1: %s has two owners: %v and %v", a, other, h)
		}
		families[a.Is4()]++
		if err := m.allowed(node, req, a, s, now); err != nil {
			return fmt.Errorf("%v got %s: %w", h, a, err)
		}
	}
	if len(ep.Addresses) == 0 || families[true] > 1 || families[false] > 1 {
		return fmt.Errorf("%v got %v: want one of each family at most, and one at least", h, ep.Addresses)
	}
	if len(req.Addresses) == 0 {
		for _, is4 := range []bool{true, false} {
			if want := len(usablePools(node, s, is4, req)) > 0; want != (families[is4] == 1) {
				return fmt.Errorf("%v got %v: want an IPv4 (%t) address: %t", h, ep.Addresses, is4, want)
			}
		}
	}
	m.live[h] = ep
	for _, a := range ep.Addresses {
		m.owner[a] = h
	}
	return nil
}

func (m *Model) allowed(node string, req model.AddressRequest, a netip.Addr, s *model.Snapshot, now time.Time) error {
	if slices.ContainsFunc(s.Reservations, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return fmt.Errorf("it is reserved")
	}
	i := slices.IndexFunc(s.Pools, func(p model.Pool) bool { return p.CIDR.Contains(a) })
	if i < 0 || s.Pools[i].Disabled {
		return fmt.Errorf("it is in no enabled pool")
	}
	if len(req.Addresses) > 0 {
		if !slices.Contains(req.Addresses, a) {
			return fmt.Errorf("it asked for %v", req.Addresses)
		}
		return nil
	}
	if !slices.ContainsFunc(usablePools(node, s, a.Is4(), req), func(p model.Pool) bool { return p.Name == s.Pools[i].Name }) {
		return fmt.Errorf("pool %s is not for it", s.Pools[i].Name)
	}
	if at, ok := m.released[a]; ok && now.Before(at.Add(s.IPAM.Cooldown)) {
		return fmt.Errorf("it was released %s ago and the cooldown is %s", now.Sub(at), s.IPAM.Cooldown)
	}
	return nil
}

func usablePools(node string, s *model.Snapshot, is4 bool, req model.AddressRequest) []model.Pool {
	names := req.IPv6Pools
	if is4 {
		names = req.IPv4Pools
	}
	var out []model.Pool
	for _, p := range s.Pools {
		if p.CIDR.Addr().Is4() != is4 || p.Disabled || !p.Allows(model.UseWorkload) || !p.NodeSelector.Matches(s.Node(node).Labels) {
			continue
		}
		if len(names) == 0 && p.Manual || len(names) > 0 && !slices.Contains(names, p.Name) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// Dead is told of a pod that ended, before its DEL is sent.
func (m *Model) Dead(h Holder, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.live[h].Addresses {
		delete(m.owner, a)
		m.released[a] = now
	}
	delete(m.live, h)
}

// Live returns the pods of a node.
func (m *Model) Live(node string) []Holder {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Holder
	for h := range m.live {
		if h.Node == node {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return strings.Compare(x.Key.String(), y.Key.String()) })
	return out
}

// Settled compares the pods with what the blocks and the nodes' endpoints say, once
// everything had time to settle: allocated = in use + stash (I1).
func (m *Model) Settled(blocks []*ipam.Block, endpoints map[string][]model.Endpoint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for node, eps := range endpoints {
		for _, ep := range eps {
			want, ok := m.live[Holder{node, ep.Key}]
			if !ok || !slices.Equal(want.Addresses, ep.Addresses) {
				return fmt.Errorf("node %s has endpoint %v with %v, want %v", node, ep.Key, ep.Addresses, want.Addresses)
			}
			n++
		}
	}
	if n != len(m.live) {
		return fmt.Errorf("nodes have %d endpoints, want %d", n, len(m.live))
	}
	marked := 0
	handles := map[Holder]string{}
	for h, ep := range m.live {
		handles[h] = ep.Network + "." + h.Key.ContainerID
	}
	for node := range m.tunnels {
		for t := range model.Tunnel(model.Tunnels) {
			handles[device(node, t)] = ipam.TunnelHandle(t, node)
		}
	}
	for i, b := range blocks {
		if err := b.Check(); err != nil {
			return err
		}
		for _, o := range blocks[:i] {
			if o.CIDR.Overlaps(b.CIDR) {
				return fmt.Errorf("blocks %s and %s overlap", o.CIDR, b.CIDR)
			}
		}
		for k, s := range b.Slots {
			a := b.Addr(k)
			h, ok := m.owner[a]
			stash := strings.HasPrefix(s.Handle, ipam.StashPrefix)
			switch {
			case ok && (s.Handle != handles[h] || s.Attrs[ipam.AttrNode] != h.Node || h.Key.ContainerID != "" && s.Attrs[ipam.AttrInterface] != h.Key.IfName):
				return fmt.Errorf("block %s gives %s to %q %v, want %v", b.CIDR, a, s.Handle, s.Attrs, h)
			case ok:
				marked++
			case s.Handle != "" && !stash:
				return fmt.Errorf("leak: block %s gives %s to %q %v, which is no pod and no tunnel", b.CIDR, a, s.Handle, s.Attrs)
			}
		}
	}
	if marked != len(m.owner) {
		return fmt.Errorf("blocks have %d addresses of pods and tunnels, want %d", marked, len(m.owner))
	}
	return nil
}

// Exhausted returns an error if a pool that a node may use has an address that it could
// have had: ErrExhausted would then be a lie.
func Exhausted(node string, blocks []*ipam.Block, s *model.Snapshot, req model.AddressRequest, now time.Time) error {
	var starved []bool
	var found []string
	for _, is4 := range []bool{true, false} {
		pools := usablePools(node, s, is4, req)
		have := available(node, pools, blocks, s, now)
		if len(pools) > 0 {
			starved = append(starved, len(have) == 0)
			found = append(found, have...)
		}
	}
	if !slices.Contains(starved, true) {
		return fmt.Errorf("node %s was told that nothing is free, but there are %v", node, found)
	}
	return nil
}

// available lists what a node could have of pools of one family.
func available(node string, pools []model.Pool, blocks []*ipam.Block, s *model.Snapshot, now time.Time) []string {
	var have []string
	for _, p := range pools {
		own, claimed := 0, 0
		for _, b := range blocks {
			if b.Node() == node && b.CIDR.Addr().Is4() == p.CIDR.Addr().Is4() {
				own++
			}
			if !p.CIDR.Contains(b.CIDR.Addr()) {
				continue
			}
			claimed++
			if b.Node() != node && s.IPAM.StrictAffinity {
				continue
			}
			for _, i := range b.Unallocated {
				a := b.Addr(i)
				resting := b.Slots[i].ReleasedAt.Add(s.IPAM.Cooldown).After(now)
				if !resting && !slices.ContainsFunc(s.Reservations, func(r netip.Prefix) bool { return r.Contains(a) }) {
					have = append(have, a.String())
				}
			}
		}
		if claimed < 1<<(p.BlockSize-p.CIDR.Bits()) && own < s.IPAM.MaxBlocksPerHost && s.IPAM.AutoAllocateBlocks && len(s.Reservations) == 0 {
			have = append(have, "a block of "+p.Name)
		}
	}
	return have
}

// Told is told of what ipam.Config.Tunnels was: from now on the tunnels use these addresses
// and no longer those before.
func (m *Model) Told(node string, told [model.Tunnels]netip.Addr, cooldown time.Duration, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	had := m.tunnels[node]
	m.tunnels[node] = told
	for t := range told {
		if had[t] != told[t] && had[t].IsValid() {
			delete(m.owner, had[t])
			m.released[had[t]] = now
		}
	}
	for t, a := range told {
		if had[t] == a || !a.IsValid() {
			continue
		}
		h := device(node, model.Tunnel(t))
		if other, ok := m.owner[a]; ok {
			return fmt.Errorf("I1: %s has two owners: %v and %v", a, other, h)
		}
		if at, ok := m.released[a]; ok && now.Before(at.Add(cooldown)) {
			return fmt.Errorf("%v got %s, which was released %s ago and the cooldown is %s", h, a, now.Sub(at), cooldown)
		}
		m.owner[a] = h
	}
	return nil
}

// tunnelPools returns the pools out of which a node's tunnel may get an address.
func tunnelPools(node string, s *model.Snapshot, t model.Tunnel) []model.Pool {
	return slices.DeleteFunc(slices.Clone(s.Pools), func(p model.Pool) bool {
		return !ofMode(&p, t) || p.Manual || p.Disabled || !p.NodeSelector.Matches(s.Node(node).Labels)
	})
}

// ofMode reports whether addresses of a pool are for such tunnels.
func ofMode(p *model.Pool, t model.Tunnel) bool {
	mode := p.VXLANMode
	if t == model.TunnelIPIP {
		mode = p.IPIPMode
	}
	return p.CIDR.Addr().Is4() == t.Is4() && mode != model.EncapNever && mode != "" && p.Allows(model.UseTunnel)
}

// Served returns an error unless a node's tunnels have what is wished for, once everything
// had time to settle: those that are wanted an address of a pool that is for it, or that of
// before while there is no other; or none while there is none to be had.
func (m *Model) Served(node string, want []model.Tunnel, blocks []*ipam.Block, s *model.Snapshot, now time.Time) error {
	m.mu.Lock()
	told := m.tunnels[node]
	m.mu.Unlock()
	for t := range model.Tunnel(model.Tunnels) {
		a := told[t]
		pools := tunnelPools(node, s, t)
		in := func(p model.Pool) bool { return p.CIDR.Contains(a) }
		switch {
		case !slices.Contains(want, t):
			if a.IsValid() {
				return fmt.Errorf("%s of %s has %s and is not wanted", t.Device(), node, a)
			}
		case a.IsValid() && slices.ContainsFunc(pools, in):
		case a.IsValid() && len(pools) == 0 && !slices.ContainsFunc(s.Pools, func(p model.Pool) bool { return in(p) && ofMode(&p, t) }):
			return fmt.Errorf("%s of %s has %s, which no pool has for it", t.Device(), node, a)
		default:
			if have := available(node, pools, blocks, s, now); len(have) > 0 {
				return fmt.Errorf("%s of %s has %v, and there are %v", t.Device(), node, a, have)
			}
		}
	}
	return nil
}
