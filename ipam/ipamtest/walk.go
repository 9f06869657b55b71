package ipamtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

// Walk is a random walk of several nodes over one Store: ADDs and DELs in parallel, GC,
// tunnels that come and go and that pools begin and cease to serve,
// agents that are killed at any point and come back with the journal that a disk would
// have kept, calls to the Store that fail, are lost or are done later, disks that fail,
// pools that change. A Model watches. It fails the test at the first thing that must not
// be.
type Walk struct {
	Seed  uint64
	Steps int
	Nodes int                          // default 4
	Open  func(node string) ipam.Store // required: a node's own way to the one Store
	Run   bool                         // the nodes run in the background, beside explicit flushes
	// Faults, if set, is told of the faults that a node's way to the Store has now, for a
	// test that makes some below the Store as well.
	Faults func(node string, rate float64, away bool)
}

type node struct {
	name    string
	dir     string
	client  *Client
	alloc   *ipam.Allocator
	stop    func()
	badDisk atomic.Bool
	lives   uint64
	wish    []model.Tunnel

	mu      sync.Mutex
	durable map[uint64]int64             // inode → bytes that a crash keeps
	owed    map[model.AttachmentKey]bool // DELs that the runtime still has to send
}

type walk struct {
	Walk
	t      testing.TB
	rng    *rand.Rand
	model  *Model
	ghosts *Ghosts
	nodes  []*node
	snap   *model.Snapshot
	rest   time.Duration // the cooldown
	now    atomic.Int64
	serial int
	log    *slog.Logger
	trace  []string
}

// all and labels are selectors for snapshots made by hand.
type selector map[string]string

func (s selector) Matches(l map[string]string) bool {
	for k, v := range s {
		if l[k] != v {
			return false
		}
	}
	return true
}
func (s selector) String() string {
	if len(s) == 0 {
		return "all()"
	}
	return fmt.Sprintf("%v", map[string]string(s))
}

// Selector returns a selector that asks for these labels; without any it is all().
func Selector(labels map[string]string) model.Selector { return selector(labels) }

// Do walks.
func (w Walk) Do(t testing.TB) {
	t.Helper()
	if w.Nodes == 0 {
		w.Nodes = 4
	}
	x := &walk{Walk: w, t: t, rng: rand.New(rand.NewPCG(w.Seed, 2)), model: NewModel(), ghosts: &Ghosts{}}
	x.log = slog.New(&watch{x: x})
	x.now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Unix())
	x.snap = x.snapshot()
	x.rest = x.snap.IPAM.Cooldown
	t.Logf("seed %d", w.Seed)
	defer func() {
		if t.Failed() {
			t.Logf("seed %d; last steps: %s", w.Seed, strings.Join(x.trace[max(0, len(x.trace)-25):], "; "))
		}
	}()
	for i := range w.Nodes {
		n := &node{name: fmt.Sprintf("node-%d", i), durable: map[uint64]int64{}, owed: map[model.AttachmentKey]bool{}}
		n.dir = filepath.Join(t.TempDir(), "journal")
		x.nodes = append(x.nodes, n)
		x.start(n)
		defer x.halt(n)
	}
	for i := range w.Steps {
		x.step()
		if t.Failed() {
			return
		}
		if i%60 == 59 {
			x.settle()
		}
		if t.Failed() {
			return
		}
	}
	x.drain()
}

// watch is the log of all nodes: some of what ipam reports must never happen here.
type watch struct{ x *walk }

func (*watch) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h *watch) WithAttrs([]slog.Attr) slog.Handler         { return h }
func (h *watch) WithGroup(string) slog.Handler              { return h }
func (h *watch) Handle(_ context.Context, r slog.Record) error {
	for _, fine := range []string{"torn end", "cannot be brought up to date", "cannot be read and is left alone", "no address for a tunnel"} {
		if strings.Contains(r.Message, fine) {
			return nil
		}
	}
	msg := r.Message
	r.Attrs(func(a slog.Attr) bool { msg += " " + a.String(); return true })
	h.x.t.Errorf("log: %s", msg)
	return nil
}

func (x *walk) clock() time.Time { return time.Unix(x.now.Load(), 0).UTC() }

