package watch_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// removeCRDs deletes CRDs of projectcalico.org, all unless named, and waits until the API
// server serves them no more.
func removeCRDs(t *testing.T, names ...string) {
	t.Helper()
	c := clients(t, server.Config).Metadata.Resource(crdResource)
	if len(names) == 0 {
		list, err := c.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			if strings.HasSuffix(o.Name, ".projectcalico.org") {
				names = append(names, o.Name)
			}
		}
	}
	for _, n := range names {
		if err := c.Delete(t.Context(), n, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range names {
		eventually(t, n+" deleted", func() bool {
			_, err := c.Get(t.Context(), n, metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		}, func() string { return "" })
		resource := schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: strings.TrimSuffix(n, ".projectcalico.org")}
		eventually(t, n+" not served", func() bool {
			_, err := clients(t, server.Config).Metadata.Resource(resource).List(t.Context(), metav1.ListOptions{})
			return apierrors.IsNotFound(err)
		}, func() string { return "" })
	}
}

// setSelectable sets the selectableFields of the CRD of blocks, and waits until the API
// server goes by them.
func setSelectable(t *testing.T, paths []string) error {
	t.Helper()
	value := []any{}
	for _, p := range paths {
		value = append(value, map[string]any{"jsonPath": p})
	}
	data, err := json.Marshal([]any{map[string]any{"op": "replace", "path": "/spec/versions/0/selectableFields", "value": value}})
	if err != nil {
		return err
	}
	c := clients(t, server.Config)
	if _, err := c.Metadata.Resource(crdResource).Patch(t.Context(), "ipamblocks.projectcalico.org", types.JSONPatchType, data, metav1.PatchOptions{}); err != nil {
		return err
	}
	eventually(t, "the fields", func() bool {
		err := c.V3.Get().Resource("ipamblocks").Param("fieldSelector", "spec.affinity=host:x").Do(t.Context()).Error()
		return apierrors.IsBadRequest(err) == (len(paths) == 0)
	}, func() string { return "" })
	return nil
}

func patchPodStatus(t *testing.T, namespace, name, patch string) error {
	t.Helper()
	_, err := clients(t, server.Config).Core.CoreV1().Pods(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}

// within fails the test if f takes longer.
func within(t *testing.T, most time.Duration, what string, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	if took := time.Since(begin); took > most {
		t.Errorf("%s took %v; at most %v is right", what, took, most)
	}
}

// mayRead reports whether the API server lets a user list a Secret by its name.
func mayRead(t *testing.T, user, name string) bool {
	t.Helper()
	_, err := clients(t, impersonated(server.Config, user)).Core.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	return err == nil
}

// relaxCRD lets everything pass as an object of the resource, until the CRDs are applied
// again.
func relaxCRD(t *testing.T, resource string) {
	t.Helper()
	c := clients(t, server.Config)
	const lax = `[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]`
	if _, err := c.Metadata.Resource(crdResource).Patch(t.Context(), resource+".projectcalico.org", types.JSONPatchType, []byte(lax), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	probe := []byte(`{"apiVersion":"projectcalico.org/v3","kind":"BGPPeer","metadata":{"name":"probe"},"spec":{"keepaliveTime":"soon"}}`)
	eventually(t, "the lax schema", func() bool {
		return c.V3.Post().Resource(resource).Body(probe).Do(t.Context()).Error() == nil
	}, func() string { return "" })
	remove(t, resource, "", "probe")
}
