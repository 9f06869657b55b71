package watch

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

var opt = Options{Node: "n1"}

func build(objects ...metav1.Object) *model.Snapshot {
	var in Input
	for _, o := range objects {
		in.Objects = append(in.Objects, Sourced{Object: Check(o, opt), Source: "test"})
	}
	return Build(in, opt)
}

func problems(s *model.Snapshot) string {
	var out []string
	for _, p := range s.Problems {
		kind := "bad"
		if p.Ignored {
			kind = "ignored"
		}
		out = append(out, kind+" "+p.Field+" "+p.Message)
	}
	return strings.Join(out, "\n")
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func ptr[T any](v T) *T { return &v }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func pool(name, cidr string, set ...func(*v3.IPPoolSpec)) *v3.IPPool {
	p := &v3.IPPool{ObjectMeta: meta(name), Spec: v3.IPPoolSpec{CIDR: cidr}}
	for _, f := range set {
		f(&p.Spec)
	}
	return p
}

// expect checks that the problems are exactly those that begin with the given words, or
// none.
func expect(t *testing.T, what string, s *model.Snapshot, want ...string) {
	t.Helper()
	got := problems(s)
	lines := strings.Split(got, "\n")
	if got == "" {
		lines = nil
	}
	if len(lines) != len(want) {
		t.Errorf("%s: problems\n%s\nwant %d:\n%s", what, got, len(want), strings.Join(want, "\n"))
		return
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("%s: problem\n%s\nwant\n%s", what, lines[i], want[i])
		}
	}
}

func TestPool(t *testing.T) {
	type spec = *v3.IPPoolSpec
	for _, tc := range []struct {
		name  string
		pool  *v3.IPPool
		check func(model.Pool) bool // nil: not in force
		want  []string
	}{
		{"defaults", pool("a", "10.244.0.0/16"), func(p model.Pool) bool {
			return p.BlockSize == 26 && p.IPIPMode == model.EncapNever && p.VXLANMode == model.EncapNever && !p.Manual &&
				p.NodeSelector.String() == "all()" && p.NamespaceSelector == nil &&
				reflect.DeepEqual(p.AllowedUses, []model.Use{model.UseWorkload, model.UseTunnel})
		}, nil},
		{"IPv6 defaults", pool("a", "fd00:10:244::/64"), func(p model.Pool) bool { return p.BlockSize == 122 }, nil},
		{"all set", pool("a", "10.244.0.0/24", func(s spec) {
			s.BlockSize, s.Disabled, s.DisableBGPExport, s.AssignmentMode = 32, true, true, v3.AssignmentManual
			s.NodeSelector, s.AllowedUses = `rack == "r1"`, []v3.IPPoolAllowedUse{"Workload"}
		}), func(p model.Pool) bool {
			return p.BlockSize == 32 && p.Disabled && p.DisableBGPExport && p.Manual && p.NodeSelector.String() == `rack == "r1"` && !p.Allows(model.UseTunnel)
		}, nil},
		{"one block", pool("a", "10.244.0.0/26"), func(p model.Pool) bool { return true }, nil},
		{"not acted on", pool("a", "10.244.0.0/16", func(s spec) {
			s.NATOutgoing, s.VXLANMode, s.NamespaceSelector = true, v3.EncapCrossSubnet, `a == "b"`
		}), func(p model.Pool) bool {
			return p.NATOutgoing && p.VXLANMode == model.EncapCrossSubnet && p.NamespaceSelector.String() == `a == "b"`
		}, []string{"ignored .spec.namespaceSelector"}},
		{"IPIP", pool("a", "10.244.0.0/16", func(s spec) { s.IPIPMode = v3.EncapAlways }),
			func(p model.Pool) bool { return p.IPIPMode == model.EncapAlways }, nil},
		{"load balancers not acted on", pool("a", "10.244.0.0/16", func(s spec) { s.AllowedUses = []v3.IPPoolAllowedUse{"LoadBalancer"} }),
			func(p model.Pool) bool { return p.Allows(model.UseLoadBalancer) }, []string{"ignored .spec.allowedUses"}},
		{"no cidr", pool("a", ""), nil, []string{"bad .spec.cidr is missing"}},
		{"no network", pool("a", "10.244.0.0"), nil, []string{`bad .spec.cidr is "10.244.0.0"; must be a network`}},
		{"host bits", pool("a", "10.244.0.1/16"), nil, []string{`bad .spec.cidr is "10.244.0.1/16", which has bits set outside its mask; did you mean "10.244.0.0/16"?`}},
		{"mapped", pool("a", "::ffff:10.0.0.0/104"), nil, []string{"bad .spec.cidr"}},
		{"link-local", pool("a", "169.254.0.0/17"), nil, []string{`bad .spec.cidr is "169.254.0.0/17", which overlaps 169.254.0.0/16`}},
		{"block too large", pool("a", "10.244.0.0/16", func(s spec) { s.BlockSize = 19 }), nil, []string{"bad .spec.blockSize is 19; must be 20 to 32 for an IPv4 pool"}},
		{"block too small", pool("a", "fd00::/64", func(s spec) { s.BlockSize = 26 }), nil, []string{"bad .spec.blockSize is 26; must be 116 to 128 for an IPv6 pool"}},
		{"pool smaller than a block", pool("a", "10.244.0.0/27"), nil, []string{"bad .spec.blockSize is 26, but the pool 10.244.0.0/27 is smaller than one such block; must be 27 to 32"}},
		{"two encapsulations", pool("a", "10.244.0.0/16", func(s spec) { s.IPIPMode, s.VXLANMode = v3.EncapAlways, v3.EncapAlways }), nil,
			[]string{"bad .spec.vxlanMode is Always while ipipMode is Always; one of them must be Never"}},
		{"IPIP on IPv6", pool("a", "fd00::/64", func(s spec) { s.IPIPMode = v3.EncapAlways }), nil, []string{"bad .spec.ipipMode is Always, but IPIP carries IPv4 only"}},
		{"enum", pool("a", "10.244.0.0/16", func(s spec) { s.IPIPMode = "Never!" }), nil, []string{`bad .spec.ipipMode is "Never!"; must be one of Never, Always, CrossSubnet`}},
		{"assignment", pool("a", "10.244.0.0/16", func(s spec) { s.AssignmentMode = "Auto" }), nil, []string{"bad .spec.assignmentMode"}},
		{"uses", pool("a", "10.244.0.0/16", func(s spec) { s.AllowedUses = []v3.IPPoolAllowedUse{"Pods"} }), nil, []string{"bad .spec.allowedUses[0]"}},
		{"uses twice", pool("a", "10.244.0.0/16", func(s spec) { s.AllowedUses = []v3.IPPoolAllowedUse{"Tunnel", "Tunnel"} }), nil, []string{"bad .spec.allowedUses[1]"}},
		{"uses mixed", pool("a", "10.244.0.0/16", func(s spec) { s.AllowedUses = []v3.IPPoolAllowedUse{"Workload", "LoadBalancer"} }), nil, []string{"ignored .spec.allowedUses", "bad .spec.allowedUses LoadBalancer stands beside"}},
		{"selector", pool("a", "10.244.0.0/16", func(s spec) { s.NodeSelector = "rack = r1" }), nil, []string{`bad .spec.nodeSelector selector "rack = r1": column 6: expected "=="`}},
		{"long selector", pool("a", "10.244.0.0/16", func(s spec) { s.NodeSelector = strings.Repeat("!", 1020) + "all()" }), nil, []string{"bad .spec.nodeSelector has 1025 characters"}},
		{"name", pool("A_b", "10.244.0.0/16"), nil, []string{`bad .metadata.name is "A_b"`}},
		{"no name", pool("", "10.244.0.0/16"), nil, []string{"bad .metadata.name is missing"}},
	} {
		s := build(tc.pool)
		expect(t, tc.name, s, tc.want...)
		if (len(s.Pools) == 1) != (tc.check != nil) || tc.check != nil && !tc.check(s.Pools[0]) {
			t.Errorf("%s: pools %+v", tc.name, s.Pools)
		}
	}
}

