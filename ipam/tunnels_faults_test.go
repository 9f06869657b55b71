package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// loseAnswers is a Store that does the next updates inside a prefix and answers that they
// failed.
type loseAnswers struct {
	*ipamtest.Store
	in   netip.Prefix
	left atomic.Int64
}

func (s *loseAnswers) Update(ctx context.Context, b *ipam.Block) error {
	err := s.Store.Update(ctx, b)
	if s.in.Contains(b.CIDR.Addr()) && s.left.Add(-1) >= 0 {
		return errors.Join(errors.New("the answer is lost"), err)
	}
	return err
}

// TestTunnelOfALostAnswer: the address was marked, and nobody knew. An ADD finds it, and the
// next one writes the old address's block: the listener hears of the new one before that.
func TestTunnelOfALostAnswer(t *testing.T) {
	s := &loseAnswers{Store: ipamtest.NewStore(), in: netip.MustParsePrefix("10.9.0.0/24")}
	a, z := pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways)), pool(t, "z", "10.9.0.0/24", 26, func(p *model.Pool) { p.Manual = true })
	e := &ear{}
	b := open(t, "n1", s, snapshot(a, z), e.listen)
	ask := func(pool, id string) {
		t.Helper()
		r := req(id)
		r.IPv4Pools = []string{pool}
		b.add(r)
	}
	ask("z", "first") // of a Manual pool: nothing is put by
	ask("a", "second")
	b.SetTunnels(justVXLAN)
	b.flush()
	old := e.last(t, model.TunnelVXLAN4)
	var heard []string
	e.check = func(_, now [model.Tunnels]netip.Addr) {
		heard = append(heard, handle(t, s, old))
	}
	a.VXLANMode, z.VXLANMode, z.AllowedUses, z.Manual = model.EncapNever, model.EncapAlways, a.AllowedUses, false
	b.Set(snapshot(a, z))
	s.left.Store(1)
	b.Flush(ctx, false)
	for i := range 20 { // more than are put by: each pool's block is written
		ask("z", fmt.Sprint("z", i))
		ask("a", fmt.Sprint("a", i))
	}
	b.flush()
	if now := e.last(t, model.TunnelVXLAN4); now == old || now == "" || tunnelSlots(t, s, "n1") != 1 || handle(t, s, now) != "vxlan-tunnel-addr-n1" {
		t.Errorf("had %s, has %q; %d addresses in all", old, now, tunnelSlots(t, s, "n1"))
	}
	if len(heard) != 1 || heard[0] != "vxlan-tunnel-addr-n1" {
		t.Errorf("at each change %s had the handle %q, want one change and it still ours", old, heard)
	}
}

// TestTunnelOnABadDisk: what is not in the journal is not told.
func TestTunnelOnABadDisk(t *testing.T) {
	var bad atomic.Bool
	s := ipamtest.NewStore()
	e := &ear{}
	b := open(t, "n1", s, snapshot(pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways))), e.listen, func(c *ipam.Config) {
		c.SyncFile = func(*os.File) error {
			if bad.Load() {
				return syscall.EIO
			}
			return nil
		}
	})
	bad.Store(true)
	b.SetTunnels(justVXLAN)
	if err := b.Flush(ctx, true); !errors.Is(err, syscall.EIO) || e.times() != 0 {
		t.Errorf("%v, told %v", err, e.told)
	}
	bad.Store(false)
	b.flush()
	if addr := e.last(t, model.TunnelVXLAN4); handle(t, s, addr) != "vxlan-tunnel-addr-n1" {
		t.Errorf("told %q", addr)
	}
}

// TestTunnelInABlockOfAnotherSize: an operator removed the block and made pods claim one of
// another size where the address lies.
func TestTunnelInABlockOfAnotherSize(t *testing.T) {
	s := ipamtest.NewStore()
	e := &ear{}
	snap := snapshot(pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways)))
	b := open(t, "n1", s, snap, e.listen)
	b.SetTunnels(justVXLAN)
	b.flush()
	addr := e.last(t, model.TunnelVXLAN4)
	depart(t, s, "n1")
	cidr := netip.PrefixFrom(netip.MustParseAddr(addr), 28).Masked()
	if err := s.Create(ctx, ipam.NewBlock(cidr, "n2", b.cfg.Now())); err != nil {
		t.Fatal(err)
	}
	b.flush()
	b.reopen(snap)
	b.SetTunnels(justVXLAN)
	b.flush()
	if got := e.last(t, model.TunnelVXLAN4); got != addr || handle(t, s, addr) != "vxlan-tunnel-addr-n1" || len(blocks(t, s)) != 1 {
		t.Errorf("had %s, has %s with the handle %q in %v", addr, got, handle(t, s, addr), blocks(t, s))
	}
}

// TestTunnelSearchGivesWay: an ADD that needs the Store does not wait for the search for a
// tunnel's address.
func TestTunnelSearchGivesWay(t *testing.T) {
	s := &slowList{Store: ipamtest.NewStore(), begun: make(chan struct{}, 1)}
	snap := snapshot(pool(t, "a", "10.0.0.0/30", 30, vxlan(model.EncapAlways)), pool(t, "b", "10.1.0.0/24", 26, func(p *model.Pool) { p.Manual = true }))
	n2 := open(t, "n2", s.Store, snap)
	for i := range 4 {
		n2.add(req(fmt.Sprint(i)))
	}
	n2.flush()
	b := open(t, "n1", s, snap, func(c *ipam.Config) { c.Batch = time.Millisecond })
	b.flush()
	run, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- b.Run(run) }()
	b.SetTunnels(justVXLAN)
	<-s.begun
	began := time.Now()
	r := req("c")
	r.IPv4Pools = []string{"b"}
	b.add(r)
	if d := time.Since(began); d > time.Second {
		t.Errorf("the ADD took %s", d)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// slowList is a Store whose list of all blocks never ends.
type slowList struct {
	*ipamtest.Store
	begun chan struct{}
}

func (s *slowList) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	if q != (ipam.Query{}) {
		return s.Store.List(ctx, q)
	}
	return func(yield func(*ipam.Block, error) bool) {
		select {
		case s.begun <- struct{}{}:
		default:
		}
		<-ctx.Done()
		yield(nil, ctx.Err())
	}
}
