// Package ipsettest has ipsets in memory: they take, refuse and print what the kernel would,
// as far as Causeway uses it.
package ipsettest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/causeway-net/causeway/felix/ipset"
)

// Kernel is the ipsets of one namespace in memory. It implements ipset.Kernel.
type Kernel struct {
	mu     sync.Mutex
	sets   map[string]*set
	faults []error
	log    []string
}

type set struct {
	header  ipset.Header // Elements unused
	timeout bool
	members map[ipset.Member]bool // the value: nomatch
	crowds  map[netip.Prefix]int  // members by prefix, with interfaces
	clogged bool                  // more than 62 of one prefix: nothing new goes in
}

// New makes a kernel without sets.
func New() *Kernel { return &Kernel{sets: map[string]*set{}} }

// Fail makes the next calls fail, in turn, with these errors, as if the way to the kernel
// was broken; nil lets one pass.
func (k *Kernel) Fail(errs ...error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = append(k.faults, errs...)
}

func (k *Kernel) fault() error {
	if len(k.faults) == 0 {
		return nil
	}
	err := k.faults[0]
	k.faults = k.faults[1:]
	return err
}

// Log returns the commands that passed since the last call, one line a command: a verb, a set and,
// for members, their number.
func (k *Kernel) Log() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.log
	k.log = nil
	return out
}

// Refer adds n references to a set, as rules do.
func (k *Kernel) Refer(name string, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.sets[name]; s != nil {
		s.header.References += n
	}
}

// Headers implements ipset.Kernel.
func (k *Kernel) Headers(context.Context) ([]ipset.Header, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fault(); err != nil {
		return nil, err
	}
	var out []ipset.Header
	for _, s := range k.sets {
		out = append(out, s.head())
	}
	return out, nil
}

func (s *set) head() ipset.Header {
	h := s.header
	h.Elements, h.Odd = len(s.members), s.timeout
	return h
}

// List implements ipset.Kernel.
func (k *Kernel) List(_ context.Context, name string, begin func(ipset.Header), each func(ipset.Listed)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fault(); err != nil {
		return err
	}
	s := k.sets[name]
	if s == nil {
		return ipset.ErrNotExist
	}
	begin(s.head())
	for m, odd := range s.members {
		each(ipset.Listed{Member: m, Odd: odd})
	}
	return nil
}

// Apply implements ipset.Kernel.
func (k *Kernel) Apply(_ context.Context, commands []ipset.Command) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fault(); err != nil {
		return nil, err
	}
	out := make([]error, len(commands))
	for i := range commands {
		c := &commands[i]
		out[i] = k.command(c)
		if out[i] == nil {
			k.log = append(k.log, line(c))
		}
	}
	return out, nil
}

func line(c *ipset.Command) string {
	switch c.Verb {
	case ipset.Create:
		return fmt.Sprintf("create %s %s %s %d", c.Name, c.Type, c.Family, c.MaxElem)
	case ipset.Destroy:
		return "destroy " + c.Name
	case ipset.Swap:
		return "swap " + c.Name + " " + c.With
	case ipset.Add:
		return fmt.Sprintf("add %s %d", c.Name, len(c.Members))
	}
	return fmt.Sprintf("del %s %d", c.Name, len(c.Members))
}

func (k *Kernel) command(c *ipset.Command) error {
	s := k.sets[c.Name]
	if s == nil && c.Verb != ipset.Create {
		return ipset.ErrNotExist
	}
	switch c.Verb {
	case ipset.Create:
		if s != nil {
			return ipset.ErrExist
		}
		k.sets[c.Name] = newSet(c.Name, c.Type, c.Family, c.MaxElem)
	case ipset.Destroy:
		if s.header.References > 0 {
			return ipset.ErrBusy
		}
		delete(k.sets, c.Name)
	case ipset.Swap:
		o := k.sets[c.With]
		switch {
		case o == nil:
			return ipset.ErrNotExist
		case o.header.Type != s.header.Type || o.header.Family != s.header.Family:
			return ipset.ErrMismatch
		}
		// References stay with the name.
		s.header.Name, o.header.Name = o.header.Name, s.header.Name
		s.header.References, o.header.References = o.header.References, s.header.References
		k.sets[c.Name], k.sets[c.With] = o, s
	case ipset.Add, ipset.Del:
		for i, m := range c.Members {
			if err := s.member(c.Verb == ipset.Add, m, false); err != nil {
				if errors.Is(err, ipset.ErrFull) {
					return err
				}
				return &ipset.MemberError{Index: i, Err: err}
			}
		}
	}
	return nil
}

func newSet(name string, t ipset.Type, f ipset.Family, maxElem int) *set {
	return &set{header: ipset.Header{Name: name, Type: t, Family: f, MaxElem: maxElem}, members: map[ipset.Member]bool{}, crowds: map[netip.Prefix]int{}}
}

