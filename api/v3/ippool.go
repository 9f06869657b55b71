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

	// +required
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
//
// +kubebuilder:validation:XValidation:rule="self.cidr == oldSelf.cidr",message="cidr cannot be changed; make another pool and disable this one"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr) || (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) == (has(oldSelf.blockSize) && oldSelf.blockSize != 0 ? oldSelf.blockSize : cidr(oldSelf.cidr).ip().family() == 4 ? 26 : 122)",message="blockSize cannot be changed; make another pool and disable this one"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked()",message="cidr has bits set outside its mask"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !(['169.254.0.0/16', 'fe80::/10', '127.0.0.0/8', '::1/128', '224.0.0.0/4', 'ff00::/8'].exists(c, cidr(c).containsCIDR(self.cidr) || cidr(self.cidr).containsCIDR(c)))",message="cidr overlaps a link-local, loopback or multicast range, whose addresses no pod can use"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !(cidr(self.cidr).ip().family() == 4) || (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) >= 20 && (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) <= 32",message="blockSize of an IPv4 pool must be 20 to 32"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4 || (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) >= 116 && (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) <= 128",message="blockSize of an IPv6 pool must be 116 to 128"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || (has(self.blockSize) && self.blockSize != 0 ? self.blockSize : cidr(self.cidr).ip().family() == 4 ? 26 : 122) >= cidr(self.cidr).prefixLength()",message="cidr is smaller than one block; blockSize (default 26 for IPv4, 122 for IPv6) must be at least the length of cidr"
// +kubebuilder:validation:XValidation:rule="!(has(self.ipipMode) && self.ipipMode != 'Never') || !(has(self.vxlanMode) && self.vxlanMode != 'Never')",message="ipipMode and vxlanMode are both set; one of them must be Never"
// +kubebuilder:validation:XValidation:rule="!(has(self.ipipMode) && self.ipipMode != 'Never') || !isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4",message="ipipMode must be Never for an IPv6 pool: IPIP carries IPv4 only"
// +kubebuilder:validation:XValidation:rule="!(has(self.allowedUses) && 'LoadBalancer' in self.allowedUses) || size(self.allowedUses) == 1",message="allowedUses has LoadBalancer beside other uses; addresses of load balancers need a pool of their own"
// +kubebuilder:validation:XValidation:rule="!(has(self.allowedUses) && 'LoadBalancer' in self.allowedUses) || !(has(self.ipipMode) && self.ipipMode != 'Never') && !(has(self.vxlanMode) && self.vxlanMode != 'Never')",message="ipipMode and vxlanMode must be Never for a pool with allowedUses LoadBalancer"
// +kubebuilder:validation:XValidation:rule="!(has(self.allowedUses) && 'LoadBalancer' in self.allowedUses) || !has(self.disableBGPExport) || !self.disableBGPExport",message="disableBGPExport must be false for a pool with allowedUses LoadBalancer"
// +kubebuilder:validation:XValidation:rule="!(has(self.allowedUses) && 'LoadBalancer' in self.allowedUses) || !has(self.nodeSelector) || self.nodeSelector == 'all()'",message="nodeSelector must be all() for a pool with allowedUses LoadBalancer"
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