func TestOverlappingPools(t *testing.T) {
	at := func(p *v3.IPPool, sec int64) *v3.IPPool {
		p.CreationTimestamp = metav1.Unix(sec, 0)
		return p
	}
	s := build(at(pool("a", "10.0.0.0/16"), 2), at(pool("b", "10.0.0.0/8"), 1), pool("d", "fd00::/64"), pool("c", "fd00::/48"))
	if len(s.Pools) != 2 || s.Pools[0].Name != "b" || s.Pools[1].Name != "c" {
		t.Errorf("pools in force: %+v", s.Pools)
	}
	expect(t, "overlap", s,
		`bad .spec.cidr is "10.0.0.0/16", which overlaps "10.0.0.0/8" of IPPool b`,
		`bad .spec.cidr is "fd00::/64", which overlaps "fd00::/48" of IPPool c`)
	// What overlaps only a pool that is not in force is in force.
	s = build(pool("a", "10.0.0.0/24"), pool("b", "10.0.0.0/16"), pool("c", "10.0.1.0/24"))
	if len(s.Pools) != 2 || s.Pools[1].Name != "c" {
		t.Errorf("pools in force: %+v", s.Pools)
	}
	// A pool in use stays in force, whatever the name of one that is added beside it.
	for _, second := range []string{"10.0.0.0/17", "10.0.0.0/8", "10.0.0.0/16"} {
		s = build(pool("a", second), pool("in-use", "10.0.0.0/16"), blockObject("10.0.0.0/26", "host:n1"), blockObject("10.0.200.0/26", "host:n1"))
		if in := slices.ContainsFunc(s.Pools, func(p model.Pool) bool { return p.CIDR == prefix("10.0.0.0/16") || p.CIDR == prefix("10.0.0.0/8") }); len(s.Pools) != 1 || !in {
			t.Errorf("beside %s: pools in force: %+v", second, s.Pools)
		}
	}
}

func node(name string, set ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: meta(name)}
	for _, f := range set {
		f(n)
	}
	return n
}

func annotate(kv ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Annotations = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			n.Annotations["projectcalico.org/"+kv[i]] = kv[i+1]
		}
	}
}

func addresses(as ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "x"}, {Type: corev1.NodeExternalIP, Address: "192.0.2.9"}}
		for _, a := range as {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
	}
}

