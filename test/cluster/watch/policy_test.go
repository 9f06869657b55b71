package watch_test

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
	"github.com/causeway-net/causeway/internal/watch/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// enforcing is a source whose policy goes to the engine, as in an agent.
type enforcing struct {
	*running
	mu        sync.Mutex
	engine    *policy.Engine
	program   *policy.Program
	endpoints map[string]bool
	removed   int // changes that take something away
	whole     bool
	pending   [][]string
}

// counting counts what is taken away, and passes everything on.
type counting struct {
	*policy.Engine
	e *enforcing
}

func (c counting) RemovePolicy(id model.PolicyID) {
	c.e.removed++
	c.Engine.RemovePolicy(id)
}

func (c counting) SetEndpoint(ep model.PolicyEndpoint) error {
	c.e.endpoints[fmt.Sprintf("%s %s %v", ep.ID, ep.Interface, ep.Addresses)] = true
	return c.Engine.SetEndpoint(ep)
}

func (c counting) RemoveEndpoint(id model.PolicyEndpointID) {
	c.e.removed++
	for s := range c.e.endpoints {
		if strings.HasPrefix(s, id.String()+" ") {
			delete(c.e.endpoints, s)
		}
	}
	c.Engine.RemoveEndpoint(id)
}

func enforce(t *testing.T, cfg *rest.Config) *enforcing {
	t.Helper()
	e := &enforcing{engine: policy.New(policy.Config{}), program: policy.NewProgram(), endpoints: map[string]bool{}}
	e.mu.Lock() // until running is set
	e.running = start(t, cfg, func(c *kube.Config) {
		c.Policy = func(u *watch.PolicyUpdate) {
			e.mu.Lock()
			defer e.mu.Unlock()
			u.Apply(counting{e.engine, e})
			if err := e.program.Apply(e.engine.Flush()); err != nil {
				t.Error(err)
			}
			e.pending = append(e.pending, u.Pending)
			e.whole = e.Needs(e.engine.NeedsRemotePods(), e.engine.NeedsService) && len(u.Pending) == 0
		}
	})
	e.mu.Unlock()
	return e
}

// see waits until ok, which is called with the state locked.
func (e *enforcing) see(what string, ok func() bool) {
	e.t.Helper()
	eventually(e.t, what, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return ok()
	}, func() string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return fmt.Sprintf("pending %v, endpoints %v, problems %v", e.pending, e.endpoints, e.engine.Problems())
	})
}

func (e *enforcing) applies(kind model.PolicyKind, namespace, name string) int {
	return e.engine.Applies(model.PolicyID{Kind: kind, Namespace: namespace, Name: name})
}

// members are those of all sets that a selector, a Service or networks make.
func (e *enforcing) members() []string {
	var out []string
	for _, set := range e.program.Sets {
		for m := range set {
			s := m.Prefix.String()
			if m.Port != 0 {
				s += fmt.Sprintf(":%d", m.Port)
			}
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (e *enforcing) attach(name, iface, addr string) {
	e.t.Helper()
	pod, err := clients(e.t, server.Config).Core.CoreV1().Pods("prod").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		e.t.Fatal(err)
	}
	e.Policies().Attach(model.Endpoint{
		Key: model.AttachmentKey{ContainerID: "c-" + name, IfName: "eth0"}, Namespace: "prod", Pod: name, PodUID: string(pod.UID),
		HostInterface: iface, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
	})
}

// podAt makes a pod of a node; its kubelet, if addr is not empty, gave it that address.
func podAt(t *testing.T, name, node, addr string) {
	t.Helper()
	apply(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: prod, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: i, ports: [{name: web, containerPort: 80}]}]}", name, name, node))
	if addr != "" {
		if err := patchPodStatus(t, "prod", name, fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}]}}`, addr, addr)); err != nil {
			t.Fatal(err)
		}
	}
}

var policyResources = []schema.GroupVersionResource{
	{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}, {Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
}

// clean leaves nothing of policy in the API server, before and after a test.
func clean(t *testing.T) {
	t.Helper()
	wipe := func() {
		c := clients(t, server.Config).Metadata
		resources := slices.Clone(policyResources)
		for _, r := range []string{"tiers", "networkpolicies", "globalnetworkpolicies", "stagednetworkpolicies", "stagedglobalnetworkpolicies", "stagedkubernetesnetworkpolicies",
			"networksets", "globalnetworksets", "hostendpoints", "kubecontrollersconfigurations"} {
			resources = append(resources, v3.SchemeGroupVersion.WithResource(r))
		}
		for _, r := range resources {
			list, err := c.Resource(r).List(context.Background(), metav1.ListOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			} else if err != nil {
				continue
			}
			for _, o := range list.Items {
				if r.Resource == "endpointslices" && o.Namespace != "prod" {
					continue
				}
				if err := c.Resource(r).Namespace(o.Namespace).Delete(context.Background(), o.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
					t.Fatal(err)
				}
			}
		}
	}
	installed(t)
	wipe()
	t.Cleanup(wipe)
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, labels: {env: prod}}")
	apply(t, nodeObject("n1", "10.0.0.1")+nodeObject("n2", "10.0.0.2"))
}

// TestPolicy has objects of every kind arrive at the engine, change and go.
func TestPolicy(t *testing.T) {
	clean(t)
	podAt(t, "db", "n1", "")
	podAt(t, "web", "n2", "10.244.9.1")
	apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: prod}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 10}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.sets}
spec: {tier: security, selector: app == 'db', types: [Ingress], ingress: [{action: Deny, source: {selector: bad == 'yes'}}, {action: Pass}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {bad: "yes"}}
spec: {nets: [192.0.2.0/24]}
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: staged, namespace: prod}
spec: {selector: app == 'db', ingress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: host, labels: {host: "yes"}}
spec: {node: n1, expectedIPs: [10.0.0.1]}
`)
	e := enforce(t, server.Config)
	e.Policies().SetInterfaces(map[string][]netip.Addr{"eth0": {netip.MustParseAddr("10.0.0.1")}})
	e.see("everything", func() bool { return e.whole })
	e.attach("db", "calidb", "10.244.0.1")
	e.see("the policies at the pod", func() bool {
		return e.applies(model.PolicyKubernetes, "prod", "deny") == 1 && e.applies(model.PolicyGlobal, "", "security.sets") == 1 && e.applies(model.PolicyStagedNamespaced, "prod", "staged") == 1
	})
	e.see("the network set and the host", func() bool {
		return slices.Equal(e.members(), []string{"192.0.2.0/24"}) && e.program.Endpoints["eth0"].ID.Name == "host"
	})
	// The rule's selector could select pods, so those of other nodes are watched.
	e.see("pods of other nodes", func() bool { return e.whole && e.endpoints["Pod prod/web  [10.244.9.1]"] })
	if w, ok := e.watching("pods of other nodes"); !ok || w.Objects != 1 {
		t.Errorf("%+v, %v", w, ok)
	}

	apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: prod}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: services, namespace: prod}
