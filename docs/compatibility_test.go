// Package docs_test holds docs/compatibility.md to the code: every field has one row, and
// what the row says is what happens.
package docs_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/docs/compat"
	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
	"github.com/causeway-net/causeway/internal/watch/file"
	"github.com/causeway-net/causeway/ipam"
	ipamfile "github.com/causeway-net/causeway/ipam/file"
)

const (
	works    = compat.Works
	reported = compat.Reported
	planned  = compat.Planned
	silent   = compat.Silent
)

// types are the kinds that agents read.
var types = map[string]reflect.Type{
	v3.KindIPPool:             reflect.TypeFor[v3.IPPool](),
	v3.KindBGPConfiguration:   reflect.TypeFor[v3.BGPConfiguration](),
	v3.KindBGPPeer:            reflect.TypeFor[v3.BGPPeer](),
	v3.KindFelixConfiguration: reflect.TypeFor[v3.FelixConfiguration](),
	v3.KindIPAMConfiguration:  reflect.TypeFor[v3.IPAMConfiguration](),
	v3.KindIPReservation:      reflect.TypeFor[v3.IPReservation](),
	v3.KindIPAMBlock:          reflect.TypeFor[v3.IPAMBlock](),

	v3.KindTier:                          reflect.TypeFor[v3.Tier](),
	v3.KindNetworkPolicy:                 reflect.TypeFor[v3.NetworkPolicy](),
	v3.KindGlobalNetworkPolicy:           reflect.TypeFor[v3.GlobalNetworkPolicy](),
	v3.KindStagedNetworkPolicy:           reflect.TypeFor[v3.StagedNetworkPolicy](),
	v3.KindStagedGlobalNetworkPolicy:     reflect.TypeFor[v3.StagedGlobalNetworkPolicy](),
	v3.KindStagedKubernetesNetworkPolicy: reflect.TypeFor[v3.StagedKubernetesNetworkPolicy](),
	v3.KindNetworkSet:                    reflect.TypeFor[v3.NetworkSet](),
	v3.KindGlobalNetworkSet:              reflect.TypeFor[v3.GlobalNetworkSet](),
	v3.KindHostEndpoint:                  reflect.TypeFor[v3.HostEndpoint](),
	v3.KindKubeControllersConfiguration:  reflect.TypeFor[v3.KubeControllersConfiguration](),
}

// byController are fields that the controller reads or writes, with the words of its code
// that do so.
var byController = map[string]string{
	"IPPool .status.conditions[]": "p.Status.Conditions",
	"Tier .status.conditions[]":   "out.conditions = x.Status.Conditions",
	"KubeControllersConfiguration .spec.controllers.loadBalancer.assignIPs": "lb.AssignIPs",
	"ClusterInformation .spec.clusterGUID":                                  "ClusterGUID:",
	"ClusterInformation .spec.clusterType":                                  "ClusterType:",
}

