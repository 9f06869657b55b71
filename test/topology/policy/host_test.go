package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// podsAndHost has the host reach its pods whatever their policies say, and pods reach their host
// as defaultEndpointToHostAction says, after their egress policies.
func podsAndHost(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	tp := openTap(t, f.n1)
	// arrive waits until what a pod sends to its host does, or does not, get past the host's rules.
	arrive := func(what string, want bool) {
		t.Helper()
		for _, to := range nodeAddrs(f.n1) {
			scenario.Eventually(t, 5*time.Second, fmt.Sprintf("%s: %s answers its pod: %t", what, to, want), func() error {
				return answers(ctx, f, to, want)
			})
		}
		// Other nodes are no hosts of it.
		for _, to := range nodeAddrs(f.n2) {
			if err := answers(ctx, f, to, true); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	probes := func(what string) {
		t.Helper()
		for _, to := range addrs(f.target) {
			if err := operator.Ping(ctx, f.n1, to); err != nil {
				t.Errorf("%s: the host and its pod: %v", what, err)
			}
		}
	}
	open := gnp("all", 100, "egress: [{action: Allow}]")
	for _, c := range []struct {
		action string
		want   bool
	}{{"", true}, {"Drop", false}, {"Accept", true}, {"Return", true}} {
		what := "defaultEndpointToHostAction " + c.action
		if c.action != "" {
			f.felix(t, "  defaultEndpointToHostAction: "+c.action+"\n")
		}
		f.put(t, open)
		arrive(what, c.want)
		probes(what)
		// An egress policy goes first.
		f.put(t, denyAll("shop"))
		for _, to := range nodeAddrs(f.n1) {
			scenario.Eventually(t, 5*time.Second, what+": egress denied", func() error { return answers(ctx, f, to, false) })
		}
		probes(what + ", everything denied")
	}
	if seen := tp.From(addrs(f.target)...); seen.Count == 0 {
		t.Error("nothing came out of the pod: the test tests nothing")
	}

	// Return leaves it to the host's own rules.
	f.put(t)
	arrive("Return", true)
	for _, tool := range []string{"iptables", "ip6tables"} {
		own := []string{"INPUT", "-p", "icmp", "-m", "comment", "--comment", "the operator's", "-j", "DROP"}
		if tool == "ip6tables" {
			own[2] = "icmpv6"
			own = append(own[:3:3], append([]string{"-m", "icmp6", "--icmpv6-type", "echo-request"}, own[3:]...)...)
		}
		for _, verb := range []string{"-A", "-D"} {
			if _, err := f.n1.Exec(ctx, append([]string{tool, "-w", verb}, own...)...); err != nil {
				t.Fatal(err)
			}
			to := ofFamily(nodeAddrs(f.n1), tool == "ip6tables")
			scenario.Eventually(t, 5*time.Second, "the host's own rule "+verb, func() error { return answers(ctx, f, to, verb == "-D") })
		}
	}
	f.felix(t, "")
	f.put(t)
	arrive("the default again", true)
}

// answers returns nil when an address answers the target, or does not, as wanted.
func answers(ctx context.Context, f *fabric, to netip.Addr, want bool) error {
	cfg := traffic.PingConfig{Timeout: lab.Slow(200 * time.Millisecond), Interval: 50 * time.Millisecond}
	silent := len(traffic.PingAll(ctx, []traffic.Endpoint{{Space: f.target}}, []traffic.Endpoint{{Space: f.n2, Addrs: []netip.Addr{to}}}, cfg).Failed()) > 0
	switch {
	case want && silent:
		return errors.New("no answer")
	case !want && !silent:
		return errors.New("it answers")
	}
	return nil
}
