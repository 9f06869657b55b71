package nftables_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
)

// written is the host's nftables, and what was written to it.
type written struct {
	*nftables.Host
	mu      sync.Mutex
	scripts []string
	edits   [][]nftables.Member
}

func (w *written) Run(ctx context.Context, tx *knftables.Transaction) error {
	err := w.Host.Run(ctx, tx)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.scripts = append(w.scripts, tx.String())
	}
	return err
}

func (w *written) Edit(ctx context.Context, members []nftables.Member) error {
	err := w.Host.Edit(ctx, members)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.edits = append(w.edits, members)
	}
	return err
}

// edited returns the transactions that needed no nft since the last call.
func (w *written) edited() [][]nftables.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.edits
	w.edits = nil
	return out
}

// took returns the transactions of nft since the last call.
func (w *written) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.scripts
	w.scripts = nil
	return out
}

// bytes is how much was written since the last call.
func (w *written) bytes() int {
	n := len(strings.Join(w.took(), ""))
	for _, members := range w.edited() {
		for _, m := range members {
			n += len(m.Key) + len(m.Verdict)
		}
	}
	return n
}

// rig is a Policy running in a Lab.
type rig struct {
	*nftables.Policy
	to   *written
	stop func()
}

func start(t testing.TB, l *kerneltest.Lab, known ...string) *rig {
	t.Helper()
	return startGuarded(t, l, nil, known...)
}

func startGuarded(t testing.TB, l *kerneltest.Lab, guarded []string, known ...string) *rig {
	t.Helper()
	to := &written{Host: nftables.NewHost().Within(l.Within)}
	r := startOn(t, to, guarded, known...)
	r.to = to
	return r
}

// startOn starts one on a kernel of the test's.
func startOn(t testing.TB, k nftables.Kernel, guarded []string, known ...string) *rig {
	t.Helper()
	r := &rig{}
	p, err := nftables.New(nftables.Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Kernel: k, Known: known, Guarded: guarded})
	if err != nil {
		t.Fatal(err)
	}
	p.HealEvery(20 * time.Millisecond)
	r.Policy = p
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(r.stop)
	return r
}

// testWriter shows the log of a test that fails.
type testWriter struct{ testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (r *rig) Known() int { return r.Status().Known }
func (r *rig) Stop()      { r.stop() }

func starting(t testing.TB, l *kerneltest.Lab, known ...string) kerneltest.Running {
	return start(t, l, known...)
}
