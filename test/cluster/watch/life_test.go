package watch_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch/file"
	"github.com/causeway-net/causeway/internal/watch/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

const nodeYAML = `
apiVersion: v1
kind: Node
metadata: {name: %s, labels: {rack: r1}, annotations: {projectcalico.org/IPv4Address: %s/24, other.example.org/a: b}}
---
`

func nodeObject(name, address string) string { return fmt.Sprintf(nodeYAML, name, address) }

func poolObject(name, cidr string) string { return fmt.Sprintf(poolYAML, name, cidr) }

// blockYAML is a /30 of 10.244.0.0/16.
func blockYAML(third, last int, affinity, labels string) string {
	return fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: IPAMBlock
metadata: {name: 10-244-%d-%d-30, labels: {%s}}
spec: {cidr: 10.244.%d.%d/30, affinity: "host:%s", allocations: [null, null, null, null], unallocated: [0, 1, 2, 3], attributes: [], strictAffinity: false}
---
`, third, last, labels, third, last, affinity)
}

const poolYAML = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: %s}
spec: {cidr: %s, blockSize: 30}
---
`

// TestLifeCycle creates, changes and deletes an object of every kind.
func TestLifeCycle(t *testing.T) {
	installed(t)
	r := start(t, server.Config)
	r.await("the first snapshot", func(s *model.Snapshot) bool { return len(s.Nodes) == 0 && len(s.Pools) == 0 })

	apply(t, nodeObject("n1", "10.0.0.1"))
	r.await("the Node", func(s *model.Snapshot) bool {
		n := s.Node("n1")
		return n != nil && n.IPv4 == netip.MustParsePrefix("10.0.0.1/24") && n.Labels["rack"] == "r1"
	})
	patch(t, "v1/nodes", "n1", `{"metadata":{"labels":{"rack":"r2"},"annotations":{"projectcalico.org/ASNumber":"65001"}}}`)
	r.await("its change", func(s *model.Snapshot) bool { n := s.Node("n1"); return n.ASN == 65001 && n.Labels["rack"] == "r2" })
	patch(t, "v1/nodes", "n1", `{"metadata":{"annotations":{"projectcalico.org/IPv4Address":null}}}`)
	patch(t, "v1/nodes", "n1", `{"status":{"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"fd00::1"},{"type":"InternalIP","address":"10.0.0.9"}]}}`, "status")
	r.await("its InternalIPs of both families", func(s *model.Snapshot) bool {
		n := s.Node("n1")
		return n.IPv4 == netip.MustParsePrefix("10.0.0.9/32") && n.IPv6 == netip.MustParsePrefix("fd00::1/128")
	})
	before := r.published()
	patch(t, "v1/nodes", "n1", `{"metadata":{"annotations":{"other.example.org/a":"c"}}}`)

	apply(t, poolObject("p", "10.244.0.0/16"))
	s := r.await("the pool", func(s *model.Snapshot) bool { return len(s.Pools) == 1 && !s.Pools[0].Disabled })
	if n := r.published(); n != before+1 {
		t.Errorf("%d snapshots for one change that means something", n-before)
	}
	if s.IPAM.MaxBlocksPerHost != 20 {
		t.Errorf("%+v", s.IPAM)
	}
	patch(t, "ippools", "p", `{"spec":{"disabled":true,"namespaceSelector":"team == 'a'"}}`)
	s = r.await("its change", func(s *model.Snapshot) bool { return s.Pools[0].Disabled })
	if s.Pools[0].NamespaceSelector == nil || hasProblem(s, "namespaceSelector") {
		t.Errorf("%+v\n%v", s.Pools[0], s.Problems)
	}

	apply(t, "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {name: default}\nspec: {strictAffinity: true, autoAllocateBlocks: true}")
	r.await("the IPAMConfiguration", func(s *model.Snapshot) bool { return s.IPAM.StrictAffinity })
	apply(t, "apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.244.9.0/24]}")
	r.await("the IPReservation", func(s *model.Snapshot) bool { return len(s.Reservations) == 1 })
	apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {asNumber: 65000, nodeToNodeMeshEnabled: false}")
	r.await("the BGPConfiguration", func(s *model.Snapshot) bool { return s.BGP.ASN == 65000 && !s.BGP.Mesh })
	apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec: {peerIP: 10.0.0.254, asNumber: 65100}")
	r.await("the BGPPeer", func(s *model.Snapshot) bool { return len(s.Peers) == 1 && s.Peers[0].ASN == 65100 })
	patch(t, "bgppeers", "tor", `{"spec":{"asNumber":65101}}`)
	r.await("its change", func(s *model.Snapshot) bool { return s.Peers[0].ASN == 65101 })

	blocks := func(want ...string) func(*model.Snapshot) bool {
		return func(s *model.Snapshot) bool {
			var got []string
			for _, b := range s.Blocks {
				got = append(got, b.CIDR.String()+"="+b.Node)
			}
			return slices.Equal(got, want)
		}
	}
	label := kube.BorrowerLabel("n1") + `: ""`
	apply(t, blockYAML(0, 0, "n1", "")+blockYAML(0, 4, "n2", "")+blockYAML(0, 8, "n2", label)+blockYAML(0, 12, "n1", label)+blockYAML(0, 16, "n1x", kube.BorrowerLabel("n2")+`: ""`))
	r.await("own blocks and those borrowed from", blocks("10.244.0.0/30=n1", "10.244.0.8/30=n2", "10.244.0.12/30=n1"))
	patch(t, "ipamblocks", "10-244-0-0-30", `{"spec":{"affinity":"host:n2"}}`)
	r.await("a block that went to another node", blocks("10.244.0.8/30=n2", "10.244.0.12/30=n1"))
	patch(t, "ipamblocks", "10-244-0-4-30", `{"spec":{"affinity":"host:n1"}}`)
	r.await("one that came", blocks("10.244.0.4/30=n1", "10.244.0.8/30=n2", "10.244.0.12/30=n1"))
	patch(t, "ipamblocks", "10-244-0-12-30", `{"spec":{"affinity":"host:n2"}}`)
	r.await("one that went and is still borrowed from", blocks("10.244.0.4/30=n1", "10.244.0.8/30=n2", "10.244.0.12/30=n2"))
	patch(t, "ipamblocks", "10-244-0-8-30", fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, kube.BorrowerLabel("n1")))
	remove(t, "ipamblocks", "", "10-244-0-12-30")
	r.await("one not borrowed from any more, and one deleted", blocks("10.244.0.4/30=n1"))

	for _, o := range [][2]string{{"ippools", "p"}, {"ipamconfigurations", "default"}, {"ipreservations", "r"}, {"bgpconfigurations", "default"}, {"bgppeers", "tor"}, {"ipamblocks", "10-244-0-4-30"}, {"v1/nodes", "n1"}} {
		remove(t, o[0], "", o[1])
	}
	r.await("nothing", func(s *model.Snapshot) bool {
		return len(s.Nodes)+len(s.Pools)+len(s.Reservations)+len(s.Peers)+len(s.Blocks) == 0 && s.BGP.ASN == 64512 && !s.IPAM.StrictAffinity
	})
	if st := r.Status(); !st.Synced || !st.Answering || st.Since.IsZero() || st.Revision != r.snapshot().Revision {
		t.Errorf("%+v", st)
	}
}

