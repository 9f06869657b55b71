package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// cluster is a cluster of namespaces with 100 pods and 10 policies each, of which 110 pods
// are local. Pods of one Deployment share their labels; unique gives each pod a label of its
// own, as StatefulSets do.
type cluster struct {
	namespaces int
	unique     bool
}

func (c cluster) pods() int { return c.namespaces * 100 }

func (c cluster) pod(n int) model.PolicyEndpoint {
	ns, i := n/100, n%100
	m := model.PolicyEndpoint{
		ID: model.PolicyEndpointID{Namespace: fmt.Sprint("ns-", ns), Name: fmt.Sprintf("web-%d-7d4b9c6f5-%05d", i%10, i)},
		Labels: map[string]string{"app": fmt.Sprint("app-", i%10), "tier": []string{"front", "back", "data"}[i%3],
			"pod-template-hash": fmt.Sprintf("%d-%d", ns, i%10), "team": fmt.Sprint("team-", ns%7)},
		ServiceAccount: "default",
		Addresses:      []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})},
		Ports:          []model.EndpointPort{{Name: "http", Protocol: model.ProtocolTCP, Port: 8080}},
	}
	if c.unique {
		m.Labels["apps.kubernetes.io/pod-index"] = fmt.Sprint(n)
	}
	if n*110%c.pods() < 110 {
		m.Interface = fmt.Sprintf("cali%011x", n)
	}
	return m
}

func (c cluster) policy(ns, i int) model.Policy {
	p := model.Policy{
		ID:   model.PolicyID{Kind: model.PolicyKubernetes, Namespace: fmt.Sprint("ns-", ns), Name: fmt.Sprint("allow-", i)},
		Tier: model.TierDefault, Order: model.KubernetesPolicyOrder, ForIngress: true, ForEgress: i%2 == 0,
	}
	p.Subject.Selector = fmt.Sprintf("app == %q", fmt.Sprint("app-", i%10))
	if i%5 == 0 {
		p.Subject.Selector = "all()"
	}
	http := []model.RulePort{{First: 80, Last: 80}, {First: 8000, Last: 8100}}
	p.Ingress = []model.Rule{
		{Action: model.RuleAllow, Protocol: model.ProtocolTCP, Source: model.EntityRule{Selector: fmt.Sprintf(`app == "app-%d" && tier in {"front", "back"}`, (i+1)%10)}, Destination: model.EntityRule{Ports: http}},
		{Action: model.RuleAllow, Protocol: model.ProtocolTCP, Source: model.EntityRule{Selector: `tier == "front"`, NamespaceSelector: fmt.Sprintf(`team == "team-%d"`, i%7)}, Destination: model.EntityRule{Ports: []model.RulePort{{Name: "http"}}}},
		{Action: model.RuleAllow, Source: model.EntityRule{Nets: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}, NotNets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.16.%d.0/24", ns))}}},
	}
	p.Egress = []model.Rule{
		{Action: model.RuleAllow, Protocol: model.ProtocolUDP, Destination: model.EntityRule{NamespaceSelector: `projectcalico.org/name == "ns-0"`, Selector: `app == "app-1"`, Ports: []model.RulePort{{First: 53, Last: 53}}}},
		{Action: model.RuleAllow, Destination: model.EntityRule{Selector: `tier == "data"`}},
	}
	return p
}

func (c cluster) load(tb testing.TB) *Engine {
	e := New(Config{})
	for ns := range c.namespaces {
		e.SetNamespace(model.Namespace{Name: fmt.Sprint("ns-", ns), Labels: map[string]string{"kubernetes.io/metadata.name": fmt.Sprint("ns-", ns), "team": fmt.Sprint("team-", ns%7)}})
	}
	for n := range c.pods() {
		if err := e.SetEndpoint(c.pod(n)); err != nil {
			tb.Fatal(err)
		}
	}
	for n := range 1000 {
		if err := e.SetPolicy(c.policy(n%c.namespaces, n/c.namespaces)); err != nil {
			tb.Fatal(err)
		}
	}
	return e
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

var sizes = []struct {
	name string
	cluster
}{
	{"1000 pods", cluster{10, false}}, {"10000 pods", cluster{100, false}}, {"10000 unlike pods", cluster{100, true}},
}

func BenchmarkLoad(b *testing.B) {
	for _, s := range sizes {
		b.Run(s.name, func(b *testing.B) {
			before := heap()
			var e *Engine
			var members int
			for b.Loop() {
				e = s.load(b)
				d := e.Flush()
				members = 0
				for _, x := range d.NewSets {
					members += len(x.Members)
				}
				if len(d.Endpoints) != 110 {
					b.Fatalf("%d endpoints", len(d.Endpoints))
				}
				b.ReportMetric(float64(len(d.Chains)), "chains")
				b.ReportMetric(float64(len(d.NewSets)), "sets")
			}
			b.ReportMetric(float64(members), "members")
			b.ReportMetric(float64(heap()-before)/1e6, "MB")
			runtime.KeepAlive(e)
		})
	}
}

// change measures one kind of change with its Flush: the mean, the median and the 99th
// percentile.
func change(b *testing.B, one func(b *testing.B, c cluster, e *Engine, n int)) {
	for _, s := range sizes {
		b.Run(s.name, func(b *testing.B) {
			e := s.load(b)
			e.Flush()
			var took []time.Duration
			nothing := 0
			for b.Loop() {
				start := time.Now()
				one(b, s.cluster, e, len(took))
				if e.Flush().Empty() {
					nothing++
				}
				took = append(took, time.Since(start))
			}
			if nothing > 97 {
				b.Fatalf("%d of %d changed nothing", nothing, len(took))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
		})
	}
}

func BenchmarkLabelChange(b *testing.B) {
	change(b, func(b *testing.B, c cluster, e *Engine, n int) {
		m := c.pod(n / 2 % 97)
		m.Labels["tier"] = []string{"none", "data"}[n%2]
		if err := e.SetEndpoint(m); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPodAddedAndRemoved(b *testing.B) {
	change(b, func(b *testing.B, c cluster, e *Engine, n int) {
		m := c.pod(n / 2 % 97)
		m.ID.Name, m.Interface, m.Labels["tier"] = "new", "", "data"
		m.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 255, 0, byte(n / 2 % 97)})}
		if n%2 == 1 {
			e.RemoveEndpoint(m.ID)
		} else if err := e.SetEndpoint(m); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPolicyChange(b *testing.B) {
	change(b, func(b *testing.B, c cluster, e *Engine, n int) {
		p := c.policy(0, 0)
		if n%2 == 0 {
			p.Ingress = p.Ingress[1:]
		}
		if err := e.SetPolicy(p); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkNamespaceRelabelled(b *testing.B) {
	change(b, func(b *testing.B, c cluster, e *Engine, n int) {
		e.SetNamespace(model.Namespace{Name: "ns-1", Labels: map[string]string{"team": fmt.Sprint("team-", n%2)}})
	})
}
