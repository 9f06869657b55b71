package task

import (
	"context"
	"errors"
	"log/slog"
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
