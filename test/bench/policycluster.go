package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// The cluster that policy is measured in: 100 tenants with ten policies each, and pods that
// are spread over them evenly, those of node w1 too.
const (
	tenants       = 100 // the last one is namespace bench, whose pods the worker attaches
	perTenant     = 10  // policies
	localPods     = 109 // on w1, where the target of the probes is the 110th
	podsPerNode   = 110 // of the nodes that are objects only
	probeSpace    = "probe"
	trafficSpace  = "traffic"
	freeSpace     = "free" // a namespace that no policy looks at
	outsideSource = "192.168.1.1"
)

// tenantApps are the kinds of pods in a tenant.
var tenantApps = []string{"web", "api", "db", "cache", "worker"}

func tenantName(i int) string {
	if i == tenants-1 {
		return "bench"
	}
	return fmt.Sprintf("tenant-%02d", i)
}

// tenantPod is the k-th pod of the cluster; the first localPods are on w1.
type tenantPod struct{ k int }

func (p tenantPod) namespace() string { return tenantName(p.k % (tenants - 1)) }
func (p tenantPod) name() string      { return fmt.Sprintf("deployment-5d4f8c7b9-%05d", p.k) }
func (p tenantPod) app() string       { return tenantApps[(p.k+p.k/(tenants-1))%len(tenantApps)] }

func (p tenantPod) node() string {
	if p.k < localPods {
		return "w1"
	}
	return otherNode(p.k / podsPerNode)
}

func otherNode(i int) string { return fmt.Sprintf("other-%03d", i) }

// address is that of a pod of another node.
func (p tenantPod) address() netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|128<<16+uint32(p.k)+1)
	return netip.AddrFrom4(b)
}

func (p tenantPod) object() *corev1.Pod {
	o := newPodObject(p.namespace(), p.name(), p.node(), map[string]string{
		"app": p.app(), "tier": []string{"front", "back", "data"}[p.k%3], "version": fmt.Sprintf("v%d", p.k%7), "pod-template-hash": "5d4f8c7b9",
	})
	return o
}

// newPodObject is a pod with the named ports that policies use.
func newPodObject(namespace, name, node string, labels map[string]string) *corev1.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
	o.Spec.NodeName = node
	o.Spec.Containers = []corev1.Container{{Name: "c", Image: "registry.example.org/team/image:v1.2.3", Ports: []corev1.ContainerPort{
		{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}, {Name: "metrics", ContainerPort: 9090, Protocol: corev1.ProtocolTCP},
		{Name: "sql", ContainerPort: 5432, Protocol: corev1.ProtocolTCP},
	}}}
	return o
}

// tenantPolicies are the nine policies of Kubernetes of a tenant; TEAM is another tenant's
// team. Those of other teams, of ipBlocks and of ports by name are what real clusters have.
const tenantPolicies = `
{metadata: {name: default-deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}
---
{metadata: {name: web-from-namespace}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}}
---
{metadata: {name: web-from-team}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [
  {from: [{namespaceSelector: {matchLabels: {team: TEAM}}, podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080, protocol: TCP}, {port: 8443, protocol: TCP}]}]}}
---
{metadata: {name: db-from-api}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [
  {from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: sql}]},
  {from: [{ipBlock: {cidr: 10.200.0.0/16, except: [10.200.7.0/24, 10.200.9.0/24]}}], ports: [{port: 5432, protocol: TCP}]}]}}
---
{metadata: {name: egress-dns}, spec: {podSelector: {matchLabels: {app: worker}}, policyTypes: [Egress], egress: [
  {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]}}
---
{metadata: {name: egress-sql}, spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [api, worker]}]}, policyTypes: [Egress], egress: [
  {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: sql}]}]}}
---
{metadata: {name: tiers}, spec: {podSelector: {matchExpressions: [{key: tier, operator: In, values: [back, data]}]}, ingress: [
  {from: [{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [data]}, {key: version, operator: Exists}]}}], ports: [{port: 6000, endPort: 6010, protocol: TCP}]}]}}
---
{metadata: {name: from-outside}, spec: {podSelector: {}, ingress: [
  {from: [{ipBlock: {cidr: 192.168.0.0/16, except: [192.168.77.0/24]}}], ports: [{port: 30000, endPort: 32767, protocol: UDP}, {port: 30000, endPort: 32767, protocol: TCP}]},
  {from: [{ipBlock: {cidr: 10.62.0.0/15}}], ports: [{port: 5201, protocol: TCP}, {port: 5300, endPort: 5400, protocol: TCP}]}]}}
---
{metadata: {name: monitoring}, spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {monitoring: "yes"}}}], ports: [{port: metrics}]}]}}
`

// tenantCalicoPolicy is the tenth.
const tenantCalicoPolicy = `
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: cache-clients, namespace: NAMESPACE}
spec:
  order: 500
  selector: app == "cache" && tier != "front"
  types: [Ingress]
  ingress:
  - {action: Deny, source: {nets: [10.200.7.0/24], selector: "", notNets: [10.200.7.128/25]}}
  - {action: Allow, protocol: TCP, source: {selector: 'app in {"web", "api"} && has(version)', namespaceSelector: 'team == "TEAM"'}, destination: {ports: [6379, "7000:7003"]}}
`

// parsePolicies reads documents of networking.k8s.io/v1 without kind.
func parsePolicies(namespace, text string) ([]*networkingv1.NetworkPolicy, error) {
	var out []*networkingv1.NetworkPolicy
	for doc := range strings.SplitSeq(text, "\n---\n") {
		p := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(doc), p); err != nil {
			return nil, fmt.Errorf("policy %q: %w", doc, err)
		}
		p.Namespace = namespace
		out = append(out, p)
	}
	return out, nil
}

