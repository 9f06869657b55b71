package child

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestCgroupLimit(t *testing.T) {
	const none = "9223372036854771712"
	for _, c := range []struct {
		name, self string
		files      map[string]string
		want       int64
	}{
		{"a container's own namespace", "0::/\n", map[string]string{"memory.max": "1073741824\n"}, 1 << 30},
		{"no limit", "0::/\n", map[string]string{"memory.max": "max\n"}, 0},
		{"a parent's is tighter", "0::/a.slice/b.service\n", map[string]string{"a.slice/memory.max": "100\n", "a.slice/b.service/memory.max": "200\n"}, 100},
		{"the folder is not there", "0::/../x\n", map[string]string{"memory.max": "7\n"}, 7},
		{"version 1", "5:cpu,memory:/docker/x\n0::/\n", map[string]string{"memory/memory.limit_in_bytes": none, "memory/docker/x/memory.limit_in_bytes": "300\n"}, 300},
		{"version 1 without", "4:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": none}, 0},
		{"nonsense", "x\n0:\n", nil, 0},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		self := filepath.Join(t.TempDir(), "self")
		if err := os.WriteFile(self, []byte(c.self), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := cgroupLimit(dir, self); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := cgroupLimit("/nowhere", "/nowhere/either"); got != 0 {
		t.Errorf("without cgroups: %d", got)
	}
}

func TestMemoryFor(t *testing.T) {
	const mb = 1 << 20
	for limit, want := range map[int64]Memory{
		0:             {Soft: 512 * mb},
		math.MaxInt64: {Soft: 512 * mb},
		200 * mb:      {Soft: 100 * mb, Ceiling: 200 * mb},
		512 * mb:      {Soft: 320 * mb, Ceiling: 512 * mb},
		8192 * mb:     {Soft: 512 * mb, Ceiling: 8192 * mb},
	} {
		if got := memoryFor(limit); got != want {
			t.Errorf("limit %d: %+v, want %+v", limit, got, want)
		}
	}
}
