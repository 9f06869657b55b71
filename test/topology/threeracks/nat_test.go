package threeracks

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// outsideOf is the host beyond the core.
func outsideOf(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:51::2")
	}
	return netip.MustParseAddr("198.51.100.2")
}

// natOutgoing sends from a pod to the outside and to a pod of another rack, and looks there
// who it came from.
func natOutgoing(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	a, far := f.pod("n1a"), f.pod("n2a")
	for _, m := range []mode{vxlanCross, ipipCross} {
		if m.needsIPIP() && !f.ipip {
			t.Logf("%s is not tried: this kernel has no IPIP; it is in the machine of make test-vm", m.name)
			continue
		}
		for _, nat := range []bool{false, true, false} {
			f.manifests().Write(t, "pools.yaml", m.pools(nat))
			for _, v6 := range families {
				own, node := a.Address(v6), addressOf(a.Node(), v6)
				want := own
				if nat {
					want = node
				}
				outside := hear(t, f.Node("outside"), outsideOf(v6))
				scenario.Eventually(t, 10*time.Second, fmt.Sprintf("natOutgoing %t: who comes outside", nat), func() error { return outside.from(ctx, a, want) })
				if m.of(v6).when != "Never" {
					pod := hear(t, far, far.Address(v6))
					scenario.Eventually(t, 10*time.Second, "who comes to the other pod", func() error { return pod.from(ctx, a, own) })
				}
			}
		}
		f.settle(t, m)
	}
	f.switchTo(t, vxlanCross)
}

// ear hears datagrams.
type ear struct {
	conn *net.UDPConn
	at   netip.AddrPort
}

func hear(t *testing.T, s traffic.Space, at netip.Addr) *ear {
	t.Helper()
	e := &ear{}
	err := s.Do(func() (err error) {
		e.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.conn.Close() })
	e.at = netip.AddrPortFrom(at, uint16(e.conn.LocalAddr().(*net.UDPAddr).Port))
	return e
}

// next is who sent the next datagram, within d.
func (e *ear) next(d time.Duration) (netip.Addr, error) {
	if err := e.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return netip.Addr{}, err
	}
	_, from, err := e.conn.ReadFromUDPAddrPort(make([]byte, 1500))
	return from.Addr().Unmap(), err
}

// drain forgets what has come.
func (e *ear) drain() {
	for {
		if _, err := e.next(time.Millisecond); err != nil {
			return
		}
	}
}

// from returns nil when a datagram from a pod arrives with that source.
func (e *ear) from(ctx context.Context, p *lab.Pod, want netip.Addr) error {
	e.drain()
	err := p.Do(func() error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "udp", e.at.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("who am I"))
		return err
	})
	if err != nil {
		return err
	}
	got, err := e.next(lab.Slow(500 * time.Millisecond))
	if err == nil && got != want {
		err = fmt.Errorf("it comes from %s, want %s", got, want)
	}
	return err
}
