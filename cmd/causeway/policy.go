package main

import (
	"context"

	"github.com/causeway-net/causeway/felix/enforce"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/policy"
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
	a.policy, err = enforce.New(enforce.Config{Log: a.log, Local: a.data.policies, Needs: a.data.needs, Marks: a.marks})
	return err
}

// setPolicy hands on what the datastore tells of policy.
func (a *agent) setPolicy(u *watch.PolicyUpdate) { a.policy.Publish(u) }

// setGuard tells who keeps foreign encapsulated packets out, and who must let those of nodes in.
func (a *agent) setGuard(v4, v6 model.EncapGuard) {
	a.guard.Set(v4, v6)
	a.policy.SetEncapsulation(v4, v6)
}

// usePolicy makes the backend that the snapshot asks for. What the other one left goes when this
// one's rules stand.
func (a *agent) usePolicy(snap *model.Snapshot) {
	var rules []*iptables.Reconciler
	for _, r := range a.rules {
		rules = append(rules, r.Reconciler)
	}
	backend, err := iptables.NewPolicy(iptables.PolicyConfig{
		Log: a.log, Rules: rules, Sets: a.sets, SetOwner: policySets, Marks: a.marks, Known: a.known,
	})
	if err != nil {
		a.log.Error("policy cannot be enforced, and no pod can start", "error", err)
		return
	}
	a.policy.Use(backend, func(context.Context) error { return nil })
}
