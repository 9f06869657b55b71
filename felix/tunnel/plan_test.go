package tunnel

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// TestMAC: Calico's derivation, worked out with sha1sum:
// printf node1 | sha1sum, printf node1-v6 | sha1sum.
func TestMAC(t *testing.T) {
	for _, c := range []struct {
		node string
		kind model.Tunnel
		want string
	}{
		{"node1", model.TunnelVXLAN4, "66:f9:37:c3:7e:94"},
		{"node1", model.TunnelVXLAN6, "66:0f:35:f2:60:df"},
	} {
		if got := MAC(c.node, c.kind).String(); got != c.want {
			t.Errorf("MAC(%s, %s) = %s, want %s", c.node, c.kind, got, c.want)
		}
	}
}

// standing is the state of a kernel that has everything of d.
func standing(d model.TunnelDevice) *state {
	w := compile(d)
	s := &state{
		link:    &linkState{index: 7, kind: linkKind(d.Tunnel), up: true, mtu: d.MTU, mac: w.mac, vxlan: w.vxlan, offload: d.ChecksumOffload},
		sysctls: map[string]string{}, addrs: map[netip.Prefix]string{}, fdb: map[mac]fdbEntry{}, neigh: map[netip.Addr]neighEntry{},
	}
	mark := ""
	if d.Tunnel == model.TunnelIPIP {
		s.link.alias, mark = alias, label
	}
	s.addrs[netip.PrefixFrom(d.Addr, d.Addr.BitLen())] = mark
	for _, x := range sysctls(d.Tunnel) {
		s.sysctls[x.name] = x.value
	}
	for m, u := range w.fdb {
		s.fdb[m] = fdbEntry{dst: u}
	}
	for x, m := range w.neigh {
		s.neigh[x] = neighEntry{mac: m}
	}
	return s
}

