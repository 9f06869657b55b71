package route

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/gaissmai/bart"
)

// core is what the table knows and decides: candidates, the kernel's state as last heard
// of, next hops, and what is to be written. It does no I/O and has no clock: whoever
// drives it sets now, tells it events and updates, calls settle, does the ops that next
// hands out and reports them to done.
//
// Three facts about a prefix meet in its entry: what owners want (cands), what the kernel
// has (fib), and what stands between the two (queued, failed). An entry lives as long as
// one of the first two does.
type core struct {
	proto  uint8
	metric uint32
	now    time.Time

	entries bart.Table[*entry]
	owners  [ownerCount]ownerState
	expect  []model.Owner // the owners whose InSync opens pruning
	ready   bool          // a whole dump was read
	synced  bool          // every owner of expect is in sync: stale routes are gone or going
	gen     uint8         // of the dump

	links      map[int32]*linkState
	names      map[string]int32
	groups     map[string]*group
	empty      *group // of routes that have no next hop; never released
	devGroups  map[int32]map[*group]struct{}
	sets       map[string]*nextHopSet
	hops       map[model.NextHop]*nextHop
	asked      map[string]*asked
	targets    bart.Table[*target]
	guard      guard
	linkDeps   map[int32]map[*nextHop]struct{}
	nameDeps   map[string]map[*nextHop]struct{}
	dirtyHops  []*nextHop
	dirtySets  []*nextHopSet
	key        []byte          // scratch
	hopScratch []model.NextHop // of diverted
	staleCount int

	queue, urgent []*entry
	pending       int         // entries that are queued
	queued, taken uint64      // how many were ever put in queue, and how many of them left it
	evict         []*fibEntry // of ours: wrong, and what shall replace them was refused
	failed        map[*entry]*failure
	conflicts     map[*entry]struct{}
	healed        map[*entry]*heals
	retryAt       time.Time // the earliest of failed; zero: none
	resyncAt      time.Time // a dump is wanted then; zero: none
	lastDump      time.Time
	lastSeq       uint64 // of our last write
	waiters       []*waiter
	fresh         []*failure // since the driver last looked, for its log
	freshConflict []*entry
}

// ownerIndex is an owner's place in core.owners; 0 is nobody.
type ownerIndex uint8

const ownerCount = 8

type ownerState struct {
	owner     model.Owner
	cands     []*cand
	installed int // entries whose candidate of this owner stands in the kernel
	metric4   uint32
	metric6   uint32 // of routes that name none; 0: the table's
	synced    bool
	via       func(netip.Prefix, model.NextHop) model.NextHop // nil: next hops stay as they are
}

// entry is one prefix.
type entry struct {
	prefix netip.Prefix
	cands  *cand     // by owner, best first
	fib    *fibEntry // what the kernel has at prefix: ours and others'
	owner  ownerIndex
	queued bool
	rush   bool // in urgent
}

// cand is one owner's wish for a prefix.
type cand struct {
	entry   *entry
	next    *cand
	set     *nextHopSet // nil: blackhole
	asked   *asked      // nil: set is what the owner asked for
	metric  uint32
	inSet   int32 // place in set.users
	inOwner int32 // place in ownerState.cands
	owner   ownerIndex
	implied bool // the metric is the owner's, not the route's
	shunned bool // left out, since it would lead a guarded address astray
}

// fibEntry is one route of the kernel.
type fibEntry struct {
	entry  *entry
	next   *fibEntry
	group  *group
	inGrp  int32 // place in group.routes
	metric uint32
	seq    uint64 // of our last write of it; 0: not written by us
	typ    uint8
	tos    uint8
	proto  uint8
	gen    uint8
	ours   bool // our protocol, main table
	local  bool
	odd    bool
	unsure bool // ours, and something happened that may have changed it
	// stale: found there before any owner of this life wanted the prefix. It stays until
	// all owners are in sync (I3, I4), and serves to resolve next hops meanwhile.
	stale bool
}

func (f *fibEntry) at(tos uint8, metric uint32) bool {
	return !f.local && f.tos == tos && f.metric == metric
}

func newCore(proto uint8, metric uint32, owners []model.Owner) *core {
	c := &core{
		proto: proto, metric: metric, expect: owners,
		links: map[int32]*linkState{}, names: map[string]int32{},
		groups: map[string]*group{}, devGroups: map[int32]map[*group]struct{}{},
		sets: map[string]*nextHopSet{}, hops: map[model.NextHop]*nextHop{}, asked: map[string]*asked{},
		linkDeps: map[int32]map[*nextHop]struct{}{}, nameDeps: map[string]map[*nextHop]struct{}{},
		failed: map[*entry]*failure{}, conflicts: map[*entry]struct{}{}, healed: map[*entry]*heals{},
		guard: guard{subnets: map[netip.Prefix]int{}, shunned: map[*entry]struct{}{}},
	}
	c.empty = c.intern(nil)
	c.empty.refs++
	return c
}

// index finds or makes the owner's place; owners are kept in the order of distance only
// within an entry's list, so places need no order.
func (c *core) index(o model.Owner) ownerIndex {
	for i := 1; i < ownerCount; i++ {
		switch c.owners[i].owner {
		case o:
			return ownerIndex(i)
		case 0:
			c.owners[i].owner = o
			return ownerIndex(i)
		}
	}
	panic("route: more than 7 owners")
}

func (c *core) entryAt(p netip.Prefix) *entry {
	e, ok := c.entries.Get(p)
	if !ok {
		e = &entry{prefix: p}
		c.entries.Insert(p, e)
	}
	return e
}

