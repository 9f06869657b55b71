package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

var ctx = context.Background()

func sel(t testing.TB, s string) model.Selector {
	t.Helper()
	x, err := selector.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func pool(t testing.TB, name, cidr string, block int, change ...func(*model.Pool)) model.Pool {
	p := model.Pool{Name: name, CIDR: netip.MustParsePrefix(cidr), BlockSize: block, NodeSelector: sel(t, "all()"), AllowedUses: []model.Use{model.UseWorkload}}
	for _, c := range change {
		c(&p)
	}
	return p
}

func snapshot(pools ...model.Pool) *model.Snapshot {
	node := func(n string) model.Node {
		return model.Node{Name: n, Labels: map[string]string{"kubernetes.io/hostname": n, "rack": n}}
	}
	return &model.Snapshot{
		Nodes: []model.Node{node("n1"), node("n2")}, Pools: pools,
		IPAM: model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 20},
	}
}

// box is one node's Allocator with what a test turns.
type box struct {
	*ipam.Allocator
	t      testing.TB
	cfg    ipam.Config
	client *ipamtest.Client
	now    *atomic.Int64
}

func open(t testing.TB, node string, s ipam.Store, snap *model.Snapshot, change ...func(*ipam.Config)) *box {
	t.Helper()
	b := &box{t: t, client: ipamtest.NewClient(s, &ipamtest.Ghosts{}, 1), now: &atomic.Int64{}}
	b.now.Store(1_800_000_000)
	b.cfg = ipam.Config{
		Node: node, Store: b.client, JournalDir: filepath.Join(t.TempDir(), "j"), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Unix(b.now.Load(), 0) },
	}
	for _, c := range change {
		c(&b.cfg)
	}
	b.reopen(snap)
	t.Cleanup(func() { b.Close() })
	return b
}

func (b *box) reopen(snap *model.Snapshot) {
	b.t.Helper()
	if b.Allocator != nil {
		b.Close()
	}
	a, err := ipam.New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Allocator = a
	if snap != nil {
		a.Set(snap)
	}
}

func req(id string) model.AddressRequest {
	return model.AddressRequest{Key: model.AttachmentKey{ContainerID: id, IfName: "eth0"}, Network: "net", Namespace: "ns", Pod: "pod-" + id}
}

func (b *box) add(r model.AddressRequest) []string {
	b.t.Helper()
	ep, err := b.Assign(ctx, r)
	if err != nil {
		b.t.Fatal(err)
	}
	return strs(ep.Addresses)
}

func strs[T fmt.Stringer](in []T) []string {
	var out []string
	for _, a := range in {
		out = append(out, a.String())
	}
	return out
}

func (b *box) flush() {
	b.t.Helper()
	if err := b.Flush(ctx, true); err != nil {
		b.t.Fatal(err)
	}
}

func blocks(t testing.TB, s ipam.Store) map[string]*ipam.Block {
	t.Helper()
	list, err := ipam.Collect(s.List(ctx, ipam.Query{}))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*ipam.Block{}
	for _, b := range list {
		out[b.CIDR.String()] = b
	}
	return out
}

func handle(t testing.TB, s ipam.Store, addr string) string {
	t.Helper()
	for _, b := range blocks(t, s) {
		if a := netip.MustParseAddr(addr); b.CIDR.Contains(a) {
			return b.Slots[b.Ordinal(a)].Handle
		}
	}
	return ""
}

