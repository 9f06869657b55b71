package gobgp

import (
	"net/netip"
	"testing"
	"time"
)

// TestSuspects walks through the lives of suspects. Times are seconds.
func TestSuspects(t *testing.T) {
	a, b, stranger := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("127.0.0.1")
	base := time.Unix(1e9, 0)
	at := func(s float64) time.Time { return base.Add(time.Duration(s * float64(time.Second))) }
	configured := func(x netip.Addr) bool { return x == a || x == b }

	type step struct {
		at    float64
		died  *evidence  // the speaker died
		admit netip.Addr // the peer was added
		// afterwards
		blame        netip.Addr
		last, free   []netip.Addr
		held         map[netip.Addr]float64 // until
		nextReleased float64
	}
	by := func(x ...netip.Addr) *evidence { return &evidence{speakers: x} }
	for name, steps := range map[string][]step{
		"a first death holds nobody back, a second does, and longer each time": {
			{at: 0, died: by(a), blame: a, last: []netip.Addr{a}, free: []netip.Addr{b}},
			{at: 3, admit: a, free: []netip.Addr{a, b}},
			{at: 4, died: by(a), blame: a, held: map[netip.Addr]float64{a: 34}, free: []netip.Addr{b}, nextReleased: 34},
			{at: 35, last: []netip.Addr{a}, free: []netip.Addr{b}},
			{at: 35, admit: a, free: []netip.Addr{a, b}},
			{at: 36, died: by(a), blame: a, held: map[netip.Addr]float64{a: 96}, nextReleased: 96},
			{at: 97, admit: a},
			{at: 98, died: by(a), blame: a, held: map[netip.Addr]float64{a: 218}, nextReleased: 218},
		},
		"a long quiet time makes innocent": {
			{at: 0, died: by(a), blame: a},
			{at: 3, admit: a},
			{at: 3603, free: []netip.Addr{a, b}},
			{at: 3604, died: by(a), blame: a, last: []netip.Addr{a}},
		},
		"a kill is nobody's fault, whoever spoke": {
			{at: 0, died: &evidence{killed: true, speakers: []netip.Addr{a}, established: a, establishedAt: at(0)}, free: []netip.Addr{a, b}},
		},
		"a suspect that is no peer passes the blame on": {
			{at: 0, died: by(stranger, b), blame: b, last: []netip.Addr{b}, free: []netip.Addr{a}},
		},
		"without bytes it is the suspect that was just let in": {
			{at: 0, died: by(a), blame: a},
			{at: 3, admit: a},
			{at: 5, died: &evidence{established: b, establishedAt: at(4)}, blame: a, held: map[netip.Addr]float64{a: 35}, nextReleased: 35},
		},
		"but not long after": {
			{at: 0, died: by(a), blame: a},
			{at: 3, admit: a},
			{at: 20, died: &evidence{established: b, establishedAt: at(4)}, last: nil, free: []netip.Addr{a, b}},
		},
		"then the youngest session": {
			{at: 0, died: &evidence{established: b, establishedAt: at(-1)}, blame: b, last: []netip.Addr{b}},
		},
		"else nobody": {
			{at: 0, died: &evidence{established: b, establishedAt: at(-10)}, free: []netip.Addr{a, b}},
			{at: 1, died: &evidence{}, free: []netip.Addr{a, b}},
		},
		"two peers that kill are told apart": {
			{at: 0, died: by(a), blame: a, last: []netip.Addr{a}},
			{at: 1, died: by(b), blame: b, last: []netip.Addr{a, b}},
			{at: 2, admit: a, last: []netip.Addr{b}},
			{at: 3, died: by(a), blame: a, held: map[netip.Addr]float64{a: 33}, last: []netip.Addr{b}, nextReleased: 33},
			{at: 4, admit: b, free: []netip.Addr{b}, held: map[netip.Addr]float64{a: 33}, nextReleased: 33},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := suspects{}
			for i, x := range steps {
				now := at(x.at)
				if x.died != nil {
					e := *x.died
					e.at = now
					got := s.blame(e, configured)
					if got != x.blame {
						t.Fatalf("step %d: blamed %v, want %v", i, got, x.blame)
					}
					if got.IsValid() {
						s.convict(got, now, "it died")
					}
				}
				if x.admit.IsValid() {
					s.admit(x.admit, now)
				}
				s.forget(now)
				for _, p := range x.last {
					if !s.last(p, now) {
						t.Errorf("step %d: %v does not return last", i, p)
					}
				}
				for _, p := range x.free {
					if _, _, held := s.held(p, now); held || s.last(p, now) {
						t.Errorf("step %d: %v is not free", i, p)
					}
				}
				for p, until := range x.held {
					if got, reason, held := s.held(p, now); !held || !got.Equal(at(until)) || reason == "" || s.last(p, now) {
						t.Errorf("step %d: %v held %v until %v (%q), want %v", i, p, held, got, reason, at(until))
					}
				}
				if next := s.next(now); x.nextReleased != 0 && !next.Equal(at(x.nextReleased)) || x.nextReleased == 0 && !next.IsZero() {
					t.Errorf("step %d: next release %v, want %v", i, next, x.nextReleased)
				}
			}
		})
	}
	if d := holdFor(100); d != maxHold {
		t.Errorf("held for %v", d)
	}
}

func TestPardon(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	now := time.Unix(1e9, 0)
	s := suspects{}
	for _, x := range []netip.Addr{a, a, b, b} {
		s.convict(x, now, "it died")
	}
	s.pardon(func(x netip.Addr) bool { return x == b })
	if _, _, held := s.held(a, now); held || s.last(a, now) {
		t.Error("a peer that was taken out of the configuration is still a suspect")
	}
	if _, _, held := s.held(b, now); !held {
		t.Error("a configured peer was pardoned")
	}
}
