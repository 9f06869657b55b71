package lab

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// wire creates bridges and links. Both ends of a veth pair are made where they belong, so
// that no link ever appears in the root namespace and names need not be unique there.
func (l *Lab) wire() error {
	handles := map[string]*netlink.Handle{}
	spaces := map[string]netns.NsHandle{}
	defer func() {
		for _, h := range handles {
			h.Close()
		}
		for _, ns := range spaces {
			ns.Close()
		}
	}()
	for _, n := range l.nodes {
		name := n.Spec.Name
		ns, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", n.init.PID))
		if err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		spaces[name] = ns
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		handles[name] = h
		if err := upByName(h, "lo"); err != nil {
			return fmt.Errorf("node %s: lo: %w", name, err)
		}
		if n.Spec.Role == RoleBridge {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			// No snooping: without a querier it only costs neighbour discovery.
			snooping := false
			br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
			if err := h.LinkAdd(br); err != nil {
				return fmt.Errorf("node %s: bridge: %w", name, err)
			}
			if err := upByName(h, name); err != nil {
				return fmt.Errorf("node %s: bridge: %w", name, err)
			}
		}
	}
	for _, link := range l.Topology.Links {
		if err := l.addLink(link, handles, spaces); err != nil {
			return fmt.Errorf("link %s - %s: %w", link.A, link.B, err)
		}
		l.step("link %s", link.A)
	}
	return nil
}

func (l *Lab) addLink(link Link, handles map[string]*netlink.Handle, spaces map[string]netns.NsHandle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = link.A.Interface, link.MTU, link.A.MAC
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerTxQLen:       -1,
		PeerName:         link.B.Interface,
		PeerHardwareAddr: link.B.MAC,
		PeerMTU:          uint32(link.MTU),
		PeerNamespace:    netlink.NsFd(int(spaces[link.B.Node])),
	}
	if err := handles[link.A.Node].LinkAdd(veth); err != nil {
		return err
	}
	for _, e := range []Endpoint{link.A, link.B} {
		h := handles[e.Node]
		if l.Topology.Node(e.Node).Role == RoleBridge {
			br, err := h.LinkByName(e.Node)
			if err != nil {
				return fmt.Errorf("bridge %s: %w", e.Node, err)
			}
			port, err := h.LinkByName(e.Interface)
			if err == nil {
				err = h.LinkSetMaster(port, br)
			}
			if err != nil {
				return fmt.Errorf("port %s: %w", e, err)
			}
		}
		if err := upByName(h, e.Interface); err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
	}
	return nil
}

func upByName(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(link)
}
