package selector

import (
	"slices"
	"strings"
)

// All is all().
func All() *Selector { return compiled(all{"all"}) }

// Has is has(key).
func Has(key string) *Selector { return compiled(has{key}) }

// In is key in {values}; of one value it is key == "value".
func In(key string, values ...string) *Selector {
	values = slices.Clone(values)
	slices.Sort(values)
	if values = slices.Compact(values); len(values) == 1 {
		return compiled(equals{key, values[0], false})
	}
	return compiled(in{key, values, false})
}

// Not is the selector of everything that s does not match.
func Not(s *Selector) *Selector {
	if i, ok := s.root.(invert); ok {
		return compiled(i.of)
	}
	return compiled(invert{s.root})
}

// And is the selector of what all of them match. Its canonical form does not depend on
// their order, and all() among them leaves no trace.
func And(selectors ...*Selector) *Selector {
	var of []*Selector
	for _, s := range selectors {
		switch n := s.root.(type) {
		case all:
		case and:
			for _, o := range n.of {
				of = append(of, compiled(o))
			}
		default:
			of = append(of, s)
		}
	}
	slices.SortFunc(of, func(a, b *Selector) int { return strings.Compare(a.text, b.text) })
	of = slices.CompactFunc(of, func(a, b *Selector) bool { return a.text == b.text })
	switch len(of) {
	case 0:
		return All()
	case 1:
		return of[0]
	}
	nodes := make([]node, len(of))
	for i, s := range of {
		nodes[i] = s.root
	}
	return compiled(and{nodes})
}

// Rewrite returns the selector with prefix before every label key, and with other
// selectors in place of all() and global().
func (s *Selector) Rewrite(prefix string, forAll, forGlobal *Selector) *Selector {
	return compiled(s.root.rewrite(&rewriting{prefix: prefix, forAll: forAll.root, forGlobal: forGlobal.root}))
}

// NamesGlobal reports whether global() stands in the selector.
func (s *Selector) NamesGlobal() bool {
	r := rewriting{forAll: all{"all"}, forGlobal: all{"global"}}
	s.root.rewrite(&r)
	return r.global
}

// compiled is a Selector of a node.
func compiled(root node) *Selector { return &Selector{root: root, text: string(root.appendTo(nil))} }

type rewriting struct {
	prefix            string
	forAll, forGlobal node
	global            bool // out: there was a global()
}

func (n all) rewrite(r *rewriting) node {
	if n.name == "global" {
		r.global = true
		return r.forGlobal
	}
	return r.forAll
}

func (n has) rewrite(r *rewriting) node { return has{r.prefix + n.key} }

func (n invert) rewrite(r *rewriting) node {
	of := n.of.rewrite(r)
	if i, ok := of.(invert); ok {
		return i.of
	}
	return invert{of}
}

func (n and) rewrite(r *rewriting) node { return and{rewriteAll(n.of, r)} }
func (n or) rewrite(r *rewriting) node  { return or{rewriteAll(n.of, r)} }

func (n equals) rewrite(r *rewriting) node {
	n.key = r.prefix + n.key
	return n
}

func (n part) rewrite(r *rewriting) node {
	n.key = r.prefix + n.key
	return n
}

func (n in) rewrite(r *rewriting) node {
	n.key = r.prefix + n.key
	return n
}

func rewriteAll(nodes []node, r *rewriting) []node {
	out := make([]node, len(nodes))
	for i, n := range nodes {
		out[i] = n.rewrite(r)
	}
	return out
}