func TestNode(t *testing.T) {
	host := map[string]string{"kubernetes.io/hostname": "n1"}
	for _, tc := range []struct {
		name string
		node *corev1.Node
		out  model.Node
		want []string
	}{
		{"bare", node("n1"), model.Node{Labels: host}, nil},
		{"labels", node("n1", func(n *corev1.Node) { n.Labels = map[string]string{"rack": "r1", "kubernetes.io/hostname": "h"} }),
			model.Node{Labels: map[string]string{"rack": "r1", "kubernetes.io/hostname": "h"}}, nil},
		{"annotations", node("n1", addresses("10.9.9.9"), annotate("IPv4Address", "10.0.0.1/24", "IPv6Address", "fd00::1/64", "ASNumber", "65001", "RouteReflectorClusterID", "224.0.0.1")),
			model.Node{Labels: host, IPv4: prefix("10.0.0.1/24"), IPv6: prefix("fd00::1/64"), ASN: 65001, RouteReflectorClusterID: netip.MustParseAddr("224.0.0.1")}, nil},
		{"no mask", node("n1", annotate("IPv4Address", "10.0.0.1")), model.Node{Labels: host, IPv4: prefix("10.0.0.1/32")}, nil},
		{"status", node("n1", addresses("fe80::1", "10.0.0.1", "10.0.0.2", "fd00::1")), model.Node{Labels: host, IPv4: prefix("10.0.0.1/32"), IPv6: prefix("fd00::1/128")}, nil},
		{"empty annotations", node("n1", addresses("10.0.0.1", "fd00::1"), annotate("IPv4Address", "", "IPv6Address", "fd00::9/64")),
			model.Node{Labels: host, IPv4: prefix("10.0.0.1/32"), IPv6: prefix("fd00::9/64")}, nil},
		{"no address of a family", node("n1", addresses("10.0.0.1", "fd00::1"), annotate("IPv6Address", "none")), model.Node{Labels: host, IPv4: prefix("10.0.0.1/32")}, nil},
		{"dotted ASN", node("n1", annotate("ASNumber", "1.10")), model.Node{Labels: host, ASN: 65546}, nil},
		{"largest ASN", node("n1", annotate("ASNumber", "4294967295")), model.Node{Labels: host, ASN: 4294967295}, nil},
		{"bad ASN", node("n1", annotate("ASNumber", "4294967296")), model.Node{}, []string{`bad .metadata.annotations[projectcalico.org/ASNumber] is "4294967296"; must be an AS number`}},
		{"ASN 0", node("n1", annotate("ASNumber", "0.0")), model.Node{}, []string{"bad"}},
		{"half ASN", node("n1", annotate("ASNumber", "1.")), model.Node{}, []string{"bad"}},
		{"family", node("n1", annotate("IPv4Address", "fd00::1/64")), model.Node{}, []string{`bad .metadata.annotations[projectcalico.org/IPv4Address] is "fd00::1/64"; must be an IPv4 address`}},
		{"loopback", node("n1", annotate("IPv4Address", "127.0.0.1/8")), model.Node{}, []string{"bad"}},
		{"cluster id", node("n1", annotate("RouteReflectorClusterID", "1")), model.Node{}, []string{"bad"}},
		{"status address", node("n1", addresses("10.0.0.1.1")), model.Node{}, []string{`bad .status.addresses[2].address is "10.0.0.1.1"`}},
		{"namespace", node("n1", func(n *corev1.Node) { n.Namespace = "x" }), model.Node{Labels: host}, []string{"ignored .metadata.namespace"}},
	} {
		s := build(tc.node)
		expect(t, tc.name, s, tc.want...)
		tc.out.Name, tc.out.ListenPort = "n1", DefaultListenPort
		switch {
		case tc.out.Labels == nil && len(s.Nodes) != 0:
			t.Errorf("%s: in force: %+v", tc.name, s.Nodes)
		case tc.out.Labels != nil && (len(s.Nodes) != 1 || !reflect.DeepEqual(s.Nodes[0], tc.out)):
			t.Errorf("%s: %+v, want %+v", tc.name, s.Nodes, tc.out)
		}
	}
}

func config(name string, set func(*v3.BGPConfigurationSpec)) *v3.BGPConfiguration {
	c := &v3.BGPConfiguration{ObjectMeta: meta(name)}
	if set != nil {
		set(&c.Spec)
	}
	return c
}

func secretObject(namespace, name, key, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{key: []byte(value)}}
}

func ref(name, key string) *v3.BGPPassword {
	return &v3.BGPPassword{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key}}
}

func optional(p *v3.BGPPassword) *v3.BGPPassword {
	p.SecretKeyRef.Optional = ptr(true)
	return p
}

func TestNodeAddresses(t *testing.T) {
	node := func(name, v4, v6 string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: meta(name)}
		n.Annotations = map[string]string{AnnotationIPv4Address: v4, AnnotationIPv6Address: v6}
		return n
	}
	s := build(node("c", "10.0.0.2/24", "fd00::3/64"), node("a", "10.0.0.1/24", "fd00::1/64"), node("b", "10.0.0.1/24", "fd00::2/64"),
		pool("p", "10.0.0.0/16"), pool("q", "10.1.0.0/16"))
	expect(t, "one address twice", s, "ignored  has the address 10.0.0.1, which is that of Node a too")
	if len(s.Problems) == 1 && s.Problems[0].Object.Name != "b" {
		t.Errorf("reported at %s", s.Problems[0].Object)
	}
	// Those in a pool are no pod's to have.
	if want := []netip.Prefix{prefix("10.0.0.1/32"), prefix("10.0.0.2/32")}; !reflect.DeepEqual(s.Reservations, want) {
		t.Errorf("reserved %v, want %v", s.Reservations, want)
	}
}

