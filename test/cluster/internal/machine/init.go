package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names under which this program starts itself.
const (
	initName   = "causeway-cluster-init" // <folder>: pid 1 of a machine, before it has its cgroups
	serverName = "causeway-cluster-pid1" // <folder>: pid 1 of a machine
)

var reexecReady bool

// Reexec must be the first call of main or TestMain: the program starts itself again as
// the first process of machines, and there Reexec does that work and does not return.
func Reexec() {
	reexecReady = true
	var run func() error
	switch os.Args[0] {
	case initName:
		run = prepare
	case serverName:
		run = serve
	default:
		return
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		fmt.Fprintln(os.NewFile(3, "answer"), err)
		os.Exit(125)
	}
	os.Exit(0)
}

// initConfig is what pid 1 is told on its standard input. When nothing comes it ends: no
// machine outlives a Boot that was killed early.
type initConfig struct {
	Config
	Cgroups []string
}

// prepare gives the process its cgroups and a cgroup namespace that begins there. A
// namespace is a thread's: the exec at the end makes it the whole process's.
func prepare() error {
	runtime.LockOSThread()
	var cfg initConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return fmt.Errorf("no configuration: %w", err)
	}
	if err := joinCgroups(cfg.Cgroups); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("config", 0)
	if err != nil {
		return err
	}
	if _, err := unix.Pwrite(fd, b, 0); err != nil {
		return err
	}
	if err := unix.Dup3(fd, 0, 0); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", []string{serverName, cfg.Dir}, os.Environ())
}

// server is pid 1 of a machine: it sets the machine up, keeps its daemons and reaps.
type server struct {
	logs string // folder of the log files, as /proc/self/fd/N

	mu      sync.Mutex
	ended   *sync.Cond // on mu: a daemon ended
	daemons []*daemon  // guarded by mu
}

type daemon struct {
	spec Daemon
	st   Status // st.PID != 0 exactly while the process has not been reaped
}

func serve() error {
	unix.CloseOnExec(3)
	var cfg initConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return fmt.Errorf("no configuration: %w", err)
	}
	s := &server{}
	s.ended = sync.NewCond(&s.mu)
	l, err := s.setUp(&cfg)
	if err != nil {
		return err
	}
	go s.reap()
	os.NewFile(3, "answer").Close() // nothing said: all is well
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.answer(c)
	}
}