// TestPlan lists, for a device that stands with peers 2 and 3 and what is different, the
// exact writes, in order.
func TestPlan(t *testing.T) {
	m2, m3, m4 := nodeMAC("node2", model.TunnelVXLAN4).String(), nodeMAC("node3", model.TunnelVXLAN4).String(), nodeMAC("node4", model.TunnelVXLAN4).String()
	fill := []string{
		"ethtool -K vxlan.calico tx off",
		"sysctl -w net/ipv4/conf/vxlan.calico/forwarding=1",
		"sysctl -w net/ipv4/conf/vxlan.calico/rp_filter=2",
		"bridge fdb replace " + m2 + " dev vxlan.calico dst 10.0.0.2 self permanent",
		"bridge fdb replace " + m3 + " dev vxlan.calico dst 10.0.0.3 self permanent",
		"ip addr add 10.244.0.1/32 dev vxlan.calico",
		"ip link set vxlan.calico up",
		"ip neigh replace 10.244.0.2 lladdr " + m2 + " dev vxlan.calico nud permanent",
		"ip neigh replace 10.244.0.3 lladdr " + m3 + " dev vxlan.calico nud permanent",
	}
	anew := func(d model.TunnelDevice) []string {
		return []string{"ip link del vxlan.calico", op{verb: linkAdd, kind: model.TunnelVXLAN4, mtu: d.MTU, mac: compile(d).mac, vxlan: compile(d).vxlan}.String()}
	}
	for _, c := range []struct {
		name  string
		kind  model.Tunnel
		want  func(*model.TunnelDevice)
		got   func(*state)
		none  bool // not wanted
		ops   []string
		why   string
		wrong string
	}{
		{name: "as wanted", kind: model.TunnelVXLAN4},
		{name: "as wanted", kind: model.TunnelVXLAN6},
		{name: "as wanted", kind: model.TunnelIPIP},
		{name: "missing", kind: model.TunnelVXLAN4, got: func(s *state) { *s = state{} },
			ops: []string{"ip link add vxlan.calico mtu 1450 address " + nodeMAC("node1", model.TunnelVXLAN4).String() + " type vxlan id 4096 local 10.0.0.1 dstport 4789 nolearning"}},
		{name: "just made", kind: model.TunnelVXLAN4, got: func(s *state) {
			s.link.up, s.link.offload = false, true
			clear(s.sysctls)
			clear(s.addrs)
			clear(s.fdb)
			clear(s.neigh)
		}, ops: fill},
		{name: "peer comes", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Peers = append(d.Peers, peerOf(model.TunnelVXLAN4, 4)) }, ops: []string{
			"bridge fdb replace " + m4 + " dev vxlan.calico dst 10.0.0.4 self permanent",
			"ip neigh replace 10.244.0.4 lladdr " + m4 + " dev vxlan.calico nud permanent"}},
		{name: "peer goes", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Peers = d.Peers[:1] }, ops: []string{
			"ip neigh del 10.244.0.3 dev vxlan.calico", "bridge fdb del " + m3 + " dev vxlan.calico self"}},
		{name: "peer moves", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Peers[1].Underlay = a("10.9.9.9") }, ops: []string{
			"bridge fdb replace " + m3 + " dev vxlan.calico dst 10.9.9.9 self permanent"}},
		{name: "peer's tunnel address changes: the new one before the old", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Peers[1].Addr = a("10.244.9.9") }, ops: []string{
			"ip neigh replace 10.244.9.9 lladdr " + m3 + " dev vxlan.calico nud permanent",
			"ip neigh del 10.244.0.3 dev vxlan.calico"}},
		{name: "peer's MAC changes", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Peers[1].MAC = hw("02:00:00:00:00:09") }, ops: []string{
			"bridge fdb replace 02:00:00:00:00:09 dev vxlan.calico dst 10.0.0.3 self permanent",
			"ip neigh replace 10.244.0.3 lladdr 02:00:00:00:00:09 dev vxlan.calico nud permanent",
			"bridge fdb del " + m3 + " dev vxlan.calico self"}},
		{name: "foreign entries", kind: model.TunnelVXLAN4, got: func(s *state) {
			s.fdb[mac{}] = fdbEntry{dst: a("10.7.7.7"), odd: true}
			s.neigh[a("fd00::7")] = neighEntry{mac: mac{2}}
			s.addrs[netip.MustParsePrefix("10.7.7.7/24")] = ""
		}, ops: []string{"ip addr del 10.7.7.7/24 dev vxlan.calico", "ip neigh del fd00::7 dev vxlan.calico", "bridge fdb del 00:00:00:00:00:00 dev vxlan.calico self"}},
		{name: "entry with settings of its own", kind: model.TunnelVXLAN4, got: func(s *state) { s.fdb[nodeMAC("node2", model.TunnelVXLAN4)] = fdbEntry{dst: a("10.0.0.2"), odd: true} }, ops: []string{
			"bridge fdb del " + m2 + " dev vxlan.calico self",
			"bridge fdb replace " + m2 + " dev vxlan.calico dst 10.0.0.2 self permanent"}},
		{name: "MTU, MAC, offload", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.MTU, d.MAC, d.ChecksumOffload = 8950, hw("02:00:00:00:00:01"), true }, ops: []string{
			"ethtool -K vxlan.calico tx on", "ip link set vxlan.calico mtu 8950", "ip link set vxlan.calico address 02:00:00:00:00:01"}},
		{name: "own address changes", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Addr = a("10.244.5.5") }, ops: []string{
			"ip addr add 10.244.5.5/32 dev vxlan.calico", "ip addr del 10.244.0.1/32 dev vxlan.calico"}},
		{name: "own address not known: what stands is left", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Addr = netip.Addr{} }},
		{name: "VNI", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.VNI = 5 }, ops: []string{"del+add"}, why: "VNI 4096 is to be 5"},
		{name: "port", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Port = 8472 }, ops: []string{"del+add"}, why: "port 4789 is to be 8472"},
		{name: "local", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.Local = a("10.0.0.77") }, ops: []string{"del+add"}, why: "local address 10.0.0.1 is to be 10.0.0.77"},
		{name: "learning", kind: model.TunnelVXLAN4, got: func(s *state) { s.link.vxlan.odd = "learning" }, ops: []string{"del+add"}, why: "it has learning"},
		{name: "another's link", kind: model.TunnelVXLAN4, got: func(s *state) { s.link.kind = "bridge" }, wrong: `vxlan.calico: a link of type "bridge" has the name`},
		{name: "another's link, not wanted", kind: model.TunnelVXLAN4, none: true, got: func(s *state) { s.link.kind = "bridge" }},
		{name: "not wanted", kind: model.TunnelVXLAN4, none: true, ops: []string{"ip link del vxlan.calico"}},
		{name: "cannot be made: what stands is left", kind: model.TunnelVXLAN4, want: func(d *model.TunnelDevice) { d.MTU = 0; d.VNI = 9 }},
		{name: "not wanted, not there", kind: model.TunnelIPIP, none: true, got: func(s *state) { *s = state{} }},
		{name: "not wanted", kind: model.TunnelIPIP, none: true, ops: []string{
			"ip addr del 10.244.0.1/32 dev tunl0", "ip link set tunl0 down", `ip link set tunl0 alias ""`}},
		{name: "not wanted, and somebody else uses it", kind: model.TunnelIPIP, none: true, got: func(s *state) { s.addrs[netip.MustParsePrefix("192.0.2.1/32")] = "" }, ops: []string{
			"ip addr del 10.244.0.1/32 dev tunl0", `ip link set tunl0 alias ""`}},
		{name: "not wanted and not ours", kind: model.TunnelIPIP, none: true, got: func(s *state) { s.link.alias = "" }},
		{name: "somebody else's addresses are left", kind: model.TunnelIPIP, got: func(s *state) {
			s.addrs[netip.MustParsePrefix("192.0.2.1/32")] = ""
			s.addrs[netip.MustParsePrefix("10.244.0.9/32")] = label
		}, ops: []string{"ip addr del 10.244.0.9/32 dev tunl0"}},
		{name: "taken over from Calico, which has no marks", kind: model.TunnelIPIP, got: func(s *state) {
			s.link.alias = ""
			s.addrs[netip.MustParsePrefix("10.244.0.1/32")] = ""
		}, ops: []string{
			`ip link set tunl0 alias "causeway"`, "ip addr del 10.244.0.1/32 dev tunl0", "ip addr add 10.244.0.1/32 dev tunl0 label tunl0:causeway"}},
		{name: "as the module makes it", kind: model.TunnelIPIP, got: func(s *state) { *s = state{link: &linkState{index: 3, kind: "ipip", mtu: 1480}} }, ops: []string{
			`ip link set tunl0 alias "causeway"`, "sysctl -w net/ipv4/conf/tunl0/forwarding=1", "sysctl -w net/ipv4/conf/tunl0/rp_filter=2",
			"ip addr add 10.244.0.1/32 dev tunl0 label tunl0:causeway", "ip link set tunl0 up"}},
		{name: "IPv6 switched off", kind: model.TunnelVXLAN6, got: func(s *state) {
			s.sysctls["net/ipv6/conf/vxlan-v6.calico/disable_ipv6"] = "1"
			clear(s.addrs)
		}, ops: []string{"sysctl -w net/ipv6/conf/vxlan-v6.calico/disable_ipv6=0", "ip addr add fd00:b::1/128 dev vxlan-v6.calico nodad noprefixroute"}},
	} {
		t.Run(c.kind.String()+" "+c.name, func(t *testing.T) {
			d := deviceOf(c.kind, 1, 2, 3)
			got := standing(d)
			if c.want != nil {
				c.want(&d)
			}
			if c.got != nil {
				c.got(got)
			}
			want := compile(d)
			if c.none {
				want = nil
			}
			ops, why, err := plan(c.kind, want, got)
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Fatalf("error %v, want %s", err, c.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for _, o := range ops {
				have = append(have, o.String())
			}
			if slices.Equal(c.ops, []string{"del+add"}) {
				c.ops = anew(d)
			}
			if !slices.Equal(have, c.ops) || why != c.why {
				t.Errorf("ops\n%s\nwant\n%s\nwhy %q, want %q", strings.Join(have, "\n"), strings.Join(c.ops, "\n"), why, c.why)
			}
			// What was written is what is believed: nothing is left to do.
			for i := range ops {
				if ops[i].verb == linkAdd || ops[i].verb == linkDel {
					return
				}
				if got.addrs == nil {
					got.addrs, got.sysctls = map[netip.Prefix]string{}, map[string]string{}
				}
				got.done(&ops[i])
			}
			if again, _, _ := plan(c.kind, want, got); len(again) > 0 {
				t.Errorf("still to do: %v", again)
			}
		})
	}
}