func TestBGPConfiguration(t *testing.T) {
	type spec = *v3.BGPConfigurationSpec
	defaults := model.BGPConfig{ASN: 64512, Mesh: true, ListenPort: 179, RoutePriority4: 1024, RoutePriority6: 1024}
	with := func(f func(*model.BGPConfig)) model.BGPConfig {
		c := defaults
		f(&c)
		return c
	}
	meshDown := with(func(c *model.BGPConfig) { c.Mesh = false })
	unknown := with(func(c *model.BGPConfig) { c.Mesh, c.Unknown = false, true })
	communities := func(s spec) {
		s.Communities = []v3.Community{{Name: "blue", Value: "64512:1"}, {Name: "large", Value: "4200000000:2:3"}}
		s.PrefixAdvertisements = []v3.PrefixAdvertisement{
			{CIDR: "10.1.0.0/16", Communities: []string{"large", "blue", "1:2", "64512:1"}},
			{CIDR: "10.0.0.0/8"},
		}
	}
	resolved := []model.PrefixCommunities{
		{CIDR: prefix("10.0.0.0/8")},
		{CIDR: prefix("10.1.0.0/16"), Communities: []string{"1:2", "4200000000:2:3", "64512:1"}},
	}
	for _, tc := range []struct {
		name    string
		objects []metav1.Object
		cfg     model.BGPConfig
		want    []string
	}{
		{"none", nil, defaults, nil},
		{"empty", []metav1.Object{config("default", nil)}, defaults, nil},
		{"all", []metav1.Object{config("default", func(s spec) {
			s.ASNumber, s.NodeToNodeMeshEnabled, s.ListenPort = ptr(uint32(4294967295)), ptr(true), ptr(1790)
			s.NodeMeshMaxRestartTime = &metav1.Duration{Duration: time.Minute}
			s.BindMode, s.IPv4NormalRoutePriority, s.IPv6NormalRoutePriority = ptr(v3.BindModeNodeIP), ptr(100), ptr(200)
			s.LogSeverityScreen, s.ServiceLoadBalancerAggregation, s.ProgramClusterRoutes = "info", "Enabled", ptr(v3.ProgramClusterRoutesEnabled)
			communities(s)
		})}, model.BGPConfig{ASN: 4294967295, Mesh: true, ListenPort: 1790, MeshRestartTime: time.Minute, BindNodeIP: true,
			RoutePriority4: 100, RoutePriority6: 200, PrefixCommunities: resolved}, nil},
		{"overrides of this node", []metav1.Object{
			config("default", func(s spec) {
				s.ListenPort, s.ASNumber = ptr(1790), ptr(uint32(65000))
				s.PrefixAdvertisements = []v3.PrefixAdvertisement{{CIDR: "10.9.0.0/16"}}
			}),
			config("node.n1", func(s spec) { s.ListenPort = ptr(1791); communities(s) }),
			config("node.n2", func(s spec) { s.ListenPort = ptr(1792); s.ServiceClusterIPs = nil }),
		}, with(func(c *model.BGPConfig) { c.ASN, c.ListenPort, c.PrefixCommunities = 65000, 1791, resolved }),
			nil},
		{"the default's prefixes stay", []metav1.Object{config("default", communities), config("node.n1", nil)},
			with(func(c *model.BGPConfig) { c.PrefixCommunities = resolved }), nil},
		{"only in default", []metav1.Object{config("node.n1", func(s spec) {
			s.BindMode, s.NodeMeshPassword, s.IPv4NormalRoutePriority = ptr(v3.BindModeNodeIP), ref("a", "b"), ptr(1)
		})}, defaults, []string{"ignored .spec.bindMode", "ignored .spec.ipv4NormalRoutePriority", "ignored .spec.nodeMeshPassword"}},
		{"refused in a node's", []metav1.Object{config("node.n1", func(s spec) {
			s.ASNumber, s.NodeToNodeMeshEnabled, s.ListenPort = ptr(uint32(1)), ptr(false), ptr(1790)
		})}, defaults, []string{"bad .spec.asNumber can be set in", "bad .spec.nodeToNodeMeshEnabled"}},
		{"another name", []metav1.Object{config("mine", nil)}, defaults, []string{"bad .metadata.name"}},
		{"not acted on", []metav1.Object{config("default", func(s spec) {
			s.LogSeverityScreen, s.IgnoredInterfaces = "Debug", []string{"eth1"}
			s.ServiceClusterIPs = []v3.ServiceClusterIPBlock{{CIDR: "10.96.0.0/12"}}
			s.ServiceExternalIPs = []v3.ServiceExternalIPBlock{{CIDR: "192.0.2.0/24"}}
			s.ServiceLoadBalancerIPs = []v3.ServiceLoadBalancerIPBlock{{CIDR: "198.51.100.0/24"}}
			s.ServiceLoadBalancerAggregation = "Disabled"
			s.LocalWorkloadPeeringIPV4, s.LocalWorkloadPeeringIPV6 = "10.0.0.1", "fd00::1"
			s.ProgramClusterRoutes = ptr(v3.ProgramClusterRoutesEnabledIPIPOnly)
		})}, defaults, []string{
			"ignored .spec.ignoredInterfaces", "ignored .spec.localWorkloadPeeringIPV4", "ignored .spec.localWorkloadPeeringIPV6",
			"ignored .spec.logSeverityScreen", "ignored .spec.programClusterRoutes", "ignored .spec.serviceClusterIPs",
			"ignored .spec.serviceExternalIPs", "ignored .spec.serviceLoadBalancerAggregation", "ignored .spec.serviceLoadBalancerIPs",
		}},
		// A default that never was valid may have wanted a password, or no mesh.
		{"broken default", []metav1.Object{config("default", func(s spec) { s.ListenPort = ptr(0) })}, unknown,
			[]string{"bad .spec.listenPort is 0; must be 1 to 65535", "bad .spec.nodeToNodeMeshEnabled the node mesh stays down"}},
		{"ASN 0", []metav1.Object{config("default", func(s spec) { s.ASNumber = ptr(uint32(0)) })}, unknown, []string{"bad .spec.asNumber", "bad"}},
		{"priority", []metav1.Object{config("default", func(s spec) { s.IPv6NormalRoutePriority = ptr(2147483647) })}, unknown, []string{"bad .spec.ipv6NormalRoutePriority", "bad"}},
		{"severity", []metav1.Object{config("default", func(s spec) { s.LogSeverityScreen = "Loud" })}, unknown, []string{"bad .spec.logSeverityScreen", "bad"}},
		{"bind mode", []metav1.Object{config("default", func(s spec) { s.BindMode = ptr(v3.BindMode("All")) })}, unknown, []string{"bad .spec.bindMode", "bad"}},
		{"service range", []metav1.Object{config("default", func(s spec) { s.ServiceClusterIPs = []v3.ServiceClusterIPBlock{{CIDR: "10.96.0.1/12"}} })}, unknown,
			[]string{"bad .spec.nodeToNodeMeshEnabled", "ignored .spec.serviceClusterIPs", "bad .spec.serviceClusterIPs[0].cidr"}},
		{"restart time", []metav1.Object{config("default", func(s spec) { s.NodeMeshMaxRestartTime = &metav1.Duration{Duration: 90 * time.Minute} })}, unknown,
			[]string{`bad .spec.nodeMeshMaxRestartTime is "1h30m0s"; must be whole seconds from "1s" to "4095s"`, "bad"}},
		{"community name", []metav1.Object{config("node.n1", func(s spec) {
			s.PrefixAdvertisements = []v3.PrefixAdvertisement{{CIDR: "10.0.0.0/8", Communities: []string{"red"}}}
		})}, defaults, []string{`bad .spec.prefixAdvertisements[0].communities[0] is "red", a name that .spec.communities does not define`}},
		{"community value", []metav1.Object{config("node.n1", func(s spec) {
			s.Communities = []v3.Community{{Name: "a", Value: "65536:1"}, {Name: "a", Value: "1:2"}, {Value: "1:2:4294967296"}}
		})}, defaults, []string{"bad .spec.communities[0].value", "bad .spec.communities[1].name", "bad .spec.communities[2].name", "bad .spec.communities[2].value"}},
		{"mesh password", []metav1.Object{secretObject("", "bgp", "mesh", "pw"), config("default", func(s spec) { s.NodeMeshPassword = ref("bgp", "mesh") })},
			with(func(c *model.BGPConfig) { c.MeshPassword = "pw" }), nil},
		{"mesh password without Secret", []metav1.Object{secretObject("other", "bgp", "mesh", "pw"), config("default", func(s spec) { s.NodeMeshPassword = ref("bgp", "mesh") })},
			meshDown, []string{"bad .spec.nodeMeshPassword.secretKeyRef there is no Secret kube-system/bgp; the node mesh stays down without its password"}},
		{"mesh password optional", []metav1.Object{config("default", func(s spec) { s.NodeMeshPassword = optional(ref("bgp", "mesh")) })}, defaults, nil},
		{"mesh password without mesh", []metav1.Object{config("default", func(s spec) { s.NodeToNodeMeshEnabled, s.NodeMeshPassword = ptr(false), ref("a", "b") })},
			unknown, []string{"bad .spec.nodeMeshPassword is set while nodeToNodeMeshEnabled is false", "bad"}},
		{"empty password", []metav1.Object{config("default", func(s spec) { s.NodeMeshPassword = &v3.BGPPassword{} })}, unknown, []string{"bad .spec.nodeMeshPassword has no secretKeyRef", "bad"}},
	} {
		s := build(tc.objects...)
		expect(t, tc.name, s, tc.want...)
		if !reflect.DeepEqual(s.BGP, tc.cfg) {
			t.Errorf("%s: %+v, want %+v", tc.name, s.BGP, tc.cfg)
		}
	}
}

