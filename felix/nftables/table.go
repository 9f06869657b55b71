package nftables

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// table is what is wanted of the kernel, what stands there as far as we know, and where
// the two may differ. It is pure.
type table struct {
	chains map[string]*chain
	sets   map[string]*set
	// keep: what is there and not wanted stays, but members of sets that are wanted.
	keep bool

	actual State

	chainsDue  map[string]bool
	setsDue    map[string]bool            // as a whole
	membersDue map[string]map[string]bool // set → keys
	refused    map[object]refusal
	single     map[string]bool // sets that have a line for each member: one is refused, and which is not known

	first, number uint32 // transactions carry the numbers after first, up to number
}

// object is what the kernel can refuse: a chain, a set, or a member of one.
type object struct{ chain, set, key string }

func (o object) String() string {
	switch {
	case o.chain != "":
		return "chain " + o.chain
	case o.key != "":
		return fmt.Sprintf("set %s, member %x", o.set, o.key)
	}
	return "set " + o.set
}

// refusal is why the kernel refused an object. Chains are asked for again when they change.
type refusal struct {
	err     error
	digests []string // of the chain that was refused
	again   bool     // it is being tried again
}

// several is the key of a line that has more members than one.
const several = "*"

// numberSet holds the number of the last transaction, by which we know our own.
const numberSet = "transaction"

func newTable() *table {
	first := rand.Uint32()
	t := &table{
		chains: map[string]*chain{}, sets: map[string]*set{}, first: first, number: first,
		chainsDue: map[string]bool{}, setsDue: map[string]bool{}, membersDue: map[string]map[string]bool{}, refused: map[object]refusal{}, single: map[string]bool{},
	}
	t.setSet(&set{name: numberSet, kind: kindNumber, comment: "number of the last transaction"})
	return t
}

// ours reports whether one of our transactions has the number.
func (t *table) ours(n uint32) bool { return n-t.first-1 < t.number-t.first }

func (t *table) setChain(c *chain) {
	t.chains[c.name] = c
	t.chainsDue[c.name] = true
}

func (t *table) removeChain(name string) {
	delete(t.chains, name)
	t.chainsDue[name] = true
}

func (t *table) setSet(s *set) {
	if s.members == nil {
		s.members = map[string]string{}
	}
	t.sets[s.name] = s
	t.setsDue[s.name] = true
}

func (t *table) removeSet(name string) {
	delete(t.sets, name)
	delete(t.membersDue, name)
	t.setsDue[name] = true
}

// setMember puts a member into a wanted set; value is the chain that a dispatch calls, or leave.
func (t *table) setMember(name, key, value string) {
	s := t.sets[name]
	if old, there := s.members[key]; there && old == value {
		return
	}
	s.members[key] = value
	t.due(name, key)
}

func (t *table) removeMember(name, key string) {
	delete(t.sets[name].members, key)
	t.due(name, key)
}

func (t *table) due(name, key string) {
	if t.membersDue[name] == nil {
		t.membersDue[name] = map[string]bool{}
	}
	t.membersDue[name][key] = true
}

// all says that everything may differ.
func (t *table) all() {
	for name := range t.chains {
		t.chainsDue[name] = true
	}
	for name := range t.actual.chains {
		t.chainsDue[name] = true
	}
	for name := range t.sets {
		t.setsDue[name] = true
	}
	for name := range t.actual.sets {
		t.setsDue[name] = true
	}
}

// see takes in what stands in the kernel, and says what of it was not expected.
func (t *table) see(now State) (unexpected []string) {
	for name, was := range t.actual.chains {
		if is, there := now.chains[name]; !there || !slices.Equal(was.digests, is.digests) || was.base != is.base {
			unexpected = append(unexpected, "chain "+name)
		}
	}
	for name, was := range t.actual.sets {
		is, there := now.sets[name]
		if !there || name != numberSet && !maps.Equal(was.members, is.members) {
			unexpected = append(unexpected, "set "+name)
		}
	}
	for name := range now.chains {
		if _, there := t.actual.chains[name]; !there {
			unexpected = append(unexpected, "chain "+name)
		}
	}
	slices.Sort(unexpected)
	if n := len(unexpected); n > 8 {
		unexpected = append(unexpected[:8], fmt.Sprintf("and %d more", n-8))
	}
	t.actual = now
	t.all()
	return unexpected
}

// rulesOf are the rules that a chain gets: where the kernel has refused its own one that drops.
func (t *table) rulesOf(c *chain) []rule {
	if r, bad := t.refused[object{chain: c.name}]; bad && !r.again && slices.Equal(r.digests, c.digests()) {
		return []rule{{"counter drop", "the rules of this chain are refused"}}
	}
	return c.rules
}

func (t *table) isRefused(o object) bool {
	r, bad := t.refused[o]
	return bad && !r.again
}

// retry has what was refused tried again.
func (t *table) retry() {
	for o, r := range t.refused {
		r.again = true
		t.refused[o] = r
	}
}

// stands takes in that a plan has passed.
func (t *table) stands(p *plan) {
	if p.rebuilt || !t.actual.there {
		t.actual = newState()
	}
	for name, c := range p.chains {
		if c == nil {
			delete(t.actual.chains, name)
		} else {
			t.actual.chains[name] = *c
		}
	}
	for name, c := range p.sets {
		if c == nil {
			delete(t.actual.sets, name)
		} else {
			t.actual.sets[name] = c
		}
	}
	for _, m := range p.members {
		if m.Gone {
			delete(t.actual.sets[m.Set].members, m.Key)
		} else {
			t.actual.sets[m.Set].members[m.Key] = m.Verdict
		}
	}
	t.settled()
	for _, o := range p.held {
		t.due(o.set, o.key)
	}
}

func (t *table) settled() {
	// New maps: to clear one costs what it once held.
	t.chainsDue, t.setsDue, t.membersDue, t.single = map[string]bool{}, map[string]bool{}, map[string]map[string]bool{}, map[string]bool{}
	for o, r := range t.refused { // of what is wanted no more, or otherwise
		c, s := t.chains[o.chain], t.sets[o.set]
		switch {
		case r.again: // and it was taken
			delete(t.refused, o)
		case o.chain != "" && (c == nil || !slices.Equal(r.digests, c.digests())), o.set != "" && s == nil:
			delete(t.refused, o)
		case o.key != "":
			if _, wanted := s.members[o.key]; !wanted {
				delete(t.refused, o)
			}
		}
	}
}

// refuse notes that the kernel does not take an object.
func (t *table) refuse(o object, err error) {
	if o.key == several {
		t.single[o.set] = true
		return
	}
	r := refusal{err: err}
	if c := t.chains[o.chain]; c != nil {
		r.digests = c.digests()
	}
	t.refused[o] = r
}

// refusals says what of these objects the kernel has refused; of all when names is nil.
func (t *table) refusals(names map[string]bool) error {
	if len(t.refused) == 0 {
		return nil
	}
	var bad []string
	errs := map[string]error{}
	for o, r := range t.refused {
		if names == nil || names[o.chain] || names[o.set] {
			errs[o.String()] = r.err
			bad = append(bad, o.String())
		}
	}
	slices.Sort(bad)
	var out []error
	for _, name := range bad {
		out = append(out, fmt.Errorf("%s: %w", name, errs[name]))
	}
	return errors.Join(out...)
}
