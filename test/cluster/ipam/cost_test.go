package ipam_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

var requestTotal = regexp.MustCompile(`^apiserver_request_total\{.*resource="ipamblocks".*verb="([A-Z]+)".*\} ([0-9.e+]+)$`)

// served returns how many requests for blocks the API server says that it has served, by
// verb.
func served(t *testing.T) map[string]int {
	t.Helper()
	body, err := clients(t).V3.Get().AbsPath("/metrics").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		if m := requestTotal.FindStringSubmatch(lines.Text()); m != nil {
			n, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			out[m[1]] += int(n)
		}
	}
	return out
}

// cost is what some ADDs and DELs cost, as the API server's metrics have it.
func cost(t *testing.T, what string, addresses int, do func()) (writes, reads float64) {
	t.Helper()
	before := served(t)
	do()
	n := map[string]int{}
	for verb, count := range served(t) {
		n[verb] = count - before[verb]
	}
	w := n["POST"] + n["PUT"] + n["PATCH"] + n["DELETE"]
	r := n["GET"] + n["LIST"] + n["WATCH"]
	writes, reads = float64(w)/float64(addresses), float64(r)/float64(addresses)
	t.Logf("%s: %d addresses, %d writes (%.3f each), %d reads (%.3f each): %v", what, addresses, w, writes, r, reads, n)
	return writes, reads
}

