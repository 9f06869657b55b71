package tunnel

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// alias marks a tunl0 in our care, label the addresses on it that are ours.
const (
	alias = "causeway"
	label = "tunl0:causeway" // the kernel has room for 15 bytes
)

// linkState is a link as the kernel has it.
type linkState struct {
	index   int
	kind    string // IFLA_INFO_KIND
	alias   string
	up      bool // IFF_UP
	mtu     int
	mac     mac
	vxlan   vxlan
	offload bool // transmit checksum; VXLAN only
}

// fdbEntry is where frames to a MAC go. odd: it is not of the form that ours have, or there
// are several for the MAC.
type fdbEntry struct {
	dst netip.Addr
	odd bool
}

// neighEntry is a static neighbour; those that the kernel resolved itself are not looked at,
// since any host could bring them up and down. odd: it is not of the form that ours have.
type neighEntry struct {
	mac mac
	odd bool
}

// state is a device as the kernel has it.
type state struct {
	link    *linkState // nil: there is none
	sysctls map[string]string
	addrs   map[netip.Prefix]string // label by address; none that the kernel gave itself
	fdb     map[mac]fdbEntry
	neigh   map[netip.Addr]neighEntry
}

type verb uint8

const (
	linkAdd verb = iota + 1
	linkDel
	linkAlias
	linkMTU
	linkMAC
	linkUp
	linkDown
	offload
	sysctl
	addrAdd
	addrDel
	fdbSet // takes the place of what stands at the MAC
	fdbDel // all that stands at the MAC
	neighSet
	neighDel
)

// op is one write to the kernel.
type op struct {
	verb  verb
	kind  model.Tunnel
	index int // of the link; of no meaning for linkAdd and sysctl

	mtu    int          // linkAdd, linkMTU
	mac    mac          // linkAdd, linkMAC, fdb, neighSet
	vxlan  vxlan        // linkAdd
	on     bool         // offload
	name   string       // sysctl
	value  string       // sysctl, linkAlias
	prefix netip.Prefix // addr
	label  string       // addr
	addr   netip.Addr   // fdb: underlay, neigh: tunnel address
	peer   string       // node whose entry it is, for errors
}

// String is the op as a command line.
func (o op) String() string {
	dev := o.kind.Device()
	switch o.verb {
	case linkAdd:
		if o.kind == model.TunnelIPIP {
			return fmt.Sprintf("ip link add %s mtu %d type ipip", dev, o.mtu)
		}
		return fmt.Sprintf("ip link add %s mtu %d address %s type vxlan id %d local %s dstport %d nolearning", dev, o.mtu, o.mac, o.vxlan.vni, o.vxlan.local, o.vxlan.port)
	case linkDel:
		return "ip link del " + dev
	case linkAlias:
		return fmt.Sprintf("ip link set %s alias %q", dev, o.value)
	case linkMTU:
		return fmt.Sprintf("ip link set %s mtu %d", dev, o.mtu)
	case linkMAC:
		return fmt.Sprintf("ip link set %s address %s", dev, o.mac)
	case linkUp:
		return fmt.Sprintf("ip link set %s up", dev)
	case linkDown:
		return fmt.Sprintf("ip link set %s down", dev)
	case offload:
		return fmt.Sprintf("ethtool -K %s tx %s", dev, map[bool]string{true: "on", false: "off"}[o.on])
	case sysctl:
		return fmt.Sprintf("sysctl -w %s=%s", o.name, o.value)
	case addrAdd:
		s := fmt.Sprintf("ip addr add %s dev %s", o.prefix, dev)
		if o.label != "" {
			s += " label " + o.label
		}
		if o.prefix.Addr().Is6() {
			s += " nodad noprefixroute"
		}
		return s
	case addrDel:
		return fmt.Sprintf("ip addr del %s dev %s", o.prefix, dev)
	case fdbSet:
		return fmt.Sprintf("bridge fdb replace %s dev %s dst %s self permanent", o.mac, dev, o.addr)
	case fdbDel:
		return fmt.Sprintf("bridge fdb del %s dev %s self", o.mac, dev)
	case neighSet:
		return fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", o.addr, o.mac, dev)
	case neighDel:
		return fmt.Sprintf("ip neigh del %s dev %s", o.addr, dev)
	}
	return fmt.Sprintf("op %d", o.verb)
}

