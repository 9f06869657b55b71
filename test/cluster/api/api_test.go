// Package api_test shows, with a real API server, that the CRDs and admission policies of
// deploy do what Calico's users expect of them.
package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/docs/compat"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var config *rest.Config

func TestMain(m *testing.M) { apiserver.Main(m, func(c *rest.Config) { config = c }) }

const (
	crds     = "../../../deploy/crds"
	warnings = "../../../deploy/policies/warnings.yaml"
	deadline = 30 * time.Second
)

var setup struct {
	once sync.Once
	err  error
}

// ready applies the CRDs and the warnings once, and waits until a warning comes.
func ready(t *testing.T) {
	t.Helper()
	setup.once.Do(func() {
		if setup.err = apiserver.Apply(t.Context(), config, crds, warnings); setup.err != nil {
			return
		}
		// Policies are asked within about a second of being stored; each of those that
		// warn of fields must be seen, and one of a kind.
		for _, probe := range []string{
			pool("probe", "cidr: 10.0.0.0/16, natOutgoing: true"),
			object("BGPConfiguration", "default", "spec: {programClusterRoutes: Disabled}"),
			object("BGPPeer", "probe", "spec: {peerIP: 192.0.2.1, asNumber: 1, filters: [f]}"),
			object("IPAMConfiguration", "default", "spec: {kubeVirtVMAddressPersistence: Enabled}"),
			object("KubeControllersConfiguration", "default", "spec: {healthChecks: Disabled, controllers: {}}"),
			object("ClusterInformation", "default", "spec: {datastoreReady: false}"),
			object("FelixConfiguration", "probe", "spec: {}"),
			object("GlobalNetworkPolicy", "probe", "spec: {}"),
			object("IPAMHandle", "probe", "spec: {handleID: a, block: {}}"),
			kubernetesPolicy,
		} {
			if setup.err = eventuallyWarns(t.Context(), probe); setup.err != nil {
				return
			}
		}
	})
	if setup.err != nil {
		t.Fatal(setup.err)
	}
}

const kubernetesPolicy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: probe, namespace: default}, spec: {podSelector: {}}}"

