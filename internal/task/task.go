// Package task runs the long-lived parts of a program as one group: the first that fails
// ends all, and the group ends when every one of them has.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// Task is something long-lived. Run blocks until ctx is cancelled, and then returns nil,
// or until it cannot go on, and then returns why.
type Task interface {
	Run(ctx context.Context) error
	String() string
}

// Func makes a Task of a function.
func Func(name string, run func(context.Context) error) Task { return fn{name, run} }

type fn struct {
	name string
	run  func(context.Context) error
}

func (f fn) Run(ctx context.Context) error { return f.run(ctx) }
func (f fn) String() string                { return f.name }

// Run runs all tasks until ctx is cancelled or one of them returns an error; it returns
// when all have ended, with the errors of all that failed.
func Run(ctx context.Context, log *slog.Logger, tasks ...Task) error {
	return RunStages(ctx, log, tasks)
}

// RunStages is Run for tasks that need others until they have ended themselves: those of the
// first stage are told to end first, those of the next one when they all have ended, and so
// on. All start together.
func RunStages(ctx context.Context, log *slog.Logger, stages ...[]Task) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu   sync.Mutex
		errs []error // guarded by mu
	)
	run := func(ctx context.Context, t Task) {
		err := t.Run(ctx)
		switch {
		case err != nil && !errors.Is(err, context.Canceled):
			err = fmt.Errorf("%s: %w", t, err)
		case ctx.Err() == nil:
			err = fmt.Errorf("%s: ended unasked", t)
		default:
			return
		}
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
		log.Error("task failed", "task", t.String(), "error", err)
		cancel()
	}
	type stage struct {
		end  context.CancelFunc
		done sync.WaitGroup
	}
	running := make([]stage, len(stages))
	for i, tasks := range stages {
		s := &running[i]
		var within context.Context
		within, s.end = context.WithCancel(context.WithoutCancel(ctx))
		for _, t := range tasks {
			s.done.Go(func() { run(within, t) })
		}
	}
	<-ctx.Done()
	for i := range running {
		running[i].end()
		running[i].done.Wait()
	}
	return errors.Join(errs...)
}
