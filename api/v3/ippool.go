package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPPool is a range of addresses for pods.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="VXLAN",type=string,JSONPath=`.spec.vxlanMode`
// +kubebuilder:printcolumn:name="IPIP",type=string,JSONPath=`.spec.ipipMode`
// +kubebuilder:printcolumn:name="NAT",type=boolean,JSONPath=`.spec.natOutgoing`
// +kubebuilder:printcolumn:name="Allocatable",type=string,JSONPath=`.status.conditions[?(@.type=='Allocatable')].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec    `json:"spec,omitempty"`
	Status *IPPoolStatus `json:"status,omitempty"`
}

// IPPoolList is a list of IPPools.
//
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}

// EncapMode says when a pool's traffic is encapsulated.
//
// +kubebuilder:validation:Enum=Never;Always;CrossSubnet
type EncapMode string

// The modes of .spec.ipipMode and .spec.vxlanMode.
const (
	EncapNever       EncapMode = "Never"
	EncapAlways      EncapMode = "Always"
	EncapCrossSubnet EncapMode = "CrossSubnet"
)

// IPPoolAllowedUse is one of a pool's uses.
//
// +kubebuilder:validation:Enum=Workload;Tunnel;LoadBalancer
type IPPoolAllowedUse string

// The values of .spec.allowedUses.
const (
	IPPoolAllowedUseWorkload     IPPoolAllowedUse = "Workload"
	IPPoolAllowedUseTunnel       IPPoolAllowedUse = "Tunnel"
	IPPoolAllowedUseLoadBalancer IPPoolAllowedUse = "LoadBalancer"
)

// AssignmentMode says whether addresses are given without being asked for.
//
// +kubebuilder:validation:Enum=Automatic;Manual
type AssignmentMode string

// The values of .spec.assignmentMode.
const (
	AssignmentAutomatic AssignmentMode = "Automatic"
	AssignmentManual    AssignmentMode = "Manual"
)

// IPPoolSpec is what an IPPool wants.
type IPPoolSpec struct {
	// CIDR of the pool.
	//
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=48
	CIDR string `json:"cidr"`
	// VXLANMode says when traffic is encapsulated in VXLAN; default Never.
	VXLANMode EncapMode `json:"vxlanMode,omitempty"`
	// IPIPMode says when traffic is encapsulated in IPIP; default Never.
	IPIPMode EncapMode `json:"ipipMode,omitempty"`
	// NATOutgoing masquerades what pods send to addresses outside all pools.
	NATOutgoing bool `json:"natOutgoing,omitempty"`
	// Disabled: no new addresses are taken from the pool.
	Disabled bool `json:"disabled,omitempty"`
	// DisableBGPExport: the pool's blocks are not advertised.
	DisableBGPExport bool `json:"disableBGPExport,omitempty"`
	// BlockSize is the prefix length of a block; default 26 for IPv4, 122 for IPv6.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	BlockSize int `json:"blockSize,omitempty"`
	// NodeSelector selects the nodes that may use the pool.
	//
	// +kubebuilder:default="all()"
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// NamespaceSelector selects the namespaces whose pods may use the pool.
	//
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// AllowedUses of the pool; default Workload and Tunnel.
	//
	// +kubebuilder:validation:MaxItems=10
	// +listType=set
	AllowedUses []IPPoolAllowedUse `json:"allowedUses,omitempty"`
	// AssignmentMode Manual: addresses are given only on request.
	//
	// +kubebuilder:default=Automatic
	AssignmentMode AssignmentMode `json:"assignmentMode,omitempty"`
}

// IPPoolStatus is what became of an IPPool.
type IPPoolStatus struct {
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
