// Package link owns what Causeway needs of the node's own interfaces: the address that the
// node is reached at, where it is to be found there; the MTU that pods and tunnels start
// from; forwarding is on, and router advertisements still count on the uplinks. It changes
// no link that carries the node's address otherwise.
package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// defaultMTU is Ethernet's, in force until an uplink was seen.
const defaultMTU = 1500

// Uplinks watches the interfaces that carry the node's address.
type Uplinks struct {
	log  *slog.Logger
	cfg  Config
	loop *reconcile.Loop
	sys  string // folder of the sysctls
	// stop ends what waits for an address to settle; it belongs to the goroutine in Run.
	stop func()

	mu      sync.Mutex
	addrs   []netip.Addr
	pattern *regexp.Regexp // nil: none
	spelled string         // the pattern as it was set
	mtu     int
	names   []string
	// subnets are the addresses of the node's links, each with the length of its subnet.
	subnets  map[netip.Addr]netip.Prefix
	named    bool  // SetNodeAddrs was called
	read     bool  // mtu and names were read for named addresses, once
	err      error // of the last round
	detected detection
}

// Config says how the node's links are looked after.
type Config struct {
	Log     *slog.Logger  // required
	Resync  time.Duration // longest time between two full readings; default reconcile's
	ProcSys string        // the folder of the sysctls; default /proc/sys

	// IPv4 and IPv6 say how the node's address is found. The zero values look for none: the
	// datastore says it.
	IPv4, IPv6 nodeaddr.Method
	// Settle is how long another address must be found before it takes the place of the one
	// in force; default nodeaddr.DefaultSettle.
	Settle time.Duration
	// OnChange hears what Detected returns when it is known first, and when it changes.
	OnChange func(v4, v6 netip.Prefix)
	// Changed hears what MTU returns when it is known first, and when it changes.
	//
	// Interfaces hears after each reading which addresses of a global scope each interface has
	// that is no pod's and no tunnel of ours. It must keep nothing that it changes.
	//
	// All are called from the goroutine in Run, one call at a time, and must be quick; they
	// may call any method.
	Changed    func(mtu int)
	Interfaces func(map[string][]netip.Addr)
}

// New makes Uplinks for the network namespace that Run is called in.
func New(cfg Config) *Uplinks {
	if cfg.ProcSys == "" {
		cfg.ProcSys = "/proc/sys"
	}
	u := &Uplinks{log: cfg.Log.With("reconciler", "link"), cfg: cfg, sys: cfg.ProcSys, mtu: defaultMTU, stop: func() {}}
	u.detected.init(cfg)
	u.loop = (&reconcile.Loop{Name: "link", Log: cfg.Log, Apply: u.apply, Resync: cfg.Resync}).Init()
	return u
}

func (u *Uplinks) String() string { return "felix/link" }

// SetNodeAddrs names the addresses the node is reached at. Who calls Locate need not.
func (u *Uplinks) SetNodeAddrs(addrs ...netip.Addr) {
	u.mu.Lock()
	same := u.named && slices.Equal(u.addrs, addrs)
	u.addrs, u.named = addrs, true
	u.mu.Unlock()
	if !same {
		u.loop.Poke()
	}
}

// SetMTUPattern names the links whose smallest MTU counts, by a regular expression for any
// part of their names; the empty string means those that carry the node's address. One that
// does not compile changes nothing, and is logged: the datastore's reader refuses it.
func (u *Uplinks) SetMTUPattern(pattern string) {
	var re *regexp.Regexp
	if pattern != "" {
		var err error
		if re, err = regexp.Compile(pattern); err != nil {
			u.log.Error("the pattern for the links whose MTU counts stays as it was", "pattern", pattern, "error", err)
			return
		}
	}
	u.mu.Lock()
	same := pattern == u.spelled
	u.pattern, u.spelled = re, pattern
	u.mu.Unlock()
	if !same {
		u.loop.Poke()
	}
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

// Trouble says what keeps the node's links from being as pods need them, or its address
// from being found, or nil.
func (u *Uplinks) Trouble() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	errs := []error{u.err, u.detected.trouble()}
	if u.err == nil && u.read && len(u.names) == 0 {
		if u.pattern != nil {
			errs = append(errs, fmt.Errorf("no link has a name that matches mtuIfacePattern %q; new pods get MTU %d", u.spelled, u.mtu))
		} else {
			errs = append(errs, fmt.Errorf("no link has an address of this node (%v); new pods get MTU %d", u.addrs, u.mtu))
		}
	}
	return errors.Join(errs...)
}

// MTU is the smallest MTU, in bytes, of the links that carry the node's traffic. When none
// does any more, it stays.
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
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	reach := u.cfg.IPv4.Kind == nodeaddr.CanReach || u.cfg.IPv6.Kind == nodeaddr.CanReach
	if err := u.listen(ctx, &running, reach); err != nil {
		return err
	}
	if reach {
		running.Go(func() { u.resolve(ctx) })
	}
	defer func() { u.stop() }()
	return u.loop.Run(ctx)
}

func (u *Uplinks) apply(context.Context, bool) error {
	u.mu.Lock()
	nodeAddrs, named, pattern := u.addrs, u.named, u.pattern
	u.mu.Unlock()
	seen, err := readLinks()
	if err != nil {
		u.mu.Lock()
		u.err = err
		u.mu.Unlock()
		return err
	}
	names, mtu := uplinks(seen, nodeAddrs, pattern)

	errs := []error{u.setSysctl("net/ipv4/ip_forward", "1")}
	for _, l := range seen {
		// Forwarding switches router advertisements off (accept_ra 1); 2 keeps them,
		// where the default route or the address comes from one.
		if l.Loopback || nodeaddr.Ours(l.Name) || u.readSysctl("net/ipv6/conf/"+l.Name+"/accept_ra") != "1" || !l.has(netip.Addr.Is6) {
			continue
		}
		errs = append(errs, u.setSysctl("net/ipv6/conf/"+l.Name+"/accept_ra", "2"))
	}
	if u.readSysctl("net/ipv6/conf/all/forwarding") != "" { // IPv6 may be compiled out or disabled at boot
		errs = append(errs, u.setSysctl("net/ipv6/conf/all/forwarding", "1"))
	}

	err = errors.Join(errs...)
	u.mu.Lock()
	if mtu == 0 {
		mtu = u.mtu // a link that went will come back, or another one with the node's address
	}
	was, knew := u.mtu, u.read && len(u.names) > 0
	u.mtu, u.names, u.err, u.subnets = mtu, names, err, subnets(seen)
	u.read = u.read || named
	tell := u.read && len(names) > 0 && (!knew || mtu != was)
	u.mu.Unlock()
	if mtu != was {
		u.log.Info("uplink MTU", "mtu", mtu, "was", was, "links", names)
	}
	if tell && u.cfg.Changed != nil {
		u.cfg.Changed(mtu)
	}
	if u.cfg.Interfaces != nil {
		u.cfg.Interfaces(addresses(seen))
	}
	u.detect(seen)
	return err
}
