package ipset

import (
	"fmt"
	"math/bits"
	"time"
)

// What is known of a member. It is wanted when it was declared itself or as the half of a
// prefix of length 0.
const (
	own  uint8 = 1 << iota // wanted
	half                   // wanted as a half
	have                   // stands in the kernel
	met                    // seen by the reading that is under way
	kept                   // wanted as an earlier agent's, see Set.Adopt
	want = own | half | kept
)

// kind is what cannot change in a set.
type kind struct {
	typ    Type
	family Family
}

// set is one set's desired and actual state. It belongs to the goroutine of Run.
type set struct {
	name string
	// kind is the wanted one; the zero kind: the set is not wanted.
	kind    kind
	members map[key]uint8
	wants   int // members with want
	haves   int // members with have
	// changed are keys whose want and have may differ; all that do are in it.
	changed map[key]struct{}

	header *Header // as it stands in the kernel; nil: it does not
	read   bool    // have is what the kernel holds; otherwise it must be read
	stale  bool    // have was what the kernel held, and must be read again when there is time
	seen   bool    // it was read before, so that what differs now is somebody's doing
	// released: an owner gave it up, or it is a leftover: it may go before all are in sync.
	released bool
	invalid  error             // why it cannot be as it was declared; what stands is left
	full     bool              // the kernel said so: it needs a larger limit
	bad      map[Member]error  // declared members that cannot be in such a set
	refused  map[key]error     // members that the kernel does not take
	crowds   map[key]crowd     // in a set of interfaces: what is known of each prefix
	waiting  map[key]struct{}  // declared members of prefixes with too many interfaces
	adopt    func(Member) bool // not nil: what stands there has still to be adopted
	spurned  map[key]struct{}  // members that must not be adopted
	absorbed uint64            // the number of the last change taken in
	busy     bool              // commands that change it are being written
	err      error             // why it is not as wanted
	failures int               // in a row
	retry    time.Time         // when to try again after a failure
	fresh    bool              // it was read in this round, so that a refusal is no misunderstanding
}

func newSet(name string) *set {
	return &set{name: name, members: map[key]uint8{}, changed: map[key]struct{}{}}
}

func (s *set) wanted() bool { return s.kind != kind{} }

