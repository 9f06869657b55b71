package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state is what is known of a lab on disk. It names everything that will exist before any
// of it does, so that a lab that is half built can be taken down.
type state struct {
	Name     string      `json:"name"`
	Topology string      `json:"topology"`
	BinDir   string      `json:"binDir"`
	CNIPath  []string    `json:"cniPath,omitempty"`
	NoAgents bool        `json:"noAgents,omitempty"`
	Created  time.Time   `json:"created"`
	Owner    *proc       `json:"owner,omitempty"` // of an ephemeral lab
	Complete bool        `json:"complete"`
	Nodes    []nodeState `json:"nodes"`
}

type nodeState struct {
	Name  string `json:"name"`
	NetNS string `json:"netns"` // file name below /run/netns
}

var errUpAlready = errors.New("is up already")

func statePath(root, name string) string { return filepath.Join(root, name, "lab.json") }

// createState makes the lab's folder. What a crashed Up of the same name left behind is
// removed first; a lab that lives is an error.
func createState(root string, st *state) error {
	dir := filepath.Join(root, st.Name)
	if _, err := os.Stat(dir); err == nil {
		if old, err := readState(root, st.Name); err == nil && old.Complete {
			return fmt.Errorf("lab %s %w; take it down first or choose another name", st.Name, errUpAlready)
		}
		if err := removeLab(root, st.Name); err != nil {
			return fmt.Errorf("removing what an interrupted lab left: %w", err)
		}
	}
	for _, n := range st.Nodes {
		// A namespace of that name that no record of ours claims is somebody else's.
		if mounted, _ := isMounted(netnsPath(n.NetNS)); mounted {
			return fmt.Errorf("network namespace %s is there already and no lab's; choose another lab name", n.NetNS)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "nodes"), 0o755); err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if err := os.MkdirAll(filepath.Join(dir, "nodes", n.Name, "logs"), 0o755); err != nil {
			return err
		}
	}
	return writeState(root, st)
}

func writeState(root string, st *state) error { return writeJSON(statePath(root, st.Name), st) }

func readState(root, name string) (*state, error) {
	b, err := os.ReadFile(statePath(root, name))
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", statePath(root, name), err)
	}
	return &st, nil
}

// lockLab keeps two processes from building or removing one lab at the same time.
func lockLab(root, name string) (unlock func(), err error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(root, "."+name+".lock")
	deadline := time.Now().Add(Slow(60 * time.Second))
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := waitFlock(f, deadline); err != nil {
			f.Close()
			return nil, fmt.Errorf("lab %s: another process builds or removes it: %w", name, err)
		}
		// The file may have been unlinked by the one who held it before.
		var mine, now unix.Stat_t
		if unix.Fstat(int(f.Fd()), &mine) == nil && unix.Stat(path, &now) == nil && mine.Ino == now.Ino {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

func waitFlock(f *os.File, deadline time.Time) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || (err != unix.EWOULDBLOCK && err != unix.EINTR) {
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// proc identifies a process for good: the kernel reuses ids, but not with the same start
// time (proc(5), /proc/PID/stat field 22, clock ticks since boot).
type proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func self() *proc {
	p, err := procOf(os.Getpid())
	if err != nil {
		panic("lab: /proc is not mounted: " + err.Error())
	}
	return &p
}

func procOf(pid int) (proc, error) {
	fields, err := statFields(pid)
	if err != nil {
		return proc{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return proc{PID: pid, Start: start}, err
}

// statFields returns the fields of /proc/PID/stat from the third (state) on.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The command name may hold spaces and parentheses; it ends at the last ')'.
	i := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	return fields, nil
}

// alive reports whether the process runs; a zombie does not.
func (p proc) alive() bool {
	fields, err := statFields(p.PID)
	return err == nil && fields[19] == strconv.FormatUint(p.Start, 10) && fields[0] != "Z" && fields[0] != "X"
}

func readProc(path string) (proc, error) {
	var p proc
	b, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(b, &p)
}

// endProc kills the process and waits until it is gone.
func endProc(p proc) error {
	if !p.alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == unix.ESRCH {
		return nil
	} else if err != nil {
		return fmt.Errorf("pidfd of %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // the id may have changed hands before it was opened
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill %d: %w", p.PID, err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(Slow(15 * time.Second))
	for {
		n, err := unix.Poll(poll, int(time.Until(deadline).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for %d: %w", p.PID, err)
		default:
			return fmt.Errorf("process %d does not end after SIGKILL", p.PID)
		}
	}
}
