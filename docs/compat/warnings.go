package compat

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	v3 "github.com/causeway-net/causeway/api/v3"
)

//go:generate go run ../genwarnings

// asksFor says, for fields whose default is neither absent nor empty nor false, when they ask
// for something, in CEL: "value" is the field's. The API server fills in defaults before
// policies are asked, so that a plain manifest must not be warned of them.
var asksFor = map[string]string{
	"IPPool .spec.ipipMode":                                                       "value != 'Never'",
	"IPPool .spec.vxlanMode":                                                      "value != 'Never'",
	"IPPool .spec.namespaceSelector":                                              "!(value in ['', 'all()'])",
	"BGPConfiguration .spec.logSeverityScreen":                                    "!(value in ['', 'Info', 'info', 'INFO'])",
	"BGPConfiguration .spec.serviceLoadBalancerAggregation":                       "value != 'Enabled'",
	"BGPConfiguration .spec.programClusterRoutes":                                 "value != 'Enabled'",
	"FelixConfiguration .spec.nftablesMode":                                       "value == 'Enabled'",
	"FelixConfiguration .spec.nftablesFlowTableOffload":                           "value != 'Disabled'",
	"FelixConfiguration .spec.logSeverityScreen":                                  "!(value in ['', 'Info', 'info', 'INFO'])",
	"FelixConfiguration .spec.floatingIPs":                                        "value != 'Disabled'",
	"FelixConfiguration .spec.reportingInterval":                                  "value != '0s'",
	"FelixConfiguration .spec.ipv6Support":                                        "!value",
	"FelixConfiguration .spec.bpfConnectTimeLoadBalancing":                        "value != 'TCP'",
	"FelixConfiguration .spec.bpfHostNetworkedNATWithoutCTLB":                     "value != 'Enabled'",
	"IPAMConfiguration .spec.kubeVirtVMAddressPersistence":                        "value != 'Disabled'",
	"KubeControllersConfiguration .spec.healthChecks":                             "value != 'Enabled'",
	"KubeControllersConfiguration .spec.logSeverityScreen":                        "!(value in ['', 'Info'])",
	"KubeControllersConfiguration .spec.controllers.migration.policyNameMigrator": "value != 'Enabled'",
	"ClusterInformation .spec.datastoreReady":                                     "!value",
}

// onlyInDefault are fields of a BGPConfiguration that are acted on in the object "default" and
// not in that of one node.
var onlyInDefault = []string{"nodeMeshPassword", "nodeMeshMaxRestartTime", "bindMode", "ipv4NormalRoutePriority", "ipv6NormalRoutePriority"}

// ownTiers are tiers that a cluster has anyway.
var ownTiers = []string{v3.DefaultTier, "adminnetworkpolicy", "baselineadminnetworkpolicy", "kube-admin", "kube-baseline"}

// validation is one rule of a ValidatingAdmissionPolicy.
type validation struct {
	Expression        string `yaml:"expression"`
	Message           string `yaml:"message,omitempty"`
	MessageExpression string `yaml:"messageExpression,omitempty"`
}

