// Package conntrack owns what Causeway does to the kernel's table of connections: it cuts
// established flows that policy has come to forbid, and only those, and it forgets the
// flows of an address that changes hands. Nothing else of an entry is touched; of its mark, one bit.
//
// A forbidden flow is marked, not deleted: a deleted one would come back, since the kernel picks
// up TCP in the middle (nf_conntrack_tcp_loose) and then takes a reply for an opening. The rules drop
// packets whose connection has the bit before they accept what is established, so that
// the entry stays for as long as either end sends. When the flow is allowed again the bit is
// cleared, and it goes on where it was.
//
// Nothing is read from or written to /proc; the settings net.netfilter.nf_conntrack_* are
// the operator's and may have any value.
package conntrack

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Flow is a connection as the kernel tracks it. Its packets in the original direction are
// those of the end that opened it; replies belong to it and are never judged by themselves.
type Flow struct {
	Protocol uint8 // IANA
	// Source and Destination are what the filter table sees of the first packet, and what
	// policy is about: who opened it, before any masquerading on this node, and where it went
	// after the address of a Service was translated. Ports are 0 where the protocol has none.
	Source, Destination netip.AddrPort
	// First is the destination before that translation; equal to Destination without one.
	First netip.AddrPort
	// ReplyTo is who the destination answers to: the source after masquerading on this node;
	// equal to Source without it.
	ReplyTo            netip.AddrPort
	ICMPType, ICMPCode uint8  // of ICMP and ICMPv6, of the original direction
	Mark               uint32 // the connection's mark
	Zone               uint16 // conntrack zone
	// FromHost and ToHost say that Source, or Destination, is an address of this host. Only
	// the Cutter fills them in.
	FromHost, ToHost bool

	id uint32
	// The kernel's own form of what names the flow: attributes with their headers. They lie in the
	// buffer that was read, unless the Flow was cloned.
	orig, reply []byte
	master      []byte // content of CTA_TUPLE_MASTER; nil unless a helper expected the flow
}

func (f *Flow) String() string {
	s := fmt.Sprintf("protocol %d %s > %s", f.Protocol, f.Source, f.Destination)
	if f.First != f.Destination {
		s += fmt.Sprintf(", first to %s", f.First)
	}
	if f.ReplyTo != f.Source {
		s += fmt.Sprintf(", answered to %s", f.ReplyTo)
	}
	return s
}

// Expected reports whether a connection tracking helper announced the flow, as that of FTP
// does: it is allowed because the connection is that it belongs to.
func (f *Flow) Expected() bool { return f.master != nil }

// Clone returns a copy that can be kept.
func (f *Flow) Clone() Flow {
	c := *f
	c.orig, c.reply, c.master = slices.Clone(f.orig), slices.Clone(f.reply), slices.Clone(f.master)
	return c
}

// same reports whether both are one connection, translated alike.
func (f *Flow) same(o *Flow) bool {
	return f.Zone == o.Zone && bytes.Equal(f.orig, o.orig) && bytes.Equal(f.reply, o.reply)
}

func (f *Flow) family() uint8 {
	if f.Source.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
