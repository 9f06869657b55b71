package admission_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	mergePatch     = types.MergePatchType
	strategicPatch = types.StrategicMergePatchType
)

// TestNodes tries to write Nodes with node1's token.
func TestNodes(t *testing.T) {
	c := setUp(t)
	_, err := c.admin.Core.CoreV1().Nodes().Patch(t.Context(), own, strategicPatch,
		[]byte(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"R"},{"type":"NetworkUnavailable","status":"True","reason":"N"}],"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}`), metav1.PatchOptions{}, "status")
	must(t, err)
	const (
		one      = "the Node that its token is bound to and no other"
		labels   = "labels, finalizers or owners"
		spec     = ".spec of its Node"
		notes    = "projectcalico.org/* and causeway-net.github.io/*"
		statuses = "NetworkUnavailable"
	)
	for _, tc := range []struct {
		name, node, patch string
		kind              types.PatchType
		sub               []string
		want              string // empty: allowed
	}{
		{"own annotations", own, `{"metadata":{"annotations":{"projectcalico.org/IPv4Address":"192.0.2.1/24","causeway-net.github.io/x":"y"}}}`, mergePatch, nil, ""},
		{"own annotations changed and removed", own, `{"metadata":{"annotations":{"projectcalico.org/IPv4Address":"192.0.2.2/24","causeway-net.github.io/x":null}}}`, mergePatch, nil, ""},
		{"own ends of tunnels", own, `{"metadata":{"annotations":{"projectcalico.org/IPv4IPIPTunnelAddr":"10.244.0.1","projectcalico.org/IPv4VXLANTunnelAddr":"10.244.0.2","projectcalico.org/VXLANTunnelMACAddr":"66:00:00:00:00:02","projectcalico.org/IPv6VXLANTunnelAddr":"fd00::3","projectcalico.org/VXLANTunnelMACAddrV6":"66:00:00:00:00:03"}}}`, mergePatch, nil, ""},
		{"own ends of tunnels removed", own, `{"metadata":{"annotations":{"projectcalico.org/IPv4IPIPTunnelAddr":null,"projectcalico.org/IPv4VXLANTunnelAddr":null,"projectcalico.org/VXLANTunnelMACAddr":null,"projectcalico.org/IPv6VXLANTunnelAddr":null,"projectcalico.org/VXLANTunnelMACAddrV6":null}}}`, mergePatch, nil, ""},
		{"own condition", own, `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"CausewayIsUp","message":"m"}]}}`, strategicPatch, []string{"status"}, ""},
		{"own condition again", own, `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"CausewayIsDown","message":"m"}]}}`, strategicPatch, []string{"status"}, ""},

		{"another's annotation", other, `{"metadata":{"annotations":{"projectcalico.org/IPv4Address":"192.0.2.66/24"}}}`, mergePatch, nil, one},
		{"another's end of a tunnel", other, `{"metadata":{"annotations":{"projectcalico.org/IPv4VXLANTunnelAddr":"10.244.0.66"}}}`, mergePatch, nil, one},
		{"another's condition", other, `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False"}]}}`, strategicPatch, []string{"status"}, one},
		{"a foreign annotation", own, `{"metadata":{"annotations":{"example.net/mine":"y"}}}`, mergePatch, nil, notes},
		{"a foreign annotation changed", own, `{"metadata":{"annotations":{"example.net/theirs":"y"}}}`, mergePatch, nil, notes},
		{"a foreign annotation removed", own, `{"metadata":{"annotations":{"example.net/theirs":null}}}`, mergePatch, nil, notes},
		{"a foreign annotation through status", own, `{"metadata":{"annotations":{"example.net/theirs":"y"}}}`, mergePatch, []string{"status"}, notes},
		{"an annotation of a like prefix", own, `{"metadata":{"annotations":{"projectcalico.org.example.net/a":"y"}}}`, mergePatch, nil, notes},
		{"a label", own, `{"metadata":{"labels":{"rack":"r2"}}}`, mergePatch, nil, labels},
		{"a label removed", own, `{"metadata":{"labels":{"rack":null}}}`, mergePatch, nil, labels},
		{"a label through status", own, `{"metadata":{"labels":{"rack":"r2"}}}`, mergePatch, []string{"status"}, labels},
		{"a finalizer", own, `{"metadata":{"finalizers":["example.net/f"]}}`, mergePatch, nil, labels},
		{"an owner", own, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}]}}`, mergePatch, nil, labels},
		{"taints", own, `{"spec":{"taints":[]}}`, mergePatch, nil, spec},
		{"unschedulable", own, `{"spec":{"unschedulable":true}}`, mergePatch, nil, spec},
		{"another condition", own, `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, strategicPatch, []string{"status"}, statuses},
		{"a new condition", own, `{"status":{"conditions":[{"type":"Fresh","status":"False"}]}}`, strategicPatch, []string{"status"}, statuses},
		{"the addresses", own, `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.66"}]}}`, strategicPatch, []string{"status"}, statuses},
		{"capacity", own, `{"status":{"capacity":{"cpu":"1"}}}`, strategicPatch, []string{"status"}, statuses},
		{"all conditions away", own, `{"status":{"conditions":null}}`, mergePatch, []string{"status"}, statuses},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.agent.Core.CoreV1().Nodes().Patch(t.Context(), tc.node, tc.kind, []byte(tc.patch), metav1.PatchOptions{}, tc.sub...)
			if tc.want == "" {
				must(t, err)
				return
			}
			refused(t, err, tc.want)
		})
	}
	// What the policies do not say, RBAC does.
	if err := c.agent.Core.CoreV1().Nodes().Delete(t.Context(), own, metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("deleting a Node: got %v, want forbidden", err)
	}
	if _, err := c.agent.Core.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets: got %v, want forbidden", err)
	}
	if _, err := c.agent.Core.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=bgp-secrets"}); err != nil {
		t.Errorf("listing the Secret bgp-secrets by name: %v", err)
	}
}

