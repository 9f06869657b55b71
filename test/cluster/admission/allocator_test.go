package admission_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
)

// allocator is an agent's, with the token of its node.
func allocator(t *testing.T, c *kubeapi.Clients, node string, snap *model.Snapshot) *ipam.Allocator {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := kube.New(kube.Config{Clients: c, Node: node, Log: log})
	must(t, err)
	a, err := ipam.New(ipam.Config{
		Node: node, Store: store, JournalDir: t.TempDir(), Log: log, BlockIdle: 100 * time.Millisecond, Resync: 500 * time.Millisecond, SearchEvery: 50 * time.Millisecond,
	})
	must(t, err)
	a.Set(snap)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: Run: %v", node, err)
		}
		a.Close()
	})
	return a
}

// eventually polls until ok, or half a minute has passed.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("within 30 s not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestAllocators lets the agents' own code do all it does with blocks, each with the token
// of its node: claim, take, borrow, give back, let go. The pool has two blocks of four
// addresses; node1 wants six.
func TestAllocators(t *testing.T) {
	c := setUp(t)
	all, err := selector.Parse("all()")
	must(t, err)
	snap := &model.Snapshot{
		Pools: []model.Pool{{Name: "small", CIDR: netip.MustParsePrefix("10.77.0.0/29"), BlockSize: 30, NodeSelector: all, AllowedUses: []model.Use{model.UseWorkload}}},
		IPAM:  model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 1},
	}
	for _, n := range []string{own, other} {
		snap.Nodes = append(snap.Nodes, model.Node{Name: n, Labels: map[string]string{"kubernetes.io/hostname": n}})
	}
	first := allocator(t, c.agent, own, snap)
	second := allocator(t, agentClients(t, c.admin, other), other, snap)
	assign := func(a *ipam.Allocator, id string) error {
		_, err := a.Assign(t.Context(), model.AddressRequest{Key: model.AttachmentKey{ContainerID: id, IfName: "eth0"}, Network: "k8s-pod-network", Namespace: "default", Pod: "pod-" + id})
		return err
	}
	insist := func(a *ipam.Allocator, id string) {
		t.Helper()
		eventually(t, id+" has an address", func() bool {
			err := assign(a, id)
			if err != nil && !errors.Is(err, ipam.ErrExhausted) && !errors.Is(err, ipam.ErrNotReady) {
				t.Fatalf("%s: %v", id, err)
			}
			return err == nil
		})
	}
	insist(second, "b1")
	for i := range 6 {
		insist(first, fmt.Sprintf("a%d", i))
	}
	borrowed := func() int {
		list, err := c.adminBlocks.List(t.Context(), metav1.ListOptions{LabelSelector: kube.BorrowerLabel(own) + "=" + kube.BorrowerValue(own)})
		must(t, err)
		return len(list.Items)
	}
	if n := borrowed(); n != 1 {
		t.Errorf("node1 borrows in %d blocks, want 1", n)
	}
	release := func(a *ipam.Allocator, id string) {
		t.Helper()
		_, err := a.Release(t.Context(), id, "eth0")
		must(t, err)
	}
	for i := range 6 {
		release(first, fmt.Sprintf("a%d", i))
	}
	release(second, "b1")
	eventually(t, "node1 borrows nothing", func() bool { return borrowed() == 0 })

	// Without a pool the blocks are given back.
	empty := *snap
	empty.Pools = nil
	first.Set(&empty)
	second.Set(&empty)
	eventually(t, "all blocks are given back", func() bool {
		n := 0
		list, err := c.adminBlocks.List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, b := range list.Items {
			if netip.MustParsePrefix("10.77.0.0/29").Overlaps(netip.MustParsePrefix(b.Spec.CIDR)) {
				n++
			}
		}
		return n == 0
	})
	for _, a := range []*ipam.Allocator{first, second} {
		for _, p := range a.Problems() {
			t.Logf("problem: %v", p)
		}
	}
}
