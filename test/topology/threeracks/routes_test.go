package threeracks

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// withoutBGP switches the mesh off: routes come from the blocks alone, also that of an
// address lent to another node, and none is lost when an agent is killed.
func withoutBGP(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	manifests := f.manifests()
	f.switchTo(t, vxlanCross)
	manifests.Restore(t, "bgp.yaml")
	manifests.Edit(t, "bgp.yaml", "nodeToNodeMeshEnabled: true", "nodeToNodeMeshEnabled: false")
	for _, n := range f.Agents() {
		operator.Await(t, 20*time.Second, n, "no sessions", noPeers)
	}
	f.settle(t, vxlanCross)
	f.talk(t, vxlanCross, f.Pods...)
	f.inMode(t, vxlanAlways)
	f.switchTo(t, vxlanCross)

	// An address of n1a's block, on n2b.
	var want []netip.Addr
	for _, v6 := range families {
		for _, b := range f.blocks(t) {
			if b.owner == "n1a" && b.cidr.Addr().Is6() == v6 {
				last := b.cidr.Addr()
				for next := last; b.cidr.Contains(next); next = next.Next() {
					last = next
				}
				want = append(want, last)
			}
		}
	}
	lent := f.addPods(t, "lent", lab.PodOptions{IPs: want}, "n2b")
	f.talk(t, vxlanCross, append(lent, f.Pods...)...)
	f.seenOnTheWire(t, vxlanCross, f.pod("n1a"), f.pod("n1b"), lent[0])
	deletePods(t, lent)
	f.settle(t, vxlanCross)

	streams := operator.StartStreams(ctx, t, f.pod("n1a"), f.pod("n2a"))
	agent := f.Node("n1a").Daemon("agent")
	if err := agent.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
	operator.Await(t, 30*time.Second, f.Node("n1a"), "ready", ready)
	f.settle(t, vxlanCross)
	streams.LostNothing(t)

	manifests.Edit(t, "bgp.yaml", "nodeToNodeMeshEnabled: false", "nodeToNodeMeshEnabled: true")
	f.WaitEstablished(t, 30*time.Second)
}

// mixed adds a pool that is not encapsulated: its pods are reached directly within their
// rack, and elsewhere as soon as the routers know them; those of the other pool through the
// tunnel meanwhile.
func mixed(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	f.switchTo(t, vxlanCross)
	manifests := f.manifests()
	manifests.Restore(t, "routed.yaml")
	manifests.Write(t, "routed.yaml", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: routed}\nspec:\n"+
		"  cidr: 10.245.0.0/16\n  blockSize: 26\n  ipipMode: Never\n  vxlanMode: Never\n  nodeSelector: all()\n")
	for _, n := range []string{"n1a", "n1b", "n2a"} {
		operator.Await(t, 10*time.Second, f.Node(n), "three pools", pools(3))
	}
	routed := f.addPods(t, "routed", lab.PodOptions{Netconf: []byte(`{"cniVersion": "1.1.0", "name": "causeway", "plugins": [{"type": "causeway-cni",
		"args": {"cni": {"cni.projectcalico.org/ipv4pools": "[\"routed\"]"}}}]}`)}, "n1a", "n1b", "n2a")
	for _, p := range routed {
		if a := p.Address(false); !netip.MustParsePrefix("10.245.0.0/16").Contains(a) {
			t.Fatalf("pod %s has %s", p, a)
		}
	}
	ipv4 := vxlanCross
	ipv4.v4.when = "Never"
	f.talk(t, ipv4, routed...) // within the rack in IPv4, everywhere in IPv6
	if err := operator.Ping(ctx, routed[0], routed[2].Address(false)); err == nil {
		t.Error("the routers know nothing of the routed pool, and carry its packets")
	}

	// Now they do, as when ToRs are peers of the nodes.
	for _, b := range f.blocks(t) {
		if netip.MustParsePrefix("10.245.0.0/16").Overlaps(b.cidr) {
			owner := f.Node(b.owner)
			for router, via := range map[string]string{
				"core": "10.50.10" + rackOf(owner) + ".1", "r" + rackOf(owner): addressOf(owner, false).String(),
			} {
				if _, err := f.Node(router).Exec(ctx, "ip", "route", "add", b.cidr.String(), "via", via); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_, _ = f.Node(router).Exec(context.Background(), "ip", "route", "del", b.cidr.String())
				})
			}
		}
	}
	f.seenOnTheWire(t, vxlanCross, f.pod("n1a"), f.pod("n1b"), f.pod("n2a"))
	uplink := f.capture(t, "r1", "eth3")
	for _, c := range []struct {
		from, to *lab.Pod
		want     [2]string // there and back
	}{
		{routed[0], routed[2], [2]string{"plain", "plain"}},
		{routed[0], f.pod("n2a"), [2]string{"vxlan", "plain"}}, // the destination's pool decides
		{f.pod("n1a"), routed[2], [2]string{"plain", "vxlan"}},
	} {
		scenario.Eventually(t, 10*time.Second, "the routed pool", func() error { return operator.Ping(ctx, c.from, c.to.Address(false)) })
		seen := uplink.take(t, c.from.Address(false), c.to.Address(false))
		for _, p := range seen {
			want := c.want[0]
			if p.src != c.from.Address(false) {
				want = c.want[1]
			}
			if p.encap != want {
				t.Errorf("%s to %s: %s, want it %s", c.from, c.to, p, want)
			}
		}
		if len(seen) < 2 {
			t.Errorf("%s to %s: seen %v", c.from, c.to, seen)
		}
	}
	deletePods(t, routed)
	manifests.Remove(t, "routed.yaml")
	for _, n := range f.Agents() {
		operator.Await(t, 10*time.Second, n, "two pools", pools(2))
	}
}

func noPeers(st status.Status) error {
	if len(st.Peers) > 0 || !st.Ready {
		return fmt.Errorf("%d peers, ready %t %s", len(st.Peers), st.Ready, st.NotReady)
	}
	return nil
}

func ready(st status.Status) error {
	if !st.Ready {
		return errors.New(st.NotReady)
	}
	return nil
}

func pools(n int) func(status.Status) error {
	return func(st status.Status) error {
		if len(st.Pools) != n {
			return fmt.Errorf("%d pools", len(st.Pools))
		}
		return operator.NoProblems(st)
	}
}