spec: {selector: app == 'db', egress: [{action: Allow, protocol: TCP, destination: {services: {name: api}}}, {action: Allow, destination: {serviceAccounts: {selector: role == 'x'}}}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: prod, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.9.7]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: prod, labels: {role: x}}
`)
	e.see("a remote pod, a Service and a service account", func() bool {
		return e.whole && slices.Contains(e.members(), "10.244.9.1/32") && slices.Contains(e.members(), "10.244.9.7/32:8080")
	})
	podAt(t, "late", "n2", "10.244.9.2")
	if _, err := clients(t, server.Config).Core.CoreV1().Pods("prod").Patch(t.Context(), "late", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"web"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	e.see("a pod that comes to have the label", func() bool { return slices.Contains(e.members(), "10.244.9.2/32") })
	remove(t, "v1/pods", "prod", "late")
	e.see("it is gone", func() bool { return !slices.Contains(e.members(), "10.244.9.2/32") })

	// A newer version that is broken leaves the last valid one in force, and is reported.
	patch := func(resource schema.GroupVersionResource, namespace, name, data string) {
		t.Helper()
		if _, err := clients(t, server.Config).Metadata.Resource(resource).Namespace(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(data), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	gnp := v3.SchemeGroupVersion.WithResource("globalnetworkpolicies")
	patch(gnp, "", "security.sets", `{"spec":{"selector":"app = 'db'"}}`)
	e.await("the broken selector", func(s *model.Snapshot) bool {
		return hasProblem(s, `GlobalNetworkPolicy security.sets: .spec.selector: selector "app = 'db'": column 5`) && hasProblem(s, "its last valid version stays in force")
	})
	e.see("the last valid version", func() bool { return e.applies(model.PolicyGlobal, "", "security.sets") == 1 })
	patch(gnp, "", "security.sets", `{"spec":{"selector":"app == 'other'"}}`)
	e.see("the next valid one", func() bool { return e.applies(model.PolicyGlobal, "", "security.sets") == 0 })
	e.await("no problem", func(s *model.Snapshot) bool { return !hasProblem(s, "security.sets") })

	// Problems and policies come and go without a snapshot that says the same.
	count := e.published()
	patch(policyResources[0], "prod", "deny", `{"spec":{"podSelector":{"matchLabels":{"app":"none"}}}}`)
	e.see("a changed selector", func() bool { return e.applies(model.PolicyKubernetes, "prod", "deny") == 0 })
	if n := e.published(); n != count {
		t.Errorf("%d snapshots for a policy", n-count)
	}

	// The agent hears of hosts that Calico makes by itself.
	apply(t, "apiVersion: projectcalico.org/v3\nkind: KubeControllersConfiguration\nmetadata: {name: default}\nspec: {controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}")
	e.see("automatic host endpoints", func() bool {
		return e.endpoints["HostEndpoint n1-auto-hep * [10.0.0.1]"] && e.endpoints["HostEndpoint n2-auto-hep  [10.0.0.2]"]
	})

	for _, r := range [][2]string{{"networkpolicies", "services"}, {"stagednetworkpolicies", "staged"}} {
		remove(t, r[0], "prod", r[1])
	}
	e.see("no Service is watched", func() bool { _, ok := e.watching("endpointslices of prod/api"); return !ok })
	e.see("nor service accounts", func() bool { _, ok := e.watching("serviceaccounts"); return !ok })
	for _, r := range [][2]string{{"hostendpoints", "host"}, {"globalnetworksets", "bad"}, {"globalnetworkpolicies", "security.sets"}, {"tiers", "security"}} {
		remove(t, r[0], "", r[1])
	}
	e.see("the host endpoint gone", func() bool { return !e.endpoints["HostEndpoint host eth0 [10.0.0.1]"] })
	remove(t, "v1/pods", "prod", "db")
	e.Policies().Detach(model.AttachmentKey{ContainerID: "c-db", IfName: "eth0"})
	e.see("the pod gone", func() bool {
		return !slices.ContainsFunc(slices.Collect(keys(e.endpoints)), func(s string) bool { return strings.HasPrefix(s, "Pod prod/db") })
	})
}

func keys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestPolicyOutage: a server that is away takes no policy, pod or set away, and one that comes
// back without an object takes away that alone.
func TestPolicyOutage(t *testing.T) {
	clean(t)
	podAt(t, "db", "n1", "")
	podAt(t, "web", "n2", "10.244.9.1")
	const policies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %s, namespace: prod}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}
`
	apply(t, fmt.Sprintf(policies, "stays"))
	apply(t, fmt.Sprintf(policies, "goes"))
	p := newProxy(t)
	e := enforce(t, p.cfg)
	e.attach("db", "calidb", "10.244.0.1")
	e.see("all", func() bool {
		return e.whole && e.applies(model.PolicyKubernetes, "prod", "goes") == 1 && slices.Contains(e.members(), "10.244.9.1/32")
	})
	e.mu.Lock()
	e.removed = 0
	e.mu.Unlock()
	p.setCut(true)
	eventually(t, "the outage", func() bool { return !e.Status().Answering }, e.logged)
	if err := clients(t, server.Config).Core.NetworkingV1().NetworkPolicies("prod").Delete(t.Context(), "goes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	if e.removed != 0 || e.applies(model.PolicyKubernetes, "prod", "goes") != 1 {
		t.Errorf("%d things were removed during the outage", e.removed)
	}
	e.mu.Unlock()
	// One that starts now knows that it knows nothing.
	fresh := enforce(t, p.cfg)
	fresh.see("what is pending", func() bool {
		n := len(fresh.pending)
		return n > 0 && slices.Contains(fresh.pending[n-1], "networkpolicies.networking.k8s.io") && slices.Contains(fresh.pending[n-1], "namespaces")
	})
	p.setCut(false)
	fresh.see("all, once the server is back", func() bool { return fresh.whole })
	e.see("the one that is gone", func() bool { return e.applies(model.PolicyKubernetes, "prod", "goes") == 0 })
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed != 1 || e.applies(model.PolicyKubernetes, "prod", "stays") != 1 || !slices.Contains(e.members(), "10.244.9.1/32") {
		t.Errorf("%d things were removed, members %v", e.removed, e.members())
	}
}

