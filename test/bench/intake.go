package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// intake is what one receiver did with the sender's routes.
type intake struct {
	established time.Duration // from Established, as the sender saw it, to the last route in the FIB
	first       time.Duration // from the first route in the FIB to the last
	before, use usage         // of the receiver's processes: before the session, and with all routes
}

// receiver is one side of the intake benchmark.
type receiver struct {
	node    *lab.Node
	session string // the sender's protocol
	daemon  string
	link    string // of the node, to the sender
}

// intakeBench measures how fast routes come from a BGP session into the kernel.
func (b *bench) intakeBench(ctx context.Context) error {
	l, err := b.up(ctx, "test/bench/intake/intake.clab.yml", "cwb-intake")
	if err != nil {
		return err
	}
	defer b.down(ctx, l)
	src := l.Node("src")
	sides := [2]receiver{
		{node: l.Node("cw"), session: "cw", daemon: "agent", link: "eth1"},
		{node: l.Node("bd"), session: "bd", daemon: "bird", link: "eth1"},
	}
	for _, s := range sides { // Up started them
		if err := s.reset(ctx); err != nil {
			return err
		}
	}
	for _, size := range []struct {
		routes, pairs int
		goal          float64
	}{{10_000, b.size.pairs, 0}, {100_000, b.size.pairs, 1.5}} {
		name := fmt.Sprintf("%d,%03d routes", size.routes/1000, size.routes%1000)
		if err := writeRoutes(filepath.Join(l.Shared("src"), "routes.inc"), size.routes); err != nil {
			return err
		}
		took := &Comparison{Name: name + ", session up to the last in the FIB", Versus: "BIRD 2", Unit: "s", Goal: size.goal}
		first := &Comparison{Name: name + ", first to the last in the FIB", Versus: "BIRD 2", Unit: "s"}
		cpu := &Comparison{Name: name + ", processor time", Versus: "BIRD 2", Unit: "s"}
		pss := &Comparison{Name: name + ", memory (PSS) when all are in", Versus: "BIRD 2", Unit: "MB"}
		peak := &Comparison{Name: name + ", largest resident set", Versus: "BIRD 2", Unit: "MB"}
		for i := range size.pairs {
			var got [2]intake
			err := inTurns(i, func(side int) (err error) {
				got[side], err = b.receive(ctx, src, sides[side], size.routes)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			a, p := got[0], got[1]
			took.add(a.established.Seconds(), p.established.Seconds())
			first.add(a.first.Seconds(), p.first.Seconds())
			cpu.add((a.use.cpu - a.before.cpu).Seconds(), (p.use.cpu - p.before.cpu).Seconds())
			pss.add(a.use.pss, p.use.pss)
			peak.add(a.use.peak, p.use.peak)
			b.say("%s, pair %d/%d: %.2f s against %.2f s; processor %.2f s against %.2f s", name, i+1, size.pairs, a.established.Seconds(),
				p.established.Seconds(), (a.use.cpu - a.before.cpu).Seconds(), (p.use.cpu - p.before.cpu).Seconds())
		}
		b.compare(took, first, cpu, pss, peak)
	}
	return nil
}

// receive runs one receiver against a fresh sender, and leaves neither running.
func (b *bench) receive(ctx context.Context, src *lab.Node, r receiver, routes int) (in intake, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	sender := src.Daemon("bird")
	if err := restart(ctx, sender); err != nil {
		return in, err
	}
	if err := r.node.Start(ctx); err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, r.reset(context.WithoutCancel(ctx))) }()
	if err := b.poll(ctx, 30*time.Second, "the sender loads its routes", func() error { return loaded(ctx, src, routes) }); err != nil {
		return in, err
	}
	var pids []int
	err = b.poll(ctx, 30*time.Second, r.node.Name()+" listens", func() error {
		pids, err = r.listening(ctx)
		return err
	})
	if err != nil {
		return in, err
	}
	w, err := watchFIB(r.node, routes)
	if err != nil {
		return in, err
	}
	defer w.close()
	if in.before, err = usageOf(pids...); err != nil {
		return in, err
	}
	awake, err := keepAwake(src)
	if err != nil {
		return in, err
	}
	defer awake()
	if _, err := src.Exec(ctx, "birdc", "enable", r.session); err != nil {
		return in, err
	}
	if err := w.wait(ctx); err != nil {
		return in, fmt.Errorf("node %s: %w", r.node, err)
	}
	if in.use, err = usageOf(pids...); err != nil {
		return in, err
	}
	up, err := establishedAt(ctx, src, r.session)
	if err != nil {
		return in, err
	}
	in.established, in.first = w.last.Sub(up), w.last.Sub(w.first)
	return in, nil
}

