// Package onesubnet runs the topology of one subnet: three nodes, a full mesh of iBGP
// sessions, no router. The scenarios are numbered; each leaves the fabric as it found it.
package onesubnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

const podsPerNode = 2

func TestOneSubnet(t *testing.T) {
	f := scenario.Up(t, "one-subnet")
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, podsPerNode)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *scenario.Fabric)
	}{
		{"01 a full mesh of sessions in both families", fullMesh},
		{"02 pods talk", podsTalk},
		{"03 routes go directly to the owner", directRoutes},
		{"04 a deleted route comes back at once", deletedRoute},
		{"05 a foreign route is a conflict and stays", foreignRoute},
		{"06 rules that were flushed come back", flushedRules},
		{"07 a pod cannot send from another's address", spoofing},
		{"08 CHECK and GC see what is so", checkAndGC},
		{"09 a pool comes and goes", livePool},
		{"10 an address on request, borrowed from another node", borrowed},
		{"11 reserved addresses are not given out", reserved},
		{"12 nodes race for addresses", race},
		{"13 bad manifests disturb nothing", badManifests},
		{"14 a node is deleted and comes back", nodeDeleted},
		{"15 the mesh gets a password", meshPassword},
		{"16 an agent is gone for good", agentGone},
		{"17 a peer leads nodes' addresses astray", ledAstray},
		{"18 pools translate what leaves them", natOutgoing},
		{"19 DEL leaves nothing", delAll},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

// addresses are the topology's.
var addresses = map[string][]netip.Addr{
	"n1": {netip.MustParseAddr("10.10.0.11"), netip.MustParseAddr("fd00:10:10::11")},
	"n2": {netip.MustParseAddr("10.10.0.12"), netip.MustParseAddr("fd00:10:10::12")},
	"n3": {netip.MustParseAddr("10.10.0.13"), netip.MustParseAddr("fd00:10:10::13")},
}

var families = []bool{false, true} // v6

func addressOf(node string, v6 bool) netip.Addr {
	if v6 {
		return addresses[node][1]
	}
	return addresses[node][0]
}

// peersOf are the sessions of a full mesh between nodes, as node has them.
func peersOf(node string, nodes ...string) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		if n != node {
			out = append(out, addresses[n]...)
		}
	}
	return out
}

// meshed waits until these nodes have sessions with each other and nobody else.
func meshed(t *testing.T, f *scenario.Fabric, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		operator.Await(t, 30*time.Second, f.Node(n), "a full mesh", func(st status.Status) error {
			if !st.Speaker.Synced {
				return errors.New("not all routes have come")
			}
			return operator.Established(st, peersOf(n, nodes...)...)
		})
	}
}

func fullMesh(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	meshed(t, f, "n1", "n2", "n3")
	for _, n := range f.Agents() {
		for _, p := range operator.Status(t, n).Peers {
			if p.Resource != "mesh" || p.ASN != 64512 {
				t.Errorf("%s: session with %s is of %q, AS %d", n, p.Address, p.Resource, p.ASN)
			}
			want := "ipv4"
			if p.Address.Is6() {
				want = "ipv6"
			}
			if got, err := operator.Families(ctx, n, p.Address); err != nil || !slices.Equal(got, []string{want}) {
				t.Errorf("%s: session with %s carries %v, %v", n, p.Address, got, err)
			}
		}
	}
}

func podsTalk(t *testing.T, f *scenario.Fabric) { f.PodsTalk(t, 20*time.Second) }

// directRoutes reads every node's kernel: the blocks of others lead to their owner's
// address and nowhere else, the node's own end here.
func directRoutes(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	scenario.Eventually(t, 10*time.Second, "routes", func() error { return routesComplete(ctx, t, f, f.Agents()...) })
}

// routesComplete returns nil when nodes have exactly the routes that the blocks of all
// agents ask for. A prefix longer than a block (a pod) is not looked at.
func routesComplete(ctx context.Context, t *testing.T, f *scenario.Fabric, nodes ...*lab.Node) error {
	t.Helper()
	for _, n := range nodes {
		for _, v6 := range families {
			rs, err := operator.RoutesOf(ctx, n, v6)
			if err != nil {
				return err
			}
			expected := map[netip.Prefix]bool{}
			for _, owner := range f.Agents() {
				blocks := operator.BlocksOf(operator.Status(t, owner), v6)
				if len(blocks) == 0 {
					return fmt.Errorf("%s owns no block", owner)
				}
				for _, b := range blocks {
					expected[b] = true
					if owner.Name() == n.Name() {
						err = rs.Via(b)
					} else {
						err = rs.Via(b, addressOf(owner.Name(), v6))
					}
					if err != nil {
						return fmt.Errorf("%s: block of %s: %w", n, owner, err)
					}
				}
			}
			for _, r := range rs.Ours() {
				if !expected[r.Prefix] && !r.Prefix.IsSingleIP() {
					return fmt.Errorf("%s: a route to no block: %s", n, r)
				}
			}
		}
	}
	return nil
}

