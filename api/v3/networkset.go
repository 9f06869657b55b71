package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NetworkSet gives networks labels, for the policies of one namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced
type NetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NetworkSetSpec `json:"spec,omitempty"`
}

// NetworkSetList is a list of NetworkSets.
//
// +kubebuilder:object:root=true
type NetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []NetworkSet `json:"items"`
}

// NetworkSetSpec is what a NetworkSet wants.
type NetworkSetSpec struct {
	// Nets are networks and single addresses.
	//
	// +kubebuilder:validation:MaxItems=100000
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) || isIP(self)",message="must be a network such as 192.0.2.0/24, or an address"
	// +listType=set
	Nets []string `json:"nets,omitempty"`
}

// GlobalNetworkSet gives networks labels, for the policies of all namespaces.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=gns
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GlobalNetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec GlobalNetworkSetSpec `json:"spec,omitempty"`
}

// GlobalNetworkSetList is a list of GlobalNetworkSets.
//
// +kubebuilder:object:root=true
type GlobalNetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GlobalNetworkSet `json:"items"`
}

// GlobalNetworkSetSpec is what a GlobalNetworkSet wants.
type GlobalNetworkSetSpec struct {
	// Nets are networks and single addresses.
	//
	// +kubebuilder:validation:MaxItems=100000
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) || isIP(self)",message="must be a network such as 192.0.2.0/24, or an address"
	// +listType=set
	Nets []string `json:"nets,omitempty"`
}