func TestDualStackIsIdempotentAndNamedInBlocks(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "v4", "10.0.0.0/24", 26), pool(t, "v6", "fd00::/112", 122))
	b := open(t, "n1", s, snap)
	got := b.add(req("c1"))
	if len(got) != 2 || !strings.HasPrefix(got[0], "10.0.0.") || !strings.HasPrefix(got[1], "fd00::") {
		t.Fatalf("addresses: %v", got)
	}
	if again := b.add(req("c1")); !slices.Equal(again, got) {
		t.Errorf("the same key got %v, then %v", got, again)
	}
	b.flush()
	a := netip.MustParseAddr(got[0])
	for _, blk := range blocks(t, s) {
		if !blk.CIDR.Contains(a) {
			continue
		}
		slot := blk.Slots[blk.Ordinal(a)]
		if slot.Handle != "net.c1" || slot.Attrs["pod"] != "pod-c1" || slot.Attrs["namespace"] != "ns" || slot.Attrs["node"] != "n1" || slot.Attrs["timestamp"] == "" {
			t.Errorf("slot: %+v", slot)
		}
	}
	ep, _ := b.Endpoint(req("c1").Key)
	ep.HostInterface = "cali1"
	if err := b.Wired(ctx, ep); err != nil {
		t.Fatal(err)
	}
	b.reopen(snap)
	if ep, ok := b.Endpoint(req("c1").Key); !ok || !ep.Wired() || !slices.Equal(strs(ep.Addresses), got) {
		t.Errorf("after a restart: %+v %t", ep, ok)
	}
	eps, err := b.Release(ctx, "c1", "")
	if err != nil || len(eps) != 1 {
		t.Fatalf("release: %v %v", eps, err)
	}
	if eps, err := b.Release(ctx, "c1", ""); eps != nil || err != nil {
		t.Errorf("second release: %v %v, want nil, nil", eps, err)
	}
	b.flush()
	if h := handle(t, s, got[0]); h != "" {
		t.Errorf("%s still has the handle %s", got[0], h)
	}
}

func TestPoolChoice(t *testing.T) {
	off := func(p *model.Pool) { p.Disabled = true }
	manual := func(p *model.Pool) { p.Manual = true }
	on := func(s string) func(*model.Pool) { return func(p *model.Pool) { p.NodeSelector = sel(t, s) } }
	ns := func(s string) func(*model.Pool) { return func(p *model.Pool) { p.NamespaceSelector = sel(t, s) } }
	tunnel := func(p *model.Pool) { p.AllowedUses = []model.Use{model.UseTunnel} }
	for name, c := range map[string]struct {
		pools  []model.Pool
		change func(*model.AddressRequest)
		want   string // prefix of the first address
		err    error
		text   string
	}{
		"no pool":       {nil, nil, "", ipam.ErrNoPool, "there is no IPPool"},
		"by name order": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26), pool(t, "b", "10.2.0.0/24", 26)}, nil, "10.1.", nil, ""},
		"disabled":      {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, off), pool(t, "b", "10.2.0.0/24", 26)}, nil, "10.2.", nil, ""},
		"other node":    {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, on("rack == 'n2'"))}, nil, "", ipam.ErrNoPool, "nodeSelector"},
		"no workloads":  {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, tunnel)}, nil, "", ipam.ErrNoPool, "allowedUses"},
		"manual":        {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)}, nil, "", ipam.ErrNoPool, "Manual"},
		"manual by name": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"a"} }, "10.1.", nil, ""},
		"manual by CIDR": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"10.1.0.0/24"} }, "10.1.", nil, ""},
		"order of the request": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26), pool(t, "b", "10.2.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"b", "a"} }, "10.2.", nil, ""},
		"unknown": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"x"} }, "", ipam.ErrNoPool, `"x"`},
		"wrong family": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv6Pools = []string{"a"} }, "", ipam.ErrNoPool, "family"},
		"namespace":         {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("team == 'x'"))}, func(r *model.AddressRequest) { r.NamespaceLabels = map[string]string{"team": "x"} }, "10.1.", nil, ""},
		"other namespace":   {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("team == 'x'"))}, func(r *model.AddressRequest) { r.NamespaceLabels = map[string]string{} }, "", ipam.ErrNoPool, "namespaceSelector"},
		"unknown namespace": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("!has(team)"))}, nil, "", ipam.ErrNoPool, "not known"},
		"static": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "10.1.0.77", nil, ""},
		"static nowhere": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.77")} }, "", ipam.ErrNotInPool, ""},
		"static disabled": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, off)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "", ipam.ErrNotInPool, "disabled"},
		"static elsewhere": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, on("rack == 'n2'"))},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "", ipam.ErrNoPool, "nodeSelector"},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, "n1", ipamtest.NewStore(), snapshot(c.pools...))
			r := req("c")
			if c.change != nil {
				c.change(&r)
			}
			ep, err := b.Assign(ctx, r)
			if !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v, want %v with %q", err, c.err, c.text)
			}
			if err == nil && !strings.HasPrefix(ep.Addresses[0].String(), c.want) {
				t.Errorf("got %v, want %s", ep.Addresses, c.want)
			}
		})
	}
}

