package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kernel is one family's iptables as its save and restore programs show it.
// NewHost makes the host's; package iptablestest has one in memory.
type Kernel interface {
	// Backend says what is behind it. It fails where no iptables works.
	Backend(ctx context.Context) (Backend, error)
	// Save returns one table as iptables-save -t prints it. With the empty Table it
	// returns all tables that exist, and makes none.
	Save(ctx context.Context, table Table) ([]byte, error)
	// Restore runs a transaction of one table as iptables-restore --noflush does. It
	// happens whole or, with an error, not at all. A refusal is a *RestoreError.
	Restore(ctx context.Context, script []byte) error
	// Watch calls ready once it listens, and then changed after each transaction of
	// somebody else, with all that it touched. It blocks until ctx is done, and then
	// returns nil, or until it cannot go on. ErrUnwatchable says that the kernel does
	// not tell, and never will.
	Watch(ctx context.Context, ready func(), changed func([]Change)) error
}

// Change is something that somebody else did.
type Change struct {
	Table Table  // empty: something was missed, and anything may have changed
	Chain string // empty: the table as a whole
}

// ErrUnwatchable is Watch's answer where the kernel tells of no changes.
var ErrUnwatchable = errors.New("the kernel does not tell of changes")

// RestoreError is a transaction that was refused; nothing of it happened.
type RestoreError struct {
	Lines   []int  // the lines it complains about, from 1; empty when it does not tell
	Message string // what it said
}

func (e *RestoreError) Error() string { return "iptables-restore: " + e.Message }

// Temporary reports whether the same transaction may pass later: the lock was held, or
// somebody else changed the rules at that moment.
func (e *RestoreError) Temporary() bool {
	for _, s := range []string{
		"xtables lock", "Resource temporarily unavailable", "Interrupted system call",
		"Interrupted by signal", "Cannot allocate memory", "No buffer space", "ERESTART",
	} {
		if strings.Contains(e.Message, s) {
			return true
		}
	}
	// A chain that cannot be deleted is busy as long as a rule goes to it.
	return strings.Contains(e.Message, "Device or resource busy") && !strings.Contains(e.Message, "CHAIN")
}

var complaint = regexp.MustCompile(`(?m)(?:at line: |^line |: line )(\d+)`)

// newRestoreError reads a refusal. The line of COMMIT, which the legacy programs blame
// for everything the kernel refuses, blames nothing.
func newRestoreError(stderr string, script []byte) *RestoreError {
	e := &RestoreError{}
	last := bytes.Count(script, []byte("\n"))
	for _, m := range complaint.FindAllStringSubmatch(stderr, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil && n > 1 && n < last {
			e.Lines = append(e.Lines, n)
		}
	}
	var said []string
	for l := range strings.Lines(stderr) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "Try `") && !strings.HasPrefix(l, "#") {
			said = append(said, l)
		}
	}
	e.Message = strings.Join(said, "; ")
	if len(e.Message) > 500 {
		e.Message = strings.ToValidUTF8(e.Message[:500], "") + "..."
	}
	return e
}

// Host is the host's own iptables: its programs, and the kernel's news of changes.
type Host struct {
	family  Family
	wanted  Backend
	timeout time.Duration
	// enter runs a function in the network namespace that is meant; nil: the caller's.
	enter func(func() error) error

	mu       sync.Mutex
	backend  Backend // Auto until found
	programs programs
	children map[uint32]time.Time // process ids of our restores, and when they ended
}

// NewHost makes the host's iptables of one family. lockTimeout is how long one call waits
// for /run/xtables.lock, cut to whole seconds; 0 means DefaultLockTimeout.
func NewHost(family Family, backend Backend, lockTimeout time.Duration) *Host {
	if lockTimeout < time.Second {
		lockTimeout = DefaultLockTimeout
	}
	return &Host{family: family, wanted: backend, timeout: lockTimeout, children: map[uint32]time.Time{}}
}

