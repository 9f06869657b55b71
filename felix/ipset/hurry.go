package ipset

import (
	"context"
	"slices"
	"strings"
	"time"
)

// hurryMembers is how many members a change may have that is brought while longer work is
// under way.
const hurryMembers = 256

// meanwhile brings small changes that came while longer work is under way, so that a pod
// need not wait for thousands of members of others. Those that take members away come only
// after all that was asked for before; asked says that such work is under way.
//
// It never touches a set that has commands on their way, or whose state is not known.
func (r *Reconciler) meanwhile(ctx context.Context, now time.Time, asked bool) error {
	taken := r.takeSmall(asked)
	if len(taken) == 0 {
		return nil
	}
	var work []*set
	for i := range taken {
		r.absorb(&taken[i])
		work = append(work, r.sets[taken[i].name])
	}
	slices.SortFunc(work, func(a, b *set) int { return strings.Compare(a.name, b.name) })
	work = slices.Compact(work)
	var room, grow, shrink []step
	unfit := false
	for _, s := range work {
		s.err, s.fresh = nil, false
		add, del := s.delta()
		if !s.fits(s.haves + len(add)) {
			unfit = true // it must be built anew, and nothing taken away before that
			continue
		}
		first, del := s.crowding(add, del)
		room = append(room, r.del(s, first, now)...)
		grow = append(grow, r.add(s, add, now)...)
		shrink = append(shrink, r.del(s, del, now)...)
	}
	if unfit {
		shrink = nil
	}
	for _, steps := range [][]step{room, grow, shrink} {
		if err := r.send(ctx, steps); err != nil {
			return err
		}
	}
	done := work[:0]
	for _, s := range work {
		if r.settled(s, now) {
			done = append(done, s)
		} else {
			r.again = true
		}
	}
	r.settle(done)
	return nil
}

// takeSmall takes those pending changes that meanwhile may bring.
func (r *Reconciler) takeSmall(asked bool) (taken []change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := r.pending[:r.passed]
	for _, c := range r.pending[r.passed:] {
		if !r.behind[c.name] && r.hurries(&c, asked || len(left) > 0) {
			taken = append(taken, c)
			continue
		}
		r.behind[c.name] = true
		left = append(left, c)
	}
	clear(r.pending[len(left):])
	r.pending, r.passed = left, len(left)
	return taken
}

// hurries reports whether meanwhile may bring c; after says that other changes that were asked
// for before are not in the kernel.
func (r *Reconciler) hurries(c *change, after bool) bool {
	s := r.sets[c.name]
	return !c.whole && !c.gone && len(c.add)+len(c.remove) <= hurryMembers && !(after && len(c.remove) > 0) &&
		s != nil && s.wanted() && s.invalid == nil && s.header != nil && s.read && !s.busy && len(s.changed) == 0
}