func (x *walk) snapshot() *model.Snapshot {
	work, both := []model.Use{model.UseWorkload}, []model.Use{model.UseWorkload, model.UseTunnel}
	s := &model.Snapshot{
		Pools: []model.Pool{
			{Name: "a4", CIDR: netip.MustParsePrefix("10.0.0.0/26"), BlockSize: 29, NodeSelector: selector{}, AllowedUses: both, VXLANMode: model.EncapAlways},
			{Name: "b4", CIDR: netip.MustParsePrefix("10.0.1.0/27"), BlockSize: 30, NodeSelector: selector{"zone": "1"}, AllowedUses: both, IPIPMode: model.EncapCrossSubnet},
			{Name: "c6", CIDR: netip.MustParsePrefix("fd00::/121"), BlockSize: 124, NodeSelector: selector{}, AllowedUses: both, VXLANMode: model.EncapCrossSubnet},
			{Name: "d4", CIDR: netip.MustParsePrefix("10.0.2.0/28"), BlockSize: 30, NodeSelector: selector{}, AllowedUses: work, Manual: true},
			{Name: "e4", CIDR: netip.MustParsePrefix("10.0.3.0/29"), BlockSize: 31, NodeSelector: selector{}, AllowedUses: []model.Use{model.UseTunnel}, IPIPMode: model.EncapAlways},
		},
		IPAM: model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 20, Cooldown: time.Duration(x.Seed%3) * 30 * time.Second},
	}
	for i := range x.Nodes {
		s.Nodes = append(s.Nodes, model.Node{Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{"zone": fmt.Sprint(i % 2)}})
	}
	return s
}

func (x *walk) start(n *node) {
	n.lives++
	n.client = NewClient(x.Open(n.name), x.ghosts, x.rng.Uint64())
	n.badDisk.Store(false)
	a, err := ipam.New(ipam.Config{
		Node: n.name, Store: n.client, JournalDir: n.dir, Log: x.log, Now: x.clock,
		Batch: time.Millisecond, Linger: time.Millisecond, Resync: time.Hour, BlockIdle: 20 * time.Second,
		SyncFile: func(f *os.File) error { return n.sync(f) },
		Tunnels: func(told [model.Tunnels]netip.Addr) {
			if err := x.model.Told(n.name, told, x.rest, x.clock()); err != nil {
				x.t.Error(err)
			}
		},
	})
	if err != nil {
		x.t.Fatalf("%s: %v", n.name, err)
	}
	n.alloc = a
	a.Set(x.snap)
	a.SetTunnels(n.wish)
	n.stop = func() {}
	if x.Run {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := a.Run(ctx); err != nil && !errors.Is(err, ipam.ErrClosed) {
				x.t.Errorf("%s: %v", n.name, err)
			}
		}()
		n.stop = func() { cancel(); <-done }
	}
}

// sync notes what a crash of the machine keeps, instead of asking the disk.
func (n *node) sync(f *os.File) error {
	if n.badDisk.Load() {
		return syscall.EIO
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.durable[st.Sys().(*syscall.Stat_t).Ino] = st.Size()
	return nil
}

// halt ends a node's agent as kill -9 does.
func (x *walk) halt(n *node) {
	n.client.Kill()
	n.alloc.Close()
	n.stop()
}

// crash ends it, and perhaps the machine with it: then the journal keeps what was synced,
// some of what was not, and rubbish.
func (x *walk) crash(n *node) {
	x.halt(n)
	path := filepath.Join(n.dir, "journal")
	st, err := os.Stat(path)
	if err != nil {
		x.t.Fatal(err)
	}
	n.mu.Lock()
	keep := n.durable[st.Sys().(*syscall.Stat_t).Ino]
	n.mu.Unlock()
	if x.rng.IntN(2) == 0 {
		size := keep + x.rng.Int64N(st.Size()-keep+1)
		if err := os.Truncate(path, size); err != nil {
			x.t.Fatal(err)
		}
	}
	if x.rng.IntN(3) == 0 {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			x.t.Fatal(err)
		}
		junk := []byte("\xC5\xFF\xFE\x4A\x20\x00\x00\x00torn record")
		f.Write(junk[:x.rng.IntN(len(junk)+1)])
		f.Close()
	}
	x.start(n)
}

