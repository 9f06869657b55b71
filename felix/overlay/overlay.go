// Package overlay owns the order in which encapsulation changes on a node. What is wanted it
// asks of felix/dataplane.Overlay; devices are felix/tunnel's, routes felix/route's, the
// guard felix/iptables', addresses ipam's. Each change goes one way: guard and addresses
// first, then the devices, then the routes onto them, and last what nothing leads through
// any more. So no packet meets a device half made, and none is decapsulated unguarded.
//
// It keeps no state on disk. A new agent finds what stands in the kernel, and drops nothing
// before the route table knows which routes are stale (I3, I4).
package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// Routes is the route table as this package uses it; felix/route.Table is one.
type Routes interface {
	Divert(model.Owner, func(netip.Prefix, model.NextHop) model.NextHop)
	Update(model.Owner, model.RouteUpdate)
	InSync(model.Owner)
	Settle(context.Context) error
	Synced(context.Context) error
}

// Devices are the encapsulation devices; felix/tunnel.Devices are.
type Devices interface {
	Set([]model.TunnelDevice)
	Keep(bool)
	Wait(context.Context) error
	Status() []tunnel.Status
}

// Config of an Overlay.
type Config struct {
	Log     *slog.Logger // required
	Node    string       // required: this node's name
	Routes  Routes       // required; OwnerTunnel must be among the table's Config.Owners
	Devices Devices      // required
	// Addresses is told which tunnels the node needs an address for; required.
	// ipam.Allocator.SetTunnels is meant.
	Addresses func([]model.Tunnel)
	// Guard is told which encapsulated packets the node takes, whenever that changes; required.
	Guard func(v4, v6 model.EncapGuard)
	// Guarded returns when what Guard was told last is in the kernel. Optional; with it no
	// device is made before its guard is in force.
	Guarded func(context.Context) error
	// Lead is how long routes wait after a device was made on a node that has run without it,
	// so that the other nodes have theirs too when packets come (default 500 ms). Linger is how
	// long a device stays after the last route left it, for packets of nodes that have not
	// heard yet (default 2 s). The nodes hear of a change each in its own time.
	Lead, Linger time.Duration
}

// patience bounds each wait for another part; what is not done by then is tried again.
const patience = 30 * time.Second

// tunnels is a set of encapsulations.
type tunnels [model.Tunnels]bool

func (s tunnels) without(o tunnels) (out tunnels) {
	for t := range s {
		out[t] = s[t] && !o[t]
	}
	return out
}

func (s tunnels) and(o tunnels) (out tunnels) {
	for t := range s {
		out[t] = s[t] || o[t]
	}
	return out
}

func (s tunnels) any() bool { return s != tunnels{} }

// list is s in ascending order.
func (s tunnels) list() (out []model.Tunnel) {
	for t, in := range s {
		if in {
			out = append(out, model.Tunnel(t))
		}
	}
	return out
}

func setOf(list []model.Tunnel) (out tunnels) {
	for _, t := range list {
		out[t] = true
	}
	return out
}

// Overlay brings what snapshots say of encapsulation into force.
type Overlay struct {
	cfg  Config
	log  *slog.Logger
	loop *reconcile.Loop
	wake *time.Timer // pokes the loop when a time has come

	mu     sync.Mutex // guards what follows
	in     input
	noNode bool // the last snapshot did not have this node
	status Status
	done   *dataplane.Overlay // status is about it

	synced atomic.Bool // stale routes of an earlier life are gone

	now stage // of the goroutine in Run
}

// input is what the node should be.
type input struct {
	want *dataplane.Overlay // nil: nothing is known yet
	mtu  int                // the uplink's, in bytes; 0: not known yet
	own  [model.Tunnels]netip.Addr
}

// New makes an Overlay; nothing is asked of the others before the first Set.
func New(cfg Config) (*Overlay, error) {
	if cfg.Log == nil || cfg.Node == "" || cfg.Routes == nil || cfg.Devices == nil || cfg.Addresses == nil || cfg.Guard == nil {
		return nil, errors.New("overlay: Config needs Log, Node, Routes, Devices, Addresses and Guard")
	}
	if cfg.Lead == 0 {
		cfg.Lead = 500 * time.Millisecond
	}
	if cfg.Linger == 0 {
		cfg.Linger = 2 * time.Second
	}
	o := &Overlay{cfg: cfg, log: cfg.Log.With("reconciler", "overlay")}
	o.loop = (&reconcile.Loop{Name: "overlay", Log: cfg.Log, Apply: o.apply}).Init()
	return o, nil
}

