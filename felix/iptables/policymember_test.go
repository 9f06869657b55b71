package iptables_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// expected is a Node's pod before it is attached.
func expected(i int, label string) model.PolicyEndpoint {
	e := kerneltest.Pod(i, label)
	e.Addresses = nil
	return e
}

// attach gives the kernel what the engine has, and waits for one interface.
func (w *world) attach(iface string) {
	w.Helper()
	w.Backend.Apply(w.Engine.Flush())
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	if err := w.Backend.Wait(ctx, iface); err != nil {
		w.Fatal(err)
	}
}

// foreign gives pod0's link the addresses 10.0.0.77 and fd00::77, which are nobody's, so that no route back
// tells that they are not pod0's own.
func (w *world) foreign(i int) {
	w.Helper()
	for _, a := range []string{"10.0.0.7" + fmt.Sprint(i), "fd00::7" + fmt.Sprint(i)} {
		w.Lab.Run(w, "ip", "route", "add", a, "dev", fmt.Sprintf("cali%d", i))
	}
}

// spoofed are packets of pod i from the addresses of foreign, both families, to a pod and to the host.
func (w *world) spoofed(i int, to string) (out []trace.Packet) {
	for _, v6 := range []bool{false, true} {
		p := w.Packet(v6, 6, fmt.Sprintf("pod%d", i), to, 80)
		p.Src = netip.MustParseAddr("10.0.0.7" + fmt.Sprint(i))
		if v6 {
			p.Src = netip.MustParseAddr("fd00::7" + fmt.Sprint(i))
		}
		p.In = fmt.Sprintf("cali%d", i)
		out = append(out, p)
	}
	return out
}

// none fails the test when one of the packets arrives.
func (w *world) none(what string, packets ...trace.Packet) {
	w.Helper()
	got, err := w.Lab.Fire(packets)
	if err != nil {
		w.Fatal(err)
	}
	for i, arrived := range got {
		if arrived {
			w.Errorf("%s: %s arrived", what, packets[i])
		}
	}
}

// TestPolicyAttach attaches a pod that no policy selects, and one whose object was there before: no program
// runs, and packets pass once Wait has returned. Nobody sends from what is not its own.
func TestPolicyAttach(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		kerneltest.Must(t, w.Engine.SetEndpoint(expected(0, "app=a")), w.Engine.SetEndpoint(expected(1, "app=b")), w.Engine.SetEndpoint(kerneltest.Pod(2, "app=a")),
			w.Engine.SetPolicy(kerneltest.Global("web", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		for i := range 4 {
			w.foreign(i)
		}
		w.Expect("nobody is attached", "outside > pod0:80 yes", "pod0 > outside:80 no", "outside > pod1:80 no", "pod1 > outside:80 no", "pod2 > outside:80 yes")
		for i := range 3 {
			w.none("before", w.spoofed(i, "outside")...)
			w.none("before", w.spoofed(i, "host")...)
		}
		w.rig.took()
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
		w.attach("cali0")
		w.Expect("selected", "outside > pod0:80 yes", "outside > pod0:81 no", "pod0 > outside:81 yes", "pod0 > host:1 yes")
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
		w.attach("cali1")
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(3, "app=b"))) // never heard of before
		w.attach("cali3")
		w.Expect("open", "outside > pod1:81 yes", "pod1 > outside:81 yes", "pod1 > host:1 yes", "pod3 > pod1:9 yes", "pod1 > pod0:81 no", "pod1 > pod0:80 yes")
		for i := range 4 {
			w.none("attached", w.spoofed(i, "outside")...)
			w.none("attached", w.spoofed(i, "host")...)
		}
		// Detached, while its object lives on, and gone.
		kerneltest.Must(t, w.Engine.SetEndpoint(expected(0, "app=a")))
		w.attach("cali0")
		w.Engine.RemoveEndpoint(kerneltest.Pod(3, "").ID)
		w.Flush()
		w.Expect("detached", "pod0 > outside:81 no", "pod3 > outside:9 no", "outside > pod3:9 no", "outside > pod1:9 yes")
		if scripts := w.rig.took(); len(scripts) != 0 {
			t.Errorf("%d transactions of iptables-restore: %s", len(scripts), scripts)
		}
	})
}

