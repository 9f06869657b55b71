package selector

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

var _ model.Selector = (*Selector)(nil)

type labels = map[string]string

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		selector string
		yes, no  []labels
	}{
		{"", []labels{nil, {"a": "b"}}, nil},
		{" \t", []labels{nil}, nil},
		{"all()", []labels{nil, {"a": "b"}}, nil},
		{"all( )", []labels{nil}, nil},
		{"global()", []labels{nil}, nil},
		{"!all()", nil, []labels{nil, {"a": "b"}}},
		{"has(a)", []labels{{"a": ""}}, []labels{nil, {"b": "a"}}},
		{"has( a )", []labels{{"a": ""}}, []labels{nil}},
		{"!has(a)", []labels{nil, {"b": ""}}, []labels{{"a": ""}}},
		{`a == "b"`, []labels{{"a": "b"}}, []labels{nil, {"a": ""}, {"a": "c"}}},
		{`a=='b'`, []labels{{"a": "b"}}, []labels{nil}},
		{`a == 'say "b"'`, []labels{{"a": `say "b"`}}, []labels{nil}},
		{`a == ""`, []labels{{"a": ""}}, []labels{nil, {"a": "b"}}},
		{`a != "b"`, []labels{nil, {"a": "c"}}, []labels{{"a": "b"}}},
		{`!a == "b"`, []labels{nil, {"a": "c"}}, []labels{{"a": "b"}}},
		{`!!a == "b"`, []labels{{"a": "b"}}, []labels{nil}},
		{`a in {"b", 'c'}`, []labels{{"a": "b"}, {"a": "c"}}, []labels{nil, {"a": "d"}}},
		{`a in{"b",}`, []labels{{"a": "b"}}, []labels{nil, {"a": ""}}},
		{`a in {}`, nil, []labels{nil, {"a": ""}}},
		{`a not in {"b"}`, []labels{nil, {"a": "c"}}, []labels{{"a": "b"}}},
		{`a notin{"b"}`, []labels{nil}, []labels{{"a": "b"}}},
		{`a not in {}`, []labels{nil, {"a": ""}}, nil},
		{`a contains "b"`, []labels{{"a": "abc"}}, []labels{nil, {"a": "x"}}},
		{`a starts with "ab"`, []labels{{"a": "abc"}, {"a": "ab"}}, []labels{nil, {"a": "xab"}}},
		{`a ends with "bc"`, []labels{{"a": "abc"}}, []labels{nil, {"a": "bcd"}}},
		{`a startswith"b"`, []labels{{"a": "bc"}}, []labels{nil}},
		{`x/y.z_0-1 == "b"`, []labels{{"x/y.z_0-1": "b"}}, []labels{nil}},
		{`kubernetes.io/hostname == "n1"`, []labels{{"kubernetes.io/hostname": "n1"}}, []labels{nil}},
		{`has == "x" && in in {"y"} && all == "z"`, []labels{{"has": "x", "in": "y", "all": "z"}}, []labels{nil}},
		{`has(a) && has(b)`, []labels{{"a": "", "b": ""}}, []labels{{"a": ""}, {"b": ""}, nil}},
		{`has(a) || has(b)`, []labels{{"a": ""}, {"b": ""}}, []labels{nil}},
		// && binds tighter than ||.
		{`has(a) || has(b) && has(c)`, []labels{{"a": ""}, {"b": "", "c": ""}}, []labels{{"b": ""}, {"c": ""}}},
		{`(has(a) || has(b)) && has(c)`, []labels{{"a": "", "c": ""}}, []labels{{"a": ""}, {"c": ""}}},
		{`!(has(a) || has(b))`, []labels{nil, {"c": ""}}, []labels{{"a": ""}, {"b": ""}}},
		{`!(!(has(a)))`, []labels{{"a": ""}}, []labels{nil}},
	} {
		s, err := Parse(tc.selector)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		for _, l := range tc.yes {
			if !s.Matches(l) {
				t.Errorf("%s does not match %v", tc.selector, l)
			}
		}
		for _, l := range tc.no {
			if s.Matches(l) {
				t.Errorf("%s matches %v", tc.selector, l)
			}
		}
	}
}

