package selector

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds nested parentheses, so that no input exhausts the stack.
const maxDepth = 1000

// Error says where and why a selector does not parse.
type Error struct {
	Selector string
	Column   int // 1-based, in characters
	Expected string
	Found    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("selector %q: column %d: expected %s, found %s", e.Selector, e.Column, e.Expected, e.Found)
}

// Parse compiles a selector. The error is an *Error.
func Parse(s string) (*Selector, error) {
	p := parser{in: s}
	p.space()
	root := node(all{"all"})
	if p.pos < len(s) {
		var err error
		if root, err = p.or(0); err != nil {
			return nil, err
		}
		if p.pos < len(s) {
			return nil, p.fail(`"&&", "||" or the end`)
		}
	}
	return compiled(root), nil
}

// parser is a recursive-descent parser. Between calls pos stands on the first byte of a
// token or at the end, never on white space.
type parser struct {
	in  string
	pos int
}

func (p *parser) space() {
	for p.pos < len(p.in) && (p.in[p.pos] == ' ' || p.in[p.pos] == '\t') {
		p.pos++
	}
}

// take consumes the token if it comes next, and the white space after it.
func (p *parser) take(token string) bool {
	if !strings.HasPrefix(p.in[p.pos:], token) {
		return false
	}
	p.pos += len(token)
	p.space()
	return true
}

func (p *parser) fail(expected string) error { return p.failAt(p.pos, expected, found(p.in[p.pos:])) }

func (p *parser) failAt(pos int, expected, found string) error {
	return &Error{Selector: p.in, Column: utf8.RuneCountInString(p.in[:pos]) + 1, Expected: expected, Found: found}
}

// found describes what stands at the start of rest, for an error.
func found(rest string) string {
	if rest == "" {
		return "the end"
	}
	if n := keyLen(rest); n > 0 {
		return fmt.Sprintf("%q", rest[:n])
	}
	for _, t := range []string{"==", "!=", "&&", "||"} {
		if strings.HasPrefix(rest, t) {
			return fmt.Sprintf("%q", t)
		}
	}
	_, n := utf8.DecodeRuneInString(rest)
	return fmt.Sprintf("%q", rest[:n])
}

func (p *parser) or(depth int) (node, error) {
	return p.joined("||", func() (node, error) { return p.and(depth) }, func(of []node) node { return or{of} })
}

func (p *parser) and(depth int) (node, error) {
	return p.joined("&&", func() (node, error) { return p.op(depth) }, func(of []node) node { return and{of} })
}

func (p *parser) joined(sep string, operand func() (node, error), join func([]node) node) (node, error) {
	first, err := operand()
	if err != nil || !strings.HasPrefix(p.in[p.pos:], sep) {
		return first, err
	}
	of := []node{first}
	for p.take(sep) {
		next, err := operand()
		if err != nil {
			return nil, err
		}
		of = append(of, next)
	}
	return join(of), nil
}

func (p *parser) op(depth int) (node, error) {
	not := false
	for p.take("!") {
		not = !not
	}
	n, err := p.positive(depth)
	if err != nil || !not {
		return n, err
	}
	if i, ok := n.(invert); ok {
		return i.of, nil
	}
	return invert{n}, nil
}

const wantOp = `a label key, "has(", "all()", "global()", "!" or "("`

func (p *parser) positive(depth int) (node, error) {
	start := p.pos
	switch {
	case p.take("("):
		if depth++; depth > maxDepth {
			return nil, p.failAt(start, fmt.Sprintf("at most %d nested parentheses", maxDepth), "one more")
		}
		n, err := p.or(depth)
		if err != nil {
			return nil, err
		}
		if !p.take(")") {
			return nil, p.fail(`"&&", "||" or ")"`)
		}
		return n, nil
	case p.take("has("):
		key, err := p.key("a label key")
		if err != nil {
			return nil, err
		}
		if !p.take(")") {
			return nil, p.fail(`")"`)
		}
		return has{key}, nil
	case p.take("all("):
		if !p.take(")") {
			return nil, p.fail(`")"`)
		}
		return all{"all"}, nil
	case p.take("global("):
		if !p.take(")") {
			return nil, p.fail(`")"`)
		}
		return all{"global"}, nil
	}
	key, err := p.key(wantOp)
	if err != nil {
		return nil, err
	}
	return p.compare(key)
}

const wantCompare = `"==", "!=", "in", "not in", "contains", "starts with" or "ends with"`

// compare parses what follows a label key. The words need no space before what follows
// them, as in Calico: `a in{"b"}`, `a notin{"b"}`, `a startswith"b"`.
func (p *parser) compare(key string) (node, error) {
	start := p.pos
	switch {
	case p.take("=="):
		v, err := p.literal()
		return equals{key, v, false}, err
	case p.take("!="):
		v, err := p.literal()
		return equals{key, v, true}, err
	case p.take("contains"):
		v, err := p.literal()
		return part{key, v, anywhere}, err
	case p.take("starts"):
		if !p.take("with") {
			return nil, p.failAt(start, wantCompare, found(p.in[start:]))
		}
		v, err := p.literal()
		return part{key, v, atStart}, err
	case p.take("ends"):
		if !p.take("with") {
			return nil, p.failAt(start, wantCompare, found(p.in[start:]))
		}
		v, err := p.literal()
		return part{key, v, atEnd}, err
	case p.take("not"):
		if !p.take("in") {
			return nil, p.failAt(start, wantCompare, found(p.in[start:]))
		}
		set, err := p.set()
		return in{key, set, true}, err
	case p.take("in"):
		set, err := p.set()
		return in{key, set, false}, err
	}
	return nil, p.fail(wantCompare)
}

func (p *parser) set() ([]string, error) {
	if !p.take("{") {
		return nil, p.fail(`"{"`)
	}
	var set []string
	for !p.take("}") {
		v, err := p.literal()
		if err != nil {
			return nil, err
		}
		set = append(set, v)
		if !p.take(",") && !strings.HasPrefix(p.in[p.pos:], "}") {
			return nil, p.fail(`"," or "}"`)
		}
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

func (p *parser) literal() (string, error) {
	if p.pos == len(p.in) || (p.in[p.pos] != '"' && p.in[p.pos] != '\'') {
		return "", p.fail("a string in quotes")
	}
	quote := p.in[p.pos : p.pos+1]
	v, rest, ok := strings.Cut(p.in[p.pos+1:], quote)
	if !ok {
		return "", p.failAt(len(p.in), "a closing "+quote, "the end")
	}
	p.pos = len(p.in) - len(rest)
	p.space()
	return v, nil
}

func (p *parser) key(expected string) (string, error) {
	n := keyLen(p.in[p.pos:])
	if n == 0 {
		return "", p.fail(expected)
	}
	key := p.in[p.pos : p.pos+n]
	p.pos += n
	p.space()
	return key, nil
}

// keyLen is the length of the label key at the start of s.
func keyLen(s string) int {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '/', c == '-':
		default:
			return i
		}
	}
	return len(s)
}
