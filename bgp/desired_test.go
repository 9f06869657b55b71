package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// has selects what has the label, whatever its value; "" selects all.
type has string

func (h has) Matches(l map[string]string) bool { _, ok := l[string(h)]; return ok || h == "" }
func (h has) String() string                   { return "has(" + string(h) + ")" }

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func node(name, v4, v6 string, labels ...string) model.Node {
	n := model.Node{Name: name, Labels: map[string]string{}}
	if v4 != "" {
		n.IPv4 = prefix(v4)
	}
	if v6 != "" {
		n.IPv6 = prefix(v6)
	}
	for _, l := range labels {
		n.Labels[l] = ""
	}
	return n
}

// base is a mesh of three dual-stack nodes, the third without IPv6.
func base() *model.Snapshot {
	return &model.Snapshot{
		Nodes: []model.Node{
			node("a", "10.0.0.1/24", "fd00::1/64", "rack1"),
			node("b", "10.0.0.2/24", "fd00::2/64", "rack1"),
			node("c", "10.0.0.3/24", "", "rack2"),
		},
		BGP: model.BGPConfig{ASN: 64512, Mesh: true, ListenPort: 179},
		Pools: []model.Pool{
			{Name: "p4", CIDR: prefix("10.244.0.0/16")},
			{Name: "secret", CIDR: prefix("10.245.0.0/16"), DisableBGPExport: true},
			{Name: "p6", CIDR: prefix("fd44::/48")},
		},
	}
}

// sessions prints a speaker's peers in short.
func sessions(s *Speaker) string {
	var out []string
	for _, p := range s.Peers {
		t := fmt.Sprintf("%s:%d as %d", p.Addr, p.Port, p.ASN)
		if p.LocalASN != s.ASN {
			t += fmt.Sprintf(" local %d", p.LocalASN)
		}
		if p.Password != "" {
			t += " md5 " + p.Password
		}
		if !p.LocalAddr.IsValid() {
			t += " anysource"
		}
		if p.Multihop {
			t += " multihop"
		}
		if p.TTLSecurity > 0 {
			t += fmt.Sprintf(" ttl>=%d", p.MinTTL())
		}
		if p.RRClient {
			t += " client of " + p.ClusterID.String()
		}
		if p.SameCluster {
			t += " of our cluster"
		}
		if p.NextHopMode != model.NextHopAuto {
			t += " nexthop " + string(p.NextHopMode)
		}
		if p.Mesh {
			t += " mesh"
		} else {
			t += " by " + p.Resource
		}
		out = append(out, t)
	}
	return strings.Join(out, "\n")
}

func tor(name, ip string, asn uint32) model.BGPPeer {
	return model.BGPPeer{Name: name, PeerIP: addr(ip), ASN: asn, SourceNodeIP: true}
}

