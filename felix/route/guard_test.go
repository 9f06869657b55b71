package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

func addrs(in ...string) (out []netip.Addr) {
	for _, a := range in {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// leftOut polls until exactly these prefixes are left out.
func (w *world) leftOut(prefixes ...string) {
	w.t.Helper()
	slices.Sort(prefixes)
	eventually(w.t, func() string {
		var got []string
		st := w.table.Status()
		for _, l := range st.LeftOut {
			got = append(got, l.Prefix.String())
		}
		slices.Sort(got)
		if slices.Equal(got, prefixes) && st.LeftOutCount == len(prefixes) {
			return ""
		}
		return fmt.Sprintf("left out are %v (%d), wanted %v", st.LeftOut, st.LeftOutCount, prefixes)
	})
}

// guardScenarios play over the fake and over real namespaces alike.
var guardScenarios = []scenario{
	{"a node's address on a connected subnet is not led astray", 2, func(w *world) {
		w.table.Guard(addrs("10.0.0.1", "fd00:0::1"), addrs("10.0.0.1", "10.0.0.2", "10.0.0.7", "fd00:0::7", "192.0.2.7"))
		w.set(model.OwnerBGP,
			via("10.0.0.7/32", "10.0.1.2"), via("fd00:0::7/128", "fd00:1::2"), // hijacked
			via("10.0.0.0/29", "10.0.1.2"), via("fd00:0::/125", "fd00:1::2"), // and by a wider prefix
			via("10.0.0.9/32", "10.0.1.2"), via("10.0.0.128/25", "10.0.1.2"), // of no node
			via("192.0.2.7/32", "10.0.1.2"),                               // a loopback address: learned as ever
			via("10.0.0.0/23", "10.0.1.2"),                                // wider than the subnet
			via("10.9.0.0/16", "10.0.0.7"), via("fd09::/64", "fd00:0::7")) // what the node owns
		w.settled("10.9.0.0/16", "fd09::/64")
		w.want("10.0.0.0/23 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"10.0.0.128/25 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"10.0.0.9/32 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"10.9.0.0/16 via 10.0.0.7 dev e0 proto 82 metric 1024",
			"192.0.2.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024",
			"fd09::/64 via fd00::7 dev e0 proto 82 metric 1024")
		w.leftOut("10.0.0.7/32", "fd00::7/128", "10.0.0.0/29", "fd00::/125")
		if err := w.wait("10.0.0.7/32"); !errors.Is(err, ErrLeftOut) {
			w.t.Errorf("Wait says %v", err)
		}
		// Another owner's route there is another matter.
		w.set(model.OwnerTunnel, via("10.0.0.7/32", "e1"))
		w.settled("10.0.0.7/32")
		if got := w.show("82"); !slices.Contains(got, "10.0.0.7/32 dev e1 proto 82 metric 1024") {
			w.t.Errorf("routes %v", got)
		}
		w.del(model.OwnerTunnel, "10.0.0.7/32")
		// The peer goes, and everything with it.
		w.del(model.OwnerBGP, "10.0.0.7/32", "fd00:0::7/128", "10.0.0.0/29", "fd00:0::/125")
		w.leftOut()
	}},
	{"our own addresses are learned from nobody", 2, func(w *world) {
		w.ip("addr add 192.0.2.1/32 dev e1")
		w.table.Guard(addrs("192.0.2.1", "10.0.0.1"), addrs("192.0.2.1", "10.0.0.1"))
		w.set(model.OwnerBGP, via("192.0.2.1/32", "10.0.0.2"), via("10.0.0.1/32", "10.0.1.2"), via("192.0.2.0/24", "10.0.0.2"))
		w.settled("192.0.2.0/24")
		w.want("192.0.2.0/24 via 10.0.0.2 dev e0 proto 82 metric 1024")
		w.leftOut("10.0.0.1/32", "192.0.2.1/32")
	}},
	{"a node that becomes known later is guarded from then on", 2, func(w *world) {
		w.set(model.OwnerBGP, via("10.0.0.7/32", "10.0.1.2"), via("10.9.0.0/16", "10.0.0.7"))
		w.settled("10.0.0.7/32", "10.9.0.0/16")
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024", "10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.table.Guard(nil, addrs("10.0.0.7"))
		w.want("10.9.0.0/16 via 10.0.0.7 dev e0 proto 82 metric 1024")
		w.leftOut("10.0.0.7/32")
		w.table.Guard(nil, nil)
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024", "10.9.0.0/16 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.leftOut()
	}},
	{"while the subnet's link is dead a learned way is taken", 2, func(w *world) {
		w.table.Guard(nil, addrs("10.0.0.7"))
		w.set(model.OwnerBGP, via("10.0.0.7/32", "10.0.1.2"))
		w.leftOut("10.0.0.7/32")
		w.ip("link set f0 down") // the carrier goes, the subnet's route stays
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.leftOut()
		w.ip("link set f0 up")
		w.want()
		w.leftOut("10.0.0.7/32")
		w.ip("link set e0 down")
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.ip("link set e0 up")
		w.want()
	}},
	{"an administrator's route decides where an address is", 2, func(w *world) {
		w.table.Guard(nil, addrs("10.0.0.7"))
		w.set(model.OwnerBGP, via("10.0.0.7/32", "10.0.1.2"))
		w.leftOut("10.0.0.7/32")
		w.ip("route add 10.0.0.0/28 via 10.0.1.9 dev e1 proto static")
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.ip("route del 10.0.0.0/28 via 10.0.1.9 dev e1 proto static")
		w.want()
		w.ip("addr del 10.0.0.1/24 dev e0")
		w.want("10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024")
	}},
	{"a route that an earlier agent let in goes", 2, func(w *world) {
		w.stop()
		w.ip("route add 10.0.0.7/32 via 10.0.1.2 dev e1 proto 82 metric 1024")
		w.start(model.OwnerBGP)
		w.table.Guard(nil, addrs("10.0.0.7"))
		w.set(model.OwnerBGP, via("10.0.0.7/32", "10.0.1.2"))
		w.want()
		w.leftOut("10.0.0.7/32")
	}},
}

// TestGuardScale holds that guarding thousands of nodes costs next to nothing: neither a
// learned table nor the coming and going of pods looks at every node.
func TestGuardScale(t *testing.T) {
	c := newCore(82, 1024, []model.Owner{model.OwnerBGP})
	k := fakeLab()
	c.now = time.Unix(1e9, 0)
	c.inSync(model.OwnerBGP)
	var nodes []netip.Addr
	a := netip.MustParseAddr("10.0.0.2")
	for range 250 {
		nodes = append(nodes, a)
		a = a.Next()
	}
	for b := netip.MustParseAddr("172.31.0.0"); len(nodes) < 5000; b = b.Next() {
		nodes = append(nodes, b)
	}
	c.setGuard(nil, nodes)
	drive(t, c, k)
	if n := len(c.guard.subnets); n != 1 {
		t.Fatalf("%d subnets", n)
	}
	// A pod's link and its routes.
	for _, l := range []string{"link add cali9 type veth peer name p9", "link set cali9 up", "link set p9 up"} {
		if _, err := k.try(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.drain(c.tell); err != nil {
		t.Fatal(err)
	}
	c.set(c.index(model.OwnerWorkload), via("10.244.0.5/32", "cali9"))
	if n := len(c.guard.dirty); n != 0 {
		t.Errorf("a pod makes %d addresses be looked at again", n)
	}
	start := time.Now()
	for _, p := range manyPrefixes(100_000) {
		c.set(c.index(model.OwnerBGP), model.Route{Prefix: p, NextHops: []model.NextHop{{Addr: nodes[0]}}})
	}
	t.Logf("100,000 learned routes took %s", time.Since(start).Round(time.Millisecond))
	if n := len(c.guard.shunned); n != 0 {
		t.Errorf("%d are left out", n)
	}
}
