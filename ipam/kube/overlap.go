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
// A node that died between the two steps leaves a block that nobody has asked for. So it
// asks for each of its blocks again before it believes the marks in it, and who borrows
// asks before he marks. A block that overlaps is left alone then; it has no pods, as nobody
// got as far as marking one.

// overlaps returns the CIDR of a block of another size that overlaps o's, as of o's version
// or later; the zero Prefix when there is none.
func (s *Store) overlaps(ctx context.Context, o *object) (netip.Prefix, error) {
	others, err := s.otherSizes(ctx, o.cidr, o.version)
	if err != nil {
		return netip.Prefix{}, err
	}
	bad := overlapping(others, o)
	if !bad.IsValid() {
		s.pass(o)
	}
	return bad, nil
}

// pass notes that no block of another size overlaps o.
func (s *Store) pass(o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.checked) > 20_000 {
		clear(s.checked) // of blocks long gone; what is asked again costs a request
	}
	s.checked[o.uid] = struct{}{}
}

// otherSizes returns the blocks of a block's family that are not, or not known to be, of
// its size.
func (s *Store) otherSizes(ctx context.Context, block netip.Prefix, version string) ([]netip.Prefix, error) {
	other := map[string]string{"4": "6", "6": "4"}[familyOf(block)]
	return s.names(ctx, metav1.ListOptions{
		LabelSelector:        fmt.Sprintf("%s!=%s,%s!=%s", labelFamily, other, labelSize, strconv.Itoa(block.Bits())),
		ResourceVersion:      version,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
}

// mayMark returns an error when b takes addresses that old has free, and a block of another
// size overlaps. It asks once for each block.
func (s *Store) mayMark(ctx context.Context, b *ipam.Block, old *object) error {
	marks := false
	for i, slot := range b.Slots {
		marks = marks || slot.Handle != "" && (i >= len(old.handles) || old.handles[i] == "")
	}
	if !marks || s.passed(old) {
		return nil
	}
	other, err := s.overlaps(ctx, old)
	if err != nil {
		return fmt.Errorf("IPAMBlock %s: not known to overlap none: %w", old.name, err)
	}
	if other.IsValid() {
		return fmt.Errorf("IPAMBlock %s overlaps the block %s: nobody may take addresses of it; delete the one without pods", old.name, other)
	}
	return nil
}

func (s *Store) passed(o *object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.checked[o.uid]
	return ok
}

// sound returns the objects without those of this node that a block of another size
// overlaps. One that overlaps and has pods stays: they cannot be helped by ignoring it.
func (s *Store) sound(ctx context.Context, objects []*object, version string) ([]*object, error) {
	type kind struct {
		family string
		bits   int
	}
	others := map[kind][]netip.Prefix{}
	var out []*object
	for _, o := range objects {
		if s.cfg.Node == "" || o.block.Node() != s.cfg.Node || s.passed(o) {
			out = append(out, o)
			continue
		}
		k := kind{familyOf(o.cidr), o.cidr.Bits()}
		list, asked := others[k]
		if !asked {
			var err error
			if list, err = s.otherSizes(ctx, o.cidr, version); err != nil {
				return nil, err
			}
			others[k] = list
		}
		if bad := overlapping(list, o); bad.IsValid() {
			s.complain(o.name, "overlaps the block "+bad.String(), "blocks overlap; delete the one without pods")
			if pods(o.block) {
				out = append(out, o)
			}
			continue
		}
		s.pass(o)
		out = append(out, o)
	}
	return out, nil
}

// overlapping returns the first of list that overlaps o's block and is not that block.
func overlapping(list []netip.Prefix, o *object) netip.Prefix {
	for _, p := range list {
		if p != o.cidr && p.Overlaps(o.cidr) {
			return p
		}
	}
	return netip.Prefix{}
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
