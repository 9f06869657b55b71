package route

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// fakeKernel is a kernel's links, addresses and FIB. It refuses what the kernel would,
// is silent where the kernel is, takes a part of ip(8)'s language and shows its routes as
// ip does.
type fakeKernel struct {
	mu      sync.Mutex
	poke    func()
	links   []*fakeLink
	nextIdx int32
	routes  []fibRoute // in the order of a lookup within a prefix and metric
	pending []event
	seq     uint64

	// Faults.
	limit     int                      // of routes, 0: none; ENOMEM beyond
	refuse    func(netip.Prefix) error // for writes of the table
	interrupt int                      // dumps to interrupt
	lose      bool                     // drop pending events and report an overrun
	log       []string                 // what our writes did, as ip monitor shows
	onWrite   func(o *op, err error)   // observes
}

type fakeLink struct {
	link
	peer  int32 // the other end of the veth
	addrs []netip.Prefix
}

func (k *fakeKernel) close() {}

func (k *fakeKernel) event(ev event) {
	ev.after = k.seq
	ev.route.hops = slices.Clone(ev.route.hops)
	k.pending = append(k.pending, ev)
	if k.poke != nil {
		k.poke()
	}
}

func (k *fakeKernel) drain(tell func(*event)) error {
	k.mu.Lock()
	evs := k.pending
	k.pending = nil
	lost := k.lose
	k.lose = false
	k.mu.Unlock()
	if lost {
		return errOverrun
	}
	for i := range evs {
		tell(&evs[i])
	}
	return nil
}

func (k *fakeKernel) dump(_ context.Context, tell func(*event)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.links {
		tell(&event{kind: linkSet, dump: true, link: l.link})
	}
	all := k.shown()
	for i, r := range all {
		if k.interrupt > 0 && i == len(all)/2 {
			k.interrupt--
			return errInterrupted
		}
		tell(&event{kind: routeSet, dump: true, after: k.seq, route: r})
	}
	return nil
}

func (k *fakeKernel) write(ops []op) (uint64, map[int]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.seq + 1
	failed := map[int]error{}
	for i := range ops {
		o := &ops[i]
		k.seq++
		r := fibRoute{prefix: o.prefix, hops: slices.Clone(o.hops), metric: o.metric, tos: o.tos, typ: o.typ, proto: 82}
		var err error
		if k.refuse != nil {
			err = k.refuse(o.prefix)
		}
		if err == nil {
			if o.verb == opDelete {
				err = k.del(r, o.hops == nil, false)
			} else {
				err = k.add(r, o.verb == opAdd, o.verb == opReplace, false)
			}
		}
		if k.onWrite != nil {
			k.onWrite(o, err)
		}
		if err != nil {
			failed[i] = err
		} else {
			verb := ""
			if o.verb == opDelete {
				verb = "Deleted "
			}
			k.log = append(k.log, verb+k.text(r))
		}
	}
	return first, failed, nil
}

// reaches is the kernel's check of a gateway: IPv4 asks routes onto links only, IPv6 all.
func (k *fakeKernel) reaches(h hop) error {
	l := k.byIndex(h.dev)
	if l == nil {
		return syscall.ENODEV
	}
	if !l.up {
		return syscall.ENETDOWN
	}
	if !h.gw.IsValid() || h.onlink {
		return nil
	}
	best := -1
	ok := false
	for _, r := range k.routes {
		if !r.prefix.Contains(h.gw) || h.gw.Is4() && (len(r.hops) == 0 || r.hops[0].gw.IsValid()) {
			continue
		}
		if r.prefix.Bits() > best {
			best, ok = r.prefix.Bits(), false
		}
		if r.prefix.Bits() == best {
			if r.typ == typeLocal {
				return syscall.EINVAL
			}
			ok = ok || slices.ContainsFunc(r.hops, func(o hop) bool { return !o.gw.IsValid() && o.dev == h.dev })
		}
	}
	if ok {
		return nil
	}
	return syscall.ENETUNREACH
}

// sameWay compares hops as a deletion does, which looks at no flags.
func sameWay(a, b []hop) bool {
	return slices.EqualFunc(a, b, func(x, y hop) bool { return x.gw == y.gw && x.dev == y.dev })
}

// ecmp reports whether r is of the kind that IPv6 makes one route of per metric. Its hops
// are routes of their own (siblings), each with its protocol, as in the kernel.
func ecmp(r fibRoute) bool {
	return r.prefix.Addr().Is6() && len(r.hops) > 0 && r.hops[0].gw.IsValid()
}

func sameKey(a, b fibRoute) bool {
	return a.prefix == b.prefix && a.tos == b.tos && a.metric == b.metric && a.local == b.local
}

