package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// The byte layout of rtnetlink(7): netlink header, struct rtmsg, attributes.
const (
	nlHeader  = unix.SizeofNlMsghdr
	rtHeader  = unix.SizeofRtMsg
	attrMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	tableMain = unix.RT_TABLE_MAIN
)

var ne = binary.NativeEndian

// encoder appends netlink messages to buf.
type encoder struct{ buf []byte }

func (e *encoder) begin(typ, flags uint16, seq uint32) int {
	at := len(e.buf)
	e.buf = ne.AppendUint32(e.buf, 0) // length, see end
	e.buf = ne.AppendUint16(e.buf, typ)
	e.buf = ne.AppendUint16(e.buf, flags)
	e.buf = ne.AppendUint32(e.buf, seq)
	e.buf = ne.AppendUint32(e.buf, 0)
	return at
}

func (e *encoder) end(at int) { ne.PutUint32(e.buf[at:], uint32(len(e.buf)-at)) }

// open and shut enclose an attribute.
func (e *encoder) open(typ uint16) int {
	at := len(e.buf)
	e.buf = ne.AppendUint16(e.buf, 0)
	e.buf = ne.AppendUint16(e.buf, typ)
	return at
}

func (e *encoder) shut(at int) {
	ne.PutUint16(e.buf[at:], uint16(len(e.buf)-at))
	for len(e.buf)%4 != 0 {
		e.buf = append(e.buf, 0)
	}
}

func (e *encoder) u32(typ uint16, v uint32) {
	at := e.open(typ)
	e.buf = ne.AppendUint32(e.buf, v)
	e.shut(at)
}

func (e *encoder) addr(a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		e.buf = append(e.buf, b[:]...)
	} else {
		b := a.As16()
		e.buf = append(e.buf, b[:]...)
	}
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// gateway writes RTA_GATEWAY, or RTA_VIA for an IPv4 prefix behind an IPv6 next hop
// (RFC 8950).
func (e *encoder) gateway(prefix netip.Prefix, gw netip.Addr) {
	if !gw.IsValid() {
		return
	}
	if family(gw) == family(prefix.Addr()) {
		at := e.open(unix.RTA_GATEWAY)
		e.addr(gw)
		e.shut(at)
		return
	}
	at := e.open(unix.RTA_VIA)
	e.buf = ne.AppendUint16(e.buf, uint16(family(gw)))
	e.addr(gw)
	e.shut(at)
}

var errFamily = errors.New("an IPv6 prefix cannot go to an IPv4 next hop")

// route writes one op as RTM_NEWROUTE or RTM_DELROUTE.
func (e *encoder) route(o *op, proto uint8, seq uint32) error {
	if o.prefix.Addr().Is6() {
		for _, h := range o.hops {
			if h.gw.Is4() {
				return errFamily
			}
		}
	}
	typ, flags := uint16(unix.RTM_NEWROUTE), uint16(unix.NLM_F_REQUEST)
	switch o.verb {
	case opAdd:
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	case opReplace:
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	case opDelete:
		typ = unix.RTM_DELROUTE
	}
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	switch {
	case o.verb == opDelete:
		scope = unix.RT_SCOPE_NOWHERE
	case o.typ == typeUnicast && len(o.hops) > 0 && !o.hops[0].gw.IsValid() && o.prefix.Addr().Is4():
		scope = unix.RT_SCOPE_LINK
	}
	var rtFlags uint32
	if len(o.hops) == 1 && o.hops[0].onlink {
		rtFlags = unix.RTNH_F_ONLINK
	}
	at := e.begin(typ, flags, seq)
	e.buf = append(e.buf, family(o.prefix.Addr()), uint8(o.prefix.Bits()), 0, o.tos, tableMain, proto, scope, o.typ)
	e.buf = ne.AppendUint32(e.buf, rtFlags)
	dst := e.open(unix.RTA_DST)
	e.addr(o.prefix.Addr())
	e.shut(dst)
	e.u32(unix.RTA_PRIORITY, o.metric)
	switch len(o.hops) {
	case 0:
	case 1:
		e.gateway(o.prefix, o.hops[0].gw)
		e.u32(unix.RTA_OIF, uint32(o.hops[0].dev))
	default:
		multi := e.open(unix.RTA_MULTIPATH)
		for _, h := range o.hops {
			nh := len(e.buf)
			e.buf = ne.AppendUint16(e.buf, 0)
			e.buf = append(e.buf, bit(h.onlink)*unix.RTNH_F_ONLINK, h.weight)
			e.buf = ne.AppendUint32(e.buf, uint32(h.dev))
			e.gateway(o.prefix, h.gw)
			ne.PutUint16(e.buf[nh:], uint16(len(e.buf)-nh))
		}
		e.shut(multi)
	}
	e.end(at)
	return nil
}

