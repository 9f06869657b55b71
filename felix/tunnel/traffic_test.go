package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// pair is two namespaces with a veth between them, which carries the underlay.
type pair [2]*netns

// podAddrs are addresses that only the tunnel leads to.
var podAddrs = map[model.Tunnel][2]string{
	model.TunnelIPIP:   {"10.245.1.1", "10.245.2.1"},
	model.TunnelVXLAN4: {"10.245.1.1", "10.245.2.1"},
	model.TunnelVXLAN6: {"fd00:c:1::1", "fd00:c:2::1"},
}

func newPair(t *testing.T) (p pair) {
	t.Helper()
	p[0], p[1] = newNetNS(t), newNetNS(t)
	p[0].ip("link add up0 type veth peer name up0 netns " + p[1].name)
	for i, n := range p {
		n.ip(fmt.Sprintf("addr add 10.0.0.%d/24 dev up0", i+1))
		n.ip(fmt.Sprintf("addr add fd00:a::%d/64 dev up0 nodad", i+1))
		n.ip("link set up0 up")
	}
	return p
}

// tunnelBetween makes the devices of one kind on both sides, as the agents would, and the
// routes to the pod addresses as felix/route would.
func (p pair) tunnelBetween(t *testing.T, k model.Tunnel) {
	t.Helper()
	for i, n := range p {
		me, other := i+1, 2-i
		d := n.devices(discard)
		startIn(t, n, d)
		dev := deviceOf(k, me, other)
		d.Set([]model.TunnelDevice{dev})
		if err := wait(t, d); err != nil {
			t.Fatal(err)
		}
		family, bits := "-4", 32
		if k == model.TunnelVXLAN6 {
			family, bits = "-6", 128
		}
		via := peerOf(k, other).Addr
		if k == model.TunnelIPIP {
			via = peerOf(k, other).Underlay
		}
		n.ip(fmt.Sprintf("%s addr add %s/%d dev lo", family, podAddrs[k][i], bits))
		n.ip(fmt.Sprintf("%s route add %s/%d via %s dev %s onlink src %s", family, podAddrs[k][1-i], bits, via, k.Device(), podAddrs[k][i]))
	}
}

