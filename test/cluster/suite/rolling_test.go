package suite

import (
	"fmt"
	"testing"
	"time"
)

// TestRollingRestart restarts the agents one after the other, twice, as an upgrade does, while
// packets flow and attachments come and go on every node. No packet is lost, no ADD and no DEL
// fails, no node turns NotReady, and afterwards every address is accounted for.
func TestRollingRestart(t *testing.T) {
	ns := namespace(t)
	web := daemonSet(t, ns, "web")
	stay := nodesStay(t)
	stopStreams := streams(t, crossRack(t, web)...)
	stopAdding := keepAdding(t, c.Nodes()...)
	before := agentStarts(t)
	for round := range 2 {
		kubectl(t, "-n", "kube-system", "rollout", "restart", "daemonset/causeway-agent")
		// Pods of the API come meanwhile, too.
		deployment(t, ns, fmt.Sprintf("meanwhile%d", round), len(c.Nodes()))
		kubectl(t, "-n", "kube-system", "rollout", "status", "--timeout=170s", "daemonset/causeway-agent")
	}
	for node, start := range agentStarts(t) {
		if !start.After(before[node]) {
			t.Errorf("%s: the agent was not restarted", node)
		}
	}
	if err := c.AwaitSessions(t.Context()); err != nil {
		t.Error(err)
	}
	stopAdding()
	stopStreams()
	stay()
	noFailedSandboxes(t, ns)
	balanced(t, time.Minute)
}

// agentStarts tells when each agent started.
func agentStarts(t *testing.T) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	for _, n := range c.Nodes() {
		eventually(t, 30*time.Second, func() error {
			st, err := agentOf(t.Context(), n)
			out[n.Name()] = st.Started
			return err
		})
	}
	return out
}
