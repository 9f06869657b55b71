package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// ear hears what Config.Tunnels is told.
type ear struct {
	mu    sync.Mutex
	told  [][model.Tunnels]netip.Addr
	check func(was, now [model.Tunnels]netip.Addr)
}

func (e *ear) hear(now [model.Tunnels]netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var was [model.Tunnels]netip.Addr
	if len(e.told) > 0 {
		was = e.told[len(e.told)-1]
	}
	e.told = append(e.told, now)
	if e.check != nil {
		e.check(was, now)
	}
}

func (e *ear) times() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.told)
}

func (e *ear) listen(c *ipam.Config) { c.Tunnels = e.hear }

// last is what was told last of a tunnel; "" for no address.
func (e *ear) last(t testing.TB, which model.Tunnel) string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.told) == 0 {
		t.Fatal("nothing was told")
	}
	if a := e.told[len(e.told)-1][which]; a.IsValid() {
		return a.String()
	}
	return ""
}

func uses(u ...model.Use) func(*model.Pool) { return func(p *model.Pool) { p.AllowedUses = u } }
func ipip(m model.EncapMode) func(*model.Pool) {
	return func(p *model.Pool) { p.IPIPMode, p.AllowedUses = m, []model.Use{model.UseWorkload, model.UseTunnel} }
}
func vxlan(m model.EncapMode) func(*model.Pool) {
	return func(p *model.Pool) { p.VXLANMode, p.AllowedUses = m, []model.Use{model.UseWorkload, model.UseTunnel} }
}

func becomesIPIP(p *model.Pool) { p.IPIPMode, p.VXLANMode = model.EncapAlways, model.EncapNever }

var (
	justIPIP  = []model.Tunnel{model.TunnelIPIP}
	justVXLAN = []model.Tunnel{model.TunnelVXLAN4}
)

func slot(t testing.TB, s ipam.Store, addr string) ipam.Slot {
	t.Helper()
	for _, b := range blocks(t, s) {
		if a := netip.MustParseAddr(addr); b.CIDR.Contains(a) {
			return b.Slots[b.Ordinal(a)]
		}
	}
	return ipam.Slot{}
}

// tunnelSlots counts the addresses that blocks give to tunnels of a node.
func tunnelSlots(t testing.TB, s ipam.Store, node string) int {
	t.Helper()
	n := 0
	for _, b := range blocks(t, s) {
		for _, slot := range b.Slots {
			for k := range model.Tunnel(model.Tunnels) {
				if slot.Handle == ipam.TunnelHandle(k, node) {
					n++
				}
			}
		}
	}
	return n
}

