// Package watch_test proves internal/watch/kube against a real API server.
package watch_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

const crds = "../../../deploy/crds"

var server *apiserver.Server

func TestMain(m *testing.M) {
	apiserver.MainServer(m, func(s *apiserver.Server) { server = s })
}

// patience bounds every wait: a feed that was refused for long comes back within 16 s.
const patience = 40 * time.Second

// installed makes sure that the CRDs are there and that no objects are.
func installed(t *testing.T) {
	t.Helper()
	if err := apiserver.Apply(t.Context(), server.Config, crds); err != nil {
		t.Fatal(err)
	}
	clear(t)
}

// clear deletes what tests make.
func clear(t *testing.T) {
	t.Helper()
	c := clients(t, server.Config)
	ctx := context.Background()
	now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	calico := func(resource string) schema.GroupVersionResource { return v3.SchemeGroupVersion.WithResource(resource) }
	for _, r := range []schema.GroupVersionResource{
		calico("ippools"), calico("bgpconfigurations"), calico("bgppeers"), calico("ipamconfigurations"), calico("felixconfigurations"), calico("ipreservations"), calico("ipamblocks"), calico("bgpfilters"),
		{Version: "v1", Resource: "nodes"},
	} {
		if err := c.Metadata.Resource(r).DeleteCollection(ctx, now, metav1.ListOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	for _, r := range []schema.GroupVersionResource{{Version: "v1", Resource: "pods"}, {Version: "v1", Resource: "secrets"}, {Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}} {
		list, err := c.Metadata.Resource(r).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			if err := c.Metadata.Resource(r).Namespace(o.Namespace).Delete(ctx, o.Name, now); err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
		}
	}
}

func clients(t testing.TB, cfg *rest.Config) *kubeapi.Clients {
	t.Helper()
	c, err := kubeapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// apply applies manifests and fails the test if that is refused.
func apply(t testing.TB, text string) {
	t.Helper()
	if _, err := apiserver.ApplyYAML(context.Background(), server.Config, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// remove deletes an object; resource is "ippools", "v1/nodes" or "v1/pods".
func remove(t testing.TB, resource, namespace, name string) {
	t.Helper()
	r := v3.SchemeGroupVersion.WithResource(resource)
	if plural, core := strings.CutPrefix(resource, "v1/"); core {
		r = schema.GroupVersionResource{Version: "v1", Resource: plural}
	}
	err := clients(t, server.Config).Metadata.Resource(r).Namespace(namespace).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	if err != nil {
		t.Fatal(err)
	}
}

// patch changes an object by a JSON merge patch.
func patch(t testing.TB, resource, name, patch string, subresources ...string) {
	t.Helper()
	r := v3.SchemeGroupVersion.WithResource(resource)
	if plural, core := strings.CutPrefix(resource, "v1/"); core {
		r = schema.GroupVersionResource{Version: "v1", Resource: plural}
	}
	if _, err := clients(t, server.Config).Metadata.Resource(r).Patch(context.Background(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...); err != nil {
		t.Fatal(err)
	}
}

// running is a Source under test and what it published.
type running struct {
	*kube.Source
	t    testing.TB
	stop func() error

	mu    sync.Mutex
	last  *model.Snapshot
	count int
	log   bytes.Buffer
}

func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

// start runs a source for node n1 until the test ends.
func start(t testing.TB, cfg *rest.Config, set ...func(*kube.Config)) *running {
	t.Helper()
	r := &running{t: t}
	c := kube.Config{
		Clients: clients(t, cfg), Node: "n1", Log: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Publish: func(s *model.Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.last != nil && s.Revision != r.last.Revision+1 {
				t.Errorf("revision %d follows %d", s.Revision, r.last.Revision)
			}
			r.last = s
			r.count++
		},
	}
	for _, f := range set {
		f(&c)
	}
	s, err := kube.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Source = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the source:\n%s", r.logged())
			fmt.Fprintf(os.Stderr, "%+v\n", s.Status())
		}
	})
	return r
}

func (r *running) snapshot() *model.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *running) published() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

func (r *running) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not seen: %s; %s", what, state())
		}
	}
}

// await waits for a snapshot that satisfies ok.
func (r *running) await(what string, ok func(*model.Snapshot) bool) *model.Snapshot {
	r.t.Helper()
	eventually(r.t, what, func() bool { s := r.snapshot(); return s != nil && ok(s) }, func() string { return fmt.Sprintf("the last snapshot is %+v", r.snapshot()) })
	return r.snapshot()
}

// watching returns the status of one watch; ok is false if there is none.
func (r *running) watching(name string) (kube.WatchStatus, bool) {
	for _, w := range r.Status().Watches {
		if w.Name == name {
			return w, true
		}
	}
	return kube.WatchStatus{}, false
}

func hasProblem(s *model.Snapshot, text string) bool {
	for _, p := range s.Problems {
		if strings.Contains(p.String(), text) {
			return true
		}
	}
	return false
}

// proxy stands between a source and the API server, to cut the way and to count what
// passes.
type proxy struct {
	cfg      *rest.Config
	listener net.Listener
	received atomic.Int64 // bytes towards the source
	accepted atomic.Int64 // connections

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newProxy(t testing.TB) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, conns: map[net.Conn]bool{}, cfg: rest.CopyConfig(server.Config)}
	p.cfg.Host = "https://" + l.Addr().String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			all.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.setCut(true)
		all.Wait()
	})
	return p
}

// setCut closes all connections and refuses new ones, or lets them through again.
func (p *proxy) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			c.Close()
		}
	}
}

// track notes a connection; it closes it if the way is cut.
func (p *proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) serve(in net.Conn) {
	defer in.Close()
	if !p.track(in) {
		return
	}
	out, err := net.Dial("tcp", strings.TrimPrefix(server.Config.Host, "https://"))
	if err != nil {
		return
	}
	defer out.Close()
	if !p.track(out) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(out, in)
		out.Close()
	}()
	io.Copy(io.MultiWriter(in, counter{&p.received}), out)
	in.Close()
	<-done
	p.mu.Lock()
	delete(p.conns, in)
	delete(p.conns, out)
	p.mu.Unlock()
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}
