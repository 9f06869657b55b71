// Package tunnel owns the kernel's encapsulation devices, tunl0, vxlan.calico and
// vxlan-v6.calico, and all that hangs on them: address, forwarding entries (FDB), static
// neighbours, sysctls. It makes no routes: those that lead into a device are felix/route's.
//
// What is ours is known by its mark in the kernel. A link of type vxlan with one of the two
// names is ours, with everything on it. tunl0 belongs to the ipip module and may serve
// others: it is ours while its alias is "causeway", and of its addresses those labelled
// tunl0:causeway are.
//
// One goroutine does it all. It believes what it read and wrote; notifications that
// contradict the belief make it read again, and so does every resync.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// Config of Devices.
type Config struct {
	Log     *slog.Logger  // required
	Resync  time.Duration // longest time between two full readings; default reconcile's
	ProcSys string        // the folder of the sysctls; default /proc/sys
}

// Devices is the desired and the actual state of the encapsulation devices of the network
// namespace that Run is called in.
type Devices struct {
	log  *slog.Logger
	loop *reconcile.Loop
	// open and listen are rtnetlink's, or the tests' fake's.
	open   func() (kernel, error)
	listen func() (notices, error)

	inbox inbox // of notifications

	mu     sync.Mutex
	want   [kinds]*target // nil: not wanted
	keep   bool           // devices that are not wanted stay as they are
	wanted int            // counts Set and Keep; 0: nothing was ever wanted, and nothing is touched
	done   int            // the last of them that was carried out, or failed
	err    error          // of the last round
	status []Status
	round  chan struct{} // closed when a round ends

	// What follows belongs to the goroutine in Run.
	kernel  kernel
	devices [kinds]device
}

// device is what the loop knows of one device.
type device struct {
	kind  model.Tunnel
	want  *target
	got   state
	doubt doubt
}

// doubt says which parts of a device must be read again.
type doubt uint8

const (
	doubtLink  doubt = 1 << iota // with sysctls; costs the same for any number of peers
	doubtAddrs                   // a dump of the node's addresses
	doubtPeers                   // a dump of the device's FDB and neighbours
	doubtAll   = doubtLink | doubtAddrs | doubtPeers
)

// New makes Devices; nothing is read or written before Run and the first Set.
func New(cfg Config) *Devices {
	if cfg.ProcSys == "" {
		cfg.ProcSys = "/proc/sys"
	}
	d := &Devices{
		log:    cfg.Log.With("reconciler", "tunnel"),
		open:   func() (kernel, error) { return openRtnetlink(cfg.ProcSys) },
		listen: func() (notices, error) { return subscribe() },
		round:  make(chan struct{}),
	}
	for k := range d.devices {
		d.devices[k] = device{kind: model.Tunnel(k), doubt: doubtAll}
	}
	d.loop = (&reconcile.Loop{Name: "tunnel", Log: cfg.Log, Apply: d.apply, Resync: cfg.Resync}).Init()
	return d
}

func (d *Devices) String() string { return "felix/tunnel" }

// Set makes devices the whole of what is wanted; at most one of each tunnel. A device that is
// left out is removed: hand the routes through it elsewhere first. It does not wait, and
// keeps nothing of devices.
func (d *Devices) Set(devices []model.TunnelDevice) {
	var want [kinds]*target
	for _, dev := range devices {
		if dev.Tunnel >= kinds {
			panic(fmt.Sprintf("tunnel: model.Tunnel %d", dev.Tunnel))
		}
		t := compile(dev)
		if old := want[dev.Tunnel]; old != nil {
			old.problems = append(old.problems, fmt.Errorf("%s: wanted twice; the first counts", old.name))
			continue
		}
		want[dev.Tunnel] = t
	}
	d.mu.Lock()
	d.want = want
	d.wanted++
	d.mu.Unlock()
	d.loop.Poke()
}

