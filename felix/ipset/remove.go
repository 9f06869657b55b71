package ipset

import (
	"context"
	"errors"
	"fmt"
)

// Remove destroys all our sets and returns how many it did. It must not run beside a Reconciler, and after everybody's
// rules that refer to them are gone: a set that a rule refers to stays, and is reported.
func Remove(ctx context.Context, k Kernel, prefixes ...string) (n int, err error) {
	cfg := Config{Prefixes: prefixes}
	if len(prefixes) == 0 {
		cfg.Prefixes = []string{Prefix4, Prefix6}
	}
	headers, err := k.Headers(ctx)
	if errors.Is(err, ErrUnsupported) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var commands []Command
	for _, h := range headers {
		if cfg.prefix(h.Name) != "" {
			commands = append(commands, Command{Verb: Destroy, Name: h.Name})
		}
	}
	if len(commands) == 0 {
		return 0, nil
	}
	results, err := k.Apply(ctx, commands)
	if err != nil {
		return 0, err
	}
	var errs []error
	for i, err := range results {
		switch {
		case err == nil:
			n++
		case !errors.Is(err, ErrNotExist):
			errs = append(errs, fmt.Errorf("ipset %s stays: %w", commands[i].Name, err))
		}
	}
	return n, errors.Join(errs...)
}
