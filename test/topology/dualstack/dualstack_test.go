// Package dualstack runs the topology of two FRR ToRs whose transit is IPv6 only, two
// nodes of both families and one of IPv6 alone. The scenarios are numbered; each leaves
// the fabric as it found it.
package dualstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

const podsPerNode = 2

func TestDualStack(t *testing.T) {
	f := scenario.Up(t, "dual-stack")
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, podsPerNode)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *scenario.Fabric)
	}{
		{"01 a session carries its own family", sessions},
		{"02 pods have the families of their node", podFamilies},
		{"03 pods talk over each family", podsTalk},
		{"04 packets of the uplink's size pass", fullSize},
		{"05 pods get the MTU of the uplink", uplinkMTU},
		{"06 one family goes, the other stays", oneFamily},
		{"07 next hops behind a gateway", recursive},
		{"08 an uplink loses an address", addressGone},
		{"09 an uplink goes down and comes up", uplinkDown},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

// link is a node's end and its ToR's, IPv4 first; n3 has no IPv4.
type link struct {
	node, tor []netip.Addr
	router    string
}

var links = map[string]link{
	"n1": {addrs("10.40.1.1", "fd00:40:1::2"), addrs("10.40.1.0", "fd00:40:1::1"), "tor1"},
	"n2": {addrs("10.40.2.1", "fd00:40:2::2"), addrs("10.40.2.0", "fd00:40:2::1"), "tor2"},
	"n3": {addrs("fd00:40:3::2"), addrs("fd00:40:3::1"), "tor1"},
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// via is the node's gateway of a family.
func via(node string, v6 bool) netip.Addr {
	i := slices.IndexFunc(links[node].tor, func(a netip.Addr) bool { return a.Is6() == v6 })
	return links[node].tor[i]
}

var families = []bool{false, true} // v6

func vtysh(t *testing.T, ctx context.Context, n *lab.Node, commands ...string) string {
	t.Helper()
	args := []string{"vtysh"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := n.Exec(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func established(t *testing.T, f *scenario.Fabric) {
	t.Helper()
	for _, n := range f.Agents() {
		operator.Await(t, 30*time.Second, n, "sessions", func(st status.Status) error {
			if !st.Speaker.Synced {
				return errors.New("not all routes have come")
			}
			return operator.Established(st, links[n.Name()].tor...)
		})
	}
}

func sessions(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	established(t, f)
	for _, n := range f.Agents() {
		for _, tor := range links[n.Name()].tor {
			want := "ipv4"
			if tor.Is6() {
				want = "ipv6"
			}
			if got, err := operator.Families(ctx, n, tor); err != nil || !slices.Equal(got, []string{want}) {
				t.Errorf("%s: session with %s carries %v, %v", n, tor, got, err)
			}
		}
		for _, v6 := range families {
			rib, err := operator.RIB(ctx, n, v6)
			if err != nil {
				t.Fatal(err)
			}
			if n.Name() == "n3" && !v6 && len(rib) > 0 {
				t.Errorf("n3, which has no IPv4, knows %v", rib)
			}
			for prefix, paths := range rib {
				for _, p := range paths {
					if prefix.Addr().Is6() != v6 || p.Neighbor.IsValid() && (p.Neighbor.Is6() != v6 || p.NextHop.Is6() != v6) {
						t.Errorf("%s: %s has a path of another family: %+v", n, prefix, p)
					}
				}
			}
		}
	}
	// Between the ToRs IPv4 has IPv6 next hops, or the transit would not be what it says.
	scenario.Eventually(t, 15*time.Second, "tor1's way to n2's IPv4 block", func() error {
		blocks := operator.BlocksOf(operator.Status(t, f.Node("n2")), false)
		rs, err := operator.RoutesOf(ctx, f.Node("tor1"), false)
		if err != nil {
			return err
		}
		if at := rs.At(blocks[0]); len(at) != 1 || len(at[0].Gateways) != 1 || !at[0].Gateways[0].Is6() {
			return fmt.Errorf("%v", at)
		}
		return nil
	})
}

func podFamilies(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, p := range f.Pods {
		want := []string{"4", "6"}
		if p.Node().Name() == "n3" {
			want = []string{"6"}
		}
		if len(p.Addresses) != len(want) || p.Address(false).IsValid() != (len(want) == 2) || !p.Address(true).IsValid() {
			t.Errorf("%s has %v", p, p.Addresses)
		}
		if err := p.Check(ctx); err != nil {
			t.Error(err)
		}
		for _, family := range []string{"4", "6"} {
			out, err := p.Exec(ctx, "ip", "-"+family, "route", "show", "default")
			if err != nil {
				t.Fatal(err)
			}
			if has := strings.Contains(out, "default"); has != slices.Contains(want, family) {
				t.Errorf("%s: IPv%s default route: %q", p, family, out)
			}
		}
	}
	if blocks := operator.BlocksOf(operator.Status(t, f.Node("n3")), false); len(blocks) > 0 {
		t.Errorf("n3 owns %v", blocks)
	}
}

func podsTalk(t *testing.T, f *scenario.Fabric) {
	f.PodsTalk(t, 20*time.Second)
	for _, n := range f.Agents() { // the transit between the ToRs has no address that nodes know
		var pods []traffic.Endpoint
		for _, p := range n.Pods() {
			pods = append(pods, fabric.Endpoint(p))
		}
		scenario.Reach(t, 10*time.Second, []traffic.Endpoint{{Space: f.Node(links[n.Name()].router)}}, pods)
	}
}

// pinged sends one packet of that many bytes, IP header and all, that must not be
// fragmented.
func pinged(ctx context.Context, from *lab.Pod, to netip.Addr, size int) error {
	header := 20 + 8
	if to.Is6() {
		header = 40 + 8
	}
	wait := "5"
	if size > 1500 {
		wait = "1" // the answer is an error of the kernel, which ping does not end with
	}
	_, err := from.Exec(ctx, "ping", "-n", "-c", "1", "-W", wait, "-M", "do", "-s", fmt.Sprint(size-header), to.String())
	return err
}

func fullSize(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, c := range []struct {
		from, to string
		v6       bool
	}{{"n1", "n2", false}, {"n1", "n2", true}, {"n2", "n1", false}, {"n3", "n1", true}, {"n2", "n3", true}} {
		from, to := f.Node(c.from).Pods()[0], f.Node(c.to).Pods()[0]
		if err := pinged(ctx, from, to.Address(c.v6), 1500); err != nil {
			t.Error(err)
		}
	}
	from, to := f.Node("n1").Pods()[0], f.Node("n2").Pods()[0]
	if err := pinged(ctx, from, to.Address(false), 1501); err == nil {
		t.Errorf("%s sent more than its MTU", from)
	}
}

// uplinkMTU makes an uplink narrower: new pods are, too, and old ones go on.
func uplinkMTU(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1 := f.Node("n1")
	mtu := func(p *lab.Pod) string {
		t.Helper()
		out, err := p.Exec(ctx, "ip", "-o", "link", "show", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(out, " mtu ")
		value, _, _ := strings.Cut(after, " ")
		return value
	}
	for _, p := range f.Pods {
		if got := mtu(p); got != "1500" {
			t.Errorf("%s: MTU %s", p, got)
		}
	}
	set := func(bytes int) {
		t.Helper()
		if _, err := n1.Exec(ctx, "ip", "link", "set", "eth1", "mtu", fmt.Sprint(bytes)); err != nil {
			t.Fatal(err)
		}
		operator.Await(t, 10*time.Second, n1, "the uplink's MTU", func(st status.Status) error {
			if st.MTU != bytes {
				return fmt.Errorf("MTU of pods is %d", st.MTU)
			}
			return nil
		})
	}
	set(1400)
	p, err := n1.AddPod(ctx, "narrow", lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := mtu(p); got != "1400" {
		t.Errorf("MTU %s behind an uplink of 1400", got)
	}
	for _, v6 := range families {
		if err := pinged(ctx, p, f.Node("n2").Pods()[0].Address(v6), 1400); err != nil {
			t.Error(err)
		}
	}
	f.PodsTalk(t, 10*time.Second)
	set(1500)
	if err := n1.DeletePod(ctx, "narrow"); err != nil {
		t.Error(err)
	}
}

// oneFamily shuts n1's IPv4 session down at the ToR.
func oneFamily(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1, tor1 := f.Node("n1"), f.Node("tor1")
	before := operator.SinceOf(operator.Status(t, n1))
	vtysh(t, ctx, tor1, "configure terminal", "router bgp 65001", "neighbor 10.40.1.1 shutdown")
	st := operator.Await(t, 15*time.Second, n1, "the IPv4 session is down", func(st status.Status) error {
		p, err := operator.Peer(st, via("n1", false))
		if err == nil && p.State == "Established" {
			err = errors.New("it is up")
		}
		return err
	})
	before.Undisturbed(t, st, via("n1", false))
	n2 := operator.Status(t, f.Node("n2"))
	for _, v6 := range families {
		b := operator.BlocksOf(n2, v6)[0]
		scenario.Eventually(t, 10*time.Second, fmt.Sprintf("n1's route to %s", b), func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			switch {
			case err != nil:
				return err
			case v6:
				return rs.Via(b, via("n1", true))
			case len(rs.At(b)) > 0:
				return fmt.Errorf("it is there: %v", rs.At(b))
			}
			return nil
		})
	}
	if err := operator.Ping(ctx, n1.Pods()[0], f.Node("n2").Pods()[0].Address(true)); err != nil {
		t.Error(err)
	}
	vtysh(t, ctx, tor1, "configure terminal", "router bgp 65001", "no neighbor 10.40.1.1 shutdown")
	established(t, f)
	before.Undisturbed(t, operator.Status(t, n1), via("n1", false))
	f.PodsTalk(t, 15*time.Second)
}

// far is a loopback of tor2, which only static routes lead to.
var far = addrs("10.66.0.2", "fd00:66::2")

// recursive adds sessions of n1 with tor2, two hops away: what they bring has next hops
// behind a gateway. When the route to them goes, so do theirs, within 100 ms; when it
// comes back they do.
func recursive(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	n1, tor1, tor2 := f.Node("n1"), f.Node("tor1"), f.Node("tor2")
	before := operator.SinceOf(operator.Status(t, n1))
	for _, c := range []struct {
		node         *lab.Node
		object, rest string
	}{
		{tor2, "address", "10.66.0.2/32 dev lo"},
		{tor2, "address", "fd00:66::2/128 dev lo"},
		{tor1, "route", "10.66.0.2/32 via inet6 fd00:255::2 dev eth1"},
		{tor1, "route", "fd00:66::2/128 via fd00:255::2 dev eth1"},
		{n1, "route", "10.66.0.2/32 via 10.40.1.0 dev eth1"},
		{n1, "route", "fd00:66::2/128 via fd00:40:1::1 dev eth1"},
	} {
		ip := func(ctx context.Context, verb string) {
			if _, err := c.node.Exec(ctx, append([]string{"ip", c.object, verb}, strings.Fields(c.rest)...)...); err != nil {
				t.Error(err)
			}
		}
		ip(ctx, "add")
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			ip(ctx, "del")
		})
	}
	config := []string{"configure terminal", "router bgp 65002"}
	for i, a := range links["n1"].node {
		neighbor := "neighbor " + a.String()
		config = append(config, neighbor+" remote-as 64601", neighbor+" ebgp-multihop 5", neighbor+" update-source "+far[i].String(),
			neighbor+" timers connect 1", neighbor+" advertisement-interval 0")
	}
	config = append(config, "address-family ipv4 unicast", "neighbor 10.40.1.1 activate", "exit-address-family",
		"address-family ipv6 unicast", "neighbor fd00:40:1::2 activate", "exit-address-family")
	vtysh(t, ctx, tor2, config...)
	m.Restore(t, "far.yaml")
	var peers strings.Builder
	for i, a := range far {
		fmt.Fprintf(&peers, "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: far%d}\nspec: {node: n1, peerIP: %q, asNumber: 65002}\n", i, a)
	}
	m.Write(t, "far.yaml", peers.String())
	all := slices.Concat(links["n1"].tor, far)
	st := operator.Await(t, 30*time.Second, n1, "sessions with tor2", func(st status.Status) error { return operator.Established(st, all...) })
	before.Undisturbed(t, st)

	n2 := operator.Status(t, f.Node("n2"))
	for i, v6 := range families {
		block := operator.BlocksOf(n2, v6)[0]
		routed := func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			if err != nil {
				return err
			}
			return rs.Via(block, via("n1", v6))
		}
		scenario.Eventually(t, 15*time.Second, "the best path is tor2's own", func() error {
			rib, err := operator.RIB(ctx, n1, v6)
			if err != nil {
				return err
			}
			for _, p := range rib[block] {
				if p.Best && p.Neighbor == far[i] && p.NextHop == far[i] {
					return routed()
				}
			}
			return fmt.Errorf("%+v", rib[block])
		})
		if err := operator.Ping(ctx, n1.Pods()[0], f.Node("n2").Pods()[0].Address(v6)); err != nil {
			t.Error(err)
		}
		covering := netip.PrefixFrom(far[i], far[i].BitLen())
		var took []time.Duration
		for range 5 {
			d, err := withdrawal(n1, covering, block)
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, d)
			operator.Await(t, 10*time.Second, n1, "the next hop is shown as unresolved", func(st status.Status) error {
				if !slices.ContainsFunc(st.Routes.Unresolved, func(s string) bool { return strings.HasPrefix(s, far[i].String()+",") }) {
					return fmt.Errorf("unresolved: %v", st.Routes.Unresolved)
				}
				return nil
			})
			if _, err := n1.Exec(ctx, "ip", "route", "add", covering.String(), "via", via("n1", v6).String(), "dev", "eth1"); err != nil {
				t.Fatal(err)
			}
			scenario.Eventually(t, 10*time.Second, "the route is back", routed)
		}
		slices.Sort(took)
		t.Logf("%s was withdrawn %v after the route to its next hop", block, took)
		if took[len(took)/2] > 100*time.Millisecond {
			t.Errorf("that is more than 100 ms")
		}
		if err := operator.Ping(ctx, n1.Pods()[0], f.Node("n2").Pods()[0].Address(v6)); err != nil {
			t.Error(err)
		}
	}

	m.Remove(t, "far.yaml")
	established(t, f)
	vtysh(t, ctx, tor2, "configure terminal", "router bgp 65002", "no neighbor 10.40.1.1", "no neighbor fd00:40:1::2")
	before.Undisturbed(t, operator.Status(t, n1))
	f.PodsTalk(t, 15*time.Second)
}

// withdrawal deletes a route of n and returns how long another one stays after that.
func withdrawal(n *lab.Node, covering, block netip.Prefix) (took time.Duration, err error) {
	family := netlink.FAMILY_V4
	if block.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	err = n.Do(func() error {
		dst, err := netlink.ParseIPNet(covering.String())
		if err != nil {
			return err
		}
		there, err := netlink.ParseIPNet(block.String())
		if err != nil {
			return err
		}
		if err := netlink.RouteDel(&netlink.Route{Dst: dst}); err != nil {
			return fmt.Errorf("route %s: %w", covering, err)
		}
		for start := time.Now(); ; {
			rs, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: there}, netlink.RT_FILTER_DST)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return err
			}
			took = time.Since(start)
			if err == nil && len(rs) == 0 {
				return nil
			}
			if took > 20*time.Second {
				return fmt.Errorf("route %s stays without the route to its next hop", block)
			}
		}
	})
	return took, err
}

