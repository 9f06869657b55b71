package iptables_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// world is a Lab with an engine: pods cali0 to cali3 in namespace red, 10.0.0.1 to .4 and fd00::1 to ::4.
type world struct {
	*testing.T
	lab    *kerneltest.Lab
	engine *policy.Engine
	rig    *policyRig
}

const podsInWorld = 4

func newWorld(t *testing.T) *world {
	c := kerneltest.RandomConfig()
	for i := range podsInWorld {
		for _, a := range podAddrs(i) {
			c.Routes[netip.PrefixFrom(a, a.BitLen())] = fmt.Sprintf("cali%d", i)
		}
	}
	w := &world{T: t, lab: kerneltest.New(t, c), engine: policy.New(policy.Config{})}
	w.engine.SetNamespace(model.Namespace{Name: "red"})
	w.engine.SetHost(model.HostPolicy{
		FailsafeIn: []model.FailsafePort{{Protocol: 6, Port: 22}}, FailsafeOut: []model.FailsafePort{{Protocol: 17, Port: 53}},
		EndpointToHost: model.EndpointToHostReturn,
	})
	return w
}

func podAddrs(i int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}
}

func pod(i int, labels string) model.PolicyEndpoint {
	k, v, _ := strings.Cut(labels, "=")
	return model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: fmt.Sprintf("pod%d", i)}, Labels: map[string]string{k: v},
		Addresses: podAddrs(i), Interface: fmt.Sprintf("cali%d", i)}
}

func hostEndpoint(iface string) model.PolicyEndpoint {
	return model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: "host-" + strings.Trim(iface, "*")}, Interface: iface,
		Labels: map[string]string{"host": "yes"}}
}

// global makes a GlobalNetworkPolicy with one rule, that of ingress or egress.
func global(name, subject string, d policy.Direction, rules ...model.Rule) model.Policy {
	p := model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: name}, Tier: model.TierDefault, Order: 10, Subject: model.Subject{Selector: subject}}
	if d == policy.Ingress {
		p.ForIngress, p.Ingress = true, rules
	} else {
		p.ForEgress, p.Egress = true, rules
	}
	return p
}

// port is a rule about destination ports of a protocol.
func port(a model.RuleAction, protocol uint8, ports ...int) model.Rule {
	r := model.Rule{Action: a, Protocol: protocol}
	for _, p := range ports {
		r.Destination.Ports = append(r.Destination.Ports, model.RulePort{First: p, Last: p})
	}
	return r
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) start(b iptables.Backend, known ...string) {
	w.Helper()
	w.rig = startPolicy(w.T, w.lab, b, known...)
}

// flush brings what the engine has into the kernel.
func (w *world) flush() {
	w.Helper()
	w.rig.Apply(w.engine.Flush())
	w.settle()
}

func (w *world) settle() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	if err := w.rig.Wait(ctx); err != nil {
		w.Fatal(err)
	}
	for _, r := range w.rig.rules { // of what was set before the first delta, too
		if err := r.Wait(ctx); err != nil {
			w.Fatal(err)
		}
	}
}

// packet makes one of "protocol source > destination:port", by words: pod0, host, outside.
func (w *world) packet(v6 bool, protocol uint8, from, to string, dport int) trace.Packet {
	at := map[string][2]string{"host": {"192.168.0.1", "fd01::1"}, "outside": {"203.0.113.9", "2001:db8:9::9"}, "other": {"10.0.0.17", "fd00::11"}}
	for i := range podsInWorld {
		a := podAddrs(i)
		at[fmt.Sprintf("pod%d", i)] = [2]string{a[0].String(), a[1].String()}
	}
	pick := func(name string) netip.Addr {
		if a, err := netip.ParseAddr(name); err == nil {
			return a
		}
		if v6 {
			return netip.MustParseAddr(at[name][1])
		}
		return netip.MustParseAddr(at[name][0])
	}
	p := trace.Packet{Src: pick(from), Dst: pick(to), Protocol: protocol, SrcPort: 4000, DstPort: uint16(dport)}
	p.In, _ = w.lab.Out(p.Src)
	p.Out, _ = w.lab.Out(p.Dst)
	return p
}

// expect sends packets of both families, "pod0 > pod1:80 yes", and says which fare otherwise.
func (w *world) expect(what string, lines ...string) {
	w.Helper()
	var shots []trace.Packet
	var want []bool
	for _, l := range lines {
		f := strings.Fields(l)
		to, p, _ := strings.Cut(f[2], ":")
		n := 0
		fmt.Sscan(p, &n)
		for _, v6 := range []bool{false, true} {
			shots, want = append(shots, w.packet(v6, 6, f[0], to, n)), append(want, f[3] == "yes")
		}
	}
	wrong, err := w.lab.Check(shots, want)
	if err != nil {
		w.Fatal(err)
	}
	for _, i := range wrong {
		w.Errorf("%s: %s: arrived %v", what, shots[i], !want[i])
	}
	if w.Failed() {
		w.FailNow()
	}
}

