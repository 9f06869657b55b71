package file

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

const apiV3 = v3.GroupName + "/v3"

// kinds are those that are read: their apiVersion and how to make one.
var kinds = map[string]struct {
	apiVersion string
	make       func() metav1.Object
}{
	watch.KindNode:            {"v1", func() metav1.Object { return &corev1.Node{} }},
	watch.KindSecret:          {"v1", func() metav1.Object { return &corev1.Secret{} }},
	v3.KindIPPool:             {apiV3, func() metav1.Object { return &v3.IPPool{} }},
	v3.KindBGPConfiguration:   {apiV3, func() metav1.Object { return &v3.BGPConfiguration{} }},
	v3.KindBGPPeer:            {apiV3, func() metav1.Object { return &v3.BGPPeer{} }},
	v3.KindFelixConfiguration: {apiV3, func() metav1.Object { return &v3.FelixConfiguration{} }},
	v3.KindIPAMConfiguration:  {apiV3, func() metav1.Object { return &v3.IPAMConfiguration{} }},
	v3.KindIPReservation:      {apiV3, func() metav1.Object { return &v3.IPReservation{} }},
	v3.KindIPAMBlock:          {apiV3, func() metav1.Object { return &v3.IPAMBlock{} }},
}

// policyKinds are those that are read where policy is acted on, by the name that their objects
// have in problems: one of them is not the kind that manifests say.
var policyKinds = map[string]struct {
	apiVersion string
	make       func() metav1.Object
}{
	string(model.PolicyKubernetes):       {"networking.k8s.io/v1", func() metav1.Object { return &networkingv1.NetworkPolicy{} }},
	string(model.PolicyCluster):          {"policy.networking.k8s.io/v1alpha2", func() metav1.Object { return &cnpv1alpha2.ClusterNetworkPolicy{} }},
	string(model.PolicyNamespaced):       {apiV3, func() metav1.Object { return &v3.NetworkPolicy{} }},
	string(model.PolicyGlobal):           {apiV3, func() metav1.Object { return &v3.GlobalNetworkPolicy{} }},
	string(model.PolicyStagedKubernetes): {apiV3, func() metav1.Object { return &v3.StagedKubernetesNetworkPolicy{} }},
	string(model.PolicyStagedNamespaced): {apiV3, func() metav1.Object { return &v3.StagedNetworkPolicy{} }},
	string(model.PolicyStagedGlobal):     {apiV3, func() metav1.Object { return &v3.StagedGlobalNetworkPolicy{} }},
	v3.KindTier:                          {apiV3, func() metav1.Object { return &v3.Tier{} }},
	v3.KindNetworkSet:                    {apiV3, func() metav1.Object { return &v3.NetworkSet{} }},
	v3.KindGlobalNetworkSet:              {apiV3, func() metav1.Object { return &v3.GlobalNetworkSet{} }},
	v3.KindHostEndpoint:                  {apiV3, func() metav1.Object { return &v3.HostEndpoint{} }},
	v3.KindKubeControllersConfiguration:  {apiV3, func() metav1.Object { return &v3.KubeControllersConfiguration{} }},
}

// kindOf names what a manifest says: key is the kind as problems name it, and want its
// apiVersion. make is nil for a kind that is not read.
func kindOf(kind, apiVersion string, opt watch.Options) (key, want string, make func() metav1.Object) {
	if k, ok := kinds[kind]; ok {
		return kind, k.apiVersion, k.make
	}
	key = kind
	switch {
	case !opt.Policy || kind == string(model.PolicyKubernetes):
		return kind, "", nil
	case kind == v3.KindNetworkPolicy && strings.HasPrefix(apiVersion, networkingv1.GroupName+"/"):
		key = string(model.PolicyKubernetes)
	}
	k := policyKinds[key]
	return key, k.apiVersion, k.make
}

// kindNames are the kinds that are read, for messages.
func kindNames(opt watch.Options) []string {
	out := sortedKeys(kinds)
	if opt.Policy {
		for k := range policyKinds {
			if k != string(model.PolicyKubernetes) {
				out = append(out, k)
			}
		}
		slices.Sort(out)
	}
	return out
}

// unused are kinds of Calico's API that nothing acts on yet.
var unused = []string{
	"BGPFilter", "BlockAffinity", "CalicoNodeStatus", "ClusterInformation",
	"GlobalNetworkPolicy", "GlobalNetworkSet", "HostEndpoint", "IPAMHandle", "KubeControllersConfiguration",
	"NetworkPolicy", "NetworkSet", "Profile", "RemoteClusterConfiguration", "StagedGlobalNetworkPolicy",
	"StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "Tier", "WorkloadEndpoint",
}

// document is one YAML document of a file, parsed. It is immutable.
type document struct {
	text     string // without surrounding white space
	versions []version
	// broken: it is not YAML, or it does not say what it is, so that it may be the
	// newest version of anything that the file held.
	broken   bool
	problems []model.Problem // of the document as a whole; without Object and Source
}

