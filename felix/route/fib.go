package route

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Route types of the kernel (include/uapi/linux/rtnetlink.h, RTN_*) that matter here.
const (
	typeUnicast   = 1
	typeLocal     = 2
	typeBlackhole = 6
)

// hop is one next hop as the kernel has it.
type hop struct {
	gw     netip.Addr // without zone; the zero Addr: the prefix is on the link
	dev    int32      // ifindex
	weight uint8      // rtnh_hops: the weight less one; ours is always 0
	onlink bool       // RTNH_F_ONLINK
}

func (h hop) compare(o hop) int {
	return cmp.Or(h.gw.Compare(o.gw), cmp.Compare(h.dev, o.dev), cmp.Compare(h.weight, o.weight), cmp.Compare(bit(h.onlink), bit(o.onlink)))
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// normalHops sorts hops and drops duplicates, in place.
func normalHops(hops []hop) []hop {
	if len(hops) < 2 {
		return hops
	}
	slices.SortFunc(hops, hop.compare)
	return slices.Compact(hops)
}

// appendHops appends a key that is equal for equal hops only.
func appendHops(b []byte, hops []hop) []byte {
	for _, h := range hops {
		a := h.gw.As16() // zeroes for the zero Addr
		b = append(b, byte(h.gw.BitLen()), bit(h.onlink), h.weight)
		b = append(b, a[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(h.dev))
	}
	return b
}

// link is an interface as the kernel tells of it.
type link struct {
	index   int32
	name    string
	up      bool // IFF_UP
	running bool // IFF_UP and IFF_RUNNING: has a carrier, operstate up or unknown
}

// fibRoute is a route as the kernel tells of it, of the main table or, with local, of type
// local in the local table.
type fibRoute struct {
	prefix netip.Prefix
	hops   []hop // normal; empty unless the type is unicast or local
	metric uint32
	tos    uint8
	typ    uint8 // RTN_*
	proto  uint8 // RTPROT_*
	local  bool
	odd    bool // carries attributes that Causeway never gives (prefsrc, metrics, nexthop id, ...)
}

// eventKind says what an event tells.
type eventKind uint8

const (
	linkSet eventKind = iota + 1
	linkGone
	addrSet
	addrGone
	routeSet
	routeGone
)

// event is one message of the kernel: of a dump or a notification.
type event struct {
	kind eventKind
	// after is the sequence number of the last of our own writes that the kernel did
	// before it sent the event. Events of own writes are not delivered at all.
	after   uint64
	replace bool // routeSet with NLM_F_REPLACE: what stood at the key is gone
	last    bool // routeSet with NLM_F_APPEND: behind what stands at the key
	dump    bool
	link    link
	route   fibRoute
}

// verb is what an op does.
type verb uint8

const (
	opAdd     verb = iota + 1 // refused when anything stands at prefix, tos and metric (NLM_F_EXCL)
	opReplace                 // takes the place of what stands there, or adds (NLM_F_REPLACE|NLM_F_CREATE)
	opDelete                  // of our protocol only; with hops, exactly that route
)

// op is one write to the main table.
type op struct {
	verb   verb
	prefix netip.Prefix
	typ    uint8
	tos    uint8
	metric uint32
	hops   []hop

	// The core's notes; no kernel looks at them.
	entry *entry
	at    *fibEntry // what is replaced or deleted
	group *group
	owner ownerIndex
}

// kernel is the seam: the netlink sockets, or the tests' fake. Its methods are called by
// one goroutine.
type kernel interface {
	// dump tells all links, then all routes of both families. When it fails, what it told
	// until then is true but not complete.
	dump(ctx context.Context, tell func(*event)) error
	// drain tells what has happened since, without waiting. errOverrun: events were lost.
	drain(tell func(*event)) error
	// write does ops in order, each for itself, and returns their sequence numbers' first
	// and the errors of those that failed, by index. err: the fate of ops is not known.
	write(ops []op) (first uint64, failed map[int]error, err error)
	close()
}

// describe writes a route as ip(8) does, for conflicts and errors.
func (c *core) describe(f *fibEntry) string {
	var b strings.Builder
	if f.typ != typeUnicast {
		b.WriteString(typeName(f.typ) + " ")
	}
	b.WriteString(f.entry.prefix.String())
	for i, h := range f.group.hops {
		if len(f.group.hops) > 1 {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(" nexthop")
		}
		if h.gw.IsValid() {
			b.WriteString(" via " + h.gw.String())
		}
		if l := c.links[h.dev]; l != nil {
			b.WriteString(" dev " + l.name)
		} else {
			fmt.Fprintf(&b, " dev if%d", h.dev)
		}
	}
	fmt.Fprintf(&b, " proto %s metric %d", protoName(f.proto), f.metric)
	return b.String()
}

func typeName(typ uint8) string {
	names := []string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat"}
	if int(typ) < len(names) {
		return names[typ]
	}
	return fmt.Sprint("type ", typ)
}

// protoName is the protocol's name in iproute2's etc/iproute2/rt_protos.
func protoName(p uint8) string {
	switch p {
	case 2:
		return "kernel"
	case 3:
		return "boot"
	case 4:
		return "static"
	case 9:
		return "ra"
	case 11:
		return "zebra"
	case 12:
		return "bird"
	case 16:
		return "dhcp"
	case 186:
		return "bgp"
	}
	return fmt.Sprint(p)
}
