package route

import (
	"net/netip"
	"slices"
	"time"
)

// minResync is the shortest time between two dumps that events ask for.
const minResync = time.Second

// wantDump asks for a dump after at least wait.
func (c *core) wantDump(wait time.Duration) {
	at := c.now.Add(wait)
	if soon := c.lastDump.Add(minResync); at.Before(soon) {
		at = soon
	}
	if c.resyncAt.IsZero() || at.Before(c.resyncAt) {
		c.resyncAt = at
	}
}

// beginDump starts a generation: what the dump does not confirm until endDump is gone.
func (c *core) beginDump() { c.gen++ }

func (c *core) endDump() {
	for _, l := range c.links {
		if l.gen != c.gen {
			c.linkGone(l.index, c.lastSeq)
		}
	}
	var gone []*fibEntry
	for _, g := range c.groups {
		for _, f := range g.routes {
			if f.gen != c.gen {
				gone = append(gone, f)
			}
		}
	}
	for _, f := range gone {
		c.lost(f)
	}
	c.ready, c.lastDump, c.resyncAt = true, c.now, time.Time{}
	c.checkSynced()
}

// tell takes an event of the kernel.
func (c *core) tell(ev *event) {
	switch ev.kind {
	case linkSet:
		c.linkSet(ev)
	case linkGone:
		c.linkGone(ev.link.index, ev.after)
	case addrSet:
		c.retrySoon()
	case addrGone:
		// The kernel drops IPv4 routes with the last address of a link (fib_disable_ip)
		// without a word, and only after this event.
		c.wantDump(100 * time.Millisecond)
	case routeSet:
		c.routeSet(ev)
	case routeGone:
		c.routeGone(ev)
	}
}

// linkState is a link and the generation of the dump that last told of it.
type linkState struct {
	link
	gen uint8
}

func (c *core) linkSet(ev *event) {
	l := c.links[ev.link.index]
	if l == nil {
		l = &linkState{link: link{index: ev.link.index}}
		c.links[l.index] = l
	}
	old := l.link
	l.link, l.gen = ev.link, c.gen
	if old.name != l.name && c.names[old.name] == l.index {
		delete(c.names, old.name)
		c.touchName(old.name)
	}
	// After a dump the events that it overtook come, and may tell of another link that had the
	// name before: whoever is told of last has it.
	if c.names[l.name] != l.index {
		c.names[l.name] = l.index
		c.touchName(l.name)
	}
	if !l.up {
		// Also when it is known: after a dump come the events that it overtook, and may tell of
		// routes that went with the link.
		c.linkDown(l.index, ev.after, false)
	}
	if old == l.link {
		return
	}
	c.touchLink(l.index)
	if old.running != l.running {
		c.carrierChanged(l.index)
	}
	if !old.up && l.up {
		c.retrySoon()
	}
}

func (c *core) linkGone(index int32, after uint64) {
	l := c.links[index]
	if l == nil {
		return
	}
	delete(c.links, index)
	if c.names[l.name] == index {
		delete(c.names, l.name)
		c.touchName(l.name)
	}
	c.touchLink(index)
	c.linkDown(index, after, true)
}

// linkDown does to what we know what the kernel does to its routes when a link goes down
// or away, of which it says nothing for IPv4 (fib_sync_down_dev) and, where the sysctl
// skip_notify_on_dev_down is set, for IPv6 (fib6_ifdown).
func (c *core) linkDown(index int32, after uint64, gone bool) {
	var lost, unsure []*fibEntry
	for g := range c.devGroups[index] {
		dead := !slices.ContainsFunc(g.hops, func(h hop) bool { l := c.links[h.dev]; return l != nil && l.up })
		for _, f := range g.routes {
			switch v4 := f.entry.prefix.Addr().Is4(); {
			case f.seq > after: // written since
			case f.local && !gone:
			case dead && !gone && c.mergedWithAlive(f):
				unsure = append(unsure, f) // it stays, and leads nowhere until the link is up again
			case dead || gone && v4:
				lost = append(lost, f)
			case gone:
				unsure = append(unsure, f)
			}
		}
	}
	for _, f := range lost {
		c.lost(f)
	}
	for _, f := range unsure {
		if f.ours {
			f.unsure = true
			c.enqueue(f.entry)
		} else if gone {
			c.wantDump(0)
		}
	}
}

