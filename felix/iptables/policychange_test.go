package iptables_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// chainsOf lists the chains that transactions touch.
func chainsOf(scripts []string) map[string]bool {
	out := map[string]bool{}
	for _, s := range scripts {
		for l := range strings.Lines(s) {
			if f := strings.Fields(l); len(f) > 1 && strings.HasPrefix(f[0], "-") {
				out[f[1]] = true
			}
		}
	}
	return out
}

// TestPolicyDelta changes one thing of many: only what it touches is written.
func TestPolicyDelta(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		for i := range 60 {
			e := kerneltest.Pod(i, "app=a")
			e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}
			e.Interface = fmt.Sprintf("cali%04x", i*653)
			kerneltest.Must(t, w.Engine.SetEndpoint(e))
			p := kerneltest.Global(fmt.Sprintf("p%d", i), "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, i+1))
			p.Ingress[0].Source.Selector = fmt.Sprintf("app == 'a' && label != '%d'", i)
			kerneltest.Must(t, w.Engine.SetPolicy(p))
		}
		w.start(b)
		w.rig.InSync()
		w.Flush()
		took := func() []string {
			return append(w.rig.to[0].took(), w.rig.to[1].took()...)
		}
		took()
		step := func(what string, chains int, bytes int) {
			t.Helper()
			w.Flush()
			scripts := took()
			got := chainsOf(scripts)
			if n := len(strings.Join(scripts, "")); len(got) > chains || n > bytes || len(scripts) > 2 {
				t.Errorf("%s: %d transactions, %d bytes, chains %v\n%.2000s", what, len(scripts), n, got, strings.Join(scripts, ""))
			}
		}
		step("nothing", 0, 0)
		p := kerneltest.Global("p7", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 8))
		p.Ingress[0].Source.Selector = "app == 'a' && label != '7'"
		p.Ingress[0].Destination.Nets = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
		kerneltest.Must(t, w.Engine.SetPolicy(p))
		step("one rule of a policy", 1, 800)
		p.Ingress[0].Destination.Ports[0] = model.RulePort{First: 1000, Last: 1000}
		kerneltest.Must(t, w.Engine.SetPolicy(p))
		step("its port, and three nodes of the tree by which policies are asked", 4, 8000)
		p.Ingress[0].Destination.Ports[0] = model.RulePort{First: 1001, Last: 1001}
		kerneltest.Must(t, w.Engine.SetPolicy(p))
		step("its port, and one node", 2, 2000)
		kerneltest.Must(t, w.Engine.SetEndpoint(model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "far"}, Labels: map[string]string{"app": "a"},
			Addresses: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}))
		step("a pod elsewhere", 0, 0)
		e := kerneltest.Pod(100, "app=b")
		e.Interface, e.Addresses = "califfff", []netip.Addr{netip.MustParseAddr("10.1.0.200")}
		kerneltest.Must(t, w.Engine.SetEndpoint(e))
		step("a pod without policy", 4, 4000)
		w.Engine.RemoveEndpoint(e.ID)
		step("and gone", 4, 4000)
		w.Engine.RemovePolicy(p.ID)
		w.Flush() // of all endpoints' chains one rule goes
		if n := len(strings.Join(took(), "")); n > 60000 {
			t.Errorf("a policy gone: %d bytes", n)
		}

		// A restart that finds everything as it should be leaves rules and counters alone.
		var known []string
		whole := w.Engine.Whole()
		for _, e := range whole.Endpoints {
			known = append(known, e.Interface)
		}
		w.rig.stop()
		w.start(b, known...)
		w.rig.Apply(whole)
		w.rig.InSync()
		w.Settle()
		for chain := range chainsOf(took()) {
			if chain != "PREROUTING" && chain != "INPUT" && chain != "OUTPUT" && chain != "cali-OUTPUT" &&
				chain != "cali-FORWARD" && chain != "cali-INPUT" && !strings.HasPrefix(chain, "cali-hep-") && !strings.HasPrefix(chain, "cali-untracked-") {
				t.Errorf("the restart wrote chain %s", chain)
			}
		}
	})
}

