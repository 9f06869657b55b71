package gobgp

import (
	"net/netip"
	"time"
)

// How peers that kill the speaker are treated.
const (
	firstHold = 30 * time.Second // doubled with every further death
	maxHold   = time.Hour
	quietTime = time.Hour // without another death a suspicion is dropped, once it is free
	probation = 5 * time.Second
	freshness = 2 * time.Second
)

// suspects remembers which peers the speaker died of. It has no clock and no I/O.
//
// A peer is unknown (innocent), returns last (one death), or is held back (two and more, each
// time twice as long). A held-back peer whose time is over returns last again, and the next
// death of it holds it back at once.
type suspects map[netip.Addr]*suspect

type suspect struct {
	deaths   int       // attributed so far
	died     time.Time // the last of them
	until    time.Time // held back until then; zero: not held back
	returned time.Time // when it was last added again; zero: not since the last death
	reason   string
}

// evidence is what a death leaves behind.
type evidence struct {
	at       time.Time
	killed   bool         // somebody ended the process: no peer is to blame
	speakers []netip.Addr // peers that the trace or the last bytes point at, strongest first
	// established is the configured peer whose session came up last, and when.
	established   netip.Addr
	establishedAt time.Time
	reason        string
}

// blame picks the peer that the speaker died of among those that are configured; the zero Addr
// when nothing points at one.
func (s suspects) blame(e evidence, configured func(netip.Addr) bool) netip.Addr {
	if e.killed {
		return netip.Addr{}
	}
	for _, a := range e.speakers {
		if configured(a) {
			return a
		}
	}
	// No bytes: then the suspect that was let in a moment ago, then the youngest session.
	var best netip.Addr
	var when time.Time
	for a, x := range s {
		if x.returned.After(when) && e.at.Sub(x.returned) <= probation && configured(a) {
			best, when = a, x.returned
		}
	}
	if best.IsValid() {
		return best
	}
	if e.established.IsValid() && configured(e.established) && e.at.Sub(e.establishedAt) <= freshness {
		return e.established
	}
	return netip.Addr{}
}

// convict records that the speaker died of the peer, and returns until when it is held back:
// the zero Time after a first death.
func (s suspects) convict(a netip.Addr, at time.Time, reason string) time.Time {
	s.forget(at)
	x := s[a]
	if x == nil {
		x = &suspect{}
		s[a] = x
	}
	x.deaths++
	x.died, x.returned, x.reason = at, time.Time{}, reason
	if x.deaths > 1 {
		x.until = at.Add(holdFor(x.deaths))
	}
	return x.until
}

func holdFor(deaths int) time.Duration {
	d := firstHold
	for range deaths - 2 {
		if d *= 2; d >= maxHold {
			return maxHold
		}
	}
	return d
}

// held reports until when the peer is held back and why.
func (s suspects) held(a netip.Addr, now time.Time) (until time.Time, reason string, ok bool) {
	x := s[a]
	if x == nil || !now.Before(x.until) {
		return time.Time{}, "", false
	}
	return x.until, x.reason, true
}

// last reports whether the peer is free but must be the last to return.
func (s suspects) last(a netip.Addr, now time.Time) bool {
	x := s[a]
	return x != nil && x.returned.IsZero() && !now.Before(x.until)
}

// admit records that the peer was added.
func (s suspects) admit(a netip.Addr, now time.Time) {
	if x := s[a]; x != nil {
		x.returned = now
	}
}

// restarted forgets who was admitted: a new life begins and suspects return last once more.
func (s suspects) restarted() {
	for _, x := range s {
		x.returned = time.Time{}
	}
}

// next returns when the next held-back peer becomes free; zero when none is held back.
func (s suspects) next(now time.Time) time.Time {
	var t time.Time
	for _, x := range s {
		if now.Before(x.until) && (t.IsZero() || x.until.Before(t)) {
			t = x.until
		}
	}
	return t
}

// forget drops suspicions after a long quiet time: an hour, and at least as long as the peer
// was held back.
func (s suspects) forget(now time.Time) {
	for a, x := range s {
		free := x.died
		if x.until.After(free) {
			free = x.until
		}
		if now.Sub(free) > quietTime {
			delete(s, a)
		}
	}
}

// pardon drops suspicions of peers that are no longer configured: who removes a peer and
// configures it again has looked at it, and lets it in at once.
func (s suspects) pardon(configured func(netip.Addr) bool) {
	for a := range s {
		if !configured(a) {
			delete(s, a)
		}
	}
}
