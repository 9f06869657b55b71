package enforce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// kernel is a backend that has everything in force when it lets it through.
type kernel struct {
	mu      sync.Mutex
	program *policy.Program
	bad     error // a delta that does not fit
	synced  bool
	encap   [2]model.EncapGuard
	hold    chan struct{} // Wait waits for it to be closed; nil: not at all
	wrong   map[string]error
}

func newKernel() *kernel { return &kernel{program: policy.NewProgram(), wrong: map[string]error{}} }

func (k *kernel) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (k *kernel) Apply(d *policy.Delta) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bad = errors.Join(k.bad, k.program.Apply(d))
}
func (k *kernel) InSync() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.synced = true
}
func (k *kernel) SetEncapsulation(v4, v6 model.EncapGuard) { k.encap = [2]model.EncapGuard{v4, v6} }
func (k *kernel) Wait(ctx context.Context, interfaces ...string) error {
	k.mu.Lock()
	hold := k.hold
	k.mu.Unlock()
	if hold != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hold:
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, i := range interfaces {
		if _, there := k.program.Endpoints[i]; !there {
			return errors.New(i + " is no endpoint's")
		}
		if err := k.wrong[i]; err != nil {
			return err
		}
	}
	return nil
}
func (k *kernel) Counters(context.Context) ([]policy.Counter, error) { return nil, nil }

func (k *kernel) endpoint(iface string) (policy.Endpoint, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ep, ok := k.program.Endpoints[iface]
	return ep, ok
}

// flows are connections, each with the mark that the Cutter gave it.
type flows struct {
	mu        sync.Mutex
	have      []conntrack.Flow
	forgotten []netip.Addr
	walked    [][]netip.Prefix
	own       []netip.Addr
	routes    map[netip.Addr]string
}

func (f *flows) Flows(_ context.Context, addrs []netip.Addr, each func(*conntrack.Flow)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.have {
		if c := f.have[i]; addrs == nil || slices.Contains(addrs, c.Source.Addr()) || slices.Contains(addrs, c.Destination.Addr()) {
			each(&c)
		}
	}
	return nil
}
func (f *flows) Mark(_ context.Context, mask uint32, set, clear []conntrack.Flow) ([]conntrack.Flow, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.have {
		same := func(o conntrack.Flow) bool {
			return o.Source == f.have[i].Source && o.Destination == f.have[i].Destination
		}
		if slices.ContainsFunc(set, same) {
			f.have[i].Mark |= mask
		}
		if slices.ContainsFunc(clear, same) {
			f.have[i].Mark &^= mask
		}
	}
	return nil, nil
}
func (f *flows) Master(context.Context, *conntrack.Flow) (conntrack.Flow, bool, error) {
	return conntrack.Flow{}, false, nil
}
func (f *flows) Own(context.Context) (map[netip.Addr]struct{}, error) {
	own := map[netip.Addr]struct{}{}
	for _, a := range f.own {
		own[a] = struct{}{}
	}
	return own, nil
}
func (f *flows) Route(a netip.Addr) string { return f.routes[a] }
func (f *flows) Forget(_ context.Context, addrs ...netip.Addr) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = append(f.forgotten, addrs...)
	return 0, nil
}
func (f *flows) ForgetIn(_ context.Context, prefixes []netip.Prefix, keep func(netip.Addr) bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.walked = append(f.walked, prefixes)
	had := len(f.have)
	f.have = slices.DeleteFunc(f.have, func(c conntrack.Flow) bool {
		return slices.ContainsFunc([]netip.Addr{c.Source.Addr(), c.Destination.Addr()}, func(a netip.Addr) bool {
			return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) && !keep(a)
		})
	})
	return had - len(f.have), nil
}

// world is an Enforcer between a real watch.Policies, which a test tells things, and a kernel.
type world struct {
	t *testing.T
	*Enforcer
	policies *watch.Policies
	kernel   *kernel
	flows    *flows
	retired  chan struct{}

	mu    sync.Mutex
	known bool // what Needs says
	asked bool // remote pods were asked for
}

var options = watch.Options{Node: "n1", NamespaceLabels: true, Policy: true}