// policyCluster is the API server's content.
type policyCluster struct {
	api   *api
	pods  int // of tenants, so far
	nodes map[string]bool
}

// abreast calls f for 0 to n-1, several at once.
func abreast(n int, f func(i int) error) error {
	const lanes = 12
	errs := make([]error, lanes)
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for i := lane; i < n && errs[lane] == nil; i += lanes {
				errs[lane] = f(i)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// newPolicyCluster makes namespaces, the nodes that run agents, pools and the CRDs.
func newPolicyCluster(ctx context.Context, a *api) (*policyCluster, error) {
	c := &policyCluster{api: a, nodes: map[string]bool{}}
	if err := apiserver.Apply(ctx, a.config, "deploy/crds"); err != nil {
		return nil, err
	}
	const objects = `
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: w1}, spec: {cidr: 10.62.0.0/16, ipipMode: Never, vxlanMode: Never, natOutgoing: false, nodeSelector: "kubernetes.io/hostname == 'w1'"}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: w2}, spec: {cidr: 10.63.0.0/16, ipipMode: Never, vxlanMode: Never, natOutgoing: false, nodeSelector: "kubernetes.io/hostname == 'w2'"}}
---
{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {asNumber: 64512, nodeToNodeMeshEnabled: false}}
`
	if _, err := apiserver.ApplyYAML(ctx, a.config, []byte(objects)); err != nil {
		return nil, err
	}
	spaces := []*corev1.Namespace{}
	for i := range tenants {
		spaces = append(spaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tenantName(i), Labels: map[string]string{
			"team": team(i), "environment": []string{"production", "staging"}[i%2]}}})
	}
	for _, name := range []string{probeSpace, trafficSpace, freeSpace} {
		spaces = append(spaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	spaces = append(spaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "monitoring", Labels: map[string]string{"monitoring": "yes"}}})
	err := abreast(len(spaces), func(i int) error {
		_, err := a.clients.Core.CoreV1().Namespaces().Create(ctx, spaces[i], metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, name := range []string{"w1", "w2"} {
		if err := c.node(ctx, name, fmt.Sprintf("10.60.%d.2", i+1)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func team(tenant int) string { return fmt.Sprintf("t%d", tenant%10) }

// node makes a Node object as a kubelet does.
func (c *policyCluster) node(ctx context.Context, name, address string) error {
	nodes := c.api.clients.Core.CoreV1().Nodes()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux"}}}
	if _, err := nodes.Create(ctx, n, metav1.CreateOptions{}); err != nil {
		return err
	}
	c.nodes[name] = true
	patch := fmt.Sprintf(`{"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}]}}`, name, address)
	_, err := nodes.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}

// addPolicies makes the policies of all tenants.
func (c *policyCluster) addPolicies(ctx context.Context) error {
	var calico strings.Builder
	for i := range tenants {
		calico.WriteString("---" + strings.NewReplacer("NAMESPACE", tenantName(i), "TEAM", team(i+1)).Replace(tenantCalicoPolicy))
	}
	if _, err := apiserver.ApplyYAML(ctx, c.api.config, []byte(calico.String())); err != nil {
		return err
	}
	return abreast(tenants, func(i int) error {
		return c.create(ctx, tenantName(i), strings.ReplaceAll(tenantPolicies, "TEAM", team(i+1)))
	})
}

// create makes policies of Kubernetes.
func (c *policyCluster) create(ctx context.Context, namespace, text string) error {
	ps, err := parsePolicies(namespace, text)
	if err != nil {
		return err
	}
	for _, p := range ps {
		if _, err := c.api.clients.Core.NetworkingV1().NetworkPolicies(namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// grow makes pods of tenants until there are so many. Those of other nodes have an address
// at once; the local ones get theirs from CNI.
func (c *policyCluster) grow(ctx context.Context, pods int) error {
	for k := c.pods; k < pods; k += podsPerNode {
		if name := (tenantPod{k}).node(); k >= localPods && !c.nodes[name] {
			i := k / podsPerNode
			if err := c.node(ctx, name, fmt.Sprintf("10.61.%d.%d", i/250, i%250+1)); err != nil {
				return err
			}
		}
	}
	first := c.pods
	err := abreast(pods-first, func(i int) error {
		p := tenantPod{first + i}
		return retry(ctx, func() error {
			o := p.object()
			if p.k >= localPods {
				return c.place(ctx, o, p.address())
			}
			_, err := c.api.clients.Core.CoreV1().Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
			return err
		})
	})
	c.pods = pods
	return err
}

// place makes a pod and its kubelet's first status.
func (c *policyCluster) place(ctx context.Context, o *corev1.Pod, address netip.Addr) error {
	pods := c.api.clients.Core.CoreV1().Pods(o.Namespace)
	made, err := pods.Create(ctx, o, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // made before its status could be written
		made, err = pods.Get(ctx, o.Name, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	return c.report(ctx, made, address)
}

// report writes the status of a pod that runs.
func (c *policyCluster) report(ctx context.Context, o *corev1.Pod, address netip.Addr) error {
	o.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: address.String(), PodIPs: []corev1.PodIP{{IP: address.String()}}, HostIP: "10.61.0.1",
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}},
	}
	_, err := c.api.clients.Core.CoreV1().Pods(o.Namespace).UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// relabel sets labels of a pod; nil takes one away.
func (c *policyCluster) relabel(ctx context.Context, namespace, name string, labels map[string]*string) error {
	patch, err := yaml.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err == nil {
		patch, err = yaml.YAMLToJSON(patch)
	}
	if err != nil {
		return err
	}
	_, err = c.api.clients.Core.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
