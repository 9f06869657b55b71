package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// eventBuffer is the size in bytes of the notification socket's buffer: some 20,000 entries.
const eventBuffer = 8 << 20

// inboxMost bounds the notifications that wait; beyond it all is in doubt.
const inboxMost = 10000

// inbox takes notifications about our devices from the reader to the loop.
type inbox struct {
	mu sync.Mutex
	// index of each device's link; 0: none, notifications come by name only.
	index [kinds]int
	doubt [kinds]doubt
	neigh [kinds][]notice
	waits int // notices in neigh
	lost  bool
}

// notice is a change of a neighbour or FDB entry.
type notice struct {
	msg  neighMsg
	gone bool
}

// watch names the link whose notifications concern k from now on.
func (in *inbox) watch(k model.Tunnel, index int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.index[k] != index {
		in.index[k] = index
		in.waits -= len(in.neigh[k])
		in.neigh[k] = nil
	}
}

// put takes the word of the kernel and reports whether it is about a device of ours.
func (in *inbox) put(typ uint16, body []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.lost {
		return false // the loop knows
	}
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
			return false
		}
		name := ""
		eachAttr(body[unix.SizeofIfInfomsg:], func(typ uint16, data []byte) {
			if typ == unix.IFLA_IFNAME {
				name = unix.ByteSliceToString(data)
			}
		})
		return in.raise(doubtLink, int(int32(binary.NativeEndian.Uint32(body[4:]))), name)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(body) < unix.SizeofIfAddrmsg {
			return false
		}
		return in.raise(doubtAddrs, int(binary.NativeEndian.Uint32(body[4:])), "")
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		index := 0
		if len(body) > 4 {
			eachAttr(body[4:], func(typ uint16, data []byte) { // struct netconfmsg is one byte, padded
				if typ == netconfaIfindex && len(data) == 4 {
					index = int(int32(binary.NativeEndian.Uint32(data)))
				}
			})
		}
		return in.raise(doubtLink, index, "")
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		m, ok := parseNeigh(body)
		if !ok || m.family == unix.AF_BRIDGE && !m.full {
			return false
		}
		for k, index := range in.index {
			if index == 0 || index != m.index {
				continue
			}
			if in.waits++; in.waits > inboxMost {
				in.lose()
				return true
			}
			in.neigh[k] = append(in.neigh[k], notice{m, typ == unix.RTM_DELNEIGH})
			return true
		}
	}
	return false
}

// netconfaIfindex is NETCONFA_IFINDEX of include/uapi/linux/netconf.h.
const netconfaIfindex = 1

// raise is called with mu held.
func (in *inbox) raise(part doubt, index int, name string) (ours bool) {
	for k := range in.doubt {
		if index > 0 && in.index[k] == index || name == model.Tunnel(k).Device() {
			in.doubt[k] |= part
			ours = true
		}
	}
	return ours
}

// lose is called with mu held: notifications were lost.
func (in *inbox) lose() {
	in.lost, in.waits, in.neigh = true, 0, [kinds][]notice{}
}

// overrun says that the kernel dropped notifications.
func (in *inbox) overrun() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.lose()
}

// take turns what came into doubts about devices.
func (in *inbox) take(devices *[kinds]device) {
	in.mu.Lock()
	doubts, neigh, lost := in.doubt, in.neigh, in.lost
	in.doubt, in.neigh, in.waits, in.lost = [kinds]doubt{}, [kinds][]notice{}, 0, false
	in.mu.Unlock()
	for k := range devices {
		dev := &devices[k]
		dev.doubt |= doubts[k]
		if lost {
			dev.doubt = doubtAll
		}
		for _, n := range neigh[k] {
			if !dev.got.expects(n) {
				dev.doubt |= doubtPeers
			}
		}
	}
}

// expects reports whether n leaves the entry as it is believed to be. When every
// notification since the last reading does, the belief is right: the last change of each
// entry that was not our own has a notification, which is compared with what was written since.
func (s *state) expects(n notice) bool {
	m := n.msg
	if s.link == nil || s.link.index != m.index {
		return true // of an earlier link
	}
	if m.family == unix.AF_BRIDGE {
		now, ok := s.fdb[m.mac]
		if n.gone {
			return !ok
		}
		return ok && now == m.fdb()
	}
	now, ok := s.neigh[m.dst]
	entry, static := m.static()
	if n.gone || !static {
		return !ok
	}
	return ok && now == entry
}

// eachAttr walks attributes; a malformed rest is left out.
func eachAttr(b []byte, each func(typ uint16, data []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&attrMask, b[unix.SizeofNlAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// notices is where notifications come from.
type notices interface {
	// read hands them to in until close is called, and pokes for those that concern us.
	read(in *inbox, poke func()) error
	close()
}

// subscription is the socket of the kernel's notifications.
type subscription struct {
	s      *nl.NetlinkSocket
	closed atomic.Bool
}

func subscribe() (*subscription, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("subscribe to links, neighbours and addresses: %w", err)
	}
	if err := s.SetReceiveBufferSize(eventBuffer, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink socket buffer: %w", err)
	}
	return &subscription{s: s}, nil
}

func (s *subscription) close() {
	s.closed.Store(true)
	s.s.Close()
}

// read implements notices.
func (s *subscription) read(in *inbox, poke func()) error {
	for {
		msgs, from, err := s.s.Receive()
		switch {
		case err != nil && s.closed.Load():
			return nil
		case errors.Is(err, unix.ENOBUFS):
			in.overrun()
			poke()
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("netlink notifications: %w", err)
		}
		ours := false
		for _, m := range msgs {
			if from.Pid == nl.PidKernel && in.put(m.Header.Type, m.Data) {
				ours = true
			}
		}
		if ours {
			poke()
		}
	}
}
