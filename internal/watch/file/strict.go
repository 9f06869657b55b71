package file

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fieldError says what is wrong with one field and what would be right.
type fieldError struct{ path, message string }

// strict compares decoded JSON with the Go type it is meant for: every field must exist
// under exactly that name and have a value of the right kind. What it accepts decodes.
type strict struct {
	kind string
	// tolerate reports whether an unknown field is let pass.
	tolerate func(path string) bool
	// secret keeps values out of the messages.
	secret bool
	errs   []fieldError
}

func (s *strict) fail(path, format string, args ...any) {
	s.errs = append(s.errs, fieldError{path, fmt.Sprintf(format, args...)})
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

	// leaves are types that decode themselves, and what they want.
	leaves = map[reflect.Type]string{
		reflect.TypeFor[metav1.Duration]():  `a duration in quotes or with its unit, such as "90s" or "2m"`,
		reflect.TypeFor[metav1.Time]():      `a time such as "2026-01-31T12:00:00Z"`,
		reflect.TypeFor[metav1.MicroTime](): `a time such as "2026-01-31T12:00:00.000000Z"`,
	}
)

// check compares v, as encoding/json decodes it with UseNumber, with type t.
func (s *strict) check(path string, v any, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil { // null is as good as absent
		return
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		raw, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(raw, reflect.New(t).Interface())
		}
		if err != nil {
			want, ok := leaves[t]
			if !ok {
				want = "a " + t.Name()
			}
			s.fail(path, "is %s; must be %s", s.show(path, v), want)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if m, ok := v.(map[string]any); ok {
			s.object(path, m, t)
		} else {
			s.fail(path, "is %s; must be an object with the fields %s", s.show(path, v), quoteAll(fieldNames(t)))
		}
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			s.fail(path, "is %s; must be an object", s.show(path, v))
			return
		}
		for _, k := range sortedKeys(m) {
			s.check(path+"."+k, m[k], t.Elem())
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			if str, ok := v.(string); !ok {
				s.fail(path, "is %s; must be a string in base64", s.show(path, v))
			} else if _, err := base64.StdEncoding.DecodeString(str); err != nil {
				s.fail(path, "is not valid base64; encode it, or write it under stringData as it is")
			}
			return
		}
		list, ok := v.([]any)
		if !ok {
			s.fail(path, "is %s; must be a list", s.show(path, v))
			return
		}
		for i, e := range list {
			p := path + "[" + strconv.Itoa(i) + "]"
			if e == nil && t.Elem().Kind() != reflect.Pointer {
				s.fail(p, "is null; remove it or give it a value")
			}
			s.check(p, e, t.Elem())
		}
	case reflect.String:
		if _, ok := v.(string); !ok {
			hint := ""
			switch v.(type) {
			case bool, json.Number:
				hint = " in quotes"
			}
			s.fail(path, "is %s; must be a string%s", s.show(path, v), hint)
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			s.fail(path, "is %s; must be true or false", s.show(path, v))
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, ok := v.(json.Number)
		if ok {
			_, err := strconv.ParseInt(n.String(), 10, t.Bits())
			ok = err == nil
		}
		if !ok {
			s.fail(path, "is %s; must be a whole number from %d to %d", s.show(path, v), -1<<(t.Bits()-1), int64(1<<(t.Bits()-1)-1))
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, ok := v.(json.Number)
		if ok {
			_, err := strconv.ParseUint(n.String(), 10, t.Bits())
			ok = err == nil
		}
		if !ok {
			s.fail(path, "is %s; must be a whole number from 0 to %d", s.show(path, v), uint64(1<<t.Bits()-1))
		}
	case reflect.Float32, reflect.Float64:
		if _, ok := v.(json.Number); !ok {
			s.fail(path, "is %s; must be a number", s.show(path, v))
		}
	}
}

func (s *strict) object(path string, m map[string]any, t reflect.Type) {
	fields := fieldsOf(t)
	for _, k := range sortedKeys(m) {
		p := path + "." + k
		if ft, ok := fields[k]; ok {
			s.check(p, m[k], ft)
		} else if s.tolerate == nil || !s.tolerate(p) {
			s.fail(p, "is not a field of %s; %s", s.kind, suggest(path, k, fields))
		}
	}
}

// suggest says which field was perhaps meant.
func suggest(path, name string, fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for n := range fields {
		names = append(names, n)
	}
	sort.Strings(names)
	if best := nearest(name, names); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if spec, ok := fields["spec"]; ok {
		if _, ok := fieldsOf(spec)[name]; ok {
			return fmt.Sprintf("did you mean %q?", path+".spec."+name)
		}
	}
	return "known here are " + quoteAll(names)
}

// nearest is the name that is meant, if one is like it.
func nearest(name string, names []string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d < least {
			best, least = n, d
		}
	}
	return best
}

var fieldsCache sync.Map // reflect.Type → map[string]reflect.Type

// fieldsOf returns the JSON fields of a struct, those of embedded structs included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if known, ok := fieldsCache.Load(t); ok {
		return known.(map[string]reflect.Type)
	}
	out := map[string]reflect.Type{}
	defer func() { fieldsCache.Store(t, out) }()
	if t.Kind() != reflect.Struct {
		return out
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && f.Anonymous:
			for n, ft := range fieldsOf(f.Type) {
				out[n] = ft
			}
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}

func fieldNames(t reflect.Type) []string { return sortedKeys(fieldsOf(t)) }

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func quoteAll(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strconv.Quote(n)
	}
	return strings.Join(out, ", ")
}

// show describes a value that does not fit; of a Secret, and where a reference to one belongs
// and somebody wrote the password itself, only its kind.
func (s *strict) show(path string, v any) string {
	secret := s.secret || secretOfText.MatchString(path)
	switch x := v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		if secret {
			return "a string"
		}
		if len(x) > 80 {
			x = x[:80] + "..."
		}
		return "the string " + strconv.Quote(x)
	case json.Number:
		if secret {
			return "a number"
		}
		return "the number " + x.String()
	case bool:
		if secret {
			return "a boolean"
		}
		return strconv.FormatBool(x)
	}
	return "null"
}

// distance is the Levenshtein distance: how many letters to add, remove or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
