package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/model"
)

// node is a computer: what its kernel and its datastore have outlives agents. It checks at
// every step what must never be: a route into a device that is not there, a device without
// guard, an address that is given back and still borne.
type node struct {
	t  testing.TB
	mu sync.Mutex

	noIPIP    bool
	devices   map[model.Tunnel][]model.TunnelPeer // of ours, up
	routes    map[netip.Prefix]model.NextHop      // of ours
	guard     [2]model.EncapGuard
	addresses tunnels
	learned   map[netip.Prefix]model.NextHop // what BGP tells, once it does

	journal []string
	wrong   []string
	calls   int
	killAt  int // the call at which the agent dies; 0: never
}

func (n *node) bad(format string, args ...any) {
	n.wrong = append(n.wrong, fmt.Sprintf(format, args...))
}

// through lists the prefixes routed into t.
func (n *node) through(t model.Tunnel) (out []netip.Prefix) {
	for p, h := range n.routes {
		if h.Device == t.Device() {
			out = append(out, p)
		}
	}
	return out
}

func (n *node) guarded(t model.Tunnel) bool {
	switch t {
	case model.TunnelIPIP:
		return n.guard[0].IPIP
	case model.TunnelVXLAN4:
		return n.guard[0].VXLANPort != 0
	}
	return n.guard[1].VXLANPort != 0
}

// life is one agent's: the memory of its route table and of its device reconciler.
type life struct {
	*node
	kill context.CancelFunc
	dead bool

	via     func(netip.Prefix, model.NextHop) model.NextHop
	told    bool // BGP's routes have come in
	tunnel  map[netip.Prefix]model.NextHop
	owners  int // in sync
	synced  chan struct{}
	wanted  []model.TunnelDevice
	keep    bool
	set     bool
	settled bool // what was asked of the table is in the kernel
}

// call counts a call and reports whether the agent is still alive.
func (l *life) call(format string, args ...any) bool {
	if l.dead {
		return false
	}
	l.calls++
	l.journal = append(l.journal, fmt.Sprintf("%d ", l.calls)+fmt.Sprintf(format, args...))
	if l.calls == l.killAt {
		l.journal = append(l.journal, "killed")
		l.dead = true
		l.kill()
		return false
	}
	return true
}

var errDead = errors.New("dead")

func (l *life) Divert(_ model.Owner, via func(netip.Prefix, model.NextHop) model.NextHop) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.call("divert") {
		l.via, l.settled = via, false
	}
}

func (l *life) Update(_ model.Owner, u model.RouteUpdate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.call("routes: %d set, %d deleted", len(u.Set), len(u.Delete)) {
		return
	}
	for _, r := range u.Set {
		l.tunnel[r.Prefix] = r.NextHops[0]
	}
	for _, p := range u.Delete {
		if _, ok := l.tunnel[p]; !ok {
			l.bad("%s is deleted and was not set", p)
		}
		if _, learned := l.learned[p]; learned && !l.told {
			l.bad("%s is deleted before BGP, which knows it, has spoken", p)
		}
		delete(l.tunnel, p)
	}
	l.settled = false
}

func (l *life) InSync(model.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.call("in sync") {
		l.owners++
	}
}

func (l *life) Settle(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.call("settle") {
		return errDead
	}
	l.program(false)
	return nil
}

// program is the table's work: the best candidate that leads somewhere stands; stale routes
// stay until prune.
func (l *life) program(prune bool) {
	l.settled = true
	for p := range maps.Keys(l.routes) {
		_, a := l.tunnel[p]
		_, b := l.learned[p]
		if !a && (!b || !l.told) && (prune || l.owners > 1) {
			delete(l.routes, p)
		}
	}
	works := func(h model.NextHop) bool {
		for t := range model.Tunnel(model.Tunnels) {
			if h.Device == t.Device() {
				_, up := l.devices[t]
				return up
			}
		}
		return true
	}
	for p, h := range l.learned {
		if l.told {
			if h = l.via(p, h); works(h) {
				l.routes[p] = h
			} else {
				delete(l.routes, p)
			}
		}
	}
	for p, h := range l.tunnel {
		if works(h) {
			l.routes[p] = h
		} else if h.Device != model.TunnelIPIP.Device() {
			l.bad("%s leads into %s, which is not there", p, h.Device)
		}
	}
}

// tell is BGP coming in sync: every owner is, and what is stale goes.
func (l *life) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.told = true
		l.owners++
		l.program(true)
		close(l.synced)
	}
}

