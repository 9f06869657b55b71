package controller_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/controller"
)

const finalizer = "projectcalico.org/ippool-finalizer"

// condition checks one condition of a pool: "True OK", and words of its message.
func (c *cluster) condition(pool, kind, want string, words ...string) {
	c.Helper()
	c.until(func() error {
		p, err := c.pools.Get(c.ctx, pool, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status == nil {
			return fmt.Errorf("pool %s has no status", pool)
		}
		have := meta.FindStatusCondition(p.Status.Conditions, kind)
		if have == nil {
			return fmt.Errorf("pool %s has no condition %s", pool, kind)
		}
		if got := string(have.Status) + " " + have.Reason; got != want {
			return fmt.Errorf("pool %s: %s is %s (%s), want %s", pool, kind, got, have.Message, want)
		}
		for _, w := range words {
			if !strings.Contains(have.Message, w) {
				return fmt.Errorf("pool %s: %s says %q, want %q in it", pool, kind, have.Message, w)
			}
		}
		return nil
	})
}

func size(n int) func(*v3.IPPoolSpec) { return func(s *v3.IPPoolSpec) { s.BlockSize = n } }

func TestPoolConditions(t *testing.T) {
	c := newCluster(t)
	c.node("a")
	c.pool("small", "10.1.0.0/28", size(29))
	c.ready(c.replica())
	c.condition("small", "Allocatable", "True OK")
	c.condition("small", "Exhausted", "False FreeAddresses", "0 of 16 addresses in use", "0 of 2 blocks claimed")
	c.until(func() error {
		p, err := c.pools.Get(c.ctx, "small", metav1.GetOptions{})
		if err == nil && !slices.Contains(p.Finalizers, finalizer) {
			err = fmt.Errorf("finalizers %v, want %s", p.Finalizers, finalizer)
		}
		return err
	})

	full := make([]slot, 8)
	for i := range full {
		full[i] = slot{node: "a", pod: fmt.Sprintf("p%d", i)}
	}
	c.block("10.1.0.0/29", "a", full...)
	c.condition("small", "Exhausted", "False FreeAddresses", "8 of 16 addresses in use", "1 of 2 blocks claimed")
	full[7].pod = "" // the stash is not free either
	c.block("10.1.0.8/29", "a", full...)
	c.condition("small", "Exhausted", "True NoFreeAddress", "15 of 16 addresses in use, 1 more put by")

	// A pool that overlaps gives nothing, and takes over when the one before it goes. Which
	// was before it the API tells in full seconds.
	small, err := c.pools.Get(c.ctx, "small", metav1.GetOptions{})
	c.must(err)
	c.until(func() error {
		if !time.Now().Truncate(time.Second).After(small.CreationTimestamp.Time) {
			return fmt.Errorf("it is still the second in which pool small was created")
		}
		return nil
	})
	c.pool("late", "10.1.0.0/24", size(29))
	c.condition("late", "Allocatable", "False CIDROverlap", "small")
	c.must(c.pools.Delete(c.ctx, "small", metav1.DeleteOptions{}))
	c.condition("small", "Allocatable", "False Terminating")
	c.condition("late", "Allocatable", "False CIDROverlap")
	p, err := c.pools.Get(c.ctx, "late", metav1.GetOptions{})
	c.must(err)
	if slices.Contains(p.Finalizers, finalizer) {
		t.Error("a pool that is not in force has a finalizer")
	}
	c.must(c.blocks.Delete(c.ctx, name("10.1.0.0/29"), metav1.DeleteOptions{}))
	c.condition("late", "Exhausted", "False FreeAddresses", "1 of 32 blocks claimed")
	c.stays(300*time.Millisecond, func() error { _, err := c.pools.Get(c.ctx, "small", metav1.GetOptions{}); return err })
	c.must(c.blocks.Delete(c.ctx, name("10.1.0.8/29"), metav1.DeleteOptions{}))
	c.until(func() error {
		if _, err := c.pools.Get(c.ctx, "small", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("pool small: %v, want that it is gone", err)
		}
		return nil
	})
	c.condition("late", "Allocatable", "True OK")
	_, err = c.pools.MergePatch(c.ctx, "late", []byte(`{"spec":{"disabled":true}}`))
	c.must(err)
	c.condition("late", "Allocatable", "False PoolDisabled")
}

// TestPoolStatusIsSparing counts the writes that a burst of changes costs.
func TestPoolStatusIsSparing(t *testing.T) {
	c := newCluster(t)
	c.node("a")
	c.pool("big", "10.2.0.0/20", size(26))
	c.ready(c.replica(func(cfg *controller.Config) { cfg.StatusInterval = 2 * time.Second }))
	c.condition("big", "Exhausted", "False FreeAddresses")
	p, err := c.pools.Get(c.ctx, "big", metav1.GetOptions{})
	c.must(err)
	w, err := watchtools.NewRetryWatcherWithContext(c.ctx, p.ResourceVersion, cache.ToWatcherWithContext(&cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = "metadata.name=big"
			return c.pools.Watch(ctx, o)
		},
	}))
	c.must(err)
	defer w.Stop()
	began := time.Now()
	for i := range 30 {
		full := make([]slot, 64)
		for k := range full {
			full[k] = slot{node: "a", pod: fmt.Sprintf("p%d-%d", i, k)}
		}
		c.block(fmt.Sprintf("10.2.%d.%d/26", i/4, i%4*64), "a", full...)
	}
	c.condition("big", "Exhausted", "False FreeAddresses", "1920 of 4096 addresses in use")
	allowed := int(time.Since(began)/(2*time.Second)) + 2 // the finalizer's may come late
	writes := 0
	for done := false; !done; {
		select {
		case e, open := <-w.ResultChan():
			if !open || e.Type != watch.Modified {
				c.Fatalf("the watch of the pool ended: %s %v", e.Type, e.Object)
			}
			writes++
		case <-time.After(200 * time.Millisecond):
			done = true
		}
	}
	if writes > allowed {
		t.Errorf("%d writes in %s, want at most %d", writes, time.Since(began), allowed)
	}
}