// mergedWithAlive reports whether IPv6 made one route of f and others of its key, one of which
// has a link that is up: fib6_ifdown keeps all hops of such a route.
func (c *core) mergedWithAlive(f *fibEntry) bool {
	if !mergeable(f.entry.prefix, f.group.hops) {
		return false
	}
	for o := f.entry.fib; o != nil; o = o.next {
		if o != f && o.local == f.local && o.tos == f.tos && o.metric == f.metric && mergeable(o.entry.prefix, o.group.hops) &&
			slices.ContainsFunc(o.group.hops, func(h hop) bool { l := c.links[h.dev]; return l != nil && l.up }) {
			return true
		}
	}
	return false
}

// lost takes a route out of what the kernel has, and queues whoever minds.
func (c *core) lost(f *fibEntry) {
	e := f.entry
	minds := !f.ours || f.stale
	c.remove(f)
	if !f.ours {
		c.foreignChanged(e.prefix)
	}
	if minds {
		c.changed(e.prefix)
	}
	c.enqueue(e)
}

// insert puts f first or last: of routes with the same key the kernel takes the first.
func (e *entry) insert(f *fibEntry, last bool) {
	at := &e.fib
	for last && *at != nil {
		at = &(*at).next
	}
	f.next = *at
	*at = f
}

func (c *core) remove(f *fibEntry) {
	e := f.entry
	for at := &e.fib; *at != nil; at = &(*at).next {
		if *at == f {
			*at = f.next
			break
		}
	}
	if f.stale {
		c.staleCount--
	}
	c.ungroup(f)
	f.next = nil
}

func (c *core) regroup(f *fibEntry, g *group) {
	if f.group == g {
		return
	}
	g.refs++
	c.ungroup(f)
	f.group, f.inGrp = g, int32(len(g.routes))
	g.routes = append(g.routes, f)
}

func (c *core) ungroup(f *fibEntry) {
	g := f.group
	if g == nil {
		return
	}
	last := g.routes[len(g.routes)-1]
	g.routes[f.inGrp] = last
	last.inGrp = f.inGrp
	g.routes[len(g.routes)-1] = nil
	g.routes = g.routes[:len(g.routes)-1]
	f.group = nil
	c.release(g)
}

func (c *core) routeSet(ev *event) {
	r := &ev.route
	ours := r.proto == c.proto && !r.local
	e := c.entryAt(r.prefix)
	if c.overtaken(e, ev) && (ours || ev.replace) {
		return
	}
	hops := r.hops
	var same *fibEntry
	merges := mergeable(r.prefix, hops)
	if ev.replace {
		same = c.replaced(e, ours, merges, r)
	} else {
		for f := e.fib; f != nil; f = f.next {
			if f.local != r.local || f.tos != r.tos || f.metric != r.metric {
				continue
			}
			merged := merges && mergeable(e.prefix, f.group.hops)
			switch {
			case f.ours == ours && (merged || slices.Equal(f.group.hops, hops) && f.typ == r.typ && (ours || f.proto == r.proto)):
				same = f
			case merged && f.ours && !ev.dump:
				// A foreign hop was appended to our route: what is not ours is theirs.
				hops = slices.DeleteFunc(slices.Clone(hops), func(h hop) bool { return slices.Contains(f.group.hops, h) })
			}
		}
	}
	if len(hops) == 0 && len(r.hops) > 0 {
		return
	}
	g := c.intern(hops)
	if same != nil && same.group == g && same.typ == r.typ && same.odd == r.odd && same.proto == r.proto {
		same.gen = c.gen
		if same.unsure {
			same.unsure = false
			c.enqueue(e)
		}
		return
	}
	known := same != nil
	if !known {
		same = &fibEntry{entry: e, tos: r.tos, metric: r.metric, ours: ours, local: r.local}
		e.insert(same, ev.last || ev.dump)
	}
	same.typ, same.proto, same.odd, same.unsure, same.gen = r.typ, r.proto, r.odd, false, c.gen
	c.regroup(same, g)
	if ours && !known && !c.synced && e.cands == nil {
		same.stale = true
		c.staleCount++
	}
	if !ours || same.stale {
		c.changed(e.prefix)
	}
	if !ours {
		c.foreignChanged(e.prefix)
	}
	if ours && c.ready {
		c.heal(e)
	}
	c.enqueue(e)
}

