// Command kubernetes builds what the test cluster runs, out of the modules in
// test/cluster/kubernetes, into the user's cache: programs in kubernetes/bin, images as
// docker archives in kubernetes/images. What is there and of the wanted versions is kept.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cluster "github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// program is one thing to build.
type program struct {
	module string // folder in test/cluster/kubernetes
	name   string
	pkg    string
	tags   string
	test   bool // pkg's tests, instead of its command
}

var programs = func() []program {
	var out []program
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"} {
		out = append(out, program{module: "kubernetes", name: name, pkg: "k8s.io/kubernetes/cmd/" + name})
	}
	out = append(out, program{module: "etcd", name: "etcd", pkg: "go.etcd.io/etcd/server/v3"})
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		out = append(out, program{module: "containerd", name: name, pkg: "github.com/containerd/containerd/v2/cmd/" + name, tags: "no_btrfs,no_zfs,no_devmapper"})
	}
	return append(out,
		program{module: "e2e", name: "agnhost", pkg: "k8s.io/kubernetes/test/images/agnhost"},
		program{module: "sctp", name: "agnhost-sctp", pkg: "."})
}()

// conformancePrograms are built when asked for with the argument "conformance".
var conformancePrograms = []program{
	{module: "coredns", name: "coredns", pkg: "."},
	{module: "e2e", name: "e2e.test", pkg: ".", test: true},
	{module: "policyapi", name: "policyapi.test", pkg: ".", test: true},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	want := programs
	switch {
	case len(args) == 1 && args[0] == "conformance":
		want = append(slices.Clone(programs), conformancePrograms...)
	case len(args) != 0:
		return errors.New("usage: kubernetes [conformance]")
	}
	b := &builder{modules: "test/cluster/kubernetes", bin: apiserver.Bin(), checked: map[string]*module{}}
	if _, err := os.Stat(b.modules); err != nil {
		return fmt.Errorf("run it in the repository: %w", err)
	}
	if err := errors.Join(os.MkdirAll(b.bin, 0o755), os.MkdirAll(cluster.Images(), 0o755)); err != nil {
		return err
	}
	for i, p := range want {
		if err := b.build(p, fmt.Sprintf("%d of %d", i+1, len(want))); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := b.images(len(want) > len(programs)); err != nil {
		return err
	}
	fmt.Printf("Kubernetes %s: programs in %s, images in %s\n", b.checked["kubernetes"].versions["k8s.io/kubernetes"], b.bin, cluster.Images())
	return nil
}

type builder struct {
	modules string
	bin     string
	checked map[string]*module
}

// module is what a go.mod says, and the sum of all sources in its folder.
type module struct {
	dir      string
	versions map[string]string // module path to version, replacements applied
	sum      string
}

func (b *builder) module(name string) (*module, error) {
	if m := b.checked[name]; m != nil {
		return m, nil
	}
	m := &module{dir: filepath.Join(b.modules, name), versions: map[string]string{}}
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = m.dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: go mod edit: %w", m.dir, err)
	}
	var file struct {
		Require []struct{ Path, Version string }
		Replace []struct {
			Old, New struct{ Path, Version string }
		}
	}
	if err := json.Unmarshal(out, &file); err != nil {
		return nil, err
	}
	for _, r := range file.Require {
		m.versions[r.Path] = r.Version
	}
	for _, r := range file.Replace {
		m.versions[r.Old.Path] = r.New.Version
	}
	h := sha256.New()
	err = filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", d.Name(), len(text), text)
		return err
	})
	m.sum = fmt.Sprintf("%x", h.Sum(nil))
	b.checked[name] = m
	return m, err
}

// build builds a program unless the one that is there was made of the same versions (a Go
// program says that of itself) or, for our own sources, of the same files.
func (b *builder) build(p program, progress string) error {
	m, err := b.module(p.module)
	if err != nil {
		return err
	}
	out := filepath.Join(b.bin, p.name)
	// Our own packages have no version: their binaries carry the sum of the sources.
	own := p.pkg == "."
	if own {
		if sum, err := os.ReadFile(out + ".sum"); err == nil && string(sum) == m.sum && exists(out) {
			return nil
		}
	} else if m.made(out) {
		return nil
	}
	fmt.Printf("building %s (%s) ...\n", p.name, progress)
	start := time.Now()
	out, err = filepath.Abs(out)
	if err != nil {
		return err
	}
	args := []string{"build"}
	if p.test {
		args = []string{"test", "-c"}
	}
	args = append(args, "-trimpath", "-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+m.versions["k8s.io/kubernetes"])
	if p.tags != "" {
		args = append(args, "-tags", p.tags)
	}
	cmd := exec.Command("go", append(args, "-o", out+".new", p.pkg)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", args[0], err)
	}
	if err := os.Rename(out+".new", out); err != nil {
		return err
	}
	if own {
		if err := os.WriteFile(out+".sum", []byte(m.sum), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("built %s in %s\n", p.name, time.Since(start).Round(time.Second))
	return nil
}

// made reports whether a program was built of this module's versions, all of them.
func (m *module) made(binary string) bool {
	info, err := buildinfo.ReadFile(binary)
	if err != nil || m.versions[info.Main.Path] != info.Main.Version {
		return false
	}
	for _, dep := range info.Deps {
		version := dep.Version
		if dep.Replace != nil {
			version = dep.Replace.Version
		}
		if m.versions[dep.Path] != version {
			return false
		}
	}
	return true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sources is the folder of Kubernetes' sources: pause is C, and agnhost has files beside.
func (b *builder) sources() (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(b.modules, "e2e")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("sources of k8s.io/kubernetes: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
