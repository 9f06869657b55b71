package node

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/watch"
)

// change is one annotation that has to be written.
type change struct {
	annotation string
	was        string // the annotation's value; empty without one
	now        string // empty: it is removed
}

// moved reports whether the node's address itself is another one, or gone; a length that was
// learned or corrected ends no session.
func (c change) moved() bool {
	if c.annotation != watch.AnnotationIPv4Address && c.annotation != watch.AnnotationIPv6Address || c.was == "" {
		return false
	}
	was, known := parseAddress(c.was)
	now, _ := parseAddress(c.now)
	return !known && c.was != watch.NoAddress || was != now
}

// parseAddress reads an address with or without a length.
func parseAddress(s string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), true
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil
}

// families are the two address annotations.
var families = [2]struct {
	annotation string
	is4        bool
}{{watch.AnnotationIPv4Address, true}, {watch.AnnotationIPv6Address, false}}

// addresses decides on the address annotations, by the method of each family. It returns the
// annotations as they will be, and those to write.
//
// kubernetes-internal-ip writes the first usable InternalIP, which is what internal/watch
// takes without annotations, with the length that the kernel has. An address that no link of
// the node holds is an error, and what the annotation says stays; so does an annotation whose
// family has no InternalIP, which a kubelet that just starts may not have told yet: whoever
// changes a node to one family removes it. A method that looks for the address writes what
// was found; nothing found changes nothing. What somebody wrote by hand gives way in each
// case: an address that is not the node's own cuts it off.
func addresses(n *corev1.Node, methods [2]nodeaddr.Method, found [2]netip.Prefix, subnet func(netip.Addr) (netip.Prefix, error)) (want []netip.Prefix, changes []change, errs []error) {
	for i, f := range families {
		was := n.Annotations[f.annotation]
		stays := func() {
			if p, err := netip.ParsePrefix(was); err == nil {
				want = append(want, p)
			}
		}
		internal, p := internalIP(n, f.is4), found[i]
		switch methods[i].Kind {
		case nodeaddr.None:
			now := ""
			if internal.IsValid() {
				now = watch.NoAddress
			}
			if was != now {
				changes = append(changes, change{f.annotation, was, now})
			}
			continue
		case nodeaddr.KubernetesInternalIP:
			if p = (netip.Prefix{}); !internal.IsValid() {
				break
			}
			var err error
			if p, err = subnet(internal); err != nil {
				errs = append(errs, fmt.Errorf("Node %s: annotation %s of InternalIP %s: %w", n.Name, f.annotation, internal, err))
				p = netip.Prefix{}
			}
		}
		if !p.IsValid() {
			stays()
			continue
		}
		want = append(want, p)
		if was != p.String() {
			changes = append(changes, change{f.annotation, was, p.String()})
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
