package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/watch"
)

const (
	// nodeAnnotations is the prefix of those of a Node that are read.
	nodeAnnotations = "projectcalico.org/"
	// podAnnotations is the prefix of those of pods and namespaces that are read.
	podAnnotations = "cni.projectcalico.org/"
	// annotationStatic holds, in the mirror of a static pod, what the runtime is given as
	// the pod's UID (kubernetes pkg/kubelet/types, ConfigHashAnnotationKey).
	annotationStatic = "kubernetes.io/config.hash"
	// borrowerLabel, with the first 16 hex digits of the SHA-256 of a node's name, marks
	// the blocks of others in which the node holds addresses.
	borrowerLabel = "causeway-net.github.io/borrower-"
)

// BorrowerLabel is the label of the IPAMBlocks of other nodes in which node holds
// addresses. Its value is empty.
func BorrowerLabel(node string) string {
	sum := sha256.Sum256([]byte(node))
	return borrowerLabel + hex.EncodeToString(sum[:8])
}

// ownBlocks narrows to the blocks of a node; the field is one of the CRD's
// selectableFields.
func ownBlocks(node string) func(*metav1.ListOptions) {
	return byField("spec.affinity", "host:"+node)
}

func borrowedBlocks(node string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.LabelSelector = BorrowerLabel(node) }
}

// ownPods narrows to the pods of a node that may still need a network.
func ownPods(node string) func(*metav1.ListOptions) {
	selector := fields.AndSelectors(
		fields.OneTermEqualSelector("spec.nodeName", node),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
	).String()
	return func(o *metav1.ListOptions) { o.FieldSelector = selector }
}

func byField(field, value string) func(*metav1.ListOptions) {
	selector := fields.OneTermEqualSelector(field, value).String()
	return func(o *metav1.ListOptions) { o.FieldSelector = selector }
}

// lister is the part of a typed client that a feed needs.
type lister[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error)
}

func typed[L runtime.Object](c lister[L], narrow func(*metav1.ListOptions)) *kubeapi.ListWatch {
	if narrow == nil {
		narrow = func(*metav1.ListOptions) {}
	}
	return kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			return c.List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			narrow(&o)
			return c.Watch(ctx, o)
		},
	)
}

// addFeeds makes the feeds that every agent has.
func (s *Source) addFeeds() {
	core := s.cfg.Clients.Core.CoreV1()
	add := func(f *feed) *feed {
		f.s, f.lastWait, f.tried = s, lastWait, make(chan struct{})
		if f.onChange == nil {
			f.onChange = s.changed
		}
		s.feeds = append(s.feeds, f)
		return f
	}
	add(&feed{
		name: "this node", resource: "nodes", needed: true,
		source: typed(core.Nodes(), byField("metadata.name", s.cfg.Node)), sample: &corev1.Node{}, strip: stripNode,
		contents: entries(watch.KindNode, s.opt),
	})
	// Of other Nodes the metadata: their agents write their addresses there, each knows best
	// which it is reached at, and the status that kubelets write every five minutes brings 8 kB
	// and more to everybody (measured, of 50 images), where metadata are 0.5 kB.
	add(&feed{
		name: "other nodes", resource: "nodes", needed: true,
		source: metadataOf(s.cfg.Clients, corev1.SchemeGroupVersion.WithResource("nodes"), without(s.cfg.Node)),
		sample: &metav1.PartialObjectMetadata{}, strip: stripOtherNode,
		contents: entries(watch.KindNode, s.opt),
	})
	own := func(kind, resource, part string, make func() metav1.Object, narrow func(*metav1.ListOptions)) *table[entry] {
		contents := entries(kind, s.opt)
		resource, plural := resource+"."+v3.GroupName, resource
		add(&feed{
			name: resource + part, resource: resource, needed: true,
			source: items(s.cfg.Clients.V3, plural, make, narrow), sample: &item{},
			contents: contents,
		})
		return contents
	}
	own(v3.KindIPPool, "ippools", "", func() metav1.Object { return &v3.IPPool{} }, nil)
	own(v3.KindBGPConfiguration, "bgpconfigurations", "", func() metav1.Object { return &v3.BGPConfiguration{} }, nil)
	own(v3.KindBGPPeer, "bgppeers", "", func() metav1.Object { return &v3.BGPPeer{} }, nil)
	own(v3.KindFelixConfiguration, "felixconfigurations", "", func() metav1.Object { return &v3.FelixConfiguration{} }, nil)
	own(v3.KindIPAMConfiguration, "ipamconfigurations", "", func() metav1.Object { return &v3.IPAMConfiguration{} }, nil)
	own(v3.KindIPReservation, "ipreservations", "", func() metav1.Object { return &v3.IPReservation{} }, nil)
	block := func() metav1.Object { return &v3.IPAMBlock{} }
	s.ownBlocks = own(v3.KindIPAMBlock, "ipamblocks", " of this node", block, ownBlocks(s.cfg.Node))
	s.borrowed = own(v3.KindIPAMBlock, "ipamblocks", " borrowed from", block, borrowedBlocks(s.cfg.Node))

	s.pods, s.namespaces = newTable(readPod), newTable(readNamespace)
	if s.opt.Policy {
		s.pods = newTable(readPodForPolicy)
	}
	s.podFeed = add(&feed{
		name: "pods of this node", resource: "pods",
		source: typed(core.Pods(metav1.NamespaceAll), ownPods(s.cfg.Node)), sample: &corev1.Pod{}, strip: stripPod,
		contents: s.pods, onChange: s.wakeWaiting,
	})
	s.nsFeed = add(&feed{
		name: "namespaces", resource: "namespaces",
		source: typed(core.Namespaces(), nil), sample: &corev1.Namespace{}, strip: stripNamespace,
		contents: s.namespaces, onChange: s.wakeWaiting,
	})
	s.addIgnored(func(f *feed) {
		add(f).lastWait = lastIgnoredWait
	})
}

