package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// flow is one connection between two places, over which both ends send a number every 5 ms.
type flow struct {
	name  string
	conns [2]net.Conn // of who began it and of who was called
	heard [2]ear
	end   chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// ear is what one end has heard.
type ear struct {
	count, last atomic.Int64 // numbers; when, in ns
	lost        atomic.Int64 // numbers that did not come before a later one, of UDP
	wrong       atomic.Pointer[string]
}

const flowEvery = 5 * time.Millisecond

// startFlow opens a flow of network "tcp" or "udp" and returns when both ends hear each other.
func startFlow(t *testing.T, network string, from, to traffic.Space, target netip.Addr) *flow {
	t.Helper()
	fl := &flow{name: fmt.Sprintf("%s %s -> %s (%s)", network, from, to, target), end: make(chan struct{})}
	if err := fl.open(network, from, to, target); err != nil {
		t.Fatalf("%s: %v", fl.name, err)
	}
	t.Cleanup(fl.close)
	for i := range fl.conns {
		fl.wg.Add(2)
		go fl.say(fl.conns[i])
		go fl.hear(fl.conns[i], &fl.heard[i], network == "tcp")
	}
	fl.goesOn(t, 5*time.Second)
	return fl
}

func (fl *flow) open(network string, from, to traffic.Space, target netip.Addr) error {
	if network == "udp" {
		return fl.openUDP(from, to, target)
	}
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(target, 0).String())
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	if err := from.Do(func() (err error) {
		d := net.Dialer{Timeout: lab.Slow(5 * time.Second)}
		d.SetMultipathTCP(false)
		fl.conns[0], err = d.Dial("tcp", l.Addr().String())
		return err
	}); err != nil {
		return err
	}
	var err error
	fl.conns[1], err = l.Accept()
	return err
}

// openUDP makes two sockets that are connected to each other.
func (fl *flow) openUDP(from, to traffic.Space, target netip.Addr) error {
	network, none := "udp4", "0.0.0.0"
	if target.Is6() {
		network, none = "udp6", "::"
	}
	// The called end's port, and the calling end's address and port, are known first.
	var called, calling *net.UDPAddr
	if err := to.Do(func() error {
		l, err := net.ListenUDP(network, &net.UDPAddr{IP: target.AsSlice()})
		if err != nil {
			return err
		}
		called = l.LocalAddr().(*net.UDPAddr)
		return l.Close()
	}); err != nil {
		return err
	}
	if err := from.Do(func() error {
		c, err := net.DialUDP(network, &net.UDPAddr{IP: net.ParseIP(none)}, called)
		if err == nil {
			fl.conns[0], calling = c, c.LocalAddr().(*net.UDPAddr)
		}
		return err
	}); err != nil {
		return err
	}
	return to.Do(func() error {
		c, err := net.DialUDP(network, called, calling)
		if err == nil {
			fl.conns[1] = c
		}
		return err
	})
}

func (fl *flow) say(c net.Conn) {
	defer fl.wg.Done()
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

func (fl *flow) hear(c net.Conn, e *ear, stream bool) {
	defer fl.wg.Done()
	var b [8]byte
	for want := uint64(1); ; want++ {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if stream { // the connection is over
				text := err.Error()
				e.wrong.Store(&text)
				return
			}
			want-- // an ICMP error; it tells of an earlier packet
			continue
		}
		if got := binary.BigEndian.Uint64(b[:]); got != want {
			if stream {
				text := fmt.Sprintf("number %d came after %d", got, want-1)
				e.wrong.Store(&text)
				return
			}
			e.lost.Add(int64(got) - int64(want))
			want = got
		}
		e.count.Add(1)
		e.last.Store(time.Now().UnixNano())
	}
}

func (fl *flow) close() {
	fl.once.Do(func() { close(fl.end) })
	for _, c := range fl.conns {
		if c != nil {
			c.Close()
		}
	}
	fl.wg.Wait()
}

// heardAt is when an end heard something last, the later of both.
func (fl *flow) heardAt() time.Time {
	return time.Unix(0, max(fl.heard[0].last.Load(), fl.heard[1].last.Load()))
}

// lost is how many numbers of a UDP flow were lost.
func (fl *flow) lost() int64 { return fl.heard[0].lost.Load() + fl.heard[1].lost.Load() }

// goesOn waits until both ends have heard 20 numbers more.
func (fl *flow) goesOn(t *testing.T, within time.Duration) {
	t.Helper()
	for i := range fl.heard {
		e := &fl.heard[i]
		until := e.count.Load() + 20
		scenario.Eventually(t, within, fl.name+" goes on", func() error {
			if text := e.wrong.Load(); text != nil {
				return errors.New(*text)
			}
			if n := e.count.Load(); n < until {
				return fmt.Errorf("end %d has heard %d numbers, and none for %s", i, n, time.Since(fl.heardAt()).Round(time.Millisecond))
			}
			return nil
		})
	}
}
