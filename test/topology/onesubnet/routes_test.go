package onesubnet

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// ip runs ip(8) of one family in the node.
func ip(t *testing.T, ctx context.Context, n *lab.Node, v6 bool, args string) {
	t.Helper()
	family := "-4"
	if v6 {
		family = "-6"
	}
	if _, err := n.Exec(ctx, append([]string{"ip", family}, strings.Fields(args)...)...); err != nil {
		t.Fatal(err)
	}
}

// deletedRoute deletes routes one by one, and all of them at once.
func deletedRoute(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1 := f.Node("n1")
	pod := n1.Pods()[0]
	for _, v6 := range families {
		learned, own := blockOf(t, f.Node("n2"), v6), blockOf(t, n1, v6)
		single := netip.PrefixFrom(pod.Address(v6), pod.Address(v6).BitLen())
		at := time.Now()
		ip(t, ctx, n1, v6, fmt.Sprintf("route del %s metric 1024", learned))
		ip(t, ctx, n1, v6, fmt.Sprintf("route del blackhole %s metric 1024", own))
		ip(t, ctx, n1, v6, fmt.Sprintf("route del %s metric 1024", single))
		back := func(what string) {
			t.Helper()
			// Far below the interval of the resync: the netlink event brings them back.
			scenario.Eventually(t, 10*time.Second, what, func() error {
				rs, err := operator.RoutesOf(ctx, n1, v6)
				if err == nil {
					err = rs.Via(learned, addressOf("n2", v6))
				}
				if err == nil {
					err = rs.Via(own)
				}
				if err == nil && len(rs.At(single).Ours()) != 1 {
					err = fmt.Errorf("no route to the pod %s", single)
				}
				return err
			})
			t.Logf("%s were back after %s at most", what, time.Since(at).Round(time.Millisecond))
		}
		back("deleted routes")
		at = time.Now()
		ip(t, ctx, n1, v6, "route flush proto "+operator.Protocol)
		back("flushed routes")
	}
	directRoutes(t, f)
	f.PodsTalk(t, 10*time.Second)
}

// foreignRoute puts a route of somebody else in the place of one of ours.
func foreignRoute(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1 := f.Node("n1")
	for _, v6 := range families {
		block := blockOf(t, f.Node("n2"), v6)
		foreign := fmt.Sprintf("%s via %s dev eth1 proto static metric 1024", block, addressOf("n3", v6))
		ip(t, ctx, n1, v6, "route replace "+foreign)
		operator.Await(t, 10*time.Second, n1, "the conflict is reported", func(st status.Status) error {
			for _, c := range st.Routes.Conflicts {
				if strings.HasPrefix(c, block.String()+" metric 1024: ") && strings.Contains(c, "proto static") {
					return nil
				}
			}
			return fmt.Errorf("conflicts: %v", st.Routes.Conflicts)
		})
		out, err := n1.Exec(ctx, "causewayctl", "status")
		if err != nil || !strings.Contains(out, "Route conflict") || !strings.Contains(out, block.String()) {
			t.Errorf("causewayctl status does not show the conflict: %v\n%s", err, out)
		}
		untouched := func() {
			t.Helper()
			rs, err := operator.RoutesOf(ctx, n1, v6)
			if err != nil {
				t.Fatal(err)
			}
			at := rs.At(block)
			if len(at) != 1 || at[0].Ours() || at[0].Protocol != "static" || len(at[0].Gateways) != 1 || at[0].Gateways[0] != addressOf("n3", v6) {
				t.Errorf("the foreign route became %v", at)
			}
		}
		untouched()
		// Nor does a change of ours touch it: a new route makes the table write.
		other := blockOf(t, f.Node("n3"), v6)
		ip(t, ctx, n1, v6, fmt.Sprintf("route del %s metric 1024", other))
		scenario.Eventually(t, 10*time.Second, "a deleted route comes back beside the conflict", func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			if err == nil {
				err = rs.Via(other, addressOf("n3", v6))
			}
			return err
		})
		untouched()
		ip(t, ctx, n1, v6, "route del "+foreign)
		scenario.Eventually(t, 10*time.Second, "ours takes the free place", func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			if err == nil {
				err = rs.Via(block, addressOf("n2", v6))
			}
			return err
		})

		// At another metric there is room for both.
		foreign = fmt.Sprintf("%s via %s dev eth1 proto static metric 2000", block, addressOf("n3", v6))
		ip(t, ctx, n1, v6, "route add "+foreign)
		operator.Await(t, 10*time.Second, n1, "no conflict", func(st status.Status) error {
			if len(st.Routes.Conflicts) > 0 {
				return fmt.Errorf("conflicts: %v", st.Routes.Conflicts)
			}
			return nil
		})
		rs, err := operator.RoutesOf(ctx, n1, v6)
		if err != nil {
			t.Fatal(err)
		}
		if at := rs.At(block); len(at) != 2 || len(at.Ours()) != 1 {
			t.Errorf("want ours and the foreign one: %v", at)
		}
		ip(t, ctx, n1, v6, "route del "+foreign)

		appended(t, ctx, f, v6)
	}
	directRoutes(t, f)
	f.PodsTalk(t, 10*time.Second)
}

