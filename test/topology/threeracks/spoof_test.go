package threeracks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// datagram is an IP packet with a UDP datagram in it, from port 4000. Its checksums are right.
func datagram(src netip.Addr, to netip.AddrPort) []byte {
	payload := []byte("made up")
	udp := binary.BigEndian.AppendUint16(nil, 4000)
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(binary.BigEndian.AppendUint16(udp, 0), payload...)
	pseudo := append(append(src.AsSlice(), to.Addr().AsSlice()...), 0, unix.IPPROTO_UDP, 0, byte(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))
	var ip []byte
	if src.Is4() {
		ip = []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}
		ip = append(append(ip, src.AsSlice()...), to.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		ip = append(append([]byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}, src.AsSlice()...), to.Addr().AsSlice()...)
	}
	return append(ip, udp...)
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

// sendEncapsulated sends an IP packet from s to a node within a packet of a tunnel.
func sendEncapsulated(s traffic.Space, tun model.Tunnel, mac net.HardwareAddr, node netip.Addr, inner []byte) error {
	return s.Do(func() error {
		if tun == model.TunnelIPIP {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IPIP)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, inner, 0, &unix.SockaddrInet4{Addr: node.As4()})
		}
		ethertype := uint16(unix.ETH_P_IP)
		if !tun.Is4() {
			ethertype = unix.ETH_P_IPV6
		}
		frame := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, model.DefaultVXLANVNI<<8)
		frame = append(append(frame, mac...), 0x02, 0, 0, 0, 0, 1)
		frame = append(binary.BigEndian.AppendUint16(frame, ethertype), inner...)
		c, err := net.Dial("udp", netip.AddrPortFrom(node, model.DefaultVXLANPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(frame)
		return err
	})
}

// spoofed sends packets that look like those of a pod of n2a, encapsulated, to a pod of
// n1a: from n2a's node they arrive; from the outside and from pods, whose packets are
// translated to their node's address on the way, they are dropped, by the guard.
func spoofed(t *testing.T, f *fabric) {
	for _, m := range []mode{vxlanAlways, ipipAlways} {
		if m.needsIPIP() && !f.ipip {
			t.Logf("%s is not tried: this kernel has no IPIP; it is in the machine of make test-vm", m.name)
			continue
		}
		f.manifests().Write(t, "pools.yaml", m.pools(true))
		f.settle(t, m)
		for _, tun := range m.wants() {
			f.spoof(t, tun)
		}
	}
	f.switchTo(t, vxlanCross)
}

func (f *fabric) spoof(t *testing.T, tun model.Tunnel) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	v6 := !tun.Is4()
	n1a, victim, claimed := f.Node("n1a"), f.pod("n1a"), f.pod("n2a")
	e := hear(t, victim, victim.Address(v6))
	packet := datagram(claimed.Address(v6), e.at)
	var mac net.HardwareAddr
	if tun != model.TunnelIPIP {
		err := n1a.Do(func() error {
			l, err := netlink.LinkByName(tun.Device())
			if err == nil {
				mac = l.Attrs().HardwareAddr
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	send := func(s traffic.Space) {
		t.Helper()
		if err := sendEncapsulated(s, tun, mac, addressOf(n1a, v6), packet); err != nil && !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s from %s: %v", tun, s, err)
		}
	}
	arrives := func() error {
		send(f.Node("n2a"))
		got, err := e.next(lab.Slow(500 * time.Millisecond))
		if err == nil && got != claimed.Address(v6) {
			err = fmt.Errorf("it comes from %s", got)
		}
		return err
	}
	scenario.Eventually(t, 10*time.Second, fmt.Sprintf("a node's own %s packet", tun), arrives)
	for _, c := range []struct {
		who   traffic.Space
		guard *lab.Node // who drops it
	}{
		{f.Node("outside"), n1a}, {f.pod("n2b"), f.Node("n2b")}, {f.pod("n1b"), f.Node("n1b")}, {f.pod("n1a"), n1a},
	} {
		e.drain()
		before := dropped(ctx, t, c.guard, v6)
		send(c.who)
		scenario.Eventually(t, 5*time.Second, fmt.Sprintf("the guard of %s drops %s from %s", c.guard, tun, c.who), func() error {
			if now := dropped(ctx, t, c.guard, v6); now != before+1 {
				return fmt.Errorf("it has dropped %d packets, %d before", now, before)
			}
			return nil
		})
		if from, err := e.next(20 * time.Millisecond); err == nil {
			t.Errorf("%s from %s arrived, as from %s", tun, c.who, from)
		}
		t.Logf("%s from %s: dropped by the guard of %s", tun, c.who, c.guard)
	}
	// Nothing that was dropped is on its way still: the next that comes is the node's.
	e.drain()
	scenario.Eventually(t, 10*time.Second, fmt.Sprintf("a node's own %s packet", tun), arrives)
}

// dropped is how many packets the guard of a node has dropped.
func dropped(ctx context.Context, t *testing.T, n *lab.Node, v6 bool) (sum int) {
	t.Helper()
	tool := "iptables"
	if v6 {
		tool = "ip6tables"
	}
	out, err := n.Exec(ctx, tool, "-t", "raw", "-nvxL", "cali-encap-guard")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) > 2 && words[2] == "DROP" {
			count, err := strconv.Atoi(words[0])
			if err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			sum += count
		}
	}
	return sum
}