// TestPolicyHeals flushes by hand what carries policy. A chain of an endpoint or policy that is empty
// lets nothing pass, and all come back.
func TestPolicyHeals(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
		p := kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleDeny, 6, 9), kerneltest.Port(model.RuleAllow, 6, 80))
		p.Ingress[1].Source.Selector = "app == 'b'"
		kerneltest.Must(t, w.Engine.SetPolicy(p))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		program, save := "iptables-"+string(b), "iptables-"+string(b)+"-save"
		rules := func() string {
			var out []string
			for l := range strings.Lines(w.Lab.Run(t, save, "-t", "filter")) {
				if strings.HasPrefix(l, "-A") {
					out = append(out, l)
				}
			}
			return strings.Join(out, "")
		}
		before := rules()
		pass, no := w.Packet(false, 6, "pod1", "pod0", 80), w.Packet(false, 6, "pod1", "pod0", 81)
		for _, chain := range []string{"cali-wi-cali0", "cali-wl-ingress", "cali-wl-egress", "cali-FORWARD", "FORWARD", "cali-allow"} {
			w.Lab.Run(t, program, "-w", "10", "-F", chain)
			if chain != "cali-FORWARD" && chain != "FORWARD" {
				if got, err := w.Lab.Fire([]trace.Packet{no}); err != nil || got[0] {
					t.Errorf("chain %s is empty: a forbidden packet arrived (%v)", chain, err)
				}
			}
			eventually(t, func() string {
				if now := rules(); now != before {
					return fmt.Sprintf("chain %s was flushed:\n%s\nbefore:\n%s", chain, now, before)
				}
				return ""
			})
			if wrong, err := w.Lab.Check([]trace.Packet{pass, no}, []bool{true, false}); err != nil || len(wrong) > 0 {
				t.Errorf("chain %s was flushed, and is back: %v, %v", chain, wrong, err)
			}
		}
		set := ""
		for l := range strings.Lines(before) {
			if _, rest, ok := strings.Cut(l, "--match-set "); ok {
				set = strings.Fields(rest)[0]
			}
		}
		w.Lab.Run(t, "ipset", "flush", set)
		eventually(t, func() string {
			if got, err := w.Lab.Fire([]trace.Packet{pass}); err != nil || !got[0] {
				return fmt.Sprint("the set's members are not back: ", err)
			}
			return ""
		})
	})
}

// TestPolicyRefused leaves an endpoint without a set that its rules need: Wait says so, others
// go on, and the rules come when the set does.
func TestPolicyRefused(t *testing.T) {
	w := newWorld(t)
	kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.Pod(1, "app=b")))
	p := kerneltest.Global("in", "app == 'a'", policy.Ingress, kerneltest.Port(model.RuleAllow, 6, 80))
	p.Ingress[0].Source.Selector = "app == 'b'"
	kerneltest.Must(t, w.Engine.SetPolicy(p))
	d := w.Engine.Flush()
	name := ""
	for _, s := range d.NewSets {
		if s.Family == policy.IPv4 {
			name = "cali40" + string(s.ID)
		}
	}
	w.rig = startRefusing(t, w.Lab, iptables.NFT, name)
	w.rig.InSync()
	w.rig.Apply(d)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.rig.Wait(ctx, "cali0"); err == nil || !strings.Contains(err.Error(), "refused by the test") || !strings.Contains(err.Error(), "Pod red/pod0") {
		t.Errorf("cali0: %v", err)
	}
	if err := w.rig.Wait(ctx, "cali1"); err != nil {
		t.Errorf("cali1: %v", err)
	}
	if err := w.rig.Wait(ctx, "cali7"); err == nil || !strings.Contains(err.Error(), "cali7") {
		t.Errorf("cali7: %v", err)
	}
	shot := w.Packet(false, 6, "pod1", "pod0", 80)
	if got, err := w.Lab.Fire([]trace.Packet{shot}); err != nil || got[0] {
		t.Errorf("allowed by rules that are not there: %v, %v", got, err)
	}
	w.rig.bad.Store("")
	eventually(t, func() string {
		if err := w.rig.Wait(ctx, "cali0"); err != nil {
			return err.Error()
		}
		if got, err := w.Lab.Fire([]trace.Packet{shot}); err != nil || !got[0] {
			return fmt.Sprintf("%v, %v", got, err)
		}
		return ""
	})
}