func backends(t *testing.T, f func(*testing.T, *world, iptables.Backend)) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) { f(t, newWorld(t), b) })
	}
}

// TestPolicyStart restarts the agent. What an earlier one left stays for the interfaces that
// are known and for hosts, until the endpoint's own rules come, or all is known.
func TestPolicyStart(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		w.expect("without rules", "pod0 > pod1:81 yes", "outside > pod3:1 yes", "outside > host:80 yes")
		w.start(b)
		w.settle()
		w.expect("nobody is known", "pod0 > pod1:80 no", "outside > pod1:80 no", "pod0 > outside:80 no", "pod0 > host:80 no", "outside > host:80 yes", "host > outside:80 yes",
			"host > pod0:80 yes")
		for i := range podsInWorld - 1 {
			must(t, w.engine.SetEndpoint(pod(i, "app=a")))
		}
		must(t, w.engine.SetEndpoint(hostEndpoint("eth0")), w.engine.SetEndpoint(hostEndpoint("eth1")))
		must(t, w.engine.SetPolicy(global("web", "app == 'a'", policy.Ingress, port(model.RuleAllow, 6, 80))))
		must(t, w.engine.SetPolicy(global("hosts", "has(host)", policy.Ingress, port(model.RuleAllow, 6, 443))))
		w.flush()
		w.expect("hosts wait for all to be known", "pod0 > pod1:80 yes", "outside > pod1:81 no", "outside > host:80 yes")
		w.rig.InSync()
		w.flush()
		running := []string{"pod0 > pod1:80 yes", "pod0 > pod1:81 no", "other > pod2:80 yes", "other > pod2:79 no", "pod0 > pod3:80 no", "pod3 > pod0:80 no",
			"other > host:443 yes", "other > host:442 no", "other > host:22 yes", "host > pod3:80 yes", "pod0 > host:1 yes"}
		w.expect("in sync", running...)
		w.rig.stop()
		w.expect("no agent", running...)

		w.start(b, "cali0", "cali1", "cali2")
		w.settle()
		w.expect("started again", running...)
		if n := w.rig.Status().Known; n != 3 {
			t.Errorf("%d interfaces are kept", n)
		}
		// pod0 is another now; the policy, which it shares with pods of before, too.
		w.engine = policy.New(policy.Config{})
		w.engine.SetNamespace(model.Namespace{Name: "red"})
		must(t, w.engine.SetEndpoint(pod(0, "app=a")), w.engine.SetPolicy(global("web", "app == 'a'", policy.Ingress, port(model.RuleAllow, 6, 81))))
		w.flush()
		w.expect("one is known", "pod1 > pod0:81 yes", "pod1 > pod0:80 no", "other > pod0:80 no", "other > host:442 no", "other > host:443 yes", "pod0 > pod1:81 yes", "pod3 > pod0:81 no")
		w.rig.InSync()
		w.flush()
		w.expect("the others are gone", "other > pod0:81 yes", "other > pod1:80 no", "other > pod1:81 no", "pod1 > pod0:81 no", "other > host:442 yes", "pod0 > outside:1 yes")
		for _, r := range w.rig.rules {
			for name, s := range r.Status().Tables {
				if name == iptables.Mangle && s.Chains != 0 {
					t.Errorf("%s: %d chains in table mangle, and no host endpoint", r, s.Chains)
				}
			}
		}
	})
}

// TestPolicyEstablished answers packets: what was allowed goes on both ways, until the
// connection is marked as forbidden, and again when it is not any more.
func TestPolicyEstablished(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		must(t, w.engine.SetEndpoint(pod(0, "app=a")), w.engine.SetEndpoint(pod(1, "app=b")))
		must(t, w.engine.SetPolicy(global("in", "app == 'b'", policy.Ingress, port(model.RuleAllow, 17, 80))),
			w.engine.SetPolicy(global("none", "app == 'a'", policy.Ingress)), w.engine.SetPolicy(global("quiet", "app == 'b'", policy.Egress)))
		w.start(b)
		w.rig.InSync()
		w.flush()
		there := w.packet(false, 17, "pod0", "pod1", 80)
		back := there
		back.Src, back.Dst, back.SrcPort, back.DstPort, back.In, back.Out = there.Dst, there.Src, 80, 4000, "cali1", "cali0"
		follow := func(what string, want ...bool) {
			t.Helper()
			got, err := w.lab.Follow(back, there, back, there)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s: %v; want %v", what, got, want)
			}
		}
		must(t, w.lab.Forget())
		follow("a new connection", false, true, true, true)
		m, _ := policy.NewMarks(policy.DefaultMarkMask)
		mark := func(value uint32) {
			w.lab.Run(t, "conntrack", "-U", "-p", "udp", "--orig-src", "10.0.0.1", "--mark", fmt.Sprintf("%#x/%#x", value, m.Forbidden))
		}
		mark(m.Forbidden)
		follow("forbidden", false, false, false, false)
		mark(0)
		follow("allowed again", true, true, true, true)
	})
}

