// Package ipset owns Causeway's ipsets: those whose names begin with one of its prefixes.
// It brings them to the state declared by Replace, Update and Delete, heals what others do
// to them, and touches no other set.
//
// Desired and actual members stand side by side in one table per set; a change is written
// as the members it adds and takes away, in place, whatever the size of the set (I8). What
// is added is added before anything is taken away. A set that cannot be mended in place
// (another limit, timeouts that somebody gave it) is built anew beside the old one and
// swapped in, so that rules never see it half full.
//
// One goroutine writes. A small change that only adds, as that of a pod that is attached, is
// written between the pieces of whatever longer work is under way: thousands of members of
// another set, or the reading of all sets. What takes members away waits for all that was
// asked for before it. Wait follows the sets that it names, and no others.
//
// What an agent declares for the first time is compared with what an earlier one left: only
// the difference is written. Set.Adopt keeps members that the new agent does not know yet.
//
// Ownership stands in the kernel: a set with our prefix that nobody declared is ours, too,
// and is destroyed once every owner has declared its sets (InSync) and no rule refers to it.
// Calico's sets begin alike and are pruned alike.
//
// The kernel tells nobody about changes of sets. So the Reconciler looks at the headers of
// all sets every few seconds, where a flush or a lost set shows, and reads all members of
// its own at every resync.
package ipset

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Family is the IP version of a set's members.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Type is the kernel's name of what a set holds.
type Type string

// The types.
const (
	HashIP       Type = "hash:ip"        // addresses
	HashNet      Type = "hash:net"       // prefixes; the longest that holds an address counts
	HashIPPort   Type = "hash:ip,port"   // address, protocol and port
	HashNetPort  Type = "hash:net,port"  // prefix, protocol and port
	HashNetIface Type = "hash:net,iface" // prefix and interface; see MaxInterfaces
)

func (t Type) nets() bool   { return t == HashNet || t == HashNetPort || t == HashNetIface }
func (t Type) ports() bool  { return t == HashIPPort || t == HashNetPort }
func (t Type) ifaces() bool { return t == HashNetIface }
func (t Type) known() bool  { return slices.Contains(types, t) }

var types = []Type{HashIP, HashNet, HashIPPort, HashNetPort, HashNetIface}

// MaxInterfaces is how many members of a set of HashNetIface may have the same prefix. The
// kernel keeps them in one bucket, and once any prefix has had more than 62, the set refuses
// new members of other prefixes as well (mtype_add in net/netfilter/ipset/ip_set_hash_gen.h).
const MaxInterfaces = 48

// MaxName is the longest name of a set, in bytes (IPSET_MAXNAMELEN less its end,
// include/uapi/linux/netfilter/ipset/ip_set.h).
const MaxName = 31

// Member is one member of a set.
type Member struct {
	// Prefix is a single address in the types of addresses. Length 0, which the kernel takes
	// only in HashNetIface, is written as its two halves in other types.
	Prefix netip.Prefix
	// Protocol is an IANA number, and Port its port (for ICMP type<<8 | code); both only in
	// types with ports. A protocol that has no ports has port 0.
	Protocol uint8
	Port     uint16
	// Interface is an interface's whole name, in HashNetIface only; there it is required.
	Interface string
}

func (m Member) String() string {
	s := m.Prefix.String()
	if m.Prefix.IsSingleIP() {
		s = m.Prefix.Addr().String()
	}
	if m.Protocol != 0 || m.Port != 0 {
		s += fmt.Sprintf(",%d:%d", m.Protocol, m.Port)
	}
	if m.Interface != "" {
		s += "," + m.Interface
	}
	return s
}

// Set is a set with all its members.
type Set struct {
	Name    string // required; begins with one of Config.Prefixes, at most MaxName bytes
	Type    Type   // required
	Family  Family // required
	Members []Member
	// Adopt chooses among the members that stand in the kernel when the set is declared for
	// the first time, or again after Delete: those of an earlier agent that it answers true
	// for are kept as if they were among Members, until Update removes them or the set is
	// replaced without Adopt. A replacement with Adopt keeps those adopted before that it
	// answers true for. It is called by the goroutine of Run and must be quick. Optional:
	// nothing is kept.
	Adopt func(Member) bool
}

