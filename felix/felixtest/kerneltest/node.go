package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// Running is a backend as the agent has it, at work.
type Running interface {
	Backend
	SetEncapsulation(v4, v6 model.EncapGuard)
	Counters(ctx context.Context) ([]policy.Counter, error)
	// Known is how many interfaces have the rules of an earlier agent still.
	Known() int
	// Stop ends it and leaves in the kernel what stands there.
	Stop()
}

// Start makes a backend in a Lab and runs it until Stop or the test's end. known are
// interfaces that an earlier one made rules for.
type Start func(t testing.TB, l *Lab, known ...string) Running

// NodePods is how many pods a Node has.
const NodePods = 4

// Node is a Lab with an engine: pods cali0 to cali3 in namespace red, 10.0.0.1 to .4 and fd00::1 to ::4.
type Node struct {
	*testing.T
	Lab     *Lab
	Engine  *policy.Engine
	Backend Running // nil before Start
}

// NewNode makes a Node whose host lets pods reach it, port 22 of it always, and port 53 of anybody.
func NewNode(t *testing.T) *Node {
	t.Helper()
	c := RandomConfig()
	for i := range NodePods {
		for _, a := range podAddrs(i) {
			c.Routes[netip.PrefixFrom(a, a.BitLen())] = fmt.Sprintf("cali%d", i)
		}
	}
	n := &Node{T: t, Lab: New(t, c)}
	n.Forget()
	return n
}

// Forget makes the engine one that knows of no pod and no policy. Two policies in a row are enough for it to
// have them asked by port.
func (n *Node) Forget() {
	n.Engine = policy.New(policy.Config{FanLeast: 2})
	n.Engine.SetNamespace(model.Namespace{Name: "red"})
	n.Engine.SetHost(model.HostPolicy{
		FailsafeIn: []model.FailsafePort{{Protocol: 6, Port: 22}}, FailsafeOut: []model.FailsafePort{{Protocol: 17, Port: 53}},
		EndpointToHost: model.EndpointToHostReturn,
	})
}

func podAddrs(i int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}
}

// Pod is a Node's pod with one label, "app=a".
func Pod(i int, label string) model.PolicyEndpoint {
	k, v, _ := strings.Cut(label, "=")
	return model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: fmt.Sprintf("pod%d", i)}, Labels: map[string]string{k: v},
		Addresses: podAddrs(i), Interface: fmt.Sprintf("cali%d", i)}
}

// HostEndpoint is one with the label host.
func HostEndpoint(iface string) model.PolicyEndpoint {
	return model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: "host-" + strings.Trim(iface, "*")}, Interface: iface,
		Labels: map[string]string{"host": "yes"}}
}

// Global makes a GlobalNetworkPolicy with rules of ingress or egress.
func Global(name, subject string, d policy.Direction, rules ...model.Rule) model.Policy {
	p := model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: name}, Tier: model.TierDefault, Order: 10, Subject: model.Subject{Selector: subject}}
	if d == policy.Ingress {
		p.ForIngress, p.Ingress = true, rules
	} else {
		p.ForEgress, p.Egress = true, rules
	}
	return p
}

// Port is a rule about destination ports of a protocol.
func Port(a model.RuleAction, protocol uint8, ports ...int) model.Rule {
	r := model.Rule{Action: a, Protocol: protocol}
	for _, p := range ports {
		r.Destination.Ports = append(r.Destination.Ports, model.RulePort{First: p, Last: p})
	}
	return r
}

// Must ends the test when there is an error.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Eventually polls until ok says nothing, 10 s at most.
func Eventually(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s := ok()
		if s == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Flush brings what the engine has into the kernel.
func (n *Node) Flush() {
	n.Helper()
	n.Backend.Apply(n.Engine.Flush())
	n.Settle()
}

// Settle waits for the kernel.
func (n *Node) Settle() {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 30*time.Second)
	defer cancel()
	if err := n.Backend.Wait(ctx); err != nil {
		n.Fatal(err)
	}
}

// Packet makes one by words: pod0, host, outside, or an address.
func (n *Node) Packet(v6 bool, protocol uint8, from, to string, dport int) trace.Packet {
	at := map[string][2]string{"host": {"192.168.0.1", "fd01::1"}, "outside": {"203.0.113.9", "2001:db8:9::9"}, "other": {"10.0.0.17", "fd00::11"}}
	for i := range NodePods {
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
	p.In, _ = n.Lab.Out(p.Src)
	p.Out, _ = n.Lab.Out(p.Dst)
	return p
}

// Expect sends TCP packets of both families, "pod0 > pod1:80 yes", and ends the test when any fares otherwise.
func (n *Node) Expect(what string, lines ...string) {
	n.Helper()
	var shots []trace.Packet
	var want []bool
	for _, l := range lines {
		f := strings.Fields(l)
		to, p, _ := strings.Cut(f[2], ":")
		port := 0
		fmt.Sscan(p, &port)
		for _, v6 := range []bool{false, true} {
			shots, want = append(shots, n.Packet(v6, 6, f[0], to, port)), append(want, f[3] == "yes")
		}
	}
	wrong, err := n.Lab.Check(shots, want)
	if err != nil {
		n.Fatal(err)
	}
	for _, i := range wrong {
		n.Errorf("%s: %s: arrived %v", what, shots[i], !want[i])
	}
	if n.Failed() {
		n.FailNow()
	}
}

// Large is an engine with policies and pods, 110 of them local, in 100 namespaces. Policies of
// its namespace hold for each pod: a hundredth of all.
func Large(t testing.TB, policies, pods int) *policy.Engine {
	e := policy.New(policy.Config{})
	e.SetHost(model.HostPolicy{EndpointToHost: model.EndpointToHostReturn})
	for i := range 100 {
		e.SetNamespace(model.Namespace{Name: fmt.Sprintf("ns%d", i), Labels: map[string]string{"ns": fmt.Sprint(i)}})
	}
	for i := range policies {
		p := model.Policy{ID: model.PolicyID{Kind: model.PolicyKubernetes, Namespace: fmt.Sprintf("ns%d", i%100), Name: fmt.Sprintf("p%d", i)},
			Tier: model.TierDefault, Order: model.KubernetesPolicyOrder, Subject: model.Subject{Selector: "all()"}, ForIngress: true}
		for j := range 4 {
			r := Port(model.RuleAllow, 6, 1000+i%20, 2000+j)
			r.Source.Selector = fmt.Sprintf("app == 'a%d'", (i+j)%50)
			p.Ingress = append(p.Ingress, r)
		}
		Must(t, e.SetPolicy(p))
	}
	for i := range pods {
		Must(t, e.SetEndpoint(LargePod(i, i%50)))
	}
	return e
}

// LargePod is pod i of a Large engine, with label app=a<app>. The first 110 are local.
func LargePod(i, app int) model.PolicyEndpoint {
	e := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: fmt.Sprintf("ns%d", i%100), Name: fmt.Sprintf("pod%d", i)},
		Labels: map[string]string{"app": fmt.Sprintf("a%d", app)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
	if i < 110 {
		e.Interface = LargeInterface(i)
	}
	return e
}

// LargeInterface is the interface of local pod i.
func LargeInterface(i int) string {
	return fmt.Sprintf("cali%011x", uint64(i+1)*0x9e3779b97f4a&0xfffffffffff)
}