// TestTunnelsAreCalicosAndStay: each tunnel gets one address of a pool of its mode and
// family, marked as Calico marks it; a restart keeps it and writes nothing; pods' calls do
// not see it; a tunnel that is not wanted any more gives it back.
func TestTunnelsAreCalicosAndStay(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(
		pool(t, "ipip", "10.1.0.0/24", 26, ipip(model.EncapCrossSubnet)),
		pool(t, "plain", "10.0.0.0/24", 26),
		pool(t, "v6", "fd00::/112", 122, vxlan(model.EncapAlways)),
		pool(t, "vxlan", "10.2.0.0/24", 26, vxlan(model.EncapAlways), uses(model.UseTunnel)),
	)
	e := &ear{}
	b := open(t, "n1", s, snap, e.listen)
	b.SetTunnels([]model.Tunnel{model.TunnelVXLAN6, model.TunnelIPIP, model.TunnelVXLAN4})
	b.flush()
	kept := map[model.Tunnel]string{}
	for tunnel, want := range map[model.Tunnel][3]string{
		model.TunnelIPIP:   {"10.1.0.", "ipip-tunnel-addr-n1", "ipipTunnelAddress"},
		model.TunnelVXLAN4: {"10.2.0.", "vxlan-tunnel-addr-n1", "vxlanTunnelAddress"},
		model.TunnelVXLAN6: {"fd00::", "vxlan-v6-tunnel-addr-n1", "vxlanV6TunnelAddress"},
	} {
		addr := e.last(t, tunnel)
		kept[tunnel] = addr
		got := slot(t, s, addr)
		if !strings.HasPrefix(addr, want[0]) || got.Handle != want[1] || len(got.Attrs) != 2 || got.Attrs["node"] != "n1" || got.Attrs["type"] != want[2] {
			t.Errorf("%s: %s with %+v, want %v", tunnel, addr, got, want)
		}
	}
	if p := b.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
	if n := len(b.Endpoints()); n != 0 {
		t.Errorf("%d endpoints, want none", n)
	}
	for _, network := range []string{"", "net", "vxlan-tunnel-addr-n1", "ipip-tunnel-addr-n1"} {
		if eps, err := b.Retain(ctx, network, nil); err != nil || len(eps) != 0 {
			t.Errorf("GC of network %q took %v, %v", network, eps, err)
		}
	}
	for _, id := range []string{"vxlan-tunnel-addr-n1", "ipip-tunnel-addr-n1", "n1"} {
		if eps, err := b.Release(ctx, id, ""); err != nil || len(eps) != 0 {
			t.Errorf("DEL of %s took %v, %v", id, eps, err)
		}
	}
	static := req("static")
	static.Addresses = []netip.Addr{netip.MustParseAddr(kept[model.TunnelIPIP])}
	if _, err := b.Assign(ctx, static); !errors.Is(err, ipam.ErrAddressInUse) || !strings.Contains(err.Error(), "tunnel tunl0") {
		t.Errorf("a pod that asks for the address of tunl0: %v", err)
	}

	writes, told := s.Writes(), e.times()
	for range 3 {
		b.reopen(snap)
		b.SetTunnels([]model.Tunnel{model.TunnelIPIP, model.TunnelVXLAN4, model.TunnelVXLAN6})
		b.flush()
		b.flush()
		b.SetTunnels([]model.Tunnel{model.TunnelVXLAN4, model.TunnelVXLAN6, model.TunnelIPIP})
		b.Set(snapshot(snap.Pools...))
		b.flush()
	}
	if n := s.Writes() - writes; n != 0 {
		t.Errorf("%d writes where nothing changed, want none", n)
	}
	if n := e.times() - told; n != 3 {
		t.Errorf("told %d times in three lives without a change, want once in each", n)
	}
	for tunnel, addr := range kept {
		if got := e.last(t, tunnel); got != addr {
			t.Errorf("%s: %s after restarts, want %s", tunnel, got, addr)
		}
	}

	b.SetTunnels(justVXLAN)
	b.flush()
	for tunnel, addr := range kept {
		if gone := tunnel != model.TunnelVXLAN4; gone != (e.last(t, tunnel) == "") || gone != (handle(t, s, addr) == "") {
			t.Errorf("%s after only vxlan is wanted: told %q, block says %q", tunnel, e.last(t, tunnel), handle(t, s, addr))
		}
	}
	b.SetTunnels(nil)
	b.flush()
	if n := tunnelSlots(t, s, "n1"); n != 0 {
		t.Errorf("%d addresses of tunnels are left, want none", n)
	}
	b.now.Add(3600)
	b.flush()
	if n := len(blocks(t, s)); n != 2 { // one empty one for pods of ipip and v6 each; none of vxlan
		t.Errorf("%d blocks are left, want 2", n)
	}
}

// TestTunnelBeforeTheWish: what the journal has is told at once, with the Store away, and
// nothing is given back before anybody said what is wanted.
func TestTunnelBeforeTheWish(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 26, vxlan(model.EncapAlways)))
	e := &ear{}
	b := open(t, "n1", s, snap, e.listen, func(c *ipam.Config) { c.Batch = time.Millisecond })
	b.SetTunnels(justVXLAN)
	b.flush()
	addr := e.last(t, model.TunnelVXLAN4)
	b.reopen(nil)
	b.client.Faults(0, 0, true)
	told := e.times()
	run, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- b.Run(run) }()
	until(t, "the address of the journal is told", func() bool { return e.times() > told })
	cancel()
	<-done
	b.client.Faults(0, 0, false)
	b.Set(snap)
	b.flush()
	if got := e.last(t, model.TunnelVXLAN4); got != addr || handle(t, s, addr) != "vxlan-tunnel-addr-n1" {
		t.Errorf("told %q, and %s has the handle %q", got, addr, handle(t, s, addr))
	}
}

