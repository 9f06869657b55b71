package gobgp

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/internal/model"
)

// ownASN is the AS number of the nodes under test.
const ownASN = 64512

var labs atomic.Int32

// lab is one node under test, in the namespace of this process, with routers around it. Every
// lab has its own addresses, so that tests can run side by side.
type lab struct {
	t      *testing.T
	id     int
	node   *Reconciler
	want   bgp.Speaker
	routes *recorder
	inst   atomic.Pointer[child.Instance]
	log    *testLog
	links  int
	wg     sync.WaitGroup
	stop   context.CancelFunc
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, id: int(labs.Add(1)), routes: &recorder{table: map[netip.Prefix][]netip.Addr{}}, log: &testLog{}}
	l.want = bgp.Speaker{ASN: ownASN, RouterID: l.addr(0, 1), ListenPort: 179}
	t.Cleanup(func() {
		if l.stop != nil {
			l.stop()
			l.wg.Wait()
		}
		if t.Failed() {
			t.Logf("log of the agent and its speaker:\n%s", l.log)
		}
	})
	return l
}

func (l *lab) addr(link, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + l.id), byte(link), byte(host)})
}

// start runs the reconciler with the wanted speaker.
func (l *lab) start(change ...func(*Config)) {
	l.t.Helper()
	l.startPaced(defaultPace, change...)
}

func (l *lab) startPaced(p pace, change ...func(*Config)) {
	l.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	run := l.t.TempDir()
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	cfg := Config{
		Log: log,
		Start: func(ctx context.Context) (Instance, error) {
			inst, err := child.Start(ctx, child.Config{Exe: exe, Args: []string{"speaker"}, RunDir: run, AllowWrites: true, Log: log})
			if err != nil {
				return nil, err
			}
			l.inst.Store(inst)
			return inst, nil
		},
		Routes: l.routes.update, Replace: l.routes.replace, Synced: l.routes.markSynced,
	}
	for _, f := range change {
		f(&cfg)
	}
	l.node = New(cfg)
	l.node.pace = p
	l.set()
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.wg.Go(func() {
		if err := l.node.Run(ctx); err != nil {
			l.t.Errorf("Run: %v", err)
		}
	})
}

// set hands a copy of the wanted speaker over.
func (l *lab) set() {
	s := l.want
	s.Peers = slices.Clone(s.Peers)
	slices.SortFunc(s.Peers, func(a, b bgp.Peer) int { return a.Addr.Compare(b.Addr) })
	s.Adverts = slices.Clone(s.Adverts)
	l.node.Set(&s)
}

func (l *lab) peer(a netip.Addr) *bgp.Peer {
	for i := range l.want.Peers {
		if l.want.Peers[i].Addr == a {
			return &l.want.Peers[i]
		}
	}
	l.t.Fatalf("no peer %s", a)
	return nil
}

func (l *lab) advertise(prefixes ...string) {
	for _, p := range prefixes {
		l.want.Adverts = append(l.want.Adverts, bgp.Advert{Prefix: netip.MustParsePrefix(p)})
	}
}

func (l *lab) status(a netip.Addr) PeerStatus {
	for _, p := range l.node.Status().Peers {
		if p.Addr == a {
			return p
		}
	}
	return PeerStatus{State: "unknown"}
}

func (l *lab) up(routers ...*router) {
	l.t.Helper()
	for _, r := range routers {
		l.eventually("session with "+r.name, func() bool { return l.status(r.addr).State == "Established" })
	}
}

// eventually polls until what holds.
func (l *lab) eventually(what string, holds func() bool) {
	l.t.Helper()
	l.within(20*time.Second, what, holds)
}

func (l *lab) within(d time.Duration, what string, holds func() bool) {
	l.t.Helper()
	for end := time.Now().Add(d); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("not within %v: %s; routes %v; status %+v", d, what, l.routes, l.node.Status())
		}
	}
}