var errMember = errors.New("the kernel takes no such member")

// member adds or deletes one; adding what is there takes over its flag.
func (s *set) member(add bool, m ipset.Member, nomatch bool) error {
	ifaces := s.header.Type == ipset.HashNetIface
	nets := s.header.Type == ipset.HashNet || s.header.Type == ipset.HashNetPort || ifaces
	ports := s.header.Type == ipset.HashIPPort || s.header.Type == ipset.HashNetPort
	switch {
	case m.Prefix.Addr().Is4() != (s.header.Family == ipset.IPv4), m.Prefix.Masked() != m.Prefix,
		nets && !ifaces && m.Prefix.Bits() == 0, ifaces != (m.Interface != ""), len(m.Interface) > 15, !nets && !m.Prefix.IsSingleIP(),
		ports != (m.Protocol != 0), !ports && m.Port != 0,
		s.header.Type == ipset.HashIP && m.Prefix.Addr().IsUnspecified():
		return errMember
	case !add:
		if _, there := s.members[m]; there && ifaces {
			s.crowds[m.Prefix]--
		}
		delete(s.members, m)
		return nil
	}
	_, there := s.members[m]
	if !there && (len(s.members) >= s.header.MaxElem || s.clogged) {
		return ipset.ErrFull
	}
	if !there && ifaces {
		s.crowds[m.Prefix]++
		s.clogged = s.crowds[m.Prefix] > 62 // so it is with Linux 6.18
	}
	s.members[m] = nomatch
	return nil
}

// Foreign runs one command line as somebody else does with the ipset program: create,
// destroy, flush, add and del, with members as it prints them, and the options nomatch,
// maxelem, timeout and family.
func (k *Kernel) Foreign(command string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := strings.Fields(command)
	s := k.sets[w[1]]
	if s == nil && w[0] != "create" {
		return ipset.ErrNotExist
	}
	switch w[0] {
	case "create":
		if s != nil {
			return ipset.ErrExist
		}
		s = newSet(w[1], ipset.Type(w[2]), ipset.IPv4, 65536)
		for i := 3; i+1 < len(w); i += 2 {
			switch w[i] {
			case "family":
				if w[i+1] == "inet6" {
					s.header.Family = ipset.IPv6
				}
			case "maxelem":
				s.header.MaxElem, _ = strconv.Atoi(w[i+1])
			case "timeout":
				s.timeout = true
			}
		}
		k.sets[w[1]] = s
	case "destroy":
		if s.header.References > 0 {
			return ipset.ErrBusy
		}
		delete(k.sets, w[1])
	case "flush":
		clear(s.members)
		clear(s.crowds)
	case "add", "del":
		m, err := parse(w[2])
		if err != nil {
			return err
		}
		return s.member(w[0] == "add", m, slices.Contains(w, "nomatch"))
	default:
		return fmt.Errorf("unknown command %q", command)
	}
	return nil
}

func parse(text string) (ipset.Member, error) {
	var m ipset.Member
	ip, rest, ports := strings.Cut(text, ",")
	if !strings.Contains(ip, "/") {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return m, err
		}
		m.Prefix = netip.PrefixFrom(a, a.BitLen())
	} else {
		p, err := netip.ParsePrefix(ip)
		if err != nil {
			return m, err
		}
		m.Prefix = p.Masked()
	}
	if ports && !strings.Contains(rest, ":") {
		m.Interface = rest
		return m, nil
	}
	if ports {
		proto, port, _ := strings.Cut(rest, ":")
		names := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}
		m.Protocol = names[proto]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || m.Protocol == 0 {
			return m, fmt.Errorf("member %q: want ADDRESS,tcp:PORT, udp or sctp", text)
		}
		m.Port = uint16(n)
	}
	return m, nil
}

// Dump prints all sets, sorted, in the words of ipset save without the options of creation
// but family.
func (k *Kernel) Dump() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		s := k.sets[name]
		family := map[ipset.Family]string{ipset.IPv4: "inet", ipset.IPv6: "inet6"}[s.header.Family]
		fmt.Fprintf(&b, "create %s %s family %s\n", name, s.header.Type, family)
		var lines []string
		for m, nomatch := range s.members {
			l := fmt.Sprintf("add %s %s", name, Text(m))
			if nomatch {
				l += " nomatch"
			}
			lines = append(lines, l+"\n")
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// Text is a member as ipset save prints it.
func Text(m ipset.Member) string {
	s := m.Prefix.String()
	if m.Prefix.IsSingleIP() {
		s = m.Prefix.Addr().String()
	}
	if m.Protocol != 0 {
		s += fmt.Sprintf(",%s:%d", map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}[m.Protocol], m.Port)
	}
	if m.Interface != "" {
		s += "," + m.Interface
	}
	return s
}