func (l *life) Synced(ctx context.Context) error {
	select {
	case <-l.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *life) Set(devices []model.TunnelDevice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.call("devices %v", names(devices)) {
		l.wanted, l.set = devices, true
	}
}

func names(devices []model.TunnelDevice) (out []string) {
	for _, d := range devices {
		out = append(out, fmt.Sprintf("%s/%d", d.Tunnel, len(d.Peers)))
	}
	return out
}

func (l *life) Keep(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.call("keep %t", on) {
		l.keep = on
		l.converge() // at any time; the sooner the worse
	}
}

func (l *life) Wait(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.call("wait for devices") {
		return errDead
	}
	return l.converge()
}

func (l *life) converge() (err error) {
	if !l.set {
		return nil
	}
	var want tunnels
	for _, d := range l.wanted {
		want[d.Tunnel] = true
		if d.Tunnel == model.TunnelIPIP && l.noIPIP {
			err = errors.New("tunl0: this kernel makes no ipip devices")
			continue
		}
		if _, there := l.devices[d.Tunnel]; !there && !l.guarded(d.Tunnel) {
			l.bad("%s is made without guard", d.Tunnel)
		}
		// What the kernel's routes lead to must stay.
		for _, p := range l.through(d.Tunnel) {
			if d.Tunnel != model.TunnelIPIP && l.told && !slices.ContainsFunc(d.Peers, func(e model.TunnelPeer) bool { return e.Addr == l.routes[p].Addr }) {
				l.bad("%s leads to %s, which is no peer of %s any more", p, l.routes[p].Addr, d.Tunnel)
			}
		}
		_, there := l.devices[d.Tunnel]
		l.devices[d.Tunnel] = d.Peers
		if !there && l.settled {
			l.program(false) // the table sees the link
		}
	}
	for t := range l.devices {
		if want[t] || l.keep {
			continue
		}
		if ps := l.through(t); len(ps) > 0 {
			l.bad("%s is removed and %v lead through it", t, ps)
		}
		if !l.guarded(t) {
			l.bad("%s stands without guard", t)
		}
		if !l.addresses[t] {
			l.bad("%s stands and its address was given back", t)
		}
		delete(l.devices, t)
	}
	return err
}

func (l *life) Status() (out []tunnel.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t := range model.Tunnel(model.Tunnels) {
		_, up := l.devices[t]
		wanted := slices.ContainsFunc(l.wanted, func(d model.TunnelDevice) bool { return d.Tunnel == t })
		if up || wanted {
			out = append(out, tunnel.Status{Device: t.Device(), Wanted: wanted, Up: up})
		}
	}
	return out
}

func (l *life) setGuard(v4, v6 model.EncapGuard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.call("guard %t %d %d", v4.IPIP, v4.VXLANPort, v6.VXLANPort) {
		return
	}
	l.guard = [2]model.EncapGuard{v4, v6}
	for t := range l.devices {
		if !l.guarded(t) {
			l.bad("%s stands without guard", t)
		}
	}
}

func (l *life) setAddresses(want []model.Tunnel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.call("addresses %v", want) {
		return
	}
	l.addresses = setOf(want)
	for t := range l.devices {
		if !l.addresses[t] {
			l.bad("%s stands and its address was given back", t)
		}
	}
}

// agent is one life with its Overlay running.
type agent struct {
	*life
	*Overlay
	stop func()
}

func (n *node) start() *agent {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{node: n, kill: cancel, via: func(_ netip.Prefix, h model.NextHop) model.NextHop { return h }, tunnel: map[netip.Prefix]model.NextHop{}, synced: make(chan struct{})}
	o, err := New(Config{
		Log: slog.New(slog.DiscardHandler), Node: "a", Routes: l, Devices: l, Addresses: l.setAddresses, Guard: l.setGuard,
		Guarded: func(context.Context) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if !l.call("guarded") {
				return errDead
			}
			return nil
		},
		Lead: time.Millisecond, Linger: time.Millisecond,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	o.loop.MinBackoff, o.loop.MaxBackoff = time.Millisecond, 2*time.Millisecond
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	o.SetMTU(1500)
	a := &agent{life: l, Overlay: o}
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Run: %v", err)
		}
		l.mu.Lock()
		l.dead = true
		l.mu.Unlock()
	})
	n.t.Cleanup(a.stop)
	return a
}

// idle polls until the agent has done all it can for want, or is dead; which it reports.
func (a *agent) idle(want *dataplane.Overlay, waiting string) (alive bool) {
	a.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		a.life.mu.Lock()
		dead := a.dead
		a.life.mu.Unlock()
		if dead {
			return false
		}
		a.Overlay.mu.Lock()
		s := a.status
		there := a.done != nil && a.done.Equal(want)
		a.Overlay.mu.Unlock()
		if there && (s.Waiting == "" || waiting != "" && len(s.Waiting) >= len(waiting) && s.Waiting[:len(waiting)] == waiting) {
			a.life.mu.Lock()
			defer a.life.mu.Unlock()
			if !a.dead {
				_ = a.converge() // the last thing set is not waited for
			}
			return !a.dead
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("not idle: %+v\n%s", s, a.story())
		}
		time.Sleep(200 * time.Microsecond)
	}
}

func (n *node) story() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := ""
	for _, l := range n.journal {
		out += "  " + l + "\n"
	}
	return out
}
