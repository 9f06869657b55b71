package watch_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch/kube"
)

// keysTo writes down the keys that a source tells.
func keysTo(into chan string) func(*kube.Config) {
	return func(c *kube.Config) { c.AnnounceKey = func(key []byte) { into <- string(key) } }
}

func keySecret(data string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: kube-system}\nstringData: {%s}\n", announce.SecretName, data)
}

// TestAnnounceKey: the key is read by the name of its Secret alone, it stays while that is gone,
// and nothing waits for it.
func TestAnnounceKey(t *testing.T) {
	installed(t)
	apply(t, readerRBAC)
	apply(t, nodeObject("n1", "10.0.0.1"))
	told := make(chan string, 10)
	next := func(want string) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("the key is %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("no key; want %q", want)
		}
	}
	r := start(t, impersonated(server.Config, "reader"), keysTo(told))
	r.await("a snapshot without a right to the key, and what right is missing", func(s *model.Snapshot) bool {
		return len(s.Nodes) == 1 && hasProblem(s, "is forbidden; grant list and watch to the agent")
	})
	apply(t, strings.NewReplacer("[tor]", "["+announce.SecretName+"]").Replace(secretRBAC))
	r.await("the right", func(s *model.Snapshot) bool { return len(s.Problems) == 0 })
	apply(t, keySecret("key: first, other: some"))
	next("first")
	apply(t, keySecret("key: first, other: more")) // nothing new
	apply(t, keySecret("key: second"))
	next("second")
	remove(t, "v1/secrets", "kube-system", announce.SecretName)
	apply(t, keySecret("key: third"))
	next("third")
	if strings.Contains(r.logged(), "second") {
		t.Error("a key is logged")
	}
}

// TestAnnouncedPods: a pod of another node that is announced reaches the sets of a policy that selects
// it before its kubelet says where it is; what that says then holds.
func TestAnnouncedPods(t *testing.T) {
	clean(t)
	podAt(t, "server", "n1", "10.8.0.1")
	apply(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: prod}\nspec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}\n")
	e := enforce(t, server.Config)
	eventually(t, "the first snapshot", func() bool { return e.snapshot() != nil }, func() string { return "" })
	e.attach("server", "cali1", "10.8.0.1")
	e.see("the policy in force and other nodes' pods read", func() bool {
		return e.whole && e.applies(model.PolicyKubernetes, "prod", "p") == 1
	})
	podAt(t, "client", "n2", "")
	pod, err := clients(t, server.Config).Core.CoreV1().Pods("prod").Get(context.Background(), "client", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	announced := func(node, addr string) {
		e.Policies().Announced(node, "prod", "client", string(pod.UID), []netip.Addr{netip.MustParseAddr(addr)})
	}
	announced("n3", "10.9.0.9")
	announced("n2", "10.9.0.1") // whether the watch has told of the pod or not
	e.see("the announced address among the members", func() bool { return slices.Equal(e.members(), []string{"10.9.0.1/32"}) })
	if err := patchPodStatus(t, "prod", "client", `{"status":{"phase":"Running","podIP":"10.9.0.2","podIPs":[{"ip":"10.9.0.2"}]}}`); err != nil {
		t.Fatal(err)
	}
	e.see("the address of the status", func() bool { return slices.Equal(e.members(), []string{"10.9.0.2/32"}) })
	announced("n2", "10.9.0.1")
	remove(t, "v1/pods", "prod", "client")
	e.see("its end", func() bool { return len(e.members()) == 0 })
}

// inSpace starts the tasks in a network namespace of their own, where lo is up; it goes when they
// end.
func inSpace(t *testing.T, tasks ...*announce.Announcer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	made := make(chan error, 1)
	var space netns.NsHandle
	running.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var err error
		if space, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		made <- err
	})
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { space.Close() })
	for _, a := range tasks {
		running.Go(func() {
			runtime.LockOSThread()
			if err := netns.Set(space); err != nil {
				t.Error(err)
			} else if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnnouncedSoon measures the way of new pods' addresses from the end of ADD on one node to the
// sets of a policy on another: over real sockets, the real watch and the real engine, with
// nothing written to the API.
func TestAnnouncedSoon(t *testing.T) {
	const pods = 100
	clean(t)
	podAt(t, "server", "n1", "10.8.0.1")
	apply(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: prod}\nspec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}]}]}\n")
	e := enforce(t, server.Config)
	e.await("the first snapshot", func(*model.Snapshot) bool { return true })
	e.attach("server", "cali1", "10.8.0.1")
	e.see("the policy in force and other nodes' pods read", func() bool {
		return e.whole && slices.Equal(e.members(), []string{"10.8.0.1/32"})
	})
	snap := &model.Snapshot{
		Nodes: []model.Node{{Name: "n1", IPv4: netip.MustParsePrefix("127.0.0.1/8")}, {Name: "n2", IPv4: netip.MustParsePrefix("127.0.0.2/8")}},
		Pools: []model.Pool{{Name: "p", CIDR: netip.MustParsePrefix("10.9.0.0/16"), AllowedUses: []model.Use{model.UseWorkload}}},
	}
	var ends []*announce.Announcer
	for _, node := range []string{"n1", "n2"} {
		a, err := announce.New(announce.Config{Node: node, Log: silent, Deliver: func(from string, p announce.Pod) {
			e.Policies().Announced(from, p.Namespace, p.Name, p.UID, p.Addresses) // n2 is told nothing
		}})
		if err != nil {
			t.Fatal(err)
		}
		a.SetKey([]byte(strings.Repeat("k", announce.MinKey)))
		a.Set(snap)
		ends = append(ends, a)
	}
	inSpace(t, ends...)
	eventually(t, "both listen", func() bool { return len(ends[0].Status().Listening)*len(ends[1].Status().Listening) == 1 }, func() string { return "" })
	var took []time.Duration
	for i := range pods {
		name := fmt.Sprintf("client-%d", i)
		podAt(t, name, "n2", "")
		pod, err := clients(t, server.Config).Core.CoreV1().Pods("prod").Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})
		start := time.Now()
		ends[1].Announce(model.Endpoint{
			Key: model.AttachmentKey{ContainerID: name, IfName: "eth0"}, Namespace: "prod", Pod: name, PodUID: string(pod.UID), Addresses: []netip.Addr{addr},
		})
		for !slices.Contains(e.now(), addr.String()+"/32") {
			if time.Since(start) > patience {
				t.Fatalf("%s of Pod %s never arrived: %+v", addr, name, ends[0].Status())
			}
			time.Sleep(200 * time.Microsecond)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("from ADD's end to the other node's sets: p50 %s, p99 %s, at most %s", took[pods/2], took[pods*99/100-1], took[pods-1])
	if p99 := took[pods*99/100-1]; p99 > 500*time.Millisecond {
		t.Errorf("p99 is %s, want 500ms at most", p99)
	}
}

// now is members, for whoever does not hold the lock.
func (e *enforcing) now() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members()
}
