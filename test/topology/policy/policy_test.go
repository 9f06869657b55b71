// Package policy runs policies on the topology of one subnet: what is forbidden never passes,
// what is allowed never waits, with the agents, the kernel and the pods of a real node. Each
// scenario leaves the fabric as it found it. All run with iptables and with nftables.
package policy

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	harness "github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// starts is how often each backend's scenario 01 starts a pod; the longer tiers of CI ask for 1,000.
var starts = flag.Int("starts", 50, "how often a pod is started under default deny, with each backend")

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// backend is a way to bring policy into the kernel.
type backend struct {
	name  string
	felix string // the FelixConfiguration's spec, one line
}

func TestIPTables(t *testing.T) { run(t, backend{"iptables", "nftablesMode: Disabled"}) }

func TestNFTables(t *testing.T) { run(t, backend{"nftables", "nftablesMode: Enabled"}) }

// inKernel returns nil when this backend's rules are there, and the other's are not.
func (b backend) inKernel(ctx context.Context, n *lab.Node) error {
	chains, err := n.Exec(ctx, "iptables", "-S")
	if err != nil {
		return err
	}
	tables, err := n.Exec(ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	byIPTables, byNFTables := strings.Contains(chains, "-N cali-FORWARD"), strings.Contains(tables, " causeway\n")
	if byIPTables != (b.name == "iptables") || byNFTables != (b.name == "nftables") {
		return fmt.Errorf("rules in iptables: %t, in nftables: %t", byIPTables, byNFTables)
	}
	return nil
}

// fabric is the topology with the pods that live as long as it.
type fabric struct {
	*scenario.Fabric
	backend
	n1, n2 *lab.Node
	// target, of namespace shop on n1, is what the policies are for. Of namespace good are those
	// that they allow, of namespace bad those that they forbid, one of each on either node.
	target, good1, good2, bad1, bad2 *lab.Pod
	// marker, on n1, tells when the policies that were written are in force; see put.
	marker    *lab.Pod
	markerTap *probe.Tap
	version   version
}

// run has both backends run beside each other: most of the time they wait.
func run(t *testing.T, b backend) {
	t.Parallel()
	f := &fabric{Fabric: scenario.Up(t, "one-subnet", func(o *lab.Options) { o.NoAgents, o.Name = true, o.Name+"-"+b.name }), backend: b}
	f.n1, f.n2 = f.Node("n1"), f.Node("n2")
	nodes := f.manifests().Read(t, "nodes.yaml")
	f.manifests().Write(t, "nodes.yaml", nodes[:strings.LastIndex(nodes, "---")]) // without n3, which has no part in it
	f.felix(t, "")
	ctx := scenario.Context(t, time.Minute)
	for _, n := range []*lab.Node{f.n1, f.n2} {
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []struct {
		pod       **lab.Pod
		node      *lab.Node
		namespace string
	}{
		{&f.target, f.n1, "shop"}, {&f.good1, f.n1, "good"}, {&f.good2, f.n2, "good"}, {&f.bad1, f.n1, "bad"}, {&f.bad2, f.n2, "bad"}, {&f.marker, f.n1, "marker"},
	} {
		if err := p.node.AwaitCNI(ctx); err != nil {
			t.Fatal(err)
		}
		*p.pod = f.add(t, p.node, p.namespace+"-"+p.node.Name(), lab.PodOptions{Namespace: p.namespace})
		f.Pods = append(f.Pods, *p.pod)
	}
	f.PodsTalk(t, 30*time.Second)
	if err := b.inKernel(ctx, f.n1); err != nil {
		t.Fatalf("with %s: %v", b.felix, err)
	}
	f.markerTap = openTap(t, f.marker)
	f.write(t)
	f.closes(t, 10*time.Second, writtenPort) // no version opens it: from now on the marker marks
	for _, s := range []struct {
		name string
		run  func(*testing.T, *fabric)
	}{
		{"01 a pod is started under fire", startedUnderFire},
		{"02 policies change under traffic", changedUnderTraffic},
		{"03 a new deny cuts flows", flowsCut},
		{"04 the agent is killed under traffic", killed},
		{"05 the agent is killed in the middle of a change", killedInChange},
		{"06 what somebody flushed comes back", flushed},
		{"07 nobody speaks for another", spoofed},
		{"08 pods and their host", podsAndHost},
		{"09 bad policies disturb nothing", badPolicies},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

var families = []bool{false, true} // v6

// addrs are the addresses of pods.
func addrs(pods ...*lab.Pod) (out []netip.Addr) {
	for _, p := range pods {
		for _, a := range p.Addresses {
			out = append(out, a.Addr())
		}
	}
	return out
}

// nodeAddrs are those of a node of the topology.
func nodeAddrs(n *lab.Node) []netip.Addr {
	host := strings.TrimPrefix(n.Name(), "n")
	return []netip.Addr{netip.MustParseAddr("10.10.0.1" + host), netip.MustParseAddr("fd00:10:10::1" + host)}
}

// ofFamily is the address of one family.
func ofFamily(addrs []netip.Addr, v6 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (f *fabric) add(t *testing.T, n *lab.Node, name string, o lab.PodOptions) *lab.Pod {
	t.Helper()
	p, err := n.AddPod(scenario.Context(t, time.Minute), name, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (f *fabric) remove(t *testing.T, p *lab.Pod) {
	t.Helper()
	if err := p.Node().DeletePod(scenario.Context(t, time.Minute), p.Name); err != nil {
		t.Fatal(err)
	}
}

func (f *fabric) manifests() operator.Manifests { return operator.ManifestsOf(f.Fabric) }

// felix writes the FelixConfiguration: the backend, and what a scenario adds.
func (f *fabric) felix(t *testing.T, more string) {
	t.Helper()
	f.manifests().Write(t, "felix.yaml", "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec:\n  "+f.backend.felix+"\n"+more)
}

// policiesFile holds all policies of the scenarios.
const policiesFile = "policies.yaml"

// Ports of the marker: what each version of policiesFile opens, and what each opens that
// takes an object away.
const (
	writtenPort = 20000
	removedPort = 30000
)

// version is what policiesFile holds.
type version struct {
	written, removed uint16 // added to the ports
	objects          map[string]bool
}

var objectName = regexp.MustCompile(`(?m)^kind: (\w+)\nmetadata: \{name: ([\w.-]+)`)

// put writes policies in the place of all that were there, and returns how long it took until
// n1 had them in force: the last of the file lets a port of the marker's be reached which no
// version before it did. Where an object is gone that is believed later, and for all of
// the file at once; then another port must be closed.
func (f *fabric) put(t *testing.T, documents ...string) time.Duration {
	t.Helper()
	began := time.Now()
	gone := f.write(t, documents...)
	return f.inForce(t, gone, 10*time.Second, began)
}

// selected has a policy select the target at any time, which decides nothing: a pod that none selects has no rules
// of its own, and gets them a moment after those of others are in force.
var selected = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: last}\nspec: {order: 1000000000, defaultAction: Pass}\n---\n" +
	gnpIn("last", "last.selected", "ingress: [{action: Pass}]")

// write writes policies in the place of all that were there. It returns whether objects are
// gone with that.
func (f *fabric) write(t *testing.T, documents ...string) (gone bool) {
	t.Helper()
	now := version{f.version.written + 1, f.version.removed, map[string]bool{}}
	for _, m := range objectName.FindAllStringSubmatch(strings.Join(documents, ""), -1) {
		now.objects[m[1]+" "+m[2]] = true
	}
	for o := range f.version.objects {
		gone = gone || !now.objects[o]
	}
	if gone {
		now.removed++
	}
	opens := func(name string, port uint16) string {
		return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: marker}\nspec: {ingress: [{action: Allow, protocol: UDP, destination: {ports: [%d]}}]}\n", name, port)
	}
	documents = append(slices.Clone(documents), selected, opens(fmt.Sprintf("removed-%d", now.removed), removedPort+now.removed), opens("written", writtenPort+now.written), "")
	f.manifests().Write(t, policiesFile, strings.Join(documents, "---\n"))
	f.version = now
	return gone
}

// inForce waits until what was written last is in force, and returns how long that is
// after began.
func (f *fabric) inForce(t *testing.T, gone bool, within time.Duration, began time.Time) time.Duration {
	t.Helper()
	to := addrs(f.marker)
	port := writtenPort + f.version.written
	h := startHail(t, f.good1, 300, at(port, to...)...)
	defer h.Close()
	var took time.Duration
	for _, a := range to {
		scenario.Eventually(t, within, "the policies are in force", func() error {
			now := f.markerTap.Of(func(k probe.Kind) bool { return k.Dst == a && k.Port == port })
			if now.Count == 0 {
				return fmt.Errorf("nothing has come to port %d of %s", port, a)
			}
			took = max(took, now.First.Sub(began))
			return nil
		})
	}
	if !gone {
		return took
	}
	if last := f.closes(t, within, removedPort+f.version.removed-1); !last.IsZero() {
		took = max(took, last.Sub(began))
	}
	return took
}

// closes waits until a port of the marker's is closed, and returns when something arrived there last.
func (f *fabric) closes(t *testing.T, within time.Duration, port uint16) time.Time {
	t.Helper()
	h := startHail(t, f.good1, 1000, at(port, addrs(f.marker)...)...)
	defer h.Close()
	arrived := func() probe.Arrivals { return f.markerTap.Of(func(k probe.Kind) bool { return k.Port == port }) }
	scenario.Eventually(t, within, "what is not in the file any more is not in force", func() error {
		before := arrived().Count
		goOn(t, 60, h)
		if n := arrived().Count - before; n > 0 {
			return fmt.Errorf("%d packets have come to port %d", n, port)
		}
		return nil
	})
	return arrived().Last
}

// sets are the addresses of the pods of namespaces good and bad as policies on n1 can name them: in a
// folder a node knows no pods of others.
func (f *fabric) sets() string {
	return netSet("good", f.good1, f.good2) + "---\n" + netSet("bad", f.bad1, f.bad2)
}

func netSet(role string, pods ...*lab.Pod) string {
	var nets []string
	for _, a := range addrs(pods...) {
		nets = append(nets, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: %[1]s, labels: {role: %[1]s}}
spec: {nets: [%[2]s]}
`, role, quoted(nets))
}

func quoted(words []string) string { return `"` + strings.Join(words, `", "`) + `"` }

// onlyGood is the policy that most scenarios begin with: good pods reach the target, nobody
// else does.
func onlyGood(name string, order int) string {
	return fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: %s}
spec:
  order: %d
  selector: projectcalico.org/namespace == 'shop'
  types: [Ingress]
  ingress:
  - {action: Allow, source: {selector: role == 'good'}}
`, name, order)
}

// established waits until both nodes' sessions are up, all routes are in, and none is kept from
// before. An agent that is killed earlier, again, loses what its peers keep for it (RFC 4724,
// section 4.2).
func (f *fabric) established(t *testing.T) {
	t.Helper()
	ctx := scenario.Context(t, 2*time.Minute)
	for _, n := range []*lab.Node{f.n1, f.n2} {
		scenario.Eventually(t, time.Minute, "sessions", func() error {
			if err := harness.Established(ctx, n); err != nil {
				return err
			}
			for _, v6 := range families {
				rib, err := operator.RIB(ctx, n, v6)
				if err != nil {
					return err
				}
				for prefix, paths := range rib {
					for _, p := range paths {
						if p.Stale {
							return fmt.Errorf("%s has %s by %s from before", n, prefix, p.Neighbor)
						}
					}
				}
				if len(rib) < 2 {
					return fmt.Errorf("%s knows %d blocks", n, len(rib))
				}
			}
			return nil
		})
	}
}

// await waits until the agent of n1 says something.
func (f *fabric) await(t *testing.T, what string, done func(status.Status) error) {
	t.Helper()
	operator.Await(t, 10*time.Second, f.n1, what, done)
}
