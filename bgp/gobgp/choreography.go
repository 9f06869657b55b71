package gobgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/causeway-net/causeway/bgp"
)

// stage is how far the return of the peers has come in one life.
type stage uint8

const (
	stageBegin  stage = iota // nobody was added
	stageFirst               // all but suspects, behind the gate or one by one
	stageSettle              // our End-of-RIB is on its way to them
	stageLast                // suspects, one by one
	stageDone                // peers come and go as configured
)

// choreography is the loop's memory of a life's beginning.
type choreography struct {
	global *bgp.Speaker // what StartBgp was called with; nil: not yet
	want   *bgp.Speaker // what is being applied
	stage  stage
	since  time.Time // of the stage
	gate   *gate     // nil: none
	single bool      // peers return one by one: there is no gate
	turn   netip.Addr
	turnAt time.Time // when the peer whose turn it is was added
	synced bool
	// restarting: some peer still kept our routes when this life began.
	restarting bool
}

// abandon lets go of what outlives no life.
func (c *choreography) abandon() {
	if c.gate != nil {
		c.gate.close()
		c.gate = nil
	}
}

func (c *choreography) enter(s stage, now time.Time) { c.stage, c.since = s, now }

// choreograph decides which of the wanted peers that are not there yet may be added now, and
// when to look again (zero: when something happens).
//
// First return, all together behind the gate, the peers that are no suspects; then, when they
// have told everything and been told everything, each suspect alone. A peer that is held back
// is not added at all.
func (l *life) choreograph(ctx context.Context, now time.Time, want *bgp.Speaker) (add []bgp.Peer, next time.Time, err error) {
	c := &l.choreo
	if err := l.learnCapabilities(ctx); err != nil {
		return nil, time.Time{}, err
	}
	var first, last []bgp.Peer // missing and free
	restarting := false
	l.r.mu.Lock()
	l.r.suspects.forget(now)
	l.r.suspects.pardon(func(a netip.Addr) bool {
		return slices.ContainsFunc(want.Peers, func(p bgp.Peer) bool { return p.Addr == a })
	})
	for _, p := range want.Peers {
		restarting = restarting || l.r.restartingFor(p, now)
		if _, there := l.peers[p.Addr]; there {
			continue
		}
		if _, _, held := l.r.suspects.held(p.Addr, now); held {
			continue
		}
		if l.r.suspects.last(p.Addr, now) {
			last = append(last, p)
		} else {
			first = append(first, p)
		}
	}
	free := l.r.suspects.next(now)
	l.r.mu.Unlock()

	if c.stage == stageBegin {
		c.enter(stageFirst, now)
		c.restarting = restarting
		if restarting && len(first) > 1 {
			if gerr := l.openGate(ctx, want); gerr != nil {
				l.log.Warn("no restart gate; peers return one by one", "reason", gerr)
				c.single = true
			}
		}
	}
	for {
		switch c.stage {
		case stageFirst:
			if !c.single {
				add = append(add, first...)
				if len(add) > 0 {
					return add, next, nil
				}
				if wait := c.since.Add(l.r.pace.gate); !l.settled(now) && now.Before(wait) && c.restarting {
					return nil, earliest(wait, l.silence()), nil
				}
			} else if p, wait := l.oneByOne(first, now); p != nil || !wait.IsZero() {
				return p, wait, nil
			}
			if err := l.closeGate(ctx, now); err != nil {
				l.log.Warn("restart gate did not open; routes are sent to each peer in its own time", "reason", err)
			}
			c.enter(stageSettle, now)
		case stageSettle:
			if wait := c.since.Add(l.r.pace.settle); len(last) > 0 && now.Before(wait) {
				return nil, wait, nil
			}
			c.enter(stageLast, now)
			c.turn = netip.Addr{}
		case stageLast:
			if p, wait := l.oneByOne(last, now); p != nil || !wait.IsZero() {
				return p, wait, nil
			}
			c.enter(stageDone, now)
		case stageDone:
			add = append(first, last...)
			if !c.synced {
				wait := l.started.Add(l.r.pace.window)
				if len(add) == 0 && l.settled(now) || !now.Before(wait) {
					c.synced = true
					l.syncNow <- struct{}{}
				} else {
					next = earliest(wait, l.silence())
				}
			}
			return add, earliest(next, free), nil
		}
	}
}

// oneByOne returns the next of the missing peers, when the one before it has settled or had its
// time; until then, when to look again. It returns nothing when all are through.
func (l *life) oneByOne(missing []bgp.Peer, now time.Time) ([]bgp.Peer, time.Time) {
	c := &l.choreo
	if wait := c.turnAt.Add(l.r.pace.turn); c.turn.IsValid() && now.Before(wait) && !l.peerSettled(c.turn, now) {
		return nil, earliest(wait, l.silence())
	}
	if len(missing) == 0 {
		return nil, time.Time{}
	}
	c.turn, c.turnAt = missing[0].Addr, now
	return missing[:1], time.Time{}
}

