package nftables

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// plan is one transaction, and what stands in the kernel once it has passed.
type plan struct {
	tx      *knftables.Transaction
	owners  []object // of each line of the transaction
	number  uint32
	chains  map[string]*standing // nil: gone
	sets    map[string]*content  // new; nil: gone
	members []Member             // in their order
	held    []object             // members left to the next plan; see hold
	rebuilt bool
}

// edits reports whether nothing but members of sets and maps changes.
func (p *plan) edits() bool { return !p.rebuilt && len(p.chains) == 0 && len(p.sets) == 0 }

func (p *plan) do(o object, op func(knftables.Object), what knftables.Object) {
	op(what)
	p.owners = append(p.owners, o)
}

// usable reports whether what is there can become what is wanted.
func (t *table) usable() bool {
	if !t.actual.there {
		return true // there is nothing to be in the way
	}
	if t.actual.odd != "" {
		return false
	}
	for name := range t.setsDue {
		want, is := t.sets[name], t.actual.sets[name]
		if want != nil && is != nil && (is.keyLen != want.keyLen() || is.flags != want.flags()) {
			return false
		}
	}
	for name := range t.chainsDue {
		want := t.chains[name]
		is, there := t.actual.chains[name]
		if want != nil && there && is.base != want.at() {
			return false
		}
	}
	return true
}

// plan makes the transaction that is due; nil: there is nothing to do. What can not be
// changed where it stands is made anew as a whole, within the transaction.
//
// The order holds at every line, too: what is named is there before, and what goes is no
// longer named.
func (t *table) plan(tx *knftables.Transaction) *plan {
	p := &plan{tx: tx, number: t.number + 1, chains: map[string]*standing{}, sets: map[string]*content{}}
	from := t.actual
	if !t.usable() {
		p.rebuilt = true
		from = State{}
		t.all()
		p.do(object{}, tx.Add, &knftables.Table{})
		p.do(object{}, tx.Delete, &knftables.Table{})
	}
	if !from.there {
		t.all()
		p.do(object{}, tx.Add, &knftables.Table{Comment: knftables.PtrTo("policy of Causeway; other rules belong elsewhere")})
	}
	changed := slices.Sorted(maps.Keys(t.chainsDue))
	sets := slices.Sorted(maps.Keys(t.setsDue))
	var write, dropped []string

	for _, name := range sets {
		want, is := t.sets[name], from.sets[name]
		if want != nil && is == nil && !t.isRefused(object{set: name}) {
			t.addSet(p, want)
		}
	}
	for _, name := range changed {
		want := t.chains[name]
		if want == nil {
			continue
		}
		is, there := from.chains[name]
		if !there {
			t.addChain(p, want)
		}
		if want.adopt && there {
			continue
		}
		rules := t.rulesOf(want)
		digests := make([]string, len(rules))
		for i, r := range rules {
			digests[i] = r.digest()
		}
		if there && slices.Equal(is.digests, digests) {
			continue
		}
		write = append(write, name)
		p.chains[name] = &standing{base: want.at(), digests: digests}
	}
	t.planMembers(p, from, sets)
	for _, name := range write {
		o := object{chain: name}
		if is, there := from.chains[name]; there && len(is.digests) > 0 {
			p.do(o, p.tx.Flush, &knftables.Chain{Name: name})
		}
		for _, r := range t.rulesOf(t.chains[name]) {
			p.do(o, p.tx.Add, &knftables.Rule{Chain: name, Rule: r.text, Comment: knftables.PtrTo(r.remark())})
		}
	}
	if !t.keep {
		for _, name := range changed {
			if _, there := from.chains[name]; there && t.chains[name] == nil {
				dropped = append(dropped, name)
				p.do(object{chain: name}, p.tx.Flush, &knftables.Chain{Name: name})
			}
		}
		for _, name := range dropped {
			p.do(object{chain: name}, p.tx.Delete, &knftables.Chain{Name: name})
			p.chains[name] = nil
		}
		for _, name := range sets {
			if is := from.sets[name]; is != nil && t.sets[name] == nil {
				if is.flags&flagMap != 0 {
					p.do(object{set: name}, p.tx.Delete, &knftables.Map{Name: name})
				} else {
					p.do(object{set: name}, p.tx.Delete, &knftables.Set{Name: name})
				}
				p.sets[name] = nil
			}
		}
	}
	if len(p.owners) == 0 {
		t.settled()
		return nil
	}
	t.stamp(p, from)
	return p
}

// stamp gives the transaction its number, by which the notices of it are known for ours.
func (t *table) stamp(p *plan, from State) {
	t.number = p.number
	o := object{set: numberSet}
	if is := from.sets[numberSet]; is != nil {
		for key := range is.members {
			p.do(o, p.tx.Delete, &knftables.Element{Set: numberSet, Key: t.sets[numberSet].text(key)})
			p.members = append(p.members, Member{Set: numberSet, Key: key, Gone: true})
		}
	}
	key := numberKey(p.number)
	p.do(o, p.tx.Add, &knftables.Element{Set: numberSet, Key: t.sets[numberSet].text(key)})
	p.members = append(p.members, Member{Set: numberSet, Key: key})
}

