package policy

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// allow is a policy that allows TCP port 80 in to pods of namespace red.
func allow() model.Policy {
	return model.Policy{ID: model.PolicyID{Kind: model.PolicyNamespaced, Namespace: "red", Name: "p"}, Tier: "default", ForIngress: true,
		Ingress: []model.Rule{{Action: model.RuleAllow, Protocol: model.ProtocolTCP, Destination: model.EntityRule{Ports: []model.RulePort{{First: 80, Last: 80}}}}}}
}

func TestInvalidPolicies(t *testing.T) {
	code := 256
	for want, change := range map[string]func(p *model.Policy, r *model.Rule){
		`.spec.tier: is nowhere, which is not there; must be the name of a Tier`:                                                                 func(p *model.Policy, r *model.Rule) { p.Tier = "nowhere" },
		`.spec.tier: is empty; must be the name of a Tier`:                                                                                       func(p *model.Policy, r *model.Rule) { p.Tier = "" },
		`.spec.order: is not a number; must be one`:                                                                                              func(p *model.Policy, r *model.Rule) { p.Order = math.NaN() },
		`.spec.types: is empty; must name Ingress, Egress or both`:                                                                               func(p *model.Policy, r *model.Rule) { p.ForIngress = false },
		`.spec.selector: "a = b": column 3: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found "="`:            func(p *model.Policy, r *model.Rule) { p.Subject.Selector = "a = b" },
		`.spec.ingress[0].source.namespaceSelector: "(": column 2: expected a label key, "has(", "all()", "global()", "!" or "(", found the end`: func(p *model.Policy, r *model.Rule) { r.Source.NamespaceSelector = "(" },
		`.spec.ingress[0].destination.ports[1]: is port 70000; must be 0 to 65535`: func(p *model.Policy, r *model.Rule) {
			r.Destination.Ports = append(r.Destination.Ports, model.RulePort{First: 70000, Last: 70000})
		},
		`.spec.ingress[0].destination.ports[0]: ends with port 79 before it begins with 80; the end must not be below the beginning`: func(p *model.Policy, r *model.Rule) {
			r.Destination.Ports = []model.RulePort{{First: 80, Last: 79}}
		},
		`.spec.ingress[0].destination.ports: is set with protocol ICMP; the protocol must be one with ports: TCP, UDP, SCTP or UDPLite`: func(p *model.Policy, r *model.Rule) { r.Protocol = model.ProtocolICMP },
		`.spec.ingress[0].destination.ports: is set with protocol any; the protocol must be one with ports: TCP, UDP, SCTP or UDPLite`:  func(p *model.Policy, r *model.Rule) { r.Protocol = 0 },
		`.spec.ingress[0].icmp: is set with protocol TCP; the protocol must be ICMP or ICMPv6`:                                          func(p *model.Policy, r *model.Rule) { r.ICMP = &model.ICMPMatch{Type: 8} },
		`.spec.ingress[0].icmp.code: is 256; must be 0 to 255`: func(p *model.Policy, r *model.Rule) {
			*r = model.Rule{Action: model.RuleAllow, Protocol: model.ProtocolICMP, ICMP: &model.ICMPMatch{Code: &code}}
		},
		`.spec.ingress[0].action: is "Accept"; must be Allow, Deny, Pass or Log`:                                      func(p *model.Policy, r *model.Rule) { r.Action = "Accept" },
		`.spec.ingress[0].ipVersion: is 5; must be 4 or 6`:                                                            func(p *model.Policy, r *model.Rule) { r.IPVersion = 5 },
		`.spec.ingress[0].source.nets[0]: is invalid Prefix; must be a network such as 192.0.2.0/24 or 2001:db8::/32`: func(p *model.Policy, r *model.Rule) { r.Source.Nets = []netip.Prefix{{}} },
		`.spec.ingress[0].source.services: stands beside selectors or networks; it must stand alone`: func(p *model.Policy, r *model.Rule) {
			r.Source.Service, r.Source.Selector = &model.ServiceID{Namespace: "red", Name: "web"}, "all()"
		},
		`.spec.applyOnForward: is false; must be true with doNotTrack or preDNAT`: func(p *model.Policy, r *model.Rule) { p.PreDNAT = true },
	} {
		p := allow()
		change(&p, &p.Ingress[0])
		e := New(Config{})
		must(t, e.SetTier(model.Tier{Name: "default", DefaultAction: model.RuleDeny}))
		err := e.SetPolicy(p)
		var invalid *Invalid
		if !errors.As(err, &invalid) || err.Error() != "NetworkPolicy red/p: "+want {
			t.Errorf("error is\n%v, want\n%s", err, want)
		} else if got := e.Problems(); !slices.Equal(got, invalid.Problems) {
			t.Errorf("problems %v, want %v", got, invalid.Problems)
		}
	}
}