// TestLastValidVersion: an object that a laxer schema let through and nobody can read
// disables itself only, and its last valid version stays.
func TestLastValidVersion(t *testing.T) {
	installed(t)
	relaxCRD(t, "bgppeers")
	t.Cleanup(func() { clear(t) })
	apply(t, nodeObject("n1", "10.0.0.1")+`
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: a}
spec: {peerIP: 10.0.0.254, asNumber: 65100, keepaliveTime: 10s}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: b}
spec: {peerIP: 10.0.0.253, asNumber: 65100}
`)
	patch(t, "bgppeers", "b", `{"spec":{"keepaliveTime":"soon"}}`)
	r := start(t, server.Config)
	r.await("the peer beside one that was never valid", func(s *model.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].KeepaliveTime == 10*time.Second && hasProblem(s, "BGPPeer b: cannot be decoded")
	})
	patch(t, "bgppeers", "a", `{"spec":{"keepaliveTime":"later"}}`)
	s := r.await("the problem", func(s *model.Snapshot) bool { return hasProblem(s, "BGPPeer a: cannot be decoded") })
	if len(s.Peers) != 1 || s.Peers[0].KeepaliveTime != 10*time.Second || !hasProblem(s, "its last valid version stays in force") {
		t.Errorf("%+v\n%v", s.Peers, s.Problems)
	}
	patch(t, "bgppeers", "b", `{"spec":{"keepaliveTime":"7s"}}`)
	r.await("the other, mended", func(s *model.Snapshot) bool { return len(s.Peers) == 2 && s.Peers[1].KeepaliveTime == 7*time.Second })
	// The same name anew is another object.
	remove(t, "bgppeers", "", "a")
	apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: a}\nspec: {peerIP: 10.0.0.254, asNumber: 65100, keepaliveTime: never}")
	r.await("the other alone", func(s *model.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].Name == "b" && hasProblem(s, "BGPPeer a: cannot be decoded") && !hasProblem(s, "stays in force")
	})
}

