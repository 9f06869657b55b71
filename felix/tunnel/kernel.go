package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// kernel is the seam: rtnetlink, ethtool and sysctls, or the tests' fake. Its methods are
// called by one goroutine.
type kernel interface {
	// link reads a link by name; nil: there is none.
	link(name string) (*linkState, error)
	addrs(index int) (map[netip.Prefix]string, error)
	peers(index int) (map[mac]fdbEntry, map[netip.Addr]neighEntry, error)
	// sysctl is empty when there is none of the name.
	sysctl(name string) string
	do(o *op) error
	close()
}

// answerTime bounds the wait for an answer of the kernel, which comes at once.
const answerTime = 10 * time.Second

// rtnetlink is the kernel of the network namespace of the thread that opened it.
type rtnetlink struct {
	h   *netlink.Handle
	tx  ethtool
	sys string
}

func openRtnetlink(procSys string) (kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(answerTime); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	tx, err := openEthtool()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &rtnetlink{h: h, tx: tx, sys: procSys}, nil
}

func (r *rtnetlink) close() {
	r.h.Close()
	r.tx.close()
}

// retried repeats a dump that the kernel says was interrupted by a change (EINTR).
func retried[T any](dump func() (T, error)) (out T, err error) {
	for range 10 {
		if out, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

func (r *rtnetlink) link(name string) (*linkState, error) {
	l, err := retried(func() (netlink.Link, error) { return r.h.LinkByName(name) })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read link: %w", err)
	}
	s := toLinkState(l)
	if s.kind == "vxlan" {
		if s.offload, err = r.tx.checksum(name); errors.Is(err, unix.ENODEV) {
			return nil, nil // gone meanwhile; a notification comes
		} else if err != nil {
			return nil, fmt.Errorf("read transmit checksum offload: %w", err)
		}
	}
	return s, nil
}

func toLinkState(l netlink.Link) *linkState {
	at := l.Attrs()
	s := &linkState{index: at.Index, kind: l.Type(), alias: at.Alias, mtu: at.MTU, up: at.Flags&net.FlagUp != 0}
	if len(at.HardwareAddr) == len(s.mac) {
		s.mac = mac(at.HardwareAddr)
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		s.vxlan = vxlan{vni: v.VxlanId, port: v.Port, local: local, odd: oddities(v)}
	}
	return s
}

// oddities names the settings of a VXLAN device that ours never has and that change what
// it does with a packet.
func oddities(v *netlink.Vxlan) string {
	var out []string
	for _, o := range []struct {
		name string
		is   bool
	}{
		{"learning", v.Learning}, {"external", v.FlowBased}, {"gbp", v.GBP}, {"proxy", v.Proxy}, {"rsc", v.RSC},
		{"l2miss", v.L2miss}, {"l3miss", v.L3miss}, {"a group", len(v.Group) > 0}, {"a device of its own", v.VtepDevIndex != 0},
		{"a limit", v.Limit != 0}, {"ttl", v.TTL != 0}, {"tos", v.TOS != 0}, {"no UDP checksums", !v.UDPCSum || v.UDP6ZeroCSumTx},
	} {
		if o.is {
			out = append(out, o.name)
		}
	}
	return strings.Join(out, ", ")
}

func (r *rtnetlink) addrs(index int) (map[netip.Prefix]string, error) {
	at := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	list, err := retried(func() ([]netlink.Addr, error) { return r.h.AddrList(at, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[netip.Prefix]string{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.Is6() && ip.IsLinkLocalUnicast() { // the kernel's own
			continue
		}
		bits, _ := a.Mask.Size()
		name := a.Label
		if !strings.Contains(name, ":") {
			name = "" // the link's name, as the kernel labels what nobody does
		}
		out[netip.PrefixFrom(ip, bits)] = name
	}
	return out, nil
}

func (r *rtnetlink) sysctl(name string) string {
	b, err := os.ReadFile(filepath.Join(r.sys, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (r *rtnetlink) setSysctl(name, value string) error {
	old := r.sysctl(name)
	if err := os.WriteFile(filepath.Join(r.sys, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("was %q; is %s writable in this container, and IPv6 on if it is one of its?: %w", old, r.sys, err)
	}
	return nil
}

func (r *rtnetlink) do(o *op) error {
	at := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: o.kind.Device(), Index: o.index}}
	switch o.verb {
	case linkAdd:
		return r.addLink(o)
	case linkDel:
		return r.h.LinkDel(at)
	case linkAlias:
		return r.h.LinkSetAlias(at, o.value)
	case linkMTU:
		return r.h.LinkSetMTU(at, o.mtu)
	case linkMAC:
		return r.h.LinkSetHardwareAddr(at, o.mac[:])
	case linkUp:
		return r.h.LinkSetUp(at)
	case linkDown:
		return r.h.LinkSetDown(at)
	case offload:
		return r.tx.setChecksum(o.kind.Device(), o.on)
	case sysctl:
		return r.setSysctl(o.name, o.value)
	case addrAdd:
		return r.h.AddrAdd(at, toAddr(o))
	case addrDel:
		return r.h.AddrDel(at, toAddr(o))
	case fdbSet, fdbDel, neighSet, neighDel:
		return r.neigh(o)
	}
	return fmt.Errorf("unknown op %d", o.verb)
}

// addLink makes a link. Where the ipip module was not loaded, the kernel loads it on this
// very request, even for a container that may not load modules itself, and the module
// brings tunl0 along: that it exists then is what was wanted.
func (r *rtnetlink) addLink(o *op) error {
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = o.kind.Device(), o.mtu
	if o.kind == model.TunnelIPIP {
		err := r.h.LinkAdd(&netlink.Iptun{LinkAttrs: at})
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
	at.HardwareAddr = o.mac[:]
	return r.h.LinkAdd(&netlink.Vxlan{LinkAttrs: at, VxlanId: o.vxlan.vni, Port: o.vxlan.port, SrcAddr: o.vxlan.local.AsSlice(), UDPCSum: true})
}

func toAddr(o *op) *netlink.Addr {
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: o.prefix.Addr().AsSlice(), Mask: net.CIDRMask(o.prefix.Bits(), o.prefix.Addr().BitLen())},
		Label: o.label,
	}
	if o.prefix.Addr().Is6() && o.verb == addrAdd {
		a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	return a
}

// harmless reports whether err says that what o asks for is so already.
func (o *op) harmless(err error) bool {
	switch o.verb {
	case addrAdd:
		return errors.Is(err, unix.EEXIST)
	case linkDel:
		return errors.Is(err, unix.ENODEV)
	case addrDel:
		return errors.Is(err, unix.EADDRNOTAVAIL)
	case fdbDel, neighDel:
		return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
	}
	return false
}

// lostLink reports whether err may mean that the link is gone, or that another was made
// meanwhile, so that a second look is worth it.
func (o *op) lostLink(err error) bool {
	switch o.verb {
	case linkAdd:
		return errors.Is(err, unix.EEXIST)
	case sysctl:
		return errors.Is(err, os.ErrNotExist) && o.kind.Is4() // every link has those of IPv4
	}
	return errors.Is(err, unix.ENODEV)
}

// failed is err with the object and, where it is known, what would be right.
func (o *op) failed(err error) error {
	dev, hint := o.kind.Device(), ""
	switch {
	case o.verb == linkAdd && errors.Is(err, unix.EOPNOTSUPP):
		k := linkKind(o.kind)
		hint = fmt.Sprintf("this kernel makes no %s devices: load its module on the node (modprobe %s, and %s in /etc/modules-load.d), or choose another mode for the pools", k, k, k)
	case o.verb == linkAdd && o.kind != model.TunnelIPIP && errors.Is(err, unix.EEXIST):
		hint = fmt.Sprintf("another device has VNI %d and port %d (ip -d link show type vxlan): remove it, or choose another vxlanVNI or vxlanPort in FelixConfiguration", o.vxlan.vni, o.vxlan.port)
	case o.verb == linkUp && errors.Is(err, unix.EADDRINUSE):
		hint = "another program has the UDP port (ss -ulnp): end it, or choose another vxlanPort in FelixConfiguration"
	}
	if o.peer != "" {
		dev += ": peer " + o.peer
	}
	if hint != "" {
		return fmt.Errorf("%s: %s: %w", dev, hint, err)
	}
	return fmt.Errorf("%s: %s: %w", dev, o, err)
}
