package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The byte layout of include/uapi/linux/netfilter/nfnetlink_conntrack.h: netlink header,
// struct nfgenmsg, attributes.
const (
	nlHeader  = unix.SizeofNlMsghdr
	nfHeader  = 4 // struct nfgenmsg: family, version, res_id
	subsystem = 1 // NFNL_SUBSYS_CTNETLINK
	nested    = 1 << 15
	attrMask  = 1<<14 - 1

	cmdNew    = 0 // without NLM_F_CREATE: changes what is there
	cmdGet    = 1
	cmdDelete = 2
	cmdStats  = 5

	// ctattr_type
	attrOrig     = 1
	attrReply    = 2
	attrMark     = 8
	attrID       = 12
	attrMaster   = 14
	attrZone     = 18
	attrMarkMask = 21
	attrFilter   = 25

	// ctattr_stats_global
	attrEntries = 1

	// ctattr_tuple
	attrIP    = 1
	attrProto = 2

	// ctattr_ip
	attrSrc4 = 1
	attrDst4 = 2
	attrSrc6 = 3
	attrDst6 = 4

	// ctattr_l4proto
	attrProtoNum   = 1
	attrSrcPort    = 2
	attrDstPort    = 3
	attrICMPType   = 5
	attrICMPCode   = 6
	attrICMPv6Type = 8
	attrICMPv6Code = 9

	// ctattr_filter, and its bits for addresses (CTA_FILTER_FLAG in
	// net/netfilter/nf_conntrack_netlink.c)
	attrFilterOrig    = 1
	attrFilterReply   = 2
	filterSource      = 1 << 0
	filterDestination = 1 << 1
)

var (
	ne = binary.NativeEndian
	be = binary.BigEndian
)

// encoder appends netlink messages to buf.
type encoder struct{ buf []byte }

func (e *encoder) begin(cmd uint8, flags uint16, seq uint32, family uint8) int {
	at := len(e.buf)
	e.buf = ne.AppendUint32(e.buf, 0) // length, see end
	e.buf = ne.AppendUint16(e.buf, subsystem<<8|uint16(cmd))
	e.buf = ne.AppendUint16(e.buf, unix.NLM_F_REQUEST|flags)
	e.buf = ne.AppendUint32(e.buf, seq)
	e.buf = ne.AppendUint32(e.buf, 0)
	e.buf = append(e.buf, family, 0, 0, 0)
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
	e.pad()
}

func (e *encoder) pad() {
	for len(e.buf)%4 != 0 {
		e.buf = append(e.buf, 0)
	}
}

func (e *encoder) bytes(typ uint16, v []byte) {
	at := e.open(typ)
	e.buf = append(e.buf, v...)
	e.shut(at)
}

func (e *encoder) be16(typ, v uint16) { e.bytes(typ, be.AppendUint16(nil, v)) }
func (e *encoder) be32(typ uint16, v uint32) {
	at := e.open(typ)
	e.buf = be.AppendUint32(e.buf, v)
	e.shut(at)
}

func (e *encoder) zone(z uint16) {
	if z != 0 {
		e.be16(attrZone, z)
	}
}

// place is where an address stands in a flow.
type place struct {
	tuple uint16 // attrOrig or attrReply
	ip    uint16 // attrSrc4 or attrDst4
	of    func(*Flow) netip.Addr
}

// The places. Policy sees the first two.
var places = []place{
	{attrOrig, attrSrc4, func(f *Flow) netip.Addr { return f.Source.Addr() }},
	{attrReply, attrSrc4, func(f *Flow) netip.Addr { return f.Destination.Addr() }},
	{attrOrig, attrDst4, func(f *Flow) netip.Addr { return f.First.Addr() }},
	{attrReply, attrDst4, func(f *Flow) netip.Addr { return f.ReplyTo.Addr() }},
}

