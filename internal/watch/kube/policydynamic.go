package kube

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// remotePods is a contents of the pods of other nodes. Of each its name is kept and a hash
// of what was told of it, whose lowest bit says that it had addresses: policy keeps the rest.
type remotePods struct {
	policies *watch.Policies
	seed     maphash.Seed
	told     map[string]uint64 // by rowKey
	buffer   []byte
}

func (t *remotePods) len() int { return len(t.told) }

func (t *remotePods) set(obj metav1.Object) bool {
	key := rowKey(obj.GetNamespace(), obj.GetName())
	p, ok := watch.ReadPod(obj.(*corev1.Pod))
	if !ok {
		return t.drop(key)
	}
	hash := t.hash(&p) &^ 1
	if len(p.Addresses) > 0 {
		hash |= 1
	}
	was, there := t.told[key]
	if there && was == hash {
		return false
	}
	if was&1 == 1 && hash&1 == 0 { // another pod of this name, seen before the old one went
		t.drop(key)
	}
	t.told[key] = hash
	t.policies.SetRemote(&p)
	return true
}

func (t *remotePods) remove(obj metav1.Object) bool {
	return t.drop(rowKey(obj.GetNamespace(), obj.GetName()))
}

func (t *remotePods) drop(key string) bool {
	if _, there := t.told[key]; !there {
		return false
	}
	delete(t.told, key)
	namespace, name, _ := strings.Cut(key, "/")
	t.policies.RemoveRemote(namespace, name)
	return true
}

func (t *remotePods) replace(objs []any) bool {
	changed := false
	seen := make(map[string]bool, len(objs))
	for _, o := range objs {
		obj := o.(metav1.Object)
		seen[rowKey(obj.GetNamespace(), obj.GetName())] = true
		changed = t.set(obj) || changed
	}
	for key := range t.told {
		if !seen[key] {
			changed = t.drop(key) || changed
		}
	}
	return changed
}

// hash is one of all that policy is told of a pod.
func (t *remotePods) hash(p *watch.Pod) uint64 {
	b := t.buffer[:0]
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(p.ServiceAccount)
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		text(k)
		text(p.Labels[k])
	}
	text("")
	for _, a := range p.Addresses {
		text(string(a.AsSlice()))
	}
	if len(p.Addresses) == 0 { // by these the node's own word is known
		text(p.Node)
		text(p.UID)
		text(p.StaticUID)
	}
	text("")
	for _, port := range p.Ports {
		text(port.Name)
		b = append(b, port.Protocol, byte(port.Port>>8), byte(port.Port))
	}
	t.buffer = b
	return maphash.Bytes(t.seed, b)
}

// otherPods makes the feed of the pods of other nodes.
func (s *Source) otherPods() *dynamicFeed {
	contents := &remotePods{policies: s.policy.policies, seed: maphash.MakeSeed(), told: map[string]uint64{}}
	selector := fields.AndSelectors(
		fields.OneTermNotEqualSelector("spec.nodeName", s.cfg.Node),
		fields.OneTermNotEqualSelector("spec.nodeName", ""),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
	).String()
	narrow := func(o *metav1.ListOptions) { o.FieldSelector = selector }
	return &dynamicFeed{
		feed: &feed{
			name: "pods of other nodes", resource: "pods", needed: true, contents: contents, sample: &corev1.Pod{},
			source: typed(s.cfg.Clients.Core.CoreV1().Pods(metav1.NamespaceAll), narrow),
			strip: func(obj any) (any, error) {
				if p, ok := obj.(*corev1.Pod); ok {
					return watch.StripPod(p), nil
				}
				return obj, nil
			},
		},
		forget: func() {
			for key := range contents.told {
				contents.drop(key)
			}
		},
	}
}

// serviceAccounts makes the feed of the labels of service accounts.
func (s *Source) serviceAccounts() *dynamicFeed {
	policies := s.policy.policies
	contents := newTable(func(old model.ServiceAccount, obj metav1.Object) (model.ServiceAccount, bool) {
		return model.ServiceAccount{Namespace: obj.GetNamespace(), Name: obj.GetName(), Labels: obj.GetLabels()}, !maps.Equal(old.Labels, obj.GetLabels())
	})
	contents.moved = func(_ string, old, now *model.ServiceAccount) {
		if now == nil {
			policies.RemoveServiceAccount(old.Namespace, old.Name)
		} else {
			policies.SetServiceAccount(*now)
		}
	}
	return &dynamicFeed{
		feed: &feed{
			name: "serviceaccounts", resource: "serviceaccounts", needed: true, contents: contents, sample: &metav1.PartialObjectMetadata{},
			source: metadataOf(s.cfg.Clients, corev1.SchemeGroupVersion.WithResource("serviceaccounts"), func(*metav1.ListOptions) {}),
			strip: func(obj any) (any, error) {
				m, ok := obj.(*metav1.PartialObjectMetadata)
				if !ok {
					return obj, nil
				}
				out := &metav1.PartialObjectMetadata{ObjectMeta: bare(&m.ObjectMeta)}
				out.Labels = m.Labels
				return out, nil
			},
		},
		forget: func() { contents.replace(nil) },
	}
}

// serviceSlices makes the feed of the EndpointSlices of one Service.
func (s *Source) serviceSlices(id model.ServiceID) *dynamicFeed {
	policies := s.policy.policies
	type slice struct {
		name      string
		endpoints []model.ServiceEndpoint
	}
	contents := newTable(func(old slice, obj metav1.Object) (slice, bool) {
		_, endpoints := watch.ReadSlice(obj.(*discoveryv1.EndpointSlice))
		slices.SortFunc(endpoints, func(a, b model.ServiceEndpoint) int {
			return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
		})
		return slice{obj.GetName(), endpoints}, !slices.Equal(old.endpoints, endpoints)
	})
	contents.moved = func(_ string, old, now *slice) {
		if now == nil {
			policies.RemoveSlice(id, old.name)
		} else {
			policies.SetSlice(id, now.name, now.endpoints)
		}
	}
	narrow := func(o *metav1.ListOptions) {
		o.LabelSelector = labels.Set{discoveryv1.LabelServiceName: id.Name}.String()
	}
	return &dynamicFeed{
		feed: &feed{
			name: "endpointslices of " + id.Namespace + "/" + id.Name, resource: "endpointslices.discovery.k8s.io", needed: true,
			contents: contents, sample: &discoveryv1.EndpointSlice{},
			source: typed(s.cfg.Clients.Core.DiscoveryV1().EndpointSlices(id.Namespace), narrow),
		},
		forget: func() { contents.replace(nil) },
	}
}
