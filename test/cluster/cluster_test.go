package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cluster "github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

func TestMain(m *testing.M) {
	cluster.Reexec()
	os.Exit(m.Run())
}

// standIn gives the nodes a network without Causeway: ptp and host-local on the node's
// range, and routes by hand on the ToRs. So that what fails here is the cluster's fault.
func standIn(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		out, err := c.Kubectl(t.Context(), "get", "node", n.Name(), "-o", "jsonpath={.spec.podCIDRs}")
		if err != nil {
			t.Fatal(err)
		}
		var cidrs []string
		if err := json.Unmarshal([]byte(out), &cidrs); err != nil || len(cidrs) != 2 {
			t.Fatalf("%s: pod ranges %q, %v", n, out, err)
		}
		for i, cidr := range cidrs {
			if _, err := c.ToR(n.Rack()).Exec(t.Context(), "ip", "route", "add", cidr, "via", n.Addrs()[i].String()); err != nil {
				t.Fatal(err)
			}
		}
		for _, plugin := range []string{"ptp", "host-local", "portmap"} {
			b, err := os.ReadFile(filepath.Join(root, "bin", plugin))
			if err != nil {
				t.Fatalf("%v: run `make plugins`", err)
			}
			if err := os.WriteFile(n.Path("/opt/cni/bin/"+plugin), b, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"stand-in","plugins":[{"type":"ptp","mtu":1500,"ipMasq":false,"ipam":{"type":"host-local",
			"ranges":[[{"subnet":%q}],[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]}`, cidrs[0], cidrs[1])
		if err := os.WriteFile(n.Path("/etc/cni/net.d/10-stand-in.conflist"), []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for rack := 1; rack <= 2; rack++ {
		for _, family := range []string{"ipv4", "ipv6"} {
			if _, err := c.ToR(rack).Vtysh(t.Context(), "configure", fmt.Sprintf("router bgp 6500%d", rack), "address-family "+family+" unicast", "redistribute kernel"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

const workload = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ` + cluster.AgnhostImage + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

func awaitWorkload(t *testing.T, c *cluster.Cluster) []*cluster.Pod {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), "rollout", "status", "daemonset/web", "--timeout=120s"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		pods, err := c.Pods(t.Context(), "default", "app=web")
		if err == nil && len(pods) == len(c.Nodes()) {
			return pods
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pods run, want one on each of %d nodes: %v", len(pods), len(c.Nodes()), err)
		}
	}
}

func pingAll(t *testing.T, pods []*cluster.Pod) {
	t.Helper()
	var ends []traffic.Endpoint
	for _, p := range pods {
		ends = append(ends, traffic.Endpoint{Space: p, Addrs: p.Addrs})
	}
	if failed := traffic.PingAll(t.Context(), ends, ends, traffic.PingConfig{Timeout: 10 * time.Second}).Failed(); len(failed) > 0 {
		t.Fatalf("no answer:\n%s", failed)
	}
}

// left names what a cluster of that name has on this computer.
func left(name string) []string {
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/causeway-" + name + "-*", "/sys/fs/cgroup/*/*/causeway-" + name + "-*", "/sys/fs/cgroup/*/*/*/causeway-" + name + "-*",
		"/run/netns/" + name + "-*", "/run/causeway-cluster-" + name + "*", filepath.Join(cluster.DefaultDir, name)} {
		found, _ := filepath.Glob(pattern)
		out = append(out, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/"+name+"/") || strings.Contains(line, "/"+name+"-") {
			out = append(out, line)
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if b, _ := os.ReadFile(path); strings.Contains(string(b), filepath.Join(cluster.DefaultDir, name)+"/") {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// TestCluster shows that the cluster itself works, with a stand-in for the network: nodes
// register NotReady and become Ready, pods reach each other, daemons, the API server and
// whole nodes can be ended and started, and nothing is left in the end.
func TestCluster(t *testing.T) {
	name := "smoke"
	if other := os.Getenv("CAUSEWAY_CLUSTER"); other != "" {
		name = other + "-" + name // runs that have clusters of their own do not share this one
	}
	cfg := cluster.Config{Name: name, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	// One that is up is another run's, and not ours to take down: Up refuses, too.
	if _, err := cluster.Attach(cfg); !errors.Is(err, cluster.ErrNotUp) {
		t.Fatalf("attach before up: %v, want ErrNotUp", err)
	}
	start := time.Now()
	up, err := cluster.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir := filepath.Join(os.TempDir(), "causeway-"+name+"-logs")
			t.Logf("logs in %s: %v", dir, up.CollectLogs(context.Background(), dir))
		}
		if err := up.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if l := left(cfg.Name); len(l) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
		}
	})
	t.Logf("up after %s", time.Since(start).Round(time.Millisecond))
	c, err := cluster.Attach(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(t.Context(), "get", "nodes", "--no-headers"); err != nil || strings.Count(out, "NotReady") != 4 {
		t.Fatalf("nodes without a network: %v\n%s", err, out)
	}
	standIn(t, c)
	if _, err := c.Kubectl(t.Context(), "wait", "--for=condition=Ready", "--timeout=60s", "nodes", "--all"); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(t.Context(), workload); err != nil {
		t.Fatal(err)
	}
	pods := awaitWorkload(t, c)
	pingAll(t, pods)

	t.Run("daemons", func(t *testing.T) {
		s, err := traffic.Start(t.Context(), traffic.Config{From: pods[0], To: pods[3], Target: pods[3].Addr(false)})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"containerd", "kubelet", "kube-proxy"} {
			if err := c.Node("node1").Restart(t.Context(), d); err != nil {
				t.Error(err)
			}
		}
		if err := c.Node("node1").AwaitRuntime(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.StopAPIServer(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := c.Kubectl(t.Context(), "get", "nodes", "--request-timeout=2s"); err == nil {
			t.Error("a stopped API server answers")
		}
		if err := c.StartAPIServer(t.Context()); err != nil {
			t.Error(err)
		}
		if r := s.Stop(); r.Lost > 0 {
			t.Errorf("a running pod does not need them:\n%s", r)
		}
	})

	t.Run("power", func(t *testing.T) {
		n := c.Node("node4")
		hardware := func() string {
			t.Helper()
			out, err := n.Exec(t.Context(), "cat", "/sys/class/net/eth0/address")
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		was := hardware()
		if err := n.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The kernel takes a network namespace down some time after its last process.
		for deadline := time.Now().Add(30 * time.Second); ; {
			if _, err := c.Outside().Exec(t.Context(), "ping", "-c1", "-W1", n.Addrs()[0].String()); err != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a node without power answers")
			}
		}
		if err := n.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := hardware(); now != was {
			t.Errorf("the hardware address was %s and is %s: its neighbours hold the old one", was, now)
		}
		outside := []traffic.Endpoint{{Space: c.Outside(), Addrs: []netip.Addr{netip.MustParseAddr(cluster.OutsideV4), netip.MustParseAddr(cluster.OutsideV6)}}}
		// Until the kubelet has looked, the API shows the pod as it was.
		reached := func() error {
			pods, err := c.Pods(t.Context(), "default", "app=web")
			if err != nil {
				return err
			}
			i := slices.IndexFunc(pods, func(p *cluster.Pod) bool { return p.Node.Name() == n.Name() })
			if i < 0 {
				return errors.New("no pod runs there")
			}
			if failed := traffic.PingAll(t.Context(), outside, []traffic.Endpoint{{Space: pods[i], Addrs: pods[i].Addrs}}, traffic.PingConfig{}).Failed(); len(failed) > 0 {
				return fmt.Errorf("no answer:\n%s", failed)
			}
			return nil
		}
		for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			err := reached()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the pod of %s does not come back: %v", n, err)
			}
		}
	})
}
