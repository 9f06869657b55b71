package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOwnFolder: a folder becomes the agent's own unless that would close it to others.
func TestOwnFolder(t *testing.T) {
	for name, c := range map[string]struct {
		mode  os.FileMode // of the folder that is there; 0: none
		entry string      // what is in it
		want  string      // of the error; empty: none
	}{
		"not there":            {},
		"made by the kubelet":  {mode: 0o755},
		"ours":                 {mode: 0o700, entry: "cni.sock"},
		"a folder as /run":     {mode: 0o755, entry: "systemd", want: "0755 and holds systemd"},
		"open to a group only": {mode: 0o750, entry: "x", want: "--run-dir"},
	} {
		path := filepath.Join(t.TempDir(), "a", "b")
		if c.mode != 0 {
			if err := os.MkdirAll(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
		}
		if c.entry != "" {
			if err := os.WriteFile(filepath.Join(path, c.entry), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := ownFolder("--run-dir", path)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		st, serr := os.Stat(path)
		if serr != nil {
			t.Fatal(serr)
		}
		if want := os.FileMode(0o700); err == nil && st.Mode().Perm() != want || err != nil && st.Mode().Perm() != c.mode {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
	}
}

// TestRunFolder: one agent has the folder, and ends when it is taken away.
func TestRunFolder(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"the folder is removed": os.RemoveAll,
		"a socket is removed":   func(dir string) error { return os.Remove(filepath.Join(dir, "cni.sock")) },
		"a socket is replaced": func(dir string) error {
			path := filepath.Join(dir, "cni.sock")
			return errors.Join(os.WriteFile(path+".new", nil, 0o600), os.Rename(path+".new", path))
		},
	} {
		dir := filepath.Join(t.TempDir(), "run")
		if err := ownFolder("--run-dir", dir); err != nil {
			t.Fatal(err)
		}
		r, err := lockRunFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		if _, err := lockRunFolder(dir); !errors.Is(err, errRunning) {
			t.Errorf("%s: a second agent: %v", name, err)
		}
		mark := filepath.Join(dir, "started")
		r.log, r.mark = slog.New(slog.DiscardHandler), func() error { return os.WriteFile(mark, nil, 0o600) }
		if err := os.WriteFile(filepath.Join(dir, "cni.sock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		seen := map[string]os.FileInfo{}
		if err := r.intact(seen); err != nil {
			t.Fatal(err)
		}
		if err := harm(dir); err != nil {
			t.Fatal(err)
		}
		if err := r.intact(seen); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	// And the whole of it.
	dir := filepath.Join(t.TempDir(), "run")
	if err := ownFolder("--run-dir", dir); err != nil {
		t.Fatal(err)
	}
	r, err := lockRunFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	mark := filepath.Join(dir, "started")
	r.log, r.mark = slog.New(slog.DiscardHandler), func() error { return os.WriteFile(mark, nil, 0o600) }
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody removed it") {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the mark that an agent ran is lost: %v", err)
	}
}

// TestPulse: a part that hangs is named, and one that answers again is well again.
func TestPulse(t *testing.T) {
	hold := make(chan struct{})
	p := newPulse([]part{
		{"well", func() error { return nil }},
		{"hangs", func() error { <-hold; return nil }},
	})
	p.every, p.bound = time.Millisecond, 20*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	until := func(what string, holds func(error) bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !holds(p.live()); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, p.live())
			}
		}
	}
	until("a part hangs", func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "hangs: no answer for") && !strings.Contains(err.Error(), "well")
	})
	close(hold)
	until("it answers", func(err error) bool { return err == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
