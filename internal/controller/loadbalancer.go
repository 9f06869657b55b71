package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

// assigner gives addresses to Services of type LoadBalancer. The blocks are the record of
// who has which; the status of a Service follows them. An address is marked in its block
// before the status shows it, and it is freed after the status stopped showing it.
type assigner struct {
	*worker
	log      *slog.Logger
	core     kubernetes.Interface
	blocks   blockClient
	ledger   *ledger
	services cache.Store
	view     func() *view
	mode     func() string
	event    eventFunc
	now      func() time.Time
	counts   *counters

	mu      sync.Mutex
	lacking map[string]string // Services that lack an address, and what was said of it
}

func newAssigner(t *term) *assigner {
	a := &assigner{
		log: t.log, core: t.cfg.Clients.Core, blocks: t.blockClient, ledger: t.ledger, services: t.services.GetStore(),
		view: t.view, mode: t.mode, event: t.event, now: t.cfg.Now, counts: t.counts, lacking: map[string]string{},
	}
	a.worker = newWorker("load balancer addresses", t.log, a.reconcile)
	return a
}

// start asks for a look at every Service that has an address or may need one: those that
// were deleted while nobody watched are named by blocks alone.
func (a *assigner) start() {
	a.everything()
	for _, s := range a.ledger.services() {
		a.add(s.String())
	}
}

// everything asks for a look at all Services of the type; pools or the mode changed.
func (a *assigner) everything() {
	for _, obj := range a.services.List() {
		if svc := obj.(*corev1.Service); svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			a.add(keyOf(svc).String())
		}
	}
}

// serviceChanged takes note of a Service that came, changed or went.
func (a *assigner) serviceChanged(old, now *corev1.Service) {
	for _, svc := range []*corev1.Service{old, now} {
		if svc != nil && svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			a.add(keyOf(svc).String())
			return
		}
	}
}

// blockChanged takes note of a change of a block: somebody may have lost an address, and
// one may have become free for those that lack one.
func (a *assigner) blockChanged(old, now *entry) {
	concerned := false
	for _, e := range []*entry{old, now} {
		if e == nil {
			continue
		}
		concerned = concerned || e.block != nil && e.block.Affinity == loadBalancerAffinity
		for _, s := range e.services {
			a.add(s.String())
		}
	}
	if !concerned {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key := range a.lacking {
		a.add(key)
	}
}

// holding is one address that a Service has in a block.
type holding struct {
	block string // the object's name
	addr  netip.Addr
}

// held returns what the blocks give to a Service under this handle, and what they give to
// its name under others: an earlier Service of that name.
func (a *assigner) held(key types.NamespacedName, handle string) (mine, stale []holding) {
	for _, e := range a.ledger.ofService(key) {
		for i, s := range e.block.Slots {
			if !strings.HasPrefix(s.Handle, handlePrefix) || s.Attrs[attrService] != key.Name || s.Attrs[ipam.AttrNamespace] != key.Namespace {
				continue
			}
			h := holding{e.obj.Name, e.block.Addr(i)}
			if s.Handle == handle {
				mine = append(mine, h)
			} else {
				stale = append(stale, h)
			}
		}
	}
	return mine, stale
}

func addrs(in []holding) []netip.Addr {
	var out []netip.Addr
	for _, h := range in {
		out = append(out, h.addr)
	}
	return out
}

func (a *assigner) reconcile(ctx context.Context, name string) (time.Duration, error) {
	namespace, n, _ := strings.Cut(name, "/")
	key := types.NamespacedName{Namespace: namespace, Name: n}
	obj, exists, _ := a.services.GetByKey(name)
	if !exists {
		a.satisfied(name)
		_, stale := a.held(key, "")
		return 0, a.release(ctx, key, stale)
	}
	svc := obj.(*corev1.Service)
	mine, stale := a.held(key, handleOf(svc))
	if err := a.release(ctx, key, stale); err != nil {
		return 0, err
	}
	ours, asked := managed(svc, a.mode())
	if !ours {
		a.satisfied(name)
		if len(mine) == 0 {
			return 0, nil
		}
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			if err := a.show(ctx, svc, without(svc.Status.LoadBalancer.Ingress, addrs(mine))); err != nil {
				return 0, err
			}
		}
		return 0, a.release(ctx, key, mine)
	}
	v := a.view()
	if !slices.ContainsFunc(v.pools, func(p model.Pool) bool { return p.Allows(model.UseLoadBalancer) }) {
		a.satisfied(name)
		return 0, nil // another implementation may be in charge
	}
	if len(mine) == 0 && !asked && foreign(svc, v) {
		a.lacks(svc, []string{"the status shows what no IPPool of Causeway gave, so another implementation is in charge; set .spec.loadBalancerClass to choose one"})
		return 0, nil
	}
	return a.assign(ctx, svc, v, mine)
}