// Keep says whether devices of ours that Set leaves out stay as they are, for as long as
// something may still come or go through them. Status lists those too. It does not wait.
func (d *Devices) Keep(on bool) {
	d.mu.Lock()
	d.keep = on
	d.wanted++
	d.mu.Unlock()
	d.loop.Poke()
}

// Wait blocks until everything that was set before the call is in the kernel. Otherwise its
// error says what is not, by device and peer; it is retried nevertheless. Only Run makes
// it come true.
func (d *Devices) Wait(ctx context.Context) error {
	d.mu.Lock()
	for want := d.wanted; d.done < want; {
		round := d.round
		d.mu.Unlock()
		select {
		case <-round:
		case <-ctx.Done():
			return fmt.Errorf("tunnel devices: %w", context.Cause(ctx))
		}
		d.mu.Lock()
	}
	defer d.mu.Unlock()
	return d.err
}

// Run keeps the devices as wanted until ctx is cancelled. It removes nothing when it ends (I3).
func (d *Devices) Run(ctx context.Context) error {
	sub, err := d.listen()
	if err != nil {
		return err
	}
	defer d.closeKernel()
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(sub.read(&d.inbox, d.loop.Poke))
	}()
	err = d.loop.Run(within)
	sub.close()
	<-done
	if ctx.Err() == nil { // the notifications ended first
		return errors.Join(err, context.Cause(within))
	}
	return err
}

// Remove takes away what an agent left, marks and all, for cleaning a node up. It returns the
// names of the devices that are gone, or for tunl0 down and without our address.
func Remove(ctx context.Context, cfg Config) (gone []string, err error) { return New(cfg).remove(ctx) }

func (d *Devices) remove(ctx context.Context) (gone []string, err error) {
	defer d.closeKernel()
	d.Set(nil)
	d.Keep(true) // look first
	if err := d.apply(ctx, true); err != nil {
		return nil, err
	}
	for _, s := range d.Status() {
		gone = append(gone, s.Device)
	}
	d.Keep(false)
	if err := d.apply(ctx, true); err != nil {
		return nil, err
	}
	return gone, nil
}

func (d *Devices) closeKernel() {
	if d.kernel != nil {
		d.kernel.close()
		d.kernel = nil
	}
}

