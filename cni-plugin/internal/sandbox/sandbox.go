// Package sandbox runs the tests of a package in network and mount namespaces of their own,
// where they may do to links, routes and /run what they like, and makes pods' namespaces
// there. Tests need root.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	inside   = "CAUSEWAY_TEST_SANDBOX"
	binaries = "CAUSEWAY_TEST_BINARIES"
)

// HostIPv4 and HostIPv6 are the addresses of the host that the sandbox is, on lo.
const (
	HostIPv4 = "192.0.2.1"
	HostIPv6 = "2001:db8::1"
)

// Main is for TestMain: it runs the test binary again inside, and ends the process. The
// named packages are built before, since there may be modules to fetch; Bin finds them.
func Main(m *testing.M, packages ...string) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	os.Exit(enter(packages))
}

// Bin is the folder of the programs that Main built.
func Bin() string { return os.Getenv(binaries) }

// enter returns the exit code of the tests.
func enter(packages []string) int {
	if len(packages) > 0 {
		dir, err := os.MkdirTemp("", "causeway-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "sandbox:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // for tests that run a program as another user
			fmt.Fprintln(os.Stderr, "sandbox:", err)
			return 1
		}
		os.Setenv(binaries, dir)
		build := exec.Command("go", append([]string{"build", "-o", dir + "/"}, packages...)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "sandbox: go build %s: %v\n%s", strings.Join(packages, " "), err, out)
			return 1
		}
	}
	// The shell prepares the namespaces before any Go runtime runs in them.
	cmd := exec.Command("/bin/sh", append([]string{"-ec", prepare, "sh", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "sandbox: these tests need root and namespaces:", err)
		return 1
	}
	return 0
}

const prepare = `
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/netns
mount -t tmpfs tmpfs /var/lib
ip link set lo up
ip addr add ` + HostIPv4 + `/32 dev lo
ip addr add ` + HostIPv6 + `/128 dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
exec "$@"`

var pods atomic.Int64

// Pod makes a network namespace, returns its path and removes it when the test ends.
func Pod(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("pod%d", pods.Add(1))
	Run(t, "ip", "netns", "add", name)
	path := filepath.Join("/run/netns", name)
	t.Cleanup(func() {
		if _, err := os.Stat(path); err == nil {
			Run(t, "ip", "netns", "del", name)
		}
	})
	return path
}

// In runs a command inside the namespace at path and returns its output.
func In(t testing.TB, path string, command ...string) string {
	t.Helper()
	return Run(t, append([]string{"ip", "netns", "exec", filepath.Base(path)}, command...)...)
}

// Run runs a command, which must succeed, and returns its output.
func Run(t testing.TB, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// Open opens a namespace for the length of the test.
func Open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
