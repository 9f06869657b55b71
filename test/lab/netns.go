package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

func netnsName(lab, node string) string { return lab + "-" + node }
func netnsPath(name string) string      { return filepath.Join(netnsDir, name) }

// prepareNetnsDir makes /run/netns what `ip netns add` makes of it: a mount of its own
// with shared propagation, so that unmounting a namespace reaches all mount namespaces.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == unix.EINVAL { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s on itself: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// bindNetNS gives a network namespace a name as ip-netns(8) does.
func bindNetNS(source, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(source, path, "none", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("bind %s on %s: %w", source, path, err)
	}
	return nil
}

func unbindNetNS(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// isMounted reports whether a network namespace is mounted on path.
func isMounted(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, err
	}
	return fs.Type == unix.NSFS_MAGIC, nil
}

// inThread runs f on a thread of its own, which ends with f: f may change the thread's
// namespaces. Processes that f starts and sockets that it opens live in those namespaces;
// goroutines that it starts do not.
func inThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the runtime ends the thread
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and its namespaces are what /proc/PID
			// shows of the whole process: keep it out, use another.
			errc <- inThread(f)
			runtime.UnlockOSThread()
			return
		}
		errc <- f()
	}()
	return <-errc
}

// enter moves the calling thread into namespaces of the process target ("mnt", "net", ...)
// and then, when netns is not empty, into the network namespace mounted there as seen by
// the target. A pid namespace holds for processes started afterwards.
func enter(target proc, netns string, kinds ...string) error {
	if !target.alive() {
		return fmt.Errorf("process %d of the node is gone", target.PID)
	}
	types := map[string]int{"mnt": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "pid": unix.CLONE_NEWPID,
		"uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	// One pidfd stands for the process, whatever becomes of its id meanwhile.
	fd, err := unix.PidfdOpen(target.PID, 0)
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", target.PID, err)
	}
	defer unix.Close(fd)
	if !target.alive() {
		return fmt.Errorf("process %d of the node is gone", target.PID)
	}
	flags := 0
	for _, k := range kinds {
		flags |= types[k]
	}
	if err := unix.Setns(fd, flags); err != nil {
		return fmt.Errorf("setns %s of %d: %w", strings.Join(kinds, ","), target.PID, err)
	}
	if netns == "" {
		return nil
	}
	ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", netns, err)
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns %s: %w", netns, err)
	}
	return nil
}

// allKinds are the namespaces a node has of its own.
var allKinds = []string{"mnt", "net", "pid", "uts", "ipc"}

// startIn starts cmd inside a node (and the pod's network namespace netns, if any). The
// process is a child of this one, and its id here is cmd.Process.Pid.
func startIn(target proc, netns string, cmd *exec.Cmd) error {
	return inThread(func() error {
		if err := enter(target, netns, allKinds...); err != nil {
			return err
		}
		return cmd.Start()
	})
}
