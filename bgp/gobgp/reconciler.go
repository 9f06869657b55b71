package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/internal/model"
)

// Instance is one life of the speaker process; *child.Instance is one.
type Instance interface {
	// Dial connects to the speaker's gRPC API; calls over the connection may write.
	Dial(ctx context.Context) (*grpc.ClientConn, error)
	// Died is closed when the process has ended.
	Died() <-chan struct{}
	// Death says how it ended, once Died is closed.
	Death() child.Death
	// Stop ends the process and waits for that. Without graceful it is killed, so that no
	// CEASE ends the graceful restart at the peers.
	Stop(ctx context.Context, graceful bool) error
}

// Config is what a Reconciler needs.
type Config struct {
	Log   *slog.Logger                                // required
	Start func(ctx context.Context) (Instance, error) // required: begins one life of the speaker
	// Routes, Replace and Synced are required. They are called in order, from one goroutine.
	//
	// Routes tells what changed among the learned routes. Replace hands over the whole
	// table after the speaker came back: what is not in it is gone. Synced says that the
	// table is complete, as far as it will be: every peer has sent its End-of-RIB or had
	// its time; routes that nobody announced again are stale. It comes once per life of
	// the speaker, after Replace.
	Routes  func(model.RouteUpdate)
	Replace func([]model.Route)
	Synced  func()
	// Restarting says that an earlier agent may have run on this node a moment ago: the
	// kernel may hold learned routes, and the peers may keep ours (RFC 4724).
	Restarting bool
	// Changed, when set, is called after the state of a session or of the speaker changed;
	// it must not block.
	Changed func()
}

// pace is how a restart is timed.
type pace struct {
	// gate is how long the peers that return first are waited for before our routes are
	// sent to those that are back. A first attempt to connect comes after 1 to 2 s, and
	// BIRD 2.0 can sleep for 3 s before it sends anything.
	gate time.Duration
	// window is the longest time from the start of a life until its table counts as
	// complete, unless a suspect is still on its way.
	window time.Duration
	// settle lets the peers digest our End-of-RIB before a suspect returns: routes that are
	// stale at another death would be dropped (RFC 4724, section 4.2).
	settle time.Duration
	// turn is how long one peer is waited for where peers return one by one.
	turn time.Duration
	// replace is how long a peer that was replaced by another form of itself is waited for
	// before the next one is.
	replace time.Duration
}

var defaultPace = pace{gate: 6 * time.Second, window: 10 * time.Second, settle: 500 * time.Millisecond, turn: 5 * time.Second, replace: 10 * time.Second}

const (
	// silentTime is how long a peer without graceful restart, which sends no End-of-RIB,
	// is given to send its routes.
	silentTime = time.Second
	// callTimeout bounds one call to the speaker, which answers within milliseconds unless
	// it is busy with a full table.
	callTimeout = 10 * time.Second
	// deferralTime is how long the speaker keeps our routes back from a returning peer that
	// sends no End-of-RIB.
	deferralTime = 10 * time.Second
)

// Reconciler keeps a speaker running and in the desired state.
type Reconciler struct {
	cfg  Config
	log  *slog.Logger
	pace pace
	poke chan struct{} // a new desired state, for the time without a life

	mu       sync.Mutex
	want     *bgp.Speaker
	life     *life // the present one, or nil
	restarts int
	death    string
	diedAt   time.Time
	err      error // why the speaker could not be started, or not be brought to want
	suspects suspects
	// grace holds, for each peer that had a session when the speaker ended, until when it
	// keeps our routes.
	grace map[netip.Addr]time.Time
	// began is when Run did: with Config.Restarting, every peer that has no entry in grace
	// may keep our routes since then.
	began time.Time
}

// New returns a Reconciler without a desired state.
func New(cfg Config) *Reconciler {
	return &Reconciler{
		cfg:      cfg,
		log:      cfg.Log.With("reconciler", "bgp"),
		pace:     defaultPace,
		poke:     make(chan struct{}, 1),
		suspects: suspects{},
		grace:    map[netip.Addr]time.Time{},
	}
}

func (r *Reconciler) String() string { return "bgp" }

// Set stores the desired state; nil means that no speaker shall run. The Speaker must not be
// changed afterwards. It never blocks.
func (r *Reconciler) Set(s *bgp.Speaker) {
	r.mu.Lock()
	r.want = s
	l := r.life
	r.mu.Unlock()
	select {
	case r.poke <- struct{}{}:
	default:
	}
	if l != nil {
		l.loop.Poke()
	}
}

func (r *Reconciler) desired() *bgp.Speaker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want
}

func (r *Reconciler) changed() {
	if r.cfg.Changed != nil {
		r.cfg.Changed()
	}
}

// end says why a life is over.
type end int

