package iptables_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
)

// setsWithin is the host's ipset in a Lab's namespace.
type setsWithin struct {
	*ipset.Host
	lab *kerneltest.Lab
	bad *atomic.Value // name of a set that cannot be made
}

func (s setsWithin) Headers(ctx context.Context) (out []ipset.Header, err error) {
	err = s.lab.Within(func() (err error) { out, err = s.Host.Headers(ctx); return err })
	return out, err
}

func (s setsWithin) List(ctx context.Context, name string, begin func(ipset.Header), each func(ipset.Listed)) error {
	return s.lab.Within(func() error { return s.Host.List(ctx, name, begin, each) })
}

func (s setsWithin) Apply(ctx context.Context, commands []ipset.Command) (out []error, err error) {
	bad, _ := s.bad.Load().(string)
	var good []ipset.Command
	for _, c := range commands {
		if c.Name != bad {
			good = append(good, c)
		}
	}
	err = s.lab.Within(func() (err error) { out, err = s.Host.Apply(ctx, good); return err })
	for i, c := range commands {
		if c.Name == bad {
			out = slices.Insert(out, min(i, len(out)), errors.New("refused by the test"))
		}
	}
	return out, err
}

// written is the host's iptables, and what was written to it.
type written struct {
	*iptables.Host
	before  atomic.Pointer[func() error] // what Restore waits for; its error stands in for the program's
	mu      sync.Mutex
	scripts []string
}

func (w *written) Restore(ctx context.Context, script []byte) error {
	if f := w.before.Load(); f != nil {
		if err := (*f)(); err != nil {
			return err
		}
	}
	err := w.Host.Restore(ctx, script)
	if err == nil && !strings.Contains(string(script), "\n-C ") {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.scripts = append(w.scripts, string(script))
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

// hold has every Restore do f first; nil: nothing.
func (r *policyRig) hold(f func() error) {
	for _, to := range r.to {
		if f == nil {
			to.before.Store(nil)
		} else {
			to.before.Store(&f)
		}
	}
}

// took returns the transactions of both families since the last call. To compare rules is none.
func (r *policyRig) took() (out []string) {
	for _, to := range r.to {
		out = append(out, to.took()...)
	}
	return out
}

// policyRig is policy running in a Lab.
type policyRig struct {
	*iptables.Policy
	rules []*iptables.Reconciler
	to    []*written // per family
	bad   atomic.Value
	sets  *ipset.Reconciler
	stop  func()
}

func startPolicy(t testing.TB, l *kerneltest.Lab, b iptables.Backend, known ...string) *policyRig {
	t.Helper()
	return startRefusing(t, l, b, "", known...)
}

// startRefusing is startPolicy on a kernel that does not make the set of that name, until
// policyRig.bad says otherwise.
func startRefusing(t testing.TB, l *kerneltest.Lab, b iptables.Backend, refuse string, known ...string) *policyRig {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	host := ipset.NewHost()
	r := &policyRig{}
	r.bad.Store(refuse)
	sets, err := ipset.New(ipset.Config{Log: log, Owners: []string{"policy"}, Kernel: setsWithin{host, l, &r.bad}, Glance: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r.sets = sets
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		to := &written{Host: iptables.NewHost(f, b, 0).Within(l.Within)}
		r.to = append(r.to, to)
		cfg := iptables.Config{Family: f, Log: log, Kernel: to}
		if b == iptables.Legacy { // the kernel does not tell of changes
			cfg.Resync = 300 * time.Millisecond
		}
		rec, err := iptables.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		rec.HealEvery(100 * time.Millisecond)
		r.rules = append(r.rules, rec)
	}
	r.Policy, err = iptables.NewPolicy(iptables.PolicyConfig{Log: log, Rules: r.rules, Sets: sets, SetOwner: "policy", Known: known})
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range r.rules {
		wg.Go(func() { _ = rec.Run(ctx) })
	}
	wg.Go(func() { _ = sets.Run(ctx) })
	wg.Go(func() { _ = r.Run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		host.Close()
	})
	t.Cleanup(r.stop)
	return r
}
