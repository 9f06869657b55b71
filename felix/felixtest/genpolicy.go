package felixtest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

var kinds = []model.PolicyKind{model.PolicyGlobal, model.PolicyNamespaced, model.PolicyKubernetes, model.PolicyGlobal, model.PolicyNamespaced,
	model.PolicyCluster, model.PolicyGlobal, model.PolicyStagedGlobal, model.PolicyStagedNamespaced, model.PolicyStagedKubernetes, model.PolicyGlobal,
	model.PolicyKubernetes, model.PolicyCluster, model.PolicyNamespaced}

// policy makes a valid policy; i says which, and its kind and namespace.
func (g *Generator) policy(i int) model.Policy {
	kind := kinds[i%len(kinds)]
	// Names collide, so that order falls to namespace and kind.
	p := model.Policy{ID: model.PolicyID{Kind: kind, Name: fmt.Sprintf("p%d", i/2)}, Order: one(g, 1, 2, 2, 3, inf)}
	p.ForIngress, p.ForEgress = true, g.in(60)
	if p.ForEgress {
		p.ForIngress = g.in(70)
	}
	p.Subject.Selector = one(g, "", g.selector(true))
	switch kind {
	case model.PolicyKubernetes, model.PolicyStagedKubernetes:
		p.ID.Namespace, p.Tier, p.Order = nsName(i%3), model.TierDefault, model.KubernetesPolicyOrder
	case model.PolicyCluster:
		p.Tier, p.Order = one(g, model.TierAdmin, model.TierBaseline), float64(g.IntN(4))
		p.Subject.NamespaceSelector = g.clusterNamespaceSelector()
	case model.PolicyNamespaced, model.PolicyStagedNamespaced:
		p.ID.Namespace, p.Tier = nsName(i%3), g.calicoTier()
		if g.in(20) {
			p.Subject.ServiceAccountSelector = g.accountSelector()
		}
	default:
		p.Tier = g.calicoTier()
		if g.in(25) {
			p.Subject.NamespaceSelector = g.namespaceSelector()
		}
		if g.in(15) {
			p.Subject.ServiceAccountSelector = g.accountSelector()
		}
		switch n := g.IntN(10); {
		case n < 2:
			p.Untracked, p.ApplyOnForward = true, true
		case n < 4:
			p.PreDNAT, p.ApplyOnForward, p.ForIngress, p.ForEgress = true, true, true, false
		case n < 6:
			p.ApplyOnForward = true
		}
		p.AssumeNeeded = g.in(5)
	}
	if p.ForIngress {
		p.Ingress = some(g, 4, func() model.Rule { return g.rule(&p, ingress) })
	}
	if p.ForEgress {
		p.Egress = some(g, 4, func() model.Rule { return g.rule(&p, egress) })
	}
	return p
}

func (g *Generator) calicoTier() string {
	return one(g, model.TierDefault, model.TierDefault, "early", "late")
}

// clusterNamespaceSelector is a namespace selector as a ClusterNetworkPolicy can say it.
func (g *Generator) clusterNamespaceSelector() string {
	if g.in(30) {
		return "all()"
	}
	return g.selector(false)
}

var calicoProtocols = []uint8{0, 0, 6, 6, 17, 132, 136, 1, 58, 47}

// rule makes a rule such as the policy's kind can have.
func (g *Generator) rule(p *model.Policy, dir Direction) model.Rule {
	switch p.ID.Kind {
	case model.PolicyKubernetes, model.PolicyStagedKubernetes:
		return g.kubernetesRule(dir)
	case model.PolicyCluster:
		return g.clusterRule(dir)
	}
	return g.calicoRule(p, dir)
}

func (g *Generator) kubernetesRule(dir Direction) model.Rule {
	r := model.Rule{Action: model.RuleAllow}
	peer := &r.Source
	if dir == egress {
		peer = &r.Destination
	}
	switch g.IntN(4) {
	case 0:
		peer.Nets = []netip.Prefix{g.net()}
		peer.NotNets = some(g, 2, g.net)
	case 1:
		peer.Selector = g.selector(false)
	case 2:
		peer.Selector, peer.NamespaceSelector = one(g, "", "all()", g.selector(false)), one(g, "all()", g.selector(false))
	}
	if g.in(50) {
		r.Protocol = one[uint8](g, 6, 6, 17, 132)
		if g.in(80) {
			r.Destination.Ports = []model.RulePort{g.port()}
		}
	}
	return r
}

func (g *Generator) clusterRule(dir Direction) model.Rule {
	r := model.Rule{Action: one(g, model.RuleAllow, model.RuleDeny, model.RulePass)}
	peer := &r.Source
	if dir == egress {
		peer = &r.Destination
	}
	switch n := g.IntN(6); {
	case n < 2:
		peer.NamespaceSelector = g.clusterNamespaceSelector()
	case n < 4:
		peer.NamespaceSelector, peer.Selector = g.clusterNamespaceSelector(), g.selector(false)
	case n < 5 && dir == egress:
		peer.Nets = atLeastOne(g, 3, g.net)
	case dir == egress:
		peer.NodeSelector = one(g, "all()", g.selector(false))
	}
	if g.in(50) {
		r.Protocol = one[uint8](g, 6, 6, 17, 132)
		port := g.port()
		if peer.NodeSelector != "" {
			for port.Name != "" {
				port = g.port()
			}
		}
		r.Destination.Ports = []model.RulePort{port}
	}
	return r
}

