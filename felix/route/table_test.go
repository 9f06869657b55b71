package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"golang.org/x/sys/unix"
)

func fakeWorld(t *testing.T, links int, owners ...model.Owner) *world {
	w := &world{t: t, fake: &fakeKernel{}}
	w.links(links)
	w.start(owners...)
	for _, o := range owners {
		w.table.InSync(o)
	}
	return w
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	owners := []model.Owner{model.OwnerBGP}
	for want, cfg := range map[string]Config{
		"Config.Log":      {Owners: owners},
		"Config.Owners":   {Log: log},
		"Config.Protocol": {Log: log, Owners: owners, Protocol: 4},
		"Config.Metric":   {Log: log, Owners: owners, Metric: -1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New says %v, and not what is wrong with %s", err, want)
		}
	}
	table, err := New(Config{Log: log, Owners: owners, NetNS: "/run/netns/there-is-none"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := table.apply(ctx, true); err == nil || !strings.Contains(err.Error(), "there-is-none") {
		t.Errorf("apply says %v", err)
	}
}

// TestFullTable: what fits is programmed, the rest fails by name and follows when there is
// room.
func TestFullTable(t *testing.T) {
	t.Parallel()
	w := fakeWorld(t, 1, model.OwnerBGP)
	w.fake.mu.Lock()
	w.fake.limit = len(w.fake.routes) + 60
	w.fake.mu.Unlock()
	var routes []model.Route
	for _, p := range manyPrefixes(100) {
		routes = append(routes, via(p.String(), "10.0.0.2"))
	}
	w.table.Replace(model.OwnerBGP, routes)
	eventually(t, func() string {
		if s := w.table.Status(); len(w.show("82")) == 60 && s.FailureCount == 40 && len(s.Failures) == 40 && strings.Contains(s.Failures[0].Error, "cannot allocate memory") {
			return ""
		}
		return fmt.Sprintf("%d routes, status %+v", len(w.show("82")), w.table.Status())
	})
	if err := w.wait(manyPrefixes(100)[99].String()); !errors.Is(err, syscall.ENOMEM) {
		t.Fatalf("Wait says %v", err)
	}
	w.fake.mu.Lock()
	w.fake.limit = 0
	w.fake.mu.Unlock()
	eventually(t, func() string {
		if s := w.table.Status(); len(w.show("82")) == 100 && s.FailureCount == 0 {
			return ""
		}
		return fmt.Sprintf("%d routes", len(w.show("82")))
	})
}

// TestRefusedReplaceIsWithdrawn: a route whose successor is refused leads astray.
func TestRefusedReplaceIsWithdrawn(t *testing.T) {
	t.Parallel()
	w := fakeWorld(t, 2, model.OwnerBGP)
	w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"))
	w.settled("10.9.0.0/16")
	w.set(model.OwnerBGP, via("10.9.0.0/16", "10.77.0.1@e1")) // not on that link
	w.want()
	if err := w.wait("10.9.0.0/16"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Fatalf("Wait says %v", err)
	}
}

// TestFightIsRationed: somebody who deletes our route as often as it comes back costs
// little, and is reported.
func TestFightIsRationed(t *testing.T) {
	t.Parallel()
	w := fakeWorld(t, 1, model.OwnerBGP)
	writes := 0
	w.fake.mu.Lock()
	w.fake.onWrite = func(o *op, err error) {
		if o.verb != opDelete && o.prefix == mustPrefix("10.9.0.0/16") {
			writes++
			_ = w.fake.del(fibRoute{prefix: o.prefix}, true, true)
		}
	}
	w.fake.mu.Unlock()
	// The fake calls onWrite after the write and holds the lock.
	w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"), via("10.8.0.0/16", "10.0.0.2"))
	eventually(t, func() string {
		s := w.table.Status()
		if slices.ContainsFunc(s.Failures, func(f Failure) bool { return strings.Contains(f.Error, ErrContested.Error()) }) {
			return ""
		}
		return fmt.Sprintf("status %+v", s)
	})
	w.settled("10.8.0.0/16")
	w.fake.mu.Lock()
	n := writes
	w.fake.onWrite = nil
	w.fake.mu.Unlock()
	if n > 3*fightLimit {
		t.Errorf("%d writes in a fight", n)
	}
	w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
}

// TestWorkIsProportional: what does not touch a next hop or a prefix looks at no route
// (I8).
func TestWorkIsProportional(t *testing.T) {
	k := fakeLab()
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	c.inSync(model.OwnerBGP)
	var u model.RouteUpdate
	for i, p := range manyPrefixes(2000) {
		u.Set = append(u.Set, via(p.String(), fmt.Sprintf("10.0.%d.2", i%2)))
	}
	c.update(model.OwnerBGP, u)
	drive(t, c, k)
	looked := func(lines ...string) int {
		t.Helper()
		for _, l := range lines {
			if _, err := k.try(l); err != nil {
				t.Fatalf("%s: %v", l, err)
			}
		}
		if err := k.drain(c.tell); err != nil {
			t.Fatal(err)
		}
		c.settle()
		n := c.pending
		drive(t, c, k)
		return n
	}
	for _, step := range []struct {
		what     string
		lines    []string
		min, max int
	}{
		{"a pod's link", []string{"link add cali9 type veth peer name p9", "link set p9 up", "link set cali9 up", "link del cali9"}, 0, 0},
		{"another link", []string{"link set f2 down", "link set f2 up"}, 0, 0},
		{"a foreign route elsewhere", []string{"route add 192.168.0.0/16 via 10.0.2.2 dev e2 proto static"}, 0, 1},
		{"a less specific one than the match", []string{"route add 10.0.0.0/8 via 10.0.2.2 dev e2 proto static"}, 0, 1},
		{"one of two next hops", []string{"link set f1 down"}, 1000, 1000},
		{"and back", []string{"link set f1 up"}, 1000, 1000},
	} {
		if n := looked(step.lines...); n < step.min || n > step.max {
			t.Errorf("%s: %d prefixes were looked at, not %d to %d", step.what, n, step.min, step.max)
		}
	}
	c.update(model.OwnerBGP, model.RouteUpdate{Set: []model.Route{via("11.0.0.0/24", "10.0.1.2")}})
	c.settle()
	if c.pending != 1 {
		t.Errorf("one route: %d prefixes were looked at", c.pending)
	}
	drive(t, c, k)
	c.replace(model.OwnerBGP, nil)
	drive(t, c, k)
	if n := c.entries.Size(); len(k.show(82)) != 0 || len(c.sets)+len(c.hops)+c.targets.Size() != 0 || n > 20 {
		t.Errorf("left over: %d routes, %d sets, %d next hops, %d targets, %d entries", len(k.show(82)), len(c.sets), len(c.hops), c.targets.Size(), n)
	}
	if err := consistent(c); err != nil {
		t.Error(err)
	}
}

// TestDeepRecursionIsBounded: peers can announce any tangle of next hops; resolving looks
// at each address once.
func TestDeepRecursionIsBounded(t *testing.T) {
	k := fakeLab()
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	var u model.RouteUpdate
	for i := range 40 {
		var hops []string
		for j := range 40 {
			if i != j {
				hops = append(hops, fmt.Sprintf("20.%d.0.1", j))
			}
		}
		u.Set = append(u.Set, via(fmt.Sprintf("20.%d.0.0/16", i), hops...))
	}
	u.Set = append(u.Set, via("20.39.0.0/16", "10.0.0.2"))
	c.update(model.OwnerBGP, u)
	start := time.Now()
	drive(t, c, k)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if n := len(k.show(82)); n != 40 {
		t.Errorf("%d routes and not 40", n)
	}
}

// TestWaitGoesAhead: a prefix that somebody waits for does not queue behind a full table.
func TestWaitGoesAhead(t *testing.T) {
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	k := fakeLab()
	drive(t, c, k)
	var u model.RouteUpdate
	for _, p := range manyPrefixes(5000) {
		u.Set = append(u.Set, via(p.String(), "10.0.0.2"))
	}
	c.update(model.OwnerBGP, u)
	c.update(model.OwnerWorkload, model.RouteUpdate{Set: []model.Route{via("10.1.0.5/32", "e1")}})
	w := &waiter{left: []netip.Prefix{mustPrefix("10.1.0.5/32")}, done: make(chan error, 1)}
	c.await(w)
	c.settle()
	ops := c.next(10)
	if ops[0].prefix != w.left[0] {
		t.Fatalf("first is %s", ops[0].prefix)
	}
	first, failed, _ := k.write(ops)
	c.done(ops, first, failed)
	c.answer()
	select {
	case err := <-w.done:
		if err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatal("Wait is not answered after the first writes")
	}
}

// TestOvertakenEventsAreIgnored: a notification that is older than our last write of a
// route says nothing about the route now.
func TestOvertakenEventsAreIgnored(t *testing.T) {
	k := fakeLab()
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	p := mustPrefix("10.9.0.0/16")
	c.update(model.OwnerBGP, model.RouteUpdate{Set: []model.Route{via(p.String(), "10.0.0.2")}})
	drive(t, c, k)
	old := k.seq - 1
	e, _ := c.entries.Get(p)
	ours := fibRoute{prefix: p, hops: e.fib.group.hops, metric: 1024, typ: typeUnicast, proto: 82}
	c.tell(&event{kind: routeGone, after: old, route: ours})
	if c.pending != 0 {
		t.Fatal("an old deletion was believed")
	}
	c.tell(&event{kind: routeGone, after: k.seq, route: ours})
	if c.pending != 1 {
		t.Fatal("a new deletion was not believed")
	}
}

// TestLinkMadeAnewInADump: a link that goes and comes back under its name while the kernel is read
// is told of twice, first as it is and then as it was.
func TestLinkMadeAnewInADump(t *testing.T) {
	k := fakeLab()
	c := newCore(82, 1024, []model.Owner{model.OwnerWorkload})
	ip := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			if _, err := k.try(l); err != nil {
				t.Fatalf("ip %s: %v", l, err)
			}
		}
	}
	pod := []string{"link add cali9 type veth peer name p9", "link set cali9 up"}
	ip(pod...)
	drive(t, c, k)
	ip("link del cali9")
	ip(pod...)
	readAnew(t, c, k)
	drive(t, c, k)
	c.update(model.OwnerWorkload, model.RouteUpdate{Set: []model.Route{via("10.9.1.1/32", "cali9")}})
	drive(t, c, k)
	if e, ok := c.entries.Get(mustPrefix("10.9.1.1/32")); !ok || c.state(e) != nil {
		t.Fatalf("no route onto the link: %v", c.state(e))
	}
}

