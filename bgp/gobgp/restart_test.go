package gobgp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/internal/model"
)

// frr starts FRR's zebra and bgpd, in a mount namespace where /etc/frr and /run are their own.
func (r *router) frr(routes ...string) {
	r.l.t.Helper()
	var networks strings.Builder
	for _, p := range routes {
		fmt.Fprintf(&networks, "  network %s\n", p)
	}
	r.write("daemons", "zebra=yes\nbgpd=yes\n")
	r.write("vtysh.conf", "")
	r.write("zebra.conf", "")
	r.write("bgpd.conf", fmt.Sprintf(`frr defaults traditional
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor %s remote-as %d
 address-family ipv4 unicast
%s exit-address-family
`, r.asn, r.addr, r.far, ownASN, networks.String()))
	if err := os.Chmod(r.dir, 0o755); err != nil {
		r.l.t.Fatal(err)
	}
	log := &testLog{}
	r.daemon(log, "unshare", "-m", "sh", "-ec", fmt.Sprintf(`
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/frr
chown frr:frr /run/frr
mount --bind %s /etc/frr
/usr/lib/frr/zebra -f /etc/frr/zebra.conf &
until [ -S /run/frr/zserv.api ]; do sleep 0.05; done
exec /usr/lib/frr/bgpd -f /etc/frr/bgpd.conf`, r.dir))
	r.l.t.Cleanup(func() {
		if r.l.t.Failed() {
			r.l.t.Logf("log of frr in %s:\n%s", r.name, log)
		}
	})
}

// kernelHas reports whether the router's kernel routes the prefix to the node.
func (r *router) kernelHas(prefix string) bool {
	out, _ := exec.Command("ip", "-n", r.name, "route", "show", prefix).CombinedOutput()
	return strings.Contains(string(out), r.far.String())
}

func (l *lab) quiet(monitors map[*router]*testLog) {
	l.t.Helper()
	for r, m := range monitors {
		if s := m.String(); s != "" {
			l.t.Errorf("the kernel of %s saw route events:\n%s", r.name, s)
		}
	}
}

// restart is a node with routers around it, all up, their kernels watched.
type restart struct {
	*lab
	routers  []*router
	monitors map[*router]*testLog
	news     []string // prefixes whose arrival the kernels were to see
}

func (l *lab) watched(routers ...*router) *restart {
	l.t.Helper()
	l.up(routers...)
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })
	x := &restart{lab: l, routers: routers, monitors: map[*router]*testLog{}}
	for _, r := range routers {
		l.eventually("advert in the kernel of "+r.name, func() bool { return r.kernelHas("10.244.1.0/26") })
	}
	return x
}

func (x *restart) watch() {
	for _, r := range x.routers {
		x.monitors[r] = r.monitor()
	}
}

// again kills the speaker and waits until all sessions are back.
func (x *restart) again() {
	x.t.Helper()
	pid := x.inst.Load().PID()
	begin := time.Now()
	x.kill()
	x.eventually("another speaker", func() bool { s := x.node.Status(); return s.Running && s.PID != pid })
	x.up(x.routers...)
	x.t.Logf("all sessions are back after %v", time.Since(begin).Round(time.Millisecond))
}

// over checks that the restart is over for the routers, which take a new advert then, and that
// nothing but that happened in their kernels.
func (x *restart) over(prefix string) {
	x.t.Helper()
	x.advertise(prefix)
	x.set()
	x.news = append(x.news, prefix)
	for _, r := range x.routers {
		x.eventually("new advert at "+r.name, func() bool { return r.kernelHas(prefix) })
		x.eventually("event of it at "+r.name, func() bool { return strings.Contains(x.monitors[r].String(), prefix+" set") })
		for line := range strings.Lines(x.monitors[r].String()) {
			if p, _, _ := strings.Cut(line, " "); !slices.Contains(x.news, p) {
				x.t.Errorf("the kernel of %s saw: %s", r.name, line)
			}
		}
	}
	if lost := x.routes.lost(); len(lost) != 0 {
		x.t.Errorf("the node dropped %v", lost)
	}
}

// TestKilled kills the speaker of a node below its ToRs, and again 1 s after all are back: no
// router may drop a route, nor may the node.
func TestKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.router(65001), l.router(65002), l.router(65003)
	l.advertise("10.244.1.0/26")
	l.start()
	a.frr("192.0.2.0/24")
	b.frr("203.0.113.0/24")
	c.bird([]string{"198.51.100.0/24"}, "")
	x := l.watched(a, b, c)
	x.watch()
	x.again()
	time.Sleep(time.Second) // the moment of the second death is the scenario
	x.again()
	x.over("10.244.2.0/26")
	if s := l.node.Status(); s.Restarts != 2 || s.LastDeath == "" {
		t.Errorf("%+v", s)
	}
}

