package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
)

// source is one that talks to nobody.
func source(t testing.TB, publish func(*model.Snapshot)) *Source {
	t.Helper()
	c, err := kubeapi.New(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Clients: c, Node: "n0", Log: slog.New(slog.DiscardHandler), Publish: publish})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Source) feed(name string) *feed {
	return s.feeds[slices.IndexFunc(s.feeds, func(f *feed) bool { return f.name == name })]
}

func node(i, version int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("n%d", i), UID: types.UID(fmt.Sprintf("uid-%d", i)), ResourceVersion: fmt.Sprint(version),
		Labels: map[string]string{}, Annotations: map[string]string{"projectcalico.org/IPv4Address": fmt.Sprintf("10.%d.%d.1/16", i/250, i%250)},
	}}
	for j := range 12 {
		n.Labels[fmt.Sprintf("example.org/label-%d", j)] = fmt.Sprintf("value-%d", j)
	}
	return n
}

func block(i, version int, affinity string) *item {
	b := &v3.IPAMBlock{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("10-244-%d-0-26", i), UID: types.UID(fmt.Sprintf("b%d", i)), ResourceVersion: fmt.Sprint(version)}}
	affinity = "host:" + affinity
	b.Spec = v3.IPAMBlockSpec{CIDR: fmt.Sprintf("10.244.%d.0/26", i), Affinity: &affinity, Allocations: make([]*int, 64)}
	return &item{Object: b}
}

// filled is a source that has seen a cluster of 1,000 nodes and 4 blocks of its own.
func filled(t testing.TB, publish func(*model.Snapshot)) *Source {
	t.Helper()
	s := source(t, publish)
	var nodes, blocks []any
	for i := range 1000 {
		nodes = append(nodes, node(i, 1))
	}
	for i := range 4 {
		blocks = append(blocks, block(i, 1, "n0"))
	}
	for _, f := range s.feeds {
		var err error
		switch f.name {
		case "other nodes":
			err = f.Replace(nodes, "1")
		case "ipamblocks.projectcalico.org of this node":
			err = f.Replace(blocks, "1")
		default:
			err = f.Replace(nil, "1")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.update(t.Context(), nil)
	return s
}

// TestUnchanged: what arrives and means nothing new makes no snapshot, and an object whose
// version is known is not looked at.
func TestUnchanged(t *testing.T) {
	count := 0
	s := filled(t, func(*model.Snapshot) { count++ })
	if count != 1 {
		t.Fatalf("%d snapshots", count)
	}
	<-s.wake
	nodes := s.feed("other nodes")
	if err := errors.Join(nodes.Update(node(7, 2)), s.feed("ipamblocks.projectcalico.org of this node").Update(block(1, 2, "n0"))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.wake:
		t.Error("new versions that mean the same wake the source")
	default:
	}
	changed := node(7, 2) // the version that was seen, which cannot be
	changed.Labels["a"] = "b"
	if err := nodes.Update(changed); err != nil {
		t.Fatal(err)
	}
	if s.update(t.Context(), nil); count != 1 {
		t.Error("a known version was checked again")
	}
	changed.ResourceVersion = "3"
	if err := nodes.Update(changed); err != nil {
		t.Fatal(err)
	}
	if s.update(t.Context(), nil); count != 2 {
		t.Error("a change was not seen")
	}
}

// BenchmarkBlockChange is what a change of one of the node's blocks costs in a cluster of
// 1,000 nodes, from the event to the published snapshot.
func BenchmarkBlockChange(b *testing.B) {
	count := 0
	s := filled(b, func(*model.Snapshot) { count++ })
	f := s.feed("ipamblocks.projectcalico.org of this node")
	version := 1
	b.ReportAllocs()
	for b.Loop() {
		version++
		if err := f.Update(block(3, version, []string{"n0", "n1"}[(version+1)%2])); err != nil {
			b.Fatal(err)
		}
		s.update(b.Context(), nil)
	}
	if count != version {
		b.Fatalf("%d snapshots of %d changes", count, version)
	}
}

// BenchmarkNodeHeartbeat is what a Node's new status costs, which means nothing here.
func BenchmarkNodeHeartbeat(b *testing.B) {
	s := filled(b, func(*model.Snapshot) {})
	f := s.feed("other nodes")
	version := 1
	for b.Loop() {
		version++
		if err := f.Update(node(7, version)); err != nil {
			b.Fatal(err)
		}
	}
}

// fullPod is a pod as the API server shows it, less what is not metadata.
func fullPod(i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("deployment-5d4f8c7b9-%05d", i), Namespace: "namespace-" + fmt.Sprint(i%10), UID: types.UID(fmt.Sprintf("9f1b1c52-60ac-4b2e-8f0e-%012d", i)),
		ResourceVersion: fmt.Sprint(i), Labels: map[string]string{}, Annotations: map[string]string{"prometheus.io/scrape": "true"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: &metav1.FieldsV1{Raw: make([]byte, 2000)}}},
	}}
	for j := range 6 {
		p.Labels[fmt.Sprintf("app.kubernetes.io/label-%d", j)] = strings.Repeat("v", 20)
	}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: strings.Repeat("i", 100), Env: make([]corev1.EnvVar, 30)}}
	return p
}

