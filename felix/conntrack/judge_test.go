package conntrack_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/felixtest"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// flow is one of TCP, sent on by a Service when first is given.
func flow(from, to, first string) *conntrack.Flow {
	f := &conntrack.Flow{Protocol: model.ProtocolTCP, Source: ap(from), Destination: ap(to), First: ap(to), ReplyTo: ap(from)}
	if first != "" {
		f.First = ap(first)
	}
	return f
}

// rules are an engine and the Judge of what it says.
type rules struct {
	*policy.Engine
	*conntrack.Judge
}

func (r *rules) flush(t *testing.T) conntrack.Concern {
	t.Helper()
	c, err := r.Apply(r.Flush())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *rules) pod(t *testing.T, name, link, addr string, sources ...netip.Prefix) {
	t.Helper()
	err := r.SetEndpoint(model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: name}, Interface: link,
		Labels: map[string]string{"app": name}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, AllowedSources: sources})
	if err != nil {
		t.Fatal(err)
	}
}

// only lets a pod be reached by another one alone, at one port.
func only(name, peer string, port int) model.Policy {
	return model.Policy{ID: model.PolicyID{Kind: model.PolicyNamespaced, Namespace: "red", Name: name}, Tier: model.TierDefault,
		Subject: model.Subject{Selector: fmt.Sprintf("app == %q", name)}, ForIngress: true,
		Ingress: []model.Rule{{Action: model.RuleAllow, Protocol: model.ProtocolTCP, Source: model.EntityRule{Selector: fmt.Sprintf("app == %q", peer)},
			Destination: model.EntityRule{Ports: []model.RulePort{{First: port, Last: port}}}}}}
}

