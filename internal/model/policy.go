package model

import (
	"cmp"
	"net/netip"
	"strings"
)

// This file is the vocabulary of policy: one form for every kind of policy that Causeway
// understands. Selectors are text in Calico's language (package selector); felix/policy
// compiles and checks them.

// PolicyKind tells the kinds of policy apart.
type PolicyKind string

// The kinds. What Kubernetes calls NetworkPolicy is PolicyKubernetes here.
const (
	PolicyKubernetes       PolicyKind = "KubernetesNetworkPolicy"       // networking.k8s.io/v1 NetworkPolicy
	PolicyCluster          PolicyKind = "ClusterNetworkPolicy"          // policy.networking.k8s.io/v1alpha2
	PolicyNamespaced       PolicyKind = "NetworkPolicy"                 // projectcalico.org/v3
	PolicyGlobal           PolicyKind = "GlobalNetworkPolicy"           // projectcalico.org/v3
	PolicyStagedKubernetes PolicyKind = "StagedKubernetesNetworkPolicy" // projectcalico.org/v3
	PolicyStagedNamespaced PolicyKind = "StagedNetworkPolicy"           // projectcalico.org/v3
	PolicyStagedGlobal     PolicyKind = "StagedGlobalNetworkPolicy"     // projectcalico.org/v3
)

// PodsOnly reports whether selectors of this kind of policy, its subject's and its rules',
// see pods only: never a host endpoint or a network set.
func (k PolicyKind) PodsOnly() bool {
	return k == PolicyKubernetes || k == PolicyStagedKubernetes || k == PolicyCluster
}

// Staged reports whether policies of this kind are counted and not enforced.
func (k PolicyKind) Staged() bool { return strings.HasPrefix(string(k), "Staged") }

// PolicyID names a policy.
type PolicyID struct {
	Kind      PolicyKind `json:"kind"`
	Namespace string     `json:"namespace,omitempty"` // empty for the kinds without
	Name      string     `json:"name"`
}

// Object is the policy's name as errors and conditions have it.
func (id PolicyID) Object() Object {
	return Object{Kind: string(id.Kind), Namespace: id.Namespace, Name: id.Name}
}

func (id PolicyID) String() string { return id.Object().String() }

// Compare orders policies of one tier and one Order: by name, then namespace, then kind.
func (id PolicyID) Compare(o PolicyID) int {
	return cmp.Or(strings.Compare(id.Name, o.Name), strings.Compare(id.Namespace, o.Namespace), strings.Compare(string(id.Kind), string(o.Kind)))
}

// The tiers that are there without being made.
const (
	TierAdmin    = "kube-admin"    // order 1000, default action Pass: ClusterNetworkPolicies of tier Admin
	TierDefault  = "default"       // order 1000000, default action Deny: Kubernetes' NetworkPolicies and Calico's policies without a tier
	TierBaseline = "kube-baseline" // order 10000000, default action Pass: ClusterNetworkPolicies of tier Baseline
)

// KubernetesPolicyOrder is the Order of Kubernetes' NetworkPolicies in tier default.
const KubernetesPolicyOrder = 1000

// Tier is a group of policies. Tiers are asked by Order, then name.
type Tier struct {
	Name  string
	Order float64 // math.Inf(1) when the object has none
	// DefaultAction, Deny or Pass, meets what policies of the tier select (in its
	// direction) and none decides on. A tier without such policies is passed over.
	DefaultAction RuleAction
}

// Policy is a policy of any kind.
//
// A packet to or from an endpoint asks the tiers in order, in each the policies that
// select the endpoint and hold for the packet's direction, by Order and PolicyID.Compare,
// and in each of them the rules in order. Allow and Deny end the packet's way for this
// endpoint; Pass goes on with the next tier. What no tier decides meets the endpoint's
// profile: workloads allow, hosts deny.
type Policy struct {
	ID    PolicyID
	Tier  string  // never empty
	Order float64 // within the tier; math.Inf(1) when the object has none. A ClusterNetworkPolicy's is its priority
	// Subject selects the endpoints that the policy holds for.
	Subject Subject
	// ForIngress and ForEgress are the directions it holds for, seen from the endpoint; at
	// least one. Rules of another direction are not looked at. A direction without rules
	// selects the endpoint for the tier's default action and decides nothing itself.
	ForIngress, ForEgress bool
	Ingress, Egress       []Rule
	// Untracked (doNotTrack): before connection tracking, for host endpoints only; what it
	// allows is not tracked and meets no other policy. PreDNAT: before addresses of services are
	// translated, ingress of host endpoints only; what it allows goes on to the other policies.
	// Neither has an end-of-tier action: what they do not decide goes on.
	Untracked, PreDNAT bool
	// ApplyOnForward: also what a host endpoint forwards. Untracked and PreDNAT need it.
	ApplyOnForward bool
	// AssumeNeeded (performanceHints AssumeNeededOnEveryNode): chains and sets are
	// programmed before an endpoint needs them.
	AssumeNeeded bool
}