// TestPolicyWaitsForItsOwn has an open pod wait while the rules of others are being written.
func TestPolicyWaitsForItsOwn(t *testing.T) {
	w := newWorld(t)
	kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(expected(1, "app=b")),
		w.Engine.SetPolicy(kerneltest.Global("b", "app == 'b'", policy.Egress, kerneltest.Port(model.RuleAllow, 6, 80))))
	w.start(iptables.NFT)
	w.rig.InSync()
	w.Flush()
	held, release := make(chan struct{}, 8), make(chan struct{})
	w.rig.hold(func() error { held <- struct{}{}; <-release; return nil })
	kerneltest.Must(t, w.Engine.SetPolicy(kerneltest.Global("a", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))))
	w.Backend.Apply(w.Engine.Flush())
	<-held
	for _, i := range []int{1, 2} {
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(i, "app=b")))
		if i == 2 {
			kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(i, "app=c")))
		}
		w.attach(fmt.Sprintf("cali%d", i))
	}
	w.Expect("others' rules are on their way", "pod1 > pod2:80 yes", "pod1 > pod2:81 no", "pod2 > pod1:9 yes", "pod2 > pod0:81 yes")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, ifaces := range [][]string{{"cali0"}, nil} {
		if err := w.Backend.Wait(short, ifaces...); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait %v: %v", ifaces, err)
		}
	}
	w.rig.hold(nil)
	close(release)
	w.Settle()
	w.Expect("they are there", "pod2 > pod0:81 no", "pod2 > pod0:80 yes")
}

// TestPolicyOpens has a pod selected and let go again under traffic: what both states allow is
// never lost, what both forbid never passes, and after Wait the new state holds.
func TestPolicyOpens(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		w.foreign(0)
		rules := []model.Policy{
			kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80)),
			kerneltest.Global("out", "app == 'a'", policy.Egress, kerneltest.Port(model.RuleAllow, 6, 80)),
		}
		flip := func(v int) {
			for _, p := range rules {
				if v%2 == 0 {
					kerneltest.Must(t, w.Engine.SetPolicy(p))
				} else {
					w.Engine.RemovePolicy(p.ID)
				}
			}
			w.Backend.Apply(w.Engine.Flush())
		}
		for v := range 10 {
			flip(v)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			kerneltest.Must(t, w.Backend.Wait(ctx, "cali0"))
			cancel()
			open := map[bool]string{false: "no", true: "yes"}[v%2 == 1]
			w.Expect("after Wait", "pod1 > pod0:80 yes", "pod0 > pod1:80 yes", "pod1 > pod0:81 "+open, "pod0 > pod1:81 "+open)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		done := make(chan int)
		go func() {
			v := 0
			for ; ctx.Err() == nil; v++ {
				flip(v)
				if v%3 > 0 { // else the next comes before this one is there
					_ = w.Backend.Wait(ctx, "cali0")
				}
			}
			done <- v
		}()
		sent := 0
		for ctx.Err() == nil {
			var shots []trace.Packet
			for i := range 40 {
				from, to := "pod1", "pod0"
				if i/2%2 == 0 {
					from, to = to, from
				}
				p := w.Packet(i%2 == 0, 6, from, to, 80)
				p.SrcPort = uint16(2000 + i)
				shots = append(shots, p)
			}
			n := len(shots)
			shots = append(shots, w.spoofed(0, "pod1")...)
			want := slices.Concat(slices.Repeat([]bool{true}, n), make([]bool, len(shots)-n))
			got, err := w.Lab.Await(shots, want)
			if err != nil {
				t.Fatal(err)
			}
			sent += len(shots)
			for i, p := range shots {
				if got[i] != want[i] {
					t.Errorf("%s: arrived %v", p, got[i])
				}
			}
		}
		t.Logf("%d packets during %d changes", sent, <-done)
	})
}

