package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// fakeIPAM gives addresses out of 10.9.0.0/16 and fd00:9::/64 and never one twice; it
// refuses what the real one refuses.
type fakeIPAM struct {
	mu    sync.Mutex
	eps   map[model.AttachmentKey]model.Endpoint
	next  byte
	asked []model.AddressRequest
	calls []string
	faults
}

func newIPAM() *fakeIPAM {
	return &fakeIPAM{eps: map[model.AttachmentKey]model.Endpoint{}}
}

// faults makes methods fail, and calls back before each.
type faults struct {
	mu   sync.Mutex
	fail map[string]error
	hook func(method string)
}

// set makes the named method fail from now on; nil makes it work again.
func (f *faults) set(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = make(map[string]error)
	}
	f.fail[method] = err
}

func (f *faults) callBack(hook func(method string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// meet calls back and returns the error that the method shall fail with.
func (f *faults) meet(method string) error {
	f.mu.Lock()
	hook, err := f.hook, f.fail[method]
	f.mu.Unlock()
	if hook != nil {
		hook(method)
	}
	return err
}

// call notes a call and returns the error it shall fail with. It leaves f.mu locked.
func (f *fakeIPAM) call(ctx context.Context, method string) error {
	err := f.meet(method)
	f.mu.Lock()
	f.calls = append(f.calls, method)
	return errors.Join(err, ctx.Err())
}

func (f *fakeIPAM) Assign(ctx context.Context, req model.AddressRequest) (model.Endpoint, error) {
	err := f.call(ctx, "Assign")
	defer f.mu.Unlock()
	if err != nil {
		return model.Endpoint{}, err
	}
	f.asked = append(f.asked, req)
	if ep, ok := f.eps[req.Key]; ok {
		return ep, nil
	}
	list := req.Addresses
	for _, a := range list {
		for key, ep := range f.eps {
			if slices.Contains(ep.Addresses, a) {
				return model.Endpoint{}, fmt.Errorf("address %s is in use by %s", a, key)
			}
		}
	}
	if len(list) == 0 {
		f.next++
		list = []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, f.next}), netip.MustParseAddr(fmt.Sprintf("fd00:9::%x", f.next))}
	}
	ep := model.Endpoint{Key: req.Key, Network: req.Network, Namespace: req.Namespace, Pod: req.Pod, PodUID: req.PodUID, Addresses: list}
	f.eps[req.Key] = ep
	return ep, nil
}

func (f *fakeIPAM) Wired(ctx context.Context, ep model.Endpoint) error {
	err := f.call(ctx, "Wired")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	have, ok := f.eps[ep.Key]
	if !ok || !slices.Equal(have.Addresses, ep.Addresses) || !ep.Wired() {
		return fmt.Errorf("attachment %s: not what was assigned", ep.Key)
	}
	f.eps[ep.Key] = ep
	return nil
}

func (f *fakeIPAM) Release(ctx context.Context, containerID, ifName string) ([]model.Endpoint, error) {
	err := f.call(ctx, "Release")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ep, ok := f.eps[model.AttachmentKey{ContainerID: containerID, IfName: ifName}]
	if !ok {
		return nil, nil
	}
	delete(f.eps, ep.Key)
	return []model.Endpoint{ep}, nil
}

func (f *fakeIPAM) Retain(ctx context.Context, network string, keep []model.AttachmentKey) (freed []model.Endpoint, err error) {
	err = f.call(ctx, "Retain")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for key, ep := range f.eps {
		if ep.Network == network && !slices.Contains(keep, key) {
			freed = append(freed, ep)
			delete(f.eps, key)
		}
	}
	return freed, nil
}

func (f *fakeIPAM) Endpoint(key model.AttachmentKey) (model.Endpoint, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ep, ok := f.eps[key]
	return ep, ok
}

// called lists the methods called so far.
func (f *fakeIPAM) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeIPAM) endpoints() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.eps)
}

// fakeDataplane makes the host's routes to pods in the kernel, which refuses a route
// through a link that is down or missing.
type fakeDataplane struct {
	faults
	stall chan struct{} // unless nil, Attach closes it and waits for the end of its context
}

func newDataplane() *fakeDataplane { return &fakeDataplane{} }

func (f *fakeDataplane) Attach(ctx context.Context, ep model.Endpoint) error {
	if f.stall != nil {
		close(f.stall)
		<-ctx.Done()
	}
	if err := errors.Join(f.meet("Attach"), ctx.Err()); err != nil {
		return err
	}
	return f.routes(ep, netlink.RouteReplace)
}

func (f *fakeDataplane) Detach(ctx context.Context, ep model.Endpoint) error {
	if err := errors.Join(f.meet("Detach"), ctx.Err()); err != nil {
		return err
	}
	err := f.routes(ep, netlink.RouteDel)
	var missing netlink.LinkNotFoundError
	if errors.Is(err, unix.ESRCH) || errors.As(err, &missing) {
		return nil
	}
	return err
}

func (f *fakeDataplane) Check(_ context.Context, ep model.Endpoint) error {
	if err := f.meet("Check"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(ep.HostInterface)
	if err != nil {
		return err
	}
	for _, a := range ep.Addresses {
		have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(a)}, netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF)
		if err != nil {
			return err
		}
		if len(have) == 0 {
			return fmt.Errorf("route %s dev %s is missing", a, ep.HostInterface)
		}
	}
	return nil
}

// routes does one thing to the route of each address.
func (f *fakeDataplane) routes(ep model.Endpoint, do func(*netlink.Route) error) error {
	link, err := netlink.LinkByName(ep.HostInterface)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range ep.Addresses {
		if err := do(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(a), Scope: netlink.SCOPE_LINK}); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

func host(a netip.Addr) *net.IPNet {
	n := ipNet(netip.PrefixFrom(a, a.BitLen()))
	return &n
}
