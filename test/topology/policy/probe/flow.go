package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// FlowConfig says what a Flow is.
type FlowConfig struct {
	Network  string // "tcp" or "udp"
	From, To traffic.Space
	// Listen is the address of To that is called, and the port there; port 0: some port.
	Listen netip.AddrPort
	// Dial is what From calls: an address and port of a Service, behind which there is Listen.
	// The zero AddrPort: Listen itself.
	Dial netip.AddrPort
}

// Flow is one connection between two places, over which both ends say a number every 5 ms.
type Flow struct {
	cfg   FlowConfig
	conns [2]net.Conn // of who began it and of who was called
	heard [2]ear
	begin chan struct{} // closed when the called end may speak
	end   chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// ear is what one end has heard.
type ear struct {
	count, last atomic.Int64 // numbers; when, in ns
	lost        atomic.Int64 // numbers that did not come before a later one, of UDP
	wrong       atomic.Pointer[error]
}

const flowEvery = 5 * time.Millisecond

// OpenFlow opens a connection and begins to speak; it does not wait until anything is heard.
func OpenFlow(cfg FlowConfig) (*Flow, error) {
	fl := &Flow{cfg: cfg, begin: make(chan struct{}), end: make(chan struct{})}
	open := fl.openTCP
	if cfg.Network == "udp" {
		open = fl.openUDP
	}
	if err := open(); err != nil {
		fl.Close()
		return nil, fmt.Errorf("%s: %w", fl, err)
	}
	fl.wg.Go(func() { fl.say(fl.conns[0]) })
	fl.wg.Go(func() {
		select {
		case <-fl.begin:
			fl.say(fl.conns[1])
		case <-fl.end:
		}
	})
	for i := range fl.conns {
		fl.wg.Go(func() { fl.hear(i) })
	}
	return fl, nil
}

// String names both ends.
func (fl *Flow) String() string {
	target := fl.cfg.Listen.Addr().String()
	if fl.cfg.Dial.IsValid() {
		target = fl.cfg.Dial.String() + " for " + target
	}
	return fmt.Sprintf("%s %s -> %s (%s)", fl.cfg.Network, fl.cfg.From, fl.cfg.To, target)
}

func (fl *Flow) openTCP() error {
	var l net.Listener
	if err := fl.cfg.To.Do(func() (err error) {
		l, err = net.Listen("tcp", fl.cfg.Listen.String())
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	if err := fl.cfg.From.Do(func() (err error) {
		d := net.Dialer{Timeout: lab.Slow(5 * time.Second)}
		d.SetMultipathTCP(false)
		fl.conns[0], err = d.Dial("tcp", fl.dialed(l.Addr()))
		return err
	}); err != nil {
		return err
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(lab.Slow(5 * time.Second))); err != nil {
		return err
	}
	var err error
	fl.conns[1], err = l.Accept()
	return err
}

// dialed is what is called when somebody listens at an address.
func (fl *Flow) dialed(listener net.Addr) string {
	if fl.cfg.Dial.IsValid() {
		return fl.cfg.Dial.String()
	}
	return listener.String()
}

// openUDP makes two sockets that are connected to each other. A Service's translation is made by
// the first datagram of who calls; hence the other end waits for it (hear).
func (fl *Flow) openUDP() error {
	network := "udp4"
	if fl.cfg.Listen.Addr().Is6() {
		network = "udp6"
	}
	var called *net.UDPAddr // with its port, which From must know first
	if err := fl.cfg.To.Do(func() error {
		l, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(fl.cfg.Listen))
		if err != nil {
			return err
		}
		called = l.LocalAddr().(*net.UDPAddr)
		return l.Close()
	}); err != nil {
		return err
	}
	if err := fl.cfg.From.Do(func() (err error) {
		fl.conns[0], err = net.Dial(network, fl.dialed(called))
		return err
	}); err != nil {
		return err
	}
	return fl.cfg.To.Do(func() error {
		c, err := net.DialUDP(network, called, fl.conns[0].LocalAddr().(*net.UDPAddr))
		if err == nil {
			fl.conns[1] = c
		}
		return err
	})
}

func (fl *Flow) say(c net.Conn) {
	tick := time.NewTicker(flowEvery)
	defer tick.Stop()
	var b [8]byte
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(b[:], n)
		_, _ = c.Write(b[:]) // what does not arrive is seen at the other end
		select {
		case <-fl.end:
			return
		case <-tick.C:
		}
	}
}

func (fl *Flow) hear(i int) {
	c, e, stream := fl.conns[i], &fl.heard[i], fl.cfg.Network == "tcp"
	var b [8]byte
	for next := uint64(1); ; {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if stream {
				err = fmt.Errorf("the connection is over: %w", err)
				e.wrong.Store(&err)
				return
			}
			continue // an ICMP error, which tells of an earlier packet
		}
		if i == 1 && e.count.Load() == 0 {
			close(fl.begin)
		}
		got := binary.BigEndian.Uint64(b[:])
		switch {
		case got == next:
		case stream:
			err := fmt.Errorf("number %d came after %d", got, next-1)
			e.wrong.Store(&err)
			return
		default:
			e.lost.Add(int64(got) - int64(next))
		}
		next = got + 1
		e.count.Add(1)
		e.last.Store(time.Now().UnixNano())
	}
}

// Close ends it. It may be called again.
func (fl *Flow) Close() {
	fl.once.Do(func() { close(fl.end) })
	for _, c := range fl.conns {
		if c != nil {
			c.Close()
		}
	}
	fl.wg.Wait()
}

// Heard are how many numbers the ends have heard: who began it, and who was called.
func (fl *Flow) Heard() [2]int64 {
	return [2]int64{fl.heard[0].count.Load(), fl.heard[1].count.Load()}
}

// HeardLast is when an end heard something last, the later of both.
func (fl *Flow) HeardLast() time.Time {
	return time.Unix(0, max(fl.heard[0].last.Load(), fl.heard[1].last.Load()))
}

// Lost is how many numbers of a UDP flow did not come before a later one.
func (fl *Flow) Lost() int64 { return fl.heard[0].lost.Load() + fl.heard[1].lost.Load() }

// GoesOn returns nil when both ends have heard n numbers more than at an earlier time.
func (fl *Flow) GoesOn(since [2]int64, n int64) error {
	now := fl.Heard()
	for i := range now {
		if err := fl.heard[i].wrong.Load(); err != nil {
			return *err
		}
		if now[i] < since[i]+n {
			return fmt.Errorf("end %d of 2 has heard %d numbers more, and none for %s", i+1, now[i]-since[i], time.Since(time.Unix(0, fl.heard[i].last.Load())).Round(time.Millisecond))
		}
	}
	return nil
}
