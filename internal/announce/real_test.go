package announce

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

const patience = 20 * time.Second

// space is a network namespace without a name; it goes with the last socket in it.
type space struct {
	ns netns.NsHandle
	nl *netlink.Handle
}

// in runs f in the namespace, on a thread of its own.
func (s *space) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{ns: netns.None()}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		s.ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	var err error
	if s.nl, err = netlink.NewHandleAt(s.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.nl.Close)
	s.up(t, "lo")
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *space) up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := s.nl.LinkByName(name)
	must(t, err)
	must(t, s.nl.LinkSetUp(l))
	return l
}

func (s *space) address(t testing.TB, cidr string) {
	t.Helper()
	l, err := s.nl.LinkByName("eth0")
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	a.Flags = 2 // IFA_F_NODAD
	must(t, s.nl.AddrReplace(l, a))
}

// network makes nodes on one bridge; each of at has a node's addresses with their lengths.
func network(t testing.TB, at ...string) []*space {
	t.Helper()
	fabric := newSpace(t)
	must(t, fabric.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "fabric"}}))
	bridge := fabric.up(t, "fabric")
	var out []*space
	for i, addresses := range at {
		s, name := newSpace(t), fmt.Sprintf("port%d", i)
		must(t, fabric.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.ns)}))
		fabric.up(t, name)
		s.up(t, "eth0")
		for _, a := range strings.Fields(addresses) {
			s.address(t, a)
		}
		out = append(out, s)
	}
	return out
}

// agent is a running Announcer.
type agent struct {
	*Announcer
	t    testing.TB
	stop func()

	mu  sync.Mutex
	got map[string]time.Time // "n1 prod/a uid-a [10.9.0.1]", and when it came first
}

func (s *space) agent(t testing.TB, node string, log io.Writer) *agent {
	t.Helper()
	a := &agent{t: t, got: map[string]time.Time{}}
	var err error
	a.Announcer, err = New(Config{Node: node, Log: slog.New(slog.NewTextHandler(log, nil)), Deliver: func(node string, p Pod) {
		a.mu.Lock()
		defer a.mu.Unlock()
		text := fmt.Sprintf("%s %s/%s %s %v", node, p.Namespace, p.Name, p.UID, p.Addresses)
		if _, there := a.got[text]; !there {
			a.got[text] = time.Now()
		}
	}})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.in(func() error { return a.Run(ctx) }) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(a.stop)
	return a
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func (a *agent) listens(on ...string) {
	a.t.Helper()
	eventually(a.t, a.cfg.Node+" listens on "+fmt.Sprint(on), func() bool {
		var have []string
		for _, x := range a.Status().Listening {
			have = append(have, x.String())
		}
		return slices.Equal(have, on)
	})
}

func (a *agent) hears(what string) time.Time {
	a.t.Helper()
	var at time.Time
	eventually(a.t, a.cfg.Node+" hears "+what, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		at = a.got[what]
		return !at.IsZero()
	})
	return at
}

func endpoint(name string, in ...string) model.Endpoint {
	p := testPod(name, in...)
	return model.Endpoint{Key: model.AttachmentKey{ContainerID: "c-" + name, IfName: "eth0"}, Namespace: p.Namespace, Pod: name, PodUID: p.UID, Addresses: p.Addresses}
}