// secretFeed makes the feed of one Secret, narrowed by its name, so that the agent can be
// allowed to read it and no other.
func (s *Source) secretFeed(name string) *feed {
	return &feed{
		s: s, lastWait: lastWait, tried: make(chan struct{}), onChange: s.changed,
		name: "secret " + s.cfg.SecretNamespace + "/" + name, resource: "secrets", needed: true,
		source: typed(s.cfg.Clients.Core.CoreV1().Secrets(s.cfg.SecretNamespace), byField("metadata.name", name)),
		sample: &corev1.Secret{}, strip: stripSecret, contents: entries(watch.KindSecret, s.opt),
	}
}

// bare is the metadata that is used of an object.
func bare(o *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, UID: o.UID, ResourceVersion: o.ResourceVersion, CreationTimestamp: o.CreationTimestamp}
}

func stripNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{ObjectMeta: bareNode(&n.ObjectMeta), Status: corev1.NodeStatus{Addresses: n.Status.Addresses}}, nil
}

func stripOtherNode(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: bareNode(&m.ObjectMeta)}, nil
}

// bareNode is the metadata that is used of a Node.
func bareNode(n *metav1.ObjectMeta) metav1.ObjectMeta {
	out := bare(n)
	out.Labels = n.Labels
	for k, v := range n.Annotations {
		if strings.HasPrefix(k, nodeAnnotations) {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[k] = v
		}
	}
	return out
}

func stripPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{ObjectMeta: bare(&p.ObjectMeta)}
	out.Annotations = pick(p.Annotations)
	if hash := p.Annotations[annotationStatic]; hash != "" {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[annotationStatic] = hash
	}
	return out, nil
}

func stripNamespace(obj any) (any, error) {
	n, ok := obj.(*corev1.Namespace)
	if !ok {
		return obj, nil
	}
	out := &corev1.Namespace{ObjectMeta: bare(&n.ObjectMeta)}
	out.Labels, out.Annotations = n.Labels, pick(n.Annotations)
	return out, nil
}

func stripSecret(obj any) (any, error) {
	x, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	return &corev1.Secret{ObjectMeta: bare(&x.ObjectMeta), Data: x.Data}, nil
}

// pick returns the annotations of CNI, or nil when there are none.
func pick(annotations map[string]string) map[string]string {
	var out map[string]string
	for k, v := range annotations {
		if strings.HasPrefix(k, podAnnotations) {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}
