// Package routereflectors runs the topology with two route reflectors: four nodes on one
// subnet, the mesh off, sessions by labels. The scenarios are numbered; each leaves the
// fabric as it found it.
package routereflectors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
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

func TestRouteReflectors(t *testing.T) {
	f := scenario.Up(t, "route-reflectors")
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, podsPerNode)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *scenario.Fabric)
	}{
		{"01 sessions with reflectors only", sessions},
		{"02 pods talk", podsTalk},
		{"03 reflected routes lead to their owner", reflected},
		{"04 what is withdrawn goes everywhere", withdrawn},
		{"05 a reflector is gone for good", reflectorGone},
		{"06 both reflectors are killed and come back", bothKilled},
		{"07 a reflector becomes an ordinary client", relabelled},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

// addresses are the topology's, IPv4 first.
var addresses = map[string][]netip.Addr{
	"n1": {netip.MustParseAddr("10.20.0.11"), netip.MustParseAddr("fd00:20::11")},
	"n2": {netip.MustParseAddr("10.20.0.12"), netip.MustParseAddr("fd00:20::12")},
	"n3": {netip.MustParseAddr("10.20.0.13"), netip.MustParseAddr("fd00:20::13")},
	"n4": {netip.MustParseAddr("10.20.0.14"), netip.MustParseAddr("fd00:20::14")},
}

// topology says who has a session with whom.
var topology = map[string][]string{
	"n1": {"n2", "n3", "n4"},
	"n2": {"n1", "n3", "n4"},
	"n3": {"n1", "n2"},
	"n4": {"n1", "n2"},
}

var clusterID = netip.MustParseAddr("224.0.0.1")

func peersOf(nodes ...string) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		out = append(out, addresses[n]...)
	}
	return out
}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// awaitSessions waits until the nodes have the sessions of the topology.
func awaitSessions(t *testing.T, f *scenario.Fabric, topology map[string][]string) {
	t.Helper()
	for _, n := range f.Agents() {
		operator.Await(t, 30*time.Second, n, "sessions", func(st status.Status) error {
			if !st.Speaker.Synced {
				return errors.New("not all routes have come")
			}
			return operator.Established(st, peersOf(topology[n.Name()]...)...)
		})
	}
}

func sessions(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	awaitSessions(t, f, topology)
	for _, n := range f.Agents() {
		for _, p := range operator.Status(t, n).Peers {
			want := "clients-to-reflectors"
			if reflector(n.Name()) && slices.Contains(peersOf("n1", "n2"), p.Address) {
				want = "reflectors"
			}
			if p.Resource != want || p.ASN != 64512 {
				t.Errorf("%s: session with %s is of %q, AS %d; want %s", n, p.Address, p.Resource, p.ASN, want)
			}
			family := []string{"ipv4", "ipv6"}[index(p.Address.Is6())]
			if got, err := operator.Families(ctx, n, p.Address); err != nil || !slices.Equal(got, []string{family}) {
				t.Errorf("%s: session with %s carries %v, %v", n, p.Address, got, err)
			}
		}
	}
}

func reflector(node string) bool { return node == "n1" || node == "n2" }

func podsTalk(t *testing.T, f *scenario.Fabric) { f.PodsTalk(t, 20*time.Second) }

// reflected reads the speakers' tables and the kernels: what a reflector passed on still
// has the owner's next hop, and says who it is from and which cluster it crossed.
func reflected(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, v6 := range []bool{false, true} {
		blocks := map[netip.Prefix]string{} // owner
		for _, n := range f.Agents() {
			for _, b := range operator.BlocksOf(operator.Status(t, n), v6) {
				blocks[b] = n.Name()
			}
		}
		if len(blocks) != 4 {
			t.Fatalf("blocks: %v", blocks)
		}
		for _, n := range f.Agents() {
			scenario.Eventually(t, 15*time.Second, n.Name()+": routes", func() error { return directRoutes(ctx, n, v6, blocks) })
			rib, err := operator.RIB(ctx, n, v6)
			if err != nil {
				t.Fatal(err)
			}
			for block, owner := range blocks {
				if err := pathsAreRight(n.Name(), owner, rib[block], v6); err != nil {
					t.Errorf("%s: %s of %s: %v: %+v", n, block, owner, err, rib[block])
				}
			}
		}
	}
}

