package api_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/docs/compat"
	"github.com/causeway-net/causeway/internal/watch"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// agentKinds are the kinds that the agent reads.
var agentKinds = []string{v3.KindIPPool, v3.KindIPReservation, v3.KindIPAMConfiguration, v3.KindIPAMBlock, v3.KindBGPConfiguration, v3.KindBGPPeer}

// agentTakes are words of refusals by the API server of what the agent would act on: what
// Calico refuses, or what can only be said of a change.
var agentTakes = []string{
	"must be Never for a pool with allowedUses LoadBalancer", "disableBGPExport must be false", "nodeSelector must be all()",
	"cidr cannot be changed", "blockSize cannot be changed", "remove keepOriginalNextHop",
}

// agentVerdict reports whether the agent would act on a manifest of a kind that it reads,
// and why not.
func agentVerdict(t *testing.T, kind, manifest string) (bool, string) {
	t.Helper()
	i := slices.IndexFunc(compat.Kinds, func(k compat.Kind) bool { return k.Name == kind })
	typed := reflect.New(compat.Kinds[i].Type).Interface().(metav1.Object)
	if err := yaml.UnmarshalStrict([]byte(manifest), typed); err != nil {
		return false, err.Error()
	}
	if p, ok := typed.(*v3.IPPool); ok && p.Spec.NodeSelector == "" {
		p.Spec.NodeSelector = "all()" // the API server's default
	}
	o := watch.Check(typed, watch.Options{Node: "node-1", NamespaceLabels: true})
	text, err := json.Marshal(o.Problems)
	if err != nil {
		t.Fatal(err)
	}
	return o.Valid(), string(text)
}

func kindOf(t *testing.T, manifest string) string {
	t.Helper()
	var o struct{ Kind string }
	if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
		t.Fatal(err)
	}
	return o.Kind
}

// TestTheAgentAgrees holds that the agent acts on nothing that the API server refuses, but
// for what is known to differ.
func TestTheAgentAgrees(t *testing.T) {
	for _, r := range refusals {
		kind := kindOf(t, r.manifest)
		if !slices.Contains(agentKinds, kind) || slices.Contains(agentTakes, r.words) || slices.ContainsFunc(agentTakes, func(w string) bool { return strings.Contains(r.words, w) }) {
			continue
		}
		if takes, _ := agentVerdict(t, kind, r.manifest); takes {
			t.Errorf("the agent would act on %s, which the API server refuses: %s", r.manifest, r.words)
		}
	}
}

// TestWhatTheAgentTakesIsStored applies what the agent understands in all its forms.
func TestWhatTheAgentTakesIsStored(t *testing.T) {
	ready(t)
	peer := func(spec string) string { return object("BGPPeer", "taken", "spec: {"+spec+"}") }
	for _, m := range []string{
		pool("taken", "cidr: 10.0.0.0/8, blockSize: 20"),
		pool("taken1", "cidr: 10.0.0.0/32, blockSize: 32, nodeSelector: has(x)"),
		pool("taken2", `cidr: "fd00:1::/122"`),
		pool("taken3", `cidr: "2001:DB8::/64", blockSize: 116, vxlanMode: Always`),
		peer("peerIP: 192.0.2.1, asNumber: 1"),
		peer("peerIP: '192.0.2.1:65535', asNumber: 4294967295, localASNumber: 4200000000"),
		peer("peerIP: '2001:db8::1', asNumber: 1, reachableBy: 'fe80::1'"),
		peer("peerIP: '::ffff:192.0.2.1', asNumber: 1"),
		peer("peerIP: '[2001:db8::1]:1', asNumber: 1, keepaliveTime: 21845s, maxRestartTime: 4095s, ttlSecurity: 254"),
		peer("peerIP: 'fe80::1%eth0', asNumber: 1, sourceAddress: None"),
		peer("peerIP: '[fe80::1%bond0.100]:179', asNumber: 1, keepOriginalNextHop: true"),
		peer("peerSelector: all(), nodeSelector: all(), reversePeering: Manual, nextHopMode: Keep, maxRestartTime: 1h8m15s"),
		peer("peerSelector: all(), numAllowedLocalASNumbers: 255, keepaliveTime: 1000ms"),
		object("BGPConfiguration", "node.taken", `spec: {communities: [{name: a, value: "65535:65535"}, {name: b, value: "4294967295:0:4294967295"}], prefixAdvertisements: [{cidr: "fd00::/8", communities: [a, b, "1:1"]}]}`),
		object("BGPConfiguration", "default", "spec: {asNumber: 1, nodeMeshMaxRestartTime: 1s, nodeMeshPassword: {secretKeyRef: {name: a, key: b, optional: true}}}"),
		object("IPReservation", "taken", `spec: {reservedCIDRs: [0.0.0.0/0, 192.0.2.1, "fd00::1", "fd00::/8"]}`),
		object("IPReservation", "empty", "spec: {}"),
		object("IPAMConfiguration", "default", "spec: {maxBlocksPerHost: 1000000, ipCooldownSeconds: 1200, autoAllocateBlocks: false}"),
	} {
		if takes, why := agentVerdict(t, kindOf(t, m), m); !takes {
			t.Errorf("the agent does not act on %s: %s", m, why)
		}
		if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(m)); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	for _, o := range documents(t, "testdata/manifests.yaml") {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		if o.GetName() == "pods-that-speak" || !slices.Contains(agentKinds, o.GetKind()) { // warned of, and disabled
			continue
		}
		if takes, why := agentVerdict(t, o.GetKind(), string(text)); !takes {
			t.Errorf("the agent does not act on %s %s: %s", o.GetKind(), o.GetName(), why)
		}
	}
}
