package enforce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// inside is set in the process that runs the tests, which has a network namespace of its own.
const inside = "CAUSEWAY_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts it
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "tests need root, for a network namespace:", err)
		os.Exit(1)
	}
}

// programs counts the programs that write rules.
type programs struct{ ran atomic.Int64 }

type byIPTables struct {
	*iptables.Host
	*programs
}

func (k byIPTables) Restore(ctx context.Context, script []byte) error {
	k.ran.Add(1)
	return k.Host.Restore(ctx, script)
}

type byNFT struct {
	*nftables.Host
	*programs
}

func (k byNFT) Run(ctx context.Context, tx *knftables.Transaction) error {
	k.ran.Add(1)
	return k.Host.Run(ctx, tx)
}

// counted counts the looks for connections of single addresses.
type counted struct {
	*conntrack.Table
	looks atomic.Int64
}

func (c *counted) Forget(ctx context.Context, addrs ...netip.Addr) (int, error) {
	c.looks.Add(1)
	return c.Table.Forget(ctx, addrs...)
}

// node is an Enforcer on a kernel.
type node struct {
	*Enforcer
	programs
	flows    counted
	policies *watch.Policies
	known    int // pods that were told
}

// liveBlocks are a block of the node of each family.
var liveBlocks = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}

// startNode makes a node of which one policy selects the pods with a label.
func startNode(t testing.TB, by string) *node {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"link set lo up", "route replace blackhole 10.77.0.0/16", "-6 route replace blackhole fd77::/64"} {
		if out, err := exec.Command("sh", "-c", "ip "+command).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	n := &node{flows: counted{Table: conntrack.NewTable()}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	opt := watch.Options{Node: "n1", NamespaceLabels: true, Policy: true, Interface: func(_, pod string) string { return "cali" + pod }}
	n.policies = watch.NewPolicies(opt, func(u *watch.PolicyUpdate) { n.Publish(u) }, func() {})
	marks, err := policy.NewMarks(policy.DefaultMarkMask)
	must(err)
	n.Enforcer, err = New(Config{Log: log, Local: n.policies, Flows: &n.flows, Marks: marks, Routed: func(context.Context, ...netip.Prefix) error { return nil }})
	must(err)
	runs := []func(context.Context) error{n.policies.Run, n.Enforcer.Run}
	var backend Backend
	if by == "nftables" {
		backend, err = nftables.New(nftables.Config{Log: log, Marks: marks, Kernel: byNFT{nftables.NewHost(), &n.programs}})
		must(err)
	} else {
		sets, err := ipset.New(ipset.Config{Log: log, Owners: []string{"policy"}})
		must(err)
		runs = append(runs, sets.Run)
		var rules []*iptables.Reconciler
		for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
			r, err := iptables.New(iptables.Config{Family: f, Log: log, Kernel: byIPTables{iptables.NewHost(f, iptables.NFT, 0), &n.programs}})
			must(err)
			rules, runs = append(rules, r), append(runs, r.Run)
		}
		backend, err = iptables.NewPolicy(iptables.PolicyConfig{Log: log, Rules: rules, Sets: sets, SetOwner: "policy", Marks: marks})
		must(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range runs {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if out, err := exec.Command("sh", "-c", "nft flush ruleset && ipset destroy").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	n.policies.SetNamespace(model.Namespace{Name: "default"})
	n.policies.Set(only("web", "client"))
	n.policies.SetPending(nil)
	n.Use(backend, func(context.Context) error { return nil })
	n.SetBlocks(liveBlocks, nil)
	first, _ := n.pod("first") // brings sets of its families
	must(n.Attach(t.Context(), first))
	n.settle(t)
	return n
}

// settle waits until nothing is on its way into the kernel.
func (n *node) settle(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		n.Enforcer.mu.Lock()
		done := len(n.addrs.waiting()) == 0 && len(n.addrs.leaving) == 0 && len(n.standing) == 0 && n.synced
		n.Enforcer.mu.Unlock()
		if err := n.backend.Wait(t.Context()); done && err == nil {
			return
		} else if time.Now().After(end) {
			t.Fatalf("does not settle: %v", err)
		}
		<-time.After(time.Millisecond)
	}
}

// pod makes one that nobody was told of, with a label of its kind.
func (n *node) pod(kind string) (model.Endpoint, *watch.Pod) {
	n.known++
	name := fmt.Sprintf("%s%d", kind, n.known)
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": kind}}}
	object, _ := watch.ReadPod(o)
	return model.Endpoint{
		Key: model.AttachmentKey{ContainerID: "c-" + name, IfName: "eth0"}, Namespace: "default", Pod: name, HostInterface: "cali" + name,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 77, byte(n.known >> 8), byte(n.known)}), netip.MustParseAddr(fmt.Sprintf("fd77::%x", n.known))},
	}, &object
}