// kill ends the speaker as an operator or the kernel would.
func (l *lab) kill() {
	l.t.Helper()
	if err := syscall.Kill(l.inst.Load().PID(), syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
}

// recorder plays the kernel's table.
type recorder struct {
	mu      sync.Mutex
	table   map[netip.Prefix][]netip.Addr
	synced  int
	deleted []netip.Prefix // ever, by Routes or Replace
}

func (r *recorder) update(u model.RouteUpdate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range u.Set {
		r.table[x.Prefix] = hops(x)
	}
	for _, p := range u.Delete {
		if _, ok := r.table[p]; ok {
			r.deleted = append(r.deleted, p)
		}
		delete(r.table, p)
	}
}

func (r *recorder) replace(routes []model.Route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.table
	r.table = map[netip.Prefix][]netip.Addr{}
	for _, x := range routes {
		r.table[x.Prefix] = hops(x)
	}
	for p := range old {
		if _, ok := r.table[p]; !ok {
			r.deleted = append(r.deleted, p)
		}
	}
}

func (r *recorder) markSynced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced++
}

func hops(x model.Route) []netip.Addr {
	var out []netip.Addr
	for _, h := range x.NextHops {
		out = append(out, h.Addr)
	}
	return out
}

func (r *recorder) via(p string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table[netip.MustParsePrefix(p)]
}

func (r *recorder) syncs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced
}

func (r *recorder) lost() []netip.Prefix {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.deleted)
}

func (r *recorder) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.table)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.table) > 50 {
		return fmt.Sprintf("%d routes", len(r.table))
	}
	var b strings.Builder
	for _, p := range slices.SortedFunc(maps.Keys(r.table), bgp.ComparePrefix) {
		fmt.Fprintf(&b, "%s via %v; ", p, r.table[p])
	}
	return b.String()
}

type testLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// router is a BGP speaker in a namespace of its own, one link away from the node.
type router struct {
	l         *lab
	name      string
	addr, far netip.Addr // its address, and the node's on the link
	asn       uint32
	dir       string
}

// router makes the namespace and the link, and wants a session with it.
func (l *lab) router(asn uint32, change ...func(*bgp.Peer)) *router {
	l.t.Helper()
	l.links++
	r := &router{l: l, name: fmt.Sprintf("r%d-%d", l.id, l.links), addr: l.addr(l.links, 2), far: l.addr(l.links, 1), asn: asn, dir: l.t.TempDir()}
	must(l.t, "ip", "netns", "add", r.name)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", r.name).Run() })
	v := "v" + r.name
	must(l.t, "ip", "link", "add", v, "type", "veth", "peer", "name", "eth0", "netns", r.name)
	must(l.t, "ip", "addr", "add", r.far.String()+"/24", "dev", v)
	must(l.t, "ip", "link", "set", v, "up")
	r.run("ip", "link", "set", "lo", "up")
	r.run("ip", "addr", "add", r.addr.String()+"/24", "dev", "eth0")
	r.run("ip", "link", "set", "eth0", "up")
	l.t.Cleanup(func() { _ = exec.Command("ip", "link", "del", v).Run() })
	p := bgp.Peer{
		Addr: r.addr, Port: 179, ASN: asn, LocalASN: ownASN, LocalAddr: r.far,
		Multihop: asn != ownASN, RestartTime: bgp.DefaultRestartTime,
		HoldTime: bgp.DefaultHoldTime, Keepalive: bgp.DefaultHoldTime / 3,
		NextHopMode: model.NextHopAuto, Resource: r.name,
	}
	for _, f := range change {
		f(&p)
	}
	l.want.Peers = append(l.want.Peers, p)
	l.want.ListenAddrs = append(l.want.ListenAddrs, r.far)
	return r
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func (r *router) run(args ...string) string {
	r.l.t.Helper()
	return must(r.l.t, "ip", append([]string{"netns", "exec", r.name}, args...)...)
}

// daemon runs a program in the namespace until the test ends.
func (r *router) daemon(out io.Writer, args ...string) *exec.Cmd {
	r.l.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.name}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.l.t.Fatal(err)
	}
	r.l.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	return cmd
}

