package suite

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/bench/driver"
)

var churnSeed = flag.Uint64("churn.seed", 0, "seed of the churn; 0: a new one")

const (
	pauseImage  = "registry.k8s.io/pause:3.10.2"
	churnRounds = 4
	churnPods   = 25 // pods of a Deployment in a round
	churnAdds   = 25 // direct ADDs on each node in a round
	churnLanes  = 8  // direct calls on each node at once

	// What an address may cost the API server: writes of blocks by all agents, for the whole
	// life of the pod. In bursts the goal is 0.2, and 0.16 is measured; how many pods share a
	// write depends on how fast the machine starts them, so that a slow one has some room.
	writesInBursts = 0.3
	writesSparse   = 1.0
)

// TestChurn creates and deletes 500 pods over four nodes, 100 as a Deployment that grows
// and shrinks and 400 by CNI calls on the nodes, at the same time. No address is two pods'
// at any time; whenever things come to rest, blocks, journals and kernels name the same
// pods, and in the end none; the API server is asked as seldom as promised.
func TestChurn(t *testing.T) {
	x := newChurn(t, churnLanes)
	x.deploy(t)
	cost := x.count(t)
	for range churnRounds {
		x.up(t)
		x.atRest(t)
		x.down(t)
	}
	x.eachNode(func(n *churnNode) error { return n.eachLane((*lane).drain) })
	x.atRest(t)
	// Each pod has an address of either family. Kubelets start pods one after the other.
	slow, fast := 2*churnRounds*churnPods, 2*x.adds()
	cost(slow+fast, (float64(slow)*writesSparse+float64(fast)*writesInBursts)/float64(slow+fast))
	x.nothingLeft(t)
}

// TestChurnBurst: pods that come and go as fast as the nodes can run plugins.
func TestChurnBurst(t *testing.T) {
	const adds = 50
	x := newChurn(t, churnLanes)
	cost := x.count(t)
	x.eachNode(func(n *churnNode) error {
		if err := n.burst(adds); err != nil {
			return err
		}
		return n.eachLane((*lane).drain)
	})
	x.atRest(t)
	cost(2*x.adds(), writesInBursts)
	x.nothingLeft(t)
}

// TestChurnSparse: pods that come one every 300 ms on each node.
func TestChurnSparse(t *testing.T) {
	const adds = 15
	x := newChurn(t, 1)
	cost := x.count(t)
	x.eachNode(func(n *churnNode) error {
		tick := time.NewTicker(300 * time.Millisecond) // the pace is what is tested
		defer tick.Stop()
		for range adds {
			<-tick.C
			if err := n.lanes[0].step(); err != nil {
				return err
			}
		}
		return n.lanes[0].drain()
	})
	x.atRest(t)
	cost(2*x.adds(), writesSparse)
	x.nothingLeft(t)
}

// churn is a cluster whose pods come and go.
type churn struct {
	t       *testing.T
	ns      string
	rand    *rand.Rand
	api     *kubeapi.Clients
	nodes   []*churnNode
	holders *holders
}

// churnNode is a node on which plugins are executed directly.
type churnNode struct {
	*cluster.Node
	network []byte // the configuration list that the agent wrote
	driver  *driver.Driver
	holders *holders
	lanes   []*lane
}

// lane makes one call after the other. Of the pods it holds one is, for the API, the
// lane's waiting pod; the others are nobody's.
type lane struct {
	node  *churnNode
	name  string
	rand  *rand.Rand
	pod   corev1.Pod
	held  []attachment
	idle  []int // sandboxes without a pod
	made  int   // sandboxes
	adds  int
	ports bool // the lane's pods have host ports
}

// attachment is a pod that a lane holds.
type attachment struct {
	driver.Pod
	sandbox int
}