func newWorld(t *testing.T) *world {
	w := &world{t: t, kernel: newKernel(), flows: &flows{}, known: true, retired: make(chan struct{}, 1)}
	w.policies = watch.NewPolicies(options, func(u *watch.PolicyUpdate) { w.Publish(u) }, func() {})
	marks, err := policy.NewMarks(policy.DefaultMarkMask)
	if err != nil {
		t.Fatal(err)
	}
	w.Enforcer, err = New(Config{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Local: w.policies, Flows: w.flows, Marks: marks, Patience: 100 * time.Millisecond,
		Needs: func(pods bool, _ func(model.ServiceID) bool) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = w.asked || pods
			return w.known || !pods
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{w.policies.Run, w.Enforcer.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		w.kernel.mu.Lock()
		defer w.kernel.mu.Unlock()
		if w.kernel.bad != nil {
			t.Errorf("what the backend was given does not fit: %v", w.kernel.bad)
		}
	})
	return w
}

func (w *world) use() {
	w.Use(w.kernel, func(context.Context) error { w.retired <- struct{}{}; return nil })
}

// sees waits for something to hold.
func (w *world) sees(what string, holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); {
		if time.Now().After(end) {
			w.t.Fatalf("not seen: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func (w *world) attach(ep model.Endpoint) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	return w.Attach(ctx, ep)
}

func pod(name, addr string) (model.Endpoint, *watch.Pod) {
	a := netip.MustParseAddr(addr)
	return model.Endpoint{
			Key: model.AttachmentKey{ContainerID: "c-" + name, IfName: "eth0"}, Namespace: "default", Pod: name, PodUID: "u-" + name,
			HostInterface: "cali" + name, Addresses: []netip.Addr{a},
		}, &watch.Pod{
			Namespace: "default", Name: name, UID: "u-" + name, Node: "n1", Labels: map[string]string{"app": name}, Addresses: []netip.Addr{a},
		}
}

// only is a policy that lets nothing in to pods of an app but from pods of another.
func only(app, from string) *watch.Object {
	peer := &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}
	return watch.Check(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "only-" + from},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: peer}}}},
		},
	}, options)
}

func TestNothingBeforeAllIsKnown(t *testing.T) {
	w := newWorld(t)
	web, object := pod("web", "10.0.0.1")
	w.Restore(web)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPod(object)
	w.policies.SetPending([]string{"networkpolicies"})
	w.use()
	w.sees("that changes wait", func() bool {
		st := w.Status()
		return st.Waiting && slices.Equal(st.Missing, []string{"networkpolicies"})
	})
	if _, there := w.kernel.endpoint("caliweb"); there || w.kernel.synced {
		t.Error("the kernel was given something before policies were read")
	}
	late, _ := pod("late", "10.0.0.2")
	if err := w.attach(late); err != nil {
		t.Errorf("a pod must start without what is not known, with nothing passing: %v", err)
	}
	w.policies.SetPending(nil)
	w.sees("rules", func() bool { _, there := w.kernel.endpoint("caliweb"); return there && w.Status().Synced })
	if ep, _ := w.kernel.endpoint("calilate"); ep.Ingress.Default != policy.Deny {
		t.Errorf("a pod whose object is not known: %+v", ep)
	}
	<-w.retired
}

