package gobgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// life is one life of the speaker. Two goroutines share it: the one of Run takes the speaker's
// events and passes the routes on; the loop's brings the speaker to the desired state.
type life struct {
	r       *Reconciler
	log     *slog.Logger
	inst    Instance
	client  api.GobgpApiClient
	loop    *reconcile.Loop
	started time.Time
	// hold: routes are collected until the table is complete, since the kernel still has
	// those of an earlier life.
	hold bool
	// identityChanged is set when the life ends because this speaker shall be somebody else
	// to its peers: another AS number or router id. Written by the loop before it ends.
	identityChanged bool

	syncNow chan struct{} // from the loop: the table is complete
	over    chan outcome  // from the loop: the life must end

	// The loop's alone.
	peers     map[netip.Addr]bgp.Peer // what was added to the speaker
	returning map[netip.Addr]bool     // whether it was added with the restart bits
	replacing map[netip.Addr]*replacement
	adverts   map[netip.Prefix]bgp.Advert
	policy    appliedPolicy
	choreo    choreography
	wake      *time.Timer

	martianAt time.Time // when a martian route was last logged; emit's alone

	mu       sync.Mutex
	gateAddr netip.Addr // whose session is no peer's
	sessions map[netip.Addr]*session
	locals   map[netip.Prefix]bool // prefixes whose best path came over the API
	synced   bool
	counts   map[netip.Addr]counts
	countsAt time.Time
	failures map[netip.Addr]error // why a peer could not be added
}

type outcome struct {
	end end
	err error
}

// session is what the events told about one peer.
type session struct {
	state    api.PeerState_SessionState
	since    time.Time // of the state
	eor      bool      // End-of-RIB received in the present session
	greeted  bool      // our routes were sent ahead of the gate
	graceful capability
	flaps    int // how often an established session ended in this life
	// rest: it went down, at idled, and is to be woken (hasten.go) as often as is allowed.
	rest           rest
	idled          time.Time
	ends, refusals allowance
}

func (s *session) up() bool { return s != nil && s.state == api.PeerState_ESTABLISHED }

// capability says whether the peer announced graceful restart, and so sends End-of-RIB.
type capability uint8

const (
	unknown capability = iota
	able
	unable
)

