package route

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	errOverrun     = errors.New("netlink: events were lost (ENOBUFS)")
	errInterrupted = errors.New("netlink: the kernel's routes changed while they were read (NLM_F_DUMP_INTR)")
)

const (
	// eventBuffer and writeBuffer are socket buffers in bytes. The first holds what happens
	// while one chunk is written, and a link that drops its routes; each message costs
	// about 1 KiB there. Memory is taken only while messages queue.
	eventBuffer = 64 << 20
	writeBuffer = 8 << 20
	readSize    = 256 << 10 // more than the largest message
	answerTime  = 20 * time.Second
	skipStats   = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
)

// sockets are the real kernel: one netlink socket each for notifications, dumps and
// writes. Writes are pipelined: a batch is one sendmsg, only its last message asks for an
// acknowledgement, and the kernel answers the others when they fail.
type sockets struct {
	proto  uint8
	events int
	dumps  int
	writes int
	port   uint32 // of writes: notifications that carry it are echoes of our own

	file  *os.File // of events, for the poller
	rearm chan struct{}
	quit  chan struct{}
	wg    sync.WaitGroup

	seq   uint64 // of the last write sent
	acked uint64 // of the last write acknowledged
	echo  uint64 // of the last write known to lie before all further events
	read  []byte
	enc   encoder
	ev    event
}

// openSockets opens them in the network namespace at path, or in the calling thread's.
// Notifications are subscribed to before it returns, so that a dump after it misses
// nothing.
func openSockets(path string, proto uint8, poke func()) (*sockets, error) {
	s := &sockets{
		proto: proto, events: -1, dumps: -1, writes: -1,
		rearm: make(chan struct{}, 1), quit: make(chan struct{}), read: make([]byte, readSize),
	}
	err := inNetNS(path, s.openAll)
	if err != nil {
		s.close()
		return nil, err
	}
	s.file = os.NewFile(uintptr(s.events), "netlink events")
	conn, err := s.file.SyscallConn()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("netlink events: %w", err)
	}
	s.wg.Go(func() { s.watch(conn, poke) })
	return s, nil
}

// inNetNS runs f on a thread in the namespace at path; the thread is not used again.
func inNetNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("network namespace %s: setns: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *sockets) openAll() (err error) {
	groups := []uint{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	}
	if s.events, _, err = openSocket(unix.SOCK_NONBLOCK, eventBuffer, groups); err != nil {
		return err
	}
	if s.dumps, _, err = openSocket(0, writeBuffer, nil); err != nil {
		return err
	}
	s.writes, s.port, err = openSocket(0, writeBuffer, nil)
	return err
}

func openSocket(mode, buffer int, groups []uint) (fd int, port uint32, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|mode, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, 0, fmt.Errorf("netlink socket: %w", err)
	}
	fail := func(what string, err error) (int, uint32, error) {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("netlink %s: %w", what, err)
	}
	var mask uint32
	for _, g := range groups {
		mask |= 1 << (g - 1)
	}
	// The FORCE options pass rmem_max and wmem_max, with CAP_NET_ADMIN.
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, buffer); err != nil {
			return fail("socket buffer", err)
		}
	}
	tv := unix.NsecToTimeval(answerTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fail("timeout", err)
	}
	for _, o := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil {
			return fail("option", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: mask}); err != nil {
		return fail("bind", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fail("getsockname", err)
	}
	return fd, sa.(*unix.SockaddrNetlink).Pid, nil
}

// watch pokes when events wait, once per drain.
func (s *sockets) watch(conn syscall.RawConn, poke func()) {
	for {
		err := conn.Read(func(fd uintptr) bool {
			// poll and not recv with MSG_PEEK, which would eat an ENOBUFS.
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return err == nil && n > 0
		})
		if err != nil {
			return // closed
		}
		poke()
		select {
		case <-s.rearm:
		case <-s.quit:
			return
		}
	}
}

func (s *sockets) close() {
	close(s.quit)
	if s.file != nil {
		_ = s.file.Close()
	} else if s.events >= 0 {
		unix.Close(s.events)
	}
	for _, fd := range []int{s.dumps, s.writes} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.wg.Wait()
}