// TestSameAsFile: the same manifests make the same snapshot, whichever the datastore.
func TestSameAsFile(t *testing.T) {
	installed(t)
	manifests := nodeObject("n1", "10.0.0.1") + nodeObject("n2", "10.0.0.2") + poolObject("p", "10.244.0.0/16") + strings.Replace(poolObject("q", "fd00:244::/48"), "blockSize: 30", "blockSize: 122", 1) + `
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 65000, nodeMeshPassword: {secretKeyRef: {name: bgp, key: mesh}}, prefixAdvertisements: [{cidr: 10.244.0.0/16, communities: ["65000:1"]}]}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.n1}
spec: {listenPort: 1790}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 10.0.0.254, asNumber: 65100, nodeSelector: rack == 'r1', password: {secretKeyRef: {name: bgp, key: tor}}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: others}
spec: {node: n2, peerIP: 10.0.0.253, asNumber: 65100, password: {secretKeyRef: {name: others, key: tor}}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: lost}
spec: {node: n1, peerIP: 10.0.0.252, asNumber: 65100, password: {secretKeyRef: {name: lost, key: tor}}}
---
apiVersion: projectcalico.org/v3
kind: IPAMConfiguration
metadata: {name: default}
spec: {strictAffinity: true, autoAllocateBlocks: true, maxBlocksPerHost: 7, ipCooldownSeconds: 30}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {natOutgoingExclusions: IPPoolsAndHostIPs, natPortRange: "32768:65535", iptablesNATOutgoingInterfaceFilter: eth+, bpfEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.n1}
spec: {natOutgoingAddress: 10.0.0.9, natPortRange: 0}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: r}
spec: {reservedCIDRs: [10.244.9.0/24, 10.244.8.1/32]}
---
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: kube-system}
data: {mesh: aHVudGVyMg==, tor: aHVudGVyMw==}
`
	block := blockYAML(0, 0, "n1", "")
	apply(t, manifests+"---\n"+block)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ipam/blocks"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"all.yaml": manifests, "ipam/blocks/10-244-0-0-30.yaml": strings.TrimSuffix(block, "---\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	published := make(chan *model.Snapshot, 16)
	f, err := file.New(file.Config{Dir: dir, Node: "n1", Log: slog.New(slog.DiscardHandler), Publish: func(s *model.Snapshot) { published <- s }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Run(t.Context()) }()
	want := <-published
	if len(want.Nodes) != 2 || len(want.Pools) != 2 || len(want.Blocks) != 1 || len(want.Peers) != 1 || want.BGP.MeshPassword != "hunter2" ||
		!want.Felix.NATExcludesHosts || want.Felix.NATOutgoingAddress.String() != "10.0.0.9" || want.Felix.NATPorts != (model.PortRange{}) || len(want.Problems) != 1 {
		t.Fatalf("the folder's: %+v", want)
	}
	r := start(t, server.Config)
	clean := func(s *model.Snapshot) model.Snapshot {
		c := *s
		c.Revision, c.Problems = 0, slices.Clone(s.Problems)
		for i := range c.Problems {
			c.Problems[i].Source = ""
		}
		c.Peers = slices.Clone(s.Peers)
		for i := range c.Peers {
			c.Peers[i].Created = time.Time{} // the folder's manifests name none
		}
		return c
	}
	r.await(fmt.Sprintf("the same as from the folder, %+v", clean(want)), func(s *model.Snapshot) bool { return reflect.DeepEqual(clean(s), clean(want)) })
	if n := r.published(); n != 1 {
		t.Errorf("%d snapshots were published before it was complete", n-1)
	}
	if strings.Contains(r.logged(), "hunter") {
		t.Error("a password is logged")
	}
}

// TestIgnoredKinds: objects that nothing acts on are told, by kind.
func TestIgnoredKinds(t *testing.T) {
	installed(t)
	r := start(t, server.Config)
	r.await("the first snapshot", func(s *model.Snapshot) bool { return true })
	for _, n := range []string{"d", "a", "c", "b"} {
		apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: "+n+"}\nspec: {exportV4: [{action: Accept}]}")
		if n == "d" {
			s := r.await("the first", func(s *model.Snapshot) bool {
				return hasProblem(s, "BGPFilter.projectcalico.org *: is not acted on yet: no route is filtered; there are 1: d")
			})
			if i := slices.IndexFunc(s.Problems, func(p model.Problem) bool { return !p.Ignored }); i >= 0 {
				t.Errorf("%v", s.Problems)
			}
		}
	}
	n := r.published()
	r2 := start(t, server.Config)
	r2.await("four, of which three are named", func(s *model.Snapshot) bool {
		return hasProblem(s, "there are 4: a, b, c, 1 more")
	})
	eventually(t, "the others", func() bool { w, _ := r.watching("bgpfilters.projectcalico.org"); return w.Objects == 4 }, r.logged)
	if r.published() != n {
		t.Errorf("each object of a kind that is not acted on makes a snapshot")
	}
	clear(t)
	r.await("none", func(s *model.Snapshot) bool { return len(s.Problems) == 0 })
}

