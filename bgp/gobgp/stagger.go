package gobgp

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/bgp"
)

// Replacing a peer ends its session with a CEASE: both ends drop what the other told until it is
// up again, one to two seconds later. Where one edit changes several sessions that stand in for
// each other, as those with a rack's ToRs or with route reflectors, they are replaced in turns,
// so that the rest carries the traffic. Sessions of the mesh stand in for nobody: each is the
// only way to its node, and turns would only make the loss longer.

// replaceShare says that of n sessions at most n/replaceShare, and at least one, are replaced at
// a time.
const replaceShare = 8

// replacement is a peer on its way back after it was replaced.
type replacement struct {
	at      time.Time // when it was replaced
	settled time.Time // when it had told all its routes; zero: not yet
}

// over reports whether the next may go: the peer is back and had time to pass our routes on, or
// it had its time. wait is when to look again.
func (x *replacement) over(settled bool, now time.Time, p pace) (over bool, wait time.Time) {
	if settled && x.settled.IsZero() {
		x.settled = now
	}
	if !settled {
		x.settled = time.Time{}
	}
	wait = x.at.Add(p.replace)
	if !x.settled.IsZero() {
		wait = earliest(wait, x.settled.Add(p.settle))
	}
	return !now.Before(wait), wait
}

// inTurn reports whether the peer can wait for its turn to become p: it has a session that
// others may stand in for, and stays who it is, so that the policy fits it before and after.
func (l *life) inTurn(have, p bgp.Peer) bool {
	l.mu.Lock()
	up := l.sessions[have.Addr].up()
	l.mu.Unlock()
	return up && !have.Mesh && l.choreo.stage == stageDone &&
		have.ASN == p.ASN && have.LocalASN == p.LocalASN && have.IBGP() == p.IBGP() &&
		have.RRClient == p.RRClient && have.ClusterID == p.ClusterID && have.SameCluster == p.SameCluster
}

// turns picks of the peers that are to be replaced in turn those that may be now, and says when
// to look again. The families are apart: a session carries one.
func (l *life) turns(waiting []netip.Addr, now time.Time) (due []netip.Addr, next time.Time) {
	busy := map[bool]int{}
	for a, x := range l.replacing {
		p, there := l.peers[a]
		if !there {
			delete(l.replacing, a)
			continue
		}
		over, wait := x.over(l.peerSettled(a, now), now, l.r.pace)
		if over {
			delete(l.replacing, a)
			continue
		}
		busy[p.Addr.Is6()]++
		next = earliest(next, wait)
	}
	sessions := map[bool]int{}
	for a, p := range l.peers {
		if !p.Mesh {
			sessions[a.Is6()]++
		}
	}
	// Two reflectors have the same clients, and shall not leave one of them at the same time.
	slices.SortFunc(waiting, func(a, b netip.Addr) int {
		x, y := l.place(a), l.place(b)
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return a.Compare(b)
	})
	for _, a := range waiting {
		if busy[a.Is6()] < max(1, sessions[a.Is6()]/replaceShare) {
			busy[a.Is6()]++
			due = append(due, a)
			l.replacing[a] = &replacement{at: now}
			next = earliest(next, now.Add(l.r.pace.replace))
		}
	}
	if len(l.replacing) > 0 {
		next = earliest(next, l.silence())
	}
	return due, next
}

// place is where the peer stands in this node's order.
func (l *life) place(a netip.Addr) uint64 {
	h := fnv.New64a()
	for _, x := range []netip.Addr{l.choreo.global.RouterID, a} {
		b := x.As16()
		h.Write(b[:])
	}
	return h.Sum64()
}
