// Package agent_test runs whole agents in network namespaces against a real API server, with
// the rights that the manifest gives them.
package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var server *apiserver.Server

// The API server is reached from the nodes at apiAddr, on a bridge in the test's namespace.
const (
	apiAddr  = "192.0.2.254"
	patience = 60 * time.Second // bounds every wait
)

func TestMain(m *testing.M) {
	apiserver.MainServer(m, func(s *apiserver.Server) {
		server = s
		for _, kv := range os.Environ() { // an agent refuses settings that it does not know
			if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "CAUSEWAY_") {
				os.Unsetenv(name)
			}
		}
	}, "--bind-address=0.0.0.0")
}

// cluster is a bridge with nodes on it.
type cluster struct {
	t, top   *testing.T       // the present step's; the whole test's
	clients  *kubeapi.Clients // the administrator's
	dir, bin string           // of everything; of the programs
	prefix   string           // of the names of namespaces
}

// node is one network namespace with an agent.
type node struct {
	*cluster
	name, addr string
	ns, dir    string
	agent      *exec.Cmd
	ended      chan error
	health     string
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// run runs a program and returns what it said.
func (c *cluster) run(name string, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// eventually waits until holds returns "", which otherwise says what is missing.
func (c *cluster) eventually(what string, holds func() string) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		missing := holds()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s: %s", patience, what, missing)
		}
	}
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, top: t, dir: t.TempDir(), prefix: fmt.Sprintf("cwagent%d", os.Getpid())}
	c.bin = filepath.Join(c.dir, "bin")
	c.must(os.Mkdir(c.bin, 0o755))
	c.run("go", "build", "-o", c.bin+"/", "github.com/causeway-net/causeway/cmd/causeway", "github.com/causeway-net/causeway/cmd/causeway-cni",
		"github.com/causeway-net/causeway/cmd/causewayctl", "github.com/containernetworking/plugins/plugins/meta/portmap", "github.com/containernetworking/plugins/plugins/meta/bandwidth")
	var err error
	c.clients, err = kubeapi.New(server.Config)
	c.must(err)
	c.run("ip", "link", "add", "br0", "type", "bridge")
	c.run("ip", "link", "set", "br0", "up")
	c.run("ip", "addr", "add", apiAddr+"/24", "dev", "br0")
	deploy := filepath.Join("..", "..", "..", "deploy")
	c.must(apiserver.Apply(t.Context(), server.Config, filepath.Join(deploy, "crds"),
		filepath.Join(deploy, "kustomize", "base", "causeway.yaml"), filepath.Join(deploy, "policies", "node-binding.yaml")))
	return c
}

// addNode makes the namespace of a node; no Node object yet.
func (c *cluster) addNode(name, addr string) *node {
	c.t.Helper()
	n := &node{cluster: c, name: name, addr: addr, ns: c.prefix + name, dir: filepath.Join(c.dir, name), health: "127.0.0.1:9099"}
	c.must(os.MkdirAll(filepath.Join(n.dir, "host"), 0o755))
	c.netns(n.ns)
	c.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", n.ns)
	c.run("ip", "link", "set", name, "master", "br0", "up")
	n.ip("addr", "add", addr+"/24", "dev", "eth0")
	n.ip("link", "set", "eth0", "up")
	n.ip("link", "set", "lo", "up")
	return n
}

// netns makes a network namespace that goes away with the test.
func (c *cluster) netns(name string) {
	c.t.Helper()
	c.run("ip", "netns", "add", name)
	c.top.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			c.top.Errorf("ip netns del %s: %v: %s", name, err, out)
		}
	})
}

func (n *node) ip(args ...string) string {
	n.t.Helper()
	return n.run("ip", append([]string{"-n", n.ns}, args...)...)
}

// inside is a command in the node's network namespace.
func (n *node) inside(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/var/run/netns/" + n.ns, name}, args...)...)
}

func (n *node) path(parts ...string) string {
	return filepath.Join(append([]string{n.dir}, parts...)...)
}

// register makes the Node object as a kubelet does, and the kubeconfig with the token of the
// agent's pod on it, as the DaemonSet's has.
func (n *node) register() {
	n.t.Helper()
	ctx := n.t.Context()
	core := n.clients.Core.CoreV1()
	_, err := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{corev1.LabelHostname: n.name}}}, metav1.CreateOptions{})
	n.must(err)
	n.setInternalIP(n.addr)
}

