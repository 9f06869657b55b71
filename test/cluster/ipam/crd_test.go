package ipam_test

import (
	"context"
	"errors"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-net/causeway/ipam"
)

// TestCRDGone deletes the CRD, and every block with it, under a running agent. While it is
// away nobody can tell what became of a block; when it is back the blocks of living pods are
// claimed again.
func TestCRDGone(t *testing.T) {
	ready(t)
	snap := snapshot(1, pool(t, "p", "10.9.0.0/24", 26))
	s := store(t, name(0))
	a := allocator(t, name(0), s, snap)
	ep, err := a.Assign(t.Context(), request("c1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	b := all(t, ipam.Query{})[0]

	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	meta := clients(t).Metadata.Resource(crds)
	if err := meta.Delete(context.Background(), "ipamblocks.projectcalico.org", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the CRD is gone", func() bool {
		_, err := meta.Get(context.Background(), "ipamblocks.projectcalico.org", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	eventually(t, "its API is gone", func() bool {
		_, err := ipam.Collect(s.List(context.Background(), ipam.Query{}))
		return err != nil
	})
	for what, err := range map[string]error{
		"get":    func() error { _, err := s.Get(t.Context(), b.CIDR); return err }(),
		"update": s.Update(t.Context(), b.Clone()),
		"delete": s.Delete(t.Context(), b.Clone()),
		"create": s.Create(t.Context(), newBlock("10.9.0.128/26", name(0))),
	} {
		for _, known := range []error{ipam.ErrNotFound, ipam.ErrExists, ipam.ErrConflict} {
			if err == nil || errors.Is(err, known) {
				t.Errorf("%s without the CRD: %v", what, err)
			}
		}
	}
	if err := a.Flush(t.Context(), true); err == nil {
		t.Error("the agent's blocks are up to date without the CRD")
	}
	ready(t)
	eventually(t, "the block is claimed again", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if a.Flush(ctx, true) != nil {
			return false
		}
		b, err := s.Get(ctx, b.CIDR)
		return err == nil && b.Slots[b.Ordinal(ep.Addresses[0])].Handle == "k8s-pod-network.c1"
	})
}
