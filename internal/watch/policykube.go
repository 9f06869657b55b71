package watch

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// allSelector selects everything.
const allSelector = "all()"

// labels writes a selector of Kubernetes in Calico's language, as Calico does: labels by
// name, then expressions as they stand. An empty one is all().
func (c *checker) labels(field string, s *metav1.LabelSelector) string {
	var terms []string
	for k, v := range s.MatchLabels {
		terms = append(terms, k+" == "+quoted(v))
	}
	slices.Sort(terms)
	for i, e := range s.MatchExpressions {
		field := at(field+".matchExpressions", i)
		values := make([]string, len(e.Values))
		for j, v := range e.Values {
			values[j] = quoted(v)
		}
		set := "{ " + strings.Join(values, ", ") + " }"
		takesValues := e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn
		if takesValues != (len(values) > 0) {
			c.bad(field+".values", "has %d values with operator %s; In and NotIn need some, others must have none", len(values), e.Operator)
		}
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			terms = append(terms, e.Key+" in "+set)
		case metav1.LabelSelectorOpNotIn:
			terms = append(terms, e.Key+" not in "+set)
		case metav1.LabelSelectorOpExists:
			terms = append(terms, "has("+e.Key+")")
		case metav1.LabelSelectorOpDoesNotExist:
			terms = append(terms, "! has("+e.Key+")")
		default:
			c.bad(field+".operator", "is %q; must be In, NotIn, Exists or DoesNotExist", e.Operator)
		}
	}
	if len(terms) == 0 {
		return allSelector
	}
	text := strings.Join(terms, " && ")
	if _, err := selector.Parse(text); err != nil {
		c.bad(field, "has a key or value that is no label's: %v", err)
	}
	return text
}

// quoted puts a label's value, which has no quotes of its own, in quotes.
func quoted(v string) string {
	if strings.Contains(v, "'") {
		return `"` + v + `"`
	}
	return "'" + v + "'"
}

// kubernetesPolicy converts a NetworkPolicy of networking.k8s.io/v1: it only ever allows, and
// the tier's end denies the rest.
func (c *checker) kubernetesPolicy(id model.PolicyID, s *networkingv1.NetworkPolicySpec) model.Policy {
	out := model.Policy{
		ID: id, Tier: model.TierDefault, Order: model.KubernetesPolicyOrder,
		Subject: model.Subject{Selector: c.labels(".spec.podSelector", &s.PodSelector)},
	}
	for i, t := range s.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			out.ForIngress = true
		case networkingv1.PolicyTypeEgress:
			out.ForEgress = true
		default:
			c.bad(at(".spec.policyTypes", i), "is %q; must be Ingress or Egress", t)
		}
	}
	if len(s.PolicyTypes) == 0 {
		out.ForIngress, out.ForEgress = true, len(s.Egress) > 0
	}
	for i := range s.Ingress {
		field, r := at(".spec.ingress", i), &s.Ingress[i]
		c.allow(field, c.kubernetesPeers(field+".from", r.From), c.kubernetesPorts(field+".ports", r.Ports), func(peer model.EntityRule, p protocolPorts) {
			out.Ingress = append(out.Ingress, model.Rule{Action: model.RuleAllow, Protocol: p.protocol, Source: peer, Destination: model.EntityRule{Ports: p.ports}})
		})
	}
	for i := range s.Egress {
		field, r := at(".spec.egress", i), &s.Egress[i]
		c.allow(field, c.kubernetesPeers(field+".to", r.To), c.kubernetesPorts(field+".ports", r.Ports), func(peer model.EntityRule, p protocolPorts) {
			peer.Ports = p.ports
			out.Egress = append(out.Egress, model.Rule{Action: model.RuleAllow, Protocol: p.protocol, Destination: peer})
		})
	}
	return out
}

// protocolPorts are the ports of one protocol; the zero value is every packet.
type protocolPorts struct {
	protocol uint8
	ports    []model.RulePort
}

// maxKubernetesRules bounds what one rule becomes, which has one for each peer and protocol.
const maxKubernetesRules = 10000

// allow calls add for each peer and protocol.
func (c *checker) allow(field string, peers []model.EntityRule, ports []protocolPorts, add func(model.EntityRule, protocolPorts)) {
	if n := len(peers) * len(ports); n > maxKubernetesRules {
		c.bad(field, "has %d pairs of a peer and a protocol; at most %d are allowed", n, maxKubernetesRules)
		return
	}
	for _, peer := range peers {
		for _, p := range ports {
			add(peer, p)
		}
	}
}

