// Package felix is the node's dataplane as the rest of the agent sees it: it takes the
// snapshot and the attached pods, hands what they mean for the kernel to the reconcilers
// below it, and says when a pod's share is in force.
package felix

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/internal/model"
)

// Routes is the route table as this package uses it; felix/route.Table is one.
type Routes interface {
	Update(model.Owner, model.RouteUpdate)
	Replace(model.Owner, []model.Route)
	InSync(model.Owner)
	Guard(own, others []netip.Addr)
	Wait(context.Context, ...netip.Prefix) error
}

// Rules is packet filter state that must be in force before a pod may talk.
type Rules interface {
	// Wait returns when the latest desired rules are in the kernel, or why they are not.
	Wait(context.Context) error
}

// Policy decides what a pod may send and receive; felix/enforce.Enforcer does.
type Policy interface {
	Restore(...model.Endpoint)
	// Attach returns when the pod's policy is in the kernel, and until then nothing passes.
	Attach(context.Context, model.Endpoint) error
	Detach(model.Endpoint)
	// SetBlocks says which blocks are this node's, whose routes Routes was given, and which
	// addresses of them others have. It does not wait.
	SetBlocks(own []netip.Prefix, lent []netip.Addr)
}

// Config holds what a Dataplane works with. All fields are required.
type Config struct {
	Node   string
	Routes Routes
	Rules  []Rules
	Policy Policy
	// Outside is called with the pod addresses that none of the node's blocks covers,
	// whenever they change: they must be advertised one by one.
	Outside func([]netip.Addr)
	// NAT is called with what leaves the node under another source, with the first snapshot
	// and whenever it changes. Attach does not depend on what comes of it.
	NAT func(v4, v6 model.OutgoingNAT)
}

// Dataplane keeps the kernel's view of this node's pods and blocks.
type Dataplane struct {
	cfg Config

	mu        sync.Mutex     // guards what follows; Routes, Outside and NAT are called under it, so that their order is that of the changes
	own       []netip.Prefix // the node's blocks
	endpoints map[model.AttachmentKey]model.Endpoint
	outside   []netip.Addr          // sorted
	nat       *[2]model.OutgoingNAT // nil before the first snapshot
}

// New makes a Dataplane that knows the endpoints the journal holds: pods that an earlier
// agent attached and that may be running.
func New(cfg Config, restored []model.Endpoint) *Dataplane {
	d := &Dataplane{cfg: cfg, endpoints: map[model.AttachmentKey]model.Endpoint{}}
	var routes []model.Route
	for _, ep := range restored {
		d.endpoints[ep.Key] = ep
		routes = append(routes, dataplane.WorkloadRoutes(ep)...)
	}
	cfg.Routes.Replace(model.OwnerWorkload, routes)
	cfg.Routes.InSync(model.OwnerWorkload)
	cfg.Policy.Restore(restored...)
	return d
}

// Set takes a new snapshot: the node's blocks, and what is translated, may have changed.
func (d *Dataplane) Set(snap *model.Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.own = dataplane.OwnBlocks(snap, d.cfg.Node)
	d.cfg.Routes.Guard(dataplane.Guarded(snap, d.cfg.Node))
	d.cfg.Routes.Replace(model.OwnerBlock, dataplane.BlockRoutes(d.own))
	d.cfg.Routes.InSync(model.OwnerBlock)
	d.cfg.Policy.SetBlocks(d.own, dataplane.Lent(snap, d.cfg.Node))
	var outside []netip.Addr
	for _, ep := range d.endpoints {
		outside = append(outside, dataplane.Outside(d.own, ep)...)
	}
	slices.SortFunc(outside, netip.Addr.Compare)
	d.setOutside(slices.Compact(outside))
	nat := [2]model.OutgoingNAT{dataplane.OutgoingNAT(snap, false), dataplane.OutgoingNAT(snap, true)}
	if d.nat == nil || !nat[0].Equal(d.nat[0]) || !nat[1].Equal(d.nat[1]) {
		d.nat = &nat
		d.cfg.NAT(nat[0], nat[1])
	}
}

// Attach puts the pod's routes, rules and policy in force and returns when they are.
func (d *Dataplane) Attach(ctx context.Context, ep model.Endpoint) error {
	for _, r := range d.cfg.Rules {
		if err := r.Wait(ctx); err != nil {
			return err
		}
	}
	// No route makes a pod reachable before its rules are in (I2).
	if err := d.cfg.Policy.Attach(ctx, ep); err != nil {
		return err
	}
	routes := dataplane.WorkloadRoutes(ep)
	d.mu.Lock()
	d.endpoints[ep.Key] = ep
	d.cfg.Routes.Update(model.OwnerWorkload, model.RouteUpdate{Set: routes})
	outside := slices.Clone(d.outside)
	for _, a := range dataplane.Outside(d.own, ep) {
		if i, there := slices.BinarySearchFunc(outside, a, netip.Addr.Compare); !there {
			outside = slices.Insert(outside, i, a)
		}
	}
	d.setOutside(outside)
	d.mu.Unlock()
	return d.cfg.Routes.Wait(ctx, dataplane.Prefixes(routes)...)
}

// Detach takes the pod's routes and policy away. It does not wait: the link is gone already, and
// whoever gets the address next overrides what is left.
func (d *Dataplane) Detach(_ context.Context, ep model.Endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.endpoints[ep.Key]
	if !ok { // an Attach that failed
		d.cfg.Policy.Detach(ep)
		return nil
	}
	delete(d.endpoints, ep.Key)
	d.cfg.Routes.Update(model.OwnerWorkload, model.RouteUpdate{Delete: dataplane.Prefixes(dataplane.WorkloadRoutes(known))})
	d.setOutside(slices.DeleteFunc(slices.Clone(d.outside), func(a netip.Addr) bool { return slices.Contains(known.Addresses, a) }))
	d.cfg.Policy.Detach(known)
	return nil
}

// Check reads the kernel: the pod's addresses must be routed to its link.
func (d *Dataplane) Check(_ context.Context, ep model.Endpoint) error {
	for _, r := range dataplane.WorkloadRoutes(ep) {
		got, err := netlink.RouteGetWithOptions(r.Prefix.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if err != nil || len(got) == 0 {
			return fmt.Errorf("route %s: not in the kernel (%v)", r.Prefix, err)
		}
		link, err := netlink.LinkByIndex(got[0].LinkIndex)
		if err != nil {
			return fmt.Errorf("route %s: leads to interface %d: %w", r.Prefix, got[0].LinkIndex, err)
		}
		if name := link.Attrs().Name; name != ep.HostInterface || got[0].Dst == nil || got[0].Dst.String() != r.Prefix.String() {
			return fmt.Errorf("route %s: the kernel sends it by %v to %s, not to %s", r.Prefix, got[0].Dst, name, ep.HostInterface)
		}
	}
	return nil
}

// setOutside is called with mu held.
func (d *Dataplane) setOutside(now []netip.Addr) {
	if !slices.Equal(now, d.outside) {
		d.outside = now
		d.cfg.Outside(now)
	}
}
