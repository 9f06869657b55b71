package policy

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// wire sends frames from a pod's eth0, as they are.
type wire struct {
	fd      int
	mac     net.HardwareAddr // the pod's
	gateway net.HardwareAddr
	index   int
}

// openWire opens it until the test ends.
func openWire(t *testing.T, p *lab.Pod) *wire {
	t.Helper()
	w := &wire{fd: -1}
	err := p.Do(func() error {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.mac, w.index = l.HardwareAddr, l.Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	out, err := p.Exec(scenario.Context(t, time.Minute), "ip", "-j", "neigh", "show", "169.254.1.1", "dev", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	var ns []struct {
		MAC string `json:"lladdr"`
	}
	if err := json.Unmarshal([]byte(out), &ns); err != nil || len(ns) != 1 {
		t.Fatalf("the gateway's neighbour entry of %s: %v: %s", p, err, out)
	}
	if w.gateway, err = net.ParseMAC(ns[0].MAC); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) send(t *testing.T, to net.HardwareAddr, ethertype uint16, payload []byte) {
	t.Helper()
	frame := binary.BigEndian.AppendUint16(append(slices.Clone(to), w.mac...), ethertype)
	if err := unix.Sendto(w.fd, append(frame, payload...), 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}); err != nil {
		t.Fatal(err)
	}
}

// datagram sends a UDP datagram with any source.
func (w *wire) datagram(t *testing.T, src netip.Addr, to netip.AddrPort) {
	t.Helper()
	udp := binary.BigEndian.AppendUint16(nil, 4000)
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = append(udp, 0, 12, 0, 0, 'h', 'a', 'i', 'l')
	ethertype, packet := uint16(unix.ETH_P_IP), []byte(nil)
	if src.Is4() {
		binary.BigEndian.PutUint16(udp[6:], transportSum(src, to.Addr(), unix.IPPROTO_UDP, udp))
		packet = []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}
		packet = append(append(packet, src.AsSlice()...), to.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(packet[10:], checksum(packet))
	} else {
		ethertype = unix.ETH_P_IPV6
		binary.BigEndian.PutUint16(udp[6:], transportSum(src, to.Addr(), unix.IPPROTO_UDP, udp))
		packet = ipv6Header(src, to.Addr(), unix.IPPROTO_UDP, 64, len(udp))
	}
	w.send(t, w.gateway, ethertype, append(packet, udp...))
}

func ipv6Header(src, dst netip.Addr, proto, hops byte, length int) []byte {
	return append(append([]byte{0x60, 0, 0, 0, 0, byte(length), proto, hops}, src.AsSlice()...), dst.AsSlice()...)
}

// arp says that an address is at the pod's link: as an answer, and as a question of the address.
func (w *wire) arp(t *testing.T, claimed, asked netip.Addr) {
	t.Helper()
	for _, operation := range []byte{1, 2} { // request, reply
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, w.mac...)
		b = append(append(append(b, claimed.AsSlice()...), w.gateway...), asked.AsSlice()...)
		w.send(t, w.gateway, unix.ETH_P_ARP, b)
		w.send(t, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, unix.ETH_P_ARP, b)
	}
}

// ndp says the same of an IPv6 address, by an unsolicited advertisement that overrides, and by a
// solicitation of the address.
func (w *wire) ndp(t *testing.T, claimed, asked netip.Addr) {
	t.Helper()
	advert := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, claimed.AsSlice()...)
	advert = append(append(advert, 2, 1), w.mac...) // target link-layer address
	solicit := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, asked.AsSlice()...)
	solicit = append(append(solicit, 1, 1), w.mac...) // source link-layer address
	for _, m := range []struct {
		mac  net.HardwareAddr
		dst  netip.Addr
		body []byte
	}{
		{net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1"), advert},
		{w.gateway, asked, advert},
		{w.gateway, asked, solicit},
	} {
		body := slices.Clone(m.body)
		binary.BigEndian.PutUint16(body[2:], transportSum(claimed, m.dst, unix.IPPROTO_ICMPV6, body))
		w.send(t, m.mac, unix.ETH_P_IPV6, append(ipv6Header(claimed, m.dst, unix.IPPROTO_ICMPV6, 255, len(body)), body...))
	}
}