// live runs one life to its end. It always returns a life.
func (r *Reconciler) live(ctx context.Context, inst Instance, hold bool) (*life, end, error) {
	l := &life{
		r: r, log: r.log, inst: inst, hold: hold, started: time.Now(),
		syncNow: make(chan struct{}, 1), over: make(chan outcome, 1),
		peers:     map[netip.Addr]bgp.Peer{},
		returning: map[netip.Addr]bool{},
		replacing: map[netip.Addr]*replacement{},
		adverts:   map[netip.Prefix]bgp.Advert{},
		sessions:  map[netip.Addr]*session{},
		locals:    map[netip.Prefix]bool{},
		counts:    map[netip.Addr]counts{},
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	dial, done := context.WithTimeout(ctx, callTimeout)
	conn, err := inst.Dial(dial)
	done()
	if err != nil {
		return l.ended(ctx, outcome{endFailed, fmt.Errorf("speaker: %w", err)})
	}
	defer conn.Close()
	l.client = api.NewGobgpApiClient(conn)
	events := make(chan *api.WatchEventResponse, 1024)
	watchErr := make(chan error, 1)
	watching := make(chan struct{})
	wg.Go(func() { watchErr <- l.watch(ctx, events, watching) })

	// Nothing is told to the speaker before the watch stands, so that no event is missed.
	select {
	case <-watching:
	case err := <-watchErr:
		return l.ended(ctx, outcome{endFailed, err})
	case <-ctx.Done():
		return l, endCancelled, nil
	}
	l.loop = (&reconcile.Loop{
		Name: "bgp", Log: r.cfg.Log, Apply: l.apply, MaxBackoff: 5 * time.Second,
	}).Init()
	l.wake = time.AfterFunc(time.Hour, l.loop.Poke)
	defer l.wake.Stop()
	r.mu.Lock()
	r.life = l
	r.mu.Unlock()
	wg.Go(func() {
		defer l.choreo.abandon()
		_ = l.loop.Run(ctx)
	})
	return l.ended(ctx, l.emit(ctx, events, watchErr))
}

// ended turns what looks like a failure into what it was: the end of the process or of the agent.
func (l *life) ended(ctx context.Context, o outcome) (*life, end, error) {
	if ctx.Err() != nil {
		return l, endCancelled, nil
	}
	if o.end == endFailed {
		// The connection breaks a moment before the process is known to be dead.
		select {
		case <-l.inst.Died():
			o = outcome{end: endDied}
		case <-time.After(200 * time.Millisecond):
		}
	}
	return l, o.end, o.err
}

// watch reads the speaker's events until ctx is cancelled or the stream breaks.
func (l *life) watch(ctx context.Context, events chan<- *api.WatchEventResponse, watching chan<- struct{}) error {
	stream, err := l.client.WatchEvent(ctx, &api.WatchEventRequest{
		Peer: &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
			{Type: api.WatchEventRequest_Table_Filter_BEST, Init: true},
			{Type: api.WatchEventRequest_Table_Filter_EOR, Init: true},
		}},
	}, grpc.MaxCallRecvMsgSize(1<<30))
	for err == nil {
		var ev *api.WatchEventResponse
		if ev, err = stream.Recv(); err != nil {
			break
		}
		if p := ev.GetPeer(); p != nil && p.Type == api.WatchEventResponse_PeerEvent_END_OF_INIT && watching != nil {
			close(watching)
			watching = nil
			continue
		}
		select {
		case events <- ev:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("speaker: watch: %w", err)
}

// flushAfter is how long changes are gathered into one update.
const flushAfter = 5 * time.Millisecond

// maxPending bounds the changes of one update.
const maxPending = 8192

// emit passes events on until the life is over.
func (l *life) emit(ctx context.Context, events <-chan *api.WatchEventResponse, watchErr <-chan error) outcome {
	var (
		table   map[netip.Prefix]model.Route // while holding
		pending = map[netip.Prefix][]model.NextHop{}
		flush   = time.NewTimer(time.Hour)
	)
	flush.Stop()
	defer flush.Stop()
	if l.hold {
		table = map[netip.Prefix]model.Route{}
	}
	take := func(ev *api.WatchEventResponse) {
		for _, c := range l.take(ev) {
			switch {
			case table == nil:
				if len(pending) == 0 {
					flush.Reset(flushAfter)
				}
				pending[c.prefix] = c.hops
			case len(c.hops) == 0:
				delete(table, c.prefix)
			default:
				table[c.prefix] = model.Route{Prefix: c.prefix, NextHops: c.hops}
			}
		}
	}
	send := func() {
		if len(pending) == 0 {
			return
		}
		u := model.RouteUpdate{Set: make([]model.Route, 0, len(pending))}
		for p, hops := range pending {
			if len(hops) == 0 {
				u.Delete = append(u.Delete, p)
			} else {
				u.Set = append(u.Set, model.Route{Prefix: p, NextHops: hops})
			}
		}
		clear(pending)
		l.r.cfg.Routes(u)
	}
	for {
		select {
		case ev := <-events:
			take(ev)
			if len(pending) >= maxPending {
				send()
			}
		case <-flush.C:
			send()
		case <-l.syncNow:
			// The End-of-RIBs that made the loop decide came through here, behind the routes.
			send()
			if table != nil {
				routes := make([]model.Route, 0, len(table))
				for _, r := range table {
					routes = append(routes, r)
				}
				table = nil
				l.r.cfg.Replace(routes)
			}
			l.mu.Lock()
			l.synced = true
			l.mu.Unlock()
			l.r.cfg.Synced()
			l.log.Info("routes are in sync with the peers", "after", time.Since(l.started).Round(time.Millisecond))
			l.r.changed()
		case o := <-l.over:
			return o
		case <-l.inst.Died():
			send()
			return outcome{end: endDied}
		case err := <-watchErr:
			return outcome{endFailed, err}
		case <-ctx.Done():
			return outcome{end: endCancelled}
		}
	}
}

// take keeps the books for one event, and returns what changed among the learned routes.
func (l *life) take(ev *api.WatchEventResponse) []change {
	if p := ev.GetPeer(); p != nil {
		l.takePeer(p.Peer)
		return nil
	}
	paths := ev.GetTable().GetPaths()
	if len(paths) == 1 && isEOR(paths[0]) {
		l.takeEOR(paths[0])
		return nil
	}
	changes := decode(paths)
	for _, c := range changes {
		if c.martian && time.Since(l.martianAt) >= time.Minute {
			l.martianAt = time.Now()
			l.log.Warn("a route to addresses of the host, its links or multicast came over BGP; it and others like it are left out",
				"prefix", c.prefix.String(), "peer", paths[0].NeighborIp)
		}
		if c.local {
			l.mu.Lock()
			l.locals[c.prefix] = true
			l.mu.Unlock()
		} else if l.isLocal(c.prefix) {
			l.mu.Lock()
			delete(l.locals, c.prefix)
			l.mu.Unlock()
		}
	}
	return changes
}

// isLocal is called from the goroutine that alone changes locals.
func (l *life) isLocal(p netip.Prefix) bool { return l.locals[p] }

func (l *life) takePeer(p *api.Peer) {
	a, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
	if err != nil {
		return
	}
	a = a.Unmap()
	state := p.State.SessionState
	now := time.Now()
	l.mu.Lock()
	if a == l.gateAddr {
		l.mu.Unlock()
		return
	}
	s := l.sessions[a]
	if s == nil {
		s = &session{}
		l.sessions[a] = s
	}
	was, lasted := s.state, now.Sub(s.since)
	down := awake
	switch {
	case state != api.PeerState_IDLE:
	case was == api.PeerState_ESTABLISHED:
		down = ended
	// It was refused, as by one that rests, or what it had told was kept for its restart and
	// that time is over.
	case was == api.PeerState_OPENSENT, was == api.PeerState_OPENCONFIRM, s.flaps > 0 && (was == api.PeerState_ACTIVE || was == state):
		down = refused
	}
	if down != awake {
		s.rest, s.idled = down, now
	}
	if was != state {
		s.state, s.since = state, now
		if state == api.PeerState_ESTABLISHED {
			s.eor, s.greeted, s.graceful = false, false, unknown
			s.refusals = allowance{}
		} else if was == api.PeerState_ESTABLISHED {
			s.flaps++
		}
	}
	l.mu.Unlock()
	switch {
	case down == refused:
		l.loop.Poke()
	case was == state:
	case state == api.PeerState_ESTABLISHED:
		l.r.mu.Lock()
		l.r.grace[a] = time.Time{} // its restart is over
		l.r.mu.Unlock()
		l.log.Info("session is up", "peer", a.String())
		l.loop.Poke()
		l.r.changed()
	case was == api.PeerState_ESTABLISHED:
		l.log.Warn("session is down", "peer", a.String(), "after", lasted.Round(time.Millisecond))
		l.loop.Poke()
		l.r.changed()
	}
}

func (l *life) takeEOR(p *api.Path) {
	a, err := netip.ParseAddr(p.NeighborIp)
	if err != nil {
		return
	}
	a = a.Unmap()
	l.mu.Lock()
	if s := l.sessions[a]; s != nil {
		s.eor = true
	}
	l.mu.Unlock()
	l.loop.Poke()
}

// established returns the added peers that have a session.
func (l *life) established() map[netip.Addr]bgp.Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[netip.Addr]bgp.Peer{}
	for a, p := range l.peers {
		if l.sessions[a].up() {
			out[a] = p
		}
	}
	return out
}

// youngest returns the added peer whose session came up last, and when; the zero Addr when
// there is no session.
func (l *life) youngest() (a netip.Addr, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := range l.peers {
		if s := l.sessions[b]; s.up() && s.since.After(at) {
			a, at = b, s.since
		}
	}
	return a, at
}

// complete reports whether the life came to rest.
func (l *life) complete() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// finish ends the life; the first reason counts.
func (l *life) finish(o outcome) {
	select {
	case l.over <- o:
	default:
	}
}
