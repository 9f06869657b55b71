package main

import (
	"context"
	"errors"

	"github.com/causeway-net/causeway/cni-plugin/server"
	"github.com/causeway-net/causeway/felix/enforce"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// policySets owns the ipsets of policy.
const policySets = "policy"

// enforcement makes what stands between the datastore's policies and the kernel's rules, but
// for the backend, which the first snapshot says. known are pods of an earlier agent.
func (a *agent) enforcement(known []model.Endpoint) (err error) {
	for _, ep := range known {
		a.known = append(a.known, ep.HostInterface)
	}
	if a.marks, err = policy.NewMarks(policy.DefaultMarkMask); err != nil {
		return err
	}
	a.policy, err = enforce.New(enforce.Config{Log: a.log, Local: a.data.policies, Needs: a.data.needs, Marks: a.marks, Routed: a.routes.Wait})
	return err
}

// setPolicy hands on what the datastore tells of policy.
func (a *agent) setPolicy(u *watch.PolicyUpdate) { a.policy.Publish(u) }

// setGuard tells who keeps foreign encapsulated packets out, and who must let those of nodes in.
func (a *agent) setGuard(v4, v6 model.EncapGuard) {
	a.guard.Set(v4, v6)
	a.policy.SetEncapsulation(v4, v6)
}

// usePolicy makes the backend that the snapshot asks for. What the other one left of an earlier agent
// goes when this one's rules stand.
func (a *agent) usePolicy(snap *model.Snapshot) {
	if a.nftables = snap.Felix.NFTables; a.nftables {
		guarded, err := a.rules[0].Guards(context.Background(), a.known)
		if err != nil {
			a.log.Warn("running pods' packets are dropped until their policy is known", "error", err)
		}
		backend, err := nftables.New(nftables.Config{Log: a.log, Marks: a.marks, Known: a.known, Guarded: guarded, Resync: a.o.resync, Healed: a.healed})
		if err != nil {
			a.cannotEnforce(err)
			return
		}
		a.enforces(backend.Ready)
		a.policy.Use(backend, a.retireIPTables)
		return
	}
	var rules []*iptables.Reconciler
	for _, r := range a.rules {
		rules = append(rules, r.Reconciler)
	}
	backend, err := iptables.NewPolicy(iptables.PolicyConfig{
		Log: a.log, Rules: rules, Sets: a.sets, SetOwner: policySets, Marks: a.marks, Known: a.known,
	})
	if err != nil {
		a.cannotEnforce(err)
		return
	}
	a.enforces(func() error { return nil }) // that iptables works at all, ready asks anyway
	a.policy.Use(backend, func(ctx context.Context) error {
		_, err := nftables.Remove(ctx, nil)
		return err
	})
}

// healed hears that rules or sets are as they should be again.
func (a *agent) healed() { a.policy.Reconsider() }

// enforces notes how to ask whether rules of policy can be brought into the kernel at all.
func (a *agent) enforces(ready func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.enforced = ready
}

func (a *agent) cannotEnforce(err error) {
	a.log.Error("policy cannot be enforced, and no pod can start", "error", err)
	a.enforces(func() error { return err })
}

// retireIPTables has no policy in iptables: its rules go, and then its sets. What pods send from
// nftables asks now, which knows what is granted beside their addresses.
func (a *agent) retireIPTables(ctx context.Context) error {
	var errs []error
	for _, r := range a.rules {
		r.Update(iptables.Raw, []iptables.Chain{{Name: iptables.ReversePathChain}}, nil)
		for _, t := range []iptables.Table{iptables.Mangle, iptables.Filter} {
			r.Set(t, iptables.TableState{IfThere: true})
			errs = append(errs, r.WaitChains(ctx, t))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.sets.InSync(policySets)
	return nil
}

// telling is a dataplane whose pods other nodes hear of as soon as they are attached.
type telling struct {
	server.Dataplane
	tell func(model.Endpoint)
}

// Attach attaches the pod, and tells of it.
func (t telling) Attach(ctx context.Context, ep model.Endpoint) error {
	if err := t.Dataplane.Attach(ctx, ep); err != nil {
		return err
	}
	t.tell(ep)
	return nil
}

// hears takes what another node told of a pod of its own.
func (a *agent) hears(node string, p announce.Pod) {
	a.data.policies.Announced(node, p.Namespace, p.Name, p.UID, p.Addresses)
}