// put changes what is known of one member.
func (s *set) put(k key, set, clear uint8) {
	old := s.members[k]
	now := old&^clear | set
	if now == old {
		return
	}
	if now == 0 {
		delete(s.members, k)
	} else {
		s.members[k] = now
	}
	wants, haves := count(now&want != 0)-count(old&want != 0), count(now&have != 0)-count(old&have != 0)
	s.wants += wants
	s.haves += haves
	s.crowded(k, wants, haves)
	if differs(now) {
		s.changed[k] = struct{}{}
	} else {
		delete(s.changed, k)
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func differs(state uint8) bool { return (state&want != 0) != (state&have != 0) }

// clearAll takes bits from all members.
func (s *set) clearAll(clear uint8) {
	for k := range s.members {
		s.put(k, 0, clear)
	}
}

// declare makes m wanted, or not wanted any more.
func (s *set) declare(m Member, wanted bool) {
	keys, n, err := keysOf(s.kind.typ, s.kind.family, m)
	switch {
	case err == nil:
	case wanted:
		if s.bad == nil {
			s.bad = map[Member]error{}
		}
		s.bad[m] = err
		return
	default:
		delete(s.bad, m)
		return
	}
	bit := own
	if n == 2 {
		bit = half
	}
	for _, k := range keys[:n] {
		switch {
		case !wanted:
			s.put(k, 0, bit|kept)
			delete(s.refused, k)
			delete(s.waiting, k)
			s.spurn(k)
		case s.noRoom(k):
			if s.waiting == nil {
				s.waiting = map[key]struct{}{}
			}
			s.waiting[k] = struct{}{}
		default:
			s.put(k, bit, 0)
		}
	}
}

// lost notes that the set does not stand in the kernel.
func (s *set) lost() {
	s.header, s.read, s.stale = nil, true, false
	s.clearAll(have)
}

// reading takes in what the kernel lists of a set.
type reading struct {
	s      *set
	header Header
	odd    bool
	before int // members known to stand there
	listed int
	still  int // of them, those that were known
}

func (r *reading) begin(h Header) {
	*r = reading{s: r.s, header: h, before: r.s.haves}
	for k, state := range r.s.members {
		if state&met != 0 { // a reading that was broken off
			r.s.put(k, 0, met)
		}
	}
}

func (r *reading) member(l Listed) {
	r.listed++
	keys, n, err := keysOf(r.header.Type, r.header.Family, l.Member)
	if err != nil || n != 1 {
		r.odd = true // nothing of ours, and not to be deleted by name: the set is built anew
		return
	}
	k := keys[0]
	state := r.s.members[k]
	switch {
	case l.Odd && r.header.Type.ifaces():
		r.odd = true // it may stand beside the one without the flag, and cannot be told from it
		return
	case l.Odd && state&want != 0:
		return // as if it were not there: to add it again clears the flag
	case l.Odd:
		r.s.spurn(k)
	}
	if state&have != 0 {
		r.still++
	}
	r.s.put(k, have|met, 0)
}

// end returns how many members were not as they were known to be.
func (r *reading) end() (drift int) {
	s := r.s
	for k, state := range s.members {
		switch {
		case state&met != 0:
			s.put(k, 0, met)
		case state&have != 0:
			s.put(k, 0, have)
		}
	}
	r.header.Odd = r.header.Odd || r.odd
	s.header, s.read, s.fresh, s.stale = &r.header, true, true, false
	if s.seen {
		drift = (r.before - r.still) + (r.listed - r.still)
	}
	s.seen = true
	s.adoptWhatStands()
	return drift
}

// leftOut says which members the set goes without.
func (s *set) leftOut() error {
	n := len(s.bad) + len(s.refused) + len(s.waiting)
	if n == 0 {
		return nil
	}
	var first error
	for _, err := range s.bad {
		if first == nil || err.Error() < first.Error() {
			first = err
		}
	}
	for k, err := range s.refused {
		err = fmt.Errorf("member %s: %w", k.member(s.kind.family), err)
		if first == nil || err.Error() < first.Error() {
			first = err
		}
	}
	for k := range s.waiting {
		err := fmt.Errorf("member %s: prefix %s has %d interfaces already, and more are not possible in a set of type %s",
			k.member(s.kind.family), k.alone().member(s.kind.family), MaxInterfaces, s.kind.typ)
		if first == nil || err.Error() < first.Error() {
			first = err
		}
	}
	if n > 1 {
		return fmt.Errorf("%w; and %d more are left out", first, n-1)
	}
	return first
}

// fits reports whether the set in the kernel can be mended in place to hold n members.
func (s *set) fits(n int) bool {
	h := s.header
	return h.Type == s.kind.typ && h.Family == s.kind.family && !h.Odd && !s.full && n <= h.MaxElem
}

// mostElem is the largest limit that we ask for; the kernel has 32 bits for it.
const mostElem = 1 << 30

// limit is the maxelem of a set that is to hold n members: room for as many again.
func limit(least, n int) int {
	for least < 2*n && least < mostElem {
		least *= 2
	}
	return least
}

// delta lists the members to add and to take away.
func (s *set) delta() (add, del []key) {
	for k := range s.changed {
		if s.members[k]&want != 0 {
			if _, no := s.refused[k]; !no {
				add = append(add, k)
			}
		} else {
			del = append(del, k)
		}
	}
	return add, del
}

// all lists the wanted members that the kernel takes.
func (s *set) all() []key {
	out := make([]key, 0, s.wants)
	for k, state := range s.members {
		if _, no := s.refused[k]; state&want != 0 && !no {
			out = append(out, k)
		}
	}
	return out
}

func (s *set) texts(keys []key) []Member {
	f := s.kind.family
	if !s.wanted() {
		f = s.header.Family
	}
	out := make([]Member, len(keys))
	for i, k := range keys {
		out[i] = k.member(f)
	}
	return out
}

// hashSize is the number of buckets for n members, four in each: what keeps lookups short
// and the kernel from making the table anew while it is filled. The kernel's own default of
// 1024 costs 8 KiB in each of thousands of small sets.
func hashSize(n int) int {
	return max(64, 1<<bits.Len(uint(n/4)))
}