// until polls, for up to 5 s.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// TestTunnelOfALostJournal: the block tells whose the address is. It does not matter whether
// the disk was lost or the machine is another one of the same name.
func TestTunnelOfALostJournal(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/24", 26, vxlan(model.EncapAlways), ipip(model.EncapAlways)))
	e := &ear{}
	b := open(t, "n1", s, snap, e.listen)
	b.SetTunnels([]model.Tunnel{model.TunnelVXLAN4, model.TunnelIPIP})
	b.flush()
	vx, ip := e.last(t, model.TunnelVXLAN4), e.last(t, model.TunnelIPIP)
	// Another address with the handle of the tunnel, as a lost answer leaves it.
	for _, blk := range blocks(t, s) {
		i := blk.Unallocated[len(blk.Unallocated)-1]
		blk.Slots[i] = ipam.Slot{Handle: "vxlan-tunnel-addr-n1", Attrs: map[string]string{"node": "n1"}}
		blk.Unallocated = slices.DeleteFunc(blk.Unallocated, func(n int) bool { return n == i })
		if err := s.Update(ctx, blk); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	if err := os.Remove(filepath.Join(b.cfg.JournalDir, "journal")); err != nil {
		t.Fatal(err)
	}
	b.reopen(snap)
	b.SetTunnels(justVXLAN)
	b.flush()
	if got := e.last(t, model.TunnelVXLAN4); got != vx {
		t.Errorf("vxlan.calico has %s, want %s again", got, vx)
	}
	if h := handle(t, s, ip); h != "" || tunnelSlots(t, s, "n1") != 1 {
		t.Errorf("%s, which nobody wants, has the handle %q; tunnels have %d addresses, want 1", ip, h, tunnelSlots(t, s, "n1"))
	}
}

// TestTunnelMoves: what makes a tunnel change its address, in which order, and that the old
// one rests.
func TestTunnelMoves(t *testing.T) {
	const a, z = "10.1.0.", "10.9.0."
	first := pool(t, "a", "10.1.0.0/24", 26, vxlan(model.EncapAlways))
	with := func(change func(*model.Pool)) *model.Pool { p := first; change(&p); return &p }
	for name, c := range map[string]struct {
		pool   *model.Pool // instead of the first; nil: it is removed
		spare  bool        // there is another pool
		expect string      // where the address is then; empty: nowhere
	}{
		"nothing changes":          {&first, true, a},
		"pool removed":             {nil, true, z},
		"the only pool removed":    {nil, false, ""},
		"no tunnels":               {with(uses(model.UseWorkload)), true, z},
		"no tunnels anywhere":      {with(uses(model.UseWorkload)), false, ""},
		"another mode":             {with(becomesIPIP), true, z},
		"another mode, no spare":   {with(becomesIPIP), false, ""},
		"disabled":                 {with(func(p *model.Pool) { p.Disabled = true }), true, z},
		"disabled, no spare":       {with(func(p *model.Pool) { p.Disabled = true }), false, a},
		"manual":                   {with(func(p *model.Pool) { p.Manual = true }), true, z},
		"for other nodes":          {with(func(p *model.Pool) { p.NodeSelector = sel(t, "rack == 'n2'") }), true, z},
		"for other nodes no spare": {with(func(p *model.Pool) { p.NodeSelector = sel(t, "rack == 'n2'") }), false, a},
		"from always to cross":     {with(vxlan(model.EncapCrossSubnet)), true, a},
	} {
		t.Run(name, func(t *testing.T) {
			s := ipamtest.NewStore()
			e := &ear{}
			b := open(t, "n1", s, snapshot(first), e.listen)
			b.SetTunnels(justVXLAN)
			b.flush()
			old := e.last(t, model.TunnelVXLAN4)
			e.check = func(was, now [model.Tunnels]netip.Addr) {
				if h := handle(t, s, was[model.TunnelVXLAN4].String()); h != "vxlan-tunnel-addr-n1" {
					t.Errorf("%v was told when the old address had the handle %q", now, h)
				}
			}
			var pools []model.Pool
			if c.pool != nil {
				pools = append(pools, *c.pool)
			}
			if c.spare {
				pools = append(pools, pool(t, "z", "10.9.0.0/24", 26, vxlan(model.EncapAlways)))
			}
			snap := snapshot(pools...)
			snap.IPAM.Cooldown = time.Minute
			b.Set(snap)
			b.flush()
			now := e.last(t, model.TunnelVXLAN4)
			if !strings.HasPrefix(now, c.expect) || (c.expect == "") != (now == "") {
				t.Fatalf("vxlan.calico has %q, want %q", now, c.expect)
			}
			if problem := len(b.Problems()) > 0; problem != (c.expect == "") {
				t.Errorf("problems: %v", b.Problems())
			}
			e.check = nil
			if now == old {
				return
			}
			if got := slot(t, s, old); got.Handle != "" || c.pool != nil && got.ReleasedAt.IsZero() {
				t.Errorf("%s is %+v, want it free and resting", old, got)
			}
			if c.pool == nil || c.pool.Disabled {
				return
			}
			// Nobody has it before its minute is over: not by the back door of a new life either.
			n2 := open(t, "n2", s, snap)
			b.reopen(snap)
			b.SetTunnels(justVXLAN)
			for i := range 70 {
				for _, n := range []*box{b, n2} {
					if ep, err := n.Assign(ctx, req(fmt.Sprint(n.cfg.Node, i))); err == nil && strs(ep.Addresses)[0] == old {
						t.Fatalf("a pod got %s at once", old)
					}
				}
			}
		})
	}
}

// TestTunnelOutOfAFullPool: ADDs go on, the lack is reported, and what becomes free is taken.
func TestTunnelOutOfAFullPool(t *testing.T) {
	s := ipamtest.NewStore()
	var log strings.Builder
	snap := snapshot(pool(t, "a", "10.0.0.0/30", 30, vxlan(model.EncapAlways)), pool(t, "b", "10.1.0.0/24", 26))
	e := &ear{}
	b := open(t, "n1", s, snap, e.listen, func(c *ipam.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	b.SetTunnels(justVXLAN)
	b.flush()
	b.flush()
	if e.last(t, model.TunnelVXLAN4) != "" || e.times() != 1 {
		t.Errorf("told %v", e.told)
	}
	p := b.Problems()
	if len(p) != 1 || p[0].Object.String() != "Node n1" || !strings.Contains(p[0].Message, "vxlan.calico") || !strings.Contains(p[0].Message, "pool a (10.0.0.0/30): every block has an owner") {
		t.Errorf("problems: %v", p)
	}
	if n := strings.Count(log.String(), "no address for a tunnel"); n != 1 {
		t.Errorf("%d warnings of one lack, want 1:\n%s", n, log.String())
	}
	if got := b.add(req("another")); !strings.HasPrefix(got[0], "10.1.") {
		t.Errorf("ADD got %v", got)
	}
	if _, err := b.Release(ctx, "2", ""); err != nil {
		t.Fatal(err)
	}
	b.flush() // frees it
	b.flush() // takes it
	if e.last(t, model.TunnelVXLAN4) == "" || len(b.Problems()) != 0 {
		t.Errorf("after a pod left: told %v, problems %v", e.told, b.Problems())
	}
}

// TestTunnelBorrows: another node's block has an address, unless strictAffinity forbids it.
// The stash serves a tunnel, too.
func TestTunnelBorrows(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "10.0.0.0/29", 29, ipip(model.EncapAlways)))
	e := &ear{}
	n2 := open(t, "n2", s, snap)
	n2.add(req("c"))
	n2.flush()
	strict := snapshot(snap.Pools...)
	strict.IPAM.StrictAffinity = true
	n1 := open(t, "n1", s, strict, e.listen)
	n1.SetTunnels(justIPIP)
	n1.flush()
	if p := n1.Problems(); e.last(t, model.TunnelIPIP) != "" || len(p) != 1 || !strings.Contains(p[0].Message, "strictAffinity") {
		t.Errorf("with strictAffinity: told %v, problems %v", e.told, p)
	}
	n1.Set(snap)
	n1.flush()
	addr := e.last(t, model.TunnelIPIP)
	if got := blocks(t, s)["10.0.0.0/29"].Borrowers(); addr == "" || !slices.Equal(got, []string{"n1"}) {
		t.Errorf("told %q, borrowers %v", addr, got)
	}
	// A life without a journal finds it in the block of the other node.
	n1.Close()
	if err := os.Remove(filepath.Join(n1.cfg.JournalDir, "journal")); err != nil {
		t.Fatal(err)
	}
	n1.reopen(snap)
	n1.SetTunnels(justIPIP)
	n1.flush()
	if got := e.last(t, model.TunnelIPIP); got != addr {
		t.Errorf("told %q, want %s again", got, addr)
	}
	full := ipamtest.NewStore()
	strict.Pools = []model.Pool{pool(t, "a", "10.0.0.0/30", 30, ipip(model.EncapAlways))}
	n3 := open(t, "n1", full, strict, e.listen)
	n3.add(req("c"))
	n3.flush() // the rest is stash
	n3.SetTunnels(justIPIP)
	n3.flush()
	if addr := e.last(t, model.TunnelIPIP); addr == "" || handle(t, full, addr) != "ipip-tunnel-addr-n1" {
		t.Errorf("out of the stash: told %q", addr)
	}
}

// TestTunnelOfADepartedNode: the controller freed everything while the node was gone. What
// is free still is taken back, and what somebody else has by now is not.
func TestTunnelOfADepartedNode(t *testing.T) {
	for name, taken := range map[string]bool{"free": false, "somebody else's": true} {
		t.Run(name, func(t *testing.T) {
			s := ipamtest.NewStore()
			snap := snapshot(pool(t, "a", "10.0.0.0/27", 28, vxlan(model.EncapAlways)))
			e := &ear{}
			n1, n2 := open(t, "n1", s, snap, e.listen), open(t, "n2", s, snap)
			n1.SetTunnels(justVXLAN)
			n1.flush()
			n1.Set(shown(t, snap, s, false))
			old := e.last(t, model.TunnelVXLAN4)
			n1.Set(shown(t, snap, s, true))
			depart(t, s, "n1")
			if taken {
				takeAll(t, n2)
				if _, err := n2.Release(ctx, "n2-20", ""); err != nil {
					t.Fatal(err)
				}
				n2.flush()
			}
			e.check = func(_, now [model.Tunnels]netip.Addr) {
				if a := now[model.TunnelVXLAN4]; a.IsValid() {
					if h := handle(t, s, a.String()); h != "vxlan-tunnel-addr-n1" && h != "" {
						t.Errorf("told %s, which has the handle %q", a, h)
					}
				}
			}
			n1.Set(shown(t, snap, s, false))
			n1.flush()
			n1.flush()
			now := e.last(t, model.TunnelVXLAN4)
			if now == "" || (now == old) == taken || handle(t, s, now) != "vxlan-tunnel-addr-n1" || tunnelSlots(t, s, "n1") != 1 {
				t.Errorf("had %s, has %q with the handle %q, %d addresses in all", old, now, handle(t, s, now), tunnelSlots(t, s, "n1"))
			}
		})
	}
}
