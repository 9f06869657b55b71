package lab

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// roleColor are fill colours of the picture, one for each role.
var roleColor = map[Role]string{RoleCauseway: "#cfe8cf", RoleFRR: "#cfdcf2", RoleBIRD: "#f2dfcf", RoleGoBGP: "#e3d3f0",
	RoleHost: "#eeeeee", RoleBridge: "#fff6c8"}

// DOT draws the topology in Graphviz's language: nodes of one group stand in a row of one
// rank, links carry the interface names at their ends.
func (t *Topology) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "graph %q {\n  graph [label=%q labelloc=t fontname=Helvetica nodesep=0.6 ranksep=0.9]\n", t.Name, t.Name)
	b.WriteString("  node [shape=box style=\"rounded,filled\" fontname=Helvetica]\n  edge [fontname=Helvetica fontsize=9 color=\"#606060\"]\n")
	for _, tier := range t.tiers() {
		b.WriteString("  { rank=same;")
		for _, n := range tier {
			fmt.Fprintf(&b, " %q;", n.Name)
		}
		b.WriteString(" }\n")
	}
	for _, n := range t.Nodes {
		// The backslash is DOT's own line break: not for %q.
		fmt.Fprintf(&b, "  %q [label=\"%s\\n%s\" fillcolor=%q]\n", n.Name, n.Name, n.Role, roleColor[n.Role])
	}
	for _, l := range t.Links {
		a, z := l.A, l.B
		if t.depth(a.Node) > t.depth(z.Node) { // the upper node first, so that ranks go down
			a, z = z, a
		}
		fmt.Fprintf(&b, "  %q -- %q [taillabel=%q headlabel=%q]\n", a.Node, z.Node, a.Interface, z.Interface)
	}
	b.WriteString("}\n")
	return b.String()
}

// depth is how far from the top a node is drawn: switches and routers above hosts, and of
// routers those that touch fewer hosts above the others.
func (t *Topology) depth(name string) int {
	n := t.Node(name)
	if n == nil || n.Role == RoleCauseway {
		return 2
	}
	hosts := false
	others := false
	for _, m := range t.neighbours(name) {
		if m.Role == RoleCauseway || m.Role == RoleHost {
			hosts = true
		} else {
			others = true
		}
	}
	switch {
	case !hosts:
		return 0
	case n.Role == RoleHost && !others && len(t.neighbours(name)) < 2:
		return 2
	}
	return 1
}

func (t *Topology) neighbours(name string) []*NodeSpec {
	var out []*NodeSpec
	for _, l := range t.Links {
		switch name {
		case l.A.Node:
			out = append(out, t.Node(l.B.Node))
		case l.B.Node:
			out = append(out, t.Node(l.A.Node))
		}
	}
	return out
}

func (t *Topology) tiers() [][]*NodeSpec {
	tiers := make([][]*NodeSpec, 3)
	for _, n := range t.Nodes {
		d := t.depth(n.Name)
		tiers[d] = append(tiers[d], n)
	}
	return slices.DeleteFunc(tiers, func(ns []*NodeSpec) bool { return len(ns) == 0 })
}

// ASCII draws the topology with letters only: a row of boxes for each tier, and below
// each row the links that go down from it.
func (t *Topology) ASCII() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", t.Name)
	for _, tier := range t.tiers() {
		var top, names, roles []string
		for _, n := range tier {
			w := max(len(n.Name), len(n.Role))
			top = append(top, "+"+strings.Repeat("-", w+2)+"+")
			names = append(names, fmt.Sprintf("| %-*s |", w, n.Name))
			roles = append(roles, fmt.Sprintf("| %-*s |", w, n.Role))
		}
		for _, row := range [][]string{top, names, roles, top} {
			b.WriteString(strings.TrimRight("  "+strings.Join(row, "   "), " ") + "\n")
		}
		for _, n := range tier {
			var down []string
			for _, l := range t.Links {
				a, z := l.A, l.B
				if z.Node == n.Name {
					a, z = z, a
				}
				if a.Node != n.Name {
					continue
				}
				d := cmp.Compare(t.depth(z.Node), t.depth(n.Name))
				if d > 0 || d == 0 && a.String() == l.A.String() {
					down = append(down, fmt.Sprintf("%s--%s", a.Interface, z))
				}
			}
			if len(down) > 0 {
				fmt.Fprintf(&b, "    %s: %s\n", n.Name, strings.Join(down, "  "))
			}
		}
		b.WriteByte('\n')
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
