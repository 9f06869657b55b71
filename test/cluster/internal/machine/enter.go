package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Path is where programs of a machine are looked for, before those of Config.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const allKinds = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

// InThread runs f on a thread of its own, which ends with f: f may change the thread's
// namespaces. Processes that f starts and sockets that it opens live in those namespaces;
// goroutines that it starts do not.
func InThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the runtime ends the thread
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and its namespaces are what /proc/PID shows of
			// the whole process: keep it out, use another.
			errc <- InThread(f)
			runtime.UnlockOSThread()
			return
		}
		errc <- f()
	}()
	return <-errc
}

// enter moves the calling thread into namespaces of the machine. A pid namespace holds
// for processes started afterwards.
func (m *Machine) enter(kinds int) error {
	fd, ok, err := m.init.open()
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the machine is off")
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	if err := unix.Setns(fd, kinds); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// Do runs f on a thread in the machine's network namespace.
func (m *Machine) Do(f func() error) error {
	return InThread(func() error {
		if err := m.enter(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("machine %s: %w", filepath.Base(m.dir), err)
		}
		return f()
	})
}

// Dial opens a connection from the machine; addr is an address and a port, no name.
func (m *Machine) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := m.Do(func() error {
		var d net.Dialer
		var err error
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Start starts a prepared command in all of the machine's namespaces; the caller waits
// for it. The program is looked up before, on this computer.
func (m *Machine) Start(cmd *exec.Cmd) error { return m.start(cmd, allKinds) }

// StartNet is Start with the machine's network namespace alone: the command sees this
// computer's files and processes.
func (m *Machine) StartNet(cmd *exec.Cmd) error { return m.start(cmd, unix.CLONE_NEWNET) }

func (m *Machine) start(cmd *exec.Cmd, kinds int) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=" + Path, "HOME=/root", "TERM=dumb"}
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	// A process that the command left in the background must not keep us waiting.
	cmd.WaitDelay = 2 * time.Second
	return InThread(func() error {
		if err := m.enter(kinds); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// Exec runs a command in the machine and returns its standard output. An error carries
// the standard error.
func (m *Machine) Exec(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	return Output(ctx, cmd, m.Start)
}

// Output starts a prepared command with start, waits for it and returns its standard
// output. An error carries the standard error.
func Output(ctx context.Context, cmd *exec.Cmd, start func(*exec.Cmd) error) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	what := strings.Join(cmd.Args, " ")
	if err := start(cmd); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, err, said)
	}
	return stdout.String(), nil
}
