package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

// object is an IPAMBlock as it is stored: the block, and all else that it holds, which an
// update has to keep though this version of Causeway may know nothing of it.
//
// Nothing of it but block changes once it is decoded.
type object struct {
	name    string
	uid     types.UID
	version string // resourceVersion
	labels  map[string]string
	// generation counts the changes of spec, and annotations are the object's.
	generation  int64
	annotations map[string]string

	metadata, spec map[string]json.RawMessage
	typed          v3.IPAMBlockSpec
	cidr           netip.Prefix
	handles        []string    // of the slots, as stored
	block          *ipam.Block // belongs to whom it is handed to
}

// revision is what ipam.Block.Revision shows. The resourceVersion alone would do but for a
// cluster that is restored from a backup, whose numbers come again.
func (o *object) revision() string { return string(o.uid) + "/" + o.version }

// decode reads an object. Beside an error it returns as much of it as could be read.
func decode(data []byte) (*object, error) {
	var in struct {
		Metadata json.RawMessage `json:"metadata"`
		Spec     json.RawMessage `json:"spec"`
	}
	o := &object{name: "(without a name)"}
	if err := json.Unmarshal(data, &in); err != nil {
		return o, fmt.Errorf("IPAMBlock: %w", err)
	}
	var meta metav1.ObjectMeta
	if err := errors.Join(json.Unmarshal(in.Metadata, &meta), json.Unmarshal(in.Metadata, &o.metadata)); err != nil {
		return o, fmt.Errorf("IPAMBlock: .metadata: %w", err)
	}
	delete(o.metadata, "managedFields") // the server keeps them when an update has none
	o.name, o.uid, o.version, o.labels = meta.Name, meta.UID, meta.ResourceVersion, meta.Labels
	o.generation, o.annotations = meta.Generation, meta.Annotations
	if err := errors.Join(json.Unmarshal(in.Spec, &o.typed), json.Unmarshal(in.Spec, &o.spec)); err != nil {
		return o, fmt.Errorf("IPAMBlock %s: .spec: %w", o.name, err)
	}
	if o.typed.Deleted {
		return o, fmt.Errorf("IPAMBlock %s: .spec.deleted: true: its deletion was not finished; delete it when no pod uses the block", o.name)
	}
	b, err := manifest.FromV3(&v3.IPAMBlock{Spec: o.typed})
	if err != nil {
		return o, fmt.Errorf("IPAMBlock %s: %w", o.name, err)
	}
	if want := v3.BlockName(b.CIDR); want != o.name {
		return o, fmt.Errorf("IPAMBlock %s: .spec.cidr: %s, whose block is named %s", o.name, b.CIDR, want)
	}
	b.Revision, b.Stored = o.revision(), o
	o.block, o.cidr, o.handles = b, b.CIDR, make([]string, len(b.Slots))
	for i := range b.Slots {
		o.handles[i] = b.Slots[i].Handle
	}
	return o, nil
}

// Labels of every block that Causeway writes; overlap.go asks for them.
const (
	labelFamily = "causeway-net.github.io/ip-family"  // "4" or "6"
	labelSize   = "causeway-net.github.io/block-size" // the prefix length
)

func familyOf(block netip.Prefix) string {
	if block.Addr().Is4() {
		return "4"
	}
	return "6"
}

