package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// node starts a Node's backend.
func node(t *testing.T, known ...string) (*kerneltest.Node, *rig) {
	t.Helper()
	n := kerneltest.NewNode(t)
	r := start(t, n.Lab, known...)
	n.Backend = r
	return n, r
}

// table lists ours as nft prints it, without what changes by itself: the order of objects, that of
// members, and the number of the last transaction.
func table(n *kerneltest.Node) string {
	var objects []string
	text := n.Lab.Run(n.T, "nft", "-s", "list", "table", "inet", nftables.TableName)
	text = strings.TrimSuffix(strings.TrimPrefix(text, "table inet "+nftables.TableName+" {\n"), "}\n")
	if rest, ok := strings.CutPrefix(text, "\tcomment "); ok {
		_, text, _ = strings.Cut(rest, "\n")
	}
	for _, o := range strings.Split(text, "\n\n") {
		o = strings.TrimSpace(o)
		switch {
		case strings.Contains(o, "set transaction {"):
			continue
		case !strings.HasPrefix(o, "chain "):
			words := strings.FieldsFunc(o, func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) })
			slices.Sort(words)
			o = strings.Join(words, " ")
		}
		objects = append(objects, o)
	}
	slices.Sort(objects)
	return strings.Join(objects, "\n\n")
}

// TestHeals changes by hand what carries policy. All comes back as it was, soon, and an
// empty chain of an endpoint or policy lets nothing pass.
func TestHeals(t *testing.T) {
	n, r := node(t)
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	p := kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleDeny, 6, 9), kerneltest.Port(model.RuleAllow, 6, 80))
	p.Ingress[1].Source.Selector = "app == 'b'"
	nets := kerneltest.Global("nets", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleDeny, 6, 10))
	for i := range 3 {
		nets.Ingress[0].Source.NotNets = append(nets.Ingress[0].Source.NotNets, netip.MustParsePrefix(fmt.Sprintf("172.16.%d.0/26", i)), netip.MustParsePrefix(fmt.Sprintf("fd77:%d::/64", i)))
	}
	kerneltest.Must(t, n.Engine.SetPolicy(p), n.Engine.SetPolicy(nets))
	r.InSync()
	n.Flush()
	before := table(n)
	set, chain := "", ""
	for l := range strings.Lines(before) {
		f := strings.Fields(l)
		for _, w := range f {
			if strings.HasPrefix(w, "@a4") {
				set = w[1:]
			}
		}
		if len(f) > 2 && f[0] == "chain" && strings.HasPrefix(f[1], "p-") && !strings.HasSuffix(f[1], "-6") {
			chain = f[1]
		}
	}
	pass, no := n.Packet(false, 6, "pod1", "pod0", 80), n.Packet(false, 6, "pod1", "pod0", 81)
	for _, c := range []struct {
		what   string
		closed bool // nothing forbidden passes in between
	}{
		{"flush chain inet causeway wi-cali0", true},
		{"flush chain inet causeway " + chain, true},
		{"flush set inet causeway " + set, true},
		{"flush map inet causeway to-workload", true},
		{"delete element inet causeway from-workload { \"cali1\" }", true},
		{`delete element inet causeway to-workload { "cali0" }; add chain inet causeway theirs; add element inet causeway to-workload { "cali0" : jump theirs };
			flush chain inet causeway wi-cali0; delete chain inet causeway wi-cali0`, true},
		{"flush set inet causeway sources-4", true},
		{"flush set inet causeway transaction", true},
		{"insert rule inet causeway workload-ingress accept", false},
		{"add chain inet causeway theirs; add rule inet causeway theirs accept", true},
		{"add set inet causeway theirs { type ipv4_addr ; }", true},
		{"chain inet causeway filter-input { policy drop ; }", true},
		{"flush table inet causeway", false},
		{"delete table inet causeway", false},
		{"delete table inet causeway; add table inet causeway; add chain inet causeway filter-forward", false},
		{"delete table inet causeway; add table inet causeway; add set inet causeway sources-4 { type ipv4_addr ; }", false},
		{"flush ruleset", false},
	} {
		seen := r.Status().Healed
		n.Lab.Run(t, "nft", c.what)
		if c.closed {
			if got, err := n.Lab.Fire([]trace.Packet{no}); err != nil || got[0] {
				t.Errorf("%s: a forbidden packet arrived (%v)", c.what, err)
			}
		}
		kerneltest.Eventually(t, func() string {
			if r.Status().Healed == seen {
				return c.what + ": the change was not seen"
			}
			if now := listed(n); now != before {
				return fmt.Sprintf("%s:\n%s\nbefore:\n%s", c.what, now, before)
			}
			return ""
		})
		if wrong, err := n.Lab.Check([]trace.Packet{pass, no}, []bool{true, false}); err != nil || len(wrong) > 0 {
			t.Errorf("%s, and it is back: %v, %v", c.what, wrong, err)
		}
	}
	if err := r.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// listed is table, where there may be none.