func TestPrivateFolderNeedsPinnedPools(t *testing.T) {
	private := func(c *ipam.Config) { c.Private = true }
	b := open(t, "n1", ipamtest.NewStore(), snapshot(pool(t, "a", "10.1.0.0/24", 26)), private)
	if err := b.Ready(); !errors.Is(err, ipam.ErrNoPool) || !strings.Contains(err.Error(), "kubernetes.io/hostname") {
		t.Errorf("Ready: %v", err)
	}
	r := req("c")
	r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.1")}
	if _, err := b.Assign(ctx, r); !errors.Is(err, ipam.ErrNotInPool) {
		t.Errorf("static: %v", err)
	}
	b.Set(snapshot(pool(t, "a", "10.1.0.0/24", 26, func(p *model.Pool) { p.NodeSelector = sel(t, "kubernetes.io/hostname == 'n1'") })))
	if err := b.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	b.add(req("c"))
}

func TestReady(t *testing.T) {
	b := open(t, "n1", ipamtest.NewStore(), nil)
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("without a snapshot: %v", err)
	}
	b.Set(&model.Snapshot{})
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) || !strings.Contains(err.Error(), "Node n1") {
		t.Errorf("without a node: %v", err)
	}
	b.Set(snapshot(pool(t, "a", "10.0.0.0/30", 30)))
	if err := b.Ready(); err != nil {
		t.Errorf("with a pool: %v", err)
	}
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	if _, err := b.Assign(ctx, req("5")); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("fifth of four: %v", err)
	}
	if err := b.Ready(); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("exhausted: %v", err)
	}
	b.Close()
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("closed: %v", err)
	}
}

func TestStaticAddress(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/26", 28))
	snap.IPAM.Cooldown = time.Hour
	snap.Reservations = []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")}
	n1, n2 := open(t, "n1", s, snap), open(t, "n2", s, snap)
	static := func(id, addr string) model.AddressRequest {
		r := req(id)
		r.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
		return r
	}
	n1.add(static("c1", "10.0.0.5"))
	n2.add(static("c2", "10.0.0.6")) // borrowed
	if h := handle(t, s, "10.0.0.6"); h != ipam.StashPrefix+"n2" {
		t.Errorf("borrowed address is %q before it is used, want a stash mark", h)
	}
	if _, err := n2.Assign(ctx, static("c3", "10.0.0.5")); !errors.Is(err, ipam.ErrAddressInUse) {
		t.Errorf("other node's: %v", err)
	}
	if _, err := n1.Assign(ctx, static("c3", "10.0.0.5")); !errors.Is(err, ipam.ErrAddressInUse) {
		t.Errorf("own: %v", err)
	}
	if _, err := n1.Assign(ctx, static("c3", "10.0.0.9")); !errors.Is(err, ipam.ErrReserved) {
		t.Errorf("reserved: %v", err)
	}
	// A pod that was only restarted gets its address at once, cooldown or not.
	n1.Release(ctx, "c1", "")
	n1.add(static("c1b", "10.0.0.5"))
	strict := *snap
	strict.IPAM.StrictAffinity = true
	n2.Set(&strict)
	if _, err := n2.Assign(ctx, static("c4", "10.0.0.7")); !errors.Is(err, ipam.ErrNotInPool) {
		t.Errorf("strict affinity: %v", err)
	}
}