// encode returns the object that says what b says and, of an old one, keeps the rest, the
// annotation as well unless annotate is set.
func (s *Store) encode(b *ipam.Block, old *object, annotate bool) ([]byte, error) {
	first := old == nil
	if first {
		// A block that comes again under its name does not repeat its numbers: whoever
		// remembers one of its allocations by number never meets another.
		old = &object{typed: v3.IPAMBlockSpec{SequenceNumber: uint64(max(0, b.ClaimTime.UnixMicro()))}}
	}
	seq := old.typed.SequenceNumber
	m := manifest.ToV3(b, seq+1)
	labels := s.labels(b, old.labels)

	metadata, spec := maps.Clone(old.metadata), maps.Clone(old.spec)
	if first {
		metadata, spec = map[string]json.RawMessage{}, map[string]json.RawMessage{}
	}
	var err error
	put := func(to map[string]json.RawMessage, key string, value any) {
		data, e := json.Marshal(value)
		err = errors.Join(err, e)
		to[key] = data
	}
	put(metadata, "name", m.Name)
	put(metadata, "labels", labels)
	if annotate {
		// The sequence number is another one, so that the spec is, and the server counts it.
		put(metadata, "annotations", blockroutes.Note(old.annotations, b.CIDR, &m.Spec, old.generation+1))
	}
	put(spec, "cidr", m.Spec.CIDR)
	put(spec, "allocations", m.Spec.Allocations)
	put(spec, "unallocated", m.Spec.Unallocated)
	put(spec, "attributes", keepAttributes(m.Spec.Attributes, old))
	put(spec, "sequenceNumber", m.Spec.SequenceNumber)
	put(spec, "sequenceNumberForAllocation", sequenceNumbers(b, old, seq))
	if first {
		put(spec, "strictAffinity", m.Spec.StrictAffinity)
	}
	for key, value := range map[string]any{"affinity": m.Spec.Affinity, "affinityClaimTime": m.Spec.AffinityClaimTime} {
		put(spec, key, value)
		if string(spec[key]) == "null" {
			delete(spec, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("IPAMBlock %s: %w", m.Name, err)
	}
	return json.Marshal(map[string]any{"apiVersion": m.APIVersion, "kind": m.Kind, "metadata": metadata, "spec": spec})
}

// labels returns the old labels with ours as they should be: the label of a borrower comes
// with its first address in the block and goes with its last.
func (s *Store) labels(b *ipam.Block, old map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range old {
		if strings.HasPrefix(k, BorrowerPrefix) && (s.cfg.Node == "" || k == BorrowerLabel(s.cfg.Node)) {
			continue
		}
		out[k] = v
	}
	for _, node := range b.Borrowers() {
		if s.cfg.Node == "" || s.cfg.Node == node {
			out[BorrowerLabel(node)] = BorrowerValue(node)
		}
	}
	out[labelFamily], out[labelSize] = familyOf(b.CIDR), strconv.Itoa(b.CIDR.Bits())
	return out
}

// sequenceNumbers returns for each allocated slot the number that the block had when it was
// allocated, as Calico keeps it.
func sequenceNumbers(b *ipam.Block, old *object, seq uint64) map[string]uint64 {
	out := map[string]uint64{}
	for i, slot := range b.Slots {
		if slot.Handle == "" {
			continue
		}
		key := strconv.Itoa(i)
		n, ok := old.typed.SequenceNumberForAllocation[key]
		same := i < len(old.handles) && old.handles[i] == slot.Handle
		switch {
		case ok && same:
			out[key] = n
		case !same:
			out[key] = seq
		}
	}
	return out
}

// keepAttributes returns the attributes with what old ones of the same holder say beyond.
func keepAttributes(now []v3.AllocationAttribute, old *object) []json.RawMessage {
	var raw []json.RawMessage
	if data, ok := old.spec["attributes"]; ok && json.Unmarshal(data, &raw) != nil {
		raw = nil
	}
	out := make([]json.RawMessage, 0, len(now))
	for i := range now {
		at := slices.IndexFunc(old.typed.Attributes, func(a v3.AllocationAttribute) bool { return sameHolder(&a, &now[i]) })
		if at >= 0 && at < len(raw) {
			out = append(out, raw[at])
			continue
		}
		data, err := json.Marshal(now[i])
		if err != nil {
			panic(err) // strings and a time always marshal
		}
		out = append(out, data)
	}
	return out
}

// sameHolder reports whether an attribute as it was read says the same as one that is made
// from a block. One without a handle, which something else than Calico or Causeway wrote,
// has the handle "unknown" in the block (manifest.FromV3).
func sameHolder(old, now *v3.AllocationAttribute) bool {
	handle := func(a *v3.AllocationAttribute) string {
		if a.HandleID != nil && *a.HandleID != "" {
			return *a.HandleID
		}
		if a.ReleasedAt == nil {
			return "unknown"
		}
		return ""
	}
	return handle(old) == handle(now) && maps.Equal(old.ActiveOwnerAttrs, now.ActiveOwnerAttrs) && old.ReleasedAt.Equal(now.ReleasedAt)
}
