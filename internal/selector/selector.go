// Package selector owns Calico's selector language: which objects a label expression
// selects. It is pure: parsing and evaluation need nothing but the standard library.
//
//	expr    = and { "||" and }
//	and     = op { "&&" op }
//	op      = { "!" } ( "all()" | "global()" | "has(" key ")" | "(" expr ")" | key cmp )
//	cmp     = ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//	        | ( "in" | "not in" ) "{" [ string { "," string } [ "," ] ] "}"
//	key     = letters, digits, "_", ".", "/", "-"
//	string  = "..." or '...', without escapes
//
// The empty selector is all(). White space is space and tab. Absent labels do not match
// ==, in, contains, starts with and ends with, and do match != and not in.
package selector

import (
	"slices"
	"strings"
)

// Selector is a compiled expression. It is immutable and safe for concurrent use.
type Selector struct {
	root node
	text string
}

// Labels is an object's labels, wherever they are kept.
type Labels interface {
	Get(key string) (value string, ok bool)
}

// Map is labels in a map.
type Map map[string]string

// Get returns the label's value; ok is false when it is absent.
func (m Map) Get(key string) (value string, ok bool) {
	value, ok = m[key]
	return value, ok
}

// Matches reports whether an object with these labels is selected.
func (s *Selector) Matches(labels map[string]string) bool { return s.root.matches(Map(labels)) }

// MatchesLabels is Matches for labels that are in no map.
func (s *Selector) MatchesLabels(l Labels) bool { return s.root.matches(l) }

// String is the canonical form: it parses to an equal selector, and selectors that
// differ only in spacing, quotes or the order of a set have the same.
func (s *Selector) String() string { return s.text }

// Pins reports the one value that the label must have for the selector to match, if
// there is such a value: the selector can then match no object whose label is absent or
// different. ok is false when several values are possible or none is.
func (s *Selector) Pins(label string) (value string, ok bool) {
	values, bounded := s.root.values(label, false)
	if !bounded || len(values) != 1 {
		return "", false
	}
	return values[0], true
}

// node is one operation of the compiled expression.
type node interface {
	matches(l Labels) bool
	appendTo(b []byte) []byte
	// values returns, when bounded, a sorted superset of the values the label can have
	// where the operation (negated if not is set) holds; the label is then present.
	values(label string, not bool) (values []string, bounded bool)
	// requires reports whether the label is present wherever the operation (negated if not
	// is set) holds. False promises nothing.
	requires(label string, not bool) bool
	// keys appends the label keys that the operation names.
	keys(to []string) []string
	// rewrite returns the operation with other keys, and others in place of all() and global().
	rewrite(r *rewriting) node
}

type (
	all    struct{ name string } // "all" or "global"
	has    struct{ key string }
	invert struct{ of node }   // of is never an invert
	and    struct{ of []node } // two or more
	or     struct{ of []node } // two or more
	equals struct {            // ==, !=
		key, value string
		not        bool
	}
	part struct { // contains, starts with, ends with
		key, value string
		where      where
	}
	in struct { // in, not in
		key string
		set []string // sorted, without duplicates
		not bool
	}
)

type where uint8

const (
	anywhere where = iota
	atStart
	atEnd
)

var whereWords = [...]string{anywhere: "contains", atStart: "starts with", atEnd: "ends with"}

func (n all) matches(Labels) bool { return true }
func (n has) matches(l Labels) bool {
	_, ok := l.Get(n.key)
	return ok
}
func (n invert) matches(l Labels) bool { return !n.of.matches(l) }
func (n and) matches(l Labels) bool {
	for _, o := range n.of {
		if !o.matches(l) {
			return false
		}
	}
	return true
}
func (n or) matches(l Labels) bool {
	for _, o := range n.of {
		if o.matches(l) {
			return true
		}
	}
	return false
}
func (n equals) matches(l Labels) bool {
	v, ok := l.Get(n.key)
	return (ok && v == n.value) != n.not
}
func (n part) matches(l Labels) bool {
	v, ok := l.Get(n.key)
	switch {
	case !ok:
		return false
	case n.where == atStart:
		return strings.HasPrefix(v, n.value)
	case n.where == atEnd:
		return strings.HasSuffix(v, n.value)
	}
	return strings.Contains(v, n.value)
}
func (n in) matches(l Labels) bool {
	v, ok := l.Get(n.key)
	if ok {
		_, ok = slices.BinarySearch(n.set, v)
	}
	return ok != n.not
}