// pathsAreRight checks the paths that a node has of a block.
func pathsAreRight(node, owner string, paths []operator.Path, v6 bool) error {
	if node == owner {
		if len(paths) != 1 || paths[0].Neighbor.IsValid() {
			return errors.New("want its own path and nothing that came back")
		}
		return nil
	}
	from := map[netip.Addr]bool{}
	for _, p := range paths {
		from[p.Neighbor] = true
		if p.NextHop != addresses[owner][index(v6)] {
			return fmt.Errorf("next hop %s", p.NextHop)
		}
		if p.Neighbor == addresses[owner][index(v6)] && !reflector(owner) {
			if p.Originator.IsValid() || len(p.ClusterList) > 0 {
				return errors.New("a path that nobody reflected carries attributes of reflection")
			}
			continue
		}
		if reflector(node) {
			continue // reflectors pass nothing on to each other
		}
		if p.Originator != addresses[owner][0] || !slices.Equal(p.ClusterList, []netip.Addr{clusterID}) {
			return fmt.Errorf("originator %s, clusters %v", p.Originator, p.ClusterList)
		}
	}
	// A client hears of another client from both reflectors, and of a reflector from that
	// reflector and the other one. A reflector hears only owners: what the other reflector
	// passes on has its own cluster in it (RFC 4456, section 8).
	var want []netip.Addr
	switch i := index(v6); {
	case reflector(node):
		want = []netip.Addr{addresses[owner][i]}
	default:
		want = []netip.Addr{addresses["n1"][i], addresses["n2"][i]}
	}
	for _, a := range want {
		if !from[a] {
			return fmt.Errorf("no path from %s", a)
		}
	}
	if len(from) != len(want) {
		return fmt.Errorf("paths from %v, want %v", from, want)
	}
	return nil
}

// directRoutes returns nil when all blocks of others are routed to their owners.
func directRoutes(ctx context.Context, n *lab.Node, v6 bool, blocks map[netip.Prefix]string) error {
	rs, err := operator.RoutesOf(ctx, n, v6)
	if err != nil {
		return err
	}
	for block, owner := range blocks {
		if owner == n.Name() {
			err = rs.Via(block)
		} else {
			err = rs.Via(block, addresses[owner][index(v6)])
		}
		if err != nil {
			return fmt.Errorf("block of %s: %w", owner, err)
		}
	}
	return nil
}

// withdrawn gives n3 a pod with an address of n4's blocks, several times over: the route to
// it comes and goes at all nodes, although reflectors pass it on in two ways.
func withdrawn(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n3 := f.Node("n3")
	var want []netip.Addr
	for _, v6 := range []bool{false, true} {
		b := operator.BlocksOf(operator.Status(t, f.Node("n4")), v6)[0]
		last := b.Addr()
		for next := last; b.Contains(next); next = next.Next() {
			last = next
		}
		want = append(want, last)
	}
	for range 5 {
		if _, err := n3.AddPod(ctx, "borrower", lab.PodOptions{IPs: want}); err != nil {
			t.Fatal(err)
		}
		routed := func(present bool) {
			t.Helper()
			for _, n := range []*lab.Node{f.Node("n1"), f.Node("n2"), f.Node("n4")} {
				for i, v6 := range []bool{false, true} {
					single := netip.PrefixFrom(want[i], want[i].BitLen())
					scenario.Eventually(t, 10*time.Second, fmt.Sprintf("%s: a route to %s: %t", n, single, present), func() error {
						rs, err := operator.RoutesOf(ctx, n, v6)
						switch {
						case err != nil:
							return err
						case present:
							return rs.Via(single, addresses["n3"][i])
						case len(rs.At(single)) > 0:
							return fmt.Errorf("still there: %v", rs.At(single))
						}
						return nil
					})
				}
			}
		}
		routed(true)
		if err := n3.DeletePod(ctx, "borrower"); err != nil {
			t.Fatal(err)
		}
		routed(false)
	}
}

const restartTime = 4 * time.Second

// setRestartTime edits how long the peers of every node keep its routes after its death,
// and waits for the sessions that announce it.
func setRestartTime(t *testing.T, f *scenario.Fabric, peers string) {
	t.Helper()
	before := map[string]operator.Since{}
	for _, n := range f.Agents() {
		before[n.Name()] = operator.SinceOf(operator.Status(t, n))
	}
	operator.ManifestsOf(f).Write(t, "peers.yaml", peers)
	for _, n := range f.Agents() {
		operator.Await(t, 30*time.Second, n, "sessions with the new restart time", before[n.Name()].Anew)
	}
	awaitSessions(t, f, topology)
	f.PodsTalk(t, 15*time.Second)
}