// transportSum is the checksum of what is in an IP packet (RFC 768, RFC 8200 section 8.1).
func transportSum(src, dst netip.Addr, proto byte, body []byte) uint16 {
	return checksum(append(append(append(src.AsSlice(), dst.AsSlice()...), 0, proto, 0, byte(len(body))), body...))
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Ports of what is sent from a pod's own address, and from others'.
const (
	ownPort   = hailPort + 3
	spoofPort = hailPort + 4
)

// spoofed has a pod send from the addresses of those who are allowed, of others and of the host,
// and claim them by ARP and NDP.
func spoofed(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	f.put(t, f.sets(), onlyGood("first", 100))
	tp, own, remote := openTap(t, f.target), openTap(t, f.bad1), openTap(t, f.good2)
	liar, honest := openWire(t, f.bad1), openWire(t, f.good1)
	heard := func(tp *probe.Tap, port uint16) int {
		return tp.Of(func(k probe.Kind) bool { return k.Port == port }).Count
	}
	for _, v6 := range families {
		outside := netip.MustParseAddr("203.0.113.7")
		if v6 {
			outside = netip.MustParseAddr("2001:db8::7")
		}
		target, lies := f.target.Address(v6), []netip.Addr{f.good1.Address(v6), f.good2.Address(v6), ofFamily(nodeAddrs(f.n1), v6), ofFamily(nodeAddrs(f.n2), v6), outside}
		// By ARP and NDP first: what the host learned there could help what comes after.
		for _, a := range append([]netip.Addr{target}, lies...) {
			if gateway := netip.MustParseAddr("169.254.1.1"); v6 {
				liar.ndp(t, a, ofFamily(nodeAddrs(f.n1), v6))
				liar.ndp(t, a, target)
			} else {
				liar.arp(t, a, gateway)
				liar.arp(t, a, a)
			}
		}
		for _, a := range lies {
			for _, to := range []netip.Addr{target, f.good2.Address(v6)} {
				if a != to {
					liar.datagram(t, a, netip.AddrPortFrom(to, spoofPort))
				}
			}
		}
		// What is sent later arrives: the same, from the pod's own address.
		for _, tp := range []*probe.Tap{tp, remote} {
			before := heard(tp, ownPort)
			scenario.Eventually(t, 5*time.Second, "a pod's own packets arrive", func() error {
				honest.datagram(t, f.good1.Address(v6), netip.AddrPortFrom(target, ownPort))
				honest.datagram(t, f.good1.Address(v6), netip.AddrPortFrom(f.good2.Address(v6), ownPort))
				if heard(tp, ownPort) == before {
					return errors.New("not yet")
				}
				return nil
			})
		}
		for name, tp := range map[string]*probe.Tap{"the target": tp, "a pod of another node": remote} {
			if n := heard(tp, spoofPort); n > 0 {
				t.Errorf("%d packets with another's address arrived at %s", n, name)
			}
		}
		// Nobody's packets go to the liar.
		if n := own.Of(func(k probe.Kind) bool { return k.Dst == target }).Count; n > 0 {
			t.Errorf("%d packets to %s went to %s", n, target, f.bad1)
		}
	}
	// And the host learned nothing there.
	out, err := f.n1.Exec(ctx, "ip", "-j", "neigh", "show")
	if err != nil {
		t.Fatal(err)
	}
	var ns []struct {
		Addr  netip.Addr `json:"dst"`
		MAC   string     `json:"lladdr"`
		State []string   `json:"state"`
	}
	if err := json.Unmarshal([]byte(out), &ns); err != nil {
		t.Fatal(err)
	}
	known := 0
	for _, n := range ns {
		if n.MAC != liar.mac.String() {
			continue
		}
		known++
		if !slices.Contains(addrs(f.bad1), n.Addr) && !n.Addr.IsLinkLocalUnicast() {
			t.Errorf("n1 has the neighbour %s %v at the link of %s", n.Addr, n.State, f.bad1)
		}
	}
	t.Logf("n1 knows %d neighbours at the liar's link, its own addresses", known)
	f.put(t)
}
