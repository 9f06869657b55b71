package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// to sends what 10.9/16 and fd09::/64 hold over e1, on its link or not.
func to(gateways map[string]string) func(netip.Prefix, model.NextHop) model.NextHop {
	return func(p netip.Prefix, h model.NextHop) model.NextHop {
		if g, ok := gateways[h.Addr.String()]; ok && (p.Overlaps(mustPrefix("10.9.0.0/16")) || p.Overlaps(mustPrefix("fd09::/64"))) {
			return model.NextHop{Addr: netip.MustParseAddr(g), Device: "e1", OnLink: true}
		}
		return h
	}
}

func (w *world) settle() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.table.Settle(ctx); err != nil {
		w.t.Fatalf("%v; status %+v", err, w.table.Status())
	}
}

// now is want without waiting: Settle said that it is so.
func (w *world) now(routes ...string) {
	w.t.Helper()
	w.settle()
	got := w.show("82")
	slices.Sort(got)
	slices.Sort(routes)
	if !slices.Equal(got, routes) {
		w.t.Fatalf("routes are\n  %s\nand not\n  %s\nstatus %+v", strings.Join(got, "\n  "), strings.Join(routes, "\n  "), w.table.Status())
	}
}

// divertWorlds plays over the fake and over a real namespace.
func divertWorlds(t *testing.T, links int, play func(w *world)) {
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		w := &world{t: t, fake: &fakeKernel{}}
		w.links(links)
		w.start()
		play(w)
	})
	t.Run("kernel", func(t *testing.T) {
		t.Parallel()
		w := &world{t: t, ns: newNetNS(t)}
		w.links(links)
		w.start()
		play(w)
	})
}

func TestDivert(t *testing.T) {
	t.Parallel()
	divertWorlds(t, 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.9.0.0/24", "10.0.0.2"), via("10.9.1.0/24", "10.0.0.2", "10.0.0.3"), via("10.8.0.0/24", "10.0.0.2"), blackhole("10.9.2.0/24"), via("fd09::/80", "fd00:0::2"))
		w.set(model.OwnerBlock, via("10.9.3.0/24", "10.0.0.2")) // another owner's
		plain := []string{
			"10.8.0.0/24 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"10.9.0.0/24 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"10.9.1.0/24 proto 82 metric 1024 nexthop via 10.0.0.2 dev e0 nexthop via 10.0.0.3 dev e0",
			"blackhole 10.9.2.0/24 proto 82 metric 1024",
			"10.9.3.0/24 via 10.0.0.2 dev e0 proto 82 metric 1024",
			"fd09::/80 via fd00::2 dev e0 proto 82 metric 1024",
		}
		w.now(plain...)
		w.table.Divert(model.OwnerBGP, to(map[string]string{"10.0.0.2": "198.51.100.7", "fd00::2": "fd99::7"}))
		w.now(
			plain[0], plain[3], plain[4],
			"10.9.0.0/24 via 198.51.100.7 dev e1 proto 82 metric 1024",
			"10.9.1.0/24 proto 82 metric 1024 nexthop via 10.0.0.3 dev e0 nexthop via 198.51.100.7 dev e1",
			"fd09::/80 via fd99::7 dev e1 proto 82 metric 1024",
		)
		// What comes later is diverted too; two that become one are one.
		w.table.Divert(model.OwnerBGP, to(map[string]string{"10.0.0.2": "198.51.100.8", "10.0.0.3": "198.51.100.8"}))
		w.set(model.OwnerBGP, via("10.9.4.0/24", "10.0.0.3"))
		w.del(model.OwnerBGP, "10.8.0.0/24")
		w.now(
			plain[3], plain[4], plain[5],
			"10.9.0.0/24 via 198.51.100.8 dev e1 proto 82 metric 1024",
			"10.9.1.0/24 via 198.51.100.8 dev e1 proto 82 metric 1024",
			"10.9.4.0/24 via 198.51.100.8 dev e1 proto 82 metric 1024",
		)
		// A route that is set anew as it was stays diverted, and one that becomes a blackhole is one.
		w.set(model.OwnerBGP, via("10.9.0.0/24", "10.0.0.2"), blackhole("10.9.4.0/24"))
		w.now(
			plain[3], plain[4], plain[5],
			"10.9.0.0/24 via 198.51.100.8 dev e1 proto 82 metric 1024",
			"10.9.1.0/24 via 198.51.100.8 dev e1 proto 82 metric 1024",
			"blackhole 10.9.4.0/24 proto 82 metric 1024",
		)
		w.table.Divert(model.OwnerBGP, nil)
		w.now(append(plain[1:], "blackhole 10.9.4.0/24 proto 82 metric 1024")...)
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		if n := len(w.table.core.asked); n != 0 {
			t.Errorf("%d wishes are kept and nothing is diverted", n)
		}
	})
}

