package suite

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/causeway-net/causeway/test/cluster"
)

// TestHelm installs Causeway with its chart on a fresh cluster of its own, with kube-proxy
// in its other mode; pods reach each other. Uninstalling removes every object of the chart.
func TestHelm(t *testing.T) {
	cfg := cluster.Config{Name: "helm", ProxyMode: "iptables", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if err := cluster.Down(t.Context(), cfg); err != nil { // of an interrupted run
		t.Fatal(err)
	}
	other, err := cluster.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir := filepath.Join(os.TempDir(), "causeway-helm-logs")
			t.Logf("logs in %s: %v", dir, other.CollectLogs(context.Background(), dir))
		}
		if err := other.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := other.InstallHelm(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The scenarios' functions work on c.
	defer func(was *cluster.Cluster) { c = was }(c)
	c = other
	t.Run("pods", func(t *testing.T) {
		all := daemonSet(t, namespace(t), "web")
		ping(t, ends(all), ends(all))
		ping(t, outside(), ends(all))
	})
	if _, err := other.Helm(t.Context(), "uninstall", "causeway", "--namespace", "kube-system", "--wait", "--timeout", "60s"); err != nil {
		t.Fatal(err)
	}
	if left := kubectl(t, "get", "daemonsets,deployments,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,validatingadmissionpolicies", "-A",
		"-l", "app.kubernetes.io/name=causeway", "-o", "name"); left != "" {
		t.Errorf("the chart leaves behind:\n%s", left)
	}
}
