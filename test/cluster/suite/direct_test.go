package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/cluster"
)

// network is the name of the CNI network that Causeway installs.
const network = "k8s-pod-network"

// sandbox is a network namespace on a node that is attached by CNI directly, without kubelet:
// by cnitool, which runs the plugins of the node's own configuration. It is a traffic.Space.
type sandbox struct {
	node  *cluster.Node
	name  string
	args  string // CNI_ARGS
	conf  string // folder of the configuration; empty: the node's
	addrs []netip.Addr
}

var sandboxes atomic.Int64

// newSandbox makes a namespace that is nobody's pod, or, with a name, that of a pod whose
// object there is not.
func newSandbox(ctx context.Context, n *cluster.Node, namespace, pod string) (*sandbox, error) {
	s := &sandbox{node: n, name: fmt.Sprintf("direct%d", sandboxes.Add(1))}
	if pod != "" {
		s.args = fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%s", namespace, pod, s.name, "00000000-0000-0000-0000-000000000000")
	}
	_, err := n.Exec(ctx, "ip", "netns", "add", s.name)
	return s, err
}

// sandboxOf makes a sandbox that goes with the test.
func sandboxOf(t *testing.T, n *cluster.Node, namespace, pod string) *sandbox {
	t.Helper()
	installCnitool(t, n)
	s, err := newSandbox(t.Context(), n, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := s.remove(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// cnitool is where installCnitool puts the program, and further plugins.
const cnitool = "/run/causeway-test"

var cnitoolMu sync.Mutex

// installCnitool copies cnitool, ptp and host-local of `make plugins` to the nodes.
func installCnitool(t *testing.T, nodes ...*cluster.Node) {
	t.Helper()
	cnitoolMu.Lock()
	defer cnitoolMu.Unlock()
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		dir := n.Path(cnitool)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"cnitool", "ptp", "host-local"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				continue
			}
			b, err := os.ReadFile(filepath.Join(root, "bin", name))
			if err != nil {
				t.Fatalf("%v: run `make plugins`", err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (s *sandbox) cni(ctx context.Context, command, network string) (string, error) {
	conf := s.conf
	if conf == "" {
		conf = "/etc/cni/net.d"
	}
	out, err := s.node.Exec(ctx, "env", "CNI_PATH=/opt/cni/bin:"+cnitool, "NETCONFPATH="+conf, "CNI_ARGS="+s.args,
		cnitool+"/cnitool", command, network, "/run/netns/"+s.name)
	if err != nil {
		err = fmt.Errorf("%s: CNI %s: %w: %s", s, command, err, strings.TrimSpace(out))
	}
	return out, err
}

// add attaches the namespace and notes its addresses.
func (s *sandbox) add(ctx context.Context) error { return s.addTo(ctx, network) }

func (s *sandbox) addTo(ctx context.Context, network string) error {
	out, err := s.cni(ctx, "add", network)
	if err != nil {
		return err
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return fmt.Errorf("%s: CNI add answers %q: %w", s, out, err)
	}
	s.addrs = nil
	for _, ip := range result.IPs {
		s.addrs = append(s.addrs, ip.Address.Addr())
	}
	return nil
}

func (s *sandbox) del(ctx context.Context) error {
	_, err := s.cni(ctx, "del", network)
	return err
}

// remove detaches the namespace and deletes it; what is not attached is deleted.
func (s *sandbox) remove(ctx context.Context) error {
	if _, err := os.Stat(s.node.Path("/run/netns/" + s.name)); err != nil {
		return nil
	}
	if err := s.del(ctx); err != nil {
		return err
	}
	_, err := s.node.Exec(ctx, "ip", "netns", "del", s.name)
	return err
}

func (s *sandbox) String() string { return s.name + "@" + s.node.Name() }

// Do runs f on a thread in the sandbox's network namespace.
func (s *sandbox) Do(f func() error) error {
	return s.node.Do(func() error { // the thread ends with it
		ns, err := os.Open(s.node.Path("/run/netns/" + s.name))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%s: setns: %w", s, err)
		}
		return f()
	})
}

// adder adds and deletes one attachment after the other on a node until it is told to stop.
type adder struct {
	node    *cluster.Node
	stop    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	count   int
	longest time.Duration
	errs    []error
}

// keepAdding starts an adder on each node.
func keepAdding(t *testing.T, nodes ...*cluster.Node) (stop func()) {
	t.Helper()
	installCnitool(t, nodes...)
	var all []*adder
	for _, n := range nodes {
		a := &adder{node: n, stop: make(chan struct{})}
		a.done.Go(func() { a.run(context.WithoutCancel(t.Context())) })
		all = append(all, a)
	}
	eventually(t, time.Minute, func() error {
		for _, a := range all {
			if a.mu.Lock(); a.count == 0 && len(a.errs) == 0 {
				a.mu.Unlock()
				return fmt.Errorf("%s: nothing was added yet", a.node)
			}
			a.mu.Unlock()
		}
		return nil
	})
	return func() {
		t.Helper()
		for _, a := range all {
			close(a.stop)
		}
		for _, a := range all {
			a.done.Wait()
			t.Logf("%s: %d ADDs and DELs, the longest ADD took %s", a.node, a.count, a.longest.Round(time.Millisecond))
			for _, err := range a.errs {
				t.Error(err)
			}
		}
	}
}

func (a *adder) run(ctx context.Context) {
	for {
		select {
		case <-a.stop:
			return
		default:
		}
		s, err := newSandbox(ctx, a.node, "", "")
		var took time.Duration
		if err == nil {
			start := time.Now()
			err = s.add(ctx)
			took = time.Since(start)
			if err == nil && len(s.addrs) != 2 {
				err = fmt.Errorf("%s: addresses %v, want one of each family", s, s.addrs)
			}
			if rerr := s.remove(ctx); err == nil {
				err = rerr
			}
		}
		a.mu.Lock()
		a.count++
		a.longest = max(a.longest, took)
		if err != nil {
			a.errs = append(a.errs, err)
		}
		a.mu.Unlock()
	}
}
