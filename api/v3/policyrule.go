package v3

import "k8s.io/apimachinery/pkg/util/intstr"

// Action is what a rule does with a packet.
//
// +kubebuilder:validation:Enum=Allow;Deny;Log;Pass
type Action string

// The values of a rule's .action. Pass goes on with the next tier.
const (
	Allow Action = "Allow"
	Deny  Action = "Deny"
	Log   Action = "Log"
	Pass  Action = "Pass"
)

// PolicyType is a direction, seen from the endpoint that a policy selects.
//
// +kubebuilder:validation:Enum=Ingress;Egress
type PolicyType string

// The values of a policy's .spec.types.
const (
	PolicyTypeIngress PolicyType = "Ingress"
	PolicyTypeEgress  PolicyType = "Egress"
)

// PolicyPerformanceHint tells how a policy is best programmed.
//
// +kubebuilder:validation:Enum=AssumeNeededOnEveryNode
type PolicyPerformanceHint string

// PerfHintAssumeNeededOnEveryNode has a policy programmed before an endpoint needs it.
const PerfHintAssumeNeededOnEveryNode PolicyPerformanceHint = "AssumeNeededOnEveryNode"

// Port is a number, a range "80:90", or the name of a port of the endpoint.
//
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(:[0-9]{1,5})?|[a-zA-Z0-9_.-]{1,128})$`
type Port struct {
	intstr.IntOrString `json:",inline"`
}

// Protocol is a name (TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, in any case) or a number.
//
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:Pattern=`^((?i)(TCP|UDP|ICMP|ICMPv6|SCTP|UDPLite)|[0-9]{1,3})?$`
type Protocol struct {
	intstr.IntOrString `json:",inline"`
}

// Rule matches packets and says what becomes of them. All that it says must match.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.source) && (has(self.source.ports) && size(self.source.ports) > 0 || has(self.source.notPorts) && size(self.source.notPorts) > 0) || has(self.destination) && (has(self.destination.ports) && size(self.destination.ports) > 0 || has(self.destination.notPorts) && size(self.destination.notPorts) > 0)) || has(self.protocol) && !(self.protocol in ['ICMP', 'icmp', 'ICMPv6', 'icmpv6', 'ICMPV6']) && !(self.protocol in [1, 58])",message="ports and notPorts need a protocol that has ports: TCP, UDP or SCTP"
// +kubebuilder:validation:XValidation:rule="!has(self.icmp) || has(self.protocol) && !(self.protocol in ['TCP', 'tcp', 'UDP', 'udp', 'SCTP', 'sctp', 'UDPLite', 'udplite', 'UDPLITE']) && !(self.protocol in [6, 17, 132, 136])",message="icmp needs protocol ICMP or ICMPv6"
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || self.ipVersion == 4 || !(has(self.protocol) && self.protocol in ['ICMP', 'icmp'] || has(self.notProtocol) && self.notProtocol in ['ICMP', 'icmp'])",message="ipVersion must be 4 with protocol ICMP; the one of IPv6 is ICMPv6"
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || self.ipVersion == 6 || !(has(self.protocol) && self.protocol in ['ICMPv6', 'icmpv6', 'ICMPV6'] || has(self.notProtocol) && self.notProtocol in ['ICMPv6', 'icmpv6', 'ICMPV6'])",message="ipVersion must be 6 with protocol ICMPv6; the one of IPv4 is ICMP"
// +kubebuilder:validation:XValidation:rule="!has(self.http) || !has(self.protocol) || self.protocol in ['TCP', 'tcp']",message="http needs protocol TCP"
// +kubebuilder:validation:XValidation:rule="!has(self.http) || self.action == 'Allow'",message="http can stand in rules with action Allow only"
// +kubebuilder:validation:XValidation:rule="!has(self.destination) || !has(self.destination.services) || !(has(self.destination.ports) && size(self.destination.ports) > 0 || has(self.destination.notPorts) && size(self.destination.notPorts) > 0)",message="destination.services has the ports of the service; remove destination.ports and destination.notPorts"
// +kubebuilder:validation:XValidation:rule="((has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 ? [self.source.nets[0]] : []) + (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 ? [self.source.notNets[0]] : []) + (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 ? [self.destination.nets[0]] : []) + (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 ? [self.destination.notNets[0]] : [])).all(n, n.contains(':')) || ((has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 ? [self.source.nets[0]] : []) + (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 ? [self.source.notNets[0]] : []) + (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 ? [self.destination.nets[0]] : []) + (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 ? [self.destination.notNets[0]] : [])).all(n, !n.contains(':'))",message="nets and notNets must be of one family; write a rule for IPv4 and one for IPv6"
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || ((has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 ? [self.source.nets[0]] : []) + (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 ? [self.source.notNets[0]] : []) + (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 ? [self.destination.nets[0]] : []) + (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 ? [self.destination.notNets[0]] : [])).all(n, n.contains(':') == (self.ipVersion == 6))",message="nets and notNets must be of the family that ipVersion says"
type Rule struct {
	Action Action `json:"action"`
	// IPVersion restricts the rule to one family; 4 or 6.
	//
	// +kubebuilder:validation:Enum=4;6
	IPVersion *int `json:"ipVersion,omitempty"`
	// Protocol of the packet.
	Protocol *Protocol `json:"protocol,omitempty"`
	// NotProtocol is a protocol that the packet must not have.
	NotProtocol *Protocol `json:"notProtocol,omitempty"`
	// ICMP matches type and code; needs protocol ICMP or ICMPv6.
	ICMP *ICMPFields `json:"icmp,omitempty"`
	// NotICMP is a type and code that the packet must not have.
	NotICMP *ICMPFields `json:"notICMP,omitempty"`
	// Source is who sent the packet.
	Source EntityRule `json:"source,omitempty"`
	// Destination is whom the packet is for.
	Destination EntityRule `json:"destination,omitempty"`
	// HTTP matches requests, where a proxy looks into them.
	HTTP *HTTPMatch `json:"http,omitempty"`
	// Metadata goes along with the rule.
	Metadata *RuleMetadata `json:"metadata,omitempty"`
}

// ICMPFields match an ICMP message. A code needs its type.
//
// +kubebuilder:validation:XValidation:rule="!has(self.code) || has(self.type)",message="code is set without type; add the type"
type ICMPFields struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=254
	Type *int `json:"type,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Code *int `json:"code,omitempty"`
}

