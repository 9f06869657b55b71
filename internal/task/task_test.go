package task

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	blocks := Func("blocks", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	broken := errors.New("broken")

	if err := Run(context.Background(), log, blocks, Func("bad", func(context.Context) error { return broken })); !errors.Is(err, broken) {
		t.Errorf("the first failure does not end the group: %v", err)
	}
	if err := Run(context.Background(), log, blocks, Func("lazy", func(context.Context) error { return nil })); err == nil || !strings.Contains(err.Error(), "lazy: ended unasked") {
		t.Errorf("a task that ends unasked goes unnoticed: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Run(ctx, log, blocks, blocks); err != nil {
		t.Errorf("cancelled: %v", err)
	}
}

// TestRunStages: a task ends before those of later stages are told to, also when one of
// those is the reason for the end.
func TestRunStages(t *testing.T) {
	broken := errors.New("broken")
	for name, fail := range map[string]error{"told to end": nil, "a later stage fails": broken} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			needed := make(chan struct{}) // closed when the last stage is told to end
			var told bool
			first := Func("first", func(ctx context.Context) error {
				<-ctx.Done()
				for range 1000 { // whoever is told too early has the time to show it
					runtime.Gosched()
				}
				select {
				case <-needed:
					told = true
				default:
				}
				return nil
			})
			last := Func("last", func(ctx context.Context) error {
				<-ctx.Done()
				close(needed)
				return nil
			})
			cause := Func("cause", func(ctx context.Context) error {
				cancel()
				<-ctx.Done()
				return nil
			})
			if fail != nil {
				cause = Func("cause", func(context.Context) error { return fail })
			}
			if err := RunStages(ctx, slog.New(slog.DiscardHandler), []Task{first}, []Task{cause, last}); !errors.Is(err, fail) {
				t.Errorf("RunStages: %v, want %v", err, fail)
			}
			if told {
				t.Error("the last stage was told to end before the first one had ended")
			}
		})
	}
}
