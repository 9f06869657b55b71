package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/kubeapi"
)

// item is one object of a CustomResourceDefinition. Objects are decoded one by one, because the
// schema lets through what a Go type does not ("keepaliveTime: soon"), and one such object
// must not hide all others of its kind (DESIGN I6).
//
// The Object that is embedded is a kind of package v3, or with err not nil the metadata of
// what could not be decoded.
type item struct {
	metav1.Object
	err error
}

// GetObjectKind implements runtime.Object.
func (*item) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. An item is never changed.
func (i *item) DeepCopyObject() runtime.Object { return i }

func decodeItem(data []byte, make func() metav1.Object) (*item, error) {
	obj := make()
	err := utiljson.Unmarshal(data, obj)
	if err == nil {
		return &item{Object: obj}, nil
	}
	var meta metav1.PartialObjectMetadata
	if err := utiljson.Unmarshal(data, &meta); err != nil {
		return nil, err
	}
	return &item{&meta, err}, nil
}

// itemList is a list of items, as a reflector reads it.
type itemList struct {
	metav1.ListMeta
	Items []runtime.Object
}

// GetObjectKind implements runtime.Object.
func (*itemList) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. A list is never changed.
func (l *itemList) DeepCopyObject() runtime.Object { return l }

var parameters = runtime.NewParameterCodec(kubeapi.Scheme)

// items lists and watches a resource of projectcalico.org/v3; narrow, which may be nil,
// sets the selector, and make makes an object to decode into.
func items(c rest.Interface, resource string, make func() metav1.Object, narrow func(*metav1.ListOptions)) *kubeapi.ListWatch {
	if narrow == nil {
		narrow = func(*metav1.ListOptions) {}
	}
	return itemsOf(func() *rest.Request { return c.Get().Resource(resource) }, make, narrow)
}

// itemsAt lists and watches the resource at a path, of another API group than c's.
func itemsAt(c rest.Interface, path string, make func() metav1.Object) *kubeapi.ListWatch {
	return itemsOf(func() *rest.Request { return c.Get().AbsPath(path) }, make, func(*metav1.ListOptions) {})
}

func itemsOf(get func() *rest.Request, make func() metav1.Object, narrow func(*metav1.ListOptions)) *kubeapi.ListWatch {
	return kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			data, err := get().VersionedParams(&o, parameters).Do(ctx).Raw()
			if err != nil {
				return nil, err
			}
			return decodeList(data, make)
		},
		func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			narrow(&o)
			o.Watch = true
			body, err := get().VersionedParams(&o, parameters).Stream(ctx)
			if err != nil {
				return nil, err
			}
			return apiwatch.NewStreamWatcher(&itemStream{body, json.NewDecoder(body), make},
				apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")), nil
		},
	)
}

func decodeList(data []byte, make func() metav1.Object) (*itemList, error) {
	var raw struct {
		metav1.ListMeta `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("list of the API server: %w", err)
	}
	out := &itemList{ListMeta: raw.ListMeta}
	for _, data := range raw.Items {
		it, err := decodeItem(data, make)
		if err != nil {
			return nil, fmt.Errorf("list of the API server: %w", err)
		}
		out.Items = append(out.Items, it)
	}
	return out, nil
}

// itemStream decodes the events of a watch; it implements watch.Decoder.
type itemStream struct {
	body   io.ReadCloser
	events *json.Decoder
	make   func() metav1.Object
}

// Decode reads one event.
func (s *itemStream) Decode() (apiwatch.EventType, runtime.Object, error) {
	var e struct {
		Type   apiwatch.EventType `json:"type"`
		Object json.RawMessage    `json:"object"`
	}
	if err := s.events.Decode(&e); err != nil {
		return "", nil, err
	}
	switch e.Type {
	case apiwatch.Added, apiwatch.Modified, apiwatch.Deleted, apiwatch.Bookmark:
		it, err := decodeItem(e.Object, s.make)
		return e.Type, it, err
	case apiwatch.Error:
		var status metav1.Status
		err := json.Unmarshal(e.Object, &status)
		return e.Type, &status, err
	}
	return "", nil, fmt.Errorf("event of the unknown type %q", e.Type)
}

// Close ends the stream.
func (s *itemStream) Close() { s.body.Close() }
