// Package node owns what the agent writes about its own Node object: the annotations that
// Calico names, of its addresses and its ends of tunnels, the condition NetworkUnavailable,
// and Kubernetes events on the Node and on its pods. It reads one object, the Node, and writes only what changed.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/status"
)

// FieldManager names the agent in the managedFields of what it writes.
const FieldManager = "causeway-agent"

// Config is what New needs.
type Config struct {
	Clients *kubeapi.Clients // required
	Node    string           // required: name of the Node object
	Log     *slog.Logger     // required
	// Ready says why this node cannot carry pods' traffic, or nil. Required. It is called
	// about once in Every and must be quick.
	Ready func() error
	// Policy says what keeps policy from being enforced as it should be, or nil. Optional;
	// called as Ready is.
	Policy func() error
	// Subnet returns an address of this node with the length of its subnet, the zero
	// Prefix while that is not known yet, or an error when no link has it. Required.
	Subnet func(netip.Addr) (netip.Prefix, error)
	// IPv4 and IPv6 say where the address of each family comes from: from the Node's
	// InternalIPs (the zero value), or from SetAddresses, or that there is none.
	IPv4, IPv6 nodeaddr.Method
	// Restarted says that an agent ran here since the node booted: what the condition
	// says stays until Grace has passed. Otherwise the node is down until Ready says not.
	Restarted bool
	Grace     time.Duration // how long a node may be down before the condition says so; default 60 s
	Every     time.Duration // default 1 s
}

// Reporter keeps the Node object up to date.
type Reporter struct {
	cfg    Config
	log    *slog.Logger
	events *recorder
	health health
	wake   chan struct{} // buffered: there is something to look at

	grievance grievance // Run's

	mu     sync.Mutex   // guards what follows
	node   *corev1.Node // as last seen; nil before the first time, and while it is gone
	status status.Network
	found  [2]netip.Prefix                 // of IPv4 and IPv6, as SetAddresses was told
	ends   *[model.Tunnels]model.TunnelEnd // nil until SetTunnels
}

// New makes a Reporter; nothing is sent yet.
func New(cfg Config) (*Reporter, error) {
	switch {
	case cfg.Clients == nil:
		return nil, errors.New("node: Config.Clients is nil")
	case cfg.Node == "":
		return nil, errors.New("node: Config.Node is empty: want the name of the Node object")
	case cfg.Log == nil:
		return nil, errors.New("node: Config.Log is nil")
	case cfg.Ready == nil || cfg.Subnet == nil:
		return nil, errors.New("node: Config.Ready and Config.Subnet are required")
	}
	if cfg.Grace == 0 {
		cfg.Grace = time.Minute
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	return &Reporter{
		cfg: cfg, log: cfg.Log.With("task", "node"), events: newRecorder(cfg.Clients.Core, cfg.Log), wake: make(chan struct{}, 1),
		health: health{grace: cfg.Grace, restarted: cfg.Restarted},
	}, nil
}

func (r *Reporter) String() string { return "node" }

// Status is what the Reporter did and could not do.
func (r *Reporter) Status() status.Network {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.status
	st.EventsDropped = r.events.dropped()
	return st
}

// Run watches the Node and writes to it until ctx is cancelled. An API server that is away
// ends nothing.
func (r *Reporter) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.Discard()) // what fails is said here, and by the datastore's watch
	if err := r.events.start(ctx); err != nil {
		return fmt.Errorf("node: events: %w", err)
	}
	seen := func(n *corev1.Node) {
		r.take(n)
		r.poke()
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: r.source(), ObjectType: &corev1.Node{}, Transform: slim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { seen(o.(*corev1.Node)) },
			UpdateFunc: func(_, o any) { seen(o.(*corev1.Node)) },
			DeleteFunc: func(any) { seen(nil) },
		},
	})
	var watching sync.WaitGroup
	watching.Go(func() { informer.RunWithContext(ctx) })
	defer watching.Wait()

	tick := time.NewTicker(r.cfg.Every)
	defer tick.Stop()
	var (
		backoff time.Duration
		retryAt time.Time
		failing string
	)
	for {
		r.complain(time.Now())
		if now := time.Now(); !now.Before(retryAt) {
			err := r.step(ctx, now)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				if failing != "" {
					r.log.Info("the Node can be written again")
				}
				backoff, failing = 0, ""
			default:
				backoff = min(max(2*backoff, time.Second), 30*time.Second)
				retryAt = now.Add(backoff)
				if failing != err.Error() {
					failing = err.Error()
					r.log.Error("the Node was not written", "retry", backoff, "error", err)
				}
			}
			r.mu.Lock()
			r.status.Error = failing
			r.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-tick.C:
		}
	}
}

