package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
)

// How long a feed waits after a failure: doubling from the first to the last, and up to
// twice as long by chance, so that the agents of a cluster do not return all at once.
const (
	firstWait = 500 * time.Millisecond
	// lastWait is for what is needed.
	lastWait = 8 * time.Second
	// lastIgnoredWait is for kinds that may well not be installed.
	lastIgnoredWait = time.Minute
)

// contents is what a feed keeps of the objects that it sees. Its methods report whether
// anything changed; the Source's mutex is held.
type contents interface {
	set(metav1.Object) bool
	remove(metav1.Object) bool
	replace([]any) bool
	len() int
}

// feed is one list and watch of the API server, run by client-go's reflector: it is the
// source that the reflector reads and the store that it fills, and so sees all that goes
// well and wrong.
//
// Invariant: what contents holds was told by the server; no failure takes anything away.
type feed struct {
	s        *Source
	name     string // the resource, and what it is narrowed to
	resource string // "ippools.projectcalico.org"
	needed   bool   // no snapshot is made before this was read
	source   *kubeapi.ListWatch
	sample   runtime.Object         // of the type that arrives
	strip    func(any) (any, error) // cuts an object to what is used; may be nil
	contents contents
	onChange func() // after a change of contents; also of health for whoever waits; the mutex is held
	lastWait time.Duration
	tried    chan struct{} // closed when the server answered once, or could not be reached

	// The Source's mutex guards these.
	synced       time.Time // when all objects were first read; zero: never
	failing      error     // why the watch does not stand; nil: it stands or was not tried
	failingSince time.Time
	missing      time.Time // since when the server has said that there is no such resource, last it answered
	failures     int       // of the reflector's attempts, in a row
	awayCounted  bool
	ended        bool  // nobody reads it any more
	refusal      error // what List answers after a Watch that was refused
}

// refused reports whether the API server has answered, and will answer the same until
// somebody changes something.
func refused(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonNotFound, metav1.StatusReasonForbidden, metav1.StatusReasonUnauthorized, metav1.StatusReasonBadRequest,
		metav1.StatusReasonInvalid, metav1.StatusReasonMethodNotAllowed, metav1.StatusReasonNotAcceptable:
		return true
	}
	return false
}

// run reads the server until ctx is cancelled.
func (f *feed) run(ctx context.Context) {
	logger := logr.FromSlogHandler(debugOnly{f.s.log.Handler()})
	ctx = klog.NewContext(ctx, logger)
	r := cache.NewReflectorWithOptions(f, f.sample, f, cache.ReflectorOptions{
		Logger: &logger, Name: f.name, TypeDescription: f.name, Clock: waitClock{clock.RealClock{}, ctx, f},
		Backoff: &wait.Backoff{Duration: firstWait, Factor: 2, Jitter: 1, Steps: 10, Cap: f.lastWait},
	})
	delay := firstWait
	for ctx.Err() == nil {
		start := time.Now()
		if err := r.ListAndWatchWithContext(ctx); err != nil && ctx.Err() == nil && !f.noted(err) {
			f.failed(err)
		}
		if time.Since(start) > time.Minute {
			delay = firstWait
		}
		f.wait(ctx, delay+rand.N(delay))
		delay = min(2*delay, f.lastWait)
	}
}

// noted reports whether an attempt ended because of what is known already, or only to begin
// anew.
func (f *feed) noted(err error) bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || f.failing != nil && errors.Is(err, f.failing)
}

// wait lets d pass, or less: until ctx ends, or, while this feed gets no answer, until
// another one gets one.
func (f *feed) wait(ctx context.Context, d time.Duration) {
	f.s.mu.Lock()
	back := f.s.back
	if !f.awayCounted {
		back = nil
	}
	f.s.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-back:
	case <-t.C:
	}
}

// waitClock makes a reflector wait between its attempts as its feed does: of client-go's
// waits some do not end with their context.
type waitClock struct {
	clock.RealClock
	ctx  context.Context
	feed *feed
}

// After implements clock.Clock.
func (c waitClock) After(d time.Duration) <-chan time.Time {
	ch := make(chan time.Time, 1)
	go func() {
		c.feed.wait(c.ctx, d)
		ch <- time.Now()
	}()
	return ch
}

// List implements cache.ListerWatcher.
func (f *feed) List(o metav1.ListOptions) (runtime.Object, error) {
	return f.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher.
func (f *feed) Watch(o metav1.ListOptions) (apiwatch.Interface, error) {
	return f.WatchWithContext(context.Background(), o)
}

// ListWithContext is what the reflector falls back to when it cannot stream a list. What
// was refused as a stream is not asked for once more.
func (f *feed) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	f.s.mu.Lock()
	err := f.refusal
	f.refusal = nil
	f.s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	list, err := f.source.ListWithContext(ctx, o)
	if err != nil {
		f.failed(err)
		return nil, err
	}
	f.stands()
	return list, nil
}

// WatchWithContext opens a stream.
func (f *feed) WatchWithContext(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	w, err := f.source.WatchWithContext(ctx, o)
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return nil, err // the reflector lists anew
		}
		f.failed(err)
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			f.s.mu.Lock()
			f.refusal = err
			f.s.mu.Unlock()
		}
		return nil, err
	}
	if f.wasAway() && o.ResourceVersion != "" && o.SendInitialEvents == nil {
		if err := f.checkNotBehind(ctx, o.ResourceVersion); err != nil {
			w.Stop()
			if !apierrors.IsResourceExpired(err) {
				f.failed(err)
			}
			return nil, err
		}
	}
	f.stands()
	return w, nil
}

