package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

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
	b, err := manifest.FromV3(&in)
	return b, in.Spec.SequenceNumber, err
}

// encode writes the manifest. It does by hand what yaml.Marshal of ToV3 would do, in a
// hundredth of the time, and with lists of numbers on one line.
func encode(b *ipam.Block, seq uint64) []byte {
	m := manifest.ToV3(b, seq)
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
