package felixtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Generator makes random clusters: few labels, few addresses, few ports, so that what it
// makes meets often.
type Generator struct {
	*rand.Rand
	World *World // as of the last Change
}

// NewGenerator makes a Generator; the same seed makes the same cluster.
func NewGenerator(seed uint64) *Generator {
	return &Generator{Rand: rand.New(rand.NewPCG(seed, 0x0ca05e3a)), World: NewWorld()}
}

const (
	namespaces = 4 // the last has no labels
	pods       = 14
	policies   = 14
)

func one[T any](g *Generator, of ...T) T { return of[g.IntN(len(of))] }

// in reports true in n of 100 cases.
func (g *Generator) in(n int) bool { return g.IntN(100) < n }

func some[T any](g *Generator, atMost int, f func() T) []T {
	var out []T
	for range g.IntN(atMost + 1) {
		out = append(out, f())
	}
	return out
}

func atLeastOne[T any](g *Generator, atMost int, f func() T) []T {
	return append(some(g, atMost-1, f), f())
}

// Start lists the changes that make a cluster, and makes them in World.
func (g *Generator) Start() []Change {
	var out []Change
	add := func(o any) { out = append(out, Change{Object: o}) }
	add(g.host())
	for i := range namespaces {
		add(g.namespace(i))
	}
	for _, name := range []string{"early", "late"} {
		add(g.tier(name))
	}
	for ns := range namespaces {
		for _, sa := range accounts {
			if g.in(80) {
				add(model.ServiceAccount{Namespace: nsName(ns), Name: sa, Labels: g.labels()})
			}
		}
	}
	for i := range pods {
		add(g.pod(i))
	}
	for i := range hostEndpoints {
		if g.in(60) {
			add(g.hostEndpoint(i))
		}
	}
	for i := range 3 {
		add(g.networkSet(i))
		add(g.service(i))
		add(g.node(i))
	}
	for i := range policies {
		add(g.policy(i))
	}
	// Objects are heard of in any order, but a tier's policies are not refused for it here.
	head := 1 + namespaces + 2
	g.Shuffle(len(out)-head, func(i, j int) { out[head+i], out[head+j] = out[head+j], out[head+i] })
	for _, c := range out {
		g.World.Apply(c)
	}
	return out
}

// Next is one more change, made in World too.
func (g *Generator) Next() Change {
	c := g.next()
	g.World.Apply(c)
	return c
}

func (g *Generator) next() Change {
	w := g.World
	set := func(o any) Change { return Change{Object: o} }
	maybe := func(o any, there bool) Change { return Change{Object: o, Gone: there && g.in(35)} }
	switch n := g.IntN(100); {
	case n < 25: // a pod comes, goes, or changes its labels
		p := g.pod(g.IntN(pods))
		old, there := w.Endpoints[p.ID]
		if there && g.in(50) {
			old.Labels = p.Labels
			p = old
		}
		return maybe(p, there)
	case n < 32:
		h := g.hostEndpoint(g.IntN(hostEndpoints))
		_, there := w.Endpoints[h.ID]
		return maybe(h, there)
	case n < 39:
		ns := g.namespace(g.IntN(namespaces))
		_, there := w.Namespaces[ns.Name]
		return Change{Object: ns, Gone: there && g.in(10)}
	case n < 44:
		sa := model.ServiceAccount{Namespace: nsName(g.IntN(namespaces)), Name: one(g, accounts...), Labels: g.labels()}
		_, there := w.ServiceAccounts[[2]string{sa.Namespace, sa.Name}]
		return maybe(sa, there)
	case n < 50:
		s := g.networkSet(g.IntN(3))
		_, there := w.NetworkSets[s.ID]
		return maybe(s, there)
	case n < 55:
		s := g.service(g.IntN(3))
		_, there := w.Services[s.ID]
		return maybe(s, there)
	case n < 59:
		s := g.node(g.IntN(3))
		_, there := w.Nodes[s.Name]
		return maybe(s, there)
	case n < 65:
		return Change{Object: g.tier(one(g, "early", "late", "late", model.TierDefault, model.TierAdmin)), Gone: g.in(25)}
	case n < 67:
		return set(g.host())
	case n < 71:
		return Change{Object: g.broken(g.policy(g.IntN(policies))), Invalid: true}
	}
	p := g.policy(g.IntN(policies))
	old, there := w.Policies[p.ID]
	if there && g.in(50) { // one of its rules changes
		p2 := old
		p2.Ingress, p2.Egress = slices.Clone(old.Ingress), slices.Clone(old.Egress)
		if len(p2.Ingress) > 0 {
			p2.Ingress[g.IntN(len(p2.Ingress))] = g.rule(&p2, ingress)
		}
		if len(p2.Egress) > 0 {
			p2.Egress[g.IntN(len(p2.Egress))] = g.rule(&p2, egress)
		}
		p = p2
	}
	return maybe(p, there)
}

