package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/nodeaddr"
)

// The families, as indexes.
const (
	ipv4 = iota
	ipv6
	families
)

var familyNames = [families]string{"IPv4", "IPv6"}

// detection is what is known of the node's address, by family. Uplinks.mu guards it.
type detection struct {
	methods [families]nodeaddr.Method
	follow  [families]nodeaddr.Follower
	errs    [families]error // why nothing is found
	// dests are the destinations of can-reach, and unknown why there are none.
	dests   [families][]netip.Addr
	unknown [families]error

	located bool // Locate was called: what was in force before is known
	told    [families]netip.Prefix
	changes int
}

func (d *detection) init(cfg Config) {
	d.methods = [families]nodeaddr.Method{cfg.IPv4, cfg.IPv6}
	for f, m := range d.methods {
		d.follow[f].Settle = cfg.Settle
		if m.Kind != nodeaddr.CanReach {
			continue
		}
		if a, err := netip.ParseAddr(m.Dest); err == nil {
			d.dests[f] = []netip.Addr{a.Unmap()}
		} else {
			d.unknown[f] = fmt.Errorf("%s was not resolved yet", m.Dest)
		}
	}
}

func (d *detection) on() bool {
	return slices.ContainsFunc(d.methods[:], nodeaddr.Method.Detects)
}

func (d *detection) current() (out [families]netip.Prefix) {
	for f := range out {
		out[f] = d.follow[f].Current().Prefix
	}
	return out
}

// trouble says which address is not found, and what holds meanwhile.
func (d *detection) trouble() error {
	var errs []error
	for f, err := range d.errs {
		if err == nil {
			continue
		}
		stays := "what the datastore says holds"
		if p := d.follow[f].Current().Prefix; p.IsValid() {
			stays = p.String() + " stays in force"
		}
		errs = append(errs, fmt.Errorf("the node's %s address was not found, and %s: autodetection method %w", familyNames[f], stays, err))
	}
	return errors.Join(errs...)
}

// Detected returns the node's addresses as they were found, each with the length of its
// subnet. The zero Prefix means that the family has no method that looks for it, or that
// nothing was found yet: then what the datastore says holds. Nothing is looked for before
// Locate was called once.
func (u *Uplinks) Detected() (v4, v6 netip.Prefix) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.detected.current()
	return now[ipv4], now[ipv6]
}

// AddressChanges counts how often an address in force gave way to another one since New.
func (u *Uplinks) AddressChanges() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.detected.changes
}

// Locate returns the snapshot with this node's addresses as they were found: snap itself where
// it says the same already, or where none are looked for. It takes the node's addresses that
// come out for those of SetNodeAddrs. What the first snapshot says of them is taken for what
// was in force before, and goes on to be while the link that has it is down. A snapshot
// without the node comes back as it is.
func (u *Uplinks) Locate(snap *model.Snapshot, node string) *model.Snapshot {
	n := snap.Node(node)
	if n == nil {
		return snap
	}
	u.mu.Lock()
	first := !u.detected.located && u.detected.on()
	u.mu.Unlock()
	if first {
		u.locate(n)
	}
	u.mu.Lock()
	found := [families]netip.Prefix{n.IPv4, n.IPv6}
	for f, p := range u.detected.current() {
		switch m := u.detected.methods[f]; {
		case m.Kind == nodeaddr.None:
			found[f] = netip.Prefix{}
		case m.Detects() && p.IsValid():
			found[f] = p
		}
	}
	u.mu.Unlock()
	var addrs []netip.Addr
	for _, p := range found {
		if p.IsValid() {
			addrs = append(addrs, p.Addr())
		}
	}
	u.SetNodeAddrs(addrs...)
	if found[ipv4] == n.IPv4 && found[ipv6] == n.IPv6 {
		return snap
	}
	out := *snap
	out.Nodes = slices.Clone(snap.Nodes)
	own := out.Node(node)
	own.IPv4, own.IPv6 = found[ipv4], found[ipv6]
	return &out
}