// TestPolicyLink lets pods that may send nothing have what an IPv6 link lives on, and not
// play the router.
func TestPolicyLink(t *testing.T) {
	w := newWorld(t)
	must(t, w.engine.SetEndpoint(pod(0, "app=a")), w.engine.SetPolicy(global("quiet", "all()", policy.Egress)))
	w.start(iptables.NFT)
	w.rig.InSync()
	w.flush()
	for kind, want := range map[uint8]bool{133: true, 134: false, 135: true, 136: true, 137: false, 128: false, 143: true} {
		p := w.packet(true, 58, "pod0", "host", 0)
		p.ICMPType = kind
		got, err := w.lab.Fire([]trace.Packet{p})
		if err != nil || got[0] != want {
			t.Errorf("type %d: arrived %v, %v", kind, got, err)
		}
	}
}

// TestPolicyTranslated has somebody translate addresses, as kube-proxy does. Host endpoints'
// egress policy is asked about where a packet really goes, workloads' about the workload, and
// preDNAT about what the packet said first.
func TestPolicyTranslated(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		w.lab.Run(t, "nft", `table ip services {
			chain prerouting { type nat hook prerouting priority dstnat; ip daddr 192.168.0.1 tcp dport { 30080, 30081 } dnat to 10.0.0.1:80; }
			chain output { type nat hook output priority -100; ip daddr 203.0.113.80 tcp dport 1 dnat to 10.0.0.1:80; ip daddr 203.0.113.81 tcp dport 1 dnat to 10.0.0.17:80; ip daddr 203.0.113.82 tcp dport 1 dnat to 10.0.0.17:81; }
		}`)
		must(t, w.engine.SetEndpoint(pod(0, "app=a")), w.engine.SetEndpoint(hostEndpoint("eth0")), w.engine.SetEndpoint(hostEndpoint("*")))
		must(t, w.engine.SetPolicy(global("out", "has(host)", policy.Egress, port(model.RuleAllow, 6, 81))))
		pre := global("pre", "has(host)", policy.Ingress, port(model.RuleDeny, 6, 30081))
		pre.PreDNAT, pre.ApplyOnForward = true, true
		must(t, w.engine.SetPolicy(pre))
		w.start(b)
		w.rig.InSync()
		w.flush()
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
			p := w.packet(false, 6, c.from, c.to, c.port)
			p.Out = c.out
			wrong, err := w.lab.Check([]trace.Packet{p}, []bool{c.want})
			if err != nil {
				t.Fatal(err)
			}
			if len(wrong) > 0 {
				t.Errorf("%s: arrived %v", p, !c.want)
			}
		}
	})
}

// TestPolicyTunnels lets the node's encapsulated packets pass host endpoints that allow nothing.
func TestPolicyTunnels(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		must(t, w.engine.SetEndpoint(hostEndpoint("*")))
		w.start(b)
		w.rig.InSync()
		w.flush()
		in, out := w.packet(false, 17, "outside", "host", 4789), w.packet(false, 17, "host", "outside", 4789)
		through := w.packet(false, 17, "host", "outside", 4790)
		check := func(what string, want bool) {
			t.Helper()
			wrong, err := w.lab.Check([]trace.Packet{in, out, through}, []bool{want, want, false})
			if err != nil || len(wrong) > 0 {
				t.Fatalf("%s: %v, %v", what, wrong, err)
			}
		}
		check("no VXLAN", false)
		w.rig.SetEncapsulation(model.EncapGuard{VXLANPort: 4789}, model.EncapGuard{})
		w.settle()
		check("VXLAN", true)
		w.rig.SetEncapsulation(model.EncapGuard{}, model.EncapGuard{})
		w.settle()
		check("no VXLAN any more", false)
	})
}

// TestPolicyCounters counts what rules met.
func TestPolicyCounters(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		must(t, w.engine.SetEndpoint(pod(0, "app=a")))
		many := port(model.RuleAllow, 6)
		for i := range 40 { // more than one rule of iptables can hold
			many.Destination.Ports = append(many.Destination.Ports, model.RulePort{First: 1000 + 2*i, Last: 1000 + 2*i})
		}
		must(t, w.engine.SetPolicy(global("many", "all()", policy.Ingress, port(model.RuleDeny, 6, 9), many)))
		w.start(b)
		w.rig.InSync()
		w.flush()
		w.expect("ports", "outside > pod0:9 no", "outside > pod0:1000 yes", "outside > pod0:1078 yes", "outside > pod0:1040 yes", "outside > pod0:1041 no")
		got, err := w.rig.Counters(t.Context())
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
	})
}
