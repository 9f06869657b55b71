package nftables_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// TestHealsMembers empties each set and map that pods of all kinds have members in: each comes back,
// and in between nothing forbidden passes.
func TestHealsMembers(t *testing.T) {
	n, r := node(t)
	web(n, "app=a")
	granted := kerneltest.Pod(2, "app=b")
	granted.AllowedSources = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:9::/48")}
	ports := kerneltest.Global("ports", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 82))
	ports.Ingress[0].Source.Selector = "app == 'b'"
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=b")), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=a")),
		n.Engine.SetEndpoint(granted), n.Engine.SetEndpoint(expected(3, "app=a")), n.Engine.SetPolicy(ports))
	r.InSync()
	n.Flush()
	running := []string{"pod0 > outside:1 yes", "outside > pod0:1 yes", "pod1 > outside:80 yes", "pod1 > outside:81 no", "outside > pod1:80 yes", "pod0 > pod1:82 yes",
		"outside > pod1:82 no", "pod2 > outside:1 yes", "pod3 > outside:80 no", "outside > pod3:81 no"}
	n.Expect("before", running...)
	before := table(n)
	var no []trace.Packet
	for _, v6 := range []bool{false, true} {
		spoof := n.Packet(v6, 6, "pod2", "outside", 80)
		spoof.In = "cali0"
		no = append(no, spoof, n.Packet(v6, 6, "pod1", "outside", 81), n.Packet(v6, 6, "outside", "pod1", 81), n.Packet(v6, 6, "pod3", "outside", 80))
	}
	emptied := 0
	for l := range strings.Lines(n.Lab.Run(t, "nft", "list table inet causeway")) {
		f := strings.Fields(l)
		if len(f) != 3 || f[0] != "set" && f[0] != "map" {
			continue
		}
		emptied++
		what := fmt.Sprintf("flush %s inet causeway %s", f[0], f[1])
		seen := r.Status().Healed
		n.Lab.Run(t, "nft", what)
		if got, err := n.Lab.Fire(no); err != nil || strings.Contains(fmt.Sprint(got), "true") {
			t.Errorf("%s: of %v arrived %v (%v)", what, no, got, err)
		}
		kerneltest.Eventually(t, func() string {
			if r.Status().Healed == seen && len(f[1]) < 22 { // a set may have been empty
				return what + ": the change was not seen"
			}
			if now := table(n); now != before {
				return fmt.Sprintf("%s:\n%s\nbefore:\n%s", what, now, before)
			}
			return ""
		})
		n.Expect(what, running...)
	}
	if emptied < 9 {
		t.Errorf("%d sets and maps", emptied)
	}
}

// TestKnownOpen starts an agent again: pods that no policy selected go on as they did until their delta,
// or InSync, also when somebody takes the table away in between.
func TestKnownOpen(t *testing.T) {
	n, r := node(t)
	web(n, "app=a")
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=b")), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")), n.Engine.SetEndpoint(kerneltest.Pod(2, "app=a")), n.Engine.SetEndpoint(kerneltest.Pod(3, "app=b")))
	r.InSync()
	n.Flush()
	running := []string{"pod0 > outside:1 yes", "outside > pod0:1 yes", "pod1 > outside:1 yes", "outside > pod1:1 yes", "pod2 > outside:80 yes", "pod2 > outside:81 no", "outside > pod2:80 yes", "outside > pod2:81 no"}
	n.Expect("before", running...)
	r.Stop()
	n.Expect("no agent", running...)

	// pod3 is not known, as one that was deleted meanwhile.
	r = start(t, n.Lab, "cali0", "cali1", "cali2")
	n.Backend = r
	n.Settle()
	n.Expect("started again", running...)
	if known := r.Known(); known != 3 {
		t.Errorf("%d interfaces are kept", known)
	}
	n.Lab.Run(t, "nft", "flush map inet causeway to-workload; flush map inet causeway from-workload; flush set inet causeway sources-4")
	kerneltest.Eventually(t, func() string {
		if s := n.Lab.Run(t, "nft", "list map inet causeway to-workload"); strings.Count(s, `"cali`) != 3 {
			return s
		}
		return ""
	})
	n.Settle()
	n.Expect("flushed and healed", running...)
	// pod0 is selected now, pod1 as it was.
	n.Forget()
	web(n, "app=a")
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
	n.Flush()
	n.Expect("one is known", "pod0 > outside:80 yes", "pod0 > outside:1 no", "outside > pod0:1 no", "pod1 > outside:1 yes", "outside > pod1:1 yes", "pod2 > outside:80 yes", "outside > pod2:81 no")
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(2, "app=b")))
	n.Flush()
	n.Expect("one is open now", "pod2 > outside:81 yes", "outside > pod2:81 yes", "pod1 > outside:1 yes")
	r.InSync()
	n.Settle()
	n.Expect("in sync", "pod0 > outside:80 yes", "pod2 > outside:81 yes", "pod1 > outside:1 no", "outside > pod1:1 no", "pod3 > outside:1 no", "outside > pod3:1 no")
	if s := table(n); strings.Contains(s, "cali1") || strings.Contains(s, "cali2 ") || strings.Contains(s, "chain wi-cali2") {
		t.Error(s)
	}
}
