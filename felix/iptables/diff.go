package iptables

import (
	"fmt"
	"slices"
	"sort"
)

// part is what a transaction does to one chain: the unit in which changes are refused.
type part struct {
	chain   string   // ours, or the chain of others whose hooks change
	kind    partKind //
	declare bool     // begin with an empty chain, made if need be
	lines   []string // commands, in order
	applied func()   // takes the change into what is known of the kernel
}

type partKind uint8

const (
	partChain partKind = iota
	partHooks
	partDelete
)

// editChain lists the commands that turn a chain from have into want and leave the rules
// they share in place, with their counters. whole says that nothing is worth keeping, and
// the commands fill an empty chain.
func editChain(chain string, have []actualRule, want []line) (commands []string, whole bool) {
	kept := common(have, want)
	changes := max(len(have), len(want)) - len(kept)
	// By number each command walks the chain, in the programs and in the kernel's cache.
	if len(kept) == 0 || changes*len(have) > 1_000_000 {
		for _, l := range want {
			commands = append(commands, "-A "+chain+" "+l.spec())
		}
		return commands, true
	}
	kept = append(kept, [2]int{len(have), len(want)})
	position, i, j := 1, 0, 0
	for _, k := range kept {
		for ; i < k[0] && j < k[1]; i, j, position = i+1, j+1, position+1 {
			commands = append(commands, fmt.Sprintf("-R %s %d %s", chain, position, want[j].spec()))
		}
		for ; i < k[0]; i++ {
			commands = append(commands, fmt.Sprintf("-D %s %d", chain, position))
		}
		for ; j < k[1]; j, position = j+1, position+1 {
			if k[0] == len(have) {
				commands = append(commands, "-A "+chain+" "+want[j].spec())
			} else {
				commands = append(commands, fmt.Sprintf("-I %s %d %s", chain, position, want[j].spec()))
			}
		}
		i, j, position = k[0]+1, k[1]+1, position+1
	}
	return commands, false
}

// common pairs rules that stand in both in the same order, as indices of have and want:
// a longest increasing subsequence over pairs of equal digest.
func common(have []actualRule, want []line) [][2]int {
	n := 0 // the usual change leaves most of the chain alone
	for n < len(have) && n < len(want) && have[n].digest == want[n].digest {
		n++
	}
	pairs := make([][2]int, 0, len(want))
	for i := range n {
		pairs = append(pairs, [2]int{i, i})
	}
	where := map[string][]int{}
	for j := n; j < len(want); j++ {
		where[want[j].digest] = append(where[want[j].digest], j)
	}
	var (
		cand  [][2]int
		prev  []int // index into cand of the pair before
		tails []int // tails[k]: the candidate that ends the best run of k+1
	)
	for i := n; i < len(have); i++ {
		js := where[have[i].digest]
		if have[i].digest == "" || len(js) == 0 {
			continue
		}
		j := js[0]
		where[have[i].digest] = js[1:]
		k := sort.Search(len(tails), func(k int) bool { return cand[tails[k]][1] >= j })
		before := -1
		if k > 0 {
			before = tails[k-1]
		}
		cand, prev = append(cand, [2]int{i, j}), append(prev, before)
		if k == len(tails) {
			tails = append(tails, 0)
		}
		tails[k] = len(cand) - 1
	}
	if len(tails) > 0 {
		at := len(pairs)
		for c := tails[len(tails)-1]; c >= 0; c = prev[c] {
			pairs = append(pairs, cand[c])
		}
		slices.Reverse(pairs[at:])
	}
	return pairs
}

// hookLines are the rules wanted in one chain of others.
type hookLines struct{ head, tail []line }

func (h *hookLines) empty() bool { return h == nil || len(h.head)+len(h.tail) == 0 }

// inPlace reports whether f holds exactly the hooks of h, where they belong.
func (h *hookLines) inPlace(f *foreignChain) bool {
	if h == nil {
		return len(f.hooks) == 0
	}
	if len(f.hooks) != len(h.head)+len(h.tail) {
		return false
	}
	for i, have := range f.hooks {
		position := i
		want := h.head
		if i >= len(h.head) {
			want, i = h.tail, i-len(h.head)
			position = f.rules - len(h.tail) + i
		}
		if have.position != position || have.digest != want[i].digest {
			return false
		}
	}
	return true
}

// editHooks lists the commands that put the hooks of one chain of others right. Rules are
// deleted by what they say and never by number: should somebody else have changed the
// chain meanwhile, the command fails or still hits a rule of ours.
func editHooks(chain string, f *foreignChain, h *hookLines) []string {
	var commands []string
	for _, old := range f.hooks {
		commands = append(commands, "-D "+chain+" "+old.spec)
	}
	if h == nil {
		return commands
	}
	for i, l := range h.head {
		commands = append(commands, fmt.Sprintf("-I %s %d %s", chain, i+1, l.spec()))
	}
	for _, l := range h.tail {
		commands = append(commands, "-A "+chain+" "+l.spec())
	}
	return commands
}

// after is what the chain is once editHooks's commands have run.
func (h *hookLines) after(f *foreignChain) *foreignChain {
	out := &foreignChain{rules: f.rules - len(f.hooks)}
	if h == nil {
		return out
	}
	out.rules += len(h.head) + len(h.tail)
	for i, l := range h.head {
		out.hooks = append(out.hooks, actualHook{i, l.digest, l.spec()})
	}
	for i, l := range h.tail {
		out.hooks = append(out.hooks, actualHook{out.rules - len(h.tail) + i, l.digest, l.spec()})
	}
	return out
}

// script is the transaction of some parts, and who is to blame for each of its lines.
func script(table Table, parts []part) (text []byte, owner map[int]int) {
	owner = map[int]int{}
	n := 0
	emit := func(part int, s string) {
		text = append(append(text, s...), '\n')
		n++
		if part >= 0 {
			owner[n] = part
		}
	}
	emit(-1, "*"+string(table))
	for i, p := range parts {
		if p.declare {
			emit(i, ":"+p.chain+" - [0:0]")
		}
	}
	// Chains are deleted when nothing goes to them any more.
	for _, last := range []bool{false, true} {
		for i, p := range parts {
			if (p.kind == partDelete) != last {
				continue
			}
			for _, l := range p.lines {
				emit(i, l)
			}
		}
	}
	emit(-1, "COMMIT")
	return text, owner
}