func TestString(t *testing.T) {
	for in, want := range map[string]string{
		"":                                `all()`,
		"global( )":                       `global()`,
		`a=='b'`:                          `a == "b"`,
		`a=='"'`:                          `a == '"'`,
		`a == "it's"`:                     `a == "it's"`,
		`a in {'c',"b",'c'}`:              `a in {"b", "c"}`,
		`a notin {}`:                      `a not in {}`,
		`!!!has( a )`:                     `!has(a)`,
		`!(!has(a))`:                      `has(a)`,
		`has(a)&&has(b)||has(c)`:          `((has(a) && has(b)) || has(c))`,
		`has(a)&&(has(b)||!(has(c)))`:     `(has(a) && (has(b) || !has(c)))`,
		`((a starts  with "b"))`:          `a starts with "b"`,
		`a ends with 'b'||a contains 'b'`: `(a ends with "b" || a contains "b")`,
	} {
		s, err := Parse(in)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if s.String() != want {
			t.Errorf("%s: String is %s, want %s", in, s, want)
		}
		if again, err := Parse(s.String()); err != nil || again.String() != want {
			t.Errorf("%s: canonical form parses to %v, %v", in, again, err)
		}
	}
}

func TestErrors(t *testing.T) {
	deep := strings.Repeat("(", maxDepth+1)
	for in, want := range map[string]string{
		`a`:                `column 2: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found the end`,
		`a = "b"`:          `column 3: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found "="`,
		`a == b`:           `column 6: expected a string in quotes, found "b"`,
		`a == "b`:          `column 8: expected a closing ", found the end`,
		`a == 'b`:          `column 8: expected a closing ', found the end`,
		`a in "b"`:         `column 6: expected "{", found "\""`,
		`a in {b}`:         `column 7: expected a string in quotes, found "b"`,
		`a in {"b"`:        `column 10: expected "," or "}", found the end`,
		`a in {"b" "c"}`:   `column 11: expected "," or "}", found "\""`,
		`a not {"b"}`:      `column 3: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found "not"`,
		`a starts "b"`:     `column 3: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found "starts"`,
		`has()`:            `column 5: expected a label key, found ")"`,
		`has(a`:            `column 6: expected ")", found the end`,
		`has (a)`:          `column 5: expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with", found "("`,
		`all(a)`:           `column 5: expected ")", found "a"`,
		`global(a)`:        `column 8: expected ")", found "a"`,
		`has(a) && `:       `column 11: expected a label key, "has(", "all()", "global()", "!" or "(", found the end`,
		`has(a) & has(b)`:  `column 8: expected "&&", "||" or the end, found "&"`,
		`has(a) has(b)`:    `column 8: expected "&&", "||" or the end, found "has"`,
		`(has(a)`:          `column 8: expected "&&", "||" or ")", found the end`,
		`has(a))`:          `column 7: expected "&&", "||" or the end, found ")"`,
		`has(a) || == "b"`: `column 11: expected a label key, "has(", "all()", "global()", "!" or "(", found "=="`,
		"has(a)\n":         `column 7: expected "&&", "||" or the end, found "\n"`,
		`ключ == "b"`:      `column 1: expected a label key, "has(", "all()", "global()", "!" or "(", found "к"`,
		`a == "ключ" ключ`: `column 13: expected "&&", "||" or the end, found "к"`,
		deep:               `column 1001: expected at most 1000 nested parentheses, found one more`,
		"has(\xff)":        `column 5: expected a label key, found "\xff"`,
		`!`:                `column 2: expected a label key, "has(", "all()", "global()", "!" or "(", found the end`,
	} {
		s, err := Parse(in)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.40s: parses to %v", in, s)
			continue
		}
		if _, msg, _ := strings.Cut(err.Error(), "\": column "); "column "+msg != want {
			t.Errorf("%.40s: error is\ncolumn %s, want\n%s", in, msg, want)
		}
	}
}

