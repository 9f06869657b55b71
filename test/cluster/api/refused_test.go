package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

func peer(spec string) string { return object("BGPPeer", "bad", "spec: {"+spec+"}") }

func rule(direction, rule string) string {
	return object("GlobalNetworkPolicy", "bad", "spec: {"+direction+": [{action: Allow, "+rule+"}]}")
}

// refusals are manifests, each with the words that say what is wrong. Those with two were
// applied before in the form of the first.
var refusals = []struct{ was, manifest, words string }{
	{"", object("IPPool", "bad", "spec: {}"), "spec.cidr: Required value"},
	{"", "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: bad}}", "spec: Required value"},
	{"", pool("bad", "cidr: 10.0.0.0"), "spec.cidr"},
	{"", pool("bad", "cidr: 10.0.0.1/16"), "cidr has bits set outside its mask"},
	{"", pool("bad", "cidr: 169.254.7.0/24"), "cidr overlaps a link-local, loopback or multicast range"},
	{"", pool("bad", "cidr: 0.0.0.0/0"), "cidr overlaps a link-local, loopback or multicast range"},
	{"", pool("bad", `cidr: "fe80::/64"`), "cidr overlaps a link-local, loopback or multicast range"},
	{"", pool("bad", "cidr: 10.0.0.0/16, blockSize: 19"), "blockSize of an IPv4 pool must be 20 to 32"},
	{"", pool("bad", "cidr: 10.0.0.0/16, blockSize: 122"), "blockSize of an IPv4 pool must be 20 to 32"},
	{"", pool("bad", `cidr: "fd00::/64", blockSize: 26`), "blockSize of an IPv6 pool must be 116 to 128"},
	{"", pool("bad", "cidr: 10.0.0.0/27"), "cidr is smaller than one block"},
	{"", pool("bad", "cidr: 10.0.0.0/24, blockSize: 23"), "cidr is smaller than one block"},
	{"", pool("bad", "cidr: 10.0.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet"), "ipipMode and vxlanMode are both set"},
	{"", pool("bad", `cidr: "fd00::/64", ipipMode: CrossSubnet`), "ipipMode must be Never for an IPv6 pool"},
	{"", pool("bad", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer, Workload]"), "allowedUses has LoadBalancer beside other uses"},
	{"", pool("bad", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer], vxlanMode: Always"), "must be Never for a pool with allowedUses LoadBalancer"},
	{"", pool("bad", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer], disableBGPExport: true"), "disableBGPExport must be false"},
	{"", pool("bad", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer], nodeSelector: has(lb)"), "nodeSelector must be all()"},
	{"", pool("bad", "cidr: 10.0.0.0/16, allowedUses: [Workload, Workload]"), "duplicate entries"},
	{pool("fixed", "cidr: 10.0.0.0/16"), pool("fixed", "cidr: 10.1.0.0/16"), "cidr cannot be changed"},
	{pool("fixed", "cidr: 10.0.0.0/16"), pool("fixed", "cidr: 10.0.0.0/16, blockSize: 27"), "blockSize cannot be changed"},

	{"", object("IPReservation", "bad", "spec: {reservedCIDRs: [10.0.0.0/33]}"), "must be a network such as 192.0.2.0/24"},
	{"", object("IPReservation", "bad", "spec: {reservedCIDRs: [10.0.0.1/30]}"), "without bits outside its mask"},
	{"", object("IPAMConfiguration", "other", "spec: {}"), "metadata.name of the one IPAMConfiguration must be default"},
	{"", object("IPAMConfiguration", "default", "spec: {ipCooldownSeconds: 1201}"), "less than or equal to 1200"},
	{"", object("IPAMBlock", "bad", "spec: {cidr: 192.0.2.0/32, allocations: [null], unallocated: [0], attributes: [], strictAffinity: false}"), "metadata.name must be spec.cidr with dashes"},

	{"", object("BGPConfiguration", "other", "spec: {}"), "metadata.name must be default for the cluster, or node."},
	{"", object("BGPConfiguration", "node.", "spec: {}"), "node."},
	{"", object("BGPConfiguration", "node.a", "spec: {asNumber: 64512}"), "spec.asNumber can be set in default only"},
	{"", object("BGPConfiguration", "node.a", "spec: {nodeToNodeMeshEnabled: true}"), "spec.nodeToNodeMeshEnabled can be set in default only"},
	{"", object("BGPConfiguration", "node.b", "spec: {asNumber: 0}"), "greater than or equal to 1"},
	{"", object("BGPConfiguration", "default", "spec: {nodeToNodeMeshEnabled: false, nodeMeshPassword: {secretKeyRef: {name: a, key: b}}}"), "nodeMeshPassword is set while nodeToNodeMeshEnabled is false"},
	{"", object("BGPConfiguration", "default", "spec: {nodeToNodeMeshEnabled: false, nodeMeshMaxRestartTime: 60s}"), "nodeMeshMaxRestartTime is set while nodeToNodeMeshEnabled is false"},
	{"", object("BGPConfiguration", "default", "spec: {nodeMeshMaxRestartTime: 1h30m}"), "must be whole seconds from 1s to 4095s"},
	{"", object("BGPConfiguration", "default", "spec: {nodeMeshMaxRestartTime: 1500ms}"), "must be whole seconds from 1s to 4095s"},
	{"", object("BGPConfiguration", "default", "spec: {nodeMeshPassword: {}}"), "secretKeyRef must name the Secret and the key"},
	{"", object("BGPConfiguration", "default", "spec: {nodeMeshPassword: {secretKeyRef: {key: a}}}"), "secretKeyRef must name the Secret and the key"},
	{"", object("BGPConfiguration", "default", `spec: {communities: [{value: "1:2"}]}`), "communities: each needs a name"},
	{"", object("BGPConfiguration", "default", `spec: {communities: [{name: a}]}`), "communities: each needs a value"},
	{"", object("BGPConfiguration", "default", `spec: {communities: [{name: a, value: "65536:1"}]}`), "must be aa:nn with numbers up to 65535"},
	{"", object("BGPConfiguration", "default", `spec: {communities: [{name: a, value: "1:2:4294967296"}]}`), "numbers up to 4294967295"},
	{"", object("BGPConfiguration", "default", `spec: {serviceClusterIPs: [{cidr: 10.96.0.1/12}]}`), "cidr is missing or has bits set outside its mask"},
	{"", object("BGPConfiguration", "default", `spec: {prefixAdvertisements: [{communities: ["1:2"]}]}`), "cidr is missing or has bits set outside its mask"},
	{"", object("BGPConfiguration", "default", `spec: {localWorkloadPeeringIPV4: "fd00::1"}`), "localWorkloadPeeringIPV4 must be an IPv4 address"},
	{"", object("BGPConfiguration", "default", `spec: {localWorkloadPeeringIPV6: 10.0.0.1}`), "localWorkloadPeeringIPV6 must be an IPv6 address"},

	{"", peer("peerIP: 192.0.2.1, asNumber: 1, node: a, nodeSelector: all()"), "node and nodeSelector are both set"},
	{"", peer("asNumber: 1"), "peerIP is missing"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, peerSelector: all()"), "only one of peerIP, peerSelector and localWorkloadSelector"},
	{"", peer("peerIP: 192.0.2.1"), "asNumber is missing"},
	{"", peer("localWorkloadSelector: all()"), "asNumber is missing"},
	{"", peer("peerSelector: all(), asNumber: 1"), "asNumber is set beside peerSelector"},
	{"", peer("peerIP: tor.example.org, asNumber: 1"), "peerIP must be an address"},
	{"", peer("peerIP: '192.0.2.1:0', asNumber: 1"), "peerIP must be an address"},
	{"", peer("peerIP: '[2001:db8::1]:65536', asNumber: 1"), "peerIP must be an address"},
	{"", peer("peerIP: 'fe80::1', asNumber: 1"), "must name its interface"},
	{"", peer("peerIP: 0.0.0.0, asNumber: 1"), "peerIP is no address of one peer"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 4294967296"), "asNumber"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, localASNumber: 0"), "localASNumber"},
	{"", peer("peerSelector: all(), reachableBy: 192.0.2.2"), "reachableBy is set without peerIP"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, reachableBy: 'fd00::1'"), "reachableBy must be the address of the gateway"},
	{"", peer("peerIP: '[fd00::1]:179', asNumber: 1, reachableBy: 192.0.2.2"), "reachableBy must be the address of the gateway"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, keepOriginalNextHop: true, nextHopMode: Self"), "remove keepOriginalNextHop"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, ttlSecurity: 255"), "ttlSecurity"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, keepaliveTime: 7h"), "must be whole seconds from 1s to 21845s"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, maxRestartTime: soon"), "maxRestartTime"},
	{"", peer("peerIP: 192.0.2.1, asNumber: 1, numAllowedLocalASNumbers: 256"), "numAllowedLocalASNumbers"},

	{"", object("BGPFilter", "bad", "spec: {importV4: [{action: Accept, cidr: 10.0.0.0/8}]}"), "cidr is set without matchOperator"},
	{"", object("BGPFilter", "bad", "spec: {importV4: [{action: Accept, matchOperator: In}]}"), "matchOperator is set without cidr"},
	{"", object("BGPFilter", "bad", "spec: {importV4: [{action: Accept, prefixLength: {min: 8}}]}"), "prefixLength is set without cidr"},
	{"", object("BGPFilter", "bad", "spec: {importV6: [{action: Accept, matchOperator: In, cidr: 10.0.0.0/8}]}"), "cidr must be an IPv6 network"},
	{"", object("BGPFilter", "bad", "spec: {exportV4: [{action: Accept, operations: [{setPriority: {value: 1}, addCommunity: {value: '1:2'}}]}]}"), "must have at most 1"},

	{"", object("Tier", "with.dot", "spec: {}"), "metadata.name of a tier must be"},
	{"", object("Tier", "default", "spec: {order: 5}"), "spec.order of the tier default must be 1000000"},
	{"", object("Tier", "adminnetworkpolicy", "spec: {}"), "must be 1000"},
	{"", object("Tier", "kube-baseline", "spec: {order: 1}"), "must be 10000000"},
	{"", object("Tier", "bad", "spec: {defaultAction: Allow}"), "spec.defaultAction"},

	{"", rule("ingress", "destination: {ports: [80]}"), "ports and notPorts need a protocol that has ports"},
	{"", rule("egress", "protocol: ICMP, source: {notPorts: [80]}"), "ports and notPorts need a protocol that has ports"},
	{"", rule("ingress", "protocol: TCP, destination: {ports: ['a b']}"), "ports"},
	{"", rule("ingress", "protocol: chaos"), "protocol"},
	{"", rule("ingress", "protocol: TCP, icmp: {type: 8}"), "icmp needs protocol ICMP or ICMPv6"},
	{"", rule("ingress", "icmp: {type: 8}"), "icmp needs protocol ICMP or ICMPv6"},
	{"", rule("ingress", "protocol: ICMP, icmp: {code: 0}"), "code is set without type"},
	{"", rule("ingress", "protocol: ICMP, ipVersion: 6"), "ipVersion must be 4 with protocol ICMP"},
	{"", rule("ingress", "protocol: ICMPv6, ipVersion: 4"), "ipVersion must be 6 with protocol ICMPv6"},
	{"", rule("ingress", "protocol: UDP, http: {methods: [GET]}"), "http needs protocol TCP"},
	{"", rule("egress", "protocol: TCP, http: {methods: [GET]}"), "egress: http is set"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {ingress: [{action: Deny, http: {methods: [GET]}}]}"), "http can stand in rules with action Allow only"},
	{"", rule("ingress", "http: {paths: [{exact: /a, prefix: /b}]}"), "exactly one of exact and prefix"},
	{"", rule("ingress", "source: {services: {name: a, namespace: b}, nets: [10.0.0.0/8]}"), "services stands beside"},
	{"", rule("ingress", "source: {services: {namespace: b}}"), "services.name is missing"},
	{"", rule("ingress", "source: {services: {name: a}}"), "source.services.namespace is missing"},
	{"", rule("egress", "destination: {services: {name: a}}"), "destination.services.namespace is missing"},
	{"", rule("ingress", "destination: {services: {name: a, namespace: b}}"), "ingress: destination.services is set"},
	{"", rule("egress", "source: {services: {name: a, namespace: b}}"), "egress: source.services is set"},
	{"", rule("egress", "protocol: TCP, destination: {services: {name: a, namespace: b}, ports: [80]}"), "destination.services has the ports of the service"},
	{"", rule("egress", "destination: {selector: global()}"), "selector contains global()"},
	{"", rule("egress", "destination: {nets: [10.0.0.0]}"), "nets must be networks"},
	{"", rule("egress", "destination: {nets: [10.0.0.0/8]}, source: {notNets: ['fd00::/8']}"), "nets and notNets must be of one family"},
	{"", rule("egress", "ipVersion: 6, destination: {nets: [10.0.0.0/8]}"), "nets and notNets must be of the family that ipVersion says"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {doNotTrack: true, preDNAT: true, applyOnForward: true}"), "doNotTrack and preDNAT are both true"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {doNotTrack: true}"), "applyOnForward must be true"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {preDNAT: true, applyOnForward: true, egress: [{action: Deny}]}"), "a preDNAT policy holds for ingress only"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {preDNAT: true, applyOnForward: true, types: [Egress]}"), "a preDNAT policy holds for ingress only"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {namespaceSelector: global()}"), "namespaceSelector contains global()"},
	{"", object("GlobalNetworkPolicy", "bad", "spec: {types: [Ingress, Ingress]}"), "duplicate entries"},
	{"", object("StagedGlobalNetworkPolicy", "bad", "spec: {stagedAction: Delete, selector: all()}"), "stagedAction is Delete"},
	{"", object("StagedNetworkPolicy", "bad", "spec: {stagedAction: Delete, order: 1}"), "stagedAction is Delete"},
	{"", object("StagedKubernetesNetworkPolicy", "bad", "spec: {stagedAction: Delete, policyTypes: [Ingress]}"), "stagedAction is Delete"},

	{"", object("GlobalNetworkSet", "bad", "spec: {nets: [example.org]}"), "must be a network such as 192.0.2.0/24"},
	{"", object("HostEndpoint", "bad", "spec: {interfaceName: eth0}"), "node is missing"},
	{"", object("HostEndpoint", "bad", "spec: {node: a}"), "interfaceName and expectedIPs are both missing"},
	{"", object("HostEndpoint", "bad", "spec: {node: a, expectedIPs: [10.0.0.0/8]}"), "must be an address"},
	{"", object("HostEndpoint", "bad", "spec: {node: a, interfaceName: eth0, ports: [{name: p, port: 8, protocol: ICMP}]}"), "protocol has no ports"},
	{"", object("FelixConfiguration", "bad", "spec: {routeTableRange: {min: 1, max: 2}, routeTableRanges: [{min: 1, max: 2}]}"), "routeTableRange and routeTableRanges are both set"},
	{"", object("FelixConfiguration", "bad", "spec: {reportingInterval: 5}"), "reportingInterval"},
	{"", object("ClusterInformation", "other", "spec: {}"), "must be default"},
	{"", object("KubeControllersConfiguration", "other", "spec: {controllers: {}}"), "must be default"},
}

// TestRefusals applies what cannot work: the answer says what is wrong.
func TestRefusals(t *testing.T) {
	ready(t)
	for _, r := range refusals {
		if r.was != "" {
			if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(r.was)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(r.manifest)); err == nil || !strings.Contains(err.Error(), r.words) {
			t.Errorf("%s: %v, want %q", r.manifest, err, r.words)
		}
	}
}

// TestChangesThatPass applies an object twice, the second time with a value that means the
// same, or that may change.
func TestChangesThatPass(t *testing.T) {
	ready(t)
	for _, twice := range [][2]string{
		{pool("twice", "cidr: 10.0.0.0/16"), pool("twice", "cidr: 10.0.0.0/16, blockSize: 26, disabled: true")},
		{pool("twice6", `cidr: "fd00::/64", blockSize: 0`), pool("twice6", `cidr: "fd00::/64", blockSize: 122`)},
		{pool("twicelb", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]"), pool("twicelb", "cidr: 10.0.0.0/16, allowedUses: [LoadBalancer], nodeSelector: all(), assignmentMode: Manual")},
	} {
		for _, m := range twice {
			if _, err := apiserver.ApplyYAML(t.Context(), config, []byte(m)); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestWarnings applies what is accepted and not acted on, and what is plain.
func TestWarnings(t *testing.T) {
	ready(t)
	for manifest, want := range map[string][]string{
		pool("w", "cidr: 10.0.0.0/16"): nil,
		pool("w", "cidr: 10.0.0.0/16, ipipMode: Never, vxlanMode: Never, natOutgoing: false, namespaceSelector: has(x), disabled: true"): nil,
		pool("w", "cidr: 10.0.0.0/16, natOutgoing: true"):                                                                                                                    nil,
		object("BGPConfiguration", "default", "spec: {asNumber: 64513, listenPort: 1790}"):                                                                                   nil,
		object("BGPConfiguration", "default", "spec: {logSeverityScreen: info, bindMode: NodeIP}"):                                                                           nil,
		object("BGPConfiguration", "default", "spec: {logSeverityScreen: Debug, serviceClusterIPs: [{cidr: 10.96.0.0/12}, {cidr: 10.112.0.0/12}]}"):                          {"spec.logSeverityScreen", "spec.serviceClusterIPs"},
		object("BGPConfiguration", "default", "spec: {serviceClusterIPs: []}"):                                                                                               nil,
		object("BGPConfiguration", "node.w", "spec: {listenPort: 1790}"):                                                                                                     nil,
		object("BGPConfiguration", "node.w", "spec: {bindMode: NodeIP}"):                                                                                                     {"spec.bindMode"},
		object("BGPPeer", "w", "spec: {peerIP: 192.0.2.1, asNumber: 1, keepaliveTime: 3s}"):                                                                                  nil,
		object("BGPPeer", "w", "spec: {peerIP: 192.0.2.1, asNumber: 1, reachableBy: 192.0.2.2, filters: [a]}"):                                                               {"spec.reachableBy", "spec.filters"},
		object("IPAMConfiguration", "default", "spec: {strictAffinity: true}"):                                                                                               nil,
		object("IPReservation", "w", "spec: {reservedCIDRs: [10.0.0.0/30]}"):                                                                                                 nil,
		object("IPAMBlock", "192-0-2-9-32", "spec: {cidr: 192.0.2.9/32, allocations: [null], unallocated: [0], attributes: [], strictAffinity: false}"):                      nil,
		object("KubeControllersConfiguration", "default", "spec: {controllers: {loadBalancer: {assignIPs: AllServices}}}"):                                                   nil,
		object("ClusterInformation", "default", "spec: {datastoreReady: true}"):                                                                                              nil,
		object("ClusterInformation", "default", "spec: {datastoreReady: false}"):                                                                                             {"spec.datastoreReady"},
		object("Tier", "default", "spec: {order: 1000000}"):                                                                                                                  nil,
		object("Tier", "w", "spec: {order: 3}"):                                                                                                                              nil,
		object("FelixConfiguration", "default", "spec: {natPortRange: '32768:65535', natOutgoingExclusions: IPPoolsAndHostIPs, bpfEnabled: false, logSeverityScreen: Info}"): nil,
		object("FelixConfiguration", "default", "spec: {bpfEnabled: true, wireguardEnabled: true, ipv6Support: false, nftablesMode: Enabled, routeTableRanges: [{min: 1, max: 2}]}"): {
			"spec.bpfEnabled", "spec.wireguardEnabled", "spec.ipv6Support", "spec.routeTableRanges"},
		object("GlobalNetworkPolicy", "w", "spec: {types: [Ingress], selector: all()}"): nil,
		object("IPAMHandle", "w", "spec: {handleID: w, block: {}}"):                     {"IPAMHandle w is stored"},
		kubernetesPolicy: nil,
		"{apiVersion: v1, kind: ConfigMap, metadata: {name: w, namespace: default}}": nil,
	} {
		got, err := apiserver.ApplyYAML(t.Context(), config, []byte(manifest))
		if err != nil {
			t.Error(err)
			continue
		}
		if len(got) != len(want) || slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) })
		}) {
			t.Errorf("%s: warnings %q, want %q", manifest, got, want)
		}
	}
}
