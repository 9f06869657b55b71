package suite

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	e := Entry{Package: "p", Modules: []string{"ipip"}, Shows: []string{"has ipip"}}
	for name, c := range map[string]struct {
		output string
		want   []string // parts of the complaints
	}{
		"good":           {"=== RUN   TestA\n    x_test.go:1: has ipip\n--- PASS: TestA (0.1s)\n    --- PASS: TestA/b (0.1s)\nPASS\nmodule loaded: ipip\n", nil},
		"nothing ran":    {"has ipip\ntesting: warning: no tests to run\nPASS\nmodule loaded: ipip\n", []string{"no test passed"}},
		"skipped":        {"has ipip\n--- PASS: TestA (0s)\n--- SKIP: TestB (0s)\nmodule loaded: ipip\n", []string{"1 tests were skipped"}},
		"without module": {"has ipip\n--- PASS: TestA (0s)\nmodule loaded: tunnel4\n", []string{"module ipip was not loaded"}},
		"without marker": {"--- PASS: TestA (0s)\nmodule loaded: ipip", []string{`does not say "has ipip"`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := result{Entry: e}
			j := &judge{result: &r, to: io.Discard}
			for _, chunk := range []string{c.output[:7], c.output[7:]} { // lines come in pieces
				if _, err := j.Write([]byte(chunk)); err != nil {
					t.Fatal(err)
				}
			}
			j.flush()
			r.judge()
			ok := len(r.complaints) == len(c.want)
			for i := range min(len(r.complaints), len(c.want)) {
				ok = ok && strings.Contains(r.complaints[i], c.want[i])
			}
			if !ok {
				t.Errorf("complaints %q, want %q", r.complaints, c.want)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	var b strings.Builder
	err := summarize(&b, []result{
		{Entry: Entry{Package: "good"}, passed: 3},
		{Entry: Entry{Package: "bad"}, passed: 1, failed: 1, complaints: []string{"exit code 1"}},
	})
	if err == nil || !strings.Contains(err.Error(), "bad: exit code 1") || strings.Contains(err.Error(), "good") {
		t.Errorf("error: %v", err)
	}
	for _, want := range []string{"good     3      0", "bad      2      1", "exit code 1"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, b.String())
		}
	}
}

// TestList holds that every entry is a package that has tests, and no package is there twice
// with the same tests.
func TestList(t *testing.T) {
	var seen []string
	for _, e := range List {
		files, err := filepath.Glob(filepath.Join("../../..", e.Package, "*_test.go"))
		if err != nil || len(files) == 0 {
			wd, _ := os.Getwd()
			t.Errorf("%s (seen from %s): no tests: %v", e.Package, wd, err)
		}
		if key := e.Package + " " + e.Run; slices.Contains(seen, key) {
			t.Errorf("%s is there twice", key)
		} else {
			seen = append(seen, key)
		}
	}
}