// TestPolicyStaysOpen has the kernel refuse all rules while a pod is selected: what held before holds,
// Wait says so, and the new rules hold when they are there.
func TestPolicyStaysOpen(t *testing.T) {
	w := newWorld(t)
	kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
	w.start(iptables.NFT)
	w.rig.InSync()
	w.Flush()
	w.rig.hold(func() error { return errors.New("refused by the test") })
	kerneltest.Must(t, w.Engine.SetPolicy(kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))))
	w.Backend.Apply(w.Engine.Flush())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Backend.Wait(ctx, "cali0"); err == nil || !strings.Contains(err.Error(), "refused by the test") || !strings.Contains(err.Error(), "not in force") {
		t.Errorf("Wait: %v", err)
	}
	w.Expect("refused", "outside > pod0:81 yes", "outside > pod0:80 yes")
	w.rig.hold(nil)
	eventually(t, func() string {
		if err := w.Backend.Wait(ctx, "cali0"); err != nil {
			return err.Error()
		}
		return ""
	})
	w.Expect("taken", "outside > pod0:81 no", "outside > pod0:80 yes")
}

// TestPolicyRestartOpen restarts the agent beside open pods: they stay open until their own state comes,
// or all is known, and lose no packet.
func TestPolicyRestartOpen(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		web := kerneltest.Global("web", "app == 'b'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))
		for i, label := range []string{"app=a", "app=a", "app=b", "app=a"} {
			kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(i, label)))
		}
		kerneltest.Must(t, w.Engine.SetPolicy(web))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		running := []string{"pod0 > outside:9 yes", "outside > pod0:9 yes", "outside > pod1:9 yes", "outside > pod2:9 no", "outside > pod2:80 yes", "pod2 > outside:9 yes"}
		w.Expect("running", append(running, "outside > pod3:9 yes")...)
		w.rig.stop()
		w.Expect("stopped", running...)

		guards := func(names ...string) {
			t.Helper()
			r, err := iptables.New(iptables.Config{Family: iptables.IPv4, Log: slog.New(slog.DiscardHandler), Kernel: iptables.NewHost(iptables.IPv4, b, 0).Within(w.Lab.Within)})
			kerneltest.Must(t, err)
			got, err := r.Guards(t.Context(), []string{"cali0", "cali1", "cali2", "cali9"})
			if err != nil || !slices.Equal(got, names) {
				t.Errorf("guarded: %v, %v; want %v", got, err, names)
			}
		}
		guards("cali0", "cali1", "cali2")

		w.start(b, "cali0", "cali1", "cali2")
		var shots []trace.Packet
		for i := range 20 {
			p := w.Packet(i%2 == 0, 6, []string{"pod0", "outside"}[i/2%2], []string{"outside", "pod0"}[i/2%2], 9)
			p.SrcPort = uint16(2000 + i)
			shots = append(shots, p)
		}
		traffic := func(ctx context.Context) {
			t.Helper()
			for ctx.Err() == nil {
				got, err := w.Lab.Await(shots, slices.Repeat([]bool{true}, len(shots)))
				if err != nil {
					t.Fatal(err)
				}
				for i := range got {
					if !got[i] {
						t.Fatalf("%s is lost", shots[i])
					}
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_ = w.Backend.Wait(ctx)
			cancel()
		}()
		traffic(ctx)
		w.Settle()
		if n := w.rig.Status().Known; n != 3 {
			t.Errorf("%d interfaces are kept", n)
		}
		w.Expect("started again", append(running, "outside > pod3:9 no", "pod3 > outside:9 no")...)
		guards("cali0", "cali1", "cali2")

		// pod0 is as it was; pod1 has another address and is selected; pod2 is not selected any more.
		w.Forget()
		one := kerneltest.Pod(1, "app=b")
		one.Addresses = kerneltest.Pod(3, "").Addresses
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(one), w.Engine.SetEndpoint(kerneltest.Pod(2, "app=a")), w.Engine.SetPolicy(web))
		w.Lab.Run(t, "ip", "route", "replace", "10.0.0.4", "dev", "cali1")
		w.Lab.Run(t, "ip", "-6", "route", "replace", "fd00::4", "dev", "cali1")
		ctx, cancel = context.WithCancel(t.Context())
		w.Backend.Apply(w.Engine.Flush())
		go func() {
			_ = w.Backend.Wait(ctx)
			cancel()
		}()
		traffic(ctx)
		w.Settle()
		at := func(from, to string, port int, want bool) {
			t.Helper()
			for _, v6 := range []bool{false, true} {
				p := w.Packet(v6, 6, from, to, port)
				if from == "pod3" {
					p.In = "cali1"
				}
				if to == "pod3" {
					p.Out = "cali1"
				}
				if wrong, err := w.Lab.Check([]trace.Packet{p}, []bool{want}); err != nil || len(wrong) > 0 {
					t.Errorf("%s: arrived %v, %v", p, !want, err)
				}
			}
		}
		at("outside", "pod3", 9, false)
		at("outside", "pod3", 80, true)
		at("pod3", "outside", 9, true)
		at("pod1", "outside", 9, false) // by cali1, whose address that was
		w.Expect("known", "pod0 > outside:9 yes", "outside > pod0:9 yes", "outside > pod2:9 yes", "pod2 > outside:9 yes")
		w.Engine.RemoveEndpoint(kerneltest.Pod(2, "").ID)
		w.Backend.InSync()
		w.Flush()
		w.Expect("in sync", "pod0 > outside:9 yes", "outside > pod0:9 yes", "outside > pod2:9 no", "pod2 > outside:9 no")
		if n := w.rig.Status().Known; n != 0 {
			t.Errorf("%d interfaces are kept", n)
		}
		guards("cali0", "cali1")

		// What is nobody's when all is known goes.
		w.rig.stop()
		w.start(b, "cali0", "cali1")
		w.Forget()
		w.Settle()
		w.Expect("and again", "pod0 > outside:9 yes")
		w.Backend.InSync()
		w.Settle()
		w.Expect("nobody", "pod0 > outside:9 no", "outside > pod0:9 no")
		at("pod3", "outside", 9, false)
	})
}