const (
	endCancelled end = iota // the agent stops
	endDied                 // the process ended unasked
	endUnwanted             // no speaker is desired
	endGlobal               // the desired state needs another BGP instance
	endFailed               // the speaker does not answer as it should
)

// Run keeps the speaker alive until ctx is cancelled. It then kills it without a CEASE: the
// peers keep our routes until the next agent's speaker is back (RFC 4724).
func (r *Reconciler) Run(ctx context.Context) error {
	var (
		hold    = r.cfg.Restarting // the kernel may hold routes of an earlier life
		backoff time.Duration
		failing string
	)
	r.mu.Lock()
	r.began = time.Now()
	r.mu.Unlock()
	for ctx.Err() == nil {
		if r.desired() == nil {
			select {
			case <-ctx.Done():
			case <-r.poke:
			}
			continue
		}
		inst, err := r.cfg.Start(ctx)
		e := endFailed
		if err != nil {
			err = fmt.Errorf("start of the speaker: %w", err)
		} else {
			var l *life
			l, e, err = r.live(ctx, inst, hold)
			hold = true
			r.bury(ctx, l, inst, e)
			if l.complete() {
				backoff = 0
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case e == endUnwanted:
			r.cfg.Replace(nil)
			r.cfg.Synced()
			hold = false
			continue
		case e == endGlobal:
			continue
		case e == endFailed:
			r.setErr(err)
			if s := err.Error(); s != failing {
				failing = s
				r.log.Error("speaker failed", "error", err)
			}
		}
		// The first restart after a life that came to rest is immediate.
		if backoff > 0 || e == endFailed {
			select {
			case <-ctx.Done():
			case <-time.After(max(backoff, 100*time.Millisecond)):
			}
		}
		backoff = min(max(2*backoff, 100*time.Millisecond), 30*time.Second)
	}
	return nil
}

func (r *Reconciler) setErr(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
	r.changed()
}

// bury ends the process, if it still runs, and draws the lessons from its life.
func (r *Reconciler) bury(ctx context.Context, l *life, inst Instance, e end) {
	// A CEASE makes the peers drop our routes: only where we have none for them any more,
	// or will come back as somebody else.
	cease := e == endUnwanted || e == endGlobal && l.identityChanged
	if e != endDied {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		if err := inst.Stop(stop, cease); err != nil {
			r.log.Error("speaker could not be stopped", "error", err)
		}
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = nil
	r.suspects.restarted()
	if cease {
		clear(r.grace)
		r.began = time.Time{}
	} else {
		for a, p := range l.established() {
			r.grace[a] = now.Add(p.RestartTime)
		}
	}
	if e == endDied {
		d := inst.Death()
		r.restarts++
		r.death, r.diedAt = d.Err.Error(), now
		r.judge(d, l)
	}
}

// judge finds whom the speaker died of and logs it. r.mu is held.
func (r *Reconciler) judge(d child.Death, l *life) {
	e := evidence{at: d.At, killed: d.Killed, reason: d.Err.Error()}
	if e.at.IsZero() {
		e.at = time.Now()
	}
	if d.Suspect.IsValid() {
		e.speakers = append(e.speakers, d.Suspect.Unmap())
		for _, h := range d.LastSpeakers {
			// What spoke together with the suspect is evidence only where the suspect is
			// none of the peers, as the restart gate.
			if h.Ago <= 10*time.Millisecond {
				e.speakers = append(e.speakers, h.Addr.Unmap())
			}
		}
	}
	e.established, e.establishedAt = l.youngest()
	args := []any{"cause", d.Err.Error(), "restarts", r.restarts}
	culprit := r.suspects.blame(e, func(a netip.Addr) bool { _, ok := l.peers[a]; return ok })
	if culprit.IsValid() {
		until := r.suspects.convict(culprit, e.at, e.reason)
		args = append(args, "peer", culprit.String())
		if !until.IsZero() {
			args = append(args, "heldBackUntil", until.Format(time.RFC3339))
		}
	}
	if d.Trace != "" {
		args = append(args, "trace", d.Trace)
	}
	r.log.Error("speaker died; learned routes stay, starting it again", args...)
}

// restartingFor reports whether the peer may still keep our routes from before. r.mu is held.
func (r *Reconciler) restartingFor(p bgp.Peer, now time.Time) bool {
	if t, ok := r.grace[p.Addr]; ok {
		return now.Before(t)
	}
	return r.cfg.Restarting && !r.began.IsZero() && now.Before(r.began.Add(p.RestartTime))
}

var errStopped = errors.New("the speaker's BGP instance was stopped by someone else")

// sortedAddrs returns the keys in order.
func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	out := make([]netip.Addr, 0, len(m))
	for a := range m {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
