package ipam

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

type noStore struct{ Store }

func testConfig(t *testing.T, log *bytes.Buffer) Config {
	return Config{Node: "n1", Store: noStore{}, JournalDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(log, nil))}
}

func setRecord(id, addr string) record {
	a := netip.MustParseAddr(addr)
	return record{Kind: recSet, At: time.Unix(1, 0), Blocks: []netip.Prefix{netip.PrefixFrom(a, 26).Masked()},
		Endpoint: &model.Endpoint{Key: model.AttachmentKey{ContainerID: id, IfName: "eth0"}, Network: "net", Addresses: []netip.Addr{a}}}
}

func frames(records ...record) []byte {
	var out []byte
	for _, r := range records {
		out = appendFrame(out, r)
	}
	return out
}

var head = record{Kind: recNode, Version: 1, Node: "n1"}

// TestJournalTornAnywhere cuts a journal at every byte: all records before the cut live.
func TestJournalTornAnywhere(t *testing.T) {
	records := []record{head, {Kind: recWhole}, setRecord("a", "10.0.0.1"), setRecord("b", "10.0.0.2"), setRecord("c", "10.0.0.3")}
	data := frames(records...)
	begin := len(frames(records[0]))
	for cut := begin; cut <= len(data); cut++ {
		got, holes, end := scan(data[:cut])
		whole := 0
		for whole < len(records) && len(frames(records[:whole+1]...)) <= cut {
			whole++
		}
		if len(got) != whole || len(holes) != 0 || end != len(frames(records[:whole]...)) {
			t.Fatalf("cut at %d: %d records, holes %v, end %d; want %d records", cut, len(got), holes, end, whole)
		}
	}
}

// TestJournalDamageInTheMiddle flips every byte in turn: what comes behind is not lost,
// and the damage is reported.
func TestJournalDamageInTheMiddle(t *testing.T) {
	data := frames(head, setRecord("a", "10.0.0.1"), setRecord("b", "10.0.0.2"))
	from, to := len(frames(head)), len(frames(head, setRecord("a", "10.0.0.1")))
	for i := from; i < to; i++ {
		bad := bytes.Clone(data)
		bad[i] ^= 0x41
		got, holes, _ := scan(bad)
		if len(got) != 2 || len(holes) != 1 || got[1].Endpoint.Key.ContainerID != "b" {
			t.Fatalf("byte %d flipped: %d records, holes %v", i, len(got), holes)
		}
	}
	var log bytes.Buffer
	cfg := testConfig(t, &log)
	data[from+20] ^= 1
	path := filepath.Join(cfg.JournalDir, "journal")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if eps := a.Endpoints(); len(eps) != 1 || eps[0].Key.ContainerID != "b" || a.state.whole {
		t.Errorf("endpoints %v, whole %t", eps, a.state.whole)
	}
	if kept, _ := filepath.Glob(path + ".damaged-*"); len(kept) != 1 || !strings.Contains(log.String(), "journal is damaged") {
		t.Errorf("kept %v, log %s", kept, &log)
	}
}

func TestJournalBelongsToOneNodeAndProcess(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t, &log)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("second process: %v", err)
	}
	a.Close()
	cfg.Node = "n2"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), `"n1"`) {
		t.Errorf("other node: %v", err)
	}
	cfg.Node = "n1"
	if err := os.WriteFile(filepath.Join(cfg.JournalDir, "journal"), frames(record{Kind: recNode, Version: 99, Node: "n1"}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "newer agent") {
		t.Errorf("newer version: %v", err)
	}
}

// TestJournalCompacts: the file stays small, and says the same.
func TestJournalCompacts(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t, &log)
	cfg.SyncFile = func(*os.File) error { return nil }
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		r := setRecord("a", "10.0.0.1")
		r.Endpoint.MTU = i
		a.mu.Lock()
		b := a.record(r)
		a.mu.Unlock()
		if err := a.journal.commit(b, true); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	st, err := os.Stat(filepath.Join(cfg.JournalDir, "journal"))
	if err != nil || st.Size() > compactMin+4096 {
		t.Errorf("journal has %d bytes, %v", st.Size(), err)
	}
	a, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if eps := a.Endpoints(); len(eps) != 1 || eps[0].MTU != 4999 {
		t.Errorf("endpoints %+v", eps)
	}
}

// TestJournalDiskFails: nothing is acknowledged while the disk fails, and once it works
// again the file holds what memory holds.
func TestJournalDiskFails(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t, &log)
	bad := false
	cfg.SyncFile = func(*os.File) error {
		if bad {
			return errors.New("disk on fire")
		}
		return nil
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	put := func(id, addr string) error {
		a.mu.Lock()
		b := a.record(setRecord(id, addr))
		a.mu.Unlock()
		return a.journal.commit(b, true)
	}
	bad = true
	for range 2 {
		if err := put("a", "10.0.0.1"); err == nil {
			t.Error("acknowledged on a bad disk")
		}
	}
	if a.Ready() == nil {
		t.Error("ready on a bad disk")
	}
	bad = false
	if err := put("b", "10.0.0.2"); err != nil {
		t.Errorf("after the disk came back: %v", err)
	}
	a.Close()
	if a, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if n := len(a.Endpoints()); n != 2 {
		t.Errorf("%d endpoints, want 2", n)
	}
}

