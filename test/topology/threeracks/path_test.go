package threeracks

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// full is how much goes over TCP, in bytes.
const full = 100 << 20

// fullPath sends the largest datagram within the rack and out of it, and 100 MB out of it.
func (f *fabric) fullPath(t *testing.T, m mode, a, b, far *lab.Pod) {
	t.Helper()
	uplink := f.capture(t, "r1", "eth3")
	for _, v6 := range families {
		for _, to := range []*lab.Pod{b, far} {
			same := rackOf(a.Node()) == rackOf(to.Node())
			if !same && m.of(v6).when == "Never" {
				continue
			}
			largest(t, a, to, v6)
			if size := biggest(uplink.take(t, a.Address(v6), to.Address(v6))); !same && size > 1500 {
				t.Errorf("a packet of %d bytes left the rack", size)
			} else if e := m.of(v6); !same && m.mtu(1500)+e.tunnel.Overhead() == 1500 && size != 1500 {
				// The tunnel that decides the pods' MTU fills the uplink.
				t.Errorf("%s: the largest packet has %d bytes on the way, want 1500", m.name, size)
			}
			if !same {
				stream(t, a, to, v6, full)
			}
		}
	}
}

func biggest(ps []packet) (size int) {
	for _, p := range ps {
		size = max(size, p.size)
	}
	return size
}

// largest sends the largest datagram that the pod's link takes whole, which must arrive,
// and one that is a byte longer, which must not leave the pod. "Do not fragment" is set, and
// what the path is known to take does not count.
func largest(t *testing.T, from, to *lab.Pod, v6 bool) {
	t.Helper()
	var in, out *net.UDPConn
	target := netip.AddrPortFrom(to.Address(v6), 0)
	err := to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(target))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	target = netip.AddrPortFrom(target.Addr(), uint16(in.LocalAddr().(*net.UDPAddr).Port))
	headers := 20 + 8
	err = from.Do(func() (err error) {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			return errors.Join(c.Control(func(fd uintptr) {
				if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); v6 {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
						unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
				}
			}), err)
		}}
		c, err := d.Dial("udp", target.String())
		if err == nil {
			out = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if v6 {
		headers = 40 + 8
	}
	buf := make([]byte, mtuOf(t, from)-headers+1)
	if _, err := out.Write(buf); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%s to %s: a datagram of %d bytes leaves a pod with MTU %d: %v", from, target, len(buf)+headers, mtuOf(t, from), err)
	}
	buf = buf[1:]
	scenario.Eventually(t, 10*time.Second, fmt.Sprintf("%d bytes from %s to %s", len(buf)+headers, from, target), func() error {
		if _, err := out.Write(buf); err != nil {
			return err
		}
		if err := in.SetReadDeadline(time.Now().Add(lab.Slow(200 * time.Millisecond))); err != nil {
			return err
		}
		n, _, err := in.ReadFromUDPAddrPort(make([]byte, 1<<16))
		if err == nil && n != len(buf) {
			err = fmt.Errorf("%d bytes arrived", n)
		}
		return err
	})
}

// stream sends so many bytes over TCP and fails the test unless they arrive as they were.
func stream(t *testing.T, from, to *lab.Pod, v6 bool, size int64) {
	t.Helper()
	within := lab.Slow(time.Minute)
	var l *net.TCPListener
	err := to.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Address(v6), 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		size int64
		sum  uint32
		err  error
	}
	arrived := make(chan result, 1)
	go func() {
		c, err := l.AcceptTCP()
		if err != nil {
			arrived <- result{err: err}
			return
		}
		defer c.Close()
		sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
		err = c.SetDeadline(time.Now().Add(within))
		if err == nil {
			var n int64
			n, err = io.CopyBuffer(sum, struct{ io.Reader }{c}, make([]byte, 1<<18))
			arrived <- result{n, sum.Sum32(), err}
			return
		}
		arrived <- result{err: err}
	}()
	began := time.Now()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	var conn net.Conn
	err = from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", l.Addr().String(), lab.Slow(10*time.Second))
		return err
	})
	if err != nil {
		t.Fatalf("%s to %s: %v", from, to, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(within)); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<18)
	for i := range chunk {
		chunk[i] = byte(i*7 + i>>8)
	}
	for left := size; left > 0; left -= int64(len(chunk)) {
		chunk = chunk[:min(left, int64(len(chunk)))]
		chunk[0]++
		_, _ = sum.Write(chunk)
		if _, err := conn.Write(chunk); err != nil {
			t.Fatalf("%s to %s, %d bytes before the end: %v", from, to, left, err)
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-arrived:
		if r.err != nil || r.size != size || r.sum != sum.Sum32() {
			t.Errorf("%s to %s: %d of %d bytes arrived, sum %x want %x: %v", from, to, r.size, size, r.sum, sum.Sum32(), r.err)
		}
	case <-time.After(within):
		t.Errorf("%s to %s: not within %s", from, to, within)
	}
	t.Logf("%s to %s, IPv6 %t: %d MB in %s", from, to, v6, size>>20, time.Since(began).Round(time.Millisecond))
}
