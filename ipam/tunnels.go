package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// An address of a tunnel is one of a pool that wants this tunnel, and there is at most one
// for each tunnel. Its handle names the tunnel and the node, so that a block tells whose it
// is whatever becomes of the journal. It either comes out of the stash (then it is in the
// journal first, and the block learns of it later, as a pod's) or is marked in its block with
// its handle (then the journal learns of it from there): both ways it is never unmarked, and
// a crash leaves nothing that the next start does not find.

const (
	tunnelPatience = 3 * time.Second // with the Store in one pass, for ADDs may be waiting for it
	tunnelRetryMin = time.Second
	tunnelRetryMax = time.Minute
)

// TunnelHandle returns the IPAM handle of a node's address of a tunnel, as Calico builds it.
func TunnelHandle(t model.Tunnel, node string) string {
	return [model.Tunnels]string{"ipip-tunnel-addr-", "vxlan-tunnel-addr-", "vxlan-v6-tunnel-addr-"}[t] + node
}

// tunnelNamed undoes model.Tunnel's String.
func tunnelNamed(name string) (model.Tunnel, bool) {
	for t := range model.Tunnel(model.Tunnels) {
		if t.String() == name {
			return t, true
		}
	}
	return 0, false
}

// tunnels is what the Allocator keeps of the tunnels beside their addresses, which are in
// its state. It is under Allocator.mu.
type tunnels struct {
	wish   [model.Tunnels]bool
	wished bool // SetTunnels was called; before that nothing is taken or given back
	// failed is why a tunnel that is wished for has no address, or not one that it may keep.
	failed [model.Tunnels]error
	next   time.Time     // when to search again; zero: at once, or there is nothing to search
	wait   time.Duration // between the last two searches
	hurry  bool          // something is to be done that was not tried yet
	// adds counts the ADDs and DELs that wait for the Store; yield ends a search of other
	// nodes' blocks that is in their way.
	adds  int
	yield context.CancelFunc

	told  [model.Tunnels]netip.Addr
	heard time.Time // when the listener was told last; zero: not since New
	sure  bool      // told is not only what the journal said
}

// SetTunnels says which tunnels this node needs an address for. It returns at once; Run
// gives addresses to those and takes back the others'. Until the first call all stay as they
// are.
func (a *Allocator) SetTunnels(want []model.Tunnel) {
	var wish [model.Tunnels]bool
	for _, t := range want {
		wish[t] = true
	}
	a.mu.Lock()
	changed := !a.tunnels.wished || wish != a.tunnels.wish
	a.tunnels.wish, a.tunnels.wished = wish, true
	if changed {
		a.hurryTunnels()
	}
	a.mu.Unlock()
	if changed {
		a.wake()
	}
}

// Tunnels returns the addresses that Config.Tunnels was told last, by model.Tunnel; the zero
// Addr where there is none.
func (a *Allocator) Tunnels() [model.Tunnels]netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tunnels.told
}

// hurryTunnels ends the wait for the next search. a.mu is held.
func (a *Allocator) hurryTunnels() {
	a.tunnels.next, a.tunnels.wait, a.tunnels.hurry = time.Time{}, 0, true
}

// tunnelsDue returns how long Run may rest before the next search. a.mu is held.
func (a *Allocator) tunnelsDue() time.Duration {
	if a.tunnels.next.IsZero() {
		return a.cfg.Resync
	}
	return max(a.tunnels.next.Sub(a.cfg.Now()), a.cfg.Batch)
}

// carries says why addresses of a pool are not for a tunnel, or nil.
func carries(p *model.Pool, t model.Tunnel) error {
	mode, field := p.VXLANMode, ".spec.vxlanMode"
	if t == model.TunnelIPIP {
		mode, field = p.IPIPMode, ".spec.ipipMode"
	}
	switch {
	case p.CIDR.Addr().Is4() != t.Is4():
		return fmt.Errorf("pool %s: %s is of the other IP family", p.Name, p.CIDR)
	case cmp.Or(mode, model.EncapNever) == model.EncapNever:
		return fmt.Errorf("pool %s: %s is Never", p.Name, field)
	case !p.Allows(model.UseTunnel):
		return fmt.Errorf("pool %s: .spec.allowedUses lacks Tunnel", p.Name)
	}
	return nil
}

// serves says why a pool gives this node no new address of a tunnel, or nil.
func (a *Allocator) serves(p *model.Pool, t model.Tunnel, node *model.Node) error {
	if err := carries(p, t); err != nil {
		return err
	}
	if p.Manual {
		return fmt.Errorf("pool %s: .spec.assignmentMode is Manual", p.Name)
	}
	return closed(p, model.UseTunnel, node, a.cfg.Private)
}