func (o *Overlay) String() string { return "felix/overlay" }

// Set takes a new snapshot. It does not wait. The first one diverts learned routes before it
// returns, so that those which come in afterwards lead where they should from the beginning.
// A snapshot without this node changes nothing: it proves nothing about the pods here (I4).
func (o *Overlay) Set(snap *model.Snapshot) {
	known := snap.Node(o.cfg.Node) != nil
	var next *dataplane.Overlay
	if known {
		next = dataplane.NewOverlay(snap, o.cfg.Node)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.noNode = !known
	if !known || o.in.want != nil && next.Equal(o.in.want) {
		return
	}
	if o.in.want == nil {
		o.cfg.Routes.Divert(model.OwnerBGP, next.Via)
		o.now.hops.want = next // Run is not there yet, or has nothing to do
	}
	o.in.want = next
	o.loop.Poke()
}

// SetMTU says how wide the uplink is, in bytes; 0: not known.
func (o *Overlay) SetMTU(uplink int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if uplink > 0 && uplink != o.in.mtu {
		o.in.mtu = uplink
		o.loop.Poke()
	}
}

// SetAddrs says which addresses the node's tunnels have; zero: none yet.
func (o *Overlay) SetAddrs(own [model.Tunnels]netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if own != o.in.own {
		o.in.own = own
		o.loop.Poke()
	}
}

// Run brings changes into force until ctx is cancelled. It removes nothing when it ends (I3).
func (o *Overlay) Run(ctx context.Context) error {
	o.wake = time.AfterFunc(time.Hour, o.loop.Poke)
	defer o.wake.Stop()
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if o.cfg.Routes.Synced(within) == nil {
			o.synced.Store(true)
			o.loop.Poke()
		}
	}()
	err := o.loop.Run(ctx)
	cancel()
	<-done
	return err
}

// Status is how far it got.
type Status struct {
	// Tunnels are those that the node needs, or still has.
	Tunnels []TunnelStatus `json:"tunnels,omitempty"`
	Routes  int            `json:"routes"`              // of model.OwnerTunnel, handed to the route table
	Waiting string         `json:"waiting,omitempty"`   // what the next step waits for
	Error   string         `json:"error,omitempty"`     // what keeps it from going on; it is tried again
	NoNode  bool           `json:"noNode,omitempty"`    // the datastore has no Node of this name: what was in force stays
	MTU     int            `json:"uplinkMTU,omitempty"` // bytes
}

// TunnelStatus is one encapsulation on this node.
type TunnelStatus struct {
	Tunnel string     `json:"tunnel"`
	Device string     `json:"device"`
	Wanted bool       `json:"wanted"`
	There  bool       `json:"there"`          // the device is up
	Addr   netip.Addr `json:"addr,omitzero"`  // of this node; none yet when empty
	Held   bool       `json:"held,omitempty"` // the device cannot be made: what would go through it stays as it was
}

// Status tells how things are now.
func (o *Overlay) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.status
	s.NoNode, s.MTU = o.noNode, o.in.mtu
	return s
}

func (o *Overlay) publish(in input, waiting string, err error) {
	n := &o.now
	s := Status{Routes: len(n.routes), Waiting: waiting}
	if err != nil {
		s.Error = err.Error()
	}
	wants := setOf(in.want.Wants())
	for _, t := range wants.and(n.have).list() {
		s.Tunnels = append(s.Tunnels, TunnelStatus{t.String(), t.Device(), wants[t], n.have[t] && !n.held[t], in.own[t], n.held[t]})
	}
	o.mu.Lock()
	o.status, o.done = s, in.want
	o.mu.Unlock()
}

// soon pokes the loop when at has come, and reports whether that is still ahead.
func (o *Overlay) soon(at time.Time) bool {
	left := time.Until(at)
	if left <= 0 {
		return false
	}
	o.wake.Reset(left)
	return true
}

// bounded gives a wait its patience.
func bounded(ctx context.Context, what string, wait func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s: not within %s", what, patience))
	defer cancel()
	return wait(ctx)
}
