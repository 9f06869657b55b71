package kube

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// table is what is kept of the objects of one feed, by "namespace/name" or "name".
type table[T any] struct {
	rows map[string]T
	// read makes the row of an object. old is the row that it replaces, the zero value
	// if there is none; changed tells whether the new one says anything else.
	read func(old T, obj metav1.Object) (row T, changed bool)
	// moved, if not nil, is told each row that comes, changes or goes: old is nil for one
	// that comes, now for one that goes.
	moved func(key string, old, now *T)
}

func newTable[T any](read func(T, metav1.Object) (T, bool)) *table[T] {
	return &table[T]{rows: map[string]T{}, read: read}
}

func rowKey(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

func (t *table[T]) set(obj metav1.Object) bool {
	key := rowKey(obj.GetNamespace(), obj.GetName())
	old, there := t.rows[key]
	row, changed := t.read(old, obj)
	t.rows[key] = row
	if t.moved != nil && (changed || !there) {
		if there {
			t.moved(key, &old, &row)
		} else {
			t.moved(key, nil, &row)
		}
	}
	return changed || !there
}

func (t *table[T]) remove(obj metav1.Object) bool {
	return t.drop(rowKey(obj.GetNamespace(), obj.GetName()))
}

func (t *table[T]) drop(key string) bool {
	old, there := t.rows[key]
	delete(t.rows, key)
	if there && t.moved != nil {
		t.moved(key, &old, nil)
	}
	return there
}

func (t *table[T]) replace(objs []any) bool {
	changed := false
	seen := make(map[string]bool, len(objs))
	for _, o := range objs {
		obj := o.(metav1.Object)
		seen[rowKey(obj.GetNamespace(), obj.GetName())] = true
		changed = t.set(obj) || changed
	}
	for key := range t.rows {
		if !seen[key] {
			changed = t.drop(key) || changed
		}
	}
	return changed
}

func (t *table[T]) len() int { return len(t.rows) }

// entry is one object that a snapshot is made of.
//
// Invariant: inForce is the newest valid version of the object with that UID, and problems
// are those of a newer one that is broken.
type entry struct {
	key      model.Object
	uid      types.UID
	version  string // metadata.resourceVersion
	inForce  *watch.Object
	problems []model.Problem
}

// add tells what is known of the object.
func (e *entry) add(in *watch.Input) {
	if e.inForce != nil {
		in.Objects = append(in.Objects, watch.Sourced{Object: e.inForce})
	}
	in.Problems = append(in.Problems, e.problems...)
}

// entries is a table of objects of one kind.
func entries(kind string, opt watch.Options) *table[entry] {
	return newTable(func(old entry, obj metav1.Object) (entry, bool) {
		e := entry{key: model.Object{Kind: kind, Name: obj.GetName()}, uid: obj.GetUID(), version: obj.GetResourceVersion()}
		if watch.Namespaced(kind) {
			e.key.Namespace = obj.GetNamespace()
		}
		if old.uid == e.uid && old.version == e.version && e.version != "" {
			return old, false
		}
		var held *watch.Object
		if old.uid == e.uid { // otherwise it is another object of the same name
			held = old.inForce
		}
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok && kind == watch.KindNode {
			obj = &corev1.Node{ObjectMeta: m.ObjectMeta}
		}
		var newer *watch.Object
		var undecoded []model.Problem
		if it, ok := obj.(*item); !ok {
			newer = watch.Check(obj, opt)
		} else if it.err == nil {
			newer = watch.Check(it.Object, opt)
		} else {
			undecoded = []model.Problem{{Message: "cannot be decoded: " + it.err.Error()}}
		}
		e.inForce, e.problems = watch.Succeed(held, newer, undecoded)
		for i := range e.problems {
			e.problems[i].Object = e.key
		}
		return e, e.inForce != old.inForce || !slices.Equal(e.problems, old.problems)
	})
}

// pod is what is kept of a pod of this node.
type pod struct {
	uid string
	// static is what the runtime takes for the UID of a static pod, whose object is a
	// mirror with a UID of its own; empty for others.
	static      string
	annotations map[string]string // those of CNI; nil when there are none
	policy      *watch.Pod        // nil: policy has nothing to do with it, or is not asked for
}

// readPodForPolicy is readPod where there is policy.
func readPodForPolicy(old pod, obj metav1.Object) (pod, bool) {
	p, changed := readPod(old, obj)
	if facts, ok := watch.ReadPod(obj.(*corev1.Pod)); ok {
		p.policy = &facts
	}
	return p, changed || (p.policy == nil) != (old.policy == nil) || p.policy != nil && !p.policy.Equal(old.policy)
}

func readPod(old pod, obj metav1.Object) (pod, bool) {
	p := pod{uid: string(obj.GetUID()), static: obj.GetAnnotations()[annotationStatic], annotations: pick(obj.GetAnnotations())}
	return p, p.uid != old.uid || p.static != old.static || !maps.Equal(p.annotations, old.annotations)
}

// is reports whether a pod is the one that the runtime means by uid; empty means any.
func (p pod) is(uid string) bool { return uid == "" || uid == p.uid || uid == p.static }

// namespace is what is kept of a namespace.
type namespace struct{ labels, annotations map[string]string }

func readNamespace(old namespace, obj metav1.Object) (namespace, bool) {
	n := namespace{labels: obj.GetLabels(), annotations: pick(obj.GetAnnotations())}
	if n.labels == nil {
		n.labels = map[string]string{} // nil means unknown
	}
	return n, !maps.Equal(n.labels, old.labels) || !maps.Equal(n.annotations, old.annotations)
}