// setUp makes the machine's view of the computer. The order matters: what lies in folders
// that get covered is opened before.
func (s *server) setUp(cfg *initConfig) (net.Listener, error) {
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.Remove(controlPath(cfg.Dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", controlPath(cfg.Dir))
	if err != nil {
		return nil, err
	}
	logs, err := unix.Open(filepath.Join(cfg.Dir, "logs"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return nil, fmt.Errorf("hostname: %w", err)
	}
	if err := mountKernel(); err != nil {
		return nil, err
	}
	s.logs = fmt.Sprintf("/proc/self/fd/%d", logs)
	if err := bindDirs(cfg); err != nil {
		return nil, err
	}
	if err := setSysctls(cfg); err != nil {
		return nil, err
	}
	// Pods with Bidirectional mounts need it; it ends at this machine's own mounts.
	if err := unix.Mount("", "/", "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("share mounts: %w", err)
	}
	return l, os.Chdir("/")
}

// mountKernel mounts /proc, /sys with the cgroups, and an empty /run.
func mountKernel() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Our copies of others' namespace mounts would keep those alive.
	if err := unmountBelow("/run"); err != nil {
		return err
	}
	// Covering the old /sys is not enough: its cgroup mounts would still be found.
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := mountCgroups(); err != nil {
		return err
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		return fmt.Errorf("mount /sys/fs/bpf: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return errors.Join(os.Mkdir("/run/netns", 0o755), os.Mkdir("/run/lock", 0o1777))
}

// unmountBelow detaches what is mounted below dir, and on it.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(string(b), "\n")) { // the topmost first
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != dir && !strings.HasPrefix(f[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", f[4], err)
		}
	}
	return nil
}

// bindDirs gives the machine an /etc, /opt and /var that it may write to without a trace
// on this computer's disk (they forget at PowerOff), and in them the folders that last.
func bindDirs(cfg *initConfig) error {
	layers := filepath.Join(cfg.Dir, "layers")
	if err := os.MkdirAll(layers, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", layers, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", layers, err)
	}
	// Opened before anything covers the way to them.
	top, err := unix.Open(layers, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", layers, err)
	}
	defer unix.Close(top)
	layers = fmt.Sprintf("/proc/self/fd/%d", top)
	sources := map[string]string{}
	for _, dir := range cfg.Dirs {
		source := filepath.Join(cfg.Dir, "fs", dir)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		fd, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		defer unix.Close(fd)
		sources[dir] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	for _, lower := range []string{"/etc", "/opt", "/var"} {
		upper, work := filepath.Join(layers, lower, "upper"), filepath.Join(layers, lower, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount("overlay", lower, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)); err != nil {
			return fmt.Errorf("overlay on %s: %w", lower, err)
		}
	}
	for _, dir := range cfg.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(sources[dir], dir, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	for file, text := range cfg.Files {
		if err := os.MkdirAll(path.Dir(file), 0o755); err != nil {
			return err
		}
		// Not through a symbolic link, as /etc/resolv.conf often is one.
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for key, value := range cfg.Masks {
		source := filepath.Join(layers, "masks", key)
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(source, sysctlFile(key), "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask %s: %w", key, err)
		}
	}
	return nil
}

func sysctlFile(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

func setSysctls(cfg *initConfig) error {
	for _, k := range slices.Sorted(maps.Keys(cfg.Sysctls)) { // conf.all before conf.default, always the same
		if err := os.WriteFile(sysctlFile(k), []byte(cfg.Sysctls[k]), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", k, cfg.Sysctls[k], err)
		}
	}
	return nil
}

func (s *server) answer(c net.Conn) {
	defer c.Close()
	var q request
	var r reply
	err := json.NewDecoder(c).Decode(&q)
	if err == nil {
		switch q.Op {
		case "start":
			err = s.start(q.Daemon)
		case "stop":
			err = s.stop(q.Daemon.Name)
		case "kill":
			err = s.kill(q.Daemon.Name)
		case "list":
		default:
			err = fmt.Errorf("no operation %q", q.Op)
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	s.mu.Lock()
	for _, d := range s.daemons {
		r.Daemons = append(r.Daemons, d.st)
	}
	s.mu.Unlock()
	json.NewEncoder(c).Encode(r)
}

// find returns the daemon of that name. The caller holds mu.
func (s *server) find(name string) (*daemon, error) {
	i := slices.IndexFunc(s.daemons, func(d *daemon) bool { return d.spec.Name == name })
	if i < 0 {
		return nil, errors.New("was never started")
	}
	return s.daemons[i], nil
}

func (s *server) start(want Daemon) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find(want.Name)
	switch {
	case err == nil && d.st.PID != 0:
		return fmt.Errorf("runs already, as process %d", d.st.PID)
	case err != nil && len(want.Argv) == 0:
		return err
	case err != nil:
		d = &daemon{st: Status{Name: want.Name}}
		s.daemons = append(s.daemons, d)
	}
	if len(want.Argv) > 0 {
		d.spec = want
	}
	d.st.Wanted = true
	return s.spawn(d)
}

// spawn starts the daemon's process. The caller holds mu; reap does, too, so that it
// never sees a child that is not in the table.
func (s *server) spawn(d *daemon) error {
	log, err := os.OpenFile(filepath.Join(s.logs, d.spec.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	child, err := os.StartProcess(d.spec.Argv[0], d.spec.Argv, &os.ProcAttr{Dir: "/", Env: d.spec.Env, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return err
	}
	d.st.PID, d.st.Started = child.Pid, time.Now().UTC()
	d.st.Starts++
	child.Release()
	return nil
}

func (s *server) stop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find(name)
	if err != nil {
		return err
	}
	d.st.Wanted = false
	if d.st.PID == 0 {
		return nil
	}
	// Not reaped yet, or PID would be 0: the id is still its own.
	if err := unix.Kill(d.st.PID, unix.SIGTERM); err != nil {
		return err
	}
	pid := d.st.PID
	hard := time.AfterFunc(10*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if d.st.PID == pid && !d.st.Wanted {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	defer hard.Stop()
	for d.st.PID == pid {
		s.ended.Wait()
	}
	return nil
}

func (s *server) kill(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find(name)
	if err != nil {
		return err
	}
	if d.st.PID == 0 {
		return errors.New("does not run")
	}
	pid := d.st.PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for d.st.PID == pid {
		s.ended.Wait()
	}
	return nil
}

// reap collects every child that ends: daemons, and orphans of theirs.
func (s *server) reap() {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	for ; ; <-sigs {
		s.mu.Lock()
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			for _, d := range s.daemons {
				if d.st.PID == pid {
					s.daemonEnded(d, ws)
				}
			}
		}
		s.ended.Broadcast()
		s.mu.Unlock()
	}
}

// daemonEnded notes the end and, if the daemon is wanted, starts it again in a second.
// The caller holds mu.
func (s *server) daemonEnded(d *daemon, ws syscall.WaitStatus) {
	d.st.PID = 0
	if d.st.Exit = fmt.Sprintf("exit status %d", ws.ExitStatus()); ws.Signaled() {
		d.st.Exit = "signal: " + ws.Signal().String()
	}
	fmt.Printf("%s: %s ended: %s\n", time.Now().UTC().Format(time.RFC3339), d.spec.Name, d.st.Exit)
	if !d.st.Wanted {
		return
	}
	time.AfterFunc(time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if d.st.Wanted && d.st.PID == 0 {
			if err := s.spawn(d); err != nil {
				fmt.Printf("%s: %v\n", d.spec.Name, err)
			}
		}
	})
}
