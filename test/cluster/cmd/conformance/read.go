package main

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

// readJUnit reads Ginkgo's JUnit file: the specs that ran. Those that the focus left out
// are in it as skipped.
func readJUnit(path string) ([]spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	var doc struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Time    float64 `xml:"time,attr"`
			Skipped *struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("report %s: %w", path, err)
	}
	var out []spec
	for _, c := range doc.Cases {
		name, isSpec := strings.CutPrefix(c.Name, "[It] ")
		if !isSpec || c.Status == "pending" {
			continue
		}
		s := spec{name: name, outcome: c.Status, took: time.Duration(c.Time * float64(time.Second))}
		if c.Status == "skipped" {
			// A spec that skipped itself says why; one out of focus does not.
			if c.Skipped == nil || !strings.HasPrefix(c.Skipped.Message, "skipped - ") {
				continue
			}
			s.outcome, s.why = notRun, strings.TrimPrefix(c.Skipped.Message, "skipped - ")
		}
		out = append(out, s)
	}
	return out, nil
}

var goTest = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)$`)

// readGoTests reads what `go test -v` prints: the innermost tests, and those outside them
// that failed on their own. Their names lose the name of the outermost one.
func readGoTests(output string) []spec {
	type test struct {
		verdict, name, seconds string
		inner, innerFailed     bool
	}
	var tests []*test
	for lines := bufio.NewScanner(strings.NewReader(output)); lines.Scan(); {
		if m := goTest.FindStringSubmatch(lines.Text()); m != nil {
			tests = append(tests, &test{verdict: m[1], name: m[2], seconds: m[3]})
		}
	}
	for _, outer := range tests {
		for _, t := range tests {
			if strings.HasPrefix(t.name, outer.name+"/") {
				outer.inner = true
				outer.innerFailed = outer.innerFailed || t.verdict == "FAIL"
			}
		}
	}
	var out []spec
	for _, t := range tests {
		if t.inner && (t.verdict != "FAIL" || t.innerFailed) {
			continue
		}
		s := spec{name: t.name}
		if _, inner, ok := strings.Cut(t.name, "/"); ok {
			s.name = inner
		}
		s.name = strings.ReplaceAll(s.name, "_", " ")
		s.took, _ = time.ParseDuration(t.seconds + "s")
		switch t.verdict {
		case "PASS":
			s.outcome = "passed"
		case "FAIL":
			s.outcome = "failed"
		case "SKIP":
			s.outcome, s.why = notRun, "it skips itself"
		}
		out = append(out, s)
	}
	return out
}