// in runs f where the host's namespace is.
func (h *Host) in(f func() error) error {
	if h.enter == nil {
		return f()
	}
	return h.enter(f)
}

// Backend finds the programs on its first call.
func (h *Host) Backend(ctx context.Context) (Backend, error) {
	_, b, err := h.open(ctx)
	return b, err
}

func (h *Host) open(ctx context.Context) (programs, Backend, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.backend != Auto {
		return h.programs, h.backend, nil
	}
	b := h.wanted
	if b == Auto {
		err := h.in(func() (err error) {
			b, err = Detect(ctx)
			return err
		})
		if err != nil {
			return programs{}, Auto, err
		}
	}
	p, err := find(ctx, h.family, b)
	if err == nil {
		err = p.recentEnough()
	}
	if err != nil {
		return programs{}, Auto, err
	}
	h.backend, h.programs = b, p
	return p, b, nil
}

// other is the same family on the other backend, or nil where that has no programs.
func (h *Host) other(ctx context.Context) *Host {
	_, b, err := h.open(ctx)
	if err != nil {
		return nil
	}
	o := NewHost(h.family, NFT, h.timeout)
	if b == NFT {
		o.wanted = Legacy
	}
	o.enter = h.enter
	if _, _, err := o.open(ctx); err != nil {
		return nil
	}
	return o
}

// Save runs iptables-save.
func (h *Host) Save(ctx context.Context, table Table) ([]byte, error) {
	p, _, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = h.in(func() (err error) {
		out, err = save(ctx, p, table)
		return err
	})
	return out, err
}

func save(ctx context.Context, p programs, table Table, args ...string) ([]byte, error) {
	if table != "" {
		args = append(args, "-t", string(table))
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cmd := command(ctx, p.save, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	if at := bytes.Index(out.Bytes(), []byte("is incompatible, use 'nft' tool")); at >= 0 && table != "" {
		from := bytes.LastIndexByte(out.Bytes()[:at], '\n') + 1
		return nil, fmt.Errorf("%s: %s: somebody put rules there that iptables cannot show; move them to a table of their own",
			strings.Join(cmd.Args, " "), strings.TrimSpace(string(out.Bytes()[from:at])))
	}
	return out.Bytes(), nil
}

// callTimeout bounds one call of a program, beyond its wait for the lock.
const callTimeout = 2 * time.Minute

// Restore runs iptables-restore.
func (h *Host) Restore(ctx context.Context, script []byte) error {
	p, _, err := h.open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout+h.timeout)
	defer cancel()
	cmd := command(ctx, p.restore, "--noflush", "-w", strconv.Itoa(int(h.timeout.Seconds())))
	cmd.Stdin = bytes.NewReader(script)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err = h.in(func() error {
		// Held over the start, so that the watch knows the child before its first event.
		h.mu.Lock()
		err := cmd.Start()
		if err == nil {
			h.children[uint32(cmd.Process.Pid)] = time.Time{}
		}
		h.mu.Unlock()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.restore, err)
	}
	err = cmd.Wait()
	h.mu.Lock()
	h.children[uint32(cmd.Process.Pid)] = time.Now()
	h.mu.Unlock()
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if ctx.Err() == nil && errors.As(err, &exit) {
		if !exit.Exited() { // a crash (1.8.9 can) refuses too: what made it is isolated
			errs.WriteString("\n" + exit.String())
		}
		return newRestoreError(errs.String(), script)
	}
	return fmt.Errorf("%s: %w: %s", p.restore, err, strings.TrimSpace(errs.String()))
}

// child reports whether a process is, or a moment ago was, one of our restores.
func (h *Host) child(pid uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, ended := range h.children {
		if !ended.IsZero() && time.Since(ended) > time.Second {
			delete(h.children, p)
		}
	}
	_, ok := h.children[pid]
	return ok
}