// siblings merges what IPv6 shows as one route: the hops of r's key, r's own first.
func (k *fakeKernel) siblings(r fibRoute) fibRoute {
	r.hops = slices.Clone(r.hops)
	for _, o := range k.routes {
		if ecmp(r) && ecmp(o) && sameKey(o, r) && !slices.Contains(r.hops, o.hops[0]) {
			r.hops = append(r.hops, o.hops[0])
		}
	}
	r.hops = normalHops(r.hops)
	return r
}

// shown is the FIB with siblings merged, under the first one's protocol.
func (k *fakeKernel) shown() []fibRoute {
	var out []fibRoute
	for _, r := range k.routes {
		if !ecmp(r) || !slices.ContainsFunc(out, func(o fibRoute) bool { return ecmp(o) && sameKey(o, r) }) {
			out = append(out, k.siblings(r))
		}
	}
	return out
}

// leading is what is shown without others' dead hops: IPv6 keeps a hop of a link that is down while
// another of its route is alive, and sends nothing there (fib6_ifdown).
func (k *fakeKernel) leading() []fibRoute {
	out := k.shown()
	for i, r := range out {
		alive := func(h hop) bool { l := k.byIndex(h.dev); return l != nil && l.up }
		if !ecmp(r) || !slices.ContainsFunc(r.hops, alive) {
			continue
		}
		out[i].hops = slices.DeleteFunc(slices.Clone(r.hops), func(h hop) bool {
			return !alive(h) && slices.ContainsFunc(k.routes, func(o fibRoute) bool { return sameKey(o, r) && o.proto != 82 && slices.Contains(o.hops, h) })
		})
	}
	return out
}

// add is fib_table_insert and fib6_add_rt2node.
func (k *fakeKernel) add(r fibRoute, excl, replace, tell bool) error {
	for _, h := range r.hops {
		if h.gw.Is4() && r.prefix.Addr().Is6() {
			return syscall.EINVAL
		}
		if err := k.reaches(h); err != nil {
			return err
		}
	}
	r.hops = normalHops(r.hops)
	first := -1 // what a replace takes
	for i, o := range k.routes {
		if !sameKey(o, r) {
			continue
		}
		if excl {
			return syscall.EEXIST
		}
		if first < 0 || ecmp(o) == ecmp(r) && ecmp(k.routes[first]) != ecmp(r) {
			first = i
		}
		if !replace && sameWay(o.hops, r.hops) && (o.proto == r.proto || r.prefix.Addr().Is6()) {
			return syscall.EEXIST
		}
	}
	if first < 0 && k.limit > 0 && len(k.routes) >= k.limit {
		return syscall.ENOMEM
	}
	at := len(k.routes)
	if replace && first >= 0 {
		at = first
		siblings := ecmp(k.routes[first])
		k.routes = slices.Delete(k.routes, first, first+1)
		if siblings { // they all go
			k.routes = slices.DeleteFunc(k.routes, func(o fibRoute) bool { return ecmp(o) && sameKey(o, r) })
			at = min(at, len(k.routes))
		}
	}
	parts := []fibRoute{r}
	if ecmp(r) {
		parts = nil
		for _, h := range r.hops {
			one := r
			one.hops = []hop{h}
			parts = append(parts, one)
		}
	}
	k.routes = slices.Insert(k.routes, at, parts...)
	if tell {
		k.event(event{kind: routeSet, replace: replace, last: !replace, route: k.siblings(r)})
	}
	return nil
}

// del is fib_table_delete and ip6_route_del: protocol and metric 0 match all.
func (k *fakeKernel) del(r fibRoute, anyHops, tell bool) error {
	r.hops = normalHops(r.hops)
	fits := func(o fibRoute) bool {
		return o.prefix == r.prefix && !o.local && o.tos == r.tos && (r.metric == 0 || o.metric == r.metric) && (r.proto == 0 || o.proto == r.proto)
	}
	if ecmp(r) && !anyHops { // each hop for itself
		err := error(syscall.ESRCH)
		for _, h := range r.hops {
			i := slices.IndexFunc(k.routes, func(o fibRoute) bool { return fits(o) && sameWay(o.hops, []hop{h}) })
			if i < 0 {
				continue
			}
			err = nil
			gone := k.routes[i]
			k.routes = slices.Delete(k.routes, i, i+1)
			if tell {
				k.event(event{kind: routeGone, route: gone})
			}
		}
		return err
	}
	i := slices.IndexFunc(k.routes, func(o fibRoute) bool { return fits(o) && (anyHops || sameWay(o.hops, r.hops)) })
	if i < 0 {
		return syscall.ESRCH
	}
	gone := k.siblings(k.routes[i])
	k.routes = slices.Delete(k.routes, i, i+1)
	if ecmp(gone) {
		k.routes = slices.DeleteFunc(k.routes, func(o fibRoute) bool { return ecmp(o) && sameKey(o, gone) })
	}
	if tell {
		k.event(event{kind: routeGone, route: gone})
	}
	return nil
}

