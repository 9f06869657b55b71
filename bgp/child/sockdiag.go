package child

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// connection is one TCP connection of the child, from sock_diag(7).
type connection struct {
	local, remote netip.AddrPort
	uid, inode    uint32
	lastRecv      time.Duration // tcpi_last_data_recv: how long ago data came; a kernel tick exact
}

// Offsets in struct inet_diag_msg and struct tcp_info (linux/inet_diag.h, linux/tcp.h).
const (
	diagMsgLen      = 72
	diagInfo        = 2 // INET_DIAG_INFO
	offLastDataRecv = 52
	// diagStates are the states in which a peer's bytes can be in the child's hands:
	// ESTABLISHED and CLOSE_WAIT (net/tcp_states.h).
	diagStates = 1<<1 | 1<<8
)

// connections lists the connected TCP sockets of one family in the caller's network namespace.
func connections(family uint8) ([]connection, error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	body := make([]byte, 56) // struct inet_diag_req_v2
	body[0], body[1], body[2] = family, unix.IPPROTO_TCP, 1<<(diagInfo-1)
	binary.NativeEndian.PutUint32(body[4:], diagStates)
	req.AddRawData(body)
	var out []connection
	err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(m []byte) bool {
		if c, ok := parseConnection(m); ok {
			out = append(out, c)
		}
		return true
	})
	if err != nil && len(out) == 0 {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return out, nil
}

// parseConnection reads one struct inet_diag_msg with its attributes.
func parseConnection(m []byte) (connection, bool) {
	if len(m) < diagMsgLen {
		return connection{}, false
	}
	addr := func(off int) netip.Addr {
		if m[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(m[off : off+4]))
		}
		a := netip.AddrFrom16([16]byte(m[off : off+16])).Unmap()
		if i := binary.NativeEndian.Uint32(m[40:]); i != 0 && a.IsLinkLocalUnicast() {
			if link, err := net.InterfaceByIndex(int(i)); err == nil {
				a = a.WithZone(link.Name)
			}
		}
		return a
	}
	c := connection{
		local:  netip.AddrPortFrom(addr(8), binary.BigEndian.Uint16(m[4:])),
		remote: netip.AddrPortFrom(addr(24), binary.BigEndian.Uint16(m[6:])),
		uid:    binary.NativeEndian.Uint32(m[64:]),
		inode:  binary.NativeEndian.Uint32(m[68:]),
	}
	attrs, err := nl.ParseRouteAttr(m[diagMsgLen:])
	if err != nil {
		return connection{}, false
	}
	for _, a := range attrs {
		if a.Attr.Type == diagInfo && len(a.Value) >= offLastDataRecv+4 {
			c.lastRecv = time.Duration(binary.NativeEndian.Uint32(a.Value[offLastDataRecv:])) * time.Millisecond
			return c, true
		}
	}
	return connection{}, false
}

// socketInodes lists the sockets that a process holds open; nil when the caller may not look
// (another user's process needs CAP_SYS_PTRACE).
func socketInodes(pid int) map[uint32]bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := map[uint32]bool{}
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		if s, ok := strings.CutPrefix(target, "socket:["); ok {
			if n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 32); err == nil {
				out[uint32(n)] = true
			}
		}
	}
	return out
}

// heard lists the peers that the process pid is connected to, the one that spoke last first.
// Where the process's descriptors cannot be seen, its user's connections stand for them. except
// is the gRPC listener: its callers are no peers.
func heard(pid, uid int, except netip.AddrPort) ([]Heard, error) {
	var all []connection
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		c, err := connections(family)
		if err != nil {
			return nil, err
		}
		all = append(all, c...)
	}
	return rank(all, socketInodes(pid), uint32(uid), except), nil
}
