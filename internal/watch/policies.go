package watch

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// policyGather is how long changes that come together are waited for, unless a pod is attached.
const policyGather = 2 * time.Millisecond

// Policies joins what a source knows of policy with what this node knows of itself, its attached
// pods and its interfaces, and hands on each change (I8): nothing of it goes by way of a
// Snapshot. It is safe for concurrent use.
//
// Setters come from the source and from the node; updates leave from Run, one after the
// other.
type Policies struct {
	node string
	// objects: pods and namespaces are known by their objects. When not, a pod is what is attached,
	// without labels, and its namespace is one without labels.
	objects bool
	publish func(*PolicyUpdate)
	noticed func()                             // Problems answers otherwise now; called with mu held
	iface   func(namespace, pod string) string // Options.Interface
	wake    chan struct{}                      // capacity 1
	urgent  chan struct{}                      // likewise: somebody waits for what has changed

	mu      sync.Mutex
	changes changeSet
	seq     uint64 // grows with each change
	pending []string
	settled bool // pending was set at least once
	told    bool // pending was published as it is

	refs       map[model.PolicyID]references
	services   map[model.ServiceID]int // policies that name it
	accounts   int                     // policies that ask for labels of service accounts
	slices     map[model.ServiceID]map[string][]model.ServiceEndpoint
	hosts      map[string]hostEndpoint // HostEndpoints
	nodes      map[string]model.Node
	autoHost   bool
	interfaces map[string][]netip.Addr
	felix      map[string]hostPolicy // by node; "" is the default
	spoofing   bool
	pods       map[podKey]*localPod
	attached   map[model.AttachmentKey]podKey
	expected   map[podKey]*expectedPod // pods of other nodes, none of them in pods
	announced  announcements
	namespaces map[string]int // attached pods by namespace, where Namespaces have no objects
	problems   map[model.Object]model.Problem
}

type podKey struct{ namespace, name string }

// references are what a policy needs beyond pods.
type references struct {
	services []model.ServiceID
	accounts bool
}

// NewPolicies makes Policies that know nothing. publish is called from Run with each update;
// noticed, which must not wait nor call back, whenever Problems would answer otherwise.
func NewPolicies(opt Options, publish func(*PolicyUpdate), noticed func()) *Policies {
	p := &Policies{
		node: opt.Node, objects: opt.NamespaceLabels, iface: opt.Interface, publish: publish, noticed: noticed,
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), changes: changeSet{},
		refs: map[model.PolicyID]references{}, services: map[model.ServiceID]int{}, slices: map[model.ServiceID]map[string][]model.ServiceEndpoint{},
		hosts: map[string]hostEndpoint{}, nodes: map[string]model.Node{}, felix: map[string]hostPolicy{},
		pods: map[podKey]*localPod{}, expected: map[podKey]*expectedPod{}, attached: map[model.AttachmentKey]podKey{}, namespaces: map[string]int{}, problems: map[model.Object]model.Problem{},
	}
	p.mergeFelix()
	return p
}

// Run publishes updates until ctx is cancelled. The first comes when SetPending was called. What
// changes is gathered for a moment; but an ADD waits for what Attach changed, and takes along
// what was gathered by then.
func (p *Policies) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.urgent:
		case <-p.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-p.urgent:
			case <-time.After(policyGather):
			}
		}
		if u := p.Take(); u != nil {
			p.publish(u)
		}
	}
}

// Take returns what has changed since it was last called, or nil. Run calls it; whoever runs no
// Run can do so instead.
func (p *Policies) Take() *PolicyUpdate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.settled || len(p.changes) == 0 && p.told {
		return nil
	}
	p.told = true
	u := &PolicyUpdate{changes: p.changes.take(), Pending: p.pending, Seq: p.seq}
	p.changes = changeSet{} // a map does not shrink, and the first batch is large
	return u
}