// reflectorGone kills n1 and leaves it dead for longer than anybody keeps its routes:
// traffic between its clients goes on, traffic to its own pods ends.
func reflectorGone(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	n1, n3 := f.Node("n1"), f.Node("n3")
	peers := operator.ManifestsOf(f).Read(t, "peers.yaml")
	short := fmt.Sprintf("  maxRestartTime: %s\n", restartTime)
	setRestartTime(t, f, strings.Replace(peers, "---\n", short+"---\n", 1)+short)
	block := operator.BlocksOf(operator.Status(t, n1), false)[0]
	before := operator.SinceOf(operator.Status(t, n3))
	s := operator.StartStreams(ctx, t, f.Node("n3").Pods()[0], f.Node("n4").Pods()[0])
	if err := n1.Daemon("agent").Kill(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Agents()[1:] {
		scenario.Eventually(t, 30*time.Second, n.Name()+" drops the routes to the dead reflector's pods", func() error {
			rs, err := operator.RoutesOf(ctx, n, false)
			if err == nil && len(rs.At(block)) > 0 {
				err = fmt.Errorf("still there: %v", rs.At(block))
			}
			return err
		})
	}
	rib, err := operator.RIB(ctx, n3, false)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, paths := range rib {
		for _, p := range paths {
			if p.Neighbor == addresses["n1"][0] {
				t.Errorf("n3 keeps a path of the dead reflector to %s: %+v", prefix, p)
			}
		}
	}
	before.Undisturbed(t, operator.Status(t, n3), addresses["n1"]...)
	s.LostNothing(t)

	s = operator.StartStreams(ctx, t, f.Node("n3").Pods()[0], f.Node("n4").Pods()[0])
	if err := n1.Daemon("agent").Start(ctx); err != nil {
		t.Fatal(err)
	}
	awaitSessions(t, f, topology)
	reflected(t, f)
	s.LostNothing(t)
	setRestartTime(t, f, peers)
}

// bothKilled kills both reflectors and starts them again: their clients keep the routes
// meanwhile.
func bothKilled(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	awaitSessions(t, f, topology)
	n1, n2 := f.Node("n1"), f.Node("n2")
	s := operator.StartStreams(ctx, t, f.Node("n3").Pods()[0], f.Node("n4").Pods()[0])
	for _, n := range []*lab.Node{n1, n2} {
		if err := n.Daemon("agent").Kill(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*lab.Node{f.Node("n3"), f.Node("n4")} {
		operator.Await(t, 10*time.Second, n, "no session is up", func(st status.Status) error {
			if up := operator.SinceOf(st); len(up) > 0 {
				return fmt.Errorf("up: %v", up)
			}
			return nil
		})
	}
	for _, n := range []*lab.Node{n1, n2} {
		if err := n.Daemon("agent").Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	awaitSessions(t, f, topology)
	reflected(t, f)
	s.LostNothing(t)
	f.PodsTalk(t, 10*time.Second)
}

// relabelled takes the reflector's part from n2, and gives it back.
func relabelled(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	nodes := m.Read(t, "nodes.yaml")
	before := operator.SinceOf(operator.Status(t, f.Node("n3")))
	s := operator.StartStreams(ctx, t, f.Node("n3").Pods()[0], f.Node("n4").Pods()[0])
	const part = `metadata:
  name: n2
  labels:
    route-reflector: "true"
  annotations:
`
	m.Edit(t, "nodes.yaml", part, "metadata:\n  name: n2\n  annotations:\n")
	m.Edit(t, "nodes.yaml", "    projectcalico.org/IPv6Address: fd00:20::12/64\n    projectcalico.org/RouteReflectorClusterID: 224.0.0.1\n",
		"    projectcalico.org/IPv6Address: fd00:20::12/64\n")
	one := map[string][]string{"n1": {"n2", "n3", "n4"}, "n2": {"n1"}, "n3": {"n1"}, "n4": {"n1"}}
	awaitSessions(t, f, one)
	before.Undisturbed(t, operator.Status(t, f.Node("n3")), addresses["n2"]...)
	f.PodsTalk(t, 15*time.Second)
	m.Write(t, "nodes.yaml", nodes)
	awaitSessions(t, f, topology)
	before.Undisturbed(t, operator.Status(t, f.Node("n3")), addresses["n2"]...)
	reflected(t, f)
	s.LostNothing(t)
	f.PodsTalk(t, 10*time.Second)
}
