package watch

import (
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

var _ PolicySink = (*policy.Engine)(nil)

// world is a PolicySink that knows what it was told.
type world struct {
	tiers      map[string]model.Tier
	policies   map[model.PolicyID]model.Policy
	namespaces map[string]model.Namespace
	accounts   map[string]model.ServiceAccount
	endpoints  map[model.PolicyEndpointID]model.PolicyEndpoint
	sets       map[model.NetworkSetID]model.NetworkSet
	nodes      map[string]model.PolicyNode
	services   map[model.ServiceID]model.ServiceEndpoints
	host       model.HostPolicy
}

func newWorld() *world {
	return &world{
		map[string]model.Tier{}, map[model.PolicyID]model.Policy{}, map[string]model.Namespace{}, map[string]model.ServiceAccount{},
		map[model.PolicyEndpointID]model.PolicyEndpoint{}, map[model.NetworkSetID]model.NetworkSet{}, map[string]model.PolicyNode{},
		map[model.ServiceID]model.ServiceEndpoints{}, model.HostPolicy{},
	}
}

func (w *world) SetTier(t model.Tier) error                { w.tiers[t.Name] = t; return nil }
func (w *world) RemoveTier(name string)                    { delete(w.tiers, name) }
func (w *world) SetPolicy(p model.Policy) error            { w.policies[p.ID] = p; return nil }
func (w *world) RemovePolicy(id model.PolicyID)            { delete(w.policies, id) }
func (w *world) SetNamespace(n model.Namespace)            { w.namespaces[n.Name] = n }
func (w *world) RemoveNamespace(name string)               { delete(w.namespaces, name) }
func (w *world) SetServiceAccount(a model.ServiceAccount)  { w.accounts[a.Namespace+"/"+a.Name] = a }
func (w *world) RemoveServiceAccount(ns, name string)      { delete(w.accounts, ns+"/"+name) }
func (w *world) SetEndpoint(e model.PolicyEndpoint) error  { w.endpoints[e.ID] = e; return nil }
func (w *world) RemoveEndpoint(id model.PolicyEndpointID)  { delete(w.endpoints, id) }
func (w *world) SetNetworkSet(s model.NetworkSet) error    { w.sets[s.ID] = s; return nil }
func (w *world) RemoveNetworkSet(id model.NetworkSetID)    { delete(w.sets, id) }
func (w *world) SetNode(n model.PolicyNode) error          { w.nodes[n.Name] = n; return nil }
func (w *world) RemoveNode(name string)                    { delete(w.nodes, name) }
func (w *world) SetService(s model.ServiceEndpoints) error { w.services[s.ID] = s; return nil }
func (w *world) RemoveService(id model.ServiceID)          { delete(w.services, id) }
func (w *world) SetHost(h model.HostPolicy)                { w.host = h }

// pods lists endpoints shortly: "Pod ns/name cali1 [addresses] unknown".
func (w *world) pods() []string {
	var out []string
	for _, e := range w.endpoints {
		s := fmt.Sprintf("%s %s %v", e.ID, e.Interface, e.Addresses)
		if e.Unknown {
			s += " unknown"
		}
		if len(e.Labels) > 0 {
			s += fmt.Sprint(" ", e.Labels)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