// TestLostEventsOnTheKernel fills the event socket's buffer while nobody reads.
func TestLostEventsOnTheKernel(t *testing.T) {
	t.Parallel()
	w := &world{t: t, ns: newNetNS(t)}
	w.links(1)
	w.stop, w.table = func() {}, nil
	log := &monitor{}
	table, err := New(Config{Log: slog.New(slog.NewTextHandler(log, nil)), Owners: []model.Owner{model.OwnerBGP}, NetNS: w.ns.path()})
	if err != nil {
		t.Fatal(err)
	}
	w.table = table
	open := table.open
	table.open = func(poke func()) (kernel, error) {
		k, err := open(poke)
		if err == nil {
			err = unix.SetsockoptInt(k.(*sockets).events, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096)
		}
		return k, err
	}
	runTable(t, table)
	w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"))
	w.settled("10.9.0.0/16")
	table.mu.Lock() // holds the table up
	var lines strings.Builder
	for i := range 200 {
		fmt.Fprintf(&lines, "route add 10.200.%d.0/24 via 10.0.0.2 dev e0 proto static\n", i)
	}
	lines.WriteString("route del 10.9.0.0/16 proto 82\n")
	w.ns.batch(lines.String())
	table.mu.Unlock()
	w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	if !strings.Contains(log.text(), "events were lost") {
		t.Fatalf("no event was lost:\n%s", log.text())
	}
	eventually(t, func() string {
		table.mu.Lock()
		defer table.mu.Unlock()
		if _, ok := table.core.entries.Get(mustPrefix("10.200.199.0/24")); !ok {
			return "a foreign route is not known"
		}
		return ""
	})
}

