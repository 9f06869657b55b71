package policy

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab/traffic"
)

// kind is what a packet is: who sent it, to whom, and what for.
type kind struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16 // the destination's, of TCP and UDP
}

// arrivals are the packets of one kind.
type arrivals struct {
	count       int
	first, last time.Time // by the kernel's time stamps
}

// tap is a packet socket on all links of a place, those that are made later, too. It counts what
// comes in before any rule of the place itself could stop it.
type tap struct {
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	seen map[kind]arrivals
}

// openTap counts what arrives at a place until the test ends, or close.
func openTap(t *testing.T, at traffic.Space) *tap {
	t.Helper()
	tp := &tap{done: make(chan struct{}), seen: map[kind]arrivals{}}
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
		t.Fatalf("packet socket in %s: %v", at, err)
	}
	go tp.read()
	t.Cleanup(tp.close)
	return tp
}

func (tp *tap) close() {
	tp.file.Close()
	<-tp.done
}

func (tp *tap) read() {
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
func kindOf(b []byte) (k kind, ok bool) {
	var payload []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		k.src, _ = netip.AddrFromSlice(b[12:16])
		k.dst, _ = netip.AddrFromSlice(b[16:20])
		k.proto, payload = b[9], b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		k.src, _ = netip.AddrFromSlice(b[8:24])
		k.dst, _ = netip.AddrFromSlice(b[24:40])
		k.proto, payload = b[6], b[40:]
	default:
		return k, false
	}
	if (k.proto == unix.IPPROTO_TCP || k.proto == unix.IPPROTO_UDP) && len(payload) >= 4 {
		k.port = binary.BigEndian.Uint16(payload[2:])
	}
	return k, true
}

func (tp *tap) count(k kind, at time.Time) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	a := tp.seen[k]
	if a.count == 0 {
		a.first = at
	}
	a.count++
	a.last = at
	tp.seen[k] = a
}

// of sums up the packets of the kinds that are asked for.
func (tp *tap) of(asked func(kind) bool) (sum arrivals) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for k, a := range tp.seen {
		if !asked(k) {
			continue
		}
		if sum.count == 0 || a.first.Before(sum.first) {
			sum.first = a.first
		}
		if a.last.After(sum.last) {
			sum.last = a.last
		}
		sum.count += a.count
	}
	return sum
}

// from sums up what came from addresses.
func (tp *tap) from(addrs ...netip.Addr) arrivals {
	return tp.of(func(k kind) bool {
		for _, a := range addrs {
			if k.src == a {
				return true
			}
		}
		return false
	})
}
