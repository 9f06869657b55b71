package controller_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// warns waits for an event about an object that says all of the words.
func (c *cluster) warns(namespace, kind, name, reason string, words ...string) {
	c.Helper()
	c.until(func() error {
		list, err := c.Core.EventsV1().Events(namespace).List(c.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
	events:
		for _, e := range list.Items {
			if e.Regarding.Kind != kind || e.Regarding.Name != name || e.Reason != reason || e.Type != "Warning" {
				continue
			}
			for _, w := range words {
				if !strings.Contains(e.Note, w) {
					continue events
				}
			}
			return nil
		}
		return fmt.Errorf("no event %s about %s %s says %q: %d events", reason, kind, name, words, len(list.Items))
	})
}

// TestPolicyProblems: what no schema refuses is said once, by an event about the object, and by a
// condition where the kind has one; when it is mended, the condition says so.
func TestPolicyProblems(t *testing.T) {
	c := newCluster(t)
	global := kubeapi.NewResource[v3.GlobalNetworkPolicy, v3.GlobalNetworkPolicyList](c.V3, "globalnetworkpolicies", "")
	defer func() { c.must(c.V3.Delete().Resource("globalnetworkpolicies").Do(c.ctx).Error()) }()
	c.replica()
	policy := func(name, tier, selector string) *v3.GlobalNetworkPolicy {
		p := &v3.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.Spec.Tier, p.Spec.Selector, p.Spec.Types = tier, selector, []v3.PolicyType{v3.PolicyTypeIngress}
		return p
	}
	for _, p := range []*v3.GlobalNetworkPolicy{policy("lost", "nosuch", "all()"), policy("broken", "default", "app == 'web"), policy("good", "default", "all()")} {
		_, err := global.Create(c.ctx, p, metav1.CreateOptions{})
		c.must(err)
	}
	_, err := c.Core.NetworkingV1().NetworkPolicies(c.namespace).Create(c.ctx, &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "fine"}, Spec: networkingv1.NetworkPolicySpec{},
	}, metav1.CreateOptions{})
	c.must(err)
	c.warns("default", "GlobalNetworkPolicy", "lost", "NotInForce", ".spec.tier: is nosuch, which is not there")
	c.warns("default", "GlobalNetworkPolicy", "broken", "NotInForce", ".spec.selector: ", "column")

	tier := func(name string, want metav1.ConditionStatus, reason string) {
		t.Helper()
		c.until(func() error {
			x, err := c.tiers.Get(c.ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if x.Status == nil {
				return fmt.Errorf("Tier %s has no status", name)
			}
			ready := meta.FindStatusCondition(x.Status.Conditions, "Ready")
			if ready == nil || ready.Status != want || ready.Reason != reason || ready.ObservedGeneration != x.Generation {
				return fmt.Errorf("Tier %s: condition %+v, want %s %s", name, ready, want, reason)
			}
			return nil
		})
	}
	tier("default", metav1.ConditionTrue, "Active")
	_, err = c.tiers.Create(c.ctx, &v3.Tier{ObjectMeta: metav1.ObjectMeta{Name: "nosuch"}}, metav1.CreateOptions{})
	c.must(err)
	tier("nosuch", metav1.ConditionTrue, "Active")
	for _, name := range []string{"good", "fine"} {
		for _, namespace := range []string{"default", c.namespace} {
			events, err := c.Core.EventsV1().Events(namespace).List(c.ctx, metav1.ListOptions{FieldSelector: "regarding.name=" + name})
			c.must(err)
			if len(events.Items) > 0 {
				t.Errorf("what is right is complained of: %+v", events.Items)
			}
		}
	}
}

// TestClusterNetworkPolicy: the CRD may come late, and its conditions are written.
func TestClusterNetworkPolicy(t *testing.T) {
	c := newCluster(t)
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	c.must(err)
	c.must(apiserver.Apply(c.ctx, server.Config, filepath.Join(strings.TrimSpace(string(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml")))
	const path = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
	create := func(text string) {
		t.Helper()
		c.until(func() error { // the API server may not serve the kind yet
			err := c.V3.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body([]byte(text)).Do(c.ctx).Error()
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	defer func() { c.must(c.V3.Delete().AbsPath(path).Do(c.ctx).Error()) }()
	form := `{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy","metadata":{"name":%q},"spec":{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"egress":[{"action":"Accept","to":[%s]}]}}`
	create(fmt.Sprintf(form, "good", `{"namespaces":{}}`))
	create(fmt.Sprintf(form, "names", `{"domainNames":["example.org."]}`))
	c.replica()
	for name, reason := range map[string]string{"good": "Active", "names": "PartlyActedOn"} {
		c.until(func() error {
			raw, err := c.V3.Get().AbsPath(path, name).DoRaw(c.ctx)
			if err != nil {
				return err
			}
			var p cnpv1alpha2.ClusterNetworkPolicy
			if err := json.Unmarshal(raw, &p); err != nil {
				return err
			}
			if ready := meta.FindStatusCondition(p.Status.Conditions, "Ready"); ready == nil || ready.Status != metav1.ConditionTrue || ready.Reason != reason {
				return fmt.Errorf("%s: conditions %+v", name, p.Status.Conditions)
			}
			return nil
		})
	}
	c.warns("default", "ClusterNetworkPolicy", "names", "NotActedOn", "domainNames: is not supported")
}
