package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
)

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

func decode(data []byte) (*ipam.Block, uint64, error) {
	var in v3.IPAMBlock
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		return nil, 0, err
	}
	if in.Kind != "IPAMBlock" {
		return nil, 0, fmt.Errorf(".kind: %q, want IPAMBlock", in.Kind)
	}
	if in.Spec.Deleted {
		return nil, 0, errors.New(".spec.deleted: true: its deletion was not finished; remove the file when no pod uses the block")
	}
	b, err := FromV3(&in)
	return b, in.Spec.SequenceNumber, err
}

// encode writes the manifest. It does by hand what yaml.Marshal of ToV3 would do, in a
// hundredth of the time, and with lists of numbers on one line.
func encode(b *ipam.Block, seq uint64) []byte {
	m := ToV3(b, seq)
	out := make([]byte, 0, 1024+200*len(m.Spec.Attributes))
	line := func(parts ...string) {
		for _, p := range parts {
			out = append(out, p...)
		}
		out = append(out, '\n')
	}
	line("apiVersion: ", m.APIVersion)
	line("kind: ", m.Kind)
	line("metadata:")
	line("  name: ", quote(m.Name))
	line("spec:")
	line("  cidr: ", quote(m.Spec.CIDR))
	if m.Spec.Affinity != nil {
		line("  affinity: ", quote(*m.Spec.Affinity))
	}
	if m.Spec.AffinityClaimTime != nil {
		line("  affinityClaimTime: ", quote(m.Spec.AffinityClaimTime.Format(time.RFC3339)))
	}
	line("  sequenceNumber: ", strconv.FormatUint(m.Spec.SequenceNumber, 10))
	line("  strictAffinity: false")
	out = append(out, "  allocations: ["...)
	for i, n := range m.Spec.Allocations {
		if i > 0 {
			out = append(out, ", "...)
		}
		if n == nil {
			out = append(out, "null"...)
		} else {
			out = strconv.AppendInt(out, int64(*n), 10)
		}
	}
	line("]")
	out = append(out, "  unallocated: ["...)
	for i, n := range m.Spec.Unallocated {
		if i > 0 {
			out = append(out, ", "...)
		}
		out = strconv.AppendInt(out, int64(n), 10)
	}
	line("]")
	if len(m.Spec.Attributes) == 0 {
		line("  attributes: []")
		return out
	}
	line("  attributes:")
	for _, a := range m.Spec.Attributes {
		bullet := "  - "
		if a.HandleID != nil {
			line(bullet, "handle_id: ", quote(*a.HandleID))
			bullet = "    "
		}
		if a.ReleasedAt != nil {
			line(bullet, "releasedAt: ", quote(a.ReleasedAt.Format(time.RFC3339)))
		}
		if len(a.ActiveOwnerAttrs) > 0 {
			line("    secondary:")
			for _, k := range slices.Sorted(maps.Keys(a.ActiveOwnerAttrs)) {
				line("      ", quote(k), ": ", quote(a.ActiveOwnerAttrs[k]))
			}
		}
	}
	return out
}

// bare matches what YAML can take for nothing but a string: it has a letter beyond those
// of numbers in front, and is no word with a meaning.
var (
	bare  = regexp.MustCompile(`^[g-wzG-WZ][A-Za-z0-9_./-]*$`)
	words = regexp.MustCompile(`^(?i:n|null|no|on|off|true|nan|inf)$`)
)

// quote returns a JSON string, which is a YAML string as well, or s itself where that is
// plainly a string.
func quote(s string) string {
	if bare.MatchString(s) && !words.MatchString(s) {
		return s
	}
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always marshals
	}
	return string(q)
}
