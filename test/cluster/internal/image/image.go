// Package image writes container images as docker archives, without Docker: one layer out
// of named files. The same content gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is what an archive holds.
type Image struct {
	Names  []string // "registry.k8s.io/pause:3.10.2"
	Config Config
	files  []file
}

// Config of containers, as the image specification has it.
type Config struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

// Path is the environment that images here give their programs.
const Path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

type file struct {
	path   string // without the leading slash
	mode   int64
	kind   byte
	link   string
	text   []byte
	source string // a file of this computer, instead of text
}

// Dir adds a folder; those above it need not be added.
func (m *Image) Dir(path string, mode int64) {
	m.files = append(m.files, file{path: path[1:], mode: mode, kind: tar.TypeDir})
}

// Text adds a file.
func (m *Image) Text(path, text string) {
	m.files = append(m.files, file{path: path[1:], mode: 0o644, kind: tar.TypeReg, text: []byte(text)})
}

// Symlink adds a link.
func (m *Image) Symlink(path, target string) {
	m.files = append(m.files, file{path: path[1:], mode: 0o777, kind: tar.TypeSymlink, link: target})
}

// Copy adds a file of this computer. What is added later replaces what was added at the
// same path.
func (m *Image) Copy(path, source string, mode int64) {
	m.files = append(m.files, file{path: path[1:], mode: mode, kind: tar.TypeReg, source: source})
}

// Program adds a program of this computer's PATH to /bin, with the libraries it loads.
func (m *Image) Program(name string) error {
	source, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	m.Copy("/bin/"+name, source, 0o755)
	out, err := exec.Command("ldd", source).CombinedOutput()
	if strings.Contains(string(out), "not a dynamic executable") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ldd %s: %w: %s", source, err, out)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			m.Copy(word, word, 0o755)
		}
	}
	return nil
}

// Write writes the archive.
func (m *Image) Write(to string) error {
	layer, err := m.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", m.Names[0], err)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": epoch, "config": m.Config,
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		"history": []any{map[string]string{"created": epoch, "created_by": "causeway test/cluster/internal/image"}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": m.Names, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []file{{path: "manifest.json", text: manifest}, {path: "config.json", text: config}, {path: "layer.tar", text: layer}} {
		f.mode, f.kind = 0o644, tar.TypeReg
		if err := f.write(w); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

const epoch = "1970-01-01T00:00:00Z"

func (m *Image) layer() ([]byte, error) {
	last := map[string]file{}
	for _, f := range m.files {
		last[f.path] = f
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := last[dir]; !ok {
				last[dir] = file{path: dir, mode: 0o755, kind: tar.TypeDir}
			}
		}
	}
	var paths []string
	for p := range last {
		paths = append(paths, p)
	}
	slices.Sort(paths) // a folder before what is in it
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range paths {
		if err := last[p].write(w); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func (f file) write(w *tar.Writer) error {
	text := f.text
	if f.source != "" {
		source, err := filepath.EvalSymlinks(f.source)
		if err != nil {
			return err
		}
		if text, err = os.ReadFile(source); err != nil {
			return err
		}
	}
	name := f.path
	if f.kind == tar.TypeDir {
		name += "/"
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: f.kind, Mode: f.mode, Size: int64(len(text)), Linkname: f.link, Format: tar.FormatGNU}); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(text))
	return err
}
