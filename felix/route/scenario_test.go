package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// world is where a scenario plays: the fake kernel or a real namespace.
type world struct {
	t     *testing.T
	fake  *fakeKernel
	ns    *netns
	table *Table
	stop  func()
}

func (w *world) ip(lines ...string) {
	w.t.Helper()
	for _, l := range lines {
		var out string
		var err error
		if w.fake != nil {
			out, err = w.fake.try(l)
		} else {
			out, err = w.ns.try(l)
		}
		if err != nil {
			w.t.Fatalf("ip %s: %v: %s", l, err, out)
		}
	}
}

// links makes veth pairs eN-fN, both up, with 10.0.N.1/24 and fd00:N::1/64 on eN.
func (w *world) links(n int) {
	w.t.Helper()
	for i := range n {
		w.ip(fmt.Sprintf("link add e%d type veth peer name f%d", i, i),
			fmt.Sprintf("addr add 10.0.%d.1/24 dev e%d", i, i),
			fmt.Sprintf("link set e%d up", i), fmt.Sprintf("link set f%d up", i))
		w.addr6(i, fmt.Sprint("e", i))
	}
}

func (w *world) addr6(i int, dev string) {
	w.t.Helper()
	a := fmt.Sprintf("addr add fd00:%d::1/64 dev %s", i, dev)
	if w.ns != nil {
		a += " nodad"
	}
	w.ip(a)
}

// show lists the routes of proto, each in one line, sorted.
func (w *world) show(proto string) []string {
	w.t.Helper()
	if w.fake != nil {
		n := uint8(82)
		if proto == "static" {
			n = 4
		}
		return w.fake.show(n)
	}
	return append(plainRoutes(w.ns.ip("-4 route show proto "+proto), proto), plainRoutes(w.ns.ip("-6 route show proto "+proto), proto)...)
}

// plainRoutes makes of ip's output what the fake shows.
func plainRoutes(out, proto string) []string {
	var lines []string
	for l := range strings.Lines(out) {
		f := slices.DeleteFunc(strings.Fields(l), func(s string) bool {
			return slices.Contains([]string{"linkdown", "dead", "scope", "link", "pref", "medium", "weight", "1", "onlink"}, s)
		})
		if f[0] == "nexthop" {
			lines[len(lines)-1] += " " + strings.Join(f, " ")
			continue
		}
		// ip leaves the protocol out when it was asked for.
		p := 0
		if f[0] == "blackhole" {
			p = 1
		}
		if !strings.Contains(f[p], "/") {
			if f[p] == "default" {
				f[p] = "0.0.0.0/0"
			} else {
				a := netip.MustParseAddr(f[p])
				f[p] = netip.PrefixFrom(a, a.BitLen()).String()
			}
		}
		if p == 1 { // IPv6 shows "dev lo"
			f = slices.DeleteFunc(f, func(s string) bool { return s == "dev" || s == "lo" })
		}
		if i := slices.Index(f, "metric"); i >= 0 {
			f = slices.Insert(f, i, "proto", proto)
		} else {
			f = append(f, "proto", proto)
		}
		lines = append(lines, strings.Join(f, " "))
	}
	for i, l := range lines {
		head, rest, multi := strings.Cut(l, " nexthop ")
		if multi {
			hops := strings.Split(rest, " nexthop ")
			slices.Sort(hops)
			lines[i] = head + " nexthop " + strings.Join(hops, " nexthop ")
		}
	}
	slices.Sort(lines)
	return lines
}

// want polls until the routes of our protocol are exactly these.
func (w *world) want(routes ...string) {
	w.t.Helper()
	slices.Sort(routes)
	eventually(w.t, func() string {
		got := slices.Clone(w.show("82"))
		slices.Sort(got)
		if slices.Equal(got, routes) {
			return ""
		}
		return fmt.Sprintf("routes are\n  %s\nand not\n  %s\nstatus %+v", strings.Join(got, "\n  "), strings.Join(routes, "\n  "), w.table.Status())
	})
}

