package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDependencies: the plugin links the standard library and its own two packages only,
// and of the standard library not package net, which costs start-up time.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if .Standard}}std {{end}}{{.ImportPath}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, p := range []string{"cmd/causeway-cni", "cni-plugin/client", "cni-plugin/wire"} {
		allowed["github.com/causeway-net/causeway/"+p] = true
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "std net" || (!strings.HasPrefix(line, "std ") && !allowed[line]) {
			t.Errorf("causeway-cni links %s", line)
		}
	}
}

// BenchmarkStart is what one execution of the plugin costs before and after its request.
func BenchmarkStart(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "causeway-cni")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	for b.Loop() {
		cmd := exec.Command(bin)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}
