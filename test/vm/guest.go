package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Folders of the initramfs.
const (
	lowerDir = "lower" // the computer's root file system, read-only
	writeDir = "write" // what is written over it, in memory
	rootDir  = "root"  // both together: the root of all that runs
)

// Tags of the shared folders, and names of the ports between the machine and us.
const (
	rootTag    = "root"
	shareTag   = "share" // with a number behind it
	controlTag = "control"
	stdoutTag  = "stdout"
	stderrTag  = "stderr"
)

// job is what the machine is told when it has said hello.
type job struct {
	Modules string   // the modules' folder, on the computer
	Shares  []string // folders shared read-write; number i has the tag shareTag+i
	Dir     string
	Env     []string
	Args    []string
}

// message is what the machine says over the control port: an empty one as its hello, and
// the last one when the command has ended or could not run.
type message struct {
	Done  bool
	Exit  int    // the command's exit code, 128 + signal where a signal ended it
	Error string // why the command was not run
}

// Reexec must be the first call of main of every program that uses this package: the
// program is also the first process of the machine, and there Reexec does not return.
func Reexec() {
	if os.Getpid() != 1 || len(os.Args) == 0 || os.Args[0] != "/init" {
		return
	}
	// Its threads share one root and one working directory, also with the kernel's
	// own threads, which start modprobe.
	err := guest()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm: first process:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // the first process must not end
}

func guest() error {
	if err := loadDrivers(); err != nil {
		return err
	}
	control, err := port(controlTag)
	if err != nil {
		return err
	}
	answer := json.NewEncoder(control)
	if err := answer.Encode(message{}); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	var j job
	if err := json.NewDecoder(control).Decode(&j); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	m := message{Done: true}
	if m.Exit, err = j.do(); err != nil {
		m.Error = err.Error()
	}
	if err := answer.Encode(m); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	return nil
}

// mount is one mount(2). A target is relative to the working directory.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func mountAll(mounts ...mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s (%s) on %s: %w", m.source, m.kind, m.target, err)
		}
	}
	return nil
}

func loadDrivers() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	err := mountAll(mount{"proc", "proc", "proc", 0, ""}, mount{"sys", "sys", "sysfs", 0, ""}, mount{"dev", "dev", "devtmpfs", 0, ""})
	if err != nil {
		return err
	}
	files, err := filepath.Glob("modules/*")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(file, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

// port opens one of the lines to the computer. Writes wait until it has taken them.
func port(name string) (*os.File, error) {
	// The driver learns the ports' names a moment after it was loaded.
	deadline := time.Now().Add(20 * time.Second)
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			b, err := os.ReadFile(path)
			if err != nil || strings.TrimSpace(string(b)) != name {
				continue
			}
			dev := filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("port %s: open %s: %w", name, dev, err)
			}
			return os.NewFile(uintptr(fd), dev), nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("port %s: the machine has none of that name", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// do makes the job's world and runs its command in it.
func (j *job) do() (int, error) {
	stdout, err := port(stdoutTag)
	if err != nil {
		return 0, err
	}
	stderr, err := port(stderrTag)
	if err != nil {
		return 0, err
	}
	if err := j.enterRoot(); err != nil {
		return 0, err
	}
	if err := prepare(); err != nil {
		return 0, err
	}
	return j.run(stdout, stderr)
}

// enterRoot mounts everything and makes it the root of all processes.
func (j *job) enterRoot() error {
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return err
	}
	const p9 = "trans=virtio,version=9p2000.L,msize=512000,"
	under := func(path string) string { return filepath.Join(rootDir, path) }
	err := mountAll(
		mount{rootTag, lowerDir, "9p", unix.MS_RDONLY, p9 + "cache=loose"},
		mount{"tmpfs", writeDir, "tmpfs", 0, "size=75%,mode=755"},
	)
	if err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(writeDir, dir), 0o755); err != nil {
			return err
		}
	}
	err = mountAll(
		mount{"overlay", rootDir, "overlay", 0, "lowerdir=/" + lowerDir + ",upperdir=/" + writeDir + "/upper,workdir=/" + writeDir + "/work"},
		mount{lowerDir + j.Modules, under("/lib/modules/" + unix.ByteSliceToString(un.Release[:])), "", unix.MS_BIND, ""},
		mount{"tmpfs", under("/run"), "tmpfs", 0, "mode=755"},
		mount{"proc", under("/proc"), "proc", 0, ""},
		mount{"sys", under("/sys"), "sysfs", 0, ""},
		mount{"dev", under("/dev"), "devtmpfs", 0, ""},
		mount{"devpts", under("/dev/pts"), "devpts", 0, "mode=620,gid=5,ptmxmode=666"},
		mount{"tmpfs", under("/dev/shm"), "tmpfs", 0, "mode=1777"},
		mount{"cgroup2", under("/sys/fs/cgroup"), "cgroup2", 0, ""},
		mount{"bpf", under("/sys/fs/bpf"), "bpf", 0, ""},
	)
	if err != nil {
		return err
	}
	for i, dir := range j.Shares {
		if err := mountAll(mount{fmt.Sprint(shareTag, i), under(dir), "9p", 0, p9 + "cache=mmap"}); err != nil {
			return err
		}
	}
	// As switch_root(8) does it.
	if err := unix.Chdir(rootDir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// prepare does what the init of a real machine would have done.
func prepare() error {
	if err := unix.Sethostname([]byte("causeway-vm")); err != nil {
		return err
	}
	for target, name := range map[string]string{"/proc/self/fd": "/dev/fd", "/proc/self/fd/0": "/dev/stdin", "/proc/self/fd/1": "/dev/stdout", "/proc/self/fd/2": "/dev/stderr"} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// By syscall, so that children get it too: package os hands them what was before.
	files := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	// A machine whose processors have to wait for the computer's sends and takes packets
	// in bursts. The default of 1000 would drop what no test means to lose
	// (/proc/net/softnet_stat, second column).
	if err := os.WriteFile("/proc/sys/net/core/netdev_max_backlog", []byte("100000"), 0o644); err != nil {
		return err
	}
	if out, err := exec.Command("/sbin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

// run runs the command and reaps every process that lost its parent.
func (j *job) run(stdout, stderr io.Writer) (int, error) {
	for _, kv := range j.Env {
		k, v, _ := strings.Cut(kv, "=")
		os.Setenv(k, v)
	}
	if err := os.Chdir(j.Dir); err != nil {
		return 0, err
	}
	path, err := exec.LookPath(j.Args[0])
	if err != nil {
		return 127, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	// Pipes between the command and the ports: of a port only one open file may exist,
	// and a command may open /dev/stdout again.
	copied := make(chan struct{}, 2)
	var ends []*os.File
	for _, to := range []io.Writer{stdout, stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		ends = append(ends, w)
		go func() {
			io.Copy(to, r)
			copied <- struct{}{}
		}()
	}
	runtime.LockOSThread()
	p, err := os.StartProcess(path, j.Args, &os.ProcAttr{Env: j.Env, Files: []*os.File{null, ends[0], ends[1]}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return 126, err
	}
	for _, w := range ends {
		w.Close()
	}
	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if pid == p.Pid {
			break
		}
	}
	// What the command left in the background may hold the pipes: it is not waited for.
	late := time.After(3 * time.Second)
drain:
	for range ends {
		select {
		case <-copied:
		case <-late:
			break drain
		}
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}
