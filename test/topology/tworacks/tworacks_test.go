// Package tworacks runs the two-rack topology: FRR ToRs and spine, eBGP on every link,
// two uplinks a node. The scenarios are numbered; each leaves the fabric as it found it.
package tworacks

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

const podsPerNode = 3

func TestTwoRacks(t *testing.T) {
	f := scenario.Up(t, "two-racks")
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, podsPerNode)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *scenario.Fabric)
	}{
		{"01 pods talk across racks", podsTalk},
		{"02 the spine reaches pods", spineReachesPods},
		{"03 learned routes use both uplinks", bothUplinks},
		{"04 the stock gobgp CLI", gobgpCLI},
		{"05 the speaker has no rights", speakerRights},
		{"06 an edit bounces only the session it must", editPeer},
		{"07 an uplink is cut", uplinkCut},
		{"08 a ToR restarts gracefully", torRestart},
		{"09 the agent is killed", agentKilled},
		{"10 the speaker is killed", speakerKilled},
		{"11 the agent is killed at every step of ADD", killedInADD},
		{"12 a peer sends what kills GoBGP", hostilePeer},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

func podsTalk(t *testing.T, f *scenario.Fabric) {
	if len(f.Pods) != 4*podsPerNode {
		t.Fatalf("%d pods", len(f.Pods))
	}
	f.PodsTalk(t, 20*time.Second)
}

func spineReachesPods(t *testing.T, f *scenario.Fabric) {
	scenario.Reach(t, 10*time.Second, []traffic.Endpoint{{Space: f.Node("spine")}}, f.Endpoints())
}

// bothUplinks reads the kernel of n1: every block of the other rack has two next hops.
func bothUplinks(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, family := range []string{"-4", "-6"} {
		scenario.Eventually(t, 10*time.Second, "ECMP", func() error {
			out, err := f.Node("n1").Exec(ctx, "ip", family, "-o", "route", "show", "proto", "82")
			if err != nil {
				return err
			}
			blocks := 0
			for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
				if !strings.Contains(line, "nexthop") {
					continue
				}
				if strings.Contains(line, "dev eth1") && strings.Contains(line, "dev eth2") {
					blocks++
				}
			}
			if blocks < 3 { // of n2, n3 and n4
				return fmt.Errorf("%d routes over both uplinks:\n%s", blocks, out)
			}
			return nil
		})
	}
}

// spineUsesBothToRs waits until the way back to n1's blocks goes over both ToRs again.
func spineUsesBothToRs(t *testing.T, f *scenario.Fabric) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	st, err := fabric.Status(ctx, f.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range st.Blocks {
		family := "-4"
		if block.Addr().Is6() {
			family = "-6"
		}
		scenario.Eventually(t, 20*time.Second, "ECMP at the spine", func() error {
			out, err := f.Node("spine").Exec(ctx, "ip", family, "route", "show", block.String())
			if err == nil && strings.Count(out, "nexthop") != 2 {
				err = fmt.Errorf("%s: %s", block, out)
			}
			return err
		})
	}
}

