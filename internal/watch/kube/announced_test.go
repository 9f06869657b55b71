package kube

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// endpoints is a sink that keeps endpoints.
type endpoints struct {
	watch.PolicySink
	addresses map[model.PolicyEndpointID][]netip.Addr
}

func (e endpoints) SetEndpoint(ep model.PolicyEndpoint) error {
	e.addresses[ep.ID] = ep.Addresses
	return nil
}
func (e endpoints) RemoveEndpoint(id model.PolicyEndpointID) { delete(e.addresses, id) }
func (e endpoints) SetHost(model.HostPolicy)                 {}

// TestAnnouncedPods: a pod of another node is known to policy before it has an address, so that what
// its node announces finds it, and costs nothing until then.
func TestAnnouncedPods(t *testing.T) {
	s := policySource(t)
	remote := s.otherPods()
	s.policy.policies.SetPending(nil)
	world := endpoints{addresses: map[model.PolicyEndpointID][]netip.Addr{}}
	look := func(want string) {
		t.Helper()
		if u := s.policy.policies.Take(); u != nil {
			if err := u.Apply(world); err != nil {
				t.Fatal(err)
			}
		}
		have := ""
		for _, addresses := range world.addresses {
			have = addresses[0].String()
		}
		if have != want {
			t.Errorf("the pod has %q, want %q", have, want)
		}
	}
	look("")
	tell := func(uid, node, addr string) {
		p := manyPod(1)
		p.UID, p.Spec.NodeName, p.Status.PodIPs = types.UID(uid), node, nil
		if addr != "" {
			p.Status.PodIPs = []corev1.PodIP{{IP: addr}}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		remote.contents.set(watch.StripPod(p))
	}
	announce := func(uid, node, addr string) {
		p := manyPod(1)
		s.policy.policies.Announced(node, p.Namespace, p.Name, uid, []netip.Addr{netip.MustParseAddr(addr)})
	}
	tell("u1", "n2", "")
	if u := s.policy.policies.Take(); u != nil {
		t.Errorf("%d changes for a pod without an address", u.Len())
	}
	announce("u1", "n3", "10.9.0.9")
	look("")
	announce("u1", "n2", "10.9.0.1")
	look("10.9.0.1")
	tell("u1", "n2", "10.9.0.2")
	look("10.9.0.2")
	// A StatefulSet's next pod, whose predecessor's end was not seen; then one on another node.
	tell("u2", "n2", "")
	look("")
	tell("u3", "n3", "")
	announce("u3", "n2", "10.9.0.3")
	look("")
	announce("u3", "n3", "10.9.0.4")
	look("10.9.0.4")
	s.mu.Lock()
	remote.forget()
	s.mu.Unlock()
	look("")
}
