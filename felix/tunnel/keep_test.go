package tunnel

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// TestKeep: an agent that starts leaves what it does not want until it is told otherwise, and
// says what there is.
func TestKeep(t *testing.T) {
	t.Parallel()
	worlds(t, func(t *testing.T, w world) {
		var all []model.TunnelDevice
		for _, k := range kindsOf(w) {
			all = append(all, deviceOf(k, 1, 2, 3))
		}
		d := w.devices(discard)
		stop := startIn(t, w, d)
		d.Set(all)
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		stop()

		d = w.devices(discard)
		stop = startIn(t, w, d)
		d.Keep(true)
		d.Set(nil)
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		want(t, w, all, "kept")
		var got []string
		for _, s := range d.Status() {
			got = append(got, fmt.Sprintf("%s wanted=%t up=%t", s.Device, s.Wanted, s.Up))
		}
		var should []string
		for _, dev := range all {
			should = append(should, fmt.Sprintf("%s wanted=false up=true", dev.Tunnel.Device()))
		}
		if fmt.Sprint(got) != fmt.Sprint(should) {
			t.Errorf("status %v, want %v", got, should)
		}
		d.Set(all[:1])
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		want(t, w, all, "one is wanted")
		d.Keep(false)
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		want(t, w, all[:1], "no more kept")
		if st := d.Status(); len(st) != 1 || !st[0].Wanted {
			t.Errorf("status %+v", st)
		}
		stop()
		removed(t, w)
	})
}

// TestPeerWithTwoAddresses: while routes move from one tunnel address of a node to another
// both lead there, and to where the first one says.
func TestPeerWithTwoAddresses(t *testing.T) {
	d := deviceOf(model.TunnelVXLAN4, 1, 2, 3)
	second := d.Peers[0]
	second.Addr, second.Underlay = netip.MustParseAddr("10.244.9.9"), netip.MustParseAddr("10.0.0.99")
	d.Peers = append(d.Peers, second)
	c := compile(d)
	if len(c.problems) > 0 || len(c.fdb) != 2 || len(c.neigh) != 3 {
		t.Fatalf("problems %v, fdb %v, neighbours %v", c.problems, c.fdb, c.neigh)
	}
	m := nodeMAC("node2", model.TunnelVXLAN4)
	if c.fdb[m] != d.Peers[0].Underlay || c.neigh[second.Addr] != m {
		t.Errorf("fdb %v, neighbours %v", c.fdb, c.neigh)
	}
	for _, p := range c.peers {
		if p.underlay != c.fdb[p.mac] {
			t.Errorf("peer %+v contradicts the FDB %v", p, c.fdb)
		}
	}
}