// wait calls Wait with a deadline.
func (w *world) wait(prefixes ...string) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var ps []netip.Prefix
	for _, p := range prefixes {
		ps = append(ps, mustPrefix(p))
	}
	err := w.table.Wait(ctx, ps...)
	if errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("Wait %v: nothing settled; status %+v", prefixes, w.table.Status())
	}
	return err
}

func (w *world) settled(prefixes ...string) {
	w.t.Helper()
	if err := w.wait(prefixes...); err != nil {
		w.t.Fatalf("Wait %v: %v", prefixes, err)
	}
}

// start starts a (new) Table; owners are in sync only when the test says so.
func (w *world) start(owners ...model.Owner) {
	w.t.Helper()
	path := ""
	if w.ns != nil {
		path = w.ns.path()
	}
	if len(owners) == 0 {
		owners = []model.Owner{model.OwnerBGP}
	}
	table, err := New(Config{Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Owners: owners, NetNS: path})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.fake != nil {
		table.open = func(poke func()) (kernel, error) {
			w.fake.mu.Lock()
			defer w.fake.mu.Unlock()
			w.fake.poke = poke
			w.fake.pending = nil
			return w.fake, nil
		}
	}
	w.table = table
	w.stop = runTable(w.t, table)
}

// via makes a unicast route; hops are "gateway", "dev" or "gateway@dev".
func via(prefix string, hops ...string) model.Route {
	r := model.Route{Prefix: mustPrefix(prefix)}
	for _, h := range hops {
		a, dev, ok := strings.Cut(h, "@")
		n := model.NextHop{Device: dev}
		if addr, err := netip.ParseAddr(a); err == nil {
			n.Addr = addr
		} else if !ok {
			n.Device = a
		}
		r.NextHops = append(r.NextHops, n)
	}
	slices.SortFunc(r.NextHops, model.NextHop.Compare)
	return r
}

func blackhole(prefix string) model.Route {
	return model.Route{Prefix: mustPrefix(prefix), Type: model.RouteBlackhole}
}

func (w *world) set(o model.Owner, routes ...model.Route) {
	w.table.Update(o, model.RouteUpdate{Set: routes})
}

func (w *world) del(o model.Owner, prefixes ...string) {
	var u model.RouteUpdate
	for _, p := range prefixes {
		u.Delete = append(u.Delete, mustPrefix(p))
	}
	w.table.Update(o, u)
}

// scenario is played with so many links.
type scenario struct {
	name  string
	links int
	play  func(w *world)
}

