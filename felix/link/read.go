package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/nodeaddr"
)

// readLinks reads the links of the namespace and their addresses of global scope.
func readLinks() ([]seenLink, error) {
	links, err := retried(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := retried(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int][]nodeaddr.Addr{}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || !a.IP.IsGlobalUnicast() {
			continue
		}
		bits, _ := a.Mask.Size()
		byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], nodeaddr.Addr{
			Prefix:     netip.PrefixFrom(ip.Unmap(), bits),
			Secondary:  a.Flags&unix.IFA_F_SECONDARY != 0, // IFA_F_TEMPORARY is the same bit
			Deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
			Tentative:  a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0,
		})
	}
	out := make([]seenLink, 0, len(links))
	for _, l := range links {
		at := l.Attrs()
		out = append(out, seenLink{mtu: at.MTU, Link: nodeaddr.Link{
			Name: at.Name, Index: at.Index, Kind: l.Type(), Master: at.MasterIndex, Addrs: byIndex[at.Index],
			Up: at.Flags&net.FlagUp != 0, Running: at.RawFlags&unix.IFF_RUNNING != 0, Loopback: at.Flags&net.FlagLoopback != 0,
		}})
	}
	return out, nil
}

// source is what the kernel sends from to one of the destinations, the first that it has a
// route to, and whether that destination is the node's own. No packet is sent.
func source(dests []netip.Addr) (src netip.Addr, own bool, err error) {
	var errs []error
	for _, d := range dests {
		routes, err := netlink.RouteGet(d.AsSlice())
		if err != nil {
			errs = append(errs, fmt.Errorf("no route to %s: %w", d, err))
			continue
		}
		for _, r := range routes {
			if a, ok := netip.AddrFromSlice(r.Src); ok {
				return a.Unmap(), r.Type == unix.RTN_LOCAL, nil
			}
		}
		errs = append(errs, fmt.Errorf("the route to %s names no source address", d))
	}
	return netip.Addr{}, false, errors.Join(errs...)
}

// retried repeats a dump that the kernel says was interrupted by a change (EINTR).
func retried[T any](dump func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

func (u *Uplinks) readSysctl(name string) string {
	b, err := os.ReadFile(filepath.Join(u.sys, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// setSysctl writes name unless it has the value already.
func (u *Uplinks) setSysctl(name, value string) error {
	old := u.readSysctl(name)
	if old == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(u.sys, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s: cannot set %s (is %q; is %s writable in this container?): %w",
			strings.ReplaceAll(name, "/", "."), value, old, u.sys, err)
	}
	u.log.Info("sysctl set", "name", strings.ReplaceAll(name, "/", "."), "value", value, "was", old)
	return nil
}
