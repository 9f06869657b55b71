package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
)

// cluster is the API server and what stands in it: a Node and a block of 64 addresses for
// each agent, and a pool.
type cluster struct {
	clients *kubeapi.Clients
	blocks  kubeapi.Resource[*v3.IPAMBlock, *v3.IPAMBlockList]
	agents  int
	made    int // objects made by events, for their names
}

const perBlock = 64

func blockCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 1024), byte(i / 4), byte(i % 4 * perBlock)}), 26)
}

func newBlock(i int, node string) *v3.IPAMBlock {
	affinity := "host:" + node
	b := &v3.IPAMBlock{ObjectMeta: metav1.ObjectMeta{Name: v3.BlockName(blockCIDR(i))}}
	b.Spec = v3.IPAMBlockSpec{
		CIDR: blockCIDR(i).String(), Affinity: &affinity, Allocations: make([]*int, perBlock),
		Unallocated: make([]int, perBlock), Attributes: []v3.AllocationAttribute{},
	}
	for j := range perBlock {
		b.Spec.Unallocated[j] = j
	}
	return b
}

// allocate takes the next address of a block for a pod, or the first again when it is full.
func allocate(b *v3.IPAMBlock, pod string) {
	s := &b.Spec
	if len(s.Unallocated) == 0 {
		*b = *b.DeepCopy()
		s.Allocations, s.Attributes = make([]*int, perBlock), []v3.AllocationAttribute{}
		for j := range perBlock {
			s.Unallocated = append(s.Unallocated, j)
		}
	}
	n := len(s.Attributes)
	handle := fmt.Sprintf("k8s-pod-network.%064d", n)
	s.Allocations[s.Unallocated[0]] = &n
	s.Unallocated = s.Unallocated[1:]
	s.Attributes = append(s.Attributes, v3.AllocationAttribute{HandleID: &handle, ActiveOwnerAttrs: map[string]string{
		"node": strings.TrimPrefix(*s.Affinity, "host:"), "pod": pod, "namespace": "default", "timestamp": "2026-01-01 00:00:00 +0000 UTC",
	}})
	s.SequenceNumber++
}

// newCluster fills an API server.
func newCluster(ctx context.Context, cfg *rest.Config, agents int) (*cluster, error) {
	clients, err := kubeapi.New(cfg)
	if err != nil {
		return nil, err
	}
	c := &cluster{clients: clients, agents: agents, blocks: kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](clients.V3, "ipamblocks", "")}
	pools := kubeapi.NewResource[v3.IPPool, v3.IPPoolList](clients.V3, "ippools", "")
	pool := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pods"}, Spec: v3.IPPoolSpec{CIDR: "10.0.0.0/8", BlockSize: 26}}
	if _, err := pools.Create(ctx, pool, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	errs := make([]error, agents)
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range agents {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			n := realNode(i)
			status := n.Status
			created, err := clients.Core.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
			if err == nil {
				created.Status = status
				_, err = clients.Core.CoreV1().Nodes().UpdateStatus(ctx, created, metav1.UpdateOptions{})
			}
			if err == nil {
				b := newBlock(i, nodeName(i))
				for j := range perBlock / 2 { // as it is on a node with 32 pods
					allocate(b, fmt.Sprintf("deployment-5d4f8c7b9-%05d", j))
				}
				_, err = c.blocks.Create(ctx, b, metav1.CreateOptions{})
			}
			errs[i] = err
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// realNode is a Node of the size that a kubelet makes it: 20 images, five conditions.
func realNode(i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{
		"kubernetes.io/hostname": nodeName(i), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
		"topology.kubernetes.io/zone": "zone-a", "topology.kubernetes.io/region": "region-a", "node.kubernetes.io/instance-type": "standard",
	}, Annotations: map[string]string{"projectcalico.org/IPv4Address": fmt.Sprintf("192.168.%d.%d/16", i/250, i%250+1)}}}
	for j := range 20 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{
			Names:     []string{fmt.Sprintf("registry.example.org/team/image-%d@sha256:%064d", j, j), fmt.Sprintf("registry.example.org/team/image-%d:v1.2.3", j)},
			SizeBytes: 123456789,
		})
	}
	for _, kind := range []corev1.NodeConditionType{"NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"} {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: kind, Status: "False", Reason: "KubeletHasSufficientResources", Message: "kubelet has sufficient resources available",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		})
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", i/250, i%250+1)}, {Type: corev1.NodeHostName, Address: nodeName(i)}}
	return n
}

// event is something that happens in a cluster.
type event struct {
	name string
	do   func(ctx context.Context, i int) error // the i-th time
}