func (k *fakeKernel) byIndex(i int32) *fakeLink {
	for _, l := range k.links {
		if l.index == i {
			return l
		}
	}
	return nil
}

func (k *fakeKernel) byName(name string) *fakeLink {
	for _, l := range k.links {
		if l.name == name {
			return l
		}
	}
	return nil
}

// carrier tells of both ends of l after an end changed.
func (k *fakeKernel) carrier(l *fakeLink) {
	for _, e := range []*fakeLink{l, k.byIndex(l.peer)} {
		if e != nil {
			p := k.byIndex(e.peer)
			e.running = e.up && (p == nil || p.up)
			k.event(event{kind: linkSet, link: e.link})
		}
	}
}

// flush drops what goes with a link: IPv4 without a word, IPv6 with one each.
func (k *fakeKernel) flush(l *fakeLink, gone bool) {
	alive := func(h hop) bool { o := k.byIndex(h.dev); return o != nil && o.up && (!gone || o != l) }
	before := slices.Clone(k.routes)
	k.routes = slices.DeleteFunc(k.routes, func(r fibRoute) bool {
		if !slices.ContainsFunc(r.hops, func(h hop) bool { return h.dev == l.index }) || r.local && !gone {
			return false
		}
		all := r.hops
		if ecmp(r) && !gone { // a dead sibling stays while another is alive
			for _, o := range before {
				if ecmp(o) && sameKey(o, r) {
					all = append(slices.Clone(all), o.hops...)
				}
			}
		}
		if slices.ContainsFunc(all, alive) && !gone {
			return false
		}
		if r.prefix.Addr().Is6() {
			k.event(event{kind: routeGone, route: r})
		}
		return true
	})
}

// connected adds what an address of an up link brings.
func (k *fakeKernel) connected(l *fakeLink, a netip.Prefix) {
	metric := uint32(0)
	if a.Addr().Is6() {
		metric = 256
	}
	self := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	for _, r := range []fibRoute{
		{prefix: self, typ: typeLocal, proto: 2, local: true, hops: []hop{{dev: l.index}}},
		{prefix: a.Masked(), typ: typeUnicast, proto: 2, metric: metric, hops: []hop{{dev: l.index}}},
	} {
		if !slices.ContainsFunc(k.routes, func(o fibRoute) bool { return o.prefix == r.prefix && o.typ == r.typ && o.proto == 2 }) {
			k.routes = append(k.routes, r)
			k.event(event{kind: routeSet, route: r})
		}
	}
}

// try runs a line of ip(8)'s language.
func (k *fakeKernel) try(line string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := strings.Fields(line)
	if w[0] == "-6" {
		w = w[1:]
	}
	switch w[0] {
	case "link":
		return "", k.ipLink(w[1:])
	case "addr":
		return "", k.ipAddr(w[1], netip.MustParsePrefix(w[2]), w[4])
	case "route":
		return "", k.ipRoute(w[1], w[2:])
	}
	return "", fmt.Errorf("fake ip: %s", line)
}

func (k *fakeKernel) ipLink(w []string) error {
	switch w[0] {
	case "add": // NAME type veth peer name PEER
		a := &fakeLink{link: link{index: k.nextIdx + 2, name: w[1]}, peer: k.nextIdx + 1}
		b := &fakeLink{link: link{index: k.nextIdx + 1, name: w[len(w)-1]}, peer: k.nextIdx + 2}
		k.nextIdx += 2
		k.links = append(k.links, b, a)
		k.carrier(a)
		return nil
	case "del":
		l := k.byName(w[1])
		if l == nil {
			return syscall.ENODEV
		}
		for _, e := range []*fakeLink{l, k.byIndex(l.peer)} {
			if e.up { // dev_close comes first
				e.up = false
				k.carrier(e)
			}
			k.flush(e, true)
			k.links = slices.DeleteFunc(k.links, func(o *fakeLink) bool { return o == e })
			k.event(event{kind: linkGone, link: e.link})
		}
		return nil
	}
	l := k.byName(w[1])
	if l == nil {
		return syscall.ENODEV
	}
	switch w[2] {
	case "up":
		if !l.up {
			l.up = true
			for _, a := range l.addrs {
				k.connected(l, a)
			}
		}
		k.carrier(l)
	case "down":
		l.up = false
		if slices.ContainsFunc(l.addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
			// IPv6 addresses go with the link (keep_addr_on_down=0), local routes too.
			for _, a := range l.addrs {
				if a.Addr().Is6() {
					k.routes = slices.DeleteFunc(k.routes, func(r fibRoute) bool { return r.local && r.prefix.Addr() == a.Addr() })
					k.event(event{kind: routeGone, route: fibRoute{prefix: netip.PrefixFrom(a.Addr(), 128), typ: typeLocal, local: true, proto: 2, hops: []hop{{dev: l.index}}}})
				}
			}
			l.addrs = slices.DeleteFunc(l.addrs, func(a netip.Prefix) bool { return a.Addr().Is6() })
		}
		k.flush(l, false)
		k.carrier(l)
	case "name":
		l.name = w[3]
		k.event(event{kind: linkSet, link: l.link})
	}
	return nil
}

