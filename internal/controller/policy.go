package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// conditionReady is the condition of a Tier, as Calico names it, and of a ClusterNetworkPolicy,
// whose API names none.
const (
	conditionReady = "Ready"

	reasonActive      = "Active"
	reasonNotInForce  = "NotInForce"
	reasonNotActedOn  = "PartlyActedOn"
	eventNotInForce   = "NotInForce"
	eventNotActedOn   = "NotActedOn"
	lastValidStays    = "The last valid version stays in force, if there was one."
	remindOfProblems  = 30 * time.Minute // events are forgotten after an hour
	clusterPolicyPath = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
)

// examined is what is kept of a policy or a tier: who it is, and what is wrong with it alone.
type examined struct {
	metav1.ObjectMeta // who it is
	key               model.Object
	kind, apiVersion  string // as events name it
	tier              string // that a policy is in
	problems          []model.Problem
	conditions        []metav1.Condition // of kinds that have them
}

// bare keeps who an object is.
func bare(o *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, UID: o.UID, ResourceVersion: o.ResourceVersion, Generation: o.Generation}
}

// examine is an informer's transformation.
func examine(obj any) (any, error) {
	if o := examination(obj); o != nil {
		return o, nil
	}
	return obj, nil
}

// examination looks at one object, as agents do; nil: it is none that is looked at.
func examination(obj any) *examined {
	var out examined
	var fields *v3.PolicyFields
	own := v3.SchemeGroupVersion.String()
	switch x := obj.(type) {
	case *networkingv1.NetworkPolicy:
		out = examined{ObjectMeta: x.ObjectMeta, kind: "NetworkPolicy", apiVersion: "networking.k8s.io/v1", tier: model.TierDefault}
	case *cnpv1alpha2.ClusterNetworkPolicy:
		out = examined{ObjectMeta: x.ObjectMeta, kind: "ClusterNetworkPolicy", apiVersion: cnpv1alpha2.SchemeGroupVersion.String(), conditions: x.Status.Conditions}
	case *v3.Tier:
		out = examined{ObjectMeta: x.ObjectMeta, kind: v3.KindTier, apiVersion: own}
		if x.Status != nil {
			out.conditions = x.Status.Conditions
		}
	case *v3.NetworkPolicy:
		out, fields = examined{ObjectMeta: x.ObjectMeta, kind: "NetworkPolicy"}, &x.Spec.PolicyFields
	case *v3.GlobalNetworkPolicy:
		out, fields = examined{ObjectMeta: x.ObjectMeta, kind: "GlobalNetworkPolicy"}, &x.Spec.PolicyFields
	case *v3.StagedNetworkPolicy:
		out, fields = examined{ObjectMeta: x.ObjectMeta, kind: "StagedNetworkPolicy"}, &x.Spec.PolicyFields
	case *v3.StagedGlobalNetworkPolicy:
		out, fields = examined{ObjectMeta: x.ObjectMeta, kind: "StagedGlobalNetworkPolicy"}, &x.Spec.PolicyFields
	case *v3.StagedKubernetesNetworkPolicy:
		out = examined{ObjectMeta: x.ObjectMeta, kind: "StagedKubernetesNetworkPolicy", apiVersion: own, tier: model.TierDefault}
	default:
		return nil
	}
	checked := watch.Check(obj.(metav1.Object), watch.Options{NamespaceLabels: true, Policy: true})
	out.key, out.problems = checked.Key, checked.Problems
	if fields != nil {
		out.apiVersion, out.tier = own, cmp.Or(fields.Tier, model.TierDefault)
		for i, r := range fields.Ingress {
			if r.HTTP != nil {
				out.problems = append(out.problems, model.Problem{Object: out.key, Field: fmt.Sprintf(".spec.ingress[%d].http", i), Ignored: true,
					Message: "is not supported: the rule denies what the rest of it matches"})
			}
		}
	}
	out.ObjectMeta = bare(&out.ObjectMeta)
	return &out
}

// standingOf says what is wrong with an object among the others; tier reports whether a tier
// is there and valid.
func standingOf(o *examined, tier func(string) bool) []model.Problem {
	if o.tier == "" || tier(o.tier) || slices.ContainsFunc(o.problems, disables) {
		return o.problems
	}
	return append(slices.Clone(o.problems), model.Problem{
		Object: o.key, Field: ".spec.tier", Message: fmt.Sprintf("is %s, which is not there or not valid; must be the name of a Tier", o.tier),
	})
}

func disables(p model.Problem) bool { return !p.Ignored }

// builtin are the tiers that are there without an object.
var builtin = []string{model.TierAdmin, model.TierDefault, model.TierBaseline}

// texts are the problems that disable an object, or those that do not, as a note of an event.
func texts(of []model.Problem, disabling bool) string {
	var out []string
	for _, p := range of {
		if disables(p) == disabling {
			out = append(out, strings.TrimPrefix(p.Field+": "+p.Message, ": "))
		}
	}
	return strings.Join(out, "; ")
}

// readiness is the condition of an object with these problems.
func readiness(of []model.Problem, generation int64) metav1.Condition {
	c := metav1.Condition{Type: conditionReady, Status: metav1.ConditionTrue, Reason: reasonActive, ObservedGeneration: generation}
	switch wrong, ignored := texts(of, true), texts(of, false); {
	case wrong != "":
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reasonNotInForce, wrong+". "+lastValidStays
	case ignored != "":
		c.Reason, c.Message = reasonNotActedOn, "Not acted on: "+ignored
	}
	return c
}

// trouble is how many objects of one kind have problems.
type trouble struct{ disabled, ignored int }

func troubles(found map[string][]model.Problem) map[string]trouble {
	out := map[string]trouble{}
	for _, of := range found {
		t := out[of[0].Object.Kind]
		if slices.ContainsFunc(of, disables) {
			t.disabled++
		} else {
			t.ignored++
		}
		out[of[0].Object.Kind] = t
	}
	return out
}
