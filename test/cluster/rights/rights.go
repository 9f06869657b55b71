// Package rights compares the rights that a manifest grants to ServiceAccounts with those
// that an API server's audit log shows in use. It owns what counts as a use.
package rights

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// AuditPolicy is the API server's --audit-policy-file that records what Compare reads.
const AuditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ["system:serviceaccounts:kube-system"]}
  - {level: None}
`

// Right is one verb on one resource. Its String is the form of a line of exceptions.
type Right struct {
	User      string // ServiceAccount: namespace/name
	Verb      string // as RBAC and the audit log name it
	Group     string // API group; empty: core
	Resource  string // with its subresource: nodes/status
	Namespace string // the only namespace it holds in; empty: everywhere
	Name      string // the only object it holds for; empty: any
}

func (r Right) String() string {
	s := r.User + " " + r.Verb + " " + r.Resource
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Namespace != "" {
		s += " in " + r.Namespace
	}
	if r.Name != "" {
		s += " named " + r.Name
	}
	return s
}

func compare(a, b Right) int { return cmp.Compare(a.String(), b.String()) }

// covers reports whether a grant allows a use.
func (r Right) covers(use Right) bool {
	return r.User == use.User && r.Verb == use.Verb && r.Group == use.Group && r.Resource == use.Resource &&
		(r.Namespace == "" || r.Namespace == use.Namespace) && (r.Name == "" || r.Name == use.Name)
}

// Grants reads the rights that a manifest's roles and bindings grant to its
// ServiceAccounts. A wildcard is an error: nothing could be compared with it.
func Grants(manifest []byte) ([]Right, error) {
	roles := map[string][]rbacv1.PolicyRule{} // by "namespace/name", of ClusterRoles "/name"
	type binding struct {
		namespace string
		ref       string
		subjects  []rbacv1.Subject
	}
	var bindings []binding
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest))); ; {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var o struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
			Rules             []rbacv1.PolicyRule `json:"rules"`
			RoleRef           rbacv1.RoleRef      `json:"roleRef"`
			Subjects          []rbacv1.Subject    `json:"subjects"`
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(kind.APIVersion, rbacv1.GroupName+"/") {
			continue
		}
		if err := yaml.Unmarshal(doc, &o); err != nil {
			return nil, fmt.Errorf("%s: %w", kind.Kind, err)
		}
		switch o.Kind {
		case "ClusterRole", "Role":
			roles[o.Namespace+"/"+o.Name] = o.Rules
		case "ClusterRoleBinding", "RoleBinding":
			ref := "/" + o.RoleRef.Name
			if o.RoleRef.Kind == "Role" {
				ref = o.Namespace + ref
			}
			bindings = append(bindings, binding{o.Namespace, ref, o.Subjects})
		}
	}
	var out []Right
	for _, b := range bindings {
		rules, ok := roles[b.ref]
		if !ok {
			return nil, fmt.Errorf("a binding refers to the role %q, which the manifest does not have", strings.TrimPrefix(b.ref, "/"))
		}
		for _, rule := range rules {
			if slices.Contains(slices.Concat(rule.Verbs, rule.APIGroups, rule.Resources), "*") {
				return nil, fmt.Errorf("role %q: a rule has a wildcard; name verbs, groups and resources one by one", strings.TrimPrefix(b.ref, "/"))
			}
			for _, s := range b.subjects {
				if s.Kind != rbacv1.ServiceAccountKind {
					return nil, fmt.Errorf("a binding of role %q has the subject %s %s; want ServiceAccounts only", b.ref, s.Kind, s.Name)
				}
				out = append(out, expand(s.Namespace+"/"+s.Name, b.namespace, rule)...)
			}
		}
	}
	slices.SortFunc(out, compare)
	return slices.Compact(out), nil
}

func expand(user, namespace string, rule rbacv1.PolicyRule) []Right {
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	var out []Right
	for _, verb := range rule.Verbs {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					out = append(out, Right{user, verb, group, resource, namespace, name})
				}
			}
		}
	}
	return out
}

// Use is what the log shows of one right.
type Use struct {
	Right
	Count  int
	Sample string // the URI of one of the requests
}

func (u Use) String() string { return fmt.Sprintf("%s (%d times, as %s)", u.Right, u.Count, u.Sample) }

// Report is what the comparison found.
type Report struct {
	Granted   []Right
	Unused    []Right // granted, and in no request of the log; a watch stands for its list
	Denied    []Use   // asked for, and refused by the authorizer
	Elsewhere []Use   // allowed, and not by the manifest: what every user may, or somebody's binding
}

// event is what is read of an audit event (audit.k8s.io/v1).
type event struct {
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef *struct {
		APIGroup, Resource, Subresource, Namespace, Name string
	} `json:"objectRef"`
	Annotations map[string]string `json:"annotations"`
}

// Compare reads an audit log, one event a line, and compares what the ServiceAccounts of
// the manifest asked for with what it grants them.
func Compare(manifest []byte, audit io.Reader) (*Report, error) {
	grants, err := Grants(manifest)
	if err != nil {
		return nil, err
	}
	users := map[string]bool{}
	for _, g := range grants {
		users[g.User] = true
	}
	used := map[Right]bool{} // grants
	denied, elsewhere := map[Right]*Use{}, map[Right]*Use{}
	note := func(m map[Right]*Use, r Right, uri string) {
		if m[r] == nil {
			m[r] = &Use{Right: r, Sample: uri}
		}
		m[r].Count++
	}
	dec := json.NewDecoder(audit)
	for n := 1; ; n++ {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("audit log, event %d: %w", n, err)
		}
		// A watch that is still open has no completion; one request may show twice.
		user, ok := strings.CutPrefix(e.User.Username, "system:serviceaccount:")
		user = strings.Replace(user, ":", "/", 1)
		if !ok || !users[user] || e.ObjectRef == nil || e.ObjectRef.Resource == "" || e.Stage == "RequestReceived" {
			continue
		}
		use := Right{user, e.Verb, e.ObjectRef.APIGroup, e.ObjectRef.Resource, e.ObjectRef.Namespace, e.ObjectRef.Name}
		if e.ObjectRef.Subresource != "" {
			use.Resource += "/" + e.ObjectRef.Subresource
		}
		general := use
		general.Name = ""
		if e.Annotations["authorization.k8s.io/decision"] == "forbid" {
			// What the manifest grants is denied while the manifest is removed, or half applied.
			if !slices.ContainsFunc(grants, func(g Right) bool { return g.covers(use) }) {
				note(denied, general, e.RequestURI)
			}
			continue
		}
		found := false
		for _, g := range grants {
			if g.covers(use) {
				used[g], found = true, true
			}
		}
		if !found {
			note(elsewhere, general, e.RequestURI)
		}
	}
	// An informer of today begins with a watch alone and lists only when it cannot (KEP-3157).
	for g := range used {
		if g.Verb == "watch" {
			g.Verb = "list"
			used[g] = true
		}
	}
	r := &Report{Granted: grants, Denied: sorted(denied), Elsewhere: sorted(elsewhere)}
	for _, g := range grants {
		if !used[g] {
			r.Unused = append(r.Unused, g)
		}
	}
	return r, nil
}

func sorted(m map[Right]*Use) []Use {
	var out []Use
	for _, u := range m {
		out = append(out, *u)
	}
	slices.SortFunc(out, func(a, b Use) int { return compare(a.Right, b.Right) })
	return out
}

// Exceptions reads a list of rights that may stay unused in a run, because what needs them
// is rare: one a line in the form of Right.String, blank lines and comments (#) aside.
func Exceptions(r io.Reader) (map[string]bool, error) {
	out := map[string]bool{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		line, _, _ := strings.Cut(s.Text(), "#")
		if line = strings.TrimSpace(line); line != "" {
			out[line] = true
		}
	}
	return out, s.Err()
}

// Print writes the report for people and returns what is wrong with the rights: unused
// ones beside the exceptions, denied ones, and exceptions that name no right or one in use.
func (r *Report) Print(w io.Writer, exceptions map[string]bool) error {
	var wrong []string
	list := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(w, "%s:\n", title)
		for _, l := range lines {
			fmt.Fprintln(w, "  "+l)
		}
	}
	var unused, rare, stale, denied, elsewhere []string
	left := map[string]bool{}
	for _, u := range r.Unused {
		left[u.String()] = true
		if exceptions[u.String()] {
			rare = append(rare, u.String())
		} else {
			unused = append(unused, u.String())
		}
	}
	for e := range exceptions {
		if !left[e] {
			stale = append(stale, e)
		}
	}
	slices.Sort(stale)
	for _, u := range r.Denied {
		denied = append(denied, u.String())
	}
	for _, u := range r.Elsewhere {
		elsewhere = append(elsewhere, u.String())
	}
	fmt.Fprintf(w, "%d rights granted, %d used\n", len(r.Granted), len(r.Granted)-len(r.Unused))
	list("granted and not used", unused)
	list("granted and not used, as expected", rare)
	list("expected not to be used, but used or not granted", stale)
	list("asked for and denied", denied)
	list("allowed by something else than the manifest", elsewhere)
	if len(unused) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d unused rights", len(unused)))
	}
	if len(denied) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d denied uses", len(denied)))
	}
	if len(wrong) > 0 {
		return errors.New("rights: " + strings.Join(wrong, ", "))
	}
	return nil
}