// Prefixes begin the names of our sets, as they do Calico's.
const (
	Prefix4 = "cali40"
	Prefix6 = "cali60"
)

// newSuffix ends the name of a set that is being built; one that stands when the agent
// starts is left over.
const newSuffix = "~new"

// Config says which sets a Reconciler owns and how it reaches them.
type Config struct {
	Log *slog.Logger // required
	// Owners are those who declare sets. Sets that nobody declared are destroyed once all of
	// them have called InSync. Required: at least one.
	Owners []string
	// Prefixes begin the names of our sets. Optional: Prefix4 and Prefix6.
	Prefixes []string
	// Kernel replaces the host's ipset. Optional.
	Kernel Kernel
	// Resync is the longest time until all members are read again. Optional: 90 s.
	Resync time.Duration
	// Glance is how often the headers of sets are looked at. Optional: DefaultGlance; it
	// becomes longer, up to 10 s, where one look takes more than half a percent of it.
	Glance time.Duration
	// MaxElem is the least limit of members that a set is made with. The kernel takes no
	// memory for it, and a set that outgrows it gets a larger one. Optional: DefaultMaxElem.
	MaxElem int
	// Healed is called when sets of ours are again as they should be that somebody else had changed:
	// rules that name them met others meanwhile. It must not wait. Optional.
	Healed func()
}

// Defaults of Config.
const (
	DefaultGlance  = 2 * time.Second
	DefaultMaxElem = 1 << 20
)

func (c *Config) fill() error {
	switch {
	case c.Log == nil:
		return fmt.Errorf("ipset: Config.Log is missing")
	case len(c.Owners) == 0:
		return fmt.Errorf("ipset: Config.Owners is empty; nobody could declare a set")
	case c.Resync < 0 || c.Glance < 0:
		return fmt.Errorf("ipset: Config.Resync is %s and Config.Glance %s; they must be positive, or 0 for the default", c.Resync, c.Glance)
	case c.MaxElem < 0:
		return fmt.Errorf("ipset: Config.MaxElem is %d; it must be positive, or 0 for %d", c.MaxElem, DefaultMaxElem)
	}
	if c.Prefixes == nil {
		c.Prefixes = []string{Prefix4, Prefix6}
	}
	for _, p := range c.Prefixes {
		if p == "" || len(p)+len(newSuffix) > MaxName {
			return fmt.Errorf("ipset: Config.Prefixes has %q; a prefix has 1 to %d bytes", p, MaxName-len(newSuffix))
		}
	}
	if c.Kernel == nil {
		c.Kernel = NewHost()
	}
	if c.Glance == 0 {
		c.Glance = DefaultGlance
	}
	if c.MaxElem == 0 {
		c.MaxElem = DefaultMaxElem
	}
	return nil
}

// prefix returns the prefix that makes a set ours, or nothing.
func (c *Config) prefix(name string) string {
	for _, p := range c.Prefixes {
		if strings.HasPrefix(name, p) {
			return p
		}
	}
	return ""
}

// check says what keeps a set from being made.
func (c *Config) check(s *Set) error {
	switch {
	case c.prefix(s.Name) == "" || strings.HasSuffix(s.Name, newSuffix):
		return fmt.Errorf("the name must begin with %s and not end with %q", strings.Join(c.Prefixes, " or "), newSuffix)
	case len(s.Name) > MaxName:
		return fmt.Errorf("the name has %d bytes; at most %d are possible", len(s.Name), MaxName)
	case strings.ContainsFunc(s.Name, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return fmt.Errorf("the name %q must be ASCII without blanks", s.Name)
	case !s.Type.known():
		return fmt.Errorf("type %q is not one of %q", s.Type, types)
	case s.Family != IPv4 && s.Family != IPv6:
		return fmt.Errorf("family %d must be IPv4 or IPv6", s.Family)
	}
	return nil
}