func TestAttachWaitsForTheKernel(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	web, object := pod("web", "10.0.0.1")
	w.policies.SetPod(object)
	done := make(chan error, 1)
	go func() { done <- w.attach(web) }()
	select {
	case err := <-done:
		t.Fatalf("attached without a backend: %v", err)
	case <-time.After(300 * time.Millisecond): // longer than its patience
	}
	hold := make(chan struct{})
	w.kernel.hold = hold
	w.use()
	w.sees("the endpoint", func() bool { _, there := w.kernel.endpoint("caliweb"); return there })
	select {
	case err := <-done:
		t.Fatalf("attached before the rules were in the kernel: %v", err)
	default:
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	refused := errors.New("no such match")
	other, object := pod("other", "10.0.0.2")
	w.policies.SetPod(object)
	w.kernel.mu.Lock()
	w.kernel.wrong["caliother"] = refused
	w.kernel.mu.Unlock()
	if err := w.attach(other); !errors.Is(err, refused) {
		t.Errorf("rules that the kernel refuses: %v", err)
	}
	w.Detach(other)
	w.sees("that it is gone", func() bool { _, there := w.kernel.endpoint("caliother"); return !there })
	w.sees("that its connections are forgotten", func() bool {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		return slices.Equal(w.flows.forgotten, slices.Concat(web.Addresses, other.Addresses, other.Addresses)) // before each came, and when one went
	})
}

// TestAnAddressHandedOn: what was established with who had an address is forgotten before the
// next one is attached, and what that one begins is not.
func TestAnAddressHandedOn(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	w.use()
	forgotten := func(a netip.Addr) (n int) {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		for _, f := range w.flows.forgotten {
			if f == a {
				n++
			}
		}
		return n
	}
	running, _ := pod("running", "10.0.0.9")
	w.Restore(running)
	if err := w.attach(running); err != nil { // an ADD that is repeated
		t.Fatal(err)
	}
	if n := forgotten(running.Addresses[0]); n != 0 {
		t.Error("the connections of a pod that ran before the agent were forgotten")
	}
	const rounds = 20
	var addr netip.Addr
	for i := range rounds {
		ep, object := pod(fmt.Sprintf("p%d", i), "10.0.0.1")
		addr = ep.Addresses[0]
		w.policies.SetPod(object)
		if err := w.attach(ep); err != nil {
			t.Fatal(err)
		}
		// Once for whoever had it before this agent, and once for each that went: no block says that
		// nobody else can have had it.
		if n := forgotten(addr); n != i+1 {
			t.Fatalf("with pod %d attached, connections of its address were forgotten %d times, want %d", i, n, i+1)
		}
		if i < rounds-1 {
			w.Detach(ep)
		}
	}
	other, object := pod("other", "10.0.0.2")
	w.policies.SetPod(object)
	if err := w.attach(other); err != nil {
		t.Fatal(err)
	}
	w.Detach(other)
	w.sees("the other's connections forgotten", func() bool { return forgotten(other.Addresses[0]) == 2 }) // by nobody's Attach
	if n := forgotten(addr); n != rounds {
		t.Errorf("connections of a running pod were forgotten: %d times, want %d", n, rounds)
	}
}

// TestANameUsedAgain: the rules of a new pod are its own, however alike it is to the one before.
func TestANameUsedAgain(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	w.use()
	web, object := pod("web", "10.0.0.1")
	w.policies.Set(only("web", "client"))
	w.policies.SetPod(object)
	if err := w.attach(web); err != nil {
		t.Fatal(err)
	}
	w.Detach(web)
	again := web
	again.Key.ContainerID, again.PodUID = "c-2", "u-2"
	if err := w.attach(again); err != nil {
		t.Fatal(err)
	}
	if ep, _ := w.kernel.endpoint("caliweb"); ep.Ingress.Default != policy.Deny || len(ep.Ingress.Tiers) != 0 {
		t.Errorf("it has what the pod before had: %+v", ep.Ingress)
	}
}

// TestRemotePods: rules that name pods of other nodes wait until those are known.
func TestRemotePods(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	w.use()
	web, object := pod("web", "10.0.0.1")
	w.policies.SetPod(object)
	if err := w.attach(web); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.known = false
	w.mu.Unlock()
	w.policies.Set(only("web", "client"))
	w.sees("that it asks for pods", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.asked && w.Status().Waiting })
	if ep, _ := w.kernel.endpoint("caliweb"); len(ep.Ingress.Tiers) != 0 {
		t.Error("a policy is in force whose pods are not known")
	}
	_, client := pod("client", "10.0.1.1")
	client.Node = "n2"
	w.mu.Lock()
	w.known = true
	w.mu.Unlock()
	w.policies.SetRemote(client)
	w.sees("the policy", func() bool { ep, _ := w.kernel.endpoint("caliweb"); return len(ep.Ingress.Tiers) == 1 })
	if w.Status().Waiting {
		t.Error("still waiting")
	}
}

// TestConnections: those that a policy forbids are marked, and unmarked when it goes.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	flow := func(from, to string) conntrack.Flow {
		f := conntrack.Flow{Protocol: model.ProtocolTCP, Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to)}
		f.First, f.ReplyTo = f.Destination, f.Source
		return f
	}
	w.flows.have = []conntrack.Flow{flow("10.0.1.1:1000", "10.0.0.1:80"), flow("10.0.1.2:1000", "10.0.0.1:80")}
	w.use()
	web, object := pod("web", "10.0.0.1")
	w.policies.SetPod(object)
	if err := w.attach(web); err != nil {
		t.Fatal(err)
	}
	_, client := pod("client", "10.0.1.1")
	client.Node = "n2"
	w.policies.SetRemote(client)
	marks := func() (out [2]bool) {
		w.flows.mu.Lock()
		defer w.flows.mu.Unlock()
		for i := range out {
			out[i] = w.flows.have[i].Mark&w.cfg.Marks.Forbidden != 0
		}
		return out
	}
	w.policies.Set(only("web", "client"))
	w.sees("the one that is forbidden cut", func() bool { return marks() == [2]bool{false, true} })
	w.policies.Remove(only("web", "client").Key)
	w.sees("neither cut", func() bool { return marks() == [2]bool{} })
	if w.Status().Flows.Cut != 1 {
		t.Errorf("%+v", w.Status().Flows)
	}
}

// TestRetire: what another backend left is taken away, however often that fails.
func TestRetire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.policies.SetPending(nil)
	var mu sync.Mutex
	tries := 0
	w.Use(w.kernel, func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries == 1 {
			return errors.New("busy")
		}
		return nil
	})
	w.sees("a second try", func() bool { mu.Lock(); defer mu.Unlock(); return tries == 2 })
}