// TestKilledBetween does the same to a node that passes routes on between AS and fabric, with a
// peer that never comes. Then the agent itself is replaced.
func TestKilledBetween(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ext1, internal, ext2 := l.router(65001), l.router(ownASN), l.router(65003)
	l.router(65004)
	l.advertise("10.244.1.0/26")
	quick := defaultPace
	quick.gate, quick.window = 5*time.Second, 5*time.Second
	l.startPaced(quick)
	ext1.frr("192.0.2.0/24")
	internal.frr("203.0.113.0/24")
	ext2.bird([]string{"198.51.100.0/24"}, "")
	x := l.watched(ext1, internal, ext2)
	for _, r := range []*router{ext1, ext2} {
		l.eventually("internal route at "+r.name, func() bool { return r.kernelHas("203.0.113.0/24") })
	}
	l.eventually("external routes at the internal peer", func() bool {
		return internal.kernelHas("192.0.2.0/24") || internal.kernelHas("198.51.100.0/24") || l.routes.len() == 3
	})
	x.watch()
	x.again()
	l.eventually("sync", func() bool { return l.routes.syncs() == 2 })
	// Not before the routers have our End-of-RIB can they take another restart.
	x.over("10.244.3.0/26")
	l.stop()
	l.wg.Wait()
	l.startPaced(quick, func(c *Config) { c.Restarting = true })
	l.up(x.routers...)
	l.eventually("sync of the new agent", func() bool { return l.routes.syncs() == 3 })
	x.over("10.244.2.0/26")
}

// evil is a peer that can turn bad: it then sends a message type that GoBGP v3.37.0 dies of.
type evil struct {
	bad      atomic.Bool
	sessions atomic.Int32
	mu       sync.Mutex
	conns    []net.Conn
}

// turn makes it bad, in the present session and in every later one.
func (e *evil) turn() {
	e.bad.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		_, _ = c.Write(message(99, []byte{1, 2, 3}))
	}
}

func (r *router) evil() *evil {
	r.l.t.Helper()
	e := &evil{}
	ln, err := listenIn(r.name, net.JoinHostPort(r.addr.String(), "179"))
	if err != nil {
		r.l.t.Fatal(err)
	}
	r.l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go e.talk(r, c)
		}
	}()
	return e
}

func (e *evil) talk(r *router, c net.Conn) {
	defer c.Close()
	caps := []byte{1, 4, 0, 1, 0, 1, 65, 4, 0, 0, byte(r.asn >> 8), byte(r.asn)}
	open := append([]byte{4, byte(r.asn >> 8), byte(r.asn), 0, 90}, r.addr.AsSlice()...)
	open = append(open, byte(len(caps)+2), 2, byte(len(caps)))
	_, _ = c.Write(message(msgOpen, append(open, caps...)))
	for first := true; ; {
		typ, _, err := readMessage(c)
		switch {
		case err != nil:
			return
		case typ == msgOpen:
			_, _ = c.Write(message(msgKeepalive, nil))
		case typ == msgKeepalive && first:
			first = false
			attrs := []byte{0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, byte(r.asn >> 8), byte(r.asn), 0x40, 3, 4}
			attrs = append(attrs, r.addr.AsSlice()...)
			_, _ = c.Write(message(msgUpdate, append(append([]byte{0, 0, 0, byte(len(attrs))}, attrs...), 24, 198, 18, 0)))
			e.mu.Lock()
			e.conns = append(e.conns, c)
			e.mu.Unlock()
			e.sessions.Add(1)
			if e.bad.Load() {
				_, _ = c.Write(message(99, []byte{1, 2, 3}))
			}
		}
	}
}

// listenIn opens a listener in a network namespace.
func listenIn(ns, addr string) (net.Listener, error) {
	type result struct {
		ln  net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
		var ln net.Listener
		if err == nil {
			ln, err = net.Listen("tcp", addr)
		}
		done <- result{ln, err}
	}()
	r := <-done
	return r.ln, r.err
}

