package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

func policySource(tb testing.TB) *Source {
	tb.Helper()
	c, err := kubeapi.New(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(Config{Clients: c, Node: "n1", Log: slog.New(slog.DiscardHandler), Publish: func(*model.Snapshot) {}, Policy: func(*watch.PolicyUpdate) {}})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// feedNamed is a feed of policy.
func feedNamed(tb testing.TB, s *Source, name string) *feed {
	tb.Helper()
	for _, f := range s.policy.feeds() {
		if f.name == name {
			return f
		}
	}
	tb.Fatalf("no feed %q", name)
	return nil
}

func manyPolicy(i int) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(int32(8000 + i))
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%100), Name: fmt.Sprintf("policy-%d", i), UID: types.UID(fmt.Sprintf("p%d", i)), ResourceVersion: "1"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i%50)}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(i % 10)}}, PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", (i+1)%50)}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.0.0/16", i%256)}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

func manyPod(i int) *corev1.Pod {
	app := fmt.Sprintf("app-%d", i%50)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%100), Name: fmt.Sprintf("%s-5d8f7c9b6d-%05d", app, i), Labels: map[string]string{
			"app": app, "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "pod-template-hash": "5d8f7c9b6d", "tier": "backend",
		}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("n%d", 2+i%100), ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "registry/image:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()}}
	return watch.StripPod(p)
}

