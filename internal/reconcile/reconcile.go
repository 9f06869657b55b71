// Package reconcile is the one loop that brings an outside state (the kernel's, the BGP
// speaker's) to the desired one: poked by changes, backing off on errors, and resyncing
// now and then to heal what someone else did.
package reconcile

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Loop calls Apply whenever it was poked, when an earlier Apply failed (with exponential
// backoff) and every Resync. Apply must bring the actual state as near to the desired one
// as it can: one bad object never blocks the others, and its error joins theirs.
type Loop struct {
	Name  string       // required: for logs
	Log   *slog.Logger // required
	Apply func(ctx context.Context, resync bool) error
	// Resync is the longest time between two Applies with resync set (default 90 s; a
	// tenth of it is added or taken at random, so that nodes do not march in step).
	Resync time.Duration
	// Backoff bounds the wait after an error (defaults 100 ms and 30 s).
	MinBackoff, MaxBackoff time.Duration

	poke   chan struct{}
	resync chan struct{}
	every  atomic.Int64 // SetResync's, nanoseconds; 0: Resync
}

// Init readies the loop; the zero durations get their defaults. It returns l.
func (l *Loop) Init() *Loop {
	l.poke = make(chan struct{}, 1)
	l.resync = make(chan struct{}, 1)
	if l.Resync == 0 {
		l.Resync = 90 * time.Second
	}
	if l.MinBackoff == 0 {
		l.MinBackoff = 100 * time.Millisecond
	}
	if l.MaxBackoff == 0 {
		l.MaxBackoff = 30 * time.Second
	}
	return l
}

// Poke asks for an Apply soon. It never blocks, and pokes that come together are one.
func (l *Loop) Poke() { offer(l.poke) }

// PokeResync asks for an Apply that reads the actual state anew.
func (l *Loop) PokeResync() { offer(l.resync) }

// SetResync is Resync from the next resync on, from any goroutine; 0 means what the Loop was
// made with.
func (l *Loop) SetResync(d time.Duration) { l.every.Store(int64(d)) }

func offer(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run applies until ctx is cancelled; the first Apply is a resync and comes at once.
func (l *Loop) Run(ctx context.Context) error {
	var (
		backoff time.Duration
		retry   <-chan time.Time
		failing string // the last error logged, so that a lasting one is logged once
		full    = true
	)
	resync := time.NewTimer(l.jittered())
	defer resync.Stop()
	for {
		err := l.Apply(ctx, full)
		full = false
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			backoff = min(max(2*backoff, l.MinBackoff), l.MaxBackoff)
			retry = time.After(backoff)
			if s := err.Error(); s != failing {
				failing = s
				l.Log.Error("reconcile failed", "reconciler", l.Name, "retry", backoff, "error", err)
			}
		case failing != "":
			failing, backoff, retry = "", 0, nil
			l.Log.Info("reconcile recovered", "reconciler", l.Name)
		default:
			backoff, retry = 0, nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.poke:
		case <-l.resync:
			full = true
		case <-retry:
		case <-resync.C:
			full = true
			resync.Reset(l.jittered())
		}
	}
}

func (l *Loop) jittered() time.Duration {
	every := cmp.Or(time.Duration(l.every.Load()), l.Resync)
	tenth := int64(every / 10)
	if tenth == 0 {
		return every
	}
	return every + time.Duration(rand.Int64N(2*tenth)-tenth)
}

func (l *Loop) String() string { return l.Name }
