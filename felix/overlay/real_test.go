package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/felix/route"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/model"
)

// netns is a network namespace.
type netns struct {
	t    testing.TB
	name string
}

var nsCount atomic.Int32

func newNetNS(t testing.TB) *netns {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests make network namespaces: run them as root")
	}
	n := &netns{t, fmt.Sprintf("cwover-%d-%d", os.Getpid(), nsCount.Add(1))}
	if out, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s (iproute2 and CAP_SYS_ADMIN are needed)", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", n.name, err, out)
		}
	})
	n.ip("link set lo up")
	return n
}

func (n *netns) try(program, args string) (string, error) {
	out, err := exec.Command(program, append([]string{"-n", n.name}, strings.Fields(args)...)...).CombinedOutput()
	return string(out), err
}

func (n *netns) ip(args string) string {
	n.t.Helper()
	out, err := n.try("ip", args)
	if err != nil {
		n.t.Fatalf("ip -n %s %s: %v: %s", n.name, args, err, out)
	}
	return out
}

// inside puts the calling goroutine's thread into the namespace for good; the thread ends
// with the goroutine.
func (n *netns) inside() error {
	runtime.LockOSThread()
	fd, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// run does f in the namespace.
func (n *netns) run(f func() error) {
	n.t.Helper()
	done := make(chan error, 1)
	go func() {
		err := n.inside()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("in %s: %v", n.name, err)
	}
}

func (n *netns) sysctl(settings ...string) {
	n.t.Helper()
	n.run(func() error {
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// computer is a node with one pod.
type computer struct {
	*netns
	name   string
	number int // of its block
	pod    *netns
	stop   func()
	over   *Overlay
	table  *route.Table
}

// racks are computers a and b in one subnet and c in another, with a router between that
// knows the pods, so that every mode works.
type racks struct {
	t     testing.TB
	nodes [3]*computer
	own   [3][2]string // node addresses with their masks
}

var rackOf = [3]int{1, 1, 2}

func newRacks(t testing.TB, rpFilter int) *racks {
	t.Helper()
	r := &racks{t: t}
	router := newNetNS(t)
	router.sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0")
	for rack := 1; rack <= 2; rack++ {
		router.ip(fmt.Sprintf("link add rack%d type bridge", rack))
		router.ip(fmt.Sprintf("addr add 10.0.%d.254/24 dev rack%d", rack, rack))
		router.ip(fmt.Sprintf("addr add fd00:%d::fe/64 dev rack%d nodad", rack, rack))
		router.ip(fmt.Sprintf("link set rack%d up", rack))
	}
	for i := range r.nodes {
		c := &computer{netns: newNetNS(t), name: string(rune('a' + i)), number: i, pod: newNetNS(t)}
		r.nodes[i] = c
		rack := rackOf[i]
		c.sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1",
			fmt.Sprintf("net/ipv4/conf/all/rp_filter=%d", rpFilter), fmt.Sprintf("net/ipv4/conf/default/rp_filter=%d", rpFilter))
		router.ip(fmt.Sprintf("link add port%d type veth peer name up0 netns %s", i, c.netns.name))
		router.ip(fmt.Sprintf("link set port%d master rack%d up", i, rack))
		v4, v6 := fmt.Sprintf("10.0.%d.%d", rack, i+1), fmt.Sprintf("fd00:%d::%d", rack, i+1)
		r.own[i] = [2]string{v4 + "/24", v6 + "/64"}
		c.ip("addr add " + v4 + "/24 dev up0")
		c.ip("addr add " + v6 + "/64 dev up0 nodad")
		c.ip("link set up0 up")
		c.ip(fmt.Sprintf("route add default via 10.0.%d.254", rack))
		c.ip(fmt.Sprintf("-6 route add default via fd00:%d::fe", rack))
		router.ip(fmt.Sprintf("route add 10.1.%d.0/26 via %s", i, v4))
		router.ip(fmt.Sprintf("-6 route add fd01::%d:0/122 via %s", i, v6))
		c.ip("link add cali0 type veth peer name eth0 netns " + c.pod.name)
		c.ip(fmt.Sprintf("addr add 10.1.%d.1/26 dev cali0", i))
		c.ip(fmt.Sprintf("addr add fd01::%d:1/122 dev cali0 nodad", i))
		c.ip("link set cali0 up")
		c.pod.ip(fmt.Sprintf("addr add 10.1.%d.10/26 dev eth0", i))
		c.pod.ip(fmt.Sprintf("addr add fd01::%d:10/122 dev eth0 nodad", i))
		c.pod.ip("link set eth0 up")
		c.pod.ip(fmt.Sprintf("route add default via 10.1.%d.1", i))
		c.pod.ip(fmt.Sprintf("-6 route add default via fd01::%d:1", i))
	}
	return r
}

// snapshot is the cluster with those modes; blocks are known as with VXLAN.
func (r *racks) snapshot(ipip, vxlan4, vxlan6 model.EncapMode) *model.Snapshot {
	s := &model.Snapshot{BlocksKnown: true, Pools: []model.Pool{
		{Name: "four", CIDR: prefix("10.1.0.0/16"), IPIPMode: ipip, VXLANMode: vxlan4},
		{Name: "six", CIDR: prefix("fd01::/64"), IPIPMode: never, VXLANMode: vxlan6},
	}}
	for i, c := range r.nodes {
		n := model.Node{Name: c.name, IPv4: prefix(r.own[i][0]), IPv6: prefix(r.own[i][1])}
		for t, a := range tunnelAddrs(i) {
			n.Tunnels[t].Addr = a
		}
		s.Nodes = append(s.Nodes, n)
		s.Blocks = append(s.Blocks, model.Block{CIDR: prefix(fmt.Sprintf("10.1.%d.0/26", i)), Node: c.name})
	}
	for i, c := range r.nodes {
		s.Blocks = append(s.Blocks, model.Block{CIDR: prefix(fmt.Sprintf("fd01::%d:0/122", i)), Node: c.name})
	}
	return s
}

func tunnelAddrs(i int) (out [model.Tunnels]netip.Addr) {
	v4 := addr(fmt.Sprintf("10.1.%d.5", i))
	out[model.TunnelIPIP], out[model.TunnelVXLAN4] = v4, addr(fmt.Sprintf("10.1.%d.6", i))
	out[model.TunnelVXLAN6] = addr(fmt.Sprintf("fd01::%d:6", i))
	return out
}

// start runs the parts of an agent on node i, with what BGP tells it.
func (r *racks) start(i int, snap *model.Snapshot) {
	r.t.Helper()
	c := r.nodes[i]
	log := slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", c.name)
	table, err := route.New(route.Config{Log: log, Owners: []model.Owner{model.OwnerTunnel, model.OwnerBGP}, NetNS: "/run/netns/" + c.netns.name})
	if err != nil {
		r.t.Fatal(err)
	}
	devices := tunnel.New(tunnel.Config{Log: log})
	over, err := New(Config{
		Log: log, Node: c.name, Routes: table, Devices: devices,
		Addresses: func([]model.Tunnel) {}, Guard: func(model.EncapGuard, model.EncapGuard) {},
		Lead: 300 * time.Millisecond, Linger: 300 * time.Millisecond,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	c.over, c.table = over, table
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{
		table.Run, over.Run,
		func(ctx context.Context) error {
			if err := c.inside(); err != nil {
				return err
			}
			return devices.Run(ctx)
		},
	} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				r.t.Errorf("node %s: %v", c.name, err)
			}
		})
	}
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	r.t.Cleanup(c.stop)
	over.SetMTU(1500)
	over.SetAddrs(tunnelAddrs(i))
	over.Set(snap)
	var u model.RouteUpdate
	for j, other := range r.nodes {
		if j == i {
			continue
		}
		for f, block := range []string{fmt.Sprintf("10.1.%d.0/26", j), fmt.Sprintf("fd01::%d:0/122", j)} {
			u.Set = append(u.Set, model.Route{Prefix: prefix(block), NextHops: []model.NextHop{{Addr: prefix(r.own[other.number][f]).Addr()}}})
		}
	}
	table.Update(model.OwnerBGP, u)
	table.InSync(model.OwnerBGP)
}

// set tells the nodes of a snapshot, each some time after the other.
func (r *racks) set(snap *model.Snapshot) {
	for i, c := range r.nodes {
		if i > 0 {
			time.Sleep(20 * time.Millisecond) // what the API server's watches may be apart
		}
		c.over.Set(snap)
	}
}

// idle polls until every node has done all there is to do for snap.
func (r *racks) idle(snap *model.Snapshot) {
	r.t.Helper()
	r.eventually(func() string {
		for _, c := range r.nodes {
			c.over.mu.Lock()
			s, done := c.over.status, c.over.done
			c.over.mu.Unlock()
			if done == nil || !done.Equal(dataplane.NewOverlay(snap, c.name)) || s.Waiting != "" || s.Error != "" {
				return fmt.Sprintf("node %s: %+v", c.name, s)
			}
		}
		return ""
	})
}

func (r *racks) eventually(check func() string) {
	r.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within 60 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// flow is datagrams from one pod to another, one a millisecond, each with its number and the
// time it was sent at.
type flow struct {
	name string
	mu   sync.Mutex
	sent int64 // when the last packet that arrived was sent, in ns since start; 0: none
	seq  uint64
	lost int
	gap  time.Duration // the longest time whose packets were all lost
	got  int
}

// send starts a flow from pod to pod of one family; it ends with the test.
func (r *racks) send(from, to, family int, ctx context.Context) *flow {
	r.t.Helper()
	host := func(i int) string {
		return []string{fmt.Sprintf("10.1.%d.10", i), fmt.Sprintf("fd01::%d:10", i)}[family]
	}
	port := fmt.Sprint(7000 + from)
	var in, out net.PacketConn
	r.nodes[to].pod.run(func() (err error) {
		in, err = net.ListenPacket("udp", net.JoinHostPort(host(to), port))
		if err == nil {
			err = in.(*net.UDPConn).SetReadBuffer(4 << 20)
		}
		return err
	})
	r.nodes[from].pod.run(func() (err error) {
		out, err = net.ListenPacket("udp", net.JoinHostPort(host(from), "0"))
		return err
	})
	f := &flow{name: fmt.Sprintf("%s>%s/%d", r.nodes[from].name, r.nodes[to].name, 4+2*family)}
	dst, start := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(host(to)), uint16(7000+from))), time.Now()
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		b := make([]byte, 64)
		for seq := uint64(1); ; seq++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(b, seq)
			binary.BigEndian.PutUint64(b[8:], uint64(time.Since(start)))
			_, _ = out.WriteTo(b, dst) // an ICMP error of an earlier one is no matter
		}
	})
	done.Go(func() {
		b := make([]byte, 100)
		for {
			n, _, err := in.ReadFrom(b)
			if err != nil {
				return
			}
			if n == 64 {
				f.take(binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:])))
			}
		}
	})
	r.t.Cleanup(func() {
		out.Close()
		in.Close()
		done.Wait()
	})
	return f
}

