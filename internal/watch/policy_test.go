package watch

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// policyObject reads "Kind name-or-namespace/name" and its spec.
func policyObject(t *testing.T, kind, name, spec string) metav1.Object {
	t.Helper()
	make := map[string]func() metav1.Object{
		"k8s": func() metav1.Object { return &networkingv1.NetworkPolicy{} }, "cnp": func() metav1.Object { return &cnpv1alpha2.ClusterNetworkPolicy{} },
		"np": func() metav1.Object { return &v3.NetworkPolicy{} }, "gnp": func() metav1.Object { return &v3.GlobalNetworkPolicy{} },
		"snp": func() metav1.Object { return &v3.StagedNetworkPolicy{} }, "sgnp": func() metav1.Object { return &v3.StagedGlobalNetworkPolicy{} },
		"sknp": func() metav1.Object { return &v3.StagedKubernetesNetworkPolicy{} }, "tier": func() metav1.Object { return &v3.Tier{} },
		"ns": func() metav1.Object { return &v3.NetworkSet{} }, "gns": func() metav1.Object { return &v3.GlobalNetworkSet{} },
		"hep": func() metav1.Object { return &v3.HostEndpoint{} }, "kcc": func() metav1.Object { return &v3.KubeControllersConfiguration{} },
		"felix": func() metav1.Object { return &v3.FelixConfiguration{} },
	}[kind]
	obj := make()
	if err := yaml.UnmarshalStrict([]byte("spec: "+spec), obj); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	if namespace, short, ok := strings.Cut(name, "/"); ok {
		obj.SetNamespace(namespace)
		name = short
	}
	obj.SetName(name)
	return obj
}

var policyOptions = Options{Node: "n1", NamespaceLabels: true, Policy: true}

// shortly writes what a value says, without what it does not.
func shortly(v any) string {
	switch x := v.(type) {
	case model.Policy:
		out := []string{fmt.Sprintf("%s tier=%s order=%v", x.ID, x.Tier, x.Order)}
		for _, s := range []struct{ name, text string }{{"pods", x.Subject.Selector}, {"in", x.Subject.NamespaceSelector}, {"as", x.Subject.ServiceAccountSelector}} {
			if s.text != "" {
				out[0] += fmt.Sprintf(" %s[%s]", s.name, s.text)
			}
		}
		for _, f := range []struct {
			name string
			set  bool
		}{{"ingress", x.ForIngress}, {"egress", x.ForEgress}, {"untracked", x.Untracked}, {"preDNAT", x.PreDNAT}, {"forward", x.ApplyOnForward}, {"needed", x.AssumeNeeded}} {
			if f.set {
				out[0] += " " + f.name
			}
		}
		for _, r := range x.Ingress {
			out = append(out, "in: "+ruleShortly(&r))
		}
		for _, r := range x.Egress {
			out = append(out, "out: "+ruleShortly(&r))
		}
		return strings.Join(out, "\n")
	case nil:
		return "invalid"
	case nothing:
		return "nothing"
	}
	return fmt.Sprintf("%+v", v)
}

func ruleShortly(r *model.Rule) string {
	out := string(r.Action)
	add := func(set bool, format string, args ...any) {
		if set {
			out += " " + fmt.Sprintf(format, args...)
		}
	}
	add(r.IPVersion != 0, "v%d", r.IPVersion)
	add(r.Protocol != 0, "proto=%d", r.Protocol)
	add(r.NotProtocol != 0, "proto!=%d", r.NotProtocol)
	icmp := func(name string, m *model.ICMPMatch) {
		if m != nil {
			add(true, "%s=%d", name, m.Type)
			add(m.Code != nil, "code=%d", deref(m.Code))
		}
	}
	icmp("icmp", r.ICMP)
	icmp("icmp!", r.NotICMP)
	add(r.HTTP, "http")
	for _, end := range []struct {
		name string
		e    *model.EntityRule
	}{{"from", &r.Source}, {"to", &r.Destination}} {
		e := end.e
		add(len(e.Nets) > 0, "%s nets%v", end.name, e.Nets)
		add(len(e.NotNets) > 0, "%s notNets%v", end.name, e.NotNets)
		add(e.Selector != "", "%s [%s]", end.name, e.Selector)
		add(e.NotSelector != "", "%s not[%s]", end.name, e.NotSelector)
		add(e.NamespaceSelector != "", "%s ns[%s]", end.name, e.NamespaceSelector)
		add(len(e.ServiceAccounts) > 0, "%s accounts%v", end.name, e.ServiceAccounts)
		add(e.ServiceAccountSelector != "", "%s sa[%s]", end.name, e.ServiceAccountSelector)
		add(e.NodeSelector != "", "%s nodes[%s]", end.name, e.NodeSelector)
		if e.Service != nil {
			add(true, "%s %s", end.name, e.Service)
		}
		add(len(e.Ports) > 0, "%s ports%s", end.name, portsShortly(e.Ports))
		add(len(e.NotPorts) > 0, "%s notPorts%s", end.name, portsShortly(e.NotPorts))
	}
	return out
}

