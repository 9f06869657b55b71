package admission_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
	"github.com/causeway-net/causeway/ipam/manifest"
)

const (
	familyLabel = "causeway-net.github.io/ip-family"
	sizeLabel   = "causeway-net.github.io/block-size"
)

var ownLabel, otherLabel = kube.BorrowerLabel(own), kube.BorrowerLabel(other)

const (
	slotsRule   = "addresses that are free or attributed to its own node"
	ownerRule   = "whose another node's block is"
	labelRule   = "the borrower label of its own node"
	shapeRule   = "must be indexes into"
	onlyRule    = "nothing but addresses in another node's block"
	deletedRule = "mark a block as deleted"
	metaRule    = "annotations, finalizers or owners of a block"
	routesRule  = "must say what .spec says"
)

func ptr[T any](v T) *T { return &v }

// rewrite makes the block that b becomes when f changes it, with attributes numbered anew,
// as agents write it.
func rewrite(t *testing.T, b *v3.IPAMBlock, f func(*ipam.Block)) {
	t.Helper()
	in, err := manifest.FromV3(b)
	must(t, err)
	f(in)
	out := manifest.ToV3(in, b.Spec.SequenceNumber+1)
	b.Spec = out.Spec
}

// note writes the annotation as agents do.
func note(b *v3.IPAMBlock, generation int64) {
	b.Annotations = blockroutes.Note(b.Annotations, netip.MustParsePrefix(b.Spec.CIDR), &b.Spec, generation)
}

func release(b *ipam.Block, i int, at time.Time) {
	b.Slots[i] = ipam.Slot{ReleasedAt: at}
	b.Unallocated = append(b.Unallocated, i)
}

