package veth

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the ends are set to.
var (
	hostIPv4 = []setting{{"forwarding", ipv4Forwarding, 1}, {"proxy_arp", ipv4ProxyARP, 1}, {"rp_filter", ipv4RPFilter, 1}}
	// The host takes no advice from a pod.
	hostIPv6 = []setting{{"disable_ipv6", ipv6DisableIPv6, 0}, {"accept_ra", ipv6AcceptRA, 0}, {"accept_dad", ipv6AcceptDAD, 0}, {"forwarding", ipv6Forwarding, 1}}
	podIPv6  = []setting{{"accept_ra", ipv6AcceptRA, 0}, {"accept_dad", ipv6AcceptDAD, 0}}
)

// neighSysctl is how long the host waits before it answers ARP for others, in 1/100 s:
// the kernel's default is up to 0.8 s, which a pod that asks would wait.
func neighSysctl(hostName string) (path, value string) {
	return "ipv4/neigh/" + hostName + "/proxy_delay", "0"
}

// knowsIPv6 reports whether the kernel keeps IPv6 settings for the ends: it does not for a
// link whose MTU is too small for IPv6 (ipv6_add_dev, net/ipv6/addrconf.c).
func (w *Wirer) knowsIPv6(s *Spec) bool { return w.ipv6 && s.MTU >= MinMTUIPv6 }

// setHost brings the host end to what s says and sets it up. A created link has its MTU and
// hardware address already.
func (w *Wirer) setHost(host *socket, s *Spec, l netlink.Link, created bool) error {
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(s.Owner.String()))}
	if !created {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(s.MTU))), nl.NewRtAttr(unix.IFLA_ADDRESS, HostMAC))
	}
	index := l.Attrs().Index
	// The pod end is still down, so no link-local address is made between the two parts
	// of this message.
	if err := host.setLink(index, true, afSpec{ipv4: hostIPv4, quietIPv6: w.knowsIPv6(s)}, attrs...); err != nil {
		return fmt.Errorf("setting it up: %w", err)
	}
	if err := w.writeSysctl(neighSysctl(s.HostName)); err != nil {
		return err
	}
	if !s.hasIPv6() {
		return nil
	}
	if err := w.setIPv6(host, s.HostName, index, hostIPv6); err != nil {
		return err
	}
	return addAddress(host, l, netip.PrefixFrom(GatewayIPv6, 64))
}

// setIPv6 writes the settings that are not so yet. It runs on a thread in the link's
// namespace. There is no netlink message for them, and writing some takes the kernel's
// routing lock, so what is right is left alone.
func (w *Wirer) setIPv6(s *socket, name string, index int, want []setting) error {
	conf, err := s.linkConf(index)
	if err != nil {
		return fmt.Errorf("reading its settings: %w", err)
	}
	for _, v := range want {
		if have, ok := conf.get(unix.AF_INET6, v.index); ok && have == v.value {
			continue
		}
		if err := w.writeSysctl("ipv6/conf/"+name+"/"+v.name, strconv.Itoa(int(v.value))); err != nil {
			return err
		}
	}
	return nil
}