// keepAwake has the sender's main loop turn every few milliseconds, until stop is called.
// BIRD 2.0.12 leaves the last UPDATEs of a burst in its buffers until something wakes it,
// which takes up to the 3 s of its poll and would be counted as the receiver's time.
func keepAwake(src *lab.Node) (stop func(), err error) {
	c, err := net.Dial("unix", src.Path("/run/bird/bird.ctl"))
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", src, err)
	}
	var done sync.WaitGroup
	done.Go(func() { io.Copy(io.Discard, c) })
	done.Go(func() {
		for {
			if _, err := io.WriteString(c, "show status\n"); err != nil {
				return // closed
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return func() { c.Close(); done.Wait() }, nil
}

// restart brings a daemon up anew.
func restart(ctx context.Context, d *lab.Daemon) error {
	if st, err := d.Status(ctx); err != nil {
		return err
	} else if st.Running {
		if err := d.Kill(ctx); err != nil {
			return err
		}
	}
	return d.Start(ctx)
}

// listening returns the receiver's processes when it waits for the sender.
func (r receiver) listening(ctx context.Context) ([]int, error) {
	pid, err := r.node.Daemon(r.daemon).PID(ctx)
	if err != nil {
		return nil, err
	}
	pids := []int{pid}
	if r.node.Spec.Role != lab.RoleCauseway {
		return pids, nil
	}
	st, err := fabric.Status(ctx, r.node)
	switch {
	case err != nil:
		return nil, err
	case !st.Ready:
		return nil, errors.New(st.NotReady)
	case st.Speaker.PID == 0 || len(st.Peers) != 1:
		return nil, errors.New("the speaker does not have its peer yet")
	}
	speaker, err := children(pid)
	if err == nil && len(speaker) != 1 {
		err = fmt.Errorf("the agent has %d children, want the speaker alone", len(speaker))
	}
	return append(pids, speaker...), err
}

// reset ends the receiver and makes its node as a boot does: no route, no trace of an
// earlier agent.
func (r receiver) reset(ctx context.Context) error {
	d := r.node.Daemon(r.daemon)
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if st.Running {
		started, err := children(st.PID)
		if err == nil {
			err = d.Kill(ctx)
		}
		if err != nil {
			return err
		}
		// A speaker ends with its agent, a moment later.
		err = fabric.Poll(ctx, "the receiver's processes end", func() error {
			for _, pid := range started {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
					return fmt.Errorf("process %d still runs", pid)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.node.Spec.Role == lab.RoleCauseway {
		if err := os.RemoveAll(r.node.Path("/run/causeway/started")); err != nil {
			return err
		}
	}
	// The kernel drops routes with their link, much faster than one by one.
	if err := r.node.LinkDown(r.link); err != nil {
		return err
	}
	if err := r.node.LinkUp(r.link); err != nil {
		return err
	}
	return r.empty()
}

// empty returns an error if a route of the sender is left.
func (r receiver) empty() error {
	ns, err := netns.GetFromPath(r.node.NetNS())
	if err != nil {
		return fmt.Errorf("%s: %w", r.node.NetNS(), err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	left, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("node %s: reading routes: %w", r.node, err)
	}
	for _, route := range left {
		if route.Dst != nil && route.Dst.IP.To4() != nil && route.Dst.IP.To4()[0] >= firstRoute.As4()[0] {
			return fmt.Errorf("node %s: route %s is left of the run before", r.node, route.Dst)
		}
	}
	return nil
}

// writeRoutes writes the sender's routes as BIRD's static protocol takes them.
func writeRoutes(path string, count int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := range count {
		fmt.Fprintf(w, "route %s unreachable;\n", routeAt(i))
	}
	return errors.Join(w.Flush(), f.Close())
}

// loaded returns nil when the sender has all its routes.
func loaded(ctx context.Context, src *lab.Node, routes int) error {
	out, err := src.Exec(ctx, "birdc", "show", "route", "count")
	if err != nil {
		return err
	}
	if !strings.Contains(out, fmt.Sprintf("%d of %d routes", routes, routes)) {
		return fmt.Errorf("it says %q", strings.TrimSpace(out))
	}
	return nil
}

// establishedAt is when the sender's session came up (birdc, "timeformat protocol iso long
// ms").
func establishedAt(ctx context.Context, src *lab.Node, session string) (time.Time, error) {
	out, err := src.Exec(ctx, "birdc", "show", "protocols", session)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(out) {
		// Name Proto Table State Since(date time) Info
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != session {
			continue
		}
		if f[3] != "up" || f[6] != "Established" {
			return time.Time{}, fmt.Errorf("the sender's session %s is %s %s", session, f[3], f[6])
		}
		return time.ParseInLocation("2006-01-02 15:04:05.000", f[4]+" "+f[5], time.Local)
	}
	return time.Time{}, fmt.Errorf("birdc show protocols %s: %q", session, out)
}
