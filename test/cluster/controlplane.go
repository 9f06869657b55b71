package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
	"github.com/causeway-net/causeway/test/cluster/internal/machine"
	"github.com/causeway-net/causeway/test/cluster/internal/pki"
)

var (
	programs = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
		"containerd", "containerd-shim-runc-v2", "ctr"}
	// systemImages are what every node has from the start, in the folder of Images.
	systemImages = []string{"pause", "agnhost", "busybox"}
)

// Images is the folder of the images that `make kubernetes` makes, as docker archives.
func Images() string { return filepath.Join(filepath.Dir(apiserver.Bin()), "images") }

func program(name string) string { return filepath.Join(apiserver.Bin(), name) }

func checkPrograms() error {
	var missing []string
	for _, p := range programs {
		if _, err := os.Stat(program(p)); err != nil {
			missing = append(missing, program(p))
		}
	}
	for _, image := range systemImages {
		if path := filepath.Join(Images(), image+".tar"); !exists(path) {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s: run `make kubernetes`", strings.Join(missing, ", "))
	}
	for _, p := range []string{"runc", "iptables", "conntrack"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: run `make kubernetes`, which installs it", err)
		}
	}
	return nil
}

// inotifyNeed is how many inotify instances the programs of a cluster hold: kubelets a
// dozen each, containerd four, the control plane and Causeway the rest.
const inotifyNeed = 64

