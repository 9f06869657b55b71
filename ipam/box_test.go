package ipam_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
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
