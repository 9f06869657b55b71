package controller_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/controller"
)

func defaults(c *controller.Config) {
	c.Defaults = controller.Defaults{V4: controller.PoolOptions{NATOutgoing: true}}
}

func (c *cluster) kubeadm(podSubnet string) {
	c.Helper()
	_, err := c.Core.CoreV1().ConfigMaps("kube-system").Create(c.ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kubeadm-config"},
		Data:       map[string]string{"ClusterConfiguration": "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  podSubnet: " + podSubnet + "\n"},
	}, metav1.CreateOptions{})
	c.must(err)
}

// refuses waits until the replica says why it makes no pool, and checks that there is none.
func (c *cluster) refuses(r replica, words ...string) {
	c.Helper()
	c.until(func() error {
		err := r.Ready()
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				return fmt.Errorf("Ready says %v, want %q in it", err, w)
			}
		}
		note, eerr := c.event("default", "NoDefaultPool", "default")
		if eerr != nil || !strings.Contains(note, words[0]) {
			return errors.Join(eerr, fmt.Errorf("the event says %q, want %q in it", note, words[0]))
		}
		return nil
	})
	list, err := c.pools.List(c.ctx, metav1.ListOptions{})
	c.must(err)
	if len(list.Items) != 0 {
		c.Fatalf("pools were made: %v", list.Items)
	}
}

// TestFirstStart follows a new cluster from a controller that knows nothing to default
// pools and tiers, and checks that what is deleted then stays deleted.
func TestFirstStart(t *testing.T) {
	c := newCluster(t)
	c.node("a", "192.0.2.10")
	r := c.replica(defaults)
	c.refuses(r, "--ipv4-pool")
	for name, want := range map[string]string{"default": "1000000 Deny", "kube-admin": "1000 Pass", "kube-baseline": "10000000 Pass"} {
		tier, err := c.tiers.Get(c.ctx, name, metav1.GetOptions{})
		c.must(err)
		if got := fmt.Sprintf("%.0f %s", *tier.Spec.Order, *tier.Spec.DefaultAction); got != want {
			t.Errorf("tier %s: %s, want %s", name, got, want)
		}
	}

	c.kubeadm("10.244.0.0/16,fd00:10:244::/56")
	c.ready(r)
	p4, err := c.pools.Get(c.ctx, "default-ipv4-ippool", metav1.GetOptions{})
	c.must(err)
	if s := p4.Spec; s.CIDR != "10.244.0.0/16" || s.BlockSize != 26 || !s.NATOutgoing || s.IPIPMode != v3.EncapNever || s.VXLANMode != v3.EncapNever || s.NodeSelector != "all()" {
		t.Errorf("default IPv4 pool: %+v", s)
	}
	p6, err := c.pools.Get(c.ctx, "default-ipv6-ippool", metav1.GetOptions{})
	c.must(err)
	if s := p6.Spec; s.CIDR != "fd00:10:244::/56" || s.BlockSize != 122 || s.NATOutgoing {
		t.Errorf("default IPv6 pool: %+v", s)
	}
	info, err := c.info.Get(c.ctx, "default", metav1.GetOptions{})
	c.must(err)
	if len(info.Spec.ClusterGUID) != 32 || info.Spec.CalicoVersion != "" || info.Spec.DatastoreReady == nil || !*info.Spec.DatastoreReady {
		t.Errorf("ClusterInformation: %+v", info.Spec)
	}

	for _, name := range []string{"default-ipv4-ippool", "default-ipv6-ippool"} {
		c.must(c.pools.Delete(c.ctx, name, metav1.DeleteOptions{}))
	}
	gone := func() error {
		for _, name := range []string{"default-ipv4-ippool", "default-ipv6-ippool"} {
			if _, err := c.pools.Get(c.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("pool %s: %v, want that it is gone", name, err)
			}
		}
		return nil
	}
	c.until(gone)
	r.stop()
	r = c.replica(defaults)
	c.ready(r)
	c.stays(500*time.Millisecond, gone)
}

// TestFirstStartRefuses checks what else the pods' range must not be.
func TestFirstStartRefuses(t *testing.T) {
	for name, s := range map[string]struct {
		subnet, flag string
		words        []string
	}{
		"the Services' range":              {"10.96.0.0/12", "", []string{"10.96.0.0/16", "Services", "--ipv4-pool"}},
		"a node's address":                 {"192.0.2.0/24", "", []string{"192.0.2.10", "Node a"}},
		"the Services' range, by setting":  {"10.244.0.0/16", "10.96.128.0/20", []string{"--ipv4-pool is 10.96.128.0/20", "Services"}},
		"two ranges of one family":         {"10.244.0.0/16,10.245.0.0/16", "", []string{"10.244.0.0/16 and 10.245.0.0/16"}},
		"a range that holds no full block": {"10.244.0.0/28", "", []string{".spec.blockSize"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.node("a", "192.0.2.10")
			c.kubeadm(s.subnet)
			r := c.replica(defaults, func(cfg *controller.Config) { cfg.Defaults.V4.CIDR = s.flag })
			c.refuses(r, s.words...)
		})
	}
}

// TestFirstStartFindsPools checks that a cluster that has a pool for pods gets no other,
// and that one for load balancers alone does not count.
func TestFirstStartFindsPools(t *testing.T) {
	c := newCluster(t)
	c.kubeadm("10.244.0.0/16")
	c.pool("mine", "10.10.0.0/16")
	r := c.replica(defaults)
	c.ready(r)
	info, err := c.info.Get(c.ctx, "default", metav1.GetOptions{})
	c.must(err)
	if got := info.Annotations["causeway-net.github.io/default-pools"]; got != "found: mine" {
		t.Errorf("annotation: %q", got)
	}
	r.stop()

	c = newCluster(t)
	c.kubeadm("10.244.0.0/16")
	c.pool("lb", "10.10.0.0/16", loadBalancerPool)
	c.ready(c.replica(defaults))
	if _, err := c.pools.Get(c.ctx, "default-ipv4-ippool", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func loadBalancerPool(s *v3.IPPoolSpec) {
	s.AllowedUses = []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseLoadBalancer}
}
