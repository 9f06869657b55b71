// Package traffic sends test traffic between network namespaces and says what became of
// it: paced UDP streams of many flows, ping matrices and interface counters. Sockets are
// opened inside the namespaces; the packets are made and counted in this process, so that
// sender and receiver share a clock and a result needs no collecting.
package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Space is a place in the network: lab.Pod and lab.Node are.
type Space interface {
	// Do runs f on a thread inside the network namespace; sockets that f opens stay
	// there.
	Do(f func() error) error
	String() string
}

// Config of a stream.
type Config struct {
	From, To Space      // required
	Target   netip.Addr // required: an address of To
	// Flows is the number of flows, each with a source port of its own; default 1.
	Flows int
	// PPS is the number of packets a second of all flows together; default 1000. Flows
	// take turns.
	PPS int
	// Size is the UDP payload in bytes; default and least 24.
	Size int
	// Grace is how long Stop waits for packets under way; default 300 ms.
	Grace time.Duration
}

// header: stream id (8 bytes), flow (4), sequence number within the flow (8), zeros.
const headerSize = 24

// Stream is a stream that runs, from Start to Stop.
type Stream struct {
	cfg      Config
	id       uint64
	start    time.Time
	listener *net.UDPConn
	conns    []*net.UDPConn
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	received atomic.Int64
	sent     atomic.Int64

	// flows[i].sentAt belongs to the sender, the rest of flows[i] to the receiver,
	// until both have ended.
	flows      []flow
	sendErrors map[string]int // the sender's
}

type flow struct {
	sentAt   []time.Duration // since start, by sequence number
	arrived  []bool          // by sequence number
	received int
	twice    int
	late     int   // arrived after a packet that was sent later
	highest  int64 // sequence number, -1 at first
	lastAt   int64 // arrival of the packet before, kernel clock, ns
	gap      time.Duration
}

