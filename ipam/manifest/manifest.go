// Package manifest owns the form that a block has as an IPAMBlock of projectcalico.org/v3,
// which is the same in a folder and in the Kubernetes API.
package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
)

// ParseName undoes v3.BlockName.
func ParseName(name string) (netip.Prefix, bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	addr, length := name[:i], name[i+1:]
	for _, sep := range []string{".", ":"} {
		if p, err := netip.ParsePrefix(strings.ReplaceAll(addr, "-", sep) + "/" + length); err == nil && v3.BlockName(p) == name {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// How a block's slots stand in an IPAMBlock: an address with a handle points to an
// attribute; one that rests after its release points to an attribute without a handle
// that says since when; all others are null, and in spec.unallocated in the order of use.
// The attributes of those that rest follow one another in the order of their release, so
// that the whole order survives.

// ToV3 returns the IPAMBlock that says the same as b.
func ToV3(b *ipam.Block, seq uint64) *v3.IPAMBlock {
	out := &v3.IPAMBlock{
		TypeMeta:   metav1.TypeMeta{APIVersion: "projectcalico.org/v3", Kind: "IPAMBlock"},
		ObjectMeta: metav1.ObjectMeta{Name: v3.BlockName(b.CIDR)},
		Spec: v3.IPAMBlockSpec{
			CIDR:           b.CIDR.String(),
			Allocations:    make([]*int, len(b.Slots)),
			Unallocated:    []int{},
			Attributes:     []v3.AllocationAttribute{},
			SequenceNumber: seq,
		},
	}
	if b.Affinity != "" {
		out.Spec.Affinity = &b.Affinity
	}
	if !b.ClaimTime.IsZero() {
		t := metav1.NewTime(b.ClaimTime.UTC())
		out.Spec.AffinityClaimTime = &t
	}
	index := map[string][]int{} // of the attributes with that handle
	for i, s := range b.Slots {
		if s.Handle == "" {
			continue
		}
		at := slices.IndexFunc(index[s.Handle], func(k int) bool {
			return maps.Equal(out.Spec.Attributes[k].ActiveOwnerAttrs, s.Attrs) && out.Spec.Attributes[k].ReleasedAt == nil
		})
		if at >= 0 && s.ReleasedAt.IsZero() {
			out.Spec.Allocations[i] = &index[s.Handle][at]
			continue
		}
		n := len(out.Spec.Attributes)
		handle := s.Handle
		out.Spec.Attributes = append(out.Spec.Attributes, v3.AllocationAttribute{HandleID: &handle, ActiveOwnerAttrs: s.Attrs, ReleasedAt: released(s)})
		index[s.Handle] = append(index[s.Handle], n)
		out.Spec.Allocations[i] = &n
	}
	for _, i := range b.Unallocated {
		if b.Slots[i].ReleasedAt.IsZero() {
			out.Spec.Unallocated = append(out.Spec.Unallocated, i)
			continue
		}
		n := len(out.Spec.Attributes)
		out.Spec.Attributes = append(out.Spec.Attributes, v3.AllocationAttribute{ReleasedAt: released(b.Slots[i])})
		out.Spec.Allocations[i] = &n
	}
	return out
}

// released returns when an address was released, in full seconds and rounded up: an
// address never rests shorter than it must. Nil when it does not rest.
func released(s ipam.Slot) *metav1.Time {
	if s.ReleasedAt.IsZero() {
		return nil
	}
	t := metav1.NewTime(s.ReleasedAt.UTC().Add(time.Second - 1).Truncate(time.Second))
	return &t
}

// FromV3 returns the block that an IPAMBlock describes, without a revision. It accepts
// what Calico writes.
func FromV3(in *v3.IPAMBlock) (*ipam.Block, error) {
	cidr, err := netip.ParsePrefix(in.Spec.CIDR)
	if err != nil {
		return nil, fmt.Errorf(".spec.cidr: %w", err)
	}
	b := &ipam.Block{CIDR: cidr, Slots: make([]ipam.Slot, len(in.Spec.Allocations))}
	if in.Spec.Affinity != nil {
		b.Affinity = *in.Spec.Affinity
	}
	if in.Spec.AffinityClaimTime != nil {
		b.ClaimTime = in.Spec.AffinityClaimTime.UTC()
	}
	resting := map[int][]int{} // attribute → slots
	for i, n := range in.Spec.Allocations {
		if n == nil {
			continue
		}
		if *n < 0 || *n >= len(in.Spec.Attributes) {
			return nil, fmt.Errorf(".spec.allocations[%d]: %d, want an index into .spec.attributes, which has %d", i, *n, len(in.Spec.Attributes))
		}
		attr := &in.Spec.Attributes[*n]
		switch {
		case attr.HandleID != nil && *attr.HandleID != "":
			b.Slots[i] = ipam.Slot{Handle: *attr.HandleID, Attrs: attr.ActiveOwnerAttrs}
			if attr.ReleasedAt != nil {
				b.Slots[i].ReleasedAt = attr.ReleasedAt.UTC()
			}
		case attr.ReleasedAt != nil:
			b.Slots[i] = ipam.Slot{ReleasedAt: attr.ReleasedAt.UTC()}
			resting[*n] = append(resting[*n], i)
		default: // allocated by something that keeps no handles: not ours to give
			b.Slots[i] = ipam.Slot{Handle: "unknown", Attrs: attr.ActiveOwnerAttrs}
		}
	}
	seen := make([]bool, len(b.Slots))
	for _, i := range in.Spec.Unallocated {
		if i < 0 || i >= len(b.Slots) {
			return nil, fmt.Errorf(".spec.unallocated: %d, want 0 to %d", i, len(b.Slots)-1)
		}
		if in.Spec.Allocations[i] == nil && !seen[i] {
			b.Unallocated = append(b.Unallocated, i)
			seen[i] = true
		}
	}
	for i := range b.Slots { // free, but forgotten in the queue
		if in.Spec.Allocations[i] == nil && !seen[i] {
			b.Unallocated = append(b.Unallocated, i)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(resting)) {
		b.Unallocated = append(b.Unallocated, resting[n]...)
	}
	if err := b.Check(); err != nil {
		return nil, err
	}
	return b, nil
}
