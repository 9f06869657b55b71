package policy

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// hailPort is where hails are sent to unless a scenario says another port.
const hailPort = 7777

// hail sends datagrams from one place to addresses, in turn, whether anybody is there or not.
type hail struct {
	from  traffic.Space
	sent  atomic.Int64 // that the kernel took
	stop  sync.Once
	end   chan struct{}
	ended chan struct{}
	conns []*net.UDPConn // of IPv4 and IPv6
}

// startHail sends pps datagrams a second to each of the targets, or what a slow computer
// carries, until the test ends, or close. All come from one source port.
func startHail(t *testing.T, from traffic.Space, pps int, targets ...netip.AddrPort) *hail {
	t.Helper()
	h := &hail{from: from, end: make(chan struct{}), ended: make(chan struct{})}
	err := from.Do(func() error {
		for _, network := range []string{"udp4", "udp6"} {
			c, err := net.ListenUDP(network, nil)
			if err != nil {
				return err
			}
			h.conns = append(h.conns, c)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("hail from %s: %v", from, err)
	}
	go h.run(time.Second/time.Duration(lab.SlowRate(pps)), targets)
	t.Cleanup(h.close)
	return h
}

// run keeps the pace by the clock, as traffic.Stream does: after a stall it catches up.
func (h *hail) run(interval time.Duration, targets []netip.AddrPort) {
	defer close(h.ended)
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for round := 0; ; {
		for due := int(time.Since(start)/interval) + 1; round < due; round++ {
			for _, to := range targets {
				c := h.conns[0]
				if to.Addr().Is6() {
					c = h.conns[1]
				}
				if _, err := c.WriteToUDPAddrPort([]byte("hail"), to); err == nil {
					h.sent.Add(1)
				}
			}
		}
		timer.Reset(time.Until(start.Add(time.Duration(round) * interval)))
		select {
		case <-h.end:
			return
		case <-timer.C:
		}
	}
}

func (h *hail) close() {
	h.stop.Do(func() { close(h.end) })
	<-h.ended
	for _, c := range h.conns {
		c.Close()
	}
}

// at gives each address a port.
func at(port uint16, addrs ...netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}
