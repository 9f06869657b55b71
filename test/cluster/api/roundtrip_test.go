package api_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/causeway-net/causeway/docs/compat"
)

// without are fields that exclude each other: an object has all fields but those of one of
// the sets. Together the objects have them all. A kind that is not here has one object.
var without = map[string][][]string{
	"IPPool": {{".spec.vxlanMode"}, {".spec.ipipMode"}},
	"BGPPeer": {
		{".spec.nodeSelector", ".spec.peerSelector", ".spec.localWorkloadSelector", ".spec.nextHopMode"},
		{".spec.node", ".spec.peerIP", ".spec.reachableBy", ".spec.asNumber", ".spec.localWorkloadSelector", ".spec.keepOriginalNextHop"},
		{".spec.node", ".spec.peerIP", ".spec.reachableBy", ".spec.peerSelector", ".spec.keepOriginalNextHop"},
	},
	"FelixConfiguration":            {{".spec.routeTableRange"}, {".spec.routeTableRanges"}},
	"NetworkPolicy":                 rulesWithout(),
	"GlobalNetworkPolicy":           append(rulesWithout(".spec.preDNAT"), []string{".spec.doNotTrack", ".spec.egress", ".spec.ingress"}),
	"StagedNetworkPolicy":           rulesWithout(),
	"StagedGlobalNetworkPolicy":     append(rulesWithout(".spec.preDNAT"), []string{".spec.doNotTrack", ".spec.egress", ".spec.ingress"}),
	"StagedKubernetesNetworkPolicy": {{}},
}

// rulesWithout are the fields of rules that exclude each other, with more that is left out
// wherever the fields are too many.
func rulesWithout(more ...string) [][]string {
	never := append([]string{".spec.ingress[].destination.services", ".spec.egress[].source.services", ".spec.egress[].http"}, more...)
	services := []string{".spec.ingress[].source.services", ".spec.egress[].destination.services"}
	ports := []string{}
	ends := []string{}
	for _, end := range []string{".spec.ingress[].source", ".spec.ingress[].destination", ".spec.egress[].source", ".spec.egress[].destination"} {
		ports = append(ports, end+".ports", end+".notPorts")
		if !slices.Contains(services, end+".services") {
			continue
		}
		for _, f := range []string{".selector", ".notSelector", ".namespaceSelector", ".serviceAccounts", ".nets", ".notNets"} {
			ends = append(ends, end+f)
		}
	}
	icmp := []string{".spec.ingress[].icmp", ".spec.egress[].icmp"}
	http := ".spec.ingress[].http.paths[].exact"
	return [][]string{
		slices.Concat(never, services, icmp, []string{http}),
		slices.Concat(never, ends, ports, []string{".spec.ingress[].http"}),
		slices.Concat(never, services, icmp, []string{".spec.ingress[].http.paths[].prefix"}),
	}
}

// impossible are fields that no valid object can have.
var impossible = []string{".spec.ingress[].destination.services", ".spec.egress[].source.services", ".spec.egress[].http"}

// values are those that the schema alone does not tell.
var values = map[string]any{
	"IPPool .spec.allowedUses":                                                    []any{"Workload"},
	"IPPool .spec.blockSize":                                                      float64(27),
	"IPReservation .spec.reservedCIDRs[]":                                         "192.0.2.0/24",
	"BGPPeer .spec.peerIP":                                                        "192.0.2.1",
	"BGPPeer .spec.reachableBy":                                                   "192.0.2.2",
	"BGPPeer .spec.asNumber":                                                      float64(4294967295),
	"BGPConfiguration .spec.asNumber":                                             float64(4294967295),
	"BGPConfiguration .spec.localWorkloadPeeringIPV4":                             "192.0.2.1",
	"BGPConfiguration .spec.localWorkloadPeeringIPV6":                             "2001:db8::1",
	"IPAMBlock .spec.allocations[]":                                               nil,
	"HostEndpoint .spec.expectedIPs[]":                                            "192.0.2.1",
	"FelixConfiguration .spec.featureDetectOverride":                              "a=true",
	"FelixConfiguration .spec.featureGates":                                       "a=b",
	"FelixConfiguration .spec.logActionRateLimit":                                 "10/second",
	"StagedKubernetesNetworkPolicy .spec.podSelector.matchExpressions[].operator": "In",
}

