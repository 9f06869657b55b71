package enforce

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/internal/model"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

// TestBlocks: one walk makes the blocks of this node clear when they are routed, but for what others
// have, and then nothing is looked for when a pod is attached.
func TestBlocks(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	routed := make(chan struct{})
	w.cfg.Routed = func(ctx context.Context, _ ...netip.Prefix) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-routed:
			return nil
		}
	}
	client := netip.MustParseAddrPort("192.0.2.1:1000")
	for _, i := range []int{2, 3, 4, 5, 9, 64} {
		to := netip.AddrPortFrom(addr(i), 80)
		w.flows.have = append(w.flows.have, conntrack.Flow{Source: client, ReplyTo: client, First: to, Destination: to})
	}
	w.flows.own, w.flows.routes = []netip.Addr{addr(2)}, map[netip.Addr]string{addr(3): "eth0"}
	count := func() int {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		return len(w.flows.forgotten)
	}
	start := func(i int, walks bool) model.Endpoint {
		t.Helper()
		ep, object := pod(fmt.Sprintf("p%d", i), addr(i).String())
		w.policies.SetPod(object)
		before := count()
		if err := w.attach(ep); err != nil {
			t.Fatal(err)
		}
		if walked := count() > before; walked != walks {
			t.Errorf("attaching %s looks for connections: %v, want %v", addr(i), walked, walks)
		}
		return ep
	}
	running, _ := pod("running", addr(9).String())
	w.Restore(running)
	w.use()
	block := netip.MustParsePrefix("10.0.0.0/26")
	blocks := []netip.Prefix{block, netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("fd00::/64")}
	w.SetBlocks(blocks, []netip.Addr{addr(4), addr(9)}) // that of a running pod is not another's
	start(6, true)
	walked := func() [][]netip.Prefix {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		return slices.Clone(w.flows.walked)
	}
	if len(walked()) > 0 {
		t.Error("blocks are made clear that are not routed")
	}
	close(routed)
	clear := func(a netip.Addr) bool {
		w.Enforcer.mu.Lock()
		defer w.Enforcer.mu.Unlock()
		return w.addrs.isClear(a)
	}
	w.sees("the blocks clear", func() bool { return clear(addr(7)) })
	left := func() (out []int) {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		for _, f := range w.flows.have {
			out = append(out, int(f.Destination.Addr().As4()[3]))
		}
		return out
	}
	// Connections of an address that is lent are nobody's while no route leads there.
	if got, want := left(), []int{2, 3, 9, 64}; !slices.Equal(got, want) {
		t.Errorf("left are connections of %v, want %v", got, want)
	}
	if got, want := walked(), []netip.Prefix{block, blocks[2]}; len(got) != 1 || !slices.Equal(got[0], want) {
		t.Errorf("walks over %v, want one over %v", got, want)
	}
	seven := start(7, false)
	start(6, false) // an ADD that is repeated
	start(2, true)
	start(3, true)
	start(4, true)
	start(64, true)
	w.Taken(addr(8), addr(7))
	start(7, false)
	start(8, true)

	w.Detach(seven)
	seven = start(7, true) // sooner than what is left of it was forgotten
	w.Detach(seven)
	w.sees("its connections forgotten", func() bool { return clear(addr(7)) })
	start(7, false)
	late := seven
	late.Key.ContainerID = "c-late"
	w.Detach(late) // of a container before, whose address has gone on
	start(7, false)

	w.SetBlocks(nil, nil)
	start(7, false) // a pod outlives its block
	start(10, true)
	w.SetBlocks(blocks, nil)
	w.sees("the block clear again", func() bool { return clear(addr(11)) })
	start(11, false)
	w.Enforcer.mu.Lock()
	defer w.Enforcer.mu.Unlock()
	if n := len(w.addrs.single); n > 12 {
		t.Errorf("%d addresses are kept one by one", n)
	}
}

// TestClearance walks at random: an address is clear if, and only if, a slow model that knows of
// each address for itself says so.
func TestClearance(t *testing.T) {
	const addresses = 64
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	blocks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("10.0.0.16/28"), netip.MustParsePrefix("10.0.0.32/28")}
	blockOf := func(a int) int { return a / 16 }
	c := newClearance()
	var (
		clean  [addresses]bool // nothing is left of who had it
		holder [addresses]string
		have   [3]bool         // blocks
		walked [3]bool         // and which of them are clear
		going  *walk           // over these blocks
		over   [3]bool         // that did not go since
		soiled [addresses]bool // in a block, and not forgotten since: no walk over the block makes it clear
		busy   [addresses]bool // held when the walk began
	)
	key := func(pod string) model.AttachmentKey { return model.AttachmentKey{ContainerID: pod, IfName: "eth0"} }
	soil := func(a int) { clean[a], soiled[a] = false, a < 48 && have[blockOf(a)] }
	for step := range 20000 {
		a := random.IntN(addresses)
		switch random.IntN(8) {
		case 0, 1: // attach, as a rule to who has none
			pod := fmt.Sprint("c", a)
			if random.IntN(10) == 0 {
				pod += "'"
			}
			c.attach(key(pod), []netip.Addr{addr(a)})
			if holder[a] != "" && holder[a] != pod {
				soil(a)
			}
			holder[a] = pod
			if random.IntN(2) == 0 && going == nil { // it waits for walks
				c.clear(c.dirty([]netip.Addr{addr(a)}))
				clean[a], soiled[a] = true, false
			}
		case 2, 3:
			pod := fmt.Sprint("c", a)
			if random.IntN(10) == 0 {
				pod += "'"
			}
			c.detach(key(pod), []netip.Addr{addr(a)})
			if holder[a] == "" || holder[a] == pod {
				holder[a] = ""
				soil(a)
			}
		case 4:
			if going != nil {
				continue
			}
			left := c.sweep()
			c.clear(left)
			for _, x := range left {
				i := int(x.As4()[3])
				clean[i] = i < 48 && have[blockOf(i)] && walked[blockOf(i)] || holder[i] != ""
				soiled[i] = false
			}
		case 5:
			c.taken([]netip.Addr{addr(a)})
			if holder[a] == "" {
				soil(a)
			}
		case 6:
			b := random.IntN(3)
			have[b] = !have[b]
			var now []netip.Prefix
			for i, is := range have {
				if is {
					now = append(now, blocks[i])
				}
			}
			c.setBlocks(now)
			walked[b], over[b] = false, false
			for i := range 16 {
				at := 16*b + i
				clean[at], soiled[at] = clean[at] && holder[at] != "", false
			}
		case 7:
			if going == nil {
				going = c.begin(c.waiting())
				for b := range over {
					over[b] = have[b] && !walked[b]
				}
				for i := range busy {
					busy[i] = holder[i] != ""
				}
				continue
			}
			c.end(going)
			for i := range 48 {
				switch b := blockOf(i); {
				case !over[b] || clean[i] || soiled[i]:
				case busy[i]:
					soiled[i] = true
				default:
					clean[i] = true
				}
			}
			for b := range over {
				walked[b] = walked[b] || over[b]
			}
			going = nil
		}
		for i := range addresses {
			if got := c.isClear(addr(i)); got != clean[i] {
				t.Fatalf("step %d: %s is clear: %v, want %v; held by %q", step, addr(i), got, clean[i], holder[i])
			}
		}
		if len(c.single) > addresses || len(c.holders) > addresses {
			t.Fatalf("step %d: %d and %d addresses are kept", step, len(c.single), len(c.holders))
		}
	}
}
