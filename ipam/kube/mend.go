package kube

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/ipam"
)

// mend writes a block of this node's whose annotation does not say what its spec does, and
// returns the object as it then is. Nothing else of the block changes. What cannot be
// written is tried again at the next list.
func (s *Store) mend(ctx context.Context, o *object) *object {
	if !s.mends(o.block) || blockroutes.Noted(o.annotations, o.cidr, &o.typed, o.generation) {
		return o
	}
	written, err := s.write(ctx, o.block, o)
	switch {
	case err == nil:
		s.log.Info("block mended: its annotation says where its addresses are", "block", o.cidr.String())
		return written
	case apierrors.IsConflict(err), apierrors.IsNotFound(err): // somebody was faster
	default:
		s.complain(o.name, err.Error(), "block cannot be mended; other nodes may have no VXLAN routes to it")
	}
	return o
}

// mends reports whether a block's annotation is this node's to keep right.
func (s *Store) mends(b *ipam.Block) bool {
	switch {
	case s.cfg.Node == "":
		return false
	case b.Affinity == "":
		return slices.Contains(b.Borrowers(), s.cfg.Node)
	}
	return b.Node() == s.cfg.Node
}

// write replaces the object that old is a version of by one that says what b does, and
// returns it as the server stored it. Where an admission policy of a release that did not
// know the annotation refuses it, the block is written without.
func (s *Store) write(ctx context.Context, b *ipam.Block, old *object) (*object, error) {
	put := func(annotate bool) (*object, error) {
		data, err := s.encode(b, old, annotate)
		if err != nil {
			return nil, err
		}
		body, err := send(ctx, s.cfg.Clients.V3.Put().Name(old.name).Body(data))
		if err != nil {
			return nil, err
		}
		return decode(body)
	}
	o, err := put(true)
	if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		return o, err
	}
	o, without := put(false)
	if without != nil {
		return nil, err
	}
	s.complain(o.name, err.Error(), "the annotation "+blockroutes.Annotation+" is refused, and other nodes may have no VXLAN routes to the block; apply the admission policies of this release")
	return o, nil
}