// uplinkCut takes one uplink of n1 down, at either end, under 64 flows each way.
func uplinkCut(t *testing.T, f *scenario.Fabric) {
	n1, here, there := f.Node("n1"), f.Node("n1").Pods()[0], f.Node("n3").Pods()[0]
	spineUsesBothToRs(t, f)
	for _, end := range []struct {
		node   string
		ifname string
	}{{"n1", "eth1"}, {"tor1a", "eth2"}} {
		t.Run("at "+end.node, func(t *testing.T) {
			ctx := scenario.Context(t, time.Minute)
			before, err := traffic.Read(n1)
			if err != nil {
				t.Fatal(err)
			}
			const flows = 64
			pps := lab.SlowRate(6400)
			out, err := traffic.Start(ctx, traffic.Config{From: here, To: there, Target: there.Address(false), Flows: flows, PPS: pps})
			if err != nil {
				t.Fatal(err)
			}
			back, err := traffic.Start(ctx, traffic.Config{From: there, To: here, Target: here.Address(true), Flows: flows, PPS: pps})
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "a second of packets", func() bool { return out.Received() > pps && back.Received() > pps })
			cut, err := traffic.Read(n1)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Node(end.node).LinkDown(end.ifname); err != nil {
				t.Fatal(err)
			}
			sent := out.Sent()
			waitFor(t, "a second and a half after the cut", func() bool { return out.Sent() > sent+pps*3/2 })
			for _, r := range []*traffic.Report{out.Stop(), back.Stop()} {
				t.Log(r)
				if r.Received == 0 || time.Duration(r.LongestOutage) > lab.Slow(100*time.Millisecond) {
					t.Errorf("a flow was interrupted for %s", r.LongestOutage)
				}
			}
			// The cut link carried a fair share in both directions before it was cut.
			d1, d2 := cut["eth1"].Sub(before["eth1"]), cut["eth2"].Sub(before["eth2"])
			t.Logf("before the cut: eth1 sent %d received %d packets, eth2 %d and %d", d1.TxPackets, d1.RxPackets, d2.TxPackets, d2.RxPackets)
			if d1.TxPackets < uint64(pps/10) || d1.RxPackets < uint64(pps/10) {
				t.Errorf("the link that was cut carried nothing worth the name: %+v", d1)
			}
			if err := f.Node(end.node).LinkUp(end.ifname); err != nil {
				t.Fatal(err)
			}
			restoreAddresses(ctx, t, n1)
			f.WaitEstablished(t, 30*time.Second)
			bothUplinks(t, f)
			spineUsesBothToRs(t, f)
		})
	}
}

// restoreAddresses gives n1's eth1 its IPv6 address again, which the kernel takes away
// with the link (unless keep_addr_on_down).
func restoreAddresses(ctx context.Context, t *testing.T, n1 *lab.Node) {
	t.Helper()
	if _, err := n1.Exec(ctx, "ip", "address", "replace", "fd00:1:11::2/64", "dev", "eth1", "nodad"); err != nil {
		t.Fatal(err)
	}
}

// torRestart ends all daemons of a ToR the hard way and starts them again, as an upgrade
// of its routing suite does.
func torRestart(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	spineUsesBothToRs(t, f)
	streams := startStreams(ctx, t, f)
	tor := f.Node("tor1a")
	if err := tor.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := tor.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f.WaitEstablished(t, 60*time.Second)
	streams.afterwards(t, 12*time.Second) // past the ToR's deferral: stale routes would go then
	streams.lostNothing(t)
}

// streams are 1 kpps each way between a pod of n1 and one of n3.
type streams []*traffic.Stream

func startStreams(ctx context.Context, t *testing.T, f *scenario.Fabric) streams {
	t.Helper()
	a, b := f.Node("n1").Pods()[0], f.Node("n3").Pods()[0]
	var out streams
	for _, c := range []traffic.Config{
		{From: a, To: b, Target: b.Address(false), Flows: 8, PPS: 1000},
		{From: b, To: a, Target: a.Address(true), Flows: 8, PPS: 1000},
	} {
		s, err := traffic.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	waitFor(t, "packets to flow", func() bool { return out[0].Received() > 200 && out[1].Received() > 200 })
	return out
}

// afterwards lets the streams run on for d.
func (s streams) afterwards(t *testing.T, d time.Duration) {
	t.Helper()
	until := s[0].Elapsed() + d
	waitFor(t, "the stream to go on", func() bool { return s[0].Elapsed() >= until })
}

func (s streams) lostNothing(t *testing.T) {
	t.Helper()
	for _, st := range s {
		r := st.Stop()
		t.Log(r)
		if r.Sent == 0 || r.Lost != 0 {
			t.Errorf("lost %d of %d packets", r.Lost, r.Sent)
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	scenario.Eventually(t, time.Minute, what, func() error {
		if !done() {
			return fmt.Errorf("not yet")
		}
		return nil
	})
}
