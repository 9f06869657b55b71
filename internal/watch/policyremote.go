package watch

import (
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// announcedLasts is how long what was announced of a pod that is not known yet is remembered, at
// least; maxAnnounced of how many pods, about.
const (
	announcedLasts = 30 * time.Second
	maxAnnounced   = 4096
)

// expectedPod is a pod of another node to which its kubelet has given no address yet. Pods that
// have one are not kept: the sink has them.
type expectedPod struct {
	pod       *Pod
	addresses []netip.Addr // as its node announced them; nil: it is not shown
}

// announcement is what a node said of a pod that was not known.
type announcement struct {
	node, uid string
	addresses []netip.Addr
}

// announcements remember what came lately. Two maps take turns, so that nothing has to be
// looked for that is old: one is thrown away when the other is older than announcedLasts, or
// full.
type announcements struct {
	young, old map[podKey]announcement
	since      time.Time // when young was empty
}

func (m *announcements) turn(now time.Time) {
	switch age := now.Sub(m.since); {
	case age >= 2*announcedLasts:
		m.young, m.old, m.since = nil, nil, now
	case age >= announcedLasts || len(m.young) >= maxAnnounced/2:
		m.young, m.old, m.since = nil, m.young, now
	}
}

func (m *announcements) put(k podKey, x announcement, now time.Time) {
	m.turn(now)
	if m.young == nil {
		m.young = map[podKey]announcement{}
	}
	m.young[k] = x
}

// take returns what was said of a pod, and forgets it.
func (m *announcements) take(k podKey, now time.Time) announcement {
	m.turn(now)
	x, ok := m.young[k]
	if !ok {
		x = m.old[k]
	}
	delete(m.young, k)
	delete(m.old, k)
	return x
}

// SetRemote adds or changes a pod of another node. One without addresses has those that its
// node announces; when it has had some it must be removed first.
func (p *Policies) SetRemote(pod *Pod) {
	defer p.lock()()
	k := podKey{pod.Namespace, pod.Name}
	if l := p.pods[k]; l != nil {
		l.elsewhere = pod
		return
	}
	p.showRemote(k, pod)
}

// RemoveRemote forgets a pod of another node.
func (p *Policies) RemoveRemote(namespace, name string) {
	defer p.lock()()
	k := podKey{namespace, name}
	if l := p.pods[k]; l != nil { // it has come here
		l.elsewhere = nil
		if len(l.shown) == 0 {
			p.changes.remove(workload(namespace, name))
		}
		return
	}
	e := p.expected[k]
	delete(p.expected, k)
	if e == nil || e.addresses != nil {
		p.changes.remove(workload(namespace, name))
	}
}

// showRemote says what a pod of another node is now.
func (p *Policies) showRemote(k podKey, pod *Pod) {
	e := p.expected[k]
	if len(pod.Addresses) > 0 {
		delete(p.expected, k)
		p.announced.take(k, time.Now())
		if ep := endpointOf(pod); e == nil || e.addresses == nil || !reflect.DeepEqual(ep, e.endpoint()) {
			p.changes.set(ep.ID, ep)
		}
		return
	}
	if e != nil && e.addresses != nil && (e.pod.UID != pod.UID || e.pod.Node != pod.Node) { // another pod of the same name
		p.changes.remove(workload(k.namespace, k.name))
		e = nil
	}
	if e == nil {
		e = &expectedPod{}
		p.expected[k] = e
	}
	e.pod = pod
	if x := p.announced.take(k, time.Now()); x.isOf(pod) {
		e.addresses = x.addresses
	}
	if e.addresses != nil {
		p.changes.set(workload(k.namespace, k.name), e.endpoint())
	}
}

// isOf reports whether a pod's own node said it, and of this very pod.
func (x *announcement) isOf(pod *Pod) bool {
	return x.uid != "" && x.node == pod.Node && pod.Is(x.uid)
}

func (e *expectedPod) endpoint() any {
	ep := endpointOf(e.pod)
	ep.Addresses = e.addresses
	return ep
}

// Announced takes what a node says of a pod of its own that it has just attached: the addresses
// that the pod's status will have. It is believed of a pod with that UID (as the runtime knows
// it) that is bound to the node and has no address yet; of one that is not known it is
// remembered for a while. It must have been checked that the node itself says so, and that the
// addresses can be its pods'. It may come any number of times.
func (p *Policies) Announced(node, namespace, name, uid string, addresses []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := podKey{namespace, name}
	x := announcement{node, uid, addresses}
	e := p.expected[k]
	if e == nil || !x.isOf(e.pod) {
		p.announced.put(k, x, time.Now())
		return
	}
	if slices.Equal(e.addresses, addresses) {
		return
	}
	e.addresses = slices.Clone(addresses)
	p.changes.set(workload(namespace, name), e.endpoint())
	p.changed()
}