// names are those of the one object that some kinds have, and of a block.
var names = map[string]string{
	"BGPConfiguration": "default", "IPAMConfiguration": "default", "ClusterInformation": "default", "KubeControllersConfiguration": "default",
	"IPAMBlock": "192-0-2-0-24",
}

// filler makes an object that has all fields of a schema.
type filler struct {
	kind string
	omit []string
	has  map[string]bool // the leaves that were filled
}

func (f *filler) fill(path string, s map[string]any) any {
	if v, ok := values[f.kind+" "+path]; ok {
		f.has[path] = true
		return v
	}
	typ, _ := s["type"].(string)
	switch {
	case s["x-kubernetes-int-or-string"] == true:
		f.has[path] = true
		if strings.HasSuffix(path, "otocol") {
			return map[bool]any{true: "TCP", false: "ICMP"}[slices.Contains(f.omit, ".spec.ingress[].icmp") || f.kind == "HostEndpoint"]
		}
		return "8080"
	case typ == "object" && s["properties"] != nil:
		return f.properties(path, s)
	case typ == "object":
		f.has[path] = true
		inner, _ := s["additionalProperties"].(map[string]any)
		return map[string]any{"key": f.fill(path+"{}", inner)}
	case typ == "array":
		items := s["items"].(map[string]any)
		if items["maxProperties"] == float64(1) { // each property in an item of its own
			var list []any
			for _, name := range slices.Sorted(maps.Keys(items["properties"].(map[string]any))) {
				list = append(list, map[string]any{name: f.fill(path+"[]."+name, items["properties"].(map[string]any)[name].(map[string]any))})
			}
			return list
		}
		f.has[path] = true
		return []any{f.fill(path+"[]", items)}
	}
	f.has[path] = true
	return f.scalar(path, typ, s)
}

func (f *filler) properties(path string, s map[string]any) map[string]any {
	out := map[string]any{}
	for name, p := range s["properties"].(map[string]any) {
		if at := path + "." + name; !slices.Contains(f.omit, at) {
			out[name] = f.fill(at, p.(map[string]any))
		}
	}
	return out
}

func (f *filler) scalar(path, typ string, s map[string]any) any {
	if list, ok := s["enum"].([]any); ok {
		for _, v := range list {
			if v != s["default"] && v != "" && v != "Delete" {
				return v
			}
		}
	}
	switch typ {
	case "boolean":
		return true
	case "number":
		return 2.5
	case "integer":
		if least, ok := s["minimum"].(float64); ok {
			return least + 1
		}
		return float64(7)
	}
	switch s["format"] {
	case "cidr":
		if strings.Contains(path, "V6") {
			return "2001:db8::/64"
		}
		return "192.0.2.0/24"
	case "date-time":
		return "2026-01-02T03:04:05Z"
	}
	pattern, _ := s["pattern"].(string)
	lower := strings.ToLower(path)
	switch {
	case strings.Contains(pattern, "Trace|"), strings.Contains(pattern, "Off|"):
		return "Debug"
	case strings.HasPrefix(pattern, "^(?i)("):
		word, _, _ := strings.Cut(strings.TrimPrefix(pattern, "^(?i)("), "|")
		return word
	case strings.Contains(pattern, "(host|virtual)"):
		return "host:a"
	case strings.Contains(pattern, "):("):
		return "64512:1"
	case strings.Contains(pattern, "ms|"), strings.HasSuffix(lower, "time"), strings.HasSuffix(lower, "period"), strings.HasSuffix(lower, "timeout"), strings.HasSuffix(lower, "interval"):
		return "30s"
	case strings.Contains(lower, "nets[]"):
		return "192.0.2.0/24"
	}
	return "word"
}

