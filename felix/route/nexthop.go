package route

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// maxDepth bounds recursion: a next hop behind a route whose next hop is behind a route ...
const maxDepth = 8

// nextHopSet is what a candidate asks for, shared by all that ask for the same. Its
// answer, group, is what the kernel shall get.
type nextHopSet struct {
	key   string
	hops  []*nextHop
	group *group // nil: nothing is reachable
	users []*cand
	dirty bool
}

// nextHop is one asked-for next hop, its answer, and what the answer hangs on: it is
// resolved anew when a route that covers one of targets changes, or one of links or the
// link of that name does. That is the reverse index that keeps work proportional (I8).
type nextHop struct {
	asked   model.NextHop
	answer  []hop // normal
	sets    map[*nextHopSet]struct{}
	targets []*target
	links   []int32
	names   []string
	// neighbourOn is the link on which the address was found last, without a gateway; 0:
	// never. While that link is down the default route does not lead to the address: what
	// it leads to is somebody else's router (fast external failover, without the session).
	neighbourOn int32
	dirty       bool
}

// target is an address that was looked up for some next hops.
type target struct {
	prefix netip.Prefix
	hops   map[*nextHop]struct{}
}

// group is one set of the kernel's next hops, shared by all routes that have it.
type group struct {
	key    string
	hops   []hop
	routes []*fibEntry
	refs   int // routes and sets
}

// normalNextHops makes equal what means the same: no 4in6, the zone as the device, sorted.
func normalNextHops(in []model.NextHop) []model.NextHop {
	plain := slices.IsSortedFunc(in, model.NextHop.Compare)
	for i, h := range in {
		plain = plain && h.Addr.Zone() == "" && !h.Addr.Is4In6() && (i == 0 || in[i-1] != h)
	}
	if plain {
		return in
	}
	out := slices.Clone(in)
	for i, h := range out {
		if h.Device == "" {
			out[i].Device = h.Addr.Zone()
		}
		out[i].Addr = h.Addr.Unmap().WithZone("")
	}
	slices.SortFunc(out, func(a, b model.NextHop) int { return cmp.Or(a.Compare(b), cmp.Compare(bit(a.OnLink), bit(b.OnLink))) })
	return slices.Compact(out)
}

// appendAsked appends what tells next hops from others.
func appendAsked(key []byte, hops []model.NextHop) []byte {
	for _, h := range hops {
		a := h.Addr.As16()
		key = append(key, byte(h.Addr.BitLen()), bit(h.OnLink), byte(len(h.Device)))
		key = append(key, a[:]...)
		key = append(key, h.Device...)
	}
	return key
}

// internSet finds or makes the set of these normal next hops.
func (c *core) internSet(hops []model.NextHop) *nextHopSet {
	c.key = appendAsked(c.key[:0], hops)
	if s := c.sets[string(c.key)]; s != nil {
		return s
	}
	s := &nextHopSet{key: string(c.key)}
	c.sets[s.key] = s
	for _, h := range hops {
		n := c.hops[h]
		if n == nil {
			n = &nextHop{asked: h, sets: map[*nextHopSet]struct{}{}}
			c.hops[h] = n
			c.touch(n)
		}
		n.sets[s] = struct{}{}
		s.hops = append(s.hops, n)
	}
	c.touchSet(s)
	return s
}

// use and unuse keep a set's users, and with them the set alive.
func (c *core) use(k *cand) {
	if s := k.set; s != nil {
		k.inSet = int32(len(s.users))
		s.users = append(s.users, k)
	}
}

func (c *core) unuse(k *cand) {
	s := k.set
	if s == nil {
		return
	}
	last := s.users[len(s.users)-1]
	s.users[k.inSet] = last
	last.inSet = k.inSet
	s.users[len(s.users)-1] = nil
	s.users = s.users[:len(s.users)-1]
	k.set = nil
	if len(s.users) > 0 {
		return
	}
	delete(c.sets, s.key)
	c.release(s.group)
	s.group = nil
	for _, n := range s.hops {
		delete(n.sets, s)
		if len(n.sets) == 0 {
			c.forget(n)
			delete(c.hops, n.asked)
		}
	}
}

func (c *core) touch(n *nextHop) {
	if !n.dirty {
		n.dirty = true
		c.dirtyHops = append(c.dirtyHops, n)
	}
}

func (c *core) touchSet(s *nextHopSet) {
	if !s.dirty {
		s.dirty = true
		c.dirtySets = append(c.dirtySets, s)
	}
}

