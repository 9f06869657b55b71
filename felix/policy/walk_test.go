package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// world is every object that an Engine was given, for an Engine or an oracle that is given all
// at once.
type world struct {
	tiers      map[string]model.Tier
	policies   map[model.PolicyID]model.Policy
	namespaces map[string]model.Namespace
	accounts   map[accountKey]model.ServiceAccount
	endpoints  map[model.PolicyEndpointID]model.PolicyEndpoint
	netsets    map[model.NetworkSetID]model.NetworkSet
	nodes      map[string]model.PolicyNode
	services   map[model.ServiceID]model.ServiceEndpoints
}

func newWorld() *world {
	return &world{map[string]model.Tier{}, map[model.PolicyID]model.Policy{}, map[string]model.Namespace{}, map[accountKey]model.ServiceAccount{},
		map[model.PolicyEndpointID]model.PolicyEndpoint{}, map[model.NetworkSetID]model.NetworkSet{}, map[string]model.PolicyNode{}, map[model.ServiceID]model.ServiceEndpoints{}}
}

// load gives an Engine all of the world, policies last or first.
func (w *world) load(t *testing.T, e *Engine, policiesFirst bool) {
	t.Helper()
	policies := func() {
		for _, p := range w.policies {
			must(t, e.SetPolicy(p))
		}
	}
	for _, x := range w.tiers {
		must(t, e.SetTier(x))
	}
	if policiesFirst {
		policies()
	}
	for _, x := range w.endpoints {
		must(t, e.SetEndpoint(x))
	}
	for _, x := range w.namespaces {
		e.SetNamespace(x)
	}
	for _, x := range w.accounts {
		e.SetServiceAccount(x)
	}
	for _, x := range w.netsets {
		must(t, e.SetNetworkSet(x))
	}
	for _, x := range w.nodes {
		must(t, e.SetNode(x))
	}
	for _, x := range w.services {
		must(t, e.SetService(x))
	}
	if !policiesFirst {
		policies()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// generator makes random objects out of few names, labels and addresses, so that they meet.
type generator struct{ *rand.Rand }

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) some(p float64) bool { return g.Float64() < p }

func (g generator) labels() map[string]string {
	m := map[string]string{}
	for _, k := range []string{"app", "tier", "env"} {
		if g.some(0.6) {
			m[k] = pick(g, "a", "b", "c")
		}
	}
	return m
}

func (g generator) selector() string {
	switch g.IntN(10) {
	case 0:
		return "all()"
	case 1:
		return fmt.Sprintf("%s != %q", pick(g, "app", "env"), pick(g, "a", "b"))
	case 2:
		return fmt.Sprintf("has(%s)", pick(g, "app", "tier"))
	case 3:
		return fmt.Sprintf("!has(%s)", pick(g, "app", "env"))
	case 4:
		return fmt.Sprintf("%s in {%q, %q}", pick(g, "app", "tier"), pick(g, "a", "b"), pick(g, "b", "c"))
	case 5:
		return fmt.Sprintf("(%s) && (%s)", g.selector(), g.selector())
	case 6:
		return fmt.Sprintf("%s || %s", g.selector(), g.selector())
	case 7:
		return fmt.Sprintf("pcns.env == %q", pick(g, "a", "b"))
	}
	return fmt.Sprintf("%s == %q", pick(g, "app", "tier", "env"), pick(g, "a", "b", "c"))
}

func (g generator) prefix() netip.Prefix {
	return netip.MustParsePrefix(pick(g, "10.0.0.0/8", "10.0.0.0/24", "10.0.0.4/30", "10.0.0.5/32", "0.0.0.0/0", "192.0.2.0/24", "fd00::/64", "fd00::4/126", "::/0", "10.0.0.6/31"))
}

func (g generator) prefixes(n int) []netip.Prefix {
	out := make([]netip.Prefix, g.IntN(n+1))
	for i := range out {
		out[i] = g.prefix()
	}
	return out
}

func (g generator) addr() (netip.Addr, netip.Addr) {
	n := g.IntN(12)
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", n))
}

func (g generator) ports() []model.EndpointPort {
	var out []model.EndpointPort
	for _, n := range []string{"http", "dns"} {
		if g.some(0.6) {
			out = append(out, model.EndpointPort{Name: n, Protocol: pick(g, model.ProtocolTCP, model.ProtocolUDP), Port: pick(g, uint16(53), 80, 8080)})
		}
	}
	return out
}

var nsNames = []string{"red", "blue"}

func (g generator) endpoint() model.PolicyEndpoint {
	m := model.PolicyEndpoint{Labels: g.labels(), Ports: g.ports()}
	v4, v6 := g.addr()
	m.Addresses = pick(g, []netip.Addr{v4, v6}, []netip.Addr{v4}, []netip.Addr{v6}, nil)
	n := g.IntN(8)
	if n < 2 {
		m.ID = model.PolicyEndpointID{Kind: model.EndpointHost, Name: fmt.Sprint("hep", n)}
		m.Interface = pick(g, "", "eth0", "eth1", "*")
		m.Profiles = pick(g, nil, []string{"projectcalico-default-allow"})
		return m
	}
	m.ID = model.PolicyEndpointID{Namespace: pick(g, nsNames...), Name: fmt.Sprint("pod", n)}
	m.ServiceAccount = pick(g, "default", "robot")
	if g.some(0.5) {
		m.Interface = fmt.Sprint("cali", m.ID.Namespace, n)
		m.Unknown = g.some(0.1)
		m.AllowedSources = g.prefixes(1)
	}
	return m
}

func (g generator) entity(d Direction, dst bool, ports bool) model.EntityRule {
	var e model.EntityRule
	if svc := g.some(0.1) && dst == (d == Egress); svc {
		if !dst || !ports {
			e.Service = &model.ServiceID{Namespace: pick(g, nsNames...), Name: pick(g, "web", "db")}
			return e
		}
	}
	if g.some(0.3) {
		e.Nets = g.prefixes(3)
	}
	if g.some(0.2) {
		e.NotNets = g.prefixes(2)
	}
	if g.some(0.4) {
		e.Selector = g.selector()
	}
	if g.some(0.15) {
		e.NotSelector = g.selector()
	}
	if g.some(0.2) {
		e.NamespaceSelector = pick(g, "all()", "global()", `env == "a"`, `env != "a"`, `projectcalico.org/name == "red"`)
	}
	if g.some(0.1) {
		e.ServiceAccounts = []string{pick(g, "default", "robot")}
	}
	if g.some(0.1) {
		e.ServiceAccountSelector = g.selector()
	}
	if ports {
		e.Ports, e.NotPorts = g.rulePorts(0.4), g.rulePorts(0.2)
	}
	return e
}

func (g generator) rulePorts(p float64) []model.RulePort {
	var out []model.RulePort
	for g.some(p) {
		if g.some(0.4) {
			out = append(out, model.RulePort{Name: pick(g, "http", "dns")})
		} else {
			first := pick(g, 53, 80, 79, 8000)
			out = append(out, model.RulePort{First: first, Last: first + pick(g, 0, 1, 100)})
		}
	}
	return out
}

func (g generator) rule(d Direction) model.Rule {
	r := model.Rule{Action: pick(g, model.RuleAllow, model.RuleAllow, model.RuleDeny, model.RulePass, model.RuleLog), IPVersion: pick(g, 0, 0, 0, 4, 6), HTTP: g.some(0.05)}
	switch g.IntN(5) {
	case 0:
		r.Protocol = pick(g, model.ProtocolICMP, model.ProtocolICMPv6)
		code := g.IntN(2)
		m := &model.ICMPMatch{Type: pick(g, 8, 128), Code: pick(g, nil, &code)}
		if g.some(0.3) {
			r.NotICMP = m
		} else {
			r.ICMP = m
		}
	case 1:
		r.NotProtocol = pick(g, model.ProtocolTCP, model.ProtocolUDP)
	case 2, 3:
		r.Protocol = pick(g, model.ProtocolTCP, model.ProtocolUDP)
	}
	ports := r.Protocol == model.ProtocolTCP || r.Protocol == model.ProtocolUDP
	r.Source, r.Destination = g.entity(d, false, ports), g.entity(d, true, ports)
	return r
}

func (g generator) policy() model.Policy {
	p := model.Policy{
		ID:   model.PolicyID{Kind: pick(g, model.PolicyNamespaced, model.PolicyGlobal, model.PolicyKubernetes, model.PolicyGlobal, model.PolicyStagedGlobal, model.PolicyCluster), Name: fmt.Sprint("p", g.IntN(5))},
		Tier: pick(g, "default", "default", "first", "last", model.TierAdmin), Order: pick(g, 1, 2, 2, math.Inf(1)),
		ForIngress: true, ForEgress: g.some(0.5), AssumeNeeded: g.some(0.05),
	}
	if k := p.ID.Kind; k == model.PolicyNamespaced || k == model.PolicyKubernetes {
		p.ID.Namespace = pick(g, nsNames...)
	}
	if g.some(0.8) {
		p.Subject.Selector = g.selector()
	}
	if g.some(0.2) && p.ID.Namespace == "" {
		p.Subject.NamespaceSelector = pick(g, "all()", `env == "a"`, `env != "a"`)
	}
	if g.some(0.1) {
		p.Subject.ServiceAccountSelector = g.selector()
	}
	if p.ID.Kind == model.PolicyGlobal {
		switch g.IntN(6) {
		case 0:
			p.ApplyOnForward, p.Untracked = true, true
		case 1:
			p.ApplyOnForward, p.PreDNAT, p.ForEgress = true, true, false
		case 2:
			p.ApplyOnForward = true
		}
	}
	for range g.IntN(4) {
		p.Ingress = append(p.Ingress, g.rule(Ingress))
	}
	for range g.IntN(3) {
		p.Egress = append(p.Egress, g.rule(Egress))
	}
	if p.ID.Kind == model.PolicyCluster && g.some(0.3) && len(p.Egress) > 0 {
		p.Egress[0].Destination = model.EntityRule{NodeSelector: g.selector()}
	}
	return p
}

// step changes one thing in the world and in the Engine.
func (g generator) step(t *testing.T, w *world, e *Engine) {
	t.Helper()
	remove := g.some(0.3)
	switch g.IntN(12) {
	case 0:
		x := model.Namespace{Name: pick(g, nsNames...), Labels: g.labels()}
		if remove {
			delete(w.namespaces, x.Name)
			e.RemoveNamespace(x.Name)
		} else {
			w.namespaces[x.Name] = x
			e.SetNamespace(x)
		}
	case 1:
		x := model.ServiceAccount{Namespace: pick(g, nsNames...), Name: pick(g, "default", "robot"), Labels: g.labels()}
		if k := (accountKey{x.Namespace, x.Name}); remove {
			delete(w.accounts, k)
			e.RemoveServiceAccount(x.Namespace, x.Name)
		} else {
			w.accounts[k] = x
			e.SetServiceAccount(x)
		}
	case 2:
		x := model.NetworkSet{ID: model.NetworkSetID{Namespace: pick(g, "", "red"), Name: pick(g, "n1", "n2")}, Labels: g.labels(), Nets: g.prefixes(4)}
		if remove {
			delete(w.netsets, x.ID)
			e.RemoveNetworkSet(x.ID)
		} else {
			w.netsets[x.ID] = x
			must(t, e.SetNetworkSet(x))
		}
	case 3:
		v4, v6 := g.addr()
		x := model.PolicyNode{Name: pick(g, "node1", "node2"), Labels: g.labels(), Addresses: []netip.Addr{v4, v6}}
		if remove {
			delete(w.nodes, x.Name)
			e.RemoveNode(x.Name)
		} else {
			w.nodes[x.Name] = x
			must(t, e.SetNode(x))
		}
	case 4:
		x := model.ServiceEndpoints{ID: model.ServiceID{Namespace: pick(g, nsNames...), Name: pick(g, "web", "db")}}
		for range g.IntN(4) {
			v4, v6 := g.addr()
			x.Endpoints = append(x.Endpoints, model.ServiceEndpoint{Addr: pick(g, v4, v6), Protocol: pick(g, model.ProtocolTCP, model.ProtocolUDP), Port: pick(g, uint16(0), 53, 80)})
		}
		if remove {
			delete(w.services, x.ID)
			e.RemoveService(x.ID)
		} else {
			w.services[x.ID] = x
			must(t, e.SetService(x))
		}
	case 5:
		x := model.Tier{Name: pick(g, "first", "last", "default"), Order: pick(g, 5, 6, 2e6), DefaultAction: pick(g, model.RuleDeny, model.RulePass)}
		w.tiers[x.Name] = x
		must(t, e.SetTier(x))
	case 6, 7, 8:
		x := g.policy()
		if remove {
			delete(w.policies, x.ID)
			e.RemovePolicy(x.ID)
		} else {
			w.policies[x.ID] = x
			must(t, e.SetPolicy(x))
		}
	default:
		x := g.endpoint()
		if remove {
			delete(w.endpoints, x.ID)
			e.RemoveEndpoint(x.ID)
		} else {
			w.endpoints[x.ID] = x
			must(t, e.SetEndpoint(x))
		}
	}
}

// steady are objects that are there from the beginning: both families, and the tiers.
func (w *world) steady(t *testing.T, e *Engine) {
	for _, x := range []model.Tier{{Name: "first", Order: 5, DefaultAction: model.RuleDeny}, {Name: "last", Order: 2e6, DefaultAction: model.RulePass}} {
		w.tiers[x.Name] = x
		must(t, e.SetTier(x))
	}
	x := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "steady"}, Labels: map[string]string{"app": "a"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("fd00::200")}}
	w.endpoints[x.ID] = x
	must(t, e.SetEndpoint(x))
}

