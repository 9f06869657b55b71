package v3

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/causeway-net/causeway/api/v3/internal/facts"
)

// deliberate are the differences from the schema that users know; nothing that the schema
// accepts and an agent could act on is refused.
var deliberate = []struct {
	fields *regexp.Regexp // of "Kind .path"
	attrs  string         // that may differ
	why    string
}{
	{re(`^BGP(Configuration|Peer) .spec.(asNumber|localASNumber)$`), "format minimum maximum", "AS numbers reach 4294967295 (RFC 6793); 0 is none (RFC 7607)"},
	{re(`^BGPFilter .*(asPathPrefix|prependASPath.prefix)\[\]$`), "format minimum maximum", "AS numbers reach 4294967295"},
	{re(`^BGPPeer .spec.(numAllowedLocalASNumbers|ttlSecurity)$`), "minimum maximum", "what the protocol can carry"},
	{re(`^BGP(Configuration|Peer) .spec.(nodeMeshM|m)axRestartTime$`), "maxLength", "bounds the cost of a rule"},
	{re(`^BGPPeer .spec.keepaliveTime$`), "maxLength", "bounds the cost of a rule"},
	{re(`^BGPConfiguration .spec.localWorkloadPeeringIPV[46]$`), "maxLength", "bounds the cost of a rule; an address is no longer"},
	{re(`^BGPConfiguration .spec.(service\w+IPs|prefixAdvertisements)\[\].cidr$`), "maxLength", "bounds the cost of a rule; a CIDR is no longer"},
	{re(`^BGPConfiguration .spec.service\w+IPs$`), "maxItems", "bounds the cost of a rule"},
	{re(`^IPAMBlock .spec.cidr$`), "maxLength", "bounds the cost of a rule; a CIDR is no longer"},
	{re(`^IPReservation .spec.reservedCIDRs(\[\])?$`), "format maxItems maxLength", "a rule accepts single addresses, too, as Calico's own manifests have them; no larger list fits into etcd"},
	{re(`^(Global)?NetworkSet .spec.nets(\[\])?$`), "maxItems maxLength", "bounds the cost of a rule; no larger list fits into etcd"},
	{re(`^HostEndpoint .spec.expectedIPs(\[\])?$`), "maxItems maxLength", "bounds the cost of a rule"},
	{re(`NetworkPolicy .*\.(n|notN)ets\[\]$`), "maxLength", "a CIDR is no longer"},
	{re(`NetworkPolicy .*\.(p|notP)orts\[\]$`), "pattern", "refuses what is no port"},
	{re(`NetworkPolicy .*\.(p|notP)rotocol$`), "pattern", "refuses what is no protocol"},
	{re(`^HostEndpoint .spec.ports\[\].protocol$`), "pattern", "refuses what is no protocol"},
	{re(`^FelixConfiguration .spec.(bpfPSNATPorts|natPortRange|kubeNodePortRanges\[\])$`), "pattern", "refuses what is no port"},
}

func re(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// bentPattern is the pattern of durations in the schema, which by mistake wants a backslash
// before a fraction; ours takes "1.5s", too.
const bentPattern = `"^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))*$"`

// TestSchema compares the CRDs with what is known of Calico's, field by field.
func TestSchema(t *testing.T) {
	known := map[string]map[string]string{}
	text, err := os.ReadFile("testdata/schema.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		field, attrs := facts.Parse(l)
		known[field] = attrs
	}
	ours := map[string]map[string]string{}
	for _, k := range crds(t) {
		for _, l := range k.Lines() {
			field, attrs := facts.Parse(l)
			ours[field] = attrs
		}
	}
	used := make([]bool, len(deliberate))
	excused := func(field, attr string) bool {
		for i, d := range deliberate {
			if d.fields.MatchString(field) && slices.Contains(strings.Fields(d.attrs), attr) {
				used[i] = true
				return true
			}
		}
		return false
	}
	for _, field := range slices.Sorted(maps.Keys(known)) {
		have, ok := ours[field]
		if !ok {
			t.Errorf("%s is missing", field)
			continue
		}
		attrs := maps.Clone(known[field])
		maps.Copy(attrs, have)
		for _, attr := range slices.Sorted(maps.Keys(attrs)) {
			was, is := known[field][attr], have[attr]
			if was == is || excused(field, attr) || was == bentPattern && is == strings.ReplaceAll(bentPattern, `\\\\`, `\\`) {
				continue
			}
			t.Errorf("%s: %s is %s, want %s", field, attr, is, was)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(ours)) {
		if _, ok := known[field]; !ok {
			t.Errorf("%s is not in the schema", field)
		}
	}
	for i, d := range deliberate {
		if !used[i] {
			t.Errorf("no field differs as %v (%s) says", d.fields, d.attrs)
		}
	}
}

// crds reads the manifests of the CRDs.
func crds(t *testing.T) []facts.Kind {
	t.Helper()
	files, err := filepath.Glob("../../deploy/crds/projectcalico.org_*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []facts.Kind
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Metadata struct{ Name string }
			Spec     struct {
				Group, Scope string
				Names        struct {
					Kind, Plural string
					ShortNames   []string
				}
				Versions []struct {
					Name                     string
					Served, Storage          bool
					AdditionalPrinterColumns []facts.Column
					Subresources             map[string]any
					Schema                   struct {
						OpenAPIV3Schema struct{ Properties map[string]any }
					}
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		s := crd.Spec
		if len(s.Versions) != 1 || !s.Versions[0].Served || !s.Versions[0].Storage || crd.Metadata.Name != s.Names.Plural+"."+s.Group {
			t.Fatalf("%s: want one version, served and stored, and the name %s.%s", file, s.Names.Plural, s.Group)
		}
		v := s.Versions[0]
		for _, p := range []string{"apiVersion", "kind", "metadata"} {
			delete(v.Schema.OpenAPIV3Schema.Properties, p)
		}
		out = append(out, facts.Kind{
			Kind: s.Names.Kind, Plural: s.Names.Plural, Scope: s.Scope, Group: s.Group, Version: v.Name,
			ShortNames: s.Names.ShortNames, Subresources: slices.Collect(maps.Keys(v.Subresources)),
			Columns: v.AdditionalPrinterColumns, Schema: v.Schema.OpenAPIV3Schema.Properties,
		})
	}
	return out
}

// TestEveryKindHasACRD holds constants, scheme and manifests together.
func TestEveryKindHasACRD(t *testing.T) {
	var have []string
	for _, k := range crds(t) {
		have = append(have, k.Kind)
	}
	slices.Sort(have)
	var want []string
	for kind := range schemeOf(t).KnownTypes(SchemeGroupVersion) {
		if crd, isList := strings.CutSuffix(kind, "List"); isList {
			want = append(want, crd)
		}
	}
	want = slices.DeleteFunc(want, func(k string) bool { return k == "" })
	slices.Sort(want)
	if !slices.Equal(have, want) || len(have) != 22 {
		t.Errorf("%d CRDs: %v, want those of the scheme: %v", len(have), have, want)
	}
}