func TestBGPPeer(t *testing.T) {
	type spec = *v3.BGPPeerSpec
	base := func(s spec) { s.PeerIP, s.ASNumber = "10.0.0.254", 65000 }
	std := model.BGPPeer{Name: "p", PeerIP: netip.MustParseAddr("10.0.0.254"), ASN: 65000, SourceNodeIP: true, NextHopMode: model.NextHopAuto, ReversePeering: true}
	with := func(f func(*model.BGPPeer)) *model.BGPPeer {
		p := std
		f(&p)
		return &p
	}
	at := func(ip string, port uint16) *model.BGPPeer {
		return with(func(p *model.BGPPeer) { p.PeerIP, p.PeerPort = netip.MustParseAddr(ip), port })
	}
	sec := secretObject("kube-system", "bgp", "tor", "pw")
	for _, tc := range []struct {
		name string
		set  func(spec)
		peer *model.BGPPeer // selectors are compared as strings, below
		want []string
	}{
		{"plain", base, &std, nil},
		{"port", func(s spec) { base(s); s.PeerIP = "10.0.0.254:1790" }, at("10.0.0.254", 1790), nil},
		{"IPv6", func(s spec) { base(s); s.PeerIP = "fd00::1" }, at("fd00::1", 0), nil},
		{"IPv6 port", func(s spec) { base(s); s.PeerIP = "[fd00::1]:1790" }, at("fd00::1", 1790), nil},
		{"link-local", func(s spec) { base(s); s.PeerIP = "fe80::1%eth0" }, at("fe80::1%eth0", 0), nil},
		{"all", func(s spec) {
			base(s)
			s.Node, s.LocalASNumber, s.SourceAddress, s.TTLSecurity = "n1", ptr(uint32(4200000000)), v3.SourceAddressNone, ptr(254)
			s.KeepaliveTime, s.MaxRestartTime = &metav1.Duration{Duration: 3 * time.Second}, &metav1.Duration{Duration: time.Minute}
			s.NumAllowedLocalASNumbers, s.KeepOriginalNextHop, s.ReversePeering = ptr(int32(2)), true, ptr(v3.ReversePeeringManual)
			s.Password = ref("bgp", "tor")
		}, with(func(p *model.BGPPeer) {
			p.Node, p.LocalASN, p.SourceNodeIP, p.TTLSecurity, p.KeepaliveTime, p.RestartTime = "n1", 4200000000, false, 254, 3*time.Second, time.Minute
			p.AllowOwnAS, p.NextHopMode, p.ReversePeering, p.Password = 2, model.NextHopKeep, false, "pw"
		}), nil},
		{"next hop", func(s spec) { base(s); s.NextHopMode = ptr(v3.NextHopModeSelf) }, with(func(p *model.BGPPeer) { p.NextHopMode = model.NextHopSelf }), nil},
		{"next hop twice", func(s spec) { base(s); s.NextHopMode, s.KeepOriginalNextHop = ptr(v3.NextHopModeSelf), true },
			with(func(p *model.BGPPeer) { p.NextHopMode = model.NextHopSelf }), []string{"ignored .spec.keepOriginalNextHop"}},
		{"not acted on", func(s spec) { base(s); s.Filters, s.ReachableBy = []string{"f"}, "10.0.0.1" }, &std, []string{"ignored .spec.filters", "ignored .spec.reachableBy"}},
		{"optional password", func(s spec) { base(s); s.Password = optional(ref("none", "tor")) }, &std, nil},
		{"no Secret", func(s spec) { base(s); s.Password = ref("none", "tor") }, nil, []string{"bad .spec.password.secretKeyRef there is no Secret kube-system/none; the peer stays down without its password"}},
		{"no key", func(s spec) { base(s); s.Password = ref("bgp", "x") }, nil, []string{`bad .spec.password.secretKeyRef the Secret kube-system/bgp has no key "x"`}},
		{"no name of a key", func(s spec) { base(s); s.Password = ref("", "") }, nil, []string{"bad .spec.password.secretKeyRef.key", "bad .spec.password.secretKeyRef.name"}},
		{"no remote", func(spec) {}, nil, []string{"bad .spec.peerIP is missing"}},
		{"two remotes", func(s spec) { base(s); s.PeerSelector = "all()" }, nil, []string{"bad .spec.peerSelector is set beside peerIP"}},
		{"two scopes", func(s spec) { base(s); s.Node, s.NodeSelector = "n1", "all()" }, nil, []string{"bad .spec.nodeSelector is set beside node"}},
		{"no ASN", func(s spec) { s.PeerIP = "10.0.0.254" }, nil, []string{"bad .spec.asNumber is missing"}},
		{"ASN of nodes", func(s spec) { s.PeerSelector, s.ASNumber = "all()", 1 }, nil, []string{"bad .spec.asNumber is set beside peerSelector"}},
		{"selectors", func(s spec) { s.PeerSelector, s.NodeSelector = "a", "b" }, nil, []string{"bad .spec.nodeSelector selector", "bad .spec.peerSelector selector"}},
		{"bad address", func(s spec) { base(s); s.PeerIP = "10.0.0.256" }, nil, []string{`bad .spec.peerIP is "10.0.0.256"; must be an address`}},
		{"bad port", func(s spec) { base(s); s.PeerIP = "10.0.0.1:0" }, nil, []string{"bad .spec.peerIP"}},
		{"unspecified", func(s spec) { base(s); s.PeerIP = "0.0.0.0" }, nil, []string{"bad .spec.peerIP"}},
		{"no zone", func(s spec) { base(s); s.PeerIP = "fe80::1" }, nil, []string{"bad .spec.peerIP"}},
		{"TTL 0", func(s spec) { base(s); s.TTLSecurity = ptr(0) }, nil, []string{"bad .spec.ttlSecurity is 0; must be the number of hops to the peer, 1 to 254"}},
		{"TTL 255", func(s spec) { base(s); s.TTLSecurity = ptr(255) }, nil, []string{"bad .spec.ttlSecurity"}},
		{"keepalive", func(s spec) { base(s); s.KeepaliveTime = &metav1.Duration{Duration: 1500 * time.Millisecond} }, nil, []string{"bad .spec.keepaliveTime"}},
		{"restart", func(s spec) { base(s); s.MaxRestartTime = &metav1.Duration{} }, nil, []string{"bad .spec.maxRestartTime"}},
		{"own AS", func(s spec) { base(s); s.NumAllowedLocalASNumbers = ptr(int32(-1)) }, nil, []string{"bad .spec.numAllowedLocalASNumbers"}},
		{"local ASN", func(s spec) { base(s); s.LocalASNumber = ptr(uint32(0)) }, nil, []string{"bad .spec.localASNumber"}},
		{"enums", func(s spec) {
			base(s)
			s.SourceAddress, s.NextHopMode, s.ReversePeering = "x", ptr(v3.NextHopMode("x")), ptr(v3.ReversePeering("x"))
		}, nil,
			[]string{"bad .spec.nextHopMode", "bad .spec.reversePeering", "bad .spec.sourceAddress"}},
		{"gateway of another family", func(s spec) { base(s); s.ReachableBy = "fd00::1" }, nil, []string{"bad .spec.reachableBy", "ignored .spec.reachableBy"}},
		{"gateway without address", func(s spec) { s.PeerSelector, s.ReachableBy = "all()", "10.0.0.1" }, nil, []string{"ignored .spec.reachableBy", "bad .spec.reachableBy"}},
		{"local workloads", func(s spec) { s.LocalWorkloadSelector = "all()" }, nil, []string{"bad .spec.localWorkloadSelector is not acted on yet"}},
		{"local workloads and address", func(s spec) { base(s); s.LocalWorkloadSelector = "all()" }, nil, []string{"bad .spec.localWorkloadSelector is set beside"}},
	} {
		p := &v3.BGPPeer{ObjectMeta: meta("p")}
		tc.set(&p.Spec)
		s := build(sec, p)
		expect(t, tc.name, s, tc.want...)
		switch {
		case tc.peer == nil && len(s.Peers) != 0:
			t.Errorf("%s: in force: %+v", tc.name, s.Peers)
		case tc.peer != nil && (len(s.Peers) != 1 || !reflect.DeepEqual(s.Peers[0], *tc.peer)):
			t.Errorf("%s: %+v, want %+v", tc.name, s.Peers, *tc.peer)
		}
	}
	s := build(&v3.BGPPeer{ObjectMeta: meta("p"), Spec: v3.BGPPeerSpec{PeerSelector: "has(rr)", NodeSelector: "!has(rr)"}})
	if p := s.Peers[0]; p.PeerSelector.String() != "has(rr)" || p.NodeSelector.String() != "!has(rr)" {
		t.Errorf("selectors: %+v", p)
	}
}