// newChurn makes ready, on each node, a driver and lanes, and has each node give its first
// address, which claims blocks.
func newChurn(t *testing.T, lanes int) *churn {
	t.Helper()
	ns := namespace(t)
	seed := *churnSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-churn.seed=%d", seed)
	api, err := kubeapi.New(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	x := &churn{t: t, ns: ns, rand: rand.New(rand.NewPCG(seed, 0)), api: api, holders: newHolders()}
	var manifests strings.Builder
	for _, n := range c.Nodes() {
		for i := range lanes {
			manifests.WriteString("---\n" + driver.WaitingPod(ns, fmt.Sprintf("waiting-%s-%d", n, i), n.Name()))
		}
	}
	apply(t, "%s", manifests.String())
	for i, n := range c.Nodes() {
		cn := &churnNode{Node: n, holders: x.holders}
		if cn.network, err = os.ReadFile(n.Path("/etc/cni/net.d/10-causeway.conflist")); err != nil {
			t.Fatal(err)
		}
		if cn.driver, err = driver.Start(context.Background(), driver.Config{Node: n, Name: ns}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, l := range cn.lanes { // of a test that failed
				if err := l.drain(); err != nil {
					t.Error(err)
				}
			}
			if err := cn.driver.Close(); err != nil {
				t.Error(err)
			}
		})
		for k := range lanes {
			l := &lane{node: cn, name: fmt.Sprintf("%s-%d", n, k), rand: rand.New(rand.NewPCG(seed, uint64(1+i*churnLanes+k))), ports: k == 1}
			p, err := client.CoreV1().Pods(ns).Get(t.Context(), "waiting-"+l.name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			l.pod = *p
			cn.lanes = append(cn.lanes, l)
		}
		x.nodes = append(x.nodes, cn)
	}
	x.eachNode(func(n *churnNode) error {
		l := n.lanes[0]
		err := errors.Join(l.add(), l.drain())
		l.adds = 0
		return err
	})
	x.atRest(t)
	return x
}

// eachNode runs f for all nodes at once; an error ends the test.
func (x *churn) eachNode(f func(*churnNode) error) {
	x.t.Helper()
	errs := make([]error, len(x.nodes))
	var wg sync.WaitGroup
	for i, n := range x.nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		x.t.Fatal(err)
	}
}

// adds counts the direct ADDs so far.
func (x *churn) adds() int {
	sum := 0
	for _, n := range x.nodes {
		for _, l := range n.lanes {
			sum += l.adds
		}
	}
	return sum
}

