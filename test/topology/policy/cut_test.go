package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// cutWithin is how long a flow may go on that is forbidden, from the moment on when the policy is
// in force for new ones.
const cutWithin = time.Second

// flowsCut forbids what flows, by a policy of the target and then by one of the other end, and
// allows it again.
func flowsCut(t *testing.T, f *fabric) {
	f.put(t, f.sets())
	// The forbidden ones: to the target from both nodes.
	forbidden := append(between(t, f.bad1, f.target), between(t, f.bad2, f.target)...)
	// Others go on: of those who are allowed, and what the target itself began with those who are not.
	others := append(append(between(t, f.good1, f.target), between(t, f.good2, f.target)...), between(t, f.target, f.bad2)...)
	deny := gnp("deny-bad", 100, "ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Allow}]")
	f.cut(t, "a deny", forbidden, others, f.sets(), deny)
	// More that is allowed leaves them all as they are.
	lost := others.lost()
	f.put(t, f.sets(), deny, gnp("more", 50, "ingress: [{action: Allow, protocol: TCP, destination: {ports: [9]}}]"))
	f.resumed(t, slices.Concat(forbidden, others), f.sets())
	if n := others.lost() - lost; n > 0 {
		t.Errorf("%d packets of allowed flows were lost when more was allowed", n)
	}
	// By the egress of who began them.
	egress := fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: no-egress}\nspec:\n  selector: projectcalico.org/namespace == 'bad'\n  types: [Egress]\n  egress: [{action: Deny, destination: {nets: [%s]}}]\n", quoted(prefixes(f.target)))
	f.cut(t, "a deny of egress", forbidden, others, f.sets(), egress)
	f.resumed(t, slices.Concat(forbidden, others), f.sets())
	f.put(t)
}

// cut puts policies that forbid some flows and not others.
func (f *fabric) cut(t *testing.T, what string, forbidden, others flows, documents ...string) {
	t.Helper()
	lost := others.lost()
	began := time.Now()
	took := f.put(t, documents...)
	inForce := began.Add(took)
	// What goes on after it was in force for a second and more.
	scenario.Eventually(t, time.Minute, "flows are watched", func() error {
		if watched := time.Since(inForce); watched < lab.Slow(cutWithin)+500*time.Millisecond {
			return fmt.Errorf("for %s", watched)
		}
		return nil
	})
	others.goOn(t, 5*time.Second)
	var last time.Duration
	for _, fl := range forbidden {
		after := fl.HeardLast().Sub(inForce)
		if last = max(last, after); after > lab.Slow(cutWithin) {
			t.Errorf("%s: %s goes on %s after it was in force", what, fl, after.Round(time.Millisecond))
		}
	}
	t.Logf("%s: in force after %s, the last of %d flows that it forbids cut %s later", what, took.Round(time.Millisecond), len(forbidden), last.Round(time.Millisecond))
	if n := others.lost() - lost; n > 0 {
		t.Errorf("%s: %d packets were lost of flows that nothing forbids", what, n)
	}
}

// resumed puts policies that allow all flows: those that were cut go on where they were.
func (f *fabric) resumed(t *testing.T, all flows, documents ...string) {
	t.Helper()
	f.put(t, documents...)
	began := time.Now()
	all.goOn(t, 20*time.Second) // TCP tries again after up to twice the time that it was cut
	t.Logf("all flows go on %s after they were allowed", time.Since(began).Round(time.Millisecond))
}