// TestMemory bounds what the watch keeps of a large cluster: 1,000 policies and 10,000 pods of
// other nodes.
func TestMemory(t *testing.T) {
	const policies, pods = 1000, 10000
	kept := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	s := policySource(t)
	f := feedNamed(t, s, "networkpolicies.networking.k8s.io")
	remote := s.otherPods()
	var memory *watch.PolicyMemory
	take := func() (n int) { // what is told is the sink's from then on
		u := s.policy.policies.Take()
		if u == nil {
			return 0
		}
		if memory != nil {
			if err := memory.Keep(u); err != nil {
				t.Fatal(err)
			}
		}
		return u.Len()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy.policies.SetPending(nil)
	take()
	start := kept()
	for i := range policies {
		f.contents.set(manyPolicy(i))
	}
	if n := take(); n != policies {
		t.Fatalf("%d changes of %d policies", n, policies)
	}
	withPolicies := kept()
	for i := range pods {
		remote.contents.set(manyPod(i))
	}
	if n := take(); n != pods {
		t.Fatalf("%d changes of %d pods", n, pods)
	}
	withPods := kept()
	ofPolicies, ofPods := int64(withPolicies-start), int64(withPods)-int64(withPolicies)
	t.Logf("%d policies keep %d kB, %d pods %d kB (%d bytes each)", policies, ofPolicies>>10, pods, ofPods>>10, ofPods/pods)
	if ofPolicies > 8<<20 || ofPods > 400*pods {
		t.Errorf("%d policies keep %d bytes and %d pods %d; at most 8 MiB and 400 bytes a pod are right", policies, ofPolicies, pods, ofPods)
	}
	// What is kept for the next agent (package last).
	remote.forget()
	take()
	memory = watch.NewPolicyMemory()
	before := kept()
	for i := range pods {
		remote.contents.set(manyPod(i))
	}
	take()
	ofMemory := int64(kept()) - int64(before)
	t.Logf("for the next agent %d pods keep %d kB (%d bytes each)", pods, ofMemory>>10, ofMemory/pods)
	if ofMemory > 600*pods {
		t.Errorf("for the next agent %d pods keep %d bytes; at most 600 each are right", pods, ofMemory)
	}
	// The same again, and a pod of which nothing that is told has changed, say nothing.
	for i := range pods {
		remote.contents.set(manyPod(i))
	}
	for i := range policies {
		f.contents.set(manyPolicy(i))
	}
	if n := take(); n != 0 {
		t.Errorf("%d changes of what has not changed", n)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(remote)
	runtime.KeepAlive(memory)
}

// TestRemotePods: what is told of a pod of another node changes with what policy sees of it.
func TestRemotePods(t *testing.T) {
	s := policySource(t)
	s.policy.policies.SetPending(nil)
	s.policy.policies.Take()
	remote := s.otherPods()
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := func() int {
		if u := s.policy.policies.Take(); u != nil {
			return u.Len()
		}
		return 0
	}
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := manyPod(1)
		if change != nil {
			change(p)
		}
		return p
	}
	for _, tc := range []struct {
		name   string
		change func(*corev1.Pod)
		want   int
	}{
		{"new", nil, 1}, {"the same", nil, 0},
		{"a label", func(p *corev1.Pod) { p.Labels["app"] = "x" }, 1}, {"the label back", nil, 1},
		{"a label less", func(p *corev1.Pod) { delete(p.Labels, "tier") }, 1},
		{"an address", func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00::1"}) }, 1},
		{"a port", func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 81 }, 1},
		{"a service account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "x" }, 1},
		{"its address gone", func(p *corev1.Pod) { p.Status.PodIPs = nil }, 1}, {"still gone", func(p *corev1.Pod) { p.Status.PodIPs = nil }, 0},
		{"back", nil, 1}, {"on the host's network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, 1}, {"back again", nil, 1},
	} {
		remote.contents.set(pod(tc.change))
		if n := changes(); n != tc.want {
			t.Errorf("%s: %d changes, want %d", tc.name, n, tc.want)
		}
	}
	remote.contents.replace([]any{manyPod(2)})
	if n := changes(); n != 2 || remote.contents.len() != 1 {
		t.Errorf("another list: %d changes, %d kept", n, remote.contents.len())
	}
	remote.forget()
	if n := changes(); n != 1 || remote.contents.len() != 0 {
		t.Errorf("forgotten: %d changes, %d kept", n, remote.contents.len())
	}
}

// TestNoPolicyFeeds: without Config.Policy there are none of these feeds.
func TestNoPolicyFeeds(t *testing.T) {
	s := policySource(t)
	without, err := New(Config{Clients: s.cfg.Clients, Node: "n1", Log: slog.New(slog.DiscardHandler), Publish: func(*model.Snapshot) {}})
	if err != nil {
		t.Fatal(err)
	}
	if without.policy != nil || without.Policies() != nil || len(without.feeds) != len(s.feeds) {
		t.Errorf("without policy %d feeds beside it, with policy %d", len(without.feeds), len(s.feeds))
	}
}

// TestExpectedPod: the interface that a pod will have goes with what is told of its object, unless
// the pod ends.
func TestExpectedPod(t *testing.T) {
	c, err := kubeapi.New(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Clients: c, Node: "n1", Log: slog.New(slog.DiscardHandler), Publish: func(*model.Snapshot) {}, Policy: func(*watch.PolicyUpdate) {},
		Interface: func(namespace, pod string) string { return "cali-" + namespace + "-" + pod },
	})
	if err != nil {
		t.Fatal(err)
	}
	engine := policy.New(policy.Config{})
	shown := func() []policy.Endpoint {
		if u := s.policy.policies.Take(); u != nil {
			if err := u.Apply(engine); err != nil {
				t.Fatal(err)
			}
		}
		return engine.Flush().Endpoints
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy.policies.SetPending(nil)
	tell := func(o *corev1.Pod) {
		stripped, err := s.podFeed.strip(o)
		if err != nil {
			t.Fatal(err)
		}
		s.podFeed.contents.set(stripped.(metav1.Object))
	}
	alive := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "a", UID: "u", ResourceVersion: "1"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	ending := alive.DeepCopy()
	ending.Name, ending.DeletionTimestamp = "b", &metav1.Time{Time: time.Unix(1e9, 0)}
	tell(alive)
	tell(ending)
	if eps := shown(); len(eps) != 1 || eps[0].Interface != "cali-prod-a" || !eps[0].Expected() {
		t.Errorf("endpoints %+v, want one without addresses", eps)
	}
}

// TestAbsentResource: where there is no such resource, policy waits for none of its objects, and an API server
// that goes away afterwards changes nothing about that.
func TestAbsentResource(t *testing.T) {
	s := policySource(t)
	f := feedNamed(t, s, "clusternetworkpolicies.policy.networking.k8s.io")
	none := apierrors.NewNotFound(schema.GroupResource{Resource: "clusternetworkpolicies"}, "")
	away := errors.New("connection refused")
	is := func(what string, want bool) {
		t.Helper()
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := f.absent(); got != want {
			t.Errorf("%s: absent %t, want %t", what, got, want)
		}
	}
	lasts := func() {
		if !f.missing.IsZero() {
			f.missing = f.missing.Add(-refusalGrace)
		}
	}
	f.failed(away)
	is("never an answer", false)
	f.failed(none)
	is("said once", false)
	f.failed(away)
	lasts()
	is("said once before the server went", false)
	f.failed(none)
	lasts()
	is("said for a while", true)
	f.failed(away)
	is("the server is away", true)
	f.failed(none)
	is("and back", true)
	f.failed(apierrors.NewForbidden(schema.GroupResource{}, "", away))
	is("another answer", false)
	f.failed(none)
	lasts()
	f.stands()
	is("installed", false)
}
