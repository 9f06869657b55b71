package file

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/watch"
)

// fullBlock is a block of 64 addresses that all have holders.
func fullBlock(seq int) string {
	var b strings.Builder
	b.WriteString("apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata:\n  name: \"10-244-0-0-26\"\nspec:\n  cidr: \"10.244.0.0/26\"\n  affinity: \"host:n1\"\n")
	fmt.Fprintf(&b, "  sequenceNumber: %d\n  strictAffinity: false\n  allocations: [0", seq)
	for i := 1; i < 64; i++ {
		fmt.Fprintf(&b, ", %d", i)
	}
	b.WriteString("]\n  unallocated: []\n  attributes:\n")
	for i := range 64 {
		fmt.Fprintf(&b, "    - handle_id: \"k8s-pod-network.%064d\"\n      secondary: {\"namespace\": \"default\", \"node\": \"n1\", \"pod\": \"pod-%d\"}\n", i, i)
	}
	return b.String()
}

// BenchmarkBlockRewrite is the cost of reading one block anew when an address was given.
func BenchmarkBlockRewrite(b *testing.B) {
	d := newFolder(watch.Options{Node: "n1"})
	now := time.Now()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		d.observe("ipam/blocks/10-244-0-0-26.yaml", fullBlock(i), fingerprint{mtime: int64(i)}, now, 0)
	}
	if !d.holds(blockFolder) {
		b.Fatal(d.input().Problems)
	}
}

// BenchmarkBuild10000 is the cost of a changed block in a cluster of 10,000.
func BenchmarkBuild10000(b *testing.B) {
	d := newFolder(watch.Options{Node: "n1"})
	now := time.Now()
	for i := range 10000 {
		cidr := fmt.Sprintf("10.%d.%d.0/32", i/256, i%256)
		name := strings.NewReplacer(".", "-", "/", "-").Replace(cidr)
		d.observe(blockFolder+name+".yaml", "apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata:\n  name: "+name+
			"\nspec:\n  cidr: "+cidr+"\n  affinity: host:n1\n  allocations: [null]\n  unallocated: [0]\n  attributes: []\n  strictAffinity: false\n",
			fingerprint{}, now, 0)
	}
	for b.Loop() {
		if s := watch.Build(d.input(), d.opt); len(s.Blocks) != 10000 {
			b.Fatal(s.Problems)
		}
	}
}
