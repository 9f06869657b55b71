package dataplane

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Overlay is what one snapshot says of encapsulation to one node. The rule: the mode of the
// pool that holds the destination, and whether the node behind the next hop has its address
// inside this node's own subnet, decide between direct and a tunnel. It is the only place
// that decides this. An Overlay does not change.
type Overlay struct {
	node   string
	own    [families]netip.Prefix
	wants  [model.Tunnels]bool
	pools  []overlayPool // by address, and of those that begin alike the widest first
	nodes  []overlayNode // all but this one, by name
	byAddr map[netip.Addr]int32
	routes []model.Route // by prefix
	// whole: routes are all that there are.
	whole bool

	mtu       [model.Tunnels]int
	vni, port int
	external  []netip.Prefix
	podsIPIP  bool
	podsVXLAN bool
	offload   bool
}

// families are IPv4 (0) and IPv6 (1).
const families = 2

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func familyOf(t model.Tunnel) int {
	if t.Is4() {
		return 0
	}
	return 1
}

// overlayPool is a pool as far as encapsulation goes.
type overlayPool struct {
	cidr   netip.Prefix
	tunnel model.Tunnel    // of no meaning with EncapNever
	mode   model.EncapMode // EncapNever too when the tunnel is switched off
	parent int             // the narrowest pool around this one; -1: none
}

// overlayNode is another node.
type overlayNode struct {
	name   string
	addr   [families]netip.Addr
	shares [families]bool              // its address is in this node's own subnet
	hop    [model.Tunnels]netip.Addr   // what routes through the tunnel lead to; the zero Addr: it has no address of the family
	mac    [model.Tunnels]string       // as its annotations say; empty: derived from its name
	direct [families]([]model.NextHop) // made once, since many routes share them
	tunnel [model.Tunnels]([]model.NextHop)
}

// NewOverlay computes it from the nodes, pools and blocks of snap for the node of that name.
// Where that node has no address of a family, or is not known, nothing of the family is
// encapsulated.
func NewOverlay(snap *model.Snapshot, node string) *Overlay {
	f := &snap.Felix
	o := &Overlay{
		node: node, mtu: f.TunnelMTU, external: f.ExternalNodes,
		vni: cmp.Or(f.VXLANVNI, model.DefaultVXLANVNI), port: cmp.Or(f.VXLANPort, model.DefaultVXLANPort),
		podsIPIP: f.PodsIPIP, podsVXLAN: f.PodsVXLAN, offload: f.ChecksumOffload,
	}
	if n := snap.Node(node); n != nil {
		o.own = [families]netip.Prefix{n.IPv4, n.IPv6}
	}
	o.addPools(snap)
	o.addNodes(snap)
	o.addRoutes(snap.Blocks)
	o.whole = snap.BlocksKnown || !o.wants[model.TunnelVXLAN4] && !o.wants[model.TunnelVXLAN6]
	return o
}

// encapsulation is what a pool asks for, unless FelixConfiguration switched it off.
func encapsulation(p *model.Pool, f *model.Felix) (model.Tunnel, model.EncapMode) {
	vxlan := model.TunnelVXLAN6
	if p.CIDR.Addr().Is4() {
		vxlan = model.TunnelVXLAN4
		if encapsulates(p.IPIPMode) && !f.IPIPOff {
			return model.TunnelIPIP, p.IPIPMode
		}
	}
	if encapsulates(p.VXLANMode) && !f.VXLANOff {
		return vxlan, p.VXLANMode
	}
	return vxlan, model.EncapNever
}

func encapsulates(m model.EncapMode) bool {
	return m == model.EncapAlways || m == model.EncapCrossSubnet
}

// tunnelMTU is the MTU of a tunnel's device, in bytes.
func tunnelMTU(t model.Tunnel, uplink int, configured [model.Tunnels]int) int {
	return cmp.Or(configured[t], uplink-t.Overhead())
}

// PodMTU is the MTU of new pods, in bytes: what fits the uplink, and every tunnel that some
// pool asks for. Pods keep one MTU whichever pool their address is from. While the uplink's is
// not known (0) neither is theirs.
func PodMTU(snap *model.Snapshot, uplinkMTU int) int {
	if uplinkMTU <= 0 {
		return 0
	}
	least := uplinkMTU
	for i := range snap.Pools {
		if t, mode := encapsulation(&snap.Pools[i], &snap.Felix); mode != model.EncapNever {
			least = min(least, tunnelMTU(t, uplinkMTU, snap.Felix.TunnelMTU))
		}
	}
	return least
}

