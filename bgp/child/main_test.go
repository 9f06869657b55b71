package child_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/bgp/speaker"
)

// inside marks the process that runs the tests in a network namespace of its own.
const inside = "CAUSEWAY_TEST_NETNS"

// TestMain makes this binary three programs: the speaker, an agent to be killed, and the tests,
// which run in a network namespace of their own so that the root namespace is never touched.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "speaker":
			in, err := child.Inherit()
			if err == nil {
				err = speaker.Run(context.Background(), speaker.Options{Inheritance: in, Stderr: os.Stderr})
			}
			exit(err)
		case "agent":
			exit(agent(os.Args[2]))
		}
	}
	if os.Getenv(inside) != "" {
		exitOn(exec.Command("ip", "link", "set", "lo", "up").Run())
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	exit(cmd.Run())
}

// agent starts a speaker, says where it is and waits to be killed.
func agent(runDir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	inst, err := child.Start(context.Background(), child.Config{
		Exe: exe, Args: []string{"speaker"}, RunDir: runDir, AllowWrites: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println(inst.PID())
	<-inst.Died()
	return inst.Death().Err
}

func exitOn(err error) {
	if err != nil {
		exit(err)
	}
}

func exit(err error) {
	if e, ok := err.(*exec.ExitError); ok {
		os.Exit(e.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
