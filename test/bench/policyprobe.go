package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
)

// flow is what a prober sends: UDP to a pod, from an address that need not exist. Each packet
// has a source port of its own, so that the kernel judges each as a new connection.
type flow struct {
	src, dst netip.Addr // IPv4
	port     uint16
}

// shot is a packet that the node sent on to its pod.
type shot struct {
	flow int
	n    int           // how many times the flows had been sent when it left
	sent time.Duration // since the prober's begin
}

// prober sends packets of some flows again and again from one node, and sees which of them
// another node hands to its pods. That is what the kernel's rules say, and nobody's word: a
// packet is seen after all chains, on its way to the pod's link.
type prober struct {
	begin    time.Time
	out, tap int // sockets: raw IP in one node, packets in the other
	stop     chan struct{}
	done     sync.WaitGroup

	mu      sync.Mutex
	flows   []flow
	every   time.Duration
	aimed   uint32 // how often flows were set; packets bear it
	sent    int    // times that these flows were sent
	arrived []shot // of these flows
	err     error
}

// probeMagic begins the packets' payload: magic, aimed, flow, n, sent.
const (
	probeMagic   = 0x43575059
	probePayload = 4 + 4 + 4 + 8 + 8
)

func startProber(from, at *lab.Node) (*prober, error) {
	p := &prober{begin: time.Now(), out: -1, tap: -1, stop: make(chan struct{})}
	err := from.Do(func() (err error) {
		p.out, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err == nil {
		err = at.Do(func() (err error) {
			all := uint16(unix.ETH_P_ALL) // sockets of one protocol do not see what is sent
			p.tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
			return err
		})
	}
	if err == nil {
		err = errors.Join(unix.SetsockoptTimeval(p.tap, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.SetsockoptInt(p.tap, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	}
	if err != nil {
		unix.Close(p.out)
		unix.Close(p.tap)
		return nil, fmt.Errorf("sockets of the prober: %w", err)
	}
	p.done.Go(p.send)
	p.done.Go(p.receive)
	return p, nil
}

func (p *prober) close() {
	close(p.stop)
	p.done.Wait()
	unix.Close(p.out)
	unix.Close(p.tap)
}

// now is the time that shots have.
func (p *prober) now() time.Duration { return time.Since(p.begin) }

// aim replaces the flows; all are sent once per interval.
func (p *prober) aim(every time.Duration, flows ...flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows, p.every = flows, every
	p.aimed++
	p.sent, p.arrived = 0, nil
}

func (p *prober) stopped() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

func (p *prober) send() {
	var source uint16
	next := time.Now()
	for !p.stopped() {
		p.mu.Lock()
		flows, every, aimed, n := p.flows, p.every, p.aimed, p.sent
		p.sent++
		p.mu.Unlock()
		for i, f := range flows {
			source++
			b := datagram(f, 1024+source%60000)
			at := b[28:]
			binary.BigEndian.PutUint32(at, probeMagic)
			binary.BigEndian.PutUint32(at[4:], aimed)
			binary.BigEndian.PutUint32(at[8:], uint32(i))
			binary.BigEndian.PutUint64(at[12:], uint64(n))
			binary.BigEndian.PutUint64(at[20:], uint64(p.now()))
			if err := unix.Sendto(p.out, b, 0, &unix.SockaddrInet4{Addr: f.dst.As4()}); err != nil && err != unix.ENOBUFS {
				p.fail(fmt.Errorf("probe %s > %s: %w", f.src, f.dst, err))
				return
			}
		}
		if every == 0 {
			every = 10 * time.Millisecond
		}
		// A late packet is sent at once and none is made up for.
		if next = next.Add(every); time.Until(next) > 0 {
			time.Sleep(time.Until(next))
		} else {
			next = time.Now()
		}
	}
}

// datagram makes an IPv4 packet with UDP without checksum; the kernel fills in the rest.
func datagram(f flow, source uint16) []byte {
	b := make([]byte, 28+probePayload)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	src, dst := f.src.As4(), f.dst.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], source)
	binary.BigEndian.PutUint16(b[22:], f.port)
	binary.BigEndian.PutUint16(b[24:], uint16(8+probePayload))
	return b
}

func (p *prober) receive() {
	b := make([]byte, 2048)
	for !p.stopped() {
		n, from, err := unix.Recvfrom(p.tap, b, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			p.fail(fmt.Errorf("receive probes: %w", err))
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING || n < 28+probePayload || b[0] != 0x45 || b[9] != unix.IPPROTO_UDP {
			continue
		}
		at := b[28:]
		if binary.BigEndian.Uint32(at) != probeMagic {
			continue
		}
		s := shot{flow: int(binary.BigEndian.Uint32(at[8:])), n: int(binary.BigEndian.Uint64(at[12:])), sent: time.Duration(binary.BigEndian.Uint64(at[20:]))}
		p.mu.Lock()
		if binary.BigEndian.Uint32(at[4:]) == p.aimed {
			p.arrived = append(p.arrived, s)
		}
		p.mu.Unlock()
	}
}

func (p *prober) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(p.err, err)
}

// probeLimit is how long a change may take before the benchmark gives up.
const probeLimit = time.Minute

// wait polls until found says when something happened.
func (p *prober) wait(ctx context.Context, what string, found func() (time.Duration, bool)) (time.Duration, error) {
	deadline := time.Now().Add(probeLimit)
	for {
		p.mu.Lock()
		at, ok := found()
		err := p.err
		p.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case ok:
			return at, nil
		case time.Now().After(deadline):
			return 0, fmt.Errorf("%s: not within %v", what, probeLimit)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// passes waits for the first packet of the first flow that passes, and returns when it left.
func (p *prober) passes(ctx context.Context) (time.Duration, error) {
	return p.wait(ctx, "the packets pass", func() (time.Duration, bool) {
		if len(p.arrived) == 0 {
			return 0, false
		}
		return p.arrived[0].sent, true
	})
}

// quietShots is how many packets of a flow must have been sent in vain for it to be called
// forbidden.
const quietShots = 40

// ends waits until no packet of the first flow passes any more, and returns when the last one
// that did had left; the one after it was forbidden.
func (p *prober) ends(ctx context.Context) (time.Duration, error) {
	return p.wait(ctx, "the packets are forbidden", func() (time.Duration, bool) {
		var last shot
		if len(p.arrived) > 0 {
			last = p.arrived[len(p.arrived)-1]
		}
		return last.sent, p.sent > last.n+quietShots
	})
}
