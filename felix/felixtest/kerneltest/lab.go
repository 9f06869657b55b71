// Package kerneltest owns the proof of a packet filter by real packets: a host in a network namespace
// of its own, the links of its workloads and its own, and a way to send packets in by any of
// them, or from the host itself, and to see which come out where they should.
//
// The other ends of all links lie in a second namespace that has no addresses: nobody there
// answers, so that each packet is the first of its connection. It takes and gives frames as
// they are.
package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/trace"
)

// Config is a Lab's shape.
type Config struct {
	Links []string     // the host's interfaces; those of workloads begin with trace.WorkloadPrefix
	Host  []netip.Addr // the host's own addresses
	// Routes say by which link an address is reached. SetRoutes changes them.
	Routes map[netip.Prefix]string
}

// Lab is a host whose packet filter is looked at.
type Lab struct {
	HostNS string // names as ip-netns(8) has them
	FarNS  string // where the other ends of the links are

	host   map[netip.Addr]bool
	links  map[string]*link
	byFar  map[int]string // index in FarNS → name
	routes map[netip.Prefix]string
	nl     *netlink.Handle
	tag    uint32

	frames   int         // AF_PACKET in FarNS
	out4     int         // raw sockets in HostNS that packets of the host are sent by
	out6     int         //
	arrivals map[int]int // raw sockets in HostNS → family
}

// link is a pair of interfaces.
type link struct {
	hostMAC, farMAC net.HardwareAddr
	index, far      int
}

var serial atomic.Int64

// New makes a Lab that lives as long as the test.
func New(t testing.TB, cfg Config) *Lab {
	t.Helper()
	n := fmt.Sprintf("%d-%d", os.Getpid(), serial.Add(1))
	l := &Lab{
		HostNS: "kt-host-" + n, FarNS: "kt-far-" + n, host: map[netip.Addr]bool{}, links: map[string]*link{},
		byFar: map[int]string{}, routes: map[netip.Prefix]string{}, arrivals: map[int]int{}, tag: 1,
	}
	for _, ns := range []string{l.HostNS, l.FarNS} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Fatalf("ip netns add %s: %v\n%s", ns, err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	t.Cleanup(l.close)
	if err := l.build(cfg); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Lab) build(cfg Config) error {
	var b strings.Builder
	b.WriteString("link set lo up\n")
	for _, a := range cfg.Host {
		l.host[a] = true
		fmt.Fprintf(&b, "address add %s dev lo\n", netip.PrefixFrom(a, a.BitLen()))
	}
	for _, name := range cfg.Links {
		// Without ARP and neighbour discovery every address of a route is there.
		fmt.Fprintf(&b, "link add %s type veth peer %s netns %s\n", name, name, l.FarNS)
		fmt.Fprintf(&b, "link set %s arp off addrgenmode none up\n", name)
	}
	settings := map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
		"net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/all/accept_dad": "0",
	}
	// Connection tracking takes every UDP-Lite packet that comes in for invalid: it reckons its
	// checksum as UDP's (udplite_error in net/netfilter/nf_conntrack_proto_udp.c).
	settings["net/netfilter/nf_conntrack_checksum"] = "0"
	err := Within(l.HostNS, func() error {
		for name, value := range settings {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return batch(b.String())
	})
	if err != nil {
		return err
	}
	var far strings.Builder
	for _, name := range cfg.Links {
		fmt.Fprintf(&far, "link set %s arp off addrgenmode none up\n", name)
	}
	if err := Within(l.FarNS, func() error { return batch(far.String()) }); err != nil {
		return err
	}
	for _, name := range cfg.Links {
		l.links[name] = &link{}
	}
	if err := Within(l.FarNS, l.openFar); err != nil {
		return err
	}
	if err := Within(l.HostNS, l.openHost); err != nil {
		return err
	}
	if err := l.usable(cfg.Host...); err != nil {
		return err
	}
	return l.SetRoutes(cfg.Routes)
}

// usable waits until the host takes packets to its addresses. An IPv6 address becomes so in a work queue of the
// kernel, which waits for whatever changes links in any namespace (addrconf_dad_work in net/ipv6/addrconf.c).
func (l *Lab) usable(addrs ...netip.Addr) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := l.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("routes of table local: %w", err)
		}
		local := map[netip.Addr]bool{}
		for _, r := range routes {
			if r.Dst != nil {
				a, _ := netip.AddrFromSlice(r.Dst.IP)
				local[a] = true
			}
		}
		i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() && !local[a] })
		if i < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("address %s is not usable after 20 s", addrs[i])
		}
	}
}

// batch runs commands of ip(8).
func batch(commands string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s\n%s", err, bytes.TrimSpace(out), commands)
	}
	return nil
}

