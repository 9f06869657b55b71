package controller

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/ipam"
)

// Keys of the sweeper's queue: a node by name, or a block by its object's name.
const (
	nodeKey  = "node/"
	blockKey = "block/"
)

// claimedAgain is how long addresses that a pod of a gone node still claims are left alone
// before the pods are listed again.
const claimedAgain = 30 * time.Second

// sweeper takes back what nodes left behind, and deletes blocks that nobody owns and
// nobody uses.
type sweeper struct {
	*worker
	log      *slog.Logger
	core     kubernetes.Interface
	blocks   blockClient
	ledger   *ledger
	nodes    cache.Store
	grace    time.Duration
	cooldown func() time.Duration
	now      func() time.Time
	counts   *counters

	mu   sync.Mutex
	gone map[string]time.Time // nodes that blocks name and that do not exist, since when
}

func newSweeper(t *term) *sweeper {
	s := &sweeper{
		log: t.log, core: t.cfg.Clients.Core, blocks: t.blockClient, ledger: t.ledger, nodes: t.nodes.GetStore(),
		grace: t.cfg.NodeGrace, cooldown: t.cooldown, now: t.cfg.Now, counts: t.counts, gone: map[string]time.Time{},
	}
	s.worker = newWorker("departed nodes", t.log, s.reconcile)
	return s
}

// start asks for a look at everything; all watches have synced.
func (s *sweeper) start() {
	for _, n := range s.ledger.nodes() {
		s.add(nodeKey + n)
	}
	for _, e := range s.ledger.all() {
		s.blockChanged(nil, e)
	}
}

// nodeChanged takes note of a Node that came, went, or became Ready or not.
func (s *sweeper) nodeChanged(name string, exists bool) {
	s.mu.Lock()
	if _, known := s.gone[name]; exists {
		delete(s.gone, name)
	} else if !known {
		s.gone[name] = s.now()
	}
	s.mu.Unlock()
	s.add(nodeKey + name)
}

// blockChanged takes note of a change of a block.
func (s *sweeper) blockChanged(_, now *entry) {
	if now == nil || now.block == nil {
		return
	}
	for _, n := range now.nodes {
		if _, exists, _ := s.nodes.GetByKey(n); !exists { // the store of an informer never fails
			s.add(nodeKey + n)
		}
	}
	if forsaken(now.block) {
		s.add(blockKey + now.obj.Name)
	}
}

// forsaken reports whether a block is of no use: it is empty and no node owns it.
func forsaken(b *ipam.Block) bool {
	return (b.Affinity == "" || b.Affinity == loadBalancerAffinity) && used(b) == 0
}

func (s *sweeper) reconcile(ctx context.Context, key string) (time.Duration, error) {
	if name, ok := strings.CutPrefix(key, blockKey); ok {
		return s.reconcileBlock(ctx, name)
	}
	return s.reconcileNode(ctx, strings.TrimPrefix(key, nodeKey))
}

// reconcileBlock deletes a forsaken block when all of its addresses have rested.
func (s *sweeper) reconcileBlock(ctx context.Context, name string) (time.Duration, error) {
	e := s.ledger.get(name)
	if e == nil || e.block == nil || !forsaken(e.block) {
		return 0, nil
	}
	if wait := restsUntil(e.block, s.cooldown()).Sub(s.now()); wait > 0 && s.cooldown() > 0 {
		return wait, nil
	}
	return 0, s.remove(ctx, e)
}

func (s *sweeper) remove(ctx context.Context, e *entry) error {
	err := s.blocks.remove(ctx, e.obj)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	s.ledger.drop(e.obj)
	s.counts.blocksDeleted.Inc()
	s.log.Info("block deleted: no node owns it and none of its addresses is in use", "block", e.cidr.String())
	return nil
}

// presence reads what the watch knows of a node's name.
func (s *sweeper) presence(node string) presence {
	if obj, exists, _ := s.nodes.GetByKey(node); exists {
		n := obj.(*corev1.Node)
		p := presence{exists: true, created: n.CreationTimestamp.Time}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				p.readySince = c.LastTransitionTime.Time
			}
		}
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.gone[node]; !ok {
		s.gone[node] = s.now()
	}
	return presence{goneSince: s.gone[node]}
}

func (s *sweeper) reconcileNode(ctx context.Context, node string) (time.Duration, error) {
	p := s.presence(node)
	var dirty []*entry
	for _, e := range s.ledger.ofNode(node) {
		if e.block != nil && leftAny(e.block, node, p) {
			dirty = append(dirty, e)
		}
	}
	if len(dirty) == 0 {
		s.forget(node, p)
		return 0, nil
	}
	wait, known := p.due(s.now(), s.grace)
	if !known {
		return 0, nil // the watch tells when the node becomes Ready
	}
	if wait > 0 {
		return wait, nil
	}
	if still, err := s.confirm(ctx, node, p); err != nil || !still {
		return 0, err
	}
	c, err := s.claims(ctx, node)
	if err != nil {
		return 0, err
	}
	var again time.Duration
	for _, e := range dirty {
		held, err := s.sweepBlock(ctx, e, node, p, c)
		if err != nil {
			return 0, err
		}
		if held {
			again = min(claimedAgain, max(s.grace, time.Second))
		}
	}
	return again, nil
}

// forget keeps the memory of nodes that are gone small: once no block names one, nothing
// is to be remembered of it.
func (s *sweeper) forget(node string, p presence) {
	if p.exists || len(s.ledger.ofNode(node)) > 0 {
		return
	}
	s.mu.Lock()
	delete(s.gone, node)
	s.mu.Unlock()
}

// departed returns how many nodes are gone that blocks still name.
func (s *sweeper) departed() int {
	n := 0
	for _, node := range s.ledger.nodes() {
		if _, exists, _ := s.nodes.GetByKey(node); !exists {
			n++
		}
	}
	return n
}

// confirm asks the API server, not the watch, whether the Node is what p says.
func (s *sweeper) confirm(ctx context.Context, node string, p presence) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	n, err := s.core.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return !p.exists, nil
	case err != nil:
		return false, fmt.Errorf("read node %s: %w", node, err)
	}
	return p.exists && n.CreationTimestamp.Time.Equal(p.created), nil
}

// claims asks the API server what the pods of a node claim now.
func (s *sweeper) claims(ctx context.Context, node string) (claims, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	pods, err := s.core.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String()})
	if err != nil {
		return claims{}, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	return claimsOf(pods.Items), nil
}

// sweepBlock writes what sweep decides, and reports whether a pod claims something.
func (s *sweeper) sweepBlock(ctx context.Context, e *entry, node string, p presence, c claims) (held bool, err error) {
	w := sweep(e.block, node, p, c, s.now(), s.cooldown())
	if w.block == nil {
		return w.held > 0, nil
	}
	if w.block.Affinity == "" && used(w.block) == 0 && s.cooldown() == 0 {
		err = s.remove(ctx, e)
	} else {
		o, uerr := s.blocks.update(ctx, e.obj, w.block)
		if err = uerr; err == nil {
			s.ledger.written(o)
		}
	}
	if err != nil {
		return false, err
	}
	s.counts.addressesFreed.Add(float64(w.released))
	s.log.Info("addresses freed that a node left behind", "node", node, "nodeExists", p.exists, "block", e.cidr.String(),
		"freed", w.released, "claimedByPods", w.held, "nowOwnedBy", w.block.Affinity)
	return w.held > 0, nil
}