// appended adds a foreign next hop beside ours at the same prefix and metric: in IPv4 that
// is a second route, in IPv6 the kernel makes one multipath route of both.
func appended(t *testing.T, ctx context.Context, f *scenario.Fabric, v6 bool) {
	t.Helper()
	n1 := f.Node("n1")
	block := blockOf(t, f.Node("n2"), v6)
	foreign := fmt.Sprintf("%s via %s dev eth1 proto static metric 1024", block, addressOf("n3", v6))
	ip(t, ctx, n1, v6, "route append "+foreign)
	operator.Await(t, 10*time.Second, n1, "the appended route is a conflict", func(st status.Status) error {
		for _, c := range st.Routes.Conflicts {
			if strings.HasPrefix(c, block.String()+" metric 1024: ") {
				return nil
			}
		}
		return fmt.Errorf("conflicts: %v", st.Routes.Conflicts)
	})
	rs, err := operator.RoutesOf(ctx, n1, v6)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range rs.At(block) {
		for _, g := range r.Gateways {
			found = found || g == addressOf("n3", v6)
		}
	}
	if !found {
		t.Errorf("the appended next hop is gone: %v", rs.At(block))
	}
	ip(t, ctx, n1, v6, "route del "+foreign)
	scenario.Eventually(t, 10*time.Second, "ours alone", func() error {
		rs, err := operator.RoutesOf(ctx, n1, v6)
		if err == nil {
			err = rs.Via(block, addressOf("n2", v6))
		}
		return err
	})
}

// flushedRules takes our rules away, in all the ways that others do.
func flushedRules(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1 := f.Node("n1")
	rules := func(tool string) string {
		t.Helper()
		out, err := n1.Exec(ctx, tool+"-save", "-t", "raw")
		if err != nil {
			t.Fatal(err)
		}
		var keep []string
		for _, line := range strings.Split(out, "\n") {
			if strings.HasPrefix(line, "-A ") {
				keep = append(keep, line)
			}
		}
		return strings.Join(keep, "\n")
	}
	tools := []string{"iptables", "ip6tables"}
	want := map[string]string{}
	for _, tool := range tools {
		want[tool] = rules(tool)
		if !strings.Contains(want[tool], "cali-rpf-fail") || !strings.Contains(want[tool], "rpfilter") {
			t.Fatalf("%s has no reverse path rule:\n%s", tool, want[tool])
		}
	}
	for _, flush := range []string{
		"TOOL -t raw -F",
		"TOOL -t raw -F cali-rpf-fail",
		"TOOL -t raw -F; TOOL -t raw -X",
		"echo '*raw\n:PREROUTING ACCEPT\nCOMMIT' | TOOL-restore",
	} {
		at := time.Now()
		for _, tool := range tools {
			if _, err := n1.Exec(ctx, "sh", "-c", strings.ReplaceAll(flush, "TOOL", tool)); err != nil {
				t.Fatal(err)
			}
		}
		for _, tool := range tools {
			scenario.Eventually(t, 15*time.Second, fmt.Sprintf("rules after %q", flush), func() error {
				if got := rules(tool); got != want[tool] {
					return fmt.Errorf("they are:\n%s\nwant:\n%s", got, want[tool])
				}
				return nil
			})
		}
		t.Logf("%q healed after %s at most", flush, time.Since(at).Round(time.Millisecond))
	}
}