// blockOf is some block of a node that it holds pods in.
func blockOf(t *testing.T, n *lab.Node, v6 bool) netip.Prefix {
	t.Helper()
	pod := n.Pods()[0].Address(v6)
	for _, b := range operator.BlocksOf(operator.Status(t, n), v6) {
		if b.Contains(pod) {
			return b
		}
	}
	t.Fatalf("%s: %s is in no block", n, pod)
	return netip.Prefix{}
}

// nodeDeleted takes n3 out of the datastore: its sessions go, the others' stay up.
func nodeDeleted(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	nodes := m.Read(t, "nodes.yaml")
	before := operator.SinceOf(operator.Status(t, f.Node("n1")))
	block := blockOf(t, f.Node("n3"), false)
	at := indexOfDocument(t, nodes, "name: n3")
	m.Write(t, "nodes.yaml", nodes[:at])
	st := operator.Await(t, 15*time.Second, f.Node("n1"), "n3's sessions are gone", func(st status.Status) error {
		return operator.Established(st, peersOf("n1", "n1", "n2")...)
	})
	before.Undisturbed(t, st, addresses["n3"]...)
	scenario.Eventually(t, 10*time.Second, "n3's routes go with its sessions", func() error {
		rs, err := operator.RoutesOf(ctx, f.Node("n1"), false)
		if err == nil && len(rs.At(block)) > 0 {
			err = fmt.Errorf("still there: %v", rs.At(block))
		}
		return err
	})
	scenario.Eventually(t, 10*time.Second, "n3 says why it takes no pods", func() error {
		err := f.Node("n3").CNIStatus(ctx)
		if err == nil {
			return errors.New("STATUS says that it is ready")
		}
		if want := `no Node "n3"`; !contains(err, want) {
			return fmt.Errorf("STATUS says %w, want %q", err, want)
		}
		return nil
	})
	// Its pods go on, as far as they need nobody else (I4).
	n3 := f.Node("n3").Pods()
	for _, v6 := range families {
		if err := operator.Ping(ctx, n3[0], n3[1].Address(v6)); err != nil {
			t.Errorf("two pods of the node without a manifest: %v", err)
		}
	}
	m.Write(t, "nodes.yaml", nodes)
	meshed(t, f, "n1", "n2", "n3")
	before.Undisturbed(t, operator.Status(t, f.Node("n1")), addresses["n3"]...)
	directRoutes(t, f)
	f.PodsTalk(t, 10*time.Second)
}

const meshRestartTime = 4 * time.Second

