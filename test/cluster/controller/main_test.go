// Package controller_test runs the cluster-wide controller against a real API server, with
// the rights that its documentation lists and no others.
package controller_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/controller"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var server *apiserver.Server

func TestMain(m *testing.M) { apiserver.MainServer(m, func(s *apiserver.Server) { server = s }) }

const (
	user     = "causeway-controller-under-test"
	patience = 30 * time.Second
	grace    = time.Second
)

// cluster is one test's view of the API server: emptied before it, with clients of the
// administrator's.
type cluster struct {
	*testing.T
	*kubeapi.Clients
	ctx       context.Context
	namespace string

	pools  kubeapi.Resource[*v3.IPPool, *v3.IPPoolList]
	blocks kubeapi.Resource[*v3.IPAMBlock, *v3.IPAMBlockList]
	tiers  kubeapi.Resource[*v3.Tier, *v3.TierList]
	info   kubeapi.Resource[*v3.ClusterInformation, *v3.ClusterInformationList]
	ipam   kubeapi.Resource[*v3.IPAMConfiguration, *v3.IPAMConfigurationList]
	reserv kubeapi.Resource[*v3.IPReservation, *v3.IPReservationList]
	kcc    kubeapi.Resource[*v3.KubeControllersConfiguration, *v3.KubeControllersConfigurationList]
}

var (
	namespaces atomic.Int32
	prepared   bool
)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{T: t, ctx: context.Background(), namespace: fmt.Sprintf("controller-%d", namespaces.Add(1))}
	clients, err := kubeapi.New(server.Config)
	c.must(err)
	c.Clients = clients
	c.pools = kubeapi.NewResource[v3.IPPool, v3.IPPoolList](c.V3, "ippools", "")
	c.blocks = kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](c.V3, "ipamblocks", "")
	c.tiers = kubeapi.NewResource[v3.Tier, v3.TierList](c.V3, "tiers", "")
	c.info = kubeapi.NewResource[v3.ClusterInformation, v3.ClusterInformationList](c.V3, "clusterinformations", "")
	c.ipam = kubeapi.NewResource[v3.IPAMConfiguration, v3.IPAMConfigurationList](c.V3, "ipamconfigurations", "")
	c.reserv = kubeapi.NewResource[v3.IPReservation, v3.IPReservationList](c.V3, "ipreservations", "")
	c.kcc = kubeapi.NewResource[v3.KubeControllersConfiguration, v3.KubeControllersConfigurationList](c.V3, "kubecontrollersconfigurations", "")
	if !prepared {
		c.must(apiserver.Apply(c.ctx, server.Config, "../../../deploy/crds"))
		prepared = true
	}
	c.clear()
	_, err = c.Core.CoreV1().Namespaces().Create(c.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}}, metav1.CreateOptions{})
	c.must(err)
	c.grant()
	return c
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// clear removes what an earlier test left.
func (c *cluster) clear() {
	c.Helper()
	all := metav1.ListOptions{}
	pools, err := c.pools.List(c.ctx, all)
	c.must(err)
	for _, p := range pools.Items {
		_, err := c.pools.MergePatch(c.ctx, p.Name, []byte(`{"metadata":{"finalizers":null}}`))
		c.must(err)
		if err := c.pools.Delete(c.ctx, p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			c.Fatal(err)
		}
	}
	blocks, err := c.blocks.List(c.ctx, all)
	c.must(err)
	for _, b := range blocks.Items {
		c.must(c.blocks.Delete(c.ctx, b.Name, metav1.DeleteOptions{}))
	}
	services, err := c.Core.CoreV1().Services(metav1.NamespaceAll).List(c.ctx, all)
	c.must(err)
	for _, s := range services.Items {
		c.must(c.Core.CoreV1().Services(s.Namespace).Delete(c.ctx, s.Name, metav1.DeleteOptions{}))
	}
	now := int64(0)
	pods, err := c.Core.CoreV1().Pods(metav1.NamespaceAll).List(c.ctx, all)
	c.must(err)
	for _, p := range pods.Items {
		c.must(c.Core.CoreV1().Pods(p.Namespace).Delete(c.ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
	}
	c.must(c.Core.CoreV1().Nodes().DeleteCollection(c.ctx, metav1.DeleteOptions{}, all))
	c.must(c.Core.EventsV1().Events("default").DeleteCollection(c.ctx, metav1.DeleteOptions{}, all))
	for _, name := range []string{"kubeadm-config", "kube-proxy"} {
		if err := c.Core.CoreV1().ConfigMaps("kube-system").Delete(c.ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			c.Fatal(err)
		}
	}
	for _, r := range []string{"tiers", "clusterinformations", "ipamconfigurations", "ipreservations", "kubecontrollersconfigurations"} {
		c.must(c.V3.Delete().Resource(r).Do(c.ctx).Error())
	}
}

var right = regexp.MustCompile(`^//\t\s+(\S+)\s{2,}(\S+)((?: [a-z-]+,?)*)\s{2,}([a-z]+(?:, [a-z]+)*)$`)

// grant gives the controller's user the rights that the package's documentation lists.
func (c *cluster) grant() {
	c.Helper()
	f, err := os.Open("../../../internal/controller/doc.go")
	c.must(err)
	defer f.Close()
	var place string
	rules := map[string][]rbacv1.PolicyRule{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "//\tin ") {
			place = strings.TrimPrefix(line, "//\tin ")
			continue
		}
		m := right.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		group := m[1]
		if group == "core" {
			group = ""
		}
		rules[place] = append(rules[place], rbacv1.PolicyRule{
			APIGroups: []string{group}, Resources: []string{m[2]}, Verbs: strings.Split(m[4], ", "),
			ResourceNames: strings.FieldsFunc(m[3], func(r rune) bool { return r == ' ' || r == ',' }),
		})
	}
	if len(rules) != 3 || len(rules["the cluster (ClusterRole):"]) < 12 {
		c.Fatalf("internal/controller/doc.go: read %d places and these rules: %v", len(rules), rules)
	}
	rbac := c.Core.RbacV1()
	subject := []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: user}}
	name := metav1.ObjectMeta{Name: user}
	for place, list := range rules {
		if strings.Contains(place, "ClusterRole") {
			role := &rbacv1.ClusterRole{ObjectMeta: name, Rules: list}
			if _, err := rbac.ClusterRoles().Create(c.ctx, role, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
				continue
			} else {
				c.must(err)
			}
			_, err := rbac.ClusterRoleBindings().Create(c.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: name, Subjects: subject,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user}}, metav1.CreateOptions{})
			c.must(err)
			continue
		}
		namespace := c.namespace
		if strings.HasPrefix(place, "kube-system") {
			namespace = "kube-system"
		}
		role := &rbacv1.Role{ObjectMeta: name, Rules: list}
		if _, err := rbac.Roles(namespace).Create(c.ctx, role, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			continue
		} else {
			c.must(err)
		}
		_, err := rbac.RoleBindings(namespace).Create(c.ctx, &rbacv1.RoleBinding{ObjectMeta: name, Subjects: subject,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user}}, metav1.CreateOptions{})
		c.must(err)
	}
}

