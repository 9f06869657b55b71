package watch

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

func felix(name string, set ...func(*v3.FelixConfigurationSpec)) *v3.FelixConfiguration {
	f := &v3.FelixConfiguration{ObjectMeta: meta(name)}
	for _, s := range set {
		s(&f.Spec)
	}
	return f
}

func port(text string) *v3.Port { return &v3.Port{IntOrString: intstr.Parse(text)} }

func TestFelix(t *testing.T) {
	type spec = *v3.FelixConfigurationSpec
	all := felix("default", func(s spec) {
		s.NATOutgoingAddress, s.NATPortRange = "192.0.2.9", port("1024:2047")
		s.NATOutgoingExclusions, s.IptablesNATOutgoingInterfaceFilter = ptr("IPPoolsAndHostIPs"), "eth+"
	})
	want := model.Felix{NATOutgoingAddress: netip.MustParseAddr("192.0.2.9"), NATPorts: model.PortRange{First: 1024, Last: 2047}, NATExcludesHosts: true, NATInterface: "eth+"}
	with := func(change func(*model.Felix)) model.Felix {
		out := want
		change(&out)
		return out
	}
	for _, tc := range []struct {
		name    string
		objects []metav1.Object
		want    model.Felix
		bad     []string
	}{
		{"none", nil, model.Felix{}, nil},
		{"nothing set", []metav1.Object{felix("default")}, model.Felix{}, nil},
		{"all set", []metav1.Object{all}, want, nil},
		{"the order does not matter", []metav1.Object{felix("node.n1", func(s spec) { s.NATOutgoingAddress = "fd00::9" }), all},
			with(func(f *model.Felix) { f.NATOutgoingAddress = netip.MustParseAddr("fd00::9") }), nil},
		{"this node's goes first", []metav1.Object{all, felix("node.n1", func(s spec) {
			s.NATPortRange, s.NATOutgoingExclusions, s.IptablesNATOutgoingInterfaceFilter = port("0"), ptr("IPPoolsOnly"), "bond0"
		})}, with(func(f *model.Felix) {
			f.NATPorts, f.NATExcludesHosts, f.NATInterface = model.PortRange{}, false, "bond0"
		}), nil},
		{"another node's", []metav1.Object{all, felix("node.n2", func(s spec) { s.NATPortRange = port("7") })}, want, nil},
		{"this node's alone", []metav1.Object{felix("node.n1", func(s spec) { s.NATPortRange = port("7") })}, model.Felix{NATPorts: model.PortRange{First: 7, Last: 7}}, nil},
		{"one that is broken leaves the other", []metav1.Object{all, felix("node.n1", func(s spec) { s.NATPortRange, s.NATOutgoingAddress = port("http"), "192.0.2.8" })}, want,
			[]string{`bad .spec.natPortRange is "http"; must be a port or a range such as "32768:65535"`}},
		{"name", []metav1.Object{felix("rack1", func(s spec) { s.NodeSelector = "rack == '1'" })}, model.Felix{},
			[]string{`bad .metadata.name is "rack1"; must be "default" for the cluster or "node." and the name of a node`, "ignored .spec.nodeSelector"}},
		{"ports backwards", []metav1.Object{felix("default", func(s spec) { s.NATPortRange = port("2:1") })}, model.Felix{}, []string{`bad .spec.natPortRange is "2:1"`}},
		{"ports from 0", []metav1.Object{felix("default", func(s spec) { s.NATPortRange = port("0:1") })}, model.Felix{}, []string{`bad .spec.natPortRange is "0:1"`}},
		{"too high a port", []metav1.Object{felix("default", func(s spec) { s.NATPortRange = port("65536") })}, model.Felix{}, []string{`bad .spec.natPortRange is "65536"`}},
		{"negative port", []metav1.Object{felix("default", func(s spec) { s.NATPortRange = port("-1") })}, model.Felix{}, []string{`bad .spec.natPortRange is "-1"`}},
		{"address", []metav1.Object{felix("default", func(s spec) { s.NATOutgoingAddress = "192.0.2" })}, model.Felix{}, []string{`bad .spec.natOutgoingAddress is "192.0.2"; must be an address`}},
		{"address with a zone", []metav1.Object{felix("default", func(s spec) { s.NATOutgoingAddress = "fd00::1%eth0" })}, model.Felix{}, []string{"bad .spec.natOutgoingAddress"}},
		{"no host's address", []metav1.Object{felix("default", func(s spec) { s.NATOutgoingAddress = "0.0.0.0" })}, model.Felix{}, []string{"bad .spec.natOutgoingAddress"}},
		{"mapped address", []metav1.Object{felix("default", func(s spec) { s.NATOutgoingAddress = "::ffff:192.0.2.9" })}, model.Felix{NATOutgoingAddress: netip.MustParseAddr("192.0.2.9")}, nil},
		{"exclusions", []metav1.Object{felix("default", func(s spec) { s.NATOutgoingExclusions = ptr("None") })}, model.Felix{},
			[]string{`bad .spec.natOutgoingExclusions is "None"; must be one of IPPoolsOnly, IPPoolsAndHostIPs`}},
		{"interface", []metav1.Object{felix("default", func(s spec) { s.IptablesNATOutgoingInterfaceFilter = "! eth0" })}, model.Felix{}, []string{"bad .spec.iptablesNATOutgoingInterfaceFilter"}},
		{"plus in the middle", []metav1.Object{felix("default", func(s spec) { s.IptablesNATOutgoingInterfaceFilter = "e+0" })}, model.Felix{}, []string{"bad .spec.iptablesNATOutgoingInterfaceFilter"}},
		{"long interface", []metav1.Object{felix("default", func(s spec) { s.IptablesNATOutgoingInterfaceFilter = strings.Repeat("x", 16) })}, model.Felix{}, []string{"bad .spec.iptablesNATOutgoingInterfaceFilter"}},
		{"what is so anyway", []metav1.Object{felix("default", func(s spec) {
			s.NftablesMode, s.NftablesFlowTableOffload, s.LogSeverityScreen, s.BPFEnabled = ptr("Auto"), ptr("Disabled"), "Info", ptr(false)
			s.ReportingInterval, s.FloatingIPs = &metav1.Duration{}, ptr("Disabled")
		})}, model.Felix{}, nil},
		{"what is not acted on", []metav1.Object{felix("default", func(s spec) {
			s.NATPortRange, s.NftablesMode, s.BPFEnabled, s.IPv6Support = port("7"), ptr("Enabled"), ptr(true), ptr(false)
			s.FailsafeInboundHostPorts = &[]v3.ProtoPort{}
		})}, model.Felix{NATPorts: model.PortRange{First: 7, Last: 7}, NFTables: true}, []string{
			"ignored .spec.bpfEnabled is not acted on yet", "ignored .spec.failsafeInboundHostPorts", "ignored .spec.ipv6Support"}},
	} {
		s := build(tc.objects...)
		expect(t, tc.name, s, tc.bad...)
		if !reflect.DeepEqual(s.Felix, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, s.Felix, tc.want)
		}
		slices.Reverse(tc.objects)
		if s := build(tc.objects...); !reflect.DeepEqual(s.Felix, tc.want) {
			t.Errorf("%s: the other way round %+v, want %+v", tc.name, s.Felix, tc.want)
		}
	}
}
