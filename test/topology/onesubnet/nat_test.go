package onesubnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// outsideAddrs are those of a host on the nodes' subnet that knows no way to pods.
var outsideAddrs = [2]netip.Addr{netip.MustParseAddr("10.10.0.98"), netip.MustParseAddr("fd00:10:10::98")}

// natOutgoing sends from a pod of n1 to a host outside, to pods and to nodes, and looks at
// the far end who it came from: with natOutgoing of the pools and without, with the nodes
// excluded, and with the agent killed. Connections keep their addresses through all of it.
func natOutgoing(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 3*time.Minute)
	m := operator.ManifestsOf(f)
	n1, n2, sw := f.Node("n1"), f.Node("n2"), f.Node("sw")
	pod, neighbour, remote := n1.Pods()[0], n1.Pods()[1], n2.Pods()[0]
	for i, a := range outsideAddrs {
		change := func(verb string) []string {
			return []string{"ip", "address", verb, netip.PrefixFrom(a, []int{24, 64}[i]).String(), "dev", "br0", "nodad"}[:6+i]
		}
		if _, err := sw.Exec(ctx, change("add")...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = sw.Exec(context.Background(), change("del")...) })
	}
	far := map[bool][]*ear{}
	for i, v6 := range families {
		for _, e := range []struct {
			what string
			at   traffic.Space
			addr netip.Addr
		}{
			{"outside", sw, outsideAddrs[i]}, {"neighbour", neighbour, neighbour.Address(v6)}, {"remote pod", remote, remote.Address(v6)},
			{"own node", n1, addressOf("n1", v6)}, {"other node", n2, addressOf("n2", v6)},
		} {
			far[v6] = append(far[v6], hear(t, e.what, e.at, e.addr))
		}
	}
	// come waits until each far end sees the pod, or where it is named its node.
	come := func(translated ...string) {
		t.Helper()
		for _, v6 := range families {
			for _, e := range far[v6] {
				want := pod.Address(v6)
				for _, name := range translated {
					if name == e.what {
						want = addressOf("n1", v6)
					}
				}
				scenario.Eventually(t, 10*time.Second, "from the pod to the "+e.what, func() error {
					if err := send(ctx, pod, pod.Address(v6), e.at, "who am I"); err != nil {
						return err
					}
					return e.saw(want)
				})
			}
		}
	}
	rules := func(want bool) {
		t.Helper()
		for _, tool := range []string{"iptables-save", "ip6tables-save"} {
			scenario.Eventually(t, 10*time.Second, "rules", func() error {
				out, err := n1.Exec(ctx, tool, "-t", "nat")
				if err == nil && strings.Contains(out, "MASQUERADE") != want {
					err = fmt.Errorf("that translate, want some: %v:\n%s", want, out)
				}
				return err
			})
		}
	}

	come()
	for i := range families {
		if err := operator.Ping(ctx, pod, outsideAddrs[i]); err == nil {
			t.Fatalf("%s knows the way to the pod: the test shows nothing", outsideAddrs[i])
		}
	}
	m.Restore(t, "pools.yaml")
	off := m.Read(t, "pools.yaml")
	on := strings.ReplaceAll(off, "natOutgoing: false", "natOutgoing: true")
	m.Write(t, "pools.yaml", on)
	come("outside", "other node")
	for i, v6 := range families {
		if err := operator.Ping(ctx, pod, outsideAddrs[i]); err != nil {
			t.Errorf("the outside does not answer: %v", err)
		}
		// What the node sends itself stays as it is, and so does what goes to its pods.
		for _, e := range far[v6] {
			if e.what == "own node" {
				continue
			}
			if err := sendFrom(ctx, n1, addressOf("n1", v6), e.at); err != nil {
				t.Fatal(err)
			}
			scenario.Eventually(t, 5*time.Second, "from n1 to the "+e.what, func() error { return e.saw(addressOf("n1", v6)) })
		}
	}
	f.PodsTalk(t, 10*time.Second)

	m.Restore(t, "felix.yaml")
	m.Write(t, "felix.yaml", "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {natOutgoingExclusions: IPPoolsAndHostIPs, bpfEnabled: true}\n")
	come("outside")
	operator.Await(t, 10*time.Second, n1, "what is not acted on is reported", func(st status.Status) error {
		return operator.Problem(st, "felix.yaml", ".spec.bpfEnabled", "not acted on")
	})

	// One connection is opened with translation, one without: for it the way back is known
	// for a while. From here on both stand.
	var open []*call
	connect := func(v6 bool, i int, from netip.Addr) {
		t.Helper()
		c := dial(t, pod, answer(t, sw, outsideAddrs[i]))
		if c.ask(t); c.seen.Addr() != from {
			t.Errorf("a connection comes from %s, want %s", c.seen, from)
		}
		open = append(open, c)
	}
	still := func() {
		t.Helper()
		for _, c := range open {
			c.ask(t)
		}
	}
	for i, v6 := range families {
		connect(v6, i, addressOf("n1", v6))
	}
	m.Write(t, "pools.yaml", off)
	come()
	rules(false)
	still()
	for i, v6 := range families {
		change := func(verb string) []string {
			return []string{"ip", "route", verb, pod.Address(v6).String(), "via", addressOf("n1", v6).String()}
		}
		if _, err := sw.Exec(ctx, change("add")...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = sw.Exec(context.Background(), change("del")...) })
		connect(v6, i, pod.Address(v6))
	}
	m.Write(t, "pools.yaml", on)
	come("outside")
	rules(true)
	still()

	// Without its agent and with the next one the node goes on as it was.
	agent := n1.Daemon("agent")
	if err := agent.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	come("outside")
	still()
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
	meshed(t, f, "n1", "n2", "n3")
	come("outside")
	still()
	m.Remove(t, "felix.yaml")
	come("outside", "other node")
	operator.Await(t, 10*time.Second, n1, "nothing is reported any more", operator.NoProblems)
	m.Write(t, "pools.yaml", off)
	come()
	rules(false)
	still()
	f.PodsTalk(t, 10*time.Second)
}

