package suite

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// TestInstalled shows what a fresh installation says and has done: nodes are Ready and
// not NetworkUnavailable, Calico's annotations are on them, and every node knows the way
// to the blocks of others from BGP.
func TestInstalled(t *testing.T) {
	daemonSet(t, namespace(t), "web") // so that every node has blocks
	eventually(t, 30*time.Second, func() error {
		nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var errs []error
		for _, n := range nodes.Items {
			for _, cond := range n.Status.Conditions {
				want := corev1.ConditionFalse
				if cond.Type == corev1.NodeReady {
					want = corev1.ConditionTrue
				}
				if cond.Status != want {
					errs = append(errs, fmt.Errorf("%s: condition %s is %s (%s), want %s", n.Name, cond.Type, cond.Status, cond.Message, want))
				}
			}
			want := map[string]string{"projectcalico.org/IPv4Address": c.Node(n.Name).Addrs()[0].String() + "/24", "projectcalico.org/IPv6Address": c.Node(n.Name).Addrs()[1].String() + "/64"}
			for k, v := range want {
				if n.Annotations[k] != v {
					errs = append(errs, fmt.Errorf("%s: annotation %s is %q, want %q", n.Name, k, n.Annotations[k], v))
				}
			}
		}
		return errors.Join(errs...)
	})
	for _, n := range c.Nodes() {
		for _, family := range []string{"-4", "-6"} {
			eventually(t, 30*time.Second, func() error {
				out, err := n.Exec(t.Context(), "ip", family, "route", "show", "proto", "82")
				if err != nil {
					return err
				}
				if blocks := strings.Count(out, " via "); blocks < len(c.Nodes())-1 {
					return fmt.Errorf("%s: %d routes %s out of BGP, want one for each other node:\n%s", n, blocks, family, out)
				}
				return nil
			})
		}
	}
}

// TestPods: every pod reaches every pod, every node, and the host outside, and is reached
// by them, over both families; nothing changes source addresses between pods.
func TestPods(t *testing.T) {
	ns := namespace(t)
	all := append(daemonSet(t, ns, "each"), deployment(t, ns, "web", 6)...)
	ping(t, ends(all), ends(all))
	ping(t, ends(all), nodeEnds())
	ping(t, nodeEnds(), ends(all))
	ping(t, ends(all), outside())
	ping(t, outside(), ends(all))
	for _, a := range all[:4] {
		for _, b := range all {
			for _, v6 := range []bool{false, true} {
				if a == b {
					continue
				}
				if got, err := seenAs(t.Context(), a, b.Addr(v6).String(), 8080); err != nil || got != a.Addr(v6) {
					t.Errorf("%s sees %s as %s (%v), want %s", b, a, got, err, a.Addr(v6))
				}
			}
		}
	}
	// Kubelet's probes and the host's programs: node to its own pod by TCP.
	for _, p := range all[:4] {
		for _, v6 := range []bool{false, true} {
			if _, err := get(t.Context(), p.Node, p.Addr(v6).String(), 8080, "/hostname"); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestStreams: 1,000 packets a second in each direction lose nothing while nothing
// happens: what later scenarios are measured against.
func TestStreams(t *testing.T) {
	pairs := crossRack(t, daemonSet(t, namespace(t), "web"))
	stop := streams(t, append(pairs, [2]*cluster.Pod{pairs[0][1], pairs[0][0]})...)
	<-time.After(2 * time.Second) // a measured time, not a wait for something
	stop()
}

// TestServices: ClusterIP, NodePort and headless Services of both families, from pods,
// nodes and the host outside.
func TestServices(t *testing.T) {
	ns := namespace(t)
	backends := deployment(t, ns, "web", 4)
	clients := daemonSet(t, ns, "client")
	apply(t, `apiVersion: v1
kind: Service
metadata: {name: web, namespace: %[1]s}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: %[1]s}
spec: {clusterIP: None, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 8080}]}
`, ns)
	svc, err := client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The ways are there; what follows is of Services.
	ping(t, append(ends(clients), append(nodeEnds(), outside()...)...), ends(backends))
	names := map[string]bool{}
	for _, p := range backends {
		names[p.Name] = true
	}
	// ask gets an answer of one of the backends, at the first try once kube-proxy has the
	// Service everywhere.
	ask := func(from traffic.Space, host string, port int) error {
		out, err := get(t.Context(), from, host, port, "/hostname")
		if err == nil && !names[out] {
			err = fmt.Errorf("%s: %s answers at %s, which is no backend", from, out, host)
		}
		return err
	}
	for _, ip := range svc.Spec.ClusterIPs {
		for _, p := range clients {
			eventually(t, 15*time.Second, func() error { return ask(p, ip, 80) })
			for range 8 {
				if err := ask(p, ip, 80); err != nil {
					t.Error(err)
				}
			}
			if err := ask(p.Node, ip, 80); err != nil {
				t.Error(err)
			}
		}
		// A backend that is chosen as its own: the hairpin.
		for range 12 {
			if err := ask(backends[0], ip, 80); err != nil {
				t.Error(err)
			}
		}
	}
	port := int(svc.Spec.Ports[0].NodePort)
	for _, n := range c.Nodes() {
		for _, a := range n.Addrs() {
			if err := ask(c.Outside(), a.String(), port); err != nil {
				t.Error(err)
			}
			if err := ask(clients[0], a.String(), port); err != nil {
				t.Error(err)
			}
		}
	}
	slices, err := client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=headless"})
	if err != nil {
		t.Fatal(err)
	}
	found := map[netip.Addr]bool{}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			for _, a := range e.Addresses {
				found[netip.MustParseAddr(a)] = true
				if err := ask(clients[0], a, 8080); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, p := range backends {
		for _, a := range p.Addrs {
			if !found[a] {
				t.Errorf("the headless Service lacks %s of %s", a, p)
			}
		}
	}
}

// TestHostPort: a port of the node leads to its pod, from outside, from other nodes, and
// from pods.
func TestHostPort(t *testing.T) {
	ns := namespace(t)
	const port = 18080
	web := daemonSet(t, ns, "web", fmt.Sprintf("ports: [{containerPort: 8080, hostPort: %d}]", port))
	ping(t, ends(web), nodeEnds()) // the ways are there; what follows is of ports
	for i, p := range web {
		for _, a := range p.Node.Addrs() {
			for _, from := range []traffic.Space{c.Outside(), c.Nodes()[(i+1)%4], web[(i+1)%4], p.Node} {
				if out, err := get(t.Context(), from, a.String(), port, "/hostname"); err != nil || out != p.Name {
					t.Errorf("%s -> %s port %d: %q, %v; want %s", from, a, port, out, err, p.Name)
				}
			}
		}
	}
	kubectl(t, "-n", ns, "delete", "daemonset", "web", "--wait", "--timeout=60s")
	n := web[0].Node
	eventually(t, 30*time.Second, func() error {
		if _, err := get(t.Context(), c.Outside(), n.Addrs()[0].String(), port, "/hostname"); err == nil {
			return fmt.Errorf("%s still answers on port %d", n, port)
		}
		return nil
	})
}
