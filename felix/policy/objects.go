package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// SetNamespace adds or changes a namespace. Local workloads of a namespace that is not known
// are denied everything, since nobody can say which policies select them; workloads without
// a namespace need none.
func (e *Engine) SetNamespace(n model.Namespace) {
	e.handDown(n.Name, handedDown(namespacePrefix, n.Name, n.Labels), true)
}

// RemoveNamespace forgets a namespace.
func (e *Engine) RemoveNamespace(name string) { e.handDown(name, nil, false) }

func (e *Engine) handDown(name string, labels []label, known bool) {
	ns := e.parents.namespaces[name]
	if ns == nil {
		ns = &labelled{}
		e.parents.namespaces[name] = ns
	}
	if ns.known != known {
		for g := range e.subjects.inNamespace[name] {
			for _, it := range g.items {
				e.dirtyInterfaces[it.endpoint.iface] = struct{}{}
			}
		}
	}
	ns.known = known
	keys := changedKeys(ns.labels, labels)
	ns.labels = labels
	for _, x := range [...]*index{e.peers, e.subjects} {
		x.relabelled(name, "", keys)
	}
	if ns.groups == 0 && !known {
		delete(e.parents.namespaces, name)
	}
}

// SetServiceAccount adds or changes a service account.
func (e *Engine) SetServiceAccount(a model.ServiceAccount) {
	e.handDownAccount(accountKey{a.Namespace, a.Name}, handedDown(accountPrefix, a.Name, a.Labels), true)
}

// RemoveServiceAccount forgets a service account.
func (e *Engine) RemoveServiceAccount(namespace, name string) {
	e.handDownAccount(accountKey{namespace, name}, nil, false)
}

func (e *Engine) handDownAccount(k accountKey, labels []label, known bool) {
	sa := e.parents.accounts[k]
	if sa == nil {
		sa = &labelled{}
		e.parents.accounts[k] = sa
	}
	sa.known = known
	keys := changedKeys(sa.labels, labels)
	sa.labels = labels
	for _, x := range [...]*index{e.peers, e.subjects} {
		x.relabelled(k.namespace, k.name, keys)
	}
	if sa.groups == 0 && !known {
		delete(e.parents.accounts, k)
	}
}

// SetEndpoint adds or changes an endpoint, of this node or another. The error says which
// address is none; the endpoint is then left as it was.
func (e *Engine) SetEndpoint(m model.PolicyEndpoint) error {
	prefixes, err := single(m.Addresses)
	if err != nil {
		return fmt.Errorf("%s: %w", m.ID, err)
	}
	ep := e.endpoints[m.ID]
	if ep == nil {
		ep = &endpoint{id: m.ID}
		ep.item.endpoint = ep
		e.endpoints[m.ID] = ep
	}
	key := groupKey{class: endpointClass(m.ID.Kind), namespace: m.ID.Namespace, account: m.ServiceAccount, own: encode(m.Labels)}
	ports := clonePorts(m.Ports)
	if ep.item.group != nil && ep.item.group.own == key.own {
		key.own = ep.item.group.own // the same text once
	}
	local := m.Interface != ""
	if m.Unknown {
		e.peers.remove(&ep.item)
	}
	if !slices.Equal(ep.item.ports, ports) || ep.item.local != local {
		e.peers.remove(&ep.item)
		ep.item.ports, ep.item.local = ports, local
	}
	if !slices.Equal(ep.item.prefixes, prefixes) {
		e.peers.replace(&ep.item, prefixes)
	}
	if !m.Unknown {
		e.sight(prefixes)
		e.peers.put(&ep.item, key)
	}
	e.attach(ep, &m, key)
	return nil
}

// attach brings a local endpoint's own side up to date.
func (e *Engine) attach(ep *endpoint, m *model.PolicyEndpoint, key groupKey) {
	if ep.here != nil && (m.Interface != ep.iface || m.Unknown != ep.unknown) {
		e.detach(ep)
	}
	if m.Interface == "" {
		return
	}
	ep.unknown = m.Unknown
	ep.profiles = slices.ContainsFunc(m.Profiles, func(p string) bool {
		return p == "projectcalico-default-allow" || strings.HasPrefix(p, "kns.")
	})
	ep.sources = sources(ep.item.prefixes, m.AllowedSources)
	e.dirtyInterfaces[m.Interface] = struct{}{}
	if ep.here == nil {
		ep.iface = m.Interface
		ep.here = &item{endpoint: ep}
		of := e.byInterface[ep.iface]
		i, _ := slices.BinarySearchFunc(of, ep, func(a, b *endpoint) int { return a.id.Compare(b.id) })
		e.byInterface[ep.iface] = slices.Insert(of, i, ep)
	}
	if !m.Unknown {
		e.subjects.put(ep.here, key)
	}
}

func (e *Engine) detach(ep *endpoint) {
	e.subjects.remove(ep.here)
	ep.here = nil
	e.dirtyInterfaces[ep.iface] = struct{}{}
	takeInOrder(e.byInterface, ep.iface, ep)
	ep.iface = ""
}

func takeInOrder(m map[string][]*endpoint, k string, ep *endpoint) {
	if of := slices.DeleteFunc(m[k], func(o *endpoint) bool { return o == ep }); len(of) > 0 {
		m[k] = of
	} else {
		delete(m, k)
	}
}

