package last

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

var policyOptions = watch.Options{Node: "n1", NamespaceLabels: true, Policy: true}

// agent is one life of an agent: policy goes through a keeper to an engine.
type agent struct {
	t        *testing.T
	policies *watch.Policies
	stop     func()

	mu       sync.Mutex
	engine   *policy.Engine
	program  *policy.Program
	updates  int
	whole    bool // the last update had nothing pending
	recalled bool
}

func live(t *testing.T, path string) *agent {
	t.Helper()
	a := &agent{t: t, engine: policy.New(policy.Config{}), program: policy.NewProgram()}
	keeper := NewPolicyKeeper(path, "n1", slog.New(slog.DiscardHandler), func(u *watch.PolicyUpdate) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := u.Apply(a.engine); err != nil {
			t.Error(err)
		}
		if err := a.program.Apply(a.engine.Flush()); err != nil {
			t.Error(err)
		}
		a.updates++
		a.whole, a.recalled = len(u.Pending) == 0, u.Recalled
	})
	keeper.after = 50 * time.Millisecond
	a.policies = watch.NewPolicies(policyOptions, keeper.Publish, func() {})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.policies.Run(ctx) })
	running.Go(func() { keeper.Run(ctx) })
	a.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(a.stop)
	return a
}

func (a *agent) see(what string, ok func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		a.mu.Lock()
		is := ok()
		a.mu.Unlock()
		if is {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("not seen: %s; %d updates, whole %v, program %+v", what, a.updates, a.whole, a.program)
		}
	}
}

func object(t *testing.T, obj metav1.Object, text string) *watch.Object {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatal(err)
	}
	o := watch.Check(obj, policyOptions)
	if !o.Valid() {
		t.Fatal(o.Problems)
	}
	return o
}

func address(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }

func attached(pod, uid, iface, addr string) model.Endpoint {
	return model.Endpoint{Key: model.AttachmentKey{ContainerID: pod, IfName: "eth0"}, Namespace: "prod", Pod: pod, PodUID: uid, HostInterface: iface, Addresses: address(addr)}
}

const (
	db     = `{metadata: {namespace: prod, name: db}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}`
	global = `{metadata: {name: all}, spec: {selector: app == 'db', ingress: [{action: Pass}]}}`
	felix  = `{metadata: {name: default}, spec: {defaultEndpointToHostAction: Drop}}`
)

// tell is what a datastore that answers tells.
func (a *agent) tell() {
	a.policies.SetNamespace(model.Namespace{Name: "prod", Labels: map[string]string{"env": "prod"}})
	a.policies.Set(object(a.t, &networkingv1.NetworkPolicy{}, db))
	a.policies.Set(object(a.t, &v3.GlobalNetworkPolicy{}, global))
	a.policies.Set(object(a.t, &v3.FelixConfiguration{}, felix))
	a.policies.SetPod(&watch.Pod{Namespace: "prod", Name: "db", UID: "u1", Labels: map[string]string{"app": "db"}})
	a.policies.SetRemote(&watch.Pod{Namespace: "prod", Name: "web", Labels: map[string]string{"app": "web"}, Addresses: address("10.9.0.1")})
}

func (a *agent) applies(kind model.PolicyKind, namespace, name string) int {
	return a.engine.Applies(model.PolicyID{Kind: kind, Namespace: namespace, Name: name})
}

// TestPolicyKeeper: an agent that starts while the datastore is away enforces what the one
// before knew, and what is new or gone when the datastore answers again.
func TestPolicyKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.json")
	first := live(t, path)
	first.policies.Attach(attached("db", "u1", "calidb", "10.0.0.1"))
	first.tell()
	first.policies.SetPending(nil)
	first.see("the policies", func() bool {
		return first.applies(model.PolicyKubernetes, "prod", "db") == 1 && first.applies(model.PolicyGlobal, "", "all") == 1 && first.program.Host.EndpointToHost == model.EndpointToHostDrop
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if m, err := LoadPolicy(path, "n1"); err == nil && m.Len() > 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("nothing was written: ", err)
		}
	}
	first.stop()

	second := live(t, path)
	second.policies.SetPending([]string{"namespaces"})
	second.policies.Attach(attached("db", "u1", "calidb", "10.0.0.1"))
	second.policies.Attach(attached("new", "u2", "calinew", "10.0.0.2"))
	second.see("what the first one knew", func() bool { return second.whole && second.recalled && second.updates >= 3 })
	second.mu.Lock()
	if !reflect.DeepEqual(second.program.Host, first.program.Host) || !reflect.DeepEqual(second.program.Sets, first.program.Sets) || !reflect.DeepEqual(second.program.Chains, first.program.Chains) {
		t.Errorf("recalled\n%+v\nwant\n%+v", second.program, first.program)
	}
	if have, want := second.program.Endpoints["calidb"], first.program.Endpoints["calidb"]; !have.Equal(&want) {
		t.Errorf("recalled %+v, want %+v", have, want)
	}
	if unknown := second.program.Endpoints["calinew"]; unknown.Ingress.Default != policy.Deny || unknown.Egress.Default != policy.Deny || len(unknown.Ingress.Tiers) > 0 {
		t.Errorf("a pod that nobody knew: %+v", unknown)
	}
	second.mu.Unlock()
	// The datastore begins to answer: until it has told everything nothing is taken away.
	second.policies.SetNamespace(model.Namespace{Name: "other"})
	second.see("a part", func() bool { return second.updates >= 4 })
	second.see("the policies still", func() bool {
		return second.applies(model.PolicyKubernetes, "prod", "db") == 1 && second.applies(model.PolicyGlobal, "", "all") == 1 && second.program.Host.EndpointToHost == model.EndpointToHostDrop
	})
	second.tell()
	second.policies.Remove(model.Object{Kind: "GlobalNetworkPolicy", Name: "all"})
	second.policies.Remove(model.Object{Kind: "FelixConfiguration", Name: "default"})
	second.policies.SetPending(nil)
	second.see("what the datastore told", func() bool {
		return second.whole && !second.recalled && second.applies(model.PolicyKubernetes, "prod", "db") == 1 && second.applies(model.PolicyGlobal, "", "all") == 0 &&
			second.program.Host.EndpointToHost == model.EndpointToHostAccept
	})
}

// TestPolicyKeeperAnswered: a source that tells in time is not disturbed.
func TestPolicyKeeperAnswered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(path, []byte("{\"Form\":1,\"Node\":\"n1\"}\n{\"namespace\":{\"Name\":\"old\"}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := live(t, path)
	a.tell()
	a.policies.SetPending(nil)
	a.see("an update", func() bool { return a.updates == 1 && a.whole && !a.recalled })
	a.see("a write", func() bool { m, err := LoadPolicy(path, "n1"); return err == nil && m.Len() == 5 })
}

func TestLoadPolicyErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.json")
	if _, err := LoadPolicy(path, "n1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for name, text := range map[string]string{
		"empty": "", "another node": "{\"Form\":1,\"Node\":\"n2\"}\n", "another form": "{\"Form\":0,\"Node\":\"n1\"}\n",
		"cut off": "{\"Form\":1,\"Node\":\"n1\"}\n{\"tier\":", "of no form": "{\"Form\":1,\"Node\":\"n1\"}\n{\"other\":1}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := LoadPolicy(path, "n1"); err == nil {
			t.Errorf("%s: %d things", name, m.Len())
		}
	}
}