// TestCost counts what an address costs the API server: the whole life of a pod, its ADD
// and its DEL and all that follows from them.
func TestCost(t *testing.T) {
	ready(t)
	const (
		nodes = 4
		pods  = 125
		par   = 10 // pods that a kubelet starts at once
	)
	s := snapshot(nodes, pool(t, "p", "10.0.0.0/16", 26))
	var allocs []*ipam.Allocator
	for i := range nodes {
		a := allocator(t, name(i), store(t, name(i)), s)
		if _, err := a.Assign(t.Context(), request(fmt.Sprintf("first-%d", i))); err != nil {
			t.Fatal(err)
		}
		allocs = append(allocs, a)
	}
	// written tells whether the blocks say what the journals say.
	written := func() bool {
		want := map[string]bool{}
		for _, a := range allocs {
			for _, ep := range a.Endpoints() {
				want["k8s-pod-network."+ep.Key.ContainerID] = true
			}
		}
		for _, b := range all(t, ipam.Query{}) {
			for _, slot := range b.Slots {
				switch {
				case want[slot.Handle]:
					delete(want, slot.Handle)
				case slot.Handle != "" && slot.Attrs[ipam.AttrPod] != "":
					return false
				}
			}
		}
		return len(want) == 0
	}
	settled := func() {
		// What is polled is not counted: it goes past the API server, to the nodes first.
		for i, a := range allocs {
			if err := a.Flush(t.Context(), false); err != nil {
				t.Errorf("%s: %v", name(i), err)
			}
		}
	}
	settled()
	if !written() {
		t.Fatal("Flush left something to write")
	}

	each := func(do func(a *ipam.Allocator, id string) error) {
		var wg sync.WaitGroup
		for i, a := range allocs {
			todo := make(chan int, pods)
			for k := range pods {
				todo <- k
			}
			close(todo)
			for range par {
				wg.Go(func() {
					for k := range todo {
						if err := do(a, fmt.Sprintf("burst-%d-%d", i, k)); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
	}
	add := func(a *ipam.Allocator, id string) error {
		_, err := a.Assign(context.Background(), request(id))
		return err
	}
	del := func(a *ipam.Allocator, id string) error {
		_, err := a.Release(context.Background(), id, "")
		return err
	}
	writes, reads := cost(t, "burst", nodes*pods, func() {
		each(add)
		each(del)
		settled()
	})
	if writes == 0 {
		t.Error("the API server's metrics show no writes")
	}
	// Of reads there is one for each block that is claimed: whether another overlaps it.
	if writes > 0.2 || reads > 0.05 {
		t.Errorf("a burst costs %.3f writes and %.3f reads for an address, want 0.2 and 0.05 at most", writes, reads)
	}
	if !written() {
		t.Error("the blocks do not say what the journals say")
	}

	const rare = 15
	writes, reads = cost(t, "one every 300 ms", nodes*rare, func() {
		var wg sync.WaitGroup
		for i, a := range allocs {
			wg.Go(func() {
				tick := time.NewTicker(300 * time.Millisecond)
				defer tick.Stop()
				for k := range rare {
					<-tick.C
					if err := add(a, fmt.Sprintf("rare-%d-%d", i, k)); err != nil {
						t.Error(err)
					}
					if k > 0 {
						if err := del(a, fmt.Sprintf("rare-%d-%d", i, k-1)); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		settled()
	})
	if writes > 1 || reads > 0 {
		t.Errorf("sparse ADDs cost %.3f writes and %.3f reads for an address, want 1 and 0 at most", writes, reads)
	}
	if !written() {
		t.Error("the blocks do not say what the journals say")
	}
}

// TestManyBlocks: what a node reads does not grow with the blocks of others, but for their
// names, and for the bodies of those it means to borrow from.
func TestManyBlocks(t *testing.T) {
	ready(t)
	const others = 1024 // the whole of 10.0.0.0/16 at /26
	var wg sync.WaitGroup
	todo := make(chan int, others)
	for i := range others {
		todo <- i
	}
	close(todo)
	for range 16 {
		s := store(t, "other")
		wg.Go(func() {
			for i := range todo {
				b := newBlock(fmt.Sprintf("10.0.%d.%d/26", i/4, i%4*64), "other")
				for k := range 60 {
					b.Slots[k] = ipam.Slot{Handle: fmt.Sprintf("k8s-pod-network.%064d", k), Attrs: map[string]string{"pod": fmt.Sprint("pod-", k), "namespace": "default", "node": "other", "timestamp": "2026-01-02 03:04:05 +0000 UTC"}}
				}
				b.Unallocated = []int{60, 61, 62, 63}
				if err := s.Create(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}

	free, full := pool(t, "free", "10.1.0.0/24", 26), pool(t, "full", "10.0.0.0/16", 26)
	r := newRoad(1)
	node := allocator(t, name(0), store(t, name(0), r.wrap), snapshot(1, free, full), func(c *ipam.Config) {
		c.SearchEvery = time.Hour
	})
	assign := func(id string, change func(*model.AddressRequest)) error {
		req := request(id)
		change(&req)
		_, err := node.Assign(t.Context(), req)
		return err
	}
	step := func(what string, maxBytes int, max map[string]int) {
		t.Helper()
		counts, bytes := r.taken()
		t.Logf("%s: %v, %d bytes", what, counts, bytes)
		for kind, n := range counts {
			if limit, ok := max[kind]; n > limit && (ok || kind != "POST" && kind != "PUT") {
				t.Errorf("%s: %d requests %s, want %d at most", what, n, kind, limit)
			}
		}
		if bytes > maxBytes {
			t.Errorf("%s: %d bytes were read, want %d at most", what, bytes, maxBytes)
		}
	}
	if err := assign("a", func(*model.AddressRequest) {}); err != nil {
		t.Fatal(err)
	}
	// Of each block the labels, the annotation of its routes, and who manages which field.
	const nameBytes = 1400
	step("start and first claim", others*nameBytes, map[string]int{"LIST": 2, "NAMES": 2})
	if err := assign("b", func(*model.AddressRequest) {}); err != nil {
		t.Fatal(err)
	}
	if err := node.Flush(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	step("an ADD", 30_000, map[string]int{})
	// Reads names while they are few; this cluster has many.
	if err := node.Flush(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	step("resync", 30_000, map[string]int{"LIST": 2})
	if err := assign("c", func(q *model.AddressRequest) { q.IPv4Pools = []string{"full"} }); err != nil {
		t.Fatal(err)
	}
	step("borrowing from a full pool", others*nameBytes+8*30_000, map[string]int{"LIST": 1, "NAMES": 2, "GET": 8})
}