func TestOrderAndCooldown(t *testing.T) {
	snap := snapshot(pool(t, "a", "10.0.0.0/29", 29))
	snap.IPAM.Cooldown = time.Minute
	snap.Reservations = []netip.Prefix{netip.MustParsePrefix("10.0.0.6/31")}
	b := open(t, "n1", ipamtest.NewStore(), snap)
	var got []string
	for i := range 6 {
		got = append(got, b.add(req(fmt.Sprint(i)))...)
	}
	if want := []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	for _, id := range []string{"4", "1", "3"} {
		b.Release(ctx, id, "eth0")
		b.now.Add(1)
	}
	b.flush()
	if _, err := b.Assign(ctx, req("x")); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("within the cooldown: %v", err)
	}
	b.reopen(snap) // the rest is in the block, not in memory
	b.now.Add(60)
	got = nil
	for i := range 3 {
		got = append(got, b.add(req(fmt.Sprint("y", i)))...)
	}
	if want := []string{"10.0.0.4", "10.0.0.1", "10.0.0.3"}; !slices.Equal(got, want) {
		t.Errorf("longest idle first: %v, want %v", got, want)
	}
}

func TestBorrowAndSmallPool(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/29", 29)) // one block
	n1, n2 := open(t, "n1", s, snap), open(t, "n2", s, snap)
	n1.add(req("c1"))
	n1.flush() // no block is left: the stash goes back
	if free := blocks(t, s)["10.0.0.0/29"].Free(); free != 7 {
		t.Errorf("%d addresses are free, want 7: a full pool has no stash", free)
	}
	var ids []string
	for i := range 7 {
		id := fmt.Sprint("b", i)
		ids = append(ids, n2.add(req(id))...)
	}
	if _, err := n2.Assign(ctx, req("b8")); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("ninth of eight: %v (%v)", err, ids)
	}
	n1.Release(ctx, "c1", "")
	n1.flush()
	n2.add(req("b9"))
	strict := *snap
	strict.IPAM.StrictAffinity = true
	n2.Release(ctx, "b1", "")
	n2.flush()
	n2.Set(&strict)
	if _, err := n2.Assign(ctx, req("b10")); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("strict affinity: %v", err)
	}
}

func TestBlockLimits(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 31))
	snap.IPAM.MaxBlocksPerHost = 2
	b := open(t, "n1", s, snap)
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	if _, err := b.Assign(ctx, req("x")); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "maxBlocksPerHost") {
		t.Errorf("third block of two: %v", err)
	}
	snap = snapshot(pool(t, "a", "10.0.0.0/24", 31))
	snap.IPAM.AutoAllocateBlocks = false
	b.Set(snap)
	if _, err := b.Assign(ctx, req("x")); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "autoAllocateBlocks") {
		t.Errorf("autoAllocateBlocks false: %v", err)
	}
}

// TestOneWriteForMany: N concurrent ADDs cost about one write, and one fsync.
func TestOneWriteForMany(t *testing.T) {
	s := ipamtest.NewStore()
	var syncs atomic.Int64
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/16", 24)), func(c *ipam.Config) {
		c.SyncFile = func(f *os.File) error { syncs.Add(1); time.Sleep(2 * time.Millisecond); return nil }
	})
	b.flush()
	b.client.Faults(0, 20*time.Millisecond, false)
	before := syncs.Load()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := b.Assign(ctx, req(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.Writes(); n > 10 {
		t.Errorf("100 ADDs at once cost %d writes, want 10 at most", n)
	}
	if n := syncs.Load() - before; n > 50 {
		t.Errorf("100 ADDs at once cost %d fsyncs, want 50 at most", n)
	}
}

// TestStoreAway: the stash serves ADDs, also across a restart, and DELs are kept (I4).
func TestStoreAway(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 26))
	b := open(t, "n1", s, snap)
	first := b.add(req("c0"))
	b.flush()
	b.client.Faults(0, 0, true)
	for i := range 4 {
		b.add(req(fmt.Sprint("a", i)))
	}
	b.reopen(snap)
	b.add(req("b1"))
	if eps, err := b.Release(ctx, "c0", ""); err != nil || len(eps) != 1 {
		t.Fatalf("DEL with the Store away: %v %v", eps, err)
	}
	if eps, err := b.Release(ctx, "nobody", ""); eps != nil || err != nil {
		t.Errorf("DEL of nothing with the Store away: %v %v", eps, err)
	}
	for i := 0; ; i++ {
		if _, err := b.Assign(ctx, req(fmt.Sprint("d", i))); err != nil {
			if !errors.Is(err, ipamtest.ErrAway) {
				t.Errorf("with an empty stash: %v", err)
			}
			break
		}
	}
	b.reopen(snap)
	b.client.Faults(0, 0, false)
	b.flush()
	if h := handle(t, s, first[0]); h != "" {
		t.Errorf("%s has the handle %q after the DEL", first[0], h)
	}
	if h := handle(t, s, strs(b.Endpoints()[0].Addresses)[0]); !strings.HasPrefix(h, "net.") {
		t.Errorf("an endpoint of the outage has the handle %q", h)
	}
}

