package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// PodOptions say how a pod is attached. The zero value does.
type PodOptions struct {
	// Netconf is a CNI configuration list (JSON). Empty: the first *.conflist of the
	// node's /etc/cni/net.d, or else DefaultConflist.
	Netconf []byte
	// Namespace is the Kubernetes namespace told to the plugin; default "default".
	Namespace string
	// UID is the pod's UID told to the plugin; default derived from the container id.
	UID string
	// ContainerID is CNI's container id; default random.
	ContainerID string
	// IfName is the interface in the pod; default eth0.
	IfName string
	// IPs asks for addresses (capability "ips").
	IPs []netip.Addr
	// Capabilities are further capability arguments ("portMappings", "bandwidth").
	Capabilities map[string]any
	// Args are further CNI_ARGS, key and value.
	Args [][2]string
}

// DefaultConflist is the network that pods join where the node has no configuration.
const DefaultConflist = `{
  "cniVersion": "1.1.0",
  "name": "causeway",
  "plugins": [{"type": "causeway-cni", "capabilities": {"ips": true}}]
}`

// Pod is a network namespace on a node, held by a process, and attached by CNI.
type Pod struct {
	Name        string         `json:"name"`
	Namespace   string         `json:"namespace"`
	ContainerID string         `json:"containerID"`
	IfName      string         `json:"ifName"`
	Addresses   []netip.Prefix `json:"addresses"` // as ADD answered
	// Holder is the process that stands for the pod's containers, as this machine
	// sees it.
	Holder int `json:"holder"`
	// Result is what ADD answered, CNI 1.0 or later; empty while not attached.
	Result json.RawMessage `json:"result,omitempty"`

	Netconf      []byte         `json:"netconf"`
	Args         [][2]string    `json:"args"`
	Capabilities map[string]any `json:"capabilities,omitempty"`

	node *Node
}

// AddPod makes a pod and attaches it with the CNI plugins of the lab. When ADD fails it
// calls DEL, as a container runtime does, and removes the namespace.
func (n *Node) AddPod(ctx context.Context, name string, o PodOptions) (*Pod, error) {
	p, err := n.NewSandbox(ctx, name, o)
	if err != nil {
		return nil, err
	}
	if err := p.Attach(ctx); err != nil {
		// The caller's context may be over; cleaning up is not optional.
		return nil, errors.Join(err, n.DeletePod(context.WithoutCancel(ctx), name))
	}
	return p, nil
}

// NewSandbox makes a pod's network namespace and its holder, with nothing in it but lo.
func (n *Node) NewSandbox(ctx context.Context, name string, o PodOptions) (*Pod, error) {
	if !nodeName.MatchString(name) {
		return nil, fmt.Errorf("pod %q: a name is made of letters, digits, '-', '_' and '.'", name)
	}
	if n.Pod(name) != nil {
		return nil, fmt.Errorf("node %s: pod %s is there already", n.Spec.Name, name)
	}
	p := &Pod{Name: name, Namespace: first(o.Namespace, "default"), ContainerID: o.ContainerID, IfName: first(o.IfName, "eth0"),
		Netconf: o.Netconf, Capabilities: o.Capabilities, node: n}
	if p.ContainerID == "" {
		var b [16]byte
		rand.Read(b[:])
		p.ContainerID = hex.EncodeToString(b[:])
	}
	if len(o.IPs) > 0 {
		ips := make([]string, len(o.IPs))
		for i, ip := range o.IPs {
			ips[i] = ip.String()
		}
		p.Capabilities = map[string]any{"ips": ips}
		for k, v := range o.Capabilities {
			p.Capabilities[k] = v
		}
	}
	uid := o.UID
	if uid == "" {
		sum := fmt.Sprintf("%-32s", p.ContainerID)
		uid = strings.ReplaceAll(fmt.Sprintf("%s-%s-%s-%s-%s", sum[:8], sum[8:12], sum[12:16], sum[16:20], sum[20:32]), " ", "0")
	}
	p.Args = append([][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID}, {"K8S_POD_UID", uid}}, o.Args...)
	if p.Netconf == nil {
		var err error
		if p.Netconf, err = n.conflist(); err != nil {
			return nil, err
		}
	}
	if err := p.save(); err != nil { // before it exists, so that DeletePod finds it
		return nil, err
	}
	if _, err := ask(ctx, n.dir, request{Op: "start", Name: p.process(), Argv: []string{"/usr/bin/sleep", "infinity"}, Env: n.environ(), NetNS: name}); err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: pod %s: %w", n.Spec.Name, name, err), n.DeletePod(context.WithoutCancel(ctx), name))
	}
	err := func() error {
		r, err := ask(ctx, n.dir, request{Op: "list"})
		if err != nil {
			return err
		}
		for _, s := range r.Processes {
			if s.Name == p.process() && s.Running {
				p.Holder = n.hostPID(s.PID)
			}
		}
		if p.Holder == 0 {
			return errors.New("its holder ended at once")
		}
		h, err := handleAt(p.hostNetNS())
		if err != nil {
			return err
		}
		defer h.Close()
		if err := upByName(h, "lo"); err != nil {
			return fmt.Errorf("lo: %w", err)
		}
		return p.save()
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: pod %s: %w", n.Spec.Name, name, err), n.DeletePod(context.WithoutCancel(ctx), name))
	}
	return p, nil
}