func (a *assigner) assign(ctx context.Context, svc *corev1.Service, v *view, mine []holding) (time.Duration, error) {
	p := decide(svc, v, addrs(mine))
	var again time.Duration
	for _, w := range p.wants {
		c, why := choose(w, v, a.ledger.all(), a.now())
		if why != nil {
			p.problems = append(p.problems, why.Error())
			if errors.Is(why, errNoFreeAddress) && v.cooldown() > 0 {
				again = v.cooldown() + time.Second // by then what rests now can be had
			}
			// What it has stays until what it wants can be had.
			for _, d := range p.drop {
				if family(d) == w.family && !slices.ContainsFunc(p.keep, func(k netip.Addr) bool { return family(k) == w.family }) {
					p.keep = append(p.keep, d)
				}
			}
			continue
		}
		if err := a.mark(ctx, svc, c); err != nil {
			return 0, err
		}
		p.keep = append(p.keep, c.addr)
	}
	if len(p.keep) == 0 && len(p.problems) == 0 {
		p.problems = append(p.problems, fmt.Sprintf("no IPPool with allowedUses [LoadBalancer] gives addresses of %v", svc.Spec.IPFamilies))
	}
	if err := a.show(ctx, svc, ingress(svc, p.keep)); err != nil {
		return 0, err
	}
	drop := slices.DeleteFunc(mine, func(h holding) bool { return slices.Contains(p.keep, h.addr) })
	if err := a.release(ctx, keyOf(svc), drop); err != nil {
		return 0, err
	}
	if len(p.problems) > 0 {
		a.lacks(svc, p.problems)
		return again, nil
	}
	a.satisfied(keyOf(svc).String())
	return 0, nil
}

// mark gives the chosen address to the Service in its block.
func (a *assigner) mark(ctx context.Context, svc *corev1.Service, c choice) error {
	attrs := map[string]string{
		attrService: svc.Name, ipam.AttrNamespace: svc.Namespace, ipam.AttrType: string(corev1.ServiceTypeLoadBalancer),
		ipam.AttrTimestamp: a.now().UTC().Format("2006-01-02 15:04:05.999999999 -0700 MST"),
	}
	var o *v3.IPAMBlock
	var err error
	if c.entry == nil {
		b := ipam.NewBlock(c.cidr, "", a.now())
		b.Affinity = loadBalancerAffinity
		take(b, b.Ordinal(c.addr), handleOf(svc), attrs)
		o, err = a.blocks.create(ctx, b)
	} else {
		b := c.entry.block.Clone()
		take(b, b.Ordinal(c.addr), handleOf(svc), attrs)
		o, err = a.blocks.update(ctx, c.entry.obj, b)
	}
	if err != nil {
		return err
	}
	a.ledger.written(o)
	a.log.Info("address given to a Service", "service", keyOf(svc).String(), "address", c.addr.String(), "block", c.cidr.String())
	return nil
}

// release frees addresses that a Service holds, if it still does.
func (a *assigner) release(ctx context.Context, key types.NamespacedName, in []holding) error {
	byBlock := map[string][]netip.Addr{}
	for _, h := range in {
		byBlock[h.block] = append(byBlock[h.block], h.addr)
	}
	for _, name := range slices.Sorted(maps.Keys(byBlock)) {
		e := a.ledger.get(name)
		if e == nil || e.block == nil {
			continue
		}
		b := e.block.Clone()
		for _, addr := range byBlock[name] {
			i := b.Ordinal(addr)
			if s := b.Slots[i]; strings.HasPrefix(s.Handle, handlePrefix) && s.Attrs[attrService] == key.Name && s.Attrs[ipam.AttrNamespace] == key.Namespace {
				free(b, i, a.now(), a.view().cooldown())
			}
		}
		o, err := a.blocks.update(ctx, e.obj, b)
		if apierrors.IsNotFound(err) {
			a.ledger.drop(e.obj)
			continue
		} else if err != nil {
			return err
		}
		a.ledger.written(o)
		a.log.Info("addresses of a Service freed", "service", key.String(), "addresses", byBlock[name], "block", e.cidr.String())
	}
	return nil
}

// show writes the addresses into the status, if it does not show them.
func (a *assigner) show(ctx context.Context, svc *corev1.Service, in []corev1.LoadBalancerIngress) error {
	if sameIngress(svc.Status.LoadBalancer.Ingress, in) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": svc.ResourceVersion, "uid": svc.UID},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": in}},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	_, err = a.core.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of Service %s: %w", keyOf(svc), err)
	}
	return nil
}

// lacks remembers that a Service lacks an address, and says so once.
func (a *assigner) lacks(svc *corev1.Service, problems []string) {
	text := strings.Join(problems, "; ")
	key := keyOf(svc).String()
	a.mu.Lock()
	said := a.lacking[key] == text
	a.lacking[key] = text
	a.mu.Unlock()
	if said {
		return
	}
	a.log.Warn("Service lacks an address", "service", key, "reason", text)
	a.event(corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID, ResourceVersion: svc.ResourceVersion},
		corev1.EventTypeWarning, "LoadBalancerAddress", "Assign", text)
}

func (a *assigner) satisfied(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.lacking, key)
}

// lackingCount returns how many Services lack an address.
func (a *assigner) lackingCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.lacking)
}
