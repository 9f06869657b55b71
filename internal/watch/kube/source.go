// Package kube owns the Kubernetes API as the datastore: the watches of one agent, and what
// they tell made into snapshots. It also answers what the API says of a pod of this node.
//
// Every watch is narrowed by the API server to what this node needs, and what arrives is cut
// to what is used before it is kept. A server that is away, slow or refuses removes nothing
// (DESIGN I4): an object goes when the server says that it is gone. Nothing polls.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

const (
	// gather is how long the changes that come together are waited for.
	gather = 5 * time.Millisecond
	// refusalGrace is how long the API server must refuse a watch before that is a
	// problem: one that starts refuses what it will allow a moment later.
	refusalGrace = 2 * time.Second
	// secretWait bounds how long a snapshot waits for Secrets that it newly needs.
	secretWait = 2 * time.Second
	// defaultPodWait is how long Workload waits for a pod by default.
	defaultPodWait = 2 * time.Second
)

// Config of a Source.
type Config struct {
	Clients *kubeapi.Clients // required
	Node    string           // required: name of this node
	// SecretNamespace is where Secrets with passwords are; default "kube-system".
	SecretNamespace string
	Log             *slog.Logger // required
	// Publish is called from Run with each snapshot that differs from the one before;
	// required. It must not keep the source waiting for long.
	Publish func(*model.Snapshot)
	// PodWait bounds how long Workload waits for a pod to arrive; default 2 s.
	PodWait time.Duration
	// Policy, if not nil, is called with each change of what concerns policy, one after the
	// other, from a goroutine of Run. Without it nothing of the kind is watched.
	Policy func(*watch.PolicyUpdate)
	// Interface is watch.Options.Interface. Without it no pod has an endpoint before it is attached.
	Interface func(namespace, pod string) string
	// AnnounceKey, if not nil, is called with the key of the Secret announce.SecretName in
	// SecretNamespace when it is read and whenever it changes. It must not wait, nor call back.
	// Without it that Secret is not watched.
	AnnounceKey func([]byte)
}

// Source watches the Kubernetes API.
type Source struct {
	cfg       Config
	log       *slog.Logger
	opt       watch.Options
	publisher *watch.Publisher
	wake      chan struct{} // something changed; capacity 1

	feeds      []*feed // those that every agent has, all the time
	ownBlocks  *table[entry]
	borrowed   *table[entry] // blocks that this node borrows from
	pods       *table[pod]
	podFeed    *feed
	namespaces *table[namespace]
	nsFeed     *feed
	ignored    []*ignoredKind
	policy     *policyFeeds // nil without Config.Policy

	mu      sync.Mutex // guards what follows, and the state of all feeds and tables
	secrets map[string]*secretFeed
	// allBlocks is the watch of the blocks of all nodes; nil while they are not needed.
	allBlocks *blockFeed
	ready     time.Time     // when the first snapshot was published
	revision  uint64        // of the last one
	arrived   chan struct{} // closed when a pod, a namespace or their watch changed
	away      int           // feeds that get no answer
	back      chan struct{} // closed when one of them gets an answer again
}

// New makes a Source. It sends nothing yet.
func New(cfg Config) (*Source, error) {
	switch {
	case cfg.Clients == nil:
		return nil, errors.New("kube.Config: Clients is required")
	case cfg.Node == "":
		return nil, errors.New("kube.Config: Node is required")
	case cfg.Log == nil:
		return nil, errors.New("kube.Config: Log is required")
	case cfg.Publish == nil:
		return nil, errors.New("kube.Config: Publish is required")
	case cfg.PodWait < 0:
		return nil, errors.New("kube.Config: PodWait is negative; must be a time, or 0 for 2 s")
	}
	if cfg.PodWait == 0 {
		cfg.PodWait = defaultPodWait
	}
	if cfg.SecretNamespace == "" {
		cfg.SecretNamespace = watch.DefaultSecretNamespace
	}
	s := &Source{
		cfg: cfg, log: cfg.Log.With("datastore", "kubernetes"),
		opt:  watch.Options{Node: cfg.Node, SecretNamespace: cfg.SecretNamespace, NamespaceLabels: true, OwnBlocks: true, Policy: cfg.Policy != nil, Interface: cfg.Interface},
		wake: make(chan struct{}, 1), secrets: map[string]*secretFeed{}, arrived: make(chan struct{}), back: make(chan struct{}),
	}
	s.publisher = &watch.Publisher{Options: s.opt, Log: s.log, Publish: cfg.Publish}
	s.addFeeds()
	if cfg.AnnounceKey != nil {
		s.addAnnounceKey(cfg.AnnounceKey)
	}
	if cfg.Policy != nil {
		s.addPolicy(cfg.Policy)
	}
	return s, nil
}

