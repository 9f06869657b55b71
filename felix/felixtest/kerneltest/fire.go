package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/trace"
)

// Waits for packets: after the last one that was sent, or arrived.
const (
	quiet     = 15 * time.Millisecond
	patience  = time.Second // for those that should arrive and have not
	batchSize = 128
)

// flow is what connection tracking tells connections apart by.
type flow struct {
	src, dst     netip.Addr
	protocol     uint8
	sport, dport uint16
}

func flowOf(p trace.Packet) flow {
	f := flow{p.Src, p.Dst, p.Protocol, 0, 0}
	if trace.HasPorts(p.Protocol) {
		f.sport, f.dport = p.SrcPort, p.DstPort
	}
	return f
}

// Fire sends packets, each the first of its connection, and reports which arrived: at
// the link that Packet.Out names, or at the host where it is empty. The packets must be
// Possible.
func (l *Lab) Fire(packets []trace.Packet) ([]bool, error) {
	return l.Await(packets, make([]bool, len(packets)))
}

// Await is Fire that has patience with those packets that want says arrive.
func (l *Lab) Await(packets []trace.Packet, want []bool) ([]bool, error) {
	return l.fire(packets, want, patience)
}

// Check sends packets and returns the indices of those whose fate is not what want says.
// One that does not arrive and should is sent once more, with patience.
func (l *Lab) Check(packets []trace.Packet, want []bool) ([]int, error) {
	got, err := l.fire(packets, want, quiet)
	if err != nil {
		return nil, err
	}
	var wrong []int
	for i := range packets {
		if got[i] == want[i] {
			continue
		}
		if want[i] {
			again, err := l.Await(packets[i:i+1], want[i:i+1])
			if err != nil {
				return nil, err
			}
			if again[0] {
				continue
			}
		}
		wrong = append(wrong, i)
	}
	return wrong, nil
}

// Follow sends packets in order, each after the one before has arrived or not, and reports
// which did; it has patience with those that want says do. Connections are not forgotten before or in
// between: a packet may answer another.
func (l *Lab) Follow(packets []trace.Packet, want []bool) ([]bool, error) {
	arrived := make([]bool, len(packets))
	for i, p := range packets {
		first := l.tag
		l.tag++
		if err := l.send(p, first); err != nil {
			return nil, fmt.Errorf("send %s: %w", p, err)
		}
		if err := l.collect(first, packets[i:i+1], arrived[i:i+1], want[i:i+1], patience); err != nil {
			return nil, err
		}
	}
	return arrived, nil
}

// Inject sends packets as fast as it can, without a look at what comes of them.
func (l *Lab) Inject(packets []trace.Packet) error {
	for _, p := range packets {
		if err := l.send(p, l.tag); err != nil {
			return fmt.Errorf("send %s: %w", p, err)
		}
		l.tag++
	}
	return nil
}

// fire waits for those that want says arrive.
func (l *Lab) fire(packets []trace.Packet, want []bool, wait time.Duration) ([]bool, error) {
	arrived := make([]bool, len(packets))
	for from := 0; from < len(packets); {
		seen := map[flow]bool{}
		first := l.tag
		to := from
		if err := l.Forget(); err != nil {
			return nil, err
		}
		for ; to < len(packets) && to-from < batchSize; to++ {
			p := packets[to]
			f := flowOf(p)
			back := flow{f.dst, f.src, f.protocol, f.dport, f.sport}
			if seen[f] || seen[back] {
				break
			}
			seen[f] = true
			if err := l.send(p, l.tag); err != nil {
				return nil, fmt.Errorf("send %s: %w", p, err)
			}
			l.tag++
		}
		if err := l.collect(first, packets[from:to], arrived[from:to], want[from:to], wait); err != nil {
			return nil, err
		}
		from = to
	}
	return arrived, nil
}

// Forget makes the host forget all connections.
func (l *Lab) Forget() error {
	if err := l.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("flush conntrack: %w", err)
	}
	return nil
}

func (l *Lab) send(p trace.Packet, tag uint32) error {
	b := build(p, tag)
	var to unix.Sockaddr
	fd := l.out4
	switch {
	case p.In != "":
		k := l.links[p.In]
		kind := []byte{0x08, 0x00}
		if p.Src.Is6() {
			kind = []byte{0x86, 0xdd}
		}
		frame := append(append(append([]byte{}, k.hostMAC...), k.farMAC...), kind...)
		b = append(frame, b...)
		fd, to = l.frames, &unix.SockaddrLinklayer{Ifindex: k.far}
	case p.Src.Is6():
		fd, to = l.out6, &unix.SockaddrInet6{Addr: p.Dst.As16()}
	default:
		to = &unix.SockaddrInet4{Addr: p.Dst.As4()}
	}
	err := unix.Sendto(fd, b, 0, to)
	if p.In == "" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		return nil // dropped on its way out
	}
	return os.NewSyscallError("sendto", err)
}

// collect reads what arrives until everything has, or nothing has for a while: of wait as long
// as one of those is missing that want names, and of quiet then.
func (l *Lab) collect(first uint32, packets []trace.Packet, arrived, want []bool, wait time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(l.frames), Events: unix.POLLIN}}
	for fd := range l.arrivals {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	buf := make([]byte, 4096)
	missing, wanted := len(packets), 0
	for _, w := range want {
		if w {
			wanted++
		}
	}
	take := func(tag uint32, out string) {
		i := int(int32(tag - first))
		if i >= 0 && i < len(packets) && packets[i].Out == out && !arrived[i] {
			arrived[i] = true
			missing--
			if want[i] {
				wanted--
			}
		}
	}
	for last := time.Now(); missing > 0; {
		patience := quiet
		if wanted > 0 {
			patience = wait
		}
		left := time.Until(last.Add(patience))
		if left <= 0 {
			return nil
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			last = time.Now()
		}
		for _, f := range fds {
			for f.Revents != 0 {
				n, from, err := unix.Recvfrom(int(f.Fd), buf, 0)
				if errors.Is(err, unix.EAGAIN) {
					break
				}
				if err != nil {
					return os.NewSyscallError("recvfrom", err)
				}
				l.arrival(int(f.Fd), buf[:n], from, take)
			}
		}
	}
	return nil
}

func (l *Lab) arrival(fd int, b []byte, from unix.Sockaddr, take func(uint32, string)) {
	if fd == l.frames {
		at, ok := from.(*unix.SockaddrLinklayer)
		if !ok || at.Pkttype == unix.PACKET_OUTGOING || len(b) < 14 {
			return
		}
		if tag, _, ok := parse(b[14:]); ok {
			take(tag, l.byFar[at.Ifindex])
		}
		return
	}
	if l.arrivals[fd] == unix.AF_INET {
		if tag, _, ok := parse(b); ok {
			take(tag, "")
		}
		return
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return
	}
	if tag, ok := tagOf(uint8(protocol), b); ok { // raw sockets of IPv6 leave the header out
		take(tag, "")
	}
}