// TestCompile: what cannot be is said by device, peer and field, and disables itself only.
func TestCompile(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*model.TunnelDevice)
		error  string
		peers  int
		broken bool
	}{
		{"right", func(*model.TunnelDevice) {}, "", 2, false},
		{"MTU", func(d *model.TunnelDevice) { d.MTU = 0 }, "vxlan.calico: MTU 0: must be 68 to 65535", 2, true},
		{"node address", func(d *model.TunnelDevice) { d.Local = netip.Addr{} }, "vxlan.calico: node address invalid IP: VXLAN needs the node's IPv4 address", 2, true},
		{"tunnel address of the other family", func(d *model.TunnelDevice) { d.Addr = a("fd00::1") }, "vxlan.calico: tunnel address fd00::1: must be an IPv4 unicast address", 2, true},
		{"VNI", func(d *model.TunnelDevice) { d.VNI = 1 << 24 }, "VNI 16777216: must be 1 to 16777215", 2, true},
		{"port", func(d *model.TunnelDevice) { d.Port = 70000 }, "port 70000: must be 1 to 65535", 2, true},
		{"no name", func(d *model.TunnelDevice) { d.Node = "" }, "neither MAC nor the node's name is given", 2, true},
		{"multicast MAC", func(d *model.TunnelDevice) { d.MAC = hw("01:00:5e:00:00:01") }, "MAC 01:00:5e:00:00:01: must be a unicast Ethernet address", 2, true},
		{"peer without underlay", func(d *model.TunnelDevice) { d.Peers[0].Underlay = netip.Addr{} }, "vxlan.calico: peer node2: node address invalid IP: must be an IPv4 unicast address", 1, false},
		{"peer's address of the other family", func(d *model.TunnelDevice) { d.Peers[0].Addr = a("fd00::1") }, "peer node2: tunnel address fd00::1: must be", 1, false},
		{"two peers, one address", func(d *model.TunnelDevice) { d.Peers[1].Addr = d.Peers[0].Addr }, "peer node3: tunnel address 10.244.0.2 is that of peer node2 too; left out", 1, false},
		{"two peers, one MAC", func(d *model.TunnelDevice) { d.Peers[0].MAC = net.HardwareAddr(MAC("node3", model.TunnelVXLAN4)) }, "peer node3: MAC " + MAC("node3", model.TunnelVXLAN4).String() + " is that of peer node2 too", 1, false},
		{"peer with our address", func(d *model.TunnelDevice) { d.Peers[1].Addr = d.Addr }, "peer node3: tunnel address 10.244.0.1 is this node's own", 1, false},
		{"peer with our MAC", func(d *model.TunnelDevice) { d.Peers[1].MAC = MAC("node1", model.TunnelVXLAN4) }, "is this node's own; left out", 1, false},
	} {
		d := deviceOf(model.TunnelVXLAN4, 1, 2, 3)
		c.change(&d)
		got := compile(d)
		text := ""
		for _, p := range got.problems {
			text += p.Error() + "\n"
		}
		if (text == "") != (c.error == "") || !strings.Contains(text, c.error) || len(got.problems) > 1 {
			t.Errorf("%s: problems %q, want %q", c.name, text, c.error)
		}
		if len(got.peers) != c.peers || got.broken != c.broken || len(got.fdb) != c.peers || len(slices.Collect(maps.Keys(got.neigh))) != c.peers {
			t.Errorf("%s: %d peers, broken %t", c.name, len(got.peers), got.broken)
		}
	}
}
