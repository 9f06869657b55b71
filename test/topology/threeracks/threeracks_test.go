// Package threeracks runs the topology of three racks on three subnets whose routers know
// nothing of pods. The pools' modes are changed while it runs, and what the packets look
// like is seen on the routers' links. The scenarios are numbered; each leaves the fabric as
// it found it.
package threeracks

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// fabric is the topology with a pod on every node.
type fabric struct {
	*scenario.Fabric
	ipip   bool                 // the kernel has IPIP
	before map[string]footprint // of each node, before its first agent
}

func TestThreeRacks(t *testing.T) {
	f := &fabric{Fabric: scenario.Up(t, "three-racks", func(o *lab.Options) { o.NoAgents = true })}
	f.ipip = kernelHasIPIP(t, f.Node("outside"))
	f.before = footprints(t, f)
	for _, n := range f.Agents() {
		if err := n.Start(scenario.Context(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, 1)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *fabric)
	}{
		{"01 VXLAN CrossSubnet", func(t *testing.T, f *fabric) { f.inMode(t, vxlanCross) }},
		{"02 VXLAN Always", func(t *testing.T, f *fabric) { f.inMode(t, vxlanAlways) }},
		{"03 VXLAN for IPv4 alone", func(t *testing.T, f *fabric) { f.inMode(t, vxlan4) }},
		{"04 IPIP CrossSubnet", func(t *testing.T, f *fabric) { f.inMode(t, ipipCross) }},
		{"05 IPIP Always", func(t *testing.T, f *fabric) { f.inMode(t, ipipAlways) }},
		{"06 VXLAN without BGP", withoutBGP},
		{"07 one pool encapsulated, another routed", mixed},
		{"08 pools translate what leaves them", natOutgoing},
		{"09 encapsulated packets of nobody's", spoofed},
		{"10 modes change under load", changes},
		{"11 the agent is killed while modes change", killedInChange},
		{"12 an uplink's MTU changes", uplinkMTU},
		{"13 nothing is left of a node", lifeCycle},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

// kernelHasIPIP finds out by a device that no test needs. In a virtual machine with a stock
// kernel the answer must be yes.
func kernelHasIPIP(t *testing.T, n *lab.Node) bool {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	_, err := n.Exec(ctx, "ip", "link", "add", "probe", "type", "ipip", "remote", "192.0.2.1")
	if err != nil {
		if os.Getenv("CAUSEWAY_TEST_VM") != "" {
			t.Fatalf("a stock kernel has IPIP, this one does not: %v", err)
		}
		t.Logf("this kernel has no IPIP (%v): what needs it runs in the machine of make test-vm alone", err)
		return false
	}
	if _, err := n.Exec(ctx, "ip", "link", "delete", "probe"); err != nil {
		t.Fatal(err)
	}
	t.Log("this kernel has IPIP, and its scenarios run")
	return true
}

var families = []bool{false, true} // v6

// rackOf is "1" for n1a and n1b.
func rackOf(n *lab.Node) string { return n.Spec.Name[1:2] }

// addressOf is a node's address in the topology.
func addressOf(n *lab.Node, v6 bool) netip.Addr {
	host := 11 + int(n.Spec.Name[2]-'a')
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:50:%s::%d", rackOf(n), host))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.50.%s.%d", rackOf(n), host))
}

// gatewayOf is a node's router.
func gatewayOf(n *lab.Node, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:50:%s::1", rackOf(n)))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.50.%s.1", rackOf(n)))
}

// pod is the node's pod that lives as long as the fabric.
func (f *fabric) pod(node string) *lab.Pod { return f.Node(node).Pod(node + "-pod0") }

// addPods makes pods of one name on nodes, for this scenario.
func (f *fabric) addPods(t *testing.T, name string, o lab.PodOptions, nodes ...string) []*lab.Pod {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	var out []*lab.Pod
	for _, n := range nodes {
		p, err := f.Node(n).AddPod(ctx, n+"-"+name, o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func deletePods(t *testing.T, pods []*lab.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := p.Node().DeletePod(scenario.Context(t, time.Minute), p.Name); err != nil {
			t.Error(err)
		}
	}
}

// talk waits until the pods reach each other wherever the mode has a way: IPv6 that is not
// encapsulated ends at the rack.
func (f *fabric) talk(t *testing.T, m mode, pods ...*lab.Pod) {
	t.Helper()
	scenario.Eventually(t, 20*time.Second, "pings", func() error {
		for _, from := range pods {
			var to []traffic.Endpoint
			for _, p := range pods {
				for _, v6 := range families {
					same := rackOf(p.Node()) == rackOf(from.Node())
					if p != from && (same || m.of(v6).when != "Never") {
						to = append(to, traffic.Endpoint{Space: p, Addrs: []netip.Addr{p.Address(v6)}})
					}
				}
			}
			got := traffic.PingAll(t.Context(), []traffic.Endpoint{{Space: from}}, to, traffic.PingConfig{})
			if failed := got.Failed(); len(got) == 0 || len(failed) > 0 {
				return fmt.Errorf("%d of %d pairs:\n%s", len(failed), len(got), failed)
			}
		}
		return nil
	})
}

// manifests are the folder that all nodes read.
func (f *fabric) manifests() operator.Manifests { return operator.ManifestsOf(f.Fabric) }
