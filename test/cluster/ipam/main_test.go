// Package ipam_test holds ipam and its Store on Kubernetes against a real API server.
package ipam_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var (
	server *apiserver.Server
	config *rest.Config
)

func TestMain(m *testing.M) {
	apiserver.MainServer(m, func(s *apiserver.Server) { server, config = s, s.Config })
}

// ready applies the CRD and removes all blocks, now and at the end of the test.
func ready(t *testing.T) {
	t.Helper()
	if err := apiserver.Apply(t.Context(), config, "../../../deploy/crds/projectcalico.org_ipamblocks.yaml"); err != nil {
		t.Fatal(err)
	}
	removeAll(t)
	t.Cleanup(func() { removeAll(t) })
}

func removeAll(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := clients(t).V3.Delete().Resource("ipamblocks").Do(ctx).Error(); err != nil {
		t.Errorf("delete all blocks: %v", err)
	}
}

func clients(t testing.TB, change ...func(*rest.Config)) *kubeapi.Clients {
	t.Helper()
	cfg := rest.CopyConfig(config)
	for _, c := range change {
		c(cfg)
	}
	out, err := kubeapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func store(t testing.TB, node string, change ...func(*rest.Config)) *kube.Store {
	t.Helper()
	s, err := kube.New(kube.Config{Clients: clients(t, change...), Node: node, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newBlock(cidr, node string) *ipam.Block {
	return ipam.NewBlock(netip.MustParsePrefix(cidr), node, time.Unix(1_800_000_000, 0).UTC())
}

// raw reads an object as it is stored.
func raw(t *testing.T, name string) *v3.IPAMBlock {
	t.Helper()
	r := kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](clients(t).V3, "ipamblocks", "")
	b, err := r.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func all(t testing.TB, q ipam.Query) []*ipam.Block {
	t.Helper()
	list, err := ipam.Collect(store(t, "").List(context.Background(), q))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func sel(t testing.TB, s string) model.Selector {
	t.Helper()
	x, err := selector.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func pool(t testing.TB, name, cidr string, size int) model.Pool {
	return model.Pool{Name: name, CIDR: netip.MustParsePrefix(cidr), BlockSize: size, NodeSelector: sel(t, "all()"), AllowedUses: []model.Use{model.UseWorkload}}
}

func snapshot(nodes int, pools ...model.Pool) *model.Snapshot {
	s := &model.Snapshot{Pools: pools, IPAM: model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 20}}
	for i := range nodes {
		n := name(i)
		s.Nodes = append(s.Nodes, model.Node{Name: n, Labels: map[string]string{"kubernetes.io/hostname": n}})
	}
	return s
}

func name(i int) string { return fmt.Sprintf("node-%d", i) }

// allocator returns a running Allocator, as an agent has it.
func allocator(t *testing.T, node string, s ipam.Store, snap *model.Snapshot, change ...func(*ipam.Config)) *ipam.Allocator {
	t.Helper()
	cfg := ipam.Config{Node: node, Store: s, JournalDir: filepath.Join(t.TempDir(), "journal"), Log: slog.New(slog.DiscardHandler), Resync: kube.Resync}
	for _, c := range change {
		c(&cfg)
	}
	a, err := ipam.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.Set(snap)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: Run: %v", node, err)
		}
		a.Close()
	})
	return a
}

func request(id string) model.AddressRequest {
	return model.AddressRequest{Key: model.AttachmentKey{ContainerID: id, IfName: "eth0"}, Network: "k8s-pod-network", Namespace: "default", Pod: "pod-" + id}
}

// eventually polls until ok or half a minute has passed.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within 30 s not: %s", what)
		}
	}
}
