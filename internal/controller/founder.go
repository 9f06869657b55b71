package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// decidedAnnotation stands on the ClusterInformation once it was decided which pools the
// cluster begins with: from then on pools are the operator's, and one that is deleted does
// not come back. It says what was decided.
const decidedAnnotation = "causeway-net.github.io/default-pools"

const clusterInformation = "default"

// tier is one of the tiers that every cluster has.
type tier struct {
	name   string
	order  float64
	action v3.TierAction
}

// tiers have the names, orders and actions of Calico's: Kubernetes' own policies live in
// the second, its ClusterNetworkPolicies of the tiers Admin and Baseline in the others.
var tiers = []tier{
	{"kube-admin", 1000, "Pass"},
	{"default", 1000000, "Deny"},
	{"kube-baseline", 10000000, "Pass"},
}

// founder gives a new cluster its tiers, its ClusterInformation and its default pools.
type founder struct {
	*reconcile.Loop
	cfg   Config
	log   *slog.Logger
	nodes cache.SharedIndexInformer
	event eventFunc

	tierClient kubeapi.Resource[*v3.Tier, *v3.TierList]
	infoClient kubeapi.Resource[*v3.ClusterInformation, *v3.ClusterInformationList]
	poolClient kubeapi.Resource[*v3.IPPool, *v3.IPPoolList]

	tiersDone bool
	said      string

	mu      sync.Mutex
	done    bool
	failure error
}

func newFounder(t *term) *founder {
	c := t.cfg.Clients.V3
	f := &founder{
		cfg: t.cfg, log: t.log, nodes: t.nodes, failure: errors.New("which pools the cluster begins with was not decided yet"),
		tierClient: kubeapi.NewResource[v3.Tier, v3.TierList](c, "tiers", ""),
		infoClient: kubeapi.NewResource[v3.ClusterInformation, v3.ClusterInformationList](c, "clusterinformations", ""),
		poolClient: kubeapi.NewResource[v3.IPPool, v3.IPPoolList](c, "ippools", ""),
	}
	// Nothing is read again but after a failure, or when pools or nodes change meanwhile.
	f.Loop = (&reconcile.Loop{Name: "default pools and tiers", Log: t.log, Apply: f.apply, Resync: 24 * time.Hour, MinBackoff: time.Second, MaxBackoff: time.Minute}).Init()
	return f
}

// problem says what keeps a new cluster from having its pools, or nil.
func (f *founder) problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failure
}

func (f *founder) apply(ctx context.Context, _ bool) error {
	f.mu.Lock()
	done := f.done
	f.mu.Unlock()
	if done {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	err := errors.Join(f.makeTiers(ctx), f.makePools(ctx))
	f.mu.Lock()
	f.failure, f.done = err, err == nil
	f.mu.Unlock()
	return err
}

func (f *founder) makeTiers(ctx context.Context) error {
	if f.tiersDone {
		return nil
	}
	var errs []error
	for _, t := range tiers {
		o := &v3.Tier{
			TypeMeta: metav1.TypeMeta{APIVersion: v3.SchemeGroupVersion.String(), Kind: v3.KindTier}, ObjectMeta: metav1.ObjectMeta{Name: t.name},
			Spec: v3.TierSpec{Order: &t.order, DefaultAction: &t.action},
		}
		_, err := f.tierClient.Create(ctx, o, metav1.CreateOptions{})
		switch {
		case err == nil:
			f.log.Info("tier created", "tier", t.name, "order", t.order)
		case !apierrors.IsAlreadyExists(err):
			errs = append(errs, fmt.Errorf("create Tier %s: %w", t.name, err))
		}
	}
	f.tiersDone = len(errs) == 0
	return errors.Join(errs...)
}

// makePools creates the default pools, once in the life of a cluster.
func (f *founder) makePools(ctx context.Context) error {
	info, err := f.information(ctx)
	if err != nil {
		return err
	}
	if info.Annotations[decidedAnnotation] != "" || f.cfg.Defaults.None {
		return nil
	}
	// Not what the watch told: its first answer may be older than this cluster's newest pool.
	list, err := f.poolClient.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list IPPools: %w", err)
	}
	var found []string
	for i := range list.Items {
		if servesPods(&list.Items[i]) {
			found = append(found, list.Items[i].Name)
		}
	}
	if len(found) > 0 {
		slices.Sort(found)
		return f.decided(ctx, info, "found: "+strings.Join(found, ", "))
	}
	e, err := f.evidence(ctx)
	if err != nil {
		return err
	}
	pools, err := f.cfg.Defaults.pools(e)
	if err != nil {
		err = fmt.Errorf("no default IPPool was created: %w", err)
		if err.Error() != f.said {
			f.said = err.Error()
			f.event(corev1.ObjectReference{APIVersion: v3.SchemeGroupVersion.String(), Kind: v3.KindClusterInformation, Name: info.Name, UID: info.UID},
				corev1.EventTypeWarning, "NoDefaultPool", "CreateIPPool", f.said)
		}
		return err
	}
	var names []string
	for _, p := range pools {
		_, err := f.poolClient.Create(ctx, p, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create IPPool %s: %w", p.Name, err)
		}
		if err == nil {
			f.log.Info("default pool created", "pool", p.Name, "cidr", p.Spec.CIDR)
		}
		names = append(names, p.Name)
	}
	return f.decided(ctx, info, "created: "+strings.Join(names, ", "))
}