// openGate adds the gate to the speaker and takes its place.
func (l *life) openGate(ctx context.Context, want *bgp.Speaker) error {
	if len(want.ListenAddrs) == 0 {
		return fmt.Errorf("the speaker does not listen")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	addr := gateAddr(want.ListenAddrs[0])
	l.mu.Lock()
	l.gateAddr = addr
	l.mu.Unlock()
	if _, err := l.client.AddPeer(ctx, &api.AddPeerRequest{Peer: gatePeer(addr, want.ASN)}); err != nil {
		return fmt.Errorf("AddPeer %s: %w", addr, err)
	}
	g, err := openGate(ctx, addr, want.ListenPort, want.ASN, want.RouterID)
	if err != nil {
		_ = l.deletePeer(ctx, addr.String(), want.ASN, false)
		return err
	}
	l.choreo.gate = g
	return nil
}

// closeGate releases the peers that are back, and removes the gate. Those that are not back are
// added anew with their restart bits, which the release has cleared.
func (l *life) closeGate(ctx context.Context, now time.Time) error {
	g := l.choreo.gate
	if g == nil {
		return nil
	}
	var missing []bgp.Peer
	up := l.established()
	for _, a := range sortedAddrs(l.peers) {
		if _, ok := up[a]; !ok {
			missing = append(missing, l.peers[a])
		}
	}
	for _, p := range missing {
		if err := l.deletePeer(ctx, p.Addr.String(), p.ASN, p.Password != ""); err != nil {
			l.log.Error("peer could not be deleted", "peer", p.Addr.String(), "error", err)
			continue
		}
		delete(l.peers, p.Addr)
	}
	wait, cancel := context.WithTimeout(ctx, time.Second)
	err := g.release(wait)
	cancel()
	if derr := l.deletePeer(ctx, g.addr.String(), l.choreo.global.ASN, false); derr != nil && err == nil {
		err = derr
	}
	l.choreo.abandon()
	for _, p := range missing {
		if _, there := l.peers[p.Addr]; !there {
			if aerr := l.addPeer(ctx, p, now); aerr != nil {
				l.log.Error("peer could not be added again", "peer", p.Addr.String(), "error", aerr)
			}
		}
	}
	return err
}

// greet sends our routes and End-of-RIB at once to each returning peer that gets nothing from us
// but our own prefixes: there is no other peer to wait for, and the sooner its restart is over,
// the less a second death can cost (RFC 4724, section 4.2). The others wait for the gate.
func (l *life) greet(ctx context.Context) error {
	var errs []error
	for a, p := range l.established() {
		l.mu.Lock()
		s := l.sessions[a]
		due := s.up() && l.returning[a] && !s.greeted
		l.mu.Unlock()
		if !due || l.passesOn(p) {
			continue
		}
		if err := l.softReset(ctx, a, api.ResetPeerRequest_OUT); err != nil {
			errs = append(errs, err)
			continue
		}
		l.mu.Lock()
		s.greeted = true
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}

// passesOn reports whether routes of another peer are passed on to p.
func (l *life) passesOn(p bgp.Peer) bool {
	for _, q := range l.choreo.want.Peers {
		switch {
		case q.Addr == p.Addr || q.Addr.Is4() != p.Addr.Is4():
		case !p.IBGP() && q.IBGP(), p.IBGP() && !q.IBGP():
			return true
		case p.IBGP() && q.IBGP() && (p.RRClient || q.RRClient):
			return true
		}
	}
	return false
}

// settled reports whether every peer that was added has told all its routes.
func (l *life) settled(now time.Time) bool {
	for a := range l.peers {
		if !l.peerSettled(a, now) {
			return false
		}
	}
	return true
}

func (l *life) peerSettled(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[a]
	if !s.up() {
		return false
	}
	return s.eor || s.graceful == unable && now.Sub(s.since) >= silentTime
}

// silence returns when the next peer that sends no End-of-RIB counts as settled.
func (l *life) silence() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	var t time.Time
	for _, s := range l.sessions {
		if at := s.since.Add(silentTime); s.up() && !s.eor && s.graceful == unable && at.After(time.Now()) {
			t = earliest(t, at)
		}
	}
	return t
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// learnCapabilities asks, for each new session, whether the peer will send End-of-RIB.
func (l *life) learnCapabilities(ctx context.Context) error {
	var ask []netip.Addr
	l.mu.Lock()
	for a, s := range l.sessions {
		if _, ours := l.peers[a]; ours && s.up() && s.graceful == unknown {
			ask = append(ask, a)
		}
	}
	l.mu.Unlock()
	for _, a := range ask {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		s, err := l.client.ListPeer(ctx, &api.ListPeerRequest{Address: a.String()})
		err = list(s, err, func(x *api.ListPeerResponse) {
			known := unable
			for _, c := range x.Peer.GetState().GetRemoteCap() {
				if is(c, "GracefulRestartCapability") {
					known = able
				}
			}
			l.mu.Lock()
			if s := l.sessions[a]; s.up() {
				s.graceful = known
			}
			l.mu.Unlock()
		})
		cancel()
		if err != nil {
			return fmt.Errorf("ListPeer %s: %w", a, err)
		}
	}
	return nil
}