// TestPodSize holds that a pod costs a few hundred bytes at most.
func TestPodSize(t *testing.T) {
	s := source(t, func(*model.Snapshot) {})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 10000
	before := heap()
	for i := range n {
		if err := s.podFeed.Add(fullPod(i)); err != nil {
			t.Fatal(err)
		}
	}
	each := (int64(heap()) - int64(before)) / n
	t.Logf("a pod costs %d bytes", each)
	if s.pods.len() != n || each > 500 {
		t.Errorf("%d pods cost %d bytes each; a few hundred are right", s.pods.len(), each)
	}
}

func TestStrip(t *testing.T) {
	p := fullPod(1)
	p.Annotations["cni.projectcalico.org/ipAddrs"], p.Annotations[annotationStatic] = "[]", "abc"
	for what, tc := range map[string]struct {
		strip func(any) (any, error)
		in    metav1.Object
		want  string // metadata and all else, as JSON
	}{
		"pod": {stripPod, p, `{"metadata":{"name":"deployment-5d4f8c7b9-00001","namespace":"namespace-1","uid":"9f1b1c52-60ac-4b2e-8f0e-000000000001","resourceVersion":"1","annotations":{"cni.projectcalico.org/ipAddrs":"[]","kubernetes.io/config.hash":"abc"}}`},
		"node": {stripNode, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"x": "y", "projectcalico.org/ASNumber": "1"}, ManagedFields: p.ManagedFields},
			Status:     corev1.NodeStatus{Images: make([]corev1.ContainerImage, 50), Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}}},
		}, `{"metadata":{"name":"n","labels":{"a":"b"},"annotations":{"projectcalico.org/ASNumber":"1"}}`},
		"namespace": {stripNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"x": "y"}}},
			`{"metadata":{"name":"n","labels":{"a":"b"}}`},
	} {
		out, err := tc.strip(tc.in)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Replace(string(data), `"creationTimestamp":null,`, "", 1); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, tc.want)
		}
		if strings.Contains(string(data), "managedFields") || strings.Contains(string(data), "images") || strings.Contains(string(data), `"env"`) {
			t.Errorf("%s keeps too much: %s", what, data)
		}
	}
}

// TestStream decodes what the API server sends, broken objects among it.
func TestStream(t *testing.T) {
	body := io.NopCloser(strings.NewReader(`{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"cidr":"10.0.0.0/8"}}}
{"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"2"},"spec":{"blockSize":"many"}}}
{"type":"BOOKMARK","object":{"kind":"IPPool","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}
{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}
{"type":"NOVELTY","object":{}}`))
	s := &itemStream{body, json.NewDecoder(body), func() metav1.Object { return &v3.IPPool{} }}
	for _, want := range []string{"ADDED a 1 false", "MODIFIED a 2 true", "BOOKMARK  9 false"} {
		kind, obj, err := s.Decode()
		if err != nil {
			t.Fatal(err)
		}
		it := obj.(*item)
		if got := fmt.Sprint(kind, " ", it.GetName(), " ", it.GetResourceVersion(), " ", it.err != nil); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if kind, obj, err := s.Decode(); kind != apiwatch.Error || err != nil || !apierrors.IsResourceExpired(apierrors.FromObject(obj)) {
		t.Errorf("%v %v %v", kind, obj, err)
	}
	if _, _, err := s.Decode(); err == nil {
		t.Error("an unknown event is accepted")
	}
	list, err := decodeList([]byte(`{"metadata":{"resourceVersion":"5"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"},"spec":[]}]}`), func() metav1.Object { return &v3.IPPool{} })
	if err != nil || list.ResourceVersion != "5" || len(list.Items) != 2 || list.Items[0].(*item).err != nil || list.Items[1].(*item).err == nil {
		t.Errorf("%+v %v", list, err)
	}
}

func TestRefused(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404, 405} {
		if !refused(apierrors.NewGenericServerResponse(code, "list", v3.SchemeGroupVersion.WithResource("ippools").GroupResource(), "", "", 0, false)) {
			t.Errorf("%d is an answer", code)
		}
	}
	for _, err := range []error{
		io.ErrUnexpectedEOF,
		apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "list", v3.SchemeGroupVersion.WithResource("ippools").GroupResource(), "", "", 0, false),
		apierrors.NewInternalError(errors.New("etcd")), apierrors.NewTooManyRequestsError("later"),
	} {
		if refused(err) {
			t.Errorf("%v can pass", err)
		}
	}
}

func TestIgnoredNames(t *testing.T) {
	k := &ignoredKind{format: "m; there are %d: %s", names: newTable(func(struct{}, metav1.Object) (struct{}, bool) { return struct{}{}, false }), rested: rested{again: func(time.Duration) {}}}
	if _, ok := k.problem(); ok {
		t.Error("nothing is a problem")
	}
	for _, n := range []string{"e", "b", "a", "d", "c"} {
		k.names.rows[n] = struct{}{}
	}
	if p, ok := k.problem(); !ok || p.Message != "m; there are 5: a, b, c, 2 more" || !p.Ignored {
		t.Errorf("%+v", p)
	}
}

func TestBorrowerLabel(t *testing.T) {
	// printf n1 | sha256sum | cut -c1-16
	if got := BorrowerLabel("n1"); got != "causeway-net.github.io/borrower-676b8bb84ce7267d" {
		t.Error(got)
	}
}