func (t *table) addSet(p *plan, s *set) {
	var comment *string
	if s.comment != "" {
		c := plain(s.comment)
		comment = knftables.PtrTo(c[:min(len(c), commentMax-1)])
	}
	o := object{set: s.name}
	if s.kind == kindDispatch {
		p.do(o, p.tx.Add, &knftables.Map{Name: s.name, Type: s.typ(), Comment: comment})
	} else {
		n := &knftables.Set{Name: s.name, Type: s.typ(), Comment: comment}
		if s.ranges() {
			n.Flags = []knftables.SetFlag{knftables.IntervalFlag}
		}
		p.do(o, p.tx.Add, n)
	}
	p.sets[s.name] = &content{keyLen: s.keyLen(), flags: s.flags(), members: map[string]string{}}
}

func (t *table) addChain(p *plan, c *chain) {
	n := &knftables.Chain{Name: c.name}
	if c.base != nil {
		n.Type = knftables.PtrTo(knftables.FilterType)
		n.Hook = knftables.PtrTo(c.base.hook)
		n.Priority = knftables.PtrTo(knftables.BaseChainPriority(strconv.Itoa(c.base.priority)))
	}
	p.do(object{chain: c.name}, p.tx.Add, n)
	p.chains[c.name] = &standing{base: c.at()}
}

// planMembers changes what sets hold. What goes is first: what comes may overlap it.
func (t *table) planMembers(p *plan, from State, whole []string) {
	due := map[string][]string{}
	for _, name := range whole {
		want, is := t.sets[name], from.sets[name]
		if want == nil || name == numberSet {
			continue
		}
		keys := map[string]bool{}
		for key := range want.members {
			keys[key] = true
		}
		if is != nil {
			for key := range is.members {
				keys[key] = true
			}
		}
		due[name] = slices.Sorted(maps.Keys(keys))
	}
	for name, keys := range t.membersDue {
		if due[name] == nil && t.sets[name] != nil {
			due[name] = slices.Sorted(maps.Keys(keys))
		}
	}
	names := slices.Sorted(maps.Keys(due))
	for _, comes := range []bool{false, true} {
		for _, name := range names {
			if t.isRefused(object{set: name}) {
				continue
			}
			want := t.sets[name]
			var is map[string]string
			if c := from.sets[name]; c != nil {
				is = c.members
			}
			var many []string
			for _, key := range due[name] {
				value, wanted := want.members[key]
				old, there := is[key]
				if there && wanted && old == leave && p.hold(from, value) {
					if comes {
						p.held = append(p.held, object{set: name, key: key})
					}
					continue
				}
				switch {
				case !comes && there && (!wanted || old != value):
					p.members = append(p.members, Member{Set: name, Key: key, Ranges: want.ranges(), Gone: true})
				case comes && wanted && (!there || old != value) && !t.isRefused(object{set: name, key: key}):
					p.members = append(p.members, Member{Set: name, Key: key, Ranges: want.ranges(), Verdict: value})
				default:
					continue
				}
				many = append(many, key)
			}
			t.change(p, want, many, comes)
		}
	}
}

// hold reports whether the member of an open pod, which now leads to a chain, must wait for the next transaction: a
// packet that is on its way while one takes effect looks into maps as they are, but meets the rules that it
// began with (nft_do_chain in net/netfilter/nf_tables_core.c). A chain that is new has none for it.
func (p *plan) hold(from State, verdict string) bool {
	_, stood := from.chains[verdict]
	return verdict != leave && !stood && p.chains[verdict] != nil
}

// together is how many members one line of a transaction has at most. The kernel looks for the
// set once a line, through all of them.
const together = 500

// change writes members that come, or that go.
func (t *table) change(p *plan, s *set, keys []string, comes bool) {
	op := p.tx.Delete
	if comes {
		op = p.tx.Add
	}
	most := together
	if s.kind == kindDispatch || t.single[s.name] {
		most = 1
	}
	for some := range slices.Chunk(keys, most) {
		o := object{set: s.name, key: some[0]}
		e := s.element(some[0], "")
		if comes {
			e = s.element(some[0], s.members[some[0]])
		}
		if len(some) > 1 {
			o.key = several
			texts := make([]string, len(some))
			for i, key := range some {
				texts[i] = strings.Join(s.text(key), " . ")
			}
			e = &knftables.Element{Set: s.name, Key: []string{strings.Join(texts, ", ")}}
		}
		p.do(o, op, e)
	}
}

// element is a member as knftables has it; value is the chain that it calls, or leave.
func (s *set) element(key, value string) *knftables.Element {
	e := &knftables.Element{Key: s.text(key)}
	if s.kind != kindDispatch {
		e.Set = s.name
		return e
	}
	e.Map = s.name
	switch value {
	case "":
	case leave:
		e.Value = []string{"return"}
	default:
		e.Value = []string{"jump " + value}
	}
	return e
}

// line is where in a transaction an error of nft is.
var line = regexp.MustCompile(`/dev/stdin:(\d+):`)

// culprit is the object that an error of nft is about.
func (p *plan) culprit(err error) (object, bool) {
	m := line.FindStringSubmatch(err.Error())
	if m == nil {
		return object{}, false
	}
	n, convErr := strconv.Atoi(m[1])
	if convErr != nil || n < 1 || n > len(p.owners) {
		return object{}, false
	}
	o := p.owners[n-1]
	return o, o != object{} && o.set != numberSet
}
