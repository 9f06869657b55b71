package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// Scenarios are what every backend must do besides what a golden model can say: over time,
// to connections, and where a link and a Service need more than policy.
func Scenarios(t *testing.T, start Start) {
	for _, s := range []struct {
		name string
		run  func(*testing.T, *Node, Start)
	}{
		{"Restart", restart},
		{"Connections", connections},
		{"Link", linkMessages},
		{"LinkLocal", linkLocal},
		{"Services", services},
		{"Tunnels", tunnels},
		{"Counters", counted},
		{"ManyPolicies", manyPolicies},
		{"UnderTraffic", underTraffic},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, NewNode(t), start) })
	}
}

func (n *Node) start(start Start, known ...string) {
	n.Helper()
	n.Backend = start(n.T, n.Lab, known...)
}

// restart restarts the agent. What an earlier one left stays for the interfaces that
// are known and for hosts, until the endpoint's own rules come, or all is known.
func restart(t *testing.T, n *Node, start Start) {
	n.Expect("without rules", "pod0 > pod1:81 yes", "outside > pod3:1 yes", "outside > host:80 yes")
	n.start(start)
	n.Settle()
	n.Expect("nobody is known", "pod0 > pod1:80 no", "outside > pod1:80 no", "pod0 > outside:80 no", "pod0 > host:80 no", "outside > host:80 yes", "host > outside:80 yes",
		"host > pod0:80 yes")
	for i := range NodePods - 1 {
		Must(t, n.Engine.SetEndpoint(Pod(i, "app=a")))
	}
	Must(t, n.Engine.SetEndpoint(HostEndpoint("eth0")), n.Engine.SetEndpoint(HostEndpoint("eth1")))
	Must(t, n.Engine.SetPolicy(Global("web", "app == 'a'", policy.Ingress, Port(model.RuleAllow, 6, 80))))
	Must(t, n.Engine.SetPolicy(Global("hosts", "has(host)", policy.Ingress, Port(model.RuleAllow, 6, 443))))
	n.Flush()
	n.Expect("hosts wait for all to be known", "pod0 > pod1:80 yes", "outside > pod1:81 no", "outside > host:80 yes")
	n.Backend.InSync()
	n.Flush()
	running := []string{"pod0 > pod1:80 yes", "pod0 > pod1:81 no", "other > pod2:80 yes", "other > pod2:79 no", "pod0 > pod3:80 no", "pod3 > pod0:80 no",
		"other > host:443 yes", "other > host:442 no", "other > host:22 yes", "host > pod3:80 yes", "pod0 > host:1 yes"}
	n.Expect("in sync", running...)
	n.Backend.Stop()
	n.Expect("no agent", running...)

	n.start(start, "cali0", "cali1", "cali2")
	n.Settle()
	n.Expect("started again", running...)
	if known := n.Backend.Known(); known != 3 {
		t.Errorf("%d interfaces are kept", known)
	}
	// pod0 is another now; the policy, which it shares with pods of before, too.
	n.Forget()
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")), n.Engine.SetPolicy(Global("web", "app == 'a'", policy.Ingress, Port(model.RuleAllow, 6, 81))))
	n.Flush()
	n.Expect("one is known", "pod1 > pod0:81 yes", "pod1 > pod0:80 no", "other > pod0:80 no", "other > host:442 no", "other > host:443 yes", "pod0 > pod1:81 yes", "pod3 > pod0:81 no")
	n.Backend.InSync()
	n.Flush()
	n.Expect("the others are gone", "other > pod0:81 yes", "other > pod1:80 no", "other > pod1:81 no", "pod1 > pod0:81 no", "other > host:442 yes", "pod0 > outside:1 yes")
}

