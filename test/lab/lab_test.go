package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Reexec()
	if os.Args[0] == crashName {
		crashMain()
	}
	os.Exit(m.Run())
}

// crashName makes the test binary bring a lab up and kill itself at a step.
const crashName = "causeway-lab-test-crash"

// crashMain runs `crash <topology> <state root> <ephemeral> <step number>`.
func crashMain() {
	var left int64 // steps; 0: all
	fmt.Sscan(os.Args[4], &left)
	n := atomic.Int64{}
	_, err := Up(context.Background(), must(Load(os.Args[1])), Options{StateRoot: os.Args[2], Ephemeral: os.Args[3] == "true", NoAgents: true,
		onStep: func(step string) {
			if n.Add(1) == left {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n.Load())
	unix.Kill(os.Getpid(), unix.SIGKILL)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const small = `
name: NAME
topology:
  nodes:
    a:
      kind: linux
      image: alpine:3
      cmd: sleep infinity
      exec:
        - ip addr add 10.9.0.1/24 dev eth1
        - ip addr add fd09::1/64 dev eth1
    b:
      kind: linux
      image: alpine:3
      exec: ["ip addr add 10.9.0.2/24 dev eth1", "ip addr add fd09::2/64 dev eth1"]
      binds: ["shared:/etc/causeway/manifests", "hello:/opt/some/new/place/hello:ro"]
      env: {GREETING: hello}
    sw:
      kind: bridge
  links:
    - endpoints: ["a:eth1", "sw:p1"]
    - endpoints: ["b:eth1", "sw:p2"]
      mtu: 1400
`

// uniqueName keeps labs of parallel test runs apart.
func uniqueName(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("t%d-%d", os.Getpid(), nameCounter.Add(1))
}

var nameCounter atomic.Int64

func writeTopology(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range map[string]string{"t.clab.yml": text, "hello": "hello\n", "shared/a.yaml": "kind: Node\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "t.clab.yml")
}

func up(t *testing.T, text string, o Options) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test builds network namespaces: run it as root")
	}
	topo, err := Load(writeTopology(t, strings.ReplaceAll(text, "NAME", uniqueName(t))))
	if err != nil {
		t.Fatal(err)
	}
	o.Ephemeral = true
	if o.StateRoot == "" {
		o.StateRoot = stateRoot(t)
	}
	l, err := Up(t.Context(), topo, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func stateRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "cwlab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestUpExecDown(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	ctx := t.Context()
	a, b := l.Node("a"), l.Node("b")
	for _, to := range []string{"10.9.0.2", "fd09::2"} {
		if _, err := a.Exec(ctx, "ping", "-c1", "-W2", to); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct{ cmd, want string }{
		{"hostname", "b"},
		{"cat /opt/some/new/place/hello", "hello"},
		{"cat /etc/causeway/manifests/a.yaml", "kind: Node"},
		{"printenv GREETING", "hello"},
		{"cat /sys/class/net/eth1/mtu", "1400"},
		{"readlink /proc/1/exe", must(os.Executable())},
		{"ls /run/netns", ""},
	} {
		out, err := b.Exec(ctx, strings.Fields(c.cmd)...)
		if err != nil || strings.TrimSpace(out) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.cmd, out, err, c.want)
		}
	}
	if _, err := b.Exec(ctx, "sh", "-c", "echo changed > /etc/causeway/manifests/a.yaml; echo x > /etc/frr-of-b"); err != nil {
		t.Error(err)
	}
	if got := string(must(os.ReadFile(filepath.Join(l.Shared("shared"), "a.yaml")))); got != "changed\n" {
		t.Errorf("the lab's copy of the shared folder has %q", got)
	}
	if got := string(must(os.ReadFile(filepath.Join(l.Topology.Dir(), "shared", "a.yaml")))); got != "kind: Node\n" {
		t.Errorf("the topology's own folder was changed: %q", got)
	}
	if _, err := os.Stat("/etc/frr-of-b"); err == nil {
		t.Error("a node wrote to this machine's /etc")
	}
	if _, err := b.Exec(ctx, "sh", "-c", "echo x > /opt/some/new/place/hello"); err == nil {
		t.Error("a read-only bind was written to")
	}
	if _, err := b.Exec(ctx, "sh", "-c", "echo oops >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("a failing command: %v", err)
	}
	if out, err := exec.Command("ip", "netns", "exec", filepath.Base(a.NetNS()), "ip", "-br", "addr", "show", "eth1").Output(); err != nil || !strings.Contains(string(out), "10.9.0.1/24") {
		t.Errorf("ip netns exec: %q %v", out, err)
	}
}

func TestLinkDownAndUp(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	ctx := t.Context()
	if err := l.Node("b").LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Node("a").Exec(ctx, "ping", "-c1", "-W1", "10.9.0.2"); err == nil {
		t.Error("ping passes a link that is down")
	}
	if err := l.Node("b").LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.9.0.2", "fd09::2"} {
		if _, err := l.Node("a").Exec(ctx, "ping", "-c1", "-W5", to); err != nil {
			t.Error(err)
		}
	}
	if err := l.Node("b").LinkDown("eth7"); err == nil || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("a link that is not there: %v", err)
	}
}

func TestDaemonLife(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	ctx := t.Context()
	d := l.Node("a").Daemon("cmd")
	pid, err := d.PID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if b := must(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))); string(b) != "sleep\x00infinity\x00" && !strings.HasSuffix(string(b), "sleep\x00infinity\x00") {
		t.Errorf("process %d is %q", pid, b)
	}
	if err := d.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if st := must(d.Status(ctx)); st.Running || st.Exit != "signal: killed" {
		t.Errorf("after kill: %+v", st)
	}
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(ctx); err == nil {
		t.Error("a daemon that runs was started again")
	}
	if err := l.Node("a").Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if st := must(d.Status(ctx)); !st.Running || st.Starts != 3 || st.PID == pid {
		t.Errorf("after restart: %+v", st)
	}
}

