package selector

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestRequirements(t *testing.T) {
	for in, want := range map[string]string{
		"all()":                                   "",
		"!has(a)":                                 "",
		`a != "b"`:                                "",
		`a not in {"b"}`:                          "",
		`a == "b" || c == "d"`:                    "",
		`!(a == "b" && c == "d")`:                 "",
		"has(a)":                                  "a",
		"!!has(a)":                                "a",
		`a contains "b"`:                          "a",
		`!a contains "b"`:                         "",
		`a == "b"`:                                "a=b",
		`!a != "b"`:                               "a=b",
		`a in {"c", "b"}`:                         "a=b,c",
		`a in {}`:                                 "a=",
		`a == "b" && has(c) && d != "e"`:          "a=b c",
		`(a == "b" || a == "c") && !has(d)`:       "a=b,c",
		`(a == "b" || has(a)) && (c == "d")`:      "a c=d",
		`!(a != "b" || c not in {"d", "e"})`:      "a=b c=d,e",
		`!(!has(a) || b == "c")`:                  "a",
		`a == "b" && a == "c"`:                    "a=",
		`(a == "b" && x == "y") || a == "c"`:      "a=b,c",
		`has(a) || (a starts with "b" && !all())`: "a",
	} {
		var got []string
		for _, r := range mustParse(t, in).Requirements() {
			if s := r.Key; r.Any {
				got = append(got, s)
			} else {
				got = append(got, s+"="+strings.Join(r.Values, ","))
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s requires %q, want %q", in, s, want)
		}
	}
}

func TestKeys(t *testing.T) {
	if got := mustParse(t, `b == "x" && (!has(a) || b in {"y"}) && !c ends with "z"`).Keys(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("keys %v", got)
	}
	if got := mustParse(t, "all() || global()").Keys(); len(got) != 0 {
		t.Errorf("keys %v of all()", got)
	}
}

func TestCompose(t *testing.T) {
	b, a := mustParse(t, `b == "1"`), mustParse(t, `has(a)`)
	for got, want := range map[string]string{
		And().String():                    "all()",
		And(All(), a).String():            "has(a)",
		And(b, All(), a, b).String():      `(b == "1" && has(a))`,
		And(a, b).String():                `(b == "1" && has(a))`,
		And(And(a, b), Has("c")).String(): `(b == "1" && has(a) && has(c))`,
		Not(Not(a)).String():              "has(a)",
		In("k", "y", "x", "y").String():   `k in {"x", "y"}`,
		In("k", "y").String():             `k == "y"`,
		In("k").String():                  `k in {}`,
		mustParse(t, `!has(a) || (b == "c" && x in {"y"} && z ends with "w") || all()`).Rewrite("p.", Has("ns"), All()).String(): `(!has(p.a) || (p.b == "c" && p.x in {"y"} && p.z ends with "w") || has(ns))`,
		mustParse(t, `!global()`).Rewrite("p.", All(), Not(Has("ns"))).String():                                                  "has(ns)",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if again := mustParse(t, got); again.String() != got {
			t.Errorf("%s parses to %s", got, again)
		}
	}
	if !mustParse(t, `has(a) || !(b == "c" && global())`).NamesGlobal() || mustParse(t, `all()`).NamesGlobal() {
		t.Error("NamesGlobal")
	}
}

// TestRequirementsAreKept asks every selector of a small language about every object of a
// small world: whatever matches has what is required, and a label that is not named does
// not matter.
func TestRequirementsAreKept(t *testing.T) {
	atoms := []string{`has(a)`, `a == "1"`, `a != "1"`, `a in {"1", "2"}`, `a not in {"1"}`, `a contains "1"`, `b == "2"`, `has(b)`, `all()`}
	exprs := slices.Clone(atoms)
	for _, x := range atoms {
		exprs = append(exprs, "!"+x)
		for _, y := range atoms {
			for _, f := range []string{"%s && %s", "%s || !%s", "!(%s && %s)", "!(!%s || %s)"} {
				exprs = append(exprs, fmt.Sprintf(f, x, y))
			}
		}
	}
	var world []labels
	values := []string{"", "1", "2", "12"}
	for _, a := range append(values, "absent") {
		for _, b := range append(values, "absent") {
			l := labels{}
			if a != "absent" {
				l["a"] = a
			}
			if b != "absent" {
				l["b"] = b
			}
			world = append(world, l)
		}
	}
	for _, text := range exprs {
		s := mustParse(t, text)
		reqs, keys := s.Requirements(), s.Keys()
		for _, l := range world {
			if s.Matches(l) {
				for _, r := range reqs {
					if v, ok := l[r.Key]; !ok || !r.Any && !slices.Contains(r.Values, v) {
						t.Errorf("%s matches %v and requires %v", text, l, r)
					}
				}
			}
			named := labels{}
			for _, k := range keys {
				if v, ok := l[k]; ok {
					named[k] = v
				}
			}
			if s.Matches(l) != s.Matches(named) {
				t.Errorf("%s: %v and %v differ, keys %v", text, l, named, keys)
			}
			if Not(s).Matches(l) == s.Matches(l) {
				t.Errorf("not %s agrees on %v", text, l)
			}
			if s.MatchesLabels(Map(l)) != s.Matches(l) {
				t.Errorf("%s: MatchesLabels disagrees on %v", text, l)
			}
		}
	}
}

func TestRewriteMatches(t *testing.T) {
	s := mustParse(t, `a == "1" || b != "2"`)
	r := s.Rewrite("p.", All(), All())
	if !reflect.DeepEqual(r.Keys(), []string{"p.a", "p.b"}) {
		t.Errorf("keys %v", r.Keys())
	}
	if !r.Matches(labels{"p.a": "1", "p.b": "2"}) || r.Matches(labels{"a": "1", "p.b": "2"}) {
		t.Error("rewritten selector looks at the wrong labels")
	}
}