func TestSessions(t *testing.T) {
	for _, c := range []struct {
		name    string
		node    string // default a
		change  func(*model.Snapshot)
		want    string
		problem string // part of the only problem
	}{
		{
			name: "mesh",
			want: "10.0.0.2:179 as 64512 mesh\n10.0.0.3:179 as 64512 mesh\nfd00::2:179 as 64512 mesh",
		}, {
			name: "mesh seen from a node without IPv6", node: "c",
			want: "10.0.0.1:179 as 64512 mesh\n10.0.0.2:179 as 64512 mesh",
		}, {
			name: "mesh of several AS numbers, another port, a password",
			change: func(s *model.Snapshot) {
				s.Nodes[1].ASN, s.Nodes[2].ASN = 65002, 65003
				s.BGP.ListenPort, s.BGP.MeshPassword = 1, "m" // our own port says nothing of theirs
				s.Nodes[1].ListenPort, s.Nodes[2].ListenPort = 1179, 1180
				s.Nodes[1].IPv6 = netip.Prefix{}
			},
			want: "10.0.0.2:1179 as 65002 md5 m multihop mesh\n10.0.0.3:1180 as 65003 md5 m multihop mesh",
		}, {
			name:   "no mesh",
			change: func(s *model.Snapshot) { s.BGP.Mesh = false },
		}, {
			name:   "route reflectors are no part of the mesh",
			change: func(s *model.Snapshot) { s.Nodes[1].RouteReflectorClusterID = addr("1.0.0.1") },
			want:   "10.0.0.3:179 as 64512 mesh",
		}, {
			name: "nor have they one", node: "b",
			change: func(s *model.Snapshot) { s.Nodes[1].RouteReflectorClusterID = addr("1.0.0.1") },
		}, {
			name: "mesh password too long",
			change: func(s *model.Snapshot) {
				s.BGP.MeshPassword = strings.Repeat("x", 81)
			},
			problem: "BGPConfiguration default: .spec.nodeMeshPassword",
		}, {
			name: "peers for all, for a node, for a selector",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				one, rack, other := tor("2", "10.0.0.252", 65002), tor("3", "10.0.0.253", 65003), tor("4", "10.0.0.254", 65004)
				one.Node, rack.NodeSelector, other.NodeSelector = "a", has("rack1"), has("rack2")
				elsewhere := tor("5", "10.0.0.250", 65005)
				elsewhere.Node = "b"
				s.Peers = []model.BGPPeer{tor("1", "10.0.0.251", 64512), one, rack, other, elsewhere}
			},
			want: "10.0.0.251:179 as 64512 by 1\n10.0.0.252:179 as 65002 multihop by 2\n10.0.0.253:179 as 65003 multihop by 3",
		}, {
			name: "port, local AS number, any source, next hop, IPv6",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				a, b := tor("1", "10.0.0.251", 65001), tor("2", "fd00::f", 65002)
				a.PeerPort, a.LocalASN, a.SourceNodeIP, a.NextHopMode, a.Password = 1790, 64999, false, model.NextHopSelf, "x"
				b.TTLSecurity = 1
				c := tor("3", "fd00::e", 65002)
				c.TTLSecurity = 3
				s.Peers = []model.BGPPeer{a, b, c}
			},
			want: "10.0.0.251:1790 as 65001 local 64999 md5 x anysource multihop nexthop Self by 1\nfd00::e:179 as 65002 ttl>=253 by 3\nfd00::f:179 as 65002 ttl>=255 by 2",
		}, {
			name: "peerSelector takes every address of every node but oneself, with its AS number",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Nodes[1].ASN, s.Nodes[1].ListenPort, s.Nodes[2].ListenPort = 65002, 1179, 1179
				s.Peers = []model.BGPPeer{{Name: "all", PeerSelector: has(""), ASN: 1, SourceNodeIP: true}}
			},
			want: "10.0.0.2:1179 as 65002 multihop by all\n10.0.0.3:1179 as 64512 by all\nfd00::2:1179 as 65002 multihop by all",
		}, {
			name: "the selected node peers back", node: "c",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{{Name: "up", NodeSelector: has("rack1"), PeerSelector: has("rack2"), SourceNodeIP: true, ReversePeering: true, LocalASN: 65009}}
			},
			want: "10.0.0.1:179 as 65009 multihop by up\n10.0.0.2:179 as 65009 multihop by up",
		}, {
			name: "unless it must not", node: "c",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{{Name: "up", NodeSelector: has("rack1"), PeerSelector: has("rack2"), SourceNodeIP: true}}
			},
		}, {
			name: "a route reflector's clients", node: "b",
			change: func(s *model.Snapshot) {
				s.Nodes[1].RouteReflectorClusterID, s.Nodes[2].RouteReflectorClusterID = addr("1.0.0.1"), addr("1.0.0.1")
				s.Nodes[1].IPv6 = netip.Prefix{}
				s.Nodes = append(s.Nodes, node("d", "10.0.0.4/24", ""))
				s.Nodes[3].RouteReflectorClusterID = addr("1.0.0.2")
				s.Peers = []model.BGPPeer{
					{Name: "all", PeerSelector: has(""), SourceNodeIP: true},
					tor("inside", "10.0.0.9", 64512), tor("outside", "10.0.0.8", 65000),
				}
			},
			want: "10.0.0.1:179 as 64512 client of 1.0.0.1 by all\n10.0.0.3:179 as 64512 of our cluster by all\n10.0.0.4:179 as 64512 client of 1.0.0.1 by all\n10.0.0.8:179 as 65000 multihop by outside\n10.0.0.9:179 as 64512 client of 1.0.0.1 by inside",
		}, {
			name: "a BGPPeer for a node of the mesh takes its place, and knows its AS number",
			change: func(s *model.Snapshot) {
				s.Peers = []model.BGPPeer{{Name: "x", PeerIP: addr("10.0.0.2"), SourceNodeIP: true, Password: "p"}}
			},
			want: "10.0.0.2:179 as 64512 md5 p by x\n10.0.0.3:179 as 64512 mesh\nfd00::2:179 as 64512 mesh",
		}, {
			name: "own addresses are no peers",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.1", 64512), tor("y", "::ffff:10.0.0.1", 64512)}
			},
		}, {
			name: "two resources that agree are one session",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 65001), tor("y", "10.0.0.9", 65001)}
			},
			want: "10.0.0.9:179 as 65001 multihop by x",
		}, {
			name: "of two that do not the first is in force",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 65001), tor("y", "10.0.0.9", 65002)}
			},
			want:    "10.0.0.9:179 as 65001 multihop by x",
			problem: "BGPPeer y: .spec.asNumber: session with 10.0.0.9 is set up by BGPPeer x in another way",
		}, {
			name: "of two that do not the older is in force, whatever its name",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				young, old := tor("x", "10.0.0.9", 65001), tor("y", "10.0.0.9", 65002)
				young.Created, old.Created = time.Unix(2000, 0), time.Unix(1000, 0)
				s.Peers = []model.BGPPeer{young, old}
			},
			want:    "10.0.0.9:179 as 65002 multihop by y",
			problem: "BGPPeer x: .spec.asNumber: session with 10.0.0.9 is set up by BGPPeer y in another way",
		}, {
			name: "no address of the family to start from", node: "c",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "fd00::9", 65001)}
			},
			problem: "BGPPeer x: .spec.sourceAddress: UseNodeIP needs an address",
		}, {
			name: "none needed", node: "c",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "fd00::9", 65001)}
				s.Peers[0].SourceNodeIP = false
			},
			want: "fd00::9:179 as 65001 anysource multihop by x",
		}, {
			name: "AS number missing",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 0)}
			},
			problem: "BGPPeer x: .spec.asNumber",
		}, {
			name: "neither address nor selector",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{{Name: "x", ASN: 65001}}
			},
			problem: "BGPPeer x: .spec.peerIP",
		}, {
			name: "password too long",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 65001)}
				s.Peers[0].Password = strings.Repeat("x", 81)
			},
			problem: "BGPPeer x: .spec.password: the secret's value has 81 bytes",
		}, {
			name: "another local AS number for an internal peer",
			change: func(s *model.Snapshot) {
				s.BGP.Mesh = false
				s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 64512)}
				s.Peers[0].LocalASN = 65001
			},
			problem: "BGPPeer x: .spec.localASNumber",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := base()
			if c.change != nil {
				c.change(s)
			}
			if c.node == "" {
				c.node = "a"
			}
			got, problems := Desired(Input{Snapshot: s, Node: c.node})
			if g := sessions(got); g != c.want {
				t.Errorf("sessions:\n%s\nwant:\n%s", g, c.want)
			}
			switch {
			case c.problem == "" && len(problems) != 0:
				t.Errorf("problems: %v", problems)
			case c.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].String(), c.problem)):
				t.Errorf("problems: %v; want one with %q", problems, c.problem)
			}
			for _, p := range problems {
				if strings.Contains(p.String(), "xxx") {
					t.Errorf("a secret is shown: %v", p)
				}
			}
		})
	}
}

