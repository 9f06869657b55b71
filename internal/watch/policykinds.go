package watch

import (
	"math"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// nothing is the converted form of an object that is valid and asks for nothing.
type nothing struct{}

// namespaced are the kinds whose objects live in a namespace, as Object.Key names them.
var namespaced = []string{
	KindSecret, string(model.PolicyKubernetes), string(model.PolicyNamespaced), string(model.PolicyStagedKubernetes),
	string(model.PolicyStagedNamespaced), v3.KindNetworkSet,
}

// Namespaced reports whether objects of the kind live in a namespace.
func Namespaced(kind string) bool { return slices.Contains(namespaced, kind) }

// policyKind converts an object of a kind that concerns policy; ok is false when it is of
// another kind.
func (c *checker) policyKind(obj metav1.Object) (value any, ok bool) {
	id := func(kind model.PolicyKind) model.PolicyID {
		c.o.Key.Kind = string(kind)
		out := model.PolicyID{Kind: kind, Name: obj.GetName()}
		if Namespaced(string(kind)) {
			out.Namespace = obj.GetNamespace()
		}
		return out
	}
	switch x := obj.(type) {
	case *networkingv1.NetworkPolicy:
		return c.kubernetesPolicy(id(model.PolicyKubernetes), &x.Spec), true
	case *cnpv1alpha2.ClusterNetworkPolicy:
		return c.clusterPolicy(id(model.PolicyCluster), &x.Spec), true
	case *v3.NetworkPolicy:
		return c.calicoPolicy(id(model.PolicyNamespaced), &v3.GlobalNetworkPolicySpec{PolicyFields: x.Spec.PolicyFields}), true
	case *v3.GlobalNetworkPolicy:
		return c.calicoPolicy(id(model.PolicyGlobal), &x.Spec), true
	case *v3.StagedNetworkPolicy:
		p := c.calicoPolicy(id(model.PolicyStagedNamespaced), &v3.GlobalNetworkPolicySpec{PolicyFields: x.Spec.PolicyFields})
		return c.staged(x.Spec.StagedAction, p), true
	case *v3.StagedGlobalNetworkPolicy:
		return c.staged(x.Spec.StagedAction, c.calicoPolicy(id(model.PolicyStagedGlobal), &x.Spec.GlobalNetworkPolicySpec)), true
	case *v3.StagedKubernetesNetworkPolicy:
		p := c.kubernetesPolicy(id(model.PolicyStagedKubernetes), &networkingv1.NetworkPolicySpec{
			PodSelector: x.Spec.PodSelector, Ingress: x.Spec.Ingress, Egress: x.Spec.Egress, PolicyTypes: x.Spec.PolicyTypes,
		})
		return c.staged(x.Spec.StagedAction, p), true
	case *v3.Tier:
		c.o.Key.Kind = v3.KindTier
		return c.tier(x), true
	case *v3.NetworkSet:
		c.o.Key.Kind = v3.KindNetworkSet
		return model.NetworkSet{ID: model.NetworkSetID{Namespace: x.Namespace, Name: x.Name}, Labels: x.Labels, Nets: c.nets(".spec.nets", x.Spec.Nets)}, true
	case *v3.GlobalNetworkSet:
		c.o.Key.Kind = v3.KindGlobalNetworkSet
		return model.NetworkSet{ID: model.NetworkSetID{Name: x.Name}, Labels: x.Labels, Nets: c.nets(".spec.nets", x.Spec.Nets)}, true
	case *v3.HostEndpoint:
		c.o.Key.Kind = v3.KindHostEndpoint
		return c.hostEndpoint(x), true
	case *v3.KubeControllersConfiguration:
		c.o.Key.Kind = v3.KindKubeControllersConfiguration
		return c.kubeControllersConfiguration(x), true
	}
	return nil, false
}

// staged looks at a staged policy's action: only Set stands for a policy whose packets can
// be counted.
func (c *checker) staged(action v3.StagedAction, p model.Policy) any {
	enum(c, ".spec.stagedAction", action, v3.StagedActionSet, v3.StagedActionDelete, v3.StagedActionLearn, v3.StagedActionIgnore)
	switch action {
	case v3.StagedActionDelete:
		c.ignored(".spec.stagedAction", "is Delete; nothing counts what would pass without the policy")
	case v3.StagedActionLearn:
		c.ignored(".spec.stagedAction", "is Learn, which nothing here does; must be Set for its packets to be counted")
	case v3.StagedActionIgnore:
	default:
		return p
	}
	return nothing{}
}

// tiersFixed are the orders of the tiers that are always there.
var tiersFixed = map[string]float64{
	model.TierAdmin: 1000, "adminnetworkpolicy": 1000, model.TierDefault: 1000000,
	model.TierBaseline: 10000000, "baselineadminnetworkpolicy": 10000000,
}

func (c *checker) tier(t *v3.Tier) model.Tier {
	out := model.Tier{Name: t.Name, Order: orderOf(t.Spec.Order), DefaultAction: model.RuleDeny}
	if t.Name == model.TierAdmin || t.Name == model.TierBaseline {
		out.DefaultAction = model.RulePass // as without an object
	}
	if a := t.Spec.DefaultAction; a != nil && *a != "" {
		enum(c, ".spec.defaultAction", *a, v3.TierDeny, v3.TierPass)
		out.DefaultAction = model.RuleAction(*a)
	}
	if fixed, ok := tiersFixed[t.Name]; ok && out.Order != fixed {
		c.bad(".spec.order", "is %v; the tier %s is always there and its order must be %v", out.Order, t.Name, fixed)
	}
	if strings.Contains(t.Name, ".") {
		c.bad(".metadata.name", "is %q; the name of a tier must be without dots", t.Name)
	}
	return out
}

func orderOf(p *float64) float64 {
	if p == nil {
		return math.Inf(1)
	}
	return *p
}

// text checks a selector, and returns it as it is written.
func (c *checker) text(field, s string) string {
	if _, err := selector.Parse(s); err != nil {
		c.bad(field, "%v", err)
	}
	return s
}

// noGlobal is text of a selector in which global() means nothing.
func (c *checker) noGlobal(field, s string) string {
	if sel, err := selector.Parse(s); err == nil && sel.NamesGlobal() {
		c.bad(field, "is %q; global() can stand in a rule's namespaceSelector only", s)
	}
	return c.text(field, s)
}

// calicoPolicy converts the policies of projectcalico.org/v3. Those with a namespace have
// none of the fields that only global ones have.
func (c *checker) calicoPolicy(id model.PolicyID, s *v3.GlobalNetworkPolicySpec) model.Policy {
	out := model.Policy{
		ID: id, Tier: s.Tier, Order: orderOf(s.Order),
		Subject: model.Subject{
			Selector:               c.noGlobal(".spec.selector", s.Selector),
			NamespaceSelector:      c.noGlobal(".spec.namespaceSelector", s.NamespaceSelector),
			ServiceAccountSelector: c.noGlobal(".spec.serviceAccountSelector", s.ServiceAccountSelector),
		},
		Untracked: s.DoNotTrack, PreDNAT: s.PreDNAT, ApplyOnForward: s.ApplyOnForward,
	}
	if out.Tier == "" {
		out.Tier = model.TierDefault
	}
	out.ForIngress, out.ForEgress = c.types(s)
	out.Ingress = c.rules(id, ".spec.ingress", s.Ingress, true)
	out.Egress = c.rules(id, ".spec.egress", s.Egress, false)
	for i, h := range s.PerformanceHints {
		enum(c, at(".spec.performanceHints", i), h, v3.PerfHintAssumeNeededOnEveryNode)
		out.AssumeNeeded = true
	}
	if s.DoNotTrack && s.PreDNAT {
		c.bad(".spec.doNotTrack", "and preDNAT are both true; one of them must be false")
	}
	if (s.DoNotTrack || s.PreDNAT) && !s.ApplyOnForward {
		c.bad(".spec.applyOnForward", "must be true with doNotTrack or preDNAT")
	}
	if s.PreDNAT && out.ForEgress {
		c.bad(".spec.types", "contains Egress; a preDNAT policy holds for ingress only")
	}
	return out
}

// types are the directions of a policy. By default those that have rules, or Ingress.
func (c *checker) types(s *v3.GlobalNetworkPolicySpec) (ingress, egress bool) {
	if len(s.Types) == 0 {
		egress = len(s.Egress) > 0
		return len(s.Ingress) > 0 || !egress, egress
	}
	for i, t := range s.Types {
		enum(c, at(".spec.types", i), t, v3.PolicyTypeIngress, v3.PolicyTypeEgress)
		ingress = ingress || t == v3.PolicyTypeIngress
		egress = egress || t == v3.PolicyTypeEgress
	}
	if len(s.Ingress) > 0 && !ingress {
		c.ignored(".spec.ingress", "has rules, but types does not contain Ingress; add it, or remove the rules")
	}
	if len(s.Egress) > 0 && !egress {
		c.ignored(".spec.egress", "has rules, but types does not contain Egress; add it, or remove the rules")
	}
	return ingress, egress
}
