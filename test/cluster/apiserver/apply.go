package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// FieldManager owns the fields that Apply and ApplyYAML set.
const FieldManager = "causeway-test"

// settleTime bounds the wait for a CRD to be served.
const settleTime = 30 * time.Second

const crdKind = "CustomResourceDefinition"

// Apply applies, on the server's side, the objects of the files; of a folder all files
// *.yaml. CRDs go first, and those after them are applied when the CRDs are served.
//
// Admission policies are stored when it returns; the API server begins to ask them within
// about a second.
func Apply(ctx context.Context, cfg *rest.Config, paths ...string) error {
	var all []*unstructured.Unstructured
	for _, path := range paths {
		files := []string{path}
		if st, err := os.Stat(path); err != nil {
			return err
		} else if st.IsDir() {
			if files, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil {
				return err
			}
			if len(files) == 0 {
				return fmt.Errorf("%s holds no *.yaml", path)
			}
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			objects, err := parse(data)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			all = append(all, objects...)
		}
	}
	_, err := apply(ctx, cfg, all)
	return err
}

// ApplyYAML applies the documents of data as Apply does, and returns the warnings that the
// API server sent with its answers, in order. One that is refused does not keep the others
// from being applied.
func ApplyYAML(ctx context.Context, cfg *rest.Config, data []byte) (warnings []string, err error) {
	objects, err := parse(data)
	if err != nil {
		return nil, err
	}
	return apply(ctx, cfg, objects)
}

// parse reads the documents that have a kind; a document without any content is skipped.
func parse(data []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		doc, err := r.Read()
		if err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		var o unstructured.Unstructured
		text, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(text)) == "null" {
			continue
		}
		if err := o.UnmarshalJSON(text); err != nil {
			return nil, err
		}
		if o.IsList() {
			err := o.EachListItem(func(item runtime.Object) error {
				out = append(out, item.(*unstructured.Unstructured))
				return nil
			})
			if err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, &o)
	}
}

// warningLog keeps what the API server warns of.
type warningLog struct {
	mu   sync.Mutex
	text []string
}

// HandleWarningHeader keeps one warning; 299 is the only code that the API server sends.
func (w *warningLog) HandleWarningHeader(code int, _, text string) {
	if code != 299 || text == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, text)
}

// applier applies objects with what one API server serves.
type applier struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func apply(ctx context.Context, cfg *rest.Config, objects []*unstructured.Unstructured) ([]string, error) {
	log := &warningLog{}
	cfg = rest.CopyConfig(cfg)
	cfg.WarningHandler, cfg.WarningHandlerWithContext = log, nil
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	defer h.CloseIdleConnections()
	a, err := newApplier(cfg, h)
	if err != nil {
		return nil, err
	}
	crds := slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool { return o.GetKind() != crdKind })
	others := slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool { return o.GetKind() == crdKind })
	var errs []error
	for _, o := range crds {
		errs = append(errs, a.apply(ctx, o))
	}
	if err := errors.Join(errs...); err != nil {
		return log.text, err
	}
	for _, o := range crds {
		if err := a.served(ctx, o); err != nil {
			return log.text, err
		}
	}
	if len(crds) > 0 {
		a.mapper.Reset()
	}
	for _, o := range others {
		errs = append(errs, a.apply(ctx, o))
	}
	return log.text, errors.Join(errs...)
}

func newApplier(cfg *rest.Config, h *http.Client) (*applier, error) {
	dyn, err := dynamic.NewForConfigAndClient(cfg, h)
	if err != nil {
		return nil, err
	}
	disc, err := discovery.NewDiscoveryClientForConfigAndClient(cfg, h)
	if err != nil {
		return nil, err
	}
	return &applier{dyn, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disc))}, nil
}

func (a *applier) apply(ctx context.Context, o *unstructured.Unstructured) error {
	gvk := o.GroupVersionKind()
	name := fmt.Sprintf("%s %s", gvk.Kind, o.GetName())
	if o.GetName() == "" {
		return fmt.Errorf("%s: no metadata.name", gvk.Kind)
	}
	m, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var c dynamic.ResourceInterface = a.dynamic.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		ns := o.GetNamespace()
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
		c = a.dynamic.Resource(m.Resource).Namespace(ns)
	}
	if _, err := c.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// served waits until a CRD is Established and its served versions answer a list and are in
// the discovery document.
func (a *applier) served(ctx context.Context, crd *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		missing, err := a.missing(ctx, crd.GetName())
		if err == nil && missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s %s: %s after %v", crdKind, crd.GetName(), missing, settleTime), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// missing says what a CRD still lacks, or nothing.
func (a *applier) missing(ctx context.Context, name string) (string, error) {
	crd, err := a.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "not stored", err
	}
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return "no conditions", err
	}
	established := slices.ContainsFunc(conditions, func(c any) bool {
		m, ok := c.(map[string]any)
		return ok && m["type"] == "Established" && m["status"] == "True"
	})
	if !established {
		return fmt.Sprintf("not Established (conditions %v)", conditions), nil
	}
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return "no versions", err
	}
	for _, v := range versions {
		m, ok := v.(map[string]any)
		if !ok || m["served"] != true {
			continue
		}
		version, _ := m["name"].(string)
		_, err := a.dynamic.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural}).List(ctx, metav1.ListOptions{Limit: 1})
		if apierrors.IsNotFound(err) {
			return version + " not served", nil
		} else if err != nil {
			return version + " not served", err
		}
		if _, err := a.mapper.RESTMapping(schema.GroupKind{Group: group, Kind: kind}, version); err != nil {
			a.mapper.Reset()
			return version + " not in the discovery document", nil
		}
	}
	return "", nil
}
