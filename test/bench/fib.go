package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
)

// Routes of the sender: /24s from firstRoute on.
var firstRoute = netip.MustParseAddr("20.0.0.0")

// routeAt is the i-th route of the sender.
func routeAt(i int) netip.Prefix {
	b := firstRoute.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i)<<8)
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

// fibWatch counts, from outside, the sender's routes that come into a node's kernel. It
// listens as `ip monitor` does, for whoever writes them, and drains its socket every few
// milliseconds: so it costs every receiver the same, and little.
type fibWatch struct {
	fd   int
	want int
	seen []bool
	have int

	first, last time.Time // of the first and the last new route, to fibTick
}

// fibTick is how exact a fibWatch's times are.
const fibTick = 2 * time.Millisecond

// watchFIB begins to listen in n for the first want routes.
func watchFIB(n *lab.Node, want int) (*fibWatch, error) {
	w := &fibWatch{fd: -1, want: want, seen: make([]bool, want)}
	err := n.Do(func() error {
		var err error
		if w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_ROUTE - 1)})
	})
	if err != nil {
		w.close()
		return nil, fmt.Errorf("node %s: watching routes: %w", n, err)
	}
	return w, nil
}

func (w *fibWatch) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
	}
}

// wait returns when all routes are in.
func (w *fibWatch) wait(ctx context.Context) error {
	tick := time.NewTicker(fibTick)
	defer tick.Stop()
	buf := make([]byte, 64<<10)
	for {
		before := w.have
		if err := w.drain(buf); err != nil {
			return fmt.Errorf("watching routes: %w", err)
		}
		if w.have > before {
			w.last = time.Now()
			if before == 0 {
				w.first = w.last
			}
		}
		if w.have == w.want {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d routes came: %w", w.have, w.want, context.Cause(ctx))
		}
	}
}

// drain reads what has come. Losing a message (ENOBUFS) is an error: counts would be wrong.
func (w *fibWatch) drain(buf []byte) error {
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return fmt.Errorf("a message of %d bytes in %d", size, len(b))
			}
			w.note(binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:size])
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// note counts a route of the sender that was not seen before. The layout is struct rtmsg
// and its attributes (include/uapi/linux/rtnetlink.h).
func (w *fibWatch) note(kind uint16, body []byte) {
	if kind != unix.RTM_NEWROUTE || len(body) < unix.SizeofRtMsg || body[1] != 24 || body[4] != unix.RT_TABLE_MAIN {
		return
	}
	for b := body[unix.SizeofRtMsg:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.RTA_DST && size == unix.SizeofRtAttr+4 {
			base := firstRoute.As4()
			i := int(binary.BigEndian.Uint32(b[unix.SizeofRtAttr:])-binary.BigEndian.Uint32(base[:])) >> 8
			if i >= 0 && i < w.want && !w.seen[i] {
				w.seen[i] = true
				w.have++
			}
			return
		}
		b = b[min(len(b), (size+3)&^3):]
	}
}