// EntityRule matches one end of a packet's way. All that it says must match.
//
// +kubebuilder:validation:XValidation:rule="!has(self.services) || !(has(self.selector) && size(self.selector) > 0 || has(self.notSelector) && size(self.notSelector) > 0 || has(self.namespaceSelector) && size(self.namespaceSelector) > 0 || has(self.serviceAccounts) || has(self.nets) && size(self.nets) > 0 || has(self.notNets) && size(self.notNets) > 0)",message="services stands beside selector, notSelector, namespaceSelector, serviceAccounts, nets or notNets; remove one of them"
// +kubebuilder:validation:XValidation:rule="!has(self.services) || has(self.services.name) && size(self.services.name) > 0",message="services.name is missing; must be the name of a Service"
// +kubebuilder:validation:XValidation:rule="!has(self.selector) || !self.selector.contains('global(')",message="selector contains global(), which can stand in namespaceSelector only"
// +kubebuilder:validation:XValidation:rule="!has(self.nets) || self.nets.all(n, isCIDR(n))",message="nets must be networks, such as 192.0.2.0/24 or 2001:db8::/32"
// +kubebuilder:validation:XValidation:rule="!has(self.notNets) || self.notNets.all(n, isCIDR(n))",message="notNets must be networks, such as 192.0.2.0/24 or 2001:db8::/32"
type EntityRule struct {
	// Nets are networks; the address must be in one of them.
	//
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=49
	// +listType=set
	Nets []string `json:"nets,omitempty"`
	// NotNets are networks that the address must not be in.
	//
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=49
	// +listType=set
	NotNets []string `json:"notNets,omitempty"`
	// Selector selects endpoints and network sets by their labels: in a NetworkPolicy those
	// of its namespace, unless NamespaceSelector says otherwise.
	//
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
	// NotSelector selects endpoints that do not match.
	//
	// +kubebuilder:validation:MaxLength=1024
	NotSelector string `json:"notSelector,omitempty"`
	// NamespaceSelector selects the namespaces of the endpoints. "global()" selects those
	// that have none.
	//
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// Ports; the packet must have one of them.
	//
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	Ports []Port `json:"ports,omitempty"`
	// NotPorts are ports that the packet must not have.
	//
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	NotPorts []Port `json:"notPorts,omitempty"`
	// ServiceAccounts are those of the pods that match.
	ServiceAccounts *ServiceAccountMatch `json:"serviceAccounts,omitempty"`
	// Services is a Service whose endpoints match.
	Services *ServiceMatch `json:"services,omitempty"`
}

// ServiceMatch names a Service.
type ServiceMatch struct {
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Namespace of the Service; default that of the policy.
	//
	// +kubebuilder:validation:MaxLength=253
	Namespace string `json:"namespace,omitempty"`
}

// ServiceAccountMatch matches service accounts by name and by label.
type ServiceAccountMatch struct {
	// +listType=set
	Names    []string `json:"names,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

// HTTPMatch matches requests: one of the methods and one of the paths.
type HTTPMatch struct {
	// +kubebuilder:validation:MaxItems=20
	// +listType=atomic
	Methods []string `json:"methods,omitempty"`
	// +kubebuilder:validation:MaxItems=20
	// +listType=atomic
	Paths []HTTPPath `json:"paths,omitempty"`
}

// HTTPPath is a path or a prefix of paths.
//
// +kubebuilder:validation:XValidation:rule="(has(self.exact) && size(self.exact) > 0) != (has(self.prefix) && size(self.prefix) > 0)",message="exactly one of exact and prefix must be set"
type HTTPPath struct {
	// +kubebuilder:validation:MaxLength=1024
	Exact string `json:"exact,omitempty"`
	// +kubebuilder:validation:MaxLength=1024
	Prefix string `json:"prefix,omitempty"`
}

// RuleMetadata goes along with a rule.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}