// TestEvents tries to write Events with node1's token.
func TestEvents(t *testing.T) {
	c := setUp(t)
	event := func(regarding corev1.ObjectReference) *eventsv1.Event {
		ns := regarding.Namespace
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
		return &eventsv1.Event{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "e-", Namespace: ns}, EventTime: metav1.NowMicro(),
			ReportingController: "causeway-agent", ReportingInstance: "causeway-agent-" + own,
			Action: "Test", Reason: "Test", Type: corev1.EventTypeNormal, Regarding: regarding,
		}
	}
	create := func(r corev1.ObjectReference) (*eventsv1.Event, error) {
		e := event(r)
		return c.agent.Core.EventsV1().Events(e.Namespace).Create(t.Context(), e, metav1.CreateOptions{})
	}
	for _, r := range []corev1.ObjectReference{
		{APIVersion: "v1", Kind: "Node", Name: own},
		{APIVersion: "v1", Kind: "Pod", Name: "p", Namespace: "kube-system"},
		{APIVersion: "projectcalico.org/v3", Kind: "BGPPeer", Name: "tor"},
	} {
		e, err := create(r)
		if err != nil {
			t.Errorf("an event about %s %s: %v", r.Kind, r.Name, err)
			continue
		}
		patch := []byte(`{"series":{"count":2,"lastObservedTime":"2026-01-02T03:04:05.000000Z"}}`)
		if _, err := c.agent.Core.EventsV1().Events(e.Namespace).Patch(t.Context(), e.Name, strategicPatch, patch, metav1.PatchOptions{}); err != nil {
			t.Errorf("a series of events about %s %s: %v", r.Kind, r.Name, err)
		}
		_, err = c.agent.Core.EventsV1().Events(e.Namespace).Patch(t.Context(), e.Name, strategicPatch, []byte(`{"reportingController":"kubelet"}`), metav1.PatchOptions{})
		if err == nil {
			t.Error("an event's reporter was changed")
		}
	}
	for _, r := range []corev1.ObjectReference{
		{APIVersion: "v1", Kind: "Node", Name: other},
		{APIVersion: "v1", Kind: "Secret", Name: "s", Namespace: "kube-system"},
	} {
		_, err := create(r)
		refused(t, err, "events about its own Node")
	}
}

// TestUnboundToken tries writes with a token of the ServiceAccount that names no node: all
// are refused, whatever they say.
func TestUnboundToken(t *testing.T) {
	c := setUp(t)
	loose := agentClients(t, c.admin, "")
	const want = "names no node"
	_, err := loose.Core.CoreV1().Nodes().Patch(t.Context(), own, mergePatch, []byte(`{"metadata":{"annotations":{"projectcalico.org/IPv4Address":"192.0.2.1/24"}}}`), metav1.PatchOptions{})
	refused(t, err, want)
	_, err = loose.Core.CoreV1().Nodes().Patch(t.Context(), own, strategicPatch, []byte(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False"}]}}`), metav1.PatchOptions{}, "status")
	refused(t, err, want)
	blocks := newBlocks(loose)
	for _, b := range []string{"", own} {
		x := block(t, "10.66.0.0/26", b, nil)
		affinity := "host:" + b
		x.Spec.Affinity = &affinity
		if b == "" {
			x.Spec.Affinity = nil
		}
		_, err = blocks.Create(t.Context(), x, metav1.CreateOptions{})
		refused(t, err, want)
	}
	there := c.put(t.Context(), t, block(t, "10.66.1.0/26", own, nil))
	there.Spec.SequenceNumber++
	_, err = blocks.Update(t.Context(), there, metav1.UpdateOptions{})
	refused(t, err, want)
	refused(t, blocks.Delete(t.Context(), there.Name, metav1.DeleteOptions{}), want)
	_, err = loose.Core.EventsV1().Events("default").Create(t.Context(), &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e-"}, EventTime: metav1.NowMicro(), ReportingController: "c", ReportingInstance: "i", Action: "A", Reason: "R",
		Type: corev1.EventTypeNormal, Regarding: corev1.ObjectReference{Kind: "Node", Name: own},
	}, metav1.CreateOptions{})
	refused(t, err, want)
	if _, err := loose.Core.CoreV1().Nodes().Get(t.Context(), own, metav1.GetOptions{}); err != nil {
		t.Errorf("reading is not concerned: %v", err)
	}
}

// TestOthersAreFree shows that the policies concern agents alone.
func TestOthersAreFree(t *testing.T) {
	c := setUp(t)
	for i, node := range []string{own, other} {
		b := c.put(t.Context(), t, block(t, fmt.Sprintf("10.67.%d.0/26", i), node, map[int]string{3: other}))
		must(t, c.adminBlocks.Delete(t.Context(), b.Name, metav1.DeleteOptions{}))
		_, err := c.admin.Core.CoreV1().Nodes().Patch(t.Context(), node, mergePatch, []byte(`{"metadata":{"labels":{"free":"yes"}}}`), metav1.PatchOptions{})
		must(t, err)
	}
}
