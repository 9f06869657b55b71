package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/lab"
)

// lane is a pod on each of the two nodes, and what policies select them.
type lane struct {
	name      string
	namespace string
	labels    map[string]string
	policies  int // made for the lane alone; all select both pods, in both directions
}

// none is the lane that the others are compared with: the agents, the kernel's state and the
// way are the same, but no policy selects its pods.
var none = lane{name: "no policy", namespace: freeSpace}

var lanes = []lane{
	{name: "a tenant's pods", namespace: "bench", labels: map[string]string{"app": "db", "tier": "front"}},
	{name: "pods that 100 policies select", namespace: trafficSpace, labels: map[string]string{"lane": "l100"}, policies: 100},
	{name: "pods that 1,000 policies select", namespace: trafficSpace, labels: map[string]string{"lane": "l1000"}, policies: 1000},
}

// Ports of the servers in the lanes' pods; iperf3 has its own, 5201.
const connectPort = 5300

// traffic compares throughput and new connections between pods with policies and without.
func (r *policyRun) traffic(ctx context.Context, k backend) (err error) {
	after := context.WithoutCancel(ctx)
	if err := r.use(ctx, k, r.w2); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.wipe(after, r.w2)) }()
	for _, ln := range lanes {
		if err := r.lanePolicies(ctx, ln); err != nil {
			return err
		}
	}
	defer func() {
		err = errors.Join(err, r.c.api.clients.Core.NetworkingV1().NetworkPolicies(trafficSpace).DeleteCollection(after, metav1.DeleteOptions{}, metav1.ListOptions{}))
	}()
	free, down, err := r.lanePods(ctx, none)
	defer func() { err = errors.Join(err, down()) }()
	if err != nil {
		return err
	}
	plain, downPlain, err := plainPods(ctx, r.lab, paths[0])
	defer func() { err = errors.Join(err, downPlain()) }()
	if err != nil {
		return err
	}
	if err := r.compareLanes(ctx, k.name+", pods that no policy selects", "ip link, ip route", free, plain); err != nil {
		return err
	}
	for _, ln := range lanes {
		w, down, err := r.lanePods(ctx, ln)
		if err == nil {
			err = r.compareLanes(ctx, k.name+", "+ln.name, none.name, w, free)
		}
		if err = errors.Join(err, down()); err != nil {
			return fmt.Errorf("%s: %w", ln.name, err)
		}
	}
	return nil
}

// lanePolicies makes the policies of a lane: the last in the order of names is the one that
// allows, so that a new connection asks all of them, on both nodes.
func (r *policyRun) lanePolicies(ctx context.Context, ln lane) error {
	return abreast(ln.policies, func(i int) error {
		peer, ports := fmt.Sprintf("peer: p%d", i%50), fmt.Sprintf("{port: %d, protocol: TCP}", 10000+i)
		if i == ln.policies-1 {
			peer, ports = "lane: "+ln.labels["lane"], "{port: 5201, protocol: TCP}, {port: 5300, endPort: 5400, protocol: TCP}"
		}
		return r.c.create(ctx, ln.namespace, strings.NewReplacer("LANE", ln.labels["lane"], "NUMBER", fmt.Sprintf("%04d", i), "PEER", peer, "PORTS", ports).Replace(
			`{metadata: {name: LANE-NUMBER}, spec: {podSelector: {matchLabels: {lane: LANE}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {PEER}}}], ports: [PORTS]}], egress: [{to: [{podSelector: {matchLabels: {PEER}}}], ports: [PORTS]}]}}`))
	})
}