// agentGone kills n3's agent and does not start it again: the others keep its routes for
// the restart time that it announced and not for longer (RFC 4724).
func agentGone(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 3*time.Minute)
	m := operator.ManifestsOf(f)
	n1, n3 := f.Node("n1"), f.Node("n3")
	before := operator.SinceOf(operator.Status(t, n1))
	config := m.Read(t, "bgp.yaml")
	m.Edit(t, "bgp.yaml", "  nodeToNodeMeshEnabled: true", fmt.Sprintf("  nodeToNodeMeshEnabled: true\n  nodeMeshMaxRestartTime: %s", meshRestartTime))
	operator.Await(t, 30*time.Second, n1, "sessions with the new restart time", before.Anew)
	meshed(t, f, "n1", "n2", "n3")
	f.PodsTalk(t, 10*time.Second)

	before = operator.SinceOf(operator.Status(t, n1))
	blocks := [2]netip.Prefix{blockOf(t, n3, false), blockOf(t, n3, true)}
	killed := time.Now()
	if err := n3.Daemon("agent").Kill(ctx); err != nil {
		t.Fatal(err)
	}
	operator.Await(t, 10*time.Second, n1, "the sessions with n3 are down", func(st status.Status) error {
		for _, a := range addresses["n3"] {
			if p, err := operator.Peer(st, a); err != nil || p.State == "Established" {
				return fmt.Errorf("%s is %s, %v", a, p.State, err)
			}
		}
		return nil
	})
	for i, v6 := range families {
		rs, err := operator.RoutesOf(ctx, n1, v6)
		if err != nil {
			t.Fatal(err)
		}
		if err := rs.Via(blocks[i], addressOf("n3", v6)); err != nil && time.Since(killed) < meshRestartTime {
			t.Errorf("with the session down: %v", err)
		}
	}
	if err := operator.Ping(ctx, n1.Pods()[0], n3.Pods()[0].Address(true)); err != nil && time.Since(killed) < meshRestartTime {
		t.Errorf("with the session down: %v", err)
	}
	for i, v6 := range families {
		var after time.Duration
		scenario.Eventually(t, 30*time.Second, "the routes are dropped", func() error {
			rs, err := operator.RoutesOf(ctx, n1, v6)
			after = time.Since(killed)
			if err == nil && len(rs.At(blocks[i])) > 0 {
				err = fmt.Errorf("still there: %v", rs.At(blocks[i]))
			}
			return err
		})
		t.Logf("%s was dropped %s after the kill", blocks[i], after.Round(time.Millisecond))
		if after < meshRestartTime-500*time.Millisecond {
			t.Errorf("%s was dropped %s after the kill, the restart time is %s", blocks[i], after, meshRestartTime)
		}
	}
	before.Undisturbed(t, operator.Status(t, n1), addresses["n3"]...)

	before = operator.SinceOf(operator.Status(t, n1))
	m.Write(t, "bgp.yaml", config)
	if err := n3.Daemon("agent").Start(ctx); err != nil {
		t.Fatal(err)
	}
	operator.Await(t, 30*time.Second, n1, "sessions with the default restart time", before.Anew)
	meshed(t, f, "n1", "n2", "n3")
	directRoutes(t, f)
	f.PodsTalk(t, 10*time.Second)
}

// meshPassword gives the mesh a password while it runs, and takes it away.
func meshPassword(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	n1, n2 := f.Node("n1"), f.Node("n2")
	before := operator.SinceOf(operator.Status(t, n1))
	config := m.Read(t, "bgp.yaml")

	const secret = "3f9-a-mesh-secret"
	secretYAML := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: mesh, namespace: kube-system}\nstringData: {password: %s}\n", secret)
	m.Restore(t, "mesh-secret.yaml")
	m.Write(t, "mesh-secret.yaml", secretYAML)
	m.Edit(t, "bgp.yaml", "  nodeToNodeMeshEnabled: true", "  nodeToNodeMeshEnabled: true\n  nodeMeshPassword: {secretKeyRef: {name: mesh, key: password}}")
	operator.Await(t, 30*time.Second, n1, "sessions with a password", before.Anew)
	meshed(t, f, "n1", "n2", "n3")
	for _, v6 := range families {
		operator.SignatureAsked(t, ctx, n1, n2, addressOf("n2", v6))
	}
	f.PodsTalk(t, 10*time.Second)
	operator.Hidden(t, ctx, n1, secret)

	// A Secret that is gone ends no session: the password stays in force, and that is said.
	before = operator.SinceOf(operator.Status(t, n1))
	m.Remove(t, "mesh-secret.yaml")
	operator.Await(t, 10*time.Second, n1, "the missing Secret is reported", func(st status.Status) error {
		return operator.Problem(st, "bgp.yaml", ".spec.nodeMeshPassword", "mesh")
	})
	for _, v6 := range families {
		operator.SignatureAsked(t, ctx, n1, n2, addressOf("n2", v6))
	}
	m.Write(t, "mesh-secret.yaml", secretYAML)
	operator.Await(t, 10*time.Second, n1, "nothing is reported any more", operator.NoProblems)
	meshed(t, f, "n1", "n2", "n3")
	before.Undisturbed(t, operator.Status(t, n1))
	operator.Hidden(t, ctx, n1, secret)

	before = operator.SinceOf(operator.Status(t, n1))
	m.Write(t, "bgp.yaml", config)
	operator.Await(t, 30*time.Second, n1, "sessions without a password", before.Anew)
	meshed(t, f, "n1", "n2", "n3")
	// Nothing of the password is left at the listener: everybody gets through again.
	for _, v6 := range families {
		if err := operator.Dial(ctx, n1, addressOf("n2", v6), 5*time.Second, 0); err != nil {
			t.Errorf("n1 without a password: %v", err)
		}
	}
}
