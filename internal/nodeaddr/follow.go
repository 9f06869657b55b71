package nodeaddr

import (
	"net/netip"
	"time"
)

// DefaultSettle is how long another address has to be found before it takes the place of the
// one in force.
const DefaultSettle = 5 * time.Second

// comeback is how long a link may take to get its address again after it was down, or after
// the node booted, in Settles: router advertisements and DHCP take their time.
const comeback = 6

// Follower decides when another address takes the place of the one in force, for one
// family. Its zero value knows none.
//
// The first address found counts at once, but for a host address (/32, /128) that nobody knew
// of: a virtual one may just be earlier than the node's own. Another one must be found for Settle on end: an
// address that goes and comes back moves nothing. While the link that had the address in
// force is down, or has no carrier, that address stays, whatever is found elsewhere; and it
// stays while nothing is found.
type Follower struct {
	Settle time.Duration // 0: DefaultSettle

	cur     Choice
	pending Choice    // another one, found since since
	since   time.Time // when pending was found first
	down    bool      // the link of cur was down when it was last looked at
	back    time.Time // when it was no longer; the zero Time: it never was
	seed    netip.Prefix
}

// Current is the address in force; its Prefix is the zero Prefix before the first was found.
func (f *Follower) Current() Choice { return f.cur }

// Prefer is the address that Choose should not leave for an equal one.
func (f *Follower) Prefer() netip.Prefix {
	if f.cur.Prefix.IsValid() {
		return f.cur.Prefix
	}
	return f.seed
}

// Seed says what was in force before this program started. An address that a link has which
// is down goes on to be in force. So does one that no link has, for a while: a node that
// boots may not have it yet. One without the mask of a subnet is nobody's finding.
func (f *Follower) Seed(now time.Time, p netip.Prefix, links []Link) {
	if f.cur.Prefix.IsValid() || !p.IsValid() {
		return
	}
	f.seed = p
	held := false
	for _, l := range links {
		if !has(l, p.Addr()) {
			continue
		}
		held = true
		if !l.Up || !l.Running {
			f.cur, f.down = Choice{p, l.Name}, true
			return
		}
	}
	if !held && !p.IsSingleIP() {
		f.cur, f.back = Choice{Prefix: p}, now
	}
}

// Step takes what is found now; the zero Choice says nothing was. It reports whether the
// address in force changed, and after which time Step must be called again though nothing
// else happens (0: never).
func (f *Follower) Step(now time.Time, found Choice, links []Link) (changed bool, again time.Duration) {
	down := false
	for _, l := range links {
		if l.Name == f.cur.Link && f.cur.Prefix.IsValid() {
			down = !l.Up || !l.Running
		}
	}
	if f.down && !down {
		f.back = now
	}
	f.down = down
	adopt := func() (bool, time.Duration) {
		f.cur, f.pending, f.back = found, Choice{}, time.Time{}
		return true, 0
	}
	switch {
	case !found.Prefix.IsValid():
		f.pending = Choice{}
		return false, 0
	case !f.cur.Prefix.IsValid() && (!found.Prefix.IsSingleIP() || found.Prefix == f.seed):
		return adopt()
	case found.Prefix == f.cur.Prefix:
		f.cur.Link, f.pending = found.Link, Choice{}
		return false, 0
	case down:
		f.pending = Choice{}
		return false, 0
	}
	if found.Prefix != f.pending.Prefix {
		f.since = now
	}
	f.pending = found
	settle := f.Settle
	if settle == 0 {
		settle = DefaultSettle
	}
	due := f.since.Add(settle)
	if back := f.back.Add(comeback * settle); !f.back.IsZero() && back.After(due) {
		due = back
	}
	if !now.Before(due) {
		return adopt()
	}
	return false, due.Sub(now)
}
