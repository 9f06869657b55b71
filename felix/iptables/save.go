package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// actual is what one table holds, as far as it concerns us.
type actual struct {
	chains  map[string]*actualChain // ours
	foreign map[string]*foreignChain
	// callers names, for a chain of ours, a chain of somebody else that goes to it by a
	// rule without our mark. Such a chain cannot be deleted.
	callers map[string]string
}

// bare reports whether nothing of ours is in the table.
func (a *actual) bare() bool {
	for _, f := range a.foreign {
		if len(f.hooks) > 0 {
			return false
		}
	}
	return len(a.chains) == 0
}

func newActual() *actual {
	return &actual{chains: map[string]*actualChain{}, foreign: map[string]*foreignChain{}, callers: map[string]string{}}
}

// actualChain is a chain of ours in the kernel.
type actualChain struct {
	rules   []actualRule
	callees []string // chains of ours that its rules go to, with repetitions
}

// actualRule is a rule in a chain of ours.
type actualRule struct {
	digest string // of its mark; empty when the rule is not, or no longer, as we wrote it
	text   string // as saved, without the mark; empty once it is known to be right
}

// foreignChain is a chain that is not ours.
type foreignChain struct {
	rules int          // how many rules it has, ours among them
	hooks []actualHook // ours, in order
}

// actualHook is a rule of ours in a chain of others.
type actualHook struct {
	position int // from 0
	digest   string
	spec     string // the whole rule as saved; what -D takes
}

// parseSave reads what iptables-save printed: all tables in it, by name.
func parseSave(text []byte) (map[Table]*actual, error) {
	out := map[Table]*actual{}
	var cur *actual
	for n, l := range strings.Split(string(text), "\n") {
		switch {
		case l == "" || l[0] == '#':
		case l[0] == '*':
			cur = newActual()
			out[Table(l[1:])] = cur
		case l == "COMMIT":
			cur = nil
		case cur == nil:
			return nil, fmt.Errorf("iptables-save: line %d %.60q stands outside a table", n+1, l)
		case l[0] == ':':
			name, _, _ := strings.Cut(l[1:], " ")
			if ours(name) {
				cur.chains[name] = &actualChain{}
			} else {
				cur.foreign[name] = &foreignChain{}
			}
		case strings.HasPrefix(l, "-A "):
			chain, spec, _ := strings.Cut(l[3:], " ")
			if !cur.add(chain, spec) {
				return nil, fmt.Errorf("iptables-save: line %d: chain %s is not declared", n+1, chain)
			}
		default:
			return nil, fmt.Errorf("iptables-save: line %d %.60q is not understood", n+1, l)
		}
	}
	return out, nil
}

// add takes one saved rule.
func (a *actual) add(chain, spec string) bool {
	if c := a.chains[chain]; c != nil {
		args := split(spec)
		digest, rest := cutMark(args)
		c.rules = append(c.rules, actualRule{digest: digest, text: join(rest)})
		if to := callee(args); to != "" {
			c.callees = append(c.callees, to)
		}
		return true
	}
	f := a.foreign[chain]
	if f == nil {
		return false
	}
	f.rules++
	if !strings.Contains(spec, Prefix) { // most of a busy table ends here
		return true
	}
	args := split(spec)
	if digest, _ := cutMark(args); digest != "" {
		f.hooks = append(f.hooks, actualHook{position: f.rules - 1, digest: digest, spec: spec})
	} else if to := callee(args); to != "" {
		a.callers[to] = chain
	}
	return true
}

// cutMark takes our mark out of a rule's arguments.
func cutMark(args []string) (digest string, rest []string) {
	for i := 0; i+3 < len(args); i++ {
		if args[i] == "-m" && args[i+1] == "comment" && args[i+2] == "--comment" {
			if d, ok := mark(args[i+3]); ok {
				return d, slices.Concat(args[:i], args[i+4:])
			}
		}
	}
	return "", args
}