// TestWalk changes a random world step by step. All deltas together must be what an Engine
// makes of the final world at once, whatever the order, and every packet must fare as the
// oracle says, who looks at nothing but the objects.
func TestWalk(t *testing.T) {
	for i := range 24 {
		seed := rand.Uint64()
		if i == 0 {
			seed = 1
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			walk(t, generator{rand.New(rand.NewPCG(seed, 0))}, 60)
		})
	}
}

func walk(t *testing.T, g generator, steps int) {
	w, e, prog := newWorld(), New(Config{}), NewProgram()
	w.steady(t, e)
	flush := func() {
		t.Helper()
		must(t, prog.Apply(e.Flush()))
		must(t, prog.Check())
		whole := NewProgram()
		must(t, whole.Apply(e.Whole()))
		same(t, "what Whole says", prog, whole)
		if d := e.Flush(); !d.Empty() {
			t.Fatalf("a second Flush changes %+v", d)
		}
	}
	flush()
	for n := range steps {
		for range pick(g, 1, 1, 3, 20) {
			g.step(t, w, e)
		}
		if g.some(0.2) {
			as := NewProgram() // of the last Flush, whatever was set since
			must(t, as.Apply(e.Whole()))
			same(t, "what Whole says before a Flush", prog, as)
			continue
		}
		flush()
		if n%4 == 0 {
			fresh, all := New(Config{}), NewProgram()
			w.load(t, fresh, n%8 == 0)
			must(t, all.Apply(fresh.Flush()))
			same(t, "an Engine that is given all at once", prog, all)
		}
		w.compare(t, g, prog, 30)
	}
	for id := range w.policies {
		e.RemovePolicy(id)
	}
	for id := range w.endpoints {
		e.RemoveEndpoint(id)
	}
	flush()
	if len(prog.Sets)+len(prog.Chains)+len(prog.Endpoints) > 0 || len(e.sets)+len(e.policies)+len(e.subjects.groups)+len(e.subjects.selectors)+len(e.peers.selectors)+len(e.nodes.selectors) > 0 {
		t.Fatalf("left behind: %v, and in the Engine %v", prog, e)
	}
	for id := range w.netsets {
		e.RemoveNetworkSet(id)
	}
	for id := range w.nodes {
		e.RemoveNode(id)
	}
	for id := range w.namespaces {
		e.RemoveNamespace(id)
	}
	for k := range w.accounts {
		e.RemoveServiceAccount(k.namespace, k.name)
	}
	for id := range w.services {
		e.RemoveService(id)
	}
	for _, x := range []*index{e.peers, e.nodes, e.subjects} {
		if len(x.groups)+len(x.byLabel)+len(x.byKey)+len(x.named)+len(x.loose)+len(x.inNamespace)+len(x.withLabel) > 0 {
			t.Fatalf("left behind in an index: %+v", x)
		}
	}
	if len(e.parents.namespaces)+len(e.parents.accounts)+len(e.services)+len(e.byInterface)+len(e.shown) > 0 {
		t.Fatalf("left behind: %+v", e)
	}
}

