package suite

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
)

// knockPort is where knocks go to. Nobody listens there: they are seen as they arrive.
const knockPort = 7777

// door is a pod, and everything that arrives at it.
type door struct {
	*cluster.Pod
	tap *probe.Tap
}

func doorOf(t *testing.T, p *cluster.Pod) *door {
	t.Helper()
	tap, err := probe.OpenTap(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tap.Close)
	return &door{p, tap}
}

// kubectlAfter runs kubectl when the test has ended.
func kubectlAfter(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := c.Kubectl(ctx, args...); err != nil {
		t.Error(err)
	}
}

// knocks are datagrams from one place to both addresses of a door, until the test ends.
type knocks struct {
	who  string
	from []netip.Addr
	at   *door
	hail *probe.Hail
}

func (d *door) knock(t *testing.T, from traffic.Space, addrs ...netip.Addr) *knocks {
	t.Helper()
	return d.knockAt(t, from, d.Addrs, addrs...)
}

// knockAt is knock where the door has other addresses than the pod.
func (d *door) knockAt(t *testing.T, from traffic.Space, at []netip.Addr, addrs ...netip.Addr) *knocks {
	t.Helper()
	var to []netip.AddrPort
	for _, a := range at {
		to = append(to, netip.AddrPortFrom(a, knockPort))
	}
	h, err := probe.StartHail(from, 500, to...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return &knocks{from.String(), addrs, d, h}
}

func (d *door) knockOf(t *testing.T, p *cluster.Pod) *knocks {
	t.Helper()
	return d.knock(t, p, p.Addrs...)
}

// heard are those that arrived so far from some of the addresses. What else comes from there, such as
// answers, does not count.
func (k *knocks) heard(from ...netip.Addr) probe.Arrivals {
	return k.at.tap.Of(func(p probe.Kind) bool { return p.Port == knockPort && slices.Contains(from, p.Src) })
}

// sends waits until n more were sent.
func (k *knocks) sends(t *testing.T, n int64) {
	t.Helper()
	until := k.hail.Sent() + n
	eventually(t, time.Minute, func() error {
		if k.hail.Sent() < until {
			return fmt.Errorf("%s sends no more", k.who)
		}
		return nil
	})
}

// let waits until knocks of both families arrive, and returns how long after a moment the first
// of them did.
func (k *knocks) let(t *testing.T, within time.Duration, since time.Time) (took time.Duration) {
	t.Helper()
	for _, a := range k.from {
		before := k.heard(a)
		eventually(t, within, func() error {
			if now := k.heard(a); now.Count == before.Count {
				return fmt.Errorf("%s is not let in to %s", a, k.at)
			}
			return nil
		})
		took = max(took, k.heard(a).Last.Sub(since))
	}
	return took
}

// kept waits until knocks do not arrive any more, and returns how long after a moment the
// last one did.
func (k *knocks) kept(t *testing.T, within time.Duration, since time.Time) (took time.Duration) {
	t.Helper()
	all := func() probe.Arrivals { return k.heard(k.from...) }
	eventually(t, within, func() error {
		before := all().Count
		k.sends(t, 50)
		if n := all().Count - before; n > 0 {
			return fmt.Errorf("%d of 50 knocks of %s arrive at %s", n, k.who, k.at)
		}
		return nil
	})
	if last := all().Last; !last.IsZero() {
		took = last.Sub(since)
	}
	return took
}

// none fails the test when one knock has ever arrived.
func (k *knocks) none(t *testing.T) {
	t.Helper()
	k.sends(t, 20)
	if n := k.heard(k.from...).Count; n > 0 {
		t.Errorf("%d knocks of %s arrived at %s", n, k.who, k.at)
	}
}

// another makes one more namespace of a test.
func another(t *testing.T, name string) string {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := c.Kubectl(ctx, "delete", "namespace", name, "--timeout=110s"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// onNode picks the pod of a node.
func onNode(t *testing.T, pods []*cluster.Pod, node string) *cluster.Pod {
	t.Helper()
	i := slices.IndexFunc(pods, func(p *cluster.Pod) bool { return p.Node.Name() == node })
	if i < 0 {
		t.Fatalf("none of %v is on %s", pods, node)
	}
	return pods[i]
}

// changeWithin is how soon a change of the API must be in force on a busy computer.
const changeWithin = 15 * time.Second

// TestPolicyLabels lets pods in by their labels and by those of their namespace, and changes both.
func TestPolicyLabels(t *testing.T) {
	ns := namespace(t)
	other := another(t, ns+"-other")
	web := doorOf(t, onNode(t, daemonSet(t, ns, "web"), "node1"))
	near := daemonSet(t, ns, "client")
	far := daemonSet(t, other, "client")
	var inside, outside []*knocks
	for _, n := range []string{"node1", "node2", "node4"} { // its own node, its rack, the other rack
		inside, outside = append(inside, web.knockOf(t, onNode(t, near, n))), append(outside, web.knockOf(t, onNode(t, far, n)))
	}
	all := slices.Concat(inside, outside)
	for _, k := range all {
		k.let(t, changeWithin, time.Now())
	}
	host := web.knock(t, web.Node, web.Node.Addrs()...)

	at := time.Now()
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: %s}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: friend}}}, {namespaceSelector: {matchLabels: {team: blue}}}]
`, ns)
	for _, k := range all {
		t.Logf("%s is kept out %s after the policy", k.who, k.kept(t, changeWithin, at).Round(time.Millisecond))
	}
	// Labels of pods: these, and no others.
	for i, k := range inside {
		name := strings.Split(k.who, "@")[0]
		at := time.Now()
		kubectl(t, "-n", ns, "label", "pod", name, "role=friend")
		t.Logf("%s is let in %s after its label", k.who, k.let(t, changeWithin, at).Round(time.Millisecond))
		for _, others := range slices.Concat(inside[i+1:], outside) {
			others.kept(t, 0, at)
		}
	}
	for _, k := range inside {
		at := time.Now()
		kubectl(t, "-n", ns, "label", "pod", strings.Split(k.who, "@")[0], "role-")
		t.Logf("%s is kept out %s after its label", k.who, k.kept(t, changeWithin, at).Round(time.Millisecond))
	}
	// Labels of a namespace.
	at = time.Now()
	kubectl(t, "label", "namespace", other, "team=blue")
	for _, k := range outside {
		t.Logf("%s is let in %s after its namespace's label", k.who, k.let(t, changeWithin, at).Round(time.Millisecond))
	}
	for _, k := range inside {
		k.kept(t, 0, at)
	}
	at = time.Now()
	kubectl(t, "label", "namespace", other, "team=red", "--overwrite")
	for _, k := range outside {
		t.Logf("%s is kept out %s after its namespace's label", k.who, k.kept(t, changeWithin, at).Round(time.Millisecond))
	}
	kubectl(t, "-n", ns, "delete", "networkpolicy", "web")
	for _, k := range all {
		k.let(t, changeWithin, time.Now())
	}
	// The node reached its pod all the time.
	host.let(t, changeWithin, time.Now())
}

// TestPolicyProbes closes a namespace both ways before it has a pod: kubelet finds all of them
// ready and alive all the same, and nobody else reaches them.
func TestPolicyProbes(t *testing.T) {
	ns := namespace(t)
	closed(t, ns)
	pods := daemonSet(t, ns, "web", "livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}")
	web := doorOf(t, onNode(t, pods, "node1"))
	var all []*knocks
	for _, p := range pods {
		if p != web.Pod {
			all = append(all, web.knockOf(t, p))
		}
	}
	all = append(all, web.knock(t, c.Node("node3"), c.Node("node3").Addrs()...))
	for _, k := range all {
		k.sends(t, 2000) // some seconds, and probes in each
	}
	for _, k := range all {
		k.none(t)
	}
	list, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount > 0 || !s.Ready {
				t.Errorf("%s: ready: %t, %d restarts", p.Name, s.Ready, s.RestartCount)
			}
		}
	}
}

// closed denies all to and from a namespace's pods.
func closed(t *testing.T, ns string) {
	t.Helper()
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: %s}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`, ns)
}

