package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
)

// Node is a machine with a kubelet. It is a traffic.Space.
type Node struct {
	place   place
	cluster *Cluster
	machine *machine.Machine
}

// RackLabel is the label of a node that names its rack: "rack1", "rack2".
const RackLabel = "topology.kubernetes.io/zone"

// Name is the node's name, in Kubernetes, too.
func (n *Node) Name() string { return n.place.name }

// String is the node's name.
func (n *Node) String() string { return n.place.name }

// Rack is 1 or 2.
func (n *Node) Rack() int { return n.place.rack }

// Addrs are the node's addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr { return []netip.Addr{n.place.v4.Addr(), n.place.v6.Addr()} }

func (n *Node) dir() string { return n.cluster.machineDir(n.place.name) }

// Exec runs a command in the node's namespaces and returns its standard output. An error
// carries the standard error.
func (n *Node) Exec(ctx context.Context, cmd ...string) (string, error) {
	out, err := n.machine.Exec(ctx, cmd...)
	if err != nil {
		return out, fmt.Errorf("%s: %w", n.place.name, err)
	}
	return out, nil
}

// Start starts a prepared command in the node's namespaces; the caller waits for it.
func (n *Node) Start(cmd *exec.Cmd) error { return n.machine.Start(cmd) }

// Do runs f on a thread in the node's network namespace.
func (n *Node) Do(f func() error) error { return n.machine.Do(f) }

// Path is where this computer sees an absolute path of the node's file system.
func (n *Node) Path(path string) string { return n.machine.Root() + path }

// NetNS is the path of the node's network namespace, while it is on.
func (n *Node) NetNS() string { return n.machine.NetNS() }

// LogPath is the file with what a daemon of the node said: "kubelet".
func (n *Node) LogPath(daemon string) string { return n.machine.LogPath(daemon) }

// Restart ends a daemon with SIGTERM and starts it: "containerd", "kubelet" or
// "kube-proxy". Containers live on.
func (n *Node) Restart(ctx context.Context, daemon string) error {
	return n.machine.Restart(ctx, daemon)
}

// Stop ends a daemon until Resume.
func (n *Node) Stop(ctx context.Context, daemon string) error { return n.machine.Stop(ctx, daemon) }

// Resume starts a daemon that was stopped.
func (n *Node) Resume(ctx context.Context, daemon string) error {
	return n.machine.Resume(ctx, daemon)
}

// PowerOff pulls the plug. Links, routes and rules are gone, the disk stays.
func (n *Node) PowerOff(ctx context.Context) error { return n.machine.PowerOff(ctx) }

// PowerOn boots the node again and returns when its kubelet has started.
func (n *Node) PowerOn(ctx context.Context) error {
	err := n.boot(ctx)
	if err == nil {
		err = n.cluster.plug(n.machine, n.place)
	}
	if err == nil {
		err = n.startRuntime(ctx)
	}
	if err == nil {
		err = n.startKubelet(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: power on: %w", n.place.name, err)
	}
	return nil
}

var sysctls = map[string]string{
	// Addresses are usable at once: no duplicate address detection.
	"net.ipv6.conf.all.accept_dad":     "0",
	"net.ipv6.conf.default.accept_dad": "0",
	"net.ipv6.conf.all.accept_ra":      "0",
	"net.ipv6.conf.default.accept_ra":  "0",
	"net.ipv4.ip_forward":              "1",
	"net.ipv6.conf.all.forwarding":     "1",
	"net.ipv4.conf.all.rp_filter":      "0",
	"net.ipv4.conf.default.rp_filter":  "0",
}

func (n *Node) boot(ctx context.Context) error {
	p := n.place
	var err error
	n.machine, err = machine.Boot(ctx, machine.Config{Hostname: p.name, Dir: n.dir(), Cgroup: n.cluster.cgroup(p),
		Dirs: []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/lib/causeway", "/var/log/pods", "/var/log/containers",
			"/etc/cni/net.d", "/opt/cni/bin"},
		Files: map[string]string{
			"/etc/hosts":                   fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", p.v4.Addr(), p.name),
			"/etc/containerd/config.toml":  containerdConfig(),
			"/etc/kubernetes/kubelet.yaml": n.kubeletConfig(),
			"/etc/kubernetes/proxy.yaml":   n.proxyConfig(),
			// Nobody answers there: names of registries are refused at once.
			"/etc/resolv.conf": "nameserver 127.0.0.1\n",
		},
		// What kubelet and kube-proxy set and what is the whole computer's.
		Masks: map[string]string{"vm.overcommit_memory": "1", "vm.panic_on_oom": "0", "kernel.panic": "10", "kernel.panic_on_oops": "1",
			"kernel.keys.root_maxkeys": "1000000", "kernel.keys.root_maxbytes": "25000000"},
		Sysctls: sysctls})
	return err
}