// unfit says why a tunnel should have another address than this one, or nil. a.mu is held.
func (a *Allocator) unfit(t model.Tunnel, addr netip.Addr, node *model.Node) error {
	h := a.state.holds[addr]
	switch {
	case h == nil:
		return errors.New("there is no address")
	case h.lost != "":
		return fmt.Errorf("address %s: block %s gives it to %s", addr, h.block, h.lost)
	}
	p := a.poolOf(addr)
	if p == nil {
		return fmt.Errorf("address %s: its pool was removed", addr)
	}
	return a.serves(p, t, node)
}

// stays reports whether a tunnel may go on with its address while no pool has a new one for
// it: like a pod's it lives on in a pool that is disabled, or that another node's labels
// choose by now. a.mu is held.
func (a *Allocator) stays(t model.Tunnel, addr netip.Addr) bool {
	h, p := a.state.holds[addr], a.poolOf(addr)
	return h != nil && h.lost == "" && p != nil && carries(p, t) == nil
}

func (a *Allocator) tunnelAttributes(t model.Tunnel) map[string]string {
	return map[string]string{
		AttrNode: a.cfg.Node,
		AttrType: [model.Tunnels]string{"ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress"}[t],
	}
}

// tunnelRecord is the record that gives a tunnel an address, or with the zero Addr none.
func (a *Allocator) tunnelRecord(t model.Tunnel, addr netip.Addr, block netip.Prefix) record {
	r := record{Kind: recTunnel, Tunnel: t.String(), At: a.cfg.Now()}
	if addr.IsValid() {
		r.Addrs, r.Block, r.Handle = []netip.Addr{addr}, block, TunnelHandle(t, a.cfg.Node)
	}
	return r
}

// setTunnel gives a tunnel an address, or takes away what it has. The old one is freed with
// the next write of its block. a.mu is held.
func (a *Allocator) setTunnel(t model.Tunnel, addr netip.Addr, block netip.Prefix) {
	if h := a.state.holds[a.state.tunnels[t]]; h != nil {
		a.touch(h.block)
	}
	a.record(a.tunnelRecord(t, addr, block))
}

func (a *Allocator) tunnelOf(handle string) (model.Tunnel, bool) {
	if !strings.HasSuffix(handle, a.cfg.Node) {
		return 0, false
	}
	for t := range model.Tunnel(model.Tunnels) {
		if TunnelHandle(t, a.cfg.Node) == handle {
			return t, true
		}
	}
	return 0, false
}

// isTunnel reports whether a handle is that of a tunnel of this node.
func (a *Allocator) isTunnel(handle string) bool {
	_, ok := a.tunnelOf(handle)
	return ok
}

// adoptTunnel takes note of an address that a block gives to a tunnel of this node and the
// state does not know: the one that was just marked, or one of a lost journal or answer. It
// is the tunnel's if that has none as good; otherwise it is freed. It reports whether
// something is to be written into the block. a.mu and the writer's token are held.
func (a *Allocator) adoptTunnel(addr netip.Addr, block netip.Prefix, handle string) (dirty bool) {
	t, _ := a.tunnelOf(handle)
	had := a.state.tunnels[t]
	better := !had.IsValid()
	if node, err := a.node(); err == nil && had.IsValid() {
		p := a.poolOf(addr)
		better = a.unfit(t, had, node) != nil && p != nil && a.serves(p, t, node) == nil
	}
	if !better {
		a.record(record{Kind: recFree, Addrs: []netip.Addr{addr}, Block: block, Handle: handle, At: a.cfg.Now()})
		return true
	}
	a.setTunnel(t, addr, block)
	a.state.holds[addr].written = true
	return had.IsValid()
}

