package onesubnet

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// badManifests writes what is wrong, beside good manifests and over them.
func badManifests(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m, n1 := operator.ManifestsOf(f), f.Node("n1")
	pools, nodes, config := m.Read(t, "pools.yaml"), m.Read(t, "nodes.yaml"), m.Read(t, "bgp.yaml")
	inForce := func(st status.Status) string {
		b, err := json.Marshal(st.Pools)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	sessions := map[string]operator.Since{}
	for _, n := range f.Agents() {
		sessions[n.Name()] = operator.SinceOf(operator.Status(t, n))
	}
	want := inForce(operator.Status(t, n1))
	for i, c := range []struct {
		name       string
		file, text string
		problem    []string
	}{
		{"an unknown field", "bad.yaml", pool("bad", "10.250.0.0/16", 26, "  blockSizes: 26\n"), []string{"bad.yaml", "blockSizes"}},
		{"host bits in a CIDR", "bad.yaml", pool("bad", "10.250.0.1/16", 26, ""), []string{"bad.yaml", ".spec.cidr", "10.250.0.0/16"}},
		{"a pool over another", "bad.yaml", pool("the-bad", "10.244.128.0/17", 26, ""), []string{"the-bad", ".spec.cidr", "pods-ipv4"}},
		{"a word where a number belongs", "bad.yaml", strings.Replace(pool("bad", "10.250.0.0/16", 26, ""), "26", "many", 1), []string{"bad.yaml", "blockSize"}},
		{"no YAML", "bad.yaml", "apiVersion: projectcalico.org/v3\nkind: IPPool\n  metadata: [\n", []string{"bad.yaml"}},
		{"an unknown kind", "bad.yaml", "apiVersion: projectcalico.org/v3\nkind: IPPol\nmetadata: {name: bad}\n", []string{"bad.yaml", "IPPol"}},
		{"one bad document of two", "bad.yaml", "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: bad}\nspec: {peerIP: nowhere, asNumber: 1}\n---\n" +
			"apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: good}\nspec: {reservedCIDRs: [10.244.255.255/32]}\n", []string{"bad.yaml", "peerIP", "nowhere"}},
		{"a truncated file", "pools.yaml", pools[:strings.Index(pools, "fd00")+3], []string{"pools.yaml"}},
		{"a truncated file of nodes", "nodes.yaml", nodes[:strings.Index(nodes, "name: n2")+len("name")], []string{"nodes.yaml"}},
		{"a good object made bad", "pools.yaml", strings.Replace(pools, "10.244.0.0/16", "10.244.0.1/16", 1), []string{"pools.yaml", ".spec.cidr"}},
		{"a bad AS number", "bgp.yaml", strings.Replace(config, "64512", "0", 1), []string{"bgp.yaml", ".spec.asNumber"}},
	} {
		m.Write(t, c.file, c.text)
		for _, n := range f.Agents() {
			st := operator.Await(t, 10*time.Second, n, c.name+" is reported", func(st status.Status) error { return operator.Problem(st, c.problem...) })
			if got := inForce(st); got != want {
				t.Errorf("%s: %s: pools are %s, were %s", c.name, n, got, want)
			}
		}
		out, err := n1.Exec(ctx, "causewayctl", "problems")
		if err != nil || !strings.Contains(out, "Not in force") {
			t.Errorf("%s: causewayctl problems: %v\n%s", c.name, err, out)
		}
		p, err := n1.AddPod(ctx, fmt.Sprintf("meanwhile%d", i), lab.PodOptions{})
		if err != nil {
			t.Errorf("%s: ADD: %v", c.name, err)
		} else {
			deletePods(t, ctx, p)
		}
		switch c.file {
		case "pools.yaml":
			m.Write(t, c.file, pools)
		case "nodes.yaml":
			m.Write(t, c.file, nodes)
		case "bgp.yaml":
			m.Write(t, c.file, config)
		default:
			m.Remove(t, c.file)
		}
		for _, n := range f.Agents() {
			operator.Await(t, 10*time.Second, n, "no problem after "+c.name, operator.NoProblems)
		}
	}
	for _, n := range f.Agents() {
		sessions[n.Name()].Undisturbed(t, operator.Status(t, n))
	}
	f.PodsTalk(t, 10*time.Second)
}