func (p *Policies) changed() { signal(p.wake) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lock locks for a setter; what it returns unlocks and wakes Run.
func (p *Policies) lock() func() {
	p.mu.Lock()
	p.seq++
	return func() {
		p.mu.Unlock()
		p.changed()
	}
}

// SetPending says which watches were not read yet.
func (p *Policies) SetPending(names []string) {
	defer p.lock()()
	names = slices.Sorted(slices.Values(names))
	if p.settled && slices.Equal(p.pending, names) {
		return
	}
	p.pending, p.settled, p.told = names, true, false
}

// Set takes a version of an object that is in force from now on. Kinds that do not concern
// policy are passed over.
func (p *Policies) Set(o *Object) {
	defer p.lock()()
	switch v := o.value.(type) {
	case nothing:
		p.remove(o.Key)
	case model.Policy:
		p.refer(v.ID, referencesOf(&v))
		p.changes.set(v.ID, v)
	case model.Tier:
		p.changes.set(tierKey(v.Name), v)
	case model.NetworkSet:
		p.changes.set(v.ID, v)
	case hostEndpoint:
		p.hosts[o.Key.Name] = v
		p.showHost(o.Key.Name)
	case kubeControllers:
		p.setAutoHost(v.autoHost)
	case model.Node:
		p.nodes[v.Name] = v
		p.changes.set(nodeKey(v.Name), model.PolicyNode{Name: v.Name, Labels: v.Labels, Addresses: nodeAddresses(&v)})
		p.showHost(v.Name + autoSuffix)
	case felixConfiguration:
		p.felix[v.node] = v.host
		p.mergeFelix()
	}
}

// Remove takes an object out of force.
func (p *Policies) Remove(key model.Object) {
	defer p.lock()()
	p.remove(key)
}

func (p *Policies) remove(key model.Object) {
	switch key.Kind {
	case v3.KindTier:
		p.changes.remove(tierKey(key.Name))
	case v3.KindNetworkSet, v3.KindGlobalNetworkSet:
		p.changes.remove(model.NetworkSetID{Namespace: key.Namespace, Name: key.Name})
	case v3.KindHostEndpoint:
		delete(p.hosts, key.Name)
		p.showHost(key.Name)
	case v3.KindKubeControllersConfiguration:
		p.setAutoHost(false)
	case KindNode:
		delete(p.nodes, key.Name)
		p.changes.remove(nodeKey(key.Name))
		p.showHost(key.Name + autoSuffix)
	case v3.KindFelixConfiguration:
		node, _ := strings.CutPrefix(key.Name, nodeConfiguration)
		if key.Name == defaultConfiguration {
			node = ""
		}
		delete(p.felix, node)
		p.mergeFelix()
	default:
		id := model.PolicyID{Kind: model.PolicyKind(key.Kind), Namespace: key.Namespace, Name: key.Name}
		p.refer(id, references{})
		p.changes.remove(id)
	}
}

// PolicyObject reports whether objects of the kind are taken by Set.
func PolicyObject(kind string) bool {
	switch kind {
	case v3.KindTier, v3.KindNetworkSet, v3.KindGlobalNetworkSet, v3.KindHostEndpoint, v3.KindKubeControllersConfiguration,
		KindNode, v3.KindFelixConfiguration:
		return true
	}
	switch model.PolicyKind(kind) {
	case model.PolicyKubernetes, model.PolicyCluster, model.PolicyNamespaced, model.PolicyGlobal,
		model.PolicyStagedKubernetes, model.PolicyStagedNamespaced, model.PolicyStagedGlobal:
		return true
	}
	return false
}

// referencesOf lists what a policy names.
func referencesOf(m *model.Policy) references {
	// A selector can name the labels of service accounts by Calico's prefix, too.
	byAccount := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "pcsa.") })
	}
	r := references{accounts: m.Subject.ServiceAccountSelector != "" || byAccount(m.Subject.Selector)}
	for _, rules := range [][]model.Rule{m.Ingress, m.Egress} {
		for i := range rules {
			for _, e := range []*model.EntityRule{&rules[i].Source, &rules[i].Destination} {
				r.accounts = r.accounts || e.ServiceAccountSelector != "" || byAccount(e.Selector, e.NotSelector)
				if e.Service != nil {
					r.services = append(r.services, *e.Service)
				}
			}
		}
	}
	slices.SortFunc(r.services, compareService)
	r.services = slices.Compact(r.services)
	return r
}

func compareService(a, b model.ServiceID) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// refer notes what a policy names now.
func (p *Policies) refer(id model.PolicyID, now references) {
	was := p.refs[id]
	for _, s := range was.services {
		if p.services[s]--; p.services[s] == 0 {
			delete(p.services, s)
		}
	}
	for _, s := range now.services {
		p.services[s]++
	}
	if was.accounts {
		p.accounts--
	}
	if now.accounts {
		p.accounts++
	}
	if len(now.services) == 0 && !now.accounts {
		delete(p.refs, id)
	} else {
		p.refs[id] = now
	}
}

