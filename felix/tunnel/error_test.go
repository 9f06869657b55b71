package tunnel

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// TestNothingBeforeSet: without a Set nothing is read, let alone written (I3, I4).
func TestNothingBeforeSet(t *testing.T) {
	w := &fakeWorld{newFakeKernel()}
	w.harm(op{verb: linkAdd, kind: model.TunnelVXLAN4, mtu: 1400, vxlan: vxlan{vni: 1, port: 4789, local: a("10.0.0.1")}})
	d := w.devices(discard)
	opened := false
	d.open = func() (kernel, error) {
		opened = true
		return fakeSeam{w.fakeKernel}, nil
	}
	if err := d.apply(context.Background(), true); err != nil || opened || len(w.ops)+w.reads > 0 {
		t.Errorf("apply: %v, opened %t, wrote %v", err, opened, w.ops)
	}
}

// TestOneBadPeer: what the kernel refuses for one peer, and what is wrong with another,
// keeps no third from being programmed; errors name device and peer, and go when the cause does.
func TestOneBadPeer(t *testing.T) {
	t.Parallel()
	w := &fakeWorld{newFakeKernel()}
	var bad atomic.Bool
	bad.Store(true)
	w.refuse = func(o *op) error {
		if bad.Load() && o.peer == "node3" && o.verb == fdbSet {
			return unix.ENOBUFS
		}
		return nil
	}
	d := w.devices(discard)
	startIn(t, w, d)
	dev := deviceOf(model.TunnelVXLAN4, 1, 2, 3, 4)
	dev.Peers = append(dev.Peers, model.TunnelPeer{Node: "node9"})
	d.Set([]model.TunnelDevice{dev})
	err := wait(t, d)
	for _, text := range []string{
		"vxlan.calico: peer node3: bridge fdb replace " + nodeMAC("node3", model.TunnelVXLAN4).String() + " dev vxlan.calico dst 10.0.0.3 self permanent: no buffer space available",
		"vxlan.calico: peer node9: node address invalid IP: must be an IPv4 unicast address",
	} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("Wait: %v\nwithout %s", err, text)
		}
	}
	eventually(t, func() string {
		if s := d.Status(); len(s) == 1 && s[0].Up && s[0].Peers == 2 && s[0].PeersWanted == 3 && s[0].ErrorCount == 2 {
			return ""
		}
		return "status is not 2 of 3 peers with two errors"
	})
	bad.Store(false)
	dev.Peers = dev.Peers[:3]
	d.Set([]model.TunnelDevice{dev})
	if err := wait(t, d); err != nil {
		t.Fatal(err)
	}
	want(t, w, []model.TunnelDevice{dev})
}

