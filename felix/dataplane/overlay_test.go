package dataplane

import (
	"crypto/sha1"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// three nodes: b shares a's subnets, c shares neither, d has no address.
func overlaySnapshot(f model.Felix, pools ...model.Pool) *model.Snapshot {
	end := func(s string) model.TunnelEnd { return model.TunnelEnd{Addr: addr(s)} }
	return &model.Snapshot{
		Felix: f, Pools: pools,
		Nodes: []model.Node{
			{Name: "a", IPv4: prefix("192.0.2.1/24"), IPv6: prefix("fd00:a::1/64"), Tunnels: [model.Tunnels]model.TunnelEnd{end("10.1.0.1"), end("10.1.0.2"), end("fd01::a:1")}},
			{Name: "b", IPv4: prefix("192.0.2.2/24"), IPv6: prefix("fd00:a::2/64"), Tunnels: [model.Tunnels]model.TunnelEnd{end("10.1.1.1"), {Addr: addr("10.1.1.2"), MAC: "66:00:00:00:00:01"}, end("fd01::b:1")}},
			{Name: "c", IPv4: prefix("198.51.100.3/24"), IPv6: prefix("fd00:c::3/64")},
			{Name: "d"},
		},
		Blocks: []model.Block{
			{CIDR: prefix("10.1.0.0/26"), Node: "a", Lent: []model.Loan{{Addr: addr("10.1.0.9"), Node: "c"}}},
			{CIDR: prefix("10.1.1.0/26"), Node: "b", Lent: []model.Loan{{Addr: addr("10.1.1.8"), Node: "a"}, {Addr: addr("10.1.1.9"), Node: "c"}}},
			{CIDR: prefix("10.1.2.0/26"), Node: "c", Lent: []model.Loan{{Addr: addr("10.1.2.5"), Node: "b"}, {Addr: addr("10.1.2.6"), Node: "gone"}}},
			{CIDR: prefix("10.1.3.0/26"), Node: "d"},
			{CIDR: prefix("10.1.4.0/26"), Lent: []model.Loan{{Addr: addr("10.1.4.1"), Node: "b"}}},
			{CIDR: prefix("10.9.0.0/26"), Node: "b"}, // in no pool
			{CIDR: prefix("fd01::b:0/122"), Node: "b"},
			{CIDR: prefix("fd01::c:0/122"), Node: "c"},
		},
	}
}

func hopText(h model.NextHop) string {
	s := h.Addr.String()
	if h.Device != "" {
		s += "@" + h.Device
		if !h.OnLink {
			s += " offlink"
		}
	}
	return s
}

func routesText(rs []model.Route) string {
	var out []string
	for _, r := range rs {
		for _, h := range r.NextHops {
			out = append(out, r.Prefix.String()+">"+hopText(h))
		}
	}
	return strings.Join(out, " ")
}

func pool4(ipip, vxlan model.EncapMode) model.Pool {
	return model.Pool{Name: "four", CIDR: prefix("10.1.0.0/16"), IPIPMode: ipip, VXLANMode: vxlan}
}

func pool6(vxlan model.EncapMode) model.Pool {
	return model.Pool{Name: "six", CIDR: prefix("fd01::/64"), IPIPMode: model.EncapNever, VXLANMode: vxlan}
}

// devicesOf puts the link-local addresses of IPv6's devices in the place of the nodes' names.
var devicesOf = strings.NewReplacer("[b]", "fe80::6405:90ff:fef3:54e9", "[c]", "fe80::64b4:d5ff:feb2:9147")

// TestOverlay: mode, subnet, kind of next hop, family, disabled, switched off.
func TestOverlay(t *testing.T) {
	const never, always, cross = model.EncapNever, model.EncapAlways, model.EncapCrossSubnet
	const blocks4 = "10.1.0.9/32>198.51.100.3@vxlan.calico 10.1.1.0/26>%s 10.1.1.9/32>198.51.100.3@vxlan.calico 10.1.2.0/26>198.51.100.3@vxlan.calico 10.1.2.5/32>%[1]s 10.1.4.1/32>%[1]s"
	disabled := pool4(never, always)
	disabled.Disabled = true
	for _, c := range []struct {
		name   string
		felix  model.Felix
		pools  []model.Pool
		hops   string // of a pod's prefix, with next hops b, c and a ToR; IPv4, then IPv6
		routes string
		wants  string
	}{
		{"no pool", model.Felix{}, nil, "192.0.2.2 198.51.100.3 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[]"},
		{"never", model.Felix{}, []model.Pool{pool4(never, never), pool6(never)}, "192.0.2.2 198.51.100.3 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[]"},
		{"ipip cross", model.Felix{}, []model.Pool{pool4(cross, never)}, "192.0.2.2 198.51.100.3@tunl0 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[ipip]"},
		{"ipip always", model.Felix{}, []model.Pool{pool4(always, never)}, "192.0.2.2@tunl0 198.51.100.3@tunl0 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[ipip]"},
		{"ipip off", model.Felix{IPIPOff: true}, []model.Pool{pool4(always, never)}, "192.0.2.2 198.51.100.3 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[]"},
		{"vxlan cross", model.Felix{}, []model.Pool{pool4(never, cross)}, "192.0.2.2 198.51.100.3@vxlan.calico 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", fmt.Sprintf(blocks4, "192.0.2.2"), "[vxlan]"},
		{"vxlan always", model.Felix{}, []model.Pool{pool4(never, always)}, "10.1.1.2@vxlan.calico 198.51.100.3@vxlan.calico 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", fmt.Sprintf(blocks4, "10.1.1.2@vxlan.calico"), "[vxlan]"},
		{"disabled", model.Felix{}, []model.Pool{disabled}, "10.1.1.2@vxlan.calico 198.51.100.3@vxlan.calico 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", fmt.Sprintf(blocks4, "10.1.1.2@vxlan.calico"), "[vxlan]"},
		{"vxlan off", model.Felix{VXLANOff: true}, []model.Pool{pool4(never, always), pool6(always)}, "192.0.2.2 198.51.100.3 192.0.2.254 fd00:a::2 fd00:c::3 fd00:a::fe", "", "[]"},
		{"vxlan six cross", model.Felix{}, []model.Pool{pool6(cross)}, "192.0.2.2 198.51.100.3 192.0.2.254 fd00:a::2 [c]@vxlan-v6.calico fd00:a::fe", "fd01::b:0/122>fd00:a::2 fd01::c:0/122>[c]@vxlan-v6.calico", "[vxlan-v6]"},
		{"vxlan six always", model.Felix{}, []model.Pool{pool4(cross, never), pool6(always)}, "192.0.2.2 198.51.100.3@tunl0 192.0.2.254 [b]@vxlan-v6.calico [c]@vxlan-v6.calico fd00:a::fe", "fd01::b:0/122>[b]@vxlan-v6.calico fd01::c:0/122>[c]@vxlan-v6.calico", "[ipip vxlan-v6]"},
	} {
		c.hops, c.routes = devicesOf.Replace(c.hops), devicesOf.Replace(c.routes)
		o := NewOverlay(overlaySnapshot(c.felix, c.pools...), "a")
		var hops []string
		for _, h := range []string{"192.0.2.2", "198.51.100.3", "192.0.2.254"} {
			hops = append(hops, hopText(o.Via(prefix("10.1.1.0/26"), model.NextHop{Addr: addr(h)})))
		}
		for _, h := range []string{"fd00:a::2", "fd00:c::3", "fd00:a::fe"} {
			hops = append(hops, hopText(o.Via(prefix("fd01::b:0/122"), model.NextHop{Addr: addr(h)})))
		}
		if got := strings.Join(hops, " "); got != c.hops {
			t.Errorf("%s: next hops are\n%s, want\n%s", c.name, got, c.hops)
		}
		if got := routesText(o.Routes()); got != c.routes {
			t.Errorf("%s: routes are\n%s, want\n%s", c.name, got, c.routes)
		}
		if got := fmt.Sprint(o.Wants()); got != c.wants {
			t.Errorf("%s: wants %s, not %s", c.name, got, c.wants)
		}
		if again := NewOverlay(overlaySnapshot(c.felix, c.pools...), "a"); !o.Equal(again) || !o.SameHops(again) {
			t.Errorf("%s: is not equal to itself", c.name)
		}
	}
}

// TestOverlayLeavesAlone: what is no pod's, leads to this node, or has a device already.
func TestOverlayLeavesAlone(t *testing.T) {
	snap := overlaySnapshot(model.Felix{}, pool4(model.EncapAlways, model.EncapNever))
	snap.Nodes = append(snap.Nodes, model.Node{Name: "e", IPv4: prefix("10.1.7.7/24")})
	o := NewOverlay(snap, "a")
	for _, c := range []struct {
		prefix string
		hop    model.NextHop
	}{
		{"10.2.0.0/26", model.NextHop{Addr: addr("192.0.2.2")}},  // in no pool
		{"10.0.0.0/8", model.NextHop{Addr: addr("192.0.2.2")}},   // wider than the pool
		{"0.0.0.0/0", model.NextHop{Addr: addr("198.51.100.3")}}, // the default route
		{"10.1.0.0/26", model.NextHop{Addr: addr("192.0.2.1")}},  // this node
		{"10.1.1.0/26", model.NextHop{Addr: addr("192.0.2.2"), Device: "eth0"}},
		{"10.1.1.0/26", model.NextHop{Device: "eth0"}},
		{"10.1.7.0/26", model.NextHop{Addr: addr("10.1.7.7")}},    // holds the far end
		{"fd01::b:0/122", model.NextHop{Addr: addr("192.0.2.2")}}, // of a pool that there is not
	} {
		if got := o.Via(prefix(c.prefix), c.hop); got != c.hop {
			t.Errorf("%s via %s became %s", c.prefix, hopText(c.hop), hopText(got))
		}
	}
	// An IPv4 prefix whose next hop is a node's IPv6 address (RFC 8950) has IPv4's tunnel.
	if got := hopText(o.Via(prefix("10.1.2.0/26"), model.NextHop{Addr: addr("fd00:c::3")})); got != "198.51.100.3@tunl0" {
		t.Errorf("by IPv6: %s", got)
	}
	nobody := NewOverlay(overlaySnapshot(model.Felix{}, pool4(model.EncapNever, model.EncapAlways)), "stranger")
	if nobody.Wants() != nil || nobody.Routes() != nil {
		t.Errorf("a node that is not known wants %v and %v", nobody.Wants(), nobody.Routes())
	}
}

// TestOverlayWhole: where routes come from blocks, they are all only once the blocks are known.
func TestOverlayWhole(t *testing.T) {
	for _, c := range []struct {
		pool        model.Pool
		known, want bool
	}{
		{pool4(model.EncapNever, model.EncapAlways), false, false},
		{pool4(model.EncapNever, model.EncapAlways), true, true},
		{pool4(model.EncapAlways, model.EncapNever), false, true},
		{pool4(model.EncapNever, model.EncapNever), false, true},
	} {
		s := overlaySnapshot(model.Felix{}, c.pool)
		s.BlocksKnown = c.known
		if got := NewOverlay(s, "a").Whole(); got != c.want {
			t.Errorf("%+v, blocks known %t: %t", c.pool, c.known, got)
		}
	}
}

// TestOverlayClaims: of two nodes that claim one tunnel address, or a node's, the first by
// name has it, and nothing leads one's packets to another.
func TestOverlayClaims(t *testing.T) {
	snap := overlaySnapshot(model.Felix{}, pool4(model.EncapNever, model.EncapAlways))
	for name, claim := range map[string]string{"as b's": "10.1.1.2", "as ours": "10.1.0.2", "as b's node address": "192.0.2.2", "as our node address": "192.0.2.1", "of IPv6": "fd01::c"} {
		snap.Nodes[2].Tunnels[model.TunnelVXLAN4].Addr = addr(claim)
		o := NewOverlay(snap, "a")
		if got := hopText(o.Via(prefix("10.1.2.0/26"), model.NextHop{Addr: addr("198.51.100.3")})); got != "198.51.100.3@vxlan.calico" {
			t.Errorf("%s: %s", name, got)
		}
		if got := hopText(o.Via(prefix("10.1.1.0/26"), model.NextHop{Addr: addr("192.0.2.2")})); got != "10.1.1.2@vxlan.calico" {
			t.Errorf("%s: b: %s", name, got)
		}
	}
	snap.Nodes[2].IPv4 = prefix("192.0.2.1/24") // c says it is us
	o := NewOverlay(snap, "a")
	if got := routesText(o.Routes()); strings.Contains(got, "192.0.2.1@") || strings.Contains(got, "10.1.2.0/26") {
		t.Errorf("routes to ourselves: %s", got)
	}
	if ps := o.Devices(1500, [model.Tunnels]netip.Addr{})[0].Peers; len(ps) != 1 || ps[0].Node != "b" {
		t.Errorf("peers %v", ps)
	}
}

// TestOverlayMAC: over IPv6 the next hop is made of the MAC that a node announces, and of its
// name where that is none, another node's or ours.
func TestOverlayMAC(t *testing.T) {
	snap := overlaySnapshot(model.Felix{}, pool6(model.EncapAlways))
	for mac, want := range map[string]string{
		"66:00:00:00:00:01": "fe80::6400:ff:fe00:1", "": "[c]", "nonsense": "[c]", "66:05:90:f3:54:e9": "[c]", // b's
		model.TunnelVXLAN6.MAC("a").String(): "[c]", "00:11:22:33:44:55:66:77": "[c]",
	} {
		snap.Nodes[2].Tunnels[model.TunnelVXLAN6].MAC = mac
		got := hopText(NewOverlay(snap, "a").Via(prefix("fd01::c:0/122"), model.NextHop{Addr: addr("fd00:c::3")}))
		if want = devicesOf.Replace(want) + "@vxlan-v6.calico"; got != want {
			t.Errorf("MAC %q: next hop %s, want %s", mac, got, want)
		}
	}
}

func TestOverlayDevices(t *testing.T) {
	f := model.Felix{VXLANVNI: 7, VXLANPort: 8472, ChecksumOffload: true, TunnelMTU: [model.Tunnels]int{model.TunnelVXLAN6: 1300}}
	o := NewOverlay(overlaySnapshot(f, pool4(model.EncapNever, model.EncapCrossSubnet), pool6(model.EncapAlways)), "a")
	got := fmt.Sprintf("%+v", o.Devices(1500, [model.Tunnels]netip.Addr{model.TunnelVXLAN4: addr("10.1.0.2")}))
	want := fmt.Sprintf("%+v", []model.TunnelDevice{
		{Tunnel: model.TunnelVXLAN4, Node: "a", MTU: 1450, Addr: addr("10.1.0.2"), Local: addr("192.0.2.1"), VNI: 7, Port: 8472, ChecksumOffload: true, Peers: []model.TunnelPeer{
			{Node: "b", Underlay: addr("192.0.2.2"), Addr: addr("10.1.1.2"), MAC: []byte{0x66, 0, 0, 0, 0, 1}}, {Node: "c", Underlay: addr("198.51.100.3"), Addr: addr("198.51.100.3")}}},
		{Tunnel: model.TunnelVXLAN6, Node: "a", MTU: 1300, Local: addr("fd00:a::1"), VNI: 7, Port: 8472, ChecksumOffload: true, Peers: []model.TunnelPeer{
			{Node: "b", Underlay: addr("fd00:a::2"), Addr: addr(devicesOf.Replace("[b]"))}, {Node: "c", Underlay: addr("fd00:c::3"), Addr: addr(devicesOf.Replace("[c]"))}}},
	})
	if got != want {
		t.Errorf("devices are\n%s, want\n%s", got, want)
	}
	if !o.NeedsMTU() {
		t.Error("IPv4's MTU follows the uplink's")
	}
	o = NewOverlay(overlaySnapshot(model.Felix{}, pool4(model.EncapAlways, model.EncapNever)), "a")
	if got := fmt.Sprintf("%+v", o.Devices(9000, [model.Tunnels]netip.Addr{})); got != fmt.Sprintf("%+v", []model.TunnelDevice{{Tunnel: model.TunnelIPIP, Node: "a", MTU: 8980}}) {
		t.Errorf("IPIP: %s", got)
	}
}

func TestOverlayGuard(t *testing.T) {
	f := model.Felix{ExternalNodes: prefixes("203.0.113.0/24", "192.0.2.2/32", "fd00:e::/64"), PodsVXLAN: true}
	v4, v6 := NewOverlay(overlaySnapshot(f, pool4(model.EncapCrossSubnet, model.EncapNever)), "a").Guard()
	if got, want := fmt.Sprintf("%+v", v4), fmt.Sprintf("%+v", model.EncapGuard{IPIP: true, Sources: prefixes("192.0.2.2/32", "198.51.100.3/32", "203.0.113.0/24"), PodsVXLAN: true}); got != want {
		t.Errorf("IPv4: %s, want %s", got, want)
	}
	if got := fmt.Sprintf("%+v", v6); got != fmt.Sprintf("%+v", model.EncapGuard{}) {
		t.Errorf("IPv6: %s", got)
	}
	f.VXLANPort = 8472
	o := NewOverlay(overlaySnapshot(f, pool6(model.EncapAlways)), "a")
	v4, v6 = o.Guard()
	if got, want := fmt.Sprintf("%+v", v6), fmt.Sprintf("%+v", model.EncapGuard{VXLANPort: 8472, Sources: prefixes("fd00:a::2/128", "fd00:c::3/128", "fd00:e::/64"), PodsVXLAN: true}); got != want {
		t.Errorf("IPv6: %s, want %s", got, want)
	}
	if v4.IPIP || v4.VXLANPort != 0 || v4.Sources != nil {
		t.Errorf("IPv4: %+v", v4)
	}
	if v4, _ = o.GuardOf([model.Tunnels]bool{model.TunnelIPIP: true}); !v4.IPIP || len(v4.Sources) != 3 {
		t.Errorf("with tunl0 still there: %+v", v4)
	}
}

func TestPodMTU(t *testing.T) {
	const never, always, cross = model.EncapNever, model.EncapAlways, model.EncapCrossSubnet
	for _, c := range []struct {
		name   string
		felix  model.Felix
		pools  []model.Pool
		uplink int
		want   int
	}{
		{"none", model.Felix{}, nil, 1500, 1500},
		{"never", model.Felix{}, []model.Pool{pool4(never, never)}, 1500, 1500},
		{"ipip", model.Felix{}, []model.Pool{pool4(cross, never)}, 1500, 1480},
		{"vxlan", model.Felix{}, []model.Pool{pool4(never, always)}, 9000, 8950},
		{"the least", model.Felix{}, []model.Pool{pool4(always, never), pool6(cross)}, 1500, 1430},
		{"switched off", model.Felix{IPIPOff: true, VXLANOff: true}, []model.Pool{pool4(always, never), pool6(cross)}, 1500, 1500},
		{"configured", model.Felix{TunnelMTU: [model.Tunnels]int{1400, 0, 8000}}, []model.Pool{pool4(always, never), pool6(cross)}, 1500, 1400},
		{"configured wider than the uplink", model.Felix{TunnelMTU: [model.Tunnels]int{1600}}, []model.Pool{pool4(always, never)}, 1500, 1500},
		{"configured and not asked for", model.Felix{TunnelMTU: [model.Tunnels]int{1400}}, []model.Pool{pool4(never, never)}, 1500, 1500},
		{"uplink not known", model.Felix{}, []model.Pool{pool4(always, never)}, 0, 0},
	} {
		if got := PodMTU(&model.Snapshot{Felix: c.felix, Pools: c.pools}, c.uplink); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// naiveVia is the rule once more, slowly and straight from the documents.
func naiveVia(s *model.Snapshot, me string, p netip.Prefix, h model.NextHop) model.NextHop {
	own := s.Node(me)
	var pool *model.Pool
	for i := range s.Pools {
		q := &s.Pools[i]
		if q.CIDR.Overlaps(p) && q.CIDR.Bits() <= p.Bits() && (pool == nil || pool.CIDR.Bits() < q.CIDR.Bits()) {
			pool = q
		}
	}
	if pool == nil || h.Device != "" || !h.Addr.IsValid() || own == nil {
		return h
	}
	var peer *model.Node
	for i := len(s.Nodes) - 1; i >= 0; i-- {
		if n := &s.Nodes[i]; n.Name != me && (n.IPv4.Addr() == h.Addr || n.IPv6.Addr() == h.Addr) && h.Addr != own.IPv4.Addr() && h.Addr != own.IPv6.Addr() {
			peer = n
		}
	}
	if peer == nil {
		return h
	}
	return naiveTo(s, own, pool, peer, p, h)
}

// naiveTo is what becomes of h, which leads to peer, for a prefix of pool.
func naiveTo(s *model.Snapshot, own *model.Node, pool *model.Pool, peer *model.Node, p netip.Prefix, h model.NextHop) model.NextHop {
	six := pool.CIDR.Addr().Is6()
	mine, theirs := own.IPv4, peer.IPv4
	if six {
		mine, theirs = own.IPv6, peer.IPv6
	}
	if !mine.IsValid() || !theirs.IsValid() || theirs.Addr() == mine.Addr() || p.Contains(theirs.Addr()) {
		return h
	}
	tunnel, mode := model.TunnelVXLAN4, pool.VXLANMode
	switch {
	case six:
		tunnel = model.TunnelVXLAN6
	case pool.IPIPMode != model.EncapNever && !s.Felix.IPIPOff:
		tunnel, mode = model.TunnelIPIP, pool.IPIPMode
	}
	if tunnel != model.TunnelIPIP && s.Felix.VXLANOff || mode == model.EncapNever || mode == model.EncapCrossSubnet && mine.Masked().Contains(theirs.Addr()) {
		return h
	}
	to := theirs.Addr()
	if six {
		sum := sha1.Sum([]byte(peer.Name + "-v6"))
		to = addr(fmt.Sprintf("fe80::%02x%02x:%02xff:fe%02x:%02x%02x", 'f'^2, sum[0], sum[1], sum[2], sum[3], sum[4]))
	} else if end := peer.Tunnels[tunnel].Addr; tunnel != model.TunnelIPIP && end.IsValid() && end.Is6() == six {
		to = end
		for i := range s.Nodes {
			n := &s.Nodes[i]
			if (n.IPv4.Addr() == end || n.IPv6.Addr() == end) || n.Name != peer.Name && n.Tunnels[tunnel].Addr == end && (n.Name == own.Name || n.Name < peer.Name && n.Address(six).IsValid() && n.Address(six) != mine.Addr()) {
				to = theirs.Addr()
			}
		}
	}
	return model.NextHop{Addr: to, Device: tunnel.Device(), OnLink: true}
}

// naiveRoutes asks naiveTo for every block and loan.
func naiveRoutes(s *model.Snapshot, me string) map[netip.Prefix]model.NextHop {
	out := map[netip.Prefix]model.NextHop{}
	add := func(p netip.Prefix, holder string) {
		n := s.Node(holder)
		if n == nil || holder == me || s.Node(me) == nil {
			return
		}
		for _, pool := range s.Pools {
			six := pool.CIDR.Addr().Is6()
			own, a := s.Node(me).Address(six), n.Address(six)
			if !pool.CIDR.Contains(p.Addr()) || pool.VXLANMode == model.EncapNever || s.Felix.VXLANOff || pool.IPIPMode != model.EncapNever && !s.Felix.IPIPOff || !a.IsValid() || !own.IsValid() || a == own {
				continue
			}
			if _, there := out[p]; !there {
				out[p] = naiveTo(s, s.Node(me), &pool, n, p, model.NextHop{Addr: a})
			}
		}
	}
	for _, b := range s.Blocks {
		add(b.CIDR, b.Node)
		for _, l := range b.Lent {
			if l.Node != b.Node {
				add(netip.PrefixFrom(l.Addr, l.Addr.BitLen()), l.Node)
			}
		}
	}
	return out
}

// randomSnapshot has few addresses and many nodes, so that they meet.
func randomSnapshot(r *rand.Rand) *model.Snapshot {
	modes := []model.EncapMode{model.EncapNever, model.EncapAlways, model.EncapCrossSubnet}
	s := &model.Snapshot{Felix: model.Felix{IPIPOff: r.IntN(8) == 0, VXLANOff: r.IntN(8) == 0}}
	v4 := func(net, most int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(net), byte(r.IntN(3)), byte(1 + r.IntN(most))})
	}
	v6 := func(net, most int) netip.Addr {
		a := netip.MustParseAddr("fd00::").As16()
		a[3], a[5], a[15] = byte(net), byte(r.IntN(3)), byte(1+r.IntN(most))
		return netip.AddrFrom16(a)
	}
	for i := range 8 {
		n := model.Node{Name: fmt.Sprintf("n%d", i)}
		if r.IntN(6) > 0 {
			n.IPv4 = netip.PrefixFrom(v4(200, 8), []int{16, 24, 30, 32}[r.IntN(4)])
		}
		if r.IntN(6) > 0 {
			n.IPv6 = netip.PrefixFrom(v6(200, 8), []int{40, 64, 128}[r.IntN(3)])
		}
		for t := range n.Tunnels {
			switch r.IntN(8) {
			case 0:
			case 1:
				n.Tunnels[t].Addr = v4(200, 8)
			default:
				n.Tunnels[t].Addr = v4(0, 20)
				if model.Tunnel(t) == model.TunnelVXLAN6 {
					n.Tunnels[t].Addr = v6(0, 20)
				}
			}
		}
		s.Nodes = append(s.Nodes, n)
	}
	for i := range 4 {
		if r.IntN(5) > 0 {
			p := model.Pool{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), IPIPMode: modes[r.IntN(3)], VXLANMode: model.EncapNever, Disabled: r.IntN(3) == 0}
			if p.IPIPMode == model.EncapNever {
				p.VXLANMode = modes[r.IntN(3)]
			}
			s.Pools = append(s.Pools, p)
		}
		if r.IntN(5) > 0 {
			a := netip.MustParseAddr("fd00::").As16()
			a[3] = byte(i)
			s.Pools = append(s.Pools, model.Pool{CIDR: netip.PrefixFrom(netip.AddrFrom16(a), 32), IPIPMode: model.EncapNever, VXLANMode: modes[r.IntN(3)]})
		}
	}
	if r.IntN(5) == 0 { // one that holds the nodes
		s.Pools = append(s.Pools, model.Pool{CIDR: prefix("10.200.0.0/16"), IPIPMode: model.EncapNever, VXLANMode: modes[r.IntN(3)]})
		s.Blocks = append(s.Blocks, model.Block{CIDR: prefix("10.200.0.0/26"), Node: "n1"})
	}
	r.Shuffle(len(s.Pools), func(i, j int) { s.Pools[i], s.Pools[j] = s.Pools[j], s.Pools[i] })
	seen := map[netip.Prefix]bool{}
	for range 30 {
		b := model.Block{CIDR: netip.PrefixFrom(v4(r.IntN(5), 255), 26).Masked(), Node: fmt.Sprintf("n%d", r.IntN(10))}
		if r.IntN(2) == 0 {
			b.CIDR = netip.PrefixFrom(v6(r.IntN(5), 255), 122).Masked()
		}
		if seen[b.CIDR] {
			continue
		}
		seen[b.CIDR] = true
		a := b.CIDR.Addr()
		for range r.IntN(4) {
			a = a.Next()
			b.Lent = append(b.Lent, model.Loan{Addr: a, Node: fmt.Sprintf("n%d", r.IntN(10))})
		}
		s.Blocks = append(s.Blocks, b)
	}
	return s
}

