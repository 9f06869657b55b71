package nftables_test

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// expected is a Node's pod before its ADD: it has an interface and no addresses.
func expected(i int, label string) model.PolicyEndpoint {
	p := kerneltest.Pod(i, label)
	p.Addresses = nil
	return p
}

// web has the pods of a label taken by a policy that lets port 80 in and 80 out.
func web(n *kerneltest.Node, label string) {
	k, v, _ := strings.Cut(label, "=")
	subject := fmt.Sprintf("%s == '%s'", k, v)
	kerneltest.Must(n, n.Engine.SetPolicy(kerneltest.Global("in", subject, policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))),
		n.Engine.SetPolicy(kerneltest.Global("out", subject, policy.Egress, kerneltest.Port(model.RuleAllow, 6, 80))))
}

// add brings a pod in as an ADD does: Apply, and Wait for its interface.
func add(n *kerneltest.Node, r *rig, p model.PolicyEndpoint) {
	n.Helper()
	kerneltest.Must(n, n.Engine.SetEndpoint(p))
	r.Apply(n.Engine.Flush())
	kerneltest.Must(n, r.Wait(n.Context(), p.Interface))
}

// TestAdd adds pods that no policy selects and pods whose chains were made ahead: no nft is run, and
// what they may send and receive passes once Wait has returned. None sends from what is not its own,
// before its ADD or after.
func TestAdd(t *testing.T) {
	n, r := node(t)
	web(n, "app=a")
	// Sets that policies of others have the pods' addresses in.
	p := kerneltest.Global("from", "app == 'c'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 81))
	p.Ingress[0].Source.Selector = "has(app)"
	kerneltest.Must(t, n.Engine.SetPolicy(p), n.Engine.SetEndpoint(kerneltest.Pod(3, "app=c")), n.Engine.SetEndpoint(expected(1, "app=a")), n.Engine.SetEndpoint(expected(2, "app=b")))
	r.InSync()
	n.Flush()
	spoofed := func(what string, from int) {
		t.Helper()
		for _, v6 := range []bool{false, true} {
			for _, as := range []string{"pod3", "other", "outside"} {
				shot := n.Packet(v6, 6, as, "host", 80)
				shot.In = fmt.Sprintf("cali%d", from)
				to := n.Packet(v6, 6, as, "outside", 80)
				to.In, to.Dst = shot.In, n.Packet(v6, 6, "host", "other", 80).Dst
				to.Out, _ = n.Lab.Out(to.Dst)
				if as == "other" { // not from eth1 to eth1
					to = shot
				}
				if wrong, err := n.Lab.Check([]trace.Packet{shot, to}, []bool{false, false}); err != nil || len(wrong) > 0 {
					t.Errorf("%s: from %s: %v arrived (%v)", what, as, wrong, err)
				}
			}
		}
	}
	n.Expect("before", "pod0 > outside:80 no", "pod1 > outside:80 no", "pod1 > host:80 no", "pod2 > outside:80 no", "outside > pod0:80 no", "outside > pod1:81 no")
	for i := range 3 {
		spoofed("before", i)
	}
	r.to.took()
	r.to.edited()
	seen := r.Status().Healed
	add(n, r, kerneltest.Pod(0, "app=b"))
	n.Expect("open", "pod0 > outside:80 yes", "pod0 > outside:1 yes", "outside > pod0:1 yes", "pod0 > pod3:81 yes", "pod0 > pod3:80 no", "pod0 > host:1 yes", "host > pod0:1 yes")
	add(n, r, kerneltest.Pod(1, "app=a"))
	n.Expect("selected", "pod1 > outside:80 yes", "pod1 > outside:81 no", "outside > pod1:80 yes", "outside > pod1:81 no", "pod1 > pod3:81 no", "pod0 > pod1:80 yes", "pod1 > host:81 no")
	add(n, r, kerneltest.Pod(2, "app=b"))
	n.Expect("expected, and open", "pod2 > outside:80 yes", "outside > pod2:1 yes", "pod2 > pod3:81 yes", "pod2 > pod1:80 yes", "pod2 > pod1:81 no")
	for i := range 3 {
		spoofed("after", i)
	}
	if s, e := r.to.took(), r.to.edited(); len(s) > 0 || len(e) != 3 {
		t.Errorf("%d transactions by nft, %d without:\n%s", len(s), len(e), strings.Join(s, "\n"))
	}
	n.Engine.RemoveEndpoint(kerneltest.Pod(0, "").ID)
	n.Flush()
	n.Expect("gone", "pod0 > outside:80 no", "outside > pod0:80 no", "pod2 > outside:80 yes")
	if s := r.to.took(); len(s) > 0 {
		t.Errorf("nft was run:\n%s", s)
	}
	n.Lab.Run(t, "nft", "flush set inet causeway transaction")
	kerneltest.Eventually(t, func() string {
		if r.Status().Healed == seen {
			return "a change of somebody else's was not seen"
		}
		return ""
	})
	if healed := r.Status().Healed; healed != seen+1 { // notices come in their order
		t.Errorf("%d changes were taken for somebody else's; 1 was", healed-seen)
	}
}

// TestSwitchedAfterItsChains: a pod that was open is led to its chains once they stand, not while they come.
func TestSwitchedAfterItsChains(t *testing.T) {
	n, r := node(t)
	web(n, "app=a")
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=b")))
	r.InSync()
	n.Flush()
	r.to.took()
	r.to.edited()
	add(n, r, kerneltest.Pod(0, "app=a"))
	scripts, edits := r.to.took(), r.to.edited()
	if len(scripts) != 1 || strings.Contains(scripts[0], "to-workload") || len(edits) != 1 || len(edits[0]) != 6 {
		t.Errorf("nft:\n%s\nand %+v", strings.Join(scripts, "\n"), edits)
	}
	n.Expect("selected", "outside > pod0:80 yes", "outside > pod0:81 no")
	add(n, r, kerneltest.Pod(0, "app=b"))
	if s := r.to.took(); len(s) != 1 {
		t.Errorf("%d transactions to make it open; want 1", len(s))
	}
	n.Expect("open", "outside > pod0:81 yes")
}

// TestSwitched has policies take a pod and leave it again, while packets go on that both allow, and
// packets that neither does.
func TestSwitched(t *testing.T) {
	n, r := node(t)
	p := kerneltest.Pod(0, "app=b")
	q := kerneltest.Global("closed", "app == 'c'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))
	kerneltest.Must(t, n.Engine.SetEndpoint(p), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=c")), n.Engine.SetPolicy(q))
	web(n, "app=a")
	r.InSync()
	n.Flush()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	done := make(chan int)
	go func() {
		i := 0
		for ; ctx.Err() == nil; i++ {
			p.Labels = map[string]string{"app": []string{"a", "b"}[i%2]}
			if err := n.Engine.SetEndpoint(p); err != nil {
				t.Error(err)
			}
			r.Apply(n.Engine.Flush())
			_ = r.Wait(ctx, p.Interface)
		}
		done <- i
	}()
	sent := 0
	for ctx.Err() == nil {
		var shots []trace.Packet
		var want []bool
		for i := range 60 {
			s := n.Packet(i%2 == 0, 6, []string{"pod0", "outside"}[i/2%2], []string{"pod1", "pod0"}[i/2%2], 80)
			if i%3 == 0 { // a port that pod1 has closed
				s = n.Packet(i%2 == 0, 6, "pod0", "pod1", 81)
			}
			s.SrcPort = uint16(2000 + i)
			shots, want = append(shots, s), append(want, s.DstPort == 80)
		}
		got, err := n.Lab.Await(shots, want)
		kerneltest.Must(t, err)
		sent += len(shots)
		for i, s := range shots {
			if got[i] != want[i] {
				t.Errorf("%s: arrived %v", s, got[i])
			}
		}
	}
	t.Logf("%d packets during %d changes", sent, <-done)
}

// TestMembers brings members of every kind of set into two kernels, by netlink and by nft: what stands there
// is the same.
func TestMembers(t *testing.T) {
	ours, theirs := kerneltest.NewNode(t), kerneltest.NewNode(t)
	one, two := &written{Host: nftables.NewHost().Within(ours.Lab.Within)}, &written{Host: nftables.NewHost().Within(theirs.Lab.Within)}
	a, b := startOn(t, one, nil), startOn(t, clumsy{two}, nil)
	ours.Backend, theirs.Backend = a, b
	same := func(what string) {
		t.Helper()
		for _, r := range []*rig{a, b} {
			kerneltest.Must(t, r.Wait(t.Context()))
		}
		x, err := one.Read(t.Context())
		y, err2 := two.Read(t.Context())
		kerneltest.Must(t, err, err2)
		if !reflect.DeepEqual(x.Without("transaction"), y.Without("transaction")) {
			t.Errorf("%s:\n%+v\nby nft:\n%+v", what, x, y)
		}
		if x, y := table(ours), table(theirs); x != y {
			t.Errorf("%s:\n%s\nby nft:\n%s", what, x, y)
		}
	}
	both := func(d *policy.Delta) { a.Apply(d); b.Apply(d) }
	m := func(prefixes ...string) (out []policy.Member) {
		for _, p := range prefixes {
			out = append(out, policy.Member{Prefix: netip.MustParsePrefix(p)})
		}
		slices.SortFunc(out, policy.Member.Compare)
		return out
	}
	port := func(a string, protocol uint8, ports ...uint16) (out []policy.Member) {
		for _, p := range ports {
			out = append(out, policy.Member{Prefix: netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen()), Protocol: protocol, Port: p})
		}
		return out
	}
	changes := []policy.SetChange{
		{ID: "a4aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetIP, Family: policy.IPv4, Add: m("10.0.0.1/32", "10.0.0.2/32", "255.255.255.255/32")},
		{ID: "a6aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetIP, Family: policy.IPv6, Add: m("fd00::1/128", "::1/128")},
		{ID: "n4aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetNet, Family: policy.IPv4, Add: m("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/32", "10.0.2.1/32", "10.0.3.0/25")},
		{ID: "n4bbbbbbbbbbbbbbbbbbbb", Kind: policy.SetNet, Family: policy.IPv4, Add: m("0.0.0.0/1", "128.0.0.0/1")},
		{ID: "n6aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetNet, Family: policy.IPv6, Add: m("::/1", "8000::/1")},
		{ID: "n6bbbbbbbbbbbbbbbbbbbb", Kind: policy.SetNet, Family: policy.IPv6, Add: m("fd00::/64", "fd00:0:0:1::/64", "fd01::/127", "fd01::2/128")},
		{ID: "p4aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetIPPort, Family: policy.IPv4, Add: append(port("10.0.0.1", 6, 1, 80, 65535), port("10.0.0.1", 17, 53)...)},
		{ID: "p6aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetIPPort, Family: policy.IPv6, Add: port("fd00::1", 132, 80)},
	}
	first := &policy.Delta{}
	for _, c := range changes {
		first.NewSets = append(first.NewSets, policy.Set{ID: c.ID, Kind: c.Kind, Family: c.Family, Origin: "a test"})
	}
	both(first)
	a.InSync()
	b.InSync()
	same("empty")
	one.took()
	two.took()
	both(&policy.Delta{ChangedSets: changes})
	same("members")
	for i := range changes {
		some := changes[i].Add
		changes[i].Add, changes[i].Remove = nil, some[:(len(some)+1)/2]
	}
	both(&policy.Delta{ChangedSets: changes})
	same("half of them gone")
	for i := range changes {
		changes[i].Add, changes[i].Remove = changes[i].Remove, nil
	}
	changes[3].Add, changes[3].Remove = m("0.0.0.0/2", "64.0.0.0/2"), m("128.0.0.0/1") // what comes overlaps nothing that stays
	both(&policy.Delta{ChangedSets: changes})
	same("and back, one in halves")
	open := policy.Path{Default: policy.Allow}
	ep := policy.Endpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "pod0"}, Interface: "cali0", Ingress: open, Egress: open,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	for _, granted := range [][]string{{"10.0.0.1/32", "fd00::1/128"}, {"10.0.0.1/32", "192.0.2.0/25", "192.0.2.128/25", "fd00::1/128", "2001:db8::/32", "2001:db9::/32"},
		{"10.0.0.1/32", "0.0.0.0/0", "fd00::1/128", "::/0"}, {"fd00::/64", "192.0.2.128/26"}, nil} {
		ep.Sources = nil
		for _, g := range granted {
			ep.Sources = append(ep.Sources, netip.MustParsePrefix(g))
		}
		both(&policy.Delta{Endpoints: []policy.Endpoint{ep}})
		same(fmt.Sprint("an open pod that sends from ", granted))
	}
	if s := one.took(); len(s) > 0 {
		t.Errorf("nft was run:\n%s", s)
	}
	if s := two.took(); len(s) != 8 {
		t.Errorf("nft was run %d times", len(s))
	}
	both(&policy.Delta{GoneEndpoints: []string{"cali0"}})
	same("without the pod")

	// A map's member changes from one verdict to another.
	for _, r := range []*rig{a, b} {
		r.Stop()
	}
	key := "cali0" + strings.Repeat("\x00", 11)
	was := ""
	for _, c := range []struct{ verdict, nft string }{{nftables.Leave, "return"}, {"workload-source", "jump workload-source"}, {"workload-host", "jump workload-host"}, {nftables.Leave, "return"}, {}} {
		var members []nftables.Member
		var lines []string
		if was != "" {
			members = append(members, nftables.Member{Set: "to-workload", Key: key, Gone: true})
			lines = append(lines, "delete element inet causeway to-workload { \"cali0\" }")
		}
		if c.nft != "" {
			members = append(members, nftables.Member{Set: "to-workload", Key: key, Verdict: c.verdict})
			lines = append(lines, "add element inet causeway to-workload { \"cali0\" : "+c.nft+" }")
		}
		kerneltest.Must(t, one.Edit(t.Context(), members))
		theirs.Lab.Run(t, "nft", strings.Join(lines, "; "))
		was = c.nft
		same("verdict " + was)
	}
	// All or nothing: the last is not there.
	before := table(ours)
	if err := one.Edit(t.Context(), []nftables.Member{{Set: "to-workload", Key: key, Verdict: nftables.Leave}, {Set: "to-host", Key: key, Gone: true}}); err == nil {
		t.Error("a set that is not there was changed")
	}
	if after := table(ours); after != before {
		t.Errorf("half a transaction:\n%s", after)
	}
	kerneltest.Must(t, one.Edit(t.Context(), []nftables.Member{{Set: "to-workload", Key: key, Verdict: nftables.Leave}}))
}

// TestEditMuch has more members change at once than a message and a socket's usual buffer hold.
func TestEditMuch(t *testing.T) {
	n, r := node(t)
	d := &policy.Delta{NewSets: []policy.Set{{ID: "n6aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetNet, Family: policy.IPv6}}}
	r.Apply(d)
	r.InSync()
	n.Settle()
	r.to.took()
	c := policy.SetChange{ID: "n6aaaaaaaaaaaaaaaaaaaa", Kind: policy.SetNet, Family: policy.IPv6}
	for i := range 5000 {
		c.Add = append(c.Add, policy.Member{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, byte(i >> 8), byte(i)}), 64)})
	}
	for range 2 {
		r.Apply(&policy.Delta{ChangedSets: []policy.SetChange{c}})
		n.Settle()
		c.Add, c.Remove = nil, c.Add
	}
	if s, e := r.to.took(), r.to.edited(); len(s) > 0 || len(e) != 2 {
		t.Errorf("%d transactions by nft, %d without", len(s), len(e))
	}
}

// TestClumsy has a kernel that takes nothing but what nft writes: all works, and slower.
func TestClumsy(t *testing.T) {
	n := kerneltest.NewNode(t)
	r := startOn(t, clumsy{&written{Host: nftables.NewHost().Within(n.Lab.Within)}}, nil)
	n.Backend = r
	web(n, "app=a")
	kerneltest.Must(t, n.Engine.SetEndpoint(expected(1, "app=a")))
	r.InSync()
	n.Flush()
	add(n, r, kerneltest.Pod(0, "app=b"))
	add(n, r, kerneltest.Pod(1, "app=a"))
	n.Expect("by nft", "pod0 > outside:1 yes", "outside > pod0:1 yes", "pod1 > outside:80 yes", "pod1 > outside:81 no", "outside > pod1:80 yes", "outside > pod1:81 no")
}

// gated is a kernel whose nft waits to be let go on.
type gated struct {
	*written
	came chan struct{}
	let  chan struct{}
}

func (k *gated) Run(ctx context.Context, tx *knftables.Transaction) error {
	k.came <- struct{}{}
	<-k.let
	return k.written.Run(ctx, tx)
}

// TestAhead adds a pod while nft writes others' chains, and more are waiting: it waits for
// that nft, and for no other.
func TestAhead(t *testing.T) {
	n := kerneltest.NewNode(t)
	k := &gated{&written{Host: nftables.NewHost().Within(n.Lab.Within)}, make(chan struct{}), make(chan struct{})}
	r := startOn(t, k, nil)
	n.Backend = r
	web(n, "app=a")
	kerneltest.Must(t, n.Engine.SetEndpoint(expected(1, "app=a")))
	settle := func() { // lets all nft go on
		all := make(chan error, 1)
		go func() { all <- r.Wait(t.Context()) }()
		for {
			select {
			case <-k.came:
				k.let <- struct{}{}
			case err := <-all:
				kerneltest.Must(t, err)
				return
			}
		}
	}
	r.Apply(n.Engine.Flush())
	r.InSync()
	settle()
	change := func(name string) {
		kerneltest.Must(t, n.Engine.SetPolicy(kerneltest.Global(name, "app == 'c'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 1))))
		r.Apply(n.Engine.Flush())
	}
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(2, "app=c")))
	change("one")
	<-k.came // and holds
	change("two")
	for _, p := range []model.PolicyEndpoint{kerneltest.Pod(0, "app=b"), kerneltest.Pod(1, "app=a")} {
		kerneltest.Must(t, n.Engine.SetEndpoint(p))
		r.Apply(n.Engine.Flush())
	}
	k.let <- struct{}{}
	<-k.came // for two
	for _, iface := range []string{"cali0", "cali1"} {
		kerneltest.Must(t, r.Wait(t.Context(), iface))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.Wait(ctx, "cali2"); err == nil {
		t.Error("a pod whose policy is being written need not wait for it")
	}
	n.Expect("ahead", "pod0 > outside:1 yes", "pod1 > outside:80 yes", "pod1 > outside:81 no", "outside > pod1:80 yes", "outside > pod2:1 yes")
	// What has to do with what waits, waits.
	p := kerneltest.Pod(2, "app=c")
	p.Addresses = p.Addresses[:1]
	kerneltest.Must(t, n.Engine.SetEndpoint(p))
	r.Apply(n.Engine.Flush())
	k.let <- struct{}{}
	settle()
	kerneltest.Must(t, r.Wait(t.Context(), "cali2"))
}
