package tunnel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const attrMask = 0x3fff // an attribute's type without NLA_F_NESTED and NLA_F_NET_BYTEORDER

// neighMsg is a neighbour or an FDB entry as the kernel tells of it.
type neighMsg struct {
	family uint8 // AF_BRIDGE: an FDB entry
	index  int
	state  uint16
	flags  uint8
	dst    netip.Addr // neighbour: its address; FDB: the underlay
	mac    mac
	odd    bool // has attributes that ours never have: a VNI, a port, a link, a nexthop of its own
	// full: it comes with NDA_CACHEINFO. Older kernels (6.1, not 6.18) tell of every FDB entry twice,
	// by vxlan and by rtnetlink itself, which knows nothing but the MAC (rtnl_fdb_notify).
	full bool
}

// parseNeigh reads struct ndmsg and its attributes.
func parseNeigh(b []byte) (m neighMsg, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return m, false
	}
	ne := binary.NativeEndian
	m = neighMsg{family: b[0], index: int(int32(ne.Uint32(b[4:]))), state: ne.Uint16(b[8:]), flags: b[10]}
	eachAttr(b[unix.SizeofNdMsg:], func(typ uint16, data []byte) {
		switch typ {
		case netlink.NDA_DST:
			m.dst, _ = netip.AddrFromSlice(data)
		case netlink.NDA_LLADDR:
			if len(data) == len(m.mac) {
				m.mac = mac(data)
			}
		case netlink.NDA_VNI, netlink.NDA_PORT, netlink.NDA_IFINDEX, netlink.NDA_SRC_VNI, netlink.NDA_NH_ID:
			m.odd = true
		case netlink.NDA_CACHEINFO:
			m.full = true
		}
	})
	return m, true
}

// fdb is the entry that an FDB message tells of.
func (m neighMsg) fdb() fdbEntry {
	return fdbEntry{dst: m.dst, odd: m.odd || m.state != unix.NUD_PERMANENT || m.flags != unix.NTF_SELF}
}

// static is the entry that a message of a neighbour tells of; false: the kernel resolved it,
// or tries to, or it is of the kinds that the kernel makes itself.
func (m neighMsg) static() (neighEntry, bool) {
	if m.flags&unix.NTF_PROXY != 0 || m.state&unix.NUD_PERMANENT == 0 && m.flags&unix.NTF_EXT_LEARNED == 0 || m.state&unix.NUD_NOARP != 0 {
		return neighEntry{}, false
	}
	return neighEntry{mac: m.mac, odd: m.state != unix.NUD_PERMANENT || m.flags&unix.NTF_EXT_LEARNED != 0}, true
}

func (r *rtnetlink) peers(index int) (map[mac]fdbEntry, map[netip.Addr]neighEntry, error) {
	// A dump of the FDB is narrowed to a device by the index in struct ifinfomsg, one of
	// neighbours by an attribute; both since before Linux 4.9.
	link := nl.NewIfInfomsg(unix.AF_BRIDGE)
	link.Index = int32(index)
	fdb, err := retried(func() (map[mac]fdbEntry, error) {
		out := map[mac]fdbEntry{}
		return out, r.dump(func(m neighMsg) {
			if m.index != index || m.family != unix.AF_BRIDGE {
				return
			}
			e := m.fdb()
			if _, several := out[m.mac]; several {
				e.odd = true
			}
			out[m.mac] = e
		}, link)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list FDB: %w", err)
	}
	neigh, err := retried(func() (map[netip.Addr]neighEntry, error) {
		out := map[netip.Addr]neighEntry{}
		return out, r.dump(func(m neighMsg) {
			if e, ok := m.static(); ok && m.index == index {
				out[m.dst] = e
			}
		}, &netlink.Ndmsg{Family: unix.AF_UNSPEC}, nl.NewRtAttr(netlink.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list neighbours: %w", err)
	}
	return fdb, neigh, nil
}

// dump asks for neighbours with a request of the given parts.
func (r *rtnetlink) dump(tell func(neighMsg), parts ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	for _, p := range parts {
		req.AddData(p)
	}
	return req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func(b []byte) bool {
		if m, ok := parseNeigh(b); ok {
			tell(m)
		}
		return true
	})
}

// neigh writes one FDB entry or neighbour.
func (r *rtnetlink) neigh(o *op) error {
	n := &netlink.Neigh{LinkIndex: o.index, State: unix.NUD_PERMANENT, IP: o.addr.AsSlice()}
	switch o.verb {
	case fdbSet:
		n.Family, n.Flags, n.HardwareAddr = unix.AF_BRIDGE, unix.NTF_SELF, o.mac[:]
		return r.h.NeighSet(n)
	case fdbDel:
		// With the unspecified address, all that stands at the MAC.
		n.Family, n.Flags, n.HardwareAddr = unix.AF_BRIDGE, unix.NTF_SELF, o.mac[:]
		n.IP = netip.IPv4Unspecified().AsSlice()
		if !o.kind.Is4() {
			n.IP = netip.IPv6Unspecified().AsSlice()
		}
		return r.h.NeighDel(n)
	case neighSet:
		n.HardwareAddr = o.mac[:]
		return r.h.NeighSet(n)
	}
	return r.h.NeighDel(n)
}
