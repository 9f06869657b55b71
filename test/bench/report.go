package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Report is all that a run found.
type Report struct {
	Date    string  `json:"date"` // UTC
	Command string  `json:"command"`
	Size    string  `json:"size"`  // full or short
	Pairs   int     `json:"pairs"` // of each comparison
	Took    string  `json:"took"`
	Machine Machine `json:"machine"`

	Comparisons   []Comparison   `json:"comparisons"`
	PolicyChanges []PolicyChange `json:"policyChanges,omitempty"`
	Breakdowns    []Breakdown    `json:"breakdowns"`
	Figures       []Figure       `json:"figures"`
}

// Breakdown says where the time of a CNI ADD goes, in medians, ms.
type Breakdown struct {
	Families string  `json:"families"`
	Total    float64 `json:"total"` // as libcni's caller sees it
	// Floor is the same call with a plugin that does nothing: libcni, and the start and end
	// of a process.
	Floor float64 `json:"floor"`
	// Outside is Total without the agent's own work ("took"): Floor, the plugin's start, the
	// socket both ways.
	Outside float64 `json:"outside"`
	// Agent are the agent's own figures, by the name they have in its log; those other than
	// "took" are parts of it.
	Agent []Part `json:"agent"`
}

// Part is one step of a Breakdown.
type Part struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// Marks in the document between which results stand.
const (
	beginMark = "<!-- results: written by make bench -->"
	endMark   = "<!-- end of results -->"
)

// Markdown shows the report as tables.
func (r *Report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "`%s` (%s run, %s), %s: %s, %d cores, %s, Linux %s, %s, records on %s; load %s before, %s after.\n\n",
		r.Command, r.Size, r.Took, r.Date, m.CPU, m.Cores, m.Memory, m.Kernel, m.Go, m.Disk, m.LoadBefore, m.LoadAfter)
	fmt.Fprintf(&b, "Medians of %d pairs; the ratio is the median of the pairs' ratios, with its 95 %% bootstrap interval.\n\n", r.Pairs)
	if len(r.Comparisons) > 0 {
		b.WriteString("| measure | Causeway | compared with | its figure | ratio | 95 % | goal |\n|---|--:|---|--:|--:|---|---|\n")
		for _, c := range r.Comparisons {
			fmt.Fprintf(&b, "| %s | %s %s | %s | %s %s | **%s** | %s – %s | %s |\n", c.Name, number(c.MedianCauseway), c.Unit, c.Versus,
				number(c.MedianPeer), c.Unit, number(c.Ratio), number(c.RatioLow), number(c.RatioHigh), c.verdict())
		}
		b.WriteByte('\n')
	}
	if len(r.PolicyChanges) > 0 {
		b.WriteString(changesTable(r.PolicyChanges))
	}
	if len(r.Breakdowns) > 0 {
		b.WriteString("Where the time of one ADD goes (medians, ms):\n\n| step |")
		for _, d := range r.Breakdowns {
			fmt.Fprintf(&b, " %s |", d.Families)
		}
		b.WriteString("\n|---|" + strings.Repeat("--:|", len(r.Breakdowns)) + "\n")
		row := func(name string, value func(Breakdown) float64) {
			fmt.Fprintf(&b, "| %s |", name)
			for _, d := range r.Breakdowns {
				fmt.Fprintf(&b, " %.2f |", value(d))
			}
			b.WriteByte('\n')
		}
		row("the whole call of libcni", func(d Breakdown) float64 { return d.Total })
		row("– of it outside the agent: libcni, start of the plugin, socket, answer", func(d Breakdown) float64 { return d.Outside })
		row("– – of it what libcni and a plugin that does nothing cost", func(d Breakdown) float64 { return d.Floor })
		for i, p := range r.Breakdowns[0].Agent {
			row(stepName(p.Name), func(d Breakdown) float64 {
				if i < len(d.Agent) {
					return d.Agent[i].MS
				}
				return 0
			})
		}
		b.WriteByte('\n')
	}
	if len(r.Figures) > 0 {
		b.WriteString("| measure | value | goal |\n|---|--:|---|\n")
		for _, f := range r.Figures {
			fmt.Fprintf(&b, "| %s | %s %s | %s |\n", f.Name, number(f.Value), f.Unit, verdict(f.Value, f.Goal, " "+f.Unit))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// stepName tells what a duration in the agent's log is.
func stepName(name string) string {
	if name == "took" {
		return "– of it the agent (`took`)"
	}
	return "– – of it `" + name + "`"
}

func (c *Comparison) verdict() string {
	if c.Least == 0 {
		return verdict(c.Ratio, c.Goal, "")
	}
	word := "met"
	if c.Ratio < c.Least {
		word = "**missed**"
	}
	return fmt.Sprintf("≥ %v: %s", c.Least, word)
}

func verdict(value, goal float64, unit string) string {
	if goal == 0 {
		return ""
	}
	word := "met"
	if value > goal {
		word = "**missed**"
	}
	return fmt.Sprintf("≤ %v%s: %s", goal, unit, word)
}

// number shows about three digits that count.
func number(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x < 0.1:
		return strconv.FormatFloat(x, 'f', 4, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// writeJSON writes the report to a file, or to standard output.
func (r *Report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "" {
		_, err = os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// writeDocs puts the tables between the marks of a document.
func (r *Report) writeDocs(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := between(string(old), r.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// between replaces what stands between the marks of a document.
func between(document, results string) (string, error) {
	head, rest, ok := strings.Cut(document, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("want the lines %q and %q, in this order", beginMark, endMark)
	}
	return head + beginMark + "\n\n" + results + endMark + tail, nil
}