func eventuallyWarns(ctx context.Context, text string) error {
	for end := time.Now().Add(deadline); ; {
		w, err := apiserver.ApplyYAML(ctx, config, []byte(text))
		if err != nil || len(w) > 0 || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// object is a manifest of projectcalico.org/v3 in flow style.
func object(kind, name, rest string) string {
	return "{apiVersion: projectcalico.org/v3, kind: " + kind + ", metadata: {name: " + name + "}, " + rest + "}"
}

func pool(name, spec string) string { return object("IPPool", name, "spec: {"+spec+"}") }

func resource(t *testing.T, o *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	quiet := rest.CopyConfig(config)
	quiet.WarningHandler = rest.NoWarnings{}
	c, err := dynamic.NewForConfig(quiet)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(compat.Kinds, func(k compat.Kind) bool { return k.Name == o.GetKind() })
	if i < 0 {
		t.Fatalf("no kind %s", o.GetKind())
	}
	r := c.Resource(v3.SchemeGroupVersion.WithResource(compat.Kinds[i].Plural))
	if o.GetNamespace() != "" {
		return r.Namespace(o.GetNamespace())
	}
	return r
}

// documents reads a file of manifests.
func documents(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []*unstructured.Unstructured
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &o.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

// missing says where want holds something that have does not, or holds something else.
func missing(path string, want, have any) []string {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return []string{path}
		}
		var out []string
		for k, v := range w {
			out = append(out, missing(path+"."+k, v, h[k])...)
		}
		return out
	case []any:
		h, ok := have.([]any)
		if !ok || len(h) != len(w) {
			return []string{path}
		}
		var out []string
		for i := range w {
			out = append(out, missing(path+"[]", w[i], h[i])...)
		}
		return out
	}
	if !reflect.DeepEqual(number(want), number(have)) {
		return []string{path}
	}
	return nil
}

// number makes numbers comparable: JSON knows one type of them.
func number(v any) any {
	switch n := v.(type) {
	case int64:
		return float64(n)
	case int:
		return float64(n)
	}
	return v
}

// TestManifests applies what users of Calico have, unchanged. What is stored holds all of it.
func TestManifests(t *testing.T) {
	ready(t)
	kinds := map[string]bool{}
	for _, o := range documents(t, "testdata/manifests.yaml") {
		kinds[o.GetKind()] = true
		text, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := apiserver.ApplyYAML(t.Context(), config, text); err != nil {
			t.Error(err)
			continue
		}
		got, err := resource(t, o).Get(t.Context(), o.GetName(), metav1.GetOptions{})
		if err != nil {
			t.Error(err)
			continue
		}
		if m := missing("", o.Object["spec"], got.Object["spec"]); len(m) > 0 {
			t.Errorf("%s %s: stored without or with other %v", o.GetKind(), o.GetName(), m)
		}
	}
	for _, k := range compat.Kinds {
		if !kinds[k.Name] {
			t.Errorf("there is no manifest of a %s", k.Name)
		}
	}
}

// TestDefaults shows what the API server fills in.
func TestDefaults(t *testing.T) {
	ready(t)
	for manifest, want := range map[string]string{
		pool("d", "cidr: 10.0.0.0/16"):                     `{cidr: 10.0.0.0/16, nodeSelector: all(), assignmentMode: Automatic}`,
		object("BGPConfiguration", "node.d", "spec: {}"):   `{logSeverityScreen: Info, serviceLoadBalancerAggregation: Enabled}`,
		object("IPAMConfiguration", "default", "spec: {}"): `{strictAffinity: false, autoAllocateBlocks: true, maxBlocksPerHost: 0}`,
		object("IPAMBlock", "192-0-2-0-32", "spec: {cidr: 192.0.2.0/32, allocations: [null], unallocated: [0], attributes: [], strictAffinity: false}"): `{cidr: 192.0.2.0/32,
		  allocations: [null], unallocated: [0], attributes: [], strictAffinity: false, sequenceNumber: 0}`,
		object("BlockAffinity", "d", `spec: {cidr: 192.0.2.0/26, node: a, state: ""}`): `{cidr: 192.0.2.0/26, node: a, state: "", deleted: false}`,
		object("Tier", "d", "spec: {}"):                      `{defaultAction: Deny}`,
		object("GlobalNetworkPolicy", "d", "spec: {}"):       `{tier: default}`,
		object("StagedGlobalNetworkPolicy", "d", "spec: {}"): `{tier: default, stagedAction: Set}`,
		object("FelixConfiguration", "d", "spec: {}"):        `{nftablesMode: Auto, nftablesFlowTableOffload: Disabled}`,
		object("KubeControllersConfiguration", "default", "spec: {controllers: {loadBalancer: {}, migration: {}}}"): `{healthChecks: Enabled,
		  controllers: {loadBalancer: {assignIPs: AllServices}, migration: {policyNameMigrator: Enabled}}}`,
	} {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(manifest), &o.Object); err != nil {
			t.Fatal(err)
		}
		r := resource(t, o)
		if err := r.Delete(t.Context(), o.GetName(), metav1.DeleteOptions{}); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Fatal(err)
		}
		if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(manifest)); err != nil {
			t.Error(err)
			continue
		}
		got, err := r.Get(t.Context(), o.GetName(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var spec map[string]any
		if err := yaml.Unmarshal([]byte(want), &spec); err != nil {
			t.Fatal(err)
		}
		if a, b := missing("", spec, got.Object["spec"]), missing("", got.Object["spec"], any(spec)); len(a)+len(b) > 0 {
			t.Errorf("%s: stored as %v, want %v", manifest, got.Object["spec"], spec)
		}
	}
}

