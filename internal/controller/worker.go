package controller

import (
	"context"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
)

// worker is one queue of keys and the one goroutine that works on it.
type worker struct {
	name  string
	log   *slog.Logger
	queue workqueue.TypedRateLimitingInterface[string]
	// do brings one key to its desired state. again, if not 0, is when to look at it next
	// although nothing may have changed: a deadline that was found.
	do func(ctx context.Context, key string) (again time.Duration, err error)

	failing map[string]string // the last error of a key, so that a lasting one is logged once
}

func newWorker(name string, log *slog.Logger, do func(context.Context, string) (time.Duration, error)) *worker {
	return &worker{
		name: name, log: log.With("reconciler", name), do: do, failing: map[string]string{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 30*time.Second),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: name}),
	}
}

func (w *worker) String() string { return w.name }

// add asks for a look at a key soon.
func (w *worker) add(key string) { w.queue.Add(key) }

// addAfter asks for a look at a key then.
func (w *worker) addAfter(key string, d time.Duration) { w.queue.AddAfter(key, max(d, 0)) }

// Run works until ctx is cancelled.
func (w *worker) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	for {
		key, down := w.queue.Get()
		if down {
			return nil
		}
		again, err := w.do(ctx, key)
		w.settle(ctx, key, again, err)
		w.queue.Done(key)
	}
}

func (w *worker) settle(ctx context.Context, key string, again time.Duration, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		w.queue.Forget(key)
		if _, was := w.failing[key]; was {
			delete(w.failing, key)
			w.log.Info("reconcile recovered", "key", key)
		}
		if again > 0 {
			w.queue.AddAfter(key, again)
		}
	default:
		// Another writer was faster: the watch brings, or has brought, what it wrote.
		if s := err.Error(); !apierrors.IsConflict(err) && w.failing[key] != s {
			w.failing[key] = s
			w.log.Error("reconcile failed", "key", key, "error", err)
		}
		w.queue.AddRateLimited(key)
	}
}
