package apiserver_test

import (
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// TestApply applies a CRD and, in the same text, an object of it; then it is asked for a
// kind that nobody serves and for an object that the schema refuses.
func TestApply(t *testing.T) {
	if err := apiserver.Apply(t.Context(), config, "../../../deploy/crds"); err != nil {
		t.Fatal(err)
	}
	warnings, err := apiserver.ApplyYAML(t.Context(), config, []byte(`
apiVersion: v1
kind: Namespace
metadata: {name: applied}
---
# nothing
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: applied}}
- {apiVersion: projectcalico.org/v3, kind: IPReservation, metadata: {name: a}, spec: {reservedCIDRs: [192.0.2.0/24]}}
`))
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	for text, want := range map[string]string{
		"apiVersion: example.org/v1\nkind: Thing\nmetadata: {name: x}":                                                   "no matches for kind",
		"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.0.0.0/16, ipipMode: Some}": "spec.ipipMode",
		"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.0.0.0/16, cird: x}":        ".spec.cird: field not declared in schema",
		"apiVersion: v1\nkind: ConfigMap": "no metadata.name",
	} {
		if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}