// TestJournalDiskFullAtStart: an agent that starts on a full disk knows its pods all the same,
// so that their routes stay, and works again when there is room, without being asked.
func TestJournalDiskFullAtStart(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t, &log)
	full := true
	cfg.SyncFile = func(*os.File) error {
		if full {
			return syscall.ENOSPC
		}
		return nil
	}
	data := append(frames(head, record{Kind: recWhole}, setRecord("a", "10.0.0.1")), 1, 2, 3) // and a torn end
	path := filepath.Join(cfg.JournalDir, "journal")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(a.Endpoints()); n != 1 {
		t.Errorf("%d endpoints, want 1", n)
	}
	if err := a.Ready(); !errors.Is(err, ErrNotReady) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("ready: %v", err)
	}
	if _, err := a.Release(t.Context(), "a", ""); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("release on a full disk: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
		t.Errorf("the journal was touched: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.JournalDir, journalNew)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what could not be written is left behind: %v", err)
	}
	if err := a.journal.commit(a.journal.last(), false); err == nil { // as Run does
		t.Error("a write on a full disk succeeded")
	}
	full = false
	if err := a.journal.commit(a.journal.last(), false); err != nil {
		t.Errorf("after there was room: %v", err)
	}
	if err := a.journal.health(); err != nil {
		t.Errorf("after there was room: %v", err)
	}
	a.Close()
	if a, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if n := len(a.Endpoints()); n != 0 {
		t.Errorf("%d endpoints, want none", n)
	}
}

func TestClaimable(t *testing.T) {
	none := func(netip.Prefix) (netip.Prefix, bool) { return netip.Prefix{}, false }
	for _, c := range []struct {
		pool  string
		block int
		known []string
		res   string
		want  int
	}{
		{"10.0.0.0/24", 26, nil, "", 4},
		{"10.0.0.0/24", 26, []string{"10.0.0.64/26"}, "", 3},
		{"10.0.0.0/24", 26, []string{"10.0.0.64/27", "10.0.0.96/30"}, "", 3},
		{"10.0.0.0/24", 26, []string{"10.0.0.0/25"}, "", 2},
		{"10.0.0.0/24", 26, []string{"10.0.0.0/8"}, "", 0},
		{"10.0.0.0/24", 26, nil, "10.0.0.128/25", 2},
		{"0.0.0.0/0", 26, []string{"0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "224.0.0.0/4", "240.0.0.0/24"}, "", 1<<20 - 1<<10/256},
		{"fd00::/118", 122, []string{"fd00::40/122"}, "", 15},
		{"255.255.255.252/30", 32, nil, "", 4},
	} {
		var known claims
		for _, k := range c.known {
			known.add(netip.MustParsePrefix(k))
		}
		reserved := none
		if c.res != "" {
			r := netip.MustParsePrefix(c.res)
			reserved = func(p netip.Prefix) (netip.Prefix, bool) { return r, r.Overlaps(p) }
		}
		pool, seen := netip.MustParsePrefix(c.pool), map[netip.Prefix]bool{}
		for p := range claimable(pool, c.block, "node", &known, reserved) {
			if _, ok := known.overlapping(p); ok || seen[p] || !pool.Contains(p.Addr()) || p != p.Masked() || p.Bits() != c.block {
				t.Fatalf("%+v: yields %s", c, p)
			}
			seen[p] = true
			if len(seen) > 2000 {
				break
			}
		}
		if len(seen) != min(c.want, 2001) {
			t.Errorf("%+v: %d blocks", c, len(seen))
		}
	}
	// A pool too large to count does not wrap, and nodes begin at different places.
	first := map[netip.Prefix]bool{}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		for p := range claimable(netip.MustParsePrefix("fd00::/16"), 122, node, &claims{}, none) {
			if first[p] || !netip.MustParsePrefix("fd00::/16").Contains(p.Addr()) {
				t.Errorf("%s begins at %s", node, p)
			}
			first[p] = true
			break
		}
	}
}

// TestTakenIsNotReturned: an address that an Assign has taken and not yet recorded stays
// its own, whatever happens to the pool meanwhile.
func TestTakenIsNotReturned(t *testing.T) {
	var log bytes.Buffer
	a, err := New(testConfig(t, &log))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Set(&model.Snapshot{
		Nodes: []model.Node{{Name: "n1"}},
		Pools: []model.Pool{{Name: "a", CIDR: netip.MustParsePrefix("10.0.0.0/24"), BlockSize: 26, AllowedUses: []model.Use{model.UseWorkload}}},
	})
	addr := netip.MustParseAddr("10.0.0.1")
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record(record{Kind: recStash, Addrs: []netip.Addr{addr}, Block: netip.MustParsePrefix("10.0.0.0/26")})
	a.putBy(a.state.holds[addr])
	h := a.takeStashed(a.poolState("a"))
	if h == nil || a.takeStashed(a.poolState("a")) != nil {
		t.Fatal("want to take the one address once")
	}
	a.snap = &model.Snapshot{Nodes: a.snap.Nodes}
	a.sortStash()
	a.returnStash()
	if h := a.state.holds[addr]; h == nil || h.state != stashed || !h.taken {
		t.Errorf("hold %+v", h)
	}
	a.putBack(h)
	a.returnStash()
	if h := a.state.holds[addr]; h == nil || h.state != freeing {
		t.Errorf("hold %+v, want it freed once nobody takes it", h)
	}
}
