package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// refusing refuses lines of transactions, as the kernel does.
type refusing struct {
	*written
	bad func(line string) bool
}

func (k *refusing) line(tx *knftables.Transaction) error {
	n := 0
	for l := range strings.Lines(tx.String()) {
		n++
		if k.bad(l) {
			return fmt.Errorf("/dev/stdin:%d:1-20: Error: refused by the test", n)
		}
	}
	return nil
}

func (k *refusing) Run(ctx context.Context, tx *knftables.Transaction) error {
	if err := k.line(tx); err != nil {
		return err
	}
	return k.written.Run(ctx, tx)
}

// Edit refuses what nft would be refused, without saying what it is about.
func (k *refusing) Edit(ctx context.Context, members []nftables.Member) error {
	for _, m := range members {
		verb, key := "add", fmt.Sprintf("%x", m.Key)
		if m.Gone {
			verb = "delete"
		}
		if a, ok := netip.AddrFromSlice([]byte(m.Key)); ok {
			key = a.String()
		}
		if k.bad(fmt.Sprintf("%s element inet %s %s { %s }\n", verb, nftables.TableName, m.Set, key)) {
			return unix.EEXIST
		}
	}
	return k.written.Edit(ctx, members)
}

// TestRefused has the kernel refuse a set that an endpoint's rules need: Wait says so,
// others go on, and the rules come when the set does.
func TestRefused(t *testing.T) {
	n := kerneltest.NewNode(t)
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	p := kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))
	p.Ingress[0].Source.Selector = "app == 'b'"
	kerneltest.Must(t, n.Engine.SetPolicy(p))
	d := n.Engine.Flush()
	set := ""
	for _, s := range d.NewSets {
		if s.Family == policy.IPv4 {
			set = string(s.ID)
		}
	}
	// Of two members one is refused, too.
	kerneltest.Must(t, n.Engine.SetEndpoint(kerneltest.Pod(2, "app=b")))
	more := n.Engine.Flush()
	for _, bad := range []string{"add set inet causeway " + set, "add element inet causeway " + set, "add rule inet causeway wi-cali0"} {
		t.Run(bad, func(t *testing.T) {
			var refuse atomic.Bool
			refuse.Store(true)
			k := &refusing{&written{Host: nftables.NewHost().Within(n.Lab.Within)}, func(l string) bool {
				// What names a set that is not there the kernel refuses by itself; the chain that drops it takes.
				return refuse.Load() && strings.HasPrefix(l, bad) && (!strings.Contains(bad, "element") || strings.Contains(l, "10.0.0.2")) && !strings.Contains(l, "are refused")
			}}
			pol, err := nftables.New(nftables.Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Kernel: k})
			kerneltest.Must(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- pol.Run(ctx) }()
			defer func() {
				cancel()
				_, err := nftables.Remove(t.Context(), k)
				kerneltest.Must(t, <-ended, err)
			}()
			pol.Apply(d)
			pol.Apply(more)
			pol.InSync()
			if err := pol.Wait(ctx, "cali0"); err == nil || !strings.Contains(err.Error(), "refused by the test") || !strings.Contains(err.Error(), "Pod red/pod0") {
				t.Errorf("cali0: %v", err)
			}
			if err := pol.Wait(ctx, "cali1"); err != nil {
				t.Errorf("cali1: %v", err)
			}
			if err := pol.Wait(ctx, "cali7"); err == nil || !strings.Contains(err.Error(), "cali7") {
				t.Errorf("cali7: %v", err)
			}
			if err := pol.Status().Err; err == nil {
				t.Error("Status says nothing")
			}
			shot := n.Packet(false, 6, "pod1", "pod0", 80)
			other := n.Packet(false, 6, "pod2", "pod0", 80)
			want := []bool{false, true, strings.Contains(bad, "element")}
			if got, err := n.Lab.Await([]trace.Packet{shot, n.Packet(false, 6, "outside", "pod1", 80), other}, want); err != nil || !slices.Equal(got, want) {
				t.Errorf("allowed by rules that are not there, or the other pod's are lacking: %v, %v", got, err)
			}
			refuse.Store(false)
			kerneltest.Eventually(t, func() string {
				if err := pol.Wait(ctx, "cali0"); err != nil {
					return err.Error()
				}
				if got, err := n.Lab.Fire([]trace.Packet{shot}); err != nil || !got[0] {
					return "the packet does not arrive"
				}
				return ""
			})
		})
	}
}