// TestClusterNetworkPolicy: that the CustomResourceDefinition is not there is no problem, and
// when it comes its objects do.
func TestClusterNetworkPolicy(t *testing.T) {
	clean(t)
	podAt(t, "db", "n1", "")
	e := enforce(t, server.Config)
	e.attach("db", "calidb", "10.244.0.1")
	e.see("all but the kind that is not there", func() bool { return e.whole })
	s := e.await("a snapshot", func(s *model.Snapshot) bool { return true })
	if hasProblem(s, "clusternetworkpolicies") {
		t.Errorf("problems %v", s.Problems)
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := apiserver.Apply(t.Context(), server.Config, filepath.Join(strings.TrimSpace(string(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		clients(t, server.Config).Metadata.Resource(crdResource).Delete(context.Background(), "clusternetworkpolicies.policy.networking.k8s.io", metav1.DeleteOptions{})
	})
	apply(t, `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: nodes}
spec: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {env: prod}}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {rack: r1}}}]}]}
`)
	e.see("the policy, and the nodes' addresses", func() bool {
		return e.applies(model.PolicyCluster, "", "nodes") == 1 && slices.Equal(e.members(), []string{"10.0.0.1/32", "10.0.0.2/32"})
	})
}

// TestNoPolicy: without Config.Policy nothing of it is watched.
func TestNoPolicy(t *testing.T) {
	clean(t)
	r := start(t, server.Config)
	r.await("the first snapshot", func(*model.Snapshot) bool { return true })
	if r.Policies() != nil {
		t.Error("there are Policies")
	}
	for _, w := range r.Status().Watches {
		if strings.Contains(w.Name, "polic") || w.Name == "tiers.projectcalico.org" {
			t.Errorf("%s is watched", w.Name)
		}
	}
}