// apply brings every device as near to what is wanted as it can.
func (d *Devices) apply(ctx context.Context, resync bool) error {
	d.mu.Lock()
	want, keep, version := d.want, d.keep, d.wanted
	d.mu.Unlock()
	if version == 0 {
		d.inbox.take(&d.devices) // the first round reads all there is
		return nil
	}
	var err error
	if d.kernel == nil {
		if d.kernel, err = d.open(); err != nil {
			d.publish(version, err)
			return err
		}
	}
	var errs [kinds][]error
	d.inbox.take(&d.devices)
	// Wanted devices come first: traffic moves to one before another is taken away.
	for _, wanted := range []bool{true, false} {
		for k := range d.devices {
			dev := &d.devices[k]
			if (want[k] != nil) != wanted || ctx.Err() != nil {
				continue
			}
			dev.want = want[k]
			if resync {
				dev.doubt = doubtAll
			}
			if keep && !wanted {
				if err := d.refresh(dev); err != nil {
					errs[k] = []error{fmt.Errorf("%s: %w", dev.kind.Device(), err)}
				}
				continue
			}
			errs[k] = d.converge(ctx, dev)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var all []error
	status := make([]Status, 0, kinds)
	for k := range d.devices {
		if want[k] != nil {
			errs[k] = append(errs[k], want[k].problems...)
		}
		all = append(all, errs[k]...)
		if want[k] != nil || len(errs[k]) > 0 || d.devices[k].ours() {
			status = append(status, d.devices[k].status(errs[k]))
		}
	}
	err = errors.Join(all...)
	d.mu.Lock()
	d.status = status
	d.mu.Unlock()
	d.publish(version, err)
	return err
}

func (d *Devices) publish(version int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done, d.err = version, err
	close(d.round)
	d.round = make(chan struct{})
}

// ours reports whether the link that was last read is one of ours.
func (dev *device) ours() bool {
	l := dev.got.link
	return l != nil && l.kind == linkKind(dev.kind) && (dev.kind != model.TunnelIPIP || l.alias == alias)
}

// rounds bounds how often one pass reads and writes a device: once, once more after the link
// was made, and once for a link that somebody takes away meanwhile.
const rounds = 4

// converge brings one device to what is wanted; every error names it.
func (d *Devices) converge(ctx context.Context, dev *device) []error {
	name := dev.kind.Device()
	var c counts
	start := time.Now()
	defer func() {
		if c.changed() {
			d.log.Info("tunnel device changed", append(c.attrs(), "device", name, "took", time.Since(start).Round(time.Microsecond))...)
		}
	}()
	var errs []error
	for range rounds {
		if err := d.refresh(dev); err != nil {
			return []error{fmt.Errorf("%s: %w", name, err)}
		}
		ops, why, err := plan(dev.kind, dev.want, &dev.got)
		if err != nil {
			return []error{err}
		}
		if why != "" {
			d.log.Warn("tunnel device is made anew; traffic through it stops for a moment", "device", name, "why", why)
		}
		var again bool
		if errs, again = d.carryOut(ctx, dev, ops, &c); !again {
			return errs
		}
	}
	if len(errs) == 0 {
		errs = []error{fmt.Errorf("%s: somebody takes the device away again and again", name)}
	}
	return errs
}

// carryOut writes ops in order, each for itself. again: the link is another than ops were
// planned for, and more is to be done.
func (d *Devices) carryOut(ctx context.Context, dev *device, ops []op, c *counts) (errs []error, again bool) {
	for i := range ops {
		if ctx.Err() != nil {
			return errs, false
		}
		o := &ops[i]
		err := d.kernel.do(o)
		switch {
		case err == nil || o.harmless(err):
			dev.got.done(o)
			c.count(o)
			if o.verb == linkAdd {
				dev.doubt = doubtAll
				return errs, true
			}
		case o.lostLink(err):
			dev.doubt = doubtAll
			return append(errs, o.failed(err)), true
		default:
			dev.doubt = doubtAll
			errs = append(errs, o.failed(err))
			if o.verb == linkAdd || o.verb == linkDel {
				return errs, false
			}
		}
	}
	return errs, false
}

// refresh reads what is in doubt.
func (d *Devices) refresh(dev *device) error {
	got, name := &dev.got, dev.kind.Device()
	if dev.doubt&doubtLink != 0 {
		l, err := d.kernel.link(name)
		if err != nil {
			return err
		}
		if l == nil {
			d.inbox.watch(dev.kind, 0)
			*got, dev.doubt = state{}, 0
			return nil
		}
		if got.link == nil || got.link.index != l.index {
			dev.doubt = doubtAll
		}
		if got.link == nil || !got.link.up || !l.up {
			dev.doubt |= doubtAddrs | doubtPeers // a link that goes down loses some of both
		}
		// From here on notifications of the link's index come in, so that nothing that
		// changes after it is read below goes unnoticed.
		d.inbox.watch(dev.kind, l.index)
		got.link = l
		got.sysctls = map[string]string{}
		for _, s := range sysctls(dev.kind) {
			got.sysctls[s.name] = d.kernel.sysctl(s.name)
		}
		dev.doubt &^= doubtLink
	}
	if dev.doubt&doubtAddrs != 0 && got.link != nil {
		addrs, err := d.kernel.addrs(got.link.index)
		if err != nil {
			return err
		}
		got.addrs = addrs
	}
	if dev.doubt&doubtPeers != 0 && got.link != nil && dev.kind != model.TunnelIPIP {
		fdb, neigh, err := d.kernel.peers(got.link.index)
		if err != nil {
			return err
		}
		got.fdb, got.neigh = fdb, neigh
	}
	dev.doubt = 0
	return nil
}