// setting is a sysctl that a device needs.
type setting struct{ name, value string }

// sysctls of a device, in the order in which they are set.
func sysctls(k model.Tunnel) []setting {
	v4, v6 := "net/ipv4/conf/"+k.Device()+"/", "net/ipv6/conf/"+k.Device()+"/"
	if k.Is4() {
		return []setting{
			{v4 + "forwarding", "1"},
			// Loose: while the nodes change a pool's mode, one sends through the tunnel what
			// the other answers directly. The stricter of this and conf.all counts, and loose
			// is the higher number.
			{v4 + "rp_filter", "2"},
		}
	}
	return []setting{
		{v6 + "disable_ipv6", "0"},
		{v6 + "forwarding", "1"},
		// Nobody on a tunnel answers duplicate address detection or advertises a router.
		{v6 + "accept_dad", "0"},
		{v6 + "dad_transmits", "0"},
		{v6 + "accept_ra", "0"},
	}
}

// plan lists what brings got to want, additions before removals. With a link that must be
// made, the list ends there: the rest is planned when the new link was read. why is not
// empty when a link is replaced. An error says what stands in the way.
func plan(k model.Tunnel, want *target, got *state) (ops []op, why string, err error) {
	l := got.link
	if l != nil && l.kind != linkKind(k) {
		if want == nil {
			return nil, "", nil // somebody else's
		}
		return nil, "", fmt.Errorf("%s: a link of type %q has the name; remove it (ip link del %s)", want.name, l.kind, want.name)
	}
	p := planner{kind: k, got: got}
	switch {
	case want == nil && l == nil:
	case want == nil && k == model.TunnelIPIP:
		p.release()
	case want == nil:
		p.add(op{verb: linkDel})
	case want.broken:
	case l == nil:
		p.add(op{verb: linkAdd, mtu: want.mtu, mac: want.mac, vxlan: want.vxlan})
	case k != model.TunnelIPIP && l.vxlan != want.vxlan:
		p.add(op{verb: linkDel})
		p.add(op{verb: linkAdd, mtu: want.mtu, mac: want.mac, vxlan: want.vxlan})
		return p.ops, l.vxlan.diff(want.vxlan), nil
	default:
		p.device(want)
	}
	return p.ops, "", nil
}

// linkKind is the kernel's name for the kind.
func linkKind(k model.Tunnel) string {
	if k == model.TunnelIPIP {
		return "ipip"
	}
	return "vxlan"
}

// diff says in what v is not as want.
func (v vxlan) diff(want vxlan) string {
	var out []string
	if v.vni != want.vni {
		out = append(out, fmt.Sprintf("VNI %d is to be %d", v.vni, want.vni))
	}
	if v.port != want.port {
		out = append(out, fmt.Sprintf("port %d is to be %d", v.port, want.port))
	}
	if v.local != want.local {
		out = append(out, fmt.Sprintf("local address %v is to be %v", v.local, want.local))
	}
	if v.odd != "" {
		out = append(out, "it has "+v.odd)
	}
	return strings.Join(out, ", ")
}

type planner struct {
	kind model.Tunnel
	got  *state
	ops  []op
}

func (p *planner) add(o op) {
	o.kind = p.kind
	if p.got.link != nil {
		o.index = p.got.link.index
	}
	p.ops = append(p.ops, o)
}

// release leaves tunl0 to the kernel. The alias goes last, so that a release that was cut
// short is taken up again.
func (p *planner) release() {
	l := p.got.link
	if l.alias != alias {
		return
	}
	others := false
	for _, a := range sortedAddrs(p.got.addrs) {
		if p.got.addrs[a] == label {
			p.add(op{verb: addrDel, prefix: a, label: label})
		} else {
			others = true // somebody else's, who needs the link
		}
	}
	if l.up && !others {
		p.add(op{verb: linkDown})
	}
	p.add(op{verb: linkAlias})
}