func same(t *testing.T, who string, got, want *Program) {
	t.Helper()
	if !reflect.DeepEqual(got.Sets, want.Sets) {
		t.Fatalf("%s has other sets:\n%v\n%v", who, got.Sets, want.Sets)
	}
	if len(got.Chains) != len(want.Chains) || len(got.Endpoints) != len(want.Endpoints) {
		t.Fatalf("%s has %d chains and %d endpoints, not %d and %d", who, len(want.Chains), len(want.Endpoints), len(got.Chains), len(got.Endpoints))
	}
	for id, c := range got.Chains {
		o := want.Chains[id]
		if !c.Equal(&o) {
			t.Fatalf("%s has another chain %s:\n%+v\n%+v", who, id, c, o)
		}
	}
	for i, ep := range got.Endpoints {
		o := want.Endpoints[i]
		if !ep.Equal(&o) {
			t.Fatalf("%s has another endpoint %s:\n%+v\n%+v", who, i, ep, o)
		}
	}
}

// compare sends random packets.
func (w *world) compare(t *testing.T, g generator, p *Program, n int) {
	t.Helper()
	ifaces := make([]string, 0, len(p.Endpoints))
	for i := range p.Endpoints {
		ifaces = append(ifaces, i)
	}
	slices.Sort(ifaces)
	for range n {
		if len(ifaces) == 0 {
			return
		}
		ep := p.Endpoints[pick(g, ifaces...)]
		m, ok := w.endpoints[ep.ID]
		if !ok || m.Interface != ep.Interface {
			t.Fatalf("endpoint %s at %s is not in the world", ep.ID, ep.Interface)
		}
		d := pick(g, Ingress, Egress)
		pkt := g.packet(m, d)
		for _, l := range []Layer{LayerFilter, LayerUntracked, LayerPreDNAT} {
			for _, forward := range []bool{false, true} {
				if l != LayerFilter && forward || l == LayerPreDNAT && d == Egress || m.ID.Kind == model.EndpointWorkload && (forward || l != LayerFilter) {
					continue
				}
				got, how := p.verdict(t, &ep, l, forward, d, pkt)
				want, why := w.verdict(t, m, l, forward, d, pkt)
				if got != want {
					t.Fatalf("%s %s, layer %d, forward %v: packet %s to %s, %+v: rules say %s (%s), oracle says %s (%s)\nendpoint: %+v", ep.ID, d, l, forward, pkt.src, pkt.dst, pkt, got, how, want, why, m)
				}
			}
		}
	}
}
