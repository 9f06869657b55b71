package iptables

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// compiled is a Chain as text.
type compiled struct {
	name            string
	lines, fallback []line
	adopt           bool  // what the kernel holds stays
	err             error // why Rules cannot be text; the chain is refused unseen
}

// compileChain makes the text of a chain. The error of a chain that cannot even exist is
// in err, with lines and fallback nil.
func compileChain(c Chain) *compiled {
	out := &compiled{name: c.Name, adopt: c.Adopt}
	if !validName(out) {
		out.err = fmt.Errorf("the name must begin with %q, be at most %d bytes long and hold no blanks", Prefix, MaxChainName)
		return out
	}
	out.lines, out.err = compileRules(c.Rules)
	fallback, err := compileRules(c.Fallback)
	out.fallback = fallback
	if err != nil && out.err == nil {
		out.err = fmt.Errorf("fallback: %w", err)
	}
	return out
}

// compileRules makes the text of rules; with an error it returns none.
func compileRules(rules []Rule) ([]line, error) {
	lines := make([]line, 0, len(rules))
	for i, r := range rules {
		l, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

func (c *compiled) equal(o *compiled) bool {
	return slices.Equal(c.lines, o.lines) && slices.Equal(c.fallback, o.fallback) && c.adopt == o.adopt && c.err == nil && o.err == nil
}

// compiledHooks are the hooks of one chain of others.
type compiledHooks struct {
	hookLines
	err error
}

func compileHooks(hooks []Hook) map[string]*compiledHooks {
	out := map[string]*compiledHooks{}
	for _, h := range hooks {
		c := out[h.Chain]
		if c == nil {
			c = &compiledHooks{}
			out[h.Chain] = c
		}
		l, err := compile(h.Rule)
		switch {
		case h.Chain == "" || ours(h.Chain) || quote(h.Chain) != h.Chain:
			c.err = fmt.Errorf("%q must name a chain that is not ours", h.Chain)
		case err != nil:
			c.err = errors.Join(c.err, err)
		case h.Append:
			c.tail = append(c.tail, l)
		default:
			c.head = append(c.head, l)
		}
	}
	return out
}

// refusal is a chain, or the hooks of one chain, that cannot be as wanted.
type refusal struct {
	err   error
	what  any       // the *compiled or *compiledHooks that was refused; another one is tried at once
	since time.Time // when the kernel was last asked; zero when it need not be
}

// owner names what is refused.
type owner struct {
	hooks bool
	chain string
}

func (o owner) String() string {
	if o.hooks {
		return "hooks of " + o.chain
	}
	return "chain " + o.chain
}

// table is one table's desired and actual state. It belongs to the goroutine of Run.
type table struct {
	name  Table
	want  map[string]*compiled
	hooks map[string]*compiledHooks
	// callers[c] are the wanted chains that go to c.
	callers map[string]map[string]bool
	adopted map[string]bool // wanted chains with adopt
	// good[c] is the version of c that the kernel holds or held last, where we know.
	good    map[string]*compiled
	refused map[owner]refusal
	// dirty are chains, ours and others', that may differ from what is wanted.
	dirty map[owner]bool
	// ifThere: nothing is wanted unless something of ours is there.
	ifThere bool
	// now is what the kernel holds; nil when it is not known and must be read.
	now *actual
	// canon[digest] is how the kernel prints the rule with that digest.
	canon map[string]string
	rules int       // how many rules are wanted
	err   error     // why the table as a whole could not be brought on
	wrote time.Time // when it last changed
	read  bool      // it was read before, so what a later reading finds wrong is drift
	swept bool      // the other backend holds nothing of ours in it
}

func newTable(name Table) *table {
	return &table{
		name: name, want: map[string]*compiled{}, hooks: map[string]*compiledHooks{},
		callers: map[string]map[string]bool{}, adopted: map[string]bool{}, good: map[string]*compiled{},
		refused: map[owner]refusal{}, dirty: map[owner]bool{}, canon: map[string]string{},
	}
}

// change is what Set and Update left for a table since the last round.
type change struct {
	whole   bool                 // chains and hooks are all that is wanted
	ifThere bool                 // of a whole one
	chains  map[string]*compiled // nil: deleted
	hooks   map[string]*compiledHooks
	rehook  bool // hooks are all that is wanted, whatever chains are
}

// absorb takes a change in and marks dirty what differs.
func (t *table) absorb(c *change) {
	if c.whole {
		if t.ifThere != c.ifThere {
			t.ifThere, t.now = c.ifThere, nil
		}
		for name := range t.want {
			if c.chains[name] == nil {
				t.put(name, nil)
			}
		}
	}
	if c.whole || c.rehook {
		for chain := range t.hooks {
			if c.hooks[chain] == nil {
				t.dirty[owner{true, chain}] = true
			}
		}
		for chain := range c.hooks {
			t.dirty[owner{true, chain}] = true
		}
		t.hooks = c.hooks
	}
	for name, chain := range c.chains {
		t.put(name, chain)
	}
}

func (t *table) put(name string, c *compiled) {
	old := t.want[name]
	if old != nil && c != nil && old.equal(c) {
		return
	}
	if old != nil {
		for _, l := range old.lines {
			delete(t.callers[l.callee], name)
			if len(t.callers[l.callee]) == 0 {
				delete(t.callers, l.callee)
			}
		}
		delete(t.want, name)
		t.rules -= len(old.lines)
		if old.adopt {
			delete(t.adopted, name)
			delete(t.good, name) // was empty, and nobody's decision
			t.now = nil          // nobody has compared its rules with their marks yet
		}
	}
	if c != nil {
		if c.adopt {
			t.adopted[name] = true
		}
		t.rules += len(c.lines)
		for _, l := range c.lines {
			if l.callee == "" {
				continue
			}
			if t.callers[l.callee] == nil {
				t.callers[l.callee] = map[string]bool{}
			}
			t.callers[l.callee][name] = true
		}
		t.want[name] = c
	}
	t.dirty[owner{false, name}] = true
	if (old == nil) != (c == nil) { // whether it can be called has changed
		for caller := range t.callers[name] {
			t.dirty[owner{false, caller}] = true
		}
		for chain := range t.hooks {
			t.dirty[owner{true, chain}] = true
		}
	}
}

// validate refuses what cannot be right whatever the kernel holds, among what is dirty,
// and forgets refusals that hold no more. The kernel is asked again about the others once
// they are older than retry.
func (t *table) validate(now time.Time, retry time.Duration) {
	for o, r := range t.refused {
		var is any
		if o.hooks {
			if h := t.hooks[o.chain]; h != nil {
				is = h
			}
		} else if c := t.want[o.chain]; c != nil {
			is = c
		}
		if is != r.what || r.since.IsZero() || now.Sub(r.since) >= retry {
			delete(t.refused, o)
			t.dirty[o] = true
		}
	}
	for o := range t.dirty {
		if o.hooks {
			if h := t.hooks[o.chain]; h != nil {
				if err := cmp.Or(h.err, t.missing(slices.Concat(h.head, h.tail))); err != nil {
					t.refused[o] = refusal{err: err, what: h}
				}
			}
			continue
		}
		if c := t.want[o.chain]; c != nil {
			if err := cmp.Or(c.err, t.missing(c.lines), t.loop(c)); err != nil {
				t.refused[o] = refusal{err: err, what: c}
			}
		}
	}
}

// again has what the kernel refused asked for anew.
func (t *table) again() {
	for o, r := range t.refused {
		r.since = time.Time{}
		t.refused[o] = r
	}
}

// missing complains of the first rule that goes to a chain of ours that is not wanted.
func (t *table) missing(lines []line) error {
	for i, l := range lines {
		if l.callee == "" {
			continue
		}
		if c := t.want[l.callee]; c == nil || !validName(c) {
			return fmt.Errorf("rule %d goes to chain %s, which is not among the wanted chains of table %s", i+1, l.callee, t.name)
		}
	}
	return nil
}

func validName(c *compiled) bool {
	return ours(c.name) && len(c.name) <= MaxChainName && quote(c.name) == c.name
}

// loop complains when a chain reaches itself, which the kernel refuses with an error that
// names anybody.
func (t *table) loop(c *compiled) error {
	seen := map[string]bool{}
	var reaches func(*compiled) bool
	reaches = func(from *compiled) bool {
		for _, l := range from.lines {
			if l.callee == c.name {
				return true
			}
			if l.callee == "" || seen[l.callee] {
				continue
			}
			seen[l.callee] = true
			if next := t.want[l.callee]; next != nil && reaches(next) {
				return true
			}
		}
		return false
	}
	if reaches(c) {
		return fmt.Errorf("its rules lead back to it; the kernel takes no loops")
	}
	return nil
}

// target is what a chain is to be now: as wanted, or while that is refused, the last
// version that was good, or its fallback. keep says to leave what the kernel holds.
func (t *table) target(name string) (c *compiled, lines []line, keep bool) {
	c = t.want[name]
	if c == nil {
		return nil, nil, false
	}
	if c.adopt && t.now.chains[name] != nil {
		return c, nil, true
	}
	if _, bad := t.refused[owner{false, name}]; !bad {
		return c, c.lines, false
	}
	if g := t.good[name]; g != nil {
		for _, l := range g.lines { // what it went to may be gone
			if l.callee != "" && t.want[l.callee] == nil && t.now.chains[l.callee] == nil {
				return c, nil, true
			}
		}
		return g, g.lines, false
	}
	if have := t.now.chains[name]; have != nil && len(have.rules) > 0 || !validName(c) {
		return c, nil, true // an empty chain is no version worth keeping: the fallback is its better
	}
	if t.missing(c.fallback) != nil {
		return c, nil, false
	}
	return &compiled{name: name, lines: c.fallback}, c.fallback, false
}

// plan lists what must change in the kernel for everything dirty.
func (t *table) plan() []part {
	var parts []part
	needed := t.held()
	for o := range t.dirty {
		if o.hooks {
			if p, ok := t.planHooks(o.chain); ok {
				parts = append(parts, p)
			}
			continue
		}
		name := o.chain
		have := t.now.chains[name]
		version, lines, keep := t.target(name)
		switch {
		case keep:
		case version != nil:
			p := part{chain: name, kind: partChain}
			if have == nil {
				have = &actualChain{}
				p.declare = true
			} else if holds(have, lines) {
				t.good[name] = version
				continue
			}
			commands, whole := editChain(name, have.rules, lines)
			p.lines = commands
			p.declare = p.declare || whole
			p.applied = func() {
				t.now.chains[name] = written(lines)
				t.good[name] = version
			}
			parts = append(parts, p)
		case have == nil || needed[name]:
		default:
			if _, bad := t.refused[o]; bad {
				continue
			}
			p := part{chain: name, kind: partDelete, declare: true, lines: []string{"-X " + name}}
			p.applied = func() {
				delete(t.now.chains, name)
				delete(t.good, name)
			}
			if t.now.callers[name] != "" { // somebody else's rule pins it; it can be empty at least
				if len(have.rules) == 0 {
					continue
				}
				p.lines = nil
				p.applied = func() { t.now.chains[name] = written(nil) }
			}
			parts = append(parts, p)
		}
	}
	// Callees before callers; hooks after chains and deletions last. Isolation counts on it.
	depth := map[string]int{}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(t.depth(a.chain, depth), t.depth(b.chain, depth)), cmp.Compare(a.chain, b.chain))
	})
	return parts
}

