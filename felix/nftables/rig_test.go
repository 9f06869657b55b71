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

// took returns the transactions since the last call.
func (w *written) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.scripts
	w.scripts = nil
	return out
}

func (w *written) bytes() int { return len(strings.Join(w.took(), "")) }

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
	r := &rig{to: &written{Host: nftables.NewHost().Within(l.Within)}}
	p, err := nftables.New(nftables.Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Kernel: r.to, Known: known, Guarded: guarded})
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
