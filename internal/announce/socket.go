package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer holds a datagram of each of some thousand nodes: all of them may start a pod
	// at one moment, as a DaemonSet makes them.
	receiveBuffer = 4 << 20
	// Waits before an address that could not be listened on is tried again.
	firstRetry, lastRetry = time.Second, 30 * time.Second
)

// socket is what one family is sent and received by. It is bound to the node's address, so that
// nothing listens on others and the other nodes know whose datagrams they get.
type socket struct {
	conn   *net.UDPConn
	local  netip.AddrPort
	broken atomic.Bool // its receiver has given up
}

// socketState is what is known of one family's socket.
type socketState struct {
	listening netip.AddrPort // the zero AddrPort: there is none
	err       error
	wait      time.Duration // before the last try
	retry     time.Time     // when to try again; zero: not wanted
}

// listen brings the socket of a family to what is wanted: none without a key, another node
// and an address of this one. It must be called by Run's own goroutine, whose network namespace
// is the one that is listened in.
func (a *Announcer) listen(f int, s *socket, receiving *sync.WaitGroup) *socket {
	a.mu.Lock()
	now := time.Now()
	var want netip.AddrPort
	if a.own[f].IsValid() && len(a.nodes) > 0 && a.keys.sealing(now) != nil {
		want = netip.AddrPortFrom(a.own[f], a.cfg.Port)
	}
	st := &a.sockets[f]
	early := now.Before(st.retry)
	a.mu.Unlock()
	if s != nil && (s.local != want || s.broken.Load()) {
		a.close(f, s)
		s = nil
	}
	if s != nil || early && want.IsValid() {
		return s
	}
	var err error
	if want.IsValid() {
		if s, err = bind(want); err == nil {
			receiving.Go(func() { a.receive(f, s) })
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		if s != nil && st.listening != want {
			a.log.Info("listening for other nodes", "address", want)
		}
		*st = socketState{listening: want}
		return s
	}
	st.wait = min(max(2*st.wait, firstRetry), lastRetry)
	if st.err == nil || st.err.Error() != err.Error() {
		a.log.Warn("cannot listen for other nodes; addresses of their new pods come with the pods' status", "address", want, "error", err)
	}
	st.listening, st.err, st.retry = netip.AddrPort{}, err, now.Add(st.wait)
	return nil
}

func bind(at netip.AddrPort) (*socket, error) {
	network := [2]string{"udp4", "udp6"}[family(at.Addr())]
	// It is a wish: more than net.core.rmem_max needs CAP_NET_ADMIN, and what comes in faster than
	// it is read is told again.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
	}}
	c, err := lc.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %s: %w", at, err)
	}
	return &socket{conn: c.(*net.UDPConn), local: at}, nil
}

func (a *Announcer) close(f int, s *socket) {
	if s == nil {
		return
	}
	s.conn.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sockets[f].listening = netip.AddrPort{}
}

// receive takes datagrams until the socket is closed.
func (a *Announcer) receive(f int, s *socket) {
	// One byte more than a datagram may have shows which are longer.
	b := make([]byte, maxDatagram+1)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			a.mu.Lock()
			st := &a.sockets[f]
			st.err, st.wait = fmt.Errorf("receive on UDP %s: %w", s.local, err), firstRetry
			st.retry = time.Now().Add(st.wait)
			a.mu.Unlock()
			s.broken.Store(true)
			a.poke()
			return
		}
		a.take(b[:n], from.Addr().Unmap(), time.Now())
	}
}
