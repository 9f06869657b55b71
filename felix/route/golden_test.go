package route

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// golden says what the kernel shall have, the slow way: from the candidates, the foreign
// routes and the links, with nothing remembered.
type golden struct {
	cands       map[netip.Prefix]map[model.Owner]model.Route
	kern        *fakeKernel
	own, others []netip.Addr                                    // guarded
	via         func(netip.Prefix, model.NextHop) model.NextHop // of OwnerBGP; nil: none
	fib         []fibRoute                                      // kern's, at this rest
}

func (g *golden) sorted(p netip.Prefix) []model.Route {
	var owners []model.Owner
	for o := range g.cands[p] {
		owners = append(owners, o)
	}
	slices.Sort(owners)
	var out []model.Route
	for _, o := range owners {
		if o == model.OwnerBGP && g.astray(p) {
			continue
		}
		r := g.cands[p][o]
		if o == model.OwnerBGP && g.via != nil {
			r.NextHops = slices.Clone(r.NextHops)
			for i, h := range r.NextHops {
				r.NextHops[i] = g.via(p, h)
			}
			slices.SortFunc(r.NextHops, model.NextHop.Compare) // loops are cut where they are met
			r.NextHops = slices.Compact(r.NextHops)
		}
		out = append(out, r)
	}
	return out
}

// astray reports whether a learned route at p would lead a guarded address away.
func (g *golden) astray(p netip.Prefix) bool {
	if p.IsSingleIP() && slices.Contains(g.own, p.Addr()) {
		return true
	}
	for _, a := range slices.Concat(g.own, g.others) {
		var best *fibRoute // the foreign route that a takes
		for _, r := range g.fib {
			if r.proto == 82 && !r.local || !r.prefix.Contains(a) {
				continue
			}
			if best == nil || r.prefix.Bits() > best.prefix.Bits() || r.prefix.Bits() == best.prefix.Bits() &&
				(r.local && !best.local || r.local == best.local && r.metric < best.metric) {
				best = &r
			}
		}
		if best == nil || best.local || best.typ != typeUnicast || !p.Contains(a) || best.prefix.Bits() >= p.Bits() {
			continue
		}
		if !slices.ContainsFunc(best.hops, func(h hop) bool {
			l := g.kern.byIndex(h.dev)
			return h.gw.IsValid() || l == nil || !l.running
		}) {
			return true
		}
	}
	return false
}

func metricOf(r model.Route) uint32 { return uint32(cmp.Or(r.Metric, 1024)) }

func (g *golden) nextHop(h model.NextHop, depth int, seen map[netip.Addr][]hop) []hop {
	if h.Device != "" {
		l := g.kern.byName(h.Device)
		if l == nil || !l.up || h.Addr.IsValid() && !l.running {
			return nil
		}
		return []hop{{gw: h.Addr, dev: l.index, onlink: h.OnLink}}
	}
	if depth >= maxDepth {
		return nil
	}
	if hops, ok := seen[h.Addr]; ok {
		return hops
	}
	seen[h.Addr] = nil
	seen[h.Addr] = g.address(h, depth, seen)
	return seen[h.Addr]
}

func (g *golden) address(h model.NextHop, depth int, seen map[netip.Addr][]hop) []hop {
	covers := map[netip.Prefix]bool{}
	for _, r := range g.fib {
		covers[r.prefix] = r.prefix.Contains(h.Addr)
	}
	for p := range g.cands {
		covers[p] = p.Contains(h.Addr)
	}
	maps.DeleteFunc(covers, func(_ netip.Prefix, yes bool) bool { return !yes })
	for _, p := range slices.SortedFunc(maps.Keys(covers), func(a, b netip.Prefix) int { return b.Bits() - a.Bits() }) {
		var foreign *fibRoute
		for _, r := range g.fib {
			if r.prefix == p && r.proto != 82 && (foreign == nil || r.local && !foreign.local || r.local == foreign.local && r.metric < foreign.metric) {
				foreign = &r
			}
		}
		for _, r := range g.sorted(p) {
			var hops []hop
			for _, n := range r.NextHops {
				for _, f := range g.nextHop(n, depth+1, seen) {
					if !f.gw.IsValid() {
						f.gw, f.onlink = h.Addr, h.Addr.Is6()
					}
					hops = append(hops, f)
				}
			}
			if len(hops) == 0 && r.Type == model.RouteUnicast {
				continue
			}
			if foreign != nil && foreign.metric <= metricOf(r) {
				break
			}
			return hops // none through a blackhole
		}
		if foreign == nil {
			continue
		}
		var hops []hop
		for _, f := range foreign.hops {
			if l := g.kern.byIndex(f.dev); foreign.typ == typeUnicast && l != nil && l.running {
				if !f.gw.IsValid() {
					f.gw = h.Addr
				}
				f.onlink = f.onlink || f.gw.Is6()
				hops = append(hops, f)
			}
		}
		return hops
	}
	return nil
}

