package watch_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	ipamkube "github.com/causeway-net/causeway/ipam/kube"
)

const allBlocks = "ipamblocks.projectcalico.org of all nodes"

// recorder notes the requests that pass it.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
	next http.RoundTripper
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.seen = append(r.seen, req)
	r.mu.Unlock()
	return r.next.RoundTrip(req)
}

// of returns the Accept headers of requests for a resource, by their field selectors.
func (r *recorder) of(resource string) map[string][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string][]string{}
	for _, req := range r.seen {
		if strings.HasSuffix(req.URL.Path, "/"+resource) && req.URL.Query().Get("labelSelector") == "" {
			s := req.URL.Query().Get("fieldSelector")
			out[s] = append(out[s], req.Header.Get("Accept"))
		}
	}
	return out
}

func recorded(cfg *rest.Config) (*rest.Config, *recorder) {
	r := &recorder{}
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		r.next = next
		return r
	})
	return cfg, r
}

// blockStore is the store of a node's ipam.
func blockStore(t *testing.T, node string) *ipamkube.Store {
	t.Helper()
	s, err := ipamkube.New(ipamkube.Config{Clients: clients(t, server.Config), Node: node, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// claim makes a block of a node, in which lent has an address unless it is empty.
func claim(t *testing.T, cidr, node, lent string) *ipam.Block {
	t.Helper()
	b := ipam.NewBlock(netip.MustParsePrefix(cidr), node, time.Now())
	if lent != "" {
		hold(b, 2, lent)
	}
	if err := blockStore(t, node).Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func hold(b *ipam.Block, i int, node string) {
	b.Slots[i] = ipam.Slot{Handle: "k8s-pod-network.c", Attrs: map[string]string{ipam.AttrNode: node}}
	var rest []int
	for _, n := range b.Unallocated {
		if n != i {
			rest = append(rest, n)
		}
	}
	b.Unallocated = rest
}

func hasBlocks(want ...model.Block) func(*model.Snapshot) bool {
	return func(s *model.Snapshot) bool { return s.BlocksKnown && reflect.DeepEqual(s.Blocks, want) }
}

func lentBlock(cidr, node string, lent ...model.Loan) model.Block {
	return model.Block{CIDR: netip.MustParsePrefix(cidr), Node: node, Lent: lent}
}

// TestAllBlocks: the blocks of all nodes are watched, as metadata alone, while a pool's
// vxlanMode is not Never, and what they say is what their owners' ipam writes.
func TestAllBlocks(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+poolObject("p", "10.244.0.0/16"))
	claim(t, "10.244.0.0/30", "n1", "")
	theirs := claim(t, "10.244.0.4/30", "n2", "n3")
	own, loan := lentBlock("10.244.0.0/30", "n1"), model.Loan{Addr: netip.MustParseAddr("10.244.0.6"), Node: "n3"}
	cfg, requests := recorded(server.Config)
	r := start(t, cfg)
	r.await("its own block", hasBlocks(own))
	if _, ok := r.watching(allBlocks); ok || len(requests.of("ipamblocks")[""]) > 0 {
		t.Errorf("all blocks are watched without need: %v", requests.of("ipamblocks"))
	}

	patch(t, "ippools", "p", `{"spec":{"vxlanMode":"CrossSubnet"}}`)
	r.await("all blocks", hasBlocks(own, lentBlock("10.244.0.4/30", "n2", loan)))
	asked := requests.of("ipamblocks")[""]
	if len(asked) == 0 {
		t.Error("nobody asked for all blocks")
	}
	for _, accept := range asked {
		if !strings.Contains(accept, "as=PartialObjectMetadata") {
			t.Errorf("all blocks were asked for as %q", accept)
		}
	}

	// Their pods come and go, and mean nothing here; a loan does, and a new block.
	before := r.published()
	ctx, s2 := t.Context(), blockStore(t, "n2")
	hold(theirs, 1, "n2")
	if err := s2.Update(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	claim(t, "10.244.0.8/30", "n3", "")
	s := r.await("a new block", hasBlocks(own, lentBlock("10.244.0.4/30", "n2", loan), lentBlock("10.244.0.8/30", "n3")))
	if n := r.published(); n != before+1 || len(s.Problems) != 0 {
		t.Errorf("%d snapshots for one change that means something; %v", n-before, s.Problems)
	}
	hold(theirs, 3, "n3")
	if err := s2.Update(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	more := model.Loan{Addr: netip.MustParseAddr("10.244.0.7"), Node: "n3"}
	r.await("another loan", hasBlocks(own, lentBlock("10.244.0.4/30", "n2", loan, more), lentBlock("10.244.0.8/30", "n3")))
	remove(t, "ipamblocks", "", "10-244-0-8-30")
	r.await("a block less", hasBlocks(own, lentBlock("10.244.0.4/30", "n2", loan, more)))

	// A disabled pool's pods live on, and so do the routes to them.
	patch(t, "ippools", "p", `{"spec":{"disabled":true}}`)
	r.await("the disabled pool", func(s *model.Snapshot) bool { return s.Pools[0].Disabled && len(s.Blocks) == 2 })
	patch(t, "ippools", "p", `{"spec":{"vxlanMode":"Never"}}`)
	r.await("its own block alone", hasBlocks(own))
	eventually(t, "the watch's end", func() bool { _, ok := r.watching(allBlocks); return !ok }, r.logged)
	patch(t, "ippools", "p", `{"spec":{"vxlanMode":"Always"}}`)
	r.await("all blocks again", hasBlocks(own, lentBlock("10.244.0.4/30", "n2", loan, more)))
}

// TestMendedBlocks: a block that is written without its annotation, or past it, is what it
// was until its owner mends it.
func TestMendedBlocks(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+strings.Replace(poolObject("p", "10.244.0.0/16"), "blockSize: 30", "blockSize: 30, vxlanMode: Always", 1))
	claim(t, "10.244.0.0/30", "n2", "")
	apply(t, blockYAML(0, 4, "n2", "")) // as Calico writes it
	a, b := lentBlock("10.244.0.0/30", "n2"), lentBlock("10.244.0.4/30", "n2")
	mend := func() {
		t.Helper()
		if _, err := ipam.Collect(blockStore(t, "n2").List(context.Background(), ipam.Query{Owner: "n2"})); err != nil {
			t.Fatal(err)
		}
	}
	field := ".metadata.annotations[" + blockroutes.Annotation + "]: "
	r := start(t, server.Config)
	s := r.await("the block that nobody can tell", func(s *model.Snapshot) bool {
		return hasProblem(s, field+"is missing, or cannot be read, of 1: 10-244-0-4-30")
	})
	if s.BlocksKnown || !reflect.DeepEqual(s.Blocks, []model.Block{a}) {
		t.Errorf("known %v, %v", s.BlocksKnown, s.Blocks)
	}
	mend()
	s = r.await("both blocks", hasBlocks(a, b))
	if len(s.Problems) != 0 {
		t.Error(s.Problems)
	}
	patch(t, "ipamblocks", "10-244-0-0-30", `{"metadata":{"annotations":null}}`)
	s = r.await("the problem", func(s *model.Snapshot) bool {
		return hasProblem(s, field+"is missing, or cannot be read, of 1: 10-244-0-0-30")
	})
	if !hasBlocks(a, b)(s) {
		t.Errorf("what was known is lost: known %v, %v", s.BlocksKnown, s.Blocks)
	}
	mend()
	r.await("its end", func(s *model.Snapshot) bool { return len(s.Problems) == 0 && hasBlocks(a, b)(s) })
	// A hand gives the block to another node; its owner is now who mends it.
	patch(t, "ipamblocks", "10-244-0-0-30", `{"spec":{"affinity":"host:n3"}}`)
	r.await("the stale annotation", func(s *model.Snapshot) bool {
		return hasProblem(s, field+"is older than the block of 1: 10-244-0-0-30") && hasBlocks(a, b)(s)
	})
	if _, err := ipam.Collect(blockStore(t, "n3").List(context.Background(), ipam.Query{Owner: "n3"})); err != nil {
		t.Fatal(err)
	}
	r.await("the new owner", hasBlocks(lentBlock("10.244.0.0/30", "n3"), b))
}

// TestOtherNodes: of other Nodes only metadata is asked for, and a heartbeat is small.
func TestOtherNodes(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+nodeObject("n2", "10.0.0.2")+nodeObject("n3", "10.0.0.3"))
	patch(t, "v1/nodes", "n3", `{"metadata":{"annotations":{"projectcalico.org/IPv4Address":null}}}`)
	for _, n := range []string{"n1", "n3"} {
		patch(t, "v1/nodes", n, `{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.9"}]}}`, "status")
	}
	cfg, requests := recorded(server.Config)
	r := start(t, cfg)
	s := r.await("all nodes", func(s *model.Snapshot) bool { return len(s.Nodes) == 3 })
	if s.Node("n2").IPv4 != netip.MustParsePrefix("10.0.0.2/24") || s.Node("n2").Labels["rack"] != "r1" {
		t.Errorf("%+v", s.Node("n2"))
	}
	if s.Node("n3").IPv4.IsValid() {
		t.Errorf("%+v: its agent has not yet said which address it is reached at", s.Node("n3"))
	}
	for selector, accepts := range requests.of("nodes") {
		for _, accept := range accepts {
			if strings.Contains(accept, "as=PartialObjectMetadata") != (selector == "metadata.name!=n1") {
				t.Errorf("Nodes of %q were asked for as %q", selector, accept)
			}
		}
	}
	patch(t, "v1/nodes", "n2", `{"metadata":{"annotations":{"projectcalico.org/IPv4IPIPTunnelAddr":"10.244.0.9"}}}`)
	r.await("a tunnel", func(s *model.Snapshot) bool {
		return s.Node("n2").Tunnels[model.TunnelIPIP].Addr == netip.MustParseAddr("10.244.0.9")
	})
	before := r.published()
	patch(t, "v1/nodes", "n2", `{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"2026-01-01T00:00:00Z"}]}}`, "status")
	remove(t, "v1/nodes", "", "n3")
	r.await("a Node less", func(s *model.Snapshot) bool { return len(s.Nodes) == 2 })
	if n := r.published(); n != before+1 {
		t.Errorf("%d snapshots for one Node that went", n-before)
	}
}

// TestMetadataSize measures what an event costs on the wire, in full and as metadata.
func TestMetadataSize(t *testing.T) {
	installed(t)
	b := ipam.NewBlock(netip.MustParsePrefix("10.244.0.0/26"), "node-17.rack-3.example.net", time.Now())
	for i := range b.Slots {
		b.Slots[i] = ipam.Slot{Handle: fmt.Sprintf("k8s-pod-network.%064x", i), Attrs: map[string]string{
			ipam.AttrNode: "node-17.rack-3.example.net", ipam.AttrPod: fmt.Sprintf("frontend-5d4f8c7b9-%05d", i), ipam.AttrNamespace: "default", ipam.AttrTimestamp: time.Now().String(),
		}}
	}
	b.Unallocated = nil
	if err := blockStore(t, "node-17.rack-3.example.net").Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	apply(t, nodeObject("n2", "10.0.0.2"))
	var images []string
	for i := range 50 { // as many as kubelet names
		images = append(images, fmt.Sprintf(`{"names":["registry.example.net/team/image-%02d@sha256:%064x","registry.example.net/team/image-%02d:v1.2.3"],"sizeBytes":123456789}`, i, i, i))
	}
	c := clients(t, server.Config)
	if _, err := c.Core.CoreV1().Nodes().Patch(t.Context(), "n2", types.MergePatchType, []byte(`{"status":{"images":[`+strings.Join(images, ",")+`]}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	size := func(path, accept string) int {
		t.Helper()
		body, err := c.Core.CoreV1().RESTClient().Get().AbsPath(path).SetHeader("Accept", accept).Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		return len(body)
	}
	const meta = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	block, blockMeta := size("/apis/projectcalico.org/v3/ipamblocks/10-244-0-0-26", "application/json"), size("/apis/projectcalico.org/v3/ipamblocks/10-244-0-0-26", meta)
	node, nodeMeta := size("/api/v1/nodes/n2", "application/vnd.kubernetes.protobuf"), size("/api/v1/nodes/n2", meta)
	t.Logf("a block of 64 addresses in use: %d bytes in full, %d as metadata; a Node with 50 images: %d and %d", block, blockMeta, node, nodeMeta)
	if blockMeta*5 > block || nodeMeta*3 > node {
		t.Error("metadata save too little")
	}
}