// filter asks a dump for flows that have an address of IPv4 in that place. Kernels before
// 5.8 do not know it and show all.
func (e *encoder) filter(p place, addr netip.Addr) {
	flags, bit := uint16(attrFilterOrig), uint32(filterSource)
	if p.tuple == attrReply {
		flags = attrFilterReply
	}
	if p.ip == attrDst4 {
		bit = filterDestination
	}
	at := e.open(p.tuple | nested)
	ip := e.open(attrIP | nested)
	e.bytes(p.ip, addr.AsSlice())
	e.shut(ip)
	e.shut(at)
	at = e.open(attrFilter | nested)
	set := e.open(flags)
	e.buf = ne.AppendUint32(e.buf, bit)
	e.shut(set)
	e.shut(at)
}

var errMalformed = errors.New("netlink: malformed attribute")

// next splits the first attribute off: with its header, its type without flags, its value.
func next(b []byte) (whole []byte, typ uint16, value, rest []byte, err error) {
	if len(b) < 4 {
		return nil, 0, nil, nil, errMalformed
	}
	size := int(ne.Uint16(b))
	if size < 4 || size > len(b) {
		return nil, 0, nil, nil, errMalformed
	}
	return b[:size], ne.Uint16(b[2:]) & attrMask, b[4:size], b[min((size+3)&^3, len(b)):], nil
}

// tuple is one direction of a flow.
type tuple struct {
	src, dst           netip.Addr
	protocol           uint8
	srcPort, dstPort   uint16
	icmpType, icmpCode uint8
}

// parse reads what the body of a message says of a flow; f refers to body afterwards.
func (f *Flow) parse(body []byte) error {
	if len(body) < nfHeader {
		return errors.New("netlink: short conntrack message")
	}
	*f = Flow{}
	var orig, reply tuple
	for b := body[nfHeader:]; len(b) > 0; {
		whole, typ, v, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case attrOrig:
			f.orig = whole
			err = orig.parse(v)
		case attrReply:
			f.reply = whole
			err = reply.parse(v)
		case attrMaster:
			f.master = v
		case attrMark:
			f.Mark = number(v)
		case attrID:
			f.id = number(v)
		case attrZone:
			f.Zone = uint16(number(v))
		}
		if err != nil {
			return err
		}
	}
	if !orig.src.IsValid() || !orig.dst.IsValid() || !reply.src.IsValid() || !reply.dst.IsValid() {
		return errors.New("netlink: a flow without addresses")
	}
	f.Protocol, f.ICMPType, f.ICMPCode = orig.protocol, orig.icmpType, orig.icmpCode
	f.Source, f.First = netip.AddrPortFrom(orig.src, orig.srcPort), netip.AddrPortFrom(orig.dst, orig.dstPort)
	f.Destination, f.ReplyTo = netip.AddrPortFrom(reply.src, reply.srcPort), netip.AddrPortFrom(reply.dst, reply.dstPort)
	return nil
}

func (t *tuple) parse(b []byte) error {
	for len(b) > 0 {
		_, typ, v, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case attrIP:
			err = t.parseIP(v)
		case attrProto:
			err = t.parseProto(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tuple) parseIP(b []byte) error {
	for len(b) > 0 {
		_, typ, v, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case attrSrc4, attrSrc6:
			t.src, _ = netip.AddrFromSlice(v)
		case attrDst4, attrDst6:
			t.dst, _ = netip.AddrFromSlice(v)
		}
	}
	return nil
}

func (t *tuple) parseProto(b []byte) error {
	for len(b) > 0 {
		_, typ, v, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case attrProtoNum:
			t.protocol = uint8(number(v))
		case attrSrcPort:
			t.srcPort = uint16(number(v))
		case attrDstPort:
			t.dstPort = uint16(number(v))
		case attrICMPType, attrICMPv6Type:
			t.icmpType = uint8(number(v))
		case attrICMPCode, attrICMPv6Code:
			t.icmpCode = uint8(number(v))
		}
	}
	if t.protocol == unix.IPPROTO_GRE { // its key, which no rule matches
		t.srcPort, t.dstPort = 0, 0
	}
	return nil
}

// number reads an integer in network byte order, as all of ctnetlink's are.
func number(b []byte) uint32 {
	switch len(b) {
	case 1:
		return uint32(b[0])
	case 2:
		return uint32(be.Uint16(b))
	case 4:
		return be.Uint32(b)
	}
	return 0
}