// want is the route that shall stand at p; none when typ is 0.
func (g *golden) want(p netip.Prefix) (w fibRoute) {
	for _, r := range g.sorted(p) {
		w = fibRoute{prefix: p, metric: metricOf(r), typ: typeBlackhole, proto: 82}
		if r.Type == model.RouteUnicast {
			w.typ = typeUnicast
			for _, n := range r.NextHops {
				w.hops = append(w.hops, g.nextHop(n, 0, map[netip.Addr][]hop{})...)
			}
			if w.hops = normalHops(w.hops); len(w.hops) == 0 {
				continue
			}
		}
		for _, f := range g.fib {
			if f.prefix == p && f.metric == w.metric && f.proto != 82 && !f.local {
				return fibRoute{} // a conflict
			}
		}
		return w
	}
	return fibRoute{}
}

// compare says what is not as it shall be. excused: the kernel does not take this one.
func (g *golden) compare(prefixes []netip.Prefix, excused func(want fibRoute) bool) (wrong []string) {
	for _, p := range prefixes {
		want := g.want(p)
		var got []fibRoute
		for _, r := range g.fib {
			if r.prefix == p && r.proto == 82 && !r.local {
				got = append(got, r)
			}
		}
		switch {
		case want.typ == 0 && len(got) == 0:
		case want.typ != 0 && len(got) == 1 && got[0].typ == want.typ && got[0].metric == want.metric && slices.Equal(got[0].hops, want.hops):
		case want.typ != 0 && excused(want):
		default:
			wrong = append(wrong, fmt.Sprintf("%s is %v, wanted %v", p, texts(g.kern, got), texts(g.kern, []fibRoute{want})))
		}
	}
	return wrong
}

// universe makes random routes and harm within a few links and prefixes, so that things
// meet.
type universe struct {
	r        *rand.Rand
	prefixes []netip.Prefix
	gateways []netip.Addr
	devices  []string
}

func newUniverse(seed uint64) *universe {
	u := &universe{r: rand.New(rand.NewPCG(seed, 1)), devices: []string{"e0", "e1", "e2", "cali9"}}
	for _, p := range []string{
		"10.9.0.0/16", "10.9.1.0/24", "10.8.0.0/16", "10.8.1.1/32", "172.16.0.0/12", "172.16.5.0/24", "0.0.0.0/1", // no default: what it does hangs on what was before
		"10.0.1.0/24", "10.0.0.2/32",
		"fd09::/64", "fd08::/48", "fd08:0:0:1::/64", "::/1", "fd00:1::/64",
	} {
		u.prefixes = append(u.prefixes, mustPrefix(p))
	}
	for _, a := range []string{
		"10.0.0.2", "10.0.0.3", "10.0.1.2", "10.0.2.2", "10.9.1.7", "172.16.5.1", "172.16.9.9", "10.8.1.1", "10.0.0.1", "203.0.113.9",
		"fd00:0::2", "fd00:1::2", "fd00:2::2", "fd08:0:0:1::5", "fd08::9", "fd00:0::1",
	} {
		u.gateways = append(u.gateways, netip.MustParseAddr(a))
	}
	return u
}

func (u *universe) prefix() netip.Prefix { return u.prefixes[u.r.IntN(len(u.prefixes))] }

func (u *universe) gateway(like netip.Addr) netip.Addr {
	for {
		if a := u.gateways[u.r.IntN(len(u.gateways))]; a.Is4() == like.Is4() {
			return a
		}
	}
}

