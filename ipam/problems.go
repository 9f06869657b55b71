package ipam

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Problems lists what somebody's hand has to mend: pools that a private folder keeps from
// serving, pools that hold addresses of nodes or peers, tunnels without an address, and pods whose
// address is another's, too.
func (a *Allocator) Problems() []model.Problem {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Concat(a.notPinned(), a.aroundHosts(), a.withoutAddress(), a.contested())
}

// notPinned returns the pools that would serve this node if the folder were not private to
// it (DESIGN: in such a folder nothing else keeps two nodes from claiming the same block).
// a.mu is held.
func (a *Allocator) notPinned() []model.Problem {
	if a.snap == nil || !a.cfg.Private {
		return nil
	}
	node := a.snap.Node(a.cfg.Node)
	if node == nil {
		return nil
	}
	var out []model.Problem
	for i := range a.snap.Pools {
		p := &a.snap.Pools[i]
		if unusable(p, node, false) != nil || pinned(p, node) {
			continue
		}
		out = append(out, model.Problem{
			Object: model.Object{Kind: "IPPool", Name: p.Name}, Field: ".spec.nodeSelector", Ignored: true,
			Message: fmt.Sprintf("is %q; in a folder that is private to node %s a pool serves only when it names the node alone (%s == %q); declare a folder that several nodes see with ?shared=true",
				p.NodeSelector, node.Name, hostnameLabel, node.Name),
		})
	}
	return out
}

// contested returns the pods of this node whose address a block gives to somebody else:
// the node was deleted while they ran, or blocks came back from a backup. a.mu is held.
func (a *Allocator) contested() []model.Problem {
	var out []model.Problem
	for _, h := range a.state.holds {
		if h.state != inUse || h.lost == "" || h.ofTunnel() {
			continue
		}
		ep := a.state.endpoints[h.key].ep
		out = append(out, model.Problem{
			Object:  model.Object{Kind: "Pod", Namespace: ep.Namespace, Name: ep.Pod},
			Message: fmt.Sprintf("(container %s) has the address %s, which block %s gives to %s; delete one of the two pods", h.key.ContainerID, h.addr, h.block, h.lost),
		})
	}
	slices.SortFunc(out, func(x, y model.Problem) int {
		return cmp.Or(cmp.Compare(x.Object.String(), y.Object.String()), cmp.Compare(x.Message, y.Message))
	})
	return out
}

// holder names who has a slot.
func holder(s Slot) string {
	out := "handle " + s.Handle
	if s.Attrs[AttrPod] != "" {
		out = "Pod " + s.Attrs[AttrNamespace] + "/" + s.Attrs[AttrPod]
	}
	if s.Attrs[AttrNode] != "" {
		out += " of node " + s.Attrs[AttrNode]
	}
	return out
}
