package watch

import (
	"cmp"
	"errors"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// PolicySink takes what concerns policy, one thing at a time; felix/policy's Engine is one.
// Setters take the newest version of a thing. An error says why it is not in force; what was
// in force stays so.
//
// It has as many methods as there are things that policy is made of, and one implementation
// needs them all: so it is wider than an interface should be.
type PolicySink interface {
	SetTier(model.Tier) error
	RemoveTier(name string)
	SetPolicy(model.Policy) error
	RemovePolicy(model.PolicyID)
	SetNamespace(model.Namespace)
	RemoveNamespace(name string)
	SetServiceAccount(model.ServiceAccount)
	RemoveServiceAccount(namespace, name string)
	SetEndpoint(model.PolicyEndpoint) error
	RemoveEndpoint(model.PolicyEndpointID)
	SetNetworkSet(model.NetworkSet) error
	RemoveNetworkSet(model.NetworkSetID)
	SetNode(model.PolicyNode) error
	RemoveNode(name string)
	SetService(model.ServiceEndpoints) error
	RemoveService(model.ServiceID)
	SetHost(model.HostPolicy)
}

// PolicyUpdate is a batch of changes. It is immutable.
type PolicyUpdate struct {
	changes []policyChange
	// Pending names the watches that are needed and were not read yet, sorted. While there
	// are any, what is not known may be there all the same: nothing must be removed or let
	// through for want of it (I2, I4). Empty: all that is needed was read at least once.
	Pending []string
	// Recalled: this is what an earlier agent knew, since the datastore does not answer.
	Recalled bool
	// Seq: with this update all is told that was said up to Policies.Attach's return of that
	// number, or of a smaller one. 0 says nothing of it.
	Seq uint64
}

// policyChange sets or removes the thing of one key.
type policyChange struct {
	key   any // one of the keys below
	value any // of package model; nil: it is gone
}

// Keys of things, beside model.PolicyID, PolicyEndpointID, NetworkSetID and ServiceID.
type (
	tierKey      string
	namespaceKey string
	nodeKey      string
	accountKey   struct{ namespace, name string }
	hostKey      struct{}
)

// rank puts changes in order: what others refer to comes first.
func rank(key any) int {
	switch key.(type) {
	case hostKey:
		return 0
	case tierKey:
		return 1
	case namespaceKey:
		return 2
	case accountKey:
		return 3
	case nodeKey:
		return 4
	case model.NetworkSetID:
		return 5
	case model.ServiceID:
		return 6
	case model.PolicyEndpointID:
		return 7
	}
	return 8 // model.PolicyID
}

// Len is the number of changes.
func (u *PolicyUpdate) Len() int { return len(u.changes) }

// Apply makes the changes to a sink. The errors of all are joined.
func (u *PolicyUpdate) Apply(to PolicySink) error {
	var errs []error
	for _, c := range u.changes {
		if c.value == nil {
			removeFrom(to, c.key)
		} else if err := setIn(to, c.value); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func setIn(to PolicySink, value any) error {
	switch v := value.(type) {
	case model.Tier:
		return to.SetTier(v)
	case model.Policy:
		return to.SetPolicy(v)
	case model.Namespace:
		to.SetNamespace(v)
	case model.ServiceAccount:
		to.SetServiceAccount(v)
	case model.PolicyEndpoint:
		return to.SetEndpoint(v)
	case model.NetworkSet:
		return to.SetNetworkSet(v)
	case model.PolicyNode:
		return to.SetNode(v)
	case model.ServiceEndpoints:
		return to.SetService(v)
	case model.HostPolicy:
		to.SetHost(v)
	}
	return nil
}

func removeFrom(to PolicySink, key any) {
	switch k := key.(type) {
	case tierKey:
		to.RemoveTier(string(k))
	case model.PolicyID:
		to.RemovePolicy(k)
	case namespaceKey:
		to.RemoveNamespace(string(k))
	case accountKey:
		to.RemoveServiceAccount(k.namespace, k.name)
	case model.PolicyEndpointID:
		to.RemoveEndpoint(k)
	case model.NetworkSetID:
		to.RemoveNetworkSet(k)
	case nodeKey:
		to.RemoveNode(string(k))
	case model.ServiceID:
		to.RemoveService(k)
	}
}

// changeSet gathers changes; of several to one thing the last counts.
type changeSet map[any]any

func (s changeSet) set(key, value any) { s[key] = value }
func (s changeSet) remove(key any)     { s[key] = nil }

// take returns the changes in order.
func (s changeSet) take() []policyChange {
	out := make([]policyChange, 0, len(s))
	for k, v := range s {
		out = append(out, policyChange{k, v})
	}
	slices.SortFunc(out, func(a, b policyChange) int { return cmp.Compare(rank(a.key), rank(b.key)) })
	return out
}
