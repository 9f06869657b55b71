package announce

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// maxAge is how much older, or newer, a datagram may be than this node's clock. It bounds how
// long a datagram that somebody recorded can be played to an agent that has just started.
const maxAge = 2 * time.Minute

var (
	errClock    = errors.New("clocks differ")
	errReplayed = errors.New("seen before")
)

// sender is what was last accepted of a node.
type sender struct {
	boot, sequence uint64
	made           int64
}

// accept notes a datagram, or says why it is not to be believed. Of one boot only what is newer
// than all that was accepted is: what was overtaken on its way is told again anyway, and what
// is told of a pod never goes back. Another boot must have begun after what was accepted.
func (s *sender) accept(h header, now time.Time) error {
	if d := now.Sub(time.UnixMilli(h.made)); d > maxAge || d < -maxAge {
		return fmt.Errorf("%w: its clock and this node's are %s apart, and %s are allowed", errClock, d.Abs().Round(time.Second), maxAge)
	}
	if h.boot == s.boot && h.sequence <= s.sequence || h.boot != s.boot && h.made <= s.made {
		return errReplayed
	}
	*s = sender{h.boot, h.sequence, h.made}
	return nil
}

// place is what is known of where nodes' pods can have their addresses.
type place struct {
	blocks []model.Block  // sorted by CIDR; they do not overlap
	pools  []netip.Prefix // that pods get addresses of
}

func placeOf(s *model.Snapshot) place {
	p := place{blocks: s.Blocks}
	for i := range s.Pools {
		if s.Pools[i].Allows(model.UseWorkload) {
			p.pools = append(p.pools, s.Pools[i].CIDR)
		}
	}
	return p
}

// holds reports whether a pod of the node can have the address. Where the block is known it must
// be the node's, or have lent the address to it; where it is not, a pool must have it: other
// nodes' blocks are known here only when routes are made of them, and a new one arrives
// later than its first pod.
func (p *place) holds(node string, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(p.blocks, a, func(b model.Block, a netip.Addr) int { return b.CIDR.Addr().Compare(a) })
	if !found {
		i--
	}
	if i >= 0 && p.blocks[i].CIDR.Contains(a) {
		b := &p.blocks[i]
		for _, l := range b.Lent {
			if l.Addr == a {
				return l.Node == node
			}
		}
		return b.Node == node
	}
	return slices.ContainsFunc(p.pools, func(pool netip.Prefix) bool { return pool.Contains(a) })
}