func (g *Generator) calicoRule(p *model.Policy, dir Direction) model.Rule {
	r := model.Rule{Action: one(g, model.RuleAllow, model.RuleAllow, model.RuleDeny, model.RuleDeny, model.RulePass, model.RuleLog)}
	if p.Untracked || p.PreDNAT {
		r.Action = one(g, model.RuleAllow, model.RuleDeny)
	}
	if g.in(10) {
		r.IPVersion = one(g, 4, 6)
	}
	r.Protocol = one(g, calicoProtocols...)
	if g.in(12) {
		r.NotProtocol = one[uint8](g, 6, 17, 132)
	}
	if r.Protocol == model.ProtocolICMP || r.Protocol == model.ProtocolICMPv6 {
		if g.in(40) {
			r.ICMP = g.icmp()
		}
		if g.in(30) {
			r.NotICMP = g.icmp()
		}
		r.IPVersion = 0
	}
	r.Source, r.Destination = g.entity(p, dir, false), g.entity(p, dir, true)
	switch r.Protocol {
	case model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP, model.ProtocolUDPLite:
		for _, e := range []*model.EntityRule{&r.Source, &r.Destination} {
			if e.Service != nil || g.in(40) {
				continue
			}
			e.Ports = some(g, 4, g.port)
			if g.in(40) {
				e.NotPorts = some(g, 3, g.port)
			}
		}
	}
	if dir == ingress && !p.Untracked && !p.PreDNAT && r.Action != model.RuleLog && (r.Protocol == 0 || r.Protocol == 6) && g.in(5) {
		r.HTTP = true
	}
	return r
}

func (g *Generator) icmp() *model.ICMPMatch {
	m := &model.ICMPMatch{Type: one(g, 0, 3, 8, 128, 254)}
	if g.in(50) {
		code := one(g, 0, 1, 255)
		m.Code = &code
	}
	return m
}

func (g *Generator) port() model.RulePort {
	switch g.IntN(5) {
	case 0, 1:
		return model.RulePort{Name: one(g, "http", "dns", "sig", "nobody")}
	case 2:
		n := one(g, 0, 53, 80, 81, 65535)
		return model.RulePort{First: n, Last: n}
	case 3:
		first := one(g, 0, 50, 53, 80, 1000)
		return model.RulePort{First: first, Last: first + one(g, 1, 30, 4000)}
	}
	return one(g, model.RulePort{First: 0, Last: 65535}, model.RulePort{First: 1024, Last: 65535}, model.RulePort{First: 0, Last: 79}, model.RulePort{First: 82, Last: 98})
}

// entity makes one end of a Calico rule, without ports.
func (g *Generator) entity(p *model.Policy, dir Direction, destination bool) model.EntityRule {
	var e model.EntityRule
	if g.in(5) && destination == (dir == egress) && !p.Untracked && !p.PreDNAT {
		e.Service = &model.ServiceID{Namespace: nsName(g.IntN(2)), Name: fmt.Sprintf("svc%d", g.IntN(4))}
		if p.ID.Namespace != "" {
			e.Service.Namespace = p.ID.Namespace
		}
		return e
	}
	if g.in(25) {
		e.Nets = some(g, 3, g.net)
	}
	if g.in(15) {
		e.NotNets = some(g, 3, g.net)
	}
	if g.in(30) {
		e.Selector = g.selector(true)
	}
	if g.in(15) {
		e.NamespaceSelector = g.namespaceSelector()
	}
	if g.in(10) {
		e.NotSelector = g.selector(true)
	}
	if g.in(8) {
		e.ServiceAccounts = atLeastOne(g, 2, func() string { return one(g, "web", "db", "none") })
		slices.Sort(e.ServiceAccounts)
		e.ServiceAccounts = slices.Compact(e.ServiceAccounts)
	}
	if g.in(6) {
		e.ServiceAccountSelector = g.accountSelector()
	}
	return e
}

// broken makes a valid policy one that must be refused.
func (g *Generator) broken(p model.Policy) model.Policy {
	var bad model.Rule
	switch g.IntN(7) {
	case 0:
		p.Subject.Selector = one(g, "app ==", "app == 'a", "has(app", "app == 'a' &&", "() || all()")
		return p
	case 1:
		bad = model.Rule{Action: model.RuleAllow, Protocol: 6, Destination: model.EntityRule{Ports: []model.RulePort{{First: 70000, Last: 70000}}}}
	case 2:
		bad = model.Rule{Action: model.RuleAllow, Protocol: 6, Destination: model.EntityRule{Ports: []model.RulePort{{First: 81, Last: 80}}}}
	case 3:
		bad = model.Rule{Action: model.RuleAllow, Protocol: 1, ICMP: &model.ICMPMatch{Type: 8}, Destination: model.EntityRule{Ports: []model.RulePort{{First: 80, Last: 80}}}}
	case 4:
		bad = model.Rule{Action: model.RuleAllow, Protocol: 6, ICMP: &model.ICMPMatch{Type: 8}}
	case 5:
		bad = model.Rule{Action: model.RuleAllow, Source: model.EntityRule{Selector: "!"}}
	case 6:
		bad = model.Rule{Action: model.RuleAllow, Destination: model.EntityRule{Ports: []model.RulePort{{First: 80, Last: 80}}}}
	}
	if p.ForIngress {
		p.Ingress = append(slices.Clone(p.Ingress), bad)
	} else {
		p.Egress = append(slices.Clone(p.Egress), bad)
	}
	return p
}