// burst makes adds ADDs on a node, as many at once as there are lanes, and DELs among them.
func (n *churnNode) burst(adds int) error {
	todo := make(chan struct{}, adds)
	for range adds {
		todo <- struct{}{}
	}
	close(todo)
	return n.eachLane(func(l *lane) error {
		for range todo {
			if err := l.step(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (n *churnNode) eachLane(f func(*lane) error) error {
	errs := make([]error, len(n.lanes))
	var wg sync.WaitGroup
	for i, l := range n.lanes {
		wg.Go(func() { errs[i] = f(l) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// step adds a pod, and takes one away again more often than not.
func (l *lane) step() error {
	if err := l.add(); err != nil {
		return err
	}
	if l.rand.IntN(10) < 6 {
		return l.del(l.rand.IntN(len(l.held)))
	}
	return nil
}

func (l *lane) add() error {
	id := fmt.Sprintf("%016x%016x%016x%016x", l.rand.Uint64(), l.rand.Uint64(), l.rand.Uint64(), l.rand.Uint64())
	a := attachment{Pod: driver.Pod{ContainerID: id}, sandbox: l.made}
	if n := len(l.idle); n > 0 {
		a.sandbox, l.idle = l.idle[n-1], l.idle[:n-1]
	} else {
		l.made++
	}
	a.Sandbox = fmt.Sprintf("%s-%d", l.name, a.sandbox)
	if !slices.ContainsFunc(l.held, func(h attachment) bool { return h.Name != "" }) {
		a.Namespace, a.Name, a.UID = l.pod.Namespace, l.pod.Name, string(l.pod.UID)
	}
	if l.ports {
		a.HostPort = 20000 + a.sandbox
	}
	l.held = append(l.held, a) // an ADD that fails is followed by a DEL, too
	l.adds++
	addrs, _, err := l.node.driver.Add(l.node.network, a.Pod)
	if err != nil {
		return err
	}
	if len(addrs) != 2 {
		return fmt.Errorf("%s: %s got the addresses %v, want one of either family", l.node, a, addrs)
	}
	return l.node.holders.took(a.ContainerID, fmt.Sprintf("%s on %s", a, l.node), addrs)
}

// del takes away the i-th pod that the lane holds.
func (l *lane) del(i int) error {
	a := l.held[i]
	l.node.holders.leaves(a.ContainerID)
	if _, err := l.node.driver.Del(l.node.network, a.Pod); err != nil {
		return err
	}
	l.held = slices.Delete(l.held, i, i+1)
	l.idle = append(l.idle, a.sandbox)
	return nil
}

// drain takes away all pods that the lane holds.
func (l *lane) drain() error {
	for len(l.held) > 0 {
		if err := l.del(len(l.held) - 1); err != nil {
			return err
		}
	}
	return nil
}

// deploy makes the Deployment, without pods yet, and has holders follow its pods.
func (x *churn) deploy(t *testing.T) {
	t.Helper()
	apply(t, `apiVersion: apps/v1
kind: Deployment
metadata: {name: churn, namespace: %s}
spec:
  replicas: 0
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers: [{name: pause, image: "%s", imagePullPolicy: Never}]
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: churn}}}
`, x.ns, pauseImage)
	seen := func(obj any) {
		p := obj.(*corev1.Pod)
		if p.DeletionTimestamp != nil || len(p.Status.PodIPs) == 0 {
			return
		}
		var addrs []netip.Addr
		for _, ip := range p.Status.PodIPs {
			addrs = append(addrs, netip.MustParseAddr(ip.IP))
		}
		if err := x.holders.took(string(p.UID), fmt.Sprintf("pod %s on %s", p.Name, p.Spec.NodeName), addrs); err != nil {
			t.Error(err)
		}
	}
	// An informer, since a watch may end at any time.
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(x.ns),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "app=churn" }))
	pods := f.Core().V1().Pods().Informer()
	handler, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, now any) { seen(now) }})
	if err == nil {
		err = pods.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
			if ctx.Err() == nil {
				t.Logf("the watch of the Deployment's pods ended, and begins again: %v", err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.StartWithContext(ctx)
	t.Cleanup(func() { cancel(); f.Shutdown() })
	eventually(t, 30*time.Second, func() error {
		if !handler.HasSynced() {
			return errors.New("the Deployment's pods were not listed")
		}
		return nil
	})
}

// scale sets the Deployment's size.
func (x *churn) scale(t *testing.T, replicas int) {
	t.Helper()
	kubectl(t, "-n", x.ns, "scale", "deployment/churn", "--replicas", strconv.Itoa(replicas))
}

// up starts the pods of a round; when some of the Deployment's run, the bursts begin.
func (x *churn) up(t *testing.T) {
	t.Helper()
	x.scale(t, churnPods)
	x.awaitPods(t, x.rand.IntN(churnPods/2))
	x.eachNode(func(n *churnNode) error { return n.burst(churnAdds) })
	x.awaitPods(t, churnPods)
}

// down takes most pods away; when some of the Deployment's are gone, the DELs begin.
func (x *churn) down(t *testing.T) {
	t.Helper()
	x.holders.allLeave(func(id string) bool { return strings.Contains(id, "-") }) // a UID: the Deployment's
	x.scale(t, 0)
	gone := x.rand.IntN(churnPods / 2)
	eventually(t, time.Minute, func() error { return x.left(t, churnPods-gone) })
	x.eachNode(func(n *churnNode) error {
		return n.eachLane(func(l *lane) error {
			for len(l.held) > 1 { // some pods stay for long
				if err := l.del(l.rand.IntN(len(l.held))); err != nil {
					return err
				}
			}
			return nil
		})
	})
	eventually(t, time.Minute, func() error { return x.left(t, 0) })
}

// awaitPods waits until that many pods of the Deployment have addresses.
func (x *churn) awaitPods(t *testing.T, least int) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		if n := x.holders.count(func(id string) bool { return strings.Contains(id, "-") }); n < least {
			return fmt.Errorf("%d pods of the Deployment have addresses, want %d", n, least)
		}
		return nil
	})
}

// left returns an error while the API has more than most pods of the Deployment.
func (x *churn) left(t *testing.T, most int) error {
	list, err := client.CoreV1().Pods(x.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=churn"})
	if err != nil {
		return err
	}
	if n := len(list.Items); n > most {
		return fmt.Errorf("%d pods of the Deployment are there, want %d", n, most)
	}
	return nil
}
