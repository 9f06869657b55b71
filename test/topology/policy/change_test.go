package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// load is traffic that every version of the policies allows, all of which must arrive, and
// traffic that every version forbids, none of which may.
type load struct {
	f       *fabric
	allowed []*traffic.Stream
	hails   []*probe.Hail
	tap     *probe.Tap // of the target
}

// loaded starts 1,000 packets a second from each good pod to the target and from it to a good pod of
// another node, in both families, and as many from each bad pod and from another node.
func (f *fabric) loaded(t *testing.T) *load {
	t.Helper()
	l := &load{f: f, tap: openTap(t, f.target)}
	for _, way := range [][2]*lab.Pod{{f.good1, f.target}, {f.good2, f.target}, {f.target, f.good2}} {
		for _, v6 := range families {
			s, err := traffic.Start(t.Context(), traffic.Config{From: way[0], To: way[1], Target: way[1].Address(v6), Flows: 4, PPS: lab.SlowRate(500)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Stop() })
			l.allowed = append(l.allowed, s)
		}
	}
	to := at(hailPort, addrs(f.target)...)
	l.hails = []*probe.Hail{startHail(t, f.bad1, 500, to...), startHail(t, f.bad2, 500, to...), startHail(t, f.n2, 500, to...)}
	l.goOn(t)
	return l
}

// goOn waits until of each stream and each hail 50 more packets have come or gone.
func (l *load) goOn(t *testing.T) {
	t.Helper()
	var until []int
	for _, s := range l.allowed {
		until = append(until, s.Received()+lab.SlowRate(50))
	}
	for i, s := range l.allowed {
		scenario.Eventually(t, time.Minute, "allowed packets arrive", func() error {
			if s.Received() < until[i] {
				return fmt.Errorf("%d of %d have", s.Received(), s.Sent())
			}
			return nil
		})
	}
	goOn(t, 50, l.hails...)
}

// isForbidden reports whether a packet is of those that nobody allows.
func (l *load) isForbidden(k probe.Kind) bool {
	return slices.Contains(append(addrs(l.f.bad1, l.f.bad2), nodeAddrs(l.f.n2)...), k.Src)
}

// noneForbidden ends the test when a forbidden packet has arrived so far.
func (l *load) noneForbidden(t *testing.T, what string) {
	t.Helper()
	if n := l.tap.Of(l.isForbidden).Count; n > 0 {
		t.Fatalf("%s: %d forbidden packets arrived:\n%s", what, n, l.tap.List(l.isForbidden))
	}
}

// end ends all traffic, and fails the test for an allowed packet that is lost and for a
// forbidden one that arrived.
func (l *load) end(t *testing.T) {
	t.Helper()
	sent, lost := 0, 0
	for _, s := range l.allowed {
		r := s.Stop()
		sent, lost = sent+r.Sent, lost+r.Lost
		if r.Sent == 0 || r.Lost > 0 {
			t.Errorf("allowed packets were lost: %s", r)
		}
	}
	hailed := int64(0)
	for _, h := range l.hails {
		h.Close()
		hailed += h.Sent()
	}
	l.noneForbidden(t, "in the end")
	t.Logf("%d allowed packets, %d lost; %d forbidden ones sent, none arrived", sent, lost, hailed)
}

