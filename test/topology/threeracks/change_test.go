package threeracks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// change is one of the pools' modes.
type change struct{ from, to mode }

func (c change) String() string { return c.from.name + " to " + c.to.name }

// allChanges go through every pair of modes, each in either direction, from VXLAN CrossSubnet
// back to it.
func (f *fabric) allChanges() []change {
	modes := []mode{vxlanCross, vxlanAlways, vxlanCross, never, vxlanAlways, never, vxlanCross}
	if f.ipip {
		modes = append(modes, ipipCross, ipipAlways, vxlanAlways, ipipAlways, never, ipipAlways, ipipCross, never, ipipCross, vxlanCross)
	}
	var out []change
	for i := 1; i < len(modes); i++ {
		out = append(out, change{modes[i-1], modes[i]})
	}
	return out
}

// flows are streams in both directions, of 1,000 packets a second each, or of what a slow
// computer carries instead (lab.SlowRate).
type flows []*traffic.Stream

// load starts streams between pods wherever both modes of a change have a way: within the
// rack always, to another rack when both encapsulate.
func (f *fabric) load(ctx context.Context, t *testing.T, c change) flows {
	t.Helper()
	var out flows
	for _, pair := range [][2]string{{"n1a", "n1b"}, {"n1a", "n2a"}} {
		for _, v6 := range families {
			same := rackOf(f.Node(pair[0])) == rackOf(f.Node(pair[1]))
			if !same && (c.from.of(v6).when == "Never" || c.to.of(v6).when == "Never") {
				continue
			}
			for _, way := range [][2]string{{pair[0], pair[1]}, {pair[1], pair[0]}} {
				from, to := f.pod(way[0]), f.pod(way[1])
				s, err := traffic.Start(ctx, traffic.Config{From: from, To: to, Target: to.Address(v6), PPS: lab.SlowRate(1000)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Stop() })
				out = append(out, s)
			}
		}
	}
	for _, s := range out {
		scenario.Eventually(t, 10*time.Second, "packets arrive", func() error {
			if s.Received() < 100 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	return out
}

// goOn lets the streams run for d.
func (fs flows) goOn(t *testing.T, d time.Duration) {
	t.Helper()
	until := fs[0].Elapsed() + d
	scenario.Eventually(t, d+time.Minute, "the streams go on", func() error {
		if fs[0].Elapsed() < until {
			return errors.New("not yet")
		}
		return nil
	})
}

// interrupted ends the streams and returns the longest interruption of one, and how many
// packets were lost in all.
func (fs flows) interrupted(t *testing.T) (longest time.Duration, lost, sent int) {
	t.Helper()
	for _, s := range fs {
		r := s.Stop()
		if r.Lost > 0 {
			t.Log(r)
		}
		longest, lost, sent = max(longest, time.Duration(r.LongestOutage)), lost+r.Lost, sent+r.Sent
	}
	return longest, lost, sent
}

// changes are made under load, one after the other; each is in force everywhere, with
// nothing left of the mode before, and has interrupted no flow for more than a second.
func changes(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 5*time.Minute)
	f.settle(t, vxlanCross)
	for _, c := range f.allChanges() {
		fs := f.load(ctx, t, c)
		at := time.Now()
		f.set(t, c.to)
		f.settle(t, c.to)
		took := time.Since(at)
		fs.goOn(t, 100*time.Millisecond)
		longest, lost, sent := fs.interrupted(t)
		t.Logf("%s: complete after %s, %d of %d packets lost in %d flows, longest interruption %s", c, took.Round(time.Millisecond), lost, sent, len(fs), longest.Round(time.Millisecond))
		if longest > lab.Slow(time.Second) {
			t.Errorf("%s: a flow was interrupted for %s", c, longest)
		}
	}
}

// killedInChange kills the agent of n1a in the middle of every change, each time later, and
// starts it again: the end is the same (I5). What the other nodes did meanwhile it does as
// soon as it is there.
func killedInChange(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 5*time.Minute)
	f.settle(t, vxlanCross)
	agent := f.Node("n1a").Daemon("agent")
	all := f.allChanges()
	for i, c := range all {
		// A second crash before the peers have recovered from the first ends their patience
		// (RFC 4724, section 4.2).
		f.WaitEstablished(t, 30*time.Second)
		fs := f.load(ctx, t, c)
		f.set(t, c.to)
		// The agent begins at once; routes move half a second later, and what is not
		// wanted any more goes two seconds after that.
		after := time.Duration(i) * 2700 * time.Millisecond / time.Duration(len(all))
		fs.goOn(t, after)
		if err := agent.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if err := agent.Start(ctx); err != nil {
			t.Fatal(err)
		}
		f.settle(t, c.to)
		fs.goOn(t, 100*time.Millisecond)
		longest, lost, sent := fs.interrupted(t)
		t.Logf("%s, killed after %s: %d of %d packets lost in %d flows, longest interruption %s", c, after, lost, sent, len(fs), longest.Round(time.Millisecond))
		// For two seconds the others keep what this node still uses. A machine that is emulated starts no
		// agent in that time: there only the end counts, which settle has seen.
		if lab.Slow(1) == 1 && longest > 2*time.Second {
			t.Errorf("%s, killed after %s: a flow was interrupted for %s", c, after, longest)
		}
	}
	f.WaitEstablished(t, time.Minute)
	f.talk(t, vxlanCross, f.Pods...)
}

// uplinkMTU makes the uplink of n1a narrower and wider: devices and new pods follow, running
// pods keep theirs, and what they send still arrives.
func uplinkMTU(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	modes := []mode{vxlanCross}
	if f.ipip {
		modes = append(modes, ipipAlways)
	}
	for _, m := range modes {
		f.switchTo(t, m)
		old := f.addPods(t, "old", lab.PodOptions{}, "n1a")
		for _, mtu := range []int{1400, 1600, 1500} {
			setUplink(t, ctx, f, mtu)
			f.settle(t, m) // the devices' MTU, too
			scenario.Eventually(t, 10*time.Second, "the MTU of new pods", func() error {
				if got := operator.Status(t, f.Node("n1a")).MTU; got != m.mtu(mtu) {
					return fmt.Errorf("%d, want %d", got, m.mtu(mtu))
				}
				return nil
			})
			young := f.addPods(t, "young", lab.PodOptions{}, "n1a")
			if got := mtuOf(t, young[0]); got != m.mtu(mtu) {
				t.Errorf("%s, uplink %d: a new pod has MTU %d, want %d", m.name, mtu, got, m.mtu(mtu))
			}
			if got := mtuOf(t, old[0]); got != m.mtu(1500) {
				t.Errorf("%s, uplink %d: a running pod has MTU %d, it had %d", m.name, mtu, got, m.mtu(1500))
			}
			for _, p := range slices.Concat(old, young) {
				stream(t, p, f.pod("n2a"), false, full/10)
				stream(t, f.pod("n2a"), p, false, full/10)
			}
			deletePods(t, young)
		}
		deletePods(t, old)
	}
	f.switchTo(t, vxlanCross)
}

// setUplink changes both ends of n1a's uplink.
func setUplink(t *testing.T, ctx context.Context, f *fabric, mtu int) {
	t.Helper()
	for node, link := range map[string]string{"n1a": "eth1", "r1": "eth1"} {
		err := f.Node(node).Do(func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, mtu)
		})
		if err != nil {
			t.Fatalf("%s:%s: %v", node, link, err)
		}
	}
}
