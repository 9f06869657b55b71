package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initConfig is what a node's init is told, on its standard input, once it is recorded.
// When nothing comes, it ends: so no init outlives an Up that was killed early.
type initConfig struct {
	Hostname string
	Dir      string // the node's state folder
	Binds    []Bind // sources resolved to absolute paths
	Sysctls  map[string]string
	Bridge   string // name of the bridge to create; set by the lab, not by init
}

// initServer is pid 1 of a node: it sets up the node's view of the machine, starts
// processes and reaps them.
type initServer struct {
	logs string // open folder of the log files, as /proc/self/fd/N

	mu    sync.Mutex
	ended *sync.Cond // on mu; a process ended
	procs []*processStatus
}

// runInit is the init process of a node; it blocks for the life of the node.
func runInit(args []string) error {
	answer := os.NewFile(3, "answer")
	var cfg initConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return fmt.Errorf("no configuration: %w", err)
	}
	s := &initServer{}
	s.ended = sync.NewCond(&s.mu)
	l, err := s.setUp(&cfg)
	if err != nil {
		fmt.Fprintln(answer, err)
		return err
	}
	go s.reap()
	answer.Close() // nothing said: all is well
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.serve(c)
	}
}

// setUp gives the node its own /proc, /sys, /run, writable copies of /etc and the like,
// its binds, sysctls and name. The order matters: what lies in folders that get covered
// is opened before.
func (s *initServer) setUp(cfg *initConfig) (net.Listener, error) {
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	// Our copies of other nodes' namespace mounts would keep those alive.
	if err := dropNetnsMounts(); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", controlPath(cfg.Dir))
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	open := func(path string) (string, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	if s.logs, err = open(filepath.Join(cfg.Dir, "logs")); err != nil {
		return nil, err
	}
	sources := make([]string, len(cfg.Binds))
	for i, b := range cfg.Binds {
		if sources[i], err = open(b.Source); err != nil {
			return nil, fmt.Errorf("bind (%s): %w", b.where, err)
		}
	}
	keep, err := open(filepath.Join(cfg.Dir, "causeway"))
	if err != nil {
		return nil, err
	}
	if err := overlay(cfg); err != nil {
		return nil, err
	}
	mounts := []struct{ fs, target, data string }{
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.fs, m.target, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Whatever this machine itself has configured there must not reach the node.
	for _, dir := range []string{"/etc/cni/net.d", "/etc/causeway", "/var/lib/cni"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return nil, fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := os.MkdirAll("/var/lib/causeway", 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount(keep, "/var/lib/causeway", "none", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("bind /var/lib/causeway: %w", err)
	}
	for _, dir := range []string{netnsDir, "/run/lock", "/run/bird", "/run/frr", "/run/causeway"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if uid, gid, ok := idsOf("frr"); ok {
		if err := os.Chown("/run/frr", uid, gid); err != nil {
			return nil, err
		}
	}
	if err := prepareNetnsDir(); err != nil {
		return nil, err
	}
	for i, b := range cfg.Binds {
		if err := bindInto(sources[i], b); err != nil {
			return nil, fmt.Errorf("bind %s:%s (%s): %w", b.Source, b.Target, b.where, err)
		}
	}
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return nil, fmt.Errorf("hostname: %w", err)
	}
	keys := make([]string, 0, len(cfg.Sysctls))
	for k := range cfg.Sysctls {
		keys = append(keys, k)
	}
	slices.Sort(keys) // conf.all before conf.default, always the same
	for _, k := range keys {
		path := "/proc/sys/" + sysctlPath(k)
		if err := os.WriteFile(path, []byte(cfg.Sysctls[k]), 0); err != nil {
			return nil, fmt.Errorf("sysctl %s=%s: %w", k, cfg.Sysctls[k], err)
		}
	}
	return l, os.Chdir("/")
}

// sysctlPath turns a.b.c into a/b/c; a '/' stands for a '.' within a name, as in
// sysctl(8): net.ipv4.conf.eth1/100.rp_filter.
func sysctlPath(key string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

func dropNetnsMounts() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	slices.Reverse(lines) // what is mounted on top first
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if p := f[4]; p == netnsDir || strings.HasPrefix(p, netnsDir+"/") {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				return fmt.Errorf("unmount %s: %w", p, err)
			}
		}
	}
	return nil
}

// overlay makes the folders that a node writes to its own: the machine's content below,
// the node's changes in memory above.
func overlay(cfg *initConfig) error {
	rw := filepath.Join(cfg.Dir, "rw")
	if err := os.MkdirAll(rw, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", rw, "tmpfs", 0, "mode=700"); err != nil {
		return fmt.Errorf("mount %s: %w", rw, err)
	}
	tops := []string{"etc", "opt", "var"}
	for _, b := range cfg.Binds {
		top, _, _ := strings.Cut(b.Target[1:], "/")
		if top != "run" && top != "tmp" && !slices.Contains(tops, top) {
			tops = append(tops, top)
		}
	}
	for _, top := range tops {
		lower := "/" + top
		if st, err := os.Stat(lower); err != nil || !st.IsDir() {
			return fmt.Errorf("%s is not a folder of this machine; bind below /etc, /opt, /run or /var", lower)
		}
		upper, work := filepath.Join(rw, top, "upper"), filepath.Join(rw, top, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
		if err := unix.Mount("overlay", lower, "overlay", 0, data); err != nil {
			return fmt.Errorf("overlay on %s (%s): %w", lower, data, err)
		}
	}
	return nil
}

// bindInto mounts an opened source on the bind's target, which it creates.
func bindInto(source string, b Bind) error {
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if st.IsDir() {
		if err := os.MkdirAll(b.Target, 0o755); err != nil {
			return err
		}
	} else if _, err := os.Stat(b.Target); err != nil {
		if err := os.MkdirAll(filepath.Dir(b.Target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(b.Target, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount(source, b.Target, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if b.ReadOnly {
		return unix.Mount("", b.Target, "none", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return nil
}

func (s *initServer) serve(c net.Conn) {
	defer c.Close()
	var q request
	var r reply
	err := json.NewDecoder(c).Decode(&q)
	if err == nil {
		switch q.Op {
		case "start":
			err = s.start(&q)
		case "signal":
			err = s.signal(q.Name, syscall.Signal(q.Signal))
		case "wait":
			err = s.wait(q.Name)
		case "forget":
			err = s.forget(&q)
		case "list":
		default:
			err = fmt.Errorf("init knows no operation %q", q.Op)
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	s.mu.Lock()
	for _, p := range s.procs {
		r.Processes = append(r.Processes, *p)
	}
	s.mu.Unlock()
	json.NewEncoder(c).Encode(r)
}

func (s *initServer) find(name string) *processStatus {
	for _, p := range s.procs {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// start starts a process; its output goes to logs/<name>.log.
func (s *initServer) start(q *request) error {
	log, err := os.OpenFile(filepath.Join(s.logs, q.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	attr := &os.ProcAttr{Dir: "/", Env: q.Env, Files: []*os.File{null, log, log}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if q.NetNS != "" {
		attr.Sys.Cloneflags = unix.CLONE_NEWNET
	}
	// reap takes the lock too: it never sees a child that is not in the table.
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(q.Name)
	if p != nil && p.Running {
		return fmt.Errorf("%s runs already, as process %d", q.Name, p.PID)
	}
	child, err := os.StartProcess(q.Argv[0], q.Argv, attr)
	if err != nil {
		return fmt.Errorf("start %s: %w", q.Name, err)
	}
	pid := child.Pid
	child.Release()
	if p == nil {
		p = &processStatus{Name: q.Name}
		s.procs = append(s.procs, p)
	}
	*p = processStatus{Name: q.Name, PID: pid, Running: true, Started: time.Now().UTC(), Starts: p.Starts + 1}
	if q.NetNS != "" {
		if err := bindNetNS(fmt.Sprintf("/proc/%d/ns/net", pid), netnsPath(q.NetNS)); err != nil {
			unix.Kill(pid, unix.SIGKILL)
			return fmt.Errorf("network namespace %s: %w", q.NetNS, err)
		}
	}
	return nil
}

func (s *initServer) signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(name)
	if p == nil || !p.Running {
		return fmt.Errorf("%s does not run", name)
	}
	// Not reaped yet, or Running would be false: the id is still its own.
	return unix.Kill(p.PID, sig)
}

// wait blocks until the process has ended.
func (s *initServer) wait(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		p := s.find(name)
		if p == nil {
			return fmt.Errorf("%s was never started", name)
		}
		if !p.Running {
			return nil
		}
		s.ended.Wait()
	}
}

// forget removes a process that has ended, and its network namespace, from the tables.
func (s *initServer) forget(q *request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.find(q.Name); p != nil && p.Running {
		return fmt.Errorf("%s still runs", q.Name)
	}
	s.procs = slices.DeleteFunc(s.procs, func(p *processStatus) bool { return p.Name == q.Name })
	if q.NetNS != "" {
		return unbindNetNS(netnsPath(q.NetNS))
	}
	return nil
}

// reap collects every child that ends: those that start made and orphans of theirs.
func (s *initServer) reap() {
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
			for _, p := range s.procs {
				if p.PID == pid && p.Running {
					p.Running, p.Ended = false, time.Now().UTC()
					if p.Exit = fmt.Sprintf("exit status %d", ws.ExitStatus()); ws.Signaled() {
						p.Exit = "signal: " + ws.Signal().String()
					}
				}
			}
		}
		s.ended.Broadcast()
		s.mu.Unlock()
	}
}
