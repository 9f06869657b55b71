package suite

import (
	"fmt"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestDaemonsRestart restarts the container runtime and the kubelet of two nodes while packets
// flow through both: none is lost, pods stay the pods they are, and new ones start afterwards.
func TestDaemonsRestart(t *testing.T) {
	for _, daemon := range []string{"containerd", "kubelet"} {
		t.Run(daemon, func(t *testing.T) {
			ns := namespace(t)
			web := daemonSet(t, ns, "web")
			pairs := crossRack(t, web)
			stop := streams(t, pairs...)
			for _, n := range []*cluster.Node{pairs[0][0].Node, pairs[0][1].Node} {
				if err := n.Restart(t.Context(), daemon); err != nil {
					t.Fatal(err)
				}
				if err := n.AwaitRuntime(t.Context()); err != nil {
					t.Fatal(err)
				}
				// It works again when a pod that is meant for this node runs.
				name := "on-" + n.Name()
				apply(t, `apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: after}}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers: [{name: web, image: %[4]s, imagePullPolicy: Never, args: [netexec, --http-port=8080]}]
`, name, ns, n.Name(), cluster.AgnhostImage)
				kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "--timeout=120s", "pod/"+name)
			}
			stop()
			after := pods(t, ns, "app=after", 2)
			ping(t, ends(after), ends(web))
			ping(t, ends(web), ends(after))
			for _, p := range pods(t, ns, "app=web", len(web)) {
				for _, was := range web {
					if p.Name == was.Name && fmt.Sprint(p.Addrs) != fmt.Sprint(was.Addrs) {
						t.Errorf("%s had %v and has %v", p, was.Addrs, p.Addrs)
					}
				}
			}
			balanced(t, time.Minute)
		})
	}
}
