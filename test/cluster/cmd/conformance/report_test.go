package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRead: specs that ran are counted, by outcome; what the focus left out and what is
// no spec are not.
func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	err := os.WriteFile(path, []byte(`<testsuites><testsuite>
<testcase name="[It] [sig-network] b" status="failed" time="2.5"/>
<testcase name="[It] [sig-network] a" status="passed" time="1"/>
<testcase name="[It] [sig-storage] c" status="skipped" time="0"/>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"/>
</testsuite></testsuites>`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	r, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.specs) != 2 || r.specs[0].name != "[sig-network] a" || r.count("passed") != 1 {
		t.Errorf("%+v", r.specs)
	}
	if got := r.summary(); got != "2 specs ran, 1 passed" {
		t.Error(got)
	}
}
