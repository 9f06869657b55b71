package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/internal/model"
)

// stage is what is in force, as far as this life of the agent knows.
type stage struct {
	looked bool    // the kernel was asked what an earlier life left
	have   tunnels // devices that stand; a superset, never less
	held   tunnels // wanted and impossible: what would go through them stays as it was

	guard     *[2]model.EncapGuard // as last told; nil: nothing was
	addresses *tunnels             // as last told; nil: nothing was
	devices   deviceKey            // as last set
	hops      hopKey               // as last diverted
	routes    []model.Route        // of OwnerTunnel, as last handed on; by prefix
	inSync    bool
	settling  bool // routes were handed on, and it is not known yet that the kernel has them

	// whole is the last overlay that was in force with nothing held.
	whole *dataplane.Overlay
	// lead: routes do not move before; the devices were made a moment ago.
	lead time.Time
	// leaving are the devices that are not wanted; left is when the last route had left them.
	leaving tunnels
	left    time.Time
}

// deviceKey tells one call of Devices.Set from another.
type deviceKey struct {
	want, before *dataplane.Overlay // before: whose peers stay beside; nil: none do
	mtu          int
	own          [model.Tunnels]netip.Addr
}

// hopKey tells one call of Routes.Divert from another.
type hopKey struct {
	want, whole *dataplane.Overlay // whole: whose word counts for what is held; nil: nothing is
	held        tunnels
}

// apply goes as far as it can now.
func (o *Overlay) apply(ctx context.Context, _ bool) error {
	o.mu.Lock()
	in := o.in
	o.mu.Unlock()
	if in.want == nil {
		return nil
	}
	waiting, err := o.steps(ctx, in)
	if ctx.Err() != nil {
		return nil
	}
	o.publish(in, waiting, err)
	return err
}

// steps takes them in order. waiting is not empty when the next one has to wait; whatever
// it waits for pokes the loop.
func (o *Overlay) steps(ctx context.Context, in input) (waiting string, err error) {
	n, wants := &o.now, setOf(in.want.Wants())
	if !n.looked {
		if err := o.look(ctx); err != nil {
			return "", err
		}
	}
	o.tellGuard(in.want, wants.and(n.have))
	o.tellAddresses(wants.and(n.have))
	if fresh := wants.without(n.have); fresh.any() && o.cfg.Guarded != nil {
		if err := bounded(ctx, "the guard", o.cfg.Guarded); err != nil {
			return "", fmt.Errorf("no device is made before its guard is in force: %w", err)
		}
	}
	if in.mtu == 0 && in.want.NeedsMTU() {
		return "the uplink's MTU", nil
	}
	held := o.make(ctx, in, wants)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if o.soon(n.lead) {
		return "the other nodes' devices", held
	}
	if err := o.move(ctx, in.want); err != nil {
		return "", errors.Join(held, err)
	}
	if n.held.any() {
		return "", held // what stood may need every device that stands
	}
	waiting, err = o.drop(ctx, in, wants)
	return waiting, errors.Join(held, err)
}

// look asks the kernel which devices an earlier life left; it changes none.
func (o *Overlay) look(ctx context.Context) error {
	d := o.cfg.Devices
	d.Keep(true)
	d.Set(nil)
	if err := bounded(ctx, "the devices that stand", d.Wait); err != nil {
		return err
	}
	o.now.have = o.there()
	o.now.looked, o.now.settling = true, true
	return nil
}

// there are the devices that stand and are up or were ours before.
func (o *Overlay) there() (out tunnels) {
	for _, s := range o.cfg.Devices.Status() {
		for t := range model.Tunnel(model.Tunnels) {
			if t.Device() == s.Device && (s.Up || !s.Wanted) {
				out[t] = true
			}
		}
	}
	return out
}

// tellGuard guards every device that stands or is to come.
func (o *Overlay) tellGuard(want *dataplane.Overlay, have tunnels) {
	v4, v6 := want.GuardOf(have)
	n := &o.now
	if n.guard != nil && sameGuard(n.guard[0], v4) && sameGuard(n.guard[1], v6) {
		return
	}
	n.guard = &[2]model.EncapGuard{v4, v6}
	o.cfg.Guard(v4, v6)
}

