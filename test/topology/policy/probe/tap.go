// Package probe tells what a packet filter lets through: packets as they arrive at a place
// before any rule of its own (Tap), packets sent at an address whether anybody is there or not
// (Hail), and connections over which both ends speak (Flow). Sockets are opened inside the
// places; packets are made and counted in this process.
package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab/traffic"
)

// Kind is what a packet is: who sent it, to whom, and what for.
type Kind struct {
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // the destination's, of TCP and UDP
}

// Arrivals are the packets of one kind, or of several.
type Arrivals struct {
	Count       int
	First, Last time.Time // by the kernel's time stamps
}

// Tap is a packet socket on all links of a place, those that are made later, too. It counts what
// comes in before any rule of the place itself could stop it.
type Tap struct {
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	seen map[Kind]Arrivals
}

// OpenTap counts what arrives at a place from now on, until Close.
func OpenTap(at traffic.Space) (*Tap, error) {
	tp := &Tap{done: make(chan struct{}), seen: map[Kind]Arrivals{}}
	err := at.Do(func() error {
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err != nil {
			return err
		}
		tp.file = os.NewFile(uintptr(fd), "packets of "+at.String())
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err != nil {
		if tp.file != nil {
			tp.file.Close()
		}
		return nil, fmt.Errorf("packet socket in %s: %w", at, err)
	}
	go tp.read()
	return tp, nil
}

// Close ends the counting. What was counted stays. It may be called again.
func (tp *Tap) Close() {
	tp.file.Close()
	<-tp.done
}

func (tp *Tap) read() {
	defer close(tp.done)
	raw, err := tp.file.SyscallConn()
	if err != nil {
		return
	}
	packet, oob := make([]byte, 2048), make([]byte, 128)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var rerr error
		if err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, rerr = unix.Recvmsg(int(fd), packet, oob, 0)
			return rerr != unix.EAGAIN
		}); err != nil {
			return // it was closed
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if rerr != nil || !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if k, ok := kindOf(packet[:n]); ok {
			tp.count(k, stamp(oob[:oobn]))
		}
	}
}

// stamp is when the kernel took the packet in.
func stamp(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
				return time.Unix((*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Unix())
			}
		}
	}
	return time.Now()
}

// kindOf reads an IP packet; ok is false for what is none.
func kindOf(b []byte) (k Kind, ok bool) {
	var payload []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		k.Src, _ = netip.AddrFromSlice(b[12:16])
		k.Dst, _ = netip.AddrFromSlice(b[16:20])
		k.Proto, payload = b[9], b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		k.Src, _ = netip.AddrFromSlice(b[8:24])
		k.Dst, _ = netip.AddrFromSlice(b[24:40])
		k.Proto, payload = b[6], b[40:]
	default:
		return k, false
	}
	if (k.Proto == unix.IPPROTO_TCP || k.Proto == unix.IPPROTO_UDP) && len(payload) >= 4 {
		k.Port = binary.BigEndian.Uint16(payload[2:])
	}
	return k, true
}

func (tp *Tap) count(k Kind, at time.Time) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	a := tp.seen[k]
	if a.Count == 0 {
		a.First = at
	}
	a.Count++
	a.Last = at
	tp.seen[k] = a
}

// Of sums up the packets of the kinds that are asked for.
func (tp *Tap) Of(asked func(Kind) bool) (sum Arrivals) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for k, a := range tp.seen {
		if !asked(k) {
			continue
		}
		if sum.Count == 0 || a.First.Before(sum.First) {
			sum.First = a.First
		}
		if a.Last.After(sum.Last) {
			sum.Last = a.Last
		}
		sum.Count += a.Count
	}
	return sum
}

// List is a line for each of the kinds that are asked for.
func (tp *Tap) List(asked func(Kind) bool) string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	var lines []string
	for k, a := range tp.seen {
		if asked(k) {
			lines = append(lines, fmt.Sprintf("%s > %s, protocol %d, port %d: %d packets, %s to %s", k.Src, k.Dst, k.Proto, k.Port, a.Count, a.First.Format(clock), a.Last.Format(clock)))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

const clock = "15:04:05.000"

// From sums up what came from addresses.
func (tp *Tap) From(addrs ...netip.Addr) Arrivals {
	return tp.Of(func(k Kind) bool { return slices.Contains(addrs, k.Src) })
}
