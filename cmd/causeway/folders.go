package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ownFolder makes a folder that the agent has for itself, mode 0700. One that is there and
// open to others is taken over only when it is empty, as the kubelet makes it for a
// hostPath: it may be somebody else's, and closing it would break them.
func ownFolder(flag, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	err := os.Mkdir(path, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if st.Mode().Perm()&0o077 == 0 {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s %s: the folder has mode %04o and holds %s: name another, or chmod it to 0700 if it is the agent's alone",
			flag, path, st.Mode().Perm(), entries[0].Name())
	}
	return os.Chmod(path, 0o700)
}

// runFolder is the folder of the sockets while this agent has it: its lock is held.
type runFolder struct {
	dir  string
	lock *os.File
	log  *slog.Logger
	mark func() error // writes the file "started" again, if it was written
}

// errRunning means that another agent has the run folder.
var errRunning = errors.New("an agent runs on this node")

// lockRunFolder makes sure that one agent alone works on the folder; the kernel drops the
// lock with the process, however that ends.
func lockRunFolder(dir string) (*runFolder, error) {
	path := filepath.Join(dir, "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w: %w", path, errRunning, err)
	}
	return &runFolder{dir: dir, lock: f}, nil
}

func (r *runFolder) close() { r.lock.Close() }

func (r *runFolder) String() string { return "run folder" }

// Run ends with an error when somebody removes the folder or what is in it: a socket that
// has no name is reached by nobody, and in a container the folder itself cannot be made
// again. Whoever started the agent starts it anew.
func (r *runFolder) Run(ctx context.Context) error {
	seen := map[string]os.FileInfo{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		err := r.intact(seen)
		if err == nil || ctx.Err() != nil {
			continue
		}
		// The next agent must know that peers still hold our routes.
		if merr := errors.Join(os.MkdirAll(r.dir, 0o700), r.mark()); merr != nil {
			r.log.Warn("the next agent will not know that one ran before it: BGP peers drop this node's routes until it told them again", "error", merr)
		}
		return fmt.Errorf("%w: somebody removed it; the agent ends to be started anew", err)
	}
}

// intact compares the folder with what was seen in it.
func (r *runFolder) intact(seen map[string]os.FileInfo) error {
	held, err := r.lock.Stat()
	if err != nil {
		return err
	}
	seen["agent.lock"] = held
	for _, name := range []string{"agent.lock", "agent.sock", "cni.sock"} {
		now, err := os.Lstat(filepath.Join(r.dir, name))
		before := seen[name]
		switch {
		case before == nil && err == nil:
			seen[name] = now
		case before == nil: // not made yet
		case err != nil:
			return err
		case !os.SameFile(before, now):
			return fmt.Errorf("%s is another one", filepath.Join(r.dir, name))
		}
	}
	return nil
}