// replica is a controller that runs in this process.
type replica struct {
	*controller.Controller
	stop func() // ends it and waits for its end
}

// replica starts one; it ends with the test, if not before.
func (c *cluster) replica(set ...func(*controller.Config)) replica {
	c.Helper()
	rc := rest.CopyConfig(server.Config)
	rc.Impersonate.UserName = user
	clients, err := kubeapi.New(rc)
	c.must(err)
	cfg := controller.Config{
		Clients: clients, Namespace: c.namespace, Identity: fmt.Sprintf("replica-%d", namespaces.Add(1)),
		Log:       slog.New(slog.NewTextHandler(c.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		NodeGrace: grace, StatusInterval: 200 * time.Millisecond,
		LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 200 * time.Millisecond,
		Defaults: controller.Defaults{None: true},
	}
	for _, s := range set {
		s(&cfg)
	}
	r, err := controller.New(cfg)
	c.must(err)
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			c.Error("Run did not end")
		}
	}
	c.Cleanup(stop)
	return replica{r, stop}
}

// until waits for f to say that all is as it should be.
func (c *cluster) until(f func() error) {
	c.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("after %s: %v", patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// stays fails when f says within a short while that something is not as it should be.
func (c *cluster) stays(d time.Duration, f func() error) {
	c.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := f(); err != nil {
			c.Fatal(err)
		}
	}
}

// ready waits until a replica is.
func (c *cluster) ready(r replica) {
	c.Helper()
	c.until(r.Ready)
}

func (c *cluster) node(name string, addrs ...string) *corev1.Node {
	c.Helper()
	n, err := c.Core.CoreV1().Nodes().Create(c.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	c.must(err)
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	n, err = c.Core.CoreV1().Nodes().UpdateStatus(c.ctx, n, metav1.UpdateOptions{})
	c.must(err)
	return n
}

// pod makes a pod that is bound to a node and has an address.
func (c *cluster) pod(name, node, ip string) {
	c.Helper()
	never := false
	p, err := c.Core.CoreV1().Pods(c.namespace).Create(c.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}, AutomountServiceAccountToken: &never},
	}, metav1.CreateOptions{})
	c.must(err)
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	_, err = c.Core.CoreV1().Pods(c.namespace).UpdateStatus(c.ctx, p, metav1.UpdateOptions{})
	c.must(err)
}

func (c *cluster) pool(name, cidr string, set ...func(*v3.IPPoolSpec)) *v3.IPPool {
	c.Helper()
	p := &v3.IPPool{TypeMeta: metav1.TypeMeta{APIVersion: "projectcalico.org/v3", Kind: "IPPool"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v3.IPPoolSpec{CIDR: cidr}}
	for _, s := range set {
		s(&p.Spec)
	}
	p, err := c.pools.Create(c.ctx, p, metav1.CreateOptions{})
	c.must(err)
	return p
}

// event returns the first note of an event with that reason about an object of that name.
func (c *cluster) event(namespace, reason, name string) (string, error) {
	list, err := c.Core.EventsV1().Events(namespace).List(c.ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(list.Items, func(e eventsv1.Event) bool { return e.Reason == reason && e.Regarding.Name == name })
	if i < 0 {
		return "", fmt.Errorf("no event %s about %s", reason, name)
	}
	return list.Items[i].Note, nil
}
