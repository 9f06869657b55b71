package machine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process identifies a process for good: the kernel reuses ids, but not with the same
// start time (proc(5), /proc/PID/stat field 22, clock ticks since boot).
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// statFields returns the fields of /proc/PID/stat from the third (state) on.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The command name may hold spaces and parentheses; it ends at the last ')'.
	i := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	return fields, nil
}

func processOf(pid int) (process, error) {
	fields, err := statFields(pid)
	if err != nil {
		return process{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return process{PID: pid, Start: start}, err
}

// alive reports whether the process runs; a zombie does not.
func (p process) alive() bool {
	fields, err := statFields(p.PID)
	return err == nil && fields[19] == strconv.FormatUint(p.Start, 10) && fields[0] != "Z" && fields[0] != "X"
}

// open returns a descriptor of the process, or false when it is gone.
func (p process) open() (fd int, ok bool, err error) {
	if !p.alive() {
		return 0, false, nil
	}
	fd, err = unix.PidfdOpen(p.PID, 0)
	if err == unix.ESRCH {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("pidfd of %d: %w", p.PID, err)
	}
	if !p.alive() { // the id may have changed hands before it was opened
		unix.Close(fd)
		return 0, false, nil
	}
	return fd, true, nil
}

// end kills the process and waits until it is gone. The kernel ends a pid namespace's
// other processes before its first one is.
func (p process) end(ctx context.Context) error {
	fd, ok, err := p.open()
	if err != nil || !ok {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill %d: %w", p.PID, err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(30 * time.Second)
	for {
		n, err := unix.Poll(poll, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("waiting for %d: %w", p.PID, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d after SIGKILL: %w", p.PID, ctx.Err())
		case time.Now().After(deadline):
			return fmt.Errorf("process %d does not end after SIGKILL", p.PID)
		}
	}
}