// lanePods attaches a lane's pods.
func (r *policyRun) lanePods(ctx context.Context, ln lane) (*wire, func() error, error) {
	var pods []*lab.Pod
	var names []string
	down := func() error {
		ctx := context.WithoutCancel(ctx)
		var errs []error
		for _, p := range pods {
			errs = append(errs, p.Node().DeletePod(ctx, p.Name))
		}
		now := int64(0)
		for _, name := range names {
			errs = append(errs, r.c.api.clients.Core.CoreV1().Pods(ln.namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
		}
		return errors.Join(errs...)
	}
	for _, n := range []*lab.Node{r.w1, r.w2} {
		name := fmt.Sprintf("lane-%s%s-%s", ln.namespace, ln.labels["lane"], n.Name())
		if _, err := r.c.api.clients.Core.CoreV1().Pods(ln.namespace).Create(ctx, newPodObject(ln.namespace, name, n.Name(), ln.labels), metav1.CreateOptions{}); err != nil {
			return nil, down, err
		}
		names = append(names, name)
		p, err := r.attachPod(ctx, n, ln.namespace, name)
		if err != nil {
			return nil, down, err
		}
		pods = append(pods, p)
		if err := r.reportPod(ctx, ln.namespace, name, p.Address(false)); err != nil {
			return nil, down, err
		}
	}
	return &wire{pods[0], pods[1], pods[1].Address(false)}, down, nil
}

// compareLanes measures two lanes in turns.
func (r *policyRun) compareLanes(ctx context.Context, name, versus string, ours, theirs *wire) error {
	sides := [2]*wire{ours, theirs}
	for _, w := range sides {
		stop, err := w.serve(ctx)
		if err != nil {
			return err
		}
		defer stop()
		end, err := w.listen(connectPort)
		if err != nil {
			return err
		}
		defer end()
		// The nodes hear of each other's pods before anything is measured.
		if err := r.poll(ctx, lab.Slow(30*time.Second), "a connection", func() error {
			_, err := w.connections(10)
			return err
		}); err != nil {
			return err
		}
		if _, err := w.throughput(ctx, 1, time.Second); err != nil {
			return err
		}
	}
	const connections = 3000
	for _, m := range []struct {
		comparison *Comparison
		measure    func(w *wire) (float64, error)
	}{
		{&Comparison{Name: name + ", TCP, 1 stream", Versus: versus, Unit: "Gbit/s", Least: 0.97}, func(w *wire) (float64, error) { return w.throughput(ctx, 1, time.Second) }},
		{&Comparison{Name: name + ", new TCP connections", Versus: versus, Unit: "/s", Least: 0.9}, func(w *wire) (float64, error) { return w.connections(connections) }},
	} {
		c := m.comparison
		pairs := 2 * r.size.pairs
		for i := range pairs {
			var got [2]float64
			err := inTurns(i, func(side int) (err error) {
				got[side], err = m.measure(sides[side])
				return err
			})
			if err != nil {
				return err
			}
			c.add(got[0], got[1])
		}
		r.compare(c)
		r.say("%s: %.2f against %.2f %s, ratio %.2f (%.2f to %.2f)", c.Name, c.MedianCauseway, c.MedianPeer, c.Unit, c.Ratio, c.RatioLow, c.RatioHigh)
	}
	return nil
}

// listen accepts connections in the target and closes them, until stop is called.
func (w *wire) listen(port int) (stop func(), err error) {
	var fd int
	err = w.to.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 4096))
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s: listen on port %d: %w", w.to, port, err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == unix.EINTR || err == unix.ECONNABORTED {
				continue
			}
			if err != nil { // shut down
				return
			}
			unix.Close(c)
		}
	})
	return func() {
		unix.Shutdown(fd, unix.SHUT_RDWR)
		done.Wait()
		unix.Close(fd)
	}, nil
}

// connections opens and resets so many connections to the target, three at a time, and
// returns how many that makes a second.
func (w *wire) connections(count int) (float64, error) {
	const clients = 3
	errs := make([]error, clients)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			errs[i] = w.from.Do(func() error {
				for range count / clients {
					if err := connectOnce(w.at, connectPort); err != nil {
						return fmt.Errorf("connect to %s: %w", w.at, err)
					}
				}
				return nil
			})
		})
	}
	wg.Wait()
	return float64(count/clients*clients) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// connectOnce ends the connection with a reset, which leaves no port in TIME_WAIT.
func connectOnce(at netip.Addr, port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	// Connect waits as long as the kernel's retries last; less will do.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 3000); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1); err != nil {
		return err
	}
	for {
		err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: at.As4()})
		if err != unix.EINTR {
			return err
		}
	}
}