// containerdConfig: the plugins left out need what is not here. restrict_oom_score_adj
// lets containers start without CAP_SYS_RESOURCE.
func containerdConfig() string {
	runc, err := exec.LookPath("runc")
	if err != nil {
		runc = "runc" // checkPrograms has found it
	}
	return fmt.Sprintf(`version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.native', 'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing']
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10.2'
[plugins.'io.containerd.cri.v1.runtime']
  enable_criu = false
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '%s'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/opt/cni/bin']
    conf_dir = '/etc/cni/net.d'
    use_internal_loopback = true
[plugins.'io.containerd.internal.v1.opt']
  path = '/var/lib/containerd/opt'
`, runc)
}

// kubeletConfig: images cannot be pulled, so none is ever collected.
func (n *Node) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
failSwapOn: false
maxPods: 250
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
volumePluginDir: /var/lib/kubelet/volume-plugins
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
`, n.cluster.pki("ca.crt"), DNSAddress)
}

// proxyConfig: connection tracking limits are the whole computer's and stay.
func (n *Node) proxyConfig() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: "%s,%s"
clientConnection: {kubeconfig: %q}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, n.cluster.cfg.ProxyMode, n.place.name, PodCIDR4, PodCIDR6, n.cluster.pki("kube-proxy.conf"))
}

// nodeEnv: containerd looks for its shim in PATH.
func nodeEnv() []string {
	return []string{"PATH=" + filepath.Dir(program("containerd")) + ":" + machine.Path, "HOME=/root"}
}

func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.machine.Keep(ctx, machine.Daemon{Name: "containerd", Env: nodeEnv(), Argv: []string{program("containerd"), "--config=/etc/containerd/config.toml"}}); err != nil {
		return err
	}
	if err := n.AwaitRuntime(ctx); err != nil {
		return err
	}
	return n.LoadImage(ctx, filepath.Join(Images(), "pause.tar"))
}

// AwaitRuntime waits until containerd answers, a minute at most.
func (n *Node) AwaitRuntime(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return poll(ctx, 50*time.Millisecond, func() error {
		if !exists(n.Path("/run/containerd/containerd.sock")) {
			return errors.New("containerd has no socket yet")
		}
		_, err := n.machine.Exec(ctx, program("ctr"), "version")
		return err
	})
}

func (n *Node) startKubelet(ctx context.Context) error {
	p := n.place
	if err := n.machine.Keep(ctx, machine.Daemon{Name: "kubelet", Env: nodeEnv(), Argv: []string{program("kubelet"), "--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig=" + n.cluster.pki(p.name+".conf"), "--node-ip=" + p.v4.Addr().String() + "," + p.v6.Addr().String(),
		"--hostname-override=" + p.name, "--cert-dir=/var/lib/kubelet/pki", fmt.Sprintf("--node-labels=%s=rack%d", RackLabel, p.rack), "--v=2"}}); err != nil {
		return err
	}
	return n.machine.Keep(ctx, machine.Daemon{Name: "kube-proxy", Env: nodeEnv(), Argv: []string{program("kube-proxy"), "--config=/etc/kubernetes/proxy.yaml", "--v=2"}})
}

// LoadImage imports a docker archive under the names it holds, never to be collected.
func (n *Node) LoadImage(ctx context.Context, tar string) error {
	f, err := os.Open(tar)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, program("ctr"), "-n", "k8s.io", "images", "import", "--label", "io.cri-containerd.pinned=pinned", "-")
	cmd.Stdin = f
	if _, err := machine.Output(ctx, cmd, n.machine.Start); err != nil {
		return fmt.Errorf("%s: image %s: %w", n.place.name, tar, err)
	}
	return nil
}

// LoadImage imports docker archives on all nodes.
func (c *Cluster) LoadImage(ctx context.Context, tars ...string) error {
	return c.eachNode(func(n *Node) error {
		for _, tar := range tars {
			if err := n.LoadImage(ctx, tar); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Cluster) loadImages(ctx context.Context) error {
	var tars []string
	for _, name := range systemImages {
		if name != "pause" { // it came with the runtime
			tars = append(tars, filepath.Join(Images(), name+".tar"))
		}
	}
	return c.LoadImage(ctx, tars...)
}

// awaitRegistered waits until the API knows all nodes and the pod ranges they get.
func (c *Cluster) awaitRegistered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return err
	}
	return poll(ctx, 100*time.Millisecond, func() error {
		list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		missing := map[string]bool{}
		for _, n := range c.nodes {
			missing[n.place.name] = true
		}
		for _, n := range list.Items {
			if n.Spec.PodCIDR != "" {
				delete(missing, n.Name)
			}
		}
		if len(missing) > 0 {
			var names []string
			for _, n := range c.nodes {
				if missing[n.place.name] {
					names = append(names, n.place.name+" (log: "+n.LogPath("kubelet")+")")
				}
			}
			return fmt.Errorf("nodes that have not registered: %s", strings.Join(names, ", "))
		}
		return nil
	})
}
