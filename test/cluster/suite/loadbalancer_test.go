package suite

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestLoadBalancer: a Service of type LoadBalancer gets an address of the pool that is for
// such, keeps it, and gives it back.
func TestLoadBalancer(t *testing.T) {
	ns := namespace(t)
	const pool = "services"
	within := netip.MustParsePrefix("172.29.0.0/28")
	apply(t, `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: %s}
spec: {cidr: %s, blockSize: 28, allowedUses: [LoadBalancer]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: %s}
spec: {type: LoadBalancer, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], selector: {app: front}, ports: [{port: 80}]}
`, pool, within, ns)
	eventually(t, time.Minute, func() error {
		text := kubectl(t, "-n", ns, "get", "service", "front", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if a, err := netip.ParseAddr(text); err != nil || !within.Contains(a) {
			return fmt.Errorf("the Service has the address %q, want one of %s", text, within)
		}
		return nil
	})
	kubectl(t, "-n", ns, "delete", "service", "front")
	kubectl(t, "delete", "ippool.projectcalico.org", pool, "--timeout=60s") // it stays until no block of it is left
}