// version is one object in a document.
type version struct {
	key  model.Object
	item string // " item 3" in a list
	// object is nil when the version could not be decoded.
	object   *watch.Object
	problems []model.Problem // why; without Object and Source
	// foreign: a kind that is not read; mistyped: one that is nearly the name of one
	// that is.
	foreign, mistyped bool
}

func (v *version) valid() bool { return v.object != nil && v.object.Valid() }

// rawDocument is the text of one document and the number of its first line.
type rawDocument struct {
	text string
	line int
}

// split cuts a file into its documents (YAML 1.2, section 9.1.2: a line that begins with
// "---" or "..." is a mark wherever it stands). Those without content are left out. open
// tells that the last one is not closed by a mark: more of it may be to come.
func split(data string) (docs []rawDocument, open bool) {
	data = strings.TrimPrefix(data, "\ufeff")
	var text strings.Builder
	start, line := 1, 0
	flush := func() bool {
		t := strings.TrimSpace(text.String())
		text.Reset()
		if t == "" || !hasContent(t) {
			return false
		}
		docs = append(docs, rawDocument{t, start})
		return true
	}
	for l := range strings.Lines(data) {
		line++
		rest, begins := mark(l, "---")
		if !begins {
			if _, ends := mark(l, "..."); ends {
				flush()
				start = line + 1
				continue
			}
			if text.Len() == 0 {
				if strings.TrimSpace(l) == "" {
					continue
				}
				start = line
			}
			text.WriteString(l)
			continue
		}
		if t := text.String(); hasContent(t) || !strings.Contains(t, "%") {
			flush()
		}
		text.Reset()
		if start = line; strings.TrimSpace(rest) != "" {
			text.WriteString(rest)
		} else {
			start++
		}
	}
	open = flush()
	return docs, open
}

// mark reports whether line is the mark, and what follows it on the line.
func mark(line, m string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(line, m)
	return rest, ok && (rest == "" || strings.ContainsRune(" \t\r\n", rune(rest[0])))
}

// hasContent reports whether a text has more than comments and directives.
func hasContent(text string) bool {
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' && l[0] != '%' {
			return true
		}
	}
	return false
}

// parse reads one document. asJSON allows it to be taken as JSON, which is faster.
func parse(raw rawDocument, opt watch.Options, asJSON bool) *document {
	d := &document{text: raw.text}
	var content any
	data := []byte(raw.text)
	if !asJSON || raw.text[0] != '{' || decode(data, &content) != nil {
		var err error
		if data, err = yaml.YAMLToJSONStrict(data); err == nil {
			err = decode(data, &content)
		}
		if err != nil {
			d.broken = true
			d.problems = []model.Problem{{Message: syntaxMessage(raw, err)}}
			return d
		}
	}
	m, ok := content.(map[string]any)
	if !ok {
		d.broken = true
		d.problems = []model.Problem{{Message: "is no object; a document must have apiVersion, kind and metadata"}}
		return d
	}
	d.read(m, "", "", typeMeta{}, opt)
	return d
}

func decode(data []byte, into *any) error {
	dec := stdjson.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if dec.More() {
		return fmt.Errorf("more than one value")
	}
	return nil
}

var (
	lineNumber   = regexp.MustCompile(`line (\d+)`)
	secretOfText = regexp.MustCompile(`(?i)secret|password`)
)

// syntaxMessage makes an error of the YAML parser say the line of the file. The parser's
// words may quote what it read, and so are left out where that may be a Secret (I7).
func syntaxMessage(raw rawDocument, err error) string {
	s := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	s = lineNumber.ReplaceAllStringFunc(s, func(m string) string {
		n, _ := strconv.Atoi(m[len("line "):])
		return "line " + strconv.Itoa(n+raw.line-1)
	})
	if !lineNumber.MatchString(s) { // the parser does not say it of the first line
		s = fmt.Sprintf("line %d: %s", raw.line, s)
	}
	if secretOfText.MatchString(raw.text) {
		return "is not valid YAML: see " + lineNumber.FindString(s)
	}
	return "is not valid YAML: " + s
}

