package felixtest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// The cluster of the cases: namespaces x, y and z (labelled ns: x, ...), in each the pods a,
// b and c (labelled pod: a, ...), as in the upstream end-to-end tests of NetworkPolicy. All
// but z/c are of this node. Node addresses are 192.168.0.1 (this one) and 192.168.0.2.
var caseAddresses = map[string]string{
	"x/a": "10.0.0.1", "x/b": "10.0.0.2", "x/c": "10.0.0.3", "y/a": "10.0.1.1", "y/b": "10.0.1.2", "y/c": "10.0.1.3",
	"z/a": "10.0.2.1", "z/b": "10.0.2.2", "z/c": "10.0.2.3", "host": "192.168.0.1", "node2": "192.168.0.2", "world": "203.0.113.9",
}

func caseLink(who string) string {
	switch who {
	case "host":
		return ""
	case "node2", "world", "z/c":
		return "eth0"
	}
	return trace.WorkloadPrefix + who[:1] + who[2:]
}

func caseWorld() []Change {
	var out []Change
	add := func(o any) { out = append(out, Change{Object: o}) }
	add(model.HostPolicy{EndpointToHost: model.EndpointToHostAccept, FailsafeIn: []model.FailsafePort{{Protocol: 6, Port: 22}},
		FailsafeOut: []model.FailsafePort{{Protocol: 17, Port: 53}}})
	for _, ns := range []string{"x", "y", "z"} {
		add(model.Namespace{Name: ns, Labels: map[string]string{"ns": ns, "kubernetes.io/metadata.name": ns}})
		add(model.ServiceAccount{Namespace: ns, Name: "sa-a", Labels: map[string]string{"role": "a"}})
		for _, pod := range []string{"a", "b", "c"} {
			e := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: ns, Name: pod}, Labels: map[string]string{"pod": pod}, ServiceAccount: "sa-" + pod,
				Addresses: []netip.Addr{netip.MustParseAddr(caseAddresses[ns+"/"+pod])},
				Ports:     []model.EndpointPort{{Name: "serve-80", Protocol: 6, Port: 80}, {Name: "serve-81", Protocol: 6, Port: 81}, {Name: "serve-80-udp", Protocol: 17, Port: 80}}}
			if link := caseLink(ns + "/" + pod); link != "eth0" {
				e.Interface = link
			}
			add(e)
		}
	}
	add(model.NetworkSet{ID: model.NetworkSetID{Name: "outside"}, Labels: map[string]string{"net": "outside"}, Nets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	add(model.NetworkSet{ID: model.NetworkSetID{Namespace: "x", Name: "inside"}, Labels: map[string]string{"net": "inside"}, Nets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	add(model.ServiceEndpoints{ID: model.ServiceID{Namespace: "x", Name: "web"}, Endpoints: []model.ServiceEndpoint{{Addr: netip.MustParseAddr("10.0.1.2"), Protocol: 6, Port: 80}}})
	add(model.PolicyNode{Name: "node2", Labels: map[string]string{"zone": "2"}, Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.2")}})
	return out
}

func kube(ns, name string, in, out []model.Rule, types string) model.Policy {
	return model.Policy{ID: model.PolicyID{Kind: model.PolicyKubernetes, Namespace: ns, Name: name}, Tier: model.TierDefault, Order: model.KubernetesPolicyOrder,
		ForIngress: types != "egress", ForEgress: types != "ingress", Ingress: in, Egress: out}
}

func on(selector string, p model.Policy) model.Policy { p.Subject.Selector = selector; return p }

func global(name, tier string, order float64, in, out []model.Rule) model.Policy {
	return model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: name}, Tier: tier, Order: order, ForIngress: in != nil, ForEgress: out != nil, Ingress: in, Egress: out}
}

func namespaced(ns, name string, in, out []model.Rule) model.Policy {
	p := global(name, model.TierDefault, 1, in, out)
	p.ID.Kind, p.ID.Namespace = model.PolicyNamespaced, ns
	return p
}

func cluster(name, tier string, priority float64, in, out []model.Rule) model.Policy {
	p := global(name, tier, priority, in, out)
	p.ID.Kind, p.Subject.NamespaceSelector = model.PolicyCluster, "all()"
	return p
}

func as(kind model.PolicyKind, p model.Policy) model.Policy { p.ID.Kind = kind; return p }

func from(action model.RuleAction, e model.EntityRule) model.Rule {
	return model.Rule{Action: action, Source: e}
}

func to(action model.RuleAction, e model.EntityRule) model.Rule {
	return model.Rule{Action: action, Destination: e}
}

func ported(proto uint8, r model.Rule, ports ...model.RulePort) model.Rule {
	r.Protocol, r.Destination.Ports = proto, ports
	return r
}

func rules(r ...model.Rule) []model.Rule { return append([]model.Rule{}, r...) }

func nets(s ...string) (out []netip.Prefix) {
	for _, n := range s {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

func hep(name, link string, profiles ...string) Change {
	return Change{Object: model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: name}, Labels: map[string]string{"host": "yes"}, Interface: link,
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, Profiles: profiles}}
}

// send is a packet of a case: TCP to port 80 unless it says otherwise.
type send struct {
	from, to string
	port     uint16
	proto    uint8
	icmp     uint8
}

func (s send) packet() trace.Packet {
	p := trace.Packet{Src: netip.MustParseAddr(caseAddresses[s.from]), Dst: netip.MustParseAddr(caseAddresses[s.to]), Protocol: 6, SrcPort: 40000, DstPort: 80,
		ICMPType: s.icmp, In: caseLink(s.from), Out: caseLink(s.to)}
	if s.proto != 0 {
		p.Protocol = s.proto
	}
	if s.port != 0 {
		p.DstPort = s.port
	}
	if p.In == p.Out {
		p.Out = "eth1"
	}
	return p
}

func p(from, to string) send { return send{from: from, to: to} }
func pp(from, to string, proto uint8, n int) send {
	return send{from: from, to: to, proto: proto, port: uint16(n)}
}
func ping(from, to string, typ uint8) send { return send{from: from, to: to, proto: 1, icmp: typ} }

const (
	allow = model.RuleAllow
	deny  = model.RuleDeny
	pass  = model.RulePass
)

var anyone = model.EntityRule{}

// TestCases holds golden model, engine and tracer against what the documentation of each
// kind of policy says.
func TestCases(t *testing.T) {
	code0 := 0
	tier := func(name string, order float64, action model.RuleAction) Change {
		return Change{Object: model.Tier{Name: name, Order: order, DefaultAction: action}}
	}
	gnpForward := func(q model.Policy) model.Policy { q.ApplyOnForward = true; return q }
	untrack := func(q model.Policy) model.Policy { q.Untracked, q.ApplyOnForward = true, true; return q }
	beforeDNAT := func(q model.Policy) model.Policy { q.PreDNAT, q.ApplyOnForward = true, true; return q }
	for _, c := range []struct {
		name       string
		with       []any // policies and changes
		pass, drop []send
	}{
		{"no policy", nil, []send{p("x/a", "x/b"), p("world", "x/a"), p("x/a", "world"), p("host", "x/a"), p("x/a", "host"), p("world", "host")}, nil},
		// Kubernetes
		{"default deny ingress", []any{kube("x", "p", nil, nil, "ingress")}, []send{p("x/a", "y/a"), p("host", "x/a")}, []send{p("x/b", "x/a"), p("y/a", "x/a"), p("world", "x/a")}},
		{"default deny egress", []any{kube("x", "p", nil, nil, "egress")}, []send{p("y/a", "x/a")}, []send{p("x/a", "y/a"), p("x/a", "world"), p("x/a", "host")}},
		{"default deny both", []any{kube("x", "p", nil, nil, "both")}, []send{p("y/a", "y/b")}, []send{p("x/a", "x/b"), p("y/a", "x/b"), p("x/b", "y/a")}},
		{"a rule without peers allows all", []any{kube("x", "p", rules(from(allow, anyone)), nil, "ingress")}, []send{p("world", "x/a"), p("y/a", "x/a")}, nil},
		{"pod selector means the policy's namespace", []any{kube("x", "p", rules(from(allow, model.EntityRule{Selector: "pod == 'b'"})), nil, "ingress")},
			[]send{p("x/b", "x/a")}, []send{p("y/b", "x/a"), p("x/c", "x/a")}},
		{"empty pod selector means all pods of it", []any{kube("x", "p", rules(from(allow, model.EntityRule{Selector: "all()"})), nil, "ingress")},
			[]send{p("x/b", "x/a")}, []send{p("y/b", "x/a"), p("world", "x/a")}},
		{"namespace selector", []any{kube("x", "p", rules(from(allow, model.EntityRule{NamespaceSelector: "ns == 'y'"})), nil, "ingress")},
			[]send{p("y/b", "x/a"), p("y/c", "x/a")}, []send{p("x/b", "x/a"), p("z/a", "x/a"), p("world", "x/a")}},
		{"empty namespace selector: all pods, nothing else", []any{kube("x", "p", rules(from(allow, model.EntityRule{NamespaceSelector: "all()"})), nil, "ingress"), hep("h", "eth0", "projectcalico-default-allow")},
			[]send{p("y/b", "x/a"), p("z/c", "x/a")}, []send{p("world", "x/a"), p("node2", "x/a")}},
		{"namespace and pod selector: both", []any{kube("x", "p", rules(from(allow, model.EntityRule{NamespaceSelector: "ns != 'x'", Selector: "pod == 'b'"})), nil, "ingress")},
			[]send{p("y/b", "x/a"), p("z/b", "x/a")}, []send{p("x/b", "x/a"), p("y/a", "x/a")}},
		{"two peers: either", []any{kube("x", "p", rules(from(allow, model.EntityRule{NamespaceSelector: "ns == 'y'"}), from(allow, model.EntityRule{Selector: "pod == 'b'"})), nil, "ingress")},
			[]send{p("y/a", "x/a"), p("x/b", "x/a")}, []send{p("x/c", "x/a"), p("z/b", "x/a")}},
		{"match by namespace name", []any{kube("x", "p", rules(from(allow, model.EntityRule{NamespaceSelector: "kubernetes.io/metadata.name == 'z'"})), nil, "ingress")},
			[]send{p("z/c", "x/a")}, []send{p("y/a", "x/a")}},
		{"policy of one pod", []any{on("pod == 'a'", kube("x", "p", nil, nil, "ingress"))}, []send{p("y/a", "x/b")}, []send{p("y/a", "x/a")}},
		{"port", []any{kube("x", "p", rules(ported(6, from(allow, anyone), model.RulePort{First: 81, Last: 81})), nil, "ingress")},
			[]send{pp("y/a", "x/a", 6, 81)}, []send{p("y/a", "x/a"), pp("y/a", "x/a", 17, 81), pp("y/a", "x/a", 6, 82)}},
		{"endPort", []any{kube("x", "p", nil, rules(ported(6, to(allow, anyone), model.RulePort{First: 80, Last: 90})), "egress")},
			[]send{p("x/a", "y/a"), pp("x/a", "y/a", 6, 90)}, []send{pp("x/a", "y/a", 6, 79), pp("x/a", "y/a", 6, 91)}},
		{"named port", []any{kube("x", "p", rules(ported(6, from(allow, anyone), model.RulePort{Name: "serve-81"})), nil, "ingress")},
			[]send{pp("y/a", "x/a", 6, 81)}, []send{p("y/a", "x/a"), pp("y/a", "x/a", 17, 81)}},
		{"named port of another protocol", []any{kube("x", "p", rules(ported(6, from(allow, anyone), model.RulePort{Name: "serve-80-udp"})), nil, "ingress")},
			nil, []send{p("y/a", "x/a"), pp("y/a", "x/a", 17, 80)}},
		{"named port in egress is the other end's", []any{kube("x", "p", nil, rules(ported(6, to(allow, model.EntityRule{NamespaceSelector: "ns == 'z'"}), model.RulePort{Name: "serve-80"})), "egress")},
			[]send{p("x/a", "z/c")}, []send{p("x/a", "y/a"), p("x/a", "world"), pp("x/a", "z/c", 6, 81)}},
		{"named port without peers: who has one", []any{kube("x", "p", nil, rules(ported(6, to(allow, anyone), model.RulePort{Name: "serve-80"})), "egress")},
			[]send{p("x/a", "z/c"), p("x/a", "y/a")}, []send{p("x/a", "world"), p("x/a", "host")}},
		{"protocol alone", []any{kube("x", "p", rules(model.Rule{Action: allow, Protocol: 17}), nil, "ingress")}, []send{pp("y/a", "x/a", 17, 9)}, []send{p("y/a", "x/a"), ping("y/a", "x/a", 8)}},
		{"SCTP", []any{kube("x", "p", rules(ported(132, from(allow, anyone), model.RulePort{First: 80, Last: 80})), nil, "ingress")}, []send{pp("y/a", "x/a", 132, 80)}, []send{p("y/a", "x/a")}},
		{"ipBlock with except", []any{kube("x", "p", nil, rules(to(allow, model.EntityRule{Nets: nets("10.0.1.0/24"), NotNets: nets("10.0.1.2/32")})), "egress")},
			[]send{p("x/a", "y/a"), p("x/a", "y/c")}, []send{p("x/a", "y/b"), p("x/a", "z/a")}},
		{"what one block excepts another allows", []any{kube("x", "p", nil, rules(to(allow, model.EntityRule{Nets: nets("10.0.1.0/24"), NotNets: nets("10.0.1.2/32")}), to(allow, model.EntityRule{Nets: nets("10.0.1.2/32")})), "egress")},
			[]send{p("x/a", "y/a"), p("x/a", "y/b")}, []send{p("x/a", "z/a")}},
		{"policies add up", []any{kube("x", "p", nil, nil, "ingress"), kube("x", "q", rules(from(allow, model.EntityRule{NamespaceSelector: "ns == 'y'"})), nil, "ingress")},
			[]send{p("y/a", "x/a")}, []send{p("z/a", "x/a")}},
		{"both ends must allow", []any{kube("x", "p", nil, nil, "egress"), kube("y", "q", rules(from(allow, anyone)), nil, "ingress")}, nil, []send{p("x/a", "y/a")}},
		{"no pod of the policy's selects a pod without its label", []any{kube("x", "p", rules(from(allow, model.EntityRule{Selector: "pod == 'nobody'"})), nil, "ingress")}, nil, []send{p("x/b", "x/a")}},
		{"staged Kubernetes policy", []any{as(model.PolicyStagedKubernetes, kube("x", "p", nil, nil, "both"))}, []send{p("y/a", "x/a"), p("x/a", "y/a")}, nil},
		// Calico
		{"order decides, not name", []any{global("b", model.TierDefault, 1, rules(from(allow, anyone)), nil), global("a", model.TierDefault, 2, rules(from(deny, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"equal orders: by name", []any{global("b", model.TierDefault, 1, rules(from(allow, anyone)), nil), global("a", model.TierDefault, 1, rules(from(deny, anyone)), nil)}, nil, []send{p("y/a", "x/a")}},
		{"without order last", []any{global("a", model.TierDefault, inf, rules(from(deny, anyone)), nil), global("b", model.TierDefault, 9e9, rules(from(allow, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"first rule decides", []any{global("a", model.TierDefault, 1, rules(from(deny, model.EntityRule{Nets: nets("10.0.1.1/32")}), from(allow, anyone)), nil)}, []send{p("y/b", "x/a")}, []send{p("y/a", "x/a")}},
		{"logging goes on", []any{global("a", model.TierDefault, 1, rules(from(model.RuleLog, anyone), from(allow, model.EntityRule{Nets: nets("10.0.1.0/24")})), nil)}, []send{p("y/a", "x/a")}, []send{p("z/a", "x/a")}},
		{"a direction without rules is end of tier", []any{global("a", model.TierDefault, 1, rules(), nil)}, []send{p("host", "x/a")}, []send{p("y/a", "x/a")}},
		{"end of a tier that passes", []any{tier("t", 1, pass), global("a", "t", 1, rules(from(deny, model.EntityRule{Nets: nets("10.0.1.1/32")})), nil)}, []send{p("y/b", "x/a")}, []send{p("y/a", "x/a")}},
		{"end of a tier that denies", []any{tier("t", 1, deny), global("a", "t", 1, rules(from(allow, model.EntityRule{Nets: nets("10.0.1.1/32")})), nil)}, []send{p("y/a", "x/a")}, []send{p("y/b", "x/a")}},
		{"a tier selects nobody: passed over", []any{tier("t", 1, deny), on("pod == 'b'", global("a", "t", 1, rules(), nil))}, []send{p("y/a", "x/a")}, []send{p("y/a", "x/b")}},
		{"pass leaves the tier", []any{tier("t", 1, deny), global("a", "t", 1, rules(from(pass, model.EntityRule{Nets: nets("10.0.1.0/24")})), nil), global("b", "t", 2, rules(from(deny, anyone)), nil)}, []send{p("y/a", "x/a")}, []send{p("z/a", "x/a")}},
		{"pass meets the next tier", []any{tier("t", 1, deny), global("a", "t", 1, rules(from(pass, anyone)), nil), kube("x", "p", nil, nil, "ingress")}, []send{p("x/a", "y/a")}, []send{p("y/a", "x/a")}},
		{"pass in the last tier meets the profile", []any{global("a", model.TierDefault, 1, rules(from(pass, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"allow in an early tier ends all", []any{tier("t", 1, deny), global("a", "t", 1, rules(from(allow, anyone)), nil), kube("x", "p", nil, nil, "ingress")}, []send{p("y/a", "x/a")}, nil},
		{"tiers of equal order: by name", []any{tier("u", 1, deny), tier("t", 1, pass), global("a", "u", 1, rules(from(deny, anyone)), nil), global("b", "t", 1, rules(from(allow, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"a tier of staged policies only is passed over", []any{tier("t", 1, deny), as(model.PolicyStagedGlobal, global("a", "t", 1, rules(from(deny, anyone)), nil))}, []send{p("y/a", "x/a")}, nil},
		{"a staged policy decides nothing beside one that does", []any{tier("t", 1, deny), as(model.PolicyStagedGlobal, global("a", "t", 1, rules(from(allow, anyone)), nil)), global("b", "t", 2, rules(from(allow, model.EntityRule{Nets: nets("10.0.1.1/32")})), nil)},
			[]send{p("y/a", "x/a")}, []send{p("y/b", "x/a")}},
		{"namespaced policy selects its namespace", []any{namespaced("x", "p", rules(from(deny, anyone)), nil)}, []send{p("x/a", "y/a")}, []send{p("y/a", "x/a")}},
		{"its rule's selector means it too", []any{namespaced("x", "p", rules(from(allow, model.EntityRule{Selector: "pod == 'b'"})), nil)}, []send{p("x/b", "x/a")}, []send{p("y/b", "x/a")}},
		{"its notSelector does not", []any{namespaced("x", "p", rules(from(allow, model.EntityRule{NotSelector: "pod == 'b'"})), nil)}, []send{p("y/a", "x/a"), p("world", "x/a")}, []send{p("y/b", "x/a"), p("x/b", "x/a")}},
		{"global selector means all namespaces", []any{global("p", model.TierDefault, 1, rules(from(allow, model.EntityRule{Selector: "pod == 'b'"})), nil)}, []send{p("y/b", "x/a")}, []send{p("y/a", "x/a")}},
		{"network set of no namespace", []any{global("p", model.TierDefault, 1, rules(from(allow, model.EntityRule{Selector: "net == 'outside'", NamespaceSelector: "global()"})), nil)}, []send{p("world", "x/a")}, []send{p("y/a", "x/a")}},
		{"network set of another namespace", []any{namespaced("y", "p", rules(from(allow, model.EntityRule{Selector: "net == 'inside'"})), nil), namespaced("x", "p", rules(from(allow, model.EntityRule{Selector: "net == 'inside'"})), nil)},
			[]send{p("world", "x/a")}, []send{p("world", "y/a")}},
		{"a Kubernetes policy sees no network set", []any{kube("x", "p", rules(from(allow, model.EntityRule{Selector: "net == 'inside'"})), nil, "ingress")}, nil, []send{p("world", "x/a")}},
		{"service accounts by name", []any{namespaced("x", "p", rules(from(allow, model.EntityRule{ServiceAccounts: []string{"sa-b"}})), nil)}, []send{p("x/b", "x/a")}, []send{p("y/b", "x/a"), p("x/c", "x/a")}},
		{"service accounts of another namespace", []any{namespaced("x", "p", rules(from(allow, model.EntityRule{ServiceAccounts: []string{"sa-b"}, NamespaceSelector: "ns == 'y'"})), nil)}, []send{p("y/b", "x/a")}, []send{p("x/b", "x/a")}},
		{"service accounts by label", []any{global("p", model.TierDefault, 1, rules(from(allow, model.EntityRule{ServiceAccountSelector: "role == 'a'"})), nil)}, []send{p("y/a", "x/b")}, []send{p("y/b", "x/b"), p("world", "x/b")}},
		{"subject by service account", []any{func() model.Policy {
			q := global("p", model.TierDefault, 1, rules(from(deny, anyone)), nil)
			q.Subject.ServiceAccountSelector = "role == 'a'"
			return q
		}()}, []send{p("y/a", "x/b")}, []send{p("y/b", "x/a")}},
		{"subject by namespace", []any{func() model.Policy {
			q := global("p", model.TierDefault, 1, rules(from(deny, anyone)), nil)
			q.Subject.NamespaceSelector = "projectcalico.org/name == 'x'"
			return q
		}(), hep("h", "eth0", "projectcalico-default-allow")}, []send{p("y/b", "y/a"), p("world", "host")}, []send{p("y/b", "x/a")}},
		{"service as destination: its port", []any{namespaced("x", "p", nil, rules(to(allow, model.EntityRule{Service: &model.ServiceID{Namespace: "x", Name: "web"}})))}, []send{p("x/a", "y/b")}, []send{pp("x/a", "y/b", 6, 81), pp("x/a", "y/b", 17, 80), p("x/a", "y/a")}},
		{"service as source: any port", []any{namespaced("x", "p", rules(from(allow, model.EntityRule{Service: &model.ServiceID{Namespace: "x", Name: "web"}})), nil)}, []send{p("y/b", "x/a"), pp("y/b", "x/a", 17, 9)}, []send{p("y/a", "x/a")}},
		{"ICMP type and code", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, Protocol: 1, ICMP: &model.ICMPMatch{Type: 8, Code: &code0}}), nil)}, []send{ping("y/a", "x/a", 8)}, []send{ping("y/a", "x/a", 13), p("y/a", "x/a")}},
		{"not ICMP type", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, Protocol: 1, NotICMP: &model.ICMPMatch{Type: 8}}), nil)}, []send{ping("y/a", "x/a", 13)}, []send{ping("y/a", "x/a", 8), p("y/a", "x/a")}},
		{"not protocol", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, NotProtocol: 6}), nil)}, []send{pp("y/a", "x/a", 17, 1), ping("y/a", "x/a", 8)}, []send{p("y/a", "x/a")}},
		{"not ports", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, Protocol: 6, Destination: model.EntityRule{NotPorts: []model.RulePort{{First: 80, Last: 81}, {Name: "serve-81"}}}}), nil)}, []send{pp("y/a", "x/a", 6, 82)}, []send{p("y/a", "x/a"), pp("y/a", "x/a", 6, 81)}},
		{"nets of the other family match nothing", []any{global("p", model.TierDefault, 1, rules(from(allow, model.EntityRule{Nets: nets("::/0")})), nil)}, nil, []send{p("y/a", "x/a")}},
		{"notNets of the other family match all", []any{global("p", model.TierDefault, 1, rules(from(allow, model.EntityRule{NotNets: nets("::/0")})), nil)}, []send{p("y/a", "x/a")}, nil},
		{"IP version", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, IPVersion: 6}), nil)}, nil, []send{p("y/a", "x/a")}},
		{"HTTP that is allowed is denied", []any{global("p", model.TierDefault, 1, rules(model.Rule{Action: allow, Protocol: 6, HTTP: true}, from(allow, anyone)), nil)}, []send{pp("y/a", "x/a", 17, 80)}, []send{p("y/a", "x/a")}},
		{"an unknown tier keeps the policy waiting", []any{global("p", "nowhere", 1, rules(from(deny, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"until it is there", []any{global("p", "t", 1, rules(from(deny, anyone)), nil), tier("t", 1, deny)}, nil, []send{p("y/a", "x/a")}},
		// ClusterNetworkPolicy
		{"admin before, baseline after", []any{cluster("a", model.TierAdmin, 1, rules(from(allow, model.EntityRule{NamespaceSelector: "ns == 'y'"})), nil), kube("x", "p", nil, nil, "ingress"),
			cluster("b", model.TierBaseline, 1, rules(from(deny, anyone)), nil)}, []send{p("y/a", "x/a"), p("y/a", "z/a")}, []send{p("z/a", "x/a"), p("x/a", "z/a")}},
		{"admin passes to Kubernetes' policies", []any{cluster("a", model.TierAdmin, 1, rules(from(pass, model.EntityRule{NamespaceSelector: "ns == 'y'"}), from(deny, anyone)), nil)}, []send{p("y/a", "x/a")}, []send{p("z/a", "x/a")}},
		{"a NetworkPolicy hides the baseline", []any{kube("x", "p", rules(from(allow, anyone)), nil, "ingress"), cluster("b", model.TierBaseline, 1, rules(from(deny, anyone)), nil)}, []send{p("y/a", "x/a")}, []send{p("x/a", "y/a")}},
		{"lower priority first", []any{cluster("a", model.TierAdmin, 2, rules(from(deny, anyone)), nil), cluster("b", model.TierAdmin, 1, rules(from(allow, anyone)), nil)}, []send{p("y/a", "x/a")}, nil},
		{"nodes", []any{cluster("a", model.TierAdmin, 1, nil, rules(to(deny, model.EntityRule{NodeSelector: "zone == '2'"})))}, []send{p("x/a", "world"), p("x/a", "host")}, []send{p("x/a", "node2")}},
		// Hosts
		{"host endpoint without policy is closed", []any{hep("h", "eth0")}, []send{p("world", "x/a"), p("x/a", "world"), pp("world", "host", 6, 22), pp("host", "world", 17, 53)}, []send{p("world", "host"), p("host", "world"), pp("world", "host", 17, 22)}},
		{"open profile", []any{hep("h", "eth0", "projectcalico-default-allow")}, []send{p("world", "host"), p("host", "world")}, nil},
		{"failsafes stay", []any{hep("h", "eth0"), global("p", model.TierDefault, 1, rules(from(deny, anyone)), rules(to(deny, anyone)))}, []send{pp("world", "host", 6, 22), pp("host", "world", 17, 53), p("host", "x/a")}, []send{p("world", "host"), p("world", "x/a")}},
		{"all interfaces", []any{hep("h", "*")}, []send{p("x/a", "host"), p("host", "x/a"), p("world", "x/a")}, []send{p("world", "host")}},
		{"own interface before all", []any{hep("h", "*"), hep("g", "eth0", "projectcalico-default-allow")}, []send{p("world", "host")}, nil},
		{"forwarded traffic is not meant", []any{hep("h", "eth0"), on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(deny, anyone)), nil))}, []send{p("world", "x/a")}, []send{p("world", "host")}},
		{"unless applyOnForward", []any{hep("h", "eth0"), gnpForward(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(deny, model.EntityRule{Nets: nets("203.0.113.0/24")}), from(allow, anyone)), nil)))},
			[]send{p("node2", "x/a")}, []send{p("world", "x/a"), p("world", "host")}},
		{"end of a tier for what is forwarded", []any{hep("h", "eth0"), gnpForward(on("host == 'yes'", global("p", model.TierDefault, 1, rules(), nil)))}, []send{p("x/a", "world")}, []send{p("world", "x/a")}},
		{"named port of a remote pod that the host forwards to", []any{hep("h", "eth0"), gnpForward(on("host == 'yes'", global("p", model.TierDefault, 1, nil, rules(ported(6, to(deny, anyone), model.RulePort{Name: "serve-80"}), to(allow, anyone)))))},
			[]send{p("x/a", "world"), pp("x/a", "z/c", 6, 81)}, []send{p("x/a", "z/c")}},
		{"forward allowed, the pod denies", []any{hep("h", "eth0"), gnpForward(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(allow, anyone)), nil))), kube("x", "p", nil, nil, "ingress")}, []send{p("world", "y/a")}, []send{p("world", "x/a")}},
		{"untracked deny", []any{hep("h", "eth0", "projectcalico-default-allow"), untrack(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(deny, model.EntityRule{Nets: nets("203.0.113.0/24")})), nil)))},
			[]send{p("node2", "x/a"), pp("world", "host", 6, 22)}, []send{p("world", "x/a"), p("world", "host")}},
		{"untracked allow passes the host's other policies, not the pod's", []any{hep("h", "eth0"), untrack(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(allow, anyone)), nil))), kube("x", "p", nil, nil, "ingress")},
			[]send{p("world", "host"), p("world", "y/a")}, []send{p("world", "x/a"), p("host", "world")}},
		{"preDNAT allow goes on", []any{hep("h", "eth0"), beforeDNAT(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(allow, anyone)), nil)))}, []send{p("world", "x/a")}, []send{p("world", "host")}},
		{"preDNAT has no end of tier", []any{hep("h", "eth0", "projectcalico-default-allow"), beforeDNAT(on("host == 'yes'", global("p", model.TierDefault, 1, rules(from(deny, model.EntityRule{Nets: nets("192.168.0.2/32")})), nil)))},
			[]send{p("world", "x/a"), p("world", "host")}, []send{p("node2", "x/a"), p("node2", "host")}},
		{"a pod to its host: drop", []any{Change{Object: model.HostPolicy{EndpointToHost: model.EndpointToHostDrop}}}, []send{p("host", "x/a"), p("world", "host")}, []send{p("x/a", "host")}},
		{"a pod that nobody knows", []any{Change{Object: model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "x", Name: "a"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Interface: "calixa", Unknown: true}}},
			[]send{p("host", "x/a")}, []send{p("x/a", "x/b"), p("x/b", "x/a"), p("x/a", "host")}},
		{"a pod whose namespace nobody knows", []any{Change{Object: model.Namespace{Name: "x"}, Gone: true}}, []send{p("y/a", "z/a")}, []send{p("x/a", "y/a"), p("y/a", "x/a")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			trial := NewTrial()
			history := caseWorld()
			for _, o := range c.with {
				if ch, ok := o.(Change); ok {
					history = append(history, ch)
				} else {
					history = append(history, Change{Object: o})
				}
			}
			for _, ch := range history {
				if err := trial.Change(ch); err != nil {
					t.Fatal(err)
				}
			}
			if err := trial.Flush(); err != nil {
				t.Fatal(err)
			}
			for _, s := range slices.Concat(c.pass, c.drop) {
				pkt, want := s.packet(), slices.Contains(c.pass, s)
				if v := trial.World.Verdict(pkt); v.Allowed != want {
					t.Errorf("%v > %v: the golden model says %v", s.from, s.to, v)
				}
				if r := trace.Trace(trial.Program, pkt); r.Allowed != want {
					t.Errorf("%s\ntracer: %s", pkt, r)
				}
				if err := trial.Ask(pkt); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
