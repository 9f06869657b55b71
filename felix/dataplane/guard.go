package dataplane

import (
	"net/netip"

	"github.com/causeway-net/causeway/internal/model"
)

// Guarded lists the addresses that no learned route may lead astray: this node's own, and
// those of the other nodes and of the peers that sessions are configured with.
func Guarded(snap *model.Snapshot, node string) (own, others []netip.Addr) {
	for i := range snap.Nodes {
		n := &snap.Nodes[i]
		for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
			switch a := p.Addr(); {
			case !a.IsValid():
			case n.Name == node:
				own = append(own, a)
			default:
				others = append(others, a)
			}
		}
	}
	for i := range snap.Peers {
		if a := snap.Peers[i].PeerIP; a.IsValid() {
			others = append(others, a)
		}
	}
	return own, others
}