// TestPasswords holds that what cannot be a password keeps the session down, optional or
// not, and that no value is ever shown.
func TestPasswords(t *testing.T) {
	for _, value := range []string{"", "hunter2\n", strings.Repeat("hunter2", 12)} {
		p := &v3.BGPPeer{ObjectMeta: meta("p"), Spec: v3.BGPPeerSpec{PeerIP: "10.0.0.1", ASNumber: 1, Password: optional(ref("bgp", "tor"))}}
		s := build(p, secretObject("", "bgp", "tor", value))
		if len(s.Peers) != 0 || len(s.Problems) != 1 || strings.Contains(problems(s), "hunter2") {
			t.Errorf("password of %d bytes: %+v\n%s", len(value), s.Peers, problems(s))
		}
	}
	sec := secretObject("net", "bgp", "tor", "old")
	sec.StringData = map[string]string{"tor": "new"}
	p := &v3.BGPPeer{ObjectMeta: meta("p"), Spec: v3.BGPPeerSpec{PeerIP: "10.0.0.1", ASNumber: 1, Password: ref("bgp", "tor")}}
	o := Options{Node: "n1", SecretNamespace: "net"}
	s := Build(Input{Objects: []Sourced{{Object: Check(sec, o)}, {Object: Check(p, o)}}}, o)
	if len(s.Peers) != 1 || s.Peers[0].Password != "new" {
		t.Errorf("configured namespace: %+v\n%s", s.Peers, problems(s))
	}
}

