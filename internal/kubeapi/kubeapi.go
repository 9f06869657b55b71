// Package kubeapi owns how Causeway talks to the Kubernetes API: one configuration for
// the core kinds, which travel as protobuf, and one for those of projectcalico.org/v3,
// which travel as JSON (CRDs know nothing else), and typed clients for the latter.
package kubeapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	v3 "github.com/causeway-net/causeway/api/v3"
)

// Scheme knows the kinds of projectcalico.org/v3.
var Scheme = runtime.NewScheme()

var (
	codecs         = serializer.NewCodecFactory(Scheme)
	parameterCodec = runtime.NewParameterCodec(Scheme)
)

func init() {
	if err := v3.AddToScheme(Scheme); err != nil {
		panic(err) // a programmer's mistake: two types of one name
	}
	metav1.AddToGroupVersion(Scheme, metav1.SchemeGroupVersion)
}

// Load reads a kubeconfig file, or with an empty path the service account of the pod that
// this process runs in. userAgent names the program in the API server's logs and limits.
func Load(kubeconfig, userAgent string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	cfg.UserAgent = userAgent
	// The API server's priority and fairness is the limit that matters; the client's own
	// (5 a second) delays bursts that cost nobody anything.
	cfg.QPS, cfg.Burst = 100, 200
	return cfg, nil
}

// Clients are the clients of one process; they share their connections.
type Clients struct {
	Core     kubernetes.Interface // protobuf
	Metadata metadata.Interface   // objects' metadata only, of any kind, as protobuf
	V3       rest.Interface       // projectcalico.org/v3, JSON
}

// New makes the clients. Nothing is sent yet.
func New(cfg *rest.Config) (*Clients, error) {
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	return newWith(cfg, h)
}

func newWith(cfg *rest.Config, h *http.Client) (*Clients, error) {
	proto := rest.CopyConfig(cfg)
	proto.ContentType = runtime.ContentTypeProtobuf
	proto.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := kubernetes.NewForConfigAndClient(proto, h)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	meta, err := metadata.NewForConfigAndClient(cfg, h)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	own := rest.CopyConfig(cfg)
	own.GroupVersion = &v3.SchemeGroupVersion
	own.APIPath = "/apis"
	own.ContentType = runtime.ContentTypeJSON
	own.NegotiatedSerializer = codecs.WithoutConversion()
	c, err := rest.RESTClientForConfigAndClient(own, h)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	return &Clients{Core: core, Metadata: meta, V3: c}, nil
}

// object is a pointer to a kind of package v3.
type object interface {
	runtime.Object
	metav1.Object
}

// Resource is a typed client of one kind of projectcalico.org/v3. All of its methods
// return the errors of package api/errors.
type Resource[T object, L runtime.Object] struct {
	*gentype.ClientWithList[T, L]
}

// NewResource makes the client of a kind: plural is the resource's name in URLs, namespace
// is empty for kinds of cluster scope. V is the kind's struct, as v3.IPPool, and VL its
// list's.
func NewResource[V, VL any, T interface {
	*V
	object
}, L interface {
	*VL
	runtime.Object
}](c rest.Interface, plural, namespace string) Resource[T, L] {
	return Resource[T, L]{gentype.NewClientWithList(plural, c, parameterCodec, namespace,
		func() T { return T(new(V)) }, func() L { return L(new(VL)) })}
}

// Source makes what an informer lists and watches with; narrow, which may be nil, sets
// the field or label selector.
func (r Resource[T, L]) Source(narrow func(*metav1.ListOptions)) *ListWatch {
	if narrow == nil {
		narrow = func(*metav1.ListOptions) {}
	}
	return &ListWatch{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			return r.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			narrow(&o)
			return r.Watch(ctx, o)
		},
	}
}

// ListWatch is the source of an informer (cache.ListerWatcherWithContext).
type ListWatch struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// NewListWatch makes one of two functions.
func NewListWatch(list func(context.Context, metav1.ListOptions) (runtime.Object, error), w func(context.Context, metav1.ListOptions) (watch.Interface, error)) *ListWatch {
	return &ListWatch{list, w}
}

// List is ListWithContext without one; it is there because client-go asks for it.
func (l *ListWatch) List(o metav1.ListOptions) (runtime.Object, error) {
	return l.list(context.Background(), o)
}

// Watch is WatchWithContext without one.
func (l *ListWatch) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return l.watch(context.Background(), o)
}

// ListWithContext reads the objects.
func (l *ListWatch) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return l.list(ctx, o)
}

// WatchWithContext watches the objects.
func (l *ListWatch) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return l.watch(ctx, o)
}

// MergePatch sends a JSON merge patch (RFC 7386) of one object, or of its subresource.
func (r Resource[T, L]) MergePatch(ctx context.Context, name string, patch []byte, subresources ...string) (T, error) {
	return r.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, subresources...)
}

// RequestTimeout bounds one request that is not a watch.
const RequestTimeout = 30 * time.Second