func (s *Source) String() string { return "watch kubernetes" }

// Run publishes snapshots until ctx is cancelled. The first comes when every kind that a
// snapshot is made of was read once.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	// The first request opens the connection that all others share; together each of them
	// would open one.
	first := s.feeds[0]
	running.Go(func() { first.run(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case <-first.tried:
	}
	for _, f := range s.feeds[1:] {
		running.Go(func() { f.run(ctx) })
	}
	if s.policy != nil {
		for _, f := range s.policy.static {
			running.Go(func() { f.run(ctx) })
		}
		running.Go(func() { s.policy.policies.Run(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather):
		}
		select { // what came meanwhile is in
		case <-s.wake:
		default:
		}
		s.update(ctx, &running)
	}
}

// changed asks for another look at everything.
func (s *Source) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// changedAfter asks for another look when time alone will have changed something.
func (s *Source) changedAfter(d time.Duration) { time.AfterFunc(d, s.changed) }

// update makes a snapshot of what is known, once enough is.
func (s *Source) update(ctx context.Context, running *sync.WaitGroup) {
	s.mu.Lock()
	in, synced := s.input()
	s.mu.Unlock()
	names, known := watch.SecretsNeeded(in.Objects, s.opt)
	if known {
		s.watchSecrets(ctx, running, names)
	}
	s.watchBlocks(ctx, running, watch.BlocksNeeded(in.Objects))
	if s.policy != nil {
		s.watchPolicy(ctx, running)
	}
	s.mu.Lock()
	s.addBlocks(&in)
	settled := s.addSecrets(&in, names)
	s.mu.Unlock()
	if !synced {
		s.publisher.Report(in.Problems)
		return
	}
	if !settled {
		return // soon: changedAfter was called
	}
	s.publisher.Update(in)
	s.mu.Lock()
	if s.ready.IsZero() {
		s.ready = time.Now()
	}
	s.revision = s.publisher.Last().Revision
	s.mu.Unlock()
}

// input is what the feeds that every agent has say; synced tells that all that are needed
// were read at least once. s.mu is held.
func (s *Source) input() (in watch.Input, synced bool) {
	synced = true
	seen := map[model.Object]bool{}
	for _, f := range s.feeds {
		synced = synced && (!f.needed || !f.synced.IsZero())
		if p, ok := f.problem(); ok {
			in.Problems = append(in.Problems, p)
		}
		objects, ok := f.contents.(*table[entry])
		if !ok {
			continue
		}
		for _, e := range objects.rows {
			if seen[e.key] { // a block of this node's that it borrowed from, too
				continue
			}
			seen[e.key] = true
			e.add(&in)
		}
	}
	for _, k := range s.ignored {
		if p, ok := k.problem(); ok {
			in.Problems = append(in.Problems, p)
		}
	}
	if s.policy != nil {
		in.Problems = append(in.Problems, s.policyProblems()...)
	}
	return in, synced
}

// secretFeed is the watch of one Secret.
type secretFeed struct {
	*feed
	started time.Time
	stop    context.CancelFunc
}

// watchSecrets starts and stops watches, so that those of names are watched.
func (s *Source) watchSecrets(ctx context.Context, running *sync.WaitGroup, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.secrets {
		if !slices.Contains(names, name) {
			f.stop()
			f.end()
			delete(s.secrets, name)
		}
	}
	for _, name := range names {
		if s.secrets[name] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		f := &secretFeed{feed: s.secretFeed(name), started: time.Now(), stop: cancel}
		s.secrets[name] = f
		s.changedAfter(secretWait)
		running.Go(func() { f.run(ctx) })
	}
}

// addSecrets adds what the watches of Secrets say. settled is false while one of them was
// neither read nor refused, for secretWait at most: a password that is on its way is not
// missing. s.mu is held.
func (s *Source) addSecrets(in *watch.Input, names []string) (settled bool) {
	settled = true
	in.Unread = map[string]watch.Unread{}
	for _, name := range names {
		f := s.secrets[name]
		switch {
		case f == nil:
			in.Unread[name] = watch.Unread{Why: "there is no Node " + s.cfg.Node + ", which would tell whether this node needs it"}
			continue
		case !f.synced.IsZero():
		case f.failing != nil:
			in.Unread[name] = watch.Unread{Why: f.failing.Error(), Lasting: refused(f.failing)}
			settled = settled && (refused(f.failing) || time.Since(f.started) >= secretWait)
			continue
		default:
			in.Unread[name] = watch.Unread{Why: "the API server has not answered yet"}
			settled = settled && time.Since(f.started) >= secretWait
			continue
		}
		for _, e := range f.contents.(*table[entry]).rows {
			e.add(in)
		}
		if p, ok := f.problem(); ok {
			in.Problems = append(in.Problems, p)
		}
	}
	return settled
}
