package suite

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
)

// nodeGrace is what the controller is told to wait before it frees what a Node had that is
// gone; five minutes is its default.
const nodeGrace = 5 * time.Second

// TestNodeDeleted pulls the plug of a node for good and deletes its Node: its blocks come back,
// its routes vanish from the ToRs, the others' traffic takes no notice. Then the machine comes
// back as a new one, and serves pods with blocks of its own.
func TestNodeDeleted(t *testing.T) {
	ns := namespace(t)
	web := daemonSet(t, ns, "web")
	gone := c.Node("node4")
	shortGrace(t)
	before := ownedBy(t, gone)
	if len(before) < 2 {
		t.Fatalf("%s has blocks %v, want one of either family", gone, before)
	}
	var others []*cluster.Pod
	for _, p := range web {
		if p.Node != gone {
			others = append(others, p)
		}
	}
	// Its rack's ToR knows the way to its blocks, and the other one does, too.
	for _, rack := range []int{1, 2} {
		eventually(t, 30*time.Second, func() error { return known(t.Context(), rack, before, true) })
	}
	stop := streams(t, crossRack(t, others)...)

	restored := false
	t.Cleanup(func() {
		if !restored {
			restore(t, gone)
		}
	})
	if err := gone.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	off := time.Now()
	kubectl(t, "delete", "node", gone.Name())
	kubectl(t, "-n", "kube-system", "delete", "pods", "--field-selector", "spec.nodeName="+gone.Name(), "--force", "--grace-period=0")
	kubectl(t, "-n", ns, "delete", "pods", "--field-selector", "spec.nodeName="+gone.Name(), "--force", "--grace-period=0")
	eventually(t, 2*time.Minute, func() error {
		list, err := blocksOf(t.Context())
		if err != nil {
			return err
		}
		for i := range list {
			if b := &list[i].Spec; value(b.Affinity) == "host:"+gone.Name() || slices.Contains(before, b.CIDR) {
				return fmt.Errorf("block %s is still there, with affinity %q", b.CIDR, value(b.Affinity))
			}
		}
		return nil
	})
	t.Logf("its blocks were back %s after the plug was pulled", time.Since(off).Round(time.Second))
	// The routers keep its routes for the restart time that it announced, two minutes.
	for _, rack := range []int{1, 2} {
		eventually(t, 4*time.Minute, func() error { return known(t.Context(), rack, before, false) })
	}
	t.Logf("its routes were gone %s after the plug was pulled", time.Since(off).Round(time.Second))
	for _, n := range c.Nodes() {
		if n != gone {
			eventually(t, 30*time.Second, func() error { return knownTo(t.Context(), n, before) })
		}
	}
	stop()

	restore(t, gone)
	restored = true
	rollout(t, ns, "daemonset/web")
	again := pods(t, ns, "app=web", len(c.Nodes()))
	ping(t, ends(again), ends(again))
	if after := ownedBy(t, gone); len(after) < 2 {
		t.Errorf("%s has blocks %v, want one of either family", gone, after)
	}
	balanced(t, 2*time.Minute)
}

// restore boots a node and waits until it serves.
func restore(t *testing.T, n *cluster.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 4*time.Minute)
	defer cancel()
	if err := n.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		_, err := c.Kubectl(ctx, "get", "node", n.Name())
		return err
	})
	if err := c.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// shortGrace tells the controllers to wait nodeGrace, until the test ends.
func shortGrace(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", "kube-system", "set", "env", "deployment/causeway-controller", "CAUSEWAY_NODE_GRACE="+nodeGrace.String())
	rollout(t, "kube-system", "deployment/causeway-controller")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := c.Kubectl(ctx, "-n", "kube-system", "set", "env", "deployment/causeway-controller", "CAUSEWAY_NODE_GRACE-")
		if err == nil {
			_, err = c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "--timeout=110s", "deployment/causeway-controller")
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// ownedBy lists the blocks of a node.
func ownedBy(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	list, err := blocksOf(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range list {
		if value(list[i].Spec.Affinity) == "host:"+n.Name() {
			out = append(out, list[i].Spec.CIDR)
		}
	}
	return out
}

// known returns nil when a rack's ToR has BGP routes to all (or to none) of the blocks.
func known(ctx context.Context, rack int, blocks []string, want bool) error {
	tor := c.ToR(rack)
	var errs []error
	for _, b := range blocks {
		family := "ip"
		if netip.MustParsePrefix(b).Addr().Is6() {
			family = "ipv6"
		}
		out, err := tor.Vtysh(ctx, "show "+family+" route "+b)
		if err != nil {
			return err
		}
		if has := strings.Contains(out, `Known via "bgp"`); has != want {
			errs = append(errs, fmt.Errorf("%s: has a route to %s: %t, want %t", tor.Name(), b, has, want))
		}
	}
	return errors.Join(errs...)
}

// knownTo returns nil when a node has no route to any of the blocks.
func knownTo(ctx context.Context, n *cluster.Node, blocks []string) error {
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Exec(ctx, "ip", family, "route", "show", "proto", "82")
		if err != nil {
			return err
		}
		for _, b := range blocks {
			if strings.Contains(out, b+" via") {
				return fmt.Errorf("%s still has a route to %s", n, b)
			}
		}
	}
	return nil
}
