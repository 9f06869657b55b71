package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
)

// Pod is a running pod, for traffic: it is a traffic.Space, so that package traffic sends
// and counts packets in the pod's own network namespace.
type Pod struct {
	Namespace string
	Name      string
	Node      *Node
	Addrs     []netip.Addr

	cluster *Cluster
	netns   *os.File // stays the pod's when containers of it start again
}

// Pods returns the running pods of a namespace that a label selector picks ("" for all),
// by name.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]*Pod, error) {
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	var out []*Pod
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			pod, err := c.enterable(ctx, p)
			if err != nil {
				return nil, fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
			}
			out = append(out, pod)
		}
	}
	return out, nil
}

// Pod returns one running pod.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) (*Pod, error) {
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return nil, err
	}
	p, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod, err := c.enterable(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	}
	return pod, nil
}

func (c *Cluster) enterable(ctx context.Context, p *corev1.Pod) (*Pod, error) {
	node := c.Node(p.Spec.NodeName)
	if node == nil {
		return nil, errors.New("runs on no node yet")
	}
	out := &Pod{Namespace: p.Namespace, Name: p.Name, Node: node, cluster: c}
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, err
		}
		out.Addrs = append(out.Addrs, a)
	}
	for _, s := range p.Status.ContainerStatuses {
		id, ok := strings.CutPrefix(s.ContainerID, "containerd://")
		if !ok || s.State.Running == nil {
			continue
		}
		pid, err := node.taskPID(ctx, id)
		if err != nil {
			return nil, err
		}
		out.netns, err = os.Open(node.Path("/proc/" + pid + "/ns/net"))
		return out, err
	}
	return nil, errors.New("none of its containers runs")
}

// taskPID is the process of a container, in the node's pid namespace.
func (n *Node) taskPID(ctx context.Context, id string) (string, error) {
	out, err := n.Exec(ctx, program("ctr"), "-n", "k8s.io", "tasks", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == id {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("container %s has no task on %s", id, n)
}

// String is the pod's name and where it runs.
func (p *Pod) String() string { return p.Name + "@" + p.Node.Name() }

// Addr is the pod's address of a family.
func (p *Pod) Addr(v6 bool) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Do runs f on a thread in the pod's network namespace.
func (p *Pod) Do(f func() error) error {
	return machine.InThread(func() error {
		if err := unix.Setns(int(p.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%s: setns: %w", p, err)
		}
		return f()
	})
}

// Exec is `kubectl exec`.
func (p *Pod) Exec(ctx context.Context, cmd ...string) (string, error) {
	return p.cluster.Kubectl(ctx, append([]string{"exec", "-n", p.Namespace, p.Name, "--"}, cmd...)...)
}

// Close gives the pod's network namespace up; it also happens by itself in time.
func (p *Pod) Close() error { return p.netns.Close() }
