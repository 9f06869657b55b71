package veth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
	"github.com/causeway-net/causeway/internal/model"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

func newWirer(t testing.TB) *Wirer {
	t.Helper()
	w, err := New("/proc/sys")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// spec is a dual-stack pod's, with the namespace at path.
func spec(t testing.TB, container, path string) Spec {
	key := model.AttachmentKey{ContainerID: container, IfName: "eth0"}
	return Spec{
		HostName: HostName(key, "default", container), PodName: "eth0", NetNS: sandbox.Open(t, path),
		Owner: Owner{"net", key}, Addresses: addrs("10.9.0.5", "fd00:9::5"), MTU: 1450,
	}
}

// remove ends the link of s with the test.
func remove(t testing.TB, w *Wirer, s Spec) {
	t.Cleanup(func() {
		if err := w.Remove(s.HostName, s.Owner); err != nil {
			t.Error(err)
		}
	})
}

func wire(t testing.TB, w *Wirer, s Spec) Link {
	t.Helper()
	l, err := w.Wire(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func check(t testing.TB, w *Wirer, s Spec, l Link) {
	t.Helper()
	d, err := w.Check(s, l.Routes)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range d {
		t.Error(x)
	}
}

func TestHostName(t *testing.T) {
	eth0 := model.AttachmentKey{ContainerID: "abc", IfName: "eth0"}
	net1 := model.AttachmentKey{ContainerID: "abc", IfName: "net1"}
	// printf default.web | sha1sum
	if got := HostName(eth0, "default", "web"); got != "cali68caf03a5f4" {
		t.Errorf("got %s, not Calico's name", got)
	}
	seen := map[string]bool{}
	for _, n := range []string{HostName(eth0, "default", "web"), HostName(net1, "default", "web"), HostName(eth0, "", ""), HostName(net1, "", "")} {
		if len(n) != 15 || seen[n] {
			t.Errorf("%s: not 15 bytes or taken", n)
		}
		seen[n] = true
	}
}

// TestWire wires pods of every family and reaches them from the host through a route as
// the dataplane makes it.
func TestWire(t *testing.T) {
	w := newWirer(t)
	for name, tt := range map[string]struct {
		addresses []netip.Addr
		mtu       int
		mac       string
	}{
		"ipv4":       {addrs("10.9.1.1"), 1500, ""},
		"ipv6":       {addrs("fd00:9::1:1"), 1280, ""},
		"dual stack": {addrs("10.9.1.2", "fd00:9::1:2"), 9000, "02:00:00:00:00:77"},
		"small":      {addrs("10.9.1.3"), 600, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := sandbox.Pod(t)
			s := spec(t, strings.ReplaceAll(name, " ", "-"), path)
			s.Addresses, s.MTU = tt.addresses, tt.mtu
			if tt.mac != "" {
				s.MAC, _ = net.ParseMAC(tt.mac)
			}
			remove(t, w, s)
			l := wire(t, w, s)
			if !l.Created || len(l.Routes) != len(tt.addresses) || len(l.MAC) != 6 || (tt.mac != "" && l.MAC.String() != tt.mac) {
				t.Errorf("link %+v", l)
			}
			check(t, w, s, l)
			for _, a := range tt.addresses {
				sandbox.Run(t, "ip", "route", "add", a.String(), "dev", s.HostName)
				sandbox.Run(t, "ping", "-c1", "-W2", a.String())
				sandbox.In(t, path, "ping", "-c1", "-W2", map[bool]string{true: sandbox.HostIPv4, false: sandbox.HostIPv6}[a.Is4()])
			}
			if !s.hasIPv6() {
				if out := sandbox.Run(t, "ip", "-6", "addr", "show", "dev", s.HostName) + sandbox.In(t, path, "ip", "-6", "addr", "show", "dev", "eth0"); out != "" {
					t.Errorf("IPv6 addresses on a link without IPv6:\n%s", out)
				}
			}
			if out := sandbox.Run(t, "ip", "-4", "addr", "show", "dev", s.HostName); out != "" {
				t.Errorf("host end has an IPv4 address:\n%s", out)
			}
		})
	}
}

// TestIPv6SwitchedOff: container runtimes make namespaces with IPv6 off.
func TestIPv6SwitchedOff(t *testing.T) {
	w := newWirer(t)
	path := sandbox.Pod(t)
	sandbox.In(t, path, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
	s := spec(t, "noipv6", path)
	remove(t, w, s)
	check(t, w, s, wire(t, w, s))

	path = sandbox.Pod(t)
	sandbox.In(t, path, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
	s = spec(t, "noipv6-4", path)
	s.Addresses = addrs("10.9.0.6")
	remove(t, w, s)
	check(t, w, s, wire(t, w, s))
	if out := sandbox.In(t, path, "cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); strings.TrimSpace(out) != "1" {
		t.Error("IPv6 was switched on in a pod without an IPv6 address")
	}
}

// damage is every way TestCheck and TestMend hurt a link, with the kind that tells it.
var damage = map[string]struct {
	pod     bool // run inside the pod
	command string
	kind    Kind
	broken  bool // the whole link must be made anew
}{
	"host address":     {false, "ip addr flush dev HOST", Address, false},
	"host down":        {false, "ip link set HOST down", HostLink, false},
	"host mtu":         {false, "ip link set HOST mtu 1400", HostLink, false},
	"host mac":         {false, "ip link set HOST address 02:00:00:00:00:01", HostLink, false},
	"host alias":       {false, "ip link set HOST alias other", HostLink, true},
	"host gone":        {false, "ip link del HOST", HostLink, true},
	"proxy_arp":        {false, "sysctl -qw net.ipv4.conf.HOST.proxy_arp=0", Sysctl, false},
	"rp_filter":        {false, "sysctl -qw net.ipv4.conf.HOST.rp_filter=0", Sysctl, false},
	"forwarding":       {false, "sysctl -qw net.ipv4.conf.HOST.forwarding=0", Sysctl, false},
	"forwarding ipv6":  {false, "sysctl -qw net.ipv6.conf.HOST.forwarding=0", Sysctl, false},
	"host accept_ra":   {false, "sysctl -qw net.ipv6.conf.HOST.accept_ra=2", Sysctl, false},
	"proxy_delay":      {false, "sysctl -qw net.ipv4.neigh.HOST.proxy_delay=80", Sysctl, false},
	"pod down":         {true, "ip link set eth0 down", PodLink, false},
	"pod mtu":          {true, "ip link set eth0 mtu 1400", PodLink, false},
	"pod renamed":      {true, "ip link set eth0 down; ip link set eth0 name ethX", PodLink, true},
	"pod address":      {true, "ip addr del 10.9.0.5/32 dev eth0", Address, false},
	"pod prefix":       {true, "ip addr del 10.9.0.5/32 dev eth0; ip addr add 10.9.0.5/24 dev eth0", Address, false},
	"pod address ipv6": {true, "ip addr del fd00:9::5/128 dev eth0", Address, false},
	"default":          {true, "ip route del default", PodRoute, false},
	"default moved":    {true, "ip route replace default dev eth0", PodRoute, false},
	"gateway route":    {true, "ip route del default; ip route del 169.254.1.1", PodRoute, false},
	"default ipv6":     {true, "ip -6 route del default", PodRoute, false},
	"neighbour":        {true, "ip neigh del 169.254.1.1 dev eth0", Neighbour, false},
	"neighbour moved":  {true, "ip neigh replace 169.254.1.1 dev eth0 lladdr 02:00:00:00:00:01 nud permanent", Neighbour, false},
	"neighbour stale":  {true, "ip neigh replace fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee nud reachable", Neighbour, false},
	"pod accept_ra":    {true, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1", Sysctl, false},
	"pod ipv6 off":     {true, "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", Sysctl, false},
}

// TestCheckAndMend damages a link in every way; Check names the damage, Wire mends it and
// Check finds nothing after that.
func TestCheckAndMend(t *testing.T) {
	w := newWirer(t)
	for name, tt := range damage {
		t.Run(name, func(t *testing.T) {
			path := sandbox.Pod(t)
			s := spec(t, "check", path)
			remove(t, w, s)
			l := wire(t, w, s)
			s.MAC = l.MAC
			check(t, w, s, l)
			command := strings.ReplaceAll(tt.command, "HOST", s.HostName)
			if tt.pod {
				sandbox.In(t, path, "sh", "-ec", command)
			} else {
				sandbox.Run(t, "sh", "-ec", command)
			}
			d, err := w.Check(s, l.Routes)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, x := range d {
				found = found || x.Kind == tt.kind
			}
			if !found {
				t.Errorf("not found out; differences: %v", d)
			}
			again := wire(t, w, s)
			if again.Created != tt.broken {
				t.Errorf("created anew: %v, want %v", again.Created, tt.broken)
			}
			check(t, w, s, again)
		})
	}
}

// TestReplace: what stands under the host end's name is a dead pod's, what stands under the
// pod end's name is not ours to touch.
func TestReplace(t *testing.T) {
	w := newWirer(t)
	old, fresh := sandbox.Pod(t), sandbox.Pod(t)
	s := spec(t, "c1", old)
	remove(t, w, s)
	wire(t, w, s)

	// The pod's next sandbox: another container, the same host name.
	next := s
	next.NetNS = sandbox.Open(t, fresh)
	next.Owner.Key.ContainerID = "c2"
	remove(t, w, next)
	l := wire(t, w, next)
	check(t, w, next, l)

	// The late DEL of the old sandbox leaves the new link alone.
	if err := w.Remove(s.HostName, s.Owner); err != nil {
		t.Fatal(err)
	}
	check(t, w, next, l)

	// The same container in another namespace.
	moved := next
	moved.NetNS = sandbox.Open(t, old)
	check(t, w, moved, wire(t, w, moved))
	if d, err := w.Check(next, nil); err != nil || len(d) == 0 {
		t.Errorf("old namespace still holds the link: %v, %v", d, err)
	}

	// A stranger's interface in the pod.
	sandbox.In(t, fresh, "ip", "link", "add", "eth0", "type", "bridge")
	stranger := spec(t, "c3", fresh)
	if _, err := w.Wire(stranger); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "has an interface eth0 already") {
		t.Errorf("over a stranger's interface: %v", err)
	}
	sandbox.In(t, fresh, "ip", "link", "show", "eth0")
	if owned, err := w.Owned(); err != nil || len(owned) != 1 || owned[moved.HostName] != moved.Owner {
		t.Errorf("owned: %v, %v", owned, err)
	}
}

// TestSecondInterface: a further attachment leaves the pod's default route where it is.
func TestSecondInterface(t *testing.T) {
	w := newWirer(t)
	path := sandbox.Pod(t)
	first := spec(t, "two", path)
	remove(t, w, first)
	l := wire(t, w, first)
	second := spec(t, "two", path)
	second.PodName, second.Owner.Key.IfName = "net1", "net1"
	second.HostName = HostName(second.Owner.Key, "default", "two")
	second.Addresses = addrs("10.9.0.7", "fd00:9::7")
	remove(t, w, second)
	l2 := wire(t, w, second)
	if len(l2.Routes) != 0 {
		t.Errorf("second interface took the default routes: %v", l2.Routes)
	}
	check(t, w, first, l)
	check(t, w, second, l2)
}

func TestNetNS(t *testing.T) {
	w := newWirer(t)
	path := sandbox.Pod(t)
	s := spec(t, "ns", path)
	for name, f := range map[string]*os.File{"none": nil, "a file": sandbox.Open(t, "/dev/null"), "the host's": sandbox.Open(t, "/proc/self/ns/net"), "another kind": sandbox.Open(t, "/proc/self/ns/mnt")} {
		s.NetNS = f
		if _, err := w.Wire(s); !errors.Is(err, ErrNetNS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A namespace that lives by our descriptor only is wired; the link goes with it.
	s.NetNS = sandbox.Open(t, path)
	sandbox.Run(t, "ip", "netns", "del", strings.TrimPrefix(path, "/run/netns/"))
	remove(t, w, s)
	wire(t, w, s)
}

func TestValidate(t *testing.T) {
	w := newWirer(t)
	path := sandbox.Pod(t)
	for want, change := range map[string]func(*Spec){
		"MTU 1000: want 1280": func(s *Spec) { s.MTU = 1000 },
		"MTU 0":               func(s *Spec) { s.MTU = 0 },
		"MTU 70000":           func(s *Spec) { s.MTU = 70000 },
		"more than 255 bytes": func(s *Spec) { s.Owner.Key.ContainerID = strings.Repeat("x", 250) },
	} {
		s := spec(t, "v", path)
		change(&s)
		if _, err := w.Wire(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestRemove is idempotent, works when the pod's namespace is gone, and takes an unmarked
// link, which a crash between creation and marking leaves.
func TestRemove(t *testing.T) {
	w := newWirer(t)
	path := sandbox.Pod(t)
	s := spec(t, "rm", path)
	wire(t, w, s)
	for range 2 {
		if err := w.Remove(s.HostName, s.Owner); err != nil {
			t.Fatal(err)
		}
		sandbox.In(t, path, "sh", "-c", "! ip link show eth0")
	}
	sandbox.Run(t, "ip", "link", "add", s.HostName, "type", "veth", "peer", "name", "eth0", "netns", strings.TrimPrefix(path, "/run/netns/"))
	if err := w.Remove(s.HostName, s.Owner); err != nil {
		t.Fatal(err)
	}
	sandbox.Run(t, "sh", "-c", "! ip link show "+s.HostName)
}

// TestParallel wires many pods at once; no thread is left in a pod's namespace.
func TestParallel(t *testing.T) {
	w := newWirer(t)
	var wg sync.WaitGroup
	for i := range 20 {
		path := sandbox.Pod(t)
		s := spec(t, fmt.Sprintf("p%d", i), path)
		s.Addresses = addrs(fmt.Sprintf("10.9.2.%d", i+1), fmt.Sprintf("fd00:9::2:%x", i+1))
		wg.Go(func() {
			l, err := w.Wire(s)
			if err != nil {
				t.Error(err)
				return
			}
			if d, err := w.Check(s, l.Routes); err != nil || len(d) > 0 {
				t.Error(err, d)
			}
			if err := w.Remove(s.HostName, s.Owner); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
			t.Errorf("thread %s is in %s", task.Name(), ns)
		}
	}
}

// TestInside: panics and lost ways back do not spread.
func TestInside(t *testing.T) {
	w := newWirer(t)
	ns := sandbox.Open(t, sandbox.Pod(t))
	if err := w.inside(ns, func() error { panic("boom") }); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Error(err)
	}
	lost := &Wirer{host: sandbox.Open(t, "/dev/null")}
	var tid int
	if err := lost.inside(ns, func() error { tid = unix.Gettid(); return nil }); err == nil || !strings.Contains(err.Error(), "leaving") {
		t.Error(err)
	}
	for range 100 {
		runtime.Gosched()
		if err := w.inside(ns, func() error {
			if unix.Gettid() == tid && tid != os.Getpid() {
				return errors.New("a thread that was left in a pod's namespace is used again")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkWire(b *testing.B) {
	w := newWirer(b)
	path := sandbox.Pod(b)
	s := spec(b, "bench", path)
	for b.Loop() {
		if _, err := w.Wire(s); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := w.Remove(s.HostName, s.Owner); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
