package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// burst is how many messages one sendmsg carries: the kernel runs them one after the
	// other and answers those that fail; only the last one asks for an acknowledgement.
	burst         = 256
	receiveBuffer = 4 << 20  // answers of one burst; memory is taken only while they queue
	readSize      = 64 << 10 // more than the 32 KiB that a dump fills
	answerTime    = 20 * time.Second
	// walks is how many dumps that the kernel filters are tried before all is read and
	// filtered here: each of them walks the whole table.
	walks = 6
	// perWalk is how many flows are read in the time that a walk takes which finds none: the
	// kernel looks into each of its buckets, of which it has 262,144 on a host with some memory (6 ms).
	perWalk = 4000
	tries   = 8 // of a dump that is interrupted
)

// ErrUnsupported says that the kernel cannot show its connections.
var ErrUnsupported = errors.New("the kernel shows no connections (module nf_conntrack_netlink)")

// Table is the kernel's table of connections in the network namespace that the calling
// thread is in. Its methods can be called from any number of goroutines; each opens a netlink
// socket for itself, so that a long dump delays nobody. NewTable makes one.
type Table struct {
	// enter runs a function in the network namespace that is meant; nil: the caller's.
	enter func(func() error) error

	forgetting sync.Mutex // held by who deletes for Forget
	mu         sync.Mutex
	waiting    *forget // what the next one deletes; guarded by mu
}

// NewTable makes a Table.
func NewTable() *Table { return &Table{} }

// Flows shows the flows that have one of addrs as Source or Destination; all flows when
// addrs is nil. each must not keep the Flow, but may keep a Clone of it. A flow can be shown more
// than once, and one that begins or ends meanwhile may or may not be shown.
func (t *Table) Flows(ctx context.Context, addrs []netip.Addr, each func(*Flow)) error {
	s, err := t.open()
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.flows(ctx, addrs, each); err != nil {
		return fmt.Errorf("reading connections: %w", err)
	}
	return nil
}

// Mark sets the bits of mask in the marks of some flows, and clears them in those of others;
// the other bits stay as they are. A flow that is gone is passed over. Where another flow
// was found in the place of one that is gone (opened between the same ends, and sent elsewhere by
// a Service), its mark may be changed too: such flows are returned as they are now.
func (t *Table) Mark(ctx context.Context, mask uint32, set, clear []Flow) (others []Flow, err error) {
	s, err := t.open()
	if err != nil {
		return nil, err
	}
	defer s.close()
	all := make([]*Flow, 0, len(set)+len(clear))
	for i := range set {
		all = append(all, &set[i])
	}
	for i := range clear {
		all = append(all, &clear[i])
	}
	change := func(e *encoder, seq uint32, i int) {
		f, mark := all[i], mask
		if i >= len(set) {
			mark = 0
		}
		at := e.begin(cmdNew, 0, seq, f.family())
		e.buf = append(e.buf, f.orig...)
		e.pad()
		e.zone(f.Zone)
		e.be32(attrMark, mark)
		e.be32(attrMarkMask, mask)
		e.end(at)
	}
	var errs []error
	failed := func(i int, err error) {
		if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("marking %s: %w", all[i], err))
		}
	}
	if err := s.commands(ctx, len(all), change, nil, failed); err != nil {
		return nil, fmt.Errorf("marking connections: %w", err)
	}
	// Without a Service what was found is the same to policy.
	all = slices.DeleteFunc(all, func(f *Flow) bool { return f.First == f.Destination })
	found := func(i int, body []byte) error {
		var f Flow
		if err := f.parse(body); err != nil {
			return err
		}
		if !f.same(all[i]) {
			others = append(others, f.Clone())
		}
		return nil
	}
	get := func(e *encoder, seq uint32, i int) {
		at := e.begin(cmdGet, 0, seq, all[i].family())
		e.buf = append(e.buf, all[i].orig...)
		e.pad()
		e.zone(all[i].Zone)
		e.end(at)
	}
	if err := s.commands(ctx, len(all), get, found, failed); err != nil {
		return nil, fmt.Errorf("reading marked connections: %w", err)
	}
	return others, errors.Join(errs...)
}