func portsShortly(ports []model.RulePort) string {
	var out []string
	for _, p := range ports {
		switch {
		case p.Name != "":
			out = append(out, p.Name)
		case p.First == p.Last:
			out = append(out, fmt.Sprint(p.First))
		default:
			out = append(out, fmt.Sprintf("%d-%d", p.First, p.Last))
		}
	}
	return fmt.Sprint(out)
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// TestPolicies converts policies of every kind; what comes out, the engine takes.
func TestPolicies(t *testing.T) {
	const head = "KubernetesNetworkPolicy prod/p tier=default order=1000"
	for _, tc := range []struct{ name, kind, spec, want string }{
		// The examples of Kubernetes' documentation of network policies.
		{"the test-network-policy", "k8s", `{podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress],
			ingress: [{from: [{ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}}, {namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: frontend}}}],
			  ports: [{protocol: TCP, port: 6379}]}],
			egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 5978}]}]}`,
			head + ` pods[role == 'db'] ingress egress
in: Allow proto=6 from nets[172.17.0.0/16] from notNets[172.17.1.0/24] to ports[6379]
in: Allow proto=6 from ns[project == 'myproject'] to ports[6379]
in: Allow proto=6 from [role == 'frontend'] to ports[6379]
out: Allow proto=6 to nets[10.0.0.0/24] to ports[5978]`},
		{"namespaceSelector and podSelector in one peer", "k8s", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {user: alice}}, podSelector: {matchLabels: {role: client}}}]}]}`,
			head + " pods[all()] ingress\nin: Allow from [role == 'client'] from ns[user == 'alice']"},
		{"default-deny-ingress", "k8s", `{podSelector: {}, policyTypes: [Ingress]}`, head + " pods[all()] ingress"},
		{"allow-all-ingress", "k8s", `{podSelector: {}, ingress: [{}], policyTypes: [Ingress]}`, head + " pods[all()] ingress\nin: Allow"},
		{"default-deny-egress", "k8s", `{podSelector: {}, policyTypes: [Egress]}`, head + " pods[all()] egress"},
		{"allow-all-egress", "k8s", `{podSelector: {}, egress: [{}], policyTypes: [Egress]}`, head + " pods[all()] egress\nout: Allow"},
		{"default-deny-all", "k8s", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, head + " pods[all()] ingress egress"},
		{"multi-port-egress", "k8s", `{podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 32000, endPort: 32768}]}]}`,
			head + " pods[role == 'db'] egress\nout: Allow proto=6 to nets[10.0.0.0/24] to ports[32000-32768]"},
		{"egress-namespaces", "k8s", `{podSelector: {matchLabels: {app: myapp}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchExpressions: [{key: namespace, operator: In, values: [frontend, backend]}]}}]}]}`,
			head + " pods[app == 'myapp'] egress\nout: Allow to ns[namespace in { 'frontend', 'backend' }]"},
		// What else there is.
		{"types by default with egress", "k8s", `{podSelector: {}, egress: [{}]}`, head + " pods[all()] ingress egress\nout: Allow"},
		{"types by default without", "k8s", `{podSelector: {}}`, head + " pods[all()] ingress"},
		{"every expression", "k8s", `{podSelector: {matchLabels: {b: x, a: ""}, matchExpressions: [{key: c, operator: NotIn, values: [q]}, {key: d.e/f, operator: Exists}, {key: g, operator: DoesNotExist}]}}`,
			head + " pods[a == '' && b == 'x' && c not in { 'q' } && has(d.e/f) && ! has(g)] ingress"},
		{"all pods of all namespaces, of this one", "k8s", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}, {podSelector: {}}]}]}`,
			head + " pods[all()] ingress\nin: Allow from ns[all()]\nin: Allow from [all()]"},
		{"ports by protocol", "k8s", `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: dns, protocol: UDP}, {port: http}, {protocol: SCTP}, {protocol: SCTP, port: 7}]}]}`,
			head + " pods[all()] ingress\nin: Allow proto=6 to ports[80 http]\nin: Allow proto=17 to ports[dns]\nin: Allow proto=132"},
		{"bits outside the mask, IPv6", "k8s", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "fd00::1/64", except: ["fd00::/80"]}}]}]}`,
			head + " pods[all()] ingress\nin: Allow from nets[fd00::/64] from notNets[fd00::/80]"},

		{"empty", "np", `{}`, "NetworkPolicy prod/p tier=default order=+Inf ingress"},
		{"types of rules", "np", `{egress: [{action: Deny}]}`, "NetworkPolicy prod/p tier=default order=+Inf egress\nout: Deny"},
		{"types of both", "np", `{egress: [{action: Deny}], ingress: [{action: Pass}]}`, "NetworkPolicy prod/p tier=default order=+Inf ingress egress\nin: Pass\nout: Deny"},
		{"Calico's allow-tcp-6379", "np", `{selector: role == 'database', types: [Ingress, Egress],
			ingress: [{action: Allow, metadata: {annotations: {from: frontend}}, protocol: TCP, source: {selector: role == 'frontend'}, destination: {ports: [6379]}}], egress: [{action: Allow}]}`,
			"NetworkPolicy prod/p tier=default order=+Inf pods[role == 'database'] ingress egress\nin: Allow proto=6 from [role == 'frontend'] to ports[6379]\nout: Allow"},
		{"everything a rule has", "np", `{tier: sec, order: 10.5, serviceAccountSelector: has(x), performanceHints: [AssumeNeededOnEveryNode], ingress: [
			{action: Log, ipVersion: 6, protocol: ICMPv6, icmp: {type: 128, code: 0}, notICMP: {type: 1}},
			{action: Allow, notProtocol: udplite, source: {nets: [10.0.0.9/8], notNets: [10.1.0.0/16], notSelector: "a == 'b'", namespaceSelector: global(), serviceAccounts: {names: [x, w], selector: "z == '1'"}}},
			{action: Deny, protocol: 6, destination: {ports: [80, "90:100", http, 0], notPorts: ["8080"]}},
			{action: Allow, source: {services: {name: s}}}]}`,
			`NetworkPolicy prod/p tier=sec order=10.5 as[has(x)] ingress needed
