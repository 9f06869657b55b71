package vm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets this test binary be the machine's first process. It must be static: run the
// tests with CGO_ENABLED=0, as deploy/scripts/test-vm does.
func TestMain(m *testing.M) {
	Reexec()
	os.Exit(m.Run())
}

// inside runs a shell script in a machine.
func inside(t *testing.T, c Config, script string) (code int, stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Args, c.Stdout, c.Stderr, c.CPUs = []string{"sh", "-c", script}, &out, &errs, 1
	code, err = Run(t.Context(), c)
	return code, out.String(), errs.String(), err
}

func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	beside := dir + ".beside"
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte("from outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr, err := inside(t, Config{Dir: dir, Share: []string{dir}, Env: []string{"GREETING=good day"}, Memory: 1024}, `
set -e
pwd; cat given; echo "$GREETING"; echo "vm $CAUSEWAY_TEST_VM"; id -u
echo complaint >&2
echo from inside >taken
echo forgotten >`+beside+`
for m in ipip vxlan dummy vrf; do modprobe $m; done
for k in "dummy" "vrf table 7" "vxlan id 1 dstport 4789" "ipip remote 192.0.2.1"; do
  ip netns add one; ip -n one link add x type $k; ip -n one -br link show x | cut -c1; ip netns del one
done
ping -qc1 127.0.0.1 >/dev/null
(sleep 0.1 & echo $! >/run/orphan)  # loses its parent: nobody but the first process can reap it
tries=0
while [ -e /proc/$(cat /run/orphan) ]; do
  tries=$((tries+1)); [ $tries -lt 200 ] || { echo a dead process is left; break; }
  sleep 0.05
done
sleep 1000 &                        # and this one must not keep the machine
echo to the open file >/dev/stdout
exit 7`)
	if err != nil || code != 7 {
		t.Fatalf("exit code %d, want 7: %v\n%s\n%s", code, err, stdout, stderr)
	}
	want := strings.Join([]string{dir, "from outside", "good day", "vm 1", "0", "x", "x", "x", "x", "to the open file", ""}, "\n")
	if stdout != want {
		t.Errorf("standard output:\n%s\nwant:\n%s", stdout, want)
	}
	if stderr != "complaint\n" {
		t.Errorf("standard error: %q", stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "taken")); err != nil || string(b) != "from inside\n" {
		t.Errorf("what was written to the shared folder: %q %v", b, err)
	}
	if _, err := os.Stat(beside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was written beside the shared folder is there: %v", err)
	}
}

func TestOutputIsWhole(t *testing.T) {
	t.Parallel()
	_, stdout, _, err := inside(t, Config{}, "seq 1 300000")
	lines := strings.Count(stdout, "\n")
	if err != nil || lines != 300000 || !strings.HasSuffix(stdout, "\n300000\n") {
		t.Errorf("%d lines: %v", lines, err)
	}
}

func TestSignal(t *testing.T) {
	t.Parallel()
	if code, _, _, err := inside(t, Config{}, "kill -9 $$"); code != 137 || err != nil {
		t.Errorf("exit code %d, want 137: %v", code, err)
	}
}

func TestCommandUnknown(t *testing.T) {
	t.Parallel()
	code, err := Run(t.Context(), Config{Args: []string{"nonesuch"}, CPUs: 1})
	if code != 127 || err == nil || !strings.Contains(err.Error(), `"nonesuch"`) {
		t.Errorf("exit code %d, want 127: %v", code, err)
	}
}

// TestTimeout and the others that end a machine early see that its QEMU is gone, since
// Run waits for it.
func TestTimeout(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	if _, _, _, err := inside(t, Config{Timeout: 10 * time.Second}, "sleep 1000"); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v, want ErrTimeout", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := Config{Args: []string{"sh", "-c", "echo begun; sleep 1000"}, CPUs: 1, Stdout: writer(func([]byte) { cancel() })}
	if _, err := Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestPanic(t *testing.T) {
	t.Parallel()
	_, _, _, err := inside(t, Config{}, "echo c >/proc/sysrq-trigger; sleep 1000")
	var mute *neverStarted
	if err == nil || errors.As(err, &mute) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("the error does not show the kernel's last words, or says that the command never began: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for want, c := range map[string]Config{
		"no command":          {},
		"memory 100 MiB":      {Args: []string{"true"}, Memory: 100},
		"-1 CPUs":             {Args: []string{"true"}, CPUs: -1},
		"timeout -1s":         {Args: []string{"true"}, Timeout: -time.Second},
		"share /dev/null":     {Args: []string{"true"}, Share: []string{"/dev/null"}},
		"share /nonesuch/dir": {Args: []string{"true"}, Share: []string{"/nonesuch/dir"}},
	} {
		if _, err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// TestAcceleration holds that KVM is tried once for each kernel and each start of the
// computer, and never relied on.
func TestAcceleration(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		if got := (acceleration{t.TempDir(), "1"}).worthTrying(); len(got) != 1 || got[0] != tcg {
			t.Errorf("without /dev/kvm: %v", got)
		}
		return
	}
	a := acceleration{cache: t.TempDir(), kernel: "6.1"}
	if got := a.worthTrying(); len(got) != 2 || got[0] != kvm || got[1] != tcg {
		t.Errorf("at first: %v", got)
	}
	a.failed()
	if got := a.worthTrying(); len(got) != 1 || got[0] != tcg {
		t.Errorf("after it failed: %v", got)
	}
	if err := os.WriteFile(a.path(), []byte("another start"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := a.worthTrying(); got[0] != kvm {
		t.Errorf("after a new start: %v", got)
	}
}
