package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func loop(apply func(bool) error) *Loop {
	return (&Loop{
		Name: "test", Log: slog.New(slog.DiscardHandler), Resync: time.Hour, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond,
		Apply: func(_ context.Context, resync bool) error { return apply(resync) },
	}).Init()
}

// call is one Apply, which ends when the test answers it.
type call struct {
	resync bool
	answer chan<- error
}

func next(t *testing.T, calls <-chan call, answer error) (resync bool) {
	t.Helper()
	select {
	case c := <-calls:
		c.answer <- answer
		return c.resync
	case <-time.After(10 * time.Second):
		t.Fatal("no Apply")
		return false
	}
}

func TestPokeResyncAndRetry(t *testing.T) {
	calls := make(chan call)
	l := loop(func(resync bool) error {
		answer := make(chan error)
		calls <- call{resync, answer}
		return <-answer
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()

	if !next(t, calls, nil) {
		t.Error("the first Apply is no resync")
	}
	l.Poke()
	if next(t, calls, nil) {
		t.Error("a poke became a resync")
	}
	l.PokeResync()
	if !next(t, calls, errors.New("once")) {
		t.Error("a resync was asked for")
	}
	if next(t, calls, nil) {
		t.Error("the retry after an error is a resync")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestSetResync: a Loop that would resync in an hour does so soon when it is told in time.
func TestSetResync(t *testing.T) {
	resyncs := make(chan bool, 100)
	l := loop(func(resync bool) error {
		select {
		case resyncs <- resync:
		default:
		}
		return nil
	})
	l.SetResync(time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	for range 3 {
		select {
		case resync := <-resyncs:
			if !resync {
				t.Error("an Apply that nobody asked for is no resync")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no resync")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
