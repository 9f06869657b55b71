package gobgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
)

// GoBGP rests for 5 s after a session has ended, after an attempt at one has, and when the time
// to keep a restarting peer's routes is over, and refuses every connection meanwhile: the
// constant holdtimeIdle in fsm.go. It leaves a rest for one to two seconds, until its own attempt,
// so two nodes that both rest can refuse each other in turns for minutes. There is a way around
// it: a hard reset of a session that is already down does nothing but set the rest to
// idleAfterReset, and disabling and enabling the peer begins it anew. Two that rest for
// idleAfterReset meet at the second attempt at the latest: a rest is no longer than the time that
// each waits for the other before it tries again.

const (
	// restLeft: a peer that has rested no longer than this will rest long enough for the
	// calls to find it resting. On an established session a hard reset would be just that.
	restLeft = 3 * time.Second
	// How many rests of a peer are cut short per hastenPer. One that goes up and down is left
	// to rest; one that refuses costs a connection, and most often it only rests itself.
	hastenEnds     = 3
	hastenRefusals = 12
	hastenPer      = time.Minute
)

// rest is why a peer rests.
type rest uint8

const (
	awake   rest = iota
	refused      // an attempt at a session failed, or the time to keep its routes was over
	ended        // a session ended
)

// allowance counts what may happen so many times per hastenPer.
type allowance struct {
	n     int
	since time.Time
}

func (a *allowance) take(most int, now time.Time) bool {
	if now.Sub(a.since) > hastenPer {
		*a = allowance{since: now}
	}
	if a.n >= most {
		return false
	}
	a.n++
	return true
}

// hasten ends the rest of the peers that went down a moment ago.
func (l *life) hasten(ctx context.Context, now time.Time) error {
	due := map[netip.Addr]time.Time{}
	l.mu.Lock()
	for a, s := range l.sessions {
		why := s.rest
		s.rest = awake
		if _, ours := l.peers[a]; !ours || s.state != api.PeerState_IDLE {
			continue
		}
		if why == ended && s.ends.take(hastenEnds, now) || why == refused && s.refusals.take(hastenRefusals, now) {
			due[a] = s.idled
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, a := range sortedAddrs(due) {
		if err := l.wakePeer(ctx, a.String(), due[a]); err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

// wakePeer ends the rest that began at idled.
func (l *life) wakePeer(ctx context.Context, addr string, idled time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	look := func() (p *api.Peer, err error) {
		s, err := l.client.ListPeer(ctx, &api.ListPeerRequest{Address: addr})
		err = list(s, err, func(x *api.ListPeerResponse) { p = x.Peer })
		if err == nil && p == nil {
			err = errors.New("it is gone")
		}
		return p, err
	}
	p, err := look()
	if err != nil {
		return fmt.Errorf("ListPeer: %w", err)
	}
	if p.State.SessionState != api.PeerState_IDLE || p.State.AdminState != api.PeerState_UP || time.Since(idled) > restLeft {
		return nil
	}
	if _, err := l.client.ResetPeer(ctx, &api.ResetPeerRequest{Address: addr}); err != nil {
		return fmt.Errorf("ResetPeer: %w", err)
	}
	if _, err := l.client.DisablePeer(ctx, &api.DisablePeerRequest{Address: addr}); err != nil {
		return fmt.Errorf("DisablePeer: %w", err)
	}
	// A request that comes while another is on its way is dropped in silence.
	for {
		if p, err = look(); err != nil {
			return fmt.Errorf("ListPeer: %w", err)
		}
		if p.State.AdminState == api.PeerState_DOWN {
			break
		}
	}
	for {
		if _, err := l.client.EnablePeer(ctx, &api.EnablePeerRequest{Address: addr}); err != nil {
			return fmt.Errorf("EnablePeer: %w", err)
		}
		if p, err = look(); err != nil {
			return fmt.Errorf("ListPeer: %w", err)
		}
		if p.State.AdminState == api.PeerState_UP {
			return nil
		}
	}
}