func (n all) appendTo(b []byte) []byte { return append(append(b, n.name...), "()"...) }
func (n has) appendTo(b []byte) []byte {
	return append(append(append(b, "has("...), n.key...), ')')
}
func (n invert) appendTo(b []byte) []byte { return n.of.appendTo(append(b, '!')) }
func (n and) appendTo(b []byte) []byte    { return appendJoined(b, n.of, " && ") }
func (n or) appendTo(b []byte) []byte     { return appendJoined(b, n.of, " || ") }
func (n equals) appendTo(b []byte) []byte {
	op := " == "
	if n.not {
		op = " != "
	}
	return appendQuoted(append(append(b, n.key...), op...), n.value)
}
func (n part) appendTo(b []byte) []byte {
	b = append(append(append(append(b, n.key...), ' '), whereWords[n.where]...), ' ')
	return appendQuoted(b, n.value)
}
func (n in) appendTo(b []byte) []byte {
	op := " in {"
	if n.not {
		op = " not in {"
	}
	b = append(append(b, n.key...), op...)
	for i, v := range n.set {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendQuoted(b, v)
	}
	return append(b, '}')
}

func appendJoined(b []byte, nodes []node, sep string) []byte {
	b = append(b, '(')
	for i, n := range nodes {
		if i > 0 {
			b = append(b, sep...)
		}
		b = n.appendTo(b)
	}
	return append(b, ')')
}

// appendQuoted writes a string literal. There are no escapes, so that a value holds at
// most one of the two kinds of quotes.
func appendQuoted(b []byte, v string) []byte {
	q := byte('"')
	if strings.IndexByte(v, '"') >= 0 {
		q = '\''
	}
	return append(append(append(b, q), v...), q)
}

func (n all) values(string, bool) ([]string, bool)  { return nil, false }
func (n has) values(string, bool) ([]string, bool)  { return nil, false }
func (n part) values(string, bool) ([]string, bool) { return nil, false }
func (n invert) values(label string, not bool) ([]string, bool) {
	return n.of.values(label, !not)
}
func (n and) values(label string, not bool) ([]string, bool) {
	if not {
		return union(n.of, label, not)
	}
	return intersection(n.of, label, not)
}
func (n or) values(label string, not bool) ([]string, bool) {
	if not {
		return intersection(n.of, label, not)
	}
	return union(n.of, label, not)
}
func (n equals) values(label string, not bool) ([]string, bool) {
	if n.key != label || n.not != not {
		return nil, false
	}
	return []string{n.value}, true
}
func (n in) values(label string, not bool) ([]string, bool) {
	if n.key != label || n.not != not {
		return nil, false
	}
	return n.set, true
}

// intersection is for operations that must all hold: one bounded operand bounds all.
func intersection(nodes []node, label string, not bool) (values []string, bounded bool) {
	for _, n := range nodes {
		v, ok := n.values(label, not)
		switch {
		case !ok:
		case !bounded:
			values, bounded = v, true
		default:
			values = slices.DeleteFunc(slices.Clone(values), func(x string) bool {
				_, found := slices.BinarySearch(v, x)
				return !found
			})
		}
	}
	return values, bounded
}

// union is for operations of which one must hold: all must be bounded.
func union(nodes []node, label string, not bool) (values []string, bounded bool) {
	for _, n := range nodes {
		v, ok := n.values(label, not)
		if !ok {
			return nil, false
		}
		values = append(slices.Clone(values), v...)
	}
	slices.Sort(values)
	return slices.Compact(values), true
}