func listed(n *kerneltest.Node) string {
	if !strings.Contains(n.Lab.Run(n.T, "nft", "list", "tables"), "inet "+nftables.TableName) {
		return ""
	}
	return table(n)
}

// TestForeign leaves other tables alone, and does not heal for their sake.
func TestForeign(t *testing.T) {
	n, r := node(t)
	n.Lab.Run(t, "nft", "table inet theirs { set s { type ipv4_addr; }; chain c { type filter hook forward priority 0; }; }")
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
	r.InSync()
	n.Flush()
	r.to.took()
	kerneltest.Eventually(t, func() string { // of the start itself, when others' changes come between
		n.Lab.Run(t, "nft", "add element inet theirs s { 10.0.0.1 }; add rule inet theirs c counter; delete element inet theirs s { 10.0.0.1 }")
		if s := r.Status(); s.Healed > 0 {
			t.Fatalf("%d changes of another table were taken for ours", s.Healed)
		}
		return ""
	})
	r.Stop()
	for _, want := range []bool{true, false} { // twice is no error
		if gone, err := nftables.Remove(t.Context(), nftables.NewHost().Within(n.Lab.Within)); err != nil || gone != want {
			t.Errorf("removed %v, %v; want %v", gone, err, want)
		}
	}
	if left := n.Lab.Run(t, "nft", "list", "tables"); left != "table inet theirs\n" {
		t.Errorf("Remove left %q", left)
	}
}

// TestDelta changes one thing of many: only what it touches is written.
func TestDelta(t *testing.T) {
	n, r := node(t)
	for i := range 60 {
		e := kerneltest.Pod(i, "app=a")
		e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}
		e.Interface = fmt.Sprintf("cali%04x", i*653)
		kerneltest.Must(t, n.Engine.SetEndpoint(e))
		p := kerneltest.Global(fmt.Sprintf("p%d", i), "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, i+1))
		p.Ingress[0].Source.Selector = fmt.Sprintf("app == 'a' && label != '%d'", i)
		kerneltest.Must(t, n.Engine.SetPolicy(p))
	}
	r.InSync()
	n.Flush()
	r.to.took()
	step := func(what string, transactions, lines, bytes int) {
		t.Helper()
		n.Flush()
		scripts := r.to.took()
		all := strings.Join(scripts, "")
		if len(scripts) != transactions || strings.Count(all, "\n") > lines || len(all) > bytes || transactions > 0 && len(r.to.edited()) > 0 {
			t.Errorf("%s: %d transactions, %d lines, %d bytes\n%.2000s", what, len(scripts), strings.Count(all, "\n"), len(all), all)
		}
	}
	// edit is a step that no nft is needed for, and that changes so many members beside the number.
	edit := func(what string, members int) {
		t.Helper()
		step(what, 0, 0, 0)
		if e := r.to.edited(); len(e) != 1 || len(e[0]) != members+2 {
			t.Errorf("%s: %+v", what, e)
		}
	}
	r.to.edited()
	step("nothing", 0, 0, 0)
	p := kerneltest.Global("p7", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 8))
	p.Ingress[0].Source.Selector = "app == 'a' && label != '7'"
	p.Ingress[0].Destination.Nets = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	kerneltest.Must(t, n.Engine.SetPolicy(p))
	step("one rule of a policy", 1, 8, 1200)
	p.Ingress[0].Destination.Ports[0] = model.RulePort{First: 1000, Last: 1000}
	kerneltest.Must(t, n.Engine.SetPolicy(p))
	step("its port, and three nodes of the tree by which policies are asked", 1, 40, 5000)
	p.Ingress[0].Destination.Ports[0] = model.RulePort{First: 1001, Last: 1001}
	kerneltest.Must(t, n.Engine.SetPolicy(p))
	step("its port, and one node", 1, 12, 1600)
	far := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "far"}, Labels: map[string]string{"app": "a", "label": "3"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}
	kerneltest.Must(t, n.Engine.SetEndpoint(far))
	edit("a pod elsewhere: a member of 59 sets", 59)
	far.Labels["label"] = "4"
	kerneltest.Must(t, n.Engine.SetEndpoint(far))
	edit("its label: a member of two sets", 2)
	e := kerneltest.Pod(100, "app=b")
	e.Interface, e.Addresses = "califfff", []netip.Addr{netip.MustParseAddr("10.1.0.200")}
	kerneltest.Must(t, n.Engine.SetEndpoint(e))
	edit("a pod without policy: a source, and two to find its chain by", 3)
	n.Engine.RemoveEndpoint(e.ID)
	edit("and gone", 3)

	// A restart that finds everything as it should be leaves rules, sets and counters alone.
	var known []string
	whole := n.Engine.Whole()
	for _, e := range whole.Endpoints {
		known = append(known, e.Interface)
	}
	r.Stop()
	r = start(t, n.Lab, known...)
	n.Backend = r
	r.Apply(whole)
	r.InSync()
	n.Settle()
	for _, s := range r.to.took() {
		for l := range strings.Lines(s) {
			if strings.Contains(l, " cali") || strings.Contains(l, " p-") || strings.Contains(l, " w") || strings.Contains(l, "element") && !strings.Contains(l, " transaction ") {
				t.Errorf("the restart wrote %s", l)
			}
		}
	}
}

