package ipam_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
)

// TestTunnels lets six nodes race for addresses of one block for their tunnels, and restarts
// their agents: with the journal, without it, and with nothing to write.
func TestTunnels(t *testing.T) {
	ready(t)
	const nodes = 6
	p := pool(t, "p", "10.0.0.0/28", 28)
	p.AllowedUses, p.VXLANMode = []model.Use{model.UseWorkload, model.UseTunnel}, model.EncapCrossSubnet
	q := pool(t, "q", "10.0.1.0/24", 26)
	q.AllowedUses, q.IPIPMode = []model.Use{model.UseTunnel}, model.EncapAlways
	s := snapshot(nodes, p, q)
	journals := t.TempDir()

	// life runs the agents until their tunnels have what done asks for, and tells what that is.
	life := func(want []model.Tunnel, done func(map[string][model.Tunnels]netip.Addr) bool) map[string][model.Tunnels]netip.Addr {
		t.Helper()
		var mu sync.Mutex
		told := map[string][model.Tunnels]netip.Addr{}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range nodes {
			node := name(i)
			dir := filepath.Join(journals, node)
			a := allocatorIn(t, node, dir, s, func(now [model.Tunnels]netip.Addr) {
				mu.Lock()
				defer mu.Unlock()
				told[node] = now
			})
			a.SetTunnels(want)
			wg.Go(func() {
				if err := a.Run(ctx); err != nil {
					t.Errorf("%s: Run: %v", node, err)
				}
				if err := a.Flush(context.Background(), true); err != nil {
					t.Errorf("%s: Flush: %v", node, err)
				}
				a.Close()
			})
		}
		eventually(t, "the tunnels have what they want", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(told) == nodes && done(told)
		})
		cancel()
		wg.Wait()
		return told
	}
	both := []model.Tunnel{model.TunnelIPIP, model.TunnelVXLAN4}
	whole := func(told map[string][model.Tunnels]netip.Addr) bool {
		for _, now := range told {
			if !now[model.TunnelIPIP].IsValid() || !now[model.TunnelVXLAN4].IsValid() || now[model.TunnelVXLAN6].IsValid() {
				return false
			}
		}
		return true
	}
	first := life(both, whole)
	holders := map[netip.Addr]string{}
	for node, now := range first {
		for _, k := range both {
			if other, ok := holders[now[k]]; ok {
				t.Errorf("%s is that of %s and of %s", now[k], node, other)
			}
			holders[now[k]] = node
		}
	}
	types := map[string]int{}
	for _, b := range all(t, ipam.Query{}) {
		for _, at := range raw(t, v3.BlockName(b.CIDR)).Spec.Attributes {
			types[at.ActiveOwnerAttrs["type"]]++
		}
		for i, slot := range b.Slots {
			node := slot.Attrs[ipam.AttrNode]
			if slot.Handle != "" && holders[b.Addr(i)] != node {
				t.Errorf("block %s gives %s to %s, which has it not", b.CIDR, b.Addr(i), slot.Handle)
			}
		}
	}
	if types["ipipTunnelAddress"] != nodes || types["vxlanTunnelAddress"] != nodes || len(types) != 2 {
		t.Errorf("attributes of blocks: %v, want %d of each kind", types, nodes)
	}

	again := func(what string) {
		t.Helper()
		var second map[string][model.Tunnels]netip.Addr
		writes, _ := cost(t, what, 1, func() { second = life(both, whole) })
		if writes != 0 {
			t.Errorf("%s: %g writes, want none", what, writes)
		}
		for node, now := range first {
			if second[node] != now {
				t.Errorf("%s: %s had %v and has %v", what, node, now, second[node])
			}
		}
	}
	again("restart with the journal")
	for i := range nodes {
		if err := os.RemoveAll(filepath.Join(journals, name(i))); err != nil {
			t.Fatal(err)
		}
	}
	again("restart without the journal")

	life(nil, func(told map[string][model.Tunnels]netip.Addr) bool {
		for _, now := range told {
			if now != [model.Tunnels]netip.Addr{} {
				return false
			}
		}
		return true
	})
	for _, b := range all(t, ipam.Query{}) {
		if i := slices.IndexFunc(b.Slots, func(s ipam.Slot) bool { return s.Handle != "" }); i >= 0 {
			t.Errorf("block %s still gives %s to %s", b.CIDR, b.Addr(i), b.Slots[i].Handle)
		}
	}
}

// allocatorIn returns an Allocator that does not run yet, with its journal in a folder.
func allocatorIn(t *testing.T, node, dir string, s *model.Snapshot, hear func([model.Tunnels]netip.Addr)) *ipam.Allocator {
	t.Helper()
	a, err := ipam.New(ipam.Config{Node: node, Store: store(t, node), JournalDir: dir, Log: slog.New(slog.DiscardHandler), Resync: kube.Resync, Tunnels: hear})
	if err != nil {
		t.Fatal(err)
	}
	a.Set(s)
	return a
}
