package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
	"github.com/causeway-net/causeway/internal/task"
)

// clusterPolicies is how often ClusterNetworkPolicies are read. They are few, and their CRD, which is
// not ours, may not be there: nothing is watched.
const clusterPolicies = 30 * time.Second

// examiner says once for the whole cluster what is wrong with policies and tiers: by an event, and
// by a condition where the kind has any. Every agent finds the same; none of them may write
// to these objects or speak of them.
type examiner struct {
	*worker
	cfg       Config
	event     eventFunc
	informers map[string]cache.SharedIndexInformer // by kind
	poll      *reconcile.Loop

	mu      sync.Mutex // guards what follows
	found   map[string][]model.Problem
	cluster map[string]*examined // ClusterNetworkPolicies as they were read last, by key
	said    map[string]said
}

// said is what the last event about an object was.
type said struct {
	uid            types.UID
	wrong, ignored string
	at             time.Time
}

func newExaminer(t *term) (*examiner, error) {
	e := &examiner{
		cfg: t.cfg, informers: map[string]cache.SharedIndexInformer{},
		found: map[string][]model.Problem{}, cluster: map[string]*examined{}, said: map[string]said{},
	}
	e.worker = newWorker("policies", t.log, e.reconcile)
	e.poll = (&reconcile.Loop{Name: "cluster network policies", Log: t.log, Apply: e.readCluster, Resync: clusterPolicies, MinBackoff: time.Second, MaxBackoff: time.Minute}).Init()
	c := t.cfg.Clients
	e.informers[string(model.PolicyKubernetes)] = inform(&networkingv1.NetworkPolicy{}, examine, kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.Core.NetworkingV1().NetworkPolicies(metav1.NamespaceAll).List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Core.NetworkingV1().NetworkPolicies(metav1.NamespaceAll).Watch(ctx, o)
		}))
	e.informers[v3.KindTier] = inform(&v3.Tier{}, examine, kubeapi.NewResource[v3.Tier, v3.TierList](c.V3, "tiers", "").Source(nil))
	e.informers[string(model.PolicyNamespaced)] = inform(&v3.NetworkPolicy{}, examine, kubeapi.NewResource[v3.NetworkPolicy, v3.NetworkPolicyList](c.V3, "networkpolicies", "").Source(nil))
	e.informers[string(model.PolicyGlobal)] = inform(&v3.GlobalNetworkPolicy{}, examine, kubeapi.NewResource[v3.GlobalNetworkPolicy, v3.GlobalNetworkPolicyList](c.V3, "globalnetworkpolicies", "").Source(nil))
	e.informers[string(model.PolicyStagedNamespaced)] = inform(&v3.StagedNetworkPolicy{}, examine,
		kubeapi.NewResource[v3.StagedNetworkPolicy, v3.StagedNetworkPolicyList](c.V3, "stagednetworkpolicies", "").Source(nil))
	e.informers[string(model.PolicyStagedGlobal)] = inform(&v3.StagedGlobalNetworkPolicy{}, examine,
		kubeapi.NewResource[v3.StagedGlobalNetworkPolicy, v3.StagedGlobalNetworkPolicyList](c.V3, "stagedglobalnetworkpolicies", "").Source(nil))
	e.informers[string(model.PolicyStagedKubernetes)] = inform(&v3.StagedKubernetesNetworkPolicy{}, examine,
		kubeapi.NewResource[v3.StagedKubernetesNetworkPolicy, v3.StagedKubernetesNetworkPolicyList](c.V3, "stagedkubernetesnetworkpolicies", "").Source(nil))
	for _, i := range e.informers {
		if err := on(i, e.changed); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Run examines until ctx is cancelled. It begins when everything was read; nothing else waits for
// that.
func (e *examiner) Run(ctx context.Context) error {
	tasks := []task.Task{task.Func("examine", func(ctx context.Context) error {
		for _, i := range e.informers {
			if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
				return nil
			}
		}
		return task.Run(ctx, e.log, e.worker, e.poll)
	})}
	for kind, i := range e.informers {
		tasks = append(tasks, task.Func("watch "+kind, func(ctx context.Context) error { i.RunWithContext(ctx); return nil }))
	}
	return task.Run(ctx, e.log, tasks...)
}

// changed hears of an object that came, changed or went.
func (e *examiner) changed(old, now *examined) {
	o := now
	if o == nil {
		o = old
	}
	e.add(o.key.String())
	if o.kind != v3.KindTier {
		return
	}
	for _, i := range e.informers { // those in the tier may be in force now, or no more
		for _, p := range objects[*examined](i) {
			if p.tier == o.Name {
				e.add(p.key.String())
			}
		}
	}
}

