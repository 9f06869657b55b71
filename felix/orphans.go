package felix

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// Orphans fills in the addresses of pods' links that stand in the kernel and are in no
// journal (it was lost): what the routes of our protocol number lead to them. Their pods
// may be running, so that their routes must stay (I3) until a DEL or GC names them.
// Links without such a route are left out.
func Orphans(links []model.Endpoint, protocol int) ([]model.Endpoint, error) {
	if len(links) == 0 {
		return nil, nil
	}
	byIndex := map[int]int{}
	for i, ep := range links {
		l, err := netlink.LinkByName(ep.HostInterface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // it went away meanwhile, and its routes with it
		}
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", ep.HostInterface, err)
		}
		byIndex[l.Attrs().Index] = i
	}
	out := slices.Clone(links)
	for _, family := range families {
		routes, err := listRoutes(family, protocol)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			i, ours := byIndex[r.LinkIndex]
			if !ours || r.Dst == nil {
				continue
			}
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				if ones, bits := r.Dst.Mask.Size(); ones == bits {
					out[i].Addresses = append(out[i].Addresses, a.Unmap())
				}
			}
		}
	}
	return slices.DeleteFunc(out, func(ep model.Endpoint) bool { return len(ep.Addresses) == 0 }), nil
}

var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// listRoutes reads the routes of one protocol number in the main table.
func listRoutes(family, protocol int) (routes []netlink.Route, err error) {
	filter := &netlink.Route{Protocol: netlink.RouteProtocol(protocol), Table: unix.RT_TABLE_MAIN}
	for range 10 { // the kernel says when a dump was interrupted by a change
		routes, err = netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// RemoveRoutes removes all routes of the protocol number from the main table, and returns
// how many. It must not run beside an agent.
func RemoveRoutes(protocol int) (n int, err error) {
	var errs []error
	for _, family := range families {
		routes, err := listRoutes(family, protocol)
		errs = append(errs, err)
		for _, r := range routes {
			switch err := netlink.RouteDel(&r); {
			case err == nil:
				n++
			case !errors.Is(err, unix.ESRCH): // gone meanwhile, with its link
				errs = append(errs, fmt.Errorf("route %s: %w", r, err))
			}
		}
	}
	return n, errors.Join(errs...)
}
