package suite

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/topology/operator"
)

// refused applies a manifest that the API server must not take, and returns what it says.
func refused(t *testing.T, format string, args ...any) string {
	t.Helper()
	err := c.Apply(t.Context(), fmt.Sprintf(format, args...))
	if err == nil {
		t.Errorf("the API server takes\n%s", fmt.Sprintf(format, args...))
		return ""
	}
	return err.Error()
}

// TestPolicyBad applies policies that cannot be in force. What a schema can see the API server refuses;
// the rest keeps its last valid version in force, or is not applied, is reported by every agent,
// and disturbs nothing.
func TestPolicyBad(t *testing.T) {
	ns := namespace(t)
	all := daemonSet(t, ns, "web")
	web := doorOf(t, onNode(t, all, "node1"))
	friend, stranger := onNode(t, all, "node2"), onNode(t, all, "node3")
	kubectl(t, "-n", ns, "label", "pod", friend.Name, "role=friend")
	valid := fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: %%s, namespace: %s}
spec: {selector: app == 'web', types: [Ingress], ingress: [{action: Allow, source: {selector: role == 'friend'}}]}
`, ns)
	apply(t, valid, "edited")
	out, in := web.knockOf(t, stranger), web.knockOf(t, friend)
	out.kept(t, changeWithin, time.Now())
	before := out.heard(out.from...).Count

	for _, text := range []string{
		"spec: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}",
		"spec: {podSelector: {}, ingress: [{ports: [{port: 70000}]}]}",
		"spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
	} {
		t.Logf("refused: %s", refused(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: %s}\n%s\n", ns, text))
	}
	bads := []struct{ what, spec, field string }{
		{"unknown-tier", "{tier: nosuch, selector: app == 'web', types: [Ingress], ingress: [{action: Allow}]}", ".spec.tier"},
		{"selector", "{selector: app ==, types: [Ingress], ingress: [{action: Allow}]}", ".spec.selector"},
		{"port", "{selector: app == 'web', types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [70000]}}]}", ".spec.ingress[0].destination.ports[0]"},
		{"icmp-and-ports", "{selector: app == 'web', types: [Ingress], ingress: [{action: Allow, protocol: ICMP, destination: {ports: [80]}}]}", ".spec.ingress[0]"},
		{"order", "{selector: app == 'web', types: [Ingress], order: first, ingress: [{action: Allow}]}", ""},
		{"action", "{selector: app == 'web', types: [Ingress], ingress: [{action: Perhaps}]}", ""},
	}
	for _, b := range bads {
		for _, name := range []string{b.what, "edited"} {
			text := fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", name, ns, b.spec)
			if err := c.Apply(t.Context(), text); err != nil {
				t.Logf("%s: refused: %s", b.what, strings.TrimSpace(err.Error()))
				continue
			}
			if b.field == "" {
				t.Errorf("%s: the API server takes what its schema forbids", b.what)
			}
			for _, n := range c.Nodes() {
				eventually(t, changeWithin, func() error {
					st, err := agentOf(t.Context(), n)
					if err != nil {
						return err
					}
					return operator.Problem(st, "NetworkPolicy "+ns+"/"+name, b.field)
				})
			}
			metric, err := web.Node.Exec(t.Context(), "curl", "-sS", "--max-time", "5", "--unix-socket", "/run/causeway/agent.sock", "http://agent/metrics")
			if err != nil || !strings.Contains(metric, `causeway_problems{effect="disabled",field="`+b.field+`",kind="NetworkPolicy",name="`+name+`",namespace="`+ns+`"}`) {
				t.Errorf("%s: no metric causeway_problems speaks of %s, %s: %v", b.what, name, b.field, err)
			}
			out.sends(t, 200)
			in.let(t, changeWithin, time.Now())
			if n := out.heard(out.from...).Count - before; n > 0 {
				t.Fatalf("%s: %d forbidden packets arrived", b.what, n)
			}
			if name == b.what {
				kubectl(t, "-n", ns, "delete", "networkpolicies.projectcalico.org", name)
			} else {
				apply(t, valid, "edited")
			}
			for _, n := range c.Nodes() {
				eventually(t, changeWithin, func() error {
					st, err := agentOf(t.Context(), n)
					if err != nil {
						return err
					}
					return operator.NoProblems(st)
				})
			}
		}
	}
}
