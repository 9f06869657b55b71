// Package facts writes the schema of a kind as lines of text, one for each field, so that two
// schemas can be compared and a difference names its field.
package facts

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kind is what is compared of a kind. Schema has the schemas of .spec and .status.
type Kind struct {
	Kind, Plural, Scope, Group, Version string
	ShortNames, Subresources            []string
	Columns                             []Column
	Schema                              map[string]any
}

// Column is a column of `kubectl get`.
type Column struct{ Name, JSONPath, Type string }

// Lines describes a kind: the first line the kind itself, one for each column, and one for
// each field, as in
//
//	IPPool .spec.cidr format="cidr" maxLength=48 required=true type="string"
//
// Descriptions and validation rules are left out. "[]" stands for the items of a list, "{}"
// for the values of a map.
func (k Kind) Lines() []string {
	out := []string{line(k.Kind, "", map[string]any{
		"plural": k.Plural, "scope": k.Scope, "group": k.Group, "version": k.Version,
		"shortNames": orEmpty(k.ShortNames), "subresources": orEmpty(k.Subresources),
	})}
	for i, c := range k.Columns {
		out = append(out, line(k.Kind, fmt.Sprintf("column[%d]", i), map[string]any{"name": c.Name, "jsonPath": c.JSONPath, "type": c.Type}))
	}
	for _, part := range slices.Sorted(maps.Keys(k.Schema)) {
		s, ok := k.Schema[part].(map[string]any)
		if !ok {
			continue
		}
		fields(k.Kind, "."+part, s, false, &out)
	}
	return out
}

func orEmpty(in []string) []string {
	out := append([]string{}, in...)
	slices.Sort(out)
	return out
}

// ownLine are the parts of a schema that have lines of their own or none.
var ownLine = []string{"properties", "items", "additionalProperties", "required", "description", "x-kubernetes-validations", "allOf"}

func fields(kind, path string, s map[string]any, required bool, out *[]string) {
	attrs := map[string]any{}
	for k, v := range s {
		if !slices.Contains(ownLine, k) {
			attrs[k] = v
		}
	}
	if required {
		attrs["required"] = true
	}
	enums(s, attrs)
	*out = append(*out, line(kind, path, attrs))

	names, _ := s["required"].([]any)
	properties, _ := s["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if p, ok := properties[name].(map[string]any); ok {
			fields(kind, path+"."+name, p, slices.Contains(names, any(name)), out)
		}
	}
	if items, ok := s["items"].(map[string]any); ok {
		fields(kind, path+"[]", items, false, out)
	}
	if values, ok := s["additionalProperties"].(map[string]any); ok {
		fields(kind, path+"{}", values, false, out)
	}
}

// enums makes one of all lists of values that must hold together, and sorts it.
func enums(s, attrs map[string]any) {
	var lists [][]any
	if own, ok := s["enum"].([]any); ok {
		lists = append(lists, own)
	}
	all, _ := s["allOf"].([]any)
	for _, a := range all {
		part, ok := a.(map[string]any)
		list, isEnum := part["enum"].([]any)
		if !ok || !isEnum || len(part) != 1 {
			attrs["allOf"] = s["allOf"] // something else: show it as it is
			return
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return
	}
	var both []any
	for _, v := range lists[0] {
		if !slices.ContainsFunc(lists, func(l []any) bool { return !slices.Contains(l, v) }) {
			both = append(both, v)
		}
	}
	slices.SortFunc(both, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	attrs["enum"] = both
}

func line(kind, path string, attrs map[string]any) string {
	var b strings.Builder
	b.WriteString(kind)
	if path != "" {
		b.WriteString(" " + path)
	}
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		text, err := json.Marshal(attrs[k])
		if err != nil {
			panic(err) // a programmer's mistake: what YAML decodes can be encoded
		}
		fmt.Fprintf(&b, "\t%s=%s", k, text)
	}
	return b.String()
}

// Parse reads a line back: the kind with the path, and the attributes.
func Parse(l string) (field string, attrs map[string]string) {
	parts := strings.Split(l, "\t")
	attrs = map[string]string{}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		attrs[k] = v
	}
	return parts[0], attrs
}