// manyPolicies has one pod selected by so many policies that they are asked by port. Their order holds as ever.
func manyPolicies(t *testing.T, n *Node, start Start) {
	const many = 60
	set := func(i int, rules ...model.Rule) {
		t.Helper()
		Must(t, n.Engine.SetPolicy(Global(fmt.Sprintf("p%03d", i), "app == 'a'", policy.Ingress, rules...)))
	}
	wide := Port(model.RuleAllow, 6, 2000)
	wide.Destination.Ports[0].Last = 3000
	Must(t, n.Engine.SetEndpoint(Pod(1, "app=a")))
	for i := range many {
		set(i, Port(model.RuleAllow, 6, 1000+i))
	}
	set(10, Port(model.RuleDeny, 6, 1050, 1010))
	set(30, model.Rule{Action: model.RuleAllow, Protocol: model.ProtocolSCTP}) // whatever the port: the run ends here
	set(39, Port(model.RuleDeny, 6, 2600), Port(model.RuleAllow, 6, 1))
	set(40, wide, Port(model.RuleAllow, 17, 1040))
	set(41, Port(model.RuleDeny, 6, 2500))
	set(many-1, Port(model.RuleAllow, 6, 65535))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	for _, ep := range n.Engine.Endpoints() {
		if len(ep.Ingress.Tiers) != 1 || len(ep.Ingress.Tiers[0].Fans) != 2 {
			t.Fatalf("the policies are asked by %+v", ep.Ingress.Tiers)
		}
	}
	const to = "outside > pod1:"
	n.Expect("many policies", to+"1000 yes", to+"1029 yes", to+"1031 yes", to+"1058 yes", to+"1059 no", to+"999 no", to+"1010 no", to+"1030 no", to+"1040 no", to+"1050 no",
		to+"1999 no", to+"2000 yes", to+"2500 yes", to+"2600 no", to+"3000 yes", to+"3001 no", to+"65535 yes", to+"65534 no", to+"1 yes", to+"2 no")
	set(20, Port(model.RuleAllow, 6, 4000))
	n.Flush()
	n.Expect("another port", to+"1020 no", to+"4000 yes", to+"1019 yes", to+"1021 yes", to+"1050 no")
	Must(t, n.Engine.SetPolicy(Global("p010", "app == 'b'", policy.Ingress)))
	n.Flush()
	n.Expect("one less", to+"1050 yes", to+"1010 no", to+"4000 yes")
	n.Backend.Stop()
	n.start(start, "cali1")
	n.Settle()
	n.Expect("started again", to+"1050 yes", to+"1051 yes", to+"1010 no", to+"4000 yes", to+"2600 no")
	for i := range many {
		n.Engine.RemovePolicy(model.PolicyID{Kind: model.PolicyGlobal, Name: fmt.Sprintf("p%03d", i)})
	}
	n.Engine.Flush()
	n.Backend.Apply(n.Engine.Whole())
	n.Backend.InSync()
	n.Settle()
	n.Expect("none", to+"1010 yes", to+"5 yes")
}

// connections answers packets: what was allowed goes on both ways, until the
// connection is marked as forbidden, and again when it is not any more.
func connections(t *testing.T, n *Node, start Start) {
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")), n.Engine.SetEndpoint(Pod(1, "app=b")))
	Must(t, n.Engine.SetPolicy(Global("in", "app == 'b'", policy.Ingress, Port(model.RuleAllow, 17, 80))),
		n.Engine.SetPolicy(Global("none", "app == 'a'", policy.Ingress)), n.Engine.SetPolicy(Global("quiet", "app == 'b'", policy.Egress)))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	there := n.Packet(false, 17, "pod0", "pod1", 80)
	back := there
	back.Src, back.Dst, back.SrcPort, back.DstPort, back.In, back.Out = there.Dst, there.Src, 80, 4000, "cali1", "cali0"
	follow := func(what string, want ...bool) {
		t.Helper()
		got, err := n.Lab.Follow([]trace.Packet{back, there, back, there}, want)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %v; want %v", what, got, want)
		}
	}
	Must(t, n.Lab.Forget())
	follow("a new connection", false, true, true, true)
	m, _ := policy.NewMarks(policy.DefaultMarkMask)
	mark := func(value uint32) {
		n.Lab.Run(t, "conntrack", "-U", "-p", "udp", "--orig-src", "10.0.0.1", "--mark", fmt.Sprintf("%#x/%#x", value, m.Forbidden))
	}
	mark(m.Forbidden)
	follow("forbidden", false, false, false, false)
	mark(0)
	follow("allowed again", true, true, true, true)
}

// linkMessages lets pods that may send nothing have what an IPv6 link lives on, and not
// play the router.
func linkMessages(t *testing.T, n *Node, start Start) {
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")), n.Engine.SetPolicy(Global("quiet", "all()", policy.Egress)))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	for kind, want := range map[uint8]bool{133: true, 134: false, 135: true, 136: true, 137: false, 128: false, 143: true} {
		p := n.Packet(true, 58, "pod0", "host", 0)
		p.ICMPType = kind
		got, err := n.Lab.Await([]trace.Packet{p}, []bool{want})
		if err != nil || got[0] != want {
			t.Errorf("type %d: arrived %v, %v", kind, got, err)
		}
	}
}

