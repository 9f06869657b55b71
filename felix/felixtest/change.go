package felixtest

import (
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// Change is one step of a cluster's history.
type Change struct {
	// Object is a model.Tier, Policy, PolicyEndpoint, Namespace, ServiceAccount, NetworkSet,
	// PolicyNode, ServiceEndpoints or HostPolicy.
	Object any
	Gone   bool // the object is removed
	// Invalid: a policy that must be refused; the last valid version stays in force.
	Invalid bool
}

func (c Change) String() string {
	verb := "set"
	switch {
	case c.Gone:
		verb = "remove"
	case c.Invalid:
		verb = "set (invalid)"
	}
	return fmt.Sprintf("%s %T %s", verb, c.Object, terse(c.Object))
}

// Apply makes the change in the World.
func (w *World) Apply(c Change) {
	switch o := c.Object.(type) {
	case model.HostPolicy:
		w.Host = o
	case model.Namespace:
		put(w.Namespaces, o.Name, o, c.Gone)
	case model.ServiceAccount:
		put(w.ServiceAccounts, [2]string{o.Namespace, o.Name}, o, c.Gone)
	case model.NetworkSet:
		put(w.NetworkSets, o.ID, o, c.Gone)
	case model.PolicyNode:
		put(w.Nodes, o.Name, o, c.Gone)
	case model.ServiceEndpoints:
		put(w.Services, o.ID, o, c.Gone)
	case model.PolicyEndpoint:
		put(w.Endpoints, o.ID, o, c.Gone)
	case model.Tier:
		w.setTier(o, c.Gone)
	case model.Policy:
		w.setPolicy(o, c)
	default:
		panic(fmt.Sprintf("change of a %T", o))
	}
}

func put[K comparable, V any](m map[K]V, k K, v V, gone bool) {
	if gone {
		delete(m, k)
		return
	}
	m[k] = v
}

// setTier lets policies that waited for the tier come into force. What is in force when a
// tier goes stays so; the tiers that are always there become what they are by themselves.
func (w *World) setTier(t model.Tier, gone bool) {
	if gone {
		if i := slices.IndexFunc(builtinTiers, func(b model.Tier) bool { return b.Name == t.Name }); i >= 0 {
			w.Tiers[t.Name] = builtinTiers[i]
		} else if _, there := w.Tiers[t.Name]; there {
			w.GoneTiers[t.Name] = true
		}
		return
	}
	w.Tiers[t.Name] = t
	delete(w.GoneTiers, t.Name)
	for id, pol := range w.Waiting {
		if pol.Tier == t.Name {
			w.Policies[id] = pol
			delete(w.Waiting, id)
		}
	}
}

func (w *World) hasTier(name string) bool {
	_, there := w.Tiers[name]
	return there && !w.GoneTiers[name]
}

// inForce reports whether a version of the policy is in force in the same tier: a newer one
// then takes its place, whatever has become of the tier.
func (w *World) inForce(pol model.Policy) bool {
	old, ok := w.Policies[pol.ID]
	return ok && old.Tier == pol.Tier
}

func (w *World) setPolicy(pol model.Policy, c Change) {
	switch {
	case c.Invalid:
		delete(w.Waiting, pol.ID) // it was not valid either; only what is in force stays
	case c.Gone:
		delete(w.Policies, pol.ID)
		delete(w.Waiting, pol.ID)
	case w.hasTier(pol.Tier) || w.inForce(pol):
		w.Policies[pol.ID] = pol
		delete(w.Waiting, pol.ID)
	default:
		w.Waiting[pol.ID] = pol
	}
}

// feed makes the change known to an engine. The error says what it answered that it should not have.
func feed(e *policy.Engine, c Change, w *World) error {
	var err error
	refused := c.Invalid
	switch o := c.Object.(type) {
	case model.HostPolicy:
		e.SetHost(o)
	case model.Namespace:
		if c.Gone {
			e.RemoveNamespace(o.Name)
		} else {
			e.SetNamespace(o)
		}
	case model.ServiceAccount:
		if c.Gone {
			e.RemoveServiceAccount(o.Namespace, o.Name)
		} else {
			e.SetServiceAccount(o)
		}
	case model.NetworkSet:
		if c.Gone {
			e.RemoveNetworkSet(o.ID)
		} else {
			err = e.SetNetworkSet(o)
		}
	case model.PolicyNode:
		if c.Gone {
			e.RemoveNode(o.Name)
		} else {
			err = e.SetNode(o)
		}
	case model.ServiceEndpoints:
		if c.Gone {
			e.RemoveService(o.ID)
		} else {
			err = e.SetService(o)
		}
	case model.PolicyEndpoint:
		if c.Gone {
			e.RemoveEndpoint(o.ID)
		} else {
			err = e.SetEndpoint(o)
		}
	case model.Tier:
		if c.Gone {
			e.RemoveTier(o.Name)
		} else {
			err = e.SetTier(o)
		}
	case model.Policy:
		if c.Gone {
			e.RemovePolicy(o.ID)
		} else {
			err = e.SetPolicy(o)
			refused = refused || !w.hasTier(o.Tier) && !w.inForce(o)
		}
	}
	if err != nil && !refused {
		return fmt.Errorf("%s: refused: %w", c, err)
	}
	if err == nil && refused {
		return fmt.Errorf("%s: accepted, but nothing about it is valid", c)
	}
	return nil
}