func (n *node) setInternalIP(addr string) {
	n.t.Helper()
	patch := fmt.Sprintf(`{"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}]}}`, n.name, addr)
	_, err := n.clients.Core.CoreV1().Nodes().Patch(n.t.Context(), n.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	n.must(err)
}

// writeKubeconfig asks for the token of an agent's pod, as the kubelet does.
func (n *node) writeKubeconfig() {
	n.t.Helper()
	ctx := n.t.Context()
	core := n.clients.Core.CoreV1()
	pod, err := core.Pods("kube-system").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "causeway-agent-" + n.name, Namespace: "kube-system"},
		Spec:       corev1.PodSpec{NodeName: n.name, ServiceAccountName: "causeway-agent", HostNetwork: true, Containers: []corev1.Container{{Name: "agent", Image: "causeway"}}},
	}, metav1.CreateOptions{})
	n.must(err)
	hours := int64(7200)
	token, err := core.ServiceAccounts("kube-system").CreateToken(ctx, "causeway-agent", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &hours, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}, metav1.CreateOptions{})
	n.must(err)
	n.must(os.WriteFile(n.path("kubeconfig"), fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://%s","insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`,
		net.JoinHostPort(apiAddr, "6443"), token.Status.Token), 0o600))
}

// flags are those of the agent.
func (n *node) flags(more ...string) []string {
	return append([]string{"agent", "--node-name", n.name, "--datastore", "kubernetes", "--kubeconfig", n.path("kubeconfig"),
		"--run-dir", n.path("run"), "--state-dir", n.path("state"), "--cni-conf-dir", n.path("host", "net.d"), "--health-address", n.health}, more...)
}

