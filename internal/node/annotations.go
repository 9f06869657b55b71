package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/watch"
)

// owned are the annotations that a Reporter writes.
var owned = []string{
	watch.AnnotationIPv4Address, watch.AnnotationIPv6Address,
	watch.AnnotationIPv4IPIPTunnelAddr,
	watch.AnnotationIPv4VXLANTunnelAddr, watch.AnnotationVXLANTunnelMACAddr,
	watch.AnnotationIPv6VXLANTunnelAddr, watch.AnnotationVXLANTunnelMACAddrV6,
}

// SetAddresses says which addresses were found for this node, each with the length of its
// subnet. It counts for the families whose method looks for one; the zero Prefix, nothing
// found, leaves what the annotation says.
func (r *Reporter) SetAddresses(v4, v6 netip.Prefix) {
	r.mu.Lock()
	r.found = [2]netip.Prefix{v4, v6}
	r.mu.Unlock()
	r.poke()
}

// SetTunnels says where this node's ends of tunnels are, for the annotations that other nodes
// read. What an end does not say is removed from the Node. Until it is called the annotations
// of tunnels stay as they are: an agent that starts knows its ends a moment later.
func (r *Reporter) SetTunnels(ends [model.Tunnels]model.TunnelEnd) {
	r.mu.Lock()
	r.ends = &ends
	r.mu.Unlock()
	r.poke()
}

// tunnelAnnotations are the annotations of ends, with an empty value where there is nothing
// to say.
func tunnelAnnotations(ends [model.Tunnels]model.TunnelEnd) map[string]string {
	addr := func(t model.Tunnel) string {
		if !ends[t].Addr.IsValid() {
			return ""
		}
		return ends[t].Addr.String()
	}
	return map[string]string{
		watch.AnnotationIPv4IPIPTunnelAddr:   addr(model.TunnelIPIP),
		watch.AnnotationIPv4VXLANTunnelAddr:  addr(model.TunnelVXLAN4),
		watch.AnnotationVXLANTunnelMACAddr:   ends[model.TunnelVXLAN4].MAC,
		watch.AnnotationIPv6VXLANTunnelAddr:  addr(model.TunnelVXLAN6),
		watch.AnnotationVXLANTunnelMACAddrV6: ends[model.TunnelVXLAN6].MAC,
	}
}

// tunnelChanges are the annotations of tunnels that are to be written, in the order of owned.
func tunnelChanges(n *corev1.Node, ends *[model.Tunnels]model.TunnelEnd) (out []change) {
	if ends == nil {
		return nil
	}
	want := tunnelAnnotations(*ends)
	for _, name := range owned {
		now, ours := want[name]
		was, there := n.Annotations[name]
		if ours && (was != now || there && now == "") {
			out = append(out, change{name, was, now})
		}
	}
	return out
}

// mergePatch is a JSON merge patch (RFC 7396) that makes the changes.
func mergePatch(changes []change) ([]byte, error) {
	annotations := map[string]any{}
	for _, c := range changes {
		annotations[c.annotation] = c.now
		if c.now == "" {
			annotations[c.annotation] = nil
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
}

func (r *Reporter) writeAnnotations(ctx context.Context, n *corev1.Node) error {
	methods := [2]nodeaddr.Method{r.cfg.IPv4, r.cfg.IPv6}
	r.mu.Lock()
	found, ends := r.found, r.ends
	r.mu.Unlock()
	want, changes, errs := addresses(n, methods, found, r.cfg.Subnet)
	changes = append(changes, tunnelChanges(n, ends)...)
	r.mu.Lock()
	r.status.Addresses = want
	r.mu.Unlock()
	if len(changes) == 0 {
		return errors.Join(errs...)
	}
	body, err := mergePatch(changes)
	if err != nil {
		return err
	}
	written, err := r.cfg.Clients.Core.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("Node %s: annotations: %w", n.Name, err))...)
	}
	r.take(written)
	for _, c := range changes {
		if !c.moved() {
			r.log.Info("node annotation", "annotation", c.annotation, "value", c.now, "was", c.was)
			continue
		}
		method := methods[0]
		if c.annotation == watch.AnnotationIPv6Address {
			method = methods[1]
		}
		now := c.now
		if now == "" {
			now = watch.NoAddress
		}
		r.mu.Lock()
		r.status.AddressChanges++
		r.mu.Unlock()
		r.log.Warn("the node's address changed; BGP sessions start anew", "annotation", c.annotation, "was", c.was, "address", now, "method", method.String())
		r.nodeEvent(corev1.EventTypeWarning, "NodeAddressChanged", "Move to "+now, // each of its own
			fmt.Sprintf("The node's address changed from %s to %s (%s). BGP sessions start anew; pods go on.", c.was, now, why(method)))
	}
	return errors.Join(errs...)
}

// why says in an event what a change follows from.
func why(m nodeaddr.Method) string {
	switch m.Kind {
	case nodeaddr.KubernetesInternalIP:
		return "its InternalIP"
	case nodeaddr.None:
		return "the agent is told that it has none"
	}
	return "autodetection method " + m.String()
}
