package onesubnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// spoofing sends from a pod of n1 with sources that are not the pod's.
func spoofing(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1 := f.Node("n1")
	from, neighbour := n1.Pods()[0], n1.Pods()[1]
	remote := f.Node("n2").Pods()[0]
	for _, v6 := range families {
		outside, length := "203.0.113.7", 32
		if v6 {
			outside, length = "2001:db8::7", 128
		}
		sources := []netip.Addr{
			neighbour.Address(v6), f.Node("n3").Pods()[0].Address(v6), addressOf("n2", v6), addressOf("n1", v6), netip.MustParseAddr(outside),
		}
		for _, to := range []*lab.Pod{remote, neighbour} {
			heard, target, err := listen(t, to, v6)
			if err != nil {
				t.Fatal(err)
			}
			dropped := droppedSpoofs(t, ctx, n1, v6)
			sent := 0
			for _, src := range sources {
				if src == to.Address(v6) {
					continue // it would be taken for its own
				}
				own := fmt.Sprintf("%s/%d", src, length)
				if _, err := from.Exec(ctx, "ip", "address", "add", own, "dev", "eth0", "nodad"); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if err := send(ctx, from, src, target, "spoofed "+src.String()); err != nil {
						t.Fatal(err)
					}
					sent++
				}
				if _, err := from.Exec(ctx, "ip", "address", "del", own, "dev", "eth0"); err != nil {
					t.Fatal(err)
				}
			}
			// Whatever was let through arrives before a packet that is sent later.
			var got []string
			scenario.Eventually(t, 10*time.Second, "the pod's own packets arrive", func() error {
				if err := send(ctx, from, from.Address(v6), target, "own"); err != nil {
					return err
				}
				for {
					select {
					case s := <-heard:
						if s == "own" {
							return nil
						}
						got = append(got, s)
					case <-time.After(50 * time.Millisecond):
						return errors.New("none yet")
					}
				}
			})
			if len(got) > 0 {
				t.Errorf("%s -> %s: %d of %d packets arrived: %q", from, to, len(got), sent, got)
			}
			// They were sent and it was the rule that dropped them.
			if n := droppedSpoofs(t, ctx, n1, v6) - dropped; n < uint64(sent) {
				t.Errorf("%s -> %s: the rule dropped %d of %d packets", from, to, n, sent)
			}
		}
	}
	f.PodsTalk(t, 10*time.Second)
}

// listen hears UDP datagrams at a pod's address until the test ends.
func listen(t *testing.T, p *lab.Pod, v6 bool) (heard chan string, at netip.AddrPort, err error) {
	t.Helper()
	var conn *net.UDPConn
	err = p.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Address(v6), 0)))
		return err
	})
	if err != nil {
		return nil, at, err
	}
	t.Cleanup(func() { conn.Close() })
	heard = make(chan string, 1000)
	go func() {
		buf := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // the test has ended
			}
			heard <- string(buf[:n])
		}
	}()
	return heard, netip.AddrPortFrom(p.Address(v6), uint16(conn.LocalAddr().(*net.UDPAddr).Port)), nil
}

// send sends a datagram from a pod with that source, which one of its links must have.
func send(ctx context.Context, p *lab.Pod, src netip.Addr, to netip.AddrPort, text string) error {
	return p.Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
		c, err := d.DialContext(ctx, "udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
}

// droppedSpoofs is the packet counter of the reverse path rule's chain.
func droppedSpoofs(t *testing.T, ctx context.Context, n *lab.Node, v6 bool) uint64 {
	t.Helper()
	tool := "iptables"
	if v6 {
		tool = "ip6tables"
	}
	out, err := n.Exec(ctx, tool, "-t", "raw", "-nvxL", "cali-rpf-fail")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "DROP") {
			c, err := strconv.ParseUint(strings.Fields(line)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	t.Fatalf("no reverse path rule:\n%s", out)
	return 0
}

// checkAndGC breaks pods in one way each and asks CHECK; then it lets one vanish and asks
// for GC.
func checkAndGC(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n := f.Node("n2")
	if err := n.CNIStatus(ctx); err != nil {
		t.Error(err)
	}
	for _, p := range n.Pods() {
		if err := p.Check(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"IPv4 address gone", []string{"ip", "-4", "address", "flush", "dev", "eth0"}, ""},
		{"IPv6 address gone", []string{"ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"}, ""},
		{"IPv4 default route gone", []string{"ip", "-4", "route", "del", "default"}, "route"},
		{"IPv6 default route gone", []string{"ip", "-6", "route", "del", "default"}, "route"},
		{"link down", []string{"ip", "link", "set", "eth0", "down"}, ""},
		{"link gone", []string{"ip", "link", "del", "eth0"}, ""},
	} {
		p, err := n.AddPod(ctx, "broken", lab.PodOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(ctx); err != nil {
			t.Errorf("%s: CHECK before that: %v", c.name, err)
		}
		if _, err := p.Exec(ctx, c.args...); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := p.Check(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: CHECK says %v", c.name, err)
		}
		if err := n.DeletePod(ctx, "broken"); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}

	stays, err := n.AddPod(ctx, "stays", lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	vanishes, err := n.AddPod(ctx, "vanishes", lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := vanishes.RemoveSandbox(ctx); err != nil {
		t.Fatal(err)
	}
	before := len(operator.Status(t, n).Endpoints)
	if err := n.GC(ctx); err != nil {
		t.Fatal(err)
	}
	after := operator.Status(t, n).Endpoints
	if len(after) != before-1 {
		t.Errorf("%d endpoints, after GC %d", before, len(after))
	}
	for _, ep := range after {
		if ep.Key.ContainerID == vanishes.ContainerID {
			t.Errorf("GC left %v", ep)
		}
	}
	if err := stays.Check(ctx); err != nil {
		t.Errorf("after GC: %v", err)
	}
	if err := n.GC(ctx); err != nil {
		t.Errorf("GC with nothing to do: %v", err)
	}
	if err := n.DeletePod(ctx, "stays"); err != nil {
		t.Error(err)
	}
	scenario.Eventually(t, 15*time.Second, "blocks", func() error { return operator.AccountedFor(f) })
}

// delAll deletes every pod: no link, no route, no endpoint is left.
func delAll(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, n := range f.Agents() {
		for _, p := range n.Pods() {
			container := p.ContainerID
			if err := n.DeletePod(ctx, p.Name); err != nil {
				t.Fatal(err)
			}
			if p.ContainerID != container {
				t.Errorf("%s lost its container id", p)
			}
		}
		if links, err := operator.PodLinks(ctx, n); err != nil || len(links) > 0 {
			t.Errorf("%s: links %v, %v", n, links, err)
		}
		if eps := operator.Status(t, n).Endpoints; len(eps) > 0 {
			t.Errorf("%s: endpoints %v", n, eps)
		}
		for _, v6 := range families {
			scenario.Eventually(t, 5*time.Second, "the pods' routes go", func() error {
				rs, err := operator.RoutesOf(ctx, n, v6)
				for _, r := range rs {
					if strings.HasPrefix(r.Device, "cali") || r.Ours() && r.Type == "unicast" && r.Prefix.IsSingleIP() {
						return fmt.Errorf("%s: %s", n, r)
					}
				}
				return err
			})
		}
	}
	f.Pods = nil
	scenario.Eventually(t, 15*time.Second, "blocks hold the stashes and nothing else", func() error { return operator.AccountedFor(f) })
}
