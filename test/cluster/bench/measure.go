package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/bench/driver"
	"github.com/causeway-net/causeway/test/cluster/bench/requests"
)

const (
	namespace = "causeway-bench"
	parallel  = 8                      // ADDs at once in a burst
	pace      = 300 * time.Millisecond // between two sparse ADDs of a side
	quiet     = 5 * time.Second        // without a write: all is written
)

var (
	// ourNetwork is the node's own, without the plugins that ptp does not have behind it.
	ourNetwork = json.RawMessage(`{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"causeway-cni"}]}`)
	// ptpNetwork has its records on the disk that holds our journal.
	ptpNetwork = json.RawMessage(`{"cniVersion":"1.0.0","name":"bench-ptp","plugins":[{"type":"ptp","ipam":{"type":"host-local",
		"dataDir":"/var/lib/cni/bench-host-local","ranges":[[{"subnet":"10.77.0.0/16"}],[{"subnet":"fd00:77::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]}`)
	floorNetwork = json.RawMessage(`{"cniVersion":"1.0.0","name":"bench-floor","plugins":[{"type":"hello"}]}`)
)

// measurement is one run.
type measurement struct {
	cluster *cluster.Cluster
	size    size
	began   time.Time
	plugins []string
	pods    map[string][]corev1.Pod // by node: known to the API, and attached by us alone
	log     *requests.Log
}

// say shows progress.
func (m *measurement) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

// prepare makes the pods that the API knows.
func (m *measurement) prepare(ctx context.Context) error {
	if err := m.end(); err != nil { // of a run that was killed
		return err
	}
	manifests := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)
	for _, n := range m.cluster.Nodes() {
		for i := range parallel {
			manifests += "---\n" + driver.WaitingPod(namespace, fmt.Sprintf("%s-%d", n, i), n.Name())
		}
	}
	if err := m.cluster.Apply(ctx, manifests); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(m.cluster.Config())
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	m.pods = map[string][]corev1.Pod{}
	for _, p := range list.Items {
		m.pods[p.Spec.NodeName] = append(m.pods[p.Spec.NodeName], p)
	}
	m.log, err = requests.Open(m.cluster.AuditLog())
	return err
}

// end removes what prepare made.
func (m *measurement) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := m.cluster.Kubectl(ctx, "delete", "namespace", namespace, "--ignore-not-found", "--timeout=110s")
	return err
}

// side is one of those that are compared.
type side struct {
	driver  *driver.Driver
	network json.RawMessage
}

// pod returns a new container in the i-th sandbox, of a pod that the API knows or of none.
func (m *measurement) pod(node string, i int, known bool) driver.Pod {
	var id [32]byte
	rand.Read(id[:])
	p := driver.Pod{ContainerID: hex.EncodeToString(id[:]), Sandbox: fmt.Sprint(i)}
	if known {
		of := m.pods[node][i]
		p.Namespace, p.Name, p.UID = of.Namespace, of.Name, string(of.UID)
	}
	return p
}

