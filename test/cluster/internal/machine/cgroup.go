package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchy is one cgroup v1 hierarchy that this process stands in.
type hierarchy struct {
	controllers string // "cpu,cpuacct", "name=systemd"
	group       string // this process's, below the mount
}

// folder is the hierarchy's mount point below /sys/fs/cgroup.
func (h hierarchy) folder() string { return strings.TrimPrefix(h.controllers, "name=") }

// hierarchies reads /proc/self/cgroup (cgroups(7)).
func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var out []hierarchy
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		if f[1] != "" { // that is cgroup v2's line
			out = append(out, hierarchy{controllers: f[1], group: f[2]})
		}
	}
	if !slices.ContainsFunc(out, func(h hierarchy) bool { return strings.Contains(h.controllers, "memory") }) {
		return nil, errors.New("/proc/self/cgroup: no v1 memory hierarchy: the test cluster needs a computer with cgroup v1 or hybrid (kernel command line systemd.unified_cgroup_hierarchy=0)")
	}
	return out, nil
}

// cgroupDirs are the folders of a machine's groups, one in each hierarchy, below this
// process's own group: what limits the caller limits the machine.
func cgroupDirs(name string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range hs {
		out = append(out, filepath.Join(cgroupRoot, h.folder(), h.group, name))
	}
	return out, nil
}

// makeCgroups makes the folders. A cpuset group takes no process until it has processors
// and memory nodes.
func makeCgroups(dirs []string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			v, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), v, 0)
			}
			if err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

// joinCgroups moves the calling process.
func joinCgroups(dirs []string) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroup removes a group and those below it, deepest first. A group stays busy for
// a moment after its last process has ended.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var found []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			if errors.Is(err, os.ErrNotExist) {
				return nil // went while we looked
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		var last error
		for _, path := range slices.Backward(found) {
			if err := unix.Rmdir(path); err != nil && err != unix.ENOENT {
				last = fmt.Errorf("remove cgroup %s: %w", path, err)
			}
		}
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mountCgroups mounts every v1 hierarchy below a fresh /sys/fs/cgroup, each showing the
// machine's own group as its root. What runs containers reads /proc/self/mountinfo and
// must find no other.
func mountCgroups() error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	for _, h := range hs {
		dir := filepath.Join(cgroupRoot, h.folder())
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		data := h.controllers
		if strings.HasPrefix(data, "name=") {
			data = "none," + data
		}
		if err := unix.Mount("cgroup", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		// "cpu,cpuacct" is found as cpu and as cpuacct, too.
		if parts := strings.Split(h.controllers, ","); len(parts) > 1 {
			for _, p := range parts {
				if err := os.Symlink(h.folder(), filepath.Join(cgroupRoot, p)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
