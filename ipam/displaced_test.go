package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// depart does what the controller does once a node is gone and no pod claims anything: all
// of its blocks are freed and deleted.
func depart(t testing.TB, s *ipamtest.Store, node string) {
	t.Helper()
	for _, b := range blocks(t, s) {
		if b.Node() == node {
			if err := s.Delete(ctx, b); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// shown is the snapshot with the blocks that the Store has for n1 and, unless gone, n1.
func shown(t testing.TB, snap *model.Snapshot, s *ipamtest.Store, gone bool) *model.Snapshot {
	t.Helper()
	out := *snap
	out.Blocks = nil
	for _, b := range blocks(t, s) {
		if b.Node() == "n1" {
			var lent []model.Loan
			for i, slot := range b.Slots {
				if node := slot.Attrs[ipam.AttrNode]; slot.Handle != "" && node != "n1" {
					lent = append(lent, model.Loan{Addr: b.Addr(i), Node: node})
				}
			}
			out.Blocks = append(out.Blocks, model.Block{CIDR: b.CIDR, Node: b.Node(), Lent: lent})
		}
	}
	if gone {
		out.Nodes = slices.DeleteFunc(slices.Clone(snap.Nodes), func(n model.Node) bool { return n.Name == "n1" })
	}
	return &out
}

// takeAll makes a node take every address of a pool of 32.
func takeAll(t testing.TB, b *box) map[string]bool {
	t.Helper()
	got := map[string]bool{}
	for i := range 32 {
		got[b.add(req(fmt.Sprint("n2-", i)))[0]] = true
	}
	b.flush()
	return got
}

// TestNodeComesBackAfterItsStashWasFreed: the node was gone for longer than the grace time,
// another node has its addresses, and it comes back with its journal, in a new agent or in
// the old one. It must give none of what its stash was.
func TestNodeComesBackAfterItsStashWasFreed(t *testing.T) {
	for name, restart := range map[string]bool{"agent restarted": true, "agent lived on": false} {
		t.Run(name, func(t *testing.T) {
			s := ipamtest.NewStore()
			snap := snapshot(pool(t, "a", "10.0.0.0/27", 28))
			n1 := open(t, "n1", s, snap)
			n1.Set(shown(t, snap, s, false))
			n1.add(req("old"))
			if _, err := n1.Release(ctx, "old", ""); err != nil {
				t.Fatal(err)
			}
			n1.flush()
			n1.Set(shown(t, snap, s, false))
			depart(t, s, "n1")
			taken := takeAll(t, open(t, "n2", s, snap))

			n1.Set(shown(t, snap, s, true))
			if _, err := n1.Assign(ctx, req("early")); !errors.Is(err, ipam.ErrNotReady) {
				t.Errorf("ADD without a Node: %v", err)
			}
			if restart {
				n1.reopen(shown(t, snap, s, false))
			} else {
				n1.Set(shown(t, snap, s, false))
				n1.client.Faults(0, 0, true)
				if ep, err := n1.Assign(ctx, req("c0")); !errors.Is(err, ipamtest.ErrAway) || !errors.Is(err, ipam.ErrNotReady) {
					t.Errorf("ADD with the stash in doubt and the Store away: %v %v", ep.Addresses, err)
				}
				n1.client.Faults(0, 0, false)
			}
			ep, err := n1.Assign(ctx, req("c1"))
			if err == nil && taken[ep.Addresses[0].String()] {
				t.Fatalf("%s has two owners", ep.Addresses[0])
			}
			if !errors.Is(err, ipam.ErrExhausted) {
				t.Errorf("%v %v", ep.Addresses, err)
			}
		})
	}
}

// TestBlockFreedUnderALivingAgent: a block goes while the Node stays, as when the API server
// comes back from a backup. The stash in it is not used, the pods' addresses are claimed
// again.
func TestBlockFreedUnderALivingAgent(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/27", 28))
	n1 := open(t, "n1", s, snap)
	pod := n1.add(req("pod"))
	n1.flush()
	n1.Set(shown(t, snap, s, false))
	depart(t, s, "n1")
	n1.Set(shown(t, snap, s, false))
	next := n1.add(req("next"))
	n1.flush()
	for _, addr := range []string{pod[0], next[0]} {
		if h := handle(t, s, addr); !strings.HasPrefix(h, "net.") {
			t.Errorf("%s has the handle %q", addr, h)
		}
	}
}

// TestLostAddressIsAProblem: two pods have an address, which only somebody's hand can bring
// about; it is shown for as long as it is so.
func TestLostAddressIsAProblem(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/28", 28))
	n1 := open(t, "n1", s, snap)
	addr := n1.add(req("c1"))[0]
	n1.flush()
	depart(t, s, "n1")
	n2 := open(t, "n2", s, snap)
	r := req("thief")
	r.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	n2.add(r)
	n2.flush()
	n1.flush()
	p := n1.Problems()
	if len(p) != 1 || p[0].Object != (model.Object{Kind: "Pod", Namespace: "ns", Name: "pod-c1"}) || !strings.Contains(p[0].Message, addr) || !strings.Contains(p[0].Message, "n2") {
		t.Errorf("%+v", p)
	}
	if _, err := n1.Release(ctx, "c1", ""); err != nil {
		t.Fatal(err)
	}
	n1.flush()
	if p := n1.Problems(); len(p) > 0 {
		t.Errorf("%+v", p)
	}
	if h := handle(t, s, addr); h != "net.thief" {
		t.Errorf("%s has the handle %q after the DEL of the other pod", addr, h)
	}
}

// TestBorrowersLeave: once the last borrower has left a block that its owner does not need,
// the owner gives the block back because the snapshot shows it, not at the next resync.
func TestBorrowersLeave(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/29", 29)) // one block
	n1, n2 := open(t, "n1", s, snap), open(t, "n2", s, snap)
	n1.add(req("c1"))
	n1.flush()
	n2.add(req("b1"))
	n2.flush()
	if err := n1.Flush(ctx, true); err != nil { // it knows of the borrower
		t.Fatal(err)
	}
	lent := shown(t, snap, s, false)
	if len(lent.Blocks) != 1 || len(lent.Blocks[0].Lent) == 0 {
		t.Fatalf("blocks %+v, want one, lent", lent.Blocks)
	}
	n1.Set(lent)
	n1.Release(ctx, "c1", "")
	none := *lent
	none.Pools = nil // the pool is gone: nothing keeps the block but who has addresses in it
	n1.Set(&none)
	n1.flush()
	if len(blocks(t, s)) != 1 {
		t.Fatal("the block went while another node has an address in it")
	}
	n2.Release(ctx, "b1", "")
	n2.Set(&none)
	n2.flush()
	left := shown(t, &none, s, false)
	if len(left.Blocks) != 1 || len(left.Blocks[0].Lent) != 0 {
		t.Fatalf("blocks %+v, want one that is not lent", left.Blocks)
	}
	n1.Set(left)
	if err := n1.Flush(ctx, false); err != nil { // reads nothing unasked
		t.Fatal(err)
	}
	if got := blocks(t, s); len(got) != 0 {
		t.Errorf("blocks %v are left, want none", got)
	}
}