// wasAway reports whether the server did not answer this feed when it was last asked.
func (f *feed) wasAway() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.awayCounted
}

// checkNotBehind returns an error that has the reflector list anew when a server that was away
// has come back with less than it told before, out of a backup. A watch from a resourceVersion
// that it has not reached yet would stand, and tell nothing. Reading one object costs the
// server little, where a new list by every agent after every outage would not.
func (f *feed) checkNotBehind(ctx context.Context, told string) error {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	list, err := f.source.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return err
	}
	// resourceVersions of one resource are numbers that grow; of what is no number nobody can
	// tell.
	now, nerr := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	then, terr := strconv.ParseUint(told, 10, 64)
	if nerr == nil && terr == nil && now >= then {
		return nil
	}
	return apierrors.NewResourceExpired("resourceVersion " + told + " is not one of the API server's, which is at " + m.GetResourceVersion())
}

// wasTried closes tried. s.mu is held.
func (f *feed) wasTried() {
	select {
	case <-f.tried:
	default:
		close(f.tried)
	}
}

// stands notes that the server answers.
func (f *feed) stands() {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.wasTried()
	f.refusal = nil
	if f.failing == nil || f.ended {
		return
	}
	if f.awayCounted {
		close(f.s.back)
		f.s.back = make(chan struct{})
	}
	f.countAway(false)
	f.failing, f.failingSince, f.missing, f.failures = nil, time.Time{}, time.Time{}, 0
	f.onChange()
	f.s.changed()
}

// end notes that nobody reads the feed any more. s.mu is held.
func (f *feed) end() {
	f.countAway(false)
	f.ended = true
}

// failed notes why the watch does not stand.
func (f *feed) failed(err error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.wasTried()
	if f.ended {
		return
	}
	f.failures++
	first := f.failing == nil || refused(f.failing) != refused(err)
	if first {
		f.failingSince = time.Now()
	}
	if f.failing == nil || f.failing.Error() != err.Error() {
		f.s.log.Debug("watch failed", "watch", f.name, "error", err)
	}
	f.failing = err
	switch {
	case apierrors.IsNotFound(err):
		if f.missing.IsZero() {
			f.missing = time.Now()
		}
	case refused(err) || !f.absent():
		f.missing = time.Time{}
	}
	f.countAway(!refused(err))
	if first {
		f.onChange()
		f.s.changed()
		if refused(err) {
			f.s.changedAfter(refusalGrace)
		}
	}
}

// countAway keeps count of the feeds that get no answer, and logs the first and the last.
func (f *feed) countAway(away bool) {
	if away == f.awayCounted {
		return
	}
	f.awayCounted = away
	s := f.s
	if away {
		if s.away++; s.away == 1 {
			s.log.Warn("the API server does not answer; what is known stays in force", "watch", f.name, "error", f.failing)
		}
	} else if s.away--; s.away == 0 {
		s.log.Info("the API server answers again")
	}
}

// problem is what to say of a feed that the server refuses. s.mu is held.
func (f *feed) problem() (model.Problem, bool) {
	if f.failing == nil || !refused(f.failing) || time.Since(f.failingSince) < refusalGrace {
		return model.Problem{}, false
	}
	p := model.Problem{Object: model.Object{Kind: "Watch", Name: f.name}}
	switch {
	case apierrors.IsNotFound(f.failing):
		if !f.needed {
			return p, false // nobody can have objects of a kind that does not exist
		}
		p.Object = model.Object{Kind: "CustomResourceDefinition", Name: f.resource}
		p.Message = "is not installed; apply the CustomResourceDefinitions of this release"
	case apierrors.IsForbidden(f.failing):
		p.Message = "is forbidden; grant list and watch to the agent, as its ClusterRole in this release does: " + f.failing.Error()
	case apierrors.IsUnauthorized(f.failing):
		p.Message = "is refused, because the API server does not accept the agent's token: " + f.failing.Error()
	case apierrors.IsBadRequest(f.failing):
		p.Message = "is refused; apply the CustomResourceDefinitions of this release, which make their fields selectable: " + f.failing.Error()
	default:
		p.Message = "is refused: " + f.failing.Error()
	}
	if !f.synced.IsZero() {
		p.Message += "; what was known stays in force"
	}
	return p, true
}

// Add implements cache.ReflectorStore.
func (f *feed) Add(obj any) error { return f.put(obj) }

// Update implements cache.ReflectorStore.
func (f *feed) Update(obj any) error { return f.put(obj) }

func (f *feed) put(obj any) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.contents.set(obj.(metav1.Object)) {
		f.onChange()
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(obj any) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.contents.remove(obj.(metav1.Object)) {
		f.onChange()
	}
	return nil
}

// Replace implements cache.ReflectorStore: the server has told all objects. What is not
// among them is gone.
func (f *feed) Replace(objs []any, _ string) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	changed := f.contents.replace(objs)
	if f.synced.IsZero() {
		f.synced, changed = time.Now(), true
	}
	if changed {
		f.onChange()
	}
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (f *feed) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a list that arrives as a stream is cut
// object by object.
func (f *feed) Transformer() cache.TransformFunc {
	if f.strip == nil {
		return nil
	}
	return f.strip
}