func (t *table) planHooks(chain string) (part, bool) {
	have := t.now.foreign[chain]
	h := t.hooks[chain]
	if _, bad := t.refused[owner{true, chain}]; bad {
		return part{}, false
	}
	var want *hookLines
	if h != nil {
		want = &h.hookLines
	}
	if have == nil {
		if want.empty() {
			return part{}, false
		}
		t.refused[owner{true, chain}] = refusal{
			err: fmt.Errorf("table %s has no chain %s", t.name, chain), what: h, since: time.Now(),
		}
		return part{}, false
	}
	if want.inPlace(have) {
		return part{}, false
	}
	return part{chain: chain, kind: partHooks, lines: editHooks(chain, have, want),
		applied: func() { t.now.foreign[chain] = want.after(have) }}, true
}

// held are the chains that are not wanted but that chains which stay as they are still go
// to.
func (t *table) held() map[string]bool {
	held := map[string]bool{}
	var hold func(string)
	hold = func(name string) {
		if name == "" || t.want[name] != nil || held[name] {
			return
		}
		held[name] = true
		if c := t.now.chains[name]; c != nil {
			for _, to := range c.callees {
				hold(to)
			}
		}
	}
	for name := range t.adopted {
		if c := t.now.chains[name]; c != nil {
			for _, to := range c.callees {
				hold(to)
			}
		}
	}
	for o := range t.refused {
		if o.hooks {
			if f := t.now.foreign[o.chain]; f != nil {
				for _, h := range f.hooks {
					hold(callee(split(h.spec)))
				}
			}
			continue
		}
		_, lines, keep := t.target(o.chain)
		for _, l := range lines {
			hold(l.callee)
		}
		if c := t.now.chains[o.chain]; c != nil && (keep || t.want[o.chain] == nil) {
			for _, to := range c.callees {
				hold(to)
			}
		}
	}
	return held
}

