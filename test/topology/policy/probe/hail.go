package probe

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// Hail sends datagrams from one place to addresses, in turn, whether anybody is there or not.
type Hail struct {
	from  traffic.Space
	sent  atomic.Int64
	stop  sync.Once
	end   chan struct{}
	ended chan struct{}
	conns []*net.UDPConn // of IPv4 and IPv6
}

// StartHail sends pps datagrams a second to each of the targets, or what a slow computer
// carries, until Close. All of a family come from one source port.
func StartHail(from traffic.Space, pps int, targets ...netip.AddrPort) (*Hail, error) {
	h := &Hail{from: from, end: make(chan struct{}), ended: make(chan struct{})}
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
		for _, c := range h.conns {
			c.Close()
		}
		return nil, fmt.Errorf("hail from %s: %w", from, err)
	}
	go h.run(time.Second/time.Duration(lab.SlowRate(pps)), targets)
	return h, nil
}

// String is where it comes from.
func (h *Hail) String() string { return h.from.String() }

// Sent is how many datagrams the sender's kernel took so far.
func (h *Hail) Sent() int64 { return h.sent.Load() }

// run keeps the pace by the clock, as traffic.Stream does: after a stall it catches up.
func (h *Hail) run(interval time.Duration, targets []netip.AddrPort) {
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

// Close ends it. It may be called again.
func (h *Hail) Close() {
	h.stop.Do(func() { close(h.end) })
	<-h.ended
	for _, c := range h.conns {
		c.Close()
	}
}
