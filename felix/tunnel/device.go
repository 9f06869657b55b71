package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

const kinds = model.Tunnels

// End is what a node tells others of its end of a tunnel that has the address addr.
func End(node string, k model.Tunnel, addr netip.Addr) model.TunnelEnd {
	end := model.TunnelEnd{Addr: addr}
	if k != model.TunnelIPIP {
		end.MAC = nodeMAC(node, k).String()
	}
	return end
}

// MAC is model.Tunnel.MAC: the address of the VXLAN device of kind k of a node.
func MAC(node string, k model.Tunnel) net.HardwareAddr { return k.MAC(node) }

// nodeMAC is MAC as a key.
func nodeMAC(node string, k model.Tunnel) mac { return mac(k.MAC(node)) }

// mac is an Ethernet address as a key.
type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

// target is a device checked, and in the form that plan compares.
type target struct {
	kind     model.Tunnel
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

// family says IPv4 or IPv6.
func family(k model.Tunnel) string {
	if k.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// fits reports whether a is a usable address of the kind's family.
func fits(k model.Tunnel, a netip.Addr) bool {
	return a.IsValid() && a.Is4() == k.Is4() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// minMTU is the least MTU of a device: what the protocols demand of every link (RFC 791,
// RFC 8200 §5).
func minMTU(k model.Tunnel) int {
	if k.Is4() {
		return 68
	}
	return 1280
}

// compile checks d.
func compile(d model.TunnelDevice) *target {
	t := &target{kind: d.Tunnel, name: d.Tunnel.Device(), mtu: d.MTU, addr: d.Addr, offload: d.ChecksumOffload}
	wrong := func(format string, args ...any) {
		t.broken = true
		t.problems = append(t.problems, fmt.Errorf(t.name+": "+format, args...))
	}
	if d.MTU < minMTU(d.Tunnel) || d.MTU > 65535 {
		wrong("MTU %d: must be %d to 65535", d.MTU, minMTU(d.Tunnel))
	}
	if d.Addr.IsValid() && !fits(d.Tunnel, d.Addr) {
		wrong("tunnel address %s: must be an %s unicast address", d.Addr, family(d.Tunnel))
	}
	if d.Tunnel == model.TunnelIPIP {
		return t
	}
	t.vxlan = vxlan{vni: cmp.Or(d.VNI, model.DefaultVXLANVNI), port: cmp.Or(d.Port, model.DefaultVXLANPort), local: d.Local}
	if !fits(d.Tunnel, d.Local) {
		wrong("node address %v: VXLAN needs the node's %s address", d.Local, family(d.Tunnel))
	}
	if t.vxlan.vni < 1 || t.vxlan.vni >= 1<<24 {
		wrong("VNI %d: must be 1 to 16777215", t.vxlan.vni)
	}
	if t.vxlan.port < 1 || t.vxlan.port > 65535 {
		wrong("port %d: must be 1 to 65535", t.vxlan.port)
	}
	var err error
	if t.mac, err = macOf(d.MAC, d.Node, d.Tunnel); err != nil {
		wrong("%w", err)
	}
	t.compilePeers(d)
	return t
}

// compilePeers takes the peers that can be programmed. Of two that contradict each other
// the first by name counts, so that every node decides alike. A node may be there several
// times with different addresses, while routes move from one to the other; its first
// underlay counts.
func (t *target) compilePeers(d model.TunnelDevice) {
	t.fdb, t.neigh = make(map[mac]netip.Addr, len(d.Peers)), make(map[netip.Addr]mac, len(d.Peers))
	byMAC, byAddr := make(map[mac]string, len(d.Peers)), make(map[netip.Addr]string, len(d.Peers))
	sorted := slices.Clone(d.Peers)
	slices.SortStableFunc(sorted, func(a, b model.TunnelPeer) int { return cmp.Compare(a.Node, b.Node) })
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
		case !fits(t.kind, p.Underlay):
			wrong("node address %v: must be an %s unicast address", p.Underlay, family(t.kind))
		case !fits(t.kind, p.Addr):
			wrong("tunnel address %v: must be an %s unicast address", p.Addr, family(t.kind))
		case dupMAC && sameMAC != p.Node:
			wrong("MAC %s is that of peer %s too; left out", m, sameMAC)
		case dupAddr:
			wrong("tunnel address %s is that of peer %s too; left out", p.Addr, sameAddr)
		case m == t.mac:
			wrong("MAC %s is this node's own; left out", m)
		case p.Addr == t.addr:
			wrong("tunnel address %s is this node's own; left out", p.Addr)
		default:
			byMAC[m], byAddr[p.Addr] = p.Node, p.Node
			if !dupMAC {
				t.fdb[m] = p.Underlay
			}
			t.neigh[p.Addr] = m
			t.peers = append(t.peers, peer{p.Node, t.fdb[m], p.Addr, m})
		}
	}
}

// macOf is m, or what is derived from the node's name.
func macOf(m net.HardwareAddr, node string, k model.Tunnel) (mac, error) {
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
