package felixtest

import (
	"fmt"
	"slices"
	"strings"
)

// expr is a selector as a question to an object's labels. global says that the object has
// no namespace.
type expr func(labels map[string]string, global bool) bool

// parsed keeps selectors that were read before; the golden model is for one goroutine.
type parsed map[string]expr

// parse reads a selector in the simplest way that can work, and panics where it is none:
// only selectors of policies in force come here.
func (c parsed) parse(text string) expr {
	if e, ok := c[text]; ok {
		return e
	}
	p := reader{text: text}
	var e expr = func(map[string]string, bool) bool { return true }
	if p.skip(); p.text != "" {
		e = p.or()
	}
	if p.skip(); p.text != "" {
		panic(fmt.Sprintf("selector %q: what is %q", text, p.text))
	}
	c[text] = e
	return e
}

type reader struct{ text string }

func (p *reader) skip() { p.text = strings.TrimLeft(p.text, " \t") }

func (p *reader) take(word string) bool {
	p.skip()
	rest, ok := strings.CutPrefix(p.text, word)
	if ok {
		p.text = rest
	}
	return ok
}

func (p *reader) must(word string) {
	if !p.take(word) {
		panic(fmt.Sprintf("selector: %q where %q should be", p.text, word))
	}
}

func (p *reader) or() expr {
	e := p.and()
	for p.take("||") {
		l, r := e, p.and()
		e = func(m map[string]string, g bool) bool { return l(m, g) || r(m, g) }
	}
	return e
}

func (p *reader) and() expr {
	e := p.not()
	for p.take("&&") {
		l, r := e, p.not()
		e = func(m map[string]string, g bool) bool { return l(m, g) && r(m, g) }
	}
	return e
}

func (p *reader) not() expr {
	if p.take("!") {
		e := p.not()
		return func(m map[string]string, g bool) bool { return !e(m, g) }
	}
	switch {
	case p.take("("):
		e := p.or()
		p.must(")")
		return e
	case p.take("all()"):
		return func(map[string]string, bool) bool { return true }
	case p.take("global()"):
		return func(_ map[string]string, g bool) bool { return g }
	case p.take("has("):
		k := p.key()
		p.must(")")
		return func(m map[string]string, _ bool) bool { _, ok := m[k]; return ok }
	}
	k := p.key()
	with := func(f func(have, want string) bool) expr {
		want := p.quoted()
		return func(m map[string]string, _ bool) bool { have, ok := m[k]; return ok && f(have, want) }
	}
	equal := func(a, b string) bool { return a == b }
	no := func(e expr) expr {
		return func(m map[string]string, g bool) bool { return !e(m, g) }
	}
	among := func() expr {
		var of []string
		for p.must("{"); !p.take("}"); p.take(",") {
			of = append(of, p.quoted())
		}
		return func(m map[string]string, _ bool) bool { have, ok := m[k]; return ok && slices.Contains(of, have) }
	}
	switch {
	case p.take("=="):
		return with(equal)
	case p.take("!="):
		return no(with(equal))
	case p.take("contains"):
		return with(strings.Contains)
	case p.take("starts with"):
		return with(strings.HasPrefix)
	case p.take("ends with"):
		return with(strings.HasSuffix)
	case p.take("not in"):
		return no(among())
	case p.take("in"):
		return among()
	}
	panic(fmt.Sprintf("selector: %q after label %s", p.text, k))
}

func (p *reader) key() string {
	p.skip()
	n := strings.IndexFunc(p.text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-", r)
	})
	if n < 0 {
		n = len(p.text)
	}
	k := p.text[:n]
	p.text = p.text[n:]
	return k
}

func (p *reader) quoted() string {
	p.skip()
	quote := p.text[:1]
	in, rest, ok := strings.Cut(p.text[1:], quote)
	if !ok || quote != `"` && quote != `'` {
		panic(fmt.Sprintf("selector: %q is no string", p.text))
	}
	p.text = rest
	return in
}