func (u *universe) route(p netip.Prefix) model.Route {
	r := model.Route{Prefix: p}
	if u.r.IntN(10) == 0 {
		r.Type = model.RouteBlackhole
		return r
	}
	if u.r.IntN(8) == 0 {
		r.Metric = 77
	}
	if u.r.IntN(5) == 0 {
		r.NextHops = []model.NextHop{{Device: u.devices[u.r.IntN(len(u.devices))]}}
		return r
	}
	for range 1 + u.r.IntN(3) {
		r.NextHops = append(r.NextHops, model.NextHop{Addr: u.gateway(p.Addr())})
	}
	slices.SortFunc(r.NextHops, model.NextHop.Compare)
	r.NextHops = slices.Compact(r.NextHops)
	return r
}

var walkOwners = []model.Owner{model.OwnerWorkload, model.OwnerBlock, model.OwnerBGP}

// addresses are some gateways.
func (u *universe) addresses() []netip.Addr {
	var out []netip.Addr
	for range u.r.IntN(4) {
		out = append(out, u.gateways[u.r.IntN(len(u.gateways))])
	}
	return out
}

// diversion sends some next hops of some prefixes elsewhere: to a link, to another gateway,
// and two of them to the same.
func (u *universe) diversion() func(netip.Prefix, model.NextHop) model.NextHop {
	salt := u.r.IntN(7)
	if salt == 0 {
		return nil
	}
	return func(p netip.Prefix, h model.NextHop) model.NextHop {
		if h.Device != "" || (p.Bits()+salt)%3 == 0 {
			return h
		}
		b := h.Addr.As16()
		switch n := int(b[15]) + salt; n % 4 {
		case 0:
			return model.NextHop{Addr: h.Addr, Device: fmt.Sprint("e", salt%3), OnLink: true}
		case 1:
			return u.gatewayNumber(p.Addr(), salt)
		}
		return h
	}
}

func (u *universe) gatewayNumber(like netip.Addr, n int) model.NextHop {
	for i := range u.gateways {
		if a := u.gateways[(i+n)%len(u.gateways)]; a.Is4() == like.Is4() {
			return model.NextHop{Addr: a}
		}
	}
	return model.NextHop{}
}

// harm is a line of ip(8) that somebody else might type.
func (u *universe) harm() string {
	p := u.prefix()
	six := ""
	if p.Addr().Is6() {
		six = "-6 "
	}
	dev := fmt.Sprint("e", u.r.IntN(3))
	n := dev[1:]
	gw := "10.0." + n + ".2"
	if six != "" {
		gw = "fd00:" + n + "::2"
	}
	switch u.r.IntN(12) {
	case 0:
		return fmt.Sprintf("link set %s %s", dev, []string{"down", "up"}[u.r.IntN(2)])
	case 1, 2:
		return fmt.Sprintf("link set f%s %s", n, []string{"down", "up"}[u.r.IntN(2)])
	case 3:
		return fmt.Sprintf("%sroute add %s via %s dev %s proto static metric %d", six, p, gw, dev, []int{20, 1024, 2000}[u.r.IntN(3)])
	case 4:
		return fmt.Sprintf("%sroute replace %s via %s dev %s proto static metric %d", six, p, gw, dev, []int{20, 1024}[u.r.IntN(2)])
	case 5:
		return fmt.Sprintf("%sroute append %s via %s dev %s proto static metric 1024", six, p, gw, dev)
	case 6, 7:
		return fmt.Sprintf("%sroute del %s proto static", six, p)
	case 8:
		return fmt.Sprintf("%sroute del %s proto 82", six, p)
	case 9:
		return fmt.Sprintf("%sroute replace %s via %s dev %s proto 82 metric 1024", six, p, gw, dev)
	case 10:
		return "route flush proto 82"
	}
	return fmt.Sprintf("%sroute flush proto static", six)
}

// lab is the fake with three links and a fourth that comes and goes.
func fakeLab() *fakeKernel {
	k := &fakeKernel{}
	for i := range 3 {
		for _, l := range []string{
			fmt.Sprintf("link add e%d type veth peer name f%d", i, i), fmt.Sprintf("addr add 10.0.%d.1/24 dev e%d", i, i),
			fmt.Sprintf("addr add fd00:%d::1/64 dev e%d", i, i), fmt.Sprintf("link set e%d up", i), fmt.Sprintf("link set f%d up", i),
		} {
			if _, err := k.try(l); err != nil {
				panic(err)
			}
		}
	}
	return k
}

