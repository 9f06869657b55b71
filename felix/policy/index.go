package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// item is one object in an index.
type item struct {
	group    *group // nil: in no index
	pos      int    // in group.items
	endpoint *endpoint
	// What it adds to sets:
	prefixes []netip.Prefix       // its addresses or networks; none of length 0
	ports    []model.EndpointPort // named ports
	local    bool
}

// sel is a selector in an index.
type sel struct {
	s     *selector.Selector
	seq   uint64   // of its coming; orders group.matches
	keys  []string // that it names, sorted
	filed selector.Requirement
	// groups are those that match.
	groups map[*group]struct{}
	// Who uses it: sets in the indexes of peers, policies in that of subjects.
	sets     []*set
	policies []*policy
}

// index knows at any time which of its selectors match which of its items.
//
// Each selector is filed in one place: under the label that a match requires (byLabel), the
// key it requires (byKey), or else in loose. A group is compared only with what is filed under
// its labels, and with loose ones. When labels change, only selectors that name a changed key
// are asked: those filed under it, and those in named.
type index struct {
	seq       uint64
	selectors map[string]*sel // by canonical text
	byLabel   map[label][]*sel
	byKey     map[string][]*sel
	loose     []*sel
	named     map[string][]*sel // by keys that they name and are not filed under

	groups      map[groupKey]*group
	inNamespace map[string]map[*group]struct{}
	withLabel   map[label][]*group // own labels

	parents *parents
	// moved is called when an item begins or ceases to match.
	moved func(s *sel, it *item, in bool)
	asked int // selectors evaluated; for tests
}

// parents are the namespaces and service accounts that hand labels down, shared by the
// indexes.
type parents struct {
	namespaces map[string]*labelled
	accounts   map[accountKey]*labelled
}

func newIndex(p *parents, moved func(*sel, *item, bool)) *index {
	return &index{
		selectors: map[string]*sel{}, byLabel: map[label][]*sel{}, byKey: map[string][]*sel{}, named: map[string][]*sel{},
		groups: map[groupKey]*group{}, inNamespace: map[string]map[*group]struct{}{}, withLabel: map[label][]*group{},
		parents: p, moved: moved,
	}
}

// put makes the item one of the group with that key, and calls moved for what thereby
// changes. It must not be called with other prefixes or ports than the item had when it
// was put before: remove it first.
func (x *index) put(it *item, key groupKey) {
	old := it.group
	if old != nil && old.groupKey == key {
		return
	}
	g := x.groups[key]
	if g == nil {
		g = x.newGroup(key, old)
	}
	if old != nil {
		detach(it)
	}
	it.group, it.pos = g, len(g.items)
	g.items = append(g.items, it)
	var before []*sel
	if old != nil {
		before = old.matches
	}
	diff(before, g.matches, func(s *sel, in bool) { x.moved(s, it, in) })
	if old != nil && len(old.items) == 0 {
		x.dropGroup(old)
	}
}

// replace gives the item, in its group or in none, other prefixes, sorted as the old ones
// are. Those that it keeps do not move.
func (x *index) replace(it *item, prefixes []netip.Prefix) {
	if it.group != nil {
		gone, come := missing(it.prefixes, prefixes), missing(prefixes, it.prefixes)
		for _, s := range it.group.matches {
			it.prefixes = gone
			x.moved(s, it, false)
			it.prefixes = come
			x.moved(s, it, true)
		}
	}
	it.prefixes = prefixes
}

// missing lists what of a is not in b; both are sorted.
func missing(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a {
		if _, there := slices.BinarySearchFunc(b, p, comparePrefixes); !there {
			out = append(out, p)
		}
	}
	return out
}

// remove takes the item out.
func (x *index) remove(it *item) {
	g := it.group
	if g == nil {
		return
	}
	for _, s := range g.matches {
		x.moved(s, it, false)
	}
	detach(it)
	if len(g.items) == 0 {
		x.dropGroup(g)
	}
}

func detach(it *item) {
	g := it.group
	last := len(g.items) - 1
	g.items[it.pos] = g.items[last]
	g.items[it.pos].pos = it.pos
	g.items[last] = nil
	g.items = g.items[:last]
	it.group = nil
}

