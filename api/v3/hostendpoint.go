package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostEndpoint is an interface of a node, or all of them, that policies can select.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={hep,heps}
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Interface",type=string,JSONPath=`.spec.interfaceName`
type HostEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec HostEndpointSpec `json:"spec,omitempty"`
}

// HostEndpointList is a list of HostEndpoints.
//
// +kubebuilder:object:root=true
type HostEndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []HostEndpoint `json:"items"`
}

// HostEndpointSpec is what a HostEndpoint wants.
//
// +kubebuilder:validation:XValidation:rule="has(self.node) && size(self.node) > 0",message="node is missing; must be the name of the node"
// +kubebuilder:validation:XValidation:rule="has(self.interfaceName) && size(self.interfaceName) > 0 || has(self.expectedIPs) && size(self.expectedIPs) > 0",message="interfaceName and expectedIPs are both missing; interfaceName must be an interface of the node or \"*\", or expectedIPs the addresses of one"
type HostEndpointSpec struct {
	// Node is the name of the node.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`
	// InterfaceName is an interface of the node, or "*" for all traffic of the node.
	//
	// +kubebuilder:validation:MaxLength=15
	InterfaceName string `json:"interfaceName,omitempty"`
	// ExpectedIPs are the addresses of the interface.
	//
	// +kubebuilder:validation:MaxItems=10000
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an address, such as 192.0.2.1"
	// +listType=set
	ExpectedIPs []string `json:"expectedIPs,omitempty"`
	// Profiles that hold after all policies.
	//
	// +listType=set
	Profiles []string `json:"profiles,omitempty"`
	// Ports have names that rules can use.
	//
	// +listType=atomic
	Ports []EndpointPort `json:"ports,omitempty"`
}

// EndpointPort gives a port a name.
//
// +kubebuilder:validation:XValidation:rule="!(self.protocol in ['ICMP', 'icmp', 'ICMPv6', 'icmpv6', 'ICMPV6']) && !(self.protocol in [1, 58])",message="protocol has no ports; must be TCP, UDP or SCTP"
type EndpointPort struct {
	Name string `json:"name"`
	// Protocol is TCP, UDP or SCTP, or its number.
	Protocol Protocol `json:"protocol"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port uint16 `json:"port"`
}