func TestGlobal(t *testing.T) {
	s := base()
	s.Nodes[0].ASN = 65001
	got, _ := Desired(Input{Snapshot: s, Node: "a"})
	if got.ASN != 65001 || got.RouterID != addr("10.0.0.1") || got.ListenPort != 179 ||
		!slices.Equal(got.ListenAddrs, []netip.Addr{addr("0.0.0.0"), addr("::")}) {
		t.Errorf("%+v", got)
	}
	s.BGP.BindNodeIP = true
	if got, _ = Desired(Input{Snapshot: s, Node: "a"}); !slices.Equal(got.ListenAddrs, []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}) {
		t.Errorf("%+v", got.ListenAddrs)
	}
	s.BGP.BindNodeIP = false
	if got, _ = Desired(Input{Snapshot: s, Node: "c"}); !slices.Equal(got.ListenAddrs, []netip.Addr{addr("0.0.0.0")}) {
		t.Errorf("%+v", got.ListenAddrs)
	}
	s.Nodes[0].IPv4, s.Nodes[1].IPv4 = netip.Prefix{}, netip.Prefix{}
	a, _ := Desired(Input{Snapshot: s, Node: "a"})
	b, _ := Desired(Input{Snapshot: s, Node: "b"})
	if !a.RouterID.Is4() || a.RouterID == b.RouterID || a.RouterID.IsMulticast() || a.RouterID.IsUnspecified() {
		t.Errorf("router ids %s and %s", a.RouterID, b.RouterID)
	}
	s.Nodes[0].IPv6 = netip.Prefix{}
	for _, n := range []string{"a", "nobody"} {
		if got, problems := Desired(Input{Snapshot: s, Node: n}); got != nil || len(problems) != 1 {
			t.Errorf("node %s: %+v, %v", n, got, problems)
		}
	}
}