func TestIPAM(t *testing.T) {
	conf := func(name string, set func(*v3.IPAMConfigurationSpec)) *v3.IPAMConfiguration {
		c := &v3.IPAMConfiguration{ObjectMeta: meta(name)}
		if set != nil {
			set(&c.Spec)
		}
		return c
	}
	defaults := model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 20}
	for _, tc := range []struct {
		name string
		conf *v3.IPAMConfiguration
		cfg  model.IPAMConfig
		want []string
	}{
		{"empty", conf("default", nil), defaults, nil},
		{"all", conf("default", func(s *v3.IPAMConfigurationSpec) {
			s.StrictAffinity, s.AutoAllocateBlocks, s.MaxBlocksPerHost, s.IPCooldownSeconds = true, ptr(false), 3, ptr(int32(30))
			s.KubeVirtVMAddressPersistence = ptr(v3.VMAddressPersistenceDisabled)
		}), model.IPAMConfig{StrictAffinity: true, MaxBlocksPerHost: 3, Cooldown: 30 * time.Second}, nil},
		{"virtual machines", conf("default", func(s *v3.IPAMConfigurationSpec) {
			s.KubeVirtVMAddressPersistence = ptr(v3.VMAddressPersistenceEnabled)
		}),
			defaults, []string{"ignored .spec.kubeVirtVMAddressPersistence"}},
		{"another name", conf("mine", func(s *v3.IPAMConfigurationSpec) { s.StrictAffinity = true }), defaults, []string{"bad .metadata.name"}},
		{"ranges", conf("default", func(s *v3.IPAMConfigurationSpec) { s.MaxBlocksPerHost, s.IPCooldownSeconds = -1, ptr(int32(1201)) }),
			defaults, []string{"bad .spec.ipCooldownSeconds", "bad .spec.maxBlocksPerHost"}},
	} {
		s := build(tc.conf)
		expect(t, tc.name, s, tc.want...)
		if s.IPAM != tc.cfg {
			t.Errorf("%s: %+v, want %+v", tc.name, s.IPAM, tc.cfg)
		}
	}
	s := build(
		&v3.IPReservation{ObjectMeta: meta("a"), Spec: v3.IPReservationSpec{ReservedCIDRs: []string{"10.0.1.0/24", "10.0.0.7", "fd00::/120"}}},
		&v3.IPReservation{ObjectMeta: meta("b"), Spec: v3.IPReservationSpec{ReservedCIDRs: []string{"10.0.0.7/32"}}},
		&v3.IPReservation{ObjectMeta: meta("c"), Spec: v3.IPReservationSpec{ReservedCIDRs: []string{"10.5.0.0/24", "10.0.1.1/24"}}},
	)
	if got := fmt.Sprint(s.Reservations); got != "[10.0.0.7/32 10.0.1.0/24 fd00::/120]" {
		t.Errorf("reservations %s", got)
	}
	expect(t, "reservations", s, "bad .spec.reservedCIDRs[1]")
}

