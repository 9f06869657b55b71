package threeracks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// packet is one that a link carried.
type packet struct {
	encap    string // "plain", "ipip", "vxlan"
	src, dst netip.Addr
	from, to netip.Addr // of the outer header, when there is one
	size     int        // bytes, from the (outer) IP header on
	inner    int        // bytes, from the header on that has src and dst
	proto    byte       // of the inner header
}

func (p packet) String() string {
	text := fmt.Sprintf("%s > %s, protocol %d, %d bytes", p.src, p.dst, p.proto, p.inner)
	if p.encap == "plain" {
		return text
	}
	return fmt.Sprintf("%s %s > %s, %d bytes (%s)", p.encap, p.from, p.to, p.size, text)
}

// parse reads an Ethernet frame; ok is false for what is no IP packet.
func parse(frame []byte) (p packet, ok bool) {
	p, payload, ok := ipPacket(frame)
	p.encap, p.size = "plain", p.inner
	if !ok {
		return p, false
	}
	outer := p
	switch {
	case p.proto == unix.IPPROTO_IPIP:
		p, _, ok = header(payload)
		p.encap = "ipip"
	case p.proto == unix.IPPROTO_UDP && len(payload) > 8+8 && binary.BigEndian.Uint16(payload[2:]) == model.DefaultVXLANPort:
		p, _, ok = ipPacket(payload[8+8:]) // UDP, VXLAN (RFC 7348, section 5)
		p.encap = "vxlan"
	default:
		return p, true
	}
	p.from, p.to, p.size = outer.src, outer.dst, outer.inner
	return p, ok
}

func ipPacket(frame []byte) (packet, []byte, bool) {
	if len(frame) < 14 {
		return packet{}, nil, false
	}
	if t := binary.BigEndian.Uint16(frame[12:]); t != unix.ETH_P_IP && t != unix.ETH_P_IPV6 {
		return packet{}, nil, false
	}
	return header(frame[14:])
}

func header(b []byte) (p packet, payload []byte, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.src, _ = netip.AddrFromSlice(b[12:16])
		p.dst, _ = netip.AddrFromSlice(b[16:20])
		p.inner, p.proto = int(binary.BigEndian.Uint16(b[2:])), b[9]
		return p, b[min(len(b), int(b[0]&15)*4):], true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.src, _ = netip.AddrFromSlice(b[8:24])
		p.dst, _ = netip.AddrFromSlice(b[24:40])
		p.inner, p.proto = 40+int(binary.BigEndian.Uint16(b[4:])), b[6]
		return p, b[40:], true
	}
	return p, nil, false
}

// capture is a packet socket on a link, both directions.
type capture struct {
	node *lab.Node
	link string
	fd   int
}

// capture begins to take down what a link carries, until the test ends.
func (f *fabric) capture(t *testing.T, node, link string) *capture {
	t.Helper()
	c := &capture{node: f.Node(node), link: link, fd: -1}
	err := c.node.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		// Protocol 0 takes nothing in before the socket has its link.
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index})
	})
	t.Cleanup(func() {
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
	})
	if err != nil {
		t.Fatalf("capture on %s: %v", c, err)
	}
	return c
}

func (c *capture) String() string { return c.node.Name() + ":" + c.link }

// take returns the packets between two addresses, either way, since it was called last.
func (c *capture) take(t *testing.T, a, b netip.Addr) (out []packet) {
	t.Helper()
	for buf := make([]byte, 1<<16); ; {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return out
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			t.Fatalf("capture on %s: %v", c, err)
		}
		if p, ok := parse(buf[:n]); ok && (p.src == a && p.dst == b || p.src == b && p.dst == a) {
			out = append(out, p)
		}
	}
}

// seenOnTheWire lets pods ping each other and looks at each packet on the router's links:
// a's and b's node share the first rack, far is elsewhere.
func (f *fabric) seenOnTheWire(t *testing.T, m mode, a, b, far *lab.Pod) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	// What a's rack carries between the two nodes, and what it sends to the others.
	inside, uplink := f.capture(t, "r1", "eth1"), f.capture(t, "r1", "eth3")
	for _, v6 := range families {
		for _, to := range []*lab.Pod{b, far} {
			same := rackOf(a.Node()) == rackOf(to.Node())
			if !same && m.of(v6).when == "Never" {
				continue // nobody knows the way
			}
			scenario.Eventually(t, 20*time.Second, "ping", func() error { return operator.Ping(ctx, a, to.Address(v6)) })
			inside.take(t, a.Address(v6), to.Address(v6)) // what a try before may have been
			uplink.take(t, a.Address(v6), to.Address(v6))
			if err := operator.Ping(ctx, a, to.Address(v6)); err != nil {
				t.Error(err)
			}
			f.like(t, m, inside, inside.take(t, a.Address(v6), to.Address(v6)), a, to, v6)
			up := uplink.take(t, a.Address(v6), to.Address(v6))
			if same && len(up) > 0 {
				t.Errorf("%s carries packets of one rack: %v", uplink, up)
			} else if !same {
				f.like(t, m, uplink, up, a, to, v6)
			}
		}
	}
}

// like fails the test unless packets went both ways between two pods, each of them
// encapsulated as the mode says, between their nodes' addresses.
func (f *fabric) like(t *testing.T, m mode, c *capture, seen []packet, a, b *lab.Pod, v6 bool) {
	t.Helper()
	want := "plain"
	if m.through(a.Node(), b.Node(), v6) {
		want = "vxlan"
		if m.of(v6).tunnel == model.TunnelIPIP {
			want = "ipip"
		}
	}
	ways := map[netip.Addr]int{}
	for _, p := range seen {
		ways[p.src]++
		good := p.encap == want
		if want != "plain" {
			from, to := addressOf(a.Node(), v6), addressOf(b.Node(), v6)
			if p.src != a.Address(v6) {
				from, to = to, from
			}
			good = good && p.from == from && p.to == to
		}
		if !good {
			t.Errorf("%s, %s, %s and %s: %s, want it %s", m.name, c, a, b, p, want)
		}
	}
	if ways[a.Address(v6)] == 0 || ways[b.Address(v6)] == 0 {
		t.Errorf("%s, %s, %s and %s: not seen both ways: %v", m.name, c, a, b, seen)
	}
	t.Logf("%s: %s: %d packets between %s and %s, %s, as %v", m.name, c, len(seen), a, b, want, seen[:min(1, len(seen))])
}