var accounts = []string{"web", "db"}

func nsName(i int) string { return fmt.Sprintf("ns%d", i) }

func (g *Generator) labels() map[string]string {
	m := map[string]string{}
	if g.in(70) {
		m["app"] = one(g, "a", "b", "ab")
	}
	if g.in(70) {
		m["env"] = one(g, "dev", "prod")
	}
	return m
}

func (g *Generator) namespace(i int) model.Namespace {
	ns := model.Namespace{Name: nsName(i)}
	if i < namespaces-1 {
		ns.Labels = g.labels()
		ns.Labels["kubernetes.io/metadata.name"] = ns.Name
	}
	return ns
}

func (g *Generator) tier(name string) model.Tier {
	switch name {
	case model.TierDefault:
		return model.Tier{Name: name, Order: 1000000, DefaultAction: one(g, model.RuleDeny, model.RuleDeny, model.RulePass)}
	case model.TierAdmin:
		return model.Tier{Name: name, Order: one(g, 1000.0, 2000000), DefaultAction: model.RulePass}
	}
	return model.Tier{Name: name, Order: one(g, 10, 10, 500, 2000, 1000000, 20000000, inf), DefaultAction: one(g, model.RuleDeny, model.RulePass)}
}

// Addresses: pods of this node and of others in 10.0.0.0/27 and fd00::/123, hosts in
// 192.168.0.0/29 and fd01::/125.
func addr(v6 bool, i int) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
}

func hostAddr(v6 bool, i int) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x01, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})
}

func (g *Generator) ports() []model.EndpointPort {
	all := []model.EndpointPort{{Name: "http", Protocol: 6, Port: 80}, {Name: "http", Protocol: 6, Port: 81}, {Name: "http", Protocol: 17, Port: 80},
		{Name: "dns", Protocol: 17, Port: 53}, {Name: "dns", Protocol: 6, Port: 53}, {Name: "sig", Protocol: 132, Port: 99}}
	return slices.DeleteFunc(all, func(model.EndpointPort) bool { return g.in(55) })
}

func (g *Generator) pod(i int) model.PolicyEndpoint {
	e := model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointWorkload, Namespace: nsName(i % namespaces), Name: fmt.Sprintf("pod%d", i)},
		Labels: g.labels(), ServiceAccount: one(g, accounts...), Ports: g.ports()}
	// An address may be another's that has not been heard to have gone.
	n := i + 1
	if g.in(10) {
		n = g.IntN(24) + 1
	}
	if !g.in(5) {
		e.Addresses = append(e.Addresses, addr(false, n))
	}
	if g.in(70) {
		e.Addresses = append(e.Addresses, addr(true, n))
	}
	if i < pods/2 {
		e.Interface = fmt.Sprintf("cali%d", i)
		if g.in(5) {
			e.Labels, e.ServiceAccount, e.Ports, e.Unknown = nil, "", nil, true
		}
		if g.in(10) {
			e.AllowedSources = []netip.Prefix{netip.MustParsePrefix("10.0.0.16/28")}
		}
	}
	return e
}

// hostEndpoints is how many there are; the last is another node's.
const hostEndpoints = 4

func (g *Generator) hostEndpoint(i int) model.PolicyEndpoint {
	e := model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: fmt.Sprintf("hep%d", i)},
		Labels: g.labels(), Ports: g.ports(), Interface: []string{"eth0", "eth1", "*", ""}[i]}
	e.Addresses = some(g, 2, func() netip.Addr { return hostAddr(g.in(50), 1+g.IntN(3)+i/3*3) })
	slices.SortFunc(e.Addresses, netip.Addr.Compare)
	e.Addresses = slices.Compact(e.Addresses)
	e.Profiles = some(g, 1, func() string { return one(g, "projectcalico-default-allow", "kns.ns0", "other") })
	return e
}

func (g *Generator) net() netip.Prefix {
	return netip.MustParsePrefix(one(g, "10.0.0.0/30", "10.0.0.4/30", "10.0.0.0/29", "10.0.0.7/32", "10.0.0.8/29", "10.0.0.0/8", "192.168.0.0/30",
		"192.168.0.0/16", "0.0.0.0/0", "203.0.113.0/24", "0.0.0.0/1", "128.0.0.0/1", "fd00::/126", "fd00::8/125", "fd00::/16", "fd01::/126", "::/0", "2001:db8::/64", "fd00::5/128"))
}

func (g *Generator) networkSet(i int) model.NetworkSet {
	s := model.NetworkSet{ID: model.NetworkSetID{Name: fmt.Sprintf("set%d", i)}, Labels: g.labels(), Nets: some(g, 5, g.net)}
	if i == 1 {
		s.ID.Namespace = nsName(0)
	}
	return s
}

