package route

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"github.com/causeway-net/causeway/internal/model"
)

// Guarded addresses are those that the sessions and the next hops of the cluster hang on:
// of the nodes, and of configured peers. Where the kernel has such an address on a subnet of
// a link that runs, a learned route that is more specific than the subnet would lead it away
// from its owner, and to whoever announced it: that candidate is left out. While the link is
// down, or where the address is on no subnet (loopback addresses that the fabric carries),
// learned routes are the way to it. An address of this very node is learned from nobody.

// guarded is one such address.
type guarded struct {
	addr netip.Addr
	own  bool // of this node
	// subnet is the connected one that leads to addr; the zero Prefix: none does.
	subnet netip.Prefix
	dirty  bool
}

// guard is the core's knowledge of guarded addresses.
type guard struct {
	addrs bart.Table[*guarded] // by the address as a prefix of one
	// subnets counts the addresses on each: few, whatever the number of nodes.
	subnets map[netip.Prefix]int
	dirty   []*guarded
	// shunned are the entries whose BGP candidate is left out.
	shunned map[*entry]struct{}
	fresh   []*entry // shunned since the driver last looked, for its log
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// setGuard makes own and others the guarded addresses; own ones may stand in others too.
func (c *core) setGuard(own, others []netip.Addr) {
	want := make(map[netip.Addr]bool, len(own)+len(others))
	for _, a := range others {
		want[a.Unmap().WithZone("")] = false
	}
	for _, a := range own {
		want[a.Unmap().WithZone("")] = true
	}
	delete(want, netip.Addr{})
	var gone []*guarded
	for _, g := range c.guard.addrs.All() {
		if _, ok := want[g.addr]; !ok {
			gone = append(gone, g)
		}
	}
	for _, g := range gone {
		c.guard.addrs.Delete(single(g.addr))
		c.onSubnet(g, netip.Prefix{})
		c.recheck(g.addr)
	}
	for a, mine := range want {
		g, ok := c.guard.addrs.Get(single(a))
		if !ok {
			g = &guarded{addr: a}
			c.guard.addrs.Insert(single(a), g)
		} else if g.own == mine {
			continue
		}
		g.own = mine
		c.lookAgain(g)
		c.recheck(a)
	}
}

func (c *core) lookAgain(g *guarded) {
	if !g.dirty {
		g.dirty = true
		c.guard.dirty = append(c.guard.dirty, g)
	}
}

// foreignChanged says that a route of somebody else at p came, changed or went.
func (c *core) foreignChanged(p netip.Prefix) {
	if c.guard.addrs.Size() == 0 {
		return
	}
	for _, g := range c.guard.addrs.Subnets(p) {
		c.lookAgain(g)
	}
}

// carrierChanged says that a link began or ceased to run.
func (c *core) carrierChanged(index int32) {
	for g := range c.devGroups[index] {
		for _, f := range g.routes {
			if !f.ours && !f.local {
				c.foreignChanged(f.entry.prefix)
			}
		}
	}
}

// settleGuard finds the subnets of the addresses that may have moved, and what that means
// for candidates.
func (c *core) settleGuard() {
	for _, g := range c.guard.dirty {
		g.dirty = false
		if now, ok := c.guard.addrs.Get(single(g.addr)); !ok || now != g {
			continue
		}
		if s := c.connected(g.addr); s != g.subnet {
			c.onSubnet(g, s)
			c.recheck(g.addr)
		}
	}
	clear(c.guard.dirty)
	c.guard.dirty = c.guard.dirty[:0]
}

func (c *core) onSubnet(g *guarded, s netip.Prefix) {
	if g.subnet.IsValid() {
		if c.guard.subnets[g.subnet]--; c.guard.subnets[g.subnet] == 0 {
			delete(c.guard.subnets, g.subnet)
		}
	}
	if g.subnet = s; s.IsValid() {
		c.guard.subnets[s]++
	}
}

// connected returns the subnet of a running link that the kernel itself finds a on; the zero
// Prefix when it finds it elsewhere, here, or nowhere.
func (c *core) connected(a netip.Addr) netip.Prefix {
	for _, e := range c.entries.Supernets(single(a)) {
		f := e.other()
		if f == nil {
			continue
		}
		if f.local || f.typ != typeUnicast {
			return netip.Prefix{}
		}
		for _, h := range f.group.hops {
			if l := c.links[h.dev]; h.gw.IsValid() || l == nil || !l.running {
				return netip.Prefix{}
			}
		}
		return e.prefix
	}
	return netip.Prefix{}
}

// shuns returns the guarded address that a learned route at p would lead away, or nil.
func (c *core) shuns(p netip.Prefix) *guarded {
	if c.guard.addrs.Size() == 0 {
		return nil
	}
	if p.IsSingleIP() {
		if g, ok := c.guard.addrs.Get(p); ok && (g.own || g.subnet.IsValid() && g.subnet.Bits() < p.Bits()) {
			return g
		}
		return nil
	}
	for s := range c.guard.subnets {
		if s.Bits() >= p.Bits() || !s.Contains(p.Addr()) {
			continue
		}
		for _, g := range c.guard.addrs.Subnets(p) {
			if g.subnet == s {
				return g
			}
		}
	}
	return nil
}

// recheck judges the learned candidates that cover a anew.
func (c *core) recheck(a netip.Addr) {
	for _, e := range c.entries.Supernets(single(a)) {
		for k := e.cands; k != nil; k = k.next {
			if c.judge(k) {
				delete(c.failed, e)
				c.enqueue(e)
				c.changed(e.prefix)
			}
		}
	}
}

// judge sets whether k is left out, and reports whether that changed.
func (c *core) judge(k *cand) bool {
	if c.owners[k.owner].owner != model.OwnerBGP {
		return false
	}
	was := k.shunned
	if k.shunned = c.shuns(k.entry.prefix) != nil; k.shunned == was {
		return false
	}
	if k.shunned {
		c.guard.shunned[k.entry] = struct{}{}
		c.guard.fresh = append(c.guard.fresh, k.entry)
	} else {
		delete(c.guard.shunned, k.entry)
	}
	return true
}

// LeftOut is a learned route that is not programmed, because it would lead an address of a
// node or a peer away from the subnet that it is on.
type LeftOut struct {
	Prefix  netip.Prefix `json:"prefix"`
	Address netip.Addr   `json:"address"`         // the node's or peer's
	Own     bool         `json:"own,omitempty"`   // it is this node's
	Subnet  netip.Prefix `json:"subnet,omitzero"` // that the address is on
}

func (l LeftOut) String() string {
	if l.Own {
		return fmt.Sprintf("%s: %s is this node's own address", l.Prefix, l.Address)
	}
	return fmt.Sprintf("%s: %s is an address of a node or a peer on the connected subnet %s", l.Prefix, l.Address, l.Subnet)
}

// leftOut lists what is left out, at most so many.
func (c *core) leftOut(most int) []LeftOut {
	var out []LeftOut
	for e := range c.guard.shunned {
		if g := c.shuns(e.prefix); g != nil && len(out) < most {
			out = append(out, LeftOut{e.prefix, g.addr, g.own, g.subnet})
		}
	}
	slices.SortFunc(out, func(a, b LeftOut) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// reportShunned logs what is newly left out: one of them, and no more than once a minute.
func (t *Table) reportShunned() {
	c := t.core
	for _, e := range c.guard.fresh {
		g := c.shuns(e.prefix)
		if _, still := c.guard.shunned[e]; !still || g == nil || !t.shunnedAt.IsZero() && c.now.Sub(t.shunnedAt) < time.Minute {
			continue
		}
		t.shunnedAt = c.now
		t.log.Warn("a route that would lead a node's or a peer's address astray came over BGP; it and others like it are left out",
			"route", LeftOut{e.prefix, g.addr, g.own, g.subnet}.String(), "count", len(c.guard.shunned))
	}
	clear(c.guard.fresh)
	c.guard.fresh = c.guard.fresh[:0]
}
