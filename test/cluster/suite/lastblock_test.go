package suite

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestLastBlock lets two nodes compete for the only block of a pool: it has one owner, the
// other node borrows, all four addresses get to pods that work, and the fifth pod says why it
// cannot start, until there is room.
func TestLastBlock(t *testing.T) {
	ns := namespace(t)
	web := daemonSet(t, ns, "web")
	const cidr = "10.245.77.0/30"
	apply(t, `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: last}
spec: {cidr: %s, blockSize: 30, assignmentMode: Manual, ipipMode: Never, vxlanMode: Never, natOutgoing: false, nodeSelector: all()}
`, cidr)
	t.Cleanup(func() { deletePool(t, ns, "last", "10-245-77-0-30") })
	pod := func(name, node string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: %[2]s
  labels: {app: last}
  annotations: {cni.projectcalico.org/ipv4pools: '["last"]'}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers: [{name: web, image: %[4]s, imagePullPolicy: Never, args: [netexec, --http-port=8080]}]
---
`, name, ns, node, cluster.AgnhostImage)
	}
	// All at once: both nodes ask for the block in the same moment.
	apply(t, "%s", pod("a", "node1")+pod("b", "node3")+pod("c", "node1")+pod("d", "node3"))
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "--timeout=150s", "pod", "-l", "app=last")
	four := pods(t, ns, "app=last", 4)
	pool, holders := netip.MustParsePrefix(cidr), map[netip.Addr]string{}
	for _, p := range four {
		a := p.Addr(false)
		if other, twice := holders[a]; twice || !pool.Contains(a) {
			t.Errorf("%s has %s, as %q", p, a, other)
		}
		holders[a] = p.Name
	}
	ping(t, ends(four), ends(append(four, web...)))
	ping(t, ends(web), ends(four))
	ping(t, outside(), ends(four))

	list, err := blocksOf(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var owners []string
	for i := range list {
		if b := &list[i].Spec; pool.Overlaps(netip.MustParsePrefix(b.CIDR)) {
			owners = append(owners, b.CIDR+" "+value(b.Affinity))
		}
	}
	if len(owners) != 1 {
		t.Errorf("blocks of the pool: %v, want one", owners)
	}
	t.Logf("the block is %v, the pods %v", owners, four)

	apply(t, "%s", pod("e", "node3"))
	eventually(t, time.Minute, func() error {
		events, err := client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=e"})
		if err != nil {
			return err
		}
		var said []string
		for _, e := range events.Items {
			if strings.Contains(e.Message, "no free address") {
				return nil
			}
			said = append(said, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("nothing says that there is no free address: %q", said)
	})
	kubectl(t, "-n", ns, "delete", "pod", "a", "--wait", "--timeout=60s")
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "--timeout=150s", "pod/e")
	four = pods(t, ns, "app=last", 4)
	ping(t, ends(web), ends(four))
	balanced(t, time.Minute)
}

// deletePool deletes a pool and what it gave out. The owner of a block that others borrowed from
// reads it again every 20 minutes, and may not know before that it is empty: the administrator
// does.
func deletePool(t *testing.T, ns, name, block string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"-n", ns, "delete", "pod", "-l", "app=" + name, "--wait", "--timeout=60s"},
		{"delete", "ippool.projectcalico.org", name, "--wait=false"},
		{"delete", "ipamblock.projectcalico.org", block, "--ignore-not-found"},
		{"wait", "--for=delete", "ippool.projectcalico.org/" + name, "--timeout=60s"},
	} {
		if _, err := c.Kubectl(ctx, args...); err != nil {
			t.Error(err)
		}
	}
}
