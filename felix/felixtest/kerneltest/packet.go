package kerneltest

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/trace"
)

// magic comes before the tag where a packet has a payload.
const magic = 0x6b74_6573

// build makes the packet with its IP header. tag makes it known where it arrives.
func build(p trace.Packet, tag uint32) []byte {
	body := transport(p, tag)
	if p.Src.Is4() {
		h := make([]byte, 20, 20+len(body))
		h[0], h[8], h[9] = 0x45, 64, p.Protocol
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		binary.BigEndian.PutUint16(h[4:], uint16(tag))
		copy(h[12:], p.Src.AsSlice())
		copy(h[16:], p.Dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^fold(sum(0, h)))
		return append(h, body...)
	}
	h := make([]byte, 40, 40+len(body))
	h[0], h[6], h[7] = 0x60, p.Protocol, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], p.Src.AsSlice())
	copy(h[24:], p.Dst.AsSlice())
	return append(h, body...)
}

// tagAt is where the tag stands in a packet's transport part, and whether magic comes before.
func tagAt(protocol uint8) (at int, withMagic bool) {
	switch protocol {
	case unix.IPPROTO_TCP: // the sequence number
		return 4, false
	case unix.IPPROTO_SCTP: // the initiate tag
		return 16, false
	case unix.IPPROTO_GRE:
		return 8, true
	}
	return 12, true // 8 bytes of header
}

func transport(p trace.Packet, tag uint32) []byte {
	var b []byte
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		b[12], b[13] = 5<<4, 0x02 // SYN
		binary.BigEndian.PutUint16(b[14:], 1024)
	case unix.IPPROTO_SCTP: // INIT
		b = make([]byte, 32)
		b[12] = 1
		binary.BigEndian.PutUint16(b[14:], 20)
		binary.BigEndian.PutUint32(b[20:], 1500)
		binary.BigEndian.PutUint16(b[24:], 1)
		binary.BigEndian.PutUint16(b[26:], 1)
	case unix.IPPROTO_GRE:
		b = make([]byte, 12)
		binary.BigEndian.PutUint16(b[2:], 0x0800)
	default:
		b = make([]byte, 16)
	}
	at, withMagic := tagAt(p.Protocol)
	binary.BigEndian.PutUint32(b[at:], tag)
	if withMagic {
		binary.BigEndian.PutUint32(b[at-4:], magic)
	}
	if trace.HasPorts(p.Protocol) {
		binary.BigEndian.PutUint16(b, p.SrcPort)
		binary.BigEndian.PutUint16(b[2:], p.DstPort)
	}
	check := func(at int) {
		c := ^fold(sum(pseudo(p, len(b)), b))
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(b[at:], c)
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		check(16)
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		binary.BigEndian.PutUint16(b[4:], uint16(len(b))) // length, or what the checksum covers
		check(6)
	case unix.IPPROTO_SCTP:
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b[0], b[1] = p.ICMPType, p.ICMPCode
		binary.BigEndian.PutUint16(b[4:], uint16(tag>>16))
		binary.BigEndian.PutUint16(b[6:], uint16(tag))
		if p.Protocol == unix.IPPROTO_ICMPV6 {
			check(2)
		} else {
			binary.BigEndian.PutUint16(b[2:], ^fold(sum(0, b)))
		}
	}
	return b
}

func pseudo(p trace.Packet, n int) uint32 {
	s := sum(0, p.Src.AsSlice())
	s = sum(s, p.Dst.AsSlice())
	return s + uint32(p.Protocol) + uint32(n)
}

func sum(s uint32, b []byte) uint32 {
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// parse reads the tag of a packet with its IP header.
func parse(b []byte) (tag uint32, dst netip.Addr, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		n := int(b[0]&15) * 4
		if len(b) < n {
			return 0, dst, false
		}
		tag, ok = tagOf(b[9], b[n:])
		return tag, netip.AddrFrom4([4]byte(b[16:20])), ok
	case len(b) >= 40 && b[0]>>4 == 6:
		tag, ok = tagOf(b[6], b[40:])
		return tag, netip.AddrFrom16([16]byte(b[24:40])), ok
	}
	return 0, dst, false
}

func tagOf(protocol uint8, b []byte) (uint32, bool) {
	at, withMagic := tagAt(protocol)
	if len(b) < at+4 || withMagic && binary.BigEndian.Uint32(b[at-4:]) != magic {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[at:]), true
}