// newGroup makes a group. Where it differs from like in nothing but labels of its own, only
// selectors that name those are asked.
func (x *index) newGroup(key groupKey, like *group) *group {
	g := &group{groupKey: key, labels: decode(key.own)}
	if key.namespace != "" {
		g.ns = hold(x.parents.namespaces, key.namespace)
		in := x.inNamespace[key.namespace]
		if in == nil {
			in = map[*group]struct{}{}
			x.inNamespace[key.namespace] = in
		}
		in[g] = struct{}{}
		if key.account != "" {
			g.sa = hold(x.parents.accounts, accountKey{key.namespace, key.account})
		}
	}
	for _, l := range g.labels {
		x.withLabel[l] = append(x.withLabel[l], g)
	}
	x.groups[key] = g
	if like != nil && like.class == g.class && like.namespace == g.namespace && like.account == g.account {
		g.matches = x.again(g, like.matches, changedKeys(like.labels, g.labels))
	} else {
		g.matches = x.all(g)
	}
	for _, s := range g.matches {
		s.groups[g] = struct{}{}
	}
	return g
}

func (x *index) dropGroup(g *group) {
	for _, s := range g.matches {
		delete(s.groups, g)
	}
	for _, l := range g.labels {
		takeFrom(x.withLabel, l, g)
	}
	if g.ns != nil {
		in := x.inNamespace[g.namespace]
		if delete(in, g); len(in) == 0 {
			delete(x.inNamespace, g.namespace)
		}
		unhold(x.parents.namespaces, g.namespace)
	}
	if g.sa != nil {
		unhold(x.parents.accounts, accountKey{g.namespace, g.account})
	}
	delete(x.groups, g.groupKey)
}

// all asks every selector that could match.
func (x *index) all(g *group) []*sel {
	var out []*sel
	ask := func(of []*sel) {
		for _, s := range of {
			if x.matches(s, g) {
				out = append(out, s)
			}
		}
	}
	ask(x.loose)
	g.each(func(l label) {
		ask(x.byLabel[l])
		ask(x.byKey[l.key])
	})
	return sorted(out)
}

// again asks the selectors that name one of the keys; the others match as before.
func (x *index) again(g *group, before []*sel, keys []string) []*sel {
	var out []*sel
	for _, s := range before {
		if !slices.ContainsFunc(keys, s.names) {
			out = append(out, s)
		}
	}
	ask := func(of []*sel) {
		for _, s := range of {
			if x.matches(s, g) {
				out = append(out, s)
			}
		}
	}
	for _, k := range keys {
		if v, ok := g.Get(k); ok {
			ask(x.byLabel[label{k, v}])
			ask(x.byKey[k])
		}
		ask(x.named[k])
	}
	return sorted(out)
}

func (s *sel) names(key string) bool {
	_, ok := slices.BinarySearch(s.keys, key)
	return ok
}

func (x *index) matches(s *sel, g *group) bool {
	x.asked++
	return s.s.MatchesLabels(g)
}

func sorted(of []*sel) []*sel {
	slices.SortFunc(of, bySeq)
	return slices.Clip(slices.Compact(of))
}

// relabelled tells the index that a namespace's labels have changed (or, with an account,
// those of that service account) at these keys.
func (x *index) relabelled(namespace, account string, keys []string) {
	for g := range x.inNamespace[namespace] {
		if account != "" && g.account != account {
			continue
		}
		before := g.matches
		g.matches = x.again(g, before, keys)
		diff(before, g.matches, func(s *sel, in bool) {
			if in {
				s.groups[g] = struct{}{}
			} else {
				delete(s.groups, g)
			}
			for _, it := range g.items {
				x.moved(s, it, in)
			}
		})
	}
}

// diff calls f for what is in one of the two only.
func diff(before, after []*sel, f func(s *sel, in bool)) {
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0].seq < after[0].seq:
			f(before[0], false)
			before = before[1:]
		case len(before) == 0 || after[0].seq < before[0].seq:
			f(after[0], true)
			after = after[1:]
		default:
			before, after = before[1:], after[1:]
		}
	}
}

