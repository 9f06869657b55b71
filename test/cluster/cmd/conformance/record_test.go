package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRecord: a column that is recorded replaces its like and leaves the other columns and
// suites as they were, over any number of writes.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conformance.md")
	made := func(on combination, commit string, specs ...spec) column {
		r := &outcome{specs: specs}
		return column{name: on.String(), outcome: r, facts: map[string]string{factCommit: commit, factSpecs: r.summary()}}
	}
	put := func(suite string, c column) {
		t.Helper()
		s, err := chosen(suite)
		if err != nil {
			t.Fatal(err)
		}
		if err := record(path, &s[0], c); err != nil {
			t.Fatal(err)
		}
	}
	a, b := combination{"iptables", "nftables"}, combination{"nftables", "nftables"}
	put("netpol", made(a, "c1", spec{name: "one | two", outcome: "failed", took: 3 * time.Second}))
	put("network", made(a, "c1", spec{name: "other", outcome: "passed"}))
	put("netpol", made(b, "c2", spec{name: "three", outcome: "passed", took: time.Minute}, spec{name: "sctp", outcome: "not run", why: "no SCTP here"}))
	put("netpol", made(a, "c3", spec{name: "one | two", outcome: "passed", took: 4 * time.Second}))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## network\n", "| other | passed, 0 |\n",
		"|  | policy iptables, kube-proxy nftables | policy nftables, kube-proxy nftables |\n",
		"| commit | c3 | c2 |\n", "| specs | 1 of 1 passed | 1 of 2 passed, 1 not run |\n",
		`| one \| two | passed, 4 |  |` + "\n", "| three |  | passed, 60 |\n", "\n* sctp: no SCTP here\n", "| sctp |  | not run |\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "failed") {
		t.Errorf("the old outcome is still there:\n%s", text)
	}
	if again := writeRecord(readRecord(string(text))); again != string(text) {
		t.Errorf("read and written again it is\n%s\nwas\n%s", again, text)
	}
}