// TestStarted goes on where an agent of another release left off: what stands in the way of
// what is wanted is made anew.
func TestStarted(t *testing.T) {
	n := kerneltest.NewNode(t)
	n.Lab.Run(t, "nft", `table inet causeway {
		set sources-4 { type ipv4_addr; }
		map to-workload { type ifname : verdict; }
		chain old { type filter hook forward priority 10; policy drop; }
		chain filter-forward { type filter hook forward priority 10; }
	}`)
	r := start(t, n.Lab)
	n.Backend = r
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	r.InSync()
	n.Flush()
	n.Expect("after an older release", "pod0 > pod1:80 yes", "outside > pod0:1 yes", "outside > pod2:1 no")
	if s := table(n); strings.Contains(s, "chain old") {
		t.Error(s)
	}
}

// TestGuarded takes over from rules of another kind: what those let pass passes, until the
// endpoint's own rules come, and nobody else's traffic does.
func TestGuarded(t *testing.T) {
	n := kerneltest.NewNode(t)
	n.Lab.Run(t, "nft", "table inet others { chain c { type filter hook forward priority 0; tcp dport 81 drop; }; chain i { type filter hook input priority 0; tcp dport 81 drop; }; }")
	r := startGuarded(t, n.Lab, []string{"cali0", "cali1", "cali3"}, "cali0", "cali1", "cali2")
	n.Backend = r
	n.Settle()
	guarded := []string{"pod0 > pod1:80 yes", "pod0 > pod1:81 no", "outside > pod0:80 yes", "pod0 > outside:80 yes", "pod0 > host:80 yes", "pod0 > host:81 no"}
	n.Expect("guarded", append(guarded, "pod0 > pod2:80 no", "pod2 > pod0:80 no", "pod3 > pod0:80 no", "outside > pod3:80 no", "pod2 > host:80 no")...)
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), n.Engine.SetPolicy(kerneltest.Global("in", "all()", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))))
	n.Flush()
	n.Expect("one has rules", append(guarded, "outside > pod0:82 no", "outside > pod1:82 yes")...)
	spoof := n.Packet(false, 6, "pod1", "outside", 80)
	spoof.In = "cali0"
	if wrong, err := n.Lab.Check([]trace.Packet{spoof}, []bool{false}); err != nil || len(wrong) > 0 {
		t.Errorf("%s arrived (%v)", spoof, err)
	}
	n.Lab.Run(t, "nft", "delete table inet others")
	r.InSync()
	n.Settle()
	n.Expect("in sync", "outside > pod0:80 yes", "outside > pod0:82 no", "outside > pod1:80 no", "pod1 > outside:80 no", "pod0 > host:80 yes")
}

// deaf is a kernel that tells of no changes.
type deaf struct{ *nftables.Host }

func (deaf) Watch(context.Context, func(), func(nftables.Change)) error {
	return errors.New("no news")
}

// TestResync heals where the kernel tells nothing.
func TestResync(t *testing.T) {
	n := kerneltest.NewNode(t)
	k := deaf{nftables.NewHost().Within(n.Lab.Within)}
	pol, err := nftables.New(nftables.Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Kernel: k, Resync: 100 * time.Millisecond})
	kerneltest.Must(t, err, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- pol.Run(ctx) }()
	defer func() { cancel(); kerneltest.Must(t, <-ended) }()
	pol.Apply(n.Engine.Flush())
	pol.InSync()
	kerneltest.Must(t, pol.Wait(ctx))
	before := table(n)
	for _, what := range []string{"flush table inet causeway", "delete table inet causeway"} {
		n.Lab.Run(t, "nft", what)
		kerneltest.Eventually(t, func() string {
			if now := listed(n); now != before {
				return what + ":\n" + now
			}
			return ""
		})
	}
}

// TestNames leaves out an endpoint whose interface no rule can name: nothing passes it, Wait
// says so, and others are not concerned.
func TestNames(t *testing.T) {
	n, r := node(t)
	bad := kerneltest.Pod(0, "app=a")
	bad.Interface = `cali"$`
	kerneltest.Must(t, n.Engine.SetEndpoint(bad), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	r.InSync()
	n.Backend.Apply(n.Engine.Flush())
	if err := r.Wait(t.Context(), bad.Interface); err == nil || !strings.Contains(err.Error(), "no rule of nftables can name it") {
		t.Errorf("%v", err)
	}
	if err := r.Wait(t.Context(), "cali1"); err != nil {
		t.Error(err)
	}
	n.Engine.RemoveEndpoint(bad.ID)
	n.Flush()
	n.Expect("without it", "pod1 > outside:80 yes", "pod0 > outside:80 no")
}
