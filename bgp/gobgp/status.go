package gobgp

import (
	"context"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/causeway-net/causeway/bgp"
)

// Status is what the reconciler says about the speaker and its sessions.
type Status struct {
	Wanted    bool         `json:"wanted"` // a speaker is desired
	Running   bool         `json:"running"`
	PID       int          `json:"pid,omitempty"`
	Since     time.Time    `json:"since,omitzero"` // start of the present life
	Synced    bool         `json:"synced"`         // the table is complete since then
	ASN       uint32       `json:"asn,omitempty"`
	RouterID  netip.Addr   `json:"routerID,omitzero"`
	Restarts  int          `json:"restarts"` // unasked deaths of the process
	LastDeath string       `json:"lastDeath,omitempty"`
	DiedAt    time.Time    `json:"diedAt,omitzero"`
	Error     string       `json:"error,omitempty"` // why the desired state is not reached
	Adverts   []bgp.Advert `json:"adverts,omitempty"`
	Peers     []PeerStatus `json:"peers,omitempty"` // by address
}

// PeerStatus is one desired session.
type PeerStatus struct {
	Addr     netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	ASN      uint32     `json:"asn"`
	LocalASN uint32     `json:"localASN"`
	Mesh     bool       `json:"mesh,omitempty"`
	Resource string     `json:"resource,omitempty"` // BGPPeer
	Node     string     `json:"node,omitempty"`
	// State is RFC 4271's, "Established" and so on; "HeldBack" while the peer is kept away
	// since the speaker died of it, "Waiting" until it is its turn to be added.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"` // of the state
	Flaps int       `json:"flaps"`          // ends of an established session in this life
	// Counts of prefixes: received, accepted, and sent. They are read when the status is.
	Received   uint64    `json:"received"`
	Accepted   uint64    `json:"accepted"`
	Advertised uint64    `json:"advertised"`
	EndOfRIB   bool      `json:"endOfRIB"` // received in the present session
	HeldBack   time.Time `json:"heldBackUntil,omitzero"`
	HeldReason string    `json:"heldBackReason,omitempty"`
	Deaths     int       `json:"deaths,omitempty"` // of the speaker, laid to this peer
	LastError  string    `json:"lastError,omitempty"`
}

type counts struct{ received, accepted, advertised uint64 }

// countAdvertisedUpTo bounds the tables for which the sent prefixes are counted: GoBGP goes
// through the whole table for each peer, and does nothing else meanwhile.
const countAdvertisedUpTo = 20000

// Status describes the present state. It asks the speaker for its counts, at most once a second,
// and waits for the answer no longer than a second.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	l := r.life
	r.mu.Unlock()
	if l != nil {
		l.refreshCounts()
	}
	return r.Glance()
}

// Glance is Status with the counts as they were when Status was called last: it asks the
// speaker nothing.
func (r *Reconciler) Glance() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{Wanted: r.want != nil, Restarts: r.restarts, LastDeath: r.death, DiedAt: r.diedAt}
	if r.err != nil {
		s.Error = r.err.Error()
	}
	if r.want == nil {
		return s
	}
	s.ASN, s.RouterID, s.Adverts = r.want.ASN, r.want.RouterID, slices.Clone(r.want.Adverts)
	l := r.life
	if l != nil {
		s.Running, s.Since = true, l.started
		if p, ok := l.inst.(interface{ PID() int }); ok {
			s.PID = p.PID()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		s.Synced = l.synced
	}
	now := time.Now()
	for _, p := range r.want.Peers {
		s.Peers = append(s.Peers, r.peerStatus(l, p, now))
	}
	return s
}

// peerStatus is called with r.mu and, when there is a life, with its mu.
func (r *Reconciler) peerStatus(l *life, p bgp.Peer, now time.Time) PeerStatus {
	s := PeerStatus{
		Addr: p.Addr, Port: p.Port, ASN: p.ASN, LocalASN: p.LocalASN,
		Mesh: p.Mesh, Resource: p.Resource, Node: p.Node, State: "Waiting",
	}
	if x := r.suspects[p.Addr]; x != nil {
		s.Deaths = x.deaths
	}
	if l != nil {
		if x := l.sessions[p.Addr]; x != nil {
			s.State, s.Since, s.Flaps, s.EndOfRIB = stateName(x.state), x.since, x.flaps, x.eor
		}
		c := l.counts[p.Addr]
		s.Received, s.Accepted, s.Advertised = c.received, c.accepted, c.advertised
		if err := l.failures[p.Addr]; err != nil {
			s.LastError = err.Error()
		}
	}
	if until, reason, held := r.suspects.held(p.Addr, now); held {
		s.State, s.HeldBack, s.HeldReason = "HeldBack", until, reason
	}
	return s
}

func stateName(s api.PeerState_SessionState) string {
	switch s {
	case api.PeerState_IDLE:
		return "Idle"
	case api.PeerState_CONNECT:
		return "Connect"
	case api.PeerState_ACTIVE:
		return "Active"
	case api.PeerState_OPENSENT:
		return "OpenSent"
	case api.PeerState_OPENCONFIRM:
		return "OpenConfirm"
	case api.PeerState_ESTABLISHED:
		return "Established"
	}
	return "Waiting"
}

// refreshCounts asks the speaker for the counts of every session.
func (l *life) refreshCounts() {
	l.mu.Lock()
	var table uint64
	for _, c := range l.counts {
		table = max(table, c.received)
	}
	fresh := time.Since(l.countsAt) < time.Second
	if !fresh {
		l.countsAt = time.Now()
	}
	l.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	advertised := table <= countAdvertisedUpTo
	got := map[netip.Addr]counts{}
	s, err := l.client.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: advertised})
	err = list(s, err, func(x *api.ListPeerResponse) {
		a, err := netip.ParseAddr(x.Peer.GetState().GetNeighborAddress())
		if err != nil {
			return
		}
		var c counts
		for _, f := range x.Peer.AfiSafis {
			c.received += f.GetState().GetReceived()
			c.accepted += f.GetState().GetAccepted()
			c.advertised += f.GetState().GetAdvertised()
		}
		// GoBGP counts the End-of-RIB, which it sends to peers that know of it.
		if x.Peer.GetGracefulRestart().GetPeerRestartTime() > 0 && c.advertised > 0 {
			c.advertised--
		}
		got[a.Unmap()] = c
	})
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, c := range got {
		if !advertised {
			c.advertised = l.counts[a].advertised
		}
		l.counts[a] = c
	}
}