// linkLocal has a pod speak from addresses of the link: what the link lives on passes, nothing else
// does, and nothing from the host's own.
func linkLocal(t *testing.T, n *Node, start Start) {
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")))
	const host = "fe80::ecee:eeff:feee:eeee"
	n.Lab.Run(t, "ip", "-6", "address", "add", host+"/64", "dev", "cali0", "nodad")
	Must(t, n.Lab.usable(netip.MustParseAddr(host)))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	for _, c := range []struct {
		from     string
		protocol uint8
		kind     uint8
		want     bool
	}{
		{"fe80::1", 58, 135, true}, {"fe80::1", 58, 136, true}, {"fe80::1", 58, 134, false}, {"fe80::1", 58, 128, false}, {"fe80::1", 6, 0, false}, {"fe80::1", 17, 0, false},
		{"::", 58, 135, true}, {"::", 58, 134, false}, {host, 58, 135, false}, {"fd00::2", 58, 135, false}, {"fd00::1", 58, 128, true},
	} {
		p := n.Packet(true, c.protocol, c.from, "host", 80)
		p.In, p.ICMPType = "cali0", c.kind
		if wrong, err := n.Lab.Check([]trace.Packet{p}, []bool{c.want}); err != nil || len(wrong) > 0 {
			t.Errorf("%s: arrived %v (%v)", p, !c.want, err)
		}
	}
}

// services has somebody translate addresses, as kube-proxy does. Host endpoints'
// egress policy is asked about where a packet really goes, workloads' about the workload, and
// preDNAT about what the packet said first.
func services(t *testing.T, n *Node, start Start) {
	n.Lab.Run(t, "nft", `table ip services {
		chain prerouting { type nat hook prerouting priority dstnat; ip daddr 192.168.0.1 tcp dport { 30080, 30081 } dnat to 10.0.0.1:80; }
		chain output { type nat hook output priority -100; ip daddr 203.0.113.80 tcp dport 1 dnat to 10.0.0.1:80; ip daddr 203.0.113.81 tcp dport 1 dnat to 10.0.0.17:80; ip daddr 203.0.113.82 tcp dport 1 dnat to 10.0.0.17:81; }
	}`)
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")), n.Engine.SetEndpoint(HostEndpoint("eth0")), n.Engine.SetEndpoint(HostEndpoint("*")))
	Must(t, n.Engine.SetPolicy(Global("out", "has(host)", policy.Egress, Port(model.RuleAllow, 6, 81))))
	pre := Global("pre", "has(host)", policy.Ingress, Port(model.RuleDeny, 6, 30081))
	pre.PreDNAT, pre.ApplyOnForward = true, true
	Must(t, n.Engine.SetPolicy(pre))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	for _, c := range []struct {
		from, to string
		port     int
		out      string
		want     bool
	}{
		{"host", "203.0.113.80", 1, "cali0", true}, // to its own pod
		{"host", "203.0.113.81", 1, "eth1", false}, // port 80, by eth1
		{"host", "203.0.113.82", 1, "eth1", true},  // port 81
		{"host", "203.0.113.90", 80, "eth2", false},
		{"host", "203.0.113.90", 81, "eth2", true},
		{"outside", "192.168.0.1", 30080, "cali0", true},
		{"outside", "192.168.0.1", 30081, "cali0", false},
	} {
		p := n.Packet(false, 6, c.from, c.to, c.port)
		p.Out = c.out
		wrong, err := n.Lab.Check([]trace.Packet{p}, []bool{c.want})
		if err != nil {
			t.Fatal(err)
		}
		if len(wrong) > 0 {
			t.Errorf("%s: arrived %v", p, !c.want)
		}
	}
}

