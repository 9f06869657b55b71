package ipam_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

const blockName = "10-0-0-0-26"

// wantRoutes checks a block's annotation: rest is what follows its generation.
func wantRoutes(t *testing.T, what, rest string) {
	t.Helper()
	b := raw(t, blockName)
	if got, want := b.Annotations[blockroutes.Annotation], fmt.Sprintf("1 %d 10.0.0.0/26 %s", b.Generation, rest); got != want {
		t.Errorf("%s: the annotation is %q, want %q", what, got, want)
	}
}

func mark(b *ipam.Block, i int, node string) {
	b.Slots[i] = ipam.Slot{Handle: "h-" + node, Attrs: map[string]string{ipam.AttrNode: node}}
	var rest []int
	for _, n := range b.Unallocated {
		if n != i {
			rest = append(rest, n)
		}
	}
	b.Unallocated = rest
}

func change(t *testing.T, text string) {
	t.Helper()
	_, err := clients(t).Metadata.Resource(v3.SchemeGroupVersion.WithResource("ipamblocks")).Patch(t.Context(), blockName, types.MergePatchType, []byte(text), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRoutesAnnotation follows a block's annotation through the writes of its owner and of
// a borrower.
func TestRoutesAnnotation(t *testing.T) {
	ready(t)
	ctx := t.Context()
	owner, borrower := store(t, "n1"), store(t, "n2")
	b := newBlock("10.0.0.0/26", "n1")
	if err := owner.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, "created", "n1")
	mark(b, 3, "n1")
	if err := owner.Update(ctx, b); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, "updated by its owner", "n1")
	change(t, `{"metadata":{"annotations":{"example.org/a":"b"}}}`)
	theirs, err := borrower.Get(ctx, b.CIDR)
	if err != nil {
		t.Fatal(err)
	}
	mark(theirs, 5, "n2")
	mark(theirs, 63, "n2")
	if err := borrower.Update(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, "borrowed", "n1 5=n2 63=n2")
	if a := raw(t, blockName).Annotations["example.org/a"]; a != "b" {
		t.Errorf("another annotation is %q", a)
	}
	theirs.Affinity = ""
	if err := store(t, "").Update(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, "without an owner", "- 3=n1 5=n2 63=n2")
}

// TestMend changes blocks behind the agents' backs: whoever owns a block mends its
// annotation when it lists its own, and nobody else does.
func TestMend(t *testing.T) {
	ready(t)
	ctx := t.Context()
	list := func(node string, q ipam.Query) *ipam.Block {
		t.Helper()
		found, err := ipam.Collect(store(t, node).List(ctx, q))
		if err != nil || len(found) != 1 {
			t.Fatalf("%d blocks, %v", len(found), err)
		}
		return found[0]
	}
	b := newBlock("10.0.0.0/26", "n1")
	mark(b, 5, "n2")
	if err := store(t, "n2").Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, patch string }{
		{"taken away", `{"metadata":{"annotations":null}}`},
		{"rewritten", `{"metadata":{"annotations":{"causeway-net.github.io/routes":"1 1 10.0.0.0/26 n3"}}}`},
		{"of an older spec", `{"spec":{"sequenceNumber":99}}`},
	} {
		change(t, tc.patch)
		before := raw(t, blockName)
		list("n2", ipam.Query{})
		list("", ipam.Query{})
		if got := raw(t, blockName).ResourceVersion; got != before.ResourceVersion {
			t.Errorf("%s: another node wrote the block", tc.name)
		}
		got := list("n1", ipam.Query{Owner: "n1"})
		wantRoutes(t, tc.name, "n1 5=n2")
		after := raw(t, blockName)
		if after.Spec.SequenceNumber != before.Spec.SequenceNumber+1 || len(after.Spec.Attributes) != 1 {
			t.Errorf("%s: %+v became %+v", tc.name, before.Spec, after.Spec)
		}
		if err := store(t, "n1").Update(ctx, got); err != nil {
			t.Errorf("%s: the block that is listed is not the newest: %v", tc.name, err)
		}
		version := raw(t, blockName).ResourceVersion
		list("n1", ipam.Query{Owner: "n1"})
		if raw(t, blockName).ResourceVersion != version {
			t.Errorf("%s: what is right is written again", tc.name)
		}
	}
	// Nobody's block, in which n2 has an address.
	change(t, fmt.Sprintf(`{"metadata":{"annotations":null,"labels":{%q:"n2"}},"spec":{"affinity":null}}`, kube.BorrowerLabel("n2")))
	list("n2", ipam.Query{Borrower: "n2"})
	wantRoutes(t, "without an owner", "- 5=n2")
}

// oldPolicy is the part of an earlier release's admission policy that matters.
const oldPolicy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: old}
spec:
  matchConstraints:
    resourceRules:
      - {apiGroups: [projectcalico.org], apiVersions: ["*"], resources: [ipamblocks], operations: [UPDATE]}
  validations:
    - expression: object.metadata.?annotations == oldObject.metadata.?annotations
      message: annotations stay
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: old}
spec: {policyName: old, validationActions: [Deny]}
`

// TestOlderPolicies: where the admission policies are those of an earlier release, blocks
// can be written all the same, and the operator is told.
func TestOlderPolicies(t *testing.T) {
	ready(t)
	ctx := t.Context()
	b := newBlock("10.0.0.0/26", "n1")
	if err := store(t, "n1").Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	if _, err := apiserver.ApplyYAML(ctx, config, []byte(oldPolicy)); err != nil {
		t.Fatal(err)
	}
	policies := clients(t).Metadata.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"})
	gone := func() {
		if err := policies.Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
	n := 0
	refused := func() bool {
		n++
		_, err := clients(t).Metadata.Resource(v3.SchemeGroupVersion.WithResource("ipamblocks")).Patch(ctx, blockName, types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"annotations":{"probe":"%d"}}}`, n), metav1.PatchOptions{})
		return err != nil
	}
	eventually(t, "the policy", refused)
	var out bytes.Buffer
	s, err := kube.New(kube.Config{Clients: clients(t), Node: "n1", Log: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = s.Get(ctx, b.CIDR); err != nil {
		t.Fatal(err)
	}
	stale := raw(t, blockName).Annotations[blockroutes.Annotation]
	mark(b, 3, "n2")
	if err := errors.Join(s.Update(ctx, b), s.Update(ctx, b)); err != nil {
		t.Fatal(err)
	}
	if got := raw(t, blockName); len(got.Spec.Attributes) != 1 || got.Annotations[blockroutes.Annotation] != stale {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(out.String(), "apply the admission policies of this release"); n != 1 {
		t.Errorf("told %d times:\n%s", n, out.String())
	}
	gone()
	eventually(t, "no policy", func() bool { return !refused() })
	if _, err := ipam.Collect(s.List(ctx, ipam.Query{Owner: "n1"})); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, "with the policies of this release", "n1 3=n2")
}