// TestErrorsOfTheKernel: what stands in the way on a real node is named, with what to do.
func TestErrorsOfTheKernel(t *testing.T) {
	t.Parallel()
	n := newNetNS(t)
	d := n.devices(discard)
	startIn(t, n, d)
	dev := deviceOf(model.TunnelVXLAN4, 1, 2)
	expect := func(text string) {
		t.Helper()
		d.Set([]model.TunnelDevice{dev, deviceOf(model.TunnelVXLAN6, 1, 2)})
		if err := wait(t, d); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("Wait: %v\nwant %s", err, text)
		}
		want := deviceOf(model.TunnelVXLAN6, 1, 2)
		if s := d.Status(); len(s) != 2 || s[1].Device != want.Tunnel.Device() || !s[1].Up || s[1].Peers != 1 {
			t.Errorf("the other device: %+v", s)
		}
	}
	n.ip("link add flannel.1 type vxlan id 4096 dstport 4789 local 10.0.0.1")
	expect("vxlan.calico: another device has VNI 4096 and port 4789 (ip -d link show type vxlan): remove it")
	d.Set([]model.TunnelDevice{deviceOf(model.TunnelVXLAN6, 1, 2)})
	if err := wait(t, d); err != nil {
		t.Fatal(err)
	}
	n.ip("link del flannel.1")
	n.ip("link add vxlan.calico type bridge")
	expect(`vxlan.calico: a link of type "bridge" has the name; remove it (ip link del vxlan.calico)`)
	n.ip("link del vxlan.calico")

	var socket net.PacketConn
	n.run(func() {
		var err error
		if socket, err = net.ListenPacket("udp4", "0.0.0.0:8472"); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	dev.Port = 8472
	expect("vxlan.calico: another program has the UDP port (ss -ulnp)")
	socket.Close()
	d.Set([]model.TunnelDevice{dev})
	if err := wait(t, d); err != nil {
		t.Fatal(err)
	}
	want(t, n, []model.TunnelDevice{dev})
}

// TestMadeAnew: a device with wrong settings of its own is replaced, which is logged with
// what was wrong; so is one with more than ours have.
func TestMadeAnew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ made, why string }{
		{"id 4096 local 10.0.0.1 dstport 4789 learning", "it has learning"},
		{"id 4096 local 10.0.0.1 dstport 4789 nolearning gbp", "it has gbp"},
		{"id 4096 local 10.0.0.1 dstport 4789 nolearning noudpcsum", "it has no UDP checksums"},
		{"id 4096 local 10.0.0.1 dstport 4789 nolearning group 239.1.1.1 dev lo", "it has a group, a device of its own"},
		{"id 1 local 10.0.0.9 dstport 8472 nolearning", "VNI 1 is to be 4096, port 8472 is to be 4789, local address 10.0.0.9 is to be 10.0.0.1"},
		{"external dstport 4789", "VNI 0 is to be 4096, local address invalid IP is to be 10.0.0.1, it has external"},
	} {
		t.Run(c.why, func(t *testing.T) {
			t.Parallel()
			n := newNetNS(t)
			n.ip("link add vxlan.calico type vxlan " + c.made)
			var log lockedBuffer
			d := n.devices(slog.New(slog.NewTextHandler(&log, nil)))
			startIn(t, n, d)
			dev := deviceOf(model.TunnelVXLAN4, 1, 2)
			d.Set([]model.TunnelDevice{dev})
			if err := wait(t, d); err != nil {
				t.Fatal(err)
			}
			want(t, n, []model.TunnelDevice{dev})
			if text := log.String(); !strings.Contains(text, "made anew") || !strings.Contains(text, c.why) {
				t.Errorf("log\n%s", text)
			}
		})
	}
}

// TestAdopted: what is right already is not touched: the link keeps its index, and nothing is logged.
func TestAdopted(t *testing.T) {
	t.Parallel()
	n := newNetNS(t)
	dev := deviceOf(model.TunnelVXLAN4, 1, 2)
	first := n.devices(discard)
	stop := startIn(t, n, first)
	first.Set([]model.TunnelDevice{dev})
	if err := wait(t, first); err != nil {
		t.Fatal(err)
	}
	stop()
	before := n.ip("-d link show vxlan.calico")
	var log lockedBuffer
	d := n.devices(slog.New(slog.NewTextHandler(&log, nil)))
	startIn(t, n, d)
	d.Set([]model.TunnelDevice{dev})
	if err := wait(t, d); err != nil {
		t.Fatal(err)
	}
	if after := n.ip("-d link show vxlan.calico"); after != before || log.String() != "" {
		t.Errorf("was\n%sis\n%slog\n%s", before, after, log.String())
	}
}

