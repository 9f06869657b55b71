package file

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// TestPolicy has policies in a folder come into force, break, change and go, and pods that
// nobody knows more of than that they are attached.
func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		temp := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	const gnp = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: a}
spec: {tier: mine, selector: all(), ingress: [{action: Allow, source: {selector: SELECTOR}}]}
`
	put("policy.yaml", strings.Replace(gnp, "SELECTOR", "set == 'x'", 1)+`
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: mine}
spec: {order: 5}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicyList
items:
- {metadata: {name: b, namespace: prod}, spec: {types: [Egress]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: x, labels: {set: x}}
spec: {nets: [192.0.2.0/24]}
---
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: Return}}
`)
	put("kube.yaml", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: prod}
spec: {podSelector: {}}
`)
	var mu sync.Mutex
	engine, program := policy.New(policy.Config{}), policy.NewProgram()
	var snap *model.Snapshot
	whole := false
	s, err := New(Config{Dir: dir, Node: "n1", Log: slog.New(slog.DiscardHandler),
		Publish: func(s *model.Snapshot) {
			mu.Lock()
			defer mu.Unlock()
			snap = s
		},
		Policy: func(u *watch.PolicyUpdate) {
			mu.Lock()
			defer mu.Unlock()
			if err := u.Apply(engine); err != nil {
				t.Error(err)
			}
			if err := program.Apply(engine.Flush()); err != nil {
				t.Error(err)
			}
			whole = len(u.Pending) == 0
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer running.Wait()
	defer cancel()
	see := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			is := ok()
			mu.Unlock()
			if is {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not seen: %s; program %+v, snapshot %+v, engine %v", what, program, snap, engine.Problems())
			}
		}
	}
	problem := func(text string) bool {
		for _, p := range snap.Problems {
			if strings.Contains(p.String(), text) {
				return true
			}
		}
		return false
	}
	see("the folder", func() bool { return whole && snap != nil && program.Host.EndpointToHost == model.EndpointToHostReturn })
	if len(snap.Problems) > 0 {
		t.Errorf("problems %v", snap.Problems)
	}
	key := model.AttachmentKey{ContainerID: "c", IfName: "eth0"}
	s.Policies().Attach(model.Endpoint{Key: key, Namespace: "prod", Pod: "p", PodUID: "u", HostInterface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	applies := func(kind model.PolicyKind, ns, name string) int {
		return engine.Applies(model.PolicyID{Kind: kind, Namespace: ns, Name: name})
	}
	see("all policies at the pod", func() bool {
		return applies(model.PolicyGlobal, "", "a") == 1 && applies(model.PolicyNamespaced, "prod", "b") == 1 && applies(model.PolicyKubernetes, "prod", "b") == 1 && len(program.Sets) > 0
	})

	put("kube.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b, namespace: prod}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}\n")
	see("the broken version", func() bool {
		return problem("kube.yaml document 1: KubernetesNetworkPolicy prod/b: .spec.ingress[0].ports[0].endPort: is 70; must be 80, which is port, to 65535; its last valid version stays in force")
	})
	if mu.Lock(); applies(model.PolicyKubernetes, "prod", "b") != 1 {
		t.Error("the last valid version is not in force")
	}
	mu.Unlock()
	if err := os.Remove(filepath.Join(dir, "kube.yaml")); err != nil {
		t.Fatal(err)
	}
	see("it is gone", func() bool { return applies(model.PolicyKubernetes, "prod", "b") == 0 && !problem("kube.yaml") })
	put("hep.yaml", "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: h}, spec: {node: n1, expectedIPs: [192.0.2.1]}}\n---\n")
	s.Policies().SetInterfaces(map[string][]netip.Addr{"eth0": {netip.MustParseAddr("192.0.2.2")}})
	see("a host endpoint on no interface", func() bool { return problem("HostEndpoint h: .spec.expectedIPs: are on no interface of node n1") })
	s.Policies().SetInterfaces(map[string][]netip.Addr{"eth0": {netip.MustParseAddr("192.0.2.1")}})
	see("the host endpoint", func() bool { return program.Endpoints["eth0"].ID.Name == "h" && !problem("HostEndpoint h") })
	s.Policies().Detach(key)
	see("the pod gone", func() bool { return len(program.Endpoints) == 1 })
}

// TestPolicyKinds names what is meant by a manifest's kind.
func TestPolicyKinds(t *testing.T) {
	with, without := watch.Options{Node: "n1", Policy: true}, watch.Options{Node: "n1"}
	for _, tc := range []struct {
		opt  watch.Options
		text string
		want string // a problem, or the key
	}{
		{with, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: b}, spec: {podSelector: {}}}", "KubernetesNetworkPolicy b/a"},
		{with, "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a, namespace: b}, spec: {}}", "NetworkPolicy b/a"},
		{with, "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: a}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}", "ClusterNetworkPolicy a"},
		{with, "{apiVersion: networking.k8s.io/v2, kind: NetworkPolicy, metadata: {name: a, namespace: b}}", `is "networking.k8s.io/v2"; must be "networking.k8s.io/v1"`},
		{with, "{apiVersion: x/v1, kind: NetworkPolicy, metadata: {name: a, namespace: b}}", `is "x/v1"; must be "projectcalico.org/v3"`},
		{with, "{apiVersion: networking.k8s.io/v1, kind: KubernetesNetworkPolicy, metadata: {name: a, namespace: b}}", "which is not known"},
		{with, "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolcy, metadata: {name: a}}", `did you mean "GlobalNetworkPolicy"?`},
		{with, "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: a}, spec: {selektor: all()}}", `did you mean "selector"?`},
		{with, "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}, spec: {}}", "is missing; a NetworkPolicy belongs to a namespace"},
		{without, "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a, namespace: b}, spec: {}}", "which is not acted on yet"},
		{without, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: b}, spec: {}}", "which is not read"},
	} {
		d := parse(rawDocument{tc.text, 1}, tc.opt, false)
		var have []string
		for _, v := range d.versions {
			if v.valid() {
				have = append(have, v.key.String())
				if v.object.Key != v.key {
					t.Errorf("%s: the object is %s, the version %s", tc.text, v.object.Key, v.key)
				}
			}
			for _, p := range v.problems {
				have = append(have, p.Message)
			}
			if v.object != nil {
				for _, p := range v.object.Problems {
					have = append(have, p.Message)
				}
			}
		}
		if len(have) != 1 || !strings.Contains(have[0], tc.want) {
			t.Errorf("%s: %q, want %q", tc.text, have, tc.want)
		}
	}
}
