package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

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