// drive makes passes as Table.apply does, until nothing is left; without threads or time.
func drive(t *testing.T, c *core, k *fakeKernel) {
	t.Helper()
	for range 1000 {
		c.now = c.now.Add(time.Millisecond)
		overrun := k.drain(c.tell)
		if !c.ready || overrun != nil || !c.resyncAt.IsZero() && !c.now.Before(c.resyncAt) {
			readAnew(t, c, k)
		}
		c.retry()
		c.settle()
		ops := c.next(7)
		if len(ops) == 0 {
			if at := c.wakeAt(); len(k.pending) > 0 {
				continue
			} else if !at.IsZero() && at.Sub(c.now) < 5*time.Second {
				c.now = at
				if len(c.failed) == 0 || at == c.resyncAt {
					continue
				}
			}
			if c.pending > 0 {
				continue
			}
			return
		}
		first, failed, _ := k.write(ops)
		c.done(ops, first, failed)
	}
	t.Fatal("never comes to rest")
}

func readAnew(t *testing.T, c *core, k *fakeKernel) {
	c.beginDump()
	for k.dump(t.Context(), c.tell) != nil {
		c.beginDump()
	}
	c.endDump()
}

var moreSeeds = flag.Int("seeds", 6, "how many random walks to take")

// TestWalkAgainstGolden walks at random and compares with the golden model at each rest.
// Half of the seeds are always the same, the others never.
func TestWalkAgainstGolden(t *testing.T) {
	t.Parallel()
	for i := range *moreSeeds {
		seed := uint64(i)
		if i%2 == 1 {
			seed = rand.Uint64()
		}
		t.Logf("seed %d", seed)
		walk(t, seed, 120)
	}
}

func walk(t *testing.T, seed uint64, steps int) {
	u := newUniverse(seed)
	k := fakeLab()
	c := newCore(82, 1024, walkOwners)
	c.now = time.Unix(1e9, 0)
	for _, o := range walkOwners {
		c.inSync(o)
	}
	g := &golden{cands: map[netip.Prefix]map[model.Owner]model.Route{}, kern: k}
	var story []string
	for step := range steps {
		foreignBefore := map[string]bool{}
		for range 1 + u.r.IntN(4) {
			switch p, o := u.prefix(), walkOwners[u.r.IntN(len(walkOwners))]; u.r.IntN(5) {
			case 4:
				switch u.r.IntN(4) {
				case 0:
				case 1:
					g.via = u.diversion()
					story = append(story, fmt.Sprintf("divert (%t)", g.via != nil))
					c.divert(model.OwnerBGP, g.via)
					continue
				default:
					continue
				}
				g.own, g.others = u.addresses(), u.addresses()
				story = append(story, fmt.Sprintf("guard %v %v", g.own, g.others))
				c.setGuard(g.own, g.others)
			case 0, 1:
				r := u.route(p)
				story = append(story, fmt.Sprintf("%s sets %v", o, r))
				c.update(o, model.RouteUpdate{Set: []model.Route{r}})
				if g.cands[p] == nil {
					g.cands[p] = map[model.Owner]model.Route{}
				}
				g.cands[p][o] = r
			case 2:
				story = append(story, fmt.Sprintf("%s deletes %s", o, p))
				c.update(o, model.RouteUpdate{Delete: []netip.Prefix{p}})
				delete(g.cands[p], o)
			default:
				line := u.harm()
				if u.r.IntN(15) == 0 {
					line = []string{"link add cali9 type veth peer name p9", "link del cali9", "link set cali9 up", "addr add 10.0.1.1/24 dev e1", "addr del 10.0.1.1/24 dev e1"}[u.r.IntN(5)]
					if strings.HasPrefix(line, "link add") && k.byName("cali9") != nil || strings.HasPrefix(line, "addr add") && slices.Contains(k.byName("e1").addrs, mustPrefix("10.0.1.1/24")) {
						continue
					}
				}
				_, err := k.try(line)
				story = append(story, fmt.Sprintf("ip %s: %v", line, err))
			}
		}
		k.interrupt = u.r.IntN(2)
		k.lose = u.r.IntN(10) == 0
		if c.ready && u.r.IntN(4) == 0 {
			// What has happened is told once more, after; what misled there ends with the next.
			readAnew(t, c, k)
			story = append(story, "dump")
			drive(t, c, k)
			readAnew(t, c, k)
		}
		for _, l := range k.show(4) {
			foreignBefore[l] = true
		}
		drive(t, c, k)
		c.now = c.now.Add(time.Minute) // whoever failed gets another chance
		drive(t, c, k)
		g.fib = k.leading()
		wrong := g.compare(u.prefixes, func(want fibRoute) bool {
			e, ok := c.entries.Get(want.prefix)
			return ok && c.failed[e] != nil && refused(k, want)
		})
		after := k.show(4)
		for _, l := range after {
			delete(foreignBefore, l)
		}
		for l := range foreignBefore {
			wrong = append(wrong, "foreign route touched: "+l)
		}
		if len(wrong) > 0 {
			t.Fatalf("seed %d, step %d:\n%s\nafter\n%s", seed, step, strings.Join(wrong, "\n"), strings.Join(story[max(0, len(story)-12):], "\n"))
		}
		if err := consistent(c); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
	}
}

