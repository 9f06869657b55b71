package controller_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam/manifest"
)

func (c *cluster) service(name string, set ...func(*corev1.Service)) *corev1.Service {
	c.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace, Annotations: map[string]string{}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	for _, f := range set {
		f(s)
	}
	s, err := c.Core.CoreV1().Services(c.namespace).Create(c.ctx, s, metav1.CreateOptions{})
	c.must(err)
	return s
}

func annotate(k, v string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations["projectcalico.org/"+k] = v }
}

func class(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &name }
}

func families(policy corev1.IPFamilyPolicy, f ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &policy, f }
}

// shows waits until a Service's status shows exactly these addresses.
func (c *cluster) shows(name string, want ...string) {
	c.Helper()
	c.until(func() error { return c.showing(name, want...) })
}

func (c *cluster) showing(name string, want ...string) error {
	s, err := c.Core.CoreV1().Services(c.namespace).Get(c.ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var got []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		got = append(got, i.IP+i.Hostname)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("Service %s shows %v, want %v", name, got, want)
	}
	return nil
}

// holders waits until exactly these addresses are held, by those Services.
func (c *cluster) holders(want map[string]string) {
	c.Helper()
	c.until(func() error {
		list, err := c.blocks.List(c.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string]string{}
		for i := range list.Items {
			o := &list.Items[i]
			b, err := manifest.FromV3(o)
			if err != nil {
				return err
			}
			if b.Affinity != "virtual:load-balancer" {
				return fmt.Errorf("block %s: affinity %q", b.CIDR, b.Affinity)
			}
			for k, s := range b.Slots {
				if s.Handle == "" {
					continue
				}
				if !strings.HasPrefix(s.Handle, "lb-") || s.Attrs["type"] != "LoadBalancer" || s.Attrs["namespace"] != c.namespace {
					return fmt.Errorf("block %s: %+v", b.CIDR, s)
				}
				got[b.Addr(k).String()] = s.Attrs["service"]
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the blocks say %v, want %v", got, want)
		}
		return nil
	})
}

func (c *cluster) patchService(name, patch string) {
	c.Helper()
	_, err := c.Core.CoreV1().Services(c.namespace).Patch(c.ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	c.must(err)
}

func (c *cluster) deleteService(name string) {
	c.Helper()
	c.must(c.Core.CoreV1().Services(c.namespace).Delete(c.ctx, name, metav1.DeleteOptions{}))
}

func (c *cluster) said(name, words string) {
	c.Helper()
	c.until(func() error {
		list, err := c.Core.EventsV1().Events(c.namespace).List(c.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var notes []string
		for _, e := range list.Items {
			if e.Regarding.Name == name && e.Reason == "LoadBalancerAddress" {
				if strings.Contains(e.Note, words) {
					return nil
				}
				notes = append(notes, e.Note)
			}
		}
		return fmt.Errorf("events about Service %s: %q, want %q in one", name, notes, words)
	})
}

// TestNoLoadBalancerPool checks that Services are left alone where no pool is for them.
func TestNoLoadBalancerPool(t *testing.T) {
	c := newCluster(t)
	c.pool("pods", "10.3.0.0/24")
	c.service("one")
	s := c.service("two")
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}}
	_, err := c.Core.CoreV1().Services(c.namespace).UpdateStatus(c.ctx, s, metav1.UpdateOptions{})
	c.must(err)
	c.ready(c.replica())
	c.stays(500*time.Millisecond, func() error {
		if err := c.showing("one"); err != nil {
			return err
		}
		return c.showing("two", "203.0.113.9")
	})
	list, err := c.Core.EventsV1().Events(c.namespace).List(c.ctx, metav1.ListOptions{})
	c.must(err)
	for _, e := range list.Items {
		if e.Regarding.Kind == "Service" {
			t.Errorf("event %s: %s", e.Reason, e.Note)
		}
	}
}

// TestLoadBalancer follows Services through their lives.
func TestLoadBalancer(t *testing.T) {
	c := newCluster(t)
	c.pool("lb", "10.3.0.0/30", size(31), loadBalancerPool)
	c.pool("named", "10.3.1.0/30", size(30), loadBalancerPool, func(s *v3.IPPoolSpec) { s.AssignmentMode = v3.AssignmentManual })
	c.pool("lb6", "fd00:3::/120", size(122), loadBalancerPool)
	c.service("a")
	r := c.replica()
	c.shows("a", "10.3.0.0")
	c.service("v6", families(corev1.IPFamilyPolicySingleStack, corev1.IPv6Protocol))
	c.shows("v6", "fd00:3::")
	c.service("both", families(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv6Protocol, corev1.IPv4Protocol))
	c.shows("both", "fd00:3::1", "10.3.0.1")
	c.service("exact", annotate("loadBalancerIPs", `["10.3.0.3"]`))
	c.shows("exact", "10.3.0.3")
	c.service("picky", annotate("ipv4pools", `["named"]`), class("calico"))
	c.shows("picky", "10.3.1.0")
	c.service("other", class("example.com/other"))
	c.service("plain", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	all := map[string]string{"10.3.0.0": "a", "fd00:3::": "v6", "10.3.0.1": "both", "fd00:3::1": "both", "10.3.0.3": "exact", "10.3.1.0": "picky"}
	c.holders(all)

	// Conflicts and mistakes are told of, and cost nobody an address.
	c.service("thief", annotate("loadBalancerIPs", `["10.3.0.3"]`))
	c.said("thief", "in use by Service "+c.namespace+"/exact")
	c.service("outside", annotate("loadBalancerIPs", `["192.0.2.77"]`))
	c.said("outside", "in no IPPool")
	c.service("nonsense", annotate("loadBalancerIPs", `10.3.0.2`))
	c.said("nonsense", "is no list")
	c.service("nowhere", annotate("ipv4pools", `["missing"]`))
	c.said("nowhere", "missing")
	c.holders(all)

	// The last address goes to one, and the next gets it when the first leaves.
	c.service("last")
	c.shows("last", "10.3.0.2")
	c.service("waiting")
	c.said("waiting", "no free address")
	c.deleteService("last")
	c.shows("waiting", "10.3.0.2")

	// A change of wishes, of the class and of the type.
	c.patchService("exact", `{"metadata":{"annotations":{"projectcalico.org/loadBalancerIPs":"[\"10.3.1.2\"]"}}}`)
	c.shows("exact", "10.3.1.2")
	c.shows("thief", "10.3.0.3")
	c.patchService("a", `{"spec":{"type":"ClusterIP"}}`)
	c.shows("a")
	c.deleteService("v6")
	all = map[string]string{"10.3.0.2": "waiting", "10.3.0.1": "both", "fd00:3::1": "both", "10.3.0.3": "thief", "10.3.1.0": "picky", "10.3.1.2": "exact"}
	c.holders(all)

	// Nothing moves over a restart, a Service that went meanwhile is noticed, and one of
	// the same name that came instead has its own.
	r.stop()
	c.deleteService("both")
	c.deleteService("picky")
	c.service("picky")
	r = c.replica()
	c.shows("picky", "10.3.0.0")
	delete(all, "10.3.0.1")
	delete(all, "fd00:3::1")
	delete(all, "10.3.1.0")
	all["10.3.0.0"] = "picky"
	c.holders(all)

	// What somebody else wrote into the status of a Service of ours is put right.
	s, err := c.Core.CoreV1().Services(c.namespace).Get(c.ctx, "picky", metav1.GetOptions{})
	c.must(err)
	s.Status.LoadBalancer.Ingress = nil
	_, err = c.Core.CoreV1().Services(c.namespace).UpdateStatus(c.ctx, s, metav1.UpdateOptions{})
	c.must(err)
	c.shows("picky", "10.3.0.0")

	for _, name := range []string{"picky", "waiting", "thief", "exact"} {
		c.deleteService(name)
	}
	c.until(func() error {
		list, err := c.blocks.List(c.ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d blocks are left", len(list.Items))
		}
		return err
	})
}

// TestLoadBalancerNotOurs leaves Services alone of which another implementation is in
// charge, and takes over when asked to.
func TestLoadBalancerNotOurs(t *testing.T) {
	c := newCluster(t)
	c.pool("lb", "10.3.0.0/28", size(28), loadBalancerPool)
	s := c.service("theirs")
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}}
	_, err := c.Core.CoreV1().Services(c.namespace).UpdateStatus(c.ctx, s, metav1.UpdateOptions{})
	c.must(err)
	// One that lost its block gets the same address again.
	s = c.service("lost")
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.3.0.7"}}
	_, err = c.Core.CoreV1().Services(c.namespace).UpdateStatus(c.ctx, s, metav1.UpdateOptions{})
	c.must(err)
	c.ready(c.replica())
	c.said("theirs", "another implementation")
	c.holders(map[string]string{"10.3.0.7": "lost"})
	c.must(c.showing("theirs", "203.0.113.9"))
	c.patchService("theirs", `{"metadata":{"annotations":{"projectcalico.org/ipv4pools":"[\"lb\"]"}}}`)
	c.shows("theirs", "10.3.0.0")
}