// addDel attaches pods at once and then detaches them at once. It returns what each ADD
// took, in ms.
func (s side) addDel(pods ...driver.Pod) ([]float64, error) {
	took, errs := make([]float64, len(pods)), make([]error, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			_, d, err := s.driver.Add(s.network, p)
			took[i], errs[i] = float64(d)/float64(time.Millisecond), err
		})
	}
	wg.Wait()
	for i, p := range pods { // those that failed, too
		wg.Go(func() {
			_, err := s.driver.Del(s.network, p)
			errs[i] = errors.Join(errs[i], err)
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

// latencies times ADD in all four ways, on one node.
func (m *measurement) latencies(ctx context.Context, n *cluster.Node) (out []Latency, err error) {
	agentsNode, err := driver.Start(ctx, driver.Config{Node: n, Name: "bench", Plugins: m.plugins})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, agentsNode.Close()) }()
	apart, err := driver.Start(ctx, driver.Config{Node: n, Name: "bench-apart", Plugins: m.plugins, Apart: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, apart.Close()) }()
	sides := []side{{agentsNode, ourNetwork}, {apart, ptpNetwork}, {apart, floorNetwork}}

	// The first ones load programs, make namespaces and claim blocks.
	for _, s := range sides {
		var pods []driver.Pod
		for i := range parallel {
			pods = append(pods, m.pod(n.Name(), i, true))
		}
		if _, err := s.addDel(pods...); err != nil {
			return nil, err
		}
	}
	for _, burst := range []bool{false, true} {
		for _, known := range []bool{true, false} {
			l := Latency{Burst: burst, Known: known}
			since := time.Now()
			ids := map[string]bool{}
			for i := range m.size.pairs {
				p, err := m.pair(ctx, n.Name(), sides, i, burst, known, ids)
				if err != nil {
					return nil, err
				}
				l.Pairs = append(l.Pairs, p)
			}
			if l.Agent, err = m.tookOf(ctx, n.Name(), since, ids); err != nil {
				return nil, err
			}
			m.say("ADD, %s: %.1f ms against %.1f ms", l.Name(), percentile(l.gross(func(p Pair) []float64 { return p.Causeway }), 50),
				percentile(l.gross(func(p Pair) []float64 { return p.Peer }), 50))
			out = append(out, l)
		}
	}
	return out, nil
}

// pair measures each side in turn, the order changing each time. It adds the containers of
// Causeway to ids.
func (m *measurement) pair(ctx context.Context, node string, sides []side, nth int, burst, known bool, ids map[string]bool) (Pair, error) {
	times, step := m.size.bursts, 0*time.Second
	if !burst {
		times, step = m.size.sparse, pace/time.Duration(len(sides))
	}
	var got [3][]float64
	next := time.Now()
	for k := range times {
		for j := range sides {
			which := (nth + k + j) % len(sides)
			var pods []driver.Pod
			if burst {
				for i := range parallel {
					pods = append(pods, m.pod(node, i, known))
				}
			} else {
				pods = append(pods, m.pod(node, k%parallel, known))
			}
			if which == 0 {
				for _, p := range pods {
					ids[p.ContainerID] = true
				}
			}
			select {
			case <-ctx.Done():
				return Pair{}, ctx.Err()
			case <-time.After(time.Until(next)):
			}
			next = next.Add(step)
			took, err := sides[which].addDel(pods...)
			if err != nil {
				return Pair{}, err
			}
			got[which] = append(got[which], took...)
		}
	}
	return Pair{Causeway: got[0], Peer: got[1], Floor: got[2]}, nil
}

// tookOf reads what the agent of a node logged of its work on these containers: the median,
// ms.
func (m *measurement) tookOf(ctx context.Context, node string, since time.Time, ids map[string]bool) (float64, error) {
	pod, err := m.cluster.Kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=agent",
		"--field-selector", "spec.nodeName="+node, "-o", "name")
	if err != nil {
		return 0, err
	}
	text, err := m.cluster.Kubectl(ctx, "-n", "kube-system", "logs", strings.TrimSpace(pod), "--since-time", since.UTC().Format(time.RFC3339))
	if err != nil {
		return 0, err
	}
	var all []float64
	for line := range strings.Lines(text) {
		var l struct {
			Msg        string        `json:"msg"`
			Attachment string        `json:"attachment"`
			Took       time.Duration `json:"took"`
		}
		if json.Unmarshal([]byte(line), &l) != nil || l.Msg != "pod attached" {
			continue
		}
		if id, _, _ := strings.Cut(l.Attachment, "/"); ids[id] {
			all = append(all, float64(l.Took)/float64(time.Millisecond))
		}
	}
	if len(all) < len(ids) {
		return 0, fmt.Errorf("the agent of %s logged %d lines \"pod attached\" of %d containers", node, len(all), len(ids))
	}
	return percentile(all, 50), nil
}

// costs counts what an address costs the API server, on all nodes at once: in bursts, and
// when one comes every 300 ms.
func (m *measurement) costs(ctx context.Context) (out []Cost, err error) {
	nodes := map[string]side{}
	for _, n := range m.cluster.Nodes() {
		d, err := driver.Start(ctx, driver.Config{Node: n, Name: "bench", Plugins: m.plugins})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		nodes[n.Name()] = side{d, ourNetwork}
	}
	each := func(f func(node string, s side) error) error {
		var wg sync.WaitGroup
		errs := make(chan error, len(nodes))
		for name, s := range nodes {
			wg.Go(func() { errs <- f(name, s) })
		}
		wg.Wait()
		close(errs)
		var all []error
		for err := range errs {
			all = append(all, err)
		}
		return errors.Join(all...)
	}
	// The first pod of a node claims blocks.
	if err := each(func(node string, s side) error { _, err := s.addDel(m.pod(node, 0, true)); return err }); err != nil {
		return nil, err
	}
	count := func(c Cost, f func(node string, s side) error) error {
		if _, err := m.settled(ctx); err != nil {
			return err
		}
		if err := each(f); err != nil {
			return err
		}
		all, err := m.settled(ctx)
		c.Requests = requests.CostOf(all)
		m.say("requests, %s: %s", c.Name, c.Requests)
		out = append(out, c)
		return err
	}
	if err := count(Cost{Name: "in bursts", Addresses: 2 * len(nodes) * m.size.cost, Goal: 0.2}, func(node string, s side) error {
		var lanes sync.WaitGroup
		errs := make([]error, parallel)
		for lane := range parallel {
			lanes.Go(func() {
				for k := lane; k < m.size.cost && errs[lane] == nil; k += parallel {
					_, errs[lane] = s.addDel(m.pod(node, lane, true))
				}
			})
		}
		lanes.Wait()
		return errors.Join(errs...)
	}); err != nil {
		return nil, err
	}
	err = count(Cost{Name: "one every 300 ms on each node", Addresses: 2 * len(nodes) * m.size.sparse, Goal: 1}, func(node string, s side) error {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for k := range m.size.sparse {
			<-tick.C
			if _, err := s.addDel(m.pod(node, k%parallel, true)); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// settled waits until no agent has written a block for some time, and returns all requests
// since it was called last.
func (m *measurement) settled(ctx context.Context) ([]requests.Request, error) {
	var all []requests.Request
	last, deadline := time.Now(), time.Now().Add(2*time.Minute)
	for time.Since(last) < quiet {
		next, err := m.log.Next()
		if err != nil {
			return nil, err
		}
		all = append(all, next...)
		if requests.CostOf(next).Writes > 0 {
			last = time.Now()
		}
		if time.Now().After(deadline) {
			return nil, errors.New("agents still write blocks after 2 minutes without an ADD or a DEL")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return all, nil
}