// changed says that routes or candidates at p changed: next hops under p look again.
func (c *core) changed(p netip.Prefix) {
	if c.targets.Size() == 0 {
		return
	}
	for _, t := range c.targets.Subnets(p) {
		for n := range t.hops {
			c.touch(n)
		}
	}
}

func (c *core) touchLink(index int32) {
	for n := range c.linkDeps[index] {
		c.touch(n)
	}
}

func (c *core) touchName(name string) {
	for n := range c.nameDeps[name] {
		c.touch(n)
	}
}

// forget takes n out of the reverse index.
func (c *core) forget(n *nextHop) {
	for _, t := range n.targets {
		delete(t.hops, n)
		if len(t.hops) == 0 {
			c.targets.Delete(t.prefix)
		}
	}
	for _, l := range n.links {
		unlink(c.linkDeps, l, n)
	}
	for _, name := range n.names {
		unlink(c.nameDeps, name, n)
	}
	n.targets, n.links, n.names = n.targets[:0], n.links[:0], n.names[:0]
}

func unlink[K comparable, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if s := m[k]; s != nil {
		delete(s, v)
		if len(s) == 0 {
			delete(m, k)
		}
	}
}

func enlink[K comparable, V comparable](m map[K]map[V]struct{}, k K, v V) {
	s := m[k]
	if s == nil {
		s = map[V]struct{}{}
		m[k] = s
	}
	s[v] = struct{}{}
}

// settle resolves what is dirty and queues the prefixes whose next hops changed, in one
// pass: resolving looks at candidates and the kernel's routes and never at other answers.
func (c *core) settle() {
	if !c.ready {
		return
	}
	c.settleGuard()
	for _, n := range c.dirtyHops {
		n.dirty = false
		if len(n.sets) == 0 {
			continue
		}
		c.forget(n)
		r := resolver{core: c, hop: n}
		answer := normalHops(r.nextHop(nil, n.asked, 0))
		if !slices.Equal(answer, n.answer) {
			n.answer = answer
			for s := range n.sets {
				c.touchSet(s)
			}
		}
	}
	c.dirtyHops = c.dirtyHops[:0]
	var hops []hop
	for _, s := range c.dirtySets {
		s.dirty = false
		if len(s.users) == 0 {
			if c.sets[s.key] == s { // asked for and never used
				delete(c.sets, s.key)
			}
			continue
		}
		hops = hops[:0]
		for _, n := range s.hops {
			hops = append(hops, n.answer...)
		}
		var g *group
		if hops = normalHops(hops); len(hops) > 0 {
			g = c.intern(hops)
			g.refs++
		}
		old := s.group
		s.group = g
		c.release(old)
		if old == g {
			continue
		}
		for _, k := range s.users {
			c.enqueue(k.entry)
		}
	}
	c.dirtySets = c.dirtySets[:0]
}

// intern finds or makes the group of these hops; the caller holds it by refs.
func (c *core) intern(hops []hop) *group {
	c.key = appendHops(c.key[:0], hops)
	g := c.groups[string(c.key)]
	if g == nil {
		g = &group{key: string(c.key), hops: slices.Clone(hops)}
		c.groups[g.key] = g
		for _, h := range g.hops {
			enlink(c.devGroups, h.dev, g)
		}
	}
	return g
}

func (c *core) release(g *group) {
	if g == nil {
		return
	}
	if g.refs--; g.refs == 0 {
		delete(c.groups, g.key)
		for _, h := range g.hops {
			unlink(c.devGroups, h.dev, g)
		}
	}
}

// resolver finds the way to one next hop, and notes what the answer hangs on. It looks at
// each address once, so that its work is bounded by what there is to look at, whatever
// peers announce; an address whose look is not over leads nowhere: that is the loop.
type resolver struct {
	*core
	hop  *nextHop
	seen []visit
}

type visit struct {
	addr netip.Addr
	hops []hop // nil while the look is not over
}