// drop forgets an entry that nothing speaks for any more.
func (c *core) drop(e *entry) {
	if e.cands == nil && e.fib == nil && !e.queued {
		c.entries.Delete(e.prefix)
		delete(c.failed, e)
		delete(c.conflicts, e)
		delete(c.healed, e)
	}
}

func (c *core) enqueue(e *entry) {
	if !e.queued {
		e.queued = true
		c.pending++
		c.queued++
		c.queue = append(c.queue, e)
	}
}

// set takes one owner's candidate.
func (c *core) set(o ownerIndex, r model.Route) {
	p := r.Prefix.Masked()
	if !p.IsValid() {
		return
	}
	metric, implied := uint32(r.Metric), r.Metric <= 0
	if implied {
		metric = c.implied(o, p)
	}
	e := c.entryAt(p)
	var k *cand
	at := &e.cands
	for ; *at != nil; at = &(*at).next {
		if d := c.owners[(*at).owner].owner; d >= c.owners[o].owner {
			break
		}
	}
	if *at != nil && (*at).owner == o {
		k = *at
	}
	var set *nextHopSet
	var orig *asked
	if r.Type == model.RouteUnicast {
		var hops []model.NextHop
		hops, orig = c.diverted(o, p, r.NextHops)
		set = c.internSet(hops)
	}
	switch {
	case k == nil:
		k = &cand{entry: e, next: *at, owner: o, set: set, metric: metric, implied: implied}
		*at = k
		own := &c.owners[o]
		k.inOwner = int32(len(own.cands))
		own.cands = append(own.cands, k)
		c.use(k)
		c.judge(k)
	case k.set == set && k.metric == metric:
		k.implied = implied
		c.keep(k, orig)
		return
	default:
		k.metric, k.implied = metric, implied
		if k.set != set {
			c.unuse(k)
			k.set = set
			c.use(k)
		}
	}
	c.keep(k, orig)
	c.claim(e)
	delete(c.failed, e)
	c.enqueue(e)
	c.changed(p)
}

// implied is the metric of an owner's route that names none.
func (c *core) implied(o ownerIndex, p netip.Prefix) uint32 {
	own := &c.owners[o]
	if p.Addr().Is4() {
		return cmp.Or(own.metric4, c.metric)
	}
	return cmp.Or(own.metric6, c.metric)
}

// setMetric moves those of an owner's routes that name no metric.
func (c *core) setMetric(owner model.Owner, v4, v6 uint32) {
	o := c.index(owner)
	own := &c.owners[o]
	if own.metric4 == v4 && own.metric6 == v6 {
		return
	}
	own.metric4, own.metric6 = v4, v6
	for _, k := range own.cands {
		if m := c.implied(o, k.entry.prefix); k.implied && k.metric != m {
			k.metric = m
			delete(c.failed, k.entry)
			c.enqueue(k.entry)
			c.changed(k.entry.prefix)
		}
	}
}

// claim ends the grace of stale routes at a prefix: from now on an owner of this life
// says what stands there.
func (c *core) claim(e *entry) {
	for f := e.fib; f != nil; f = f.next {
		if f.stale {
			f.stale = false
			c.staleCount--
		}
	}
}

func (c *core) unset(o ownerIndex, p netip.Prefix) {
	p = p.Masked()
	e, ok := c.entries.Get(p)
	if !ok {
		return
	}
	for at := &e.cands; *at != nil; at = &(*at).next {
		if k := *at; k.owner == o {
			*at = k.next
			own := &c.owners[o]
			last := own.cands[len(own.cands)-1]
			own.cands[k.inOwner] = last
			last.inOwner = k.inOwner
			own.cands[len(own.cands)-1] = nil
			own.cands = own.cands[:len(own.cands)-1]
			c.unuse(k)
			c.keep(k, nil)
			if k.shunned {
				delete(c.guard.shunned, e)
			}
			delete(c.failed, e)
			c.enqueue(e)
			c.changed(p)
			return
		}
	}
}

func (c *core) update(owner model.Owner, u model.RouteUpdate) {
	o := c.index(owner)
	for _, r := range u.Set {
		c.set(o, r)
	}
	for _, p := range u.Delete {
		c.unset(o, p)
	}
}

// replace makes routes the whole of the owner's candidates.
func (c *core) replace(owner model.Owner, routes []model.Route) {
	o := c.index(owner)
	keep := make(map[netip.Prefix]struct{}, len(routes))
	for _, r := range routes {
		keep[r.Prefix.Masked()] = struct{}{}
		c.set(o, r)
	}
	var gone []netip.Prefix
	for _, k := range c.owners[o].cands {
		if _, ok := keep[k.entry.prefix]; !ok {
			gone = append(gone, k.entry.prefix)
		}
	}
	for _, p := range gone {
		c.unset(o, p)
	}
}

func (c *core) inSync(owner model.Owner) {
	c.owners[c.index(owner)].synced = true
	c.checkSynced()
}

// checkSynced opens pruning once every expected owner is in sync and the kernel was read.
func (c *core) checkSynced() {
	if c.synced || !c.ready || slices.ContainsFunc(c.expect, func(o model.Owner) bool { return !c.owners[c.index(o)].synced }) {
		return
	}
	c.synced = true
	for _, g := range c.groups {
		for _, f := range g.routes {
			if f.stale {
				f.stale = false
				c.enqueue(f.entry)
				c.changed(f.entry.prefix)
			}
		}
	}
	c.staleCount = 0
}

// waitingFor lists the expected owners that are not in sync.
func (c *core) waitingFor() []model.Owner {
	var out []model.Owner
	for _, o := range c.expect {
		if !c.owners[c.index(o)].synced {
			out = append(out, o)
		}
	}
	return out
}
