package link

import (
	"net/netip"
	"regexp"

	"github.com/causeway-net/causeway/internal/nodeaddr"
)

// seenLink is an interface as the kernel has it.
type seenLink struct {
	nodeaddr.Link
	mtu int // bytes
}

// stub reports whether addresses stand on the link that others reach through other links:
// what routing to the host uses.
func (l seenLink) stub() bool { return l.Loopback || l.Kind == "dummy" }

func (l seenLink) has(pass func(netip.Addr) bool) bool {
	for _, a := range l.Addrs {
		if pass(a.Addr()) {
			return true
		}
	}
	return false
}

// bare are the links as Choose wants them.
func bare(links []seenLink) []nodeaddr.Link {
	out := make([]nodeaddr.Link, len(links))
	for i, l := range links {
		out[i] = l.Link
	}
	return out
}

// subnets picks the length of each address: the shortest, and never one of a pod's link or
// of a tunnel.
func subnets(links []seenLink) map[netip.Addr]netip.Prefix {
	out := map[netip.Addr]netip.Prefix{}
	for _, l := range links {
		if nodeaddr.Ours(l.Name) {
			continue
		}
		for _, p := range l.Addrs {
			if known, ok := out[p.Addr()]; !ok || p.Bits() < known.Bits() {
				out[p.Addr()] = p.Prefix
			}
		}
	}
	return out
}

// addresses are those of each interface that is no pod's and no tunnel of ours.
func addresses(links []seenLink) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, l := range links {
		if nodeaddr.Ours(l.Name) {
			continue
		}
		for _, p := range l.Addrs {
			out[l.Name] = append(out[l.Name], p.Addr())
		}
	}
	return out
}

// uplinks picks the links that carry the node's traffic, and their smallest MTU. With a
// pattern they are those whose names match: of them those that are up, if any is. Otherwise
// they are those that hold a node address, or, when the node's address stands on the loopback
// or a dummy (routing to the host), every link that is up, has an address of its own and
// leads out of the node. Pods' links and tunnels never are.
func uplinks(links []seenLink, nodeAddrs []netip.Addr, pattern *regexp.Regexp) (names []string, mtu int) {
	take := func(pass func(seenLink) bool) bool {
		for _, l := range links {
			if !nodeaddr.Ours(l.Name) && pass(l) {
				names = append(names, l.Name)
				if mtu == 0 || l.mtu < mtu {
					mtu = l.mtu
				}
			}
		}
		return len(names) > 0
	}
	if pattern != nil {
		named := func(l seenLink) bool { return pattern.MatchString(l.Name) }
		if !take(func(l seenLink) bool { return l.Up && named(l) }) {
			take(named)
		}
		return names, mtu
	}
	bears := func(l seenLink) bool {
		return l.has(func(a netip.Addr) bool {
			for _, n := range nodeAddrs {
				if n == a {
					return true
				}
			}
			return false
		})
	}
	if take(func(l seenLink) bool { return bears(l) && !l.stub() }) {
		return names, mtu
	}
	onStub := false
	for _, l := range links {
		onStub = onStub || bears(l) && l.stub()
	}
	if !onStub {
		return nil, 0
	}
	carries := func(l seenLink) bool { return l.Up && !l.stub() && len(l.Addrs) > 0 }
	all := bare(links)
	if !take(func(l seenLink) bool { return carries(l) && !nodeaddr.Internal(l.Link, all) }) {
		take(carries)
	}
	return names, mtu
}