func TestRetain(t *testing.T) {
	b := open(t, "n1", ipamtest.NewStore(), snapshot(pool(t, "a", "10.0.0.0/24", 26)))
	other := req("o1")
	other.Network = "other"
	b.add(req("c1"))
	b.add(req("c2"))
	b.add(other)
	eps, err := b.Retain(ctx, "net", []model.AttachmentKey{req("c2").Key})
	if err != nil || len(eps) != 1 || eps[0].Key.ContainerID != "c1" {
		t.Fatalf("Retain: %v %v", eps, err)
	}
	if n := len(b.Endpoints()); n != 2 {
		t.Errorf("%d endpoints, want 2", n)
	}
}

// TestLostJournal: without a journal nothing that has a pod's handle is freed until DEL or
// GC names it.
func TestLostJournal(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 26), pool(t, "b", "fd00::/112", 122))
	b := open(t, "n1", s, snap)
	a1, a2, a3 := b.add(req("c1")), b.add(req("c2")), b.add(req("c3"))
	b.flush()
	b.Close()
	if err := os.Remove(filepath.Join(b.cfg.JournalDir, "journal")); err != nil {
		t.Fatal(err)
	}
	b.reopen(snap)
	b.client.Faults(0, 0, true)
	if _, err := b.Release(ctx, "c1", "eth0"); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("DEL with neither journal nor Store: %v, want ErrNotReady", err)
	}
	b.client.Faults(0, 0, false)
	b.flush()
	for _, a := range slices.Concat(a1, a2, a3) {
		if h := handle(t, s, a); !strings.HasPrefix(h, "net.") {
			t.Errorf("%s was freed by surprise: %q", a, h)
		}
	}
	if again := b.add(req("c2")); !slices.Equal(again, a2) {
		t.Errorf("repeated ADD got %v, want %v", again, a2)
	}
	if eps, err := b.Release(ctx, "c1", "eth1"); eps != nil || err != nil {
		t.Errorf("DEL of another interface: %v %v", eps, err)
	}
	eps, err := b.Release(ctx, "c1", "eth0")
	if err != nil || len(eps) != 1 || !slices.Equal(strs(eps[0].Addresses), a1) || eps[0].Pod != "pod-c1" {
		t.Errorf("DEL: %+v %v", eps, err)
	}
	eps, err = b.Retain(ctx, "net", []model.AttachmentKey{req("c2").Key})
	if err != nil || len(eps) != 1 || eps[0].Key != req("c3").Key {
		t.Errorf("GC: %+v %v", eps, err)
	}
	b.flush()
	for _, a := range slices.Concat(a1, a3) {
		if h := handle(t, s, a); h != "" {
			t.Errorf("%s has the handle %q", a, h)
		}
	}
}

// TestRemovedBlock: a block that someone deletes under living pods comes back with them.
func TestRemovedBlock(t *testing.T) {
	s := ipamtest.NewStore()
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/24", 26)))
	addr := b.add(req("c1"))
	b.flush()
	for _, blk := range blocks(t, s) {
		if err := s.Delete(ctx, blk); err != nil {
			t.Fatal(err)
		}
	}
	b.flush()
	if h := handle(t, s, addr[0]); h != "net.c1" {
		t.Errorf("%s has the handle %q, want net.c1", addr[0], h)
	}
}

func TestEmptyBlocksGoBack(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 29))
	b := open(t, "n1", s, snap)
	for i := range 40 {
		b.add(req(fmt.Sprint(i)))
	}
	b.flush()
	for i := range 40 {
		b.Release(ctx, fmt.Sprint(i), "")
	}
	b.flush()
	b.now.Add(3600)
	b.flush()
	if n := len(blocks(t, s)); n != 1 {
		t.Errorf("%d blocks, want 1", n)
	}
	off := snapshot(pool(t, "a", "10.0.0.0/24", 29, func(p *model.Pool) { p.Disabled = true }))
	b.Set(off)
	b.flush()
	if n := len(blocks(t, s)); n != 0 {
		t.Errorf("%d blocks of a disabled pool, want 0", n)
	}
}

