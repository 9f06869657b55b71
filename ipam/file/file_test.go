package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

var ctx = context.Background()

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func block(cidr string) *ipam.Block {
	return ipam.NewBlock(netip.MustParsePrefix(cidr), "n1", time.Unix(1_800_000_000, 0).UTC())
}

// busy returns a block with every kind of slot.
func busy(cidr string) *ipam.Block {
	b := block(cidr)
	b.Slots[1] = ipam.Slot{Handle: "net.c1", Attrs: map[string]string{"pod": "a: b", "namespace": "true", "node": "n1", "timestamp": "2026-01-02 03:04:05 +0000 UTC"}}
	b.Slots[2] = ipam.Slot{Handle: ipam.StashPrefix + "n1", Attrs: map[string]string{"node": "n1"}}
	b.Slots[3] = ipam.Slot{Handle: ipam.StashPrefix + "n1", Attrs: map[string]string{"node": "n1"}}
	b.Slots[4] = ipam.Slot{Handle: ipam.StashPrefix + "n1", Attrs: map[string]string{"node": "n1"}, ReleasedAt: time.Unix(1_800_000_100, 0).UTC()}
	b.Slots[5].ReleasedAt = time.Unix(1_800_000_300, 0).UTC()
	b.Slots[7].ReleasedAt = time.Unix(1_800_000_300, 0).UTC()
	b.Slots[6].ReleasedAt = time.Unix(1_800_000_200, 0).UTC()
	b.Unallocated = append([]int{9, 0, 8}, append(b.Unallocated[10:], 6, 7, 5)...)
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, cidr := range []string{"10.0.0.0/26", "fd00:1::/122"} {
		b := busy(cidr)
		if err := b.Check(); err != nil {
			t.Fatal(err)
		}
		data := encode(b, 7)
		got, seq, err := decode(data)
		if err != nil || seq != 7 || !got.Equal(b) {
			t.Fatalf("%s\n%v %d\n%+v\n%+v", data, err, seq, got, b)
		}
		// The hand-written form says what the API's own types would.
		var byHand, byType any
		marshalled, err := yaml.Marshal(manifest.ToV3(b, 7))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(yaml.Unmarshal(data, &byHand), yaml.Unmarshal(marshalled, &byType)); err != nil {
			t.Fatal(err)
		}
		delete(byType.(map[string]any)["metadata"].(map[string]any), "creationTimestamp")
		if fmt.Sprint(byHand) != fmt.Sprint(byType) {
			t.Errorf("by hand\n%v\nby type\n%v", byHand, byType)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "no", "On", "null", "1e3", "0x10", "2026-01-01", "a: b", "- x", "host:n1", "k8s-pod-network.abc", "~", "é", "\n", "yes", "NaN", "web-0", "n"} {
		var got map[string]any
		if err := yaml.Unmarshal([]byte("k: "+quote(s)), &got); err != nil || got["k"] != s {
			t.Errorf("%q is written %s and read %v (%v)", s, quote(s), got["k"], err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, p := range []string{"10.0.0.0/26", "0.0.0.0/0", "fd00:10:244::/122", "::/116", "2001:db8:1:2:3:4:5:0/120", "fd00::a:0:0:40/122"} {
		want := netip.MustParsePrefix(p)
		if got, ok := manifest.ParseName(v3.BlockName(want)); !ok || got != want {
			t.Errorf("%s: %s %t", want, got, ok)
		}
	}
	for _, name := range []string{"", "pool", "10-0-0-0", "10-0-0-1-26", "10-0-0-0-33"} {
		if p, ok := manifest.ParseName(name); ok {
			t.Errorf("%q is taken for %s", name, p)
		}
	}
}

func TestCompareAndSwap(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	b := block("10.0.0.0/26")
	if err := s.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	for _, cidr := range []string{"10.0.0.0/26", "10.0.0.0/24", "10.0.0.32/28"} {
		if err := other.Create(ctx, block(cidr)); !errors.Is(err, ipam.ErrExists) {
			t.Errorf("Create %s: %v", cidr, err)
		}
	}
	theirs, err := other.Get(ctx, b.CIDR)
	if err != nil || !theirs.Equal(b) || theirs.Revision != b.Revision {
		t.Fatalf("Get: %+v %v", theirs, err)
	}
	b.Slots[0].ReleasedAt = time.Unix(1_800_000_000, 0)
	b.Unallocated = append(b.Unallocated[1:], 0)
	if err := s.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if err := other.Update(ctx, theirs); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("stale Update: %v", err)
	}
	if err := other.Delete(ctx, theirs); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("stale Delete: %v", err)
	}
	// An edit by hand that leaves the sequence number alone is a change too.
	path := filepath.Join(dir, "ipam/blocks/10-0-0-0-26.yaml")
	data, _ := os.ReadFile(path)
	if err := os.WriteFile(path, append(data, "# seen\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(ctx, b); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("Update after an edit: %v", err)
	}
	b, err = s.Get(ctx, b.CIDR)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(ctx, b); !errors.Is(err, ipam.ErrNotFound) {
		t.Errorf("Update of nothing: %v", err)
	}
	if _, err := s.Get(ctx, b.CIDR); !errors.Is(err, ipam.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	if st, _ := os.ReadDir(filepath.Join(dir, "ipam/blocks")); len(st) != 0 {
		t.Errorf("left behind: %v", st)
	}
}

// TestOneWinner: many processes claim overlapping blocks and count in one.
func TestOneWinner(t *testing.T) {
	dir := t.TempDir()
	var claimed atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		s := open(t, dir)
		wg.Go(func() {
			err := s.Create(ctx, block(fmt.Sprintf("10.0.0.0/%d", 24+i%4)))
			if err == nil {
				claimed.Add(1)
			} else if !errors.Is(err, ipam.ErrExists) {
				t.Error(err)
			}
			for n := 0; n < 5; {
				list, err := ipam.Collect(s.List(ctx, ipam.Query{}))
				if err != nil || len(list) != 1 {
					t.Errorf("List: %v %v", list, err)
					return
				}
				if err := s.Update(ctx, list[0]); err == nil {
					n++
				} else if !errors.Is(err, ipam.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	list, err := ipam.Collect(open(t, dir).List(ctx, ipam.Query{}))
	if err != nil || claimed.Load() != 1 || !strings.HasPrefix(list[0].Revision, "41.") {
		t.Errorf("%d claims, %v, %v; want 1 claim and 40 updates", claimed.Load(), list[0].Revision, err)
	}
}

func TestLeftoversAndBadFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Create(ctx, block("10.0.0.0/26")); err != nil {
		t.Fatal(err)
	}
	blocks := filepath.Join(dir, "ipam/blocks")
	for name, text := range map[string]string{
		".tmp-10-0-0-0-26":     "half of a",
		"10-0-0-64-26.yaml":    "kind: IPAMBlock\nspec: [",
		"10-0-0-128-26.yaml":   string(encode(block("10.0.0.192/26"), 1)),
		"something-else.yaml":  "{}",
		"fd00---122.yaml.orig": "",
	} {
		if err := os.WriteFile(filepath.Join(blocks, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if _, err := os.Stat(filepath.Join(blocks, ".tmp-10-0-0-0-26")); !os.IsNotExist(err) {
		t.Errorf("temporary file is still there: %v", err)
	}
	list, err := ipam.Collect(s.List(ctx, ipam.Query{}))
	if err != nil || len(list) != 1 {
		t.Errorf("List: %v %v, want the one good block", list, err)
	}
	for _, cidr := range []string{"10.0.0.64/26", "10.0.0.128/26"} {
		if err := s.Create(ctx, block(cidr)); !errors.Is(err, ipam.ErrExists) {
			t.Errorf("Create where a bad file stands: %v", err)
		}
		if _, err := s.Get(ctx, netip.MustParsePrefix(cidr)); err == nil || errors.Is(err, ipam.ErrNotFound) {
			t.Errorf("Get of a bad file: %v", err)
		}
	}
	st, err := os.Stat(filepath.Join(blocks, "10-0-0-0-26.yaml"))
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, want 0644", st.Mode())
	}
}

func TestLockTimesOut(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	err := other.locked(ctx, func() error { return s.Create(short, block("10.0.0.0/26")) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Create while another holds the lock: %v", err)
	}
}

func BenchmarkEncode(b *testing.B) {
	x := busy("10.0.0.0/26")
	for b.Loop() {
		encode(x, 1)
	}
}

func BenchmarkDecode(b *testing.B) {
	data := encode(full(), 1)
	for b.Loop() {
		if _, _, err := decode(data); err != nil {
			b.Fatal(err)
		}
	}
}

func full() *ipam.Block {
	x := block("10.0.0.0/26")
	x.Unallocated = []int{}
	for i := range x.Slots {
		x.Slots[i] = ipam.Slot{Handle: fmt.Sprintf("k8s-pod-network.%064d", i), Attrs: map[string]string{"pod": fmt.Sprint("pod-", i), "namespace": "default", "node": "n1", "interface": "eth0", "timestamp": "2026-01-02 03:04:05 +0000 UTC"}}
	}
	return x
}

func BenchmarkUpdate(b *testing.B) {
	s := open(b, b.TempDir())
	x := full()
	if err := s.Create(ctx, x); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.Update(ctx, x); err != nil {
			b.Fatal(err)
		}
	}
}

// TestFolderReplaced: a folder that is mounted over the one that was there has a lock of its
// own, and that is the one that keeps others away.
func TestFolderReplaced(t *testing.T) {
	dir := t.TempDir()
	early := open(t, dir)
	if err := os.Rename(filepath.Join(dir, "ipam"), filepath.Join(dir, "under")); err != nil {
		t.Fatal(err)
	}
	if _, err := ipam.Collect(early.List(ctx, ipam.Query{})); err == nil {
		t.Error("a folder that is away was read")
	}
	other := open(t, dir)
	if err := other.locked(ctx, func() error {
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := early.Create(soon, block("10.0.0.0/26")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a change while another process holds the folder's lock: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := early.Create(ctx, block("10.0.0.0/26")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Get(ctx, netip.MustParsePrefix("10.0.0.0/26")); err != nil {
		t.Errorf("the block did not come to the folder that is there now: %v", err)
	}
	if err := early.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ipam.Collect(early.List(ctx, ipam.Query{})); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestNotMounted: several nodes that all see an empty mount point each have one of their own.
func TestNotMounted(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Create(ctx, block("10.0.0.0/26")); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("Create: %v", err)
	}
	if _, err := ipam.Collect(s.List(ctx, ipam.Query{})); err == nil {
		t.Error("no blocks are known and it is said that there are none")
	}
	if err := os.WriteFile(filepath.Join(dir, "pools.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, block("10.0.0.0/26")); err != nil {
		t.Error(err)
	}
	if list, err := ipam.Collect(s.List(ctx, ipam.Query{})); err != nil || len(list) != 1 {
		t.Errorf("List: %v %v", list, err)
	}
}