in: Log v6 proto=58 icmp=128 code=0 icmp!=1
in: Allow proto!=136 from nets[10.0.0.0/8] from notNets[10.1.0.0/16] from not[a == 'b'] from ns[global()] from accounts[x w] from sa[z == '1']
in: Deny proto=6 to ports[80 90-100 http 0] to notPorts[8080]
in: Allow from Service prod/s`},
		{"HTTP is TCP", "np", `{ingress: [{action: Allow, http: {methods: [GET]}}]}`, "NetworkPolicy prod/p tier=default order=+Inf ingress\nin: Allow proto=6 http"},
		{"global", "gnp", `{selector: all(), namespaceSelector: "env == 'x'", order: -1, doNotTrack: true, applyOnForward: true, types: [Ingress, Egress], egress: [{action: Allow, protocol: TCP, destination: {services: {name: s, namespace: m}}}]}`,
			"GlobalNetworkPolicy p tier=default order=-1 pods[all()] in[env == 'x'] ingress egress untracked forward\nout: Allow proto=6 to Service m/s"},
		{"preDNAT", "gnp", `{preDNAT: true, applyOnForward: true, ingress: [{action: Deny, source: {nets: [192.0.2.0/24]}}]}`,
			"GlobalNetworkPolicy p tier=default order=+Inf ingress preDNAT forward\nin: Deny from nets[192.0.2.0/24]"},

		{"staged", "snp", `{stagedAction: Set, ingress: [{action: Allow}]}`, "StagedNetworkPolicy prod/p tier=default order=+Inf ingress\nin: Allow"},
		{"staged without action", "sgnp", `{selector: all()}`, "StagedGlobalNetworkPolicy p tier=default order=+Inf pods[all()] ingress"},
		{"staged for Kubernetes", "sknp", `{podSelector: {}, ingress: [{}]}`, "StagedKubernetesNetworkPolicy prod/p tier=default order=1000 pods[all()] ingress\nin: Allow"},
		{"staged Delete", "sknp", `{stagedAction: Delete}`, "nothing"},
		{"staged Ignore", "snp", `{stagedAction: Ignore, ingress: [{action: Allow}]}`, "nothing"},

		{"cluster: namespaces", "cnp", `{tier: Admin, priority: 30, subject: {namespaces: {}}, ingress: [{name: x, action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: monitoring-ns}}}]}]}`,
			"ClusterNetworkPolicy p tier=kube-admin order=30 pods[all()] in[all()] ingress\nin: Allow from [all()] from ns[kubernetes.io/metadata.name == 'monitoring-ns']"},
		{"cluster: everything", "cnp", `{tier: Baseline, priority: 0, subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}},
			egress: [{action: Pass, to: [{networks: [10.0.0.0/8, "fd00::/8"]}, {nodes: {}}], protocols: [{tcp: {destinationPort: {number: 53}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {}}]},
			  {action: Deny, to: [{pods: {podSelector: {}}}], protocols: [{destinationNamedPort: web}]}]}`,
			`ClusterNetworkPolicy p tier=kube-baseline order=0 pods[c == 'd'] in[a == 'b'] egress
