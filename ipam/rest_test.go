package ipam_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// disk is one that fails while it is bad: what was written stays, and is not promised.
type disk struct{ bad atomic.Bool }

func (d *disk) attach(c *ipam.Config) {
	c.SyncFile = func(*os.File) error {
		if d.bad.Load() {
			return syscall.EIO
		}
		return nil
	}
}

// TestTunnelAddressRestsSinceItIsTold: a tunnel uses its address until it is told otherwise,
// which a disk that fails puts off.
func TestTunnelAddressRestsSinceItIsTold(t *testing.T) {
	s, d, e := ipamtest.NewStore(), &disk{}, &ear{}
	snap := snapshot(pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways)))
	snap.IPAM.Cooldown = time.Minute
	b := open(t, "n1", s, snap, e.listen, d.attach)
	b.SetTunnels(justVXLAN)
	b.flush()
	addr := e.last(t, model.TunnelVXLAN4)
	d.bad.Store(true)
	b.SetTunnels(nil)
	if err := b.Flush(ctx, false); err == nil || e.last(t, model.TunnelVXLAN4) != addr {
		t.Fatalf("with a bad disk: %v, told %q", err, e.last(t, model.TunnelVXLAN4))
	}
	b.now.Add(3600)
	d.bad.Store(false)
	b.flush()
	if got := e.last(t, model.TunnelVXLAN4); got != "" {
		t.Fatalf("told %q", got)
	}
	if got := slot(t, s, addr); got.Handle != "" || !got.ReleasedAt.Equal(b.cfg.Now()) {
		t.Errorf("%s has %+v, want it released at %s, when the tunnel was told", addr, got, b.cfg.Now())
	}
}

// TestTunnelGivenUpByAKilledAgent: the journal says that the tunnel has no address, and
// nobody was told. The next agent tells before an ADD frees the address in its block, and it
// rests since.
func TestTunnelGivenUpByAKilledAgent(t *testing.T) {
	s, d, e := ipamtest.NewStore(), &disk{}, &ear{}
	snap := snapshot(pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways)))
	snap.IPAM.Cooldown = time.Minute
	b := open(t, "n1", s, snap, e.listen, d.attach)
	b.SetTunnels(justVXLAN)
	b.flush()
	addr := e.last(t, model.TunnelVXLAN4)
	d.bad.Store(true)
	b.SetTunnels(nil)
	if err := b.Flush(ctx, false); err == nil {
		t.Fatal("the disk is not bad")
	}
	d.bad.Store(false)
	b.now.Add(3600)
	var heard []string
	e.check = func(_, now [model.Tunnels]netip.Addr) {
		heard = append(heard, fmt.Sprint(now[model.TunnelVXLAN4], handle(t, s, addr)))
	}
	b.reopen(snap)
	b.add(req("c1")) // the stash is empty: it writes the block
	if want := fmt.Sprint(netip.Addr{}, "vxlan-tunnel-addr-n1"); len(heard) != 1 || heard[0] != want {
		t.Errorf("told %q, want %q once, before the address is free", heard, want)
	}
	if got := slot(t, s, addr); got.Handle != "" || !got.ReleasedAt.Equal(b.cfg.Now()) {
		t.Errorf("%s has %+v, want it released at %s, when the tunnel was told", addr, got, b.cfg.Now())
	}
}

// TestBlockInWhichAnAddressRestsStays: the owner's idea of a block is old. Since then another
// node had an address of it and gave it back, and its rest would be gone with the block.
func TestBlockInWhichAnAddressRestsStays(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/27", 28))
	snap.IPAM.Cooldown = 2 * time.Minute
	n2 := open(t, "n2", s, snap)
	strict := *snap
	strict.IPAM.StrictAffinity = true // keeps a stash in a full pool
	n1 := open(t, "n1", s, &strict)
	for _, n := range []int{17, 10} { // the second refill spreads the stash over both blocks
		for i := range n {
			n1.add(req(fmt.Sprint(n, ".", i)))
		}
		n1.flush()
		for i := range n {
			n1.Release(ctx, fmt.Sprint(n, ".", i), "")
		}
		n1.flush()
		n1.now.Add(3600)
	}
	n2.now.Store(n1.now.Load())
	rest := map[string]bool{}
	for cidr, b := range blocks(t, s) {
		if b.Free() == 0 || b.Free() == len(b.Slots) {
			t.Fatalf("block %s has %d free addresses, want some and some stash", cidr, b.Free())
		}
		r := req(cidr)
		r.Addresses = []netip.Addr{b.Addr(b.Unallocated[0])}
		rest[n2.add(r)[0]] = true
		n2.Release(ctx, cidr, "")
	}
	n2.flush()
	if err := n1.Flush(ctx, false); err != nil {
		t.Fatal(err)
	}
	for addr := range rest {
		if got := slot(t, s, addr); !got.ReleasedAt.Equal(n2.cfg.Now()) {
			t.Errorf("%s has %+v, want it released at %s; blocks %v", addr, got, n2.cfg.Now(), blocks(t, s))
		}
	}
	if len(rest) != 2 {
		t.Errorf("%d blocks, want 2", len(rest))
	}
	n1.now.Add(3600)
	n1.flush()
	if n := len(blocks(t, s)); n != 1 {
		t.Errorf("%d blocks once nothing rests, want 1", n)
	}
}

// TestRestOutlivesTheJournal: the journal lost its end, and speaks of an earlier release than
// the mark in the block does.
func TestRestOutlivesTheJournal(t *testing.T) {
	s, d := ipamtest.NewStore(), &disk{}
	snap := snapshot(pool(t, "a", "10.0.0.0/26", 26))
	snap.IPAM.Cooldown = time.Minute
	n1, n2 := open(t, "n1", s, snap, d.attach), open(t, "n2", s, snap)
	addr := n1.add(req("c1"))[0]
	n1.flush()
	n1.Release(ctx, "c1", "")
	path := filepath.Join(n1.cfg.JournalDir, "journal")
	durable, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n1.flush()
	named := req("c2")
	named.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	n2.now.Add(50)
	n2.add(named)
	n2.Release(ctx, "c2", "")
	n2.flush()
	n1.now.Store(n2.now.Load())
	d.bad.Store(true)
	if _, err := n1.Assign(ctx, named); err == nil || handle(t, s, addr) != ipam.StashPrefix+"n1" {
		t.Fatalf("with a bad disk: %v, and %s has the handle %q", err, addr, handle(t, s, addr))
	}
	d.bad.Store(false)
	n1.Close()
	if err := os.WriteFile(path, durable, 0o600); err != nil {
		t.Fatal(err)
	}
	n1.reopen(snap)
	n1.flush()
	if got := slot(t, s, addr); got.Handle != "" || !got.ReleasedAt.Equal(n2.cfg.Now()) {
		t.Errorf("%s has %+v, want it free and released at %s", addr, got, n2.cfg.Now())
	}
}
