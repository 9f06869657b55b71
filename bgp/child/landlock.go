package child

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errNoLandlock says that the kernel has no Landlock (before Linux 5.13, or switched off).
var errNoLandlock = errors.New("this kernel has no Landlock")

const (
	accessRun = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	// accessAll is every right of the first version of Landlock.
	accessAll = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
)

// loaderPaths is what a dynamically linked program needs before its first instruction. A
// released causeway is linked statically and gets none of it.
var loaderPaths = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"}

// landlock takes the file system away from the calling thread and from every process it
// starts: exe can be read and executed, a socket can be created in dir, and that is all.
// Sockets in the abstract namespace (containerd's shims have some) cannot be connected to
// where the kernel can refuse it (Linux 6.12). no_new_privs must be set.
func landlock(exe, dir *os.File) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errNoLandlock
	}
	attr := unix.LandlockRulesetAttr{Access_fs: accessAll}
	if abi >= 2 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		attr.Access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	allow := func(f *os.File, access uint64) error {
		rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(f.Fd())}
		_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH,
			uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
		runtime.KeepAlive(f)
		if errno != 0 {
			return fmt.Errorf("landlock_add_rule %s: %w", f.Name(), errno)
		}
		return nil
	}
	if err := errors.Join(allow(exe, accessRun), allow(dir, unix.LANDLOCK_ACCESS_FS_MAKE_SOCK)); err != nil {
		return err
	}
	if dynamic(exe) {
		for _, p := range loaderPaths {
			f, err := os.OpenFile(p, unix.O_PATH, 0)
			if err != nil {
				continue
			}
			access := uint64(accessRun)
			if st, err := f.Stat(); err == nil && st.IsDir() {
				access |= unix.LANDLOCK_ACCESS_FS_READ_DIR
			}
			err = allow(f, access)
			f.Close()
			if err != nil {
				return err
			}
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", errno)
	}
	return nil
}

// dynamic says whether the program names an interpreter (ld.so).
func dynamic(exe *os.File) bool {
	f, err := elf.NewFile(exe)
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}