// TestRequestedServicesOnly follows the mode of Calico's KubeControllersConfiguration.
func TestRequestedServicesOnly(t *testing.T) {
	c := newCluster(t)
	c.pool("lb", "10.3.0.0/28", size(28), loadBalancerPool)
	c.must(c.V3.Post().Resource("kubecontrollersconfigurations").SetHeader("Content-Type", "application/json").Body([]byte(`{
		"apiVersion": "projectcalico.org/v3", "kind": "KubeControllersConfiguration", "metadata": {"name": "default"},
		"spec": {"controllers": {"loadBalancer": {"assignIPs": "RequestedServicesOnly"}}}}`)).Do(c.ctx).Error())
	_, err := c.reserv.Create(c.ctx, &v3.IPReservation{
		TypeMeta: metav1.TypeMeta{APIVersion: "projectcalico.org/v3", Kind: "IPReservation"}, ObjectMeta: metav1.ObjectMeta{Name: "first"},
		Spec: v3.IPReservationSpec{ReservedCIDRs: []string{"10.3.0.0/30"}},
	}, metav1.CreateOptions{})
	c.must(err)
	c.service("quiet")
	c.service("class", class("calico"))
	c.ready(c.replica())
	c.shows("class", "10.3.0.4") // the first four are reserved
	c.stays(300*time.Millisecond, func() error { return c.showing("quiet") })
	_, err = c.kcc.MergePatch(c.ctx, "default", []byte(`{"spec":{"controllers":{"loadBalancer":{"assignIPs":"AllServices"}}}}`))
	c.must(err)
	c.shows("quiet", "10.3.0.5")
}

// TestLoadBalancerMany gives many Services addresses at once, deletes some while others
// come, and checks that no two share one.
func TestLoadBalancerMany(t *testing.T) {
	c := newCluster(t)
	c.pool("lb", "10.4.0.0/24", size(28), loadBalancerPool)
	c.ready(c.replica())
	for i := range 60 {
		c.service(fmt.Sprintf("s%d", i))
		if i >= 20 && i%3 == 0 {
			c.deleteService(fmt.Sprintf("s%d", i-20))
		}
	}
	c.until(func() error {
		list, err := c.Core.CoreV1().Services(c.namespace).List(c.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		want, of := map[string]string{}, map[netip.Addr]string{}
		for _, s := range list.Items {
			if len(s.Status.LoadBalancer.Ingress) != 1 {
				return fmt.Errorf("Service %s shows %v", s.Name, s.Status.LoadBalancer.Ingress)
			}
			ip := s.Status.LoadBalancer.Ingress[0].IP
			if other := of[netip.MustParseAddr(ip)]; other != "" {
				t.Fatalf("Services %s and %s both show %s", other, s.Name, ip)
			}
			of[netip.MustParseAddr(ip)], want[ip] = s.Name, s.Name
		}
		c.holders(want)
		return nil
	})
}
