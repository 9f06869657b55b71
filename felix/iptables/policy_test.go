package iptables_test

import (
	"context"
	"errors"
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// world is a Node whose backend is at hand.
type world struct {
	*kerneltest.Node
	rig *policyRig
}

func newWorld(t *testing.T) *world { return &world{Node: kerneltest.NewNode(t)} }

func (w *world) start(b iptables.Backend, known ...string) {
	w.Helper()
	w.rig = startPolicy(w.T, w.Lab, b, known...)
	w.Backend = running{w.rig}
}

// running is a policyRig as kerneltest has it: Wait is for what was set before the first delta, too.
type running struct{ *policyRig }

func (r running) Wait(ctx context.Context, interfaces ...string) error {
	errs := []error{r.policyRig.Wait(ctx, interfaces...)}
	if len(interfaces) == 0 {
		for _, rec := range r.rules {
			errs = append(errs, rec.Wait(ctx))
		}
	}
	return errors.Join(errs...)
}

func (r running) Known() int { return r.Status().Known }
func (r running) Stop()      { r.stop() }

func backends(t *testing.T, f func(*testing.T, *world, iptables.Backend)) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) { f(t, newWorld(t), b) })
	}
}

func TestPolicyScenarios(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			kerneltest.Scenarios(t, func(t testing.TB, l *kerneltest.Lab, known ...string) kerneltest.Running {
				return running{startPolicy(t, l, b, known...)}
			})
		})
	}
}

// TestPolicyHooks has table mangle looked at by packets only while a host endpoint needs it.
func TestPolicyHooks(t *testing.T) {
	backends(t, func(t *testing.T, w *world, b iptables.Backend) {
		kerneltest.Must(t, w.Engine.SetEndpoint(kerneltest.Pod(0, "app=a")), w.Engine.SetEndpoint(kerneltest.HostEndpoint("eth0")),
			w.Engine.SetPolicy(kerneltest.Global("out", "has(host)", policy.Egress, kerneltest.Port(model.RuleAllow, 6, 81))))
		w.start(b)
		w.rig.InSync()
		w.Flush()
		check := func(some bool) {
			t.Helper()
			for _, r := range w.rig.rules {
				if n := r.Status().Tables[iptables.Mangle].Chains; n > 0 != some {
					t.Errorf("%s: %d chains in table mangle", r, n)
				}
			}
		}
		check(true)
		w.Engine.RemoveEndpoint(kerneltest.HostEndpoint("eth0").ID)
		w.Flush()
		check(false)
	})
}