func sameGuard(a, b model.EncapGuard) bool {
	return a.IPIP == b.IPIP && a.VXLANPort == b.VXLANPort && a.PodsIPIP == b.PodsIPIP && a.PodsVXLAN == b.PodsVXLAN &&
		slices.Equal(a.Sources, b.Sources)
}

// tellAddresses asks for an address of every device that stands or is to come: one that is
// given back could be a pod's while the device still has it.
func (o *Overlay) tellAddresses(have tunnels) {
	if n := &o.now; n.addresses == nil || *n.addresses != have {
		n.addresses = &have
		o.cfg.Addresses(have.list())
	}
}

// make brings the wanted devices about, beside those that stand, and notes which could not
// be. Its error is about those; the rest goes on.
func (o *Overlay) make(ctx context.Context, in input, wants tunnels) error {
	n := &o.now
	o.setDevices(in, n.whole)
	err := bounded(ctx, "the devices", o.cfg.Devices.Wait)
	there := o.there()
	if made := wants.without(n.have); made.any() && n.whole != nil {
		for _, t := range made.list() {
			if there[t] {
				n.lead = time.Now().Add(o.cfg.Lead)
			}
		}
	}
	for t := range there {
		n.have[t] = n.have[t] || there[t]
	}
	n.held = wants.without(there)
	if !n.held.any() {
		return nil // what else is wrong with a device, felix/tunnel says
	}
	if err == nil {
		err = errors.New("the link is not up")
	}
	return fmt.Errorf("routes through %v stay as they were: %w", n.held.list(), err)
}

// setDevices wants the devices of in, with the peers that routes of before may still lead to.
func (o *Overlay) setDevices(in input, before *dataplane.Overlay) {
	n := &o.now
	key := deviceKey{in.want, before, in.mtu, in.own}
	if key == n.devices {
		return
	}
	var devices []model.TunnelDevice
	if before != nil && !before.SameDevices(in.want) {
		var beside bool
		if devices, beside = o.withPeers(in, before); !beside {
			key.before = nil
		}
	} else {
		key.before = nil
	}
	d := n.devices
	n.devices = key
	if d.want != nil && d.before == nil && key.before == nil && d.mtu == in.mtu && d.own == in.own && d.want.SameDevices(in.want) {
		return
	}
	if devices == nil {
		devices = in.want.Devices(in.mtu, in.own)
	}
	if d.want != nil || len(devices) > 0 { // look has set none
		o.cfg.Devices.Set(devices)
	}
}

// withPeers are the devices of in with those peers of before that are no more, and whether
// there are any.
func (o *Overlay) withPeers(in input, before *dataplane.Overlay) (devices []model.TunnelDevice, beside bool) {
	devices = in.want.Devices(in.mtu, in.own)
	for _, old := range before.Devices(in.mtu, in.own) {
		for i := range devices {
			if d := &devices[i]; d.Tunnel == old.Tunnel {
				peers := len(d.Peers)
				d.Peers = addPeers(d.Peers, old.Peers, d.Addr)
				beside = beside || len(d.Peers) > peers
			}
		}
	}
	return devices, beside
}

// addPeers appends those of old whose address nobody has now.
func addPeers(peers, old []model.TunnelPeer, own netip.Addr) []model.TunnelPeer {
	if len(old) == 0 {
		return peers
	}
	taken := make(map[netip.Addr]struct{}, len(peers)+1)
	taken[own] = struct{}{}
	for _, p := range peers {
		taken[p.Addr] = struct{}{}
	}
	for _, p := range old {
		if _, ok := taken[p.Addr]; !ok {
			peers = append(peers, p)
		}
	}
	return peers
}

// move makes routes lead where want says, and returns when the kernel has them.
func (o *Overlay) move(ctx context.Context, want *dataplane.Overlay) error {
	n := &o.now
	moved := false
	hops := hopKey{want: want}
	if n.held.any() && n.whole != nil {
		hops.whole, hops.held = n.whole, n.held
	}
	if d := n.hops; d.want == nil || d.whole != hops.whole || d.held != hops.held || !d.want.SameHops(want) {
		o.cfg.Routes.Divert(model.OwnerBGP, hops.via())
		moved = true
	}
	n.hops = hops
	now := o.routesNow(want)
	if u := diff(n.routes, now); len(u.Set)+len(u.Delete) > 0 {
		o.cfg.Routes.Update(model.OwnerTunnel, u)
		moved = true
	}
	n.routes = now
	if !n.inSync && want.Whole() && !n.held[model.TunnelVXLAN4] && !n.held[model.TunnelVXLAN6] {
		n.inSync = true
		o.cfg.Routes.InSync(model.OwnerTunnel)
	}
	if moved {
		n.settling = true
	}
	if n.settling {
		if err := bounded(ctx, "the routes", o.cfg.Routes.Settle); err != nil {
			return err
		}
		n.settling = false
	}
	if !n.held.any() {
		n.whole = want
	}
	return nil
}

