package iptables

import "strings"

// leaves is how many interfaces one chain of the tree tells apart by their whole names.
// Between 8 and 16 the cost of a packet is the same within what can be measured.
const leaves = 12

// dispatch makes the chains that send a packet to the chain of its interface: a tree of the
// names' beginnings, so that a packet meets about 8 rules where the tree has 16 branches,
// and a few at its leaves. flag is -i or -o; root names the first chain, node the chain of a
// beginning, and leaf the chain of an interface. A packet of no interface among names
// leaves the tree as it came.
//
// All rules are -g, so that the chain of the interface returns to whom called root. names are
// sorted, without duplicates.
func dispatch(names []string, flag, root string, node, leaf func(string) string) []Chain {
	var (
		out  []Chain
		grow func(chain string, names []string)
	)
	grow = func(chain string, names []string) {
		at := len(out)
		out = append(out, Chain{Name: chain})
		var rules []Rule
		exact := func(name string) {
			rules = append(rules, Rule{Match: []string{flag, name}, Action: Goto(leaf(name))})
		}
		if len(names) <= leaves {
			for _, name := range names {
				exact(name)
			}
			out[at].Rules = rules
			return
		}
		begin := beginning(names)
		for i := 0; i < len(names); {
			if len(names[i]) == len(begin) { // it is the first, and others begin with it
				exact(names[i])
				i++
				continue
			}
			j := i + 1
			for j < len(names) && names[j][len(begin)] == names[i][len(begin)] {
				j++
			}
			if j == i+1 {
				exact(names[i])
			} else {
				begin := beginning(names[i:j])
				rules = append(rules, Rule{Match: []string{flag, begin + "+"}, Action: Goto(node(begin))})
				grow(node(begin), names[i:j])
			}
			i = j
		}
		out[at].Rules = rules
	}
	grow(root, names)
	return out
}

// beginning is the longest beginning that sorted names share: that of the first and the last.
func beginning(names []string) string {
	a, b := names[0], names[len(names)-1]
	for n := range a {
		if !strings.HasPrefix(b, a[:n+1]) {
			return a[:n]
		}
	}
	return a
}