out: Pass proto=6 to nets[10.0.0.0/8 fd00::/8] to ports[53]
out: Pass proto=17 to nets[10.0.0.0/8 fd00::/8] to ports[1-9]
out: Pass proto=132 to nets[10.0.0.0/8 fd00::/8]
out: Pass proto=6 to nodes[all()] to ports[53]
out: Pass proto=17 to nodes[all()] to ports[1-9]
out: Pass proto=132 to nodes[all()]
out: Deny proto=6 to [all()] to ns[all()] to ports[web]
out: Deny proto=17 to [all()] to ns[all()] to ports[web]
out: Deny proto=132 to [all()] to ns[all()] to ports[web]`},
		{"cluster: without rules", "cnp", `{tier: Admin, priority: 1, subject: {namespaces: {}}}`, "nothing"},
		{"cluster: unknown peers fail closed", "cnp", `{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{}, {nodes: {}}]}, {action: Pass, to: [{}]}, {action: Deny, to: [{nodes: {}}], protocols: [{}]}]}`,
			"ClusterNetworkPolicy p tier=kube-admin order=1 pods[all()] in[all()] egress\nout: Deny\nout: Deny"},
		{"cluster: domain names", "cnp", `{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [example.org]}, {nodes: {}}]}]}`,
			"ClusterNetworkPolicy p tier=kube-admin order=1 pods[all()] in[all()] egress\nout: Allow to nodes[all()]"},
		{"cluster: names of ports of networks", "cnp", `{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]}]}`,
			"ClusterNetworkPolicy p tier=kube-admin order=1 pods[all()] in[all()] egress\nout: Deny"},
	} {
		t.Run(tc.kind+" "+tc.name, func(t *testing.T) {
			name := "prod/p"
			if slices.Contains([]string{"gnp", "sgnp", "cnp"}, tc.kind) {
				name = "p"
			}
			o := Check(policyObject(t, tc.kind, name, tc.spec), policyOptions)
			if have := shortly(o.value); have != tc.want {
				t.Errorf("have\n%s\nwant\n%s\nproblems %v", have, tc.want, o.Problems)
			}
			p, ok := o.value.(model.Policy)
			if !ok {
				return
			}
			e := policy.New(policy.Config{})
			if err := e.SetTier(model.Tier{Name: "sec", Order: 1, DefaultAction: model.RuleDeny}); err != nil {
				t.Fatal(err)
			}
			if err := e.SetPolicy(p); err != nil {
				t.Errorf("the engine: %v", err)
			}
		})
	}
}

// TestPolicyProblems says of each mistake which object, which field and what would be right.
func TestPolicyProblems(t *testing.T) {
	rule := func(s string) string { return "{ingress: [{action: Allow, " + s + "}]}" }
	kube := func(s string) string { return "{podSelector: {}, ingress: [" + s + "]}" }
	cnp := func(s string) string {
		return "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [" + s + "]}"
	}
	for _, tc := range []struct{ kind, name, spec, want string }{
		{"np", "a/b", `{selector: "a = 'b'"}`, `bad .spec.selector selector "a = 'b'": column 3: expected`},
		{"np", "a/b", `{selector: "global()"}`, "bad .spec.selector is \"global()\"; global() can stand in a rule's namespaceSelector only"},
		{"np", "a/b", rule(`source: {notSelector: "!"}`), "bad .spec.ingress[0].source.notSelector"},
		{"np", "a/b", rule(`protocol: TCP, destination: {ports: [70000]}`), `bad .spec.ingress[0].destination.ports[0] is "70000"; must be a port from 0 to 65535`},
		{"np", "a/b", rule(`protocol: TCP, destination: {ports: ["90:80"]}`), `bad .spec.ingress[0].destination.ports[0] is "90:80"; the end of the range must not be below its beginning`},
		{"np", "a/b", rule(`protocol: ICMP, destination: {ports: [80]}`), "bad .spec.ingress[0].destination.ports is set; the rule's protocol must then be one with ports: TCP, UDP, SCTP or UDPLite"},
		{"np", "a/b", rule(`destination: {notPorts: [80]}`), "bad .spec.ingress[0].destination.notPorts is set"},
		{"np", "a/b", rule(`protocol: TCP, icmp: {type: 8}`), "bad .spec.ingress[0].icmp is set; the rule's protocol must then be ICMP or ICMPv6"},
		{"np", "a/b", rule(`protocol: ICMP, icmp: {code: 1}`), "bad .spec.ingress[0].icmp.code is set without type"},
		{"np", "a/b", rule(`protocol: ICMP, icmp: {type: 255}`), "bad .spec.ingress[0].icmp.type is 255; must be 0 to 254"},
		{"np", "a/b", rule(`protocol: GRE`), `bad .spec.ingress[0].protocol is "GRE"; must be TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255`},
		{"np", "a/b", rule(`protocol: 256`), `bad .spec.ingress[0].protocol is "256"`},
		{"np", "a/b", rule(`ipVersion: 6, protocol: ICMP`), "bad .spec.ingress[0].ipVersion is 6 with protocol ICMP"},
		{"np", "a/b", rule(`ipVersion: 5`), "bad .spec.ingress[0].ipVersion is 5; must be 4 or 6"},
		{"np", "a/b", rule(`source: {nets: [10.0.0/8]}`), `bad .spec.ingress[0].source.nets[0] is "10.0.0/8"; must be a network such as 192.0.2.0/24 or 2001:db8::/32`},
		{"np", "a/b", rule(`source: {services: {name: s}, selector: all()}`), "bad .spec.ingress[0].source.services stands beside selectors"},
		{"np", "a/b", rule(`destination: {services: {name: s}}`), "bad .spec.ingress[0].destination.services is set; a rule can name a Service at the other end only"},
		{"gnp", "b", rule(`source: {services: {name: s}}`), "bad .spec.ingress[0].source.services.namespace is missing"},
		{"np", "a/b", `{ingress: [{action: Accept}]}`, `bad .spec.ingress[0].action is "Accept"; must be`},
		{"np", "a/b", `{ingress: [{}]}`, "bad .spec.ingress[0].action is missing; must be Allow, Deny, Log or Pass"},
		{"np", "a/b", `{egress: [{action: Allow, http: {methods: [GET]}}]}`, "bad .spec.egress[0].http is set; it can stand in ingress rules only"},
		{"np", "a/b", `{types: [Both]}`, `bad .spec.types[0] is "Both"`},
		{"np", "a/b", `{types: [Egress], ingress: [{action: Deny}]}`, "ignored .spec.ingress has rules, but types does not contain Ingress"},
		{"np", "b", `{}`, "bad .metadata.namespace is missing; a NetworkPolicy belongs to a namespace"},
		{"gnp", "a/b", `{}`, "ignored .metadata.namespace"},
		{"gnp", "b", `{preDNAT: true, doNotTrack: true, applyOnForward: true}`, "bad .spec.doNotTrack and preDNAT are both true"},
		{"gnp", "b", `{preDNAT: true}`, "bad .spec.applyOnForward must be true with doNotTrack or preDNAT"},
		{"snp", "a/b", `{stagedAction: Delete}`, "ignored .spec.stagedAction is Delete; nothing counts"},
		{"k8s", "a/b", kube(`{ports: [{port: 90, endPort: 80}]}`), "bad .spec.ingress[0].ports[0].endPort is 80; must be 90, which is port, to 65535"},
		{"k8s", "a/b", kube(`{ports: [{port: 70000}]}`), "bad .spec.ingress[0].ports[0].port is 70000; must be 1 to 65535"},
		{"k8s", "a/b", kube(`{ports: [{port: http, endPort: 80}]}`), "bad .spec.ingress[0].ports[0].endPort is 80 beside the name"},
		{"k8s", "a/b", kube(`{ports: [{endPort: 80}]}`), "bad .spec.ingress[0].ports[0].endPort is 80 without port"},
		{"k8s", "a/b", kube(`{ports: [{protocol: ICMP}]}`), `bad .spec.ingress[0].ports[0].protocol is "ICMP"; must be TCP, UDP or SCTP`},
		{"k8s", "a/b", kube(`{from: [{}]}`), "bad .spec.ingress[0].from[0] says nothing"},
		{"k8s", "a/b", kube(`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}`), "bad .spec.ingress[0].from[0].ipBlock.except[0] is 11.0.0.0/16; must be a part of 10.0.0.0/8"},
		{"k8s", "a/b", kube(`{from: [{ipBlock: {cidr: x}}]}`), `bad .spec.ingress[0].from[0].ipBlock.cidr is "x"`},
		{"k8s", "a/b", `{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}`, `bad .spec.podSelector.matchExpressions[0].operator is "Is"; must be In, NotIn, Exists or DoesNotExist`},
		{"k8s", "a/b", `{podSelector: {matchExpressions: [{key: a, operator: In}]}}`, "bad .spec.podSelector.matchExpressions[0].values has 0 values"},
		{"k8s", "a/b", `{podSelector: {matchLabels: {"a b": c}}}`, "bad .spec.podSelector has a key or value that is no label's"},
		{"cnp", "b", `{tier: Admin, priority: 1001, subject: {namespaces: {}}}`, "bad .spec.priority is 1001; must be 0 to 1000"},
		{"cnp", "b", `{tier: Middle, priority: 1, subject: {namespaces: {}}}`, `bad .spec.tier is "Middle"; must be Admin or Baseline`},
		{"cnp", "b", `{tier: Admin, priority: 1, subject: {}}`, "bad .spec.subject must have exactly one of namespaces and pods"},
		{"cnp", "b", cnp(`{action: Allow, to: [{nodes: {}}]}`), `bad .spec.egress[0].action is "Allow"; must be Accept, Deny or Pass`},
		{"cnp", "b", cnp(`{action: Deny, to: [{nodes: {}, networks: [10.0.0.0/8]}]}`), "bad .spec.egress[0].to[0] has several kinds of peer"},
		{"cnp", "b", cnp(`{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 1}}}}]}`), "bad .spec.egress[0].protocols[0].tcp.destinationPort.range is 9 to 1"},
		{"cnp", "b", cnp(`{action: Accept, to: [{domainNames: [a.b]}]}`), "ignored .spec.egress[0].to[0].domainNames is not supported; nothing is accepted for it"},
		{"cnp", "b", cnp(`{action: Deny, to: [{}]}`), "ignored .spec.egress[0].to[0] says nothing that is known here; must have one of namespaces, pods, nodes and networks; the rule denies everything"},
		{"tier", "default", `{order: 5}`, "bad .spec.order is 5; the tier default is always there and its order must be 1e+06"},
		{"tier", "a", `{defaultAction: Log}`, `bad .spec.defaultAction is "Log"`},
		{"tier", "a.b", `{}`, "bad .metadata.name is \"a.b\"; the name of a tier must be without dots"},
		{"gns", "a", `{nets: [10.0.0.0/33]}`, `bad .spec.nets[0] is "10.0.0.0/33"`},
		{"hep", "a", `{interfaceName: eth0}`, "bad .spec.node is missing"},
		{"hep", "a", `{node: n1}`, "bad .spec.interfaceName and expectedIPs are both missing"},
		{"hep", "a", `{node: n1, interfaceName: an-interface-too-long}`, "bad .spec.interfaceName is"},
		{"hep", "a", `{node: n1, expectedIPs: [10.0.0.0/8]}`, `bad .spec.expectedIPs[0] is "10.0.0.0/8"; must be an address, such as 192.0.2.1`},
		{"hep", "a", `{node: n1, interfaceName: "*", ports: [{name: a, protocol: ICMP, port: 1}]}`, "bad .spec.ports[0].protocol"},
		{"hep", "a", `{node: n1, interfaceName: "*", profiles: [mine]}`, `ignored .spec.profiles[0] is "mine", which does nothing`},
		{"kcc", "default", `{controllers: {node: {hostEndpoint: {autoCreate: Enabled, templates: [{generateName: x}]}}}}`, "ignored .spec.controllers.node.hostEndpoint.templates is not acted on"},
		{"felix", "default", `{defaultEndpointToHostAction: Reject}`, `bad .spec.defaultEndpointToHostAction is "Reject"; must be Drop, Accept or Return`},
		{"felix", "default", `{failsafeInboundHostPorts: [{protocol: icmp, port: 1}]}`, `bad .spec.failsafeInboundHostPorts[0].protocol is "icmp"`},
		{"felix", "default", `{failsafeOutboundHostPorts: [{port: 0}]}`, "bad .spec.failsafeOutboundHostPorts[0].port is 0; must be 1 to 65535"},
		{"felix", "default", `{workloadSourceSpoofing: All}`, `bad .spec.workloadSourceSpoofing is "All"; must be Disabled or Any`},
	} {
		t.Run(tc.kind+" "+tc.spec, func(t *testing.T) {
			o := Check(policyObject(t, tc.kind, tc.name, tc.spec), policyOptions)
			var have []string
			for _, p := range o.Problems {
				word := "bad "
				if p.Ignored {
					word = "ignored "
				}
				have = append(have, word+p.Field+" "+p.Message)
				if p.Object != o.Key || p.Object.Name == "" {
					t.Errorf("the problem is of %v, want %v", p.Object, o.Key)
				}
			}
			if !slices.ContainsFunc(have, func(s string) bool { return strings.HasPrefix(s, tc.want) }) {
				t.Errorf("have %q, want %q", have, tc.want)
			}
			if o.Valid() != strings.HasPrefix(tc.want, "ignored") {
				t.Errorf("valid: %v, problems %q", o.Valid(), have)
			}
		})
	}
}

func TestTier(t *testing.T) {
	admin := Check(policyObject(t, "tier", "kube-admin", `{order: 1000}`), policyOptions).value
	if want := (model.Tier{Name: "kube-admin", Order: 1000, DefaultAction: model.RulePass}); admin != want {
		t.Errorf("%v, want %v", admin, want)
	}
	for spec, want := range map[string]model.Tier{
		`{}`:                              {Name: "a", Order: math.Inf(1), DefaultAction: model.RuleDeny},
		`{order: 7, defaultAction: Pass}`: {Name: "a", Order: 7, DefaultAction: model.RulePass},
	} {
		if have := Check(policyObject(t, "tier", "a", spec), policyOptions).value; have != want {
			t.Errorf("%s: %v, want %v", spec, have, want)
		}
	}
}
