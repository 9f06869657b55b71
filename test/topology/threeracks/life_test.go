package threeracks

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// footprint is what a node's kernel has, by the command that shows it.
type footprint map[string]string

// shown are the commands. Of rules, empty tables do not count: reading a table makes it.
// Neighbours that the kernel learned by itself come and go.
var shown = []struct {
	command string
	drop    *regexp.Regexp // lines that do not count
	cut     *regexp.Regexp // parts of lines that do not count
}{
	{"ip address", regexp.MustCompile(`tunl0`), regexp.MustCompile(`^\d+: `)},
	{"ip -details link", nil, regexp.MustCompile(`^\d+: `)},
	{"ip -4 route show table all", nil, nil},
	{"ip -6 route show table all", nil, nil},
	{"ip -4 rule", nil, nil},
	{"ip -6 rule", nil, nil},
	{"ip -4 neigh show nud permanent", nil, nil},
	{"ip -6 neigh show nud permanent", nil, nil},
	{"ip -4 neigh show proxy", nil, nil},
	{"ip -6 neigh show proxy", nil, nil},
	{"bridge fdb", nil, nil},
	{"iptables-save", emptyTables, nil},
	{"ip6tables-save", emptyTables, nil},
	{"iptables-legacy-save", emptyTables, nil},
	{"ip6tables-legacy-save", emptyTables, nil},
	{"ipset list -n", nil, nil},
}

var emptyTables = regexp.MustCompile(`^(#|\*|COMMIT|:[A-Z]+ ACCEPT )`)

// tunl0 is the kernel's, on every network namespace as soon as IPIP is loaded: by the first
// agent, that is after the first look.
var tunl0 = regexp.MustCompile(`(?m)^\d+: tunl0.*\n(\s+.*\n)*`)

func footprints(t *testing.T, f *fabric) map[string]footprint {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	out := map[string]footprint{}
	for _, n := range f.Agents() {
		fp, err := footprintOf(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		out[n.Name()] = fp
	}
	return out
}

func footprintOf(ctx context.Context, n *lab.Node) (footprint, error) {
	out := footprint{}
	for _, s := range shown {
		text, err := n.Exec(ctx, strings.Fields(s.command)...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		text = tunl0.ReplaceAllString(text, "")
		var lines []string
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n ")
			if s.drop != nil && s.drop.MatchString(line) {
				continue
			}
			if s.cut != nil {
				line = s.cut.ReplaceAllString(line, "")
			}
			lines = append(lines, line)
		}
		out[s.command] = strings.Join(lines, "\n")
	}
	return out, nil
}

// lifeCycle ends all nodes as an operator would: pods, the agent, `causeway agent
// --cleanup`. What the kernels have then is what they had before the first agent.
func lifeCycle(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	f.switchTo(t, vxlanAlways)
	if f.ipip { // both kinds of devices are there when the agents end
		both := vxlanAlways
		both.v4 = ipipAlways.v4
		f.switchTo(t, both)
	}
	deletePods(t, f.Pods[:len(f.Pods)-1])
	for i, n := range f.Agents() {
		agent := n.Daemon("agent")
		end := agent.Stop
		if i%2 == 0 {
			end = agent.Kill
		}
		if err := end(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The last pod's link is left to the cleanup.
	for _, n := range f.Agents() {
		out, err := n.Exec(ctx, "causeway", "agent", "--cleanup")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s", n, strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
	}
	for _, n := range f.Agents() {
		now, err := footprintOf(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		before := f.before[n.Name()]
		for _, command := range slices.Sorted(maps.Keys(now)) {
			if now[command] != before[command] {
				t.Errorf("%s: %s was\n%s\n\nand is\n%s", n, command, before[command], now[command])
			}
		}
		if err := n.Do(func() error { _, err := rightDevices(n, never); return err }); err != nil {
			t.Errorf("%s: %v", n, err) // of tunl0, which footprints leave out
		}
		again, err := n.Exec(ctx, "causeway", "agent", "--cleanup")
		if err != nil || !strings.Contains(again, "nothing of Causeway's was found") {
			t.Errorf("%s: a second cleanup: %v\n%s", n, err, again)
		}
	}
}
