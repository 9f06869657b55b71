package watch

import (
	"cmp"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// localPod is a pod of this node: its object, and what is attached of it.
type localPod struct {
	object  *Pod // nil: not seen
	deleted bool // the object is gone, and its pod is still attached
	// left: what was attached of the object's pod went. The addresses in its status are nobody's.
	left bool
	// elsewhere is a pod of the same name on another node, seen before this one went.
	elsewhere *Pod
	attached  []model.Endpoint
	shown     []model.PolicyEndpointID
}

func workload(namespace, name string) model.PolicyEndpointID {
	return model.PolicyEndpointID{Kind: model.EndpointWorkload, Namespace: namespace, Name: name}
}

func endpointOf(pod *Pod) model.PolicyEndpoint {
	return model.PolicyEndpoint{
		ID: workload(pod.Namespace, pod.Name), Labels: pod.Labels, ServiceAccount: pod.ServiceAccount,
		Addresses: pod.Addresses, Ports: pod.Ports,
	}
}

// SetPod adds or changes the object of a pod of this node. One that waits to be attached has an
// endpoint already if the interface it will have is known (Options.Interface): without addresses, but
// with all the rules that it will have, so that Attach adds nothing but addresses.
func (p *Policies) SetPod(pod *Pod) {
	defer p.lock()()
	k := podKey{pod.Namespace, pod.Name}
	l := p.pod(k)
	if l.object != nil && l.object.UID != pod.UID {
		l.left = false
	}
	l.object, l.deleted = pod, false
	p.showPod(k)
}

// RemovePod notes that the object of a pod of this node is gone. While the pod is attached its
// policy stays as it is.
func (p *Policies) RemovePod(namespace, name string) {
	defer p.lock()()
	k := podKey{namespace, name}
	if l := p.pods[k]; l != nil {
		l.deleted = true
		p.showPod(k)
	}
}

func (p *Policies) pod(k podKey) *localPod {
	l := p.pods[k]
	if l == nil {
		l = &localPod{}
		if e := p.expected[k]; e != nil {
			l.elsewhere = e.pod
			delete(p.expected, k)
		}
		p.pods[k] = l
	}
	return l
}

// Attach adds a pod's interface on this node, or changes it. Until the pod's object is known
// nothing passes by it. It returns the Seq of the update that tells of it, at least, which
// comes at once.
func (p *Policies) Attach(ep model.Endpoint) (seq uint64) {
	defer signal(p.urgent) // after the change can be taken
	defer p.lock()()
	k := podKey{ep.Namespace, ep.Pod}
	if ep.Pod == "" { // no pod of Kubernetes
		k = podKey{"", ep.Key.String()}
	}
	if was, ok := p.attached[ep.Key]; ok && was != k {
		p.detach(ep.Key)
	}
	l := p.pod(k)
	// Another attachment that has this interface or this name is of a container before.
	for _, o := range slices.Clone(l.attached) {
		if o.Key == ep.Key || o.HostInterface == ep.HostInterface || o.Key.IfName == ep.Key.IfName {
			l.drop(o.Key)
			if o.Key != ep.Key {
				delete(p.attached, o.Key)
				p.count(k.namespace, -1)
			}
		}
	}
	l.attached = append(l.attached, ep)
	slices.SortFunc(l.attached, func(a, b model.Endpoint) int { return cmp.Compare(a.Key.IfName, b.Key.IfName) })
	if _, ok := p.attached[ep.Key]; !ok {
		p.count(k.namespace, 1)
	}
	p.attached[ep.Key] = k
	p.showPod(k)
	return p.seq
}

// Detach removes a pod's interface.
func (p *Policies) Detach(key model.AttachmentKey) {
	defer p.lock()()
	p.detach(key)
}

func (p *Policies) detach(key model.AttachmentKey) {
	k, ok := p.attached[key]
	if !ok {
		return
	}
	delete(p.attached, key)
	p.count(k.namespace, -1)
	l := p.pods[k]
	l.drop(key)
	l.left = true
	p.showPod(k)
}

func (l *localPod) drop(key model.AttachmentKey) {
	l.attached = slices.DeleteFunc(l.attached, func(o model.Endpoint) bool { return o.Key == key })
}

// count counts attached pods of namespaces that have no objects.
func (p *Policies) count(namespace string, by int) {
	if p.objects || namespace == "" {
		return
	}
	p.namespaces[namespace] += by
	switch n := p.namespaces[namespace]; {
	case n == 0:
		delete(p.namespaces, namespace)
		p.changes.remove(namespaceKey(namespace))
	case n == 1 && by > 0:
		p.changes.set(namespaceKey(namespace), model.Namespace{Name: namespace})
	}
}

// showPod says what a pod of this node is now.
func (p *Policies) showPod(k podKey) {
	l := p.pods[k]
	if l.deleted && len(l.attached) == 0 {
		l.object = nil
	}
	now := p.endpoints(k, l)
	var shown []model.PolicyEndpointID
	for _, ep := range now {
		shown = append(shown, ep.ID)
		p.changes.set(ep.ID, ep)
	}
	for _, id := range l.shown {
		if !slices.Contains(shown, id) {
			p.changes.remove(id)
		}
	}
	if l.shown = shown; l.object == nil && len(l.attached) == 0 {
		delete(p.pods, k)
		if l.elsewhere != nil {
			p.showRemote(k, l.elsewhere)
		}
	}
	problem := model.Problem{Object: model.Object{Kind: "Pod", Namespace: k.namespace, Name: k.name}, Field: annotation(AnnotationAllowedSources), Ignored: true}
	if l.object != nil && l.object.Problem != "" {
		problem.Message = l.object.Problem
	} else if l.object != nil && len(l.object.AllowedSources) > 0 && !p.spoofing {
		problem.Message = "is not granted: workloadSourceSpoofing of the FelixConfiguration must be Any"
	}
	p.notice(problem)
}

// notice keeps what is to be said of an object; an empty Message: nothing.
func (p *Policies) notice(x model.Problem) {
	was, there := p.problems[x.Object]
	switch {
	case x.Message == "" && there:
		delete(p.problems, x.Object)
	case x.Message != "" && was != x:
		p.problems[x.Object] = x
	default:
		return
	}
	p.noticed()
}

// expectedEndpoint is that of a pod of this node of which nothing is attached: as its object has it, or
// as it will be attached. ok is false when there is nothing to tell of it.
func (p *Policies) expectedEndpoint(o *Pod, left bool) (ep model.PolicyEndpoint, ok bool) {
	if o == nil {
		return ep, false
	}
	ep = endpointOf(o)
	if p.iface == nil || o.Terminating || len(o.Addresses) > 0 && !left {
		return ep, len(o.Addresses) > 0
	}
	// Its next sandbox gets other addresses than the status still has of the last one.
	ep.Interface, ep.Addresses, ep.UID = p.iface(o.Namespace, o.Name), nil, cmp.Or(o.StaticUID, o.UID)
	return ep, true
}

// endpoints are the endpoints of a pod of this node: one for each interface, or without any the
// one that is expected. A pod's first interface has the pod's name.
func (p *Policies) endpoints(k podKey, l *localPod) []model.PolicyEndpoint {
	if len(l.attached) == 0 {
		if ep, ok := p.expectedEndpoint(l.object, l.left); ok {
			return []model.PolicyEndpoint{ep}
		}
		return nil
	}
	var out []model.PolicyEndpoint
	for i, a := range l.attached {
		ep := model.PolicyEndpoint{ID: workload(k.namespace, k.name)}
		if i > 0 {
			ep.ID.Name += "/" + a.Key.IfName
		}
		ep.Interface, ep.Addresses, ep.UID = a.HostInterface, a.Addresses, a.PodUID
		switch o := l.object; {
		case o != nil && o.Is(a.PodUID):
			ep.Labels, ep.ServiceAccount, ep.Ports = o.Labels, o.ServiceAccount, o.Ports
			if p.spoofing {
				ep.AllowedSources = o.AllowedSources
			}
		case p.objects && k.namespace != "": // what is no pod has no object to wait for
			ep.Unknown = true
		}
		out = append(out, ep)
	}
	return out
}