func (f *flow) take(seq uint64, sent int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got++
	if seq <= f.seq { // overtaken on the way: it is not lost after all
		f.lost--
		return
	}
	if f.sent != 0 && seq > f.seq+1 {
		f.lost += int(seq - f.seq - 1)
		f.gap = max(f.gap, time.Duration(sent-f.sent))
	}
	f.seq, f.sent = seq, sent
}

// reset begins a new measurement and returns the last one.
func (f *flow) reset() (got, lost int, gap time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	got, lost, gap = f.got, f.lost, f.gap
	f.got, f.lost, f.gap = 0, 0, 0
	return got, lost, gap
}

// carries waits until a flow has delivered so many packets since the last reset.
func (r *racks) carries(f *flow, packets int) {
	r.t.Helper()
	r.eventually(func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.got >= packets {
			return ""
		}
		return fmt.Sprintf("%s: %d packets of %d", f.name, f.got, packets)
	})
}

// device is the one that packets for the pod of node to take.
func (c *computer) device(family, to int) string {
	dst := []string{fmt.Sprintf("10.1.%d.10", to), fmt.Sprintf("fd01::%d:10", to)}[family]
	f := strings.Fields(c.ip(fmt.Sprintf("-%d route get %s", 4+2*family, dst)))
	for i := range f {
		if f[i] == "dev" {
			return f[i+1]
		}
	}
	return strings.Join(f, " ")
}