// TestBlockUpdates tries changes of blocks with node1's token. In each block both nodes
// have addresses: node1 has 1, 2 and 5; node2 has 3, 4 and 6, of which 4 and 6 are of one
// holder; 7 rests.
func TestBlockUpdates(t *testing.T) {
	c := setUp(t)
	holders := map[int]string{1: own, 2: own, 3: other, 4: other, 5: own, 6: other}
	now := time.Unix(1800000000, 0)
	type change = func(*testing.T, *v3.IPAMBlock)
	slots := func(f func(*ipam.Block)) change {
		return func(t *testing.T, b *v3.IPAMBlock) { rewrite(t, b, f) }
	}
	for _, tc := range []struct {
		name                  string
		change                change
		mine, theirs, nobodys string // refusal in the block of node1, of node2, and of no node; empty: allowed
	}{
		{"nothing", slots(func(*ipam.Block) {}), "", "", ""},
		{"take free addresses", slots(func(b *ipam.Block) { hold(b, 0, own); hold(b, 9, own) }), "", "", ""},
		{"take a resting address", slots(func(b *ipam.Block) { hold(b, 7, own) }), "", "", ""},
		{"release", slots(func(b *ipam.Block) { release(b, 1, now) }), "", "", ""},
		{"release at once", slots(func(b *ipam.Block) { release(b, 1, time.Time{}) }), "", "", ""},
		{"release all of ours, take others: all attributes are numbered anew", slots(func(b *ipam.Block) {
			release(b, 1, now)
			release(b, 2, now.Add(time.Second))
			release(b, 5, now)
			hold(b, 60, own)
			hold(b, 8, own)
		}), "", "", ""},
		{"rest no more", slots(func(b *ipam.Block) { b.Slots[7].ReleasedAt = time.Time{} }), "", "", ""},
		{"our own holder changes", slots(func(b *ipam.Block) {
			b.Slots[1] = ipam.Slot{Handle: "k8s-pod-network.new", Attrs: map[string]string{ipam.AttrNode: own}}
		}), "", "", ""},
		{"the borrower label", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[ownLabel] = own }, "", "", ""},

		{"the block's family and size", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[familyLabel], b.Labels[sizeLabel] = "4", "26" }, "", "", ""},
		{"a wrong family", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[familyLabel] = "6" }, labelRule, labelRule, labelRule},
		{"a wrong size", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[sizeLabel] = "27" }, labelRule, labelRule, labelRule},

		{"free another's", slots(func(b *ipam.Block) { release(b, 3, time.Time{}) }), slotsRule, slotsRule, slotsRule},
		{"let another's rest", slots(func(b *ipam.Block) { release(b, 3, now) }), slotsRule, slotsRule, slotsRule},
		{"free one of two of another's holder", slots(func(b *ipam.Block) { release(b, 6, time.Time{}) }), slotsRule, slotsRule, slotsRule},
		{"take another's", slots(func(b *ipam.Block) { hold(b, 3, own) }), slotsRule, slotsRule, slotsRule},
		{"take another's in the handle's name", slots(func(b *ipam.Block) {
			b.Slots[3].Attrs = map[string]string{ipam.AttrNode: own, ipam.AttrPod: "p"}
		}), slotsRule, slotsRule, slotsRule},
		{"change another's handle", slots(func(b *ipam.Block) { b.Slots[3].Handle = "k8s-pod-network.thief" }), slotsRule, slotsRule, slotsRule},
		{"change another's pod", slots(func(b *ipam.Block) {
			b.Slots[3].Attrs = map[string]string{ipam.AttrNode: other, ipam.AttrPod: "thief"}
		}), slotsRule, slotsRule, slotsRule},
		{"swap another's two", slots(func(b *ipam.Block) { b.Slots[3], b.Slots[4] = b.Slots[4], b.Slots[3] }), slotsRule, slotsRule, slotsRule},
		{"swap ours and another's", slots(func(b *ipam.Block) { b.Slots[1], b.Slots[3] = b.Slots[3], b.Slots[1] }), slotsRule, slotsRule, slotsRule},
		{"give a free one to another", slots(func(b *ipam.Block) { hold(b, 0, other) }), slotsRule, slotsRule, slotsRule},
		{"give ours to another", slots(func(b *ipam.Block) { hold(b, 1, other) }), slotsRule, slotsRule, slotsRule},
		{"take a free one for nobody", slots(func(b *ipam.Block) { hold(b, 0, ""); b.Slots[0].Attrs = nil }), slotsRule, slotsRule, slotsRule},
		{"take a free one for nobody, without a handle", func(t *testing.T, b *v3.IPAMBlock) {
			b.Spec.Attributes = append(b.Spec.Attributes, v3.AllocationAttribute{})
			b.Spec.Allocations[0] = ptr(len(b.Spec.Attributes) - 1)
		}, slotsRule, slotsRule, slotsRule},
		{"point another's address at our attribute", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations[3] = b.Spec.Allocations[1] }, slotsRule, slotsRule, slotsRule},
		{"point our address at another's attribute", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations[1] = b.Spec.Allocations[3] }, slotsRule, slotsRule, slotsRule},
		{"let another's attribute say that it was released", func(t *testing.T, b *v3.IPAMBlock) {
			b.Spec.Attributes[*b.Spec.Allocations[3]].ReleasedAt = ptr(metav1.NewTime(now))
		}, slotsRule, slotsRule, slotsRule},
		{"rewrite another's attribute as ours, in place", func(t *testing.T, b *v3.IPAMBlock) {
			b.Spec.Attributes[*b.Spec.Allocations[3]].ActiveOwnerAttrs["node"] = own
		}, slotsRule, slotsRule, slotsRule},
		{"fewer addresses", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations = b.Spec.Allocations[:63] }, shapeRule, shapeRule, shapeRule},
		{"more addresses", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations = append(b.Spec.Allocations, nil) }, slotsRule, slotsRule, slotsRule},
		{"an index out of range", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations[0] = ptr(1000) }, shapeRule, shapeRule, shapeRule},
		{"a negative index", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Allocations[0] = ptr(-1) }, shapeRule, shapeRule, shapeRule},
		{"an ordinal out of range", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Unallocated[0] = 64 }, shapeRule, shapeRule, shapeRule},
		{"too many attributes", func(t *testing.T, b *v3.IPAMBlock) {
			b.Spec.Attributes = append(b.Spec.Attributes, slices.Repeat(b.Spec.Attributes[:1], 64)...)
		}, shapeRule, shapeRule, shapeRule},

		{"take the block", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Affinity = ptr("host:" + own) }, "", ownerRule, ""},
		{"give the block to another", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Affinity = ptr("host:" + other) }, ownerRule, "", ownerRule},
		{"let the block go", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Affinity = nil }, "", ownerRule, ""},
		{"give the block to something virtual", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Affinity = ptr("virtual:load-balancer") }, ownerRule, ownerRule, ownerRule},
		{"another CIDR", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.CIDR = "10.99.0.0/26" }, "cannot be changed", "cannot be changed", "cannot be changed"},
		{"another claim time", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.AffinityClaimTime = ptr(metav1.NewTime(now)) }, "", onlyRule, ""},
		{"strict affinity", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.StrictAffinity = true }, "", onlyRule, ""},
		{"mark as deleted", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.Deleted = true }, deletedRule, deletedRule, deletedRule},
		{"the sequence number back", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.SequenceNumber = 0 }, "counts a block's changes", "counts a block's changes", "counts a block's changes"},
		{"the sequence number to its end", func(t *testing.T, b *v3.IPAMBlock) { b.Spec.SequenceNumber = 1<<63 - 1 }, "counts a block's changes", "counts a block's changes", "counts a block's changes"},

		{"another's borrower label away", func(t *testing.T, b *v3.IPAMBlock) { delete(b.Labels, otherLabel) }, labelRule, labelRule, labelRule},
		{"another's borrower label taken over", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[otherLabel] = own }, labelRule, labelRule, labelRule},
		{"a borrower label in another's name", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[ownLabel] = other }, labelRule, labelRule, labelRule},
		{"a borrower label in nobody's name", func(t *testing.T, b *v3.IPAMBlock) { b.Labels[ownLabel] = "" }, labelRule, labelRule, labelRule},
		{"a foreign label", func(t *testing.T, b *v3.IPAMBlock) { b.Labels["example.net/x"] = own }, labelRule, labelRule, labelRule},
		{"all labels away", func(t *testing.T, b *v3.IPAMBlock) { b.Labels = nil }, labelRule, labelRule, labelRule},
		{"an annotation", func(t *testing.T, b *v3.IPAMBlock) { b.Annotations["a"] = "b" }, metaRule, metaRule, metaRule},
		{"the annotation of routes", func(t *testing.T, b *v3.IPAMBlock) {
			rewrite(t, b, func(b *ipam.Block) { hold(b, 0, own) })
			note(b, b.Generation+1)
		}, "", "", ""},
		{"the annotation of routes, with another generation", func(t *testing.T, b *v3.IPAMBlock) { note(b, b.Generation+7) }, routesRule, routesRule, routesRule},
		{"the annotation of routes, with another's address as ours", func(t *testing.T, b *v3.IPAMBlock) {
			b.Spec.SequenceNumber++
			note(b, b.Generation+1)
			b.Annotations[blockroutes.Annotation] = strings.ReplaceAll(b.Annotations[blockroutes.Annotation], other, own)
		}, routesRule, routesRule, routesRule},
		{"the annotation of routes away", func(t *testing.T, b *v3.IPAMBlock) { delete(b.Annotations, blockroutes.Annotation) }, routesRule, routesRule, routesRule},
		{"the annotation of routes as an older agent leaves it", slots(func(b *ipam.Block) { hold(b, 0, own) }), "", "", ""},
		{"a finalizer", func(t *testing.T, b *v3.IPAMBlock) { b.Finalizers = []string{"example.net/f"} }, metaRule, metaRule, metaRule},
		{"an owner that does not exist", func(t *testing.T, b *v3.IPAMBlock) {
			b.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}}
		}, metaRule, metaRule, metaRule},
	} {
		for i, where := range []struct{ name, affinity, want string }{
			{"its own block", "host:" + own, tc.mine}, {"another's block", "host:" + other, tc.theirs}, {"nobody's block", "", tc.nobodys},
		} {
			t.Run(tc.name+"/"+where.name, func(t *testing.T) {
				b := block(t, fmt.Sprintf("10.70.%d.0/26", i), own, holders)
				rewrite(t, b, func(x *ipam.Block) {
					x.Slots[6] = x.Slots[4] // one holder
					x.Unallocated = slices.DeleteFunc(x.Unallocated, func(n int) bool { return n == 7 })
					release(x, 7, time.Unix(1750000000, 0))
				})
				b.Spec.Affinity = nil
				if where.affinity != "" {
					b.Spec.Affinity = &where.affinity
				}
				b.Labels = map[string]string{otherLabel: other}
				note(b, 1)
				b = c.put(t.Context(), t, b)
				tc.change(t, b)
				_, err := c.blocks.Update(t.Context(), b, metav1.UpdateOptions{})
				if where.want == "" {
					must(t, err)
					return
				}
				refused(t, err, where.want)
			})
		}
	}
}

