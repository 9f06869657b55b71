package suite

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
)

// flowPort is the Service's port of flows, and that of the pod.
const flowPort = 9000

// policyFlows are connections that a policy may cut.
type policyFlows []*probe.Flow

// goOn waits until both ends of each have heard 20 numbers more.
func (fs policyFlows) goOn(t *testing.T, within time.Duration) {
	t.Helper()
	var since [][2]int64
	for _, fl := range fs {
		since = append(since, fl.Heard())
	}
	for i, fl := range fs {
		eventually(t, within, func() error {
			if err := fl.GoesOn(since[i], 20); err != nil {
				return fmt.Errorf("%s: %w", fl, err)
			}
			return nil
		})
	}
}

func (fs policyFlows) lost() (sum int64) {
	for _, fl := range fs {
		sum += fl.Lost()
	}
	return sum
}

// open makes flows of both protocols and families from a pod to another, directly and through
// the Service that stands before it.
func openFlows(t *testing.T, from, to *cluster.Pod, service *corev1.Service) (out policyFlows) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		for _, v6 := range []bool{false, true} {
			for _, dial := range append([]netip.AddrPort{{}}, clusterIPs(service, v6)...) {
				cfg := probe.FlowConfig{Network: network, From: from, To: to, Listen: netip.AddrPortFrom(to.Addr(v6), 0), Dial: dial}
				if dial.IsValid() {
					cfg.Listen = netip.AddrPortFrom(to.Addr(v6), flowPort)
				}
				var fl *probe.Flow
				eventually(t, 30*time.Second, func() (err error) { // until kube-proxy has the Service
					fl, err = probe.OpenFlow(cfg)
					return err
				})
				t.Cleanup(fl.Close)
				policyFlows{fl}.goOn(t, 10*time.Second)
				out = append(out, fl)
			}
		}
	}
	return out
}

func clusterIPs(s *corev1.Service, v6 bool) (out []netip.AddrPort) {
	for _, ip := range s.Spec.ClusterIPs {
		if a := netip.MustParseAddr(ip); a.Is6() == v6 {
			out = append(out, netip.AddrPortFrom(a, flowPort))
		}
	}
	return out
}

// TestPolicyCutsFlows denies and allows what flows between pods directly and through a
// Service: what is forbidden ends within a second at both ends, and goes on where it was when it
// is allowed; others take no notice.
func TestPolicyCutsFlows(t *testing.T) {
	ns := namespace(t)
	web := onNode(t, daemonSet(t, ns, "web"), "node1")
	clients := daemonSet(t, ns, "client")
	kubectl(t, "-n", ns, "label", "pod", web.Name, "flows=here")
	apply(t, `apiVersion: v1
kind: Service
metadata: {name: flows, namespace: %[1]s}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {flows: here}
  ports: [{name: tcp, port: %[2]d, protocol: TCP}, {name: udp, port: %[2]d, protocol: UDP}]
`, ns, flowPort)
	service, err := client.CoreV1().Services(ns).Get(t.Context(), "flows", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A flow through the Service has the pod's port for itself: one client after the other would
	// find it taken, so each uses it for one protocol and family at a time.
	bad, good := onNode(t, clients, "node3"), onNode(t, clients, "node2")
	kubectl(t, "-n", ns, "label", "pod", bad.Name, "role=bad")
	forbidden := openFlows(t, bad, web, service)
	others := append(openFlows(t, good, web, &corev1.Service{}), openFlows(t, web, bad, &corev1.Service{})...)

	for _, p := range []struct{ what, text string }{
		{"a deny of ingress", fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: cut, namespace: %s}
spec: {selector: flows == 'here', types: [Ingress], ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Allow}]}
`, ns)},
		{"a deny of egress", fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: cut, namespace: %s}
spec: {selector: role == 'bad', types: [Egress], egress: [{action: Deny, destination: {selector: flows == 'here'}}, {action: Allow}]}
`, ns)},
	} {
		lost := others.lost()
		door := doorOf(t, web)
		knock := door.knockOf(t, bad)
		knock.let(t, changeWithin, time.Now())
		began := time.Now()
		apply(t, "%s", p.text)
		inForce := began.Add(knock.kept(t, changeWithin, began))
		eventually(t, time.Minute, func() error {
			if time.Since(inForce) < 1500*time.Millisecond {
				return fmt.Errorf("flows are watched")
			}
			return nil
		})
		others.goOn(t, 10*time.Second)
		var last time.Duration
		for _, fl := range forbidden {
			after := fl.HeardLast().Sub(inForce)
			if last = max(last, after); after > time.Second {
				t.Errorf("%s: %s goes on %s after it was in force", p.what, fl, after.Round(time.Millisecond))
			}
		}
		t.Logf("%s: in force after %s, the last of %d flows that it forbids cut %s later", p.what, inForce.Sub(began).Round(time.Millisecond), len(forbidden), last.Round(time.Millisecond))
		if n := others.lost() - lost; n > 0 {
			t.Errorf("%s: %d packets were lost of flows that nothing forbids", p.what, n)
		}
		kubectl(t, "-n", ns, "delete", "networkpolicies.projectcalico.org", "cut")
		append(forbidden, others...).goOn(t, 30*time.Second)
	}
}

// installClusterPolicies installs the CRD of ClusterNetworkPolicy, from the module that Causeway is
// built with. It stays: agents that run know it from now on.
func installClusterPolicies(t *testing.T) {
	t.Helper()
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api")
	list.Dir = root
	dir, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	kubectl(t, "apply", "--server-side", "-f", filepath.Join(strings.TrimSpace(string(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	kubectl(t, "wait", "--for=condition=Established", "--timeout=30s", "crd/clusternetworkpolicies.policy.networking.k8s.io")
}

// TestPolicyCluster has a ClusterNetworkPolicy of tier Admin forbid what a NetworkPolicy allows.
func TestPolicyCluster(t *testing.T) {
	installClusterPolicies(t)
	ns := namespace(t)
	all := daemonSet(t, ns, "web")
	web := doorOf(t, onNode(t, all, "node1"))
	friend, enemy := web.knockOf(t, onNode(t, all, "node2")), web.knockOf(t, onNode(t, all, "node3"))
	kubectl(t, "-n", ns, "label", "pod", strings.Split(enemy.who, "@")[0], "role=enemy")
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: %s}
spec: {podSelector: {}, ingress: [{}]}
`, ns)
	for _, k := range []*knocks{friend, enemy} {
		k.let(t, changeWithin, time.Now())
	}
	at := time.Now()
	apply(t, `apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: %[1]s}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}}
  ingress:
  - {name: no-enemies, action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: enemy}}}}]}
`, ns)
	t.Cleanup(func() {
		kubectlAfter(t, "delete", "clusternetworkpolicies.policy.networking.k8s.io", ns, "--ignore-not-found")
	})
	// Agents that found no such kind look again every now and then.
	t.Logf("an Admin policy keeps it out %s after it was made", enemy.kept(t, 3*time.Minute, at).Round(time.Millisecond))
	friend.let(t, changeWithin, time.Now())
	kubectl(t, "delete", "clusternetworkpolicies.policy.networking.k8s.io", ns)
	enemy.let(t, changeWithin, time.Now())
}
