// Package link owns what Causeway needs of the node's own interfaces: forwarding is on,
// router advertisements still count on the uplinks, and the MTU that pods inherit is
// known. It changes no link that carries the node's address otherwise.
package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-net/causeway/internal/reconcile"
)

// defaultMTU is Ethernet's, in force until an uplink was seen.
const defaultMTU = 1500

// Uplinks watches the interfaces that carry the node's address.
type Uplinks struct {
	log  *slog.Logger
	loop *reconcile.Loop
	sys  string // folder of the sysctls

	mu    sync.Mutex
	addrs []netip.Addr
	mtu   int
	names []string
	// subnets are the addresses of the node's links, each with the length of its subnet.
	subnets map[netip.Addr]netip.Prefix
	named   bool  // SetNodeAddrs was called
	read    bool  // mtu and names were read for named addresses, once
	err     error // of the last round
}

// Config says how the node's links are looked after.
type Config struct {
	Log     *slog.Logger  // required
	Resync  time.Duration // longest time between two full readings; default reconcile's
	ProcSys string        // the folder of the sysctls; default /proc/sys
}

// New makes Uplinks for the network namespace that Run is called in.
func New(cfg Config) *Uplinks {
	if cfg.ProcSys == "" {
		cfg.ProcSys = "/proc/sys"
	}
	u := &Uplinks{log: cfg.Log.With("reconciler", "link"), sys: cfg.ProcSys, mtu: defaultMTU}
	u.loop = (&reconcile.Loop{Name: "link", Log: cfg.Log, Apply: u.apply, Resync: cfg.Resync}).Init()
	return u
}

func (u *Uplinks) String() string { return "felix/link" }

// SetNodeAddrs names the addresses the node is reached at.
func (u *Uplinks) SetNodeAddrs(addrs ...netip.Addr) {
	u.mu.Lock()
	u.addrs, u.named = addrs, true
	u.mu.Unlock()
	u.loop.Poke()
}

// Ready says why MTU is a guess, or nil: until the node's addresses were named and the
// links that hold them were looked at, it is that of an Ethernet.
func (u *Uplinks) Ready() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.read {
		return nil
	}
	return cmp.Or(u.err, errors.New("the node's links were not read yet"))
}

// Trouble says what keeps the node's links from being as pods need them, or nil.
func (u *Uplinks) Trouble() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil && u.read && len(u.names) == 0 {
		return fmt.Errorf("no link has an address of this node (%v); new pods get MTU %d", u.addrs, u.mtu)
	}
	return u.err
}

// MTU is the smallest MTU, in bytes, of the links that carry the node's traffic.
func (u *Uplinks) MTU() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mtu
}

// Subnet returns the address with the length of the subnet that it stands in, as the link
// that holds it has it; the zero Prefix before the links were read, and an error when none
// holds it. Where several do the shortest length counts: the others are what routing to the
// host puts on the loopback.
func (u *Uplinks) Subnet(a netip.Addr) (netip.Prefix, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.subnets == nil {
		return netip.Prefix{}, u.err
	}
	p, ok := u.subnets[a]
	if !ok {
		return netip.Prefix{}, fmt.Errorf("no link of this node has address %s", a)
	}
	return p, nil
}

// Names lists the links that MTU speaks of.
func (u *Uplinks) Names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.names
}

