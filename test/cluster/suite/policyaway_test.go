package suite

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
)

// TestPolicyAPIServerAway stops the API server. What it said last goes on to hold: for running
// pods, for an agent that starts meanwhile, and for a pod that is restarted. A pod that nobody was
// ever told of has nothing pass, in neither direction.
func TestPolicyAPIServerAway(t *testing.T) {
	ns := namespace(t)
	all := daemonSet(t, ns, "web")
	n := c.Node("node1")
	web := doorOf(t, onNode(t, all, n.Name()))
	friend, stranger, victim := onNode(t, all, "node2"), onNode(t, all, "node3"), onNode(t, all, "node4")
	kubectl(t, "-n", ns, "label", "pod", friend.Name, "role=friend")
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: %s}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}
`, ns)
	out, in := web.knockOf(t, stranger), web.knockOf(t, friend)
	out.kept(t, changeWithin, time.Now())
	in.let(t, changeWithin, time.Now())
	ghost := sandboxOf(t, n, ns, "ghost") // its object never comes

	ctx := t.Context()
	if err := c.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back := false
	t.Cleanup(func() {
		if !back {
			if err := c.StartAPIServer(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	before := out.heard(out.from...).Count // of the time before the policy
	holds := func(what string) {
		t.Helper()
		out.sends(t, 200)
		if n := out.heard(out.from...).Count - before; n > 0 {
			t.Fatalf("%s: %d forbidden packets arrived", what, n)
		}
		in.let(t, changeWithin, time.Now())
	}
	holds("the API server is away")

	st := awaitAgent(t, n, time.Time{})
	stream, err := traffic.Start(ctx, traffic.Config{From: friend, To: web, Target: web.Addr(false), Flows: 8, PPS: 1000, Grace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := killAgent(ctx, n); err != nil {
		t.Fatal(err)
	}
	holds("the agent is dead")
	awaitAgent(t, n, st.started)
	holds("an agent has started that never saw the API server")
	if r := stream.Stop(); r.Lost > 0 || r.Sent == 0 {
		t.Errorf("allowed packets were lost while the agent started:\n%s", r)
	}

	// A pod that is restarted has its policy before anybody can say it again.
	was, err := endpointOf(ctx, victim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := victim.Node.Exec(ctx, ctr(), "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", was.Key.ContainerID); err != nil {
		t.Fatal(err)
	}
	now := was
	eventually(t, 2*time.Minute, func() error {
		if now, err = endpointOf(ctx, victim); err == nil && now.Key.ContainerID == was.Key.ContainerID {
			err = fmt.Errorf("%s: kubelet has not restarted its sandbox yet", victim)
		}
		return err
	})
	for _, a := range now.Addresses {
		eventually(t, 30*time.Second, func() error { _, err := get(ctx, friend, a.String(), 8080, "/hostname"); return err })
		if answer, err := get(ctx, web, a.String(), 8080, "/hostname"); err == nil {
			t.Errorf("%s reaches %s, which answers %q", web, a, answer)
		}
	}

	// Of the ghost nothing is known.
	tap, err := probe.OpenTap(ghost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tap.Close)
	start := time.Now()
	if err := ghost.add(ctx); err != nil {
		t.Fatalf("ADD of a pod that nobody knows: %v", err)
	}
	t.Logf("%s has %v after %s", ghost, ghost.addrs, time.Since(start).Round(time.Millisecond))
	friendly := doorOf(t, friend).knock(t, ghost, ghost.addrs...)
	toGhost := (&door{web.Pod, tap}).knockAt(t, friend, ghost.addrs, friend.Addrs...)
	friendly.none(t)
	toGhost.none(t)

	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back = true
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=120s", "nodes", "--all")
	holds("the API server is back")
	friendly.none(t)
	toGhost.none(t)
	kubectl(t, "-n", ns, "delete", "networkpolicy", "web")
	out.let(t, 30*time.Second, time.Now())
	if err := ghost.remove(ctx); err != nil {
		t.Error(err)
	}
	balanced(t, 2*time.Minute)
}