// Warnings makes the admission policies that warn of what is not acted on. Fields of a kind
// of which nothing works bring one warning together.
func Warnings(tables map[string][]Row) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString("# Made by `go generate ./docs/...` from docs/compatibility.md.\n#\n" +
		"# These policies refuse nothing. An object that asks for what Causeway does not act on is\n" +
		"# stored, and kubectl prints a warning that names the field.\n")
	var unused, unenforced, never []string
	asked := map[string]bool{}
	for _, k := range Kinds {
		rows := tables[k.Name]
		switch {
		case len(rows) == 0:
			return nil, fmt.Errorf("compatibility.md has no rows for %s", k.Name)
		case k.Name == v3.KindIPAMBlock: // agents write these, not people
			continue
		case slices.ContainsFunc(rows, func(r Row) bool { return r.Status == Works }):
			list, err := fieldWarnings(k, rows, asked)
			if err != nil {
				return nil, err
			}
			if len(list) > 0 {
				if err := write(&out, policyName(k.Name), v3.GroupName, v3.SchemeGroupVersion.Version, []string{k.Plural}, list); err != nil {
					return nil, err
				}
			}
		case !slices.ContainsFunc(rows, func(r Row) bool { return r.Status != Reported }):
			never = append(never, k.Plural)
		case k.Name == v3.KindNetworkPolicy || k.Name == v3.KindGlobalNetworkPolicy:
			unenforced = append(unenforced, k.Plural)
		default:
			unused = append(unused, k.Plural)
		}
	}
	for field := range asksFor {
		if kind, path, _ := strings.Cut(field, " "); !asked[field] && !slices.ContainsFunc(tables[kind], func(r Row) bool { return r.Name == path }) {
			return nil, fmt.Errorf("compatibility.md has no row %s, which asksFor names", field)
		}
	}
	const enforced = "is stored, but policies are not enforced yet: all traffic is let through"
	for _, w := range []struct {
		name, group, version string
		resources            []string
		text                 string
	}{
		{"unused-kinds", v3.GroupName, "v3", unused, "is stored, but Causeway does not act on this kind yet"},
		{"foreign-kinds", v3.GroupName, "v3", never, "is stored, but Causeway does not read this kind: what it says stands in IPAMBlocks"},
		{"policies", v3.GroupName, "v3", unenforced, enforced},
	} {
		if len(w.resources) == 0 {
			continue
		}
		passes := "false"
		if slices.Contains(w.resources, "tiers") {
			passes = "request.kind.kind == 'Tier' && object.metadata.name in ['" + strings.Join(ownTiers, "', '") + "']"
		}
		list := []validation{{passes, "", "request.kind.kind + ' ' + object.metadata.name + ' " + w.text + "'"}}
		if err := write(&out, w.name, w.group, w.version, w.resources, list); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

func policyName(kind string) string { return strings.ToLower(kind) }

// fieldWarnings makes one warning for each field of .spec that is not acted on; a list brings
// one, however many of its items' fields there are.
func fieldWarnings(k Kind, rows []Row, asked map[string]bool) ([]validation, error) {
	var out []validation
	seen := map[string]bool{}
	for _, r := range rows {
		path, _, _ := strings.Cut(r.Name, "[]")
		if r.Status != Reported && r.Status != Planned || !strings.HasPrefix(path, ".spec.") || seen[path] {
			continue
		}
		seen[path] = true
		t := field(k.Type, path)
		if t == nil {
			return nil, fmt.Errorf("line %d: %s has no field %s", r.Line, k.Name, path)
		}
		asks, ok := asksFor[k.Name+" "+path]
		if ok {
			asked[k.Name+" "+path] = true
		} else {
			asks = asksWhenSet(t)
		}
		var there []string
		parts := strings.Split(strings.TrimPrefix(path, "."), ".")
		for i := range parts {
			there = append(there, "has(object."+strings.Join(parts[:i+1], ".")+")")
		}
		if asks != "" {
			there = append(there, strings.ReplaceAll(asks, "value", "object"+path))
		}
		text := strings.TrimPrefix(path, ".") + " is stored, but Causeway does not act on it"
		if note := firstSentence(r.Note); note != "" {
			text += " (" + note + ")"
		}
		out = append(out, validation{Expression: "!(" + strings.Join(there, " && ") + ")", Message: text})
	}
	if k.Name == v3.KindBGPConfiguration {
		for _, f := range onlyInDefault {
			out = append(out, validation{
				Expression: "!(object.metadata.name.startsWith('node.') && has(object.spec) && has(object.spec." + f + "))",
				Message:    "spec." + f + " is stored, but Causeway acts on it in the BGPConfiguration default only",
			})
		}
	}
	return out, nil
}

// asksWhenSet is when a field without a word in asksFor asks for something.
func asksWhenSet(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "value"
	case reflect.Slice, reflect.Map, reflect.String:
		return "size(value) > 0"
	}
	return ""
}

// firstSentence is the first sentence of a note, in plain text.
func firstSentence(note string) string {
	s, _, _ := strings.Cut(note, ". ")
	return strings.TrimSuffix(strings.ReplaceAll(s, "`", ""), ".")
}

// write writes one policy and its binding.
func write(out *bytes.Buffer, name, group, version string, resources []string, list []validation) error {
	name = "causeway-warnings-" + name
	const api = "admissionregistration.k8s.io/v1"
	type rule struct {
		APIGroups   []string `yaml:"apiGroups,flow"`
		APIVersions []string `yaml:"apiVersions,flow"`
		Operations  []string `yaml:"operations,flow"`
		Resources   []string `yaml:"resources"`
	}
	type object struct {
		APIVersion string         `yaml:"apiVersion"`
		Kind       string         `yaml:"kind"`
		Metadata   map[string]any `yaml:"metadata"`
		Spec       any            `yaml:"spec"`
	}
	meta := map[string]any{"name": name, "labels": map[string]string{"app.kubernetes.io/name": "causeway"}}
	slices.Sort(resources)
	for _, o := range []object{
		{api, "ValidatingAdmissionPolicy", meta, struct {
			FailurePolicy    string `yaml:"failurePolicy"` // a warning is not worth a refusal
			MatchConstraints struct {
				ResourceRules []rule `yaml:"resourceRules"`
			} `yaml:"matchConstraints"`
			Validations []validation `yaml:"validations"`
		}{"Ignore", struct {
			ResourceRules []rule `yaml:"resourceRules"`
		}{[]rule{{[]string{group}, []string{version}, []string{"CREATE", "UPDATE"}, resources}}}, list}},
		{api, "ValidatingAdmissionPolicyBinding", meta, struct {
			PolicyName        string   `yaml:"policyName"`
			ValidationActions []string `yaml:"validationActions,flow"`
		}{name, []string{"Warn"}}},
	} {
		out.WriteString("---\n")
		enc := yaml.NewEncoder(out)
		enc.SetIndent(2)
		if err := enc.Encode(o); err != nil {
			return err
		}
	}
	return nil
}
