package suite

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestVXLAN changes the mode of a pool of either family under traffic, with the Kubernetes API
// alone to tell the nodes of each other's blocks and tunnels: CrossSubnet encapsulates between
// the racks and not within them, Always everywhere, Never nowhere, and no change interrupts a
// flow for a second. Afterwards no tunnel is left.
func TestVXLAN(t *testing.T) {
	ns := namespace(t)
	mode := func(m string) {
		apply(t, `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: vx4}
spec: {cidr: 10.246.0.0/22, blockSize: 28, assignmentMode: Manual, ipipMode: Never, vxlanMode: %[1]s, natOutgoing: false, nodeSelector: all()}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: vx6}
spec: {cidr: fd46::/112, blockSize: 124, assignmentMode: Manual, ipipMode: Never, vxlanMode: %[1]s, natOutgoing: false, nodeSelector: all()}
`, m)
	}
	mode("CrossSubnet")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		pools := []string{"ippool.projectcalico.org/vx4", "ippool.projectcalico.org/vx6", "ippool.projectcalico.org/vx-tunnels"}
		for _, args := range [][]string{
			{"-n", ns, "delete", "daemonset", "web", "--ignore-not-found", "--cascade=foreground"},
			append([]string{"delete", "--wait=false", "--ignore-not-found"}, pools...),
			append([]string{"wait", "--for=delete", "--timeout=100s"}, pools...),
		} {
			if _, err := c.Kubectl(ctx, args...); err != nil {
				t.Error(err)
			}
		}
	})
	// Manual pools give no addresses to tunnels.
	apply(t, `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: vx-tunnels}
spec: {cidr: 10.246.4.0/24, blockSize: 29, allowedUses: [Tunnel], ipipMode: Never, vxlanMode: Always, natOutgoing: false, nodeSelector: all()}
`)
	kubectl(t, "annotate", "namespace", ns, `cni.projectcalico.org/ipv4pools=["vx4"]`, `cni.projectcalico.org/ipv6pools=["vx6"]`)
	web := daemonSet(t, ns, "web")
	eventually(t, time.Minute, func() error { return tunnelled(t, web, func(a, b *cluster.Node) bool { return a.Rack() != b.Rack() }) })
	ping(t, ends(web), ends(web))
	ping(t, outside(), ends(web))
	for _, n := range c.Nodes() {
		if got := annotation(t, n, "projectcalico.org/IPv4VXLANTunnelAddr"); !strings.HasPrefix(got, "10.246.4.") {
			t.Errorf("%s: the annotation of its tunnel address is %q, want one of the pool for tunnels", n, got)
		}
	}

	kubectl(t, "delete", "ippool.projectcalico.org", "vx-tunnels", "--wait=false")
	stop := flows(t, crossRack(t, web)...)
	mode("Always")
	eventually(t, time.Minute, func() error { return tunnelled(t, web, func(a, b *cluster.Node) bool { return a != b }) })
	mode("Never")
	eventually(t, time.Minute, func() error { return tunnelled(t, web, func(a, b *cluster.Node) bool { return false }) })
	for _, r := range stop() {
		t.Logf("%s -> %s (%s): %d sent, %d lost, longest gap %s", r.From, r.To, r.Target, r.Sent, r.Lost, r.LongestGap)
		if time.Duration(r.LongestGap) > time.Second {
			t.Errorf("a flow was interrupted for longer than a second:\n%s", r)
		}
	}
	ping(t, ends(web), ends(web))
	eventually(t, time.Minute, func() error {
		for _, n := range c.Nodes() {
			if out, err := n.Exec(t.Context(), "ip", "-o", "link", "show", "type", "vxlan"); err != nil || out != "" {
				return fmt.Errorf("%s still has %s (%v)", n, out, err)
			}
			for _, a := range []string{"IPv4VXLANTunnelAddr", "VXLANTunnelMACAddr", "IPv6VXLANTunnelAddr", "VXLANTunnelMACAddrV6"} {
				if got := annotation(t, n, "projectcalico.org/"+a); got != "" {
					return fmt.Errorf("%s still has the annotation %s: %s", n, a, got)
				}
			}
		}
		return nil
	})
}

// tunnelled checks of each pair of pods by which device their nodes send to the other.
func tunnelled(t *testing.T, pods []*cluster.Pod, want func(a, b *cluster.Node) bool) error {
	for _, a := range pods {
		for _, b := range pods {
			if a.Node == b.Node {
				continue
			}
			for _, v6 := range []bool{false, true} {
				out, err := a.Node.Exec(t.Context(), "ip", "-o", "route", "get", b.Addr(v6).String())
				if err != nil {
					return err
				}
				if got := strings.Contains(out, "dev vxlan"); got != want(a.Node, b.Node) {
					return fmt.Errorf("from %s to %s: %s", a.Node, b, out)
				}
			}
		}
	}
	return nil
}

// annotation reads one of a Node.
func annotation(t *testing.T, n *cluster.Node, name string) string {
	t.Helper()
	return kubectl(t, "get", "node", n.Name(), "-o", "jsonpath={.metadata.annotations."+strings.ReplaceAll(name, ".", `\.`)+"}")
}
