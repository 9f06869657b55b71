package file

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// running is a Source under test and what it published.
type running struct {
	t   *testing.T
	dir string

	mu    sync.Mutex
	last  *model.Snapshot
	count int
	log   bytes.Buffer
	wake  chan struct{}
}

func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func start(t *testing.T, dir string) *running {
	t.Helper()
	r := &running{t: t, dir: dir, wake: make(chan struct{}, 1)}
	s, err := New(Config{
		Dir: dir, Node: "n1", Log: slog.New(slog.NewTextHandler(r, nil)),
		Publish: func(s *model.Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.last != nil && s.Revision != r.last.Revision+1 {
				t.Errorf("revision %d follows %d", s.Revision, r.last.Revision)
			}
			r.last = s
			r.count++
			select {
			case r.wake <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func (r *running) snapshot() *model.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// await waits for a snapshot that satisfies ok and returns how long it took.
func (r *running) await(what string, ok func(*model.Snapshot) bool) time.Duration {
	r.t.Helper()
	begin := time.Now()
	deadline := time.After(10 * time.Second)
	for {
		if s := r.snapshot(); s != nil && ok(s) {
			return time.Since(begin)
		}
		select {
		case <-r.wake:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("no snapshot with %s; the last is %+v\n%s", what, r.last, r.log.String())
		}
	}
}

// holds checks that every snapshot published within d satisfies ok.
func (r *running) holds(what string, d time.Duration, ok func(*model.Snapshot) bool) {
	r.t.Helper()
	end := time.After(d)
	for {
		if s := r.snapshot(); !ok(s) {
			r.t.Fatalf("a snapshot without %s: %+v", what, s)
		}
		select {
		case <-r.wake:
		case <-end:
			return
		}
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, dir, name, content string) {
	t.Helper()
	tmp := filepath.Join(dir, filepath.Dir(name), ".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func poolManifest(name, cidr string) string {
	return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: " + name + "\nspec:\n  cidr: " + cidr + "\n"
}

func blockManifest(i int, node string) (name, content string) {
	name = fmt.Sprintf("10-1-%d-0-30", i)
	return "ipam/blocks/" + name + ".yaml", fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: IPAMBlock
metadata:
  name: %s
spec:
  cidr: 10.1.%d.0/30
  affinity: host:%s
  allocations: [null, null, null, null]
  unallocated: [0, 1, 2, 3]
  attributes: []
  strictAffinity: false
`, name, i, node)
}

func hasPools(names ...string) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool {
		var got []string
		for _, p := range s.Pools {
			got = append(got, p.Name)
		}
		return strings.Join(got, " ") == strings.Join(names, " ")
	}
}

func poolCIDR(cidr string) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].CIDR.String() == cidr }
}

func TestEditLatency(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", poolManifest("a", "10.0.0.0/16"))
	r := start(t, dir)
	r.await("the first pool", poolCIDR("10.0.0.0/16"))
	for i := 1; i <= 5; i++ {
		cidr := fmt.Sprintf("10.%d.0.0/16", i)
		put := write
		if i%2 == 0 {
			put = replace
		}
		put(t, dir, "a.yaml", poolManifest("a", cidr))
		if d := r.await(cidr, poolCIDR(cidr)); d > 800*time.Millisecond {
			t.Errorf("an edit took %v", d)
		}
	}
	// The first block makes its folder; a claim must be seen quickly.
	if err := os.MkdirAll(filepath.Join(dir, "ipam/blocks"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		name, content := blockManifest(i, "n1")
		replace(t, dir, name, content)
		d := r.await("the block", func(s *model.Snapshot) bool {
			return len(s.Blocks) == i+1 && s.Blocks[i].Node == "n1"
		})
		if d > 500*time.Millisecond {
			t.Errorf("a claim took %v", d)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count != 11 {
		t.Errorf("%d snapshots were published for 11 states", r.count)
	}
}

func TestDeletions(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	write(t, dir, "b.yml", poolManifest("b", "10.2.0.0/16")+"---\n"+poolManifest("c", "10.3.0.0/16"))
	write(t, dir, ".hidden.yaml", poolManifest("h", "10.4.0.0/16"))
	write(t, dir, "notes.txt", "not a manifest")
	r := start(t, dir)
	r.await("three pools", hasPools("a", "b", "c"))

	// Replaced in two steps, truncated and written again in pieces: nothing is removed.
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "b.yml", "")
	r.holds("three pools", 150*time.Millisecond, hasPools("a", "b", "c"))
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	write(t, dir, "b.yml", poolManifest("b", "10.2.0.0/16")+"---\napiVersion: projectcal")
	r.holds("three pools", 150*time.Millisecond, hasPools("a", "b", "c"))
	write(t, dir, "b.yml", poolManifest("b", "10.2.0.0/16")+"---\n"+poolManifest("c", "10.3.0.0/16"))
	r.holds("three pools", 600*time.Millisecond, hasPools("a", "b", "c"))

	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "b.yml", poolManifest("b", "10.2.0.0/16"))
	r.await("one pool", hasPools("b"))
}

// TestFolderVanishes holds that a folder that is moved away, or replaced by an empty one,
// removes nothing (I4), and that one that comes back is read anew.
func TestFolderVanishes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	mkdir := func() {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "ipam/blocks"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r := start(t, dir)
	mkdir()
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	name, content := blockManifest(1, "n1")
	replace(t, dir, name, content)
	whole := func(s *model.Snapshot) bool { return hasPools("a")(s) && len(s.Blocks) == 1 }
	r.await("the pool and the block", whole)

	problem := func(what string) func(*model.Snapshot) bool {
		return func(s *model.Snapshot) bool { return whole(s) && strings.Contains(problems(s), what) }
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	r.await("a problem", problem("cannot be read"))
	r.holds("what was there", 600*time.Millisecond, whole)
	mkdir()
	r.await("another problem", problem("was replaced by an empty folder"))
	r.holds("what was there", 600*time.Millisecond, whole)
	write(t, dir, "b.yaml", poolManifest("b", "10.2.0.0/16"))
	name, content = blockManifest(2, "n1")
	replace(t, dir, name, content)
	r.await("what is there now", func(s *model.Snapshot) bool {
		return hasPools("b")(s) && len(s.Blocks) == 1 && s.Blocks[0].CIDR.String() == "10.1.2.0/30" && problems(s) == ""
	})
	write(t, dir, "b.yaml", poolManifest("b", "10.3.0.0/16"))
	r.await("an edit in the new folder", poolCIDR("10.3.0.0/16"))
	if err := os.RemoveAll(filepath.Join(dir, "ipam")); err != nil {
		t.Fatal(err)
	}
	r.await("a problem", func(s *model.Snapshot) bool {
		return len(s.Blocks) == 1 && strings.Contains(problems(s), "cannot be read")
	})
}

// TestNothingBeforeTheFolder holds that nothing is published while nothing is known.
func TestNothingBeforeTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	r := start(t, dir)
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(r.logged(), "cannot be read") {
		if time.Now().After(deadline) {
			t.Fatalf("no word of the missing folder:\n%s", r.logged())
		}
		time.Sleep(5 * time.Millisecond)
	}
	if s := r.snapshot(); s != nil {
		t.Fatalf("published %+v", s)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.await("an empty snapshot", func(s *model.Snapshot) bool { return s.BGP.ASN == 64512 && problems(s) == "" })
}

func (r *running) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// TestLogsOnce holds that a lasting problem is logged when it comes and when it goes.
func TestLogsOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.1/16"))
	r := start(t, dir)
	r.await("the problem", func(s *model.Snapshot) bool {
		return strings.Contains(problems(s), "host bits") || len(s.Problems) == 1
	})
	for i := range 3 {
		cidr := fmt.Sprintf("10.%d.0.0/16", i+2)
		write(t, dir, "b.yaml", poolManifest("b", cidr))
		r.await(cidr, poolCIDR(cidr))
	}
	if n := strings.Count(r.logged(), "object is not in force"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, r.logged())
	}
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	r.await("both", hasPools("a", "b"))
	if n := strings.Count(r.logged(), "problem is gone"); n != 1 {
		t.Errorf("its end is logged %d times:\n%s", n, r.logged())
	}
}

// TestFloodOfProblems holds that one bad file does not fill the log.
func TestFloodOfProblems(t *testing.T) {
	dir := t.TempDir()
	const n = 5000
	write(t, dir, "a.yaml", strings.Repeat("---\nkind: nonsense\n", n))
	r := start(t, dir)
	r.await("the problems", func(s *model.Snapshot) bool { return len(s.Problems) == n })
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	r.await("the pool alone", func(s *model.Snapshot) bool { return hasPools("a")(s) && len(s.Problems) == 0 })
	log := r.logged()
	if lines := strings.Count(log, "\n"); lines > 3*watch.MaxReported || !strings.Contains(log, fmt.Sprintf("count=%d", n-watch.MaxReported)) {
		t.Errorf("%d lines are logged for %d problems that come and go", lines, n)
	}
}

// TestMountedConfigMap plays how kubelet updates a volume: a link to a folder is replaced.
func TestMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	put := func(version, cidr string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, dir, version+"/a.yaml", poolManifest("a", cidr))
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(version, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("..v1", "10.1.0.0/16")
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir)
	r.await("v1", poolCIDR("10.1.0.0/16"))
	put("..v2", "10.2.0.0/16")
	if d := r.await("v2", poolCIDR("10.2.0.0/16")); d > 800*time.Millisecond {
		t.Errorf("took %v", d)
	}
}

// TestUnreadable holds that files that cannot be read are reported and keep what they held.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	r := start(t, dir)
	r.await("the pool", hasPools("a"))
	a := filepath.Join(dir, "a.yaml")
	for _, tc := range []struct {
		make func() error
		want string
	}{
		{func() error { return os.Mkdir(a, 0o700) }, "it is no regular file"},
		{func() error { return syscall.Mkfifo(a, 0o600) }, "it is no regular file"},
		{func() error { return os.Symlink("/proc/kmsg", a) }, "i/o timeout"}, // regular by its mode
		{func() error { return os.Symlink("nowhere", a) }, "no such file"},
		{func() error { return os.Symlink("a.yaml", a) }, "too many levels of symbolic links"},
	} {
		if err := os.Remove(a); err != nil {
			t.Fatal(err)
		}
		if err := tc.make(); err != nil {
			t.Fatal(err)
		}
		r.await(tc.want, func(s *model.Snapshot) bool { return hasPools("a")(s) && strings.Contains(problems(s), tc.want) })
	}
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	r.await("nothing", hasPools())
}

// TestPolled holds that without inotify edits are seen too.
func TestPolled(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", poolManifest("a", "10.1.0.0/16"))
	var last atomic.Pointer[model.Snapshot]
	s, err := New(Config{Dir: dir, Node: "n1", Log: slog.New(slog.DiscardHandler), Publish: func(s *model.Snapshot) { last.Store(s) }})
	if err != nil {
		t.Fatal(err)
	}
	// As Run does it, with time passing in between.
	until := func(what string, ok func(*model.Snapshot) bool) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for last.Load() == nil || !ok(last.Load()) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s: %+v", what, last.Load())
			}
			s.scan()
			s.folder.settle(time.Now())
			s.publish()
			time.Sleep(5 * time.Millisecond)
		}
	}
	until("pool", poolCIDR("10.1.0.0/16"))
	if s.pollTime() != pollFast {
		t.Errorf("polled every %v", s.pollTime())
	}
	// The same size and, on a coarse clock, the same time: only the content differs.
	st, err := os.Stat(filepath.Join(dir, "a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", poolManifest("a", "10.2.0.0/16"))
	if err := os.Chtimes(filepath.Join(dir, "a.yaml"), st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	until("edit", poolCIDR("10.2.0.0/16"))
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	until("deletion", hasPools())
}

// TestBlockRewrites holds that a block that is rewritten all the time neither publishes
// anything nor delays another one's claim.
func TestBlockRewrites(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ipam/blocks"), 0o700); err != nil {
		t.Fatal(err)
	}
	name, content := blockManifest(1, "n1")
	replace(t, dir, name, content)
	r := start(t, dir)
	r.await("a block", func(s *model.Snapshot) bool { return len(s.Blocks) == 1 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			tmp := filepath.Join(dir, "ipam/blocks", ".tmp-rewrite")
			if os.WriteFile(tmp, []byte(content+fmt.Sprintf("  sequenceNumber: %d\n", i)), 0o600) == nil {
				_ = os.Rename(tmp, filepath.Join(dir, name))
			}
		}
	})
	defer func() { close(stop); wg.Wait() }()
	for i := 2; i < 5; i++ {
		name, content := blockManifest(i, "n1")
		replace(t, dir, name, content)
		if d := r.await("a claim", func(s *model.Snapshot) bool { return len(s.Blocks) == i }); d > 500*time.Millisecond {
			t.Errorf("a claim took %v", d)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count != 4 {
		t.Errorf("%d snapshots for 4 states", r.count)
	}
}

// TestConfig holds that what is missing is named.
func TestConfig(t *testing.T) {
	whole := Config{Dir: "d", Node: "n", Log: slog.New(slog.DiscardHandler), Publish: func(*model.Snapshot) {}}
	for field, without := range map[string]func(*Config){
		"Dir": func(c *Config) { c.Dir = "" }, "Node": func(c *Config) { c.Node = "" },
		"Log": func(c *Config) { c.Log = nil }, "Publish": func(c *Config) { c.Publish = nil },
	} {
		c := whole
		without(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("without %s: %v", field, err)
		}
	}
	if s, err := New(whole); err != nil || s.String() != "watch file://d" {
		t.Errorf("%v, %v", s, err)
	}
}
