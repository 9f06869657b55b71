package child

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/heap"
)

// spawned is a process that was started, or why not.
type spawned struct {
	proc     *os.Process
	landlock error // why it is not confined by Landlock; nil: it is
	err      error
}

// spawn starts the program on a thread of its own, sends what came of it, waits until the
// process has ended and sends how. All rights are taken from the thread first, and the process
// inherits what is left. It must have a goroutine for itself: the thread is never given back,
// and it lives exactly as long as the process, because the kernel sends PR_SET_PDEATHSIG when
// the thread that forked ends.
func spawn(cfg Config, files []*os.File, dir *os.File, started chan<- spawned, ended chan<- *os.ProcessState) {
	runtime.LockOSThread()
	s := start(cfg, files, dir)
	started <- s
	if s.err != nil {
		return
	}
	state, _ := s.proc.Wait()
	ended <- state
}

func start(cfg Config, files []*os.File, dir *os.File) spawned {
	exe, err := os.Open(cfg.Exe)
	if err != nil {
		return spawned{err: fmt.Errorf("Exe: %w", err)}
	}
	defer exe.Close()

	// The child's user may not be able to walk to the program. It starts it as ./NAME from the
	// folder it lies in, which is the thread's alone to change.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return spawned{err: fmt.Errorf("unshare(CLONE_FS): %w", err)}
	}
	if err := unix.Chdir(filepath.Dir(cfg.Exe)); err != nil {
		return spawned{err: fmt.Errorf("chdir %s: %w", filepath.Dir(cfg.Exe), err)}
	}
	if err := errors.Join(keepDescriptors(), dropBounding()); err != nil {
		return spawned{err: err}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return spawned{err: fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)}
	}
	locked := landlock(exe, dir)
	if locked != nil && !errors.Is(locked, errNoLandlock) {
		return spawned{err: locked}
	}
	proc, err := os.StartProcess("./"+filepath.Base(cfg.Exe), append([]string{cfg.Exe}, cfg.Args...), &os.ProcAttr{
		Env:   environment(),
		Files: files,
		Sys: &syscall.SysProcAttr{
			Setpgid:     true, // an operator's Ctrl-C is for the agent
			Pdeathsig:   syscall.SIGKILL,
			Credential:  &syscall.Credential{Uid: uint32(cfg.UID), Gid: uint32(cfg.GID)},
			AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
		},
	})
	if err != nil {
		return spawned{err: fmt.Errorf("start %s as uid %d: %w", cfg.Exe, cfg.UID, err)}
	}
	return spawned{proc: proc, landlock: locked}
}

// oomScore is how much sooner than the agent the kernel's OOM killer should take the speaker
// (proc(5), oom_score_adj: -1000 to 1000). A peer that announces and withdraws faster than
// GoBGP works makes it grow without bound; its death costs no packet, the agent's would keep
// pods from starting.
const oomScore = 300

// expose does its best: where it may not be done, nothing else fails.
func expose(pid int) {
	const file = "oom_score_adj"
	own, err := os.ReadFile("/proc/self/" + file)
	if err != nil {
		return
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		return
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), strconv.AppendInt(nil, int64(min(n+oomScore, 1000)), 10), 0)
}

// keepDescriptors keeps to this process what it was itself started with beyond stderr, as a
// runtime's or systemd's descriptors. What Go opens is close-on-exec already.
func keepDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// dropBounding leaves CAP_NET_BIND_SERVICE alone in the calling thread's bounding set.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the last capability of this kernel
		}
		if err != nil {
			return fmt.Errorf("prctl(PR_CAPBSET_READ, %d): %w", c, err)
		}
		if has == 0 || c == unix.CAP_NET_BIND_SERVICE {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("prctl(PR_CAPBSET_DROP, %d): %w: the agent needs CAP_SETPCAP to start the speaker", c, err)
		}
	}
}

// maxProcs bounds the speaker's parallelism: GoBGP works in one goroutine but for parsing, and
// every P keeps memory of its own.
const maxProcs = 4

// environment is the child's whole environment; nothing of the agent's own is passed on, since
// that may hold secrets. The child cannot read the cgroup's CPU quota, so it is told. Go listens
// with MPTCP sockets unless told otherwise, and those take neither TCP_MD5SIG nor IP_TTL
// (net/mptcp/sockopt.c).
func environment() []string {
	return []string{
		"GODEBUG=multipathtcp=0,tracebacklabels=1",
		"GOTRACEBACK=single",
		fmt.Sprintf("GOGC=%d", heap.PercentOfLittle),
		fmt.Sprintf("GOMAXPROCS=%d", min(runtime.GOMAXPROCS(0), maxProcs)),
	}
}
