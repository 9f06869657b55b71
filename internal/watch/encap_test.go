package watch

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// also sets annotations and leaves the others.
func also(kv ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		for i := 0; i < len(kv); i += 2 {
			n.Annotations[kv[i]] = kv[i+1]
		}
	}
}

func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }

// TestFelixEncapsulation reads each field, merges each, and refuses what nothing can be made
// of.
func TestFelixEncapsulation(t *testing.T) {
	type spec = *v3.FelixConfigurationSpec
	all := felix("default", func(s spec) {
		s.IPIPEnabled, s.VXLANEnabled, s.IPIPMTU, s.VXLANMTU, s.VXLANMTUV6 = ptr(false), ptr(false), ptr(1480), ptr(1450), ptr(1430)
		s.MTUIfacePattern, s.VXLANVNI, s.VXLANPort = "^(eth|bond).*", ptr(7), ptr(8472)
		s.AllowIPIPPacketsFromWorkloads, s.AllowVXLANPacketsFromWorkloads = ptr(true), ptr(true)
		s.ExternalNodesList = &[]string{"198.51.100.0/24", "192.0.2.7", "fd00::7", "192.0.2.7/32"}
		s.FeatureDetectOverride, s.IptablesBackend = "ChecksumOffloadBroken=false", ptr("NFT")
		s.RouteRefreshInterval, s.IptablesRefreshInterval = duration(90*time.Second), duration(3*time.Minute)
	})
	want := model.Felix{
		IPIPOff: true, VXLANOff: true, TunnelMTU: [model.Tunnels]int{1480, 1450, 1430}, MTULinks: "^(eth|bond).*", VXLANVNI: 7, VXLANPort: 8472,
		PodsIPIP: true, PodsVXLAN: true, ExternalNodes: []netip.Prefix{prefix("192.0.2.7/32"), prefix("198.51.100.0/24"), prefix("fd00::7/128")},
		ChecksumOffload: true, IPTables: "nft", RoutesResync: 90 * time.Second, RulesResync: 3 * time.Minute,
	}
	encapsulated := []metav1.Object{
		pool("a", "10.244.0.0/16", func(s *v3.IPPoolSpec) { s.IPIPMode = v3.EncapAlways }),
		pool("b", "10.245.0.0/16", func(s *v3.IPPoolSpec) { s.VXLANMode = v3.EncapCrossSubnet }),
	}
	one := func(set func(spec)) []metav1.Object { return []metav1.Object{felix("default", set)} }
	for _, tc := range []struct {
		name    string
		objects []metav1.Object
		want    model.Felix
		bad     []string
	}{
		{"all", []metav1.Object{all}, want, nil},
		{"this node's goes first, and what it does not say stays", append([]metav1.Object{all, felix("node.n1", func(s spec) {
			s.IPIPEnabled, s.VXLANEnabled, s.IPIPMTU, s.VXLANVNI, s.ExternalNodesList = ptr(true), ptr(true), ptr(0), ptr(0), &[]string{}
			s.AllowIPIPPacketsFromWorkloads, s.FeatureDetectOverride, s.IptablesBackend = ptr(false), "ChecksumOffloadBroken=true", ptr("Auto")
			s.RouteRefreshInterval = duration(time.Second)
		})}, encapsulated...), func() model.Felix {
			f := want
			f.IPIPOff, f.VXLANOff, f.TunnelMTU, f.VXLANVNI, f.ExternalNodes = false, false, [model.Tunnels]int{0, 1450, 1430}, 0, nil
			f.PodsIPIP, f.ChecksumOffload, f.IPTables, f.RoutesResync = false, false, "", time.Second
			return f
		}(), nil},
		{"on, as the pools have it", append(one(func(s spec) { s.IPIPEnabled, s.VXLANEnabled = ptr(true), ptr(true) }), encapsulated...), model.Felix{}, nil},
		{"on without a pool", one(func(s spec) { s.IPIPEnabled, s.VXLANEnabled = ptr(true), ptr(true) }), model.Felix{}, []string{
			"ignored .spec.ipipEnabled is true, and no IPPool in force has another ipipMode than Never", "ignored .spec.vxlanEnabled is true"}},
		{"other features", one(func(s spec) {
			s.FeatureDetectOverride = "SNATFullyRandom=true,ChecksumOffloadBroken=false,MASQFullyRandom=,"
		}), model.Felix{ChecksumOffload: true}, []string{`ignored .spec.featureDetectOverride has "SNATFullyRandom=true", which is not acted on`}},
		{"no feature", one(func(s spec) { s.FeatureDetectOverride = "ChecksumOffloadBroken" }), model.Felix{}, []string{`bad .spec.featureDetectOverride has "ChecksumOffloadBroken"; must be name=true or name=false`}},
		{"never read again", one(func(s spec) { s.RouteRefreshInterval, s.IptablesRefreshInterval = duration(0), duration(0) }), model.Felix{},
			[]string{"ignored .spec.iptablesRefreshInterval is 0", "ignored .spec.routeRefreshInterval is 0"}},
		{"always read again", one(func(s spec) { s.RouteRefreshInterval = duration(time.Millisecond) }), model.Felix{}, []string{"bad .spec.routeRefreshInterval is 1ms; must be 1s at least"}},
		{"MTU", one(func(s spec) { s.IPIPMTU = ptr(575) }), model.Felix{}, []string{"bad .spec.ipipMTU is 575; must be 576 to 65535, or 0 for the uplink's less the overhead"}},
		{"MTU of IPv6", one(func(s spec) { s.VXLANMTUV6 = ptr(1279) }), model.Felix{}, []string{"bad .spec.vxlanMTUV6 is 1279; must be 1280"}},
		{"VNI", one(func(s spec) { s.VXLANVNI = ptr(1 << 24) }), model.Felix{}, []string{"bad .spec.vxlanVNI is 16777216; must be 1 to 16777215, or 0 for 4096"}},
		{"port", one(func(s spec) { s.VXLANPort = ptr(-1) }), model.Felix{}, []string{"bad .spec.vxlanPort is -1"}},
		{"pattern", one(func(s spec) { s.MTUIfacePattern = "eth(" }), model.Felix{}, []string{`bad .spec.mtuIfacePattern is "eth(", which is no regular expression`}},
		{"external nodes", one(func(s spec) { s.ExternalNodesList = &[]string{"192.0.2.1", "192.0.2.1/24"} }), model.Felix{},
			[]string{`bad .spec.externalNodesList[1] is "192.0.2.1/24", which has bits set outside its mask`}},
		{"backend", one(func(s spec) { s.IptablesBackend = ptr("nftables") }), model.Felix{}, []string{`bad .spec.iptablesBackend is "nftables"; must be one of Auto, Legacy, NFT`}},
		{"backend in small letters", one(func(s spec) { s.IptablesBackend = ptr("legacy") }), model.Felix{IPTables: "legacy"}, nil},
	} {
		s := build(tc.objects...)
		expect(t, tc.name, s, tc.bad...)
		if !reflect.DeepEqual(s.Felix, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, s.Felix, tc.want)
		}
	}
	if a, b := Check(all, opt), Check(all.DeepCopy(), opt); !a.Equal(b) {
		t.Error("two versions that say the same differ")
	}
}

