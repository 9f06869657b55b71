package gobgp

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/bgp/speaker"
)

// inside marks the process that runs the tests in network and mount namespaces of its own.
const inside = "CAUSEWAY_TEST_NETNS"

// TestMain makes this binary two programs: the speaker, and the tests, whose network namespace
// is the node. The root namespace is never touched.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "speaker" {
		in, err := child.Inherit()
		if err == nil {
			err = speaker.Run(context.Background(), speaker.Options{Inheritance: in, Stderr: os.Stderr})
		}
		exit(err)
	}
	if os.Getenv(inside) != "" {
		for _, c := range [][]string{
			{"ip", "link", "set", "lo", "up"},
			{"mount", "--make-rprivate", "/"},
			{"mkdir", "-p", "/run/netns"},
			{"mount", "-t", "tmpfs", "tmpfs", "/run/netns"},
		} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				exit(fmt.Errorf("%v: %w: %s (the tests need root, iproute2 and mount)", c, err, out))
			}
		}
		// The tests mostly wait for timers of the routers.
		flag.Parse()
		if err := flag.Set("test.parallel", "8"); err != nil {
			exit(err)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	exit(cmd.Run())
}

func exit(err error) {
	var e *exec.ExitError
	if errors.As(err, &e) {
		os.Exit(e.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
