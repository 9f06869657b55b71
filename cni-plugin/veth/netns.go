package veth

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// ErrNetNS is wrapped by the errors that say that a descriptor is not the network namespace
// of a pod.
var ErrNetNS = errors.New("not a pod's network namespace")

// CheckNetNS returns an error that wraps ErrNetNS unless f is an open network namespace
// other than the host's.
func (w *Wirer) CheckNetNS(f *os.File) error {
	if f == nil {
		return fmt.Errorf("%w: no descriptor given", ErrNetNS)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE) // ioctl_ns(2)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%w: %s is something else", ErrNetNS, f.Name())
	}
	pod, err := f.Stat()
	if err != nil {
		return err
	}
	host, err := w.host.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(pod, host) {
		return fmt.Errorf("%w: %s is the host's", ErrNetNS, f.Name())
	}
	return nil
}

// inside runs f on a thread that is in the namespace ns. A thread that could not be brought
// back ends with its goroutine, so no other goroutine ever runs in a pod's namespace.
func (w *Wirer) inside(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		var err error
		runtime.LockOSThread()
		home := true
		defer func() {
			if p := recover(); p != nil {
				err = errors.Join(err, fmt.Errorf("panic in the pod's network namespace: %v\n%s", p, debug.Stack()))
			}
			if !home {
				if serr := unix.Setns(int(w.host.Fd()), unix.CLONE_NEWNET); serr != nil {
					done <- errors.Join(err, fmt.Errorf("leaving the pod's network namespace: %w", serr))
					return // locked: the runtime ends the thread
				}
			}
			runtime.UnlockOSThread()
			done <- err
		}()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("entering the pod's network namespace: %w", err)
			return
		}
		home = false
		err = f()
	}()
	return <-done
}

// podSocket opens a netlink socket in the namespace.
func (w *Wirer) podSocket(ns *os.File) (s *socket, err error) {
	err = w.inside(ns, func() error {
		s, err = openSocket()
		return err
	})
	return s, err
}