// Named says what policies name that is not watched otherwise: Services, sorted, and whether
// the labels of service accounts.
func (p *Policies) Named() (services []model.ServiceID, accounts bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Keys(p.services), compareService), p.accounts > 0
}

// SetNamespace adds or changes a namespace that has an object.
func (p *Policies) SetNamespace(n model.Namespace) {
	defer p.lock()()
	p.changes.set(namespaceKey(n.Name), n)
}

// RemoveNamespace forgets a namespace.
func (p *Policies) RemoveNamespace(name string) {
	defer p.lock()()
	p.changes.remove(namespaceKey(name))
}

// SetServiceAccount adds or changes a service account.
func (p *Policies) SetServiceAccount(a model.ServiceAccount) {
	defer p.lock()()
	p.changes.set(accountKey{a.Namespace, a.Name}, a)
}

// RemoveServiceAccount forgets a service account.
func (p *Policies) RemoveServiceAccount(namespace, name string) {
	defer p.lock()()
	p.changes.remove(accountKey{namespace, name})
}

// SetSlice adds or changes an EndpointSlice, by its name, of a Service.
func (p *Policies) SetSlice(id model.ServiceID, name string, endpoints []model.ServiceEndpoint) {
	defer p.lock()()
	if p.slices[id] == nil {
		p.slices[id] = map[string][]model.ServiceEndpoint{}
	}
	p.slices[id][name] = endpoints
	p.showService(id)
}

// RemoveSlice forgets an EndpointSlice.
func (p *Policies) RemoveSlice(id model.ServiceID, name string) {
	defer p.lock()()
	delete(p.slices[id], name)
	if len(p.slices[id]) == 0 {
		delete(p.slices, id)
		p.changes.remove(id)
		return
	}
	p.showService(id)
}

func (p *Policies) showService(id model.ServiceID) {
	out := model.ServiceEndpoints{ID: id}
	of := p.slices[id]
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out.Endpoints = append(out.Endpoints, of[name]...)
	}
	p.changes.set(id, out)
}

// SetInterfaces says which addresses the interfaces of this node have, to find those of
// HostEndpoints that name addresses only.
func (p *Policies) SetInterfaces(of map[string][]netip.Addr) {
	defer p.lock()()
	if reflect.DeepEqual(p.interfaces, of) {
		return
	}
	p.interfaces = maps.Clone(of)
	for name, h := range p.hosts {
		if h.node == p.node && h.iface == "" {
			p.showHost(name)
		}
	}
}

func (p *Policies) setAutoHost(on bool) {
	if p.autoHost == on {
		return
	}
	p.autoHost = on
	for name := range p.nodes {
		p.showHost(name + autoSuffix)
	}
}

// showHost says what the HostEndpoint of a name is now: the object, or else the one that
// comes by itself.
func (p *Policies) showHost(name string) {
	id := model.PolicyEndpointID{Kind: model.EndpointHost, Name: name}
	problem := model.Problem{Object: model.Object{Kind: v3.KindHostEndpoint, Name: name}, Field: ".spec.expectedIPs"}
	h, ok := p.hosts[name]
	if node, auto := strings.CutSuffix(name, autoSuffix); !ok && auto && p.autoHost {
		var n model.Node
		if n, ok = p.nodes[node]; ok {
			h = autoHostEndpoint(&n)
		}
	}
	if !ok {
		p.changes.remove(id)
		p.notice(problem)
		return
	}
	ep := h.endpoint
	if h.node == p.node {
		if ep.Interface = h.interfaceOf(p.interfaces); ep.Interface == "" && p.interfaces != nil {
			problem.Message = "are on no interface of node " + p.node + ", so that nothing is protected; must have an address of one, or set interfaceName"
		}
	}
	p.notice(problem)
	p.changes.set(id, ep)
}

// mergeFelix says what holds for hosts now.
func (p *Policies) mergeFelix() {
	host, spoofing := mergeHost(p.felix[""], p.felix[p.node])
	p.changes.set(hostKey{}, host)
	if spoofing != p.spoofing {
		p.spoofing = spoofing
		for k, l := range p.pods {
			if l.object != nil && len(l.object.AllowedSources) > 0 {
				p.showPod(k)
			}
		}
	}
}

// Problems are those that no single object has: they come of how objects and this node fit
// together. They are sorted.
func (p *Policies) Problems() []model.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.problems), compareProblem)
}