// readTables returns the rows of compatibility.md by the heading they stand under.
func readTables(t *testing.T) map[string][]compat.Row {
	t.Helper()
	text, err := os.ReadFile("compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := compat.Tables(text)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// otherKinds are those that no agent reads, among them three that have no CRD.
func otherKinds() []string {
	out := []string{"Profile", "RemoteClusterConfiguration", "WorkloadEndpoint"}
	for _, k := range compat.Kinds {
		if types[k.Name] == nil {
			out = append(out, k.Name)
		}
	}
	return out
}

// TestEveryFieldHasARow compares the tables with the types, both ways.
func TestEveryFieldHasARow(t *testing.T) {
	tables := readTables(t)
	want := map[string][]string{}
	for _, k := range compat.Kinds {
		want[k.Name] = compat.Paths(k.Type)
	}
	for heading, list := range compat.Parts {
		for _, typ := range list {
			if have := compat.Paths(typ); want[heading] != nil && !slices.Equal(want[heading], have) {
				t.Errorf("%s: %v differs from %v: it needs a table of its own", heading, typ, list)
			}
			want[heading] = compat.Paths(typ)
		}
	}
	for heading, fields := range want {
		count := map[string]int{}
		for _, r := range tables[heading] {
			count[r.Name]++
			if !slices.Contains(fields, r.Name) {
				t.Errorf("line %d: %s has no field %s", r.Line, heading, r.Name)
			}
		}
		for _, p := range fields {
			if count[p] != 1 {
				t.Errorf("%s %s has %d rows, want 1", heading, p, count[p])
			}
		}
	}
}

// TestWhatNoAgentReads holds that a field of a kind that no agent reads is planned, or
// reported as never to be, unless the controller's code is named that works on it.
func TestWhatNoAgentReads(t *testing.T) {
	tables := readTables(t)
	code := controllerCode(t)
	for _, k := range compat.Kinds {
		for _, r := range tables[k.Name] {
			words, named := byController[k.Name+" "+r.Name]
			switch {
			case named && (r.Status != works || !strings.Contains(code, words)):
				t.Errorf("line %d: %s %s is said to be %s; the controller's code has %q: %v", r.Line, k.Name, r.Name, r.Status, words, strings.Contains(code, words))
			case !named && r.Status == works && (types[k.Name] == nil || strings.HasPrefix(r.Name, ".status")):
				t.Errorf("line %d: %s %s is said to work, and nothing is named that acts on it", r.Line, k.Name, r.Name)
			case types[k.Name] == nil && r.Status == silent:
				t.Errorf("line %d: %s %s: an object of this kind is reported", r.Line, k.Name, r.Name)
			}
		}
	}
	for heading := range compat.Parts {
		for _, r := range tables[heading] {
			if heading == "Rules of BGPFilters" && r.Status != planned {
				t.Errorf("line %d: %s %s is said to be %s; nothing reads such rules", r.Line, heading, r.Name, r.Status)
			}
		}
	}
}

// controllerCode is the text of the controller without its tests.
func controllerCode(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../internal/controller/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	return out.String()
}

// TestWarningsAreUpToDate holds deploy/policies/warnings.yaml to the page.
func TestWarningsAreUpToDate(t *testing.T) {
	want, err := compat.Warnings(readTables(t))
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../deploy/policies/warnings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != string(want) {
		t.Error("deploy/policies/warnings.yaml does not say what compatibility.md says: run `go generate ./docs/...`")
	}
}

// sample sets one field of a kind. given makes the object one in which the field has a
// meaning; set is then merged in (RFC 7386) and must set the field to a value that is not
// its default.
type sample struct{ given, set string }

// bases are valid objects, in which samples change something.
var bases = map[string]string{
	v3.KindIPPool:                        `{metadata: {name: pods}, spec: {cidr: 10.244.0.0/16}}`,
	v3.KindBGPConfiguration:              `{metadata: {name: default}, spec: {}}`,
	v3.KindBGPPeer:                       `{metadata: {name: tor}, spec: {node: n1, peerIP: 192.0.2.1, asNumber: 65001}}`,
	v3.KindFelixConfiguration:            `{metadata: {name: default}, spec: {}}`,
	v3.KindIPAMConfiguration:             `{metadata: {name: default}, spec: {}}`,
	v3.KindIPReservation:                 `{metadata: {name: gone}, spec: {}}`,
	v3.KindTier:                          `{metadata: {name: mine}, spec: {}}`,
	v3.KindNetworkPolicy:                 `{metadata: {name: p, namespace: prod}, spec: {}}`,
	v3.KindGlobalNetworkPolicy:           `{metadata: {name: p}, spec: {}}`,
	v3.KindStagedNetworkPolicy:           `{metadata: {name: p, namespace: prod}, spec: {}}`,
	v3.KindStagedGlobalNetworkPolicy:     `{metadata: {name: p}, spec: {}}`,
	v3.KindStagedKubernetesNetworkPolicy: `{metadata: {name: p, namespace: prod}, spec: {}}`,
	v3.KindNetworkSet:                    `{metadata: {name: s, namespace: prod}, spec: {}}`,
	v3.KindGlobalNetworkSet:              `{metadata: {name: s}, spec: {}}`,
	v3.KindHostEndpoint:                  `{metadata: {name: h}, spec: {node: n1, interfaceName: eth0}}`,
	v3.KindKubeControllersConfiguration:  `{metadata: {name: default}, spec: {}}`,
	v3.KindIPAMBlock: `{metadata: {name: 10-244-0-0-30}, spec: {cidr: 10.244.0.0/30, affinity: "host:n1",
	  affinityClaimTime: "2026-01-01T00:00:00Z", allocations: [null, null, null, null], unallocated: [0, 1, 2, 3],
	  attributes: [], strictAffinity: false, sequenceNumber: 1}}`,
}

// world is what stands beside the object under test: three nodes and two passwords.
const world = `
- {kind: Node, metadata: {name: n1, labels: {rack: "1"}, annotations: {projectcalico.org/IPv4Address: 192.0.2.11/24, projectcalico.org/IPv6Address: "fd00::11/64"}}}
- {kind: Node, metadata: {name: n2, labels: {rack: "2"}, annotations: {projectcalico.org/IPv4Address: 192.0.2.12/24}}}
- {kind: Node, metadata: {name: n3, labels: {rack: "2"}, annotations: {projectcalico.org/IPv4Address: 192.0.2.13/24}}}
- {kind: Secret, metadata: {name: bgp}, stringData: {password: one, other: two}}
- {kind: Secret, metadata: {name: bgp2}, stringData: {password: three}}
`

const (
	secretRef = `{spec: {password: {secretKeyRef: {name: bgp, key: password}}}}`
	meshRef   = `{spec: {nodeMeshPassword: {secretKeyRef: {name: bgp, key: password}}}}`
	held      = `{spec: {allocations: [0, null, null, null], unallocated: [1, 2, 3], attributes: [{handle_id: a, secondary: {node: n1}}]}}`
	heldBy    = `{spec: {allocations: [0, null, null, null], unallocated: [1, 2, 3], attributes: [{handle_id: a, secondary: {node: n1}, %s}]}}`
	community = `{spec: {communities: [{name: rack, value: "65001:1"}, {name: row, value: "65001:2"}],
	  prefixAdvertisements: [{cidr: 10.244.0.0/16, communities: [rack]}]}}`
)

var samples = map[string]map[string]sample{
	v3.KindIPPool: {
		".spec.cidr":              {set: `{spec: {cidr: 10.245.0.0/16}}`},
		".spec.vxlanMode":         {set: `{spec: {vxlanMode: CrossSubnet}}`},
		".spec.ipipMode":          {set: `{spec: {ipipMode: Always}}`},
		".spec.natOutgoing":       {set: `{spec: {natOutgoing: true}}`},
		".spec.disabled":          {set: `{spec: {disabled: true}}`},
		".spec.disableBGPExport":  {set: `{spec: {disableBGPExport: true}}`},
		".spec.blockSize":         {set: `{spec: {blockSize: 28}}`},
		".spec.nodeSelector":      {set: `{spec: {nodeSelector: "rack == '1'"}}`},
		".spec.namespaceSelector": {set: `{spec: {namespaceSelector: "team == 'a'"}}`},
		".spec.allowedUses":       {set: `{spec: {allowedUses: [Workload]}}`},
		".spec.assignmentMode":    {set: `{spec: {assignmentMode: Manual}}`},
	},
	v3.KindBGPConfiguration: {
		".spec.logSeverityScreen":                      {set: `{spec: {logSeverityScreen: Debug}}`},
		".spec.nodeToNodeMeshEnabled":                  {set: `{spec: {nodeToNodeMeshEnabled: false}}`},
		".spec.asNumber":                               {set: `{spec: {asNumber: 4200000000}}`},
		".spec.serviceLoadBalancerIPs[].cidr":          {set: `{spec: {serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]}}`},
		".spec.serviceExternalIPs[].cidr":              {set: `{spec: {serviceExternalIPs: [{cidr: 203.0.113.0/24}]}}`},
		".spec.serviceClusterIPs[].cidr":               {set: `{spec: {serviceClusterIPs: [{cidr: 10.96.0.0/12}]}}`},
		".spec.serviceLoadBalancerAggregation":         {set: `{spec: {serviceLoadBalancerAggregation: Disabled}}`},
		".spec.communities[].name":                     {given: community, set: `{spec: {prefixAdvertisements: [{cidr: 10.244.0.0/16, communities: [row]}]}}`},
		".spec.communities[].value":                    {given: community, set: `{spec: {communities: [{name: rack, value: "65001:3:4"}]}}`},
		".spec.prefixAdvertisements[].cidr":            {given: community, set: `{spec: {prefixAdvertisements: [{cidr: 10.245.0.0/16, communities: [rack]}]}}`},
		".spec.prefixAdvertisements[].communities":     {given: community, set: `{spec: {prefixAdvertisements: [{cidr: 10.244.0.0/16, communities: ["1:2"]}]}}`},
		".spec.listenPort":                             {set: `{spec: {listenPort: 1790}}`},
		".spec.nodeMeshPassword.secretKeyRef.name":     {given: meshRef, set: `{spec: {nodeMeshPassword: {secretKeyRef: {name: bgp2}}}}`},
		".spec.nodeMeshPassword.secretKeyRef.key":      {given: meshRef, set: `{spec: {nodeMeshPassword: {secretKeyRef: {key: other}}}}`},
		".spec.nodeMeshPassword.secretKeyRef.optional": {given: `{spec: {nodeMeshPassword: {secretKeyRef: {name: none, key: none}}}}`, set: `{spec: {nodeMeshPassword: {secretKeyRef: {optional: true}}}}`},
		".spec.nodeMeshMaxRestartTime":                 {set: `{spec: {nodeMeshMaxRestartTime: 60s}}`},
		".spec.bindMode":                               {set: `{spec: {bindMode: NodeIP}}`},
		".spec.ignoredInterfaces":                      {set: `{spec: {ignoredInterfaces: [dummy0]}}`},
		".spec.localWorkloadPeeringIPV4":               {set: `{spec: {localWorkloadPeeringIPV4: 169.254.1.2}}`},
		".spec.localWorkloadPeeringIPV6":               {set: `{spec: {localWorkloadPeeringIPV6: "fd00::99"}}`},
		".spec.programClusterRoutes":                   {set: `{spec: {programClusterRoutes: Disabled}}`},
		".spec.ipv4NormalRoutePriority":                {set: `{spec: {ipv4NormalRoutePriority: 512}}`},
		".spec.ipv6NormalRoutePriority":                {set: `{spec: {ipv6NormalRoutePriority: 512}}`},
	},
	v3.KindBGPPeer: {
		".spec.node":                           {set: `{spec: {node: n2}}`},
		".spec.nodeSelector":                   {set: `{spec: {node: null, nodeSelector: "rack == '2'"}}`},
		".spec.peerIP":                         {set: `{spec: {peerIP: "192.0.2.1:1790"}}`},
		".spec.asNumber":                       {set: `{spec: {asNumber: 65002}}`},
		".spec.localASNumber":                  {set: `{spec: {localASNumber: 65100}}`},
		".spec.peerSelector":                   {set: `{spec: {peerIP: null, asNumber: null, peerSelector: "rack == '2'"}}`},
		".spec.keepOriginalNextHop":            {set: `{spec: {keepOriginalNextHop: true}}`},
		".spec.nextHopMode":                    {set: `{spec: {nextHopMode: Self}}`},
		".spec.password.secretKeyRef.name":     {given: secretRef, set: `{spec: {password: {secretKeyRef: {name: bgp2}}}}`},
		".spec.password.secretKeyRef.key":      {given: secretRef, set: `{spec: {password: {secretKeyRef: {key: other}}}}`},
		".spec.password.secretKeyRef.optional": {given: `{spec: {password: {secretKeyRef: {name: none, key: none}}}}`, set: `{spec: {password: {secretKeyRef: {optional: true}}}}`},
		".spec.sourceAddress":                  {set: `{spec: {sourceAddress: None}}`},
		".spec.maxRestartTime":                 {set: `{spec: {maxRestartTime: 60s}}`},
		".spec.keepaliveTime":                  {set: `{spec: {keepaliveTime: 10s}}`},
		".spec.numAllowedLocalASNumbers":       {set: `{spec: {numAllowedLocalASNumbers: 1}}`},
		".spec.ttlSecurity":                    {set: `{spec: {ttlSecurity: 1}}`},
		".spec.reachableBy":                    {set: `{spec: {reachableBy: 192.0.2.254}}`},
		".spec.filters":                        {set: `{spec: {filters: [f]}}`},
		".spec.localWorkloadSelector":          {set: `{spec: {peerIP: null, asNumber: null, localWorkloadSelector: "all()"}}`},
		".spec.reversePeering": {given: `{spec: {peerIP: null, asNumber: null, peerSelector: "rack == '2'"}}`,
			set: `{spec: {reversePeering: Manual}}`},
	},
	v3.KindFelixConfiguration: felixSamples(map[string]sample{
		".spec.natOutgoingAddress":                   {set: `{spec: {natOutgoingAddress: 198.51.100.1}}`},
		".spec.natPortRange":                         {set: `{spec: {natPortRange: "32768:65535"}}`},
		".spec.natOutgoingExclusions":                {set: `{spec: {natOutgoingExclusions: IPPoolsAndHostIPs}}`},
		".spec.iptablesNATOutgoingInterfaceFilter":   {set: `{spec: {iptablesNATOutgoingInterfaceFilter: eth0}}`},
		".spec.ipv6Support":                          {set: `{spec: {ipv6Support: false}}`},
		".spec.featureDetectOverride":                {set: `{spec: {featureDetectOverride: ChecksumOffloadBroken=false}}`},
		".spec.externalNodesList":                    {set: `{spec: {externalNodesList: [198.51.100.7]}}`},
		".spec.iptablesBackend":                      {set: `{spec: {iptablesBackend: Legacy}}`},
		".spec.ipipEnabled":                          {set: `{spec: {ipipEnabled: false}}`},
		".spec.vxlanEnabled":                         {set: `{spec: {vxlanEnabled: false}}`},
		".spec.ipipMTU":                              {set: `{spec: {ipipMTU: 1400}}`},
		".spec.vxlanMTU":                             {set: `{spec: {vxlanMTU: 1400}}`},
		".spec.vxlanMTUV6":                           {set: `{spec: {vxlanMTUV6: 1400}}`},
		".spec.nftablesMode":                         {set: `{spec: {nftablesMode: Enabled}}`},
		".spec.defaultEndpointToHostAction":          {set: `{spec: {defaultEndpointToHostAction: Drop}}`},
		".spec.workloadSourceSpoofing":               {set: `{spec: {workloadSourceSpoofing: Any}}`},
		".spec.failsafeInboundHostPorts[].protocol":  {given: failsafe, set: `{spec: {failsafeInboundHostPorts: [{protocol: udp, port: 1}]}}`},
		".spec.failsafeInboundHostPorts[].port":      {given: failsafe, set: `{spec: {failsafeInboundHostPorts: [{port: 2}]}}`},
		".spec.failsafeInboundHostPorts[].net":       {given: failsafe, set: `{spec: {failsafeInboundHostPorts: [{port: 1, net: 10.0.0.0/8}]}}`},
		".spec.failsafeOutboundHostPorts[].protocol": {given: failsafe, set: `{spec: {failsafeOutboundHostPorts: [{protocol: udp, port: 1}]}}`},
		".spec.failsafeOutboundHostPorts[].port":     {given: failsafe, set: `{spec: {failsafeOutboundHostPorts: [{port: 2}]}}`},
		".spec.failsafeOutboundHostPorts[].net":      {given: failsafe, set: `{spec: {failsafeOutboundHostPorts: [{port: 1, net: 10.0.0.0/8}]}}`},
	}),
	v3.KindTier: {
		".spec.order":         {set: `{spec: {order: 7}}`},
		".spec.defaultAction": {set: `{spec: {defaultAction: Pass}}`},
	},
	v3.KindNetworkPolicy:             policySamples(nil),
	v3.KindGlobalNetworkPolicy:       policySamples(globalSamples),
	v3.KindStagedNetworkPolicy:       policySamples(map[string]sample{".spec.stagedAction": {set: `{spec: {stagedAction: Ignore}}`}}),
	v3.KindStagedGlobalNetworkPolicy: policySamples(globalSamples, map[string]sample{".spec.stagedAction": {set: `{spec: {stagedAction: Ignore}}`}}),
	v3.KindStagedKubernetesNetworkPolicy: {
		".spec.stagedAction": {set: `{spec: {stagedAction: Ignore}}`},
		".spec.podSelector":  {set: `{spec: {podSelector: {matchLabels: {a: b}}}}`},
		".spec.ingress[]":    {set: `{spec: {ingress: [{}]}}`},
		".spec.egress[]":     {set: `{spec: {egress: [{}]}}`},
		".spec.policyTypes":  {set: `{spec: {policyTypes: [Egress]}}`},
	},
	v3.KindNetworkSet:       {".spec.nets": {set: `{spec: {nets: [192.0.2.0/24]}}`}},
	v3.KindGlobalNetworkSet: {".spec.nets": {set: `{spec: {nets: [192.0.2.0/24]}}`}},
	v3.KindHostEndpoint: {
		".spec.node":             {set: `{spec: {node: n2}}`},
		".spec.interfaceName":    {set: `{spec: {interfaceName: eth1}}`},
		".spec.expectedIPs":      {set: `{spec: {expectedIPs: [192.0.2.1]}}`},
		".spec.profiles":         {set: `{spec: {profiles: [projectcalico-default-allow]}}`},
		".spec.ports[].name":     {given: hostPort, set: `{spec: {ports: [{name: q, protocol: TCP, port: 1}]}}`},
		".spec.ports[].protocol": {given: hostPort, set: `{spec: {ports: [{name: p, protocol: UDP, port: 1}]}}`},
		".spec.ports[].port":     {given: hostPort, set: `{spec: {ports: [{name: p, protocol: TCP, port: 2}]}}`},
	},
	v3.KindKubeControllersConfiguration: {
		".spec.controllers.node.hostEndpoint.autoCreate": {set: `{spec: {controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}}`},
		".spec.controllers.node.hostEndpoint.createDefaultHostEndpoint": {given: `{spec: {controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}}`,
			set: `{spec: {controllers: {node: {hostEndpoint: {createDefaultHostEndpoint: Disabled}}}}}`},
	},
	v3.KindIPAMConfiguration: {
		".spec.strictAffinity":               {set: `{spec: {strictAffinity: true}}`},
		".spec.autoAllocateBlocks":           {set: `{spec: {autoAllocateBlocks: false}}`},
		".spec.maxBlocksPerHost":             {set: `{spec: {maxBlocksPerHost: 4}}`},
		".spec.ipCooldownSeconds":            {set: `{spec: {ipCooldownSeconds: 60}}`},
		".spec.kubeVirtVMAddressPersistence": {set: `{spec: {kubeVirtVMAddressPersistence: Enabled}}`},
	},
	v3.KindIPReservation: {
		".spec.reservedCIDRs": {set: `{spec: {reservedCIDRs: [10.244.0.0/28, 10.244.9.9]}}`},
	},
	v3.KindIPAMBlock: {
		".spec.cidr":                             {set: `{metadata: {name: 10-244-0-4-30}, spec: {cidr: 10.244.0.4/30}}`},
		".spec.affinity":                         {set: `{spec: {affinity: "host:n2"}}`},
		".spec.affinityClaimTime":                {set: `{spec: {affinityClaimTime: "2026-02-01T00:00:00Z"}}`},
		".spec.allocations":                      {given: held, set: `{spec: {allocations: [null, 0, null, null], unallocated: [0, 2, 3]}}`},
		".spec.unallocated":                      {set: `{spec: {unallocated: [3, 2, 1, 0]}}`},
		".spec.attributes[].handle_id":           {given: held, set: `{spec: {attributes: [{handle_id: b, secondary: {node: n1}}]}}`},
		".spec.attributes[].secondary":           {given: held, set: `{spec: {attributes: [{handle_id: a, secondary: {node: n2}}]}}`},
		".spec.attributes[].alternateOwnerAttrs": {given: held, set: fmt.Sprintf(heldBy, `alternateOwnerAttrs: {node: n2}`)},
		".spec.attributes[].releasedAt":          {given: held, set: fmt.Sprintf(heldBy, `releasedAt: "2026-01-02T00:00:00Z"`)},
		".spec.sequenceNumber":                   {set: `{spec: {sequenceNumber: 7}}`},
		".spec.sequenceNumberForAllocation":      {given: held, set: `{spec: {sequenceNumberForAllocation: {"0": 1}}}`},
		".spec.strictAffinity":                   {set: `{spec: {strictAffinity: true}}`},
		".spec.deleted":                          {set: `{spec: {deleted: true}}`},
	},
}

const failsafe = `{spec: {failsafeInboundHostPorts: [{port: 1}], failsafeOutboundHostPorts: [{port: 1}]}}`

const hostPort = `{spec: {ports: [{name: p, protocol: TCP, port: 1}]}}`

var globalSamples = map[string]sample{
	".spec.doNotTrack":        {given: `{spec: {applyOnForward: true}}`, set: `{spec: {doNotTrack: true}}`},
	".spec.preDNAT":           {given: `{spec: {applyOnForward: true}}`, set: `{spec: {preDNAT: true}}`},
	".spec.applyOnForward":    {set: `{spec: {applyOnForward: true}}`},
	".spec.namespaceSelector": {set: `{spec: {namespaceSelector: "a == 'b'"}}`},
}

// policySamples are those of the fields that all of Calico's policies have, and more.
func policySamples(more ...map[string]sample) map[string]sample {
	out := map[string]sample{
		".spec.tier":                   {set: `{spec: {tier: mine}}`},
		".spec.order":                  {set: `{spec: {order: 7}}`},
		".spec.ingress[]":              {set: `{spec: {ingress: [{action: Deny}]}}`},
		".spec.egress[]":               {set: `{spec: {egress: [{action: Deny}]}}`},
		".spec.selector":               {set: `{spec: {selector: "a == 'b'"}}`},
		".spec.types":                  {set: `{spec: {types: [Egress]}}`},
		".spec.serviceAccountSelector": {set: `{spec: {serviceAccountSelector: "a == 'b'"}}`},
		".spec.performanceHints":       {set: `{spec: {performanceHints: [AssumeNeededOnEveryNode]}}`},
	}
	for _, m := range more {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// felixSamples adds to these a value of the right type for each other field of a
// FelixConfiguration.
func felixSamples(out map[string]sample) map[string]sample {
	for _, path := range compat.Paths(reflect.TypeFor[v3.FelixConfiguration]()) {
		if _, there := out[path]; there {
			continue
		}
		typ := reflect.TypeFor[v3.FelixConfiguration]()
		text, end := "", ""
		for _, name := range strings.Split(strings.TrimPrefix(path, "."), ".") {
			name, list := strings.CutSuffix(name, "[]")
			for typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			for i := range typ.NumField() {
				if tag, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); tag == name {
					typ = typ.Field(i).Type
					break
				}
			}
			text, end = text+"{"+name+": ", "}"+end
			if list {
				for typ.Kind() != reflect.Slice {
					typ = typ.Elem()
				}
				typ, text, end = typ.Elem(), text+"[", "]"+end
			}
		}
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		value := "x"
		switch {
		case typ == reflect.TypeFor[metav1.Duration]():
			value = "7s"
		case typ.Kind() == reflect.Bool:
			value = "true"
		case typ.Kind() == reflect.Slice && typ.Elem() == reflect.TypeFor[string]():
			value = "[x]"
		case typ.Kind() == reflect.Slice:
			value = `["7"]`
		case typ.Kind() == reflect.Map:
			value = "{x: x}"
		case typ.Kind() != reflect.String: // numbers, ports and code points
			value = "7"
		}
		out[path] = sample{set: text + value + end}
	}
	return out
}

// TestStatuses feeds each sample through Check and Build. A field that works brings no
// problem and changes what comes out; one that is reported brings a problem that names it.
func TestStatuses(t *testing.T) {
	tables := readTables(t)
	for kind := range types {
		seen := map[string]bool{}
		for _, r := range tables[kind] {
			if _, named := byController[kind+" "+r.Name]; named || r.Status == planned || strings.HasPrefix(r.Name, ".status") {
				continue
			}
			s, ok := samples[kind][r.Name]
			seen[r.Name] = true
			if !ok {
				t.Errorf("%s %s has no sample", kind, r.Name)
				continue
			}
			given := merged(t, kind, s.given)
			set := mergedInto(t, given, s.set)
			was, _ := outcome(t, kind, given)
			is, problems := outcome(t, kind, set)
			changed := !reflect.DeepEqual(was, is)
			what := fmt.Sprintf("line %d: %s %s is said to be %s", r.Line, kind, r.Name, r.Status)
			switch r.Status {
			case works:
				if len(problems) > 0 || !changed {
					t.Errorf("%s; changes what comes out: %v; problems: %v", what, changed, problems)
				}
			case reported:
				if !slices.ContainsFunc(problems, func(p model.Problem) bool { return names(p.Field, r.Name) }) {
					t.Errorf("%s; problems: %v", what, problems)
				}
			case silent:
				if len(problems) > 0 || changed {
					t.Errorf("%s; changes what comes out: %v; problems: %v", what, changed, problems)
				}
			}
		}
		for name := range samples[kind] {
			if !seen[name] {
				t.Errorf("%s: the sample of %s has no row that needs one", kind, name)
			}
		}
	}
}

// names reports whether a problem's field is the row's, or the list or object around it.
func names(field, name string) bool {
	if field == "" {
		return false
	}
	field = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(field, "[]")
	return name == field || strings.HasPrefix(name, field+".") || strings.HasPrefix(name, field+"[].")
}

// merged is the kind's base with a merge patch, decoded.
func merged(t *testing.T, kind, patch string) map[string]any {
	t.Helper()
	base := map[string]any{}
	decode(t, bases[kind], &base)
	base["apiVersion"], base["kind"] = v3.SchemeGroupVersion.String(), kind
	return mergedInto(t, base, patch)
}

func mergedInto(t *testing.T, base map[string]any, patch string) map[string]any {
	t.Helper()
	p := map[string]any{}
	decode(t, cmp.Or(patch, "{}"), &p)
	return merge(base, p).(map[string]any)
}

// merge is RFC 7386, section 2. It leaves its arguments as they are.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out := map[string]any{}
	if t, ok := target.(map[string]any); ok {
		for k, v := range t {
			out[k] = v
		}
	}
	for k, v := range p {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = merge(out[k], v)
		}
	}
	return out
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// outcome is what becomes of an object in the world, and the problems. For BGP it is what
// the nodes' speakers shall do, for a block what ipam reads, and else the snapshot.
func outcome(t *testing.T, kind string, object map[string]any) (out []any, problems []model.Problem) {
	t.Helper()
	for _, node := range []string{"n1", "n2", "n3"} {
		opt := watch.Options{Node: node, NamespaceLabels: true, Policy: true}
		all := objects(t, kind, object, opt)
		snap := watch.Build(watch.Input{Objects: all}, opt)
		out = append(out, policyOf(all, opt))
		speaker, more := bgp.Desired(bgp.Input{Snapshot: snap, Node: node})
		problems = append(append(problems, snap.Problems...), more...)
		snap.Problems = nil
		if kind == v3.KindBGPConfiguration || kind == v3.KindBGPPeer {
			out = append(out, speaker, snap.BGP.RoutePriority4, snap.BGP.RoutePriority6) // the latter for felix/route.Table.SetMetric
		} else {
			out = append(out, show(snap))
		}
	}
	if kind == v3.KindIPAMBlock {
		out = append(out, blocks(t, object)...)
	}
	return out, problems
}

// policyOf is what policy is told of objects and of a pod that asks to send from other addresses.
func policyOf(objects []watch.Sourced, opt watch.Options) []string {
	p := watch.NewPolicies(opt, nil, func() {})
	for _, o := range objects {
		if o.Valid() {
			p.Set(o.Object)
		}
	}
	p.SetPod(&watch.Pod{Namespace: "prod", Name: "p", UID: "u", AllowedSources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	p.Attach(model.Endpoint{Namespace: "prod", Pod: "p", PodUID: "u", HostInterface: "cali1"})
	p.SetPending(nil)
	memory := watch.NewPolicyMemory()
	if err := memory.Keep(p.Take()); err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, line := range memory.Lines() {
		out = append(out, string(line))
	}
	slices.Sort(out)
	return out
}

// show flattens a snapshot, in which selectors are pointers to compiled ones.
func show(s *model.Snapshot) string {
	var b strings.Builder
	for _, p := range s.Pools {
		ns := "all()"
		if p.NamespaceSelector != nil {
			ns = p.NamespaceSelector.String()
		}
		fmt.Fprint(&b, p.Name, p.CIDR, p.BlockSize, p.NodeSelector.String(), ns, p.IPIPMode, p.VXLANMode, p.NATOutgoing,
			p.Disabled, p.DisableBGPExport, p.Manual, p.AllowedUses, "\n")
	}
	fmt.Fprintln(&b, s.Blocks, s.Reservations, s.IPAM, s.Felix)
	fmt.Fprintln(&b, dataplane.OutgoingNAT(s, false), dataplane.OutgoingNAT(s, true))
	return b.String()
}

// objects is the world with one object, and with a pool and a block where the object is
// neither, so that there is something to advertise.
func objects(t *testing.T, kind string, object map[string]any, opt watch.Options) []watch.Sourced {
	t.Helper()
	var all []map[string]any
	decode(t, world, &all)
	for _, k := range []string{v3.KindIPPool, v3.KindIPAMBlock} {
		patch := ""
		if kind == v3.KindFelixConfiguration && k == v3.KindIPPool {
			patch = `{spec: {natOutgoing: true}}`
		}
		if k != kind {
			all = append(all, merged(t, k, patch))
		}
	}
	var out []watch.Sourced
	for _, o := range append(all, object) {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var into metav1.Object
		switch k := o["kind"].(string); k {
		case watch.KindNode:
			into = &corev1.Node{}
		case watch.KindSecret:
			into = &corev1.Secret{}
		default:
			into = reflect.New(types[k]).Interface().(metav1.Object)
		}
		decode(t, string(text), into)
		out = append(out, watch.Sourced{Object: watch.Check(into, opt), Source: "test"})
	}
	return out
}

// blocks is what ipam reads of a block's manifest. Of the revision only the sequence number
// counts: the rest is a checksum of the text.
func blocks(t *testing.T, object map[string]any) []any {
	t.Helper()
	dir := t.TempDir()
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	store, err := ipamfile.New(ipamfile.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	name := object["metadata"].(map[string]any)["name"].(string)
	if err := os.WriteFile(filepath.Join(dir, "ipam", "blocks", name+".yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := ipam.Collect(store.List(context.Background(), ipam.Query{}))
	if err != nil {
		t.Fatal(err)
	}
	var out []any
	for _, b := range list {
		c := ipam.Block(*b)
		c.Revision, _, _ = strings.Cut(c.Revision, ".")
		out = append(out, c)
	}
	return out
}

// TestOtherKindsAreReported reads a folder that holds one of each: all are named as not
// acted on, and none keeps the Node beside them from being in force.
func TestOtherKindsAreReported(t *testing.T) {
	dir := t.TempDir()
	var text strings.Builder
	text.WriteString("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
	for _, kind := range otherKinds() {
		fmt.Fprintf(&text, "---\napiVersion: projectcalico.org/v3\nkind: %s\nmetadata: {name: x}\n", kind)
	}
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	snaps := make(chan *model.Snapshot, 16)
	source, err := file.New(file.Config{
		Dir: dir, Node: "n1", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Publish: func(s *model.Snapshot) { snaps <- s },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var snap *model.Snapshot
	for snap == nil || len(snap.Problems) < len(otherKinds()) || snap.Node("n1") == nil {
		select {
		case snap = <-snaps:
		case <-ctx.Done():
			t.Fatalf("no snapshot with all problems in time; the last: %+v", snap)
		}
	}
	for _, kind := range otherKinds() {
		if !slices.ContainsFunc(snap.Problems, func(p model.Problem) bool {
			return p.Object.Kind == kind && p.Field == ".kind" && p.Ignored
		}) {
			t.Errorf("%s is not reported; problems: %v", kind, snap.Problems)
		}
	}
}

// TestNodeAnnotations holds that the annotations that are read, and no others of theirs,
// are said to work.
func TestNodeAnnotations(t *testing.T) {
	want := []string{
		watch.AnnotationASNumber, watch.AnnotationIPv4Address, watch.AnnotationIPv6Address, watch.AnnotationRouteReflectorClusterID,
		watch.AnnotationIPv4IPIPTunnelAddr, watch.AnnotationIPv4VXLANTunnelAddr, watch.AnnotationIPv6VXLANTunnelAddr,
		watch.AnnotationVXLANTunnelMACAddr, watch.AnnotationVXLANTunnelMACAddrV6,
	}
	slices.Sort(want)
	var got []string
	for _, r := range readTables(t)["Node annotations"] {
		if r.Status == works {
			got = append(got, r.Name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("annotations that work: %v, want %v", got, want)
	}
}

// TestServiceAnnotations holds that the controller reads the annotations that work.
func TestServiceAnnotations(t *testing.T) {
	code := controllerCode(t)
	rows := readTables(t)["Service annotations"]
	for _, r := range rows {
		if r.Status != works || !strings.Contains(code, strconv.Quote(r.Name)) {
			t.Errorf("line %d: %s is said to be %s; the controller names it: %v", r.Line, r.Name, r.Status, strings.Contains(code, strconv.Quote(r.Name)))
		}
	}
	if len(rows) == 0 {
		t.Error("no rows")
	}
}