// depth is the longest way down from a chain; memo also ends loops.
func (t *table) depth(name string, memo map[string]int) int {
	if d, ok := memo[name]; ok {
		return d
	}
	memo[name] = 0
	d := 0
	if c := t.want[name]; c != nil {
		for _, l := range c.lines {
			if l.callee != "" {
				d = max(d, 1+t.depth(l.callee, memo))
			}
		}
	}
	memo[name] = d
	return d
}

// holds reports whether the kernel's chain is these lines, as far as is known.
func holds(have *actualChain, want []line) bool {
	return slices.EqualFunc(have.rules, want, func(a actualRule, l line) bool { return a.digest == l.digest })
}

// written is a chain just written.
func written(lines []line) *actualChain {
	c := &actualChain{rules: make([]actualRule, len(lines))}
	for i, l := range lines {
		c.rules[i].digest = l.digest
		if l.callee != "" {
			c.callees = append(c.callees, l.callee)
		}
	}
	return c
}

// all marks everything dirty that is wanted or stands in the kernel.
func (t *table) all() {
	for name := range t.want {
		t.dirty[owner{false, name}] = true
	}
	for name := range t.now.chains {
		t.dirty[owner{false, name}] = true
	}
	for chain := range t.hooks {
		t.dirty[owner{true, chain}] = true
	}
	for chain, f := range t.now.foreign {
		if len(f.hooks) > 0 {
			t.dirty[owner{true, chain}] = true
		}
	}
}

// clean forgets what is dirty and as it should be; what waits for a refusal to end stays.
func (t *table) clean() {
	for o := range t.dirty {
		if !o.hooks && t.want[o.chain] == nil && t.now.chains[o.chain] != nil {
			continue
		}
		delete(t.dirty, o)
	}
}

// errs are the table's error and its refusals, sorted.
func (t *table) errs() []error {
	var out []error
	if t.err != nil {
		out = append(out, fmt.Errorf("table %s: %w", t.name, t.err))
	}
	for _, o := range slices.SortedFunc(maps.Keys(t.refused), func(a, b owner) int { return cmp.Compare(a.String(), b.String()) }) {
		out = append(out, fmt.Errorf("table %s: %s: %w", t.name, o, t.refused[o].err))
	}
	return out
}