// ear hears who sends datagrams to it.
type ear struct {
	what  string
	at    netip.AddrPort
	heard chan netip.Addr
}

func hear(t *testing.T, what string, s traffic.Space, at netip.Addr) *ear {
	t.Helper()
	var conn *net.UDPConn
	err := s.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	e := &ear{what, netip.AddrPortFrom(at, uint16(conn.LocalAddr().(*net.UDPAddr).Port)), make(chan netip.Addr, 1000)}
	go func() {
		for buf := make([]byte, 1500); ; {
			_, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // the test has ended
			}
			e.heard <- from.Addr().Unmap()
		}
	}()
	return e
}

// saw returns nil when the last that was heard came from that address.
func (e *ear) saw(want netip.Addr) error {
	var last netip.Addr
	select {
	case last = <-e.heard:
	case <-time.After(time.Second):
		return errors.New("nothing arrived")
	}
	for {
		select {
		case last = <-e.heard:
			continue
		default:
		}
		if last != want {
			return fmt.Errorf("it comes from %s, want %s", last, want)
		}
		return nil
	}
}

// sendFrom sends a datagram from a node.
func sendFrom(ctx context.Context, n *lab.Node, src netip.Addr, to netip.AddrPort) error {
	return n.Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
		c, err := d.DialContext(ctx, "udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("who am I"))
		return err
	})
}

// answer takes TCP connections until the test ends, and tells each for every line who it is.
func answer(t *testing.T, s traffic.Space, at netip.Addr) netip.AddrPort {
	t.Helper()
	var l *net.TCPListener
	err := s.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return // the test has ended
			}
			go func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					fmt.Fprintln(c, c.RemoteAddr())
				}
			}()
		}
	}()
	return netip.AddrPortFrom(at, uint16(l.Addr().(*net.TCPAddr).Port))
}

// call is a connection to one who answers.
type call struct {
	conn net.Conn
	in   *bufio.Scanner
	seen netip.AddrPort // who the other end sees; the same from the first answer on
}

func dial(t *testing.T, p *lab.Pod, to netip.AddrPort) *call {
	t.Helper()
	c := &call{}
	err := p.Do(func() (err error) {
		c.conn, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	c.in = bufio.NewScanner(c.conn)
	return c
}

func (c *call) ask(t *testing.T) {
	t.Helper()
	err := c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err == nil {
		_, err = fmt.Fprintln(c.conn, "who am I")
	}
	if err == nil && !c.in.Scan() {
		err = fmt.Errorf("no answer: %w", c.in.Err())
	}
	if err != nil {
		t.Fatalf("connection seen as %s: %v", c.seen, err)
	}
	got, err := netip.ParseAddrPort(c.in.Text())
	if err != nil {
		t.Fatal(err)
	}
	if c.seen.IsValid() && got != c.seen {
		t.Errorf("a connection came from %s and comes from %s now", c.seen, got)
	}
	c.seen = got
}
