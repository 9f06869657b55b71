package onesubnet

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

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// strayAddrs are those of a router on the nodes' subnet, an eBGP peer of n1.
var strayAddrs = [2]netip.Addr{netip.MustParseAddr("10.10.0.99"), netip.MustParseAddr("fd00:10:10::99")}

const strayBird = `router id 10.10.0.99;
protocol device {}
protocol static s4 { ipv4; %s }
protocol static s6 { ipv6; %s }
protocol bgp four {
  local 10.10.0.99 as 65099; neighbor 10.10.0.11 as 64512; direct; graceful restart on;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  ipv4 { import all; export all; next hop self; };
}
protocol bgp six {
  local fd00:10:10::99 as 65099; neighbor fd00:10:10::11 as 64512; direct; graceful restart on;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  ipv6 { import all; export all; next hop self; };
}
`

// What the router announces beside addresses of nodes: that must arrive everywhere.
var strayPlain = [2]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:113::/64")}

// strayRoutes are those that would lead nodes' addresses to the router: n1's own, n2's, n3's,
// and a part of the subnet with all of them.
var strayRoutes = [2][]netip.Prefix{
	{netip.MustParsePrefix("10.10.0.11/32"), netip.MustParsePrefix("10.10.0.12/32"), netip.MustParsePrefix("10.10.0.13/32"), netip.MustParsePrefix("10.10.0.0/26")},
	{netip.MustParsePrefix("fd00:10:10::11/128"), netip.MustParsePrefix("fd00:10:10::12/128"), netip.MustParsePrefix("fd00:10:10::13/128"), netip.MustParsePrefix("fd00:10:10::/122")},
}

// ledAstray lets an eBGP peer of n1 announce the nodes' own addresses. Nobody believes it,
// neither n1 nor those who would hear it from n1, and no packet is lost; also not when the
// peer dies and its routes are kept for its restart.
func ledAstray(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 3*time.Minute)
	m := operator.ManifestsOf(f)
	n1, n2, n3, sw := f.Node("n1"), f.Node("n2"), f.Node("n3"), f.Node("sw")
	before := operator.SinceOf(operator.Status(t, n1))
	streams := slices.Concat(operator.StartStreams(ctx, t, n1.Pods()[0], n2.Pods()[0]), operator.StartStreams(ctx, t, n3.Pods()[0], n2.Pods()[1]))

	var static [2]string
	for i := range static {
		for _, p := range append(slices.Clone(strayRoutes[i]), strayPlain[i]) {
			static[i] += fmt.Sprintf("route %s blackhole; ", p)
		}
		bits := []int{24, 64}[i]
		change := func(verb string) []string {
			return []string{"ip", "address", verb, netip.PrefixFrom(strayAddrs[i], bits).String(), "dev", "br0", "nodad"}[:6+i]
		}
		if _, err := sw.Exec(ctx, change("add")...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = sw.Exec(context.Background(), change("del")...) })
	}
	const config = "/run/stray.conf"
	if err := os.WriteFile(sw.Path(config), fmt.Appendf(nil, strayBird, static[0], static[1]), 0o644); err != nil {
		t.Fatal(err)
	}
	bird := sw.Command(ctx, "/usr/sbin/bird", "-f", "-c", config, "-s", "/run/stray.ctl", "-P", "/run/stray.pid")
	if err := bird.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			pid, err := sw.Exec(context.Background(), "cat", "/run/stray.pid")
			if err == nil {
				_, err = sw.Exec(context.Background(), "kill", "-9", strings.TrimSpace(pid))
			}
			if err != nil {
				t.Errorf("BIRD could not be killed: %v", err)
				_ = bird.Process.Kill()
			}
			_ = bird.Wait()
		}
	}
	t.Cleanup(kill)
	m.Restore(t, "stray.yaml")
	m.Write(t, "stray.yaml", fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: stray4}
spec: {node: n1, peerIP: %s, asNumber: 65099}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: stray6}
spec: {node: n1, peerIP: "%s", asNumber: 65099}
`, strayAddrs[0], strayAddrs[1]))

	// The announcements go their way: what is no node's address arrives, by iBGP too.
	for i, v6 := range families {
		for _, n := range f.Agents() {
			scenario.Eventually(t, 30*time.Second, n.Name()+": the peer's other route arrives", func() error {
				rs, err := operator.RoutesOf(ctx, n, v6)
				if err == nil {
					err = rs.Via(strayPlain[i], strayAddrs[i])
				}
				return err
			})
		}
	}
	believed := func(when string) {
		t.Helper()
		for _, n := range f.Agents() {
			for i, v6 := range families {
				rs, err := operator.RoutesOf(ctx, n, v6)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range strayRoutes[i] {
					if at := rs.At(p); len(at) > 0 {
						t.Errorf("%s: %s leads astray: %v", n, when, at)
					}
				}
			}
		}
	}
	believed("with the peer up")
	operator.Await(t, 10*time.Second, n1, "what is left out is said", leftOut(6, "10.10.0.12/32", "10.10.0.0/26", "fd00:10:10::13/128"))
	// Host routes were not even passed on; the part of the subnet was.
	for _, n := range []*lab.Node{n2, n3} {
		operator.Await(t, 10*time.Second, n, "what is left out is said", leftOut(2, "10.10.0.0/26", "fd00:10:10::/122"))
	}
	if out, err := n1.Exec(ctx, "causewayctl", "status"); err != nil || !strings.Contains(out, "Route left out") || !strings.Contains(out, "10.10.0.12/32") {
		t.Errorf("causewayctl status does not show it: %v\n%s", err, out)
	}
	f.PodsTalk(t, 10*time.Second)

	kill()
	operator.Await(t, 10*time.Second, n1, "the peer is gone", func(st status.Status) error {
		for _, a := range strayAddrs {
			if p, err := operator.Peer(st, a); err != nil || p.State == "Established" {
				return fmt.Errorf("%s is %s, %v", a, p.State, err)
			}
		}
		return nil
	})
	believed("with the peer's routes kept for its restart")
	streams.Afterwards(t, time.Second)
	m.Remove(t, "stray.yaml")
	for _, n := range f.Agents() {
		operator.Await(t, 10*time.Second, n, "nothing is left out any more", leftOut(0))
	}
	streams.LostNothing(t)
	meshed(t, f, "n1", "n2", "n3")
	before.Undisturbed(t, operator.Status(t, n1))
	directRoutes(t, f)
}

// leftOut accepts a status with so many learned routes left out, these among them.
func leftOut(count int, prefixes ...string) func(status.Status) error {
	return func(st status.Status) error {
		if st.Routes.LeftOutCount != count || len(st.Routes.LeftOut) != count {
			return fmt.Errorf("%d are left out, want %d: %v", st.Routes.LeftOutCount, count, st.Routes.LeftOut)
		}
		for _, p := range prefixes {
			if !slices.ContainsFunc(st.Routes.LeftOut, func(s string) bool { return strings.HasPrefix(s, p+":") }) {
				return errors.New(p + " is not among them: " + strings.Join(st.Routes.LeftOut, "; "))
			}
		}
		return nil
	}
}