// rig is an Engine with one local pod red/web at cali1 and the Program of all its deltas.
type rig struct {
	*Engine
	t    *testing.T
	prog *Program
}

func newRig(t *testing.T) *rig {
	r := &rig{New(Config{}), t, NewProgram()}
	r.SetNamespace(model.Namespace{Name: "red", Labels: map[string]string{"env": "test"}})
	r.pod("web", "cali1", "10.0.0.1", map[string]string{"app": "web"})
	r.flush()
	return r
}

func (r *rig) pod(name, iface, addr string, labels map[string]string) {
	r.t.Helper()
	m := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: name}, Labels: labels, Interface: iface}
	if addr != "" {
		m.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	}
	must(r.t, r.SetEndpoint(m))
}

func (r *rig) flush() *Delta {
	r.t.Helper()
	d := r.Flush()
	must(r.t, r.prog.Apply(d))
	must(r.t, r.prog.Check())
	return d
}

func (r *rig) chain(id model.PolicyID) []Rule { return r.prog.Chains[ChainID{id, Ingress}].IPv4 }

func (r *rig) members(id SetID) string {
	var out []string
	for m := range r.prog.Sets[id] {
		out = append(out, strings.TrimSuffix(m.Prefix.String(), "/32"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestLastValidVersionStays(t *testing.T) {
	r := newRig(t)
	p := allow()
	must(t, r.SetPolicy(p))
	r.flush()
	if n := len(r.chain(p.ID)); n != 1 {
		t.Fatalf("%d rules", n)
	}
	bad := allow()
	bad.Subject.Selector = "!"
	bad.Ingress = nil
	if err := r.SetPolicy(bad); err == nil {
		t.Fatal("a broken selector is taken")
	}
	if d := r.flush(); !d.Empty() || len(r.Problems()) != 1 {
		t.Fatalf("a bad version changes %+v, problems %v", d, r.Problems())
	}
	// A tier that is not there is waited for.
	moved := allow()
	moved.Tier = "ops"
	if err := r.SetPolicy(moved); err == nil {
		t.Fatal("an unknown tier is taken")
	}
	if d := r.flush(); !d.Empty() || len(r.Problems()) != 1 {
		t.Fatalf("an unknown tier changes %+v, problems %v", d, r.Problems())
	}
	must(t, r.SetTier(model.Tier{Name: "ops", Order: 10, DefaultAction: model.RulePass}))
	r.flush()
	tiers := r.prog.Endpoints["cali1"].Ingress.Tiers
	if len(tiers) != 1 || tiers[0].Name != "ops" || tiers[0].End != Pass || len(r.Problems()) != 0 {
		t.Fatalf("tiers %+v, problems %v", tiers, r.Problems())
	}
	// A tier that goes leaves its policies as they are.
	r.RemoveTier("ops")
	if d := r.flush(); !d.Empty() || len(r.Problems()) != 1 {
		t.Fatalf("a tier that goes changes %+v, problems %v", d, r.Problems())
	}
	other := allow()
	other.ID.Name, other.Tier = "q", "ops"
	if err := r.SetPolicy(other); err == nil {
		t.Fatal("a policy comes into a tier that is gone")
	}
	r.RemovePolicy(p.ID)
	r.RemovePolicy(other.ID)
	if d := r.flush(); len(d.GoneChains) != 1 || len(r.Problems()) != 0 || len(r.tiers) != 3 {
		t.Fatalf("delta %+v, problems %v, tiers %v", d, r.Problems(), r.tiers)
	}
}

func TestHTTPDenies(t *testing.T) {
	r := newRig(t)
	p := allow()
	p.Ingress[0].HTTP = true
	must(t, r.SetPolicy(p))
	r.flush()
	if got := r.chain(p.ID); len(got) != 1 || got[0].Action != Deny || got[0].Dst.Ports[0] != (model.PortRange{First: 80, Last: 80}) {
		t.Errorf("rules %+v", got)
	}
	if got := r.Problems(); len(got) != 1 || !got[0].Ignored || got[0].Field != ".spec.ingress[0].http" {
		t.Errorf("problems %v", got)
	}
}

func TestStagedOnlyCounts(t *testing.T) {
	r := newRig(t)
	p := allow()
	p.ID.Kind = model.PolicyStagedNamespaced
	p.Ingress = append(p.Ingress, model.Rule{Action: model.RuleLog}, model.Rule{Action: model.RuleDeny})
	must(t, r.SetPolicy(p))
	r.flush()
	got := r.chain(p.ID)
	if len(got) != 3 || got[0].Action != Return || got[1].Action != Count || got[1].Log != nil || got[2].Action != Return {
		t.Errorf("rules %+v", got)
	}
	if tiers := r.prog.Endpoints["cali1"].Ingress.Tiers; len(tiers) != 1 || tiers[0].End != Pass {
		t.Errorf("tiers %+v", tiers)
	}
}

// TestPorts looks at how alternatives become rules of their own.
func TestPorts(t *testing.T) {
	r := newRig(t)
	m := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "web"}, Interface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Ports: []model.EndpointPort{{Name: "http", Protocol: model.ProtocolTCP, Port: 8080}, {Name: "http", Protocol: model.ProtocolUDP, Port: 8080}}}
	must(t, r.SetEndpoint(m))
	// The port of a pod elsewhere says nothing of what comes in here.
	m.ID.Name, m.Interface, m.Addresses = "far", "", []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	must(t, r.SetEndpoint(m))
	p := allow()
	e := &p.Ingress[0].Destination
	e.Ports = []model.RulePort{{First: 81, Last: 90}, {Name: "http"}, {First: 80, Last: 80}, {First: 443, Last: 443}, {First: 85, Last: 100}, {Name: "http"}}
	e.NotPorts = []model.RulePort{{First: 82, Last: 82}, {Name: "http"}}
	p.Ingress[0].Source.Ports = []model.RulePort{{First: 0, Last: 65535}}
	must(t, r.SetPolicy(p))
	r.flush()
	got := r.chain(p.ID)
	if len(got) != 2 {
		t.Fatalf("rules %+v", got)
	}
	if !slices.Equal(got[0].Dst.Ports, []model.PortRange{{First: 80, Last: 100}, {First: 443, Last: 443}}) || len(got[0].Dst.InPort) != 0 {
		t.Errorf("rule of numbers: %+v", got[0])
	}
	if len(got[1].Dst.Ports) != 0 || len(got[1].Dst.InPort) != 1 || !slices.Equal(got[1].Dst.NotInPort, got[1].Dst.InPort) || len(got[1].Dst.NotPorts) != 1 {
		t.Errorf("rule of the name: %+v", got[1])
	}
	set := r.prog.Sets[got[1].Dst.InPort[0]]
	want := Member{netip.MustParsePrefix("10.0.0.1/32"), model.ProtocolTCP, 8080}
	if _, there := set[want]; !there || len(set) != 1 {
		t.Errorf("members %v", set)
	}
	if r.NeedsRemotePods() {
		t.Error("remote pods are needed for a port of the pod's own")
	}
}

func TestNets(t *testing.T) {
	r := newRig(t)
	prefixes := func(s string) (out []netip.Prefix) {
		for _, f := range strings.Fields(s) {
			out = append(out, netip.MustParsePrefix(f))
		}
		return out
	}
	for _, tc := range []struct{ nets, not, net, notNet, in, notIn string }{
		{"10.0.0.0/8", "", "10.0.0.0/8", "", "", ""},
		{"10.0.0.0/8 10.1.0.0/16", "", "10.0.0.0/8", "", "", ""},
		{"10.0.0.0/25 10.0.0.128/25", "", "10.0.0.0/24", "", "", ""},
		{"10.0.0.0/24", "10.0.0.0/26", "", "", "10.0.0.128/25 10.0.0.64/26", ""},
		{"10.0.0.0/31", "10.0.0.1/32", "10.0.0.0/32", "", "", ""},
		{"0.0.0.0/0", "", "", "", "", ""},
		{"0.0.0.0/0", "128.0.0.0/1", "0.0.0.0/1", "", "", ""},
		{"10.0.0.0/8 192.0.2.0/24", "", "", "", "10.0.0.0/8 192.0.2.0/24", ""},
		{"", "10.0.0.0/8", "", "10.0.0.0/8", "", ""},
		{"", "10.0.0.0/8 192.0.2.0/24", "", "", "", "10.0.0.0/8 192.0.2.0/24"},
		{"", "fd00::/8", "", "", "", ""},
		{"fd00::/8", "", "none", "", "", ""},
		{"10.0.0.0/24", "10.0.0.0/16", "none", "", "", ""},
		{"", "0.0.0.0/0", "none", "", "", ""},
	} {
		p := allow()
		p.Ingress[0].Source = model.EntityRule{Nets: prefixes(tc.nets), NotNets: prefixes(tc.not)}
		must(t, r.SetPolicy(p))
		r.flush()
		got := r.chain(p.ID)
		if len(got) == 0 {
			if tc.net != "none" {
				t.Errorf("nets %s without %s: no rule", tc.nets, tc.not)
			}
			continue
		}
		text := func(p netip.Prefix) string {
			if !p.IsValid() {
				return ""
			}
			return p.String()
		}
		sets := func(ids []SetID) string {
			if len(ids) == 0 {
				return ""
			}
			return r.members(ids[0])
		}
		s := got[0].Src
		if text(s.Net) != tc.net || text(s.NotNet) != tc.notNet || sets(s.In) != tc.in || sets(s.NotIn) != tc.notIn {
			t.Errorf("nets %q without %q: %+v, in %s, not in %s", tc.nets, tc.not, s, sets(s.In), sets(s.NotIn))
		}
	}
}

// TestCut holds without and joined against asking address by address.
func TestCut(t *testing.T) {
	in := func(of []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	g := generator{newRand(t)}
	for range 3000 {
		random := func() (out []netip.Prefix) {
			for range g.IntN(6) {
				p, _ := netip.AddrFrom4([4]byte{10, 0, 0, byte(g.IntN(64))}).Prefix(26 + g.IntN(7))
				out = append(out, p)
			}
			return out
		}
		nets, not := random(), random()
		got := without(nets, not)
		for i := range got {
			if i > 0 && (got[i-1].Overlaps(got[i]) || comparePrefixes(got[i-1], got[i]) > 0) {
				t.Fatalf("%v without %v: %v", nets, not, got)
			}
		}
		for i := range 64 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			if in(got, a) != (in(nets, a) && !in(not, a)) {
				t.Fatalf("%v without %v is %v: wrong for %s", nets, not, got, a)
			}
		}
		if again := joined(got); len(again) != len(got) {
			t.Fatalf("%v can be joined to %v", got, again)
		}
	}
}
