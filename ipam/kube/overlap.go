package kube

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/ipam"
)

// Two blocks of one size have one name or do not overlap. Blocks of two sizes meet when a
// pool is deleted and made again with another blockSize, and two nodes do not learn of that
// at the same moment. So a node that has created a block asks which blocks of other sizes
// there are, as of its create or later, and takes its own back if one overlaps: of any two
// such nodes the one that created later sees the other's. Labels let the API server answer
// with nothing in the usual case.
//
// A node that died between the two steps leaves a block that nobody has asked for. So each
// block is asked for once by everyone who is about to mark addresses in it. The block that
// overlaps is left alone then; it has no pods, as nobody got as far as marking one.

// overlaps returns the CIDR of a block of another size that overlaps o's, as of o's version
// or later; the zero Prefix when there is none.
func (s *Store) overlaps(ctx context.Context, o *object) (netip.Prefix, error) {
	others, err := s.otherSizes(ctx, o.block, o.version)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, other := range others {
		if other != o.block.CIDR && other.Overlaps(o.block.CIDR) {
			return other, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass(o)
	return netip.Prefix{}, nil
}

// pass notes that no block of another size overlaps o. s.mu is held.
func (s *Store) pass(o *object) {
	if len(s.checked) > 20_000 {
		clear(s.checked) // of blocks long gone; what is asked again costs a request
	}
	s.checked[o.uid] = struct{}{}
}

// otherSizes returns the blocks of b's family that are not, or not known to be, of its size.
func (s *Store) otherSizes(ctx context.Context, b *ipam.Block, version string) ([]netip.Prefix, error) {
	other := map[string]string{"4": "6", "6": "4"}[familyOf(b)]
	return s.names(ctx, metav1.ListOptions{
		LabelSelector:        fmt.Sprintf("%s!=%s,%s!=%s", labelFamily, other, labelSize, strconv.Itoa(b.CIDR.Bits())),
		ResourceVersion:      version,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
}

// sound returns the objects that no block of another size overlaps, asking once for each.
// One of this node's that overlaps and has pods stays: they cannot be helped by ignoring it.
func (s *Store) sound(ctx context.Context, objects []*object, version string) ([]*object, error) {
	type kind struct {
		family string
		bits   int
	}
	others := map[kind][]netip.Prefix{}
	var out []*object
	for _, o := range objects {
		s.mu.Lock()
		_, ok := s.checked[o.uid]
		s.mu.Unlock()
		if ok {
			out = append(out, o)
			continue
		}
		k := kind{familyOf(o.block), o.block.CIDR.Bits()}
		list, asked := others[k]
		if !asked {
			var err error
			if list, err = s.otherSizes(ctx, o.block, version); err != nil {
				return nil, err
			}
			others[k] = list
		}
		bad := netip.Prefix{}
		for _, p := range list {
			if p != o.block.CIDR && p.Overlaps(o.block.CIDR) {
				bad = p
			}
		}
		if !bad.IsValid() {
			s.mu.Lock()
			s.pass(o)
			s.mu.Unlock()
			out = append(out, o)
			continue
		}
		s.complain(o.name, "overlaps the block "+bad.String(), "blocks overlap; delete the one without pods")
		if o.block.Node() == s.cfg.Node && pods(o.block) {
			out = append(out, o)
		}
	}
	return out, nil
}

// pods reports whether a block has addresses that are more than somebody's stash.
func pods(b *ipam.Block) bool {
	for _, slot := range b.Slots {
		if slot.Handle != "" && !strings.HasPrefix(slot.Handle, ipam.StashPrefix) {
			return true
		}
	}
	return false
}
