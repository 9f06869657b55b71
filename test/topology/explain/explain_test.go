// Package explain holds what causewayctl says of policy against what the packets of real pods
// meet: which policies hold for a pod, what their rules count, and which of them decides. It runs
// one node of the topology of one subnet, with iptables and with nftables.
package explain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

func TestIPTables(t *testing.T) { run(t, "Disabled", "iptables (") }

func TestNFTables(t *testing.T) { run(t, "Enabled", "nftables") }

const policies = `apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: only-good}
spec:
  order: 100
  selector: projectcalico.org/namespace == 'shop'
  types: [Ingress]
  ingress: [{action: Allow, source: {selector: projectcalico.org/namespace == 'good'}}]
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: trial}
spec:
  order: 50
  selector: projectcalico.org/namespace == 'shop'
  types: [Ingress]
  ingress: [{action: Log}, {action: Deny, protocol: ICMP}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: lost}
spec:
  tier: nosuch
  selector: projectcalico.org/namespace == 'shop'
  types: [Ingress]
  ingress: [{action: Allow}]
`

// node is n1 with its pods.
type node struct {
	*lab.Node
	t *testing.T
}

func run(t *testing.T, nftablesMode, backend string) {
	t.Parallel()
	f := scenario.Up(t, "one-subnet", func(o *lab.Options) { o.NoAgents, o.Name = true, o.Name+"-"+strings.ToLower(nftablesMode) })
	n := node{f.Node("n1"), t}
	m := operator.ManifestsOf(f)
	m.Write(t, "felix.yaml", "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {nftablesMode: "+nftablesMode+"}\n")
	m.Write(t, "policies.yaml", policies)
	ctx := scenario.Context(t, time.Minute)
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.AwaitCNI(ctx); err != nil {
		t.Fatal(err)
	}
	pod := func(namespace, name string) *lab.Pod {
		p, err := n.AddPod(ctx, name, lab.PodOptions{Namespace: namespace})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	web, client, rogue := pod("shop", "web"), pod("good", "client"), pod("bad", "rogue")
	pings := func(from *lab.Pod) error {
		_, err := from.Exec(ctx, "ping", "-c1", "-W1", web.Address(false).String())
		return err
	}
	if err := pings(client); err != nil {
		t.Errorf("who is allowed does not reach the pod: %v", err)
	}
	if pings(rogue) == nil {
		t.Error("who is forbidden reaches the pod")
	}

	n.says([]string{"status"}, "Policy", backend, ", 2 policies for 3 endpoints, ", " changes, the last in ")
	// What the packets met: one that is allowed and one that no rule let pass, both of which the
	// staged policy would have denied.
	scenario.Eventually(t, 10*time.Second, "the rules count", func() error {
		return n.lacks([]string{"policy"}, "StagedGlobalNetworkPolicy trial", "staged: counted, not enforced", "GlobalNetworkPolicy only-good", "GlobalNetworkPolicy lost: .spec.tier: is nosuch")
	})
	d, err := status.FetchPolicy(ctx, n.Path("/run/causeway/agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]uint64{}
	for _, p := range d.Policies {
		for _, r := range p.Rules {
			counted[fmt.Sprintf("%s %d %s", p.ID.Name, r.Index, r.Action)] = r.Packets
		}
	}
	if counted["trial 1 deny"] != 2 || counted["only-good 0 allow"] != 1 || counted["trial 0 log"] != 2 {
		t.Errorf("counted %v after one ping that is allowed and one that is not", counted)
	}
	n.says([]string{"policy", "trial"}, "would log", "would deny")
	n.says([]string{"endpoint"}, "shop/web", web.Address(false).String(), "2 policies", "good/client", "allow")
	n.says([]string{"endpoint", "shop/web"}, "StagedGlobalNetworkPolicy trial", "GlobalNetworkPolicy only-good", "none of them: deny", "egress")

	n.says(trace("good/client", "shop/web", "--protocol", "icmp"), ": allowed\n", "workload ingress (Pod shop/web, ", "StagedGlobalNetworkPolicy trial ingress rule 1: would deny (staged)",
		"GlobalNetworkPolicy only-good ingress rule 0: allow, which decides")
	n.says(trace("bad/rogue", "shop/web", "--port", "80"), ": denied\n", "workload egress (Pod bad/rogue, ", "deny: no rule of tier default matched")
	n.says(trace("192.0.2.99", web.Address(true).String(), "--port", "80"), "of no family that the protocol has")
	n.says(trace("192.0.2.99", web.Address(false).String(), "--port", "80"), ": denied\n", "192.0.2.99 is not on this node")
	n.says(trace("shop/nobody", "shop/web", "--port", "80"), "Pod shop/nobody is not on this node")
	n.says(trace("good/client", "shop/web"), "port: is missing")
	out, err := n.metrics(ctx)
	for _, line := range []string{
		`causeway_policy_packets_total{action="deny",direction="ingress",kind="StagedGlobalNetworkPolicy",name="trial",namespace=""} 2`,
		`causeway_policy_packets_total{action="allow",direction="ingress",kind="GlobalNetworkPolicy",name="only-good",namespace=""} 1`,
		`causeway_policy_endpoints 3`, `causeway_policy_synced 1`, `causeway_policy_counters_up 1`, `causeway_policy_backend{backend="` + backend,
		`causeway_problems{effect="disabled",field=".spec.tier",kind="GlobalNetworkPolicy",name="lost",namespace=""} 1`,
	} {
		if err != nil || !strings.Contains(out, line) {
			t.Errorf("metrics lack %s (%v)", line, err)
		}
	}
	if testing.Verbose() {
		for _, args := range [][]string{{"status"}, {"policy"}, {"policy", "trial"}, {"endpoint"}, {"endpoint", "shop/web"}, trace("good/client", "shop/web", "--protocol", "icmp"), trace("bad/rogue", "shop/web", "--port", "80")} {
			out, _ := n.Exec(ctx, append([]string{"causewayctl"}, args...)...)
			t.Logf("causewayctl %s\n%s", strings.Join(args, " "), out)
		}
	}
}

func trace(from, to string, more ...string) []string {
	return append([]string{"trace", "--from", from, "--to", to}, more...)
}

// lacks returns an error when what causewayctl prints lacks one of the texts.
func (n node) lacks(args []string, texts ...string) error {
	out, err := n.Exec(scenario.Context(n.t, 10*time.Second), append([]string{"causewayctl"}, args...)...)
	if err != nil {
		out += err.Error()
	}
	var errs []error
	for _, text := range texts {
		if !strings.Contains(out, text) {
			errs = append(errs, fmt.Errorf("causewayctl %s lacks %q:\n%s", strings.Join(args, " "), text, out))
		}
	}
	return errors.Join(errs...)
}

func (n node) says(args []string, texts ...string) {
	n.t.Helper()
	if err := n.lacks(args, texts...); err != nil {
		n.t.Error(err)
	}
}

// metrics is what Prometheus would scrape.
func (n node) metrics(ctx context.Context) (string, error) {
	return n.Exec(ctx, "curl", "-s", "--unix-socket", "/run/causeway/agent.sock", "http://agent/metrics")
}