// Start opens the sockets and begins to send.
func Start(ctx context.Context, cfg Config) (*Stream, error) {
	if cfg.Flows == 0 {
		cfg.Flows = 1
	}
	if cfg.PPS == 0 {
		cfg.PPS = 1000
	}
	cfg.Size = max(cfg.Size, headerSize)
	if cfg.Grace == 0 {
		cfg.Grace = 300 * time.Millisecond
	}
	if cfg.From == nil || cfg.To == nil || !cfg.Target.IsValid() || cfg.Flows < 0 || cfg.PPS < 0 {
		return nil, errors.New("stream: From, To and Target are required; Flows and PPS are positive")
	}
	s := &Stream{cfg: cfg, id: uint64(time.Now().UnixNano())<<8 ^ uint64(os.Getpid()), sendErrors: map[string]int{}}
	if err := s.open(); err != nil {
		s.close()
		return nil, fmt.Errorf("stream %s -> %s (%s): %w", cfg.From, cfg.To, cfg.Target, err)
	}
	s.flows = make([]flow, cfg.Flows)
	for i := range s.flows {
		s.flows[i].highest = -1
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.start = time.Now()
	s.wg.Add(2)
	go s.send(ctx)
	go s.receive()
	return s, nil
}

func (s *Stream) open() error {
	network := "udp4"
	if s.cfg.Target.Is6() {
		network = "udp6"
	}
	err := s.cfg.To.Do(func() error {
		var err error
		s.listener, err = net.ListenUDP(network, nil)
		return err
	})
	if err != nil {
		return err
	}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return err
	}
	err = control(raw, func(fd int) error {
		// Room for what arrives while this process has to wait for a processor.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return fmt.Errorf("receive buffer: %w", err)
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err != nil {
		return err
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.cfg.Target, uint16(s.listener.LocalAddr().(*net.UDPAddr).Port)))
	return s.cfg.From.Do(func() error {
		for range s.cfg.Flows {
			c, err := net.DialUDP(network, nil, to)
			if err != nil {
				return err
			}
			s.conns = append(s.conns, c)
		}
		return nil
	})
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// send keeps the pace by the clock: after a stall it catches up, so that the number sent
// always is rate times time.
func (s *Stream) send(ctx context.Context) {
	defer s.wg.Done()
	buf := make([]byte, s.cfg.Size)
	binary.BigEndian.PutUint64(buf, s.id)
	interval := float64(time.Second) / float64(s.cfg.PPS)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; {
		due := int(float64(time.Since(s.start))/interval) + 1
		for ; n < due && ctx.Err() == nil; n++ {
			i := n % s.cfg.Flows
			f := &s.flows[i]
			binary.BigEndian.PutUint32(buf[8:], uint32(i))
			binary.BigEndian.PutUint64(buf[12:], uint64(len(f.sentAt)))
			f.sentAt = append(f.sentAt, time.Since(s.start))
			s.sent.Add(1)
			if _, err := s.conns[i].Write(buf); err != nil {
				var errno syscall.Errno
				errors.As(err, &errno)
				if errno == unix.ECONNREFUSED {
					// The answer to an earlier packet; this one has not
					// been sent yet.
					_, err = s.conns[i].Write(buf)
				}
				if err != nil {
					s.sendErrors[err.Error()]++
				}
			}
		}
		timer.Reset(time.Until(s.start.Add(time.Duration(float64(n) * interval))))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

func (s *Stream) receive() {
	defer s.wg.Done()
	buf, oob := make([]byte, 65536), make([]byte, 128)
	for {
		n, oobn, _, _, err := s.listener.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return // Stop closed it
		}
		if n < headerSize || binary.BigEndian.Uint64(buf) != s.id {
			continue
		}
		i, seq := binary.BigEndian.Uint32(buf[8:]), int64(binary.BigEndian.Uint64(buf[12:]))
		if int(i) >= len(s.flows) || seq < 0 || seq > math.MaxInt32 {
			continue
		}
		s.flows[i].take(seq, arrival(oob[:oobn]))
		s.received.Add(1)
	}
}

func (f *flow) take(seq, at int64) {
	for int64(len(f.arrived)) <= seq {
		f.arrived = append(f.arrived, false)
	}
	if f.arrived[seq] {
		f.twice++
		return
	}
	f.arrived[seq] = true
	f.received++
	if f.lastAt != 0 {
		f.gap = max(f.gap, time.Duration(at-f.lastAt))
	}
	f.lastAt = at
	if seq < f.highest {
		f.late++
	}
	f.highest = max(f.highest, seq)
}

// arrival is when the kernel took the packet in, by SO_TIMESTAMPNS: our own delay in
// reading it does not count.
func arrival(oob []byte) int64 {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
				ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
				return ts.Nano()
			}
		}
	}
	return time.Now().UnixNano()
}

// Sent and Received count packets so far.
func (s *Stream) Sent() int     { return int(s.sent.Load()) }
func (s *Stream) Received() int { return int(s.received.Load()) }

// SourcePorts are the flows' source ports, in order.
func (s *Stream) SourcePorts() []int {
	out := make([]int, len(s.conns))
	for i, c := range s.conns {
		out[i] = c.LocalAddr().(*net.UDPAddr).Port
	}
	return out
}

// Elapsed is the time since the first packet, the clock of all times in a Report.
func (s *Stream) Elapsed() time.Duration { return time.Since(s.start) }

// Stop ends sending, waits for packets under way and reports.
func (s *Stream) Stop() *Report {
	s.cancel()
	took := time.Since(s.start)
	deadline := time.Now().Add(s.cfg.Grace)
	for s.Received() < s.Sent() && time.Now().Before(deadline) {
		time.Sleep(2 * time.Millisecond)
	}
	ports := s.SourcePorts()
	s.close()
	s.wg.Wait()
	return s.report(took, ports)
}

func (s *Stream) close() {
	if s.listener != nil {
		s.listener.Close()
	}
	for _, c := range s.conns {
		c.Close()
	}
}