// tunnels lets the node's encapsulated packets pass host endpoints that allow nothing.
func tunnels(t *testing.T, n *Node, start Start) {
	Must(t, n.Engine.SetEndpoint(HostEndpoint("*")))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	in, out := n.Packet(false, 17, "outside", "host", 4789), n.Packet(false, 17, "host", "outside", 4789)
	through := n.Packet(false, 17, "host", "outside", 4790)
	check := func(what string, want bool) {
		t.Helper()
		wrong, err := n.Lab.Check([]trace.Packet{in, out, through}, []bool{want, want, false})
		if err != nil || len(wrong) > 0 {
			t.Fatalf("%s: %v, %v", what, wrong, err)
		}
	}
	check("no VXLAN", false)
	n.Backend.SetEncapsulation(model.EncapGuard{VXLANPort: 4789}, model.EncapGuard{})
	n.Settle()
	check("VXLAN", true)
	n.Backend.SetEncapsulation(model.EncapGuard{}, model.EncapGuard{})
	n.Settle()
	check("no VXLAN any more", false)
}

// counted counts what rules met.
func counted(t *testing.T, n *Node, start Start) {
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")))
	many := Port(model.RuleAllow, 6)
	for i := range 40 { // more than one rule of iptables can hold
		many.Destination.Ports = append(many.Destination.Ports, model.RulePort{First: 1000 + 2*i, Last: 1000 + 2*i})
	}
	Must(t, n.Engine.SetPolicy(Global("many", "all()", policy.Ingress, Port(model.RuleDeny, 6, 9), many)))
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	n.Expect("ports", "outside > pod0:9 no", "outside > pod0:1000 yes", "outside > pod0:1078 yes", "outside > pod0:1040 yes", "outside > pod0:1041 no")
	got, err := n.Backend.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, c := range got {
		text = append(text, fmt.Sprintf("%s %d %s IPv%d %d/%d", c.Chain, c.Index, c.Action, c.Family, c.Packets, c.Bytes))
	}
	want := `GlobalNetworkPolicy many ingress 0 deny IPv4 1/40
GlobalNetworkPolicy many ingress 0 deny IPv6 1/60
GlobalNetworkPolicy many ingress 1 allow IPv4 3/120
GlobalNetworkPolicy many ingress 1 allow IPv6 3/180`
	if s := strings.Join(text, "\n"); s != want {
		t.Errorf("%s\nwant:\n%s", s, want)
	}
}

// underTraffic changes policies, sets and endpoints all the time while packets that every
// version allows, and packets that none does, go on: no packet meets half a change.
func underTraffic(t *testing.T, n *Node, start Start) {
	version := func(v int) {
		// Who may come is said by label or by net, and the rules stand in one order or the other.
		p := Global("in", "app == 'a'", policy.Ingress, Port(model.RuleAllow, 6, 80, 1000+v%7), Port(model.RuleAllow, 6, 443))
		p.Ingress[v%2].Source.Selector = fmt.Sprintf("app == 'b' || n == '%d'", v%3)
		if v%2 == 1 {
			p.Ingress[0], p.Ingress[1] = p.Ingress[1], p.Ingress[0]
		}
		more := Global("more", "app == 'a'", policy.Ingress, Port(model.RuleDeny, 6, 9))
		more.Order = float64(9 + 2*(v%2))
		Must(t, n.Engine.SetPolicy(p), n.Engine.SetPolicy(more))
		e := Pod(2, fmt.Sprintf("n=%d", v%3))
		Must(t, n.Engine.SetEndpoint(e))
	}
	Must(t, n.Engine.SetEndpoint(Pod(0, "app=a")), n.Engine.SetEndpoint(Pod(1, "app=b")))
	version(0)
	n.start(start)
	n.Backend.InSync()
	n.Flush()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	done := make(chan int)
	go func() {
		v := 0
		for ; ctx.Err() == nil; v++ {
			version(v)
			n.Backend.Apply(n.Engine.Flush())
			_ = n.Backend.Wait(ctx)
		}
		done <- v
	}()
	sent := 0
	for ctx.Err() == nil {
		var shots []trace.Packet
		var want []bool
		for i := range 60 {
			p := n.Packet(i%2 == 0, 6, "pod1", "pod0", []int{80, 9, 443, 81}[i/2%4])
			p.SrcPort = uint16(2000 + i)
			shots, want = append(shots, p), append(want, p.DstPort == 80 || p.DstPort == 443)
		}
		got, err := n.Lab.Await(shots, want)
		if err != nil {
			t.Fatal(err)
		}
		sent += len(shots)
		for i, p := range shots {
			if got[i] != want[i] {
				t.Errorf("%s: arrived %v", p, got[i])
			}
		}
	}
	t.Logf("%d packets during %d changes", sent, <-done)
}