// sentBy is how many packets a device has sent.
func (c *computer) sentBy(device string) (n int) {
	c.run(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(b)) {
			if name, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == device {
				fmt.Sscan(strings.Fields(rest)[9], &n)
			}
		}
		return err
	})
	return n
}

// leftOver is what stands on the node that encapsulation made.
func (c *computer) leftOver() string {
	var out []string
	for _, command := range []string{"link show", "addr show", "-4 route show table all", "-6 route show table all", "neigh show nud all"} {
		for line := range strings.Lines(c.ip("-o " + command)) {
			if strings.Contains(line, "vxlan") || strings.Contains(line, "tunl0") && !strings.Contains(line, "state DOWN") {
				out = append(out, command+": "+strings.TrimSpace(line))
			}
		}
	}
	if fdb, err := c.try("bridge", "fdb show"); err != nil || strings.Contains(fdb, "vxlan") {
		out = append(out, fmt.Sprint(fdb, err))
	}
	return strings.Join(out, "\n")
}

// kernelHasIPIP finds out by what felix/tunnel does not do: a device of another name. In a
// virtual machine with a stock kernel the answer must be yes (CAUSEWAY_TEST_VM is set there).
func kernelHasIPIP(t testing.TB, n *netns) bool {
	t.Helper()
	out, err := n.try("ip", "link add cwprobe0 type ipip remote 192.0.2.1")
	if err == nil {
		n.ip("link del cwprobe0")
	} else if os.Getenv("CAUSEWAY_TEST_VM") != "" {
		t.Fatalf("a stock kernel makes ipip devices, this one does not: %s", out)
	}
	return err == nil
}
