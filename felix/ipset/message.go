package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The byte layout of include/uapi/linux/netfilter/ipset/ip_set.h: netlink header, struct
// nfgenmsg, attributes.
const (
	nlHeader  = unix.SizeofNlMsghdr
	nfHeader  = 4 // struct nfgenmsg: family, version, res_id
	protocol  = 6 // IPSET_PROTOCOL_MIN: every kernel since 2.6.39 takes it
	subsystem = 6 // NFNL_SUBSYS_IPSET
	nested    = 1 << 15
	netOrder  = 1 << 14
	attrMask  = netOrder - 1

	cmdCreate  = 2
	cmdDestroy = 3
	cmdSwap    = 6
	cmdList    = 7
	cmdAdd     = 9
	cmdDel     = 10
	cmdType    = 13

	// At the level of the command.
	attrProtocol    = 1
	attrSetName     = 2
	attrTypeName    = 3 // and the other set of a swap
	attrRevision    = 4
	attrFamily      = 5
	attrFlags       = 6
	attrData        = 7
	attrADT         = 8
	attrLineNo      = 9
	attrRevisionMin = 10

	// In data, of sets and members.
	attrIP        = 1
	attrCIDR      = 3
	attrPort      = 4
	attrTimeout   = 6
	attrProto     = 7
	attrCADTFlags = 8
	attrBitmask   = 12

	attrIface = 23

	// In data, of sets only.
	attrHashSize   = 18
	attrMaxElem    = 19
	attrNetmask    = 20
	attrElements   = 24
	attrReferences = 25

	attrIPv4 = 1
	attrIPv6 = 2

	listHeader = 1 << 2 // IPSET_FLAG_LIST_HEADER

	errPrivate      = 4096
	errFindType     = errPrivate + 2
	errMaxSets      = errPrivate + 3
	errBusy         = errPrivate + 4
	errExistSet2    = errPrivate + 5
	errTypeMismatch = errPrivate + 6
	errHashFull     = 4352
	errHashElem     = errHashFull + 1
	errProtoInvalid = errHashFull + 2
	errProtoMissing = errHashFull + 3
)

var (
	ne = binary.NativeEndian
	be = binary.BigEndian
)

// encoder appends netlink messages to buf.
type encoder struct{ buf []byte }