// poke asks for a look at the Node soon.
func (r *Reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// source lists and watches the one Node.
func (r *Reporter) source() *kubeapi.ListWatch {
	nodes := r.cfg.Clients.Core.CoreV1().Nodes()
	one := fields.OneTermEqualSelector(metav1.ObjectNameField, r.cfg.Node).String()
	return kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			return nodes.List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			o.FieldSelector = one
			return nodes.Watch(ctx, o)
		})
}

// slim keeps what this package reads of a Node.
func slim(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: n.Annotations},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions},
	}, nil
}

// step compares the Node with what it should say, and writes the difference.
func (r *Reporter) step(ctx context.Context, now time.Time) error {
	why := r.cfg.Ready()
	r.mu.Lock()
	n := r.node
	r.status.Unavailable = ""
	if why != nil {
		r.status.Unavailable = why.Error()
	}
	r.mu.Unlock()
	if n == nil {
		return nil // not registered yet, or the API server is away: the watch will tell
	}
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	return errors.Join(r.writeAnnotations(ctx, n), r.writeCondition(ctx, n, why, now))
}

func (r *Reporter) writeCondition(ctx context.Context, n *corev1.Node, why error, now time.Time) error {
	have := condition(n)
	want, contested := r.health.decide(now, why, have)
	r.mu.Lock()
	r.status.Condition = "Unknown"
	if have != nil {
		r.status.Condition = string(have.Status)
	}
	r.mu.Unlock()
	if want == nil {
		return nil
	}
	if contested {
		r.log.Warn("somebody else set NetworkUnavailable; setting it again", "status", have.Status, "reason", have.Reason, "message", have.Message)
	}
	c := map[string]any{
		"type": corev1.NodeNetworkUnavailable, "status": want.status, "reason": want.reason, "message": want.message,
		"lastHeartbeatTime": metav1.NewTime(now),
	}
	if have == nil || have.Status != want.status {
		c["lastTransitionTime"] = metav1.NewTime(now)
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{c}}})
	if err != nil {
		return err
	}
	written, err := r.cfg.Clients.Core.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}, "status")
	if err != nil {
		return fmt.Errorf("Node %s: condition %s: %w", n.Name, corev1.NodeNetworkUnavailable, err)
	}
	r.health.wrote(now, contested)
	r.take(written)
	if have == nil || have.Status != want.status {
		r.log.Info("condition NetworkUnavailable", "status", want.status, "reason", want.reason, "message", want.message)
		kind := corev1.EventTypeNormal
		if want.status == corev1.ConditionTrue {
			kind = corev1.EventTypeWarning
		}
		r.NodeEvent(kind, want.reason, want.message)
	}
	return nil
}

// take notes a version of the Node, from the watch or as the answer to a write, unless it is
// older than what is known: the watch comes behind our own writes, and what it shows then must
// not be written again. Nil means that the Node is gone.
func (r *Reporter) take(n *corev1.Node) {
	if n != nil {
		o, _ := slim(n)
		n = o.(*corev1.Node)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n != nil && r.node != nil && n.UID == r.node.UID {
		if c, err := resourceversion.CompareResourceVersion(n.ResourceVersion, r.node.ResourceVersion); err == nil && c < 0 {
			return
		}
	}
	r.node = n
}