func (x *walk) pick() *node { return x.nodes[x.rng.IntN(len(x.nodes))] }

func (x *walk) request() model.AddressRequest {
	x.serial++
	req := model.AddressRequest{
		Key:     model.AttachmentKey{ContainerID: fmt.Sprintf("c%d", x.serial), IfName: "eth0"},
		Network: "k8s.net", Namespace: "default", Pod: fmt.Sprintf("pod-%d", x.serial),
	}
	switch x.rng.IntN(12) {
	case 0:
		req.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(x.rng.IntN(3)), byte(x.rng.IntN(64))})}
	case 1:
		req.IPv4Pools = []string{"d4"}
	case 2:
		req.IPv4Pools = []string{"b4", "a4"}
	}
	return req
}

func (x *walk) step() {
	n := x.pick()
	r := x.rng.IntN(100)
	switch {
	case r < 52:
		x.burst()
	case r < 59:
		x.note("gc %s", n.name)
		x.gc(n)
	case r < 67:
		x.note("crash %s", n.name)
		x.crash(n)
	case r < 77:
		resync := x.rng.IntN(2) == 0
		x.note("flush %s %t", n.name, resync)
		n.alloc.Flush(context.Background(), resync) // it may fail: faults are on
	case r < 83:
		rate, away := []float64{0, 0.1, 0.4}[x.rng.IntN(3)], x.rng.IntN(4) == 0
		delay := time.Duration(x.rng.IntN(2)) * 200 * time.Microsecond
		x.note("faults %s %g %s %t", n.name, rate, delay, away)
		x.faults(n, rate, delay, away)
	case r < 86:
		bad := x.rng.IntN(2) == 0
		x.note("disk %s %t", n.name, bad)
		n.badDisk.Store(bad)
	case r < 90:
		d := x.rng.Int64N(60)
		x.note("clock +%d", d)
		x.now.Add(d)
	case r < 93:
		x.note("ghosts")
		x.ghosts.Strike(x.rng, 0.5)
	case r < 96:
		n.wish = nil
		for t := range model.Tunnel(model.Tunnels) {
			if x.rng.IntN(2) == 0 {
				n.wish = append(n.wish, t)
			}
		}
		x.note("wish %s %v", n.name, n.wish)
		n.alloc.SetTunnels(n.wish)
	default:
		x.change()
	}
}

func (x *walk) faults(n *node, rate float64, delay time.Duration, away bool) {
	n.client.Faults(rate, delay, away)
	if x.Faults != nil {
		x.Faults(n.name, rate, away)
	}
}

// change makes another snapshot, with one thing different.
func (x *walk) change() {
	s := *x.snap
	s.Pools = slices.Clone(s.Pools)
	p := &s.Pools[x.rng.IntN(len(s.Pools))]
	switch x.rng.IntN(7) {
	case 0:
		p.Disabled = !p.Disabled
	case 1:
		p.NodeSelector = selector{}
		if x.rng.IntN(2) == 0 {
			p.NodeSelector = selector{"zone": fmt.Sprint(x.rng.IntN(2))}
		}
	case 2:
		s.Reservations = nil
		if x.rng.IntN(2) == 0 {
			s.Reservations = []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("10.0.0.16/28"), netip.MustParsePrefix("fd00::10/125")}
		}
	case 3:
		s.IPAM.StrictAffinity = !s.IPAM.StrictAffinity
	case 4:
		s.IPAM.MaxBlocksPerHost = []int{1, 2, 20}[x.rng.IntN(3)]
	case 5:
		p.IPIPMode, p.VXLANMode = model.EncapNever, model.EncapNever
		switch x.rng.IntN(3) {
		case 0:
			p.VXLANMode = model.EncapCrossSubnet
		case 1:
			p.IPIPMode = model.EncapAlways
		}
	case 6:
		if p.Allows(model.UseWorkload) {
			p.AllowedUses = []model.Use{model.UseWorkload, model.UseTunnel}[:1+x.rng.IntN(2)]
		}
	}
	x.note("change %s %+v", p.Name, s.IPAM)
	x.snap = &s
	for _, n := range x.nodes {
		n.alloc.Set(x.snap)
	}
}

