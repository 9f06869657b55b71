package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/task"
)

// eventFunc records an event about an object.
type eventFunc func(about corev1.ObjectReference, kind, reason, action, note string)

// term is one time of leadership: its watches and its loops. Nothing of it outlives the
// Lease, so that the next leader begins with what the API server says.
type term struct {
	cfg    Config
	log    *slog.Logger
	counts *counters
	event  eventFunc

	blockClient blockClient
	ledger      *ledger

	nodes, blocks, pools, services cache.SharedIndexInformer
	configs, reservations, kcc     cache.SharedIndexInformer

	sweeper  *sweeper
	reporter *poolReporter
	assigner *assigner
	founder  *founder
	keymaker *keymaker
	examiner *examiner

	mu     sync.Mutex
	v      *view
	synced bool
}

func newTerm(cfg Config, counts *counters) (*term, error) {
	t := &term{cfg: cfg, log: cfg.Log, counts: counts, blockClient: newBlockClient(cfg.Clients), v: newView(nil, nil, nil)}
	c := cfg.Clients
	t.nodes = inform(&corev1.Node{}, trimNode, kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.Core.CoreV1().Nodes().List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Core.CoreV1().Nodes().Watch(ctx, o)
		}))
	t.services = inform(&corev1.Service{}, trimService, kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.Core.CoreV1().Services(metav1.NamespaceAll).List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Core.CoreV1().Services(metav1.NamespaceAll).Watch(ctx, o)
		}))
	t.blocks = inform(&v3.IPAMBlock{}, trim, t.blockClient.res.Source(nil))
	t.pools = inform(&v3.IPPool{}, trim, kubeapi.NewResource[v3.IPPool, v3.IPPoolList](c.V3, "ippools", "").Source(nil))
	t.configs = inform(&v3.IPAMConfiguration{}, trim, kubeapi.NewResource[v3.IPAMConfiguration, v3.IPAMConfigurationList](c.V3, "ipamconfigurations", "").Source(nil))
	t.reservations = inform(&v3.IPReservation{}, trim, kubeapi.NewResource[v3.IPReservation, v3.IPReservationList](c.V3, "ipreservations", "").Source(nil))
	t.kcc = inform(&v3.KubeControllersConfiguration{}, trim,
		kubeapi.NewResource[v3.KubeControllersConfiguration, v3.KubeControllersConfigurationList](c.V3, "kubecontrollersconfigurations", "").Source(nil))
	t.ledger = newLedger(t.log, cfg.Now, func(old, now *entry) {
		t.sweeper.blockChanged(old, now)
		t.reporter.blockChanged(old, now)
		t.assigner.blockChanged(old, now)
	})
	t.sweeper, t.reporter, t.assigner, t.founder, t.keymaker = newSweeper(t), newPoolReporter(t), nil, newFounder(t), newKeymaker(t)
	var err error
	if t.examiner, err = newExaminer(t); err != nil {
		return nil, err
	}
	return t, t.handle()
}

func inform(example runtime.Object, transform cache.TransformFunc, source *kubeapi.ListWatch) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformerWithOptions(source, example, cache.SharedIndexInformerOptions{})
	if err := i.SetTransform(transform); err != nil {
		panic(err) // it was not started yet
	}
	return i
}

// trim takes away what nobody reads.
func trim(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// trimNode keeps who a node is, where it is and whether it is Ready.
func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	out := &corev1.Node{}
	out.Name, out.UID, out.ResourceVersion, out.CreationTimestamp = n.Name, n.UID, n.ResourceVersion, n.CreationTimestamp
	out.Spec.PodCIDRs = n.Spec.PodCIDRs
	out.Status.Addresses = n.Status.Addresses
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime})
		}
	}
	return out, nil
}

// trimService keeps what says which addresses a Service is to have; of one of another type
// only that it is there.
func trimService(obj any) (any, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	out := &corev1.Service{}
	out.Name, out.Namespace, out.UID, out.ResourceVersion = s.Name, s.Namespace, s.UID, s.ResourceVersion
	out.Spec.Type = s.Spec.Type
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return out, nil
	}
	out.DeletionTimestamp = s.DeletionTimestamp
	out.Annotations = maps.Clone(s.Annotations)
	maps.DeleteFunc(out.Annotations, func(k, _ string) bool { return !slices.Contains(serviceAnnotations, k) })
	out.Spec.LoadBalancerClass, out.Spec.IPFamilies, out.Spec.IPFamilyPolicy = s.Spec.LoadBalancerClass, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy
	out.Status.LoadBalancer = s.Status.LoadBalancer
	return out, nil
}

// on calls f with what an object was and is, of whatever the watch tells of it.
func on[T metav1.Object](i cache.SharedIndexInformer, f func(old, now T)) error {
	var none T
	_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { f(none, o.(T)) },
		UpdateFunc: func(a, b any) { f(a.(T), b.(T)) },
		DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			f(o.(T), none)
		},
	})
	return err
}

