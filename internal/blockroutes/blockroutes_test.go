package blockroutes

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

func ptr[T any](v T) *T { return &v }

// spec is a /30 with one attribute for each address.
func spec(affinity string, attributes ...v3.AllocationAttribute) *v3.IPAMBlockSpec {
	s := &v3.IPAMBlockSpec{CIDR: "10.244.0.4/30", Attributes: attributes}
	if affinity != "" {
		s.Affinity = &affinity
	}
	for i := range attributes {
		s.Allocations = append(s.Allocations, &i)
	}
	for len(s.Allocations) < 4 {
		s.Allocations = append(s.Allocations, nil)
	}
	return s
}

func held(node string) v3.AllocationAttribute {
	return v3.AllocationAttribute{HandleID: ptr("h"), ActiveOwnerAttrs: map[string]string{"node": node}}
}

// TestNote shows what is written for a spec, and that it is read back.
func TestNote(t *testing.T) {
	released := v3.AllocationAttribute{ReleasedAt: &metav1.Time{}, ActiveOwnerAttrs: map[string]string{"node": "b"}}
	unnamed := v3.AllocationAttribute{ActiveOwnerAttrs: map[string]string{"node": "b"}}
	cidr := netip.MustParsePrefix("10.244.0.4/30")
	for _, tc := range []struct {
		spec *v3.IPAMBlockSpec
		want string
	}{
		{spec("host:a"), "1 7 10.244.0.4/30 a"},
		{spec(""), "1 7 10.244.0.4/30 -"},
		{spec("virtual:load-balancer", held("b")), "1 7 10.244.0.4/30 - 0=b"},
		{spec("host:a", held("a"), held("b"), held("x 3=y"), held("c.example.net")), "1 7 10.244.0.4/30 a 1=b 3=c.example.net"},
		{spec("host:a", released, unnamed, held("")), "1 7 10.244.0.4/30 a 1=b"},
		{&v3.IPAMBlockSpec{Affinity: ptr("host:a"), Allocations: []*int{ptr(9), ptr(-1), nil, nil}}, "1 7 10.244.0.4/30 a"},
	} {
		before := map[string]string{"other": "x", Annotation: "old"}
		got := Note(before, cidr, tc.spec, 7)
		if got[Annotation] != tc.want || got["other"] != "x" || before[Annotation] != "old" {
			t.Errorf("%q, want %q; all: %v, before: %v", got[Annotation], tc.want, got, before)
		}
		if !Noted(got, cidr, tc.spec, 7) || Noted(got, cidr, tc.spec, 8) || Noted(nil, cidr, tc.spec, 7) {
			t.Errorf("%q is not recognised", tc.want)
		}
		b, generation, err := Parse("10-244-0-4-30", got[Annotation])
		if err != nil || generation != 7 || !reflect.DeepEqual(b, Of(cidr, tc.spec)) {
			t.Errorf("read %+v, %d, %v; want %+v", b, generation, err, Of(cidr, tc.spec))
		}
	}
}

// TestIPv6 holds that names of IPv6 blocks are matched, too.
func TestIPv6(t *testing.T) {
	b, _, err := Parse("fd00-10---122", "1 1 fd00:10::/122 a 63=b")
	want := model.Block{CIDR: netip.MustParsePrefix("fd00:10::/122"), Node: "a", Lent: []model.Loan{{Addr: netip.MustParseAddr("fd00:10::3f"), Node: "b"}}}
	if err != nil || !reflect.DeepEqual(b, want) {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestParseRefuses holds that nothing is made of a text that is not whole.
func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "is missing",
		"2 7 10.244.0.4/30 a":         `is of version "2"`,
		"1":                           "has 1 parts",
		"1 7 10.244.0.4/30":           "has 3 parts",
		"1 x 10.244.0.4/30 a":         `the generation "x"`,
		"1 0 10.244.0.4/30 a":         `the generation "0"`,
		"1 7 10.244.0.0/30 a":         `the block "10.244.0.0/30"`,
		"1 7 10.244.0.5/30 a":         `the block "10.244.0.5/30"`,
		"1 7 ten a":                   `the block "ten"`,
		"1 7 10.244.0.4/30 ":          `the owner ""`,
		"1 7 10.244.0.4/30 a=b":       `the owner "a=b"`,
		"1 7 10.244.0.4/30 a ":        `has ""`,
		"1 7 10.244.0.4/30 a 4=b":     `has "4=b"; want ascending places of the block, 0 to 3`,
		"1 7 10.244.0.4/30 a -1=b":    `has "-1=b"`,
		"1 7 10.244.0.4/30 a 1=b 1=c": `has "1=c"; want ascending`,
		"1 7 10.244.0.4/30 a 2=b 1=c": `has "1=c"; want ascending`,
		"1 7 10.244.0.4/30 a 1=a":     `has "1=a"; want = and the name of a node that does not own the block`,
		"1 7 10.244.0.4/30 a 1":       `has "1"`,
		"1 7 10.244.0.4/30 a 1=":      `has "1="`,
	} {
		b, _, err := Parse("10-244-0-4-30", text)
		if err == nil || !strings.Contains(err.Error(), want) || b.CIDR.IsValid() {
			t.Errorf("%q: %+v, %v; want %q", text, b, err, want)
		}
	}
	if _, _, err := Parse("10-0-0-0-8", "1 7 10.0.0.0/8 a"); err == nil {
		t.Error("a block of 2^24 addresses was read")
	}
}

// TestTooLarge: what the API server would refuse keeps no block from being written.
func TestTooLarge(t *testing.T) {
	s := &v3.IPAMBlockSpec{Affinity: ptr("host:a")}
	for i := range 4096 {
		s.Attributes = append(s.Attributes, held(fmt.Sprintf("%s-%d", strings.Repeat("x", 100), i)))
		s.Allocations = append(s.Allocations, &i)
	}
	cidr := netip.MustParsePrefix("10.0.0.0/20")
	if got := Note(map[string]string{Annotation: "old"}, cidr, s, 1); got[Annotation] != "old" {
		t.Errorf("%d bytes were written", len(got[Annotation]))
	}
	if !Noted(nil, cidr, s, 1) {
		t.Error("what cannot be written is asked for")
	}
	for i := range s.Attributes {
		s.Attributes[i] = held(fmt.Sprintf("rack-17-node-%027d", i))
	}
	got := Note(nil, cidr, s, 1)
	if b, _, err := Parse(v3.BlockName(cidr), got[Annotation]); err != nil || len(b.Lent) != 4096 {
		t.Errorf("%d lent, %v", len(b.Lent), err)
	}
}