// RemoveEndpoint forgets an endpoint.
func (e *Engine) RemoveEndpoint(id model.PolicyEndpointID) {
	ep := e.endpoints[id]
	if ep == nil {
		return
	}
	delete(e.endpoints, id)
	e.peers.remove(&ep.item)
	if ep.here != nil {
		e.detach(ep)
	}
}

// sources lists what a workload may send from.
func sources(own, granted []netip.Prefix) []netip.Prefix {
	out := slices.Clone(own)
	for _, p := range granted {
		if p.IsValid() && !p.Addr().Is4In6() {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

// single makes prefixes of addresses, sorted and without duplicates.
func single(addrs []netip.Addr) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		if !a.IsValid() {
			return nil, fmt.Errorf("an address is missing; must be one of IPv4 or IPv6")
		}
		a = a.Unmap().WithZone("")
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Clip(slices.Compact(out)), nil
}

func clonePorts(ports []model.EndpointPort) []model.EndpointPort {
	var out []model.EndpointPort
	for _, p := range ports {
		if p.Name != "" && p.Port != 0 {
			out = append(out, p)
		}
	}
	return out
}

// sight notes which families there are.
func (e *Engine) sight(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		if i := famIndex(p.Addr()); !e.seen[i] {
			e.seen[i], e.seenNew = true, true
		}
	}
}

// SetNetworkSet adds or changes a network set. The error says which network is none; the
// set is then left as it was.
func (e *Engine) SetNetworkSet(m model.NetworkSet) error {
	for i, p := range m.Nets {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("%s: .spec.nets[%d]: is %s; must be a network such as 192.0.2.0/24 or 2001:db8::/32, or an address", m.ID, i, p)
		}
	}
	nets := members(m.Nets)
	slices.SortFunc(nets, comparePrefixes)
	nets = slices.Clip(slices.Compact(nets))
	it := e.netsets[m.ID]
	if it == nil {
		it = &item{local: true}
		e.netsets[m.ID] = it
	}
	if !slices.Equal(it.prefixes, nets) {
		e.peers.replace(it, nets)
		e.sight(nets)
	}
	e.peers.put(it, groupKey{class: classNetworkSet, namespace: m.ID.Namespace, own: encode(m.Labels)})
	return nil
}

// RemoveNetworkSet forgets a network set.
func (e *Engine) RemoveNetworkSet(id model.NetworkSetID) {
	if it := e.netsets[id]; it != nil {
		delete(e.netsets, id)
		e.peers.remove(it)
	}
}

// SetNode adds or changes a node. The error says which address is none.
func (e *Engine) SetNode(m model.PolicyNode) error {
	prefixes, err := single(m.Addresses)
	if err != nil {
		return fmt.Errorf("Node %s: %w", m.Name, err)
	}
	it := e.nodeItems[m.Name]
	if it == nil {
		it = &item{}
		e.nodeItems[m.Name] = it
	}
	if !slices.Equal(it.prefixes, prefixes) {
		e.nodes.replace(it, prefixes)
		e.sight(prefixes)
	}
	e.nodes.put(it, groupKey{class: classNode, own: encode(m.Labels)})
	return nil
}

// RemoveNode forgets a node.
func (e *Engine) RemoveNode(name string) {
	if it := e.nodeItems[name]; it != nil {
		delete(e.nodeItems, name)
		e.nodes.remove(it)
	}
}

// SetService adds or changes the endpoints of a Service. The error says which address is
// none; the Service is then left as it was.
func (e *Engine) SetService(m model.ServiceEndpoints) error {
	now := make([]model.ServiceEndpoint, 0, len(m.Endpoints))
	for _, ep := range m.Endpoints {
		if !ep.Addr.IsValid() {
			return fmt.Errorf("%s: an endpoint has no address; must have one of IPv4 or IPv6", m.ID)
		}
		ep.Addr = ep.Addr.Unmap().WithZone("")
		now = append(now, ep)
	}
	e.service(m.ID).known = true
	e.setService(m.ID, now)
	return nil
}

// RemoveService forgets a Service.
func (e *Engine) RemoveService(id model.ServiceID) {
	if s := e.services[id]; s != nil {
		s.known = false
		e.setService(id, nil)
		e.pruneService(id)
	}
}

func (e *Engine) setService(id model.ServiceID, now []model.ServiceEndpoint) {
	slices.SortFunc(now, compareServiceEndpoints)
	now = slices.Compact(now)
	s := e.service(id)
	for _, ep := range now {
		if i := famIndex(ep.Addr); !e.seen[i] {
			e.seen[i], e.seenNew = true, true
		}
	}
	for _, set := range s.sets {
		for _, ep := range now {
			set.moveService(ep, true)
		}
		for _, ep := range s.endpoints {
			set.moveService(ep, false)
		}
		e.dirtySets[set] = struct{}{}
	}
	s.endpoints = now
}

func compareServiceEndpoints(a, b model.ServiceEndpoint) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// service returns the record of a Service, known or not.
func (e *Engine) service(id model.ServiceID) *service {
	s := e.services[id]
	if s == nil {
		s = &service{}
		e.services[id] = s
	}
	return s
}

func (e *Engine) pruneService(id model.ServiceID) {
	if s := e.services[id]; s != nil && !s.known && len(s.sets) == 0 {
		delete(e.services, id)
	}
}

// NeedsService reports whether a policy in force here refers to a Service.
func (e *Engine) NeedsService(id model.ServiceID) bool {
	s := e.services[id]
	return s != nil && len(s.sets) > 0
}