func TestPins(t *testing.T) {
	for in, want := range map[string]string{
		`a == "b"`:                           "b",
		`a in {"b"}`:                         "b",
		`a in {"b", "c"}`:                    "",
		`a in {}`:                            "",
		`a != "b"`:                           "",
		`!a != "b"`:                          "b",
		`!a not in {"b"}`:                    "b",
		`!a == "b"`:                          "",
		`has(a)`:                             "",
		`all()`:                              "",
		`x == "b"`:                           "",
		`a contains "b"`:                     "",
		`has(x) && a == "b"`:                 "b",
		`a == "b" && a == "c"`:               "",
		`a in {"b", "c"} && a in {"b", "d"}`: "b",
		`a == "b" || a == "c"`:               "",
		`a == "b" || a == "b" && has(x)`:     "b",
		`a == "b" || has(x)`:                 "",
		`has(x) && (a == "b" || a in {"b"})`: "b",
		`!(a != "b" || has(x))`:              "b",
		`!(a != "b" && a not in {"b"})`:      "b",
		`(a == "b" && a == "c") || a == "d"`: "d",
	} {
		s, err := Parse(in)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		got, ok := s.Pins("a")
		if got != want || ok != (want != "") {
			t.Errorf("%s pins a to %q, %t; want %q", in, got, ok, want)
		}
	}
	if v, ok := mustParse(t, `a == ""`).Pins("a"); v != "" || !ok {
		t.Errorf(`a == "" pins a to %q, %t`, v, ok)
	}
}

func mustParse(t testing.TB, s string) *Selector {
	t.Helper()
	sel, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "all()", "global()", `a == "b"`, `a != 'b'`, `a in {"b", 'c',}`, `a not in {}`, `!has(a/b.c_d-e)`,
		`a contains "x" && (b starts with "y" || !(c ends with 'z"'))`, `!!(!(has(a)))`, `has(`, `a = b`, `((((`,
	} {
		f.Add(s, "a", "b")
	}
	f.Fuzz(func(t *testing.T, in, key, value string) {
		s, err := Parse(in)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Column < 1 || e.Expected == "" || e.Found == "" {
				t.Fatalf("%q: bad error %#v", in, err)
			}
			return
		}
		again, err := Parse(s.String())
		if err != nil {
			t.Fatalf("%q: canonical form: %v", in, err)
		}
		if again.String() != s.String() {
			t.Fatalf("%q: canonical forms %s and %s", in, s, again)
		}
		l := labels{key: value}
		for _, l := range []labels{nil, l} {
			if s.Matches(l) != again.Matches(l) {
				t.Fatalf("%q: canonical form disagrees on %v", in, l)
			}
		}
		// So is a requirement.
		for _, l := range []labels{nil, l} {
			for _, r := range s.Requirements() {
				if v, ok := l[r.Key]; s.Matches(l) && (!ok || !r.Any && !slices.Contains(r.Values, v)) {
					t.Fatalf("%q requires %v and matches %v", in, r, l)
				}
			}
		}
		// A pinned label is a promise: nothing else matches.
		if v, ok := s.Pins(key); ok && (s.Matches(nil) || v != value && s.Matches(l)) {
			t.Fatalf("%q: pins %q to %q and matches %v or no labels", in, key, v, l)
		}
	})
}

var (
	benchLabels = labels{"kubernetes.io/hostname": "node-17", "rack": "r3", "zone": "eu-1", "role": "worker"}
	benchText   = `rack in {"r1", "r2", "r3"} && (role == "worker" || has(spare)) && zone starts with "eu" && kubernetes.io/hostname != "node-1"`
)

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(benchText); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatches(b *testing.B) {
	s := mustParse(b, benchText)
	b.ReportAllocs()
	for b.Loop() {
		if !s.Matches(benchLabels) {
			b.Fatal("no match")
		}
	}
}