func (e *encoder) begin(cmd uint8, flags uint16, seq uint32) int {
	at := len(e.buf)
	e.buf = ne.AppendUint32(e.buf, 0) // length, see end
	e.buf = ne.AppendUint16(e.buf, subsystem<<8|uint16(cmd))
	e.buf = ne.AppendUint16(e.buf, unix.NLM_F_REQUEST|flags)
	e.buf = ne.AppendUint32(e.buf, seq)
	e.buf = ne.AppendUint32(e.buf, 0)
	e.buf = append(e.buf, unix.AF_INET, 0, 0, 0)
	e.u8(attrProtocol, protocol)
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

func (e *encoder) u8(typ uint16, v uint8) {
	at := e.open(typ)
	e.buf = append(e.buf, v)
	e.shut(at)
}

func (e *encoder) be16(typ, v uint16) {
	at := e.open(typ | netOrder)
	e.buf = be.AppendUint16(e.buf, v)
	e.shut(at)
}

func (e *encoder) be32(typ uint16, v uint32) {
	at := e.open(typ | netOrder)
	e.buf = be.AppendUint32(e.buf, v)
	e.shut(at)
}

func (e *encoder) u32(typ uint16, v uint32) {
	at := e.open(typ)
	e.buf = ne.AppendUint32(e.buf, v)
	e.shut(at)
}

func (e *encoder) text(typ uint16, s string) {
	at := e.open(typ)
	e.buf = append(append(e.buf, s...), 0)
	e.shut(at)
}

// member writes one member; line is what the kernel's complaint will name.
func (e *encoder) member(t Type, m Member, line int) {
	data := e.open(attrData | nested)
	ip := e.open(attrIP | nested)
	if a := m.Prefix.Addr(); a.Is4() {
		b := a.As4()
		at := e.open(attrIPv4 | netOrder)
		e.buf = append(e.buf, b[:]...)
		e.shut(at)
	} else {
		b := a.As16()
		at := e.open(attrIPv6 | netOrder)
		e.buf = append(e.buf, b[:]...)
		e.shut(at)
	}
	e.shut(ip)
	if t.nets() {
		e.u8(attrCIDR, uint8(m.Prefix.Bits()))
	}
	if t.ports() {
		e.u8(attrProto, m.Protocol)
		e.be16(attrPort, m.Port)
	}
	if t.ifaces() {
		e.text(attrIface, m.Interface)
	}
	e.u32(attrLineNo, uint32(line))
	e.shut(data)
}

// create writes the creation of a set.
func (e *encoder) create(c *Command, revision uint8) {
	e.text(attrSetName, c.Name)
	e.text(attrTypeName, string(c.Type))
	e.u8(attrRevision, revision)
	e.u8(attrFamily, af(c.Family))
	data := e.open(attrData | nested)
	e.be32(attrHashSize, uint32(hashSize(c.Size)))
	e.be32(attrMaxElem, uint32(c.MaxElem))
	e.shut(data)
}

func af(f Family) uint8 {
	if f == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// attributes walks attributes; each gets the type without flags.
func attributes(b []byte, each func(typ uint16, value []byte)) error {
	for len(b) >= 4 {
		size := int(ne.Uint16(b))
		if size < 4 || size > len(b) {
			return errors.New("netlink: malformed attribute")
		}
		each(ne.Uint16(b[2:])&attrMask, b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

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

// listing reads the messages of a list.
type listing struct {
	name   string // of the set that the last message was of
	header func(Header)
	member func(Listed) // nil: members are not of interest
}

// message takes the attributes of one message. A set of many members comes in several, of
// which the first has the header.
func (l *listing) message(body []byte) error {
	if len(body) < nfHeader {
		return errors.New("netlink: short ipset message")
	}
	var h Header
	var typed bool
	var adt, data []byte
	err := attributes(body[nfHeader:], func(typ uint16, v []byte) {
		switch typ {
		case attrSetName:
			h.Name = cstring(v)
		case attrTypeName:
			h.Type, typed = Type(cstring(v)), true
		case attrFamily:
			switch number(v) {
			case unix.AF_INET:
				h.Family = IPv4
			case unix.AF_INET6:
				h.Family = IPv6
			}
		case attrData:
			data = v
		case attrADT:
			adt = v
		}
	})
	if err != nil {
		return err
	}
	if typed {
		err := attributes(data, func(typ uint16, v []byte) {
			switch typ {
			case attrMaxElem:
				h.MaxElem = int(number(v))
			case attrElements:
				h.Elements = int(number(v))
			case attrReferences:
				h.References = int(number(v))
			case attrTimeout, attrNetmask, attrBitmask:
				h.Odd = true
			case attrCADTFlags:
				h.Odd = h.Odd || number(v) != 0
			}
		})
		if err != nil {
			return err
		}
		l.header(h)
	}
	if l.member == nil {
		return nil
	}
	var bad error
	err = attributes(adt, func(_ uint16, v []byte) {
		m, err := parseMember(v)
		if err != nil {
			bad = err
			return
		}
		l.member(m)
	})
	return errors.Join(err, bad)
}

func parseMember(b []byte) (Listed, error) {
	var (
		out  Listed
		addr netip.Addr
		bits = -1
	)
	err := attributes(b, func(typ uint16, v []byte) {
		switch typ {
		case attrIP:
			_ = attributes(v, func(_ uint16, ip []byte) { addr, _ = netip.AddrFromSlice(ip) })
		case attrCIDR:
			bits = int(number(v))
		case attrProto:
			out.Protocol = uint8(number(v))
		case attrPort:
			out.Port = uint16(number(v))
		case attrIface:
			out.Interface = cstring(v)
		case attrCADTFlags:
			out.Odd = number(v) != 0
		}
	})
	if bits < 0 {
		bits = addr.BitLen()
	}
	out.Prefix = netip.PrefixFrom(addr, bits)
	return out, err
}

// reason is the kernel's refusal of a command as an error of this package.
func reason(code int) error {
	switch code {
	case 0:
		return nil
	case int(unix.ENOENT):
		return ErrNotExist
	case int(unix.EEXIST):
		return ErrExist
	case errBusy:
		return ErrBusy
	case errTypeMismatch:
		return ErrMismatch
	case errHashFull:
		return ErrFull
	case errFindType:
		return errors.New("the kernel has no such type of set (modules ip_set_hash_ip, ip_set_hash_net, ip_set_hash_ipport, ip_set_hash_netport, ip_set_hash_netiface)")
	case errMaxSets:
		return errors.New("the kernel holds no more sets")
	case errExistSet2:
		return ErrNotExist
	case errHashElem:
		return errors.New("the kernel takes no such member")
	case errProtoInvalid, errProtoMissing:
		return errors.New("the kernel takes no such protocol")
	}
	if code >= errPrivate {
		return fmt.Errorf("ipset error %d of the kernel", code)
	}
	return unix.Errno(code)
}
