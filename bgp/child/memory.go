package child

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Memory is what the child is told to do with.
type Memory struct {
	// Soft, in bytes, is where garbage collection becomes eager (runtime/debug.SetMemoryLimit).
	// What is in use may go beyond: a large table is no garbage.
	Soft int64
	// Ceiling, in bytes, is the memory that the agent and the child have together; 0: none is
	// known.
	Ceiling int64
}

const (
	// defaultSoft lets 200,000 routes come and go at the full pace of heap.PercentOfMuch.
	defaultSoft = 512 << 20
	// agentShare is left to the agent where both share a limit.
	agentShare = 192 << 20
)

// memoryFor is the child's memory where the agent may use limit bytes; 0: no limit.
func memoryFor(limit int64) Memory {
	if limit <= 0 || limit == math.MaxInt64 {
		return Memory{Soft: defaultSoft}
	}
	return Memory{Soft: min(defaultSoft, max(limit-agentShare, limit/2)), Ceiling: limit}
}

// cgroupLimit is the tightest memory limit of the cgroups that this process is in, in bytes; 0
// when there is none, or none can be read. fs is where cgroups are mounted, as /sys/fs/cgroup;
// self is the file that names them, as /proc/self/cgroup (cgroups(7)).
func cgroupLimit(fs, self string) int64 {
	b, err := os.ReadFile(self)
	if err != nil {
		return 0
	}
	var least int64
	look := func(root, path, file string) {
		for p := filepath.Join("/", path); ; p = filepath.Dir(p) {
			text, err := os.ReadFile(filepath.Join(root, p, file))
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && perr == nil && n > 0 && n < noLimit && (least == 0 || n < least) {
				least = n
			}
			if p == "/" {
				return
			}
		}
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[0] == "0" && f[1] == "":
			look(fs, f[2], "memory.max")
		case slices.Contains(strings.Split(f[1], ","), "memory"):
			look(filepath.Join(fs, "memory"), f[2], "memory.limit_in_bytes")
		}
	}
	return least
}

// noLimit: cgroups of version 1 show the highest multiple of a page for none.
const noLimit = 1 << 62
