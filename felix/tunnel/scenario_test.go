package tunnel

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

var discard = slog.New(slog.DiscardHandler)

// kindsOf lists what the world's kernel can make.
func kindsOf(w world) []model.Tunnel {
	if w.hasIPIP() {
		return []model.Tunnel{model.TunnelIPIP, model.TunnelVXLAN4, model.TunnelVXLAN6}
	}
	return []model.Tunnel{model.TunnelVXLAN4, model.TunnelVXLAN6}
}

// removed removes all: it hears of the devices that were there, and then of none.
func removed(t *testing.T, w world) {
	t.Helper()
	for first := true; ; first = false {
		before := strings.Join(w.dump(), "\n")
		var gone []string
		w.run(func() {
			var err error
			if gone, err = w.remove(); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
		for _, name := range gone {
			if !strings.Contains(before, name) {
				t.Errorf("%s was removed and was not there:\n%s", name, before)
			}
		}
		if !first {
			if len(gone) > 0 {
				t.Errorf("removed again: %v", gone)
			}
			break
		}
		if strings.Contains(before, model.TunnelVXLAN4.Device()+" ") && !slices.Contains(gone, model.TunnelVXLAN4.Device()) {
			t.Errorf("removed %v of:\n%s", gone, before)
		}
	}
	want(t, w, nil, "removed")
}

// TestLife goes through a node's life: nothing is touched before the first Set, devices
// come, peers come and go, parameters change, an agent restarts, all is removed.
func TestLife(t *testing.T) {
	t.Parallel()
	worlds(t, func(t *testing.T, w world) {
		d := w.devices(discard)
		stop := startIn(t, w, d)
		step := func(name string, devices ...model.TunnelDevice) {
			t.Helper()
			d.Set(devices)
			if err := wait(t, d); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want(t, w, devices, name)
			for _, s := range d.Status() {
				if s.Wanted && (!s.Up || s.Peers != s.PeersWanted || s.ErrorCount > 0) {
					t.Errorf("%s: status %+v", name, s)
				}
			}
		}
		all := func(peers ...int) (out []model.TunnelDevice) {
			for _, k := range kindsOf(w) {
				out = append(out, deviceOf(k, 1, peers...))
			}
			return out
		}
		step("nothing wanted")
		step("alone", all()...)
		step("two peers", all(2, 3)...)
		step("another peer", all(3, 4)...)
		changed := all(3, 4)
		for i := range changed {
			changed[i].MTU -= 50
			changed[i].Addr = peerOf(changed[i].Tunnel, 100).Addr
			changed[i].ChecksumOffload = changed[i].Tunnel != model.TunnelIPIP
		}
		step("MTU, own address, offload", changed...)
		for i := range changed {
			if changed[i].Tunnel != model.TunnelIPIP {
				changed[i].VNI, changed[i].Port, changed[i].Local = 99, 8472, peerOf(changed[i].Tunnel, 50).Underlay
				changed[i].MAC, changed[i].ChecksumOffload = hw("02:00:00:00:00:01"), false
			}
		}
		step("VNI, port, node address, MAC", changed...)
		step("one kind only", changed[len(changed)-1])
		step("back", all(2)...)

		stop()
		want(t, w, all(2), "the agent stopped")
		d = w.devices(discard)
		stop = startIn(t, w, d)
		want(t, w, all(2), "the agent started and knows nothing")
		d.Set(all(2, 5))
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		want(t, w, all(2, 5), "the agent started again")
		stop()
		removed(t, w)
	})
}

// TestNoIPIP: a kernel that cannot make tunl0 is told of, with what to load, and the other
// devices are as wanted. Where it can, the same ends with all of them.
func TestNoIPIP(t *testing.T) {
	t.Parallel()
	worlds(t, func(t *testing.T, w world) {
		d := w.devices(discard)
		startIn(t, w, d)
		devices := []model.TunnelDevice{deviceOf(model.TunnelIPIP, 1), deviceOf(model.TunnelVXLAN4, 1, 2), deviceOf(model.TunnelVXLAN6, 1, 2)}
		d.Set(devices)
		err := wait(t, d)
		if w.hasIPIP() {
			t.Log("CAUSEWAY: this kernel has ipip, and tunl0 works")
			if err != nil {
				t.Fatal(err)
			}
			want(t, w, devices)
			return
		}
		t.Log("CAUSEWAY: this kernel has no ipip; its error is checked")
		const text = "tunl0: this kernel makes no ipip devices: load its module on the node (modprobe ipip"
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("Wait: %v", err)
		}
		want(t, w, devices[1:])
		st := d.Status()
		if len(st) != 3 || st[0].Device != "tunl0" || st[0].Up || len(st[0].Errors) != 1 || !strings.Contains(st[0].Errors[0], text) || st[1].ErrorCount+st[2].ErrorCount > 0 {
			t.Errorf("status %+v", st)
		}
		d.Set(devices[1:])
		if err := wait(t, d); err != nil {
			t.Errorf("without model.TunnelIPIP: %v", err)
		}
	})
}

// TestForeignTunl0: a tunl0 that somebody else uses is never touched while IPIP is not
// wanted, nor are their addresses while it is. With a kernel that has no ipip there is no
// such thing, and nothing is to be seen.
func TestForeignTunl0(t *testing.T) {
	t.Parallel()
	worlds(t, func(t *testing.T, w world) {
		theirs := netip.MustParsePrefix("192.0.2.7/32")
		index := 0
		if l := func() (l *linkState) {
			w.harm(op{verb: linkAdd, kind: model.TunnelIPIP, mtu: 1480})
			w.harm(op{verb: linkMTU, kind: model.TunnelIPIP, mtu: 1400})
			return tunl0(t, w)
		}(); l != nil {
			index = l.index
		} else if w.hasIPIP() {
			t.Fatal("no tunl0")
		}
		w.harm(op{verb: addrAdd, kind: model.TunnelIPIP, index: index, prefix: theirs})
		w.harm(op{verb: linkUp, kind: model.TunnelIPIP, index: index})
		before := w.dump()
		slices.Sort(before)

		d := w.devices(discard)
		stop := startIn(t, w, d)
		same := func(when string) {
			t.Helper()
			eventually(t, func() string {
				now := w.dump()
				slices.Sort(now)
				if slices.Equal(now, before) {
					return ""
				}
				return fmt.Sprintf("%s: was\n%s\nis\n%s", when, strings.Join(before, "\n"), strings.Join(now, "\n"))
			})
		}
		d.Set(nil)
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		same("not wanted")
		if !w.hasIPIP() {
			return
		}
		d.Set([]model.TunnelDevice{deviceOf(model.TunnelIPIP, 1)})
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		if got := w.dump(); !slices.Contains(got, addrLine("tunl0", theirs, "")) || !slices.Contains(got, addrLine("tunl0", netip.MustParsePrefix("10.244.0.1/32"), label)) {
			t.Errorf("wanted:\n%s", strings.Join(got, "\n"))
		}
		stop()
		w.run(func() {
			if _, err := w.remove(); err != nil {
				t.Error(err)
			}
		})
		got := strings.Join(w.dump(), "\n")
		if !strings.Contains(got, "up=true") || !strings.Contains(got, theirs.String()) || strings.Contains(got, "10.244.0.1") || strings.Contains(got, `"causeway"`) {
			t.Errorf("after removal:\n%s", got)
		}
	})
}

// TestWalk wants one thing after the other while somebody else does harm; at each rest the
// kernel has what is wanted and nothing more (I5).
func TestWalk(t *testing.T) {
	t.Parallel()
	worlds(t, func(t *testing.T, w world) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		d := w.devices(discard)
		stop := startIn(t, w, d)
		kinds := kindsOf(w)
		var devices []model.TunnelDevice
		steps := 60
		if _, real := w.(*netns); real {
			steps = 25
		}
		var story []string
		for step := range steps {
			if step == 0 || r.IntN(3) > 0 {
				devices = randomDevices(r, kinds)
				d.Set(devices)
				story = append(story, fmt.Sprintf("set %+v", devices))
			}
			if r.IntN(6) == 0 {
				stop()
				d = w.devices(discard)
				stop = startIn(t, w, d)
				d.Set(devices)
				story = append(story, "the agent restarts")
			}
			for range r.IntN(5) {
				o := randomHarm(r, kinds)
				story = append(story, o.String())
				w.harm(o)
				if o.verb == sysctl { // the kernel notifies of some only; the resync heals the rest
					d.loop.PokeResync()
				}
			}
			// A write may meet the harm; what Wait says then is old news at once.
			_ = wait(t, d)
			want(t, w, devices, append([]string{fmt.Sprintf("seed %d step %d", seed, step)}, story[max(0, len(story)-8):]...)...)
		}
		stop()
		removed(t, w)
	})
}

