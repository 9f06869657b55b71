package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const qemu = "qemu-system-x86_64"

// machine is one QEMU process. It has no network, no disk and no file of its own: the
// initramfs is in memory, and what it says comes over sockets that it inherits.
type machine struct {
	Config
	kernel kernel
	initrd []byte
}

// neverStarted says that the machine's first process was not heard of, so that the command
// has not begun either.
type neverStarted struct{ error }

func (e *neverStarted) Unwrap() error { return e.error }

// line is one of the machine's ports: our end, and the end that QEMU inherits.
type line struct {
	name         string
	ours, theirs *os.File
}

func newLine(name string) (line, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return line{}, fmt.Errorf("port %s: %w", name, err)
	}
	// Our end is non-blocking, so that Close ends a Read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return line{}, fmt.Errorf("port %s: %w", name, err)
	}
	return line{name, os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)}, nil
}

// run starts the machine and stays with it to its end.
func (m *machine) run(ctx context.Context, a accel) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.Timeout, fmt.Errorf("%w: %s", ErrTimeout, m.Timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	var lines []line
	defer func() {
		for _, l := range lines {
			l.ours.Close()
			l.theirs.Close()
		}
	}()
	for _, name := range []string{"console", controlTag, stdoutTag, stderrTag} {
		l, err := newLine(name)
		if err != nil {
			return 0, err
		}
		lines = append(lines, l)
	}
	initrd, err := inMemory("initramfs", m.initrd)
	if err != nil {
		return 0, err
	}
	defer initrd.Close()

	cmd := exec.CommandContext(ctx, qemu, m.args(a, lines)...)
	cmd.ExtraFiles = []*os.File{initrd}
	for _, l := range lines {
		cmd.ExtraFiles = append(cmd.ExtraFiles, l.theirs)
	}
	complaints := &tail{most: 4 << 10}
	cmd.Stderr = complaints
	// A session of its own, so that Ctrl-C reaches us alone, and we end it. The death
	// of this thread would end it too, so the thread lives as long as we do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w (package qemu-system-x86)", err)
	}
	for _, l := range lines {
		l.theirs.Close()
	}

	console := &tail{most: 16 << 10}
	var copies sync.WaitGroup
	for from, to := range map[*os.File]io.Writer{lines[0].ours: io.MultiWriter(console, m.Console), lines[2].ours: m.Stdout, lines[3].ours: m.Stderr} {
		copies.Go(func() {
			if _, err := io.Copy(to, from); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, os.ErrClosed) {
				stop(fmt.Errorf("%s: %w", from.Name(), err))
			}
		})
	}
	last, heard, err := m.talk(lines[1].ours, time.AfterFunc(a.patience(), func() {
		stop(fmt.Errorf("no sign of life for %s", a.patience()))
	}))
	if err != nil {
		stop(err) // it powers itself off otherwise
	}
	cmd.Wait()
	copies.Wait()
	switch {
	case err == nil && last.Error != "":
		return last.Exit, errors.New(last.Error)
	case err == nil:
		return last.Exit, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if errors.Is(err, ErrTimeout) || errors.Is(err, context.Canceled) {
		return 0, err
	}
	err = fmt.Errorf("the machine (%s) ended before its command: %w%s%s", a, err, complaints.under(qemu), console.under("its console"))
	if !heard {
		err = &neverStarted{err}
	}
	return 0, err
}

// talk hands the machine its job when it has said hello, which stops the watchdog, and
// returns what it says at last.
func (m *machine) talk(control *os.File, watchdog *time.Timer) (last message, heard bool, err error) {
	defer watchdog.Stop()
	answers := json.NewDecoder(control)
	if err := answers.Decode(&last); err != nil {
		return last, false, fmt.Errorf("hello: %w", err)
	}
	watchdog.Stop()
	j := job{Modules: m.kernel.modules(), Shares: m.Share, Dir: m.Dir, Env: append(append(os.Environ(), m.Env...), Env), Args: m.Args}
	if err := json.NewEncoder(control).Encode(j); err != nil {
		return last, true, fmt.Errorf("job: %w", err)
	}
	if err := answers.Decode(&last); err != nil {
		return last, true, fmt.Errorf("result: %w", err)
	}
	return last, true, nil
}

// args is QEMU's command line. File 3 is the initramfs, the lines are 4 and on.
func (m *machine) args(a accel, lines []line) []string {
	args := append(a.args(), "-m", fmt.Sprint(m.Memory), "-smp", fmt.Sprint(m.CPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
		"-kernel", m.kernel.image(), "-initrd", "/proc/self/fd/3",
		"-append", "console=ttyS0 panic=-1 loglevel=4 mitigations=off",
		"-device", "virtio-serial-pci,max_ports=8")
	for i, l := range lines {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", l.name, i+4))
		if i == 0 {
			args = append(args, "-serial", "chardev:"+l.name)
		} else {
			args = append(args, "-device", fmt.Sprintf("virtserialport,nr=%d,chardev=%s,name=%s", i, l.name, l.name))
		}
	}
	share := func(path, tag, more string) {
		args = append(args, "-virtfs", "local,path="+strings.ReplaceAll(path, ",", ",,")+",mount_tag="+tag+",security_model=none,multidevs=remap"+more)
	}
	share("/", rootTag, ",readonly=on")
	for i, dir := range m.Share {
		share(dir, fmt.Sprint(shareTag, i), "")
	}
	return args
}

// inMemory makes a file that is nowhere.
func inMemory(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tail keeps the end of what is written to it.
type tail struct {
	most int
	buf  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.most; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

// under is the text below a heading, or nothing.
func (t *tail) under(who string) string {
	s := strings.TrimSpace(strings.ReplaceAll(t.buf.String(), "\r", ""))
	if s == "" {
		return ""
	}
	return "\n--- " + who + ":\n" + s
}