// locate looks for the addresses for the first time. What fails is tried again by Run.
func (u *Uplinks) locate(n *model.Node) {
	seen, err := readLinks()
	if err != nil {
		u.log.Error("the node's links cannot be read; its address is found later", "error", err)
	}
	u.mu.Lock()
	d := &u.detected
	if !d.located {
		for f, p := range []netip.Prefix{n.IPv4, n.IPv6} {
			if d.methods[f].Detects() && err == nil {
				d.follow[f].Seed(time.Now(), p, bare(seen))
			}
		}
	}
	d.located = d.located || err == nil
	u.mu.Unlock()
	if err == nil {
		u.find(seen)
	}
	u.loop.Poke() // who is told, is told from Run
}

// detect looks for the node's addresses, says what came out, and comes back in time for one
// that has to settle.
func (u *Uplinks) detect(seen []seenLink) {
	u.stop()
	again := u.find(seen)
	if again > 0 {
		u.stop = stopper(time.AfterFunc(again, u.loop.Poke))
	}
	u.mu.Lock()
	now := u.detected.current()
	tell := now != u.detected.told
	u.detected.told = now
	u.mu.Unlock()
	if tell && u.cfg.OnChange != nil {
		u.cfg.OnChange(now[ipv4], now[ipv6])
	}
}

func stopper(t *time.Timer) func() { return func() { t.Stop() } }

// find takes one step with the links as they are. It returns after which time another one is
// due though nothing happens, or 0.
func (u *Uplinks) find(seen []seenLink) (again time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := &u.detected
	if !d.located || !d.on() {
		return 0
	}
	links, now := bare(seen), time.Now()
	for f, m := range d.methods {
		if !m.Detects() {
			continue
		}
		follow := &d.follow[f]
		view := nodeaddr.View{Links: links, Prefer: follow.Prefer()}
		if m.Kind == nodeaddr.CanReach {
			if view.Why = d.unknown[f]; len(d.dests[f]) > 0 {
				view.Source, view.Own, view.Why = source(d.dests[f])
			}
		}
		was := follow.Current()
		found, err := nodeaddr.Choose(m, f == ipv6, view)
		if err != nil && (d.errs[f] == nil || d.errs[f].Error() != err.Error()) {
			u.log.Warn("the node's address is not found; what it was stays", "family", familyNames[f], "address", was.Prefix, "error", err)
		}
		d.errs[f] = err
		changed, wait := follow.Step(now, found, links)
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
		switch {
		case !changed:
		case was.Prefix.IsValid():
			d.changes++
			u.log.Warn("the node's address changed", "family", familyNames[f], "was", was.Prefix, "address", found.Prefix, "link", found.Link, "method", m.String())
		default:
			u.log.Info("node address", "family", familyNames[f], "address", found.Prefix, "link", found.Link, "method", m.String())
		}
	}
	return again
}

// How often the names that can-reach goes by are resolved anew.
const (
	resolveEvery = 90 * time.Second
	resolveRetry = 5 * time.Second
	resolveLimit = 10 * time.Second // for one answer
)

// resolve keeps the addresses of names until ctx is cancelled. What was known stays while
// nothing is answered.
func (u *Uplinks) resolve(ctx context.Context) {
	for {
		wait := time.Duration(0)
		for f, m := range []nodeaddr.Method{u.cfg.IPv4, u.cfg.IPv6} {
			if _, err := netip.ParseAddr(m.Dest); m.Kind != nodeaddr.CanReach || err == nil {
				continue
			}
			wait = cmp.Or(wait, resolveEvery)
			within, cancel := context.WithTimeout(ctx, resolveLimit)
			addrs, err := net.DefaultResolver.LookupNetIP(within, []string{"ip4", "ip6"}[f], m.Dest)
			cancel()
			if err != nil {
				wait = resolveRetry
			}
			u.setDests(f, addrs, err)
		}
		if wait == 0 {
			return // no name to resolve
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// setDests notes what a name stands for. The order of the answer means nothing, so that the
// address that was gone by stays first while it is one of them.
func (u *Uplinks) setDests(f int, addrs []netip.Addr, err error) {
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	u.mu.Lock()
	d := &u.detected
	d.unknown[f] = err
	if err == nil && len(addrs) > 0 {
		if old := d.dests[f]; len(old) > 0 && slices.Contains(addrs, old[0]) {
			addrs = slices.Insert(slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a == old[0] }), 0, old[0])
		}
		d.dests[f] = addrs
	}
	u.mu.Unlock()
	u.loop.Poke()
}
