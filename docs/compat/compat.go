// Package compat owns what docs/compatibility.md says, as data: one row for each field, read
// out of the page's tables. The admission policies that warn at `kubectl apply` are made of it,
// and docs/compatibility_test.go holds it to the code.
package compat

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
)

// The statuses of a field.
const (
	Works    = "works"    // something acts on it
	Reported = "reported" // accepted, and a Problem says that it is not acted on
	Planned  = "planned"  // nothing reads or writes it yet
	Silent   = "silent"   // accepted, not acted on and not reported: a defect
)

// Statuses are all statuses.
var Statuses = []string{Works, Reported, Planned, Silent}

// Kind is a kind of projectcalico.org/v3.
type Kind struct {
	Name, Plural string
	Type         reflect.Type
}

// Kinds are all kinds, in the order of the page.
var Kinds = []Kind{
	{v3.KindIPPool, "ippools", reflect.TypeFor[v3.IPPool]()},
	{v3.KindIPReservation, "ipreservations", reflect.TypeFor[v3.IPReservation]()},
	{v3.KindIPAMConfiguration, "ipamconfigurations", reflect.TypeFor[v3.IPAMConfiguration]()},
	{v3.KindIPAMBlock, "ipamblocks", reflect.TypeFor[v3.IPAMBlock]()},
	{v3.KindBlockAffinity, "blockaffinities", reflect.TypeFor[v3.BlockAffinity]()},
	{v3.KindIPAMHandle, "ipamhandles", reflect.TypeFor[v3.IPAMHandle]()},
	{v3.KindBGPConfiguration, "bgpconfigurations", reflect.TypeFor[v3.BGPConfiguration]()},
	{v3.KindBGPPeer, "bgppeers", reflect.TypeFor[v3.BGPPeer]()},
	{v3.KindBGPFilter, "bgpfilters", reflect.TypeFor[v3.BGPFilter]()},
	{v3.KindTier, "tiers", reflect.TypeFor[v3.Tier]()},
	{v3.KindNetworkPolicy, "networkpolicies", reflect.TypeFor[v3.NetworkPolicy]()},
	{v3.KindGlobalNetworkPolicy, "globalnetworkpolicies", reflect.TypeFor[v3.GlobalNetworkPolicy]()},
	{v3.KindStagedNetworkPolicy, "stagednetworkpolicies", reflect.TypeFor[v3.StagedNetworkPolicy]()},
	{v3.KindStagedGlobalNetworkPolicy, "stagedglobalnetworkpolicies", reflect.TypeFor[v3.StagedGlobalNetworkPolicy]()},
	{v3.KindStagedKubernetesNetworkPolicy, "stagedkubernetesnetworkpolicies", reflect.TypeFor[v3.StagedKubernetesNetworkPolicy]()},
	{v3.KindNetworkSet, "networksets", reflect.TypeFor[v3.NetworkSet]()},
	{v3.KindGlobalNetworkSet, "globalnetworksets", reflect.TypeFor[v3.GlobalNetworkSet]()},
	{v3.KindHostEndpoint, "hostendpoints", reflect.TypeFor[v3.HostEndpoint]()},
	{v3.KindFelixConfiguration, "felixconfigurations", reflect.TypeFor[v3.FelixConfiguration]()},
	{v3.KindKubeControllersConfiguration, "kubecontrollersconfigurations", reflect.TypeFor[v3.KubeControllersConfiguration]()},
	{v3.KindCalicoNodeStatus, "caliconodestatuses", reflect.TypeFor[v3.CalicoNodeStatus]()},
	{v3.KindClusterInformation, "clusterinformations", reflect.TypeFor[v3.ClusterInformation]()},
}

// Parts are types that stand in several places and have one table of their own, by its
// heading.
var Parts = map[string][]reflect.Type{
	"Rules of policies":   {reflect.TypeFor[v3.Rule]()},
	"Ends of rules":       {reflect.TypeFor[v3.EntityRule]()},
	"Rules of BGPFilters": {reflect.TypeFor[v3.BGPFilterRuleV4](), reflect.TypeFor[v3.BGPFilterRuleV6]()},
}

// whole are types of which the field that has one is named, and nothing below it: they are
// Kubernetes' own and read as a whole or not at all.
var whole = []reflect.Type{
	reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.Duration](), reflect.TypeFor[metav1.Condition](),
	reflect.TypeFor[metav1.LabelSelector](), reflect.TypeFor[networkingv1.NetworkPolicyIngressRule](), reflect.TypeFor[networkingv1.NetworkPolicyEgressRule](),
}

var runningConfig = reflect.TypeFor[v3.KubeControllersConfigurationSpec]()

var marshaler = reflect.TypeFor[json.Marshaler]()

// Paths lists the JSON paths of a type's fields: leaves only, "[]" after a list of objects.
// Parts are leaves, too.
func Paths(t reflect.Type) []string { return fields(t, "", true) }

func fields(t reflect.Type, prefix string, top bool) []string {
	t = deref(t)
	if t.Kind() == reflect.Slice {
		elem := deref(t.Elem())
		if elem.Kind() != reflect.Struct || elem.Implements(marshaler) {
			return []string{prefix}
		}
		return fields(elem, prefix+"[]", false)
	}
	switch {
	case t.Kind() != reflect.Struct, slices.Contains(whole, t), t.Implements(marshaler):
		return []string{prefix}
	case t == runningConfig && strings.HasPrefix(prefix, ".status"): // a copy of .spec
		return []string{prefix}
	case !top && slices.ContainsFunc(partTypes(), func(p reflect.Type) bool { return p == t }):
		return []string{prefix}
	}
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta]() || f.Type == reflect.TypeFor[metav1.ObjectMeta]():
		case name == "":
			out = append(out, fields(f.Type, prefix, true)...)
		default:
			out = append(out, fields(f.Type, prefix+"."+name, false)...)
		}
	}
	return out
}

func partTypes() []reflect.Type {
	var out []reflect.Type
	for _, list := range Parts {
		out = append(out, list...)
	}
	return out
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// field is the type of the field at a path of fields, nil when there is none.
func field(t reflect.Type, path string) reflect.Type {
	for _, name := range strings.Split(strings.TrimPrefix(path, "."), ".") {
		if t = child(deref(t), name); t == nil {
			return nil
		}
	}
	return deref(t)
}

func child(t reflect.Type, name string) reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return f.Type
		}
		if tag == "" && f.Anonymous {
			if in := child(f.Type, name); in != nil {
				return in
			}
		}
	}
	return nil
}

// Row is one line of a table.
type Row struct {
	Name, Status, Note string
	Line               int
}

var rowForm = regexp.MustCompile("^\\| `([^`]+)` \\| ([a-z]+) \\|(?: (.+))? \\|$")

// Tables reads the page: its rows by the heading they stand under.
func Tables(page []byte) (map[string][]Row, error) {
	tables := map[string][]Row{}
	heading := ""
	for i, l := range strings.Split(string(page), "\n") {
		if h, ok := strings.CutPrefix(l, "## "); ok {
			heading = h
		}
		if !strings.HasPrefix(l, "| `") {
			continue
		}
		m := rowForm.FindStringSubmatch(l)
		if m == nil {
			return nil, fmt.Errorf("line %d: want | `name` | status | note |: %s", i+1, l)
		}
		if !slices.Contains(Statuses, m[2]) {
			return nil, fmt.Errorf("line %d: status %q: want one of %v", i+1, m[2], Statuses)
		}
		tables[heading] = append(tables[heading], Row{m[1], m[2], m[3], i + 1})
	}
	return tables, nil
}