// checkInotify refuses to start what would fail in the middle: instances are counted for
// a user, over all of the computer, and Linux allows 128.
func checkInotify() error {
	const sysctl = "/proc/sys/fs/inotify/max_user_instances"
	b, err := os.ReadFile(sysctl)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", sysctl, err)
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	used := 0
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && link == "anon_inode:inotify" {
			used++
		}
	}
	if limit-used < inotifyNeed {
		return fmt.Errorf("sysctl fs.inotify.max_user_instances is %d, %d are in use, and a cluster needs %d: take another cluster down, or `sysctl -w fs.inotify.max_user_instances=512`", limit, used, inotifyNeed)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (c *Cluster) pki(file string) string { return filepath.Join(c.dir, "pki", file) }

// Kubeconfig is a file with the administrator's access. Its address answers in the
// control plane's network namespace and on the nodes.
func (c *Cluster) Kubeconfig() string { return c.pki("admin.conf") }

func apiURL() string { return fmt.Sprintf("https://%s:6443", controlPlane.v4.Addr()) }

func (c *Cluster) writeKeys() error {
	a, err := pki.New(filepath.Join(c.dir, "pki"))
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	errs := []error{
		a.Issue(pki.Subject{File: "apiserver", User: "kube-apiserver", Server: []string{controlPlane.v4.Addr().String(), controlPlane.v6.Addr().String(),
			"127.0.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}}),
		a.Issue(pki.Subject{File: "apiserver-kubelet", User: "apiserver-kubelet", Group: "system:masters"}),
		a.Issue(pki.Subject{File: "front-proxy", User: "front-proxy-client"}),
		a.Kubeconfig(pki.Subject{File: "admin", User: "admin", Group: "system:masters"}, apiURL()),
		a.Kubeconfig(pki.Subject{File: "kcm", User: "system:kube-controller-manager"}, apiURL()),
		a.Kubeconfig(pki.Subject{File: "scheduler", User: "system:kube-scheduler"}, apiURL()),
		a.Kubeconfig(pki.Subject{File: "kube-proxy", User: "system:kube-proxy"}, apiURL()),
	}
	for _, n := range c.nodes {
		errs = append(errs, a.Kubeconfig(pki.Subject{File: n.place.name, User: "system:node:" + n.place.name, Group: "system:nodes"}, apiURL()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	return nil
}

func (c *Cluster) bootControlPlane(ctx context.Context) error {
	var err error
	c.cp, err = machine.Boot(ctx, machine.Config{Hostname: controlPlane.name, Dir: c.machineDir(controlPlane.name),
		Cgroup: c.cgroup(controlPlane), Dirs: []string{"/var/lib/etcd", "/var/log/kubernetes"},
		Files: map[string]string{"/etc/kubernetes/audit.yaml": auditPolicy}, Sysctls: sysctls})
	return err
}

func (c *Cluster) cgroup(p place) string { return "causeway-" + c.cfg.Name + "-" + p.name }

// auditPolicy records who asked for what, without the objects, and not the probes.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: [/healthz*, /livez*, /readyz*, /version]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
  users: ["system:kube-controller-manager", "system:kube-scheduler"]
- level: Metadata
`

// AuditLog is the file with the API server's audit events (level Metadata), one JSON
// object a line.
func (c *Cluster) AuditLog() string {
	return filepath.Join(c.machineDir(controlPlane.name), "fs/var/log/kubernetes/audit.log")
}

var daemonEnv = []string{"PATH=" + machine.Path, "HOME=/root"}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.cp.Keep(ctx, machine.Daemon{Name: "etcd", Env: daemonEnv, Argv: []string{program("etcd"), "--data-dir=/var/lib/etcd", "--unsafe-no-fsync",
		"--log-level=warn", "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380"}}); err != nil {
		return err
	}
	if err := c.cp.Keep(ctx, machine.Daemon{Name: "kube-apiserver", Env: daemonEnv, Argv: c.apiserverArgs()}); err != nil {
		return err
	}
	if err := c.AwaitAPIServer(ctx); err != nil {
		return err
	}
	kubeconfig := func(name string) []string {
		return []string{"--kubeconfig=" + c.pki(name), "--authentication-kubeconfig=" + c.pki(name), "--authorization-kubeconfig=" + c.pki(name),
			"--bind-address=127.0.0.1", "--leader-elect=false"}
	}
	kcm := append([]string{program("kube-controller-manager")}, kubeconfig("kcm.conf")...)
	kcm = append(kcm, "--service-account-private-key-file="+c.pki("sa.key"), "--root-ca-file="+c.pki("ca.crt"),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"), "--use-service-account-credentials=true",
		"--allocate-node-cidrs=true", "--cluster-cidr="+PodCIDR4+","+PodCIDR6, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64",
		"--service-cluster-ip-range="+ServiceCIDR4+","+ServiceCIDR6)
	if err := c.cp.Keep(ctx, machine.Daemon{Name: "kube-controller-manager", Env: daemonEnv, Argv: kcm}); err != nil {
		return err
	}
	scheduler := append([]string{program("kube-scheduler")}, kubeconfig("scheduler.conf")...)
	if err := c.cp.Keep(ctx, machine.Daemon{Name: "kube-scheduler", Env: daemonEnv, Argv: scheduler}); err != nil {
		return err
	}
	return c.Apply(ctx, proxyRights+kubeadmConfig)
}

const proxyRights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-proxy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-proxier"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:kube-proxy"}]
`

// kubeadmConfig is where kubeadm says what the cluster's ranges are.
const kubeadmConfig = `---
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  ClusterConfiguration: |
    apiVersion: kubeadm.k8s.io/v1beta4
    kind: ClusterConfiguration
    networking: {podSubnet: "` + PodCIDR4 + "," + PodCIDR6 + `", serviceSubnet: "` + ServiceCIDR4 + "," + ServiceCIDR6 + `", dnsDomain: cluster.local}
`

func (c *Cluster) apiserverArgs() []string {
	return []string{program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + controlPlane.v4.Addr().String(),
		"--bind-address=::", "--secure-port=6443", "--service-cluster-ip-range=" + ServiceCIDR4 + "," + ServiceCIDR6,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--client-ca-file=" + c.pki("ca.crt"), "--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + c.pki("apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-key-file=" + c.pki("sa.pub"), "--service-account-signing-key-file=" + c.pki("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--requestheader-client-ca-file=" + c.pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + c.pki("front-proxy.crt"), "--proxy-client-key-file=" + c.pki("front-proxy.key"), "--enable-aggregator-routing=true",
		"--audit-policy-file=/etc/kubernetes/audit.yaml", "--audit-log-path=/var/log/kubernetes/audit.log", "--audit-log-maxsize=4096"}
}

// StopAPIServer ends the API server, and only it; etcd keeps what it knows.
func (c *Cluster) StopAPIServer(ctx context.Context) error { return c.cp.Stop(ctx, "kube-apiserver") }

// StartAPIServer starts it again and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.cp.Resume(ctx, "kube-apiserver"); err != nil {
		return err
	}
	return c.AwaitAPIServer(ctx)
}

// AwaitAPIServer waits until the API server says that it is ready, two minutes at most.
func (c *Cluster) AwaitAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	h, err := rest.HTTPClientFor(c.Config())
	if err != nil {
		return err
	}
	err = poll(ctx, 50*time.Millisecond, func() error {
		resp, err := h.Get(apiURL() + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("/readyz: %s", resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver (log: %s): %w", c.cp.LogPath("kube-apiserver"), err)
	}
	return nil
}

// Config is the administrator's access for clients in this process, from any network
// namespace: connections are made in the control plane's.
func (c *Cluster) Config() *rest.Config {
	return &rest.Config{Host: apiURL(), QPS: 1000, Burst: 2000, Dial: c.cp.Dial,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.pki("ca.crt"), CertFile: c.pki("admin.crt"), KeyFile: c.pki("admin.key")}}
}

// Kubectl runs kubectl as the administrator and returns what it prints.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return machine.Output(ctx, c.KubectlCommand(ctx, args...), c.cp.StartNet)
}

// KubectlCommand prepares kubectl for StartKubectl: the caller may set its input and
// output.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.dir, "kubectl-cache"))
	if wd, err := os.Getwd(); err == nil {
		cmd.Dir = wd
	}
	return cmd
}

// StartKubectl starts any command in the control plane's network namespace, where the
// API server's address answers; the caller waits for it.
func (c *Cluster) StartKubectl(cmd *exec.Cmd) error { return c.cp.StartNet(cmd) }

// Apply is `kubectl apply` of manifests.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	cmd := c.KubectlCommand(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	_, err := machine.Output(ctx, cmd, c.cp.StartNet)
	return err
}
