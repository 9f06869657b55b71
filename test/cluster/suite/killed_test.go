package suite

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestAgentKilledMidAdd kills the agent of a node with SIGKILL, as the kernel does when memory
// runs out, again and again while a dozen ADDs are on their way. The runtime takes back what was
// not answered and tries again, as kubelet does; in the end every attachment has addresses of its own and works,
// and when they are gone nothing is left of them. Packets of running pods are not lost.
func TestAgentKilledMidAdd(t *testing.T) {
	ns := namespace(t)
	web := daemonSet(t, ns, "web")
	n := c.Node("node2")
	installCnitool(t, n)
	// A new pod, since kubelet lets one that died often wait for minutes.
	kubectl(t, "-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+n.Name(), "--wait")
	rollout(t, "kube-system", "daemonset/causeway-agent")
	stop := streams(t, through(t, web, n)...)
	const parallel, kills = 12, 3 // the fourth would keep the agent away for longer than an ADD waits
	starts := map[int]time.Time{}
	var killed int
	for round := range kills {
		var all []*sandbox
		for range parallel {
			all = append(all, sandboxOf(t, n, "", ""))
		}
		st := awaitAgent(t, n, starts[round])
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		var wg sync.WaitGroup
		errs := make([]error, parallel)
		for i, s := range all {
			wg.Go(func() {
				for {
					if errs[i] = s.add(ctx); errs[i] == nil || ctx.Err() != nil {
						return
					}
					// A runtime takes back what failed before it tries again.
					if err := s.del(ctx); err != nil && ctx.Err() == nil {
						errs[i] = errors.Join(errs[i], err)
						return
					}
				}
			})
		}
		// In the middle of them: as soon as the first are done.
		eventually(t, time.Minute, func() error {
			now, err := agentOf(ctx, n)
			if err == nil && len(now.Endpoints) <= st.endpoints+round {
				err = errors.New("no ADD got anywhere yet")
			}
			return err
		})
		if err := killAgent(ctx, n); err != nil {
			t.Error(err)
		} else {
			killed++
		}
		starts[round+1] = st.started
		wg.Wait()
		cancel()
		holders := map[netip.Addr]*sandbox{}
		for i, s := range all {
			if errs[i] != nil {
				t.Errorf("ADD: %v", errs[i])
				continue
			}
			for _, a := range s.addrs {
				if other := holders[a]; other != nil {
					t.Errorf("%s has the address of %s: %s", s, other, a)
				}
				holders[a] = s
			}
			if len(s.addrs) != 2 {
				t.Errorf("%s has %v, want an address of either family", s, s.addrs)
			}
		}
		for _, s := range []*sandbox{all[0], all[parallel-1]} {
			for _, a := range s.addrs {
				if err := pingFrom(t.Context(), web[0], a); err != nil {
					t.Error(err)
				}
			}
		}
		awaitAgent(t, n, st.started)
		for _, s := range all {
			if err := s.remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	stop()
	t.Logf("the agent was killed %d times", killed)
	rollout(t, "kube-system", "daemonset/causeway-agent")
	balanced(t, 2*time.Minute)
}

// through picks pairs of pods of which one runs on the node, one pair in each direction, with
// the other rack and within the own.
func through(t *testing.T, pods []*cluster.Pod, n *cluster.Node) [][2]*cluster.Pod {
	t.Helper()
	var here, far, near *cluster.Pod
	for _, p := range pods {
		switch {
		case p.Node == n:
			here = p
		case p.Node.Rack() == n.Rack():
			near = p
		default:
			far = p
		}
	}
	if here == nil || far == nil || near == nil {
		t.Fatalf("pods %v: want one on %s, one in its rack and one in the other", pods, n)
	}
	return [][2]*cluster.Pod{{here, far}, {near, here}}
}

// agentState is what a test needs to know of an agent before it kills it.
type agentState struct {
	started   time.Time
	endpoints int
}

// awaitAgent waits until an agent that started after a time is ready.
func awaitAgent(t *testing.T, n *cluster.Node, after time.Time) (s agentState) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		st, err := agentOf(t.Context(), n)
		switch {
		case err != nil:
			return err
		case !st.Started.After(after):
			return fmt.Errorf("%s: the agent is the one of %s", n, st.Started)
		case !st.Ready:
			return fmt.Errorf("%s: %s", n, st.NotReady)
		}
		s = agentState{st.Started, len(st.Endpoints)}
		return nil
	})
	return s
}

// killAgent ends the agent's process of a node with SIGKILL.
func killAgent(ctx context.Context, n *cluster.Node) error {
	// The oldest: a child of the agent's bears its name until it is another program.
	out, err := n.Exec(ctx, "pgrep", "-o", "-f", "^/usr/local/bin/causeway agent")
	if err != nil {
		return err
	}
	pids := strings.Fields(out)
	if len(pids) != 1 {
		return fmt.Errorf("%s: agents with process ids %v, want one", n, pids)
	}
	_, err = n.Exec(ctx, "kill", "-9", pids[0])
	return err
}