// mergeable reports whether IPv6 makes one route of those with the same key; IPv4, and
// routes without gateway, stand one behind the other.
func mergeable(p netip.Prefix, hops []hop) bool {
	return p.Addr().Is6() && len(hops) > 0 && hops[0].gw.IsValid()
}

// replaced takes away what a replace by r put out: the first at the key in IPv4
// (fib_table_insert), the first of its kind with all that merged with it in IPv6
// (fib6_add_rt2node). It returns one of r's own owner to be changed instead, or nil.
func (c *core) replaced(e *entry, ours, merges bool, r *fibRoute) (same *fibEntry) {
	var out []*fibEntry
	for _, kind := range []bool{merges, !merges} {
		for f := e.fib; f != nil; f = f.next {
			if f.local != r.local || f.tos != r.tos || f.metric != r.metric {
				continue
			}
			m := mergeable(e.prefix, f.group.hops)
			if len(out) == 0 && (m == kind || e.prefix.Addr().Is4()) || len(out) > 0 && m && mergeable(e.prefix, out[0].group.hops) {
				out = append(out, f)
			}
		}
		if len(out) > 0 {
			break
		}
	}
	for _, f := range out {
		if f.ours == ours && same == nil {
			same = f
		} else {
			c.lost(f)
		}
	}
	return same
}

func (c *core) routeGone(ev *event) {
	r := &ev.route
	ours := r.proto == c.proto && !r.local
	e, ok := c.entries.Get(r.prefix)
	if !ok || ours && c.overtaken(e, ev) {
		return
	}
	var same *fibEntry
	for f := e.fib; f != nil; f = f.next {
		if f.ours != ours || f.local != r.local || f.tos != r.tos || f.metric != r.metric || f.proto != r.proto {
			continue
		}
		if same == nil || slices.Equal(f.group.hops, r.hops) {
			same = f
		}
	}
	if same == nil {
		return
	}
	if ours {
		c.heal(e)
	}
	if mergeable(r.prefix, r.hops) && len(r.hops) > 1 {
		c.siblingsGone(e, same, ev)
	}
	if r.prefix.Addr().Is6() && !slices.Equal(same.group.hops, r.hops) {
		// One hop of several went.
		left := slices.DeleteFunc(slices.Clone(same.group.hops), func(h hop) bool { return slices.Contains(r.hops, h) })
		if len(left) > 0 {
			c.regroup(same, c.intern(left))
			if !ours || same.stale {
				c.changed(e.prefix)
			}
			if !ours {
				c.foreignChanged(e.prefix)
			}
			c.enqueue(e)
			return
		}
	}
	if !r.prefix.Addr().Is6() && !slices.Equal(same.group.hops, r.hops) {
		c.wantDump(0) // not the one we knew of
	}
	c.lost(same)
}

// siblingsGone takes the hops of an IPv6 deletion from what others of its key had merged with
// it: `ip -6 route del` without a next hop deletes them all, and is told of under the protocol of
// the first (ip6_route_del, __ip6_del_rt_siblings).
func (c *core) siblingsGone(e *entry, first *fibEntry, ev *event) {
	r := &ev.route
	for f, next := e.fib, (*fibEntry)(nil); f != nil; f = next {
		next = f.next
		if f == first || f.local != r.local || f.tos != r.tos || f.metric != r.metric || !mergeable(e.prefix, f.group.hops) || f.ours && f.seq > ev.after && !ev.dump {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(f.group.hops), func(h hop) bool { return slices.Contains(r.hops, h) })
		if len(left) == len(f.group.hops) {
			continue
		}
		if f.ours {
			c.heal(e)
		}
		if len(left) == 0 {
			c.lost(f)
			continue
		}
		if !f.ours {
			c.foreignChanged(e.prefix)
		}
		c.regroup(f, c.intern(left))
		c.changed(e.prefix)
		c.enqueue(e)
	}
}

// overtaken reports whether the event is older than our last write at its key.
func (c *core) overtaken(e *entry, ev *event) bool {
	if ev.dump {
		return false
	}
	for f := e.fib; f != nil; f = f.next {
		if f.ours && f.seq > ev.after && f.at(ev.route.tos, ev.route.metric) {
			return true
		}
	}
	return false
}
