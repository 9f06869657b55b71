package child_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/bgp/child"
)

// statusOf reads /proc/PID/status.
func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.Join(strings.Fields(v), " ")
	}
	return out
}

// TestRights: what the child may do, as the kernel sees it, for every thread of it.
func TestRights(t *testing.T) {
	t.Setenv("CAUSEWAY_TEST_SECRET", "hunter2")
	leak, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil { // as inherited by the agent
		t.Fatal(err)
	}
	r := startSpeaker(t, nil)
	want := map[string]string{
		"Uid": "65532 65532 65532 65532", "Gid": "65532 65532 65532 65532", "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000400", "CapPrm": "0000000000000400", "CapEff": "0000000000000400",
		"CapBnd": "0000000000000400", "CapAmb": "0000000000000400",
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var tid int
		fmt.Sscan(task.Name(), &tid)
		got := statusOf(t, tid)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("thread %d: %s: %q, want %q", tid, k, got[k], v)
			}
		}
	}
	proc := fmt.Sprintf("/proc/%d/", r.PID())
	limits, _ := os.ReadFile(proc + "limits")
	for _, l := range []string{"Max core file size        0                    0", "Max open files            16384                16384", "Max file size             0                    0"} {
		if !strings.Contains(string(limits), l) {
			t.Errorf("limits lack %q:\n%s", l, limits)
		}
	}
	env, err := os.ReadFile(proc + "environ")
	if err != nil || strings.Contains(string(env), "hunter2") {
		t.Errorf("environment: %v %q", err, env)
	}
	args, _ := os.ReadFile(proc + "cmdline")
	if want := self(t) + "\x00speaker\x00"; string(args) != want {
		t.Errorf("arguments %q, want %q", args, want)
	}
	score := func(proc string) int {
		b, err := os.ReadFile(proc + "oom_score_adj")
		n, aerr := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || aerr != nil {
			t.Errorf("oom_score_adj: %v %v", err, aerr)
		}
		return n
	}
	if got, want := score(proc), min(score("/proc/self/")+300, 1000); got != want {
		t.Errorf("oom_score_adj %d, want %d", got, want)
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(proc + "fd/" + fd.Name()); to == "/etc/hostname" {
			t.Error("a descriptor that the agent was started with reached the speaker")
		}
	}
	if st, err := os.Stat(filepath.Join(r.run, "gobgp.sock")); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(r.run, "speaker")); err != nil || st.Mode() != os.ModeDir|0o700 {
		t.Errorf("folder: %v %v", st.Mode(), err)
	}
	// It listens on nothing but its socket before the agent says so, and then on port 179.
	if got := listeners(t); len(got) != 0 {
		t.Errorf("listens on %v", got)
	}
	r.startBGP(t, func(*api.Peer) {}, subnet(t, 1)...)
	if got := listeners(t); len(got) != 1 || got[0] != ourIP+":179" {
		t.Errorf("listens on %v, want %s:179 alone", got, ourIP)
	}
}

// listeners lists the listening TCP sockets of this namespace.
func listeners(t *testing.T) []string {
	t.Helper()
	raw, err := exec.Command("ss", "-Hltn").Output()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		out = append(out, strings.Fields(line)[3])
	}
	return out
}

// TestNoFileSystem has the speaker try to write a file: as the agent, which may ask for it. The
// folders are open to everyone, so only Landlock and the limits can refuse.
func TestNoFileSystem(t *testing.T) {
	open := t.TempDir()
	for d := open; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	subnet(t, 0)
	r := startSpeaker(t, nil)
	r.startBGP(t, nil)
	for _, dir := range []string{open, "."} {
		_, _ = r.api.EnableMrt(t.Context(), &api.EnableMrtRequest{Type: api.EnableMrtRequest_UPDATES, Filename: filepath.Join(dir, "dump")})
	}
	await(t, "the speaker's word on why it cannot write", func() bool {
		return strings.Count(r.log.String(), "permission denied") >= 2
	})
	for _, dir := range []string{open, filepath.Join(r.run, "speaker")} {
		if _, err := os.Lstat(filepath.Join(dir, "dump")); err == nil {
			t.Errorf("%s: the speaker created a file", dir)
		}
	}
}

// TestStart: a socket and a wrong link that an earlier life left, or a folder in the socket's
// place, are no obstacle, and the start takes less than 150 ms.
func TestStart(t *testing.T) {
	run := filepath.Join(t.TempDir(), strings.Repeat("a-folder-whose-name-is-long/", 5))
	dir := filepath.Join(run, "speaker")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: child.SocketName})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := os.Chdir("/"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(run, child.SocketName)); err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 3 {
		start := time.Now()
		r := startSpeaker(t, func(cfg *child.Config) { cfg.RunDir = run })
		best = min(best, time.Since(start))
		if to, err := os.Readlink(filepath.Join(run, child.SocketName)); err != nil || to != "speaker/gobgp.sock" {
			t.Errorf("link: %q %v", to, err)
		}
		if err := r.Stop(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		sock := filepath.Join(dir, child.SocketName)
		if err := errors.Join(os.Remove(sock), os.MkdirAll(filepath.Join(sock, "deep"), 0o700), os.Symlink("/etc/hostname", filepath.Join(sock, "link"))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat("/etc/hostname"); err != nil {
		t.Error(err)
	}
	t.Logf("from start to the first answer: %v", best)
	if best > 150*time.Millisecond {
		t.Errorf("the start took %v", best)
	}
}

// TestStartFails says what is wrong and leaves no process.
func TestStartFails(t *testing.T) {
	occupied, err := net.Listen("tcp", "127.0.0.1:50077")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	for name, c := range map[string]struct {
		change func(*child.Config)
		want   string
	}{
		"relative Exe":  {func(c *child.Config) { c.Exe = "causeway" }, "Exe"},
		"no such Exe":   {func(c *child.Config) { c.Exe = "/nonexistent" }, "/nonexistent"},
		"not a speaker": {func(c *child.Config) { c.Exe, c.Args = "/bin/false", nil }, "exit status 1"},
		"open address":  {func(c *child.Config) { c.TCPAddr = "0.0.0.0:50051" }, "no loopback address"},
		"port in use":   {func(c *child.Config) { c.TCPAddr = "127.0.0.1:50077" }, "address already in use"},
		"silent": {func(c *child.Config) {
			c.Exe, c.Args, c.ReadyWithin = "/bin/sleep", []string{"60"}, 50*time.Millisecond
		}, "not ready"},
		"negative uid": {func(c *child.Config) { c.UID = -1 }, "UID"},
		"relative dir": {func(c *child.Config) { c.RunDir = "run" }, "RunDir"},
		"no log":       {func(c *child.Config) { c.Log = nil }, "Log"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := child.Config{Exe: self(t), Args: []string{"speaker"}, RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
			c.change(&cfg)
			inst, err := child.Start(t.Context(), cfg)
			if err == nil {
				_ = inst.Stop(context.Background(), false)
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: lacks %q", err, c.want)
			}
		})
	}
}

// TestImpostor: the agent gives its token to nobody but the process it started.
func TestImpostor(t *testing.T) {
	r := startSpeaker(t, nil)
	sock := filepath.Join(r.run, "speaker", child.SocketName)
	if err := os.Remove(sock); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := c.Read(make([]byte, 1))
		got <- n
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := r.Dial(ctx); err == nil {
		conn.Close()
		t.Error("the agent talks to an impostor")
	}
	if n := <-got; n != 0 {
		t.Error("the impostor heard something")
	}
}
