package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the figures come from.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// Disk is the file system that holds journals and host-local's records.
	Disk string `json:"disk"`
	// Load is the load average over a minute before and after the run: of a machine that
	// does something else too, ratios are worth more than times.
	LoadBefore string `json:"loadBefore"`
	LoadAfter  string `json:"loadAfter,omitempty"`
}

func machine(stateRoot string) (Machine, error) {
	m := Machine{CPU: procField("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Go: runtime.Version(), LoadBefore: load()}
	if m.CPU == "" {
		m.CPU = runtime.GOARCH
	}
	var kib float64
	if _, err := fmt.Sscan(procField("/proc/meminfo", "MemTotal"), &kib); err != nil {
		return m, fmt.Errorf("/proc/meminfo: MemTotal: %w", err)
	}
	m.Memory = fmt.Sprintf("%.0f GiB", kib/(1<<20))
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	var fs unix.Statfs_t
	if err := unix.Statfs(stateRoot, &fs); err != nil {
		return m, fmt.Errorf("%s: %w", stateRoot, err)
	}
	names := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay"}
	if fs.Type == unix.TMPFS_MAGIC {
		return m, fmt.Errorf("%s is on tmpfs, where fsync costs nothing; name a folder on a disk (--state)", stateRoot)
	}
	if m.Disk = names[fs.Type]; m.Disk == "" {
		m.Disk = fmt.Sprintf("file system %#x", fs.Type)
	}
	return m, nil
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// procField returns the value of the first line "name : value" of a file of /proc.
func procField(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
