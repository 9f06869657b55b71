package main

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	cluster "github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/internal/image"
)

// itself is part of what an image depends on.
//
//go:embed images.go
var itself []byte

// images makes those that are missing, or made by another version of this file or of the
// program in them. Names and tags are what upstream's tests of that version ask for.
func (b *builder) images(conformance bool) error {
	type recipe struct {
		name    string
		make    func(to string) error
		modules []string // whose programs or sources are in it
	}
	recipes := []recipe{{"pause", b.pause, []string{"e2e"}}, {"busybox", b.busyboxImage, nil}, {"agnhost", b.agnhost, []string{"e2e", "sctp"}}}
	if conformance {
		recipes = append(recipes, recipe{"coredns", b.coredns, []string{"coredns"}}, recipe{"glibc-dns-testing", b.dnsTesting, []string{"e2e"}})
	}
	for _, r := range recipes {
		tar := filepath.Join(cluster.Images(), r.name+".tar")
		h := sha256.New()
		h.Write(itself)
		for _, module := range r.modules {
			if m := b.checked[module]; m != nil {
				h.Write([]byte(m.sum))
			}
		}
		sum := fmt.Sprintf("%x", h.Sum(nil))
		if was, err := os.ReadFile(tar + ".sum"); err == nil && string(was) == sum && exists(tar) {
			continue
		}
		if err := r.make(tar); err != nil {
			return err
		}
		if err := os.WriteFile(tar+".sum", []byte(sum), 0o644); err != nil {
			return err
		}
		fmt.Println("made image", tar)
	}
	return nil
}

func (b *builder) pause(to string) error {
	sources, err := b.sources()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "causeway-pause-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "pause")
	if out, err := exec.Command("gcc", "-Os", "-s", "-static", "-DVERSION=3.10.2", "-o", bin, filepath.Join(sources, "build/pause/linux/pause.c")).CombinedOutput(); err != nil {
		return fmt.Errorf("pause: gcc: %w: %s", err, out)
	}
	m := &image.Image{Names: []string{"registry.k8s.io/pause:3.10.2"},
		Config: image.Config{Entrypoint: []string{"/pause"}, Env: []string{"PATH=/"}, User: "65535:65535", WorkingDir: "/"}}
	m.Copy("/pause", bin, 0o755)
	return m.Write(to)
}

// busybox fills an image with a static busybox and what a small system needs.
func busybox(m *image.Image) error {
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	m.Copy("/bin/busybox", "/bin/busybox", 0o755)
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			m.Symlink("/bin/"+name, "busybox")
		}
	}
	for _, dir := range []string{"/root", "/home", "/var", "/usr/bin"} {
		m.Dir(dir, 0o755)
	}
	m.Dir("/tmp", 0o1777)
	m.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	m.Text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
	m.Text("/etc/nsswitch.conf", "hosts: files dns\n")
	return nil
}

func (b *builder) busyboxImage(to string) error {
	name, err := b.upstream("BusyBox", "busybox")
	if err != nil {
		return err
	}
	m := &image.Image{Names: []string{name, "docker.io/library/busybox:latest"},
		Config: image.Config{Cmd: []string{"sh"}, Env: []string{image.Path}}}
	if err := busybox(m); err != nil {
		return err
	}
	return m.Write(to)
}

// upstream is the name, with the tag that tests ask for, of one of upstream's test images.
func (b *builder) upstream(key, name string) (string, error) {
	sources, err := b.sources()
	if err != nil {
		return "", err
	}
	list, err := os.ReadFile(filepath.Join(sources, "test/utils/image/manifest.go"))
	if err != nil {
		return "", err
	}
	tag := regexp.MustCompile(`configs\[` + key + `\] += Config\{.*"` + name + `", "(.*)"\}`).FindSubmatch(list)
	if tag == nil {
		return "", fmt.Errorf("%s: k8s.io/kubernetes' list of test images names no tag for it", name)
	}
	return "registry.k8s.io/e2e-test-images/" + name + ":" + string(tag[1]), nil
}

// agnhost is busybox, the program with SCTP of its own, and real tools in busybox's place: its own wget and
// nslookup cannot resolve names when linked statically. bash is the shell, since
// busybox's would run its own tools first.
func (b *builder) agnhost(to string) error {
	sources, err := b.sources()
	if err != nil {
		return err
	}
	name, err := b.upstream("Agnhost", "agnhost")
	if err != nil {
		return err
	}
	m := &image.Image{Names: []string{name, cluster.AgnhostImage},
		Config: image.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{image.Path}}}
	if err := busybox(m); err != nil {
		return err
	}
	for _, tool := range []string{"bash", "curl", "nc", "dig", "getent", "ip", "ss", "iperf", "socat", "tcpdump", "arping", "ping", "conntrack"} {
		if err := m.Program(tool); err != nil {
			return fmt.Errorf("agnhost: %w", err)
		}
	}
	m.Symlink("/bin/sh", "bash")
	// Upstream's program speaks SCTP through the kernel; ours, without its help.
	m.Copy("/agnhost-upstream", filepath.Join(b.bin, "agnhost"), 0o755)
	m.Copy("/agnhost", filepath.Join(b.bin, "agnhost-sctp"), 0o755)
	m.Symlink("/agnhost-2", "agnhost")
	m.Dir("/uploads", 0o755)
	for _, file := range []string{"localhost.crt", "localhost.key"} {
		m.Copy("/"+file, filepath.Join(sources, "test/images/agnhost/porter", file), 0o644)
	}
	// Specs about users run as these.
	m.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n")
	m.Text("/etc/group", "root:x:0:\nnogroup:x:65534:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")
	return m.Write(to)
}

// dnsTesting asks for names as glibc does, which agnhost's image upstream (musl) does not.
func (b *builder) dnsTesting(to string) error {
	name, err := b.upstream("GlibcDnsTesting", "glibc-dns-testing")
	if err != nil {
		return err
	}
	m := &image.Image{Names: []string{name}, Config: image.Config{Cmd: []string{"sh"}, Env: []string{image.Path}}}
	if err := busybox(m); err != nil {
		return err
	}
	for _, tool := range []string{"bash", "dig", "getent"} {
		if err := m.Program(tool); err != nil {
			return fmt.Errorf("glibc-dns-testing: %w", err)
		}
	}
	m.Symlink("/bin/sh", "bash")
	return m.Write(to)
}

func (b *builder) coredns(to string) error {
	m := &image.Image{Names: []string{cluster.CoreDNSImage}, Config: image.Config{Entrypoint: []string{"/coredns"}, Env: []string{"PATH=/"}}}
	m.Copy("/coredns", filepath.Join(b.bin, "coredns"), 0o755)
	return m.Write(to)
}