// DeletePod detaches a pod (CNI DEL), ends its holder and removes its namespace. When DEL
// fails the pod stays, so that it can be tried again, as kubelet does.
func (n *Node) DeletePod(ctx context.Context, name string) error {
	p := n.Pod(name)
	if p == nil {
		return fmt.Errorf("node %s: there is no pod %s", n.Spec.Name, name)
	}
	if err := p.Detach(ctx); err != nil {
		return err
	}
	return p.RemoveSandbox(ctx)
}

// Pods returns the node's pods, sorted by name.
func (n *Node) Pods() []*Pod {
	files, _ := filepath.Glob(filepath.Join(n.dir, "pods", "*.json"))
	var out []*Pod
	for _, f := range files {
		if p := n.loadPod(f); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// Pod returns the pod with that name, or nil.
func (n *Node) Pod(name string) *Pod { return n.loadPod(filepath.Join(n.dir, "pods", name+".json")) }

func (n *Node) loadPod(file string) *Pod {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	p := &Pod{node: n}
	if json.Unmarshal(b, p) != nil {
		return nil
	}
	return p
}

func (p *Pod) file() string    { return filepath.Join(p.node.dir, "pods", p.Name+".json") }
func (p *Pod) process() string { return "pod-" + p.Name }
func (p *Pod) save() error {
	if err := os.MkdirAll(filepath.Dir(p.file()), 0o755); err != nil {
		return err
	}
	return writeJSON(p.file(), p)
}

// Node is the node the pod runs on.
func (p *Pod) Node() *Node { return p.node }

// String is node/pod.
func (p *Pod) String() string { return p.node.Spec.Name + "/" + p.Name }

// NetNS is the path of the pod's network namespace as the node sees it: CNI_NETNS.
func (p *Pod) NetNS() string { return netnsPath(p.Name) }

func (p *Pod) hostNetNS() string { return fmt.Sprintf("/proc/%d/ns/net", p.Holder) }

// Address returns the pod's IPv4 or IPv6 address; the zero Addr if it has none.
func (p *Pod) Address(v6 bool) netip.Addr {
	for _, a := range p.Addresses {
		if a.Addr().Is6() == v6 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// Exec runs a command in the pod's network namespace, with the node's file system.
func (p *Pod) Exec(ctx context.Context, args ...string) (string, error) {
	return p.node.exec(ctx, p.NetNS(), args)
}

// Command prepares a command in the pod; see Node.Command.
func (p *Pod) Command(ctx context.Context, args ...string) *exec.Cmd {
	return p.node.command(ctx, p.NetNS(), args)
}

// Do runs f on a thread in the pod's network namespace; see Node.Do.
func (p *Pod) Do(f func() error) error {
	return inThread(func() error {
		if err := enter(p.node.init, p.NetNS(), "mnt", "net"); err != nil {
			return fmt.Errorf("pod %s: %w", p, err)
		}
		return f()
	})
}

// Attach calls ADD.
func (p *Pod) Attach(ctx context.Context) error {
	list, rt, err := p.cni()
	if err != nil {
		return err
	}
	res, err := p.node.libcni().AddNetworkList(ctx, list, rt)
	if err != nil {
		return fmt.Errorf("pod %s: ADD: %w", p, err)
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return fmt.Errorf("pod %s: ADD answered: %w", p, err)
	}
	p.Addresses = nil
	for _, c := range r.IPs {
		ip, _ := netip.AddrFromSlice(c.Address.IP)
		bits, _ := c.Address.Mask.Size()
		p.Addresses = append(p.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
	}
	if p.Result, err = json.Marshal(r); err != nil {
		return err
	}
	return p.save()
}

// Detach calls DEL; the namespace stays.
func (p *Pod) Detach(ctx context.Context) error {
	list, rt, err := p.cni()
	if err != nil {
		return err
	}
	if err := p.node.libcni().DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("pod %s: DEL: %w", p, err)
	}
	p.Addresses, p.Result = nil, nil
	return p.save()
}

// Check calls CHECK.
func (p *Pod) Check(ctx context.Context) error {
	list, rt, err := p.cni()
	if err != nil {
		return err
	}
	if err := p.node.libcni().CheckNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("pod %s: CHECK: %w", p, err)
	}
	return nil
}

// RemoveSandbox ends the pod's holder and removes its namespace without calling DEL, as a
// node's crash does.
func (p *Pod) RemoveSandbox(ctx context.Context) error {
	fail := func(err error) error { return fmt.Errorf("pod %s: %w", p, err) }
	// The holder may have been killed, or never started.
	r, err := ask(ctx, p.node.dir, request{Op: "list"})
	if err != nil {
		return fail(err)
	}
	for _, s := range r.Processes {
		if s.Name == p.process() && s.Running {
			_, serr := ask(ctx, p.node.dir, request{Op: "signal", Name: p.process(), Signal: int(syscall.SIGKILL)})
			if _, err := ask(ctx, p.node.dir, request{Op: "wait", Name: p.process()}); err != nil {
				return fail(errors.Join(serr, err))
			}
		}
	}
	if _, err := ask(ctx, p.node.dir, request{Op: "forget", Name: p.process(), NetNS: p.Name}); err != nil {
		return fail(err)
	}
	return os.Remove(p.file())
}

// GC calls GC with the attachments of all pods of the node as valid ones.
func (n *Node) GC(ctx context.Context) error {
	conf, err := n.conflist()
	if err != nil {
		return err
	}
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{}
	for _, p := range n.Pods() {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ContainerID, IfName: p.IfName})
	}
	if err := n.libcni().GCNetworkList(ctx, list, args); err != nil {
		return fmt.Errorf("node %s: GC: %w", n.Spec.Name, err)
	}
	return nil
}

// CNIStatus calls STATUS; nil means that the node is ready for pods.
func (n *Node) CNIStatus(ctx context.Context) error {
	conf, err := n.conflist()
	if err != nil {
		return err
	}
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return err
	}
	if err := n.libcni().GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("node %s: STATUS: %w", n.Spec.Name, err)
	}
	return nil
}

