package lab

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// bindDirs decides where binds really come from. Read-only binds are used where they are.
// What the topology's own folder offers for writing is copied into the lab's folder once,
// and all nodes that bind it share the copy: a lab never changes the topology it was made
// from, and two labs of one file do not meet.
type bindDirs struct {
	dir    string // the lab's
	copies map[string]string
}

// newBindDirs makes the copies. All writable sources are known before any node starts.
func newBindDirs(labDir string, t *Topology) (*bindDirs, error) {
	d := &bindDirs{dir: labDir, copies: map[string]string{}}
	for _, n := range t.Nodes {
		for _, b := range n.Binds {
			if b.ReadOnly || d.copies[b.Source] != "" || !strings.HasPrefix(b.Source, t.Dir()+"/") {
				continue
			}
			to := filepath.Join(labDir, "shared", sharedName(b.Source))
			if err := copyTree(b.Source, to); err != nil {
				return nil, fmt.Errorf("%s: node %s: binds: %w", b.where, n.Name, err)
			}
			d.copies[b.Source] = to
		}
	}
	return d, nil
}

// sharedName is the copy's name: the source's own, made unique.
func sharedName(source string) string {
	sum := sha256.Sum256([]byte(source))
	return fmt.Sprintf("%s-%x", filepath.Base(source), sum[:4])
}

func (d *bindDirs) resolve(n *Node) ([]Bind, error) {
	var out []Bind
	for _, b := range n.Spec.Binds {
		if to, ok := d.copies[b.Source]; ok && !b.ReadOnly {
			b.Source = to
		}
		for magic, dir := range map[string]string{clabNodeDir: filepath.Join(d.dir, "nodes", n.Spec.Name, "clab"), clabDir: filepath.Join(d.dir, "clab")} {
			rest, ok := strings.CutPrefix(b.Source, magic)
			if !ok {
				continue
			}
			b.Source = filepath.Join(dir, rest)
			// Nothing is put there before the lab is up: an empty folder it is.
			if err := os.MkdirAll(b.Source, 0o755); err != nil {
				return nil, fmt.Errorf("%s: binds: %w", b.where, err)
			}
		}
		if _, err := os.Stat(b.Source); err != nil {
			return nil, fmt.Errorf("%s: binds: source: %w", b.where, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func copyTree(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if st.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, st.Mode().Perm())
}