// TestPeerThatKills: the first death of a peer's bytes holds nobody back, the peer returns last;
// the second holds it back, and everybody else is up within 3 s.
func TestPeerThatKills(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	bad := l.router(65066)
	frr, bird1, bird2 := l.router(65001), l.router(65002), l.router(65003)
	others := []*router{frr, bird1, bird2}
	l.advertise("10.244.1.0/26")
	l.start()
	e := bad.evil()
	frr.frr("192.0.2.0/24")
	bird1.bird([]string{"198.51.100.0/24"}, "")
	bird2.bird([]string{"203.0.113.0/24"}, "")
	l.up(append(others, bad)...)
	l.eventually("routes", func() bool { return l.routes.len() == 4 && l.routes.syncs() == 1 })
	monitors := map[*router]*testLog{}
	for _, r := range others {
		l.eventually("advert in the kernel of "+r.name, func() bool { return r.kernelHas("10.244.1.0/26") })
		monitors[r] = r.monitor()
	}

	sessions := e.sessions.Load()
	e.turn()
	l.eventually("first death", func() bool { return l.node.Status().Restarts >= 1 })
	first := l.node.Status()
	if s := l.status(bad.addr); s.Deaths != 1 || s.State == "HeldBack" {
		t.Errorf("after the first death: %+v", s)
	}
	l.eventually("return of the suspect and second death", func() bool { return l.node.Status().Restarts >= 2 })
	second := time.Now()
	t.Logf("second death %v after the first, %d sessions of the bad peer", second.Sub(first.DiedAt), e.sessions.Load()-sessions)
	for _, r := range others {
		l.within(time.Until(second.Add(3*time.Second)), "session with "+r.name+" after the second death", func() bool {
			return l.status(r.addr).State == "Established"
		})
	}
	t.Logf("all others back after %v", time.Since(second))
	s := l.status(bad.addr)
	if s.State != "HeldBack" || s.Deaths != 2 || s.HeldReason == "" || time.Until(s.HeldBack) < 20*time.Second {
		t.Errorf("the bad peer is not held back: %+v", s)
	}
	l.eventually("sync", func() bool { return l.node.Status().Synced })
	l.quiet(monitors)
	for _, p := range l.routes.lost() {
		if p.String() != "198.18.0.0/24" {
			t.Errorf("the node dropped %s", p)
		}
	}
	if l.routes.len() != 3 || l.node.Status().Restarts != 2 {
		t.Errorf("routes %v, status %+v", l.routes, l.node.Status())
	}
}

// TestMeshKilled kills the speaker of one of three nodes of a mesh. The others run GoBGP too,
// which after the end of a session refuses every connection for 5 s.
func TestMeshKilled(t *testing.T) {
	t.Parallel()
	nodes := []*lab{newLab(t), newLab(t), newLab(t)}
	for i, l := range nodes {
		must(t, "ip", "addr", "add", l.addr(0, 1).String()+"/32", "dev", "lo")
		l.want.ListenAddrs = []netip.Addr{l.addr(0, 1)}
		l.advertise(fmt.Sprintf("10.244.%d.0/26", i))
		for _, o := range nodes {
			if o != l {
				l.want.Peers = append(l.want.Peers, bgp.Peer{
					Addr: o.addr(0, 1), LocalAddr: l.addr(0, 1), Port: 179, ASN: ownASN, LocalASN: ownASN,
					RestartTime: bgp.DefaultRestartTime, HoldTime: bgp.DefaultHoldTime, Keepalive: bgp.DefaultHoldTime / 3,
					NextHopMode: model.NextHopAuto, Mesh: true,
				})
			}
		}
		l.start()
	}
	up := func() {
		t.Helper()
		for _, l := range nodes {
			for _, o := range nodes {
				if o != l {
					l.eventually("mesh", func() bool { return l.status(o.addr(0, 1)).State == "Established" })
				}
			}
			l.eventually("routes", func() bool { return l.routes.len() == 2 && l.node.Status().Synced })
		}
	}
	up()
	for range 2 {
		pid := nodes[0].inst.Load().PID()
		begin := time.Now()
		nodes[0].kill()
		nodes[0].eventually("another speaker", func() bool { s := nodes[0].node.Status(); return s.Running && s.PID != pid })
		up()
		t.Logf("all sessions are back after %v", time.Since(begin).Round(time.Millisecond))
	}
	for _, l := range nodes {
		if lost := l.routes.lost(); len(lost) != 0 {
			t.Errorf("a node dropped %v", lost)
		}
	}
}

// refuse accepts connections and closes them, as GoBGP does while it rests, until stop; tries
// tells when.
func (r *router) refuse(port string) (tries <-chan time.Time, stop func()) {
	r.l.t.Helper()
	ln, err := listenIn(r.name, net.JoinHostPort(r.addr.String(), port))
	if err != nil {
		r.l.t.Fatal(err)
	}
	r.l.t.Cleanup(func() { ln.Close() })
	at := make(chan time.Time, 100)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
			at <- time.Now()
		}
	}()
	return at, func() { ln.Close() }
}

// TestRefused: a peer that refuses the connection, as GoBGP does while it rests, is tried again
// soon, also when the speaker has long been up. Two that wait 5 s after each refusal can keep
// missing each other for minutes.
func TestRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.router(ownASN)
	tries, _ := r.refuse("1790")
	p := defaultPace
	p.window = 100 * time.Millisecond
	l.startPaced(p) // nobody listens on port 179
	l.eventually("sync", func() bool { return l.node.Status().Synced })
	l.want.Peers[0].Port = 1790
	l.set()
	first := <-tries
	if took := (<-tries).Sub(first); took > 4500*time.Millisecond {
		t.Errorf("the second attempt came %v after the first", took)
	}
}
