// Package veth owns a pod's link: the pair of interfaces, and on them the addresses, the
// routes and neighbours inside the pod, and the settings of the host's end. The host's
// route to the pod belongs to felix/route.
//
// The pair is made with its pod end already in the pod's namespace and under its final
// name: moving or renaming an interface afterwards would wait for an RCU grace period.
// Threads enter the pod's namespace only to open a netlink socket and to write sysctls.
package veth

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What every pod sees as its next hop. HostMAC is the hardware address of every host end,
// and GatewayIPv6 is the link-local address that it makes (RFC 4291, appendix A).
var (
	GatewayIPv4 = netip.MustParseAddr("169.254.1.1")
	GatewayIPv6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")
	HostMAC     = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// MinMTU is the least MTU of a link, in bytes (RFC 791, section 3.2); MinMTUIPv6 with an
// IPv6 address (RFC 8200, section 5). MaxMTU is the kernel's for veth (ETH_MAX_MTU).
const (
	MinMTU     = 68
	MinMTUIPv6 = 1280
	MaxMTU     = 65535
)

// Spec says what a pod's link should be.
type Spec struct {
	HostName  string           // required: the host end's name
	PodName   string           // required: the pod end's name, CNI_IFNAME
	NetNS     *os.File         // required: the pod's network namespace
	Owner     Owner            // required: who the link is for
	Addresses []netip.Addr     // required: at most one of each family
	MTU       int              // required: of both ends, bytes
	MAC       net.HardwareAddr // of the pod end; nil: the one it has, or a random one
}

func (s *Spec) hasIPv6() bool { return slices.ContainsFunc(s.Addresses, netip.Addr.Is6) }

// Link is a pod's link as it stands in the kernel.
type Link struct {
	MAC     net.HardwareAddr // of the pod end
	Routes  []Route          // the default routes that lead through the link
	Created bool             // false: it was there and has been mended
}

// Route is a route of the pod through its link.
type Route struct {
	Dst netip.Prefix
	GW  netip.Addr
}

// Wirer makes, mends, checks and removes pods' links in the network namespace of this
// process. Its methods may be called from many goroutines.
type Wirer struct {
	host  *os.File // this process's network namespace
	sys   string   // where sysctls are: "/proc/sys", or where a container has the host's
	ipv6  bool     // the kernel has IPv6
	names keyed    // one change at a time for each host end's name
}

// New makes a Wirer of the calling thread's network namespace. procSys is the folder of the
// sysctls, "/proc/sys" or a place where that is mounted writable: whichever it is, net below
// it shows the network namespace of the thread that looks (proc(5)).
func New(procSys string) (*Wirer, error) {
	if _, err := os.Stat(filepath.Join(procSys, "net/ipv4")); err != nil {
		return nil, fmt.Errorf("sysctls: %w: is /proc/sys of the host mounted there?", err)
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	_, err = os.Stat(filepath.Join(procSys, "net/ipv6"))
	return &Wirer{host: host, sys: procSys, ipv6: err == nil}, nil
}

// Close frees the descriptor of the host's network namespace.
func (w *Wirer) Close() error { return w.host.Close() }

// Wire makes the pod's link as s says. A link that is there already, for the same owner
// and between the same namespaces, is mended in place; any other interface of the host's
// name is what a dead pod left behind, and is replaced. An interface of the pod's name that
// belongs to somebody else is an error.
func (w *Wirer) Wire(s Spec) (Link, error) {
	if err := w.validate(&s); err != nil {
		return Link{}, err
	}
	defer w.names.lock(s.HostName)()
	host, err := openSocket()
	if err != nil {
		return Link{}, fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()

	var l Link
	hostEnd, err := w.create(host, &s)
	if errors.Is(err, unix.EEXIST) {
		if hostEnd, err = w.reuse(host, &s); hostEnd == nil && err == nil {
			hostEnd, err = w.create(host, &s)
			l.Created = true
		}
	} else {
		l.Created = true
	}
	if err != nil {
		return Link{}, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	if err = w.setHost(host, &s, hostEnd, l.Created); err != nil {
		err = fmt.Errorf("link %s: %w", s.HostName, err)
	} else if err = w.setPod(&s, hostEnd, &l); err != nil {
		err = fmt.Errorf("link %s in the pod: %w", s.PodName, err)
	}
	if err != nil && l.Created {
		if derr := host.LinkDel(hostEnd); derr != nil && !gone(derr) {
			err = errors.Join(err, fmt.Errorf("link %s: removing it again: %w", s.HostName, derr))
		}
	}
	return l, err
}

// validate refuses what the kernel would refuse half way or accept wrongly.
func (w *Wirer) validate(s *Spec) error {
	if err := w.CheckNetNS(s.NetNS); err != nil {
		return err
	}
	if len(s.Owner.String()) > maxAlias {
		return fmt.Errorf("link %s: its owner %q has more than %d bytes", s.HostName, s.Owner, maxAlias)
	}
	low := MinMTU
	if s.hasIPv6() {
		low = MinMTUIPv6
		if !w.ipv6 {
			return fmt.Errorf("link %s: the pod has an IPv6 address and this kernel has IPv6 switched off", s.HostName)
		}
	}
	if s.MTU < low || s.MTU > MaxMTU {
		return fmt.Errorf("link %s: MTU %d: want %d to %d", s.HostName, s.MTU, low, MaxMTU)
	}
	return nil
}

// create adds the pair. EEXIST means that one of the two names is taken.
func (w *Wirer) create(host *socket, s *Spec) (netlink.Link, error) {
	mac := s.MAC
	if mac == nil {
		mac = make(net.HardwareAddr, 6)
		rand.Read(mac)
		mac[0] = mac[0]&^1 | 2 // unicast, locally administered (IEEE 802)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.HostName, s.MTU, HostMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = s.PodName, mac, netlink.NsFd(s.NetNS.Fd())
	if err := host.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("creating the pair: %w", err)
	}
	return pair, nil
}

// reuse finds out why a pair could not be created. It returns the host end when the link
// of s exists, and nil when whatever had its name has been removed.
func (w *Wirer) reuse(host *socket, s *Spec) (netlink.Link, error) {
	pod, err := w.podSocket(s.NetNS)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	podEnd, err := linkByName(pod, s.PodName)
	if err != nil {
		return nil, err
	}
	hostEnd, err := linkByName(host, s.HostName)
	if err != nil {
		return nil, err
	}
	switch {
	case hostEnd != nil && podEnd != nil && hostEnd.Attrs().Alias == s.Owner.String() && arePair(hostEnd, podEnd):
		return hostEnd, nil
	case hostEnd != nil:
		if err := host.LinkDel(hostEnd); err != nil && !gone(err) {
			return nil, fmt.Errorf("removing what stands in its place: %w", err)
		}
		if podEnd == nil || arePair(hostEnd, podEnd) {
			return nil, nil
		}
	}
	if podEnd != nil {
		return nil, fmt.Errorf("the pod has an interface %s already, which Causeway did not make for it: %w", s.PodName, unix.EEXIST)
	}
	return nil, nil
}

// arePair reports whether the two are ends of one pair: each names the other's index.
func arePair(host, pod netlink.Link) bool {
	return host.Type() == "veth" && pod.Type() == "veth" &&
		host.Attrs().ParentIndex == pod.Attrs().Index && pod.Attrs().ParentIndex == host.Attrs().Index
}

// Remove removes the host end of that name, and with it the pod's, if it belongs to owner;
// a link of the same name that was made since for another container stays. A link without
// a mark is one whose making was cut short, or another plugin's for the same pod. It
// returns when the kernel has removed it.
func (w *Wirer) Remove(hostName string, owner Owner) error {
	defer w.names.lock(hostName)()
	host, err := openSocket()
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	link, err := linkByName(host, hostName)
	if err != nil {
		return fmt.Errorf("link %s: %w", hostName, err)
	}
	if link == nil || link.Type() != "veth" || (link.Attrs().Alias != "" && link.Attrs().Alias != owner.String()) {
		return nil
	}
	if err := host.LinkDel(link); err != nil && !gone(err) {
		return fmt.Errorf("link %s: removing it: %w", hostName, err)
	}
	return nil
}

// Owned lists the host ends that Causeway made, by the mark they bear in the kernel.
func (w *Wirer) Owned() (map[string]Owner, error) {
	host, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	links, err := dump(host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	owned := make(map[string]Owner)
	for _, l := range links {
		if o, ok := parseOwner(l.Attrs().Alias); ok && strings.HasPrefix(l.Attrs().Name, hostPrefix) {
			owned[l.Attrs().Name] = o
		}
	}
	return owned, nil
}

// linkByName returns nil when there is no such link.
func linkByName(s *socket, name string) (netlink.Link, error) {
	l, err := s.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	return l, err
}

// gone says that the object of a request is not there any more.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) }