func TestCommandPassesSignalsAndDiesWithItsParent(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	cmd := l.Node("a").Command(t.Context(), "sh", "-c", "trap 'echo got it; exit 7' INT; echo ready; while :; do sleep 0.05; done")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, _ := out.Read(buf)
	if string(buf[:n]) != "ready\n" {
		t.Fatalf("said %q", buf[:n])
	}
	cmd.Process.Signal(syscall.SIGINT)
	n, _ = out.Read(buf)
	cmd.Wait()
	if string(buf[:n]) != "got it\n" || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("after SIGINT: %q, %v", buf[:n], cmd.ProcessState)
	}

	cmd = l.Node("a").Command(t.Context(), "sleep", "4242")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() bool { return exec.Command("pgrep", "-f", "^/usr/bin/sleep 4242").Run() == nil }
	poll(t, "the command runs", running)
	cmd.Process.Kill()
	cmd.Wait()
	poll(t, "the command ended with its parent", func() bool { return !running() })
}

func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestTwoLabsOfOneFile(t *testing.T) {
	t.Parallel()
	text := strings.ReplaceAll(small, "NAME", uniqueName(t))
	topo := must(Load(writeTopology(t, text)))
	root := stateRoot(t)
	var labs []*Lab
	for _, name := range []string{"", uniqueName(t)} {
		l, err := Up(t.Context(), topo, Options{Name: name, Ephemeral: true, StateRoot: root})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Down(context.Background()) })
		labs = append(labs, l)
	}
	if _, err := Up(t.Context(), topo, Options{Ephemeral: true, StateRoot: root}); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("the same name again: %v", err)
	}
	if err := labs[0].Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := labs[1].Node("a").Exec(t.Context(), "ping", "-c1", "-W2", "10.9.0.2"); err != nil {
		t.Errorf("the other lab after one went down: %v", err)
	}
	if got := List(root); len(got) != 1 || got[0] != labs[1].Name {
		t.Errorf("up are %v", got)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	o, err := Open(l.opts.StateRoot, l.Name)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := o.Node("b").Exec(t.Context(), "hostname"); err != nil || out != "b\n" {
		t.Errorf("%q %v", out, err)
	}
	if _, err := Open(l.opts.StateRoot, "nope"); err == nil || !strings.Contains(err.Error(), l.Name) {
		t.Errorf("a lab that is not there: %v", err)
	}
}