// capture collects the frames of up0 from now on.
func (n *netns) capture() (fd int) {
	n.t.Helper()
	n.run(func() {
		link, err := net.InterfaceByName("up0")
		if err != nil {
			n.t.Error(err)
			return
		}
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			n.t.Error(err)
			return
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func frames(fd int) (out [][]byte) {
	for {
		b := make([]byte, 65536)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return out
		}
		out = append(out, b[:n])
	}
}

// packet is what matters of an IP packet.
type packet struct {
	src, dst netip.Addr
	proto    byte
	payload  []byte
}

// readIP reads an IP packet without options or extension headers.
func readIP(b []byte) (p packet, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.src, _ = netip.AddrFromSlice(b[12:16])
		p.dst, _ = netip.AddrFromSlice(b[16:20])
		p.proto, p.payload = b[9], b[int(b[0]&15)*4:]
		return p, true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.src, _ = netip.AddrFromSlice(b[8:24])
		p.dst, _ = netip.AddrFromSlice(b[24:40])
		p.proto, p.payload = b[6], b[40:]
		return p, true
	}
	return p, false
}

// describe writes a frame of the underlay, with what is inside it.
func describe(frame []byte) string {
	outer, ok := readIP(frame[14:])
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%s > %s", outer.src, outer.dst)
	inner := outer.payload
	switch {
	case outer.proto == unix.IPPROTO_IPIP:
		text += " ipip"
	case outer.proto == unix.IPPROTO_UDP && binary.BigEndian.Uint16(outer.payload[2:]) == 4789:
		vni := binary.BigEndian.Uint32(outer.payload[12:]) >> 8
		text += fmt.Sprintf(" vxlan %d %s > %s", vni, net.HardwareAddr(outer.payload[22:28]), net.HardwareAddr(outer.payload[16:22]))
		if typ := binary.BigEndian.Uint16(outer.payload[28:]); typ != unix.ETH_P_IP && typ != unix.ETH_P_IPV6 {
			return fmt.Sprintf("%s type %04x", text, typ)
		}
		inner = outer.payload[30:]
	default:
		return text + fmt.Sprintf(" proto %d", outer.proto)
	}
	if p, ok := readIP(inner); ok {
		text += fmt.Sprintf(": %s > %s proto %d", p.src, p.dst, p.proto)
	}
	return text
}

// TestTraffic sends datagrams between addresses that only the tunnel connects, and looks at
// the frames in between: everything is encapsulated, and nobody resolves or discovers.
func TestTraffic(t *testing.T) {
	t.Parallel()
	for k := range model.Tunnel(kinds) {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			if k == model.TunnelIPIP && !p[0].hasIPIP() {
				d := p[0].devices(discard)
				startIn(t, p[0], d)
				d.Set([]model.TunnelDevice{deviceOf(model.TunnelIPIP, 1)})
				if err := wait(t, d); err == nil || !strings.Contains(err.Error(), "modprobe ipip") {
					t.Fatalf("this kernel has no ipip, but Wait says %v", err)
				}
				t.Log("CAUSEWAY: this kernel has no ipip; its error is checked")
				return
			}
			p.tunnelBetween(t, k)
			wire := p[0].capture()
			from, to := podAddrs[k][0], podAddrs[k][1]

			var server, client net.PacketConn
			p[1].run(func() { server = listen(t, to) })
			p[0].run(func() { client = listen(t, from) })
			if t.Failed() {
				return
			}
			defer server.Close()
			defer client.Close()
			go echo(server)
			payload := []byte(strings.Repeat("causeway ", 130)) // 1170 bytes: fits every MTU
			got := make([]byte, 2000)
			for i := range 3 {
				if _, err := client.WriteTo(payload, server.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				if err := client.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				n, peer, err := client.ReadFrom(got)
				if err != nil || string(got[:n]) != string(payload) {
					t.Fatalf("datagram %d: %d bytes from %v: %v\n%s\n%s", i, n, peer, err, p[0].ip("-s link show "+k.Device()), p[1].ip("-s link show "+k.Device()))
				}
			}
			p.check(t, k, frames(wire))
		})
	}
}

// check looks for the datagrams, and for what must not be there.
func (p pair) check(t *testing.T, k model.Tunnel, seen [][]byte) {
	t.Helper()
	from, to := podAddrs[k][0], podAddrs[k][1]
	u0, u1 := peerOf(k, 1).Underlay, peerOf(k, 2).Underlay
	there, back := fmt.Sprintf("%s > %s", u0, u1), fmt.Sprintf("%s > %s", u1, u0)
	if k == model.TunnelIPIP {
		there, back = there+" ipip", back+" ipip"
	} else {
		m0, m1 := nodeMAC("node1", k), nodeMAC("node2", k)
		there += fmt.Sprintf(" vxlan 4096 %s > %s", m0, m1)
		back += fmt.Sprintf(" vxlan 4096 %s > %s", m1, m0)
	}
	there += fmt.Sprintf(": %s > %s proto 17", from, to)
	back += fmt.Sprintf(": %s > %s proto 17", to, from)
	count := map[string]int{}
	for _, f := range seen {
		text := describe(f)
		count[text]++
		switch {
		case text == there, text == back:
		case strings.HasPrefix(text, from), strings.HasPrefix(text, to):
			t.Errorf("not encapsulated: %s", text)
		case strings.Contains(text, "vxlan") || strings.Contains(text, "ipip"):
			t.Errorf("nobody asked for this: %s", text)
		}
	}
	if count[there] != 3 || count[back] != 3 {
		t.Errorf("want 3 times each\n%s\n%s\nseen %v", there, back, count)
	}
}

// listen opens a UDP socket in the calling thread's namespace.
func listen(t *testing.T, addr string) net.PacketConn {
	c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "7007"))
	if err != nil {
		t.Error(err)
	}
	return c
}

func echo(c net.PacketConn) {
	b := make([]byte, 2000)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if _, err := c.WriteTo(b[:n], from); err != nil {
			return
		}
	}
}