// TestBorrow borrows in another node's block and gives back, as agents do.
func TestBorrow(t *testing.T) {
	c := setUp(t)
	b := c.put(t.Context(), t, block(t, "10.71.0.0/26", other, map[int]string{1: other}))
	update := func(f func(*v3.IPAMBlock)) {
		t.Helper()
		f(b)
		var err error
		b, err = c.blocks.Update(t.Context(), b, metav1.UpdateOptions{})
		must(t, err)
	}
	update(func(b *v3.IPAMBlock) {
		rewrite(t, b, func(x *ipam.Block) { hold(x, 9, own); hold(x, 0, own) })
		b.Labels = map[string]string{ownLabel: own}
	})
	update(func(b *v3.IPAMBlock) { rewrite(t, b, func(x *ipam.Block) { release(x, 9, time.Now()) }) })
	update(func(b *v3.IPAMBlock) {
		rewrite(t, b, func(x *ipam.Block) { release(x, 0, time.Now()) })
		b.Labels = nil
	})
	if got := b.Labels; len(got) != 0 {
		t.Errorf("labels are %v", got)
	}
}

// TestBlockCreation tries claims with node1's token.
func TestBlockCreation(t *testing.T) {
	c := setUp(t)
	claimRule, nameRule, sizeRule := "claim blocks for its own node only", "with dashes", "one element in .spec.allocations"
	for _, tc := range []struct {
		name string
		b    *v3.IPAMBlock
		f    func(*v3.IPAMBlock)
		want string
	}{
		{"ours", block(t, "10.72.0.0/26", own, nil), nil, ""},
		{"ours, IPv6", block(t, "fd00:10:72::/122", own, nil), nil, ""},
		{"ours, with addresses", block(t, "10.72.0.64/26", own, map[int]string{0: own, 63: own}), nil, ""},
		{"ours, of one address", block(t, "10.72.0.128/32", own, nil), nil, ""},
		{"ours, of 4096 addresses", block(t, "10.72.16.0/20", own, nil), nil, ""},
		{"ours, with the annotation of routes", block(t, "10.72.1.0/26", own, map[int]string{0: own}), func(b *v3.IPAMBlock) { note(b, 1) }, ""},
		{"ours, of 4096 addresses with the annotation of routes", block(t, "10.72.32.0/20", own, nil), func(b *v3.IPAMBlock) { note(b, 1) }, ""},
		{"ours, with the borrower label", block(t, "10.72.0.192/26", own, nil), func(b *v3.IPAMBlock) { b.Labels = map[string]string{ownLabel: own} }, ""},

		{"with the annotation of another block", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) {
			b.Annotations = map[string]string{blockroutes.Annotation: "1 1 10.73.0.64/26 " + own}
		}, routesRule},
		{"another's", block(t, "10.73.0.0/26", other, nil), nil, claimRule},
		{"nobody's", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.Affinity = nil }, claimRule},
		{"a virtual one", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.Affinity = ptr("virtual:load-balancer") }, claimRule},
		{"of a node with a like name", block(t, "10.73.0.0/26", own+"0", nil), nil, claimRule},
		{"under another name", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Name = "second" }, nameRule},
		{"with host bits", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.CIDR, b.Name = "10.73.0.1/26", "10-73-0-1-26" }, nameRule},
		{"in another spelling", block(t, "fd00:10:73::/122", own, nil), func(b *v3.IPAMBlock) {
			b.Spec.CIDR, b.Name = "fd00:10:73:0::/122", "fd00-10-73-0---122"
		}, nameRule},
		{"in capitals", block(t, "fd00:10:73::/122", own, nil), func(b *v3.IPAMBlock) { b.Spec.CIDR = "FD00:10:73::/122" }, nameRule},
		{"too few elements", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.Allocations = b.Spec.Allocations[:63] }, ""},
		{"too large", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.CIDR, b.Name = "10.73.0.0/16", "10-73-0-0-16" }, sizeRule},
		{"with another's address", block(t, "10.73.0.0/26", own, map[int]string{1: other}), nil, "attribute addresses to its own node only"},
		{"with nobody's address", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) {
			b.Spec.Attributes, b.Spec.Allocations[0] = []v3.AllocationAttribute{{HandleID: ptr("h")}}, ptr(0)
		}, "attribute addresses to its own node only"},
		{"marked as deleted", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Spec.Deleted = true }, "a new block may have"},
		{"with an owner", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) {
			b.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}}
		}, "a new block may have"},
		{"with another's borrower label", block(t, "10.73.0.0/26", own, nil), func(b *v3.IPAMBlock) { b.Labels = map[string]string{otherLabel: other} }, labelRule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.f != nil {
				tc.f(tc.b)
			}
			if tc.name == "too few elements" {
				tc.b.Spec.Unallocated = tc.b.Spec.Unallocated[:63]
				tc.want = sizeRule
			}
			_, err := c.blocks.Create(t.Context(), tc.b, metav1.CreateOptions{})
			if tc.want == "" {
				must(t, err)
				return
			}
			refused(t, err, tc.want)
		})
	}
}

