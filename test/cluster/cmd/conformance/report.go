package main

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// report is what Ginkgo's JUnit file says of the specs that ran.
type report struct {
	specs []spec // by name
}

type spec struct {
	name    string // without "[It] "
	outcome string // "passed", "failed"
	took    time.Duration
}

// read reads a JUnit file. Specs that the focus left out are in it as skipped.
func read(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	var doc struct {
		Cases []struct {
			Name   string  `xml:"name,attr"`
			Status string  `xml:"status,attr"`
			Time   float64 `xml:"time,attr"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("report %s: %w", path, err)
	}
	r := &report{}
	for _, c := range doc.Cases {
		name, isSpec := strings.CutPrefix(c.Name, "[It] ")
		if !isSpec || c.Status == "skipped" || c.Status == "pending" {
			continue
		}
		r.specs = append(r.specs, spec{name: name, outcome: c.Status, took: time.Duration(c.Time * float64(time.Second))})
	}
	slices.SortFunc(r.specs, func(a, b spec) int { return strings.Compare(a.name, b.name) })
	return r, nil
}

func (r *report) count(outcome string) int {
	n := 0
	for _, s := range r.specs {
		if s.outcome == outcome {
			n++
		}
	}
	return n
}

func (r *report) summary() string {
	return fmt.Sprintf("%d specs ran, %d passed", len(r.specs), r.count("passed"))
}

// record writes the file for readers of the repository. causeway is what the agents said
// they are: the working tree may have moved on while the specs ran.
func (r *report) record(o options, causeway, version string, start time.Time) error {
	var v struct {
		ServerVersion struct {
			GitVersion string `json:"gitVersion"`
		} `json:"serverVersion"`
	}
	if err := json.Unmarshal([]byte(version), &v); err != nil {
		return fmt.Errorf("kubectl version: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Conformance

Upstream's network specs (`+"`[sig-network] [Conformance]`"+` of k8s.io/kubernetes) against Causeway on the
test cluster: four nodes in two racks, dual stack, eBGP to FRR ToRs, CoreDNS. `+"`make conformance`"+` runs
them and writes this file, for an image of a commit without further changes; it is run at every release and
is no part of CI.

| | |
|---|---|
| date | %s |
| commit | %s |
| Kubernetes | %s |
| kube-proxy | %s |
| specs | %s |
| took | %s |

What ran, as -ginkgo.focus: `+"`%s`"+`

| spec | outcome | seconds |
|---|---|---|
`, start.UTC().Format("2006-01-02"), causeway, v.ServerVersion.GitVersion, o.proxyMode, r.summary(),
		time.Since(start).Round(time.Second), o.focus)
	for _, s := range r.specs {
		fmt.Fprintf(&b, "| %s | %s | %.0f |\n", strings.ReplaceAll(s.name, "|", `\|`), s.outcome, s.took.Seconds())
	}
	return os.WriteFile(o.record, []byte(b.String()), 0o644)
}
