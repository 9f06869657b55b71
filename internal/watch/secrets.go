package watch

import (
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// SecretsNeeded names the Secrets, sorted, whose passwords this node needs: those of the
// node mesh and of the BGPPeers that concern it. known is false when this node's own Node is
// not among the objects, so that nobody can tell which peers do; then it names all.
func SecretsNeeded(objects []Sourced, opt Options) (names []string, known bool) {
	var self *model.Node
	for _, o := range objects {
		if n, ok := o.value.(model.Node); ok && n.Name == opt.Node {
			self = &n
			break
		}
	}
	for _, o := range objects {
		switch v := o.value.(type) {
		case bgpConfiguration:
			if v.password != nil {
				names = append(names, v.password.name)
			}
		case bgpPeer:
			if v.password != nil && v.concerns(self) {
				names = append(names, v.password.name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), self != nil
}

// concerns reports whether a node can have a session because of the peer: as one of those
// that the peer is for, or as one that it selects and that peers back. Nil stands for a node
// of which nothing is known.
func (p *bgpPeer) concerns(n *model.Node) bool {
	switch {
	case n == nil:
		return true
	case p.PeerSelector != nil && p.ReversePeering && p.PeerSelector.Matches(n.Labels):
		return true
	case p.Node != "":
		return p.Node == n.Name
	case p.NodeSelector != nil:
		return p.NodeSelector.Matches(n.Labels)
	}
	return true
}
