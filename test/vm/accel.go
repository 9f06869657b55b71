package vm

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// accel is how QEMU runs the machine's code.
type accel string

const (
	kvm accel = "kvm"
	tcg accel = "tcg" // in software, 5 to 20 times slower
)

// patience is how long a machine may take until its first process says hello.
func (a accel) patience() time.Duration {
	if a == kvm {
		return 20 * time.Second
	}
	return 2 * time.Minute
}

func (a accel) args() []string {
	if a == kvm {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// acceleration remembers that KVM does not work although its device is there (on a
// virtual computer with nested virtualization that is half there). It is tried again when
// the computer was started anew, or with another kernel.
type acceleration struct{ cache, kernel string }

func (r acceleration) path() string { return filepath.Join(r.cache, r.kernel+".kvm-fails") }

// worthTrying is what to start a machine with, best first, emulation last.
func (r acceleration) worthTrying() []accel {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return []accel{tcg}
	}
	unix.Close(fd)
	if b, err := os.ReadFile(r.path()); err == nil && string(b) == boot() {
		return []accel{tcg}
	}
	return []accel{kvm, tcg}
}

// failed notes that KVM did not work. Where the note cannot be written, KVM is tried again.
func (r acceleration) failed() { os.WriteFile(r.path(), []byte(boot()), 0o644) }

// boot names this run of the computer's kernel.
func boot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