// TestNarrow: what concerns other nodes does not arrive.
func TestNarrow(t *testing.T) {
	installed(t)
	p := newProxy(t)
	r := start(t, p.cfg)
	r.await("the first snapshot", func(s *model.Snapshot) bool { return true })
	pod := func(i int, node string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, namespace: default}\nspec: {nodeName: %s, containers: [{name: c, image: i}]}\n---\n", i, node)
	}
	settled := func() int64 { // the bytes received once nothing more comes
		var last int64
		since := time.Now()
		eventually(t, "silence", func() bool {
			if n := p.received.Load(); n != last {
				last, since = n, time.Now()
			}
			return time.Since(since) > 300*time.Millisecond
		}, r.logged)
		return last
	}
	before := settled()
	if n := p.accepted.Load(); n != 1 {
		t.Errorf("an agent opens %d connections", n)
	}
	var foreign strings.Builder
	for i := range 50 {
		foreign.WriteString(pod(i, "n2"))
		foreign.WriteString(blockYAML(1, 4*i, "n2", ""))
	}
	apply(t, foreign.String())
	// The connection's own frames and a kind that is not installed cost a little.
	if n := settled() - before; n > 4096 {
		t.Errorf("50 pods and 50 blocks of another node cost %d bytes", n)
	}
	for _, name := range []string{"pods of this node", "ipamblocks.projectcalico.org of this node", "ipamblocks.projectcalico.org borrowed from"} {
		if w, ok := r.watching(name); !ok || w.Objects != 0 || w.Synced.IsZero() {
			t.Errorf("%s: %+v", name, w)
		}
	}
	apply(t, pod(100, "n1")+blockYAML(2, 0, "n1", ""))
	r.await("the own block", func(s *model.Snapshot) bool { return len(s.Blocks) == 1 })
	eventually(t, "the own pod", func() bool { w, _ := r.watching("pods of this node"); return w.Objects == 1 }, r.logged)
	patch2 := `{"status":{"phase":"Succeeded"}}`
	if err := patchPodStatus(t, "default", "p100", patch2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of a finished pod", func() bool { w, _ := r.watching("pods of this node"); return w.Objects == 0 }, r.logged)
}

// TestLateCRDs: an agent that is there before the CRDs waits for them, and is not busy.
func TestLateCRDs(t *testing.T) {
	installed(t)
	removeCRDs(t)
	t.Cleanup(func() { // for whatever runs next
		if err := apiserver.Apply(t.Context(), server.Config, crds); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	r := start(t, server.Config)
	const problem = "CustomResourceDefinition ippools.projectcalico.org"
	eventually(t, "the problem in the log", func() bool { return strings.Contains(r.logged(), problem) }, r.logged)
	st := r.Status()
	if st.Synced || !st.Answering || r.snapshot() != nil {
		t.Errorf("without CRDs: %+v", st)
	}
	w, _ := r.watching("ippools.projectcalico.org")
	if !w.Synced.IsZero() || w.Failing == "" || w.FailingSince.IsZero() || w.Failures > 10 {
		t.Errorf("%+v", w)
	}
	if err := apiserver.Apply(t.Context(), server.Config, crds); err != nil {
		t.Fatal(err)
	}
	apply(t, poolObject("p", "10.244.0.0/16"))
	s := r.await("the pool", func(s *model.Snapshot) bool { return len(s.Pools) == 1 })
	if hasProblem(s, "CustomResourceDefinition") {
		t.Errorf("%v", s.Problems)
	}
	// A CRD that goes takes its objects with it, and says so when it is missed.
	removeCRDs(t, "ippools.projectcalico.org")
	r.await("no pool", func(s *model.Snapshot) bool { return len(s.Pools) == 0 })
}

// TestOldCRD: a CRD whose affinity cannot be selected is a problem that says what to do.
func TestOldCRD(t *testing.T) {
	installed(t)
	r := start(t, server.Config)
	r.await("the first snapshot", func(s *model.Snapshot) bool { return true })
	if err := setSelectable(t, nil); err != nil {
		t.Fatal(err)
	}
	old := start(t, server.Config, func(c *kube.Config) { c.Node = "n2" })
	eventually(t, "the refusal", func() bool { return strings.Contains(old.logged(), "make their fields selectable") }, old.logged)
	if old.snapshot() != nil {
		t.Error("a snapshot without blocks was published")
	}
	if err := apiserver.Apply(t.Context(), server.Config, crds); err != nil {
		t.Fatal(err)
	}
	old.await("the first snapshot", func(s *model.Snapshot) bool { return len(s.Problems) == 0 })
}

// impersonated is the configuration of a user without rights of its own.
func impersonated(cfg *rest.Config, user string) *rest.Config {
	out := rest.CopyConfig(cfg)
	out.Impersonate = rest.ImpersonationConfig{UserName: user}
	return out
}
