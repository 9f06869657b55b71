package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/causeway-net/causeway/internal/kubeapi"
)

// Name is the Lease's, and who reports events.
const Name = "causeway-controller"

// Config is what New needs.
type Config struct {
	Clients   *kubeapi.Clients // required
	Namespace string           // required: of the Lease
	Identity  string           // required: of this replica, unlike any other's
	Log       *slog.Logger     // required
	Defaults  Defaults         // the pools of a new cluster

	// NodeGrace is how long a Node has to be gone, or to be back and Ready, before what it
	// left behind is freed; default 5 min.
	NodeGrace time.Duration
	// StatusInterval is the least time between two writes of one pool's status; default 10 s.
	StatusInterval time.Duration
	// The times of the Lease: how long it holds, how long its holder tries to renew it, and
	// how often; default 15 s, 10 s and 2 s.
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration

	Now func() time.Time // optional: the clock; default time.Now
}

func (c *Config) defaults() error {
	switch {
	case c.Clients == nil:
		return errors.New("controller: Config.Clients is nil")
	case c.Namespace == "":
		return errors.New("controller: Config.Namespace is empty: want the namespace of the Lease")
	case c.Identity == "":
		return errors.New("controller: Config.Identity is empty: want a name that no other replica has")
	case c.Log == nil:
		return errors.New("controller: Config.Log is nil")
	}
	if err := c.Defaults.check(); err != nil {
		return fmt.Errorf("default pools: %w", err)
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.NodeGrace, 5 * time.Minute}, {&c.StatusInterval, 10 * time.Second},
		{&c.LeaseDuration, 15 * time.Second}, {&c.RenewDeadline, 10 * time.Second}, {&c.RetryPeriod, 2 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// Controller is one replica.
type Controller struct {
	cfg    Config
	log    *slog.Logger
	counts *counters
	dog    *leaderelection.HealthzAdaptor

	mu      sync.Mutex
	term    *term // while this replica leads
	contact bool  // the Lease was read at least once
	won     bool  // the Lease is this replica's, so that term is there or about to be
}

// New makes a replica. Nothing is read yet.
func New(cfg Config) (*Controller, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	return &Controller{
		cfg: cfg, log: cfg.Log.With("component", "controller"), counts: newCounters(),
		// A leader that could not renew for so long and still works is stuck.
		dog: leaderelection.NewLeaderHealthzAdaptor(cfg.LeaseDuration),
	}, nil
}

func (c *Controller) String() string { return "controller" }

// Run competes for the Lease, works while it has it and competes again when it lost it,
// until ctx is cancelled; then it gives the Lease back, after its last write.
func (c *Controller) Run(ctx context.Context) error {
	// What client-go has to say goes where all else goes.
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(c.cfg.Log.With("component", "client-go").Handler()))
	for ctx.Err() == nil {
		if err := c.compete(ctx); err != nil {
			return err
		}
	}
	return nil
}

// compete takes part in one election and, if it wins, leads until the Lease is lost.
func (c *Controller) compete(ctx context.Context) error {
	// The Lease outlives ctx: it is given back when the loops have ended, so that there are
	// never two leaders.
	lease, giveBack := context.WithCancel(context.WithoutCancel(ctx))
	defer giveBack()
	var (
		led     = make(chan struct{})
		leading sync.Once
		started bool
		failure error
	)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: Name,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: c.cfg.Namespace, Name: Name},
			Client:     c.cfg.Clients.Core.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: c.cfg.Identity},
		},
		LeaseDuration: c.cfg.LeaseDuration, RenewDeadline: c.cfg.RenewDeadline, RetryPeriod: c.cfg.RetryPeriod,
		WatchDog: c.dog, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				// Also called, late, when the Lease was lost at once.
				leading.Do(func() {
					started = true
					defer close(led)
					failure = c.lead(ctx, held)
					giveBack()
				})
			},
			OnStoppedLeading: func() {
				c.mu.Lock()
				c.won = false
				c.mu.Unlock()
			},
			OnNewLeader: func(id string) {
				c.mu.Lock()
				c.contact, c.won = true, id == c.cfg.Identity
				c.mu.Unlock()
				c.log.Info("leader", "identity", id, "self", id == c.cfg.Identity)
			},
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", c.cfg.Namespace, Name, err)
	}
	c.dog.SetLeaderElection(elector)
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		idle := c.term == nil
		c.mu.Unlock()
		if idle {
			giveBack()
		}
	})
	defer stop()
	elector.Run(lease)
	leading.Do(func() { close(led) }) // it did not win
	<-led
	if started && failure != nil && ctx.Err() == nil {
		return failure
	}
	return nil
}

// lead works until the Lease is lost or ctx is cancelled.
func (c *Controller) lead(ctx, held context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(held, cancel)()
	t, err := newTerm(c.cfg, c.counts)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.term = t
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.term = nil
		c.mu.Unlock()
	}()
	err = t.run(ctx)
	if held.Err() != nil {
		c.log.Warn("lease lost; another replica leads, or the API server is away")
	}
	return err
}

// Live says what is wrong with this replica that only a restart can mend, or nil: it holds
// on to a Lease that has run out.
func (c *Controller) Live() error { return c.dog.Check(nil) }

// Ready says why this replica does not do its work, or nil. One that stands by is ready.
func (c *Controller) Ready() error {
	c.mu.Lock()
	t, contact, won := c.term, c.contact, c.won
	c.mu.Unlock()
	switch {
	case t != nil:
		return t.ready()
	case won:
		return fmt.Errorf("lease %s/%s was just taken; nothing was read yet", c.cfg.Namespace, Name)
	case !contact:
		return fmt.Errorf("lease %s/%s was not read yet", c.cfg.Namespace, Name)
	}
	return nil
}

// current returns the term while this replica leads, or nil.
func (c *Controller) current() *term {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term
}
