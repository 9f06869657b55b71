package watch_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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