// addPools takes every pool: the pods of a disabled one live on.
func (o *Overlay) addPools(snap *model.Snapshot) {
	for i := range snap.Pools {
		p := overlayPool{cidr: snap.Pools[i].CIDR.Masked(), parent: -1}
		p.tunnel, p.mode = encapsulation(&snap.Pools[i], &snap.Felix)
		if p.mode != model.EncapNever && o.own[familyOf(p.tunnel)].IsValid() {
			o.wants[p.tunnel] = true
		}
		o.pools = append(o.pools, p)
	}
	slices.SortStableFunc(o.pools, func(a, b overlayPool) int {
		return cmp.Or(a.cidr.Addr().Compare(b.cidr.Addr()), cmp.Compare(a.cidr.Bits(), b.cidr.Bits()))
	})
	for i := 1; i < len(o.pools); i++ {
		up := i - 1
		for up >= 0 && !o.pools[up].cidr.Contains(o.pools[i].cidr.Addr()) {
			up = o.pools[up].parent
		}
		o.pools[i].parent = up
	}
}

// pool is the narrowest pool that holds all of p, or nil.
func (o *Overlay) pool(p netip.Prefix) *overlayPool {
	i, ok := slices.BinarySearchFunc(o.pools, p, func(q overlayPool, p netip.Prefix) int {
		return cmp.Or(q.cidr.Addr().Compare(p.Addr()), cmp.Compare(q.cidr.Bits(), p.Bits()))
	})
	if !ok {
		i--
	}
	for ; i >= 0; i = o.pools[i].parent {
		if q := &o.pools[i]; q.cidr.Contains(p.Addr()) && q.cidr.Bits() <= p.Bits() {
			return q
		}
	}
	return nil
}

// addNodes takes the other nodes. What two of them claim, a node's address or that of its
// tunnel, belongs to the first by name, so that no packet for one goes to the other.
func (o *Overlay) addNodes(snap *model.Snapshot) {
	o.nodes, o.byAddr = make([]overlayNode, 0, len(snap.Nodes)), make(map[netip.Addr]int32, 2*len(snap.Nodes))
	for i := range snap.Nodes {
		n := &snap.Nodes[i]
		if n.Name == o.node {
			continue
		}
		w := overlayNode{name: n.Name}
		for f := range families {
			a := n.Address(f == 1)
			if !a.IsValid() || a == o.own[f].Addr() {
				continue // of this node's own address nothing is believed
			}
			w.addr[f], w.shares[f] = a, o.own[f].IsValid() && o.own[f].Contains(a)
			w.direct[f] = []model.NextHop{{Addr: a}}
			if _, taken := o.byAddr[a]; !taken {
				o.byAddr[a] = int32(len(o.nodes))
			}
		}
		o.nodes = append(o.nodes, w)
	}
	for t := range model.Tunnel(model.Tunnels) {
		if o.wants[t] {
			o.addEnds(snap, t)
		}
	}
}

// addEnds finds where routes through t lead to, for every other node.
//
// IPIP's lead to the node's address: the outer packet goes there. VXLAN's over IPv4 lead to
// the address of the node's device, or to the node's address while that is not known. Over
// IPv6 they lead to the link-local address of the device: the kernel refuses a gateway that it
// finds behind another device (ip6_route_check_nh_onlink), as it finds an address in a block
// that is routed directly until then, and looks at link-local ones only on the device.
func (o *Overlay) addEnds(snap *model.Snapshot, t model.Tunnel) {
	f, taken := familyOf(t), map[netip.Addr]struct{}{}
	if own := snap.Node(o.node); own != nil {
		taken[own.Tunnels[t].Addr] = struct{}{}
		taken[linkLocal(t.MAC(o.node))] = struct{}{}
	}
	others := 0
	for i := range snap.Nodes {
		if snap.Nodes[i].Name == o.node {
			continue
		}
		w, end := &o.nodes[others], &snap.Nodes[i].Tunnels[t]
		others++
		if !w.addr[f].IsValid() {
			continue
		}
		w.hop[t], w.mac[t] = w.addr[f], end.MAC
		a := end.Addr
		if t == model.TunnelVXLAN6 {
			w.hop[t] = linkLocal(t.MAC(w.name))
			a = w.hop[t]
			if mac := parseMAC(end.MAC); mac != nil {
				a = linkLocal(mac)
			}
		}
		if t != model.TunnelIPIP && a.IsValid() && family(a) == f {
			_, node := o.byAddr[a]
			_, tunnel := taken[a]
			if !node && !tunnel && a != o.own[f].Addr() {
				w.hop[t], taken[a] = a, struct{}{}
			}
		}
		w.tunnel[t] = []model.NextHop{{Addr: w.hop[t], Device: t.Device(), OnLink: true}}
	}
}