func (c *cluster) events() []event {
	core := c.clients.Core.CoreV1()
	pod := func(ctx context.Context, i int) (*corev1.Pod, error) {
		c.made++
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", c.made), Namespace: "default", Labels: map[string]string{"app": "a"}}}
		p.Spec.NodeName = nodeName(i % c.agents)
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: "registry.example.org/team/image:v1.2.3", Env: []corev1.EnvVar{{Name: "A", Value: "b"}}}}
		return core.Pods("default").Create(ctx, p, metav1.CreateOptions{})
	}
	write := func(ctx context.Context, i int) error {
		b, err := c.blocks.Get(ctx, v3.BlockName(blockCIDR(i%c.agents)), metav1.GetOptions{})
		if err != nil {
			return err
		}
		allocate(b, fmt.Sprintf("pod-%d", i))
		_, err = c.blocks.Update(ctx, b, metav1.UpdateOptions{})
		return err
	}
	return []event{
		{"a pod bound to a node, and its status written once", func(ctx context.Context, i int) error {
			p, err := pod(ctx, i)
			if err != nil {
				return err
			}
			p.Status.Phase, p.Status.PodIP = corev1.PodRunning, "10.0.0.1"
			_, err = core.Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{})
			return err
		}},
		{"one write of a block by its node (an ADD alone; a burst shares it). The read is the benchmark's", write},
		{"a block claimed", func(ctx context.Context, i int) error {
			c.made++
			_, err := c.blocks.Create(ctx, newBlock(c.agents+c.made, nodeName(i%c.agents)), metav1.CreateOptions{})
			return err
		}},
		{"a Node's heartbeat in its status (every 5 minutes on each node)", func(ctx context.Context, i int) error {
			c.made++
			patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":%q}]}}`, time.Unix(int64(1700000000+c.made+i), 0).UTC().Format(time.RFC3339))
			_, err := core.Nodes().Patch(ctx, nodeName(i%c.agents), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
			return err
		}},
	}
}

// reading is the state of the meters at one moment.
type reading struct {
	requests map[string]float64 // by "VERB resource"
	cpu      float64            // seconds
	memory   float64            // bytes
	received []int64            // by agent
	bytes    int64              // of all
}

// meter reads the API server's metrics and what the agents received.
func (c *cluster) meter(ctx context.Context, a *agents) (reading, error) {
	r := reading{requests: map[string]float64{}}
	if a != nil {
		r.received = a.bytes()
		for _, n := range r.received {
			r.bytes += n
		}
	}
	data, err := c.clients.V3.Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return r, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if i := strings.LastIndex(lines.Text(), "} "); i >= 0 {
			name, value = lines.Text()[:i+1], lines.Text()[i+2:]
		}
		v, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(name, "process_cpu_seconds_total"):
			r.cpu = v
		case strings.HasPrefix(name, "process_resident_memory_bytes"):
			r.memory = v
		case strings.HasPrefix(name, "apiserver_request_total{"):
			if resource := label(name, "resource"); resource != "" {
				if sub := label(name, "subresource"); sub != "" {
					resource += "/" + sub
				}
				r.requests[label(name, "verb")+" "+resource] += v
			}
		}
	}
	return r, lines.Err()
}

// label reads a label of a metric.
func label(metric, name string) string {
	_, rest, ok := strings.Cut(metric, name+`="`)
	for ok && rest != "" { // "resource" is the end of "subresource", too
		i := strings.Index(metric, name+`="`)
		if metric[i-1] == ',' || metric[i-1] == '{' {
			value, _, _ := strings.Cut(rest, `"`)
			return value
		}
		metric = rest
		_, rest, ok = strings.Cut(metric, name+`="`)
	}
	return ""
}

// rate is what happens in a second without any event.
type rate struct{ bytes, cpu float64 }

const idleTime = 10 * time.Second

func (c *cluster) idle(ctx context.Context, a *agents) (rate, error) {
	before, err := c.meter(ctx, a)
	if err != nil {
		return rate{}, err
	}
	select {
	case <-ctx.Done():
		return rate{}, ctx.Err()
	case <-time.After(idleTime):
	}
	after, err := c.meter(ctx, a)
	s := idleTime.Seconds()
	return rate{float64(after.bytes-before.bytes) / s, (after.cpu - before.cpu) / s}, err
}

// hear does the same thing some times, one by one. It counts the agents that receive
// something each time, and the bytes that these receive for one. Bookmarks and the
// connections' own frames come to one or the other, but not each time.
func (a *agents) hear(ctx context.Context, do func() error) (hearers int, sent float64, err error) {
	const times, least = 5, 200
	each := make([]int64, len(a.received)) // bytes in all; -1: once next to nothing
	for range times {
		before := a.bytes()
		if err := do(); err != nil {
			return 0, 0, err
		}
		if err := a.quiet(ctx); err != nil {
			return 0, 0, err
		}
		for i, n := range a.bytes() {
			if n -= before[i]; n < least || each[i] < 0 {
				each[i] = -1
			} else {
				each[i] += n
			}
		}
	}
	for _, n := range each {
		if n > 0 {
			hearers++
			sent += float64(n) / times
		}
	}
	return hearers, sent, nil
}

// result is what one event costs.
type result struct {
	requests   string
	hearers    int     // agents that receive it
	bytes, cpu float64 // to all agents; seconds
}

func (c *cluster) measure(ctx context.Context, a *agents, idle rate, times int, e event) (result, error) {
	hearers, sent, err := a.hear(ctx, func() error { return e.do(ctx, 0) })
	if err != nil {
		return result{}, err
	}
	before, err := c.meter(ctx, a)
	if err != nil {
		return result{}, err
	}
	begin := time.Now()
	for i := range times {
		if err := e.do(ctx, i+1); err != nil {
			return result{}, err
		}
	}
	if err := a.quiet(ctx); err != nil {
		return result{}, err
	}
	took := time.Since(begin).Seconds()
	after, err := c.meter(ctx, a)
	if err != nil {
		return result{}, err
	}
	n := float64(times)
	r := result{hearers: hearers, bytes: sent, cpu: max(0, (after.cpu-before.cpu-idle.cpu*took)/n)}
	var requests []string
	for what, count := range after.requests {
		if each := (count - before.requests[what]) / n; each >= 0.05 {
			requests = append(requests, fmt.Sprintf("%s %.2g", what, each))
		}
	}
	sort.Strings(requests)
	r.requests = strings.Join(slices.Compact(requests), ", ")
	return r, nil
}