func TestFailedExecTakesDown(t *testing.T) {
	t.Parallel()
	name := uniqueName(t)
	root := stateRoot(t)
	topo := must(Load(writeTopology(t, strings.ReplaceAll(strings.ReplaceAll(small, "NAME", name), "dev eth1\"", "dev nosuch\""))))
	_, err := Up(t.Context(), topo, Options{Ephemeral: true, StateRoot: root})
	if err == nil || !strings.Contains(err.Error(), "node b: exec") || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("error: %v", err)
	}
	assertNothingLeft(t, root, name)
}

// assertNothingLeft looks for whatever a lab could leave behind.
func assertNothingLeft(t *testing.T, root, name string) {
	t.Helper()
	for _, e := range must(os.ReadDir(netnsDir)) {
		if strings.HasPrefix(e.Name(), name+"-") {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
	eachProcess(func(pid int) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if args := strings.Split(string(b), "\x00"); len(args) > 1 && strings.HasPrefix(args[0], "causeway-lab-") && slices.Contains(args, name) {
			p, err := procOf(pid)
			if err == nil && p.alive() && args[0] != wardenName {
				t.Errorf("process %d is left: %q", pid, args)
			}
		}
		if m, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)); strings.Contains(string(m), filepath.Join(root, name)+"/") {
			t.Errorf("process %d (%q) still has mounts of the lab", pid, b)
		}
	})
	if _, err := os.Stat(filepath.Join(root, name)); err == nil {
		t.Errorf("folder %s is left", filepath.Join(root, name))
	}
}

// TestCrashOfUp kills Up at every one of its steps in turn, and after the last; `down` (or
// of an ephemeral lab the warden) must then leave nothing.
func TestCrashOfUp(t *testing.T) {
	t.Parallel()
	for _, ephemeral := range []bool{false, true} {
		steps := crashAt(t, ephemeral, 0)
		if steps < 15 {
			t.Fatalf("Up has only %d steps", steps)
		}
		for step := 1; step <= steps; step++ {
			t.Run(fmt.Sprintf("ephemeral=%v/%d", ephemeral, step), func(t *testing.T) {
				t.Parallel()
				crashAt(t, ephemeral, step)
			})
		}
	}
}

// crashAt lets Up die at a step (0: when all is done) and looks at what is left after the
// cleaning up. It returns the number of steps when step is 0.
func crashAt(t *testing.T, ephemeral bool, step int) (steps int) {
	t.Helper()
	name, root := uniqueName(t), stateRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{crashName, writeTopology(t, strings.ReplaceAll(small, "NAME", name)), root, fmt.Sprint(ephemeral), fmt.Sprint(step)}
	out, err := cmd.CombinedOutput()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
		t.Fatalf("step %d: %v: %s", step, err, out)
	}
	fmt.Sscan(string(out), &steps)
	const beforeWarden = 1
	switch {
	case !ephemeral:
		err = Down(t.Context(), root, name)
	case step == beforeWarden:
		err = Reap(t.Context(), root)
	default:
		poll(t, "the warden has taken the lab down", func() bool {
			_, err := os.Stat(filepath.Join(root, name))
			return err != nil
		})
		err = nil
	}
	if err != nil {
		t.Fatalf("step %d: %v", step, err)
	}
	assertNothingLeft(t, root, name)
	return steps
}