// TestDivertWaitsForTheDevice: what leads through a device that is not there yet falls back
// on nothing, and comes with the device.
func TestDivertWaitsForTheDevice(t *testing.T) {
	t.Parallel()
	divertWorlds(t, 1, func(w *world) {
		w.table.Divert(model.OwnerBGP, to(map[string]string{"10.0.0.2": "198.51.100.7"}))
		w.set(model.OwnerBGP, via("10.9.0.0/24", "10.0.0.2"))
		w.now()
		w.ip("link add e1 type veth peer name f1", "addr add 10.0.1.1/24 dev e1", "link set e1 up", "link set f1 up")
		w.want("10.9.0.0/24 via 198.51.100.7 dev e1 proto 82 metric 1024")
	})
}

// TestDivertIsMakeBeforeBreak: no route is deleted on the way, each is replaced in place.
func TestDivertIsMakeBeforeBreak(t *testing.T) {
	t.Parallel()
	w := fakeWorld(t, 2, model.OwnerBGP)
	var routes []model.Route
	for _, p := range manyPrefixes(3000) {
		routes = append(routes, via(p.String(), "10.0.0.2"))
	}
	w.table.Replace(model.OwnerBGP, routes)
	w.settle()
	writes := map[verb]int{}
	w.fake.mu.Lock()
	w.fake.onWrite = func(o *op, err error) { writes[o.verb]++ }
	w.fake.mu.Unlock()
	w.table.Divert(model.OwnerBGP, func(p netip.Prefix, h model.NextHop) model.NextHop {
		return model.NextHop{Addr: h.Addr, Device: "e1", OnLink: true}
	})
	w.settle()
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	if writes[opReplace] != 3000 || len(writes) != 1 {
		t.Errorf("writes: %v", writes)
	}
}

// TestSynced waits for the owners and for what is stale.
func TestSynced(t *testing.T) {
	t.Parallel()
	w := &world{t: t, fake: &fakeKernel{}}
	w.links(1)
	if _, err := w.fake.try("route add 10.7.0.0/16 via 10.0.0.2 dev e0 proto 82 metric 1024"); err != nil {
		t.Fatal(err)
	}
	w.start(model.OwnerBGP, model.OwnerTunnel)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.table.InSync(model.OwnerBGP)
	if err := w.table.Synced(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one owner is not in sync: %v", err)
	}
	eventually(t, func() string { // who gave up is forgotten
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		if n := len(w.table.core.waiters); n != 0 {
			return fmt.Sprintf("%d waiters", n)
		}
		return ""
	})
	w.table.InSync(model.OwnerTunnel)
	within, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	if err := w.table.Synced(within); err != nil {
		t.Fatal(err)
	}
	if got := w.show("82"); len(got) != 0 {
		t.Errorf("stale routes: %v", got)
	}
}

// BenchmarkDivert moves a full table to another next hop and back, without the kernel's part.
func BenchmarkDivert(b *testing.B) {
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	var u model.RouteUpdate
	for i, p := range manyPrefixes(100_000) {
		u.Set = append(u.Set, via(p.String(), fmt.Sprintf("10.0.0.%d", 2+i%100)))
	}
	c.update(model.OwnerBGP, u)
	other := func(p netip.Prefix, h model.NextHop) model.NextHop {
		return model.NextHop{Addr: h.Addr, Device: "e1", OnLink: true}
	}
	same := func(p netip.Prefix, h model.NextHop) model.NextHop { return h }
	b.Run("moves", func(b *testing.B) {
		for b.Loop() {
			c.divert(model.OwnerBGP, other)
			c.divert(model.OwnerBGP, same)
		}
	})
	b.Run("moves nothing", func(b *testing.B) {
		for b.Loop() {
			c.divert(model.OwnerBGP, same)
		}
	})
}
