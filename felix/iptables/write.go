package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Waits between attempts at a transaction that met a held lock or somebody else's change.
const (
	firstPause = 10 * time.Millisecond
	attempts   = 6
)

// restore runs one transaction and tries again while its refusal is temporary.
func (r *Reconciler) restore(ctx context.Context, text []byte) error {
	for n, pause := 1, firstPause; ; n, pause = n+1, 2*pause {
		err := r.kernel.Restore(ctx, text)
		var no *RestoreError
		if !errors.As(err, &no) || !no.Temporary() || n == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// write runs one transaction of some parts, and takes them into t when it passed.
func (r *Reconciler) write(ctx context.Context, t *table, parts []part, drift bool) error {
	text, owner := script(t.name, parts)
	if err := r.restore(ctx, text); err != nil {
		var no *RestoreError
		if errors.As(err, &no) {
			return &blame{no, owner}
		}
		return err
	}
	set, del, hooks := 0, 0, 0
	for _, p := range parts {
		p.applied()
		switch p.kind {
		case partChain:
			set++
		case partHooks:
			hooks++
		case partDelete:
			del++
		}
	}
	t.wrote = time.Now()
	r.log.Info("iptables changed", "table", t.name, "chains", set, "deleted", del, "hooks", hooks, "drift", drift)
	if drift && set+hooks > 0 && r.mended != nil {
		r.mended()
	}
	return nil
}

// blame is a refusal with the parts that its lines belong to.
type blame struct {
	no    *RestoreError
	owner map[int]int
}

func (b *blame) Error() string { return b.no.Error() }
func (b *blame) Unwrap() error { return b.no }

// isolate finds the parts that the kernel refuses, refuses them, and applies all others.
// It applies callees before callers, so that at each moment every chain in use is either
// its old or its new version, whole. Deletions wait until the chains are settled.
func (r *Reconciler) isolate(ctx context.Context, t *table, parts []part) error {
	var chains, deletions []part
	newborn := map[string]bool{}
	var empty []part
	for _, p := range parts {
		if p.kind == partDelete {
			deletions = append(deletions, p)
			continue
		}
		chains = append(chains, p)
		if p.kind == partChain && t.now.chains[p.chain] == nil {
			newborn[p.chain] = true
			empty = append(empty, part{chain: p.chain, declare: true, applied: func() { t.now.chains[p.chain] = written(nil) }})
		}
	}
	if len(chains) == 0 {
		return r.divide(ctx, t, deletions, nil)
	}
	// New chains first, empty: nothing goes to them yet.
	if len(empty) > 0 {
		if err := r.write(ctx, t, empty, false); err != nil {
			return err
		}
	}
	return r.divide(ctx, t, chains, newborn)
}

// divide applies parts, in halves where the kernel does not say which of them it minds.
func (r *Reconciler) divide(ctx context.Context, t *table, parts []part, newborn map[string]bool) error {
	for len(parts) > 0 {
		err := r.write(ctx, t, parts, false)
		if err == nil {
			return nil
		}
		var b *blame
		if !errors.As(err, &b) || b.no.Temporary() {
			return err
		}
		blamed := map[int]bool{}
		for _, n := range b.no.Lines {
			if i, ok := b.owner[n]; ok {
				blamed[i] = true
			}
		}
		if len(parts) == 1 {
			blamed[0] = true
		}
		if len(blamed) == 0 {
			half := len(parts) / 2
			if err := r.divide(ctx, t, parts[:half], newborn); err != nil {
				return err
			}
			parts = parts[half:]
			continue
		}
		var rest []part
		for i, p := range parts {
			if !blamed[i] {
				rest = append(rest, p)
			} else if err := r.refuse(ctx, t, p, b.no, newborn[p.chain]); err != nil {
				return err
			}
		}
		parts = rest
	}
	return nil
}

// refuse notes that the kernel does not take a part. A chain that was not there before
// gets its fallback.
func (r *Reconciler) refuse(ctx context.Context, t *table, p part, why error, newborn bool) error {
	o := owner{p.kind == partHooks, p.chain}
	x := refusal{err: why, since: time.Now()}
	switch {
	case o.hooks:
		if h := t.hooks[p.chain]; h != nil {
			x.what = h
		}
	case t.want[p.chain] != nil:
		x.what = t.want[p.chain]
	}
	if p.kind == partDelete {
		x.err = fmt.Errorf("cannot delete: %w", why)
	}
	if p.kind == partChain && newborn {
		c := t.want[p.chain]
		lines := c.fallback
		if t.missing(lines) != nil {
			lines = nil
		}
		stand := part{chain: p.chain, declare: true}
		stand.lines, _ = editChain(p.chain, nil, lines)
		stand.applied = func() {
			t.now.chains[p.chain] = written(lines)
			t.good[p.chain] = &compiled{name: p.chain, lines: lines}
		}
		err := r.write(ctx, t, []part{stand}, false)
		var b *blame
		switch {
		case errors.As(err, &b) && !b.no.Temporary():
			x.err = fmt.Errorf("%w; its fallback: %w", why, b.no)
			t.good[p.chain] = &compiled{name: p.chain}
		case err != nil:
			return err
		}
	}
	t.refused[o] = x
	r.log.Warn("iptables refused", "table", t.name, "what", o.String(), "error", x.err)
	return nil
}
