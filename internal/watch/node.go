package watch

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/internal/model"
)

// The annotations of a Node that are read; the names are Calico's.
const (
	AnnotationIPv4Address             = "projectcalico.org/IPv4Address"
	AnnotationIPv6Address             = "projectcalico.org/IPv6Address"
	AnnotationASNumber                = "projectcalico.org/ASNumber"
	AnnotationRouteReflectorClusterID = "projectcalico.org/RouteReflectorClusterID"
	AnnotationIPv4IPIPTunnelAddr      = "projectcalico.org/IPv4IPIPTunnelAddr"
	AnnotationIPv4VXLANTunnelAddr     = "projectcalico.org/IPv4VXLANTunnelAddr"
	AnnotationVXLANTunnelMACAddr      = "projectcalico.org/VXLANTunnelMACAddr"
	AnnotationIPv6VXLANTunnelAddr     = "projectcalico.org/IPv6VXLANTunnelAddr"
	AnnotationVXLANTunnelMACAddrV6    = "projectcalico.org/VXLANTunnelMACAddrV6"
)

// NoAddress, as the value of an address annotation, says that the node has no address of that
// family, whatever its InternalIPs are.
const NoAddress = "none"

// tunnelAnnotations are those of a node's end of each tunnel.
var tunnelAnnotations = [model.Tunnels]struct{ addr, mac string }{
	model.TunnelIPIP:   {addr: AnnotationIPv4IPIPTunnelAddr},
	model.TunnelVXLAN4: {AnnotationIPv4VXLANTunnelAddr, AnnotationVXLANTunnelMACAddr},
	model.TunnelVXLAN6: {AnnotationIPv6VXLANTunnelAddr, AnnotationVXLANTunnelMACAddrV6},
}

func (c *checker) node(n *corev1.Node) model.Node {
	out := model.Node{Name: n.Name, Labels: maps.Clone(n.Labels)}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.Labels[corev1.LabelHostname] == "" {
		out.Labels[corev1.LabelHostname] = n.Name
	}
	out.IPv4 = c.nodeAddress(n, AnnotationIPv4Address, true)
	out.IPv6 = c.nodeAddress(n, AnnotationIPv6Address, false)
	if v, ok := n.Annotations[AnnotationASNumber]; ok {
		asn, err := parseASN(v)
		if err != nil {
			c.bad(annotation(AnnotationASNumber), "%v", err)
		}
		out.ASN = asn
	}
	if v, ok := n.Annotations[AnnotationRouteReflectorClusterID]; ok {
		id, err := netip.ParseAddr(v)
		if err != nil || !id.Is4() || id.IsUnspecified() {
			c.bad(annotation(AnnotationRouteReflectorClusterID), `is %q; must be four bytes written as an IPv4 address other than 0.0.0.0, such as "224.0.0.1"`, v)
		}
		out.RouteReflectorClusterID = id
	}
	out.Tunnels = c.tunnelEnds(n)
	return out
}

// tunnelEnds are the node's ends of tunnels. What is wrong there takes nothing else of the
// node out of force: agents write these, and mend them.
func (c *checker) tunnelEnds(n *corev1.Node) (out [model.Tunnels]model.TunnelEnd) {
	for t := range model.Tunnel(model.Tunnels) {
		names := tunnelAnnotations[t]
		if v := n.Annotations[names.addr]; v != "" {
			a, err := netip.ParseAddr(v)
			if err != nil || a.Is4() != t.Is4() || a.Is4In6() || a.Zone() != "" || !hostAddress(a) {
				c.ignored(annotation(names.addr), "is %q; must be the address of the node's %s, such as %s", v, t.Device(), exampleTunnel(t))
			} else {
				out[t].Addr = a
			}
		}
		if names.mac == "" {
			continue
		}
		if v := n.Annotations[names.mac]; v != "" {
			mac, err := net.ParseMAC(v)
			if err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
				c.ignored(annotation(names.mac), `is %q; must be the Ethernet address of the node's %s, such as "66:1e:0c:8a:12:01"`, v, t.Device())
			} else {
				out[t].MAC = mac.String()
			}
		}
	}
	return out
}

func exampleTunnel(t model.Tunnel) string {
	if t.Is4() {
		return `"10.244.3.7"`
	}
	return `"fd00:10:244::7"`
}

func annotation(name string) string { return ".metadata.annotations[" + name + "]" }

// nodeAddress is the node's address of one family: the annotation with its mask, or the
// first usable InternalIP with a full one; none where the annotation says so.
func (c *checker) nodeAddress(n *corev1.Node, name string, v4 bool) netip.Prefix {
	family := "IPv6"
	if v4 {
		family = "IPv4"
	}
	v := n.Annotations[name]
	if v == NoAddress {
		return netip.Prefix{}
	}
	if v != "" { // one that is empty says nothing, as in Calico
		p, err := parseInterfaceAddress(v)
		switch {
		case err != nil || p.Addr().Is4() != v4:
			c.bad(annotation(name), "is %q; must be an %s address with the length of its subnet, such as %s", v, family, exampleAddress(v4))
		case !hostAddress(p.Addr()):
			c.bad(annotation(name), "is %q, which no host can have; must be the node's own %s address", v, family)
		}
		return p
	}
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			if v4 { // the same for both families: say it once
				c.bad(fmt.Sprintf(".status.addresses[%d].address", i), "is %q; must be an IPv4 or IPv6 address", a.Address)
			}
			continue
		}
		if addr = addr.Unmap().WithZone(""); addr.Is4() == v4 && hostAddress(addr) {
			return netip.PrefixFrom(addr, addr.BitLen())
		}
	}
	return netip.Prefix{}
}

func exampleAddress(v4 bool) string {
	if v4 {
		return `"10.0.0.1/24"`
	}
	return `"fd00::1/64"`
}

// parseInterfaceAddress reads "a.b.c.d/n" or a bare address, which gets a full mask.
func parseInterfaceAddress(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Addr().Is4In6() {
		err = fmt.Errorf("IPv4 in IPv6")
	}
	return p, err
}

// hostAddress reports whether a can be a node's address towards other nodes.
func hostAddress(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// parseASN reads an AS number, plain or in two halves "1.10" (RFC 5396 asdot).
func parseASN(s string) (uint32, error) {
	bad := fmt.Errorf(`is %q; must be an AS number from 1 to 4294967295, such as "64512", or "1.10" in halves`, s)
	if high, low, dotted := strings.Cut(s, "."); dotted {
		h, err1 := strconv.ParseUint(high, 10, 16)
		l, err2 := strconv.ParseUint(low, 10, 16)
		if err1 != nil || err2 != nil || h+l == 0 {
			return 0, bad
		}
		return uint32(h<<16 | l), nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return 0, bad
	}
	return uint32(n), nil
}

// secret is the converted form of a Secret: its keys. Values are never put in a message.
type secret map[string][]byte

func (c *checker) secret(s *corev1.Secret) secret {
	out := make(secret, len(s.Data)+len(s.StringData))
	maps.Copy(out, s.Data)
	for k, v := range s.StringData { // takes the place of data, as in Kubernetes
		out[k] = []byte(v)
	}
	return out
}
