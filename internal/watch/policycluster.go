package watch

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/causeway-net/causeway/internal/model"
)

// clusterActions are what the actions of a ClusterNetworkPolicy mean.
var clusterActions = map[cnpv1alpha2.ClusterNetworkPolicyRuleAction]model.RuleAction{
	cnpv1alpha2.ClusterNetworkPolicyRuleActionAccept: model.RuleAllow,
	cnpv1alpha2.ClusterNetworkPolicyRuleActionDeny:   model.RuleDeny,
	cnpv1alpha2.ClusterNetworkPolicyRuleActionPass:   model.RulePass,
}

// clusterPolicy converts a ClusterNetworkPolicy. Its rules become one for each peer and
// protocol. What a peer or protocol says that is not known here fails closed, as the API has it: a
// rule that accepts matches nothing there, another one denies everything.
func (c *checker) clusterPolicy(id model.PolicyID, s *cnpv1alpha2.ClusterNetworkPolicySpec) any {
	out := model.Policy{ID: id, Order: float64(s.Priority), ForIngress: len(s.Ingress) > 0, ForEgress: len(s.Egress) > 0}
	switch s.Tier {
	case cnpv1alpha2.AdminTier:
		out.Tier = model.TierAdmin
	case cnpv1alpha2.BaselineTier:
		out.Tier = model.TierBaseline
	default:
		c.bad(".spec.tier", "is %q; must be Admin or Baseline", s.Tier)
	}
	if s.Priority < 0 || s.Priority > 1000 {
		c.bad(".spec.priority", "is %d; must be 0 to 1000", s.Priority)
	}
	switch subject := &s.Subject; {
	case (subject.Namespaces == nil) == (subject.Pods == nil):
		c.bad(".spec.subject", "must have exactly one of namespaces and pods")
	case subject.Namespaces != nil:
		out.Subject = model.Subject{Selector: allSelector, NamespaceSelector: c.labels(".spec.subject.namespaces", subject.Namespaces)}
	default:
		e := c.namespacedPod(".spec.subject.pods", subject.Pods)
		out.Subject = model.Subject{Selector: e.Selector, NamespaceSelector: e.NamespaceSelector}
	}
	for i := range s.Ingress {
		field, r := at(".spec.ingress", i), &s.Ingress[i]
		b := c.clusterRule(field, r.Action, r.Protocols)
		for j := range r.From {
			field, p := at(field+".from", j), &r.From[j]
			b.peer(field, p.Namespaces, p.Pods, nil)
		}
		out.Ingress = append(out.Ingress, b.rules(len(r.From), field+".from", func(peer, self model.EntityRule) (source, destination model.EntityRule) {
			return peer, self
		})...)
	}
	for i := range s.Egress {
		field, r := at(".spec.egress", i), &s.Egress[i]
		b := c.clusterRule(field, r.Action, r.Protocols)
		for j := range r.To {
			field, p := at(field+".to", j), &r.To[j]
			b.peer(field, p.Namespaces, p.Pods, p)
		}
		out.Egress = append(out.Egress, b.rules(len(r.To), field+".to", func(peer, ports model.EntityRule) (source, destination model.EntityRule) {
			peer.Ports = ports.Ports
			return model.EntityRule{}, peer
		})...)
	}
	if !out.ForIngress && !out.ForEgress {
		return nothing{} // it affects neither direction
	}
	return out
}

func (c *checker) namespacedPod(field string, p *cnpv1alpha2.NamespacedPod) model.EntityRule {
	return model.EntityRule{
		Selector:          c.labels(field+".podSelector", &p.PodSelector),
		NamespaceSelector: c.labels(field+".namespaceSelector", &p.NamespaceSelector),
	}
}

// clusterRule gathers what one rule of a ClusterNetworkPolicy becomes.
type clusterRule struct {
	c         *checker
	action    model.RuleAction
	protocols []protocolPorts
	peers     []model.EntityRule
	// closed: the rule says something that is not known here.
	closed bool
}

func (c *checker) clusterRule(field string, action cnpv1alpha2.ClusterNetworkPolicyRuleAction, protocols []cnpv1alpha2.ClusterNetworkPolicyProtocol) *clusterRule {
	b := &clusterRule{c: c, action: clusterActions[action]}
	if b.action == "" {
		c.bad(field+".action", "is %q; must be Accept, Deny or Pass", action)
	}
	if len(protocols) == 0 {
		b.protocols = []protocolPorts{{}}
	}
	for i := range protocols {
		b.protocol(at(field+".protocols", i), &protocols[i])
	}
	return b
}

// unknown notes that the rule fails closed.
func (b *clusterRule) unknown(field, what string) {
	b.closed = true
	does := "the rule accepts nothing"
	if b.action != model.RuleAllow {
		does = "the rule denies everything"
	}
	b.c.ignored(field, "%s; %s", what, does)
}