// burst does ADDs and DELs at once, on all nodes, and sometimes kills an agent meanwhile.
func (x *walk) burst() {
	var wg sync.WaitGroup
	busy := map[Holder]bool{} // a runtime sends one request at a time for a pod, but for repeated ADDs
	for range 1 + x.rng.IntN(6) {
		n := x.pick()
		live := slices.DeleteFunc(x.model.Live(n.name), func(h Holder) bool { return busy[h] })
		switch {
		case len(live) > 0 && x.rng.IntN(100) < 45:
			h := live[x.rng.IntN(len(live))]
			busy[h] = true
			if x.rng.IntN(6) == 0 { // the runtime repeats an ADD
				wg.Go(func() { x.add(n, model.AddressRequest{Key: h.Key, Network: "k8s.net"}) })
				break
			}
			x.model.Dead(h, x.clock())
			x.owe(n, h.Key)
			wg.Go(func() { x.del(n, h.Key) })
		default:
			req := x.request()
			busy[Holder{n.name, req.Key}] = true
			wg.Go(func() { x.add(n, req) })
			if x.rng.IntN(5) == 0 {
				wg.Go(func() { x.add(n, req) })
			}
		}
	}
	if x.rng.IntN(12) == 0 {
		n := x.pick()
		x.note("burst, kill %s", n.name)
		n.client.Kill()
		n.alloc.Close()
		wg.Wait()
		x.crash(n)
		return
	}
	x.note("burst")
	wg.Wait()
}

func (x *walk) owe(n *node, k model.AttachmentKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.owed[k] = true
}

func (x *walk) paid(n *node, k model.AttachmentKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.owed, k)
}

func (x *walk) add(n *node, req model.AddressRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ep, err := n.alloc.Assign(ctx, req)
	if err != nil {
		if ctx.Err() != nil {
			x.t.Errorf("ADD %s on %s hangs: %v", req.Key, n.name, err)
		}
		// A failed ADD is followed by a DEL, unless one that was sent beside it succeeds:
		// that notes first that the pod lives, and then that nothing is owed.
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(x.live(n, req.Key)) == 0 {
			n.owed[req.Key] = true
		}
		return
	}
	if err := x.model.Assigned(n.name, req, ep, x.snap, x.clock()); err != nil {
		x.t.Error(err)
	}
	x.paid(n, req.Key)
	if x.rng != nil && len(ep.Key.ContainerID)%2 == 0 {
		ep.HostInterface = "cali" + ep.Key.ContainerID
		n.alloc.Wired(ctx, ep) // may fail with the disk; the pod has its address all the same
	}
}

// live returns the pod's holder if it lives.
func (x *walk) live(n *node, k model.AttachmentKey) []Holder {
	return slices.DeleteFunc(x.model.Live(n.name), func(h Holder) bool { return h.Key != k })
}

func (x *walk) del(n *node, k model.AttachmentKey) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := n.alloc.Release(ctx, k.ContainerID, k.IfName)
	if err == nil {
		x.paid(n, k)
	}
	return err
}

func (x *walk) gc(n *node) {
	var keep []model.AttachmentKey
	for _, h := range x.model.Live(n.name) {
		if x.rng.IntN(10) == 0 {
			x.model.Dead(h, x.clock())
			x.owe(n, h.Key)
			continue
		}
		keep = append(keep, h.Key)
	}
	if _, err := n.alloc.Retain(context.Background(), "k8s.net", keep); err == nil {
		n.mu.Lock()
		clear(n.owed)
		n.mu.Unlock()
	}
}

func (x *walk) note(format string, args ...any) {
	x.trace = append(x.trace, fmt.Sprintf(format, args...))
}

