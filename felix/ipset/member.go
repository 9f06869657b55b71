package ipset

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// key is a Member without pointers, so that large tables cost the garbage collector
// nothing.
type key struct {
	addr  [16]byte // an IPv4 address in its first four
	port  uint16
	bits  uint8
	proto uint8
	iface [maxInterface]byte // an interface's name, filled up with zeros
}

// maxInterface is the longest name of an interface (IFNAMSIZ less its end).
const maxInterface = unix.IFNAMSIZ - 1

// keysOf checks a member of a set of that type and family, and returns what the kernel
// takes for it: the member, or the halves of a prefix of length 0.
func keysOf(t Type, f Family, m Member) (keys [2]key, n int, err error) {
	bad := func(format string, args ...any) ([2]key, int, error) {
		return keys, 0, fmt.Errorf("member %s: "+format, append([]any{m}, args...)...)
	}
	switch {
	case !m.Prefix.IsValid():
		return bad("it has no prefix")
	case m.Prefix.Addr().Is4() != (f == IPv4) || m.Prefix.Addr().Is4In6():
		return bad("the set is of %s", f)
	case !t.nets() && !m.Prefix.IsSingleIP():
		return bad("a set of type %s takes single addresses", t)
	case !t.ports() && (m.Protocol != 0 || m.Port != 0):
		return bad("a set of type %s takes no ports", t)
	case t.ports() && m.Protocol == 0:
		return bad("a set of type %s wants a protocol", t)
	case t.ports() && m.Port != 0 && !withPorts(m.Protocol, f):
		return bad("protocol %d has no ports in %s, so that 0 is the only one", m.Protocol, f)
	case !t.ifaces() && m.Interface != "":
		return bad("a set of type %s takes no interfaces", t)
	case t.ifaces() && !interfaceName(m.Interface):
		return bad("interface %q must have 1 to %d bytes, without blanks, slashes and colons", m.Interface, maxInterface)
	}
	k := key{bits: uint8(m.Prefix.Bits()), proto: m.Protocol, port: m.Port}
	if f == IPv4 {
		a := m.Prefix.Masked().Addr().As4()
		copy(k.addr[:], a[:])
	} else {
		k.addr = m.Prefix.Masked().Addr().As16()
	}
	copy(k.iface[:], m.Interface)
	if k.bits != 0 || t.ifaces() {
		return [2]key{k}, 1, nil
	}
	k.bits = 1
	other := k
	other.addr[0] = 0x80
	return [2]key{k, other}, 2, nil
}

// interfaceName is what the kernel takes as the name of a device (dev_valid_name in
// net/core/dev.c).
func interfaceName(s string) bool {
	return s != "" && len(s) <= maxInterface && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r >= 0x7f })
}

// withPorts are the protocols whose ports the kernel compares (ip_set_proto_with_ports in
// include/linux/netfilter/ipset/ip_set_getport.h, and ICMP beside them).
func withPorts(protocol uint8, f Family) bool {
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE:
		return true
	case unix.IPPROTO_ICMP:
		return f == IPv4
	case unix.IPPROTO_ICMPV6:
		return f == IPv6
	}
	return false
}

// member is the key as a Member.
func (k key) member(f Family) Member {
	a := netip.AddrFrom16(k.addr)
	if f == IPv4 {
		a = netip.AddrFrom4([4]byte(k.addr[:4]))
	}
	m := Member{Prefix: netip.PrefixFrom(a, int(k.bits)), Protocol: k.proto, Port: k.port}
	if k.iface[0] != 0 {
		m.Interface = cstring(k.iface[:])
	}
	return m
}