// parseMAC reads an Ethernet address; nil: s is none.
func parseMAC(s string) net.HardwareAddr {
	if mac, err := net.ParseMAC(s); err == nil && len(mac) == 6 {
		return mac
	}
	return nil
}

// linkLocal is the address that a link with that Ethernet address gives itself (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// encapsulated reports whether prefix of pool goes to n through the pool's tunnel. Where
// either end has no address of the family there is no tunnel, nor into a prefix that holds
// the tunnel's own far end, which would be a loop.
func (o *Overlay) encapsulated(pool *overlayPool, prefix netip.Prefix, n *overlayNode) bool {
	if !o.wants[pool.tunnel] || !n.hop[pool.tunnel].IsValid() || prefix.Contains(n.addr[familyOf(pool.tunnel)]) {
		return false
	}
	return pool.mode == model.EncapAlways || pool.mode == model.EncapCrossSubnet && !n.shares[familyOf(pool.tunnel)]
}

// Via is what becomes of a learned next hop for prefix: one that is another node's address,
// for a prefix inside a pool that is encapsulated to that node, goes through the tunnel. Any
// other stays as it is: the fabric knows the way.
func (o *Overlay) Via(prefix netip.Prefix, hop model.NextHop) model.NextHop {
	if hop.Device != "" {
		return hop
	}
	i, ok := o.byAddr[hop.Addr.Unmap()]
	if !ok {
		return hop
	}
	pool, n := o.pool(prefix), &o.nodes[i]
	if pool == nil || !o.encapsulated(pool, prefix, n) {
		return hop
	}
	return n.tunnel[pool.tunnel][0]
}

// Asks is the tunnel that the pool of prefix is encapsulated with, if it is at all. known
// reports whether there is such a pool.
func (o *Overlay) Asks(prefix netip.Prefix) (t model.Tunnel, encapsulated, known bool) {
	pool := o.pool(prefix)
	if pool == nil {
		return 0, false, false
	}
	return pool.tunnel, pool.mode != model.EncapNever && o.wants[pool.tunnel], true
}

// addRoutes makes the routes of VXLAN pools, which need no BGP: for every block of another
// node one to that node, and for every address that was lent one to its holder.
func (o *Overlay) addRoutes(blocks []model.Block) {
	var byName map[string]*overlayNode
	add := func(pool *overlayPool, prefix netip.Prefix, node string) {
		n := byName[node]
		if n == nil {
			return // this node, nobody, or one that is not known
		}
		r := model.Route{Prefix: prefix, NextHops: n.direct[familyOf(pool.tunnel)]}
		if o.encapsulated(pool, prefix, n) {
			r.NextHops = n.tunnel[pool.tunnel]
		}
		if r.NextHops != nil {
			o.routes = append(o.routes, r)
		}
	}
	for i := range blocks {
		b := &blocks[i]
		pool := o.pool(b.CIDR)
		if pool == nil || pool.mode == model.EncapNever || pool.tunnel == model.TunnelIPIP || !o.wants[pool.tunnel] {
			continue
		}
		if byName == nil {
			byName = make(map[string]*overlayNode, len(o.nodes))
			for i := range o.nodes {
				byName[o.nodes[i].name] = &o.nodes[i]
			}
		}
		if !b.CIDR.IsSingleIP() || len(b.Lent) == 0 {
			add(pool, b.CIDR.Masked(), b.Node)
		}
		for _, l := range b.Lent {
			if b.CIDR.Contains(l.Addr) && (l.Node != b.Node || b.CIDR.IsSingleIP()) {
				add(pool, netip.PrefixFrom(l.Addr, l.Addr.BitLen()), l.Node)
			}
		}
	}
	slices.SortStableFunc(o.routes, func(a, b model.Route) int { return ComparePrefix(a.Prefix, b.Prefix) })
	// Of two blocks that claim a prefix the first counts.
	o.routes = slices.CompactFunc(o.routes, func(a, b model.Route) bool { return a.Prefix == b.Prefix })
}

// ComparePrefix orders prefixes by address and then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Routes are those of model.OwnerTunnel, sorted by ComparePrefix and without duplicates. The
// caller must not change them.
func (o *Overlay) Routes() []model.Route { return o.routes }

// Whole reports whether Routes are all that there are; otherwise a block that is not among
// them may be there, and no route that it made may be removed (I4).
func (o *Overlay) Whole() bool { return o.whole }