// tidyTunnels gives every tunnel that is wished for an address that it may keep, and takes
// the others' away. A pool that has none is no error: it is reported (see Problems) and
// asked again. The writer's token is held.
func (a *Allocator) tidyTunnels(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tunnelPatience)
	defer cancel()
	a.mu.Lock()
	missing := a.reviewTunnels()
	a.mu.Unlock()
	short := false
	for _, t := range missing {
		err := a.findTunnel(ctx, t)
		a.mu.Lock()
		if !errors.Is(err, context.Canceled) { // we end, or an ADD goes first
			a.noteTunnel(t, err)
		}
		a.mu.Unlock()
		short = short || err != nil
	}
	a.mu.Lock()
	switch {
	case short:
		a.tunnels.wait = min(max(2*a.tunnels.wait, tunnelRetryMin), tunnelRetryMax)
		a.tunnels.next = a.cfg.Now().Add(a.tunnels.wait)
	case len(missing) > 0:
		a.tunnels.next, a.tunnels.wait = time.Time{}, 0
	}
	same := a.state.tunnels == a.tunnels.told
	first := a.tunnels.wished && !a.tunnels.sure
	a.mu.Unlock()
	if same && !first {
		return nil
	}
	if err := a.journal.commit(a.journal.last(), true); err != nil {
		return err
	}
	if first {
		a.mu.Lock()
		a.tunnels.sure = true
		a.mu.Unlock()
		if same {
			a.hear()
			return nil
		}
	}
	a.tellTunnels()
	return nil
}

// reviewTunnels takes away the addresses of tunnels that nobody wishes for or that may not
// keep theirs, and returns the tunnels for which one is to be searched now. a.mu is held.
func (a *Allocator) reviewTunnels() []model.Tunnel {
	// Whatever comes of it: Set and SetTunnels begin a new hurry when there is more to try.
	a.tunnels.hurry = false
	node, err := a.node()
	if err != nil || !a.tunnels.wished {
		a.tunnels.next = time.Time{}
		return nil
	}
	var missing []model.Tunnel
	for t := range model.Tunnel(model.Tunnels) {
		has := a.state.tunnels[t]
		h := a.state.holds[has]
		if h != nil && (!a.tunnels.wish[t] || h.lost != "") {
			// One that is somebody else's must not be used a moment longer.
			a.setTunnel(t, netip.Addr{}, netip.Prefix{})
			has = netip.Addr{}
		}
		switch pools, why := a.tunnelPools(t, node); {
		case !a.tunnels.wish[t] || a.unfit(t, has, node) == nil:
			a.noteTunnel(t, nil)
		case len(pools) > 0:
			missing = append(missing, t)
		case a.stays(t, has):
			a.noteTunnel(t, nil)
		default:
			if has.IsValid() {
				a.setTunnel(t, netip.Addr{}, netip.Prefix{})
			}
			a.noteTunnel(t, fmt.Errorf("%w on node %s: %w", ErrNoPool, a.cfg.Node, why))
		}
	}
	switch {
	case len(missing) == 0:
		a.tunnels.next, a.tunnels.wait = time.Time{}, 0
	case a.cfg.Now().Before(a.tunnels.next):
		return nil
	}
	return missing
}

// tunnelPools returns the pools that have addresses for a tunnel of this node, and why the
// others have none. a.mu is held.
func (a *Allocator) tunnelPools(t model.Tunnel, node *model.Node) (pools []*model.Pool, why reasons) {
	for i := range a.snap.Pools {
		p := &a.snap.Pools[i]
		switch err := a.serves(p, t, node); {
		case err == nil:
			pools = append(pools, p)
		case p.CIDR.Addr().Is4() == t.Is4():
			why = append(why, err)
		}
	}
	if len(why) == 0 {
		why = reasons{errors.New("there is no IPPool of its IP family")}
	}
	return pools, why
}

// noteTunnel notes why a tunnel has no address, or with nil that it has one or wants none.
// a.mu is held.
func (a *Allocator) noteTunnel(t model.Tunnel, err error) {
	was := a.tunnels.failed[t]
	a.tunnels.failed[t] = err
	if err != nil && (was == nil || was.Error() != err.Error()) {
		a.log.Warn("no address for a tunnel; trying again", "device", t.Device(), "error", err)
	}
}

// findTunnel gives a tunnel an address of the first pool that has one.
func (a *Allocator) findTunnel(ctx context.Context, t model.Tunnel) error {
	a.mu.Lock()
	node, err := a.node()
	if err != nil {
		a.mu.Unlock()
		return err
	}
	pools, _ := a.tunnelPools(t, node)
	a.mu.Unlock()
	var why reasons
	for _, mp := range pools {
		a.mu.Lock()
		h := a.takeStashed(a.poolState(mp.Name))
		if h != nil {
			// An agent that knows no tunnels must not take it for its stash.
			a.record(record{Kind: recGone, Addrs: []netip.Addr{h.addr}})
			a.setTunnel(t, h.addr, h.block)
			a.touch(h.block)
		}
		a.mu.Unlock()
		if h != nil {
			return nil
		}
		got, err := a.fetchTunnel(ctx, mp, t)
		if got {
			return nil
		}
		why = append(why, fmt.Errorf("pool %s (%s): %w", mp.Name, mp.CIDR, err))
	}
	if slices.ContainsFunc(why, func(err error) bool { return !errors.Is(err, ErrExhausted) }) {
		return why // the Store has failed
	}
	return fmt.Errorf("%w on node %s: %w", ErrExhausted, a.cfg.Node, why)
}