// addressGone takes n1's IPv4 address from its uplink and gives it back: the routes over
// it go and come, IPv6 stays.
func addressGone(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	n1 := f.Node("n1")
	before := operator.SinceOf(operator.Status(t, n1))
	n2 := operator.Status(t, f.Node("n2"))
	block := operator.BlocksOf(n2, false)[0]
	if _, err := n1.Exec(ctx, "ip", "address", "del", "10.40.1.1/31", "dev", "eth1"); err != nil {
		t.Fatal(err)
	}
	scenario.Eventually(t, 10*time.Second, "no IPv4 route is left", func() error {
		rs, err := operator.RoutesOf(ctx, n1, false)
		if err == nil && len(rs.At(block)) > 0 {
			err = fmt.Errorf("%v", rs.At(block))
		}
		return err
	})
	if err := operator.Ping(ctx, n1.Pods()[0], f.Node("n2").Pods()[0].Address(true)); err != nil {
		t.Error(err)
	}
	if _, err := n1.Exec(ctx, "ip", "address", "add", "10.40.1.1/31", "dev", "eth1"); err != nil {
		t.Fatal(err)
	}
	scenario.Eventually(t, 20*time.Second, "the routes are back", func() error {
		rs, err := operator.RoutesOf(ctx, n1, false)
		if err != nil {
			return err
		}
		return rs.Via(block, via("n1", false))
	})
	established(t, f)
	before.Undisturbed(t, operator.Status(t, n1), via("n1", false))
	f.PodsTalk(t, 20*time.Second)
}

// uplinkDown takes n1's only uplink down: its routes go, and all is as before when the link
// is back.
func uplinkDown(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	n1 := f.Node("n1")
	n2 := operator.Status(t, f.Node("n2"))
	if err := n1.LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	for _, v6 := range families {
		block := operator.BlocksOf(n2, v6)[0]
		scenario.Eventually(t, 10*time.Second, "no route is left", func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			if err == nil && len(rs.At(block)) > 0 {
				err = fmt.Errorf("%v", rs.At(block))
			}
			return err
		})
		// Pods of the node need no uplink.
		if err := operator.Ping(ctx, n1.Pods()[0], n1.Pods()[1].Address(v6)); err != nil {
			t.Error(err)
		}
	}
	if err := n1.LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	established(t, f)
	f.PodsTalk(t, 30*time.Second)
}
