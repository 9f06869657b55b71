package suite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestUninstall removes Causeway as it was installed, all but the CRDs and what users keep
// in them, and installs it again. The removal leaves no object behind, running pods reach
// each other all the time, and pods of later talk to them.
func TestUninstall(t *testing.T) {
	ns := namespace(t)
	before := daemonSet(t, ns, "before")
	stop := streams(t, crossRack(t, before)...)
	uninstall(t)
	if left := kubectl(t, "get", "daemonsets,deployments,poddisruptionbudgets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"+
		"validatingadmissionpolicies,validatingadmissionpolicybindings", "-A", "-l", "app.kubernetes.io/name=causeway", "-o", "name"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	ping(t, ends(before), ends(before))
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	after := daemonSet(t, ns, "after")
	ping(t, ends(before), ends(after))
	ping(t, outside(), ends(append(after, before...)))
}

func uninstall(t *testing.T) {
	t.Helper()
	if viaHelm() {
		if _, err := c.Helm(t.Context(), "uninstall", "causeway", "--namespace", "kube-system", "--wait", "--timeout", "60s"); err != nil {
			t.Fatal(err)
		}
		return
	}
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(root, "deploy", "causeway.yaml")
	out := kubectl(t, "delete", "-f", manifest, "-l", "app.kubernetes.io/name=causeway", "--timeout=60s")
	if strings.Contains(out, "customresourcedefinition") {
		t.Fatalf("removing what is labelled Causeway's removes CRDs, and with them everybody's pools and blocks:\n%s", out)
	}
}
