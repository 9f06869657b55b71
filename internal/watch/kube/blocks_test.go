package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/internal/model"
)

// noted is the metadata of a block of 10.0.0.0/8; rest follows the CIDR in its annotation,
// which there is none of when rest is empty.
func noted(i int, generation int64, rest string) *metav1.PartialObjectMetadata {
	cidr := fmt.Sprintf("10.%d.%d.0/26", i/256, i%256)
	m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: v3.BlockName(netip.MustParsePrefix(cidr)), Generation: generation, CreationTimestamp: metav1.Unix(100, 0),
		UID: types.UID(fmt.Sprintf("9f1b1c52-60ac-4b2e-8f0e-%012d", i)), ResourceVersion: fmt.Sprint(1000 + i),
		Labels:        map[string]string{"causeway-net.github.io/ip-family": "4", "causeway-net.github.io/block-size": "26"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "causeway", FieldsV1: &metav1.FieldsV1{Raw: make([]byte, 500)}}},
	}}
	if rest != "" {
		m.Annotations = map[string]string{blockroutes.Annotation: fmt.Sprintf("1 %d %s %s", generation, cidr, rest)}
	}
	return m
}

// TestForeignBlocks follows one block through good and bad versions.
func TestForeignBlocks(t *testing.T) {
	f := newForeignBlocks()
	name := noted(1, 1, "").Name
	row := func(m *metav1.PartialObjectMetadata, changed bool) foreign {
		t.Helper()
		if got := f.set(m); got != changed {
			t.Errorf("%v: changed: %v", m.Annotations, got)
		}
		r := *f.rows[name]
		if _, in := f.broken[name]; in != r.broken {
			t.Error("broken is not counted")
		}
		if _, in := f.stale[name]; in != r.stale {
			t.Error("stale is not counted")
		}
		return r
	}
	if r := row(noted(1, 1, ""), true); !r.broken || r.cidr.IsValid() {
		t.Errorf("%+v", r)
	}
	want := []model.Loan{{Addr: netip.MustParseAddr("10.0.1.5"), Node: "b"}}
	if r := row(noted(1, 2, "a 5=b"), true); r.broken || r.stale || r.node.Value() != "a" || !slices.Equal(r.lent, want) {
		t.Errorf("%+v", r)
	}
	row(noted(1, 3, "a 5=b"), false) // another address of the owner's
	edited := noted(1, 3, "a 5=b")
	edited.Generation = 4
	if r := row(edited, true); !r.stale || r.node.Value() != "a" {
		t.Errorf("%+v", r)
	}
	if r := row(noted(1, 5, "a 5=a"), true); !r.broken || r.stale || r.node.Value() != "a" || !slices.Equal(r.lent, want) {
		t.Errorf("what was known is lost: %+v", r)
	}
	again := noted(1, 1, "")
	again.CreationTimestamp = metav1.Unix(200, 0)
	if r := row(again, true); r.cidr.IsValid() {
		t.Errorf("another block of that name has the old one's owner: %+v", r)
	}
	if !f.replace([]any{noted(2, 1, "a")}) || f.replace([]any{noted(2, 1, "a")}) || len(f.rows) != 1 || len(f.broken) != 0 {
		t.Errorf("%+v", f)
	}
	if !f.remove(noted(2, 1, "")) || f.remove(noted(2, 1, "")) || f.len() != 0 {
		t.Errorf("%+v", f)
	}
}

// TestForeignBlockSize holds that a block of another node costs little.
func TestForeignBlockSize(t *testing.T) {
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	f := newForeignBlocks()
	const n = 20000
	before := heap()
	for i := range n {
		f.set(noted(i, 7, fmt.Sprintf("node-%04d.rack-17.example.net", i/2)))
	}
	each := (int64(heap()) - int64(before)) / n
	t.Logf("a block costs %d bytes", each)
	if f.len() != n || each > 300 {
		t.Errorf("%d blocks cost %d bytes each", f.len(), each)
	}
}

// TestBlocksPending: while blocks may be there that nobody can tell of, the snapshot says so,
// and no longer than their owners need to mend them.
func TestBlocksPending(t *testing.T) {
	var snap *model.Snapshot
	s := filled(t, func(s *model.Snapshot) { snap = s })
	var running sync.WaitGroup
	defer running.Wait()
	defer func() { s.watchBlocks(t.Context(), &running, false) }()
	pool := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "p", ResourceVersion: "1"}, Spec: v3.IPPoolSpec{CIDR: "10.0.0.0/8", VXLANMode: v3.EncapAlways}}
	update := func() *model.Snapshot { s.update(t.Context(), &running); return snap }
	if s := update(); !s.BlocksKnown || len(s.Blocks) != 4 {
		t.Errorf("without VXLAN: known %v, %v", s.BlocksKnown, s.Blocks)
	}
	if err := s.feed("ippools.projectcalico.org").Add(&item{Object: pool}); err != nil {
		t.Fatal(err)
	}
	if s := update(); s.BlocksKnown || len(s.Blocks) != 4 || s.Pools[0].VXLANMode != model.EncapAlways {
		t.Errorf("before they were read: known %v, %v", s.BlocksKnown, s.Blocks)
	}
	own := noted(0, 1, "n9") // read in full, which goes first
	own.Name = "10-244-0-0-26"
	if err := s.allBlocks.Replace([]any{noted(1, 1, "n1 5=n2"), noted(2, 1, ""), noted(3, 1, "n0"), own}, "1"); err != nil {
		t.Fatal(err)
	}
	x := update()
	if x.BlocksKnown || len(x.Blocks) != 5 || !reflect.DeepEqual(x.Blocks[0], model.Block{CIDR: netip.MustParsePrefix("10.0.1.0/26"), Node: "n1", Lent: []model.Loan{{Addr: netip.MustParseAddr("10.0.1.5"), Node: "n2"}}}) {
		t.Errorf("one of nobody: known %v, %v", x.BlocksKnown, x.Blocks)
	}
	if i := slices.IndexFunc(x.Blocks, func(b model.Block) bool { return b.Node == "n9" || b.CIDR.Addr() == netip.MustParseAddr("10.0.3.0") }); i >= 0 {
		t.Errorf("an annotation says whose %v is, against what this node's own watch does", x.Blocks[i])
	}
	if i := slices.IndexFunc(x.Problems, func(p model.Problem) bool {
		return !p.Ignored && strings.HasPrefix(p.String(), "IPAMBlock *: .metadata.annotations[causeway-net.github.io/routes]: is missing, or cannot be read, of 2: 10-0-2-0-26, 10-244-0-0-26;")
	}); i < 0 {
		t.Errorf("%v", x.Problems)
	}
	s.mu.Lock()
	s.allBlocks.synced = time.Now().Add(-mendWait)
	s.mu.Unlock()
	if s := update(); !s.BlocksKnown {
		t.Error("a block that nobody mends is waited for forever")
	}
	pool = pool.DeepCopy()
	pool.Spec.VXLANMode, pool.ResourceVersion = v3.EncapNever, "2"
	if err := s.feed("ippools.projectcalico.org").Update(&item{Object: pool}); err != nil {
		t.Fatal(err)
	}
	if x := update(); !x.BlocksKnown || len(x.Blocks) != 4 || s.allBlocks != nil || len(x.Problems) != 0 {
		t.Errorf("without VXLAN again: %+v", x)
	}
}
