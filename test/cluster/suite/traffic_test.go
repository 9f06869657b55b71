package suite

import (
	"fmt"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// streams sends UDP at 1,000 packets a second over 8 flows for each pair and family, and
// returns a function that ends them and fails the test for each packet that was lost.
func streams(t *testing.T, pairs ...[2]*cluster.Pod) (stop func()) {
	t.Helper()
	end := flows(t, pairs...)
	return func() {
		t.Helper()
		for _, r := range end() {
			t.Logf("%s -> %s (%s): %d sent, %d lost, longest gap %s", r.From, r.To, r.Target, r.Sent, r.Lost, r.LongestGap)
			if r.Lost > 0 || len(r.SendErrors) > 0 {
				t.Errorf("packets were lost:\n%s", r)
			}
		}
	}
}

// flows is streams for who judges himself.
func flows(t *testing.T, pairs ...[2]*cluster.Pod) (stop func() []*traffic.Report) {
	t.Helper()
	for _, p := range pairs { // routes first: every packet counts
		ping(t, ends(p[:1]), ends(p[1:]))
	}
	var all []*traffic.Stream
	for _, p := range pairs {
		for _, v6 := range []bool{false, true} {
			s, err := traffic.Start(t.Context(), traffic.Config{From: p[0], To: p[1], Target: p[1].Addr(v6), Flows: 8, PPS: 1000, Grace: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
	}
	// What a scenario does to them must not begin before they flow.
	eventually(t, 30*time.Second, func() error {
		for _, s := range all {
			if s.Received() < 100 {
				return fmt.Errorf("%d of %d packets arrived", s.Received(), s.Sent())
			}
		}
		return nil
	})
	return func() (results []*traffic.Report) {
		for _, s := range all {
			results = append(results, s.Stop())
		}
		return results
	}
}

// crossRack picks a pair of pods in different racks, and one on different nodes of a rack.
func crossRack(t *testing.T, pods []*cluster.Pod) [][2]*cluster.Pod {
	t.Helper()
	var across, within *[2]*cluster.Pod
	for _, a := range pods {
		for _, b := range pods {
			switch {
			case a.Node == b.Node:
			case across == nil && a.Node.Rack() != b.Node.Rack():
				across = &[2]*cluster.Pod{a, b}
			case within == nil && a.Node.Rack() == b.Node.Rack():
				within = &[2]*cluster.Pod{a, b}
			}
		}
	}
	if across == nil || within == nil {
		t.Fatalf("pods %v: want two in different racks and two in one", pods)
	}
	return [][2]*cluster.Pod{*across, *within}
}