func (b *clusterRule) protocol(field string, p *cnpv1alpha2.ClusterNetworkPolicyProtocol) {
	set := 0
	add := func(protocol uint8, field string, port *cnpv1alpha2.Port) {
		set++
		pp := protocolPorts{protocol: protocol}
		if port != nil {
			pp.ports = b.port(field+".destinationPort", port)
		}
		b.protocols = append(b.protocols, pp)
	}
	if p.TCP != nil {
		add(model.ProtocolTCP, field+".tcp", p.TCP.DestinationPort)
	}
	if p.UDP != nil {
		add(model.ProtocolUDP, field+".udp", p.UDP.DestinationPort)
	}
	if p.SCTP != nil {
		add(model.ProtocolSCTP, field+".sctp", p.SCTP.DestinationPort)
	}
	if name := p.DestinationNamedPort; name != "" {
		set++
		if !portName.MatchString(name) {
			b.c.bad(field+".destinationNamedPort", "is %q; must be the name of a container's port", name)
		}
		// The container's port says which protocol it is.
		for _, protocol := range []uint8{model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP} {
			b.protocols = append(b.protocols, protocolPorts{protocol, []model.RulePort{{Name: name}}})
		}
	}
	switch {
	case set == 0:
		b.unknown(field, "says nothing that is known here; must have one of tcp, udp, sctp and destinationNamedPort")
	case set > 1:
		b.c.bad(field, "has several of tcp, udp, sctp and destinationNamedPort; must have exactly one")
	}
}

func (b *clusterRule) port(field string, p *cnpv1alpha2.Port) []model.RulePort {
	valid := func(n int32) bool { return n >= 1 && n <= 65535 }
	switch {
	case p.Range == nil && p.Number == 0:
		b.unknown(field, "says nothing that is known here; must have number or range")
		return nil
	case p.Range != nil && p.Number != 0:
		b.c.bad(field, "has both number and range; must have one of them")
	case p.Range == nil && !valid(p.Number):
		b.c.bad(field+".number", "is %d; must be 1 to 65535", p.Number)
	case p.Range == nil:
		return []model.RulePort{{First: int(p.Number), Last: int(p.Number)}}
	case !valid(p.Range.Start) || !valid(p.Range.End) || p.Range.End < p.Range.Start:
		b.c.bad(field+".range", "is %d to %d; must be within 1 to 65535, and end not before its start", p.Range.Start, p.Range.End)
	default:
		return []model.RulePort{{First: int(p.Range.Start), Last: int(p.Range.End)}}
	}
	return nil
}

// peer converts one peer; to is the peer of an egress rule, which can have more.
func (b *clusterRule) peer(field string, namespaces *metav1.LabelSelector, pods *cnpv1alpha2.NamespacedPod, to *cnpv1alpha2.ClusterNetworkPolicyEgressPeer) {
	c, set := b.c, 0
	add := func(e model.EntityRule) {
		set++
		b.peers = append(b.peers, e)
	}
	if namespaces != nil {
		add(model.EntityRule{Selector: allSelector, NamespaceSelector: c.labels(field+".namespaces", namespaces)})
	}
	if pods != nil {
		add(c.namespacedPod(field+".pods", pods))
	}
	if to != nil {
		if to.Nodes != nil {
			add(model.EntityRule{NodeSelector: c.labels(field+".nodes", to.Nodes)})
		}
		if len(to.Networks) > 0 {
			nets := make([]string, len(to.Networks))
			for i, n := range to.Networks {
				nets[i] = string(n)
			}
			add(model.EntityRule{Nets: c.nets(field+".networks", nets)})
		}
		if len(to.DomainNames) > 0 {
			set++
			if b.action == model.RuleAllow { // the rule's other peers stay
				c.ignored(field+".domainNames", "is not supported; nothing is accepted for it")
			} else {
				b.unknown(field+".domainNames", "is not supported, and can stand in rules that accept only")
			}
		}
	}
	switch {
	case set == 0:
		b.unknown(field, "says nothing that is known here; must have one of namespaces, pods, nodes and networks")
	case set > 1:
		c.bad(field, "has several kinds of peer; must have exactly one")
	}
}

// rules makes one rule for each peer and protocol. ends says which end the peer is, and which
// the ports belong to.
func (b *clusterRule) rules(peers int, field string, ends func(peer, ports model.EntityRule) (source, destination model.EntityRule)) []model.Rule {
	if peers == 0 {
		b.unknown(field, "is empty; must have at least one peer")
	}
	var out []model.Rule
	ingress := strings.HasSuffix(field, ".from")
	b.c.allow(field, b.peers, b.protocols, func(peer model.EntityRule, p protocolPorts) {
		r := model.Rule{Action: b.action, Protocol: p.protocol}
		r.Source, r.Destination = ends(peer, model.EntityRule{Ports: p.ports})
		if !ingress && len(p.ports) > 0 && p.ports[0].Name != "" && peer.Selector == "" {
			b.unknown(field, "names a port of peers that have none with names; destinationNamedPort goes with namespaces and pods only")
			return
		}
		out = append(out, r)
	})
	switch {
	case !b.closed:
		return out
	case b.action == model.RuleAllow:
		return nil
	}
	return []model.Rule{{Action: model.RuleDeny}}
}
