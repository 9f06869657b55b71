package veth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// socket is a route netlink socket in the namespace of the thread that opened it. Requests
// of package netlink go through the Handle; those it has no words for through raw.
type socket struct {
	*netlink.Handle
	raw *nl.SocketHandle
}

func openSocket() (*socket, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	raw, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, err
	}
	return &socket{h, &nl.SocketHandle{Socket: raw}}, nil
}

func (s *socket) Close() {
	s.Handle.Close()
	s.raw.Close()
}

// Settings of an interface by their index in the kernel's arrays: IPv4 as in
// include/uapi/linux/ip.h (IPV4_DEVCONF_*, from 1), IPv6 as in include/uapi/linux/ipv6.h
// (DEVCONF_*, from 0).
const (
	ipv4Forwarding = 1
	ipv4ProxyARP   = 3
	ipv4RPFilter   = 8

	ipv6Forwarding  = 0
	ipv6AcceptRA    = 3
	ipv6DisableIPv6 = 26
	ipv6AcceptDAD   = 27
)

// Attributes of IFLA_AF_SPEC and their values, include/uapi/linux/if_link.h.
const (
	iflaInetConf         = 1
	iflaInet6Conf        = 2
	iflaInet6AddrGenMode = 8
	addrGenModeNone      = 1
)

// setting is one value of an interface's configuration in one family.
type setting struct {
	name  string // as under /proc/sys/net/ipv4/conf/IFACE/, or ipv6
	index int
	value uint32
}

// afSpec says what a link message sets beyond the link itself.
type afSpec struct {
	ipv4 []setting
	// quietIPv6 keeps the kernel from making a link-local address of its own, and so the
	// interface from sending router solicitations and DAD probes.
	quietIPv6 bool
}

// setLink changes a link in one message: attrs, the settings of spec, and with up the flag.
func (s *socket) setLink(index int, up bool, spec afSpec, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	if up {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	}
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	af := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	if len(spec.ipv4) > 0 {
		conf := af.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(iflaInetConf|unix.NLA_F_NESTED, nil)
		for _, v := range spec.ipv4 {
			conf.AddRtAttr(v.index, nl.Uint32Attr(v.value))
		}
	}
	if spec.quietIPv6 {
		af.AddRtAttr(unix.AF_INET6|unix.NLA_F_NESTED, nil).AddRtAttr(iflaInet6AddrGenMode, nl.Uint8Attr(addrGenModeNone))
	}
	if len(spec.ipv4) > 0 || spec.quietIPv6 {
		req.AddData(af)
	}
	_, err := s.execute(req, 0)
	return err
}

func (s *socket) execute(req *nl.NetlinkRequest, resType uint16) ([][]byte, error) {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.raw}
	return req.Execute(unix.NETLINK_ROUTE, resType)
}

// devconf is a link's configuration as the kernel lists it with the link.
type devconf struct{ ipv4, ipv6 []uint32 }

// get returns a setting, and false where the kernel has none such.
func (d devconf) get(family int, index int) (uint32, bool) {
	values := d.ipv6
	if family == unix.AF_INET {
		values, index = d.ipv4, index-1
	}
	if index >= len(values) {
		return 0, false
	}
	return values[index], true
}

// linkConf reads the configuration of a link: all of it in one request, and without a
// thread in the link's namespace.
func (s *socket) linkConf(index int) (devconf, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	var d devconf
	answers, err := s.execute(req, unix.RTM_NEWLINK)
	if err != nil {
		return d, err
	}
	if len(answers) == 0 || len(answers[0]) < unix.SizeofIfInfomsg {
		return d, fmt.Errorf("link %d: empty answer", index)
	}
	attrs, err := nl.ParseRouteAttrAsMap(answers[0][unix.SizeofIfInfomsg:])
	if err != nil {
		return d, err
	}
	families, err := nl.ParseRouteAttrAsMap(attrs[unix.IFLA_AF_SPEC].Value)
	if err != nil {
		return d, err
	}
	for family, conf := range map[uint16]uint16{unix.AF_INET: iflaInetConf, unix.AF_INET6: iflaInet6Conf} {
		inner, err := nl.ParseRouteAttrAsMap(families[family].Value)
		if err != nil {
			return d, err
		}
		var values []uint32
		for b := inner[conf].Value; len(b) >= 4; b = b[4:] {
			values = append(values, binary.NativeEndian.Uint32(b))
		}
		if family == unix.AF_INET {
			d.ipv4 = values
		} else {
			d.ipv6 = values
		}
	}
	return d, nil
}

// writeSysctl writes a file under net of the sysctls of the thread's network namespace.
func (w *Wirer) writeSysctl(path, value string) error {
	f, err := os.OpenFile(filepath.Join(w.sys, "net", path), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("sysctl net.%s=%s (is %s writable for the agent?): %w", strings.ReplaceAll(path, "/", "."), value, w.sys, err)
	}
	return nil
}

// dump repeats a listing that the kernel says was disturbed by a change, or a signal cut.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		out, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return out, err
}

// single is the prefix that holds the address alone: /32 or /128.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is the inverse of ipNet; nil, which is how some listings give a default route, is
// 0.0.0.0/0 or ::/0 of the family.
func prefix(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		if family == unix.AF_INET {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	if family == unix.AF_INET {
		a = a.Unmap()
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
