package ipam_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
)

func TestCompareAndSwap(t *testing.T) {
	ready(t)
	ctx := t.Context()
	s, other := store(t, "n1"), store(t, "n2")
	b := newBlock("10.0.0.0/26", "n1")
	if err := s.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	for _, cidr := range []string{"10.0.0.0/26", "10.0.0.0/24", "10.0.0.32/28"} {
		if err := other.Create(ctx, newBlock(cidr, "n2")); !errors.Is(err, ipam.ErrExists) {
			t.Errorf("Create %s: %v, want ErrExists", cidr, err)
		}
	}
	if list := all(t, ipam.Query{}); len(list) != 1 {
		t.Fatalf("%d blocks are left, want 1", len(list))
	}
	theirs, err := other.Get(ctx, b.CIDR)
	if err != nil || !theirs.Equal(b) || theirs.Revision != b.Revision {
		t.Fatalf("Get: %+v %v", theirs, err)
	}
	if err := s.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if err := other.Update(ctx, theirs); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("stale Update: %v, want ErrConflict", err)
	}
	if err := other.Delete(ctx, theirs); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("stale Delete: %v, want ErrConflict", err)
	}
	// Without what the Store keeps beside a block it is read again first.
	bare := b.Clone()
	bare.Stored = nil
	if err := s.Update(ctx, bare); err != nil {
		t.Errorf("Update of a block that came another way: %v", err)
	}
	if err := s.Delete(ctx, bare); err != nil {
		t.Fatal(err)
	}
	again := newBlock("10.0.0.0/26", "n2")
	if err := other.Create(ctx, again); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(ctx, bare); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("Update of a namesake: %v, want ErrConflict", err)
	}
	if err := s.Delete(ctx, bare); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("Delete of a namesake: %v, want ErrConflict", err)
	}
	if err := other.Delete(ctx, again); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Update": s.Update(ctx, bare), "Delete": s.Delete(ctx, bare)} {
		if !errors.Is(err, ipam.ErrNotFound) {
			t.Errorf("%s of nothing: %v, want ErrNotFound", what, err)
		}
	}
	if _, err := s.Get(ctx, b.CIDR); !errors.Is(err, ipam.ErrNotFound) {
		t.Errorf("Get of nothing: %v, want ErrNotFound", err)
	}
}

// TestLists: a node finds its own blocks and those it borrows from, and the label of a
// borrower comes and goes with its addresses.
func TestLists(t *testing.T) {
	ready(t)
	ctx := t.Context()
	n1, n2, controller := store(t, "n1"), store(t, "n2"), store(t, "")
	for i := range 120 { // more than a page
		if err := n1.Create(ctx, newBlock(fmt.Sprintf("10.1.%d.%d/26", i/4, i%4*64), "n1")); err != nil {
			t.Fatal(err)
		}
	}
	theirs := newBlock("10.0.0.0/26", "n2")
	if err := n2.Create(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	cidrs := func(q ipam.Query) []string {
		var out []string
		for b, err := range n1.List(ctx, q) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b.CIDR.String())
		}
		return out
	}
	if got := cidrs(ipam.Query{}); len(got) != 121 {
		t.Errorf("%d blocks in all, want 121", len(got))
	}
	if got := cidrs(ipam.Query{Owner: "n1"}); len(got) != 120 {
		t.Errorf("n1 owns %d blocks, want 120", len(got))
	}
	if got := cidrs(ipam.Query{Owner: "n2"}); !slices.Equal(got, []string{"10.0.0.0/26"}) {
		t.Errorf("n2 owns %v", got)
	}
	for _, fresh := range []bool{true, false} {
		eventually(t, "all names", func() bool {
			got, err := n1.Claimed(ctx, fresh)
			return err == nil && len(got) == 121 && slices.Contains(got, netip.MustParsePrefix("10.0.0.0/26"))
		})
	}

	b, err := n1.Get(ctx, theirs.CIDR)
	if err != nil {
		t.Fatal(err)
	}
	b.Slots[3] = ipam.Slot{Handle: ipam.StashPrefix + "n1", Attrs: map[string]string{ipam.AttrNode: "n1"}}
	b.Slots[4] = ipam.Slot{Handle: "k8s.x", Attrs: map[string]string{ipam.AttrNode: "n3"}}
	b.Unallocated = slices.DeleteFunc(b.Unallocated, func(i int) bool { return i == 3 || i == 4 })
	if err := n1.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if got := cidrs(ipam.Query{Borrower: "n1"}); !slices.Equal(got, []string{"10.0.0.0/26"}) {
		t.Errorf("n1 borrows from %v", got)
	}
	labels := raw(t, "10-0-0-0-26").Labels
	if _, ok := labels[kube.BorrowerLabel("n1")]; !ok {
		t.Errorf("labels %v, want that of n1", labels)
	}
	if _, ok := labels[kube.BorrowerLabel("n3")]; ok {
		t.Errorf("labels %v: n1 speaks for n3", labels)
	}
	if b, err = controller.Get(ctx, theirs.CIDR); err != nil {
		t.Fatal(err)
	}
	if err := controller.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if labels := raw(t, "10-0-0-0-26").Labels; labels[kube.BorrowerLabel("n3")] != kube.BorrowerValue("n3") || len(labels) != 4 {
		t.Errorf("labels %v, want those of n1 and n3, and two of the block", labels)
	}
	for _, i := range []int{3, 4} {
		b.Slots[i], b.Unallocated = ipam.Slot{}, append(b.Unallocated, i)
	}
	if err := n2.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if labels := raw(t, "10-0-0-0-26").Labels; len(labels) != 4 {
		t.Errorf("labels %v: the owner does not speak for borrowers", labels)
	}
	if err := controller.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	if labels := raw(t, "10-0-0-0-26").Labels; len(labels) != 2 {
		t.Errorf("labels %v, want none of a borrower", labels)
	}
}