// TestOverlayIsTheRule compares random clusters with the naive model.
func TestOverlayIsTheRule(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for step := range 2000 {
		s := randomSnapshot(r)
		me := fmt.Sprintf("n%d", r.IntN(9))
		o := NewOverlay(s, me)
		for range 50 {
			var p netip.Prefix
			b := &s.Blocks[r.IntN(len(s.Blocks))]
			p = netip.PrefixFrom(b.CIDR.Addr(), []int{b.CIDR.Bits(), b.CIDR.Addr().BitLen(), r.IntN(b.CIDR.Addr().BitLen())}[r.IntN(3)]).Masked()
			n := &s.Nodes[r.IntN(len(s.Nodes))]
			h := model.NextHop{Addr: n.Address(r.IntN(2) == 0)}
			if r.IntN(10) == 0 {
				h.Addr = addr("10.200.0.254")
			}
			if got, want := o.Via(p, h), naiveVia(s, me, p, h); got != want {
				t.Fatalf("seed %d step %d: %s: %s via %s became %s, want %s\n%+v", seed, step, me, p, hopText(h), hopText(got), hopText(want), s)
			}
		}
		want := naiveRoutes(s, me)
		for _, route := range o.Routes() {
			if w, ok := want[route.Prefix]; !ok || len(route.NextHops) != 1 || route.NextHops[0] != w {
				t.Fatalf("seed %d step %d: %s: route %s, want %s\n%+v", seed, step, me, routesText([]model.Route{route}), hopText(w), s)
			}
		}
		if len(want) != len(o.Routes()) || !slices.IsSortedFunc(o.Routes(), func(a, b model.Route) int { return ComparePrefix(a.Prefix, b.Prefix) }) {
			t.Fatalf("seed %d step %d: %s: %d routes, want %d: %s\n%+v", seed, step, me, len(o.Routes()), len(want), routesText(o.Routes()), s)
		}
	}
}

// BenchmarkOverlay: what a snapshot costs that changes nothing, and what a next hop costs.
func BenchmarkOverlay(b *testing.B) {
	s := &model.Snapshot{}
	for i := range 5000 {
		s.Nodes = append(s.Nodes, model.Node{Name: fmt.Sprintf("n%04d", i), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 24)})
		s.Blocks = append(s.Blocks, model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26), Node: fmt.Sprintf("n%04d", i)})
	}
	s.Pools = []model.Pool{{CIDR: prefix("10.0.0.0/8"), VXLANMode: model.EncapCrossSubnet}}
	o := NewOverlay(s, "n0000")
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			if !o.Equal(NewOverlay(s, "n0000")) {
				b.Fatal("not equal")
			}
		}
	})
	b.Run("via", func(b *testing.B) {
		for b.Loop() {
			if o.Via(s.Blocks[4000].CIDR, model.NextHop{Addr: s.Nodes[4000].IPv4.Addr()}).Device == "" {
				b.Fatal("direct")
			}
		}
	})
}
