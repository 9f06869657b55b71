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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, t := range tasks {
		wg.Add(1)
		go func() {
			defer wg.Done()
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
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}