// TestNodes: three nodes, of both families and of one each, tell each other; keys, nodes and
// addresses come, change and go under them.
func TestNodes(t *testing.T) {
	spaces := network(t, "192.0.2.1/24 2001:db8::1/64", "192.0.2.2/24", "2001:db8::3/64", "192.0.2.4/24")
	var said bytes.Buffer // of n1; read when it has ended
	var agents []*agent
	for i, s := range spaces[:3] {
		log := io.Discard
		if i == 0 {
			log = &said
		}
		agents = append(agents, s.agent(t, fmt.Sprintf("n%d", i+1), log))
	}
	n1, n2, n3 := agents[0], agents[1], agents[2]
	snap := cluster("192.0.2.1 2001:db8::1", "192.0.2.2", "2001:db8::3")
	for _, a := range agents {
		a.Set(snap)
		a.listens() // nothing without a key
	}
	n1.Announce(endpoint("never", "10.9.0.1"))
	for _, a := range agents {
		a.SetKey(testKey)
	}
	n1.listens("192.0.2.1:7179", "[2001:db8::1]:7179")
	n2.listens("192.0.2.2:7179")
	n3.listens("[2001:db8::3]:7179")

	n1.Announce(endpoint("a", "10.9.0.1", "fd09::1"))
	second := endpoint("a", "10.9.0.77")
	second.Key.IfName = "net1"
	n1.Announce(second)
	n1.Announce(model.Endpoint{Key: second.Key, Addresses: second.Addresses}) // no pod
	n2.hears("n1 prod/a uid-a [10.9.0.1 fd09::1]")
	n3.hears("n1 prod/a uid-a [10.9.0.1 fd09::1]")
	n2.Announce(endpoint("b", "10.9.0.2"))
	n1.hears("n2 prod/b uid-b [10.9.0.2]")
	n3.Announce(endpoint("c", "10.9.0.3"))
	n1.hears("n3 prod/c uid-c [10.9.0.3]")
	if st := n2.Status(); st.Peers != 1 || st.Key != "known" {
		t.Errorf("n2 and n3 have no family in common: %+v", st)
	}

	// Strangers' datagrams, and a node's with what is none of ours, disturb nothing.
	must(t, spaces[3].in(func() error {
		c, err := net.Dial("udp4", "192.0.2.1:7179")
		if err != nil {
			return err
		}
		defer c.Close()
		for _, b := range [][]byte{{}, []byte("hello"), make([]byte, 1400), bytes.Repeat([]byte(magic), 50)} {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
		return nil
	}))
	eventually(t, "strangers are refused", func() bool { return n1.Status().Refused[reasonStranger] == 4 })
	must(t, spaces[1].in(func() error {
		c, err := net.Dial("udp4", "192.0.2.1:7179")
		if err != nil {
			return err
		}
		defer c.Close()
		for n := range 64 {
			if _, err := c.Write(make([]byte, n*30)); err != nil {
				return err
			}
		}
		return nil
	}))
	eventually(t, "nonsense is refused", func() bool { return n1.Status().Refused[reasonMalformed] == 64 })
	n2.Announce(endpoint("d", "10.9.0.4"))
	n1.hears("n2 prod/d uid-d [10.9.0.4]")

	// A new key is accepted of those who have it, and the old one of those who have not.
	other := bytes.Repeat([]byte{9}, 40)
	n1.SetKey(other)
	n2.Announce(endpoint("e", "10.9.0.5"))
	n1.hears("n2 prod/e uid-e [10.9.0.5]")
	n1.Announce(endpoint("f", "10.9.0.6"))
	n2.hears("n1 prod/f uid-f [10.9.0.6]")

	// The next agent of a node is believed at once; a node that was renumbered, too.
	n2.stop()
	n2 = spaces[1].agent(t, "n2", io.Discard)
	n2.SetKey(testKey)
	n2.Set(snap)
	n2.listens("192.0.2.2:7179")
	n2.Announce(endpoint("g", "10.9.0.7"))
	n1.hears("n2 prod/g uid-g [10.9.0.7]")
	snap = cluster("192.0.2.1 2001:db8::1", "192.0.2.22", "2001:db8::3")
	n2.Set(snap)
	eventually(t, "an address that no interface has is a trouble", func() bool { return n2.Trouble() != nil && len(n2.Status().Listening) == 0 })
	spaces[1].address(t, "192.0.2.22/24")
	n2.listens("192.0.2.22:7179")
	n1.Set(snap)
	eventually(t, "the trouble is over", func() bool { return n2.Trouble() == nil })
	n2.Announce(endpoint("h", "10.9.0.8"))
	n1.hears("n2 prod/h uid-h [10.9.0.8]")

	n1.Set(cluster("192.0.2.1 2001:db8::1"))
	n1.listens() // nobody is left
	for _, a := range []*agent{n1, n2, n3} {
		a.stop()
	}
	for _, words := range []string{"never", "net1", "0.77"} {
		for _, a := range agents {
			for text := range a.got {
				if strings.Contains(text, words) {
					t.Errorf("%s was told: %s", a.cfg.Node, text)
				}
			}
		}
	}
	if strings.Contains(said.String(), string(testKey)) || strings.Count(said.String(), "refused") != 1 {
		t.Errorf("the log says\n%s", said.String())
	}
}

// TestLoss: the first two of three copies are lost.
func TestLoss(t *testing.T) {
	spaces := network(t, "192.0.2.1/24", "192.0.2.2/24")
	for _, rule := range []string{
		"-A INPUT -p udp --dport 7179 -m statistic --mode nth --every 3 --packet 2 -j ACCEPT",
		"-A INPUT -p udp --dport 7179 -j DROP",
	} {
		must(t, spaces[1].in(func() error {
			out, err := exec.Command("iptables", append([]string{"-w", "10"}, strings.Fields(rule)...)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("iptables %s: %w: %s", rule, err, out)
			}
			return nil
		}))
	}
	snap := cluster("192.0.2.1", "192.0.2.2")
	var agents []*agent
	for i, s := range spaces {
		a := s.agent(t, fmt.Sprintf("n%d", i+1), io.Discard)
		a.SetKey(testKey)
		a.Set(snap)
		a.listens(fmt.Sprintf("192.0.2.%d:7179", i+1))
		agents = append(agents, a)
	}
	start := time.Now()
	agents[0].Announce(endpoint("a", "10.9.0.1"))
	if d := agents[1].hears("n1 prod/a uid-a [10.9.0.1]").Sub(start); d < 150*time.Millisecond {
		t.Errorf("it came after %s, before the third copy was sent", d)
	}
}

// TestBurst: many pods that are attached at once on two nodes all arrive at a third, in far
// fewer datagrams.
func TestBurst(t *testing.T) {
	const pods = 110
	spaces := network(t, "192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24")
	snap := cluster("192.0.2.1", "192.0.2.2", "192.0.2.3")
	var agents []*agent
	for i, s := range spaces {
		a := s.agent(t, fmt.Sprintf("n%d", i+1), io.Discard)
		a.SetKey(testKey)
		a.Set(snap)
		a.listens(fmt.Sprintf("192.0.2.%d:7179", i+1))
		agents = append(agents, a)
	}
	var adding sync.WaitGroup
	for n, a := range agents[:2] {
		for i := range pods {
			adding.Go(func() {
				a.Announce(endpoint(fmt.Sprintf("%d-%d", n+1, i), netip.AddrFrom4([4]byte{10, 9, byte(n), byte(i)}).String()))
			})
		}
	}
	adding.Wait()
	for n := range 2 {
		for i := range pods {
			agents[2].hears(fmt.Sprintf("n%d prod/%d-%d uid-%d-%d [10.9.%d.%d]", n+1, n+1, i, n+1, i, n, i))
		}
	}
	eventually(t, "each pod was told three times", func() bool { return agents[2].Status().Delivered == 3*2*pods })
	if st := agents[2].Status(); st.Received > 3*2*pods/4 || len(st.Refused) > 0 {
		t.Errorf("%d pods came in %d datagrams, and these were refused: %v", 2*pods, st.Received, st.Refused)
	}
	if err := agents[2].Trouble(); err != nil {
		t.Error(err)
	}
}

// BenchmarkLatency is the time from Announce on one node to Deliver on another.
func BenchmarkLatency(b *testing.B) {
	spaces := network(b, "192.0.2.1/24", "192.0.2.2/24")
	snap := cluster("192.0.2.1", "192.0.2.2")
	var agents []*agent
	for i, s := range spaces {
		a := s.agent(b, fmt.Sprintf("n%d", i+1), io.Discard)
		a.SetKey(testKey)
		a.Set(snap)
		a.listens(fmt.Sprintf("192.0.2.%d:7179", i+1))
		agents = append(agents, a)
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint(i)
		start := time.Now()
		agents[0].Announce(endpoint(name, "10.9.0.1"))
		took = append(took, agents[1].hears(fmt.Sprintf("n1 prod/%s uid-%s [10.9.0.1]", name, name)).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// cpu is what this thread has used of a processor, in the kernel and outside.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkThousandNodes is what one announcement costs its sender, all copies of it, and each
// datagram its receiver.
func BenchmarkThousandNodes(b *testing.B) {
	const nodes = 1000
	addresses := []string{"10.77.0.1"}
	for i := 1; i < nodes; i++ {
		addresses = append(addresses, netip.AddrFrom4([4]byte{10, 77, byte(1 + i/250), byte(1 + i%250)}).String())
	}
	snap := cluster(addresses...)
	b.Run("tell", func(b *testing.B) {
		spaces := network(b, "10.77.0.1/16", "10.77.1.2/16")
		// Neighbours by hand, so that all copies go out.
		l, err := spaces[0].nl.LinkByName("eth0")
		must(b, err)
		for _, a := range addresses[1:] {
			must(b, spaces[0].nl.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP(a), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}))
		}
		a := newListener(b, "n1")
		a.Set(snap)
		a.SetKey(testKey)
		must(b, spaces[0].in(func() error {
			s, err := bind(netip.MustParseAddrPort("10.77.0.1:7179"))
			if err != nil {
				return err
			}
			defer s.conn.Close()
			start := cpu()
			defer func() {
				used := cpu() - start
				b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/op")
				b.ReportMetric(float64(used.Nanoseconds())/float64(a.Status().Sent), "cpu-ns/datagram")
			}()
			for b.Loop() {
				a.queue.add(testPod("web-5d8f7c9b6d-abcde", "10.9.0.1"), time.Now())
				for at, ok := a.queue.next(); ok; at, ok = a.queue.next() {
					for i := range a.queue.pods { // as if the time had passed
						a.queue.pods[i].due = a.queue.pods[i].due.Add(-time.Until(at))
					}
					a.tell([2]*socket{s, nil})
				}
			}
			return nil
		}))
		b.ReportMetric(float64(a.Status().Sent)/float64(b.N), "datagrams/op")
	})
	b.Run("take", func(b *testing.B) {
		from, to := newListener(b, "n1"), newListener(b, "n2")
		for _, a := range []*listener{from, to} {
			a.Set(snap)
			a.SetKey(testKey)
		}
		to.cfg.Deliver = func(string, Pod) {}
		source, pods := addr("10.77.0.1"), []Pod{testPod("web-5d8f7c9b6d-abcde", "10.9.0.1")}
		for b.Loop() {
			b.StopTimer()
			d := from.datagrams(pods, testKey, time.Now())[0]
			b.StartTimer()
			to.take(d, source, time.Now())
		}
	})
}
