package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

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
