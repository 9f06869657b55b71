package node

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/internal/watch"
)

// change is one annotation that has to be written.
type change struct {
	annotation string
	was        string // the annotation's value; empty without one
	now        netip.Prefix
}

// moved reports whether the address itself is another one; a length that was learned or
// corrected ends no session.
func (c change) moved() bool {
	if c.was == "" {
		return false
	}
	p, err := netip.ParsePrefix(c.was)
	if err != nil {
		a, err := netip.ParseAddr(c.was)
		return err != nil || a != c.now.Addr()
	}
	return p.Addr() != c.now.Addr()
}

// addresses decides on the address annotations: the first usable InternalIP of each family,
// which is what internal/watch takes without annotations, with the length that the kernel
// has. It returns the annotations as they will be, and those to write. An address that no
// link of the node holds is an error, and what the annotation says stays; so does an
// annotation whose family has no InternalIP, which a kubelet that just starts may not have
// told yet: whoever changes a node to one family removes it.
func addresses(n *corev1.Node, subnet func(netip.Addr) (netip.Prefix, error)) (want []netip.Prefix, changes []change, errs []error) {
	for _, f := range []struct {
		annotation string
		is4        bool
	}{{watch.AnnotationIPv4Address, true}, {watch.AnnotationIPv6Address, false}} {
		was := n.Annotations[f.annotation]
		stays := func() {
			if p, err := netip.ParsePrefix(was); err == nil {
				want = append(want, p)
			}
		}
		a := internalIP(n, f.is4)
		if !a.IsValid() {
			stays()
			continue
		}
		p, err := subnet(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("Node %s: annotation %s of InternalIP %s: %w", n.Name, f.annotation, a, err))
			stays()
			continue
		}
		if !p.IsValid() {
			stays()
			continue
		}
		want = append(want, p)
		if was != p.String() {
			changes = append(changes, change{f.annotation, was, p})
		}
	}
	return want, changes, errs
}

// internalIP is the first InternalIP of a family that other nodes can reach.
func internalIP(n *corev1.Node, is4 bool) netip.Addr {
	for _, s := range n.Status.Addresses {
		a, err := netip.ParseAddr(s.Address)
		if err != nil || s.Type != corev1.NodeInternalIP {
			continue
		}
		a = a.Unmap().WithZone("")
		if a.Is4() == is4 && a.IsGlobalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}