// handle connects the watches with the loops.
func (t *term) handle() error {
	t.assigner = newAssigner(t)
	changed := func() { t.refresh(); t.assigner.everything() }
	return errors.Join(
		on(t.nodes, func(old, now *corev1.Node) {
			switch {
			case now == nil:
				t.sweeper.nodeChanged(old.Name, false)
			case old == nil || old.UID != now.UID || !slices.Equal(old.Status.Conditions, now.Status.Conditions):
				t.sweeper.nodeChanged(now.Name, true)
			}
		}),
		on(t.blocks, func(old, now *v3.IPAMBlock) {
			if now == nil {
				t.ledger.drop(old)
				return
			}
			t.ledger.put(now)
		}),
		on(t.pools, func(old, now *v3.IPPool) {
			if now == nil {
				t.reporter.poolGone(old.Name)
			} else {
				t.reporter.poolChanged(now)
			}
			if old == nil || now == nil || old.Generation != now.Generation || old.DeletionTimestamp.IsZero() != now.DeletionTimestamp.IsZero() || old.UID != now.UID {
				changed()
			}
			t.founder.Poke()
		}),
		on(t.configs, func(_, _ *v3.IPAMConfiguration) { changed() }),
		on(t.reservations, func(_, _ *v3.IPReservation) { changed() }),
		on(t.kcc, func(_, _ *v3.KubeControllersConfiguration) { t.assigner.everything() }),
		on(t.services, func(old, now *corev1.Service) { t.assigner.serviceChanged(old, now) }),
	)
}

// refresh makes the view anew.
func (t *term) refresh() {
	t.mu.Lock()
	if !t.synced {
		t.mu.Unlock()
		return
	}
	pools := objects[*v3.IPPool](t.pools)
	old := t.v
	t.v = newView(pools, objects[*v3.IPAMConfiguration](t.configs), objects[*v3.IPReservation](t.reservations))
	now := t.v
	t.mu.Unlock()
	for _, name := range now.differs(old) {
		t.reporter.add(name)
	}
}

func objects[T any](i cache.SharedIndexInformer) []T {
	list := i.GetStore().List()
	out := make([]T, 0, len(list))
	for _, o := range list {
		out = append(out, o.(T))
	}
	return out
}

func (t *term) view() *view {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.v
}

func (t *term) cooldown() time.Duration { return t.view().cooldown() }

// mode is which Services get addresses without asking for them.
func (t *term) mode() string {
	for _, c := range objects[*v3.KubeControllersConfiguration](t.kcc) {
		if lb := c.Spec.Controllers.LoadBalancer; c.Name == "default" && lb != nil && lb.AssignIPs != "" {
			return string(lb.AssignIPs)
		}
	}
	return assignAll
}

// informers returns the watches and their names.
func (t *term) informers() map[string]cache.SharedIndexInformer {
	return map[string]cache.SharedIndexInformer{
		"nodes": t.nodes, "services": t.services, "ipamblocks": t.blocks, "ippools": t.pools,
		"ipamconfigurations": t.configs, "ipreservations": t.reservations, "kubecontrollersconfigurations": t.kcc,
	}
}

// ready says what the leader waits for, or nil.
func (t *term) ready() error {
	var waiting []string
	for name, i := range t.informers() {
		if !i.HasSynced() {
			waiting = append(waiting, name)
		}
	}
	if len(waiting) > 0 {
		slices.Sort(waiting)
		return fmt.Errorf("these were not read yet: %v", waiting)
	}
	return t.founder.problem()
}

// run works until ctx is cancelled.
func (t *term) run(ctx context.Context) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: t.cfg.Clients.Core.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record events: %w", err)
	}
	recorder := broadcaster.NewRecorder(kubeapi.Scheme, Name)
	t.event = func(about corev1.ObjectReference, kind, reason, action, note string) {
		if len(note) > 1024 { // the API server's limit
			note = note[:1021] + "..."
		}
		recorder.Eventf(&about, nil, kind, reason, action, "%s", note)
	}
	t.assigner.event, t.founder.event, t.keymaker.event, t.examiner.event = t.event, t.event, t.event, t.event

	var tasks []task.Task
	for name, i := range t.informers() {
		tasks = append(tasks, task.Func("watch "+name, func(ctx context.Context) error { i.RunWithContext(ctx); return nil }))
	}
	tasks = append(tasks, task.Func("loops", t.loops), t.examiner)
	return task.Run(ctx, t.log, tasks...)
}

// loops begins to work when everything was read: no loop ever takes what was not read yet
// for something that does not exist.
func (t *term) loops(ctx context.Context) error {
	for _, i := range t.informers() {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return nil
		}
	}
	t.mu.Lock()
	t.synced = true
	t.mu.Unlock()
	// The handlers may be a little behind the watches; what they tell later comes as changes.
	for _, b := range objects[*v3.IPAMBlock](t.blocks) {
		t.ledger.put(b)
	}
	for _, p := range objects[*v3.IPPool](t.pools) {
		t.reporter.poolChanged(p)
	}
	t.refresh()
	t.sweeper.start()
	t.assigner.start()
	t.log.Info("everything was read; the loops begin")
	return task.Run(ctx, t.log, t.sweeper, t.reporter, t.assigner, t.founder, t.keymaker)
}