// sel returns the selector, which from now on is kept up to date. moved is not called for
// what it matches already.
func (x *index) sel(of *selector.Selector) *sel {
	text := of.String()
	if s := x.selectors[text]; s != nil {
		return s
	}
	x.seq++
	s := &sel{s: of, seq: x.seq, keys: of.Keys(), filed: filing(of), groups: map[*group]struct{}{}}
	x.selectors[text] = s
	x.file(s, func(m map[label][]*sel, l label) { m[l] = append(m[l], s) }, func(m map[string][]*sel, k string) { m[k] = append(m[k], s) })
	if s.filed.Key == "" {
		x.loose = append(x.loose, s)
	}
	x.candidates(s.filed, func(g *group) {
		if _, known := s.groups[g]; !known && x.matches(s, g) {
			s.groups[g] = struct{}{}
			g.matches = append(g.matches, s) // s has the highest seq
		}
	})
	return s
}

// drop forgets a selector that nothing uses any more. moved is not called.
func (x *index) drop(s *sel) {
	for g := range s.groups {
		if i, ok := slices.BinarySearchFunc(g.matches, s, bySeq); ok {
			g.matches = slices.Delete(g.matches, i, i+1)
		}
	}
	x.file(s, func(m map[label][]*sel, l label) { takeFrom(m, l, s) }, func(m map[string][]*sel, k string) { takeFrom(m, k, s) })
	if s.filed.Key == "" {
		x.loose = slices.DeleteFunc(x.loose, func(o *sel) bool { return o == s })
	}
	delete(x.selectors, s.s.String())
}

// file calls the functions for all places of the maps where the selector belongs.
func (x *index) file(s *sel, byLabel func(map[label][]*sel, label), byKey func(map[string][]*sel, string)) {
	for _, v := range s.filed.Values {
		byLabel(x.byLabel, label{s.filed.Key, v})
	}
	if s.filed.Any {
		byKey(x.byKey, s.filed.Key)
	}
	for _, k := range s.keys {
		if k != s.filed.Key {
			byKey(x.named, k)
		}
	}
}

// filing picks the requirement that the fewest objects meet, as far as one can tell: a
// value rather than a key, and an object's own label rather than its namespace. The zero
// Requirement: there is none.
func filing(s *selector.Selector) selector.Requirement {
	var best selector.Requirement
	bestRank := 0
	for _, r := range s.Requirements() {
		if rank := rank(r); rank > bestRank || rank == bestRank && rank > 0 && len(r.Values) < len(best.Values) {
			best, bestRank = r, rank
		}
	}
	return best
}

func rank(r selector.Requirement) int {
	switch {
	case r.Key == labelOrchestrator, r.Any && (r.Key == labelNamespace || r.Key == labelAccount):
		return 0 // nearly every object meets it
	case r.Any:
		return 1
	case strings.HasPrefix(r.Key, accountPrefix), r.Key == labelAccount:
		return 2
	case strings.HasPrefix(r.Key, namespacePrefix):
		return 3
	case r.Key == labelNamespace:
		return 4
	}
	return 5
}

// candidates calls f for all groups that can meet the requirement, for some more than once.
func (x *index) candidates(r selector.Requirement, f func(*group)) {
	switch inherited := strings.HasPrefix(r.Key, namespacePrefix); {
	case r.Key == "" || r.Any || r.Key == labelAccount || strings.HasPrefix(r.Key, accountPrefix):
		for _, g := range x.groups {
			f(g)
		}
		return
	case inherited:
		for name, groups := range x.inNamespace {
			if v, ok := x.parents.namespaces[name].get(r.Key); ok && slices.Contains(r.Values, v) {
				for g := range groups {
					f(g)
				}
			}
		}
	case r.Key == labelNamespace:
		for _, v := range r.Values {
			for g := range x.inNamespace[v] {
				f(g)
			}
		}
	}
	for _, v := range r.Values {
		for _, g := range x.withLabel[label{r.Key, v}] {
			f(g)
		}
	}
}

// hold returns the record of a namespace or service account, known or not.
func hold[K comparable](m map[K]*labelled, k K) *labelled {
	l := m[k]
	if l == nil {
		l = &labelled{}
		m[k] = l
	}
	l.groups++
	return l
}

func unhold[K comparable](m map[K]*labelled, k K) {
	l := m[k]
	if l.groups--; l.groups == 0 && !l.known {
		delete(m, k)
	}
}

// takeFrom removes one of the elements under the key.
func takeFrom[K comparable, V comparable](m map[K][]V, k K, v V) {
	of := m[k]
	i := slices.Index(of, v)
	if i < 0 {
		return
	}
	last := len(of) - 1
	of[i] = of[last]
	var none V
	of[last] = none
	if last == 0 {
		delete(m, k)
	} else {
		m[k] = of[:last]
	}
}