// leaves lists the fields of a schema that have a value.
func leaves(path string, s map[string]any) []string {
	typ, _ := s["type"].(string)
	properties, _ := s["properties"].(map[string]any)
	items, _ := s["items"].(map[string]any)
	switch {
	case typ == "object" && properties != nil:
		var out []string
		for name, p := range properties {
			out = append(out, leaves(path+"."+name, p.(map[string]any))...)
		}
		return out
	case typ == "array" && items["type"] == "object":
		return leaves(path+"[]", items)
	}
	return []string{path}
}

// TestEveryField stores objects that have all fields of their kind, spec and status, and
// reads them: nothing is pruned, and the Go type holds all of it.
func TestEveryField(t *testing.T) {
	ready(t)
	for _, k := range compat.Kinds {
		t.Run(k.Name, func(t *testing.T) {
			schema, namespaced := schemaOf(t, k.Plural)
			filled := map[string]bool{}
			variants := without[k.Name]
			if variants == nil {
				variants = [][]string{{}}
			}
			for _, omit := range variants {
				f := &filler{kind: k.Name, omit: omit, has: filled}
				o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "projectcalico.org/v3", "kind": k.Name}}
				o.SetName("full")
				if name, ok := names[k.Name]; ok {
					o.SetName(name)
				}
				if namespaced {
					o.SetNamespace("default")
				}
				for part, s := range schema {
					o.Object[part] = f.fill("."+part, s.(map[string]any))
				}
				f.settle(o.Object["spec"].(map[string]any))
				store(t, k, o)
			}
			for part, s := range schema {
				for _, l := range leaves("."+part, s.(map[string]any)) {
					if !filled[l] && !slices.ContainsFunc(impossible, func(p string) bool { return l == p || strings.HasPrefix(l, p+".") || strings.HasPrefix(l, p+"[") }) {
						t.Errorf("no object has %s", l)
					}
				}
			}
		})
	}
}

// settle removes what the fields beside it forbid.
func (f *filler) settle(spec map[string]any) {
	if spec["preDNAT"] == true {
		spec["types"] = []any{"Ingress"}
	}
}

// store creates o, reads it and compares; then it removes it.
func store(t *testing.T, k compat.Kind, o *unstructured.Unstructured) {
	t.Helper()
	r := resource(t, o)
	if err := r.Delete(t.Context(), o.GetName(), metav1.DeleteOptions{}); err != nil && !strings.Contains(err.Error(), "not found") {
		t.Fatal(err)
	}
	got, err := r.Create(t.Context(), o, metav1.CreateOptions{FieldValidation: "Strict"})
	if err != nil {
		t.Error(err)
		return
	}
	if o.Object["status"] != nil && got.Object["status"] == nil { // the status has a resource of its own
		got.Object["status"] = o.Object["status"]
		if got, err = r.UpdateStatus(t.Context(), got, metav1.UpdateOptions{FieldValidation: "Strict"}); err != nil {
			t.Error(err)
			return
		}
	}
	for _, part := range []string{"spec", "status"} {
		if m := missing("."+part, o.Object[part], got.Object[part]); len(m) > 0 {
			t.Errorf("stored without or with other %v", m)
		}
	}
	text, err := json.Marshal(got.Object)
	if err != nil {
		t.Fatal(err)
	}
	typed := reflect.New(k.Type).Interface()
	if err := yaml.UnmarshalStrict(text, typed); err != nil {
		t.Errorf("the Go type: %v", err)
		return
	}
	back, err := json.Marshal(typed)
	if err != nil {
		t.Fatal(err)
	}
	var again map[string]any
	if err := json.Unmarshal(back, &again); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"spec", "status"} {
		if m := missing("."+part, o.Object[part], again[part]); len(m) > 0 {
			t.Errorf("the Go type lost or changed %v", m)
		}
	}
	if err := r.Delete(t.Context(), o.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// schemaOf reads the schemas of spec and status out of a kind's CRD.
func schemaOf(t *testing.T, plural string) (parts map[string]any, namespaced bool) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(crds, "projectcalico.org_"+plural+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Scope    string
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema struct{ Properties map[string]any }
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	parts = crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties
	for _, p := range []string{"apiVersion", "kind", "metadata"} {
		delete(parts, p)
	}
	return parts, crd.Spec.Scope == "Namespaced"
}