// start starts the agent, with more flags than all have.
func (n *node) start(more ...string) {
	n.t.Helper()
	out, err := os.OpenFile(n.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	defer out.Close()
	cmd := n.inside(filepath.Join(n.bin, "causeway"), n.flags(more...)...)
	cmd.Stderr = out
	n.agent, n.ended = cmd, n.launch(cmd)
}

// launch starts a program that ends with this process. It does so on a thread of its own:
// the kernel sends PR_SET_PDEATHSIG when the thread that forked ends.
func (c *cluster) launch(cmd *exec.Cmd) (ended chan error) {
	c.t.Helper()
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	c.must(<-started)
	return ended
}

// stop ends the agent with a signal and waits.
func (n *node) stop(signal os.Signal) error {
	if n.agent == nil {
		return nil
	}
	n.agent.Process.Signal(signal)
	n.agent = nil
	return <-n.ended
}

// onFailure shows the agent's log when the test has failed.
func (n *node) onFailure() {
	n.t.Cleanup(func() {
		n.stop(unix.SIGTERM)
		if n.t.Failed() {
			text, _ := os.ReadFile(n.path("log"))
			lines := bytes.Split(text, []byte("\n"))
			n.t.Logf("log of %s:\n%s", n.name, bytes.Join(lines[max(0, len(lines)-60):], []byte("\n")))
		}
	})
}

// status asks the agent.
func (n *node) status() (status.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return status.Fetch(ctx, n.path("run", "agent.sock"))
}

// probe asks the agent's health address, from the node.
func (n *node) probe(path string) (code int, body string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dialInside(n.ns, addr)
	}}}
	res, err := client.Get("http://" + n.health + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// object reads the Node.
func (n *node) object() *corev1.Node {
	n.t.Helper()
	o, err := n.clients.Core.CoreV1().Nodes().Get(n.t.Context(), n.name, metav1.GetOptions{})
	n.must(err)
	return o
}

// condition is NetworkUnavailable as "status reason: message".
func (n *node) condition() string {
	n.t.Helper()
	for _, c := range n.object().Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

func (n *node) becomes(what, condition string) {
	n.t.Helper()
	n.eventually(what, func() string {
		if c := n.condition(); !strings.HasPrefix(c, condition) {
			return fmt.Sprintf("NetworkUnavailable of %s is %q, want %q", n.name, c, condition)
		}
		return ""
	})
}

// pod is a network namespace, and most often a Pod object.
type pod struct {
	on       *node
	name, ns string
	uid      string
	addr     string
}

// newPod makes a pod's object and its namespace.
func (n *node) newPod(name string, annotations map[string]string) *pod {
	n.t.Helper()
	uid := n.podObject(name, annotations)
	p := n.sandbox(name)
	p.uid = uid
	return p
}

// podObject makes the Pod object.
func (n *node) podObject(name string, annotations map[string]string) (uid string) {
	n.t.Helper()
	o, err := n.clients.Core.CoreV1().Pods("default").Create(n.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	n.must(err)
	return string(o.UID)
}

// nameless is a sandbox whose runtime does not tell the pod's UID.
func (n *node) nameless(name string) *pod {
	n.t.Helper()
	p := n.sandbox(name)
	p.uid = ""
	return p
}

// sandbox makes the pod's namespace alone.
func (n *node) sandbox(name string) *pod {
	n.t.Helper()
	p := &pod{on: n, name: name, ns: n.prefix + name, uid: "5b0a6a3e-0000-4000-8000-000000000000"}
	n.netns(p.ns)
	return p
}

// cni executes the plugins of the list as a runtime does, on the node.
func (p *pod) cni(command string) (string, error) {
	cmd := p.on.inside(filepath.Join(apiserver.Bin(), "cnitool"), command, "k8s-pod-network", "/var/run/netns/"+p.ns)
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.name
	if p.uid != "" {
		args += ";K8S_POD_UID=" + p.uid
	}
	cmd.Env = append(os.Environ(), "NETCONFPATH="+p.on.path("host", "net.d"), "CNI_PATH="+p.on.path("host", "bin"), "CNI_IFNAME=eth0", "CNI_ARGS="+args)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("CNI %s of pod %s: %w: %s%s", command, p.name, err, out.String(), errs.String())
	}
	return out.String(), nil
}

// add attaches the pod.
func (p *pod) add() *pod {
	p.on.t.Helper()
	out, err := p.cni("add")
	p.on.must(err)
	var result struct {
		IPs []struct{ Address string }
	}
	p.on.must(json.Unmarshal([]byte(out), &result))
	if len(result.IPs) == 0 {
		p.on.t.Fatalf("pod %s: no address in %s", p.name, out)
	}
	p.addr, _, _ = strings.Cut(result.IPs[0].Address, "/")
	return p
}

// reaches waits until the pod's pings to an address are answered.
func (p *pod) reaches(addr string) {
	p.on.t.Helper()
	p.on.eventually("pod "+p.name+" reaches "+addr, func() string {
		if out, err := exec.Command("ip", "netns", "exec", p.ns, "ping", "-n", "-c1", "-W1", addr).CombinedOutput(); err != nil {
			return string(out)
		}
		return ""
	})
}

// reachesNot asks for long enough that what has an address, a link and a route would be reached.
func (p *pod) reachesNot(addr string) {
	p.on.t.Helper()
	if out, err := exec.Command("ip", "netns", "exec", p.ns, "ping", "-n", "-c5", "-i0.1", "-W1", addr).CombinedOutput(); err == nil {
		p.on.t.Errorf("pod %s reaches %s: %s", p.name, addr, out)
	}
}

// stream pings ten times a second until the returned function is called, which fails the test
// when an answer was lost.
func (p *pod) stream(addr string) (end func()) {
	p.on.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("ip", "netns", "exec", p.ns, "ping", "-n", "-i0.1", "-W2", addr)
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := p.on.launch(cmd)
	return func() {
		p.on.t.Helper()
		cmd.Process.Signal(unix.SIGINT)
		err := <-ended
		if !strings.Contains(out.String(), " 0% packet loss") {
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			p.on.t.Errorf("pings from %s to %s were lost (%v): %s", p.name, addr, err, strings.Join(lines[max(0, len(lines)-3):], "\n"))
		}
	}
}

// keepAdding attaches and detaches sandboxes of those names, all at once and again and again,
// until the returned function is called, which fails the test for every call that failed.
func (n *node) keepAdding(names ...string) (stop func()) {
	n.t.Helper()
	enough := make(chan struct{})
	var lanes sync.WaitGroup
	for _, name := range names {
		p := n.sandbox(name)
		lanes.Go(func() {
			for count := 0; ; count++ {
				select {
				case <-enough:
					n.t.Logf("%s: %d ADDs and DELs", name, count)
					return
				default:
				}
				for _, command := range []string{"add", "del"} {
					if _, err := p.cni(command); err != nil {
						n.t.Error(err)
					}
				}
			}
		})
	}
	return func() {
		close(enough)
		lanes.Wait()
	}
}

// events lists those about one object.
func (c *cluster) events(kind, name string) (out []string) {
	c.t.Helper()
	list, err := c.clients.Core.EventsV1().Events("").List(c.t.Context(), metav1.ListOptions{})
	c.must(err)
	for _, e := range list.Items {
		if e.Regarding.Kind == kind && e.Regarding.Name == name {
			out = append(out, fmt.Sprintf("%s %s: %s", e.Type, e.Reason, e.Note))
		}
	}
	return out
}

func (c *cluster) hasEvent(kind, name string, words ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("an event about %s %s with %q", kind, name, words), func() string {
		all := c.events(kind, name)
		for _, e := range all {
			found := true
			for _, w := range words {
				found = found && strings.Contains(e, w)
			}
			if found {
				return ""
			}
		}
		return strings.Join(all, "; ")
	})
}