// via is what becomes of a next hop.
func (k hopKey) via() func(netip.Prefix, model.NextHop) model.NextHop {
	if k.whole == nil {
		return k.want.Via
	}
	return func(p netip.Prefix, h model.NextHop) model.NextHop {
		if t, encapsulated, _ := k.want.Asks(p); encapsulated && k.held[t] {
			// A pool that was not there stays without a way: what is to be encapsulated
			// must not leave as it is.
			if _, _, known := k.whole.Asks(p); known {
				return k.whole.Via(p, h)
			}
		}
		return k.want.Via(p, h)
	}
}

// routesNow are the routes of OwnerTunnel: what want says; for what is held, what stood; and
// beside those the ones that stand, while not all blocks are known, and while BGP, which is to
// take their places, has not spoken in this life (I3).
func (o *Overlay) routesNow(want *dataplane.Overlay) []model.Route {
	n, synced := &o.now, o.synced.Load()
	if !n.held.any() && want.Whole() && synced {
		return want.Routes()
	}
	held := func(p netip.Prefix) bool {
		t, encapsulated, _ := want.Asks(p)
		return encapsulated && n.held[t]
	}
	var out []model.Route
	for _, r := range want.Routes() {
		if !held(r.Prefix) {
			out = append(out, r)
		}
	}
	for _, r := range n.routes {
		_, encapsulated, _ := want.Asks(r.Prefix)
		if held(r.Prefix) || encapsulated && !want.Whole() || !synced {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b model.Route) int { return dataplane.ComparePrefix(a.Prefix, b.Prefix) })
	return slices.CompactFunc(out, func(a, b model.Route) bool { return a.Prefix == b.Prefix })
}

// diff is what makes was into is; both are sorted by prefix.
func diff(was, is []model.Route) (u model.RouteUpdate) {
	for len(was) > 0 || len(is) > 0 {
		c := 0
		switch {
		case len(was) == 0:
			c = 1
		case len(is) == 0:
			c = -1
		default:
			c = dataplane.ComparePrefix(was[0].Prefix, is[0].Prefix)
		}
		switch {
		case c < 0:
			u.Delete = append(u.Delete, was[0].Prefix)
			was = was[1:]
		case c > 0:
			u.Set = append(u.Set, is[0])
			is = is[1:]
		default:
			if !was[0].Equal(is[0]) {
				u.Set = append(u.Set, is[0])
			}
			was, is = was[1:], is[1:]
		}
	}
	return u
}

// drop takes away the peers and devices that nothing leads through any more, and then what
// they had.
func (o *Overlay) drop(ctx context.Context, in input, wants tunnels) (waiting string, err error) {
	n, d := &o.now, o.cfg.Devices
	o.setDevices(in, nil)
	if leaving := n.have.without(wants); leaving != n.leaving {
		n.leaving, n.left = leaving, time.Now()
	}
	if !n.leaving.any() {
		return "", nil
	}
	if !o.synced.Load() {
		return fmt.Sprintf("the route table, which may hold routes of an earlier life through %v", n.leaving.list()), nil
	}
	if o.soon(n.left.Add(o.cfg.Linger)) {
		return fmt.Sprintf("nodes that may still send through %v", n.leaving.list()), nil
	}
	d.Keep(false)
	err = bounded(ctx, "the devices", d.Wait)
	d.Keep(true)
	if left := o.there().without(wants); left.any() || ctx.Err() != nil {
		return "", fmt.Errorf("devices of %v cannot be removed: %w", left.list(), errors.Join(err, ctx.Err()))
	}
	n.have, n.leaving = wants, tunnels{}
	o.tellGuard(in.want, wants)
	o.tellAddresses(wants)
	return "", nil
}