// Master returns the flow that an expected one belongs to; ok is false when it is gone.
func (t *Table) Master(ctx context.Context, f *Flow) (master Flow, ok bool, err error) {
	s, err := t.open()
	if err != nil {
		return Flow{}, false, err
	}
	defer s.close()
	var errs []error
	get := func(e *encoder, seq uint32, _ int) {
		at := e.begin(cmdGet, 0, seq, f.family())
		e.bytes(attrOrig|nested, f.master)
		e.zone(f.Zone)
		e.end(at)
	}
	found := func(_ int, body []byte) error {
		var m Flow
		if err := m.parse(body); err != nil {
			return err
		}
		master, ok = m.Clone(), true
		return nil
	}
	failed := func(_ int, err error) {
		if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(s.commands(ctx, 1, get, found, failed), errors.Join(errs...)); err != nil {
		return Flow{}, false, fmt.Errorf("reading what %s belongs to: %w", f, err)
	}
	return master, ok, nil
}

// Delete deletes the flows of a family (0: both) that match, and says how many they were.
// One that comes back while others are deleted is another flow.
func (t *Table) Delete(ctx context.Context, family uint8, match func(*Flow) bool) (int, error) {
	s, err := t.open()
	if err != nil {
		return 0, err
	}
	defer s.close()
	var found []Flow
	families := []uint8{unix.AF_INET, unix.AF_INET6}
	if family != 0 {
		families = []uint8{family}
	}
	for _, af := range families {
		err := s.dump(ctx, af, nil, func(f *Flow) {
			if match(f) {
				found = append(found, f.Clone())
			}
		})
		if err != nil {
			return 0, fmt.Errorf("reading connections: %w", err)
		}
	}
	return s.delete(ctx, found)
}

// Own returns the host's own addresses.
func (t *Table) Own(ctx context.Context) (map[netip.Addr]struct{}, error) {
	var found []netlink.Addr
	err := t.in(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for range tries {
			found, err = h.AddrList(nil, netlink.FAMILY_ALL)
			if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	own := make(map[netip.Addr]struct{}, len(found))
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = struct{}{}
		}
	}
	return own, ctx.Err()
}

// Route returns the name of the interface that the host reaches an address by; empty when
// the address is the host's own, or cannot be reached.
func (t *Table) Route(addr netip.Addr) string {
	var name string
	_ = t.in(func() error { // no route: no interface
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		routes, err := h.RouteGet(addr.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].Type == unix.RTN_LOCAL {
			return err
		}
		link, err := h.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		name = link.Attrs().Name
		return nil
	})
	return name
}

func (t *Table) in(f func() error) error {
	if t.enter != nil {
		return t.enter(f)
	}
	return f()
}

func (t *Table) open() (*socket, error) {
	s := &socket{fd: -1, read: make([]byte, readSize)}
	return s, t.in(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		tv := unix.NsecToTimeval(answerTime.Nanoseconds())
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		)
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("netlink socket: %w", err)
		}
		s.fd = fd
		return nil
	})
}

// forget is one round of deletions for all that wait for it.
type forget struct {
	addrs   map[netip.Addr]struct{}
	done    chan struct{} // closed when what follows is known
	deleted int
	err     error
}

// Forget deletes the flows in which one of addrs stands anywhere, translated or not, and
// says how many they were. What comes after it begins anew and is judged as new; so whoever
// hands an address on calls it while nobody has the address. Calls that come together
// share one walk over the table, and the number is that walk's.
func (t *Table) Forget(ctx context.Context, addrs ...netip.Addr) (int, error) {
	t.mu.Lock()
	f, first := t.waiting, t.waiting == nil
	if first {
		f = &forget{addrs: map[netip.Addr]struct{}{}, done: make(chan struct{})}
		t.waiting = f
	}
	for _, a := range addrs {
		f.addrs[a.Unmap()] = struct{}{}
	}
	t.mu.Unlock()
	if first {
		t.forgetting.Lock()
		t.mu.Lock()
		t.waiting = nil // who comes from here on waits for the next one
		t.mu.Unlock()
		// Others wait for it, whatever becomes of this caller.
		f.deleted, f.err = t.forget(context.WithoutCancel(ctx), f.addrs)
		t.forgetting.Unlock()
		close(f.done)
	}
	select {
	case <-f.done:
		return f.deleted, f.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (t *Table) forget(ctx context.Context, addrs map[netip.Addr]struct{}) (int, error) {
	if len(addrs) == 0 {
		return 0, nil
	}
	s, err := t.open()
	if err != nil {
		return 0, err
	}
	defer s.close()
	var found []Flow
	if err := s.naming(ctx, addrs, func(f *Flow) { found = append(found, f.Clone()) }); err != nil {
		return 0, fmt.Errorf("reading connections: %w", err)
	}
	n, err := s.delete(ctx, found)
	if err != nil {
		return n, fmt.Errorf("forgetting the connections of %d addresses: %w", len(addrs), err)
	}
	return n, nil
}

// ForgetIn does for all addresses of some prefixes what Forget does for single ones, but for those that
// keep reports, in one walk over the table. keep is called for addresses that are found, any
// number of times.
func (t *Table) ForgetIn(ctx context.Context, prefixes []netip.Prefix, keep func(netip.Addr) bool) (int, error) {
	if len(prefixes) == 0 {
		return 0, nil
	}
	s, err := t.open()
	if err != nil {
		return 0, err
	}
	defer s.close()
	if held, err := s.count(ctx); err == nil && held == 0 {
		return 0, nil
	}
	var found []Flow
	each := func(f *Flow) {
		for _, p := range places {
			a := p.of(f)
			if slices.ContainsFunc(prefixes, func(n netip.Prefix) bool { return n.Contains(a) }) && !keep(a) {
				found = append(found, f.Clone())
				return
			}
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if !slices.ContainsFunc(prefixes, func(n netip.Prefix) bool { return n.Addr().Is4() == (family == unix.AF_INET) }) {
			continue
		}
		if err := s.dump(ctx, family, nil, each); err != nil {
			return 0, fmt.Errorf("reading connections: %w", err)
		}
	}
	n, err := s.delete(ctx, found)
	if err != nil {
		return n, fmt.Errorf("forgetting the connections of addresses of %v: %w", prefixes, err)
	}
	return n, nil
}