func (g *Generator) service(i int) model.ServiceEndpoints {
	return model.ServiceEndpoints{ID: model.ServiceID{Namespace: nsName(i % 2), Name: fmt.Sprintf("svc%d", i)},
		Endpoints: some(g, 6, func() model.ServiceEndpoint {
			e := model.ServiceEndpoint{Addr: addr(g.in(40), 1+g.IntN(pods)), Protocol: one[uint8](g, 6, 6, 17), Port: one[uint16](g, 80, 80, 53, 81)}
			if g.in(10) {
				e.Protocol, e.Port = 0, 0
			}
			return e
		})}
}

func (g *Generator) node(i int) model.PolicyNode {
	return model.PolicyNode{Name: fmt.Sprintf("node%d", i), Labels: g.labels(),
		Addresses: []netip.Addr{hostAddr(false, i+1), hostAddr(true, i+1)}}
}

func (g *Generator) host() model.HostPolicy {
	safe := func() model.FailsafePort {
		f := model.FailsafePort{Protocol: one[uint8](g, 6, 6, 17), Port: one[uint16](g, 22, 53, 81)}
		if g.in(40) {
			f.Net = g.net()
		}
		return f
	}
	return model.HostPolicy{FailsafeIn: some(g, 2, safe), FailsafeOut: some(g, 2, safe),
		EndpointToHost: one(g, model.EndpointToHostDrop, model.EndpointToHostAccept, model.EndpointToHostReturn)}
}

// selector makes a selector of the endpoint or, of a namespace, service account or node.
func (g *Generator) selector(endpoint bool) string {
	keys := []string{"app", "env"}
	key := one(g, keys...)
	switch n := g.IntN(20); {
	case n < 3:
		return "all()"
	case n < 7:
		return fmt.Sprintf("%s == %q", key, one(g, "a", "b", "dev"))
	case n < 8:
		return fmt.Sprintf("%s != '%s'", key, one(g, "a", "b", "prod"))
	case n < 9:
		return fmt.Sprintf("has(%s)", key)
	case n < 10:
		return fmt.Sprintf("!has(%s)", key)
	case n < 11:
		return fmt.Sprintf("%s in {'a', 'dev'}", key)
	case n < 12:
		return fmt.Sprintf("%s not in {'a','prod'}", key)
	case n < 13:
		return fmt.Sprintf("%s %s 'a'", key, one(g, "contains", "starts with", "ends with"))
	case n < 15:
		return g.selector(endpoint) + " && " + g.selector(endpoint)
	case n < 16:
		return "(" + g.selector(endpoint) + ") || " + g.selector(endpoint)
	case n < 17:
		return "!(" + g.selector(endpoint) + ")"
	case n < 18 && endpoint:
		return fmt.Sprintf("projectcalico.org/namespace == '%s'", nsName(g.IntN(2)))
	case n < 19 && endpoint:
		return one(g, "has(projectcalico.org/orchestrator)", "projectcalico.org/serviceaccount == 'web'", "projectcalico.org/orchestrator != 'k8s'")
	}
	return one(g, "app == 'a' || env == 'dev'", "has(app) && has(env)")
}

func (g *Generator) namespaceSelector() string {
	switch {
	case g.in(10):
		return "global()"
	case g.in(5):
		return one(g, "global() || env == 'dev'", "!global()")
	case g.in(15):
		return fmt.Sprintf("%s == '%s'", one(g, "kubernetes.io/metadata.name", "projectcalico.org/name"), nsName(g.IntN(namespaces)))
	}
	return g.selector(false)
}

func (g *Generator) accountSelector() string {
	if g.in(20) {
		return "projectcalico.org/name == 'web'"
	}
	return g.selector(false)
}

// Objects lists the World as the changes that make it, in an order that puts it in force.
func (w *World) Objects() []Change {
	var out []Change
	add := func(o any, gone bool) { out = append(out, Change{Object: o, Gone: gone}) }
	add(w.Host, false)
	names := slices.Sorted(maps.Keys(w.Tiers))
	for _, n := range names {
		add(w.Tiers[n], false)
	}
	each(&out, w.Policies)
	for _, n := range names {
		if w.GoneTiers[n] {
			add(w.Tiers[n], true)
		}
	}
	each(&out, w.Waiting)
	each(&out, w.Namespaces)
	each(&out, w.ServiceAccounts)
	each(&out, w.Endpoints)
	each(&out, w.NetworkSets)
	each(&out, w.Nodes)
	each(&out, w.Services)
	return out
}

func each[K comparable, V any](out *[]Change, m map[K]V) {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b K) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	for _, k := range keys {
		*out = append(*out, Change{Object: m[k]})
	}
}