// TestNoKernel has a host whose nft fails altogether: Wait says so, and all comes when it works.
func TestNoKernel(t *testing.T) {
	n := kerneltest.NewNode(t)
	var refuse atomic.Bool
	refuse.Store(true)
	k := &refusing{&written{Host: nftables.NewHost().Within(n.Lab.Within)}, func(string) bool { return refuse.Load() }}
	pol, err := nftables.New(nftables.Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Kernel: k})
	kerneltest.Must(t, err, n.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- pol.Run(ctx) }()
	defer func() { cancel(); kerneltest.Must(t, <-ended) }()
	pol.Apply(n.Engine.Flush())
	for _, of := range [][]string{nil, {"cali0"}} {
		if err := pol.Wait(ctx, of...); err == nil || !strings.Contains(err.Error(), "refused by the test") {
			t.Errorf("%v: %v", of, err)
		}
	}
	if err := pol.Ready(); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("Ready: %v", err)
	}
	refuse.Store(false)
	kerneltest.Eventually(t, func() string {
		if err := errors.Join(pol.Wait(ctx, "cali0"), pol.Ready()); err != nil {
			return err.Error()
		}
		return ""
	})
	refuse.Store(true) // what fails later does not make the node useless
	pol.Apply(&policy.Delta{GoneEndpoints: []string{"cali0"}})
	if err := pol.Wait(ctx); err == nil {
		t.Error("Wait: no error")
	}
	if err := pol.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// TestSources has a pod send from what it was granted, and from nothing else of others'.
func TestSources(t *testing.T) {
	n, r := node(t)
	p := kerneltest.Pod(0, "app=a")
	p.AllowedSources = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8:9::/48")}
	kerneltest.Must(t, n.Engine.SetEndpoint(p), n.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	r.InSync()
	n.Flush()
	send := func(v6 bool, in, from string, want bool) {
		t.Helper()
		shot := n.Packet(v6, 6, from, "pod2", 80)
		shot.In, shot.Dst = in, n.Packet(v6, 6, "pod1", "other", 80).Dst
		shot.Out, _ = n.Lab.Out(shot.Dst)
		if wrong, err := n.Lab.Check([]trace.Packet{shot}, []bool{want}); err != nil || len(wrong) > 0 {
			t.Errorf("%s: arrived %v (%v)", shot, !want, err)
		}
	}
	check := func(granted bool) {
		t.Helper()
		for _, from := range []string{"203.0.113.1", "203.0.113.200", "192.0.2.7"} {
			send(false, "cali0", from, granted)
			send(false, "cali1", from, false)
		}
		send(true, "cali0", "2001:db8:9:ffff::1", granted)
		send(true, "cali1", "2001:db8:9:ffff::1", false)
		for _, from := range []string{"10.0.0.2", "192.0.2.8", "203.0.114.0", "0.0.0.0"} {
			if from != "0.0.0.0" {
				send(false, "cali0", from, false)
			}
		}
		for _, from := range []string{"fd00::2", "2001:db8:a::1"} {
			send(true, "cali0", from, false)
		}
		send(false, "cali0", "10.0.0.1", true)
		send(true, "cali0", "fd00::1", true)
	}
	check(true)
	p.AllowedSources = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	kerneltest.Must(t, n.Engine.SetEndpoint(p))
	n.Flush()
	send(false, "cali0", "198.51.100.1", true)
	send(true, "cali0", "fd00::2", false)
	p.AllowedSources = nil
	kerneltest.Must(t, n.Engine.SetEndpoint(p))
	n.Flush()
	check(false)
}

// TestWaitEnds gives up with the context.
func TestWaitEnds(t *testing.T) {
	pol, err := nftables.New(nftables.Config{Log: slog.New(slog.DiscardHandler)})
	kerneltest.Must(t, err)
	pol.InSync()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := pol.Wait(ctx); err == nil {
		t.Error("nothing runs, and Wait returned")
	}
	if _, err := nftables.New(nftables.Config{}); err == nil || !strings.Contains(err.Error(), "Config.Log") {
		t.Error(err)
	}
	if _, err := nftables.New(nftables.Config{Log: slog.New(slog.DiscardHandler), Workloads: "cali*"}); err == nil || !strings.Contains(err.Error(), "Config.Workloads") {
		t.Error(err)
	}
}