// TestPolicyFromChainsForAll starts beside rules as agents made them that had chains for every pod: those of known
// pods hold until their own state comes, and go then without a packet lost.
func TestPolicyFromChainsForAll(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		script := "*filter\n:cali-allow - [0:0]\n:cali-wl-ingress - [0:0]\n:cali-wl-egress - [0:0]\n-A cali-allow -j MARK --set-xmark 0x10000/0x10000\n"
		for i, a := range []string{"10.0.0.1", "10.0.0.2"} {
			script += fmt.Sprintf(":cali-wi-cali%[1]d - [0:0]\n:cali-we-cali%[1]d - [0:0]\n-A cali-wl-ingress -o cali%[1]d -g cali-wi-cali%[1]d\n-A cali-wl-egress -i cali%[1]d -g cali-we-cali%[1]d\n"+
				"-A cali-wi-cali%[1]d -g cali-allow\n-A cali-we-cali%[1]d ! -s %[2]s -j DROP\n-A cali-we-cali%[1]d -g cali-allow\n", i, a)
		}
		kerneltest.Must(t, iptables.NewHost(iptables.IPv4, b, 0).Within(w.Lab.Within).Restore(t.Context(), []byte(script+"COMMIT\n")))
		w.start(b, "cali0")
		w.Settle()
		check := func(what string, of int, want bool) {
			t.Helper()
			pod := fmt.Sprintf("pod%d", of)
			if wrong, err := w.Lab.Check([]trace.Packet{w.Packet(false, 6, pod, "outside", 9), w.Packet(false, 6, "outside", pod, 9)}, []bool{want, want}); err != nil || len(wrong) > 0 {
				t.Errorf("%s: %s: %v are not %v (%v)", what, pod, wrong, want, err)
			}
		}
		check("kept", 0, true)
		check("not known", 1, false)
		w.foreign(0)
		w.none("kept", w.spoofed(0, "outside")[0])
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")))
		w.Flush()
		check("open", 0, true)
		w.none("open", w.spoofed(0, "outside")...)
		w.Backend.InSync()
		w.Settle()
		check("in sync", 0, true)
		if out := w.Lab.Run(t, "iptables-"+string(b)+"-save", "-t", "filter"); strings.Contains(out, "cali0") || strings.Contains(out, "cali1") {
			t.Errorf("chains of an open pod, or of nobody, are left:\n%s", out)
		}
	})
}