// TestNear: whose addresses an eBGP peer's word is not passed on about.
func TestNear(t *testing.T) {
	s := base()
	s.Nodes = append(s.Nodes, node("d", "10.0.1.4/24", "fd00::4/128"), node("e", "192.0.2.5/32", ""))
	for name, want := range map[string]struct{ own, near []netip.Addr }{
		"a": {[]netip.Addr{addr("10.0.0.1"), addr("fd00::1")}, []netip.Addr{addr("10.0.0.2"), addr("10.0.0.3"), addr("fd00::2"), addr("fd00::4")}},
		"c": {[]netip.Addr{addr("10.0.0.3")}, []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}},
		"d": {[]netip.Addr{addr("10.0.1.4"), addr("fd00::4")}, nil},
		"e": {[]netip.Addr{addr("192.0.2.5")}, nil}, // the fabric carries its address
	} {
		got, _ := Desired(Input{Snapshot: s, Node: name})
		if !slices.Equal(got.Own, want.own) || !slices.Equal(got.Near, want.near) {
			t.Errorf("%s: own %v, near %v; want %v", name, got.Own, got.Near, want)
		}
	}
}

func TestTimers(t *testing.T) {
	s := base()
	s.BGP.MeshRestartTime = 30 * time.Second
	p := tor("x", "10.0.0.9", 65001)
	p.RestartTime, p.KeepaliveTime, p.AllowOwnAS = 3*time.Hour, 60*time.Second, 2
	s.Peers = []model.BGPPeer{p, tor("y", "10.0.0.8", 65001)}
	got, _ := Desired(Input{Snapshot: s, Node: "a"})
	by := map[netip.Addr]Peer{}
	for _, p := range got.Peers {
		by[p.Addr] = p
	}
	if p := by[addr("10.0.0.9")]; p.RestartTime != 4095*time.Second || p.Keepalive != time.Minute || p.HoldTime != 3*time.Minute || p.AllowOwnAS != 2 {
		t.Errorf("%+v", p)
	}
	if p := by[addr("10.0.0.8")]; p.RestartTime != 2*time.Minute || p.Keepalive != 30*time.Second || p.HoldTime != 90*time.Second {
		t.Errorf("%+v", p)
	}
	if p := by[addr("10.0.0.2")]; p.RestartTime != 30*time.Second || p.HoldTime != 90*time.Second {
		t.Errorf("%+v", p)
	}
}

