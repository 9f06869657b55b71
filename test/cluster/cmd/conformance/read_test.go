package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestReadJUnit: specs that ran are read with their outcomes, and one that skipped itself
// with its reason; what the focus left out and what is no spec are not.
func TestReadJUnit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	err := os.WriteFile(path, []byte(`<testsuites><testsuite>
<testcase name="[It] [sig-network] b" status="failed" time="2.5"/>
<testcase name="[It] [sig-network] a" status="passed" time="1"/>
<testcase name="[It] [sig-storage] c" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] d" status="skipped" time="0"><skipped message="skipped - needs a cloud"></skipped></testcase>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"/>
</testsuite></testsuites>`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readJUnit(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []spec{
		{name: "[sig-network] b", outcome: "failed", took: 2500 * time.Millisecond},
		{name: "[sig-network] a", outcome: "passed", took: time.Second},
		{name: "[sig-network] d", outcome: "not run", why: "needs a cloud"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	r := outcome{specs: got}
	if got, want := r.summary(), "1 of 3 passed, 1 failed, 1 not run"; got != want {
		t.Errorf("summary %q, want %q", got, want)
	}
	if err := r.failed(); err == nil || err.Error() != "[sig-network] b: failed" {
		t.Errorf("failed() = %v", err)
	}
	if err := sawAll([]string{"[sig-network] a", "[sig-network] gone"}, got); err == nil {
		t.Error("a spec that is in no report is no error")
	}
}

// TestReadGoTests: the innermost tests count, and an outer one that failed by itself.
func TestReadGoTests(t *testing.T) {
	got := readGoTests(`=== RUN   TestX
--- FAIL: TestX (9.00s)
    --- PASS: TestX/Ingress (3.00s)
        --- PASS: TestX/Ingress/Should_allow (1.00s)
        --- PASS: TestX/Ingress/Should_deny (2.00s)
    --- FAIL: TestX/Egress (3.00s)
        --- FAIL: TestX/Egress/Should_deny (2.00s)
    --- FAIL: TestX/Cleanup (1.00s)
        --- PASS: TestX/Cleanup/Inner (0.50s)
    --- SKIP: TestX/Nodes (0.00s)
FAIL
`)
	want := []spec{
		{name: "Ingress/Should allow", outcome: "passed", took: time.Second},
		{name: "Ingress/Should deny", outcome: "passed", took: 2 * time.Second},
		{name: "Egress/Should deny", outcome: "failed", took: 2 * time.Second},
		{name: "Cleanup", outcome: "failed", took: time.Second},
		{name: "Cleanup/Inner", outcome: "passed", took: 500 * time.Millisecond},
		{name: "Nodes", outcome: "not run", why: "it skips itself"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	alone := readGoTests("--- FAIL: TestX (1.00s)\n")
	if len(alone) != 1 || alone[0].name != "TestX" || alone[0].outcome != "failed" {
		t.Errorf("a set-up that fails: %+v", alone)
	}
}