// readCluster reads the ClusterNetworkPolicies.
func (e *examiner) readCluster(ctx context.Context, _ bool) error {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	now := map[string]*examined{}
	raw, err := e.cfg.Clients.V3.Get().AbsPath(clusterPolicyPath).Param("resourceVersion", "0").DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err): // there is no such kind
	case err != nil:
		return fmt.Errorf("read ClusterNetworkPolicies: %w", err)
	default:
		var list cnpv1alpha2.ClusterNetworkPolicyList
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("read ClusterNetworkPolicies: %w", err)
		}
		for i := range list.Items {
			o := examination(&list.Items[i])
			now[o.key.String()] = o
		}
	}
	e.mu.Lock()
	old := e.cluster
	e.cluster = now
	e.mu.Unlock()
	for key, o := range now {
		if was := old[key]; was == nil || was.ResourceVersion != o.ResourceVersion {
			e.add(key)
		}
	}
	for key := range old {
		if now[key] == nil {
			e.add(key)
		}
	}
	return nil
}

// object finds the newest version of an object, or nil.
func (e *examiner) object(key string) *examined {
	e.mu.Lock()
	o := e.cluster[key]
	e.mu.Unlock()
	if o != nil {
		return o
	}
	kind, name, _ := strings.Cut(key, " ") // model.Object.String
	i := e.informers[kind]
	if i == nil {
		return nil
	}
	got, exists, err := i.GetStore().GetByKey(name)
	if err != nil || !exists {
		return nil
	}
	return got.(*examined)
}

// tier reports whether a tier is there and valid.
func (e *examiner) tier(name string) bool {
	if slices.Contains(builtin, name) {
		return true
	}
	o := e.object(model.Object{Kind: v3.KindTier, Name: name}.String())
	return o != nil && !slices.ContainsFunc(o.problems, disables)
}

func (e *examiner) reconcile(ctx context.Context, key string) (again time.Duration, err error) {
	o := e.object(key)
	if o == nil {
		e.mu.Lock()
		delete(e.found, key)
		delete(e.said, key)
		e.mu.Unlock()
		return 0, nil
	}
	problems := standingOf(o, e.tier)
	wrong, ignored := texts(problems, true), texts(problems, false)
	now := e.cfg.Now()
	e.mu.Lock()
	last := e.said[key]
	changed := last.uid != o.UID || last.wrong != wrong || last.ignored != ignored
	due := changed || wrong != "" && now.Sub(last.at) >= remindOfProblems
	if due {
		e.said[key] = said{o.UID, wrong, ignored, now}
	}
	if len(problems) == 0 {
		delete(e.found, key)
		delete(e.said, key)
	} else {
		e.found[key] = problems
	}
	e.mu.Unlock()
	about := corev1.ObjectReference{APIVersion: o.apiVersion, Kind: o.kind, Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}
	action := fmt.Sprintf("Examine generation %d", o.Generation) // events of one action are one
	if due && wrong != "" {
		e.event(about, corev1.EventTypeWarning, eventNotInForce, action, wrong+". "+lastValidStays)
	}
	if changed && ignored != "" {
		e.event(about, corev1.EventTypeWarning, eventNotActedOn, action, "In force, but: "+ignored)
	}
	if err := e.condition(ctx, o, problems); err != nil {
		return 0, err
	}
	if wrong != "" {
		return remindOfProblems, nil
	}
	return 0, nil
}

// condition writes the condition of a kind that has any.
func (e *examiner) condition(ctx context.Context, o *examined, problems []model.Problem) error {
	path := clusterPolicyPath
	switch o.key.Kind {
	case v3.KindTier:
		path = "/apis/" + v3.SchemeGroupVersion.String() + "/tiers"
	case string(model.PolicyCluster):
	default:
		return nil
	}
	conditions, urgent, _ := merge(o.conditions, []metav1.Condition{readiness(problems, o.Generation)}, e.cfg.Now())
	if !urgent {
		return nil
	}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.ResourceVersion, "uid": o.UID}, "status": map[string]any{"conditions": conditions},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	err = e.cfg.Clients.V3.Patch(types.MergePatchType).AbsPath(path, o.Name, "status").Body(data).Do(ctx).Error()
	switch {
	case apierrors.IsConflict(err) && o.key.Kind == string(model.PolicyCluster):
		return nil // the next reading brings the version that it is now
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("write condition of %s: %w", o.key, err)
	}
	return nil
}

// troubles counts objects with problems, by kind.
func (e *examiner) troubles() map[string]trouble {
	e.mu.Lock()
	defer e.mu.Unlock()
	return troubles(e.found)
}