// TestOwnBlocks lists and watches the blocks of one node by the selectable field.
func TestOwnBlocks(t *testing.T) {
	ready(t)
	c, err := kubeapi.New(config)
	if err != nil {
		t.Fatal(err)
	}
	blocks := kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](c.V3, "ipamblocks", "")
	block := func(name, cidr, node string) *v3.IPAMBlock {
		owner := "host:" + node
		return &v3.IPAMBlock{
			TypeMeta: metav1.TypeMeta{APIVersion: v3.SchemeGroupVersion.String(), Kind: v3.KindIPAMBlock}, ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: v3.IPAMBlockSpec{CIDR: cidr, Affinity: &owner, Allocations: []*int{nil}, Unallocated: []int{0}, Attributes: []v3.AllocationAttribute{}},
		}
	}
	for _, b := range []*v3.IPAMBlock{block("198-51-100-1-32", "198.51.100.1/32", "own"), block("198-51-100-2-32", "198.51.100.2/32", "other")} {
		if _, err := blocks.Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mine := metav1.ListOptions{FieldSelector: "spec.affinity=host:own"}
	list, err := blocks.List(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Name != "198-51-100-1-32" || list.Items[0].Spec.Allocations[0] != nil {
		t.Fatalf("listed %+v", list.Items)
	}
	w, err := watchtools.NewRetryWatcherWithContext(t.Context(), list.ResourceVersion, cache.ToWatcherWithContext(&cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = mine.FieldSelector
			return blocks.Watch(ctx, o)
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, b := range []*v3.IPAMBlock{block("198-51-100-3-32", "198.51.100.3/32", "other"), block("198-51-100-4-32", "198.51.100.4/32", "own")} {
		if _, err := blocks.Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := blocks.MergePatch(t.Context(), "198-51-100-4-32", []byte(`{"spec":{"affinity":"host:other"}}`)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Deleted} { // a block that changes hands leaves the view
		select {
		case e := <-w.ResultChan():
			if b, ok := e.Object.(*v3.IPAMBlock); !ok || e.Type != want || b.Name != "198-51-100-4-32" {
				t.Fatalf("%s %+v, want %s of 198-51-100-4-32", e.Type, e.Object, want)
			}
		case <-time.After(deadline):
			t.Fatalf("no %s in time", want)
		}
	}
}

// TestColumns asks for tables, as kubectl does.
func TestColumns(t *testing.T) {
	ready(t)
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{
		pool("columns", "cidr: 10.77.0.0/16, vxlanMode: Always, natOutgoing: true"),
		object("Tier", "columns", "spec: {order: 7}"),
		object("GlobalNetworkPolicy", "columns", "spec: {tier: columns, order: 2.5}"),
		object("BGPPeer", "columns", "spec: {node: node-1, peerIP: 192.0.2.1, asNumber: 64600}"),
	} {
		if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	for plural, want := range map[string]struct {
		columns string
		row     []any // after the name, without the age
	}{
		"ippools":                       {"Name CIDR VXLAN IPIP NAT Allocatable Age", []any{"10.77.0.0/16", "Always", nil, true, nil}},
		"tiers":                         {"Name Order DefaultAction Status", []any{7.0, "Deny", nil}},
		"globalnetworkpolicies":         {"Name Tier Order Age", []any{"columns", 2.5}},
		"bgppeers":                      {"Name Node-Selector Node Local-ASN Peer-Selector Peer-IP Peer-ASN", []any{nil, "node-1", nil, nil, "192.0.2.1", "64600"}},
		"ipamblocks":                    {"Name CIDR Affinity ClaimTime", nil},
		"bgpfilters":                    {"Name Age", nil},
		"stagednetworkpolicies":         {"Name Tier Order", nil},
		"hostendpoints":                 {"Name Node Interface", nil},
		"caliconodestatuses":            {"Name Node Classes", nil},
		"clusterinformations":           {"Name Version Ready Types", nil},
		"felixconfigurations":           {"Name Age", nil},
		"blockaffinities":               {"Name CIDR Node Type", nil},
		"ipamhandles":                   {"Name ID", nil},
		"globalnetworksets":             {"Name Age", nil},
		"ipamconfigurations":            {"Name StrictAffinity MaxBlocksPerHost AutoAllocateBlocks", nil},
		"kubecontrollersconfigurations": {"Name Age", nil},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+"/apis/projectcalico.org/v3/"+plural, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var table metav1.Table
		err = json.NewDecoder(resp.Body).Decode(&table)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range table.ColumnDefinitions {
			names = append(names, strings.ReplaceAll(c.Name, " ", "-"))
		}
		if got := strings.Join(names, " "); got != want.columns {
			t.Errorf("%s: columns %q, want %q", plural, got, want.columns)
		}
		if want.row == nil {
			continue
		}
		i := slices.IndexFunc(table.Rows, func(r metav1.TableRow) bool { return r.Cells[0] == "columns" })
		if i < 0 {
			t.Errorf("%s: no row", plural)
			continue
		}
		if got := table.Rows[i].Cells[1 : 1+len(want.row)]; !reflect.DeepEqual(got, want.row) {
			t.Errorf("%s: %#v, want %#v", plural, got, want.row)
		}
	}
}