func newRules(t *testing.T) *rules {
	r := &rules{policy.New(policy.Config{}), conntrack.NewJudge(func(a netip.Addr) string {
		if a == netip.MustParseAddr("192.0.2.77") { // what db may send from
			return "cali2"
		}
		return "eth0"
	})}
	r.SetNamespace(model.Namespace{Name: "red"})
	r.SetHost(model.HostPolicy{EndpointToHost: model.EndpointToHostDrop})
	r.pod(t, "web", "cali1", "10.0.0.1")
	r.pod(t, "db", "cali2", "10.0.0.2", netip.MustParsePrefix("192.0.2.64/26"))
	if err := r.SetPolicy(only("db", "web", 5432)); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerdict(t *testing.T) {
	r := newRules(t)
	if c := r.flush(t); !c.All {
		t.Errorf("the first delta concerns %+v, want all", c)
	}
	host := func(f *conntrack.Flow) *conntrack.Flow { f.FromHost = true; return f }
	toHost := func(f *conntrack.Flow) *conntrack.Flow { f.ToHost = true; return f }
	type want struct {
		f *conntrack.Flow
		v conntrack.Verdict
	}
	check := func(all map[string]want) {
		t.Helper()
		for name, w := range all {
			if got := r.Verdict(w.f); got != w.v {
				t.Errorf("%s (%s): verdict %d, want %d", name, w.f, got, w.v)
			}
		}
	}
	check(map[string]want{
		"allowed":                    {flow("10.0.0.1:999", "10.0.0.2:5432", ""), conntrack.Pass},
		"by a Service":               {flow("10.0.0.1:999", "10.0.0.2:5432", "10.96.0.1:80"), conntrack.Pass},
		"another port behind it":     {flow("10.0.0.1:999", "10.0.0.2:81", "10.96.0.1:5432"), conntrack.Cut},
		"another port":               {flow("10.0.0.1:5432", "10.0.0.2:999", ""), conntrack.Cut},
		"another peer":               {flow("10.0.0.3:999", "10.0.0.2:5432", ""), conntrack.Cut},
		"the other way":              {flow("10.0.0.2:999", "10.0.0.1:80", ""), conntrack.Pass},
		"host to its pod":            {host(flow("10.9.0.1:999", "10.0.0.2:81", "")), conntrack.Pass},
		"host to its pod, Service":   {host(flow("10.9.0.1:999", "10.0.0.2:81", "10.96.0.1:80")), conntrack.Pass},
		"pod to its host":            {toHost(flow("10.0.0.1:999", "10.9.0.1:80", "")), conntrack.Cut},
		"nobody's":                   {flow("10.7.0.1:999", "10.7.0.2:80", ""), conntrack.Pass},
		"the host's own":             {host(flow("10.9.0.1:999", "10.7.0.2:80", "")), conntrack.Pass},
		"an address that db may use": {toHost(flow("192.0.2.77:999", "10.9.0.1:80", "")), conntrack.Cut},
		"one that is elsewhere":      {toHost(flow("192.0.2.78:999", "10.9.0.1:80", "")), conntrack.Pass},
	})

	// A host endpoint, which lets nobody in but at one port before Services are translated.
	err := r.SetEndpoint(model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: "h"}, Interface: "eth0",
		Labels: map[string]string{"host": "yes"}, Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	if c := r.flush(t); !c.All {
		t.Errorf("a host endpoint concerns %+v, want all", c)
	}
	err = r.SetPolicy(model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: "h"}, Tier: model.TierDefault, Subject: model.Subject{Selector: "has(host)"},
		ForIngress: true, PreDNAT: true, ApplyOnForward: true, Ingress: []model.Rule{{Action: model.RuleDeny, Protocol: model.ProtocolTCP,
			Destination: model.EntityRule{Ports: []model.RulePort{{First: 30000, Last: 30000}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	r.flush(t)
	check(map[string]want{
		"NodePort that is closed":    {flow("10.7.0.1:999", "10.0.0.1:80", "10.9.0.1:30000"), conntrack.Cut},
		"NodePort that is open":      {flow("10.7.0.1:999", "10.0.0.1:80", "10.9.0.1:30001"), conntrack.Pass},
		"a pod's own way to it":      {flow("10.0.0.2:999", "10.0.0.1:80", "10.9.0.1:30000"), conntrack.Pass},
		"host to its pod, once more": {host(flow("10.9.0.1:999", "10.0.0.2:81", "")), conntrack.Pass},
	})

	// The pod goes, and with it what forbade its flows.
	r.RemoveEndpoint(model.PolicyEndpointID{Kind: model.EndpointHost, Name: "h"})
	r.RemoveEndpoint(model.PolicyEndpointID{Namespace: "red", Name: "db"})
	if c := r.flush(t); !c.All {
		t.Errorf("a host endpoint that goes concerns %+v, want all", c)
	}
	check(map[string]want{"gone": {flow("10.0.0.3:999", "10.0.0.2:5432", ""), conntrack.Pass}})

	// A delta that does not fit.
	if _, err := r.Apply(&policy.Delta{GoneEndpoints: []string{"cali9"}}); err == nil {
		t.Error("no error for an endpoint that goes and was not there")
	}
	check(map[string]want{"lost": {flow("10.0.0.3:999", "10.0.0.1:5432", ""), conntrack.Leave}})
	if _, err := r.Apply(&policy.Delta{}); err == nil {
		t.Error("no error after a delta was lost")
	}
	r.Reset()
	if _, err := r.Apply(r.Whole()); err != nil {
		t.Error(err)
	}
	check(map[string]want{"found again": {flow("10.0.0.3:999", "10.0.0.1:5432", ""), conntrack.Pass}})
}

// TestConcern: who is judged again after which change.
func TestConcern(t *testing.T) {
	r := newRules(t)
	r.pod(t, "db", "cali2", "10.0.0.2") // sends from its own address only
	r.flush(t)
	step := func(name string, want ...string) {
		t.Helper()
		c := r.flush(t)
		var got []string
		for _, a := range c.Addrs {
			got = append(got, a.String())
		}
		if c.All || !slices.Equal(got, want) {
			t.Errorf("%s concerns %+v, want %v", name, c, want)
		}
	}
	step("nothing")
	r.pod(t, "web2", "", "10.0.0.3")
	step("a pod elsewhere that nobody selects")
	if err := r.SetEndpoint(model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "web2"},
		Labels: map[string]string{"app": "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.3")}}); err != nil {
		t.Fatal(err)
	}
	step("a pod that becomes selected", "10.0.0.2")
	if err := r.SetPolicy(only("web", "db", 80)); err != nil {
		t.Fatal(err)
	}
	step("a policy", "10.0.0.1")
	if err := r.SetPolicy(only("web", "db", 80)); err != nil {
		t.Fatal(err)
	}
	step("the same policy")
	if err := r.SetPolicy(only("web", "db", 81)); err != nil {
		t.Fatal(err)
	}
	step("another port", "10.0.0.1")
	r.pod(t, "new", "cali3", "10.0.0.4")
	step("a new pod", "10.0.0.4")
	r.RemoveEndpoint(model.PolicyEndpointID{Namespace: "red", Name: "new"})
	step("a pod that goes")
}

// TestConcernWalk changes random clusters: wherever the verdict on a flow becomes another
// one, the change says that one of its ends is concerned; but not of flows of a workload that
// is gone.
func TestConcernWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	became, narrow := 0, 0
	for cluster := range uint64(12) {
		g, trial := felixtest.NewGenerator(seed+cluster), felixtest.NewTrial()
		j := conntrack.NewJudge(func(netip.Addr) string { return "eth0" })
		change := func(c felixtest.Change) conntrack.Concern {
			if err := trial.Change(c); err != nil {
				t.Fatal(err)
			}
			n, err := j.Apply(trial.Engine.Flush())
			if err != nil {
				t.Fatalf("seed %d: %s: %v", seed+cluster, c, err)
			}
			return n
		}
		for _, c := range g.Start() {
			change(c)
		}
		for range 25 {
			flows := make([]conntrack.Flow, 80)
			before := make([]conntrack.Verdict, len(flows))
			for i := range flows {
				p := g.Packet()
				f := conntrack.Flow{Protocol: p.Protocol, Source: netip.AddrPortFrom(p.Src, p.SrcPort), Destination: netip.AddrPortFrom(p.Dst, p.DstPort),
					ICMPType: p.ICMPType, ICMPCode: p.ICMPCode, FromHost: p.In == "", ToHost: p.Out == ""}
				f.First, f.ReplyTo = f.Destination, f.Source
				if p.FirstDst.IsValid() {
					f.First = netip.AddrPortFrom(p.FirstDst, p.FirstDstPort)
				}
				flows[i], before[i] = f, j.Verdict(&f)
			}
			c := g.Next()
			was := owned(trial)
			n := change(c)
			there := owned(trial)
			gone := func(a netip.Addr) bool { return was[a] && !there[a] }
			for i := range flows {
				f := &flows[i]
				v := j.Verdict(f)
				if v == before[i] || v == conntrack.Leave {
					continue
				}
				became++
				if !n.All {
					narrow++
				}
				src, dst := f.Source.Addr(), f.Destination.Addr()
				if v == conntrack.Pass && (gone(src) || gone(dst) || !there[src] && !there[dst]) {
					continue
				}
				if !n.All && !slices.Contains(n.Addrs, src) && !slices.Contains(n.Addrs, dst) {
					t.Fatalf("seed %d: %s makes verdict %d of %s %d, and concerns %v", seed+cluster, c, before[i], f, v, n.Addrs)
				}
			}
		}
	}
	t.Logf("%d verdicts became others, %d by changes that do not concern all", became, narrow)
	if narrow == 0 {
		t.Error("no verdict became another")
	}
}

// owned are the addresses of workloads.
func owned(trial *felixtest.Trial) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, e := range trial.Engine.Whole().Endpoints {
		for _, a := range e.Addresses {
			out[a] = true
		}
	}
	return out
}

// TestRoute of a node with pods.
func TestRoute(t *testing.T) {
	n := newNode(t)
	for addr, want := range map[string]string{
		podAddr(false, 1).String(): "cali1", podAddr(true, 2).String(): "cali2", hostAddr(false, 0).String(): "", "198.51.100.1": "",
	} {
		if got := n.table.Route(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: interface %q, want %q", addr, got, want)
		}
	}
}