// attrs walks attributes; a malformed rest is left out.
func attrs(b []byte, each func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		each(ne.Uint16(b[2:])&attrMask, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func toAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func toVia(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	return toAddr(b[2:])
}

func toU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return ne.Uint32(b)
}

// parse makes an event of a message's body. It reports false for what does not concern
// the package: other tables, cached routes, bridge ports. ev.route.hops is reused.
func (ev *event) parse(typ, flags uint16, b []byte) bool {
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return ev.parseLink(typ == unix.RTM_NEWLINK, b)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		ev.kind = addrSet
		if typ == unix.RTM_DELADDR {
			ev.kind = addrGone
			return len(b) > 0 && b[0] == unix.AF_INET // IPv6 tells of every route
		}
		return true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		ev.kind = routeSet
		if typ == unix.RTM_DELROUTE {
			ev.kind = routeGone
		}
		ev.replace = typ == unix.RTM_NEWROUTE && flags&unix.NLM_F_REPLACE != 0
		ev.last = flags&unix.NLM_F_APPEND != 0
		return ev.parseRoute(b)
	}
	return false
}

func (ev *event) parseLink(set bool, b []byte) bool {
	// struct ifinfomsg. With family AF_BRIDGE a message tells of a bridge's port only.
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return false
	}
	flags := ne.Uint32(b[8:])
	up := flags&unix.IFF_UP != 0
	ev.kind, ev.link = linkGone, link{index: int32(ne.Uint32(b[4:])), up: up, running: up && flags&unix.IFF_RUNNING != 0}
	if set {
		ev.kind = linkSet
	}
	attrs(b[unix.SizeofIfInfomsg:], func(typ uint16, data []byte) {
		if typ == unix.IFLA_IFNAME {
			ev.link.name = unix.ByteSliceToString(data)
		}
	})
	return true
}

func (ev *event) parseRoute(b []byte) bool {
	if len(b) < rtHeader {
		return false
	}
	fam, bits, tos, table, flags := b[0], int(b[1]), b[3], uint32(b[4]), ne.Uint32(b[8:])
	r := &ev.route
	*r = fibRoute{tos: tos, proto: b[5], typ: b[7], hops: r.hops[:0]}
	if flags&unix.RTM_F_CLONED != 0 || b[2] != 0 { // cached, or by source too
		return false
	}
	dst := netip.IPv6Unspecified()
	if fam == unix.AF_INET {
		dst = netip.IPv4Unspecified()
	} else if fam != unix.AF_INET6 {
		return false
	}
	single := hop{onlink: flags&unix.RTNH_F_ONLINK != 0}
	attrs(b[rtHeader:], func(typ uint16, data []byte) {
		switch typ {
		case unix.RTA_DST:
			dst = toAddr(data)
		case unix.RTA_TABLE:
			table = toU32(data)
		case unix.RTA_PRIORITY:
			r.metric = toU32(data)
		case unix.RTA_OIF:
			single.dev = int32(toU32(data))
		case unix.RTA_GATEWAY:
			single.gw = toAddr(data)
		case unix.RTA_VIA:
			single.gw = toVia(data)
		case unix.RTA_MULTIPATH:
			r.hops = appendNextHops(r.hops, data, &r.odd)
		case unix.RTA_PREF:
			r.odd = r.odd || len(data) == 1 && data[0] != 0
		case unix.RTA_CACHEINFO:
		default:
			r.odd = true
		}
	})
	r.local = table == unix.RT_TABLE_LOCAL
	if table != tableMain && !(r.local && r.typ == typeLocal) || !dst.IsValid() || bits > dst.BitLen() {
		return false
	}
	r.prefix = netip.PrefixFrom(dst, bits)
	switch {
	case r.typ != typeUnicast && r.typ != typeLocal:
		r.hops = r.hops[:0] // IPv6 names lo there
	case len(r.hops) == 0 && single.dev != 0:
		r.hops = append(r.hops, single)
	}
	r.hops = normalHops(r.hops)
	return true
}

// appendNextHops reads RTA_MULTIPATH: struct rtnexthop each, with attributes.
func appendNextHops(hops []hop, b []byte, odd *bool) []hop {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(ne.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		h := hop{onlink: b[2]&unix.RTNH_F_ONLINK != 0, weight: b[3], dev: int32(ne.Uint32(b[4:]))}
		attrs(b[unix.SizeofRtNexthop:n], func(typ uint16, data []byte) {
			switch typ {
			case unix.RTA_GATEWAY:
				h.gw = toAddr(data)
			case unix.RTA_VIA:
				h.gw = toVia(data)
			default:
				*odd = true
			}
		})
		hops = append(hops, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return hops
}

// kernelError is an errno with the kernel's own words (NETLINK_EXT_ACK), if it gave any.
type kernelError struct {
	errno syscall.Errno
	text  string
}

func (e *kernelError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%s (%s)", e.text, e.errno.Error())
}

func (e *kernelError) Unwrap() error { return e.errno }

// parseError reads the body of an NLMSG_ERROR message; nil means an acknowledgement.
func parseError(flags uint16, b []byte) error {
	if len(b) < 4 {
		return errors.New("netlink: short error message")
	}
	code := int32(ne.Uint32(b))
	if code == 0 {
		return nil
	}
	e := &kernelError{errno: syscall.Errno(-code)}
	if skip := 4 + nlHeader; flags&unix.NLM_F_ACK_TLVS != 0 && len(b) >= skip {
		if flags&unix.NLM_F_CAPPED == 0 { // the request stands before the attributes
			skip = min(4+(int(ne.Uint32(b[4:]))+3)&^3, len(b))
		}
		attrs(b[skip:], func(typ uint16, data []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = unix.ByteSliceToString(data)
			}
		})
	}
	return e
}