// Subject selects the endpoints that a policy holds for. All that it says must match; empty
// selectors select all. A policy with a namespace selects workloads of that namespace
// only; others select workloads and, unless PolicyKind.PodsOnly, host endpoints.
type Subject struct {
	Selector               string // labels of the endpoint
	NamespaceSelector      string // labels of its namespace; selects no host endpoint unless it is empty or global()
	ServiceAccountSelector string // labels of its service account; selects no host endpoint unless empty
}

// RuleAction is what a rule does with a packet.
type RuleAction string

// The actions.
const (
	RuleAllow RuleAction = "Allow" // Accept of a ClusterNetworkPolicy
	RuleDeny  RuleAction = "Deny"
	RulePass  RuleAction = "Pass" // the next tier decides
	RuleLog   RuleAction = "Log"  // and goes on with the next rule
)

// Protocol numbers that rules know more of (IANA).
const (
	ProtocolICMP    uint8 = 1
	ProtocolTCP     uint8 = 6
	ProtocolUDP     uint8 = 17
	ProtocolICMPv6  uint8 = 58
	ProtocolSCTP    uint8 = 132
	ProtocolUDPLite uint8 = 136
)

// Rule matches packets; all that it says must match.
type Rule struct {
	Action    RuleAction
	IPVersion int // 4 or 6; 0: both
	// Protocol and NotProtocol are IANA numbers; 0: not asked for.
	Protocol, NotProtocol uint8
	// ICMP and NotICMP need Protocol ICMP or ICMPv6; nil: not asked for.
	ICMP, NotICMP       *ICMPMatch
	Source, Destination EntityRule
	// HTTP: the rule looks into requests, which nothing here does. With Allow or Pass it
	// denies all that the rest of it matches; Deny and Log do not look at HTTP.
	HTTP bool
}

// ICMPMatch matches an ICMP or ICMPv6 message.
type ICMPMatch struct {
	Type int  // 0-255
	Code *int // 0-255; nil: any
}

// EntityRule matches one end of a packet's way; all that it says must match, and what is
// empty matches all.
type EntityRule struct {
	// Nets: the address is in one of them. NotNets: it is in none. A prefix of the other
	// family holds no address, so that Nets of one family alone match nothing of the
	// other, and NotNets of one family match all of the other.
	Nets, NotNets []netip.Prefix
	// Selector matches addresses of endpoints (workloads and hosts) and network sets by
	// label; NamespaceSelector by the labels of their namespace (global(): those
	// without one; anything else: only those that have one). In a policy with a namespace, Selector and
	// ServiceAccounts mean that namespace unless NamespaceSelector is set.
	Selector, NamespaceSelector string
	// NotSelector: no endpoint or network set that matches has the address. It alone is
	// never narrowed to a namespace.
	NotSelector string
	// ServiceAccounts and ServiceAccountSelector match pods by the name of their service
	// account (one of these) and by its labels.
	ServiceAccounts        []string
	ServiceAccountSelector string
	// NodeSelector matches the nodes' own addresses by labels of the Node; only a
	// ClusterNetworkPolicy has it, and nothing else beside it but ports.
	NodeSelector string
	// Service matches the endpoints of a Service: in the destination their address,
	// protocol and port, in the source their address. Stands alone. nil: not asked for.
	Service *ServiceID
	// Ports: the port is one of them. NotPorts: it is none. They need a Protocol with
	// ports: TCP, UDP, SCTP or UDPLite.
	Ports, NotPorts []RulePort
}

// RulePort is a name, or else a range of numbers with both ends included.
type RulePort struct {
	// Name is a port's name at the endpoints that the EntityRule selects: an address that
	// is none of theirs has no such port.
	Name        string
	First, Last int // 0-65535; Last is First for one port
}

// ServiceID names a Service; for a policy with a namespace Namespace is filled in.
type ServiceID struct{ Namespace, Name string }

func (id ServiceID) String() string { return "Service " + id.Namespace + "/" + id.Name }

// Namespace is what policy needs to know of a Namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// ServiceAccount is what policy needs to know of a ServiceAccount.
type ServiceAccount struct {
	Namespace, Name string
	Labels          map[string]string
}

// PolicyEndpointKind tells workloads from hosts.
type PolicyEndpointKind uint8

