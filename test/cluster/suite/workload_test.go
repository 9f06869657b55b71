package suite

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// namespace makes a namespace for one scenario, which goes with all in it when the
// scenario ends. Of one that failed the logs are kept first: later ones restart what said why.
func namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if t.Failed() {
			dir := filepath.Join(logsDir(), name)
			t.Logf("logs are in %s", dir)
			if err := c.CollectLogs(ctx, dir); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Kubectl(ctx, "delete", "namespace", name, "--timeout=110s"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// kubectl runs kubectl; an error ends the test.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// apply applies manifests, as fmt.Sprintf makes them of format and args.
func apply(t *testing.T, format string, args ...any) {
	t.Helper()
	if err := c.Apply(t.Context(), fmt.Sprintf(format, args...)); err != nil {
		t.Fatal(err)
	}
}

// webPod is the template of pods that answer HTTP and UDP on 8080 with who they are
// (agnhost netexec); extra lines go into the container.
func webPod(app string, extra ...string) string {
	return fmt.Sprintf(`
    metadata: {labels: {app: %s}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers:
      - name: web
        image: %s
        imagePullPolicy: Never
        args: [netexec, --http-port=8080, --udp-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
        %s`, app, cluster.AgnhostImage, strings.Join(extra, "\n        "))
}

// daemonSet starts a web pod on every node and returns them.
func daemonSet(t *testing.T, ns, app string, extra ...string) []*cluster.Pod {
	t.Helper()
	apply(t, `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:%[3]s
`, app, ns, webPod(app, extra...))
	rollout(t, ns, "daemonset/"+app)
	return pods(t, ns, "app="+app, len(c.Nodes()))
}

// deployment starts web pods, spread over the nodes, and returns them.
func deployment(t *testing.T, ns, app string, replicas int, extra ...string) []*cluster.Pod {
	t.Helper()
	apply(t, `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:%[4]s
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: %[1]s}}}
`, app, ns, replicas, webPod(app, extra...))
	rollout(t, ns, "deployment/"+app)
	return pods(t, ns, "app="+app, replicas)
}

func rollout(t *testing.T, ns, what string) {
	t.Helper()
	kubectl(t, "-n", ns, "rollout", "status", "--timeout=120s", what)
}

// pods waits until want pods that a selector picks run, each with an address of either
// family, and returns them. What a rollout says is no proof: it may be older than a node.
func pods(t *testing.T, ns, selector string, want int) (list []*cluster.Pod) {
	t.Helper()
	eventually(t, 2*time.Minute, func() (err error) {
		if list, err = c.Pods(t.Context(), ns, selector); err != nil {
			return err
		}
		if len(list) != want {
			return fmt.Errorf("%s: %d pods of %s run, want %d", ns, len(list), selector, want)
		}
		for _, p := range list {
			if !p.Addr(false).IsValid() || !p.Addr(true).IsValid() {
				return fmt.Errorf("%s has addresses %v, want one of either family", p, p.Addrs)
			}
		}
		return nil
	})
	return list
}

// get asks for an HTTP path from a place in the network and returns the answer.
func get(ctx context.Context, from traffic.Space, host string, port int, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	h := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var conn net.Conn
		err := from.Do(func() error {
			var d net.Dialer
			var err error
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, fmt.Sprint(port))+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := h.Do(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", from, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", from, req.URL, resp.Status)
	}
	return string(b), err
}

// seenAs returns the address from which a web pod sees a place in the network.
func seenAs(ctx context.Context, from traffic.Space, host string, port int) (netip.Addr, error) {
	out, err := get(ctx, from, host, port, "/clientip")
	if err != nil {
		return netip.Addr{}, err
	}
	ap, err := netip.ParseAddrPort(out)
	return ap.Addr().Unmap(), err
}

// eventually asks until the answer is nil; it fails the test after a time.
func eventually(t *testing.T, within time.Duration, ask func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
	}
}

// ends makes pods places for a ping matrix.
func ends(pods []*cluster.Pod) []traffic.Endpoint {
	var out []traffic.Endpoint
	for _, p := range pods {
		out = append(out, traffic.Endpoint{Space: p, Addrs: p.Addrs})
	}
	return out
}

// nodeEnds makes the nodes places for a ping matrix.
func nodeEnds() []traffic.Endpoint {
	var out []traffic.Endpoint
	for _, n := range c.Nodes() {
		out = append(out, traffic.Endpoint{Space: n, Addrs: n.Addrs()})
	}
	return out
}

// outside is the host beyond the spine, for a ping matrix.
func outside() []traffic.Endpoint {
	return []traffic.Endpoint{{Space: c.Outside(), Addrs: []netip.Addr{netip.MustParseAddr(cluster.OutsideV4), netip.MustParseAddr(cluster.OutsideV6)}}}
}

// pinging bounds a ping: routes to a block that was just claimed are on their way for a moment.
var pinging = traffic.PingConfig{Timeout: 15 * time.Second}

// pingFrom returns nil when an address answers a place in the network.
func pingFrom(ctx context.Context, from traffic.Space, to netip.Addr) error {
	target := traffic.Endpoint{Space: c.Outside(), Addrs: []netip.Addr{to}} // only the address counts
	if failed := traffic.PingAll(ctx, []traffic.Endpoint{{Space: from}}, []traffic.Endpoint{target}, pinging).Failed(); len(failed) > 0 {
		return fmt.Errorf("%s -> %s: no answer", from, to)
	}
	return nil
}

// ping fails the test for every pair without an answer.
func ping(t *testing.T, from, to []traffic.Endpoint) {
	t.Helper()
	if failed := traffic.PingAll(t.Context(), from, to, pinging).Failed(); len(failed) > 0 {
		t.Errorf("no answer:\n%s", failed)
	}
}
