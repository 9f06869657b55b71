package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// The rows of a section's first table.
const (
	factDate       = "date"
	factCommit     = "commit"
	factKubernetes = "Kubernetes"
	factSpecs      = "specs"
	factTook       = "took"
)

var factRows = []string{factDate, factCommit, factKubernetes, factSpecs, factTook}

// column is what one combination gave in one suite.
type column struct {
	name    string
	facts   map[string]string
	outcome *outcome
}

// section is what the record says of one suite: a table of facts and a table of specs,
// with the same columns.
type section struct {
	columns []string
	facts   map[string]map[string]string // column to row to cell
	specs   map[string]map[string]string // column to spec to cell
	whys    map[string]string            // spec to why it did not run
}

const preface = `# Conformance

Upstream's specs against Causeway on the test cluster: four nodes in two racks, dual stack, eBGP to FRR ToRs. Real
Kubernetes, containerd and kube-proxy; see test/cluster. ` + "`make conformance`" + ` runs all and writes this file, for an
image of a commit without further changes; it is run at every release. ` + "`make conformance ARGS='-suites netpol -policy iptables'`" + `
runs a part and replaces that part. CI runs some twenty specs of policy.

A column is a combination: the packet filter that Causeway writes policy to (iptables is its nft form, with ipset), and the
mode of kube-proxy. A cell is the outcome and the seconds it took: suites run side by side and specs at once, which slows
each of them. Specs of SCTP run, too, on kernels that have no SCTP sockets: the cluster's agnhost sets up its associations
on raw sockets (test/cluster/kubernetes/sctp), and packet filters and kube-proxy see the same packets.
`

// record puts a column into the file, in place of one of the same name.
func record(path string, s *suite, col column) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	sections := readRecord(string(text))
	if sections[s.name] == nil {
		sections[s.name] = newSection()
	}
	sections[s.name].put(col)
	return os.WriteFile(path, []byte(writeRecord(sections)), 0o644)
}

func newSection() *section {
	return &section{facts: map[string]map[string]string{}, specs: map[string]map[string]string{}, whys: map[string]string{}}
}

func (s *section) put(col column) {
	if !slices.Contains(s.columns, col.name) {
		s.columns = append(s.columns, col.name)
		slices.Sort(s.columns)
	}
	s.facts[col.name] = col.facts
	cells := map[string]string{}
	for _, sp := range col.outcome.specs {
		if sp.outcome == notRun {
			cells[sp.name], s.whys[sp.name] = notRun, strings.ReplaceAll(sp.why, ": ", ", ")
			continue
		}
		cells[sp.name] = fmt.Sprintf("%s, %.0f", sp.outcome, sp.took.Seconds())
	}
	s.specs[col.name] = cells
	for name := range s.whys { // what runs everywhere needs no reason any more
		if !slices.ContainsFunc(s.columns, func(c string) bool { return s.specs[c][name] == notRun }) {
			delete(s.whys, name)
		}
	}
}

func writeRecord(sections map[string]*section) string {
	var b strings.Builder
	b.WriteString(preface)
	for _, s := range suites {
		sec := sections[s.name]
		if sec == nil {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", s.name, s.about)
		table(&b, "", sec.columns, factRows, sec.facts)
		if s.focus != "" {
			fmt.Fprintf(&b, "\nWhat ran, as -ginkgo.focus: `%s`\n", s.focus)
		}
		if len(sec.whys) > 0 {
			b.WriteString("\nWhat did not run, and why:\n\n")
			for _, name := range slices.Sorted(maps.Keys(sec.whys)) {
				fmt.Fprintf(&b, "* %s: %s\n", name, sec.whys[name])
			}
		}
		b.WriteString("\n")
		table(&b, "spec", sec.columns, sec.names(), sec.specs)
	}
	return b.String()
}

// names are the specs of all columns, sorted.
func (s *section) names() []string {
	var out []string
	for _, cells := range s.specs {
		for name := range cells {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

func table(b *strings.Builder, corner string, columns, rows []string, cells map[string]map[string]string) {
	line := func(first string, rest []string) {
		b.WriteString("|")
		for _, cell := range append([]string{first}, rest...) {
			b.WriteString(" " + strings.ReplaceAll(cell, "|", `\|`) + " |")
		}
		b.WriteString("\n")
	}
	line(corner, columns)
	b.WriteString(strings.Repeat("|---", len(columns)+1) + "|\n")
	for _, row := range rows {
		var rest []string
		for _, c := range columns {
			rest = append(rest, cells[c][row])
		}
		line(row, rest)
	}
}

// readRecord reads what writeRecord writes. What is in no section of a known suite is
// dropped: the next write would not have it.
func readRecord(text string) map[string]*section {
	out := map[string]*section{}
	var sec *section
	var columns []string
	inSpecs := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if name, ok := strings.CutPrefix(line, "## "); ok {
			sec = nil
			if slices.ContainsFunc(suites, func(s suite) bool { return s.name == name }) {
				sec = newSection()
				out[name] = sec
			}
			columns = nil
			continue
		}
		if sec == nil {
			continue
		}
		if why, ok := strings.CutPrefix(line, "* "); ok {
			// A spec's name may have ": " in it; a reason has not.
			if i := strings.LastIndex(why, ": "); i >= 0 {
				sec.whys[why[:i]] = why[i+2:]
			}
			continue
		}
		cells := cells(line)
		switch {
		case cells == nil:
			columns = nil
		case strings.HasPrefix(line, "|---"):
		case columns == nil:
			columns, inSpecs = cells[1:], cells[0] == "spec"
			sec.columns = columns
			for _, c := range columns {
				if inSpecs {
					sec.specs[c] = map[string]string{}
				} else {
					sec.facts[c] = map[string]string{}
				}
			}
		case len(cells) == len(columns)+1:
			for i, c := range columns {
				switch cell := cells[i+1]; {
				case cell == "":
				case inSpecs:
					sec.specs[c][cells[0]] = cell
				default:
					sec.facts[c][cells[0]] = cell
				}
			}
		}
	}
	return out
}

// cells are those of a table's line, nil for any other line.
func cells(line string) []string {
	if !strings.HasPrefix(line, "|") || !strings.HasSuffix(line, "|") {
		return nil
	}
	const escaped = "\x00"
	inner := strings.ReplaceAll(line[1:len(line)-1], `\|`, escaped)
	var out []string
	for cell := range strings.SplitSeq(inner, "|") {
		out = append(out, strings.ReplaceAll(strings.TrimSpace(cell), escaped, "|"))
	}
	return out
}