// TestTunnelEnds reads the annotations of tunnels. What is wrong with one takes nothing else
// out of force.
func TestTunnelEnds(t *testing.T) {
	whole := also(AnnotationIPv4Address, "192.0.2.1/24",
		AnnotationIPv4IPIPTunnelAddr, "10.244.0.1", AnnotationIPv4VXLANTunnelAddr, "10.245.0.1", AnnotationVXLANTunnelMACAddr, "66:1E:0C:8A:12:01",
		AnnotationIPv6VXLANTunnelAddr, "fd00:10::1", AnnotationVXLANTunnelMACAddrV6, "66:1e:0c:8a:12:02")
	want := [model.Tunnels]model.TunnelEnd{
		{Addr: netip.MustParseAddr("10.244.0.1")},
		{Addr: netip.MustParseAddr("10.245.0.1"), MAC: "66:1e:0c:8a:12:01"},
		{Addr: netip.MustParseAddr("fd00:10::1"), MAC: "66:1e:0c:8a:12:02"},
	}
	without := func(tunnel model.Tunnel, mac bool) [model.Tunnels]model.TunnelEnd {
		w := want
		if mac {
			w[tunnel].MAC = ""
		} else {
			w[tunnel].Addr = netip.Addr{}
		}
		return w
	}
	for _, tc := range []struct {
		name, key, value string
		want             [model.Tunnels]model.TunnelEnd
		bad              []string
	}{
		{"all", "x", "y", want, nil},
		{"empty", AnnotationIPv4IPIPTunnelAddr, "", without(model.TunnelIPIP, false), nil},
		{"no address", AnnotationIPv4IPIPTunnelAddr, "10.244.0.1/32", without(model.TunnelIPIP, false),
			[]string{"ignored .metadata.annotations[projectcalico.org/IPv4IPIPTunnelAddr] is \"10.244.0.1/32\"; must be the address of the node's tunl0, such as \"10.244.3.7\""}},
		{"another family", AnnotationIPv4VXLANTunnelAddr, "fd00::1", without(model.TunnelVXLAN4, false), []string{"ignored .metadata.annotations[projectcalico.org/IPv4VXLANTunnelAddr]"}},
		{"mapped", AnnotationIPv6VXLANTunnelAddr, "::ffff:10.0.0.1", without(model.TunnelVXLAN6, false), []string{"ignored .metadata.annotations[projectcalico.org/IPv6VXLANTunnelAddr]"}},
		{"of no host", AnnotationIPv4IPIPTunnelAddr, "127.0.0.1", without(model.TunnelIPIP, false), []string{"ignored"}},
		{"no Ethernet address", AnnotationVXLANTunnelMACAddr, "66:1e", without(model.TunnelVXLAN4, true),
			[]string{`ignored .metadata.annotations[projectcalico.org/VXLANTunnelMACAddr] is "66:1e"; must be the Ethernet address of the node's vxlan.calico`}},
		{"multicast", AnnotationVXLANTunnelMACAddrV6, "01:00:5e:00:00:01", without(model.TunnelVXLAN6, true), []string{"ignored"}},
		{"InfiniBand", AnnotationVXLANTunnelMACAddrV6, "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01", without(model.TunnelVXLAN6, true), []string{"ignored"}},
	} {
		s := build(node("n1", whole, also(tc.key, tc.value)))
		expect(t, tc.name, s, tc.bad...)
		if n := s.Node("n1"); n == nil || n.Tunnels != tc.want || n.IPv4 != prefix("192.0.2.1/24") {
			t.Errorf("%s: %+v", tc.name, n)
		}
	}
	s := build(node("n2", whole, also(AnnotationIPv4Address, "192.0.2.2/24", AnnotationIPv4IPIPTunnelAddr, "10.244.0.2")), node("n1", whole))
	expect(t, "twice", s,
		`ignored .metadata.annotations[projectcalico.org/IPv4VXLANTunnelAddr] is "10.245.0.1", the address of Node n1, too`,
		`ignored .metadata.annotations[projectcalico.org/IPv6VXLANTunnelAddr]`,
		`ignored .metadata.annotations[projectcalico.org/VXLANTunnelMACAddrV6]`,
		`ignored .metadata.annotations[projectcalico.org/VXLANTunnelMACAddr] is "66:1e:0c:8a:12:01", the Ethernet address of Node n1, too`)
	if s.Node("n1").Tunnels != want || s.Node("n2").Tunnels != [model.Tunnels]model.TunnelEnd{{Addr: netip.MustParseAddr("10.244.0.2")}} {
		t.Errorf("%+v", s.Nodes)
	}
}