func randomDevices(r *rand.Rand, kinds []model.Tunnel) (out []model.TunnelDevice) {
	for _, k := range kinds {
		if r.IntN(4) == 0 {
			continue
		}
		var peers []int
		for n := 2; n < 8; n++ {
			if r.IntN(2) == 0 {
				peers = append(peers, n)
			}
		}
		d := deviceOf(k, 1, peers...)
		if k != model.TunnelIPIP {
			d.VNI, d.ChecksumOffload = 4096+r.IntN(2), r.IntN(4) == 0
			d.Port = []int{0, 8472}[r.IntN(8)/7]
		}
		d.MTU -= r.IntN(2) * 20
		d.Addr = peerOf(k, 101+r.IntN(3)).Addr
		out = append(out, d)
	}
	return out
}

// randomHarm is what an administrator's hand or another program may do.
func randomHarm(r *rand.Rand, kinds []model.Tunnel) op {
	k := kinds[r.IntN(len(kinds))]
	p := peerOf(k, 2+r.IntN(10))
	own := peerOf(k, 101+r.IntN(4)).Addr
	o := op{kind: k, mac: nodeMAC(p.Node, k), addr: p.Underlay, mtu: 1300}
	if k == model.TunnelIPIP {
		o.verb = []verb{linkDown, linkMTU, addrDel, sysctl}[r.IntN(4)]
	} else {
		o.verb = []verb{linkDel, linkDown, linkMTU, linkMAC, offload, sysctl, addrAdd, addrDel, fdbSet, fdbDel, neighSet, neighDel, linkAdd}[r.IntN(13)]
	}
	switch o.verb {
	case sysctl:
		s := sysctls(k)[r.IntN(len(sysctls(k)))]
		o.name, o.value = s.name, map[bool]string{true: "1", false: "0"}[s.value == "0"]
	case offload:
		o.on = r.IntN(2) == 0
	case linkMAC:
		o.mac = mac{2, 0, 0, 0, 0, 9}
	case addrAdd, addrDel:
		o.prefix = netip.PrefixFrom(own, own.BitLen())
		if k == model.TunnelIPIP {
			o.label = label
		}
	case neighSet, neighDel:
		o.addr = p.Addr
		if r.IntN(2) == 0 {
			o.mac = mac{2, 0, 0, 0, 0, 8}
		}
	case fdbSet:
		if r.IntN(2) == 0 {
			o.mac = mac{2, 0, 0, 0, 0, 7}
		}
	case linkAdd:
		o.vxlan = vxlan{vni: 5, port: 4789, local: peerOf(k, 1).Underlay}
	}
	return o
}