func texts(k *fakeKernel, rs []fibRoute) (out []string) {
	for _, r := range rs {
		out = append(out, k.text(r))
	}
	return out
}

// refused reports whether the kernel would not take r.
func refused(k *fakeKernel, r fibRoute) bool {
	return slices.ContainsFunc(r.hops, func(h hop) bool { return k.reaches(h) != nil })
}

// consistent checks the core's own books.
func consistent(c *core) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	refs := map[*group]int{c.empty: 1}
	installed := [ownerCount]int{}
	for _, e := range c.entries.All() {
		if e.cands == nil && e.fib == nil {
			bad("entry %s is empty", e.prefix)
		}
		installed[e.owner]++
		for k, last := e.cands, model.Owner(0); k != nil; k = k.next {
			if o := c.owners[k.owner]; o.cands[k.inOwner] != k || o.owner <= last {
				bad("candidate of %s at %s is misplaced", o.owner, e.prefix)
			} else {
				last = o.owner
			}
			if k.set != nil && (k.set.users[k.inSet] != k || c.sets[k.set.key] != k.set) {
				bad("set of %s is misplaced", e.prefix)
			}
		}
		for f := e.fib; f != nil; f = f.next {
			refs[f.group]++
			if f.group.routes[f.inGrp] != f || c.groups[f.group.key] != f.group {
				bad("group of %s is misplaced", e.prefix)
			}
		}
	}
	users := map[*asked]int{}
	for i := range c.owners {
		for _, k := range c.owners[i].cands {
			if k.asked != nil {
				users[k.asked]++
			}
		}
	}
	for key, a := range c.asked {
		if a.users != users[a] || a.key != key || a.users == 0 {
			bad("%v is kept by %d candidates and counts %d", a.hops, users[a], a.users)
		}
	}
	if len(users) != len(c.asked) {
		bad("%d kept wishes and not %d", len(c.asked), len(users))
	}
	for _, s := range c.sets {
		if s.group != nil {
			refs[s.group]++
		}
	}
	for _, g := range c.groups {
		if g.refs != refs[g] {
			bad("group %v has %d references and counts %d", g.hops, refs[g], g.refs)
		}
	}
	for i := 1; i < ownerCount; i++ {
		if c.owners[i].installed != installed[i] {
			bad("%s has %d installed and counts %d", c.owners[i].owner, installed[i], c.owners[i].installed)
		}
	}
	for _, n := range c.hops {
		for s := range n.sets {
			if c.sets[s.key] != s {
				bad("next hop %v serves a set that is gone", n.asked)
			}
		}
	}
	for _, t := range c.targets.All() {
		for n := range t.hops {
			if c.hops[n.asked] != n {
				bad("target %s serves a next hop that is gone", t.prefix)
			}
		}
	}
	return errors.Join(errs...)
}