// TestNoKernel: while the kernel cannot be reached, memory grows with what is wanted and not
// with how often that changed.
func TestNoKernel(t *testing.T) {
	table, err := New(Config{Log: slog.New(slog.DiscardHandler), Owners: []model.Owner{model.OwnerBGP}})
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("no netlink")
	table.open = func(func()) (kernel, error) { return nil, refused }
	for range 100 {
		table.Update(model.OwnerBGP, model.RouteUpdate{Set: []model.Route{via("10.9.0.0/16", "10.0.0.2")}})
		if err := table.apply(t.Context(), false); !errors.Is(err, refused) {
			t.Fatalf("apply: %v", err)
		}
	}
	if n, c := len(table.inbox), table.core.owners[table.core.index(model.OwnerBGP)].cands; n != 0 || len(c) != 1 {
		t.Errorf("%d requests wait, %d candidates", n, len(c))
	}
	if table.Ready() {
		t.Error("ready without a kernel")
	}
}

// TestParseSurvivesAnything: the kernel is trusted, and yet nothing may crash the agent.
func TestParseSurvivesAnything(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	var enc encoder
	o := op{verb: opAdd, prefix: mustPrefix("fd00::/64"), typ: typeUnicast, metric: 7, hops: []hop{{gw: netip.MustParseAddr("fe80::1"), dev: 3, onlink: true}, {gw: netip.MustParseAddr("fe80::2"), dev: 4}}}
	if err := enc.route(&o, 82, 1); err != nil {
		t.Fatal(err)
	}
	var ev event
	if !ev.parse(unix.RTM_NEWROUTE, 0, enc.buf[nlHeader:]) || ev.route.prefix != o.prefix || !slices.Equal(ev.route.hops, o.hops) || ev.route.metric != 7 || ev.route.odd {
		t.Fatalf("read back: %+v", ev.route)
	}
	for range 20000 {
		b := slices.Clone(enc.buf[nlHeader:])
		for range 1 + r.IntN(6) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		b = b[:r.IntN(len(b)+1)]
		for _, typ := range []uint16{unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWLINK, unix.RTM_DELADDR} {
			ev.parse(typ, 0, b)
		}
		_ = parseError(unix.NLM_F_ACK_TLVS, b)
	}
}

// TestIPv4BehindIPv6 programs an IPv4 prefix behind an IPv6 next hop (RFC 8950).
func TestIPv4BehindIPv6(t *testing.T) {
	t.Parallel()
	w := &world{t: t, ns: newNetNS(t)}
	w.links(1)
	w.start()
	w.table.InSync(model.OwnerBGP)
	w.set(model.OwnerBGP, via("10.9.0.0/16", "fd00:0::2"), via("10.8.0.0/16", "fe80::1@e0"))
	w.settled("10.9.0.0/16", "10.8.0.0/16")
	w.want("10.9.0.0/16 via inet6 fd00::2 dev e0 proto 82 metric 1024", "10.8.0.0/16 via inet6 fe80::1 dev e0 proto 82 metric 1024")
	w.stop()
	m := startMonitor(t, w.ns)
	w.start()
	w.set(model.OwnerBGP, via("10.9.0.0/16", "fd00:0::2"), via("10.8.0.0/16", "fe80::1@e0"))
	w.table.InSync(model.OwnerBGP)
	w.settled("10.9.0.0/16", "10.8.0.0/16")
	if s := m.text(); strings.Contains(s, "inet6") {
		t.Fatalf("the restart was heard:\n%s", s)
	}
}
