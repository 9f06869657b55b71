package tunnel

import (
	"cmp"
	"crypto/sha1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Kind is one of the three encapsulations.
type Kind uint8

// The kinds; a node has at most one device of each.
const (
	IPIP   Kind = iota // IPv4 in IPv4, RFC 2003
	VXLAN4             // RFC 7348 over IPv4, carrying IPv4
	VXLAN6             // RFC 7348 over IPv6, carrying IPv6

	kinds = 3
)

// Device is the name of the kind's link, as Calico has it.
func (k Kind) Device() string {
	return [kinds]string{"tunl0", "vxlan.calico", "vxlan-v6.calico"}[k]
}

func (k Kind) String() string { return [kinds]string{"ipip", "vxlan", "vxlan-v6"}[k] }

// Defaults of Calico's FelixConfiguration (vxlanVNI, vxlanPort).
const (
	DefaultVNI  = 4096
	DefaultPort = 4789
)

// Peer is another node that takes VXLAN packets. IPIP needs none: the route's next hop
// says where its packets go.
type Peer struct {
	Node     string
	Underlay netip.Addr       // the node's address, which packets are sent to
	Addr     netip.Addr       // the node's tunnel address, which is the routes' next hop
	MAC      net.HardwareAddr // of its device; nil: MAC of Node
}

// Device is an encapsulation device as it should be.
type Device struct {
	Kind Kind
	Node string // this node's name; required for VXLAN unless MAC is given
	MTU  int    // bytes, the outer headers not counted; required
	// Addr is this node's tunnel address; the link has it as /32 or /128 and no other. The
	// zero Addr: not known yet, and what the link has is left.
	Addr  netip.Addr
	Local netip.Addr // VXLAN: the node's address, source of the outer packets; required
	VNI   int        // VXLAN: 1 to 16777215; 0: DefaultVNI
	Port  int        // VXLAN: UDP port; 0: DefaultPort
	MAC   net.HardwareAddr
	// ChecksumOffload leaves the transmit checksum of inner packets to the hardware below,
	// which some drivers get wrong: false switches it off. VXLAN.
	ChecksumOffload bool
	Peers           []Peer
}

// MAC is the address of the VXLAN device of kind k of a node, derived from the node's name
// as Calico's VXLANResolver does (felix/calc/vxlan_resolver.go): the letter "f" (66, a
// locally administered unicast address) and the first five bytes of the name's SHA-1; for
// IPv6 the name has "-v6" appended.
func MAC(node string, k Kind) net.HardwareAddr {
	m := nodeMAC(node, k)
	return m[:]
}

func nodeMAC(node string, k Kind) (m mac) {
	if k == VXLAN6 {
		node += "-v6"
	}
	sum := sha1.Sum([]byte(node))
	m[0] = 'f'
	copy(m[1:], sum[:])
	return m
}

// mac is an Ethernet address as a key.
type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

// target is a Device checked, and in the form that plan compares.
type target struct {
	kind     Kind
	name     string
	mtu      int
	addr     netip.Addr
	mac      mac
	vxlan    vxlan
	offload  bool
	peers    []peer // valid and no two alike, by name
	fdb      map[mac]netip.Addr
	neigh    map[netip.Addr]mac
	problems []error // what cannot be done, each naming device, peer and field
	// broken: the device itself cannot be made; one that stands is left as it is.
	broken bool
}

// peer is a valid Peer.
type peer struct {
	node     string
	underlay netip.Addr
	addr     netip.Addr
	mac      mac
}

// vxlan is what a VXLAN device is made with and keeps for life.
type vxlan struct {
	vni, port int
	local     netip.Addr
	odd       string // settings that ours never has, as ip(8) names them; a wanted one has none
}

// is4 is the family of what the kind carries, and of what it is carried in.
func (k Kind) is4() bool { return k != VXLAN6 }

// family says IPv4 or IPv6.
func (k Kind) family() string {
	if k.is4() {
		return "IPv4"
	}
	return "IPv6"
}

// fits reports whether a is a usable address of the kind's family.
func (k Kind) fits(a netip.Addr) bool {
	return a.IsValid() && a.Is4() == k.is4() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// minMTU is the least MTU of a device: what the protocols demand of every link (RFC 791,
// RFC 8200 §5).
func (k Kind) minMTU() int {
	if k.is4() {
		return 68
	}
	return 1280
}

// compile checks d.
func compile(d Device) *target {
	t := &target{kind: d.Kind, name: d.Kind.Device(), mtu: d.MTU, addr: d.Addr, offload: d.ChecksumOffload}
	wrong := func(format string, args ...any) {
		t.broken = true
		t.problems = append(t.problems, fmt.Errorf(t.name+": "+format, args...))
	}
	if d.MTU < d.Kind.minMTU() || d.MTU > 65535 {
		wrong("MTU %d: must be %d to 65535", d.MTU, d.Kind.minMTU())
	}
	if d.Addr.IsValid() && !d.Kind.fits(d.Addr) {
		wrong("tunnel address %s: must be an %s unicast address", d.Addr, d.Kind.family())
	}
	if d.Kind == IPIP {
		return t
	}
	t.vxlan = vxlan{vni: cmp.Or(d.VNI, DefaultVNI), port: cmp.Or(d.Port, DefaultPort), local: d.Local}
	if !d.Kind.fits(d.Local) {
		wrong("node address %v: VXLAN needs the node's %s address", d.Local, d.Kind.family())
	}
	if t.vxlan.vni < 1 || t.vxlan.vni >= 1<<24 {
		wrong("VNI %d: must be 1 to 16777215", t.vxlan.vni)
	}
	if t.vxlan.port < 1 || t.vxlan.port > 65535 {
		wrong("port %d: must be 1 to 65535", t.vxlan.port)
	}
	var err error
	if t.mac, err = macOf(d.MAC, d.Node, d.Kind); err != nil {
		wrong("%w", err)
	}
	t.compilePeers(d)
	return t
}

// compilePeers takes the peers that can be programmed. Of two that contradict each other
// the first by name counts, so that every node decides alike.
func (t *target) compilePeers(d Device) {
	t.fdb, t.neigh = make(map[mac]netip.Addr, len(d.Peers)), make(map[netip.Addr]mac, len(d.Peers))
	byMAC, byAddr := make(map[mac]string, len(d.Peers)), make(map[netip.Addr]string, len(d.Peers))
	sorted := slices.Clone(d.Peers)
	slices.SortStableFunc(sorted, func(a, b Peer) int { return cmp.Compare(a.Node, b.Node) })
	for _, p := range sorted {
		wrong := func(format string, args ...any) {
			t.problems = append(t.problems, fmt.Errorf("%s: peer %s: "+format, append([]any{t.name, p.Node}, args...)...))
		}
		m, err := macOf(p.MAC, p.Node, t.kind)
		sameMAC, dupMAC := byMAC[m]
		sameAddr, dupAddr := byAddr[p.Addr]
		switch {
		case err != nil:
			wrong("%w", err)
		case !t.kind.fits(p.Underlay):
			wrong("node address %v: must be an %s unicast address", p.Underlay, t.kind.family())
		case !t.kind.fits(p.Addr):
			wrong("tunnel address %v: must be an %s unicast address", p.Addr, t.kind.family())
		case dupMAC:
			wrong("MAC %s is that of peer %s too; left out", m, sameMAC)
		case dupAddr:
			wrong("tunnel address %s is that of peer %s too; left out", p.Addr, sameAddr)
		case m == t.mac:
			wrong("MAC %s is this node's own; left out", m)
		case p.Addr == t.addr:
			wrong("tunnel address %s is this node's own; left out", p.Addr)
		default:
			byMAC[m], byAddr[p.Addr] = p.Node, p.Node
			t.fdb[m], t.neigh[p.Addr] = p.Underlay, m
			t.peers = append(t.peers, peer{p.Node, p.Underlay, p.Addr, m})
		}
	}
}

// macOf is m, or what is derived from the node's name.
func macOf(m net.HardwareAddr, node string, k Kind) (mac, error) {
	switch {
	case m == nil && node == "":
		return mac{}, errors.New("neither MAC nor the node's name is given")
	case m == nil:
		return nodeMAC(node, k), nil
	case len(m) != 6 || m[0]&1 != 0 || mac(m) == mac{}:
		return mac{}, fmt.Errorf("MAC %s: must be a unicast Ethernet address", m)
	}
	return mac(m), nil
}