// TestNotices: what a notification means for what is believed.
func TestNotices(t *testing.T) {
	got := standing(deviceOf(model.TunnelVXLAN4, 1, 2))
	m := nodeMAC("node2", model.TunnelVXLAN4)
	fdb := neighMsg{family: unix.AF_BRIDGE, index: 7, state: unix.NUD_PERMANENT, flags: unix.NTF_SELF, dst: a("10.0.0.2"), mac: m}
	neigh := neighMsg{family: unix.AF_INET, index: 7, state: unix.NUD_PERMANENT, dst: a("10.244.0.2"), mac: m}
	with := func(m neighMsg, change func(*neighMsg)) neighMsg { change(&m); return m }
	for _, c := range []struct {
		name string
		n    notice
		want bool
	}{
		{"our own FDB entry", notice{fdb, false}, true},
		{"it goes", notice{fdb, true}, false},
		{"it leads elsewhere", notice{with(fdb, func(m *neighMsg) { m.dst = a("10.0.0.9") }), false}, false},
		{"it may age", notice{with(fdb, func(m *neighMsg) { m.state = unix.NUD_REACHABLE }), false}, false},
		{"it has a port of its own", notice{with(fdb, func(m *neighMsg) { m.odd = true }), false}, false},
		{"another comes", notice{with(fdb, func(m *neighMsg) { m.mac = mac{2} }), false}, false},
		{"another goes", notice{with(fdb, func(m *neighMsg) { m.mac = mac{2} }), true}, true},
		{"our own neighbour", notice{neigh, false}, true},
		{"it goes", notice{neigh, true}, false},
		{"it has another MAC", notice{with(neigh, func(m *neighMsg) { m.mac = mac{2} }), false}, false},
		{"it is not static any more", notice{with(neigh, func(m *neighMsg) { m.state = unix.NUD_STALE }), false}, false},
		{"another static one comes", notice{with(neigh, func(m *neighMsg) { m.dst = a("10.9.9.9") }), false}, false},
		{"the kernel resolves another", notice{with(neigh, func(m *neighMsg) { m.dst, m.state = a("10.9.9.9"), unix.NUD_INCOMPLETE }), false}, true},
		{"the kernel resolved another", notice{with(neigh, func(m *neighMsg) { m.dst, m.state = a("10.9.9.9"), unix.NUD_REACHABLE }), false}, true},
		{"a proxy entry", notice{with(neigh, func(m *neighMsg) { m.dst, m.flags = a("10.9.9.9"), unix.NTF_PROXY }), false}, true},
		{"a link of before", notice{with(fdb, func(m *neighMsg) { m.index = 6 }), true}, true},
	} {
		if have := got.expects(c.n); have != c.want {
			t.Errorf("%s: expected %t, want %t", c.name, have, c.want)
		}
	}
}

// TestLostNotices: more notifications than the inbox holds, or the kernel keeps, make
// everything doubtful, once.
func TestLostNotices(t *testing.T) {
	f := newFakeKernel()
	var in inbox
	f.in, f.poke, f.listening = &in, func() {}, true
	l := &fakeLink{linkState: linkState{index: 7}}
	in.watch(model.TunnelVXLAN4, 7)
	for range inboxMost + 5 {
		f.tellNeigh(unix.RTM_NEWNEIGH, l, true, a("10.0.0.9"), mac{2})
	}
	var devices [kinds]device
	in.take(&devices)
	for k := range devices {
		if devices[k].doubt != doubtAll {
			t.Errorf("%s: doubt %d", model.Tunnel(k), devices[k].doubt)
		}
		devices[k].doubt = 0
	}
	in.take(&devices)
	f.tellLink(unix.RTM_NEWLINK, &fakeLink{linkState: linkState{index: 9}}, "tunl0")
	f.tellLink(unix.RTM_NEWLINK, &fakeLink{linkState: linkState{index: 11}}, "cali123")
	f.tellAddr(l)
	in.take(&devices)
	if got, want := []doubt{devices[model.TunnelIPIP].doubt, devices[model.TunnelVXLAN4].doubt, devices[model.TunnelVXLAN6].doubt}, []doubt{doubtLink, doubtAddrs, 0}; !slices.Equal(got, want) {
		t.Errorf("doubts %v, want %v", got, want)
	}
	in.overrun()
	in.take(&devices)
	if devices[model.TunnelVXLAN6].doubt != doubtAll {
		t.Error("an overrun leaves no doubt")
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
