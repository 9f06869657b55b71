// Package admission_test steals an agent's token and tries what a thief would, against a
// real API server with the rights and admission policies of deploy/.
package admission_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var config *rest.Config

func TestMain(m *testing.M) { apiserver.Main(m, func(c *rest.Config) { config = c }) }

// The cluster of the tests: the token is node1's; the thief wants node2's.
const (
	own, other = "node1", "node2"
	longName   = "a-node-whose-name-has-more-than-sixty-three-characters.rack-1.example.net"
)

type blockClient = kubeapi.Resource[*v3.IPAMBlock, *v3.IPAMBlockList]

type cluster struct {
	admin, agent *kubeapi.Clients
	blocks       blockClient // with the agent's token
	adminBlocks  blockClient
}

func newBlocks(c *kubeapi.Clients) blockClient {
	return kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](c.V3, "ipamblocks", "")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setUp applies CRDs, rights and policies once, and makes the nodes.
func setUp(t *testing.T) *cluster {
	t.Helper()
	ctx := t.Context()
	deploy := filepath.Join("..", "..", "..", "deploy")
	must(t, apiserver.Apply(ctx, config,
		filepath.Join(deploy, "crds", "projectcalico.org_ipamblocks.yaml"),
		filepath.Join(deploy, "kustomize", "base", "causeway.yaml"),
		filepath.Join(deploy, "policies", "node-binding.yaml")))
	admin, err := kubeapi.New(config)
	must(t, err)
	for _, name := range []string{own, other, longName} {
		_, err := admin.Core.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": "r1"}, Annotations: map[string]string{"example.net/theirs": "x"}},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "node.kubernetes.io/network-unavailable", Effect: corev1.TaintEffectNoSchedule}}},
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	c := &cluster{admin: admin, adminBlocks: newBlocks(admin)}
	c.agent = agentClients(t, admin, own)
	c.blocks = newBlocks(c.agent)

	// The API server asks new policies after a moment.
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := c.agent.Core.CoreV1().Nodes().Patch(ctx, other, mergePatch, []byte(`{"metadata":{"annotations":{"projectcalico.org/probe":"x"}}}`), metav1.PatchOptions{})
		if err != nil && strings.Contains(err.Error(), "causeway-agent-nodes") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the admission policies are not in force after 30 s: %v", err)
		}
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return c
}

// agentPod makes a pod of the agent bound to a node and returns its name.
func agentPod(t *testing.T, admin *kubeapi.Clients, node string) string {
	t.Helper()
	name := "causeway-agent-" + strings.ReplaceAll(node, ".", "-")
	_, err := admin.Core.CoreV1().Pods("kube-system").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "causeway-agent",
			Containers: []corev1.Container{{Name: "agent", Image: "causeway"}},
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return name
}

// agentClients are clients with the token that kubelet gives to the agent's pod on a node;
// with no node, with one of the ServiceAccount that is bound to nothing.
func agentClients(t *testing.T, admin *kubeapi.Clients, node string) *kubeapi.Clients {
	t.Helper()
	req := &authenticationv1.TokenRequest{}
	if node != "" {
		name := agentPod(t, admin, node)
		pod, err := admin.Core.CoreV1().Pods("kube-system").Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: pod.UID}
	}
	got, err := admin.Core.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "causeway-agent", req, metav1.CreateOptions{})
	must(t, err)
	cfg := rest.AnonymousClientConfig(config)
	cfg.QPS, cfg.Burst = 1000, 2000
	cfg.BearerToken = got.Status.Token
	c, err := kubeapi.New(cfg)
	must(t, err)
	return c
}

// block is a block of node in which holders (ordinal → node) have addresses.
func block(t *testing.T, cidr, node string, holders map[int]string) *v3.IPAMBlock {
	t.Helper()
	b := ipam.NewBlock(netip.MustParsePrefix(cidr), node, time.Unix(1700000000, 0))
	for i, n := range holders {
		hold(b, i, n)
	}
	return manifest.ToV3(b, 1)
}

// hold attributes an address of b to a node as an agent does.
func hold(b *ipam.Block, i int, node string) {
	b.Slots[i] = ipam.Slot{Handle: fmt.Sprintf("k8s-pod-network.%s-%d", node, i), Attrs: map[string]string{ipam.AttrNode: node, ipam.AttrPod: "p", ipam.AttrNamespace: "default"}}
	for at, n := range b.Unallocated {
		if n == i {
			b.Unallocated = append(b.Unallocated[:at:at], b.Unallocated[at+1:]...)
			return
		}
	}
}

// put stores a block in the place of whatever has its name.
func (c *cluster) put(ctx context.Context, t *testing.T, b *v3.IPAMBlock) *v3.IPAMBlock {
	t.Helper()
	if err := c.adminBlocks.Delete(ctx, b.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	out, err := c.adminBlocks.Create(ctx, b, metav1.CreateOptions{})
	must(t, err)
	return out
}

// refused checks that err is a refusal, by one of our policies or by the rules of the CRD,
// which come first, with a text.
func refused(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case err == nil:
		t.Error("it was let through")
	case !strings.Contains(err.Error(), "causeway-agent-") && !apierrors.IsInvalid(err), !strings.Contains(err.Error(), text):
		t.Errorf("got %q, want a refusal by an admission policy or the CRD with %q", err, text)
	}
}
