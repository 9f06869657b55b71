package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/causeway-net/causeway/internal/model"
)

// The lines of a dump, of the fake, of the real kernel and of what is wanted.

func linkLine(name string, l *linkState) string {
	s := fmt.Sprintf("link %s %s mtu %d up=%t", name, l.kind, l.mtu, l.up)
	if l.kind == "vxlan" {
		return s + fmt.Sprintf(" mac %s id %d port %d local %s tx=%t odd=%q", l.mac, l.vxlan.vni, l.vxlan.port, l.vxlan.local, l.offload, l.vxlan.odd)
	}
	return s + fmt.Sprintf(" alias %q", l.alias)
}

func addrLine(name string, a netip.Prefix, label string) string {
	return fmt.Sprintf("addr %s %s %s", name, a, label)
}

func fdbLine(name string, m mac, dst netip.Addr) string {
	return fmt.Sprintf("fdb %s %s %s", name, m, dst)
}

func neighLine(name string, a netip.Addr, m mac) string {
	return fmt.Sprintf("neigh %s %s %s", name, a, m)
}

// golden says what the kernel must have for devices, written from the contract alone.
// tunl0, once it was there, stays when it is not wanted; its sysctls are of no matter then.
func golden(devices []model.TunnelDevice, tunl0 *linkState) []string {
	var out []string
	seen := false
	for _, d := range devices {
		name := d.Tunnel.Device()
		l := linkState{kind: "ipip", mtu: d.MTU, up: true, alias: "causeway"}
		label := "tunl0:causeway"
		if d.Tunnel != model.TunnelIPIP {
			label = ""
			vni, port, m := d.VNI, d.Port, d.MAC
			if vni == 0 {
				vni = 4096
			}
			if port == 0 {
				port = 4789
			}
			if m == nil {
				m = MAC(d.Node, d.Tunnel)
			}
			l = linkState{kind: "vxlan", mtu: d.MTU, up: true, mac: mac(m), vxlan: vxlan{vni: vni, port: port, local: d.Local}, offload: d.ChecksumOffload}
		} else {
			seen = true
		}
		out = append(out, linkLine(name, &l), addrLine(name, netip.PrefixFrom(d.Addr, d.Addr.BitLen()), label))
		for _, p := range d.Peers {
			m := p.MAC
			if m == nil {
				m = MAC(p.Node, d.Tunnel)
			}
			if d.Tunnel != model.TunnelIPIP {
				out = append(out, fdbLine(name, mac(m), p.Underlay), neighLine(name, p.Addr, mac(m)))
			}
		}
		for _, s := range sysctls(d.Tunnel) {
			out = append(out, "sysctl "+s.name+"="+s.value)
		}
	}
	if tunl0 != nil && !seen {
		out = append(out, linkLine("tunl0", &linkState{kind: "ipip", mtu: tunl0.mtu}))
	}
	slices.Sort(out)
	return out
}

func a(s string) netip.Addr { return netip.MustParseAddr(s) }

// peerOf is node number n as a peer.
func peerOf(k model.Tunnel, n int) model.TunnelPeer {
	if k.Is4() {
		return model.TunnelPeer{Node: "node" + strconv.Itoa(n), Underlay: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), Addr: netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)})}
	}
	u, t := a("fd00:a::").As16(), a("fd00:b::").As16()
	u[14], u[15], t[14], t[15] = byte(n>>8), byte(n), byte(n>>8), byte(n)
	return model.TunnelPeer{Node: "node" + strconv.Itoa(n), Underlay: netip.AddrFrom16(u), Addr: netip.AddrFrom16(t)}
}

// deviceOf is node number me's device with the given nodes as peers.
func deviceOf(k model.Tunnel, me int, peers ...int) model.TunnelDevice {
	self := peerOf(k, me)
	d := model.TunnelDevice{Tunnel: k, Node: self.Node, MTU: [kinds]int{1480, 1450, 1430}[k], Addr: self.Addr}
	if k == model.TunnelIPIP {
		return d
	}
	d.Local = self.Underlay
	for _, p := range peers {
		d.Peers = append(d.Peers, peerOf(k, p))
	}
	return d
}

func hw(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}