// information reads the ClusterInformation, and creates it when there is none.
func (f *founder) information(ctx context.Context) (*v3.ClusterInformation, error) {
	info, err := f.infoClient.Get(ctx, clusterInformation, metav1.GetOptions{})
	if err == nil {
		return info, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read ClusterInformation %s: %w", clusterInformation, err)
	}
	ready := true
	info, err = f.infoClient.Create(ctx, &v3.ClusterInformation{
		TypeMeta:   metav1.TypeMeta{APIVersion: v3.SchemeGroupVersion.String(), Kind: v3.KindClusterInformation},
		ObjectMeta: metav1.ObjectMeta{Name: clusterInformation},
		Spec:       v3.ClusterInformationSpec{ClusterGUID: newGUID(), ClusterType: "k8s,bgp,kdd,causeway", DatastoreReady: &ready},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create ClusterInformation %s: %w", clusterInformation, err)
	}
	return info, nil
}

// newGUID makes 128 random bits, as Calico writes them.
func newGUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (f *founder) decided(ctx context.Context, info *v3.ClusterInformation, what string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": info.UID, "annotations": map[string]string{decidedAnnotation: what}}})
	if err != nil {
		return err
	}
	if _, err := f.infoClient.MergePatch(ctx, info.Name, patch); err != nil {
		return fmt.Errorf("write ClusterInformation %s: %w", info.Name, err)
	}
	f.log.Info("it was decided which pools the cluster begins with", "pools", what)
	return nil
}

// evidence reads what the cluster tells of its addresses.
func (f *founder) evidence(ctx context.Context) (evidence, error) {
	var e evidence
	core := f.cfg.Clients.Core
	var kubeadm struct {
		Networking struct {
			PodSubnet     string `json:"podSubnet"`
			ServiceSubnet string `json:"serviceSubnet"`
		} `json:"networking"`
	}
	var proxy struct {
		ClusterCIDR string `json:"clusterCIDR"`
	}
	for _, s := range []struct {
		name, key string
		into      any
	}{{"kubeadm-config", "ClusterConfiguration", &kubeadm}, {"kube-proxy", "config.conf", &proxy}} {
		cm, err := core.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, s.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return e, fmt.Errorf("read ConfigMap %s/%s: %w", metav1.NamespaceSystem, s.name, err)
		}
		if err := yaml.Unmarshal([]byte(cm.Data[s.key]), s.into); err != nil {
			return e, fmt.Errorf("ConfigMap %s/%s: .data[%q]: %w", metav1.NamespaceSystem, s.name, s.key, err)
		}
	}
	if s := kubeadm.Networking.PodSubnet; s != "" {
		e.pods = append(e.pods, finding{"podSubnet of ConfigMap kube-system/kubeadm-config", s})
	}
	if s := proxy.ClusterCIDR; s != "" {
		e.pods = append(e.pods, finding{"clusterCIDR of ConfigMap kube-system/kube-proxy", s})
	}
	list, err := core.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err): // Kubernetes before 1.33
		if e.services, err = prefixes(kubeadm.Networking.ServiceSubnet); err != nil {
			return e, fmt.Errorf("serviceSubnet of ConfigMap kube-system/kubeadm-config: %w", err)
		}
	case err != nil:
		return e, fmt.Errorf("list ServiceCIDRs: %w", err)
	default:
		for _, s := range list.Items {
			p, err := prefixes(strings.Join(s.Spec.CIDRs, ","))
			if err != nil {
				return e, fmt.Errorf("ServiceCIDR %s: .spec.cidrs: %w", s.Name, err)
			}
			e.services = append(e.services, p...)
		}
	}
	for _, n := range objects[*corev1.Node](f.nodes) {
		e.node(n)
	}
	slices.SortFunc(e.nodes, func(x, y address) int { return x.addr.Compare(y.addr) })
	slices.SortFunc(e.podCIDRs, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
	return e, nil
}

func (e *evidence) node(n *corev1.Node) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil { // host names are none
			e.nodes = append(e.nodes, address{ip.Unmap(), n.Name})
		}
	}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			e.podCIDRs = append(e.podCIDRs, p.Masked())
		}
	}
}
