package selector

import "slices"

// Requirement is something that holds for every object a selector matches: the label is
// there, and has one of the values unless Any is set.
type Requirement struct {
	Key    string
	Any    bool
	Values []string // sorted; none without Any: the selector matches nothing
}

// Requirements lists what an object must have for the selector to match, by key. An index
// that looks a selector up by any one of them misses no match; with an empty list
// every object must be asked.
func (s *Selector) Requirements() []Requirement {
	var out []Requirement
	for _, k := range s.Keys() {
		if values, bounded := s.root.values(k, false); bounded {
			out = append(out, Requirement{Key: k, Values: values})
		} else if s.root.requires(k, false) {
			out = append(out, Requirement{Key: k, Any: true})
		}
	}
	return out
}

// Keys lists the label keys that the selector names, sorted: a change of other labels
// changes nothing.
func (s *Selector) Keys() []string {
	keys := s.root.keys(nil)
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (n all) requires(string, bool) bool           { return false }
func (n has) requires(label string, not bool) bool { return !not && n.key == label }
func (n invert) requires(label string, not bool) bool {
	return n.of.requires(label, !not)
}
func (n and) requires(label string, not bool) bool { return required(n.of, label, not, not) }
func (n or) requires(label string, not bool) bool  { return required(n.of, label, not, !not) }
func (n equals) requires(label string, not bool) bool {
	return n.not == not && n.key == label
}
func (n part) requires(label string, not bool) bool { return !not && n.key == label }
func (n in) requires(label string, not bool) bool   { return n.not == not && n.key == label }

// required asks operands of which every one must require the label, or else one.
func required(nodes []node, label string, not, every bool) bool {
	for _, n := range nodes {
		if n.requires(label, not) != every {
			return !every
		}
	}
	return every
}

func (n all) keys(to []string) []string    { return to }
func (n has) keys(to []string) []string    { return append(to, n.key) }
func (n invert) keys(to []string) []string { return n.of.keys(to) }
func (n and) keys(to []string) []string    { return keysOf(n.of, to) }
func (n or) keys(to []string) []string     { return keysOf(n.of, to) }
func (n equals) keys(to []string) []string { return append(to, n.key) }
func (n part) keys(to []string) []string   { return append(to, n.key) }
func (n in) keys(to []string) []string     { return append(to, n.key) }

func keysOf(nodes []node, to []string) []string {
	for _, n := range nodes {
		to = n.keys(to)
	}
	return to
}