// changedUnderTraffic puts one set of policies in the place of another, all of which let the
// good pods through and nobody else.
func changedUnderTraffic(t *testing.T, f *fabric) {
	f.put(t, f.sets(), onlyGood("first", 100))
	l := f.loaded(t)
	nets := func(documents ...string) []string { return append([]string{f.sets()}, documents...) }
	denyBad := func(order int) string {
		return gnp("deny-bad", order, "ingress: [{action: Deny, source: {selector: role == 'bad'}}]")
	}
	byNets := func(name string, order int) string {
		return gnp(name, order, "ingress: [{action: Allow, source: {nets: ["+quoted(prefixes(f.good1, f.good2))+"]}}]")
	}
	const many = 2000
	// An object that is gone from a file is believed to be half a second later: until then both
	// versions are in force.
	steps := []struct {
		name      string
		documents []string
	}{
		{"one more, after it", nets(onlyGood("first", 100), denyBad(200))},
		{"the other way round", nets(onlyGood("first", 200), denyBad(100))},
		{"nets in the place of a selector", nets(byNets("first", 200), denyBad(100))},
		{"another name, and one less", nets(onlyGood("second", 100))},
		{"in a tier of its own", nets(tier("mine", 10), inTier(onlyGood("mine.second", 100), "mine"))},
		{"which passes to another", nets(tier("mine", 10), gnpIn("mine", "mine.second", "ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Pass}]"), onlyGood("second", 100))},
		{"tiers in another order", nets(tier("mine", 2000000), gnpIn("mine", "mine.second", "ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Pass}]"), onlyGood("second", 100))},
		{"of a namespace", nets(namespaced("second"))},
		{"a set grows", nets(namespaced("second"), bigSet("good", many))},
		{"and shrinks", nets(namespaced("second"), bigSet("good", many/10))},
		{"a set that is forbidden grows", nets(denyBad(100), onlyGood("first", 200), bigSet("bad", many))},
		{"many policies", nets(append(manyPolicies(100), onlyGood("first", 100))...)},
		{"and few", nets(onlyGood("first", 100))},
	}
	for _, s := range steps {
		took := f.put(t, s.documents...)
		l.goOn(t)
		t.Logf("%s: in force after %s", s.name, took.Round(time.Millisecond))
		l.noneForbidden(t, s.name)
	}
	f.replacedQuickly(t, l)
	l.end(t)

	// What is forbidden arrives as soon as nothing forbids it: the test would have seen it.
	tp := openTap(t, f.target)
	startHail(t, f.bad2, 500, at(hailPort, addrs(f.target)...)...)
	f.put(t)
	scenario.Eventually(t, 5*time.Second, "packets arrive that nothing forbids any more", func() error {
		if tp.From(addrs(f.bad2)...).Count == 0 {
			return errors.New("none yet")
		}
		return nil
	})
}

// replacedQuickly writes one version after the other, without waiting for any.
func (f *fabric) replacedQuickly(t *testing.T, l *load) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	n := 0
	for tick := time.NewTicker(7 * time.Millisecond); ctx.Err() == nil; n++ {
		f.write(t, f.sets(), onlyGood([]string{"first", "second", "third"}[n%3], 100+n%2), gnp("more", 99+n%3, "ingress: [{action: Deny, source: {selector: role == 'bad'}}]"))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	took := f.put(t, f.sets(), onlyGood("first", 100))
	l.goOn(t)
	t.Logf("%d versions within a second, the one after them in force after %s", n, took.Round(time.Millisecond))
}

// gnp is a GlobalNetworkPolicy for the target.
func gnp(name string, order int, rules string) string {
	types := "[Ingress]"
	if strings.HasPrefix(rules, "egress") {
		types = "[Egress]"
	}
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: %s}\nspec:\n  order: %d\n  selector: projectcalico.org/namespace == 'shop'\n  types: %s\n  %s\n", name, order, types, rules)
}

func gnpIn(tier, name, rules string) string { return inTier(gnp(name, 100, rules), tier) }

func inTier(policy, tier string) string {
	return strings.Replace(policy, "spec:\n", "spec:\n  tier: "+tier+"\n", 1)
}

func tier(name string, order int) string {
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: %s}\nspec: {order: %d}\n", name, order)
}

func namespaced(name string) string {
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: shop}\nspec:\n  types: [Ingress]\n  ingress: [{action: Allow, source: {selector: role == 'good', namespaceSelector: global()}}]\n", name)
}

// bigSet is one more set of a role, with many nets that nobody has.
func bigSet(role string, n int) string {
	var nets []string
	for i := range n {
		nets = append(nets, fmt.Sprintf("198.18.%d.%d/32", i/256, i%256), fmt.Sprintf("2001:db8::%x/128", i))
	}
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: big-%[1]s, labels: {role: %[1]s}}\nspec: {nets: [%[2]s]}\n", role, quoted(nets))
}

// manyPolicies hold for the target and decide nothing about the load.
func manyPolicies(n int) (out []string) {
	for i := range n {
		out = append(out, gnp(fmt.Sprintf("many-%d", i), i, fmt.Sprintf("ingress: [{action: Deny, protocol: TCP, destination: {ports: [%d]}}, {action: Deny, source: {nets: [203.0.113.%d/32]}}]", 1000+i, i%256)))
	}
	return out
}

func prefixes(pods ...*lab.Pod) (out []string) {
	for _, p := range pods {
		for _, a := range p.Addresses {
			out = append(out, a.Masked().String())
		}
	}
	return out
}