// sendsWithin is how soon after it runs a new pod's packets must be let in by policies of
// other nodes that select it.
const sendsWithin = 500 * time.Millisecond

// TestPolicyNewPods starts pods that a policy on another node lets in, and others that it does not:
// they are let in, or kept out, from the first packet that one can see them send.
func TestPolicyNewPods(t *testing.T) {
	ns := namespace(t)
	web := doorOf(t, onNode(t, daemonSet(t, ns, "web"), "node1"))
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: %s}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
`, ns)
	first := web.knock(t, c.Node("node2"), c.Node("node2").Addrs()...)
	first.kept(t, changeWithin, time.Now())
	const each = 8
	var took []time.Duration
	for _, p := range deployment(t, ns, "friend", each) {
		k := web.knockOf(t, p)
		took = append(took, k.let(t, changeWithin, time.Now()))
	}
	slices.Sort(took)
	t.Logf("%d new pods were let in, the last %s after it was seen running", each, took[each-1].Round(time.Millisecond))
	if took[each-1] > sendsWithin {
		t.Errorf("a new pod was let in %s after it ran; want %s at most", took[each-1], sendsWithin)
	}
	for _, p := range deployment(t, ns, "stranger", each) {
		web.knockOf(t, p).none(t)
	}
}

// TestPolicySameName deletes the pod of a StatefulSet, which comes back under its name with another
// address: what held for the one holds for the other, where it runs and where it is let in.
func TestPolicySameName(t *testing.T) {
	ns := namespace(t)
	all := daemonSet(t, ns, "web")
	apply(t, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: %[1]s}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:%[2]s
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: %[1]s}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: nobody}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: %[1]s}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}
`, ns, webPod("db"))
	var last []netip.Addr
	for range 3 {
		rollout(t, ns, "statefulset/db")
		db := doorOf(t, pods(t, ns, "app=db", 1)[0])
		if slices.Equal(db.Addrs, last) {
			t.Errorf("%s has %v again", db, last)
		}
		last = db.Addrs
		for _, node := range []string{"node1", "node3"} {
			web := onNode(t, all, node)
			if web.Node == db.Node {
				continue
			}
			db.knockOf(t, web).none(t)
			doorOf(t, web).knockOf(t, db.Pod).let(t, changeWithin, time.Now())
		}
		kubectl(t, "-n", ns, "delete", "pod", "db-0", "--wait")
	}
}

// TestPolicyStaged shows that staged policies hold nobody up.
func TestPolicyStaged(t *testing.T) {
	ns := namespace(t)
	all := daemonSet(t, ns, "web")
	apply(t, `apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: deny, namespace: %[1]s}
spec: {selector: all(), types: [Ingress, Egress]}
---
apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata: {name: deny, namespace: %[1]s}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: marker, namespace: %[1]s}
spec: {selector: app == 'web', types: [Ingress], ingress: [{action: Deny, protocol: UDP, destination: {ports: [%[2]d]}}, {action: Allow}]}
`, ns, knockPort)
	// What was made after them is in force.
	doorOf(t, all[0]).knockOf(t, all[1]).kept(t, changeWithin, time.Now())
	stop := streams(t, crossRack(t, all)...)
	stop()
}