// bird starts BIRD with static routes; extra goes into the BGP protocol.
func (r *router) bird(routes []string, extra string) {
	r.l.t.Helper()
	r.birdConfig(routes, extra)
	r.startBird()
}

// birdFilter starts BIRD with static routes that it sends after the filter's statements.
func (r *router) birdFilter(routes []string, statements string) {
	r.l.t.Helper()
	r.birdConfig(routes, "")
	path := filepath.Join(r.dir, "bird.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		r.l.t.Fatal(err)
	}
	const plain = "export where source ~ [RTS_STATIC, RTS_BGP];"
	if !strings.Contains(string(text), plain) {
		r.l.t.Fatalf("no %q in\n%s", plain, text)
	}
	r.write("bird.conf", strings.Replace(string(text), plain, "export filter { if source !~ [RTS_STATIC, RTS_BGP] then reject; "+statements+" accept; };", 1))
	r.startBird()
}

func (r *router) startBird() {
	r.l.t.Helper()
	r.daemon(io.Discard, "bird", "-f", "-c", r.dir+"/bird.conf", "-s", r.dir+"/ctl", "-P", r.dir+"/pid")
	r.l.eventually("bird in "+r.name, func() bool { return exec.Command("birdc", "-s", r.dir+"/ctl", "show", "status").Run() == nil })
}

// killBird ends BIRD as a crash would.
func (r *router) killBird() {
	r.l.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "pid"))
	if err != nil {
		r.l.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		r.l.t.Fatal(err)
	}
}

func (r *router) birdConfig(routes []string, extra string) {
	r.l.t.Helper()
	var static strings.Builder
	for _, p := range routes {
		fmt.Fprintf(&static, "  route %s blackhole;\n", p)
	}
	r.write("bird.conf", fmt.Sprintf(`
router id %[1]s;
protocol device {}
protocol direct { ipv4; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; merge paths on; }
protocol static { ipv4;
%[2]s}
protocol bgp node {
  local %[1]s as %[3]d;
  neighbor %[4]s as %[5]d;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  multihop;
  graceful restart on;
  ipv4 { import all; export where source ~ [RTS_STATIC, RTS_BGP]; next hop self; };
  %[6]s
}
`, r.addr, static.String(), r.asn, r.far, ownASN, extra))
}

func (r *router) birdc(cmd ...string) string {
	r.l.t.Helper()
	return must(r.l.t, "birdc", append([]string{"-s", r.dir + "/ctl"}, cmd...)...)
}

func (r *router) write(name, text string) {
	r.l.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.l.t.Fatal(err)
	}
}

// has reports whether BIRD learned the prefix from the node.
func (r *router) has(prefix string) bool {
	out, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "route", prefix, "protocol", "node", "all").CombinedOutput()
	return strings.Contains(string(out), prefix)
}

// details is what BIRD knows of a prefix learned from the node.
func (r *router) details(prefix string) string {
	out, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "route", prefix, "protocol", "node", "all").CombinedOutput()
	return string(out)
}

// monitor records the changes of the router's kernel routes, a line each that begins with the
// prefix.
func (r *router) monitor() *testLog {
	r.l.t.Helper()
	ns, err := netns.GetFromName(r.name)
	if err != nil {
		r.l.t.Fatal(err)
	}
	defer ns.Close()
	out := &testLog{}
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	r.l.t.Cleanup(func() { close(done) })
	if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{
		Namespace:     &ns,
		ErrorCallback: func(err error) { fmt.Fprintf(out, "monitor: %v\n", err) },
	}); err != nil {
		r.l.t.Fatal(err)
	}
	go func() {
		for u := range updates {
			what := "set"
			if u.Type == unix.RTM_DELROUTE {
				what = "deleted"
			}
			fmt.Fprintf(out, "%v %s: %v\n", u.Dst, what, u.Route)
		}
	}()
	return out
}