// receive reads once and walks the messages; each returns false to stop.
func (s *sockets) receive(fd int, each func(typ, flags uint16, seq, port uint32, body []byte) error) error {
	var n int
	var err error
	for {
		if n, err = unix.Read(fd, s.read); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return err
	}
	for b := s.read[:n]; len(b) >= nlHeader; {
		size := int(ne.Uint32(b))
		if size < nlHeader || size > len(b) {
			return errors.New("netlink: malformed message")
		}
		if err := each(ne.Uint16(b[4:]), ne.Uint16(b[6:]), ne.Uint32(b[8:]), ne.Uint32(b[12:]), b[nlHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// drain implements kernel.
func (s *sockets) drain(tell func(*event)) error {
	defer func() {
		select {
		case s.rearm <- struct{}{}:
		default:
		}
	}()
	var overrun error
	for {
		err := s.receive(s.events, func(typ, flags uint16, seq, port uint32, body []byte) error {
			if port == s.port {
				// The echo of a write. Its sequence number places all events around it.
				s.echo = max(s.echo, s.seq-uint64(uint32(s.seq)-seq))
				return nil
			}
			s.ev.dump, s.ev.after = false, s.echo
			if s.ev.parse(typ, flags, body) {
				tell(&s.ev)
			}
			return nil
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			// The kernel notifies before it acknowledges: whatever comes now is younger
			// than every write that was acknowledged.
			s.echo = s.acked
			return overrun
		case errors.Is(err, unix.ENOBUFS):
			overrun = errOverrun
		case err != nil:
			return fmt.Errorf("netlink events: %w", err)
		}
	}
}

// dump implements kernel.
func (s *sockets) dump(ctx context.Context, tell func(*event)) error {
	requests := []struct {
		typ  uint16
		body []byte
	}{
		{unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg)},
		{unix.RTM_GETROUTE, []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_LOCAL, 0, 0, typeLocal, 0, 0, 0, 0}},
		{unix.RTM_GETROUTE, []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0}},
		{unix.RTM_GETROUTE, []byte{unix.AF_INET6, 0, 0, 0, unix.RT_TABLE_LOCAL, 0, 0, typeLocal, 0, 0, 0, 0}},
		{unix.RTM_GETROUTE, []byte{unix.AF_INET6, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0}},
	}
	for _, r := range requests {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.dumpOne(r.typ, r.body, tell); err != nil {
			return err
		}
	}
	return nil
}

func (s *sockets) dumpOne(typ uint16, body []byte, tell func(*event)) error {
	e := encoder{}
	at := e.begin(typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 1)
	e.buf = append(e.buf, body...)
	if typ == unix.RTM_GETLINK {
		e.u32(unix.IFLA_EXT_MASK, skipStats)
	}
	e.end(at)
	if _, err := unix.Write(s.dumps, e.buf); err != nil {
		return fmt.Errorf("netlink dump: %w", err)
	}
	interrupted, done := false, false
	var failed error
	for !done {
		err := s.receive(s.dumps, func(typ, flags uint16, seq, port uint32, body []byte) error {
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if len(body) >= 4 {
					failed = parseError(0, body[:4])
				}
			default:
				s.ev.dump, s.ev.after = true, s.acked
				if s.ev.parse(typ, 0, body) {
					tell(&s.ev)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("netlink dump: %w", err)
		}
	}
	switch {
	case errors.Is(failed, unix.EINTR) || interrupted:
		return errInterrupted
	case errors.Is(failed, unix.ENOENT), errors.Is(failed, unix.EAFNOSUPPORT), errors.Is(failed, unix.EOPNOTSUPP):
		return nil // a table that does not exist yet, a kernel without IPv6
	case failed != nil:
		return fmt.Errorf("netlink dump: %w", failed)
	}
	return nil
}

// write implements kernel.
func (s *sockets) write(ops []op) (first uint64, failed map[int]error, err error) {
	first = s.seq + 1
	fail := func(i int, err error) {
		if failed == nil {
			failed = map[int]error{}
		}
		failed[i] = err
	}
	s.enc.buf = s.enc.buf[:0]
	last, lastSeq := -1, uint32(0)
	for i := range ops {
		s.seq++
		at := len(s.enc.buf)
		if err := s.enc.route(&ops[i], s.proto, uint32(s.seq)); err != nil {
			fail(i, err)
			continue
		}
		last, lastSeq = at, uint32(s.seq)
	}
	if last < 0 {
		return first, failed, nil
	}
	ne.PutUint16(s.enc.buf[last+6:], ne.Uint16(s.enc.buf[last+6:])|unix.NLM_F_ACK)
	if _, err := unix.Write(s.writes, s.enc.buf); err != nil {
		return first, nil, fmt.Errorf("netlink write: %w", err)
	}
	for done := false; !done; {
		err := s.receive(s.writes, func(typ, flags uint16, seq, port uint32, body []byte) error {
			if typ != unix.NLMSG_ERROR {
				return nil
			}
			i := int(seq - uint32(first))
			if err := parseError(flags, body); err != nil && i >= 0 && i < len(ops) {
				fail(i, err)
			}
			done = done || seq == lastSeq
			return nil
		})
		if err != nil {
			return first, nil, fmt.Errorf("netlink write: %w", err)
		}
	}
	s.acked = s.seq
	return first, failed, nil
}
