package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Remove takes everything of ours out of one family's iptables, on both backends of the
// host (or from Config.Kernel, when that is given). It must not run beside a Reconciler.
// A chain that somebody else's rule goes to is emptied and stays, and is reported.
func Remove(ctx context.Context, cfg Config) error {
	if cfg.Kernel != nil {
		return removeAll(ctx, cfg.Kernel)
	}
	var errs []error
	some := false
	for _, b := range []Backend{NFT, Legacy} {
		h := NewHost(cfg.Family, b, cfg.LockTimeout)
		if _, err := h.Backend(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		some = true
		if err := removeAll(ctx, h); err != nil {
			return fmt.Errorf("%s iptables, %s: %w", cfg.Family, b, err)
		}
	}
	if !some {
		return errors.Join(errs...)
	}
	return nil
}

func removeAll(ctx context.Context, k Kernel) error {
	text, err := k.Save(ctx, "")
	if err != nil {
		return err
	}
	all, err := parseSave(text)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := removeFrom(ctx, k, name); err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// removeFrom takes everything of ours out of one table that exists.
func removeFrom(ctx context.Context, k Kernel, name Table) error {
	r := &Reconciler{kernel: k}
	for n := 0; ; n++ {
		text, err := k.Save(ctx, "")
		if err != nil {
			return err
		}
		all, err := parseSave(text)
		if err != nil {
			return err
		}
		now := all[name]
		if now == nil {
			return nil
		}
		script, pinned := removal(name, now)
		if script != nil {
			err = r.restore(ctx, script)
		}
		var no *RestoreError
		switch {
		case err == nil:
			return errors.Join(pinned...)
		case errors.As(err, &no) && n < maxConflicts: // somebody else's change came between
		default:
			return err
		}
	}
}

// removal is the transaction that takes everything of ours out of a table, or nil when
// there is nothing to do.
func removal(name Table, now *actual) (text []byte, pinned []error) {
	var parts []part
	for _, chain := range slices.Sorted(maps.Keys(now.foreign)) {
		if f := now.foreign[chain]; len(f.hooks) > 0 {
			parts = append(parts, part{chain: chain, kind: partHooks, lines: editHooks(chain, f, nil)})
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(now.chains)) {
		p := part{chain: chain, kind: partDelete, declare: true, lines: []string{"-X " + chain}}
		if by := now.callers[chain]; by != "" {
			p.lines = nil
			pinned = append(pinned, fmt.Errorf("chain %s stays, empty: a rule of chain %s that is not ours goes to it", chain, by))
			if len(now.chains[chain].rules) == 0 {
				continue
			}
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return nil, pinned
	}
	text, _ = script(name, parts)
	return text, pinned
}

// sweep takes what is ours out of the same table of the other backend: an agent that was
// told another one, or a host that changed, would else leave rules in force that nobody
// keeps any more. It comes after the table of this backend is right.
func (r *Reconciler) sweep(ctx context.Context, t *table) {
	h, ok := r.kernel.(*Host)
	if !ok {
		t.swept = true
		return
	}
	other := h.other(ctx)
	if other == nil {
		t.swept = true
		return
	}
	text, err := other.Save(ctx, "")
	if err == nil {
		var all map[Table]*actual
		all, err = parseSave(text)
		if err == nil && all[t.name] != nil {
			if script, _ := removal(t.name, all[t.name]); script != nil {
				err = removeFrom(ctx, other, t.name)
				r.log.Info("removed our rules from the backend that is not in use", "table", t.name, "backend", other.wanted, "error", err)
			}
		}
	}
	if err != nil {
		r.log.Warn("cannot sweep the backend that is not in use", "table", t.name, "backend", other.wanted, "error", err)
	}
	t.swept = err == nil
}