// expect tells of a pod, and waits until what can be made ahead is there.
func (n *node) expect(t testing.TB, kind string) model.Endpoint {
	t.Helper()
	ep, object := n.pod(kind)
	n.policies.SetPod(object)
	for end := time.Now().Add(20 * time.Second); ; {
		n.Enforcer.mu.Lock()
		_, known := n.engine.Addresses(model.PolicyEndpointID{Namespace: "default", Name: ep.Pod})
		n.Enforcer.mu.Unlock()
		if known {
			break
		} else if time.Now().After(end) {
			t.Fatal("the pod is not known")
		}
		<-time.After(time.Millisecond)
	}
	n.settle(t)
	return ep
}

// busy makes a connection in the kernel's table, so that it is not passed over for being empty.
func busy(t testing.TB) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	found := 0
	if err := conntrack.NewTable().Flows(t.Context(), nil, func(*conntrack.Flow) { found++ }); err != nil || found == 0 {
		t.Fatalf("%d connections, %v", found, err)
	}
}

// TestAttachRunsNothing: with either backend, a pod that no policy selects and one whose rules were
// made ahead are attached without a program, and without a look for connections.
func TestAttachRunsNothing(t *testing.T) {
	for _, by := range []string{"iptables", "nftables"} {
		t.Run(by, func(t *testing.T) {
			n := startNode(t, by)
			busy(t)
			for _, kind := range []string{"open", "web"} {
				var eps []model.Endpoint
				for range 5 {
					eps = append(eps, n.expect(t, kind))
				}
				ran, looks := n.ran.Load(), n.flows.looks.Load()
				for _, ep := range eps {
					if err := n.Attach(t.Context(), ep); err != nil {
						t.Fatal(err)
					}
				}
				if now := n.ran.Load(); now != ran {
					t.Errorf("%d programs ran to attach %d pods of kind %s, want none", now-ran, len(eps), kind)
				}
				if now := n.flows.looks.Load(); now != looks {
					t.Errorf("%d looks for connections, want none", now-looks)
				}
			}
		})
	}
}

// TestNothingLeadsToABlackhole: of an address of a block that no pod has no connection is confirmed,
// whether packets come from elsewhere or from the host. Clearance rests on that.
func TestNothingLeadsToABlackhole(t *testing.T) {
	startNode(t, "nftables") // whose rules ask for the state of connections
	peer := fmt.Sprintf("enforce-%d", os.Getpid())
	run := func(commands ...string) {
		t.Helper()
		for _, c := range commands {
			if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", c, err, out)
			}
		}
	}
	run("ip netns add " + peer)
	t.Cleanup(func() { run("ip netns del " + peer) })
	run("ip link add up0 type veth peer eth0 netns "+peer, "ip link add void0 type veth peer void1", "ip link set void0 arp off up", "ip link set void1 up", "ip link set up0 up",
		"ip addr add 192.0.2.1/24 dev up0", "ip -6 addr add fd02::1/64 dev up0 nodad", "ip route add 10.78.0.0/16 dev void0", "ip -6 route add fd78::/64 dev void0",
		"echo 1 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	in := "ip netns exec " + peer + " "
	run(in+"ip link set eth0 up", in+"ip addr add 192.0.2.2/24 dev eth0", in+"ip -6 addr add fd02::2/64 dev eth0 nodad",
		in+"ip route add default via 192.0.2.1", in+"ip -6 route add default via fd02::1")
	tracked := func() map[netip.Addr]bool {
		out := map[netip.Addr]bool{}
		if err := conntrack.NewTable().Flows(t.Context(), nil, func(f *conntrack.Flow) { out[f.Destination.Addr()] = true }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, ends := range [][2]string{{"10.77.200.1", "10.78.0.1"}, {"fd77::c8:1", "fd78::1"}} {
		nobody, there := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
		for _, from := range []string{in, ""} {
			for _, to := range []netip.Addr{nobody, there} {
				run(fmt.Sprintf("%sbash -c 'echo x > /dev/udp/%s/9 || true'", from, to))
			}
			if have := tracked(); !have[there] {
				t.Errorf("no connection with %s, which is routed: the test shows nothing", there)
			}
			if _, err := conntrack.NewTable().Delete(t.Context(), 0, func(f *conntrack.Flow) bool { return f.Destination.Addr() == there }); err != nil {
				t.Fatal(err)
			}
		}
		have := tracked()
		if have[nobody] {
			t.Errorf("a connection with %s, which nobody has", nobody)
		}
	}
}

// BenchmarkAttach measures what an ADD waits for because of policy, from both families' addresses
// to rules in the kernel.
func BenchmarkAttach(b *testing.B) {
	for _, by := range []string{"iptables", "nftables"} {
		n := startNode(b, by)
		busy(b)
		for _, kind := range []string{"open", "web"} {
			b.Run(by+"/"+kind, func(b *testing.B) {
				var took []time.Duration
				for b.Loop() {
					b.StopTimer()
					ep := n.expect(b, kind)
					b.StartTimer()
					began := time.Now()
					if err := n.Attach(b.Context(), ep); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(began))
					b.StopTimer()
					n.policies.RemovePod("default", ep.Pod)
					n.Detach(ep)
					b.StartTimer()
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
			})
		}
	}
}