func TestAdverts(t *testing.T) {
	s := base()
	s.Blocks = []model.Block{
		{CIDR: prefix("10.244.1.0/26"), Node: "a"},
		{CIDR: prefix("10.244.2.0/26"), Node: "b"},
		{CIDR: prefix("10.245.1.0/26"), Node: "a"},
		{CIDR: prefix("192.0.2.0/26"), Node: "a"}, // of a pool that is gone
		{CIDR: prefix("fd44::40/122"), Node: "a"},
	}
	s.BGP.PrefixCommunities = []model.PrefixCommunities{
		{CIDR: prefix("10.244.0.0/16"), Communities: []string{"64512:2", "64512:1"}},
		{CIDR: prefix("10.244.1.0/24"), Communities: []string{"64512:1", "1:2:3"}},
		{CIDR: prefix("10.244.1.0/27"), Communities: []string{"64512:9"}}, // narrower than the block
		{CIDR: prefix("fd44::/64"), Communities: []string{"64512:6"}},
	}
	got, problems := Desired(Input{Snapshot: s, Node: "a", Local: []netip.Addr{
		addr("10.244.1.5"),        // in an own block
		addr("10.245.1.5"),        // in an own block that is not exported
		addr("10.244.2.7"),        // borrowed
		addr("::ffff:10.244.2.7"), // the same
		addr("10.245.9.9"),        // borrowed, not exported
		addr("fd44::41"), addr("fd44::1:1"),
		{},
	}})
	want := []Advert{
		{prefix("10.244.1.0/26"), []string{"1:2:3", "64512:1", "64512:2"}},
		{prefix("10.244.2.7/32"), []string{"64512:1", "64512:2"}},
		{prefix("192.0.2.0/26"), nil},
		{prefix("fd44::40/122"), []string{"64512:6"}},
		{prefix("fd44::1:1/128"), []string{"64512:6"}},
	}
	if !slices.EqualFunc(got.Adverts, want, Advert.Equal) || len(problems) != 0 {
		t.Errorf("got  %v, %v\nwant %v", got.Adverts, problems, want)
	}
}

// TestDeterministic gives the same for the same input, in whatever order its unordered parts come.
func TestDeterministic(t *testing.T) {
	s := base()
	s.Peers = []model.BGPPeer{tor("x", "10.0.0.9", 65001), tor("y", "10.0.0.8", 65002)}
	s.Blocks = []model.Block{{CIDR: prefix("10.244.1.0/26"), Node: "a"}, {CIDR: prefix("10.244.3.0/26"), Node: "a"}}
	local := []netip.Addr{addr("10.244.7.1"), addr("10.244.8.1"), addr("10.244.9.1")}
	first, _ := Desired(Input{Snapshot: s, Node: "a", Local: local})
	for range 20 {
		rand.Shuffle(len(local), func(i, j int) { local[i], local[j] = local[j], local[i] })
		rand.Shuffle(len(s.Blocks), func(i, j int) { s.Blocks[i], s.Blocks[j] = s.Blocks[j], s.Blocks[i] })
		if again, _ := Desired(Input{Snapshot: s, Node: "a", Local: local}); !reflect.DeepEqual(first, again) {
			t.Fatalf("%+v\n%+v", first, again)
		}
	}
}

// TestSecret keeps the password out of a log of the peer.
func TestSecret(t *testing.T) {
	if s := (Peer{Addr: addr("10.0.0.9"), Password: "hidden"}).LogValue().String(); strings.Contains(s, "hidden") {
		t.Error(s)
	}
}