// read takes one object, or a list of them, from the document. The items of a typed list have
// the kind and apiVersion of listOf without saying so.
func (d *document) read(m map[string]any, prefix, item string, listOf typeMeta, opt watch.Options) {
	apiVersion, _ := m["apiVersion"].(string)
	kind, _ := m["kind"].(string)
	if listOf.kind != "" && kind == "" && apiVersion == "" {
		kind, apiVersion = listOf.kind, listOf.apiVersion
		m["kind"], m["apiVersion"] = kind, apiVersion
	}
	if elem, isList := strings.CutSuffix(kind, "List"); isList && item == "" {
		_, want, make := kindOf(elem, apiVersion, opt)
		if kind == "List" && apiVersion == "v1" || make != nil && apiVersion == want {
			d.list(m, prefix, typeMeta{elem, apiVersion}, opt)
			return
		}
	}
	key, want, make := kindOf(kind, apiVersion, opt)
	v := version{key: model.Object{Kind: key}, item: item}
	meta, _ := m["metadata"].(map[string]any)
	v.key.Name, _ = meta["name"].(string)
	v.key.Namespace, _ = meta["namespace"].(string)
	fail := func(field, format string, args ...any) {
		v.problems = append(v.problems, model.Problem{Field: prefix + field, Message: fmt.Sprintf(format, args...)})
	}
	switch {
	case kind == "":
		d.broken = true
		fail(".kind", "is missing; must be one of %s", strings.Join(kindNames(opt), ", "))
	case make == nil || (kind == watch.KindNode && apiVersion == apiV3):
		v.foreign = true
		p, mistyped := foreign(prefix, apiVersion, kind, opt)
		v.problems, v.mistyped = []model.Problem{p}, mistyped
	case v.key.Name == "":
		d.broken = true
		fail(".metadata.name", "is missing; every object needs a name")
	case apiVersion != want:
		v.key = cleanKey(v.key, opt)
		fail(".apiVersion", "is %q; must be %q", apiVersion, want)
	default:
		v.key = cleanKey(v.key, opt)
		v.decode(m, prefix, make(), opt)
	}
	d.versions = append(d.versions, v)
}

// cleanKey makes the key the one that watch.Check gives to the object.
func cleanKey(k model.Object, opt watch.Options) model.Object {
	switch {
	case k.Kind != watch.KindSecret:
		if !watch.Namespaced(k.Kind) {
			k.Namespace = ""
		}
	case k.Namespace == "" && opt.SecretNamespace == "":
		k.Namespace = watch.DefaultSecretNamespace
	case k.Namespace == "":
		k.Namespace = opt.SecretNamespace
	}
	return k
}

func foreign(prefix, apiVersion, kind string, opt watch.Options) (p model.Problem, mistyped bool) {
	p = model.Problem{Field: prefix + ".kind"}
	if apiVersion == apiV3 && kind == watch.KindNode {
		p.Message = `is Node of projectcalico.org/v3; write it as apiVersion "v1" with Calico's annotations`
		return p, false
	}
	if apiVersion == apiV3 && slices.Contains(unused, kind) {
		p.Message, p.Ignored = "is "+kind+", which is not acted on yet", true
		return p, false
	}
	if near := nearest(kind, kindNames(opt)); near != "" {
		p.Message = fmt.Sprintf("is %q, which is not known; did you mean %q?", kind, near)
		return p, true
	}
	p.Message = fmt.Sprintf("is %q of %q, which is not read; must be one of %s", kind, apiVersion, strings.Join(kindNames(opt), ", "))
	return p, false
}

func (d *document) list(m map[string]any, prefix string, of typeMeta, opt watch.Options) {
	items, ok := m["items"].([]any)
	if !ok && m["items"] != nil || m["items"] == nil && !hasKey(m, "items") {
		d.broken = true
		d.problems = append(d.problems, model.Problem{Field: prefix + ".items", Message: "is no list; must hold the objects"})
		return
	}
	for i, it := range items {
		p := fmt.Sprintf("%s.items[%d]", prefix, i)
		if im, ok := it.(map[string]any); ok {
			d.read(im, p, fmt.Sprintf(" item %d", i+1), of, opt)
		} else {
			d.broken = true
			d.problems = append(d.problems, model.Problem{Field: p, Message: "is no object; must have apiVersion, kind and metadata"})
		}
	}
}

// typeMeta is what an object says it is.
type typeMeta struct{ kind, apiVersion string }

func hasKey(m map[string]any, k string) bool { _, ok := m[k]; return ok }

// decode turns m into obj, which is empty, and checks it.
func (v *version) decode(m map[string]any, prefix string, obj metav1.Object, opt watch.Options) {
	s := strict{kind: v.key.Kind, secret: v.key.Kind == watch.KindSecret}
	if v.key.Kind == watch.KindNode { // written by kubelets of any version
		s.tolerate = func(path string) bool { return strings.HasPrefix(path, ".status.") }
	}
	s.check("", m, reflect.TypeOf(obj))
	for _, e := range s.errs {
		v.problems = append(v.problems, model.Problem{Field: prefix + e.path, Message: e.message})
	}
	if len(s.errs) > 0 {
		return
	}
	data, err := stdjson.Marshal(m)
	if err == nil {
		err = json.Unmarshal(data, obj)
	}
	if err != nil {
		msg := err.Error()
		if s.secret {
			msg = "cannot be decoded"
		}
		v.problems = append(v.problems, model.Problem{Field: prefix, Message: msg})
		return
	}
	v.object = watch.Check(obj, opt)
}