// TestBlockDeletion tries deletions with node1's token.
func TestBlockDeletion(t *testing.T) {
	c := setUp(t)
	for i, tc := range []struct {
		name     string
		affinity *string
		holders  map[int]string
		want     string
	}{
		{"ours, empty", ptr("host:" + own), nil, ""},
		{"ours, with addresses of ours", ptr("host:" + own), map[int]string{1: own}, ""},
		{"nobody's, empty", nil, nil, ""},
		{"ours, with a borrower", ptr("host:" + own), map[int]string{1: own, 2: other}, "with addresses of another node"},
		{"nobody's, with addresses of another", nil, map[int]string{1: other}, "with addresses of another node"},
		{"another's, empty", ptr("host:" + other), nil, "delete another node's block"},
		{"another's, with addresses of ours", ptr("host:" + other), map[int]string{1: own}, "delete another node's block"},
		{"a virtual one", ptr("virtual:load-balancer"), nil, "delete another node's block"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := block(t, fmt.Sprintf("10.74.%d.0/26", i), own, tc.holders)
			b.Spec.Affinity = tc.affinity
			b = c.put(t.Context(), t, b)
			err := c.blocks.Delete(t.Context(), b.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &b.ResourceVersion, UID: &b.UID}})
			if tc.want == "" {
				must(t, err)
				return
			}
			refused(t, err, tc.want)
		})
	}
	b := c.put(t.Context(), t, block(t, "10.74.99.0/26", other, nil))
	err := c.blocks.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("deleting all blocks: got %v, want forbidden", err)
	}
	if _, err := c.adminBlocks.Get(t.Context(), b.Name, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// TestLongNodeName borrows as a node whose name is longer than a label's value.
func TestLongNodeName(t *testing.T) {
	c := setUp(t)
	blocks := newBlocks(agentClients(t, c.admin, longName))
	b := c.put(t.Context(), t, block(t, "10.75.0.0/26", other, nil))
	rewrite(t, b, func(x *ipam.Block) { hold(x, 5, longName) })
	b.Labels = map[string]string{kube.BorrowerLabel(longName): kube.BorrowerValue(longName)}
	b, err := blocks.Update(t.Context(), b, metav1.UpdateOptions{})
	must(t, err)
	rewrite(t, b, func(x *ipam.Block) { release(x, 5, time.Now()) })
	b.Labels = nil
	_, err = blocks.Update(t.Context(), b, metav1.UpdateOptions{})
	must(t, err)
	_, err = blocks.Create(t.Context(), block(t, "10.75.1.0/26", longName, nil), metav1.CreateOptions{})
	must(t, err)
}

// TestLargestBlock shows that the policies can judge a block of 4096 addresses, each with
// an attribute of its own, half of them another node's: CEL has a budget.
func TestLargestBlock(t *testing.T) {
	c := setUp(t)
	in := ipam.NewBlock(netip.MustParsePrefix("10.76.0.0/20"), own, time.Unix(1700000000, 0))
	in.Unallocated = nil
	for i := range in.Slots {
		node := []string{own, other}[i%2]
		in.Slots[i] = ipam.Slot{Handle: fmt.Sprintf("k8s-pod-network.%064x", i), Attrs: map[string]string{
			ipam.AttrNode: node, ipam.AttrPod: fmt.Sprintf("a-deployment-with-a-name-5d4f8c7b9-%05d", i), ipam.AttrNamespace: "default", ipam.AttrTimestamp: "2026-01-02 03:04:05.123456789 +0000 UTC",
		}}
	}
	b := c.put(t.Context(), t, manifest.ToV3(in, 1))
	start := time.Now()
	rewrite(t, b, func(x *ipam.Block) { release(x, 0, time.Now()) })
	note(b, b.Generation+1)
	got, err := c.blocks.Update(t.Context(), b, metav1.UpdateOptions{})
	must(t, err)
	if len(got.Annotations[blockroutes.Annotation]) < 2048*len("1=node2") {
		t.Errorf("the annotation has %d bytes", len(got.Annotations[blockroutes.Annotation]))
	}
	t.Logf("one update of 4096 addresses as node1: %s", time.Since(start))
	attributes := maps.Clone(got.Spec.Attributes[*got.Spec.Allocations[4095]].ActiveOwnerAttrs)
	attributes[ipam.AttrPod] = "thief"
	got.Spec.Attributes[*got.Spec.Allocations[4095]].ActiveOwnerAttrs = attributes
	_, err = c.blocks.Update(t.Context(), got, metav1.UpdateOptions{})
	refused(t, err, slotsRule)
	refused(t, c.blocks.Delete(t.Context(), got.Name, metav1.DeleteOptions{}), "with addresses of another node")
}