// TestRun: what Assign leaves for later is done, and the stash filled, without a call.
func TestRun(t *testing.T) {
	s := ipamtest.NewStore()
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/24", 26)), func(c *ipam.Config) { c.Batch = time.Millisecond })
	run, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- b.Run(run) }()
	addr := b.add(req("c1"))
	deadline := time.Now().Add(5 * time.Second)
	for handle(t, s, addr[0]) != "net.c1" {
		if time.Now().After(deadline) {
			t.Fatal("the block was not written within 5 s")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func BenchmarkAssign(b *testing.B) {
	for name, sync := range map[string]func(*os.File) error{"fsync": nil, "nosync": func(*os.File) error { return nil }} {
		b.Run(name, func(b *testing.B) {
			x := open(b, "n1", ipamtest.NewStore(), snapshot(pool(b, "a", "10.0.0.0/8", 20)), func(c *ipam.Config) { c.SyncFile = sync })
			b.ResetTimer()
			for i := range b.N {
				id := fmt.Sprint(i)
				if _, err := x.Assign(ctx, req(id)); err != nil {
					b.Fatal(err)
				}
				if i%4 == 3 { // refills and releases are Run's work
					b.StopTimer()
					for k := i - 3; k <= i; k++ {
						x.Release(ctx, fmt.Sprint(k), "eth0")
					}
					if err := x.Flush(ctx, false); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// TestBorrowedBlockIsNotGivenBack: the owner's idea of a block is old, and another node
// has an address in it by now.
func TestBorrowedBlockIsNotGivenBack(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/27", 28))
	n2 := open(t, "n2", s, snap)
	strict := *snap
	strict.IPAM.StrictAffinity = true // keeps a stash in a full pool
	n1 := open(t, "n1", s, &strict)
	for i := range 17 {
		n1.add(req(fmt.Sprint(i)))
	}
	for i := range 17 {
		n1.Release(ctx, fmt.Sprint(i), "")
	}
	n1.flush()
	for i := range 10 { // the refill that follows spreads the stash over both blocks
		n1.add(req(fmt.Sprint("y", i)))
	}
	n1.flush()
	for i := range 10 {
		n1.Release(ctx, fmt.Sprint("y", i), "")
	}
	n1.flush()
	n1.now.Add(3600)
	var borrowed []string
	for cidr, b := range blocks(t, s) {
		if b.Free() == 0 || b.Free() == len(b.Slots) {
			t.Fatalf("block %s has %d free addresses, want some and some stash", cidr, b.Free())
		}
		r := req(cidr)
		r.Addresses = []netip.Addr{b.Addr(b.Unallocated[0])}
		borrowed = append(borrowed, n2.add(r)...)
	}
	if err := n1.Flush(ctx, false); err != nil {
		t.Fatal(err)
	}
	for _, addr := range borrowed {
		if h := handle(t, s, addr); h != ipam.StashPrefix+"n2" {
			t.Errorf("%s has the handle %q, want the mark of n2", addr, h)
		}
	}
	if len(borrowed) != 2 {
		t.Errorf("%d blocks, want 2", len(borrowed))
	}
}

// TestWithoutIPAM: addresses that no pool holds are an endpoint's like any other, but no
// block's.
func TestWithoutIPAM(t *testing.T) {
	s := ipamtest.NewStore()
	p := pool(t, "a", "10.0.0.0/24", 26)
	snap := snapshot(p)
	snap.Nodes[1].IPv4 = netip.MustParsePrefix("198.51.100.2/24")
	b := open(t, "n1", s, snap)
	outside := func(id string, addrs ...string) model.AddressRequest {
		r := req(id)
		for _, a := range addrs {
			r.NoIPAM = append(r.NoIPAM, netip.MustParseAddr(a))
		}
		return r
	}
	if got := b.add(outside("c1", "fd99::1", "192.0.2.1")); !slices.Equal(got, []string{"192.0.2.1", "fd99::1"}) {
		t.Fatalf("got %v", got)
	}
	if got := b.add(outside("c1")); len(got) != 2 {
		t.Errorf("repeated ADD got %v", got)
	}
	b.add(req("c2"))
	for addr, text := range map[string]string{
		"192.0.2.1": "in use by c1/eth0", "10.0.0.200": "pool a", "198.51.100.2": "node n2", "224.0.0.1": "unicast", "169.254.1.1": "unicast", "::1": "unicast",
	} {
		if _, err := b.Assign(ctx, outside("x", addr)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", addr, err, text)
		}
	}
	if _, err := b.Assign(ctx, outside("x", "192.0.2.8", "192.0.2.9")); err == nil {
		t.Error("two of a family were given")
	}
	b.flush()
	b.reopen(snap)
	b.flush()
	ep, ok := b.Endpoint(req("c1").Key)
	if !ok || len(ep.Addresses) != 2 {
		t.Fatalf("after a restart: %+v", ep)
	}
	ep.HostInterface = "cali1"
	if err := b.Wired(ctx, ep); err != nil {
		t.Error(err)
	}
	// A pool made over it later gives it to nobody else.
	b.Set(snapshot(p, pool(t, "b", "192.0.2.0/30", 30)))
	for i := range 3 {
		r := req(fmt.Sprint("b", i))
		r.IPv4Pools = []string{"b"}
		if got := b.add(r); got[0] == "192.0.2.1" {
			t.Error("192.0.2.1 was given a second time")
		}
	}
	b.Set(snap)
	if eps, err := b.Release(ctx, "c1", ""); err != nil || len(eps) != 1 || len(eps[0].Addresses) != 2 {
		t.Errorf("Release: %v %v", eps, err)
	}
	b.add(outside("c3", "192.0.2.1"))
	if eps, err := b.Retain(ctx, "net", nil); err != nil || len(eps) != 5 {
		t.Errorf("Retain: %v %v, want five endpoints gone", eps, err)
	}
	b.reopen(snap)
	b.flush()
	if n := len(b.Endpoints()); n != 0 {
		t.Errorf("%d endpoints are left", n)
	}
	for _, blk := range blocks(t, s) {
		for _, slot := range blk.Slots {
			if slot.Handle == "net.c1" || slot.Handle == "net.c3" {
				t.Errorf("block %s has %s", blk.CIDR, slot.Handle)
			}
		}
	}
}

// TestWhyNothingIsFree: what a pod's event shows names each pool and why it could not serve.
func TestWhyNothingIsFree(t *testing.T) {
	s := ipamtest.NewStore()
	pools := []model.Pool{
		pool(t, "a", "10.0.0.0/30", 30), pool(t, "b", "10.0.1.0/30", 30),
		pool(t, "c", "10.0.2.0/30", 30, func(p *model.Pool) { p.Disabled = true }),
		pool(t, "d", "10.0.3.0/30", 30, func(p *model.Pool) { p.NodeSelector = sel(t, "rack == 'n2'") }),
		pool(t, "e", "10.0.4.0/30", 30, func(p *model.Pool) { p.NamespaceSelector = sel(t, "team == 'x'") }),
	}
	n1, n2 := open(t, "n1", s, snapshot(pools...)), open(t, "n2", s, snapshot(pools[0]))
	for i := range 4 {
		n2.add(req(fmt.Sprint("o", i)))
	}
	ask := func(id string) model.AddressRequest {
		r := req(id)
		r.NamespaceLabels = map[string]string{"team": "y"}
		return r
	}
	for i := range 4 {
		n1.add(ask(fmt.Sprint(i)))
	}
	_, err := n1.Assign(ctx, ask("x"))
	if !errors.Is(err, ipam.ErrExhausted) {
		t.Fatalf("%v, want ErrExhausted", err)
	}
	want := `assign x/eth0: no free address on node n1: ` +
		`pool a (10.0.0.0/30): every block has an owner, and no block of another node has a free address; ` +
		`pool b (10.0.1.0/30): every block has an owner, and no block of another node has a free address; ` +
		`pool c: .spec.disabled is true; pool d: .spec.nodeSelector "rack == \"n2\"" does not select node n1; ` +
		`pool e: .spec.namespaceSelector "team == \"x\"" does not select namespace "ns"`
	if err.Error() != want {
		t.Errorf("got\n%s\nwant\n%s", err, want)
	}
}

// TestStashOfANamespace: what is put by for pods of one namespace is given to none of another.
func TestStashOfANamespace(t *testing.T) {
	b := open(t, "n1", ipamtest.NewStore(), snapshot(
		pool(t, "a", "10.0.0.0/24", 26, func(p *model.Pool) { p.NamespaceSelector = sel(t, "team == 'x'") }),
		pool(t, "b", "10.0.1.0/24", 26)))
	for i := range 20 {
		r := req(fmt.Sprint(i))
		want := "10.0.1."
		r.NamespaceLabels = map[string]string{"team": "y"}
		if i%2 == 0 {
			r.NamespaceLabels, want = map[string]string{"team": "x"}, "10.0.0."
		}
		if got := b.add(r); !strings.HasPrefix(got[0], want) {
			t.Errorf("a pod of team %s got %v", r.NamespaceLabels["team"], got)
		}
		b.flush()
	}
	r := req("unknown")
	if got := b.add(r); !strings.HasPrefix(got[0], "10.0.1.") {
		t.Errorf("a pod of a namespace that is not known got %v", got)
	}
}

// TestBurstsGrowTheStash: ADDs that find the stash empty make it larger, and calm makes it
// small again, which frees what others may need.
func TestBurstsGrowTheStash(t *testing.T) {
	s := ipamtest.NewStore()
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.0.0.0/16", 24)))
	stash := func() int {
		n := 0
		for _, blk := range blocks(t, s) {
			for _, slot := range blk.Slots {
				if slot.Handle == ipam.StashPrefix+"n1" {
					n++
				}
			}
		}
		return n
	}
	b.add(req("first"))
	b.flush()
	if n := stash(); n < 4 || n > 16 {
		t.Errorf("at rest %d addresses are put by, want 4 to 16", n)
	}
	for i := range 150 {
		b.add(req(fmt.Sprint(i)))
	}
	b.flush()
	if n := stash(); n < 32 {
		t.Errorf("after a burst %d addresses are put by, want 32 at least", n)
	}
	b.now.Add(600)
	b.flush()
	if n := stash(); n > 16 {
		t.Errorf("after a calm %d addresses are put by, want 16 at most", n)
	}
}

// TestSearchesAreRare: a pool that has nothing does not make a node read all blocks for
// every ADD.
func TestSearchesAreRare(t *testing.T) {
	s := &countingStore{Store: ipamtest.NewStore()}
	snap := snapshot(pool(t, "a", "10.0.0.0/30", 30))
	b := open(t, "n1", s, snap, func(c *ipam.Config) { c.SearchEvery = 10 * time.Second })
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	s.lists.Store(0)
	for i := range 10 {
		if _, err := b.Assign(ctx, req(fmt.Sprint("x", i))); !errors.Is(err, ipam.ErrExhausted) {
			t.Fatal(err)
		}
		b.now.Add(1)
		// In a large cluster some other node always comes or changes.
		other := *snap
		other.Nodes = append(slices.Clone(snap.Nodes), model.Node{Name: fmt.Sprint("other-", i)})
		b.Set(&other)
	}
	if n := s.lists.Load(); n != 1 {
		t.Errorf("all blocks were read %d times within 10 s, want once", n)
	}
	b.Release(ctx, "0", "")
	b.flush()
	b.add(req("y")) // of our own, at once
	b.now.Add(10)
	if _, err := b.Assign(ctx, req("z")); !errors.Is(err, ipam.ErrExhausted) || s.lists.Load() < 2 {
		t.Errorf("after 10 s: %v, %d searches", err, s.lists.Load())
	}
}

type countingStore struct {
	*ipamtest.Store
	lists atomic.Int64 // of all blocks
}

func (c *countingStore) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	if q == (ipam.Query{}) {
		c.lists.Add(1)
	}
	return c.Store.List(ctx, q)
}
