package policy

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// killed kills the agent and starts it again while pods talk: what was allowed goes on, what
// was forbidden stays so, before the next agent knows anything and after. The second time the policies
// are others when it starts.
func killed(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	f.put(t, f.sets(), onlyGood("first", 100))
	l := f.loaded(t)
	established := append(between(t, f.good1, f.target), between(t, f.good2, f.target)...)
	agent := f.n1.Daemon("agent")
	for _, documents := range [][]string{nil, {f.sets(), onlyGood("second", 200), gnp("deny-bad", 100, "ingress: [{action: Deny, source: {selector: role == 'bad'}}]")}} {
		f.established(t)
		if err := agent.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		l.goOn(t)
		if documents != nil {
			f.write(t, documents...)
		}
		began := time.Now()
		if err := agent.Start(ctx); err != nil {
			t.Fatal(err)
		}
		f.ready(t)
		l.goOn(t)
		if documents != nil {
			// What went while nobody looked has no second half: there was no agent that knew it.
			f.inForce(t, false, 10*time.Second, began)
		} else {
			documents = []string{f.sets(), onlyGood("first", 100)}
			f.put(t, documents...)
		}
		t.Logf("killed; in force %s after the start", time.Since(began).Round(time.Millisecond))
		l.goOn(t)
		established.goOn(t, 5*time.Second)
	}
	l.end(t)
	if n := established.lost(); n > 0 {
		t.Errorf("%d packets of established flows were lost", n)
	}
	f.put(t)
}

// ready waits until the agent of n1 is.
func (f *fabric) ready(t *testing.T) {
	t.Helper()
	f.await(t, "the agent is ready", func(st status.Status) error {
		if !st.Ready {
			return errors.New(st.NotReady)
		}
		return nil
	})
}

// killedInChange kills the agent at a later moment of a change each time. What both versions
// forbid never passes, what both allow always does; in the end the new one is in force.
func killedInChange(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, time.Minute)
	versions := [][]string{
		{f.sets(), onlyGood("first", 100)},
		append(manyPolicies(200), f.sets(), bigSet("good", 500), tier("mine", 10),
			inTier(gnp("mine.First", 10, "ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Pass}]"), "mine"), onlyGood("second", 100)),
	}
	f.put(t, versions[0]...)
	l := f.loaded(t)
	agent := f.n1.Daemon("agent")
	// A folder's file is believed a tenth of a second after it was written.
	for i, after := range []time.Duration{110, 150, 620} {
		f.established(t)
		began := time.Now()
		f.write(t, versions[(i+1)%2]...)
		scenario.Eventually(t, time.Minute, "the change begins", func() error {
			if time.Since(began) < lab.Slow(after*time.Millisecond) {
				return errors.New("not yet")
			}
			return nil
		})
		if err := agent.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		goOn(t, 50, l.hails...)
		if err := agent.Start(ctx); err != nil {
			t.Fatal(err)
		}
		f.ready(t)
		took := f.inForce(t, false, 15*time.Second, time.Now())
		l.goOn(t)
		l.noneForbidden(t, fmt.Sprintf("killed %s after a change", after*time.Millisecond))
		t.Logf("killed %s after a change: in force %s after the agent was ready", after*time.Millisecond, took.Round(time.Millisecond))
	}
	l.end(t)
	f.put(t)
}

// byHand is what somebody does to a node's rules.
type byHand struct{ name, command string }