// settle ends all faults, lets every node finish and compares the world with the model.
func (x *walk) settle() {
	x.note("settle")
	x.ghosts.Strike(x.rng, 1)
	for _, n := range x.nodes {
		x.faults(n, 0, 0, false)
		n.badDisk.Store(false)
		for _, k := range n.debts() {
			if err := x.del(n, k); err != nil {
				x.t.Errorf("%s: DEL %s without any fault: %v", n.name, k, err)
			}
		}
	}
	for range 2 { // what one gives back the other may take note of
		for _, n := range x.nodes {
			if err := n.alloc.Flush(context.Background(), true); err != nil {
				x.t.Errorf("%s: flush without any fault: %v", n.name, err)
			}
		}
	}
	x.compare()
	for _, n := range x.nodes {
		if x.Run {
			break // the nodes move addresses meanwhile
		}
		if err := n.alloc.Flush(context.Background(), false); err != nil {
			x.t.Errorf("%s: flush without any fault: %v", n.name, err)
		}
		blocks, _ := x.world()
		if err := x.model.Served(n.name, n.wish, blocks, x.snap, x.clock()); err != nil {
			x.t.Error(err)
		}
	}
	n := x.pick()
	req := x.request()
	req.Addresses = nil
	ep, err := n.alloc.Assign(context.Background(), req)
	switch {
	case err == nil:
		if err := x.model.Assigned(n.name, req, ep, x.snap, x.clock()); err != nil {
			x.t.Error(err)
		}
	case errors.Is(err, ipam.ErrExhausted):
		if x.Run {
			break // the nodes move addresses meanwhile
		}
		blocks, _ := x.world()
		if err := Exhausted(n.name, blocks, x.snap, req, x.clock()); err != nil {
			x.t.Error(err)
		}
	case !errors.Is(err, ipam.ErrNoPool):
		x.t.Errorf("%s: ADD without any fault: %v", n.name, err)
	}
}

func (n *node) debts() []model.AttachmentKey {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []model.AttachmentKey
	for k := range n.owed {
		out = append(out, k)
	}
	return out
}

// compare holds the world against the model. Where nodes run in the background a tunnel may
// find its address between two looks, so that several of them count.
func (x *walk) compare() {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		blocks, endpoints := x.world()
		err := x.model.Settled(blocks, endpoints)
		if err == nil {
			return
		}
		if !x.Run || time.Now().After(deadline) {
			x.t.Error(err)
			return
		}
	}
}

func (x *walk) world() ([]*ipam.Block, map[string][]model.Endpoint) {
	blocks, err := ipam.Collect(x.nodes[0].client.Store.List(context.Background(), ipam.Query{}))
	if err != nil {
		x.t.Fatal(err)
	}
	endpoints := map[string][]model.Endpoint{}
	for _, n := range x.nodes {
		endpoints[n.name] = n.alloc.Endpoints()
	}
	return blocks, endpoints
}

// drain ends all pods and tunnels: nothing but a block with a stash for each node and pool may stay.
func (x *walk) drain() {
	for _, n := range x.nodes {
		n.wish = nil
		n.alloc.SetTunnels(nil)
		for _, h := range x.model.Live(n.name) {
			x.model.Dead(h, x.clock())
			x.owe(n, h.Key)
		}
	}
	for range 6 { // what a borrower gives back rests, and only then its owner's minute begins
		x.settle()
		for _, n := range x.nodes {
			for _, h := range x.model.Live(n.name) { // settle's own
				x.model.Dead(h, x.clock())
				x.owe(n, h.Key)
			}
		}
		x.now.Add(600)
	}
	for _, n := range x.nodes {
		for _, k := range n.debts() {
			x.del(n, k)
		}
	}
	for range 3 {
		for _, n := range x.nodes {
			if err := n.alloc.Flush(context.Background(), true); err != nil {
				x.t.Error(err)
			}
		}
		x.now.Add(600)
	}
	x.compare()
	blocks, _ := x.world()
	count := map[string]int{}
	for _, b := range blocks {
		if len(b.Borrowers()) > 0 {
			continue // another node's stash keeps it
		}
		i := slices.IndexFunc(x.snap.Pools, func(p model.Pool) bool { return p.CIDR.Contains(b.CIDR.Addr()) })
		id := b.Affinity + " in " + x.snap.Pools[i].Name
		if count[id]++; count[id] > 1 {
			x.t.Errorf("%d empty blocks of %s are left, want 1", count[id], id)
		}
	}
}