// TestOtherBlocks mixes blocks that were read in full with others.
func TestOtherBlocks(t *testing.T) {
	in := Input{Objects: []Sourced{{Object: Check(blockObject("10.0.0.64/26", "host:n1"), opt)}}}
	s := Build(in, opt)
	if !s.BlocksKnown || BlocksNeeded(in.Objects) {
		t.Errorf("known %v, needed %v", s.BlocksKnown, BlocksNeeded(in.Objects))
	}
	lent := []model.Loan{{Addr: netip.MustParseAddr("10.0.0.7"), Node: "n1"}}
	in.Others = []OtherBlock{
		{Block: model.Block{CIDR: prefix("10.0.0.128/26"), Node: "n3"}, Claimed: time.Unix(2, 0)},
		{Block: model.Block{CIDR: prefix("10.0.0.0/26"), Node: "n2", Lent: lent}, Claimed: time.Unix(2, 0)},
		{Block: model.Block{CIDR: prefix("10.0.0.128/27"), Node: "n4"}, Claimed: time.Unix(1, 0)},
	}
	in.BlocksPending = true
	in.Objects = append(in.Objects, Sourced{Object: Check(pool("a", "10.0.0.0/16", func(s *v3.IPPoolSpec) { s.VXLANMode, s.Disabled = v3.EncapAlways, true }), opt)})
	s = Build(in, opt)
	want := []model.Block{{CIDR: prefix("10.0.0.0/26"), Node: "n2", Lent: lent}, {CIDR: prefix("10.0.0.64/26"), Node: "n1"}, {CIDR: prefix("10.0.0.128/27"), Node: "n4"}}
	if !reflect.DeepEqual(s.Blocks, want) || s.BlocksKnown || !BlocksNeeded(in.Objects) {
		t.Errorf("%+v, known %v, needed %v", s.Blocks, s.BlocksKnown, BlocksNeeded(in.Objects))
	}
	expect(t, "overlap", s, `bad .spec.cidr is "10.0.0.128/26", which overlaps the block 10.0.0.128/27, claimed earlier`)
	if s.Problems[0].Object != (model.Object{Kind: "IPAMBlock", Name: "10-0-0-128-26"}) {
		t.Errorf("%v", s.Problems)
	}
}
