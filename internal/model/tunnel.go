package model

import (
	"crypto/sha1"
	"net"
	"net/netip"
)

// Tunnel is one of the three encapsulations. A node has at most one device of each.
type Tunnel uint8

// The encapsulations.
const (
	TunnelIPIP   Tunnel = iota // IPv4 in IPv4, RFC 2003
	TunnelVXLAN4               // RFC 7348 over IPv4, carrying IPv4
	TunnelVXLAN6               // RFC 7348 over IPv6, carrying IPv6

	Tunnels = 3 // how many there are
)

// Device is the name of the tunnel's link, as Calico has it.
func (t Tunnel) Device() string {
	return [Tunnels]string{"tunl0", "vxlan.calico", "vxlan-v6.calico"}[t]
}

func (t Tunnel) String() string { return [Tunnels]string{"ipip", "vxlan", "vxlan-v6"}[t] }

// Is4 reports whether the tunnel carries IPv4, in IPv4; otherwise it carries IPv6 in IPv6.
func (t Tunnel) Is4() bool { return t != TunnelVXLAN6 }

// Overhead is what the outer headers take from the MTU of the link below, in bytes
// (RFC 2003; RFC 7348 with Ethernet and UDP).
func (t Tunnel) Overhead() int { return [Tunnels]int{20, 50, 70}[t] }

// MAC is the address of a node's VXLAN device, derived from its name as Calico's
// VXLANResolver does (felix/calc/vxlan_resolver.go): the letter "f" (66, a locally
// administered unicast address) and the first five bytes of the name's SHA-1; for IPv6 the
// name has "-v6" appended.
func (t Tunnel) MAC(node string) net.HardwareAddr {
	if t == TunnelVXLAN6 {
		node += "-v6"
	}
	sum := sha1.Sum([]byte(node))
	return append(net.HardwareAddr{'f'}, sum[:5]...)
}

// TunnelEnd is a node's end of a tunnel, as its annotations tell. Both may be unknown.
type TunnelEnd struct {
	Addr netip.Addr // the address of its device; the zero Addr: none is known
	MAC  string     // of its VXLAN device, as net.HardwareAddr prints it; empty: derived from the node's name
}

// TunnelPeer is another node that takes VXLAN packets. IPIP needs none: the route's next
// hop says where its packets go.
type TunnelPeer struct {
	Node     string
	Underlay netip.Addr       // the node's address, which packets are sent to
	Addr     netip.Addr       // the routes' next hop on the device
	MAC      net.HardwareAddr // of its device; nil: derived from Node
}

// TunnelDevice is an encapsulation device as it should be.
type TunnelDevice struct {
	Tunnel Tunnel
	Node   string // this node's name; required for VXLAN unless MAC is given
	MTU    int    // bytes, the outer headers not counted; required
	// Addr is this node's tunnel address; the link has it as /32 or /128 and no other. The
	// zero Addr: not known yet, and what the link has is left.
	Addr  netip.Addr
	Local netip.Addr       // VXLAN: the node's address, source of the outer packets; required
	VNI   int              // VXLAN: 1 to 16777215; 0: DefaultVXLANVNI
	Port  int              // VXLAN: UDP port; 0: DefaultVXLANPort
	MAC   net.HardwareAddr // VXLAN; nil: derived from Node
	// ChecksumOffload leaves the transmit checksum of inner packets to the hardware below,
	// which some drivers get wrong: false switches it off. VXLAN.
	ChecksumOffload bool
	Peers           []TunnelPeer // VXLAN
}

// Defaults of Calico's FelixConfiguration (vxlanVNI, vxlanPort).
const (
	DefaultVXLANVNI  = 4096
	DefaultVXLANPort = 4789
)

// EncapGuard says which encapsulated packets one family of this node takes: those of nodes,
// and none that a pod made up.
type EncapGuard struct {
	IPIP      bool           // the node has tunl0: packets of IP protocol 4 are looked at
	VXLANPort uint16         // the node has a VXLAN device: UDP packets to this port are looked at; 0: it has none
	Sources   []netip.Prefix // who may send them; sorted, without duplicates
	// PodsIPIP and PodsVXLAN let the node's own pods send such packets, to anybody.
	PodsIPIP, PodsVXLAN bool
}