// scenarios play over the fake and over real namespaces alike.
var scenarios = []scenario{
	{"owners take over by distance", 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.1.0.0/26", "10.0.0.2"))
		w.set(model.OwnerBlock, blackhole("10.1.0.0/26"), blackhole("fd01::/122"))
		w.set(model.OwnerWorkload, via("10.1.0.5/32", "e1"), via("fd01::5/128", "e1"))
		w.settled("10.1.0.0/26", "10.1.0.5/32", "fd01::5/128", "fd01::/122")
		w.want("blackhole 10.1.0.0/26 proto 82 metric 1024", "blackhole fd01::/122 proto 82 metric 1024",
			"10.1.0.5/32 dev e1 proto 82 metric 1024", "fd01::5/128 dev e1 proto 82 metric 1024")
		w.del(model.OwnerBlock, "10.1.0.0/26", "fd01::/122")
		w.settled("10.1.0.0/26", "fd01::/122")
		w.want("10.1.0.0/26 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"10.1.0.5/32 dev e1 proto 82 metric 1024", "fd01::5/128 dev e1 proto 82 metric 1024")
		w.table.Replace(model.OwnerWorkload, []model.Route{via("10.1.0.6/32", "e1")})
		w.table.Replace(model.OwnerBGP, nil)
		w.settled("10.1.0.0/26", "10.1.0.5/32", "10.1.0.6/32", "fd01::5/128")
		w.want("10.1.0.6/32 dev e1 proto 82 metric 1024")
	}},
	{"ecmp grows and shrinks", 3, func(w *world) {
		for _, hops := range []struct{ four, six []string }{
			{[]string{"10.0.0.2"}, []string{"fd00:0::2"}},
			{[]string{"10.0.0.2", "10.0.1.2"}, []string{"fd00:0::2", "fd00:1::2"}},
			{[]string{"10.0.1.2", "10.0.2.2"}, []string{"fd00:1::2", "fd00:2::2"}},
			{[]string{"10.0.0.2", "10.0.1.2", "10.0.2.2"}, []string{"fd00:0::2", "fd00:1::2", "fd00:2::2"}},
			{[]string{"10.0.2.2"}, []string{"fd00:2::2"}},
		} {
			w.set(model.OwnerBGP, via("10.9.0.0/16", hops.four...), via("fd09::/64", hops.six...))
			w.settled("10.9.0.0/16", "fd09::/64")
			line := func(prefix string, hops []string) string {
				dev := func(h string) string { return "via " + netip.MustParseAddr(h).String() + " dev e" + linkOf(h) }
				if len(hops) == 1 {
					return prefix + " " + dev(hops[0]) + " proto 82 metric 1024"
				}
				var ways []string
				for _, h := range hops {
					ways = append(ways, dev(h))
				}
				slices.Sort(ways)
				return prefix + " proto 82 metric 1024 nexthop " + strings.Join(ways, " nexthop ")
			}
			w.want(line("10.9.0.0/16", hops.four), line("fd09::/64", hops.six))
		}
		w.set(model.OwnerBGP, blackhole("fd09::/64"), blackhole("10.9.0.0/16"))
		w.settled("10.9.0.0/16", "fd09::/64")
		w.want("blackhole 10.9.0.0/16 proto 82 metric 1024", "blackhole fd09::/64 proto 82 metric 1024")
		w.set(model.OwnerBGP, via("fd09::/64", "e0"), via("10.9.0.0/16", "e0"))
		w.settled("10.9.0.0/16", "fd09::/64")
		w.want("10.9.0.0/16 dev e0 proto 82 metric 1024", "fd09::/64 dev e0 proto 82 metric 1024")
		w.set(model.OwnerBGP, via("fd09::/64", "fd00:1::2", "fd00:2::2"))
		w.settled("fd09::/64")
		w.want("10.9.0.0/16 dev e0 proto 82 metric 1024", "fd09::/64 proto 82 metric 1024 nexthop via fd00:1::2 dev e1 nexthop via fd00:2::2 dev e2")
	}},
	{"metric moves, added before deleted", 1, func(w *world) {
		r := via("10.9.0.0/16", "10.0.0.2")
		w.set(model.OwnerBGP, r)
		w.settled("10.9.0.0/16")
		r.Metric = 77
		w.set(model.OwnerBGP, r)
		w.settled("10.9.0.0/16")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 77")
	}},
	{"an owner's metric moves its routes that name none", 1, func(w *world) {
		own := via("10.8.0.0/16", "10.0.0.2")
		own.Metric = 77
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"), via("fd09::/64", "fd00::2"), own)
		w.settled("10.9.0.0/16", "fd09::/64", "10.8.0.0/16")
		w.table.SetMetric(model.OwnerBGP, 512, 0)
		w.settled("10.9.0.0/16")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 512", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024",
			"10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 77")
		w.set(model.OwnerBGP, via("10.7.0.0/16", "10.0.0.2"))
		w.table.SetMetric(model.OwnerBGP, 0, 9)
		w.settled("10.9.0.0/16", "fd09::/64", "10.7.0.0/16")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 9",
			"10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 77", "10.7.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	}},
	{"behind a gateway, and its loss", 2, func(w *world) {
		w.ip("route add 172.16.0.0/16 via 10.0.0.2 dev e0 proto static", "-6 route add fd16::/48 via fd00:0::2 dev e0 proto static metric 10")
		w.set(model.OwnerBGP, via("10.9.0.0/16", "172.16.1.1"), via("fd09::/64", "fd16::1"))
		w.settled("10.9.0.0/16", "fd09::/64")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024")
		w.ip("route replace 172.16.0.0/16 proto static nexthop via 10.0.0.2 dev e0 nexthop via 10.0.1.2 dev e1")
		w.want("10.9.0.0/16 proto 82 metric 1024 nexthop via 10.0.0.2 dev e0 nexthop via 10.0.1.2 dev e1", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024")
		w.ip("route add blackhole 172.16.1.0/24 proto static", "-6 route del fd16::/48 via fd00:0::2 dev e0")
		w.want()
		if err := w.wait("10.9.0.0/16"); !errors.Is(err, ErrUnresolved) {
			w.t.Fatalf("Wait says %v and not ErrUnresolved", err)
		}
		w.ip("route del blackhole 172.16.1.0/24 proto static")
		w.want("10.9.0.0/16 proto 82 metric 1024 nexthop via 10.0.0.2 dev e0 nexthop via 10.0.1.2 dev e1")
	}},
	{"a neighbour whose link is down is not looked for behind the default route", 2, func(w *world) {
		w.ip("route add 0.0.0.0/0 via 10.0.1.2 dev e1 proto static", "-6 route add ::/0 via fd00:1::2 dev e1 proto static")
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"), via("fd09::/64", "fd00::2"), via("10.8.0.0/16", "192.0.2.1"))
		w.settled("10.9.0.0/16", "fd09::/64", "10.8.0.0/16")
		remote := "10.8.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024"
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024", remote)
		w.ip("link set e0 down")
		w.want(remote)
		w.ip("link set e0 up")
		w.addr6(0, "e0")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024", remote)
	}},
	{"through our own routes, and never through itself", 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.9.0.0/16", "192.168.5.1"), via("10.8.0.0/16", "10.8.0.1"), via("10.0.0.2/32", "10.0.0.2"))
		w.settled("10.0.0.2/32")
		w.want("10.0.0.2/32 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.set(model.OwnerBGP, via("192.168.0.0/16", "10.0.1.2"))
		w.settled("192.168.0.0/16", "10.9.0.0/16")
		w.want("10.0.0.2/32 via 10.0.0.2 dev e0 proto 82 metric 1024", "192.168.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024", "10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024")
		// Two that lean on each other hold nothing up.
		w.set(model.OwnerBGP, via("192.168.0.0/16", "10.9.0.1"))
		w.want("10.0.0.2/32 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.set(model.OwnerBGP, via("192.168.0.0/16", "10.9.0.1", "10.0.0.2"))
		w.want("10.0.0.2/32 via 10.0.0.2 dev e0 proto 82 metric 1024", "192.168.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	}},
	{"a peer announces the host route of its own address", 1, func(w *world) {
		w.set(model.OwnerBGP, via("fd00:0::2/128", "fd00:0::2"), via("10.0.0.2/32", "10.0.0.2"))
		w.settled("fd00:0::2/128", "10.0.0.2/32")
		w.set(model.OwnerBGP, via("fd09::/64", "fd00:0::2"), via("10.9.0.0/16", "10.0.0.2"))
		w.settled("fd09::/64", "10.9.0.0/16")
		w.want("fd00::2/128 via fd00::2 dev e0 proto 82 metric 1024", "10.0.0.2/32 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"fd09::/64 via fd00::2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.del(model.OwnerBGP, "fd00:0::2/128", "10.0.0.2/32")
		w.settled("fd00:0::2/128", "10.0.0.2/32", "fd09::/64")
		w.want("fd09::/64 via fd00::2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	}},
	{"the next candidate when a next hop is lost", 2, func(w *world) {
		w.set(model.OwnerTunnel, via("10.9.0.0/16", "10.0.0.2"))
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.1.2"))
		w.settled("10.9.0.0/16")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.ip("link set f0 down") // no carrier
		w.want("10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.ip("link set f0 up")
		w.want("10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	}},
	{"link down, up, away, back, renamed", 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2", "10.0.1.2"), via("fd09::/64", "fd00:0::2", "fd00:1::2"), via("10.8.0.0/16", "10.0.0.2"))
		w.set(model.OwnerWorkload, via("10.1.0.5/32", "e0"))
		w.settled("10.9.0.0/16", "fd09::/64", "10.8.0.0/16", "10.1.0.5/32")
		all := []string{
			"10.9.0.0/16 proto 82 metric 1024 nexthop via 10.0.0.2 dev e0 nexthop via 10.0.1.2 dev e1", "10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"fd09::/64 proto 82 metric 1024 nexthop via fd00:1::2 dev e1 nexthop via fd00::2 dev e0", "10.1.0.5/32 dev e0 proto 82 metric 1024",
		}
		half := []string{"10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024", "fd09::/64 via fd00:1::2 dev e1 proto 82 metric 1024"}
		w.want(all...)
		w.ip("link set e0 down")
		w.want(half...)
		w.ip("link set e0 up")
		w.addr6(0, "e0")
		w.want(all...)
		w.ip("link set f0 down") // carrier loss: routes onto the link stay
		w.want(append(half, "10.1.0.5/32 dev e0 proto 82 metric 1024")...)
		w.ip("link set f0 up")
		w.want(all...)
		w.ip("link del e0")
		w.want(half...)
		w.links(1)
		w.want(all...)
		w.ip("link set e0 down", "link set e0 name x0", "link set x0 up")
		w.addr6(0, "x0")
		w.want("10.9.0.0/16 proto 82 metric 1024 nexthop via 10.0.0.2 dev x0 nexthop via 10.0.1.2 dev e1", "10.8.0.0/16 via 10.0.0.2 dev x0 proto 82 metric 1024",
			"fd09::/64 proto 82 metric 1024 nexthop via fd00:1::2 dev e1 nexthop via fd00::2 dev x0")
	}},
	{"a device that comes later", 1, func(w *world) {
		w.set(model.OwnerWorkload, via("10.1.0.9/32", "cali9"))
		if err := w.wait("10.1.0.9/32"); !errors.Is(err, ErrUnresolved) {
			w.t.Fatalf("Wait says %v and not ErrUnresolved", err)
		}
		w.ip("link add cali9 type veth peer name p9", "link set p9 up", "link set cali9 up")
		w.want("10.1.0.9/32 dev cali9 proto 82 metric 1024")
		w.settled("10.1.0.9/32")
	}},
	{"what others delete or change comes back", 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2", "10.0.1.2"), via("fd09::/64", "fd00:0::2", "fd00:1::2"), blackhole("10.7.0.0/24"))
		w.settled("10.9.0.0/16", "fd09::/64", "10.7.0.0/24")
		all := w.show("82")
		for _, harm := range []string{
			"route del 10.9.0.0/16 proto 82", "route del blackhole 10.7.0.0/24 proto 82", "-6 route del fd09::/64 via fd00:0::2 dev e0",
			"route flush proto 82", "route replace 10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"-6 route replace fd09::/64 via fd00:1::2 dev e1 proto 82 metric 1024",
			"route append 10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"route add 10.66.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 5",
		} {
			w.ip(harm)
			if harm == "route flush proto 82" && w.ns != nil {
				w.ip("-6 route flush proto 82")
			}
			w.want(all...)
		}
	}},
	{"foreign routes are conflicts", 2, func(w *world) {
		w.ip("route add 10.9.0.0/16 via 10.0.1.2 dev e1 proto static metric 1024", "-6 route add fd09::/64 via fd00:1::2 dev e1 proto static metric 1024",
			"route add 10.8.0.0/16 via 10.0.1.2 dev e1 proto static metric 50")
		foreign := w.show("static")
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"), via("fd09::/64", "fd00:0::2"), via("10.8.0.0/16", "10.0.0.2"))
		for _, p := range []string{"10.9.0.0/16", "fd09::/64"} {
			if err := w.wait(p); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "dev e1 proto static metric 1024") {
				w.t.Fatalf("Wait %s says %v", p, err)
			}
		}
		if s := w.table.Status(); s.ConflictCount != 2 || len(s.Conflicts) != 2 {
			w.t.Fatalf("status %+v", s)
		}
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.ip("route del 10.9.0.0/16 proto static", "-6 route del fd09::/64 via fd00:1::2 dev e1")
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024")
		// They come later: appended, merged (IPv6), in our place.
		w.ip("-6 route append fd09::/64 via fd00:1::2 dev e1 proto static metric 1024", "route replace 10.9.0.0/16 via 10.0.1.2 dev e1 proto static metric 1024")
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
		if got := w.show("static"); !slices.Equal(got, foreign) {
			w.t.Fatalf("foreign routes are now\n%s", strings.Join(got, "\n"))
		}
		w.ip("route flush proto static")
		if w.ns != nil {
			w.ip("-6 route flush proto static")
		}
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd09::/64 via fd00::2 dev e0 proto 82 metric 1024")
	}},
	{"an address goes and comes", 1, func(w *world) {
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.2"))
		w.set(model.OwnerWorkload, via("10.1.0.5/32", "e0"))
		w.settled("10.9.0.0/16", "10.1.0.5/32")
		w.ip("addr del 10.0.0.1/24 dev e0") // the kernel drops 10.1.0.5 too, silently
		w.want("10.1.0.5/32 dev e0 proto 82 metric 1024")
		w.ip("addr add 10.0.0.1/24 dev e0")
		w.want("10.1.0.5/32 dev e0 proto 82 metric 1024", "10.9.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
	}},
	{"one bad route never blocks others", 1, func(w *world) {
		// Our own address as a gateway is refused, or not resolved.
		w.set(model.OwnerBGP, via("10.9.0.0/16", "10.0.0.1"), via("10.8.0.0/16", "10.0.0.2"), via("10.7.0.0/16", "10.99.0.1@e0"), via("fd07::/64", "10.0.0.2"))
		w.settled("10.8.0.0/16")
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")
		for _, p := range []string{"10.9.0.0/16", "10.7.0.0/16", "fd07::/64"} {
			if err := w.wait(p); err == nil || !strings.Contains(err.Error(), p) {
				w.t.Fatalf("Wait %s says %v", p, err)
			}
		}
		w.ip("addr add 10.99.0.2/24 dev e0") // now the gateway is there
		w.want("10.8.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.7.0.0/16 via 10.99.0.1 dev e0 proto 82 metric 1024")
	}},
	{"stale routes wait for every owner", 2, func(w *world) {
		w.stop()
		w.ip("route add 10.50.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "route add 10.51.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"route add 10.52.0.0/16 via 10.0.0.2 dev e0 proto static metric 1024", "-6 route add fd50::/64 via fd00:0::2 dev e0 proto 82 metric 1024")
		stale := []string{"10.50.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "10.51.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024", "fd50::/64 via fd00::2 dev e0 proto 82 metric 1024"}
		w.start(model.OwnerWorkload, model.OwnerBGP)
		// A next hop behind a stale route is reachable as before.
		w.set(model.OwnerBGP, via("10.60.0.0/16", "10.50.0.1"), via("10.51.0.0/16", "10.0.1.2"))
		w.table.InSync(model.OwnerBGP)
		w.settled("10.60.0.0/16", "10.51.0.0/16")
		stale[1] = "10.51.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024"
		w.want(append(stale, "10.60.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024")...)
		if s := w.table.Status(); s.Synced || s.Stale != 2 || !slices.Equal(s.WaitingFor, []string{"workload"}) {
			w.t.Fatalf("status %+v", s)
		}
		w.table.InSync(model.OwnerWorkload)
		w.want(stale[1])
		if got := w.show("static"); len(got) != 1 {
			w.t.Fatalf("foreign routes %v", got)
		}
	}},
}

// linkOf returns N of a gateway 10.0.N.2 or fd00:N::2.
func linkOf(h string) string {
	if a, ok := strings.CutPrefix(h, "10.0."); ok {
		return a[:1]
	}
	return h[5:6]
}

func TestScenarios(t *testing.T) {
	for _, s := range slices.Concat(scenarios, guardScenarios) {
		for _, real := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%s", s.name, map[bool]string{false: "fake", true: "real"}[real]), func(t *testing.T) {
				t.Parallel()
				w := &world{t: t}
				if real {
					w.ns = newNetNS(t)
				} else {
					w.fake = &fakeKernel{}
				}
				w.links(s.links)
				w.start()
				w.table.InSync(model.OwnerBGP)
				s.play(w)
			})
		}
	}
}

// monitor is ip monitor route in a namespace.
type monitor struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (m *monitor) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.Write(b)
}

func (m *monitor) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

func startMonitor(t *testing.T, ns *netns) *monitor {
	t.Helper()
	m := &monitor{}
	cmd := exec.Command("ip", "-n", ns.name, "-o", "monitor", "route")
	cmd.Stdout = m
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// Routes of the test's own show that it listens (a replace by the same is not told).
	verb := "del"
	eventually(t, func() string {
		verb = map[string]string{"add": "del", "del": "add"}[verb]
		ns.ip("route " + verb + " 10.250.0.0/16 dev lo proto static")
		if strings.Contains(m.text(), "10.250.0.0/16") {
			return ""
		}
		return "ip monitor is silent"
	})
	return m
}

// TestRestartIsSilent: a new Table adopts what stands; nobody hears of it (I3).
func TestRestartIsSilent(t *testing.T) {
	t.Parallel()
	w := &world{t: t, ns: newNetNS(t)}
	w.links(2)
	w.start()
	var routes []model.Route
	for i := range 50 {
		routes = append(routes, via(fmt.Sprintf("10.%d.0.0/16", 100+i), "10.0.0.2", "10.0.1.2"), via(fmt.Sprintf("fd00:%d::/64", 1000+i), "fd00:0::2", "fd00:1::2"),
			blackhole(fmt.Sprintf("10.90.%d.0/24", i)), blackhole(fmt.Sprintf("fd00:%d::/64", 2000+i)), via(fmt.Sprintf("10.91.%d.0/32", i), "e1"), via(fmt.Sprintf("fd00:%d::/128", 3000+i), "e1"))
	}
	var names []string
	for _, r := range routes {
		names = append(names, r.Prefix.String())
	}
	w.set(model.OwnerBGP, routes...)
	w.settled(names...)
	w.stop()
	m := startMonitor(t, w.ns)
	w.ip("route add 10.252.0.0/16 dev lo proto static") // the last thing to be heard before
	eventually(t, func() string {
		if strings.Contains(m.text(), "10.252.0.0/16") {
			return ""
		}
		return "ip monitor is silent"
	})
	before := strings.Count(m.text(), "\n")
	w.start()
	w.set(model.OwnerBGP, routes...)
	w.table.InSync(model.OwnerBGP)
	w.settled(names...)
	w.table.loop.PokeResync()
	w.settled(names...)
	w.set(model.OwnerBGP, via("10.251.0.0/16", "10.0.0.2")) // the last thing to be heard
	eventually(t, func() string {
		if strings.Contains(m.text(), "10.251.0.0/16") {
			return ""
		}
		return "ip monitor is silent"
	})
	if lines := strings.Split(strings.TrimSpace(m.text()), "\n")[before:]; len(lines) != 1 {
		t.Fatalf("the restart was heard:\n%s", strings.Join(lines, "\n"))
	}
}
