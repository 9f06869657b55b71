package iptables_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
)

// setsWithin is the host's ipset in a Lab's namespace.
type setsWithin struct {
	*ipset.Host
	lab *kerneltest.Lab
}

func (s setsWithin) Headers(ctx context.Context) (out []ipset.Header, err error) {
	err = s.lab.Within(func() (err error) { out, err = s.Host.Headers(ctx); return err })
	return out, err
}

func (s setsWithin) List(ctx context.Context, name string, begin func(ipset.Header), each func(ipset.Listed)) error {
	return s.lab.Within(func() error { return s.Host.List(ctx, name, begin, each) })
}

func (s setsWithin) Apply(ctx context.Context, commands []ipset.Command) (out []error, err error) {
	err = s.lab.Within(func() (err error) { out, err = s.Host.Apply(ctx, commands); return err })
	return out, err
}

// policyRig is policy running in a Lab.
type policyRig struct {
	*iptables.Policy
	rules []*iptables.Reconciler
	sets  *ipset.Reconciler
	stop  func()
}

func startPolicy(t testing.TB, l *kerneltest.Lab, b iptables.Backend, known ...string) *policyRig {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	host := ipset.NewHost()
	sets, err := ipset.New(ipset.Config{Log: log, Owners: []string{"policy"}, Kernel: setsWithin{host, l}})
	if err != nil {
		t.Fatal(err)
	}
	r := &policyRig{sets: sets}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		rec, err := iptables.New(iptables.Config{Family: f, Log: log, Kernel: iptables.NewHost(f, b, 0).Within(l.Within)})
		if err != nil {
			t.Fatal(err)
		}
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
