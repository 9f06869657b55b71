package ipset_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
)

// TestInterfaceNames: what is no interface's name is left out and named.
func TestInterfaceNames(t *testing.T) {
	rec, _ := fakeRig().start(t, nil)
	for _, name := range []string{"", "sixteen-bytes-00", "a b", "a/b", "a:b", ".", "..", "a\x00", "\u00e4"} {
		rec.Replace(ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4, Members: []ipset.Member{on("10.0.0.1", name)}})
		if err := waitErr(t, rec, "cali40i"); err == nil || !strings.Contains(err.Error(), "cali40i") || !strings.Contains(err.Error(), "1 to 15 bytes") {
			t.Errorf("%q: %v", name, err)
		}
	}
	rec.Replace(ipset.Set{Name: "cali40n", Type: ipset.HashNet, Family: ipset.IPv4, Members: []ipset.Member{on("10.0.0.1", "eth0")}})
	if err := waitErr(t, rec, "cali40n"); err == nil || !strings.Contains(err.Error(), "takes no interfaces") {
		t.Error(err)
	}
}

// TestCrowd: of one prefix as many interfaces as the kernel can bear stand, the rest waits for
// room and is named; those that go make room first; and other prefixes do not suffer.
func TestCrowd(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		rec, stop := r.start(t, nil)
		some := func(from, to int) (out []ipset.Member) {
			for i := from; i < to; i++ {
				out = append(out, on("10.0.0.1", fmt.Sprintf("eth%02d", i)))
			}
			return out
		}
		lines := func(members []ipset.Member) []string {
			out := []string{"create cali40i hash:net,iface family inet"}
			for _, m := range members {
				out = append(out, "add cali40i "+m.String())
			}
			slices.Sort(out[1:])
			return out
		}
		stands := func(members ...ipset.Member) {
			t.Helper()
			r.is(t, lines(members)...)
		}
		const most = ipset.MaxInterfaces
		rec.Replace(ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4, Members: some(0, most)})
		wait(t, rec, "cali40i")
		stands(some(0, most)...)
		// All others instead.
		rec.Update("cali40i", some(most, 2*most), some(0, most))
		wait(t, rec, "cali40i")
		stands(some(most, 2*most)...)
		rec.Update("cali40i", append(some(0, 1), on("10.0.0.2", "eth00")), nil)
		err := waitErr(t, rec, "cali40i")
		if err == nil || !strings.Contains(err.Error(), "member 10.0.0.1,eth00") || !strings.Contains(err.Error(), "48 interfaces") {
			t.Error(err)
		}
		stands(append(some(most, 2*most), on("10.0.0.2", "eth00"))...)
		rec.Update("cali40i", nil, some(most, most+1))
		wait(t, rec, "cali40i")
		stands(append(some(most+1, 2*most), on("10.0.0.1", "eth00"), on("10.0.0.2", "eth00"))...)
		// Somebody fills the bucket until the set takes nothing more.
		stop()
		rec, _ = r.start(t, func(c *ipset.Config) { c.Glance = time.Hour })
		rec.Replace(ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4, Members: some(0, most)})
		wait(t, rec, "cali40i")
		for _, m := range some(100, 175) {
			if r.foreign("add cali40i "+m.String()) != nil {
				break
			}
		}
		var others []ipset.Member
		for i := range 1000 {
			others = append(others, on(fmt.Sprintf("10.1.%d.%d", i/250, i%250), "eth0"))
		}
		rec.Update("cali40i", others, nil)
		wait(t, rec, "cali40i")
		rec.PokeResync()
		r.becomes(t, lines(append(some(0, most), others...))...)
	})
}
