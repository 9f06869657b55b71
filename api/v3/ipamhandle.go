package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BlockAffinity says which node a block belongs to, where Calico's IPAM keeps it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={affinity,affinities}
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
type BlockAffinity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BlockAffinitySpec `json:"spec,omitempty"`
}

// BlockAffinityList is a list of BlockAffinities.
//
// +kubebuilder:object:root=true
type BlockAffinityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BlockAffinity `json:"items"`
}

// BlockAffinityState is how far a claim has come; empty means confirmed.
//
// +kubebuilder:validation:Enum="";confirmed;pending;pendingDeletion
type BlockAffinityState string

// The values of .spec.state.
const (
	StateConfirmed       BlockAffinityState = "confirmed"
	StatePending         BlockAffinityState = "pending"
	StatePendingDeletion BlockAffinityState = "pendingDeletion"
)

// BlockAffinitySpec is the state of a BlockAffinity.
type BlockAffinitySpec struct {
	State BlockAffinityState `json:"state"`
	Node  string             `json:"node"`
	// Type of the owner: "host" or "virtual".
	Type string `json:"type,omitempty"`
	// CIDR of the block.
	//
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr"`
	// Deleted marks an affinity that is about to be deleted.
	//
	// +kubebuilder:default=false
	Deleted bool `json:"deleted"`
}

// IPAMHandle says which blocks hold addresses of one holder, where Calico's IPAM keeps it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="ID",type=string,JSONPath=`.spec.handleID`
type IPAMHandle struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAMHandleSpec `json:"spec,omitempty"`
}

// IPAMHandleList is a list of IPAMHandles.
//
// +kubebuilder:object:root=true
type IPAMHandleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPAMHandle `json:"items"`
}

// IPAMHandleSpec is the state of an IPAMHandle.
type IPAMHandleSpec struct {
	HandleID string `json:"handleID"`
	// Block is, for the CIDR of each block, how many addresses are held in it.
	Block   map[string]int `json:"block"`
	Deleted bool           `json:"deleted,omitempty"`
}
