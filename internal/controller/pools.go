package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
)

// poolReporter says in the status of pools what they are and how full they are, and keeps
// the finalizer of those in force.
type poolReporter struct {
	*worker
	log      *slog.Logger
	res      kubeapi.Resource[*v3.IPPool, *v3.IPPoolList]
	pools    cache.Store
	view     func() *view
	ledger   *ledger
	interval time.Duration // between two writes of one pool
	now      func() time.Time

	mu      sync.Mutex
	usages  map[string]*usage // by pool's name; of the valid ones
	cidrs   map[string]netip.Prefix
	reports map[string]report
}

func newPoolReporter(t *term) *poolReporter {
	r := &poolReporter{
		log: t.log, res: kubeapi.NewResource[v3.IPPool, v3.IPPoolList](t.cfg.Clients.V3, "ippools", ""), pools: t.pools.GetStore(), view: t.view, ledger: t.ledger,
		interval: t.cfg.StatusInterval, now: t.cfg.Now, usages: map[string]*usage{}, cidrs: map[string]netip.Prefix{}, reports: map[string]report{},
	}
	r.worker = newWorker("pools", t.log, r.reconcile)
	return r
}

// poolChanged counts a pool that came or changed.
func (r *poolReporter) poolChanged(p *v3.IPPool) {
	defer r.add(p.Name)
	cidr, ok := prefix(p.Spec.CIDR)
	if !ok {
		return
	}
	r.mu.Lock()
	known := r.cidrs[p.Name] == cidr
	r.mu.Unlock()
	if known {
		return
	}
	size := p.Spec.BlockSize
	if size == 0 {
		size = 122
		if cidr.Addr().Is4() {
			size = 26
		}
	}
	width := cidr.Addr().BitLen()
	u := &usage{bits: width - cidr.Bits(), blockBits: max(0, width-size)}
	r.ledger.freeze(func(blocks map[string]*entry) {
		for _, e := range blocks {
			if inside(cidr, e.cidr) {
				u.blocks++
				u.add(e.tally, 1)
			}
		}
		r.mu.Lock()
		r.usages[p.Name], r.cidrs[p.Name] = u, cidr
		r.mu.Unlock()
	})
}

// poolGone forgets a pool.
func (r *poolReporter) poolGone(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.usages, name)
	delete(r.cidrs, name)
	delete(r.reports, name)
}

func inside(pool, block netip.Prefix) bool {
	return block.IsValid() && pool.Bits() <= block.Bits() && pool.Contains(block.Addr())
}

// blockChanged counts the change of a block.
func (r *poolReporter) blockChanged(old, now *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, cidr := range r.cidrs {
		u, touched := r.usages[name], false
		if old != nil && inside(cidr, old.cidr) {
			u.blocks--
			u.add(old.tally, -1)
			touched = true
		}
		if now != nil && inside(cidr, now.cidr) {
			u.blocks++
			u.add(now.tally, 1)
			touched = true
		}
		if touched {
			r.add(name)
		}
	}
}

// usageOf returns a pool's usage.
func (r *poolReporter) usageOf(name string) (usage, report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, ok := r.usages[name]
	if !ok {
		return usage{}, r.reports[name], false
	}
	return *u, r.reports[name], true
}

// all returns the usage of all pools, by name.
func (r *poolReporter) all() map[string]usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]usage, len(r.usages))
	for name, u := range r.usages {
		out[name] = *u
	}
	return out
}

func (r *poolReporter) reconcile(ctx context.Context, name string) (time.Duration, error) {
	obj, exists, _ := r.pools.GetByKey(name)
	if !exists {
		return 0, nil
	}
	p := obj.(*v3.IPPool)
	s, ok := r.view().standing[name]
	if !ok {
		return 0, nil // a view that knows the pool is on its way, and asks again
	}
	u, rep, _ := r.usageOf(name)
	if fin, changed := finalizers(p, s, u.blocks); changed {
		if err := r.patchFinalizers(ctx, p, fin); err != nil {
			return 0, err
		}
		return 0, nil // the watch brings the new version
	}
	var have []metav1.Condition
	if p.Status != nil {
		have = p.Status.Conditions
	}
	now := r.now()
	out, urgent, numbers := merge(have, conditions(s, u, p.Generation), now)
	wait, ok := rep.due(u, urgent, numbers, now, r.interval)
	switch {
	case !ok:
		return 0, nil
	case wait > 0:
		return wait, nil
	}
	if err := r.patchStatus(ctx, p, out); err != nil {
		return 0, err
	}
	r.mu.Lock()
	if _, ok := r.usages[name]; ok {
		r.reports[name] = report{at: now, usage: u, known: true}
	}
	r.mu.Unlock()
	return 0, nil
}

func (r *poolReporter) patchStatus(ctx context.Context, p *v3.IPPool, conditions []metav1.Condition) error {
	return r.patch(ctx, p, map[string]any{
		"metadata": map[string]any{"resourceVersion": p.ResourceVersion, "uid": p.UID},
		"status":   map[string]any{"conditions": conditions},
	}, "status")
}

func (r *poolReporter) patchFinalizers(ctx context.Context, p *v3.IPPool, finalizers []string) error {
	err := r.patch(ctx, p, map[string]any{
		"metadata": map[string]any{"resourceVersion": p.ResourceVersion, "uid": p.UID, "finalizers": finalizers},
	})
	if err == nil && p.DeletionTimestamp != nil {
		r.log.Info("pool released: no block of it is left", "pool", p.Name)
	}
	return err
}

func (r *poolReporter) patch(ctx context.Context, p *v3.IPPool, patch map[string]any, sub ...string) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	if _, err := r.res.MergePatch(ctx, p.Name, data, sub...); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write IPPool %s: %w", p.Name, err)
	}
	return nil
}