// fetchTunnel marks an address of a pool as that of a tunnel: in an own block, in a new one,
// or in another node's.
func (a *Allocator) fetchTunnel(ctx context.Context, mp *model.Pool, t model.Tunnel) (bool, error) {
	m := marks{n: 1, tunnel: &t}
	var errs reasons
	for _, cidr := range a.ownBlocks(mp.CIDR) {
		k, err := a.writeBlock(ctx, cidr, nil, m)
		if k > 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return false, errs
	}
	err := a.mayClaim(mp, model.UseTunnel)
	if err == nil {
		var k int
		if k, err = a.claimOne(ctx, mp, m); k > 0 {
			return true, nil
		}
	}
	if err != nil && !errors.Is(err, ErrExhausted) {
		return false, err
	}
	// The search may take long, and an ADD that needs the Store goes first.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	if a.tunnels.yield = cancel; a.tunnels.adds > 0 {
		cancel()
	}
	a.mu.Unlock()
	k, berr := a.borrow(ctx, mp, m)
	a.mu.Lock()
	a.tunnels.yield = nil
	a.mu.Unlock()
	return k > 0, together(slices.DeleteFunc([]error{err, berr}, func(err error) bool { return err == nil }))
}

// lockForAdd takes the writer's token for an ADD or DEL.
func (a *Allocator) lockForAdd(ctx context.Context) error {
	a.mu.Lock()
	a.tunnels.adds++
	if a.tunnels.yield != nil {
		a.tunnels.yield()
	}
	a.mu.Unlock()
	err := a.lockWriter(ctx)
	a.mu.Lock()
	a.tunnels.adds--
	a.mu.Unlock()
	return err
}

// tellTunnels tells the listener of tunnel addresses that changed, and reports whether it
// had to. They are in the journal, on disk. The writer's token is held.
func (a *Allocator) tellTunnels() bool {
	a.mu.Lock()
	was, now := a.tunnels.told, a.state.tunnels
	a.tunnels.told = now
	// An agent that was killed before it told leaves an address that is free in the journal
	// and in use on this node.
	left := a.tunnels.heard.IsZero() && a.leftTunnel()
	a.mu.Unlock()
	if was == now && !left {
		return false
	}
	for t := range model.Tunnel(model.Tunnels) {
		if was[t] != now[t] {
			a.log.Info("address of a tunnel", "device", t.Device(), "address", text(now[t]), "was", text(was[t]))
		}
	}
	a.hear()
	return true
}

// leftTunnel reports whether the journal has an address that a tunnel gave up and that its
// block does not yet have free. a.mu is held.
func (a *Allocator) leftTunnel() bool {
	for _, h := range a.state.holds {
		if h.state == freeing && a.isTunnel(h.handle) {
			return true
		}
	}
	return false
}

// hear tells the listener, which from then on uses no other address: the rest of one that a
// tunnel gave up begins here, not when the journal says so, for the disk may be slow or fail
// in between. The writer's token is held.
func (a *Allocator) hear() {
	if a.cfg.Tunnels != nil {
		a.cfg.Tunnels(a.Tunnels())
	}
	a.mu.Lock()
	a.tunnels.heard = a.cfg.Now()
	a.mu.Unlock()
}

// text is the address, or "none".
func text(addr netip.Addr) string {
	if !addr.IsValid() {
		return "none"
	}
	return addr.String()
}

// withoutAddress returns the tunnels that have no address, or one that they ought to change.
// a.mu is held.
func (a *Allocator) withoutAddress() []model.Problem {
	var out []model.Problem
	for t := range model.Tunnel(model.Tunnels) {
		if err := a.tunnels.failed[t]; err != nil {
			out = append(out, model.Problem{
				Object: model.Object{Kind: "Node", Name: a.cfg.Node}, Ignored: true,
				Message: fmt.Sprintf("needs an address for its tunnel device %s, which has %s: %v; make room in a pool, or make another one of that mode and family whose allowedUses have Tunnel",
					t.Device(), text(a.state.tunnels[t]), err),
			})
		}
	}
	return out
}