func (r *resolver) nextHop(out []hop, h model.NextHop, depth int) []hop {
	if h.Device == "" {
		if !h.Addr.IsValid() || h.Addr.IsLinkLocalUnicast() || depth >= maxDepth {
			return out
		}
		i := slices.IndexFunc(r.seen, func(v visit) bool { return v.addr == h.Addr })
		if i < 0 {
			i = len(r.seen)
			r.seen = append(r.seen, visit{addr: h.Addr})
			hops := normalHops(r.address(h.Addr, depth))
			r.seen[i].hops = hops
		}
		return append(out, r.seen[i].hops...)
	}
	if !slices.Contains(r.hop.names, h.Device) {
		r.hop.names = append(r.hop.names, h.Device)
		enlink(r.nameDeps, h.Device, r.hop)
	}
	index, ok := r.names[h.Device]
	if !ok {
		return out
	}
	l := r.look(index)
	// A route onto a link needs the link up. One behind a gateway needs its carrier too:
	// there may be another gateway.
	if l == nil || !l.up || h.Addr.IsValid() && !l.running {
		return out
	}
	return append(out, hop{gw: h.Addr, dev: index, onlink: h.OnLink})
}

// look returns the link and notes that the answer hangs on it.
func (r *resolver) look(index int32) *link {
	if !slices.Contains(r.hop.links, index) {
		r.hop.links = append(r.hop.links, index)
		enlink(r.linkDeps, index, r.hop)
	}
	if l := r.links[index]; l != nil {
		return &l.link
	}
	return nil
}

// address follows the longest match that stands in the kernel, or will. A match that
// leads nowhere (blackhole, dead link) ends the search, as it ends the packet's way; a
// candidate that cannot be installed is no match.
//
// IPv6 gateways are given as on the link (RTNH_F_ONLINK), as they are. Otherwise the kernel
// refuses them (ip6_route_check_nh) as soon as a peer announces the host route of its own
// address; IPv4 looks at routes onto links only.
func (r *resolver) address(a netip.Addr, depth int) []hop {
	self := netip.PrefixFrom(a, a.BitLen())
	t, ok := r.targets.Get(self)
	if !ok {
		t = &target{prefix: self, hops: map[*nextHop]struct{}{}}
		r.targets.Insert(self, t)
	}
	if _, ok := t.hops[r.hop]; !ok {
		t.hops[r.hop] = struct{}{}
		r.hop.targets = append(r.hop.targets, t)
	}
	for _, e := range r.entries.Supernets(self) {
		if depth == 0 && e.prefix.Bits() == 0 && r.hop.neighbourOn != 0 {
			if l := r.look(r.hop.neighbourOn); l == nil || !l.running {
				return nil
			}
		}
		other := e.other()
		found, metric, ok := r.own(e, a, depth)
		switch {
		case other != nil && (!ok || other.metric <= metric):
			found := r.through(other, a)
			if depth == 0 && len(found) > 0 && found[0].gw == a && e.prefix.Bits() > 0 {
				r.hop.neighbourOn = found[0].dev
			}
			return found
		case ok:
			return found
		}
		if f := e.stale(); f != nil {
			return r.through(f, a)
		}
	}
	return nil
}

// own returns the hops of e's candidate that stands: the best owner's that leads
// somewhere, or a blackhole, which does not.
func (r *resolver) own(e *entry, a netip.Addr, depth int) (found []hop, metric uint32, ok bool) {
	for k := e.cands; k != nil; k = k.next {
		if k.shunned {
			continue
		}
		if k.set == nil {
			return nil, k.metric, true
		}
		for _, h := range k.set.hops {
			found = r.nextHop(found, h.asked, depth+1)
		}
		if len(found) > 0 {
			// A candidate onto a link carries the address itself to that link.
			for i := range found {
				if !found[i].gw.IsValid() {
					found[i].gw, found[i].onlink = a, a.Is6()
				}
			}
			return found, k.metric, true
		}
	}
	return nil, 0, false
}

// through returns the ways of a kernel route that are alive; none of one that drops.
func (r *resolver) through(f *fibEntry, a netip.Addr) (out []hop) {
	if f.typ != typeUnicast {
		return nil
	}
	for _, h := range f.group.hops {
		if l := r.look(h.dev); l == nil || !l.running {
			continue
		}
		if !h.gw.IsValid() {
			h.gw = a
		}
		h.onlink = h.onlink || h.gw.Is6()
		h.weight = 0
		out = append(out, h)
	}
	return out
}

// other returns the foreign route that the kernel prefers at e, or nil.
func (e *entry) other() *fibEntry {
	var best *fibEntry
	for f := e.fib; f != nil; f = f.next {
		if !f.ours && f.tos == 0 && (best == nil || f.local && !best.local || f.local == best.local && f.metric < best.metric) {
			best = f
		}
	}
	return best
}

// stale returns the route that an earlier life left at e, or nil.
func (e *entry) stale() *fibEntry {
	for f := e.fib; f != nil; f = f.next {
		if f.stale && f.tos == 0 {
			return f
		}
	}
	return nil
}
