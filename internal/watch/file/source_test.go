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
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
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