func (k *fakeKernel) ipAddr(verb string, a netip.Prefix, dev string) error {
	l := k.byName(dev)
	if l == nil {
		return syscall.ENODEV
	}
	if verb == "add" {
		l.addrs = append(l.addrs, a)
		k.event(event{kind: addrSet})
		if l.up {
			k.connected(l, a)
		}
		return nil
	}
	l.addrs = slices.DeleteFunc(l.addrs, func(o netip.Prefix) bool { return o == a })
	if a.Addr().Is4() {
		k.event(event{kind: addrGone})
	}
	k.routes = slices.DeleteFunc(k.routes, func(r fibRoute) bool {
		gone := r.proto == 2 && (r.prefix == a.Masked() || r.local && r.prefix.Addr() == a.Addr())
		if gone {
			k.event(event{kind: routeGone, route: r})
		}
		return gone
	})
	if a.Addr().Is4() && !slices.ContainsFunc(l.addrs, func(o netip.Prefix) bool { return o.Addr().Is4() }) {
		// fib_disable_ip: silently.
		k.routes = slices.DeleteFunc(k.routes, func(r fibRoute) bool {
			return r.prefix.Addr().Is4() && slices.ContainsFunc(r.hops, func(h hop) bool { return h.dev == l.index })
		})
	}
	return nil
}

func (k *fakeKernel) ipRoute(verb string, w []string) error {
	r := fibRoute{typ: typeUnicast, proto: 3}
	if verb == "flush" { // proto N
		n, err := strconv.Atoi(w[1])
		if err != nil {
			n = 4 // static
		}
		k.routes = slices.DeleteFunc(k.routes, func(r fibRoute) bool {
			if int(r.proto) == n {
				k.event(event{kind: routeGone, route: r})
			}
			return int(r.proto) == n
		})
		return nil
	}
	if w[0] == "blackhole" {
		r.typ, w = typeBlackhole, w[1:]
	}
	r.prefix = netip.MustParsePrefix(w[0])
	if r.prefix.Addr().Is6() && verb != "del" {
		r.metric = 1024
	}
	single := hop{}
	h := &single
	for w = w[1:]; len(w) > 0; w = w[2:] {
		if w[0] == "nexthop" {
			r.hops = append(r.hops, hop{})
			h = &r.hops[len(r.hops)-1]
			w = w[1:]
		}
		switch w[0] {
		case "via":
			h.gw = netip.MustParseAddr(w[1])
		case "dev":
			l := k.byName(w[1])
			if l == nil {
				return syscall.ENODEV
			}
			h.dev = l.index
		case "proto":
			n, err := strconv.Atoi(w[1])
			if err != nil {
				n = 4 // static
			}
			r.proto = uint8(n)
		case "metric":
			n, _ := strconv.Atoi(w[1])
			r.metric = uint32(n)
		}
	}
	if single.dev != 0 {
		r.hops = append(r.hops, single)
	}
	if verb == "del" {
		if r.proto == 3 {
			r.proto = 0
		}
		return k.del(r, len(r.hops) == 0, true)
	}
	return k.add(r, verb == "add", verb == "replace", true)
}

// text shows a route as ip(8) does, without what show leaves out.
func (k *fakeKernel) text(r fibRoute) string {
	s := ""
	if r.typ != typeUnicast {
		s = typeName(r.typ) + " "
	}
	s += r.prefix.String()
	var hops []string
	for _, h := range r.hops {
		t := ""
		if len(r.hops) > 1 {
			t = " nexthop"
		}
		if h.gw.IsValid() {
			t += " via " + h.gw.String()
		}
		name := fmt.Sprint("if", h.dev)
		if l := k.byIndex(h.dev); l != nil {
			name = l.name
		}
		hops = append(hops, t+" dev "+name)
	}
	slices.Sort(hops)
	tail := fmt.Sprintf(" proto %s", protoName(r.proto))
	if r.metric != 0 {
		tail += fmt.Sprintf(" metric %d", r.metric)
	}
	if len(hops) > 1 {
		return s + tail + strings.Join(hops, "")
	}
	return s + strings.Join(hops, "") + tail
}

// show lists the main table's routes of a protocol number, sorted.
func (k *fakeKernel) show(proto uint8) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, r := range k.shown() {
		if r.proto == proto && !r.local {
			out = append(out, k.text(r))
		}
	}
	slices.Sort(out)
	return out
}
