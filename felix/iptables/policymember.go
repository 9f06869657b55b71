package iptables

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/policy"
)

// role is what a workload's own addresses are in the sets of (address, interface).
type role uint8

const (
	// opened: no policy selects the workload. All that it sends from its addresses, and all that is sent to
	// them, passes; it needs no chain.
	opened role = iota
	// source: its chains decide, and drop what it sends from an address that is no member.
	source
)

var roles = [...]role{opened, source}

// memberSet names the set of a role. No set of policy's own has a name so short.
func memberSet(f Family, r role) string {
	prefix := ipset.Prefix4
	if f == IPv6 {
		prefix = ipset.Prefix6
	}
	return prefix + [...]string{opened: "open", source: "src"}[r]
}

// own lists the addresses of a workload that it may send from.
func own(ep *policy.Endpoint) []netip.Addr {
	var out []netip.Addr
	for _, a := range ep.Addresses {
		if slices.Contains(ep.Sources, netip.PrefixFrom(a, a.BitLen())) {
			out = append(out, a)
		}
	}
	return out
}

// unruled reports whether a workload has no chains: no policy selects it, and it is granted no
// prefix beside its own addresses, which could not be a member (ipset.MaxInterfaces).
func unruled(ep *policy.Endpoint) bool {
	n := len(own(ep))
	return ep.Open() && len(ep.Addresses) == n && len(ep.Sources) == n
}

func roleOf(ep *policy.Endpoint) role {
	if unruled(ep) {
		return opened
	}
	return source
}

// membership is who is in the sets of both roles, as it was declared. It is pure: endpoints
// go in, edits come out. n and upTo count the steps of a Policy.
//
// A workload that changes its role is in both sets until the rules of its new state are in
// the kernel. The set of open workloads is asked before any chain, so that one element of it
// switches all the workload's packets at once, both ways (I2): to open a workload it comes
// before the chains go, to close one it goes after the chains have come.
type membership struct {
	adopted adoption
	seats   map[string]*seat  // by interface
	leaving map[string]uint64 // interfaces in the set of a role they have no more → the step after which they go
}

// seat is what one interface has in the sets.
type seat struct {
	role role
	has  [2][]netip.Addr // by role
}

// memberEdit changes members of one interface in the sets of a role.
type memberEdit struct {
	iface       string
	role        role
	add, remove []netip.Addr
}

func newMembership(known []string) *membership {
	m := &membership{seats: map[string]*seat{}, leaving: map[string]uint64{}}
	for _, r := range roles {
		m.adopted.keeps[r], m.adopted.found[r] = map[string]bool{}, map[string][]netip.Addr{}
		for _, iface := range known {
			m.adopted.keeps[r][iface] = true
		}
	}
	return m
}

// place says what a workload is now. What its role has of it is right at once, new addresses
// first; what it had in the other goes when step n is in the kernel.
func (m *membership) place(ep *policy.Endpoint, n uint64) []memberEdit {
	iface, now := ep.Interface, roleOf(ep)
	s, had := m.seats[iface]
	if !had {
		s = &seat{}
		m.seats[iface] = s
	}
	want := own(ep)
	e := memberEdit{iface: iface, role: now, add: without(want, s.has[now])}
	e.remove = without(append(s.has[now], m.adopted.release(now, iface)...), want)
	if !had || s.role != now {
		delete(m.leaving, iface)
		if other := 1 - now; len(s.has[other]) > 0 || m.adopted.keeping(other, iface) {
			m.leaving[iface] = n
		}
	}
	s.role, s.has[now] = now, want
	if len(e.add)+len(e.remove) == 0 {
		return nil
	}
	return []memberEdit{e}
}

// vacate takes an interface out at once: its chains, which go after, let nothing in its name pass.
func (m *membership) vacate(iface string) []memberEdit {
	var out []memberEdit
	s := m.seats[iface]
	for _, r := range roles {
		e := memberEdit{iface: iface, role: r, remove: m.adopted.release(r, iface)}
		if s != nil {
			e.remove = append(e.remove, s.has[r]...)
		}
		if len(e.remove) > 0 {
			out = append(out, e)
		}
	}
	delete(m.seats, iface)
	delete(m.leaving, iface)
	return out
}

// settle takes out what waited for steps up to that one.
func (m *membership) settle(upTo uint64) []memberEdit {
	var out []memberEdit
	for iface, n := range m.leaving {
		if n > upTo {
			continue
		}
		delete(m.leaving, iface)
		s := m.seats[iface]
		other := 1 - s.role
		if remove := append(s.has[other], m.adopted.release(other, iface)...); len(remove) > 0 {
			out = append(out, memberEdit{iface: iface, role: other, remove: remove})
		}
		s.has[other] = nil
	}
	return out
}

// inSync takes out what was kept of an earlier agent for interfaces that are nobody's now.
func (m *membership) inSync() []memberEdit {
	var out []memberEdit
	for _, iface := range m.adopted.interfaces() {
		if m.seats[iface] == nil {
			out = append(out, m.vacate(iface)...)
		}
	}
	return out
}

func without(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

// adoption is what an earlier agent left in the sets for interfaces that are known and whose
// endpoints are not yet. The Reconciler of sets asks it as it reads them, from its own goroutine.
type adoption struct {
	mu    sync.Mutex
	keeps [2]map[string]bool
	found [2]map[string][]netip.Addr
}

// of is ipset.Set.Adopt of a role's sets.
func (a *adoption) of(r role) func(ipset.Member) bool {
	return func(m ipset.Member) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.keeps[r][m.Interface] || !m.Prefix.IsSingleIP() {
			return false
		}
		if !slices.Contains(a.found[r][m.Interface], m.Prefix.Addr()) {
			a.found[r][m.Interface] = append(a.found[r][m.Interface], m.Prefix.Addr())
		}
		return true
	}
}

// keeping reports whether members of an interface that the sets of a role may have stay.
func (a *adoption) keeping(r role, iface string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keeps[r][iface]
}

// open reports whether the earlier agent left the interface open.
func (a *adoption) open(iface string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.found[opened][iface]) > 0
}

// release ends that members of an interface are kept, and returns those that were.
func (a *adoption) release(r role, iface string) []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.found[r][iface]
	delete(a.keeps[r], iface)
	delete(a.found[r], iface)
	return out
}

// interfaces lists those of whom anything is kept, or may be once the sets are read.
func (a *adoption) interfaces() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, r := range roles {
		for iface := range a.keeps[r] {
			if !slices.Contains(out, iface) {
				out = append(out, iface)
			}
		}
	}
	return out
}