// AwaitCNI waits until STATUS says that the node is ready for pods, as kubelet does
// before it starts any; when ctx ends first, the error is what STATUS said last.
func (n *Node) AwaitCNI(ctx context.Context) error {
	for {
		err := n.CNIStatus(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// conflist returns the network configuration list that pods of this node get.
func (n *Node) conflist() ([]byte, error) {
	files, err := libcni.ConfFiles(n.Path("/etc/cni/net.d"), []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return []byte(DefaultConflist), nil
	}
	slices.Sort(files)
	return os.ReadFile(files[0])
}

func (p *Pod) cni() (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := libcni.NetworkConfFromBytes(p.Netconf)
	if err != nil {
		return nil, nil, fmt.Errorf("pod %s: network configuration: %w", p, err)
	}
	return list, &libcni.RuntimeConf{ContainerID: p.ContainerID, NetNS: p.NetNS(), IfName: p.IfName,
		Args: p.Args, CapabilityArgs: p.Capabilities}, nil
}

func (n *Node) libcni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(append([]string{n.lab.opts.BinDir}, n.lab.opts.CNIPath...), filepath.Join(n.dir, "cni"), &nodeExec{node: n})
}

// nodeExec runs CNI plugins inside a node; libcni itself stays outside.
type nodeExec struct {
	node *Node
	version.PluginDecoder
}

func (e *nodeExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (e *nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Dir, cmd.Stdin = environ, "/", bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := startIn(e.node.init, "", cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	// A plugin reports its failure as JSON on standard output (CNI spec, section 5).
	var perr types.Error
	if json.Unmarshal(stdout.Bytes(), &perr) == nil && perr.Code != 0 {
		return nil, &perr
	}
	return nil, fmt.Errorf("%s: %w: %s%s", filepath.Base(path), err, strings.TrimSpace(stdout.String()), strings.TrimSpace(stderr.String()))
}