// Within runs f on a thread in a network namespace of that name.
func Within(ns string, f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := netns.GetFromName(ns)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(home); back != nil {
		return errors.Join(err, back) // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// Within runs f in the host's network namespace.
func (l *Lab) Within(f func() error) error { return Within(l.HostNS, f) }

// Run runs a command in the host's network namespace.
func (l *Lab) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out []byte
	cmd := exec.Command(name, args...)
	if err := l.Within(func() (err error) { out, err = cmd.CombinedOutput(); return err }); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

func (l *Lab) openFar() (err error) {
	for name, k := range l.links {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		k.far, k.farMAC = i.Index, i.HardwareAddr
		l.byFar[i.Index] = name
	}
	l.frames, err = socket(unix.AF_PACKET, int(hton(unix.ETH_P_ALL)))
	return err
}

// protocols of packets that can be sent.
var protocols = []int{unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_GRE, unix.IPPROTO_ICMPV6, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE}

func (l *Lab) openHost() (err error) {
	for name, k := range l.links {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		k.index, k.hostMAC = i.Index, i.HardwareAddr
	}
	if l.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if l.out4, err = socket(unix.AF_INET, unix.IPPROTO_RAW); err != nil {
		return err
	}
	if l.out6, err = socket(unix.AF_INET6, unix.IPPROTO_RAW); err != nil {
		return err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, p := range protocols {
			if (p == unix.IPPROTO_ICMP) && family == unix.AF_INET6 || p == unix.IPPROTO_ICMPV6 && family == unix.AF_INET {
				continue
			}
			fd, err := socket(family, p)
			if err != nil {
				return fmt.Errorf("raw socket of protocol %d: %w", p, err)
			}
			l.arrivals[fd] = family
		}
	}
	return nil
}

func socket(family, protocol int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	return fd, nil
}

func hton(v uint16) uint16 { return v<<8 | v>>8 }

func (l *Lab) close() {
	for fd := range l.arrivals {
		unix.Close(fd)
	}
	for _, fd := range []int{l.frames, l.out4, l.out6} {
		if fd != 0 {
			unix.Close(fd)
		}
	}
	if l.nl != nil {
		l.nl.Close()
	}
}

// SetRoutes replaces all routes by these.
func (l *Lab) SetRoutes(routes map[netip.Prefix]string) error {
	route := func(p netip.Prefix, name string) (*netlink.Route, error) {
		k := l.links[name]
		if k == nil {
			return nil, fmt.Errorf("route %s: there is no link %q", p, name)
		}
		return &netlink.Route{LinkIndex: k.index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}, nil
	}
	for p, name := range l.routes {
		if routes[p] == name {
			continue
		}
		r, err := route(p, name)
		if err == nil {
			err = l.nl.RouteDel(r)
		}
		if err != nil {
			return fmt.Errorf("delete route %s dev %s: %w", p, name, err)
		}
		delete(l.routes, p)
	}
	for p, name := range routes {
		if l.routes[p] == name {
			continue
		}
		r, err := route(p, name)
		if err == nil {
			err = l.nl.RouteReplace(r)
		}
		if err != nil {
			return fmt.Errorf("add route %s dev %s: %w", p, name, err)
		}
		l.routes[p] = name
	}
	return nil
}

// Out is the link by which the host sends what is for an address; empty: it is the host's.
// ok is false when it has no route.
func (l *Lab) Out(a netip.Addr) (name string, ok bool) {
	if l.host[a] {
		return "", true
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, err := a.Prefix(bits); err == nil && l.routes[p] != "" {
			return l.routes[p], true
		}
	}
	return "", false
}

// Possible reports whether the packet can be sent here, and would arrive where it says if
// nobody filtered it, as the first packet of its connection.
func (l *Lab) Possible(p trace.Packet) bool {
	if p.In == "" && p.Out == "" || p.FirstDst.IsValid() || !slices.Contains(protocols, int(p.Protocol)) || p.Src == p.Dst {
		return false
	}
	if out, ok := l.Out(p.Dst); !ok || out != p.Out || out == p.In {
		return false
	}
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		if !a.IsGlobalUnicast() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240) || a.Is6() && a.As16()[0] == 0 {
			return false // the kernel forwards none of these
		}
	}
	switch p.Protocol {
	case unix.IPPROTO_ICMP: // connection tracking takes no other kind for a first packet
		if p.ICMPType != 8 || p.Src.Is6() {
			return false
		}
	case unix.IPPROTO_ICMPV6:
		if p.ICMPType != 128 || p.Src.Is4() {
			return false
		}
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE:
		if p.SrcPort == 0 || p.DstPort == 0 {
			return false // connection tracking and sockets take port 0 for nonsense
		}
	}
	if p.In == "" {
		return l.host[p.Src]
	}
	return !l.host[p.Src] && l.links[p.In] != nil
}