// TestPolicyMembersHeal has somebody flush the sets of workloads' addresses, and destroy all that can be: nothing
// that is forbidden passes meanwhile, and all comes back.
func TestPolicyMembersHeal(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
		p := kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))
		p.Ingress[0].Source.Selector = "app == 'b'"
		kerneltest.Must(t, w.Engine.SetPolicy(p))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		var pass, never []trace.Packet
		for i, to := range []int{0, 1} {
			w.foreign(i)
			never = append(never, w.spoofed(i, "outside")...)
			for _, v6 := range []bool{false, true} {
				pass = append(pass, w.Packet(v6, 6, []string{"pod1", "pod0"}[i], fmt.Sprintf("pod%d", to), 80))
				never = append(never, w.Packet(v6, 6, "outside", "pod0", 80+i))
			}
		}
		heals := func(what string) {
			t.Helper()
			eventually(t, func() string {
				w.none(what, never...)
				got, err := w.Lab.Fire(pass)
				if err != nil || slices.Contains(got, false) {
					return fmt.Sprint(what, ": not healed: ", got, err)
				}
				return ""
			})
			w.Settle()
		}
		heals("start")
		for _, set := range []string{"cali40open", "cali60open", "cali40src", "cali60src"} {
			w.Lab.Run(t, "ipset", "flush", set)
			w.none(set, never...)
			heals(set)
		}
		// Rules and sets, all at once. The hooks go last and come with the rules.
		w.Lab.Run(t, "sh", "-c", fmt.Sprintf(`for p in iptables-%[1]s ip6tables-%[1]s; do $p -w 10 -P FORWARD DROP; $p -w 10 -F; done
			for s in $(ipset list -n); do ipset destroy $s || ipset flush $s; done
			for p in iptables-%[1]s ip6tables-%[1]s; do $p -w 10 -P FORWARD ACCEPT; done`, b))
		eventually(t, func() string {
			got, err := w.Lab.Fire(pass)
			if err != nil || slices.Contains(got, false) {
				return fmt.Sprint("not healed: ", got, err)
			}
			if got, err := w.Lab.Fire(never); err != nil || slices.Contains(got, true) {
				return fmt.Sprint("not healed: ", got, err)
			}
			for _, s := range []string{"cali40open", "cali60open", "cali40src", "cali60src"} {
				if out := w.Lab.Run(t, "ipset", "list", s); !strings.Contains(out, ",cali") {
					return out
				}
			}
			return ""
		})
	})
}

// TestPolicyMembersDestroyed has a set destroyed with all rules that name it, and the kernel not make
// it again for a while: the rules are refused, Wait says so, and they come when the set does.
func TestPolicyMembersDestroyed(t *testing.T) {
	w := newWorld(t)
	kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")),
		w.Engine.SetPolicy(kerneltest.Global("web", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))))
	w.start(iptables.NFT)
	w.rig.InSync()
	w.Flush()
	release := make(chan struct{})
	w.rig.hold(func() error { <-release; return nil })
	w.rig.bad.Store("cali40open")
	w.Lab.Run(t, "sh", "-c", "iptables-nft -w 10 -P FORWARD DROP; iptables-nft -w 10 -F; ipset destroy cali40open")
	w.rig.hold(nil)
	close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	eventually(t, func() string {
		if err := w.Backend.Wait(ctx, "cali1"); err == nil || !strings.Contains(err.Error(), "chain cali-wl-ingress") {
			return fmt.Sprint("Wait: ", err)
		}
		return ""
	})
	w.none("no set", w.Packet(false, 6, "outside", "pod0", 81), w.Packet(false, 6, "outside", "pod1", 81))
	w.rig.bad.Store("")
	w.Lab.Run(t, "iptables-nft", "-w", "10", "-P", "FORWARD", "ACCEPT")
	eventually(t, func() string {
		if err := w.Backend.Wait(ctx, "cali0", "cali1"); err != nil {
			return err.Error()
		}
		return ""
	})
	w.Expect("all is back", "outside > pod0:81 no", "outside > pod0:80 yes", "outside > pod1:81 yes")
}
