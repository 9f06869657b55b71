// Package vm owns the throw-away machine: a QEMU virtual machine with a stock Debian
// kernel, on which one command runs. It is for what the kernel of the computer at hand
// lacks. The machine sees the computer's root file system; what it writes there is
// forgotten. Nothing of it outlives Run, however Run ends, but the kernel in the cache.
//
// A program that uses this package calls Reexec first thing in main and is static.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Env is set for every command in the machine. Tests that settle for less where the
// kernel lacks a feature must not do so where it is set.
const Env = "CAUSEWAY_TEST_VM=1"

// Config of one machine. Only Args is required.
type Config struct {
	Args []string // the command, looked for in PATH
	Dir  string   // working directory; default the caller's
	Env  []string // added to the caller's environment, which the command gets
	// Share are folders that the command writes to for good: it sees the computer's
	// own. Everything else it writes is forgotten.
	Share []string

	Memory int // MiB; default 2048
	CPUs   int // default as many as the computer has
	// Timeout ends the machine; default 10 minutes, from the start of the machine on.
	Timeout time.Duration

	Stdout, Stderr io.Writer    // of the command, as it writes; default discarded
	Console        io.Writer    // the kernel's messages; default: shown only when the machine dies
	Log            *slog.Logger // default discarded
}

// ErrTimeout says that the command had not ended in time.
var ErrTimeout = errors.New("the time is up")

func (c *Config) fill() error {
	if len(c.Args) == 0 {
		return errors.New("no command")
	}
	if os.Getuid() != 0 {
		return errors.New("needs root: the machine sees this computer's files with the rights of its maker")
	}
	if c.Memory == 0 {
		c.Memory = 2048
	}
	if c.Memory < 256 {
		return fmt.Errorf("memory %d MiB: at least 256 are needed", c.Memory)
	}
	if c.CPUs == 0 {
		c.CPUs = runtime.NumCPU()
	}
	if c.CPUs < 0 {
		return fmt.Errorf("%d CPUs: at least 1 is needed", c.CPUs)
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Minute
	}
	if c.Timeout < 0 {
		return fmt.Errorf("timeout %s: must be positive", c.Timeout)
	}
	for _, w := range []*io.Writer{&c.Stdout, &c.Stderr, &c.Console} {
		if *w == nil {
			*w = io.Discard
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	for i, dir := range c.Share {
		if dir, err = filepath.Abs(dir); err != nil {
			return fmt.Errorf("share: %w", err)
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return fmt.Errorf("share %s: must be a folder", dir)
		}
		c.Share[i] = dir
	}
	return nil
}

// Cache is the folder with the kernels, one folder for each version.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "causeway", "vm"), err
}

// Run boots a machine, runs the command as root and returns its exit code: 128 and the
// signal where a signal ended it. An error means that the command did not run to its end;
// it is ErrTimeout when the time was up, and ctx's when ctx was cancelled.
func Run(ctx context.Context, c Config) (int, error) {
	c.Share = append([]string(nil), c.Share...)
	if err := c.fill(); err != nil {
		return 0, fmt.Errorf("vm: %w", err)
	}
	cache, err := Cache()
	if err != nil {
		return 0, fmt.Errorf("vm: %w", err)
	}
	k, err := stockKernel(ctx, cache, c.Log)
	if err != nil {
		return 0, fmt.Errorf("vm: %w", err)
	}
	initrd, err := initramfs(ctx, k)
	if err != nil {
		return 0, fmt.Errorf("vm: %w", err)
	}
	m := machine{Config: c, kernel: k, initrd: initrd}
	accel := acceleration{cache: cache, kernel: k.version}
	for _, a := range accel.worthTrying() {
		code, err := m.run(ctx, a)
		var mute *neverStarted
		if a == kvm && ctx.Err() == nil && errors.As(err, &mute) {
			// The command has not run: it may run on an emulated machine.
			c.Log.Warn("the machine does not start with KVM, it is emulated", "error", err)
			accel.failed()
			continue
		}
		if err != nil {
			err = fmt.Errorf("vm: %w", err)
		}
		return code, err
	}
	panic("vm: emulation was not tried")
}