func blockObject(cidr, affinity string) *v3.IPAMBlock {
	p := prefix(cidr)
	b := &v3.IPAMBlock{ObjectMeta: meta(v3.BlockName(p)), Spec: v3.IPAMBlockSpec{CIDR: cidr, Allocations: make([]*int, 1<<(p.Addr().BitLen()-p.Bits()))}}
	if affinity != "" {
		b.Spec.Affinity = &affinity
	}
	return b
}

func TestBlocks(t *testing.T) {
	wrongName := blockObject("10.0.9.0/26", "host:n1")
	wrongName.Name = "mine"
	deleted := blockObject("10.0.8.0/26", "host:n1")
	deleted.Spec.Deleted = true
	short := blockObject("10.0.7.0/26", "host:n1")
	short.Spec.Allocations = short.Spec.Allocations[1:]
	dangling := blockObject("10.0.6.0/26", "host:n1")
	dangling.Spec.Allocations[3] = ptr(0)
	s := build(blockObject("10.0.1.0/26", "host:n2"), blockObject("10.0.0.64/26", "host:n1"), blockObject("10.0.0.0/26", "virtual:load-balancer"),
		blockObject("fd00::/122", ""), wrongName, deleted, short, dangling, blockObject("10.0.5.0/26", "n1"), blockObject("10.0.64.0/19", "host:n1"))
	want := []model.Block{{CIDR: prefix("10.0.0.0/26")}, {CIDR: prefix("10.0.0.64/26"), Node: "n1"}, {CIDR: prefix("10.0.1.0/26"), Node: "n2"}, {CIDR: prefix("fd00::/122")}}
	if !reflect.DeepEqual(s.Blocks, want) {
		t.Errorf("blocks %v, want %v", s.Blocks, want)
	}
	expect(t, "blocks", s,
		`bad .spec.affinity is "n1"; must be "host:" and the name of a node`,
		"bad .spec.allocations[3]",
		"bad .spec.cidr is \"10.0.64.0/19\"; a block is a /20 to /32",
		"bad .spec.allocations has 63 elements; must have 64",
		`bad .metadata.name is "mine"; the name of the block 10.0.9.0/26 must be "10-0-9-0-26"`)
}

// TestOverlappingBlocks compares with the obvious way: by age, each that overlaps none.
func TestOverlappingBlocks(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var objects []metav1.Object
		var order []*v3.IPAMBlock
		used := map[string]bool{}
		for sec := range int64(12) {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(64))})
			p, _ := a.Prefix(26 + rng.IntN(5))
			if used[p.String()] {
				continue
			}
			used[p.String()] = true
			b := blockObject(p.String(), fmt.Sprintf("host:n%d", rng.IntN(3)))
			b.Spec.AffinityClaimTime = ptr(metav1.Unix(sec, 0))
			order = append(order, b)
			objects = append(objects, b)
		}
		rng.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
		want := map[string]bool{}
	next:
		for _, b := range order {
			for w := range want {
				if prefix(w).Overlaps(prefix(b.Spec.CIDR)) {
					continue next
				}
			}
			want[b.Spec.CIDR] = true
		}
		s := build(objects...)
		if len(s.Blocks) != len(want) || len(s.Problems) != len(order)-len(want) {
			t.Fatalf("seed %d: %d blocks and %d problems of %d, want %d blocks", seed, len(s.Blocks), len(s.Problems), len(order), len(want))
		}
		for i, b := range s.Blocks {
			if !want[b.CIDR.String()] || i > 0 && comparePrefix(s.Blocks[i-1].CIDR, b.CIDR) >= 0 {
				t.Fatalf("seed %d: blocks %v, want %v sorted", seed, s.Blocks, want)
			}
		}
	}
}

// TestOrder holds that the order of the objects does not matter and that one bad object
// disables itself only (I6).
func TestOrder(t *testing.T) {
	objects := []metav1.Object{
		node("n2"), node("n1"), pool("b", "10.2.0.0/16"), pool("a", "10.1.0.0/16"), pool("bad", "x"), pool("late", "10.1.0.0/17"),
		config("default", nil), config("node.n1", func(s *v3.BGPConfigurationSpec) { s.ListenPort = ptr(1790) }), config("x", nil),
		secretObject("", "s", "k", "v"), blockObject("10.1.0.0/26", "host:n1"), blockObject("10.1.0.0/24", "host:n2"),
		&v3.BGPPeer{ObjectMeta: meta("p")}, &v3.BGPPeer{ObjectMeta: meta("q"), Spec: v3.BGPPeerSpec{PeerIP: "10.0.0.1", ASNumber: 1, Password: ref("s", "k")}},
	}
	want := build(objects...)
	if len(want.Nodes) != 2 || len(want.Pools) != 2 || len(want.Peers) != 1 || len(want.Blocks) != 1 || len(want.Problems) != 5 || want.Node("n2") == nil {
		t.Fatalf("%+v\n%s", want, problems(want))
	}
	for range 20 {
		rand.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
		if got := build(objects...); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v\nwant\n%+v", got, want)
		}
	}
}

// TestListenPort: every node is reached at its own port.
func TestListenPort(t *testing.T) {
	config := func(name string, port int) *v3.BGPConfiguration {
		return &v3.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v3.BGPConfigurationSpec{ListenPort: ptr(port)}}
	}
	s := build(node("n1"), node("n2"), config("default", 1790), config("node.n2", 1792))
	expect(t, "ports", s)
	if s.BGP.ListenPort != 1790 || s.Nodes[0].ListenPort != 1790 || s.Nodes[1].ListenPort != 1792 {
		t.Errorf("own %d, nodes %+v", s.BGP.ListenPort, s.Nodes)
	}
}