// TestKeepsTheRest: what Causeway has no use for in a block stays there.
func TestKeepsTheRest(t *testing.T) {
	ready(t)
	ctx := t.Context()
	const calico = `{"apiVersion":"projectcalico.org/v3","kind":"IPAMBlock",
	"metadata":{"name":"10-0-0-0-29","annotations":{"a":"1"},"labels":{"l":"2"},"finalizers":["example.com/f"]},
	"spec":{"cidr":"10.0.0.0/29","affinity":"host:n1","strictAffinity":true,"sequenceNumber":41,
	"sequenceNumberForAllocation":{"0":17,"1":18},"allocations":[0,1,2,null,null,null,null,null],"unallocated":[3,4,5,6,7],
	"attributes":[{"handle_id":"k8s.vm","secondary":{"node":"n1","pod":"vm"},"alternateOwnerAttrs":{"pod":"vm-2"}},
	{"handle_id":"k8s.old","secondary":{"node":"n1"}},{"secondary":{"note":"by hand"}}]}}`
	body, err := clients(t).V3.Post().Resource("ipamblocks").SetHeader("Content-Type", "application/json").Body([]byte(calico)).Do(ctx).Raw()
	if err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	t.Cleanup(func() {
		patch := []byte(`{"metadata":{"finalizers":null}}`)
		if err := clients(t).V3.Patch(types.MergePatchType).Resource("ipamblocks").Name("10-0-0-0-29").Body(patch).Do(t.Context()).Error(); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	s := store(t, "n1")
	b, err := s.Get(ctx, netip.MustParsePrefix("10.0.0.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	b.Slots[1] = ipam.Slot{}
	b.Slots[3] = ipam.Slot{Handle: "k8s.new", Attrs: map[string]string{ipam.AttrNode: "n1"}}
	b.Unallocated = []int{4, 5, 6, 7, 1}
	for range 2 { // the second with what the first one's answer said
		if err := s.Update(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	got := raw(t, "10-0-0-0-29")
	if got.Annotations["a"] != "1" || got.Labels["l"] != "2" || !slices.Equal(got.Finalizers, []string{"example.com/f"}) {
		t.Errorf("metadata: %+v", got.ObjectMeta)
	}
	text, _ := json.Marshal(got.Spec)
	if !got.Spec.StrictAffinity || got.Spec.SequenceNumber != 43 ||
		fmt.Sprint(got.Spec.SequenceNumberForAllocation) != "map[0:17 3:41]" ||
		got.Spec.Attributes[0].AlternateOwnerAttrs["pod"] != "vm-2" || got.Spec.Attributes[1].HandleID != nil ||
		fmt.Sprint(got.Spec.Unallocated) != "[4 5 6 7 1]" {
		t.Errorf("spec: %s", text)
	}
	if patch := []byte(`{"metadata":{"finalizers":null}}`); clients(t).V3.Patch(types.MergePatchType).Resource("ipamblocks").Name("10-0-0-0-29").Body(patch).Do(ctx).Error() != nil {
		t.Error("finalizer stays")
	}
}

// TestUnreadable: what is no block, or is half deleted, is left alone and stays claimed.
func TestUnreadable(t *testing.T) {
	ready(t)
	ctx := t.Context()
	c := clients(t)
	for name, spec := range map[string]string{
		"10-0-0-0-30":   `"cidr":"10.0.0.0/30","deleted":true`,
		"10-0-0-16-29":  `"cidr":"10.0.0.16/29","affinity":"host:n2"`, // too few allocations
		"10-0-0-32-30":  `"cidr":"10.0.0.32/30","affinity":"host:n1"`, // these two overlap
		"10-0-0-32-29":  `"cidr":"10.0.0.32/29","affinity":"host:n2"`,
		"10-0-0-128-30": `"cidr":"10.0.0.128/30","affinity":"host:n1"`,
	} {
		free, queue := "null,null,null,null", "0,1,2,3"
		if name == "10-0-0-32-29" {
			free, queue = free+","+free, queue+",4,5,6,7"
		}
		text := fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":"IPAMBlock","metadata":{"name":%q},"spec":{%s,"strictAffinity":false,"allocations":[%s],"unallocated":[%s],"attributes":[]}}`, name, spec, free, queue)
		if body, err := c.V3.Post().Resource("ipamblocks").SetHeader("Content-Type", "application/json").Body([]byte(text)).Do(ctx).Raw(); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
	}
	s := store(t, "n1")
	list, err := ipam.Collect(s.List(ctx, ipam.Query{}))
	var got []string
	for _, b := range list {
		got = append(got, b.CIDR.String())
	}
	if slices.Sort(got); err != nil || !slices.Equal(got, []string{"10.0.0.128/30", "10.0.0.32/29"}) {
		t.Errorf("List: %v %v, want what is sound and what another node has to sort out", got, err)
	}
	theirs, err := s.Get(ctx, netip.MustParsePrefix("10.0.0.32/29"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(ctx, theirs); err != nil {
		t.Errorf("Update without a new address: %v", err)
	}
	theirs.Slots[0], theirs.Unallocated = ipam.Slot{Handle: ipam.StashPrefix + "n1", Attrs: map[string]string{ipam.AttrNode: "n1"}}, theirs.Unallocated[1:]
	if err := s.Update(ctx, theirs); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("an address is taken of a block that overlaps: %v", err)
	}
	for _, cidr := range []string{"10.0.0.0/30", "10.0.0.16/29", "10.0.0.32/30"} {
		p := netip.MustParsePrefix(cidr)
		if _, err := s.Get(ctx, p); err == nil || errors.Is(err, ipam.ErrNotFound) {
			t.Errorf("Get %s: %v, want what is wrong with it", cidr, err)
		}
		if err := s.Create(ctx, newBlock(cidr, "n1")); !errors.Is(err, ipam.ErrExists) {
			t.Errorf("Create %s: %v, want ErrExists", cidr, err)
		}
	}
	names, err := s.Claimed(ctx, true)
	if err != nil || len(names) != 5 {
		t.Errorf("Claimed: %v %v, want five", names, err)
	}
}

// TestRaceOfSizes: nodes that see a pool with different block sizes claim at once. No two
// blocks that overlap stay, and nobody was told to have one that does not stay.
func TestRaceOfSizes(t *testing.T) {
	ready(t)
	ctx := t.Context()
	var stores []*kube.Store
	for i := range 8 {
		stores = append(stores, store(t, name(i)))
	}
	won := 0
	for round := range 25 {
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex
			had []*ipam.Block
		)
		for i, s := range stores {
			wg.Go(func() {
				b := newBlock(fmt.Sprintf("10.%d.0.%d/%d", round, i/4*32, 24+i%4), name(i))
				b.CIDR = b.CIDR.Masked()
				switch err := s.Create(ctx, b); {
				case err == nil:
					mu.Lock()
					had = append(had, b)
					mu.Unlock()
				case !errors.Is(err, ipam.ErrExists):
					t.Errorf("Create %s: %v", b.CIDR, err)
				}
			})
		}
		wg.Wait()
		won += len(had)
		for i, b := range had {
			raw(t, v3.BlockName(b.CIDR))
			for _, o := range had[:i] {
				if o.CIDR.Overlaps(b.CIDR) {
					t.Errorf("both %s and %s were claimed", o.CIDR, b.CIDR)
				}
			}
		}
	}
	if n := len(all(t, ipam.Query{})); n != won {
		t.Errorf("%d blocks, %d were claimed", n, won)
	}
	t.Logf("%d of 200 claims held", won)
}