// setPod brings the pod end to what s says.
func (w *Wirer) setPod(s *Spec, hostEnd netlink.Link, l *Link) error {
	var (
		pod *socket
		end netlink.Link
	)
	err := w.inside(s.NetNS, func() (err error) {
		if pod, err = openSocket(); err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		if end, err = pod.LinkByName(s.PodName); err != nil {
			return err
		}
		if !w.knowsIPv6(s) {
			return nil
		}
		if s.hasIPv6() {
			if err := w.enableIPv6(pod, end.Attrs().Index); err != nil {
				return err
			}
		}
		return w.setIPv6(pod, s.PodName, end.Attrs().Index, podIPv6)
	})
	if pod != nil {
		defer pod.Close()
	}
	if err != nil {
		return err
	}
	index := end.Attrs().Index
	l.MAC = end.Attrs().HardwareAddr
	var attrs []*nl.RtAttr
	if !l.Created {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(s.MTU))))
		if s.MAC != nil {
			attrs = append(attrs, nl.NewRtAttr(unix.IFLA_ADDRESS, s.MAC))
			l.MAC = s.MAC
		}
	}
	if w.knowsIPv6(s) && !s.hasIPv6() { // before it is up, since the address would be made then
		if err := pod.setLink(index, false, afSpec{quietIPv6: true}); err != nil {
			return fmt.Errorf("keeping IPv6 quiet: %w", err)
		}
	}
	if err := pod.setLink(index, true, afSpec{}, attrs...); err != nil {
		return fmt.Errorf("setting it up: %w", err)
	}
	for _, a := range s.Addresses {
		if err := addAddress(pod, end, single(a)); err != nil {
			return err
		}
		gw := gateway(a)
		if err := pod.NeighSet(neighbour(index, gw)); err != nil {
			return fmt.Errorf("neighbour %s: %w", gw, err)
		}
		def, err := addRoutes(pod, end, gw)
		if err != nil {
			return err
		}
		l.Routes = append(l.Routes, def...)
	}
	return nil
}

// enableIPv6 switches IPv6 on in the pod if the container runtime has switched it off: in
// all of the pod, since programs that find IPv6 expect ::1 too.
func (w *Wirer) enableIPv6(pod *socket, index int) error {
	conf, err := pod.linkConf(index)
	if err != nil {
		return fmt.Errorf("reading its settings: %w", err)
	}
	if off, ok := conf.get(unix.AF_INET6, ipv6DisableIPv6); !ok || off == 0 {
		return nil
	}
	return w.writeSysctl("ipv6/conf/all/disable_ipv6", "0")
}

// addAddress adds the address without duplicate address detection: ipam sees to it.
func addAddress(s *socket, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	} else {
		a.Scope = unix.RT_SCOPE_UNIVERSE
	}
	if err := s.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

// gateway is the next hop of a pod for the family of a.
func gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return GatewayIPv4
	}
	return GatewayIPv6
}

// neighbour is the pod's fixed entry for its gateway, so that it never has to ask.
func neighbour(index int, gw netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: familyOf(gw), State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: HostMAC}
}

// routesVia are the routes of a pod for the family of gw: where the gateway is, and the
// default through it. The IPv6 gateway is link-local and needs no route.
func routesVia(index int, gw netip.Addr) []netlink.Route {
	family := familyOf(gw)
	def := netlink.Route{LinkIndex: index, Family: family, Dst: ipNet(prefix(nil, family)), Gw: gw.AsSlice()}
	if gw.Is6() {
		return []netlink.Route{def}
	}
	return []netlink.Route{{LinkIndex: index, Family: family, Dst: ipNet(single(gw)), Scope: netlink.SCOPE_LINK}, def}
}

// addRoutes adds the routes and returns the default route if it leads through the link. A
// route of the same prefix through another interface (a further attachment of the pod)
// stays; one through this interface that is wrong is replaced.
func addRoutes(s *socket, l netlink.Link, gw netip.Addr) ([]Route, error) {
	for _, r := range routesVia(l.Attrs().Index, gw) {
		err := s.RouteAdd(&r)
		if errors.Is(err, unix.EEXIST) {
			var ours bool
			if ours, err = routeThrough(s, l, &r); err == nil && !ours {
				return nil, nil
			} else if err == nil {
				err = s.RouteReplace(&r)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("route %s via %s: %w", r.Dst, gw, err)
		}
	}
	return []Route{{prefix(nil, familyOf(gw)), gw}}, nil
}

// routeThrough reports whether the main table has a route of r's prefix and metric through
// the link.
func routeThrough(s *socket, l netlink.Link, r *netlink.Route) (bool, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return s.RouteList(l, r.Family) })
	if err != nil {
		return false, err
	}
	for _, have := range routes {
		if prefix(have.Dst, r.Family) == prefix(r.Dst, r.Family) {
			return true, nil
		}
	}
	return false, nil
}
