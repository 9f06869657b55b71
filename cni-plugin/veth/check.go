package veth

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind says which part of a link a Difference is about.
type Kind int

// The kinds.
const (
	HostLink Kind = iota
	PodLink
	Address
	PodRoute
	Neighbour
	Sysctl
)

// Difference is one thing that is not as it was set up.
type Difference struct {
	Kind   Kind
	Object string // what it is about: "pod interface eth0", "sysctl net.ipv4..."
	Have   string
	Want   string
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: is %s, want %s", d.Object, d.Have, d.Want)
}

// differences collects what a check finds.
type differences []Difference

func (d *differences) want(kind Kind, object string, want, have any) {
	if w, h := fmt.Sprint(want), fmt.Sprint(have); w != h {
		*d = append(*d, Difference{kind, object, h, w})
	}
}

// Check compares the pod's link with s, and its default routes with routes. It returns an
// error only where the kernel could not be read.
func (w *Wirer) Check(s Spec, routes []Route) ([]Difference, error) {
	if err := w.CheckNetNS(s.NetNS); err != nil {
		return nil, err
	}
	defer w.names.lock(s.HostName)()
	host, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	pod, err := w.podSocket(s.NetNS)
	if err != nil {
		return nil, err
	}
	defer pod.Close()

	var d differences
	hostEnd, err := linkByName(host, s.HostName)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	podEnd, err := linkByName(pod, s.PodName)
	if err != nil {
		return nil, fmt.Errorf("link %s in the pod: %w", s.PodName, err)
	}
	if hostEnd == nil {
		d.want(HostLink, "host interface "+s.HostName, "there", "missing")
	} else if err := w.checkHost(&d, host, &s, hostEnd); err != nil {
		return nil, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	if podEnd == nil {
		d.want(PodLink, "pod interface "+s.PodName, "there", "missing")
		return d, nil
	}
	if hostEnd != nil && !arePair(hostEnd, podEnd) {
		d.want(PodLink, "pod interface "+s.PodName, "the other end of "+s.HostName, "another interface")
	}
	if err := checkPod(&d, pod, &s, podEnd, routes); err != nil {
		return nil, fmt.Errorf("link %s in the pod: %w", s.PodName, err)
	}
	return d, nil
}

// checkLink compares what both ends have.
func checkLink(d *differences, kind Kind, object string, l netlink.Link, mtu int, mac net.HardwareAddr) {
	up := map[bool]string{true: "up", false: "down"}
	d.want(kind, object, "up", up[l.Attrs().Flags&net.FlagUp != 0])
	d.want(kind, object+" mtu", mtu, l.Attrs().MTU)
	if mac != nil {
		d.want(kind, object+" hardware address", mac, l.Attrs().HardwareAddr)
	}
}

func (w *Wirer) checkHost(d *differences, host *socket, s *Spec, l netlink.Link) error {
	object := "host interface " + s.HostName
	d.want(HostLink, object+" alias", s.Owner, l.Attrs().Alias)
	checkLink(d, HostLink, object, l, s.MTU, HostMAC)
	if err := checkSettings(d, host, l, unix.AF_INET, hostIPv4); err != nil {
		return err
	}
	path, want := neighSysctl(s.HostName)
	have, err := os.ReadFile(filepath.Join(w.sys, "net", path))
	if err != nil {
		return err
	}
	d.want(Sysctl, "sysctl net."+strings.ReplaceAll(path, "/", "."), want, string(bytes.TrimSpace(have)))
	if !s.hasIPv6() {
		return nil
	}
	if err := checkSettings(d, host, l, unix.AF_INET6, hostIPv6); err != nil {
		return err
	}
	return checkAddresses(d, host, l, object, netip.PrefixFrom(GatewayIPv6, 64))
}

func checkPod(d *differences, pod *socket, s *Spec, l netlink.Link, routes []Route) error {
	object := "pod interface " + s.PodName
	checkLink(d, PodLink, object, l, s.MTU, s.MAC)
	var want []netip.Prefix
	for _, a := range s.Addresses {
		want = append(want, single(a))
	}
	if err := checkAddresses(d, pod, l, object, want...); err != nil {
		return err
	}
	if err := checkNeighbours(d, pod, s, l, object); err != nil {
		return err
	}
	if err := checkRoutes(d, pod, l, object, routes); err != nil {
		return err
	}
	if !s.hasIPv6() {
		return nil
	}
	return checkSettings(d, pod, l, unix.AF_INET6, append([]setting{{"disable_ipv6", ipv6DisableIPv6, 0}}, podIPv6...))
}

func checkSettings(d *differences, s *socket, l netlink.Link, family int, want []setting) error {
	conf, err := s.linkConf(l.Attrs().Index)
	if err != nil {
		return err
	}
	name := map[int]string{unix.AF_INET: "ipv4", unix.AF_INET6: "ipv6"}[family]
	for _, v := range want {
		have := "missing"
		if n, ok := conf.get(family, v.index); ok {
			have = fmt.Sprint(n)
		}
		d.want(Sysctl, fmt.Sprintf("sysctl net.%s.conf.%s.%s", name, l.Attrs().Name, v.name), v.value, have)
	}
	return nil
}

func checkAddresses(d *differences, s *socket, l netlink.Link, object string, want ...netip.Prefix) error {
	list, err := dump(func() ([]netlink.Addr, error) { return s.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	have := make(map[netip.Prefix]bool)
	for _, a := range list {
		bits, _ := a.Mask.Size()
		have[netip.PrefixFrom(addr(a.IP), bits)] = a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
	}
	for _, p := range want {
		state := "missing"
		if usable, ok := have[p]; usable {
			state = "there"
		} else if ok {
			state = "not usable (duplicate address detection)"
		}
		d.want(Address, object+" address "+p.String(), "there", state)
	}
	return nil
}

func checkNeighbours(d *differences, s *socket, spec *Spec, l netlink.Link, object string) error {
	list, err := dump(func() ([]netlink.Neigh, error) { return s.NeighList(l.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, a := range spec.Addresses {
		gw := gateway(a)
		have := "missing"
		for _, n := range list {
			if addr(n.IP) != gw {
				continue
			}
			have = n.HardwareAddr.String()
			if n.State&netlink.NUD_PERMANENT != 0 {
				have += " permanent"
			}
		}
		d.want(Neighbour, object+" neighbour "+gw.String(), HostMAC.String()+" permanent", have)
	}
	return nil
}

// checkRoutes wants the route to each gateway and the routes through it.
func checkRoutes(d *differences, s *socket, l netlink.Link, object string, want []Route) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := dump(func() ([]netlink.Route, error) { return s.RouteList(l, family) })
		if err != nil {
			return fmt.Errorf("listing routes: %w", err)
		}
		has := func(dst netip.Prefix, gw netip.Addr) string {
			if slices.ContainsFunc(list, func(r netlink.Route) bool {
				return prefix(r.Dst, family) == dst && (!gw.IsValid() && r.Gw == nil || gw.IsValid() && addr(r.Gw) == gw)
			}) {
				return "there"
			}
			return "missing"
		}
		for _, r := range want {
			if familyOf(r.GW) != family {
				continue
			}
			if r.GW.Is4() {
				d.want(PodRoute, object+" route "+single(r.GW).String(), "there", has(single(r.GW), netip.Addr{}))
			}
			d.want(PodRoute, object+" route "+r.Dst.String()+" via "+r.GW.String(), "there", has(r.Dst, r.GW))
		}
	}
	return nil
}