// Wants lists the tunnels that the node needs, in ascending order: each is a device, and an
// address for it.
func (o *Overlay) Wants() []model.Tunnel {
	var out []model.Tunnel
	for t, wanted := range o.wants {
		if wanted {
			out = append(out, model.Tunnel(t))
		}
	}
	return out
}

// Devices are the encapsulation devices of the node: mtu is the uplink's in bytes, own the
// node's tunnel addresses as far as they are known.
func (o *Overlay) Devices(mtu int, own [model.Tunnels]netip.Addr) []model.TunnelDevice {
	var out []model.TunnelDevice
	for _, t := range o.Wants() {
		d := model.TunnelDevice{Tunnel: t, Node: o.node, MTU: tunnelMTU(t, mtu, o.mtu), Addr: own[t]}
		if t != model.TunnelIPIP {
			d.Local, d.VNI, d.Port, d.ChecksumOffload = o.own[familyOf(t)].Addr(), o.vni, o.port, o.offload
			d.Peers = o.peers(t)
		}
		out = append(out, d)
	}
	return out
}

func (o *Overlay) peers(t model.Tunnel) []model.TunnelPeer {
	var out []model.TunnelPeer
	for i := range o.nodes {
		n := &o.nodes[i]
		if !n.hop[t].IsValid() {
			continue
		}
		out = append(out, model.TunnelPeer{Node: n.name, Underlay: n.addr[familyOf(t)], Addr: n.hop[t], MAC: parseMAC(n.mac[t])})
	}
	return out
}

// NeedsMTU reports whether the MTU of some device follows the uplink's.
func (o *Overlay) NeedsMTU() bool {
	for t, wanted := range o.wants {
		if wanted && o.mtu[t] == 0 {
			return true
		}
	}
	return false
}

// Guard says which encapsulated packets the node takes, by family; the zero EncapGuard where
// it has no tunnel.
func (o *Overlay) Guard() (v4, v6 model.EncapGuard) { return o.GuardOf(o.wants) }

// GuardOf is Guard for a node that has those tunnels, whether it needs them or not.
func (o *Overlay) GuardOf(have [model.Tunnels]bool) (v4, v6 model.EncapGuard) {
	var out [families]model.EncapGuard
	for t, there := range have {
		switch g := &out[familyOf(model.Tunnel(t))]; {
		case !there:
		case model.Tunnel(t) == model.TunnelIPIP:
			g.IPIP = true
		default:
			g.VXLANPort = uint16(o.port)
		}
	}
	for f := range out {
		g := &out[f]
		if !g.IPIP && g.VXLANPort == 0 {
			continue
		}
		g.PodsIPIP, g.PodsVXLAN = o.podsIPIP, o.podsVXLAN
		for i := range o.nodes {
			if a := o.nodes[i].addr[f]; a.IsValid() {
				g.Sources = append(g.Sources, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for _, p := range o.external {
			if family(p.Addr()) == f {
				g.Sources = append(g.Sources, p.Masked())
			}
		}
		slices.SortFunc(g.Sources, ComparePrefix)
		g.Sources = slices.Compact(g.Sources)
	}
	return out[0], out[1]
}

// SameHops reports whether Via of both answers alike, always.
func (o *Overlay) SameHops(p *Overlay) bool {
	return o.node == p.node && o.own == p.own && o.wants == p.wants && slices.Equal(o.pools, p.pools) &&
		slices.EqualFunc(o.nodes, p.nodes, overlayNode.alike)
}

func (n overlayNode) alike(m overlayNode) bool {
	return n.name == m.name && n.addr == m.addr && n.shares == m.shares && n.hop == m.hop && n.mac == m.mac
}

// SameDevices reports whether Devices of both answers alike, always.
func (o *Overlay) SameDevices(p *Overlay) bool {
	return o.node == p.node && o.own == p.own && o.wants == p.wants && slices.EqualFunc(o.nodes, p.nodes, overlayNode.alike) &&
		o.mtu == p.mtu && o.vni == p.vni && o.port == p.port && o.offload == p.offload
}

// Equal reports whether both say the same of everything.
func (o *Overlay) Equal(p *Overlay) bool {
	return o.SameHops(p) && o.SameDevices(p) && slices.Equal(o.external, p.external) &&
		o.podsIPIP == p.podsIPIP && o.podsVXLAN == p.podsVXLAN && o.whole == p.whole &&
		slices.EqualFunc(o.routes, p.routes, model.Route.Equal)
}
