package lab

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names under which this program starts itself.
const (
	initName   = "causeway-lab-init"   // <lab> <node> <state folder>: pid 1 of a node
	wardenName = "causeway-lab-warden" // <lab> <state root>: takes an ephemeral lab down when its owner is gone
	enterName  = "causeway-lab-enter"  // <pid> <start> <netns> <command...>: runs a command in a node
)

// setpriv is util-linux's, which every Debian has.
const setpriv = "/usr/bin/setpriv"

var reexecReady bool

// Reexec must be the first call of main or TestMain of every program that uses this
// package: the program starts itself again for the init process of nodes and the like,
// and in such a process Reexec does that work and does not return.
func Reexec() {
	reexecReady = true
	var err error
	switch os.Args[0] {
	case initName:
		err = runInit(os.Args[1:])
	case wardenName:
		err = runWarden(os.Args[1:])
	case enterName:
		var code int
		code, err = runEnter(os.Args[1:])
		if err == nil {
			os.Exit(code)
		}
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(125)
	}
	os.Exit(0)
}

// enterArgs is the command line that runs args in the node whose init is target.
func enterArgs(target proc, netns string, args []string) []string {
	return append([]string{enterName, strconv.Itoa(target.PID), strconv.FormatUint(target.Start, 10), netns}, args...)
}

// runEnter runs a command in a node and stands in for it: it passes signals on, ends as
// it ends, and the command does not outlive it.
func runEnter(args []string) (int, error) {
	if len(args) < 4 {
		return 0, fmt.Errorf("too few arguments")
	}
	pid, err1 := strconv.Atoi(args[0])
	start, err2 := strconv.ParseUint(args[1], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("bad process %q %q", args[0], args[1])
	}
	// PDEATHSIG follows the thread that forks: it must live as long as the process.
	runtime.LockOSThread()
	if err := enter(proc{pid, start}, args[2], allKinds...); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	// After enter, so that the name is looked up in the node's file system.
	path, err := exec.LookPath(args[3])
	if err != nil {
		return 127, err
	}
	// Not SysProcAttr.Pdeathsig: that compares the parent's id, which is 0 across pid
	// namespaces, and takes the parent for dead.
	cmd := &exec.Cmd{Path: setpriv, Args: append([]string{setpriv, "--pdeathsig", "KILL", "--", path}, args[4:]...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		return 126, err
	}
	go func() {
		for s := range signals {
			// SIGURG is how the Go runtime preempts its own threads.
			if s != unix.SIGCHLD && s != unix.SIGURG {
				cmd.Process.Signal(s)
			}
		}
	}()
	cmd.Wait()
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		signal.Reset(ws.Signal())
		unix.Kill(os.Getpid(), ws.Signal())
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// reexecCommand prepares this program's own start under name.
func reexecCommand(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{name}, args...), Dir: "/", Env: cleanEnv()}
}

// cleanEnv is the environment of helper processes: nothing of the caller's but what
// steers the Go runtime's diagnostics.
func cleanEnv() []string {
	env := []string{"PATH=" + basePath}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "GORACE=") || strings.HasPrefix(kv, "GOTRACEBACK=") || strings.HasPrefix(kv, "GOCOVERDIR=") {
			env = append(env, kv)
		}
	}
	return env
}

const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/frr"
