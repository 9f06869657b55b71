package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// denyAll closes a namespace both ways, as Kubernetes does it.
func denyAll(namespace string) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: %s}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`, namespace)
}

// fire is what is sent at an address, by whom, and what hears the answer.
type fire struct {
	at    []netip.Addr
	hails []*probe.Hail
	taps  []*probe.Tap // of those who send
	from  []netip.Addr // their addresses
}

// Ports that pods under fire send to: those of a closed namespace, and of an open one.
const (
	closedPort = hailPort + 1
	openPort   = hailPort + 2
)

// startedUnderFire starts pods with one and the same address, most of them in a namespace that
// is closed both ways, while a pod of another node, another node itself and a pod of the same node send
// 1,000 packets a second to each of its addresses, and the pod sends from its first moment on. Every fifth
// pod is in an open namespace and answers: what is established with it is no way to the next.
func startedUnderFire(t *testing.T, f *fabric) {
	f.put(t, denyAll("closed"))
	first := f.add(t, f.n1, "fire", lab.PodOptions{Namespace: "closed"})
	fr := &fire{at: addrs(first), from: slices.Concat(addrs(f.bad1, f.bad2), nodeAddrs(f.n2))}
	f.remove(t, first)
	fr.hails = []*probe.Hail{
		startHail(t, f.bad2, 1000, at(hailPort, fr.at...)...), startHail(t, f.n2, 1000, at(hailPort, fr.at...)...), startHail(t, f.bad1, 1000, at(hailPort, fr.at...)...),
	}
	fr.taps = []*probe.Tap{openTap(t, f.bad2), openTap(t, f.n2), openTap(t, f.bad1)}

	const openEvery = 5
	var adds []time.Duration
	forbidden, control := 0, 0
	for i := range *starts {
		if i%openEvery == openEvery-1 {
			control += f.startOpen(t, fr)
			continue
		}
		took, in := f.startClosed(t, fr)
		adds = append(adds, took)
		forbidden += in
	}
	out := 0
	for i, tp := range fr.taps {
		leaked := tp.Of(func(k probe.Kind) bool { return slices.Contains(fr.at, k.Src) && k.Port == closedPort })
		out += leaked.Count
		if heard := tp.Of(func(k probe.Kind) bool { return slices.Contains(fr.at, k.Src) && k.Port == openPort }); heard.Count == 0 {
			t.Errorf("%s heard nothing of pods that may send: the test hears nothing", fr.hails[i])
		}
	}
	slices.Sort(adds)
	t.Logf("%d pods started under default deny, %d sent at them by %d senders: %d forbidden packets came in, %d got out; ADD took %s (median), %s (longest)",
		len(adds), fr.sent(), len(fr.hails), forbidden, out, adds[len(adds)/2].Round(time.Millisecond), adds[len(adds)-1].Round(time.Millisecond))
	t.Logf("%d packets arrived at the pods without policy in between", control)
	if forbidden+out > 0 {
		t.Errorf("%d forbidden packets came in, %d got out", forbidden, out)
	}
	f.put(t)
}

func (fr *fire) sent() (sum int64) {
	for _, h := range fr.hails {
		sum += h.Sent()
	}
	return sum
}

// startClosed returns how long ADD took and how many forbidden packets arrived in the life of
// a pod.
func (f *fabric) startClosed(t *testing.T, fr *fire) (took time.Duration, forbidden int) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	p, tp, out := f.sandbox(t, fr, "closed", closedPort)
	began := time.Now()
	if err := p.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	took = time.Since(began)
	f.hasAddresses(t, fr, p)
	goOn(t, 30, fr.hails...)
	// The host reaches its pod, and the tap sees what does.
	for _, a := range fr.at {
		if err := operator.Ping(ctx, f.n1, a); err != nil {
			t.Errorf("the host and its pod: %v", err)
		}
	}
	goOn(t, 10, out)
	out.Close()
	f.remove(t, p)
	tp.Close()
	if seen := tp.Of(func(k probe.Kind) bool { return slices.Contains(fr.at, k.Dst) && !slices.Contains(fr.from, k.Src) }); seen.Count < len(fr.at) {
		t.Errorf("the tap saw %d packets of the host", seen.Count)
	}
	return took, tp.From(fr.from...).Count
}

// startOpen returns how many packets arrived at a pod that nothing is closed to. It answers
// each.
func (f *fabric) startOpen(t *testing.T, fr *fire) (arrived int) {
	t.Helper()
	p, tp, out := f.sandbox(t, fr, "open", openPort)
	f.echo(t, p)
	began := time.Now()
	if err := p.Attach(scenario.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	f.hasAddresses(t, fr, p)
	for _, from := range fr.from {
		scenario.Eventually(t, 10*time.Second, "packets of "+from.String()+" arrive at a pod without policy", func() error {
			if tp.From(from).Count == 0 {
				return errors.New("none yet")
			}
			return nil
		})
	}
	t.Logf("a pod without policy heard all after %s", time.Since(began).Round(time.Millisecond))
	goOn(t, 10, out)
	out.Close()
	f.remove(t, p)
	tp.Close()
	return tp.From(fr.from...).Count
}

// sandbox makes a pod that is not attached yet, with a tap in it, and which begins to send as
// soon as it can.
func (f *fabric) sandbox(t *testing.T, fr *fire, namespace string, port uint16) (*lab.Pod, *probe.Tap, *probe.Hail) {
	t.Helper()
	p, err := f.n1.NewSandbox(scenario.Context(t, time.Minute), "fire", lab.PodOptions{Namespace: namespace, IPs: fr.at})
	if err != nil {
		t.Fatal(err)
	}
	return p, openTap(t, p), startHail(t, p, 2000, at(port, fr.from...)...)
}

func (f *fabric) hasAddresses(t *testing.T, fr *fire, p *lab.Pod) {
	t.Helper()
	for _, a := range fr.at {
		if !slices.Contains(addrs(p), a) {
			t.Fatalf("%s has addresses %v, not %v", p, p.Addresses, fr.at)
		}
	}
}

// echo answers what comes to hailPort in a pod, until the pod goes.
func (f *fabric) echo(t *testing.T, p *lab.Pod) {
	t.Helper()
	var conn *net.UDPConn
	err := p.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: hailPort})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return // the test has ended
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], from) // on its way out it may meet a pod that is being deleted
		}
	}()
}
