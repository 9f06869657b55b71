// Package operator is the hands and eyes of the topology tests: it edits the manifests of
// a fabric, and reads sessions, routes, rules and blocks the way an operator of the nodes
// would, from the kernel and from what the agents say.
package operator

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/topology/scenario"
)

// Manifests is the folder that all nodes of a fabric read.
type Manifests string

// ManifestsOf is the fabric's own copy of the topology's folder "manifests".
func ManifestsOf(f *scenario.Fabric) Manifests { return Manifests(f.Shared("manifests")) }

// Read returns the text of a file.
func (m Manifests) Read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(string(m), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Write writes a file in place, as an editor or cp would.
func (m Manifests) Write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(string(m), file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Remove deletes a file; one that is not there is no error.
func (m Manifests) Remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(filepath.Join(string(m), file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// Edit replaces the first occurrence of old, which must be there.
func (m Manifests) Edit(t *testing.T, file, old, new string) {
	t.Helper()
	text := m.Read(t, file)
	if !strings.Contains(text, old) {
		t.Fatalf("%s does not hold %q:\n%s", file, old, text)
	}
	m.Write(t, file, strings.Replace(text, old, new, 1))
}

// Restore puts the file back as it is now when the test ends; a file that is not there is
// deleted then.
func (m Manifests) Restore(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(string(m), file))
	t.Cleanup(func() {
		if err != nil {
			m.Remove(t, file)
			return
		}
		m.Write(t, file, string(b))
	})
}