// hands are what is done with each backend. Tables and chains are found by our names.
var hands = map[string][]byHand{
	"iptables": {
		{"iptables -F", "iptables -F && ip6tables -F"},
		{"each of our chains flushed", `for t in iptables ip6tables; do $t-save -t filter | sed -n '/^[*]/p;/^:cali/p;/^COMMIT/p' | $t-restore --noflush; done`},
		{"iptables -F, iptables -X", "iptables -F; iptables -X; ip6tables -F; ip6tables -X"},
		{"nft flush table ip filter", "! nft list table ip filter >/dev/null 2>&1 || { nft flush table ip filter; nft flush table ip6 filter; }"},
		{"nft delete table ip filter", "! nft list table ip filter >/dev/null 2>&1 || { nft delete table ip filter; nft delete table ip6 filter; }"},
		{"ipset flush", "ipset flush"},
		{"ipset destroy", "ipset destroy; true"}, // of those that are in use the kernel says no
		{"all of it", "iptables -F; iptables -X; ip6tables -F; ip6tables -X; ipset flush; ipset destroy; true"},
	},
	"nftables": {
		{"nft flush table", ourTables("flush")},
		{"nft delete table", ourTables("delete")},
		{"nft flush set", `nft -j list sets | grep -o '"family": "[^"]*", "name": "[^"]*", "table": "causeway"' | tr -d '",:' | { n=0; while read _ family _ name _; do nft flush set $family causeway $name; n=1; done; [ $n = 1 ]; }`},
		{"nft flush ruleset", "nft flush ruleset"},
		{"iptables -F", "iptables -F; ip6tables -F; iptables -X; ip6tables -X"},
	},
}

func ourTables(verb string) string {
	return "nft list tables | grep -w causeway | while read _ family name; do nft " + verb + " table $family $name; done"
}

// healsWithin is how long the rules may be gone that somebody took away.
const healsWithin = 10 * time.Second

// tracked has the node track connections whether or not there is a rule of ours, as kube-proxy does: what begins
// while the rules are gone is established when they are back.
const tracked = `printf 'add table inet tracked\ndelete table inet tracked\ntable inet tracked { chain every { type filter hook prerouting priority 0; ct state new counter; }; }\n' | nft -f -`

// flushed takes rules and sets away by hand. They are back within seconds, and once they are
// what they forbid does not arrive, though it was answered meanwhile.
func flushed(t *testing.T, f *fabric) {
	ctx := scenario.Context(t, 3*time.Minute)
	f.established(t) // the agent may just have been killed
	f.put(t, f.sets(), onlyGood("first", 100))
	f.echo(t, f.target)
	tp := openTap(t, f.target)
	to := at(hailPort, addrs(f.target)...)
	good := []*probe.Hail{startHail(t, f.good1, 500, to...), startHail(t, f.good2, 500, to...)}
	forbidden := func() probe.Arrivals { return tp.From(addrs(f.bad1, f.bad2)...) }
	for _, h := range hands[f.backend.name] {
		// Each time they come from other ports: no connection of theirs is known, and cut, from before.
		bad := []*probe.Hail{startHail(t, f.bad1, 500, to...), startHail(t, f.bad2, 500, to...)}
		goOn(t, 50, bad...)
		before := forbidden().Count
		began := time.Now()
		if _, err := f.n1.Exec(ctx, "sh", "-c", tracked+" && {\n"+h.command+"\n} && "+tracked); err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
		done := time.Since(began)
		scenario.Eventually(t, healsWithin, h.name+": forbidden packets stop, allowed ones arrive", func() error {
			was := forbidden().Count
			var allowed []int
			for _, a := range addrs(f.good1, f.good2) {
				allowed = append(allowed, tp.From(a).Count)
			}
			goOn(t, 50, append(bad, good...)...)
			if n := forbidden().Count - was; n > 0 {
				return fmt.Errorf("%d forbidden packets arrived", n)
			}
			for i, a := range addrs(f.good1, f.good2) {
				if tp.From(a).Count == allowed[i] {
					return fmt.Errorf("none arrived of %s", a)
				}
			}
			return nil
		})
		healed := forbidden()
		goOn(t, 500, bad...)
		if n := forbidden().Count - healed.Count; n > 0 {
			t.Errorf("%s: %d forbidden packets arrived after the rules were back", h.name, n)
		}
		window := time.Duration(0)
		if healed.Count > before {
			window = healed.Last.Sub(began)
		}
		t.Logf("%s (took %s): %d forbidden packets arrived, the last %s after it began", h.name, done.Round(time.Millisecond), healed.Count-before, window.Round(time.Millisecond))
		for _, b := range bad {
			b.Close()
		}
	}
	if _, err := f.n1.Exec(ctx, "nft", "delete", "table", "inet", "tracked"); err != nil {
		t.Error(err)
	}
	f.put(t)
}