// The kinds of endpoint.
const (
	EndpointWorkload PolicyEndpointKind = iota
	EndpointHost
)

// PolicyEndpointID names an endpoint: a pod, or a HostEndpoint, which has no namespace.
type PolicyEndpointID struct {
	Kind            PolicyEndpointKind
	Namespace, Name string
}

func (id PolicyEndpointID) String() string {
	if id.Kind == EndpointHost {
		return "HostEndpoint " + id.Name
	}
	return "Pod " + id.Namespace + "/" + id.Name
}

// Compare orders endpoints: workloads first, then by namespace and name.
func (id PolicyEndpointID) Compare(o PolicyEndpointID) int {
	return cmp.Or(cmp.Compare(id.Kind, o.Kind), strings.Compare(id.Namespace, o.Namespace), strings.Compare(id.Name, o.Name))
}

// PolicyEndpoint is an endpoint as policy sees it, anywhere in the cluster: what selectors
// can select and, where it is local, what policies hold for. Pods of the host network are
// none, nor are pods that have ended.
type PolicyEndpoint struct {
	ID PolicyEndpointID
	// Labels are the object's own. What Calico adds (projectcalico.org/namespace,
	// projectcalico.org/orchestrator=k8s, projectcalico.org/serviceaccount of workloads, and the
	// labels of namespace and service account) felix/policy adds.
	Labels         map[string]string
	ServiceAccount string       // of a workload; name in its namespace
	Addresses      []netip.Addr // of a host: its expectedIPs
	Ports          []EndpointPort
	// Interface is the host's end of the link, there already or to come (or the host's own interface; "*": all that are no
	// workload's) on this node; empty for endpoints of other nodes.
	Interface string
	// UID of a pod that is attached here, as its runtime told it, or is to be, as its runtime will tell
	// it; empty where it did not. No policy asks for it: it says whether two are the same pod.
	UID string
	// Unknown: the pod is attached here and its object was never seen. Nothing passes; no
	// selector selects it.
	Unknown bool
	// AllowedSources are prefixes that a workload may send from beside its addresses
	// (cni.projectcalico.org/allowedSourcePrefixes).
	AllowedSources []netip.Prefix
	// Profiles of a host endpoint: projectcalico-default-allow and kns.<namespace> allow
	// what no tier decides; others do nothing.
	Profiles []string
}

// EndpointPort is a named port of an endpoint.
type EndpointPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// NetworkSet is a NetworkSet or, without a namespace, a GlobalNetworkSet.
type NetworkSet struct {
	ID     NetworkSetID
	Labels map[string]string // own; projectcalico.org/namespace and the namespace's are added by felix/policy
	Nets   []netip.Prefix    // in any order; may overlap
}

// NetworkSetID names a NetworkSet; a GlobalNetworkSet has no namespace.
type NetworkSetID struct{ Namespace, Name string }

func (id NetworkSetID) String() string {
	if id.Namespace == "" {
		return "GlobalNetworkSet " + id.Name
	}
	return "NetworkSet " + id.Namespace + "/" + id.Name
}

// PolicyNode is a Node as NodeSelector sees it.
type PolicyNode struct {
	Name      string
	Labels    map[string]string
	Addresses []netip.Addr
}

// ServiceEndpoints are the endpoints of a Service, of all its EndpointSlices.
type ServiceEndpoints struct {
	ID        ServiceID
	Endpoints []ServiceEndpoint
}

// ServiceEndpoint is one address and port behind a Service; Port 0 stands for an endpoint
// of a Service without ports, which matches as a source only.
type ServiceEndpoint struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// HostPolicy is what FelixConfiguration says of policy on every node.
type HostPolicy struct {
	// FailsafeIn and FailsafeOut always pass host endpoints (failsafeInboundHostPorts,
	// failsafeOutboundHostPorts), defaulted.
	FailsafeIn, FailsafeOut []FailsafePort
	// EndpointToHost (defaultEndpointToHostAction) is what happens to packets of a pod to its own node
	// after its egress policy allowed them: Drop ends them, Accept accepts them, Return leaves them
	// to the host endpoints' policies and the host's own rules.
	EndpointToHost EndpointToHostAction
}

// FailsafePort is a port that host endpoints never close.
type FailsafePort struct {
	Protocol uint8
	Port     uint16
	Net      netip.Prefix // of the other end; the zero Prefix: any
}

// EndpointToHostAction is a value of defaultEndpointToHostAction.
type EndpointToHostAction string

// The values.
const (
	EndpointToHostDrop   EndpointToHostAction = "Drop"
	EndpointToHostAccept EndpointToHostAction = "Accept"
	EndpointToHostReturn EndpointToHostAction = "Return"
)
