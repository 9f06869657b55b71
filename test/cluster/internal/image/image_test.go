package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/cluster/internal/image"
)

// TestWrite: the archive holds what was added, the last of a path wins, folders come
// before what is in them, and the same content gives the same bytes.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) []byte {
		m := &image.Image{Names: []string{"example.org/a:1"}, Config: image.Config{Cmd: []string{"/bin/b"}}}
		m.Text("/etc/deep/file", "old")
		m.Symlink("/bin/b", "busybox")
		m.Text("/etc/deep/file", "new")
		m.Dir("/tmp", 0o1777)
		path := filepath.Join(dir, name)
		if err := m.Write(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := write("1.tar")
	if !bytes.Equal(b, write("2.tar")) {
		t.Error("two archives of one content differ")
	}
	outer := entries(t, b)
	var manifest []struct{ RepoTags, Layers []string }
	if err := json.Unmarshal(outer["manifest.json"], &manifest); err != nil || manifest[0].RepoTags[0] != "example.org/a:1" {
		t.Fatalf("manifest %s: %v", outer["manifest.json"], err)
	}
	layer := entries(t, outer[manifest[0].Layers[0]])
	if got := string(layer["etc/deep/file"]); got != "new" {
		t.Errorf("etc/deep/file holds %q, want new", got)
	}
	for _, path := range []string{"bin/", "bin/b", "etc/", "etc/deep/", "tmp/"} {
		if _, ok := layer[path]; !ok {
			t.Errorf("the layer lacks %s", path)
		}
	}
}

func entries(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if dir := filepath.Dir(strings.TrimSuffix(h.Name, "/")); dir != "." {
			if _, ok := out[dir+"/"]; !ok {
				t.Errorf("%s comes before its folder", h.Name)
			}
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