// kubernetesPeers converts peers; none at all are everybody.
func (c *checker) kubernetesPeers(field string, in []networkingv1.NetworkPolicyPeer) []model.EntityRule {
	if len(in) == 0 {
		return []model.EntityRule{{}}
	}
	var out []model.EntityRule
	for i := range in {
		field, p := at(field, i), &in[i]
		var e model.EntityRule
		switch {
		case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
			c.bad(field, "has ipBlock beside selectors; it must stand alone")
		case p.IPBlock != nil:
			if net, ok := c.network(field+".ipBlock.cidr", p.IPBlock.CIDR); ok {
				e.Nets = append(e.Nets, net)
			}
			e.NotNets = c.nets(field+".ipBlock.except", p.IPBlock.Except)
			for i, not := range e.NotNets {
				if len(e.Nets) == 1 && (e.Nets[0].Bits() >= not.Bits() || !e.Nets[0].Contains(not.Addr())) {
					c.bad(at(field+".ipBlock.except", i), "is %s; must be a part of %s", not, e.Nets[0])
				}
			}
		case p.PodSelector == nil && p.NamespaceSelector == nil:
			c.bad(field, "says nothing; must have podSelector, namespaceSelector or ipBlock")
		default:
			if p.PodSelector != nil {
				e.Selector = c.labels(field+".podSelector", p.PodSelector)
			}
			if p.NamespaceSelector != nil {
				e.NamespaceSelector = c.labels(field+".namespaceSelector", p.NamespaceSelector)
			}
		}
		out = append(out, e)
	}
	return out
}

// kubernetesPorts gathers ports by protocol, in the order in which protocols first appear.
// One without a port is all ports of its protocol.
func (c *checker) kubernetesPorts(field string, in []networkingv1.NetworkPolicyPort) []protocolPorts {
	if len(in) == 0 {
		return []protocolPorts{{}}
	}
	var out []protocolPorts
	whole := map[uint8]bool{} // protocols with all their ports
	for i := range in {
		field, p := at(field, i), &in[i]
		name := corev1.ProtocolTCP
		if p.Protocol != nil {
			name = *p.Protocol
		}
		protocol := protocols[strings.ToLower(string(name))]
		if protocol != model.ProtocolTCP && protocol != model.ProtocolUDP && protocol != model.ProtocolSCTP {
			c.bad(field+".protocol", "is %q; must be TCP, UDP or SCTP", name)
		}
		n := slices.IndexFunc(out, func(o protocolPorts) bool { return o.protocol == protocol })
		if n < 0 {
			n, out = len(out), append(out, protocolPorts{protocol: protocol})
		}
		if p.Port == nil {
			if p.EndPort != nil {
				c.bad(field+".endPort", "is %d without port; add the port where the range begins", *p.EndPort)
			}
			whole[protocol] = true
			continue
		}
		out[n].ports = append(out[n].ports, c.kubernetesPort(field, p))
	}
	for i := range out {
		if whole[out[i].protocol] {
			out[i].ports = nil
		}
	}
	return out
}

func (c *checker) kubernetesPort(field string, p *networkingv1.NetworkPolicyPort) model.RulePort {
	if p.Port.Type == intstr.String {
		if p.EndPort != nil {
			c.bad(field+".endPort", "is %d beside the name %q; a range must begin with a number", *p.EndPort, p.Port.StrVal)
		}
		if !portName.MatchString(p.Port.StrVal) {
			c.bad(field+".port", "is %q; must be a port from 1 to 65535 or the name of one", p.Port.StrVal)
		}
		return model.RulePort{Name: p.Port.StrVal}
	}
	out := model.RulePort{First: int(p.Port.IntVal), Last: int(p.Port.IntVal)}
	if out.First < 1 || out.First > 65535 {
		c.bad(field+".port", "is %d; must be 1 to 65535", out.First)
	}
	if p.EndPort != nil {
		if out.Last = int(*p.EndPort); out.Last < out.First || out.Last > 65535 {
			c.bad(field+".endPort", "is %d; must be %d, which is port, to 65535", out.Last, out.First)
		}
	}
	return out
}