func (p *planner) device(want *target) {
	l := p.got.link
	if p.kind == model.TunnelIPIP && l.alias != alias {
		p.add(op{verb: linkAlias, value: alias})
	}
	if p.kind != model.TunnelIPIP && l.offload != want.offload {
		p.add(op{verb: offload, on: want.offload})
	}
	if l.mtu != want.mtu {
		p.add(op{verb: linkMTU, mtu: want.mtu})
	}
	if p.kind != model.TunnelIPIP && l.mac != want.mac {
		p.add(op{verb: linkMAC, mac: want.mac})
	}
	for _, s := range sysctls(p.kind) {
		if p.got.sysctls[s.name] != s.value {
			p.add(op{verb: sysctl, name: s.name, value: s.value})
		}
	}
	// What a link that is down keeps comes before it goes up, so that no packet meets it
	// half made. It would lose its neighbours.
	for _, e := range want.peers {
		switch now, ok := p.got.fdb[e.mac]; {
		case ok && now.odd:
			p.add(op{verb: fdbDel, mac: e.mac, addr: now.dst, peer: e.node})
			fallthrough
		case !ok || now.dst != e.underlay:
			p.add(op{verb: fdbSet, mac: e.mac, addr: e.underlay, peer: e.node})
		}
	}
	stale := p.address(want)
	if !l.up {
		p.add(op{verb: linkUp})
	}
	for _, e := range want.peers {
		if p.got.neigh[e.addr] != (neighEntry{mac: e.mac}) {
			p.add(op{verb: neighSet, mac: e.mac, addr: e.addr, peer: e.node})
		}
	}
	p.ops = append(p.ops, stale...)
	p.prune(want)
}

// address adds the tunnel address, and returns how to remove what else stands there.
func (p *planner) address(want *target) (stale []op) {
	if !want.addr.IsValid() {
		return nil
	}
	own, mark := netip.PrefixFrom(want.addr, want.addr.BitLen()), ""
	if p.kind == model.TunnelIPIP {
		mark = label
	}
	now, ok := p.got.addrs[own]
	if ok && now != mark {
		// Adopted from somebody who does not mark. A label cannot be changed.
		p.add(op{verb: addrDel, prefix: own, label: now})
		ok = false
	}
	if !ok {
		p.add(op{verb: addrAdd, prefix: own, label: mark})
	}
	for _, a := range sortedAddrs(p.got.addrs) {
		if a != own && (p.kind != model.TunnelIPIP || p.got.addrs[a] == label) {
			stale = append(stale, op{verb: addrDel, kind: p.kind, index: p.got.link.index, prefix: a, label: p.got.addrs[a]})
		}
	}
	return stale
}

// prune removes the entries of no peer: on a device of ours they are stale, whoever made
// them. A neighbour goes before the MAC that it names.
func (p *planner) prune(want *target) {
	var addrs []netip.Addr
	for a := range p.got.neigh {
		if _, ok := want.neigh[a]; !ok {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		p.add(op{verb: neighDel, addr: a})
	}
	var macs []mac
	for m := range p.got.fdb {
		if _, ok := want.fdb[m]; !ok {
			macs = append(macs, m)
		}
	}
	slices.SortFunc(macs, func(a, b mac) int { return slices.Compare(a[:], b[:]) })
	for _, m := range macs {
		p.add(op{verb: fdbDel, mac: m, addr: p.got.fdb[m].dst})
	}
}

func sortedAddrs(m map[netip.Prefix]string) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(m), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

// done is what the kernel has after it did o.
func (s *state) done(o *op) {
	switch o.verb {
	case linkAdd, linkDel:
		*s = state{}
	case linkAlias:
		s.link.alias = o.value
	case linkMTU:
		s.link.mtu = o.mtu
	case linkMAC:
		s.link.mac = o.mac
	case linkUp, linkDown:
		s.link.up = o.verb == linkUp
	case offload:
		s.link.offload = o.on
	case sysctl:
		s.sysctls[o.name] = o.value
	case addrAdd:
		s.addrs[o.prefix] = o.label
	case addrDel:
		delete(s.addrs, o.prefix)
	case fdbSet:
		s.fdb[o.mac] = fdbEntry{dst: o.addr}
	case fdbDel:
		delete(s.fdb, o.mac)
	case neighSet:
		s.neigh[o.addr] = neighEntry{mac: o.mac}
	case neighDel:
		delete(s.neigh, o.addr)
	}
}