// Run keeps the settings right until ctx is cancelled.
func (u *Uplinks) Run(ctx context.Context) error {
	stop := make(chan struct{})
	defer close(stop)
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	lost := func(err error) {
		if ctx.Err() == nil { // closing a subscription is an error to its reader
			u.log.Warn("netlink subscription", "error", err)
			u.loop.PokeResync()
		}
	}
	if err := netlink.LinkSubscribeWithOptions(links, stop, netlink.LinkSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, stop, netlink.AddrSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	go func() { // ends when the subscriptions close their channels, after stop
		for links != nil || addrs != nil {
			select {
			case l, ok := <-links:
				if !ok {
					links = nil
				} else if !strings.HasPrefix(l.Attrs().Name, "cali") { // pods come and go; they are no uplinks
					u.loop.Poke()
				}
			case _, ok := <-addrs:
				if !ok {
					addrs = nil
				} else {
					u.loop.Poke()
				}
			}
		}
	}()
	return u.loop.Run(ctx)
}

func (u *Uplinks) apply(context.Context, bool) error {
	u.mu.Lock()
	nodeAddrs, named := u.addrs, u.named
	u.mu.Unlock()
	seen, err := readLinks()
	if err != nil {
		u.mu.Lock()
		u.err = err
		u.mu.Unlock()
		return err
	}
	names, mtu := uplinks(seen, nodeAddrs)

	errs := []error{u.setSysctl("net/ipv4/ip_forward", "1")}
	for _, l := range seen {
		// Forwarding switches router advertisements off (accept_ra 1); 2 keeps them,
		// where the default route or the address comes from one.
		if l.loopback || strings.HasPrefix(l.name, "cali") || u.readSysctl("net/ipv6/conf/"+l.name+"/accept_ra") != "1" || !l.hasIPv6 {
			continue
		}
		errs = append(errs, u.setSysctl("net/ipv6/conf/"+l.name+"/accept_ra", "2"))
	}
	if u.readSysctl("net/ipv6/conf/all/forwarding") != "" { // IPv6 may be compiled out or disabled at boot
		errs = append(errs, u.setSysctl("net/ipv6/conf/all/forwarding", "1"))
	}

	if mtu == 0 {
		mtu = defaultMTU
	}
	err = errors.Join(errs...)
	u.mu.Lock()
	changed := mtu != u.mtu
	u.mtu, u.names, u.err, u.subnets = mtu, names, err, subnets(seen)
	u.read = u.read || named
	u.mu.Unlock()
	if changed {
		u.log.Info("uplink MTU", "mtu", mtu, "links", names)
	}
	return err
}

// seenLink is what uplinks needs to know of an interface.
type seenLink struct {
	name     string
	mtu      int
	up       bool
	loopback bool
	hasIPv6  bool
	addrs    []netip.Prefix // global ones, with their host bits
}

// subnets picks the length of each address: the shortest, and never a pod link's.
func subnets(links []seenLink) map[netip.Addr]netip.Prefix {
	out := map[netip.Addr]netip.Prefix{}
	for _, l := range links {
		if strings.HasPrefix(l.name, "cali") {
			continue
		}
		for _, p := range l.addrs {
			if known, ok := out[p.Addr()]; !ok || p.Bits() < known.Bits() {
				out[p.Addr()] = p
			}
		}
	}
	return out
}

// uplinks picks the links that carry the node's traffic, and their smallest MTU: those
// that hold a node address, or, when the node's address stands on the loopback (routing
// to the host), every link that is up and has an address of its own.
func uplinks(links []seenLink, nodeAddrs []netip.Addr) (names []string, mtu int) {
	take := func(l seenLink) {
		names = append(names, l.name)
		if mtu == 0 || l.mtu < mtu {
			mtu = l.mtu
		}
	}
	onLoopback := false
	for _, l := range links {
		for _, a := range nodeAddrs {
			if !holds(l, a) {
				continue
			}
			if l.loopback {
				onLoopback = true
				continue
			}
			take(l)
			break
		}
	}
	if len(names) > 0 || !onLoopback {
		return names, mtu
	}
	for _, l := range links {
		if l.up && !l.loopback && len(l.addrs) > 0 && !strings.HasPrefix(l.name, "cali") {
			take(l)
		}
	}
	return names, mtu
}

func holds(l seenLink, a netip.Addr) bool {
	for _, own := range l.addrs {
		if own.Addr() == a {
			return true
		}
	}
	return false
}

func readLinks() ([]seenLink, error) {
	links, err := retried(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := retried(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int][]netip.Prefix{}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && a.IP.IsGlobalUnicast() {
			bits, _ := a.Mask.Size()
			byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	out := make([]seenLink, 0, len(links))
	for _, l := range links {
		at := l.Attrs()
		s := seenLink{
			name: at.Name, mtu: at.MTU, addrs: byIndex[at.Index],
			up: at.Flags&net.FlagUp != 0, loopback: at.Flags&net.FlagLoopback != 0,
		}
		for _, p := range s.addrs {
			s.hasIPv6 = s.hasIPv6 || p.Addr().Is6()
		}
		out = append(out, s)
	}
	return out, nil
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
