package v3

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPAMConfiguration is the IPAM configuration of the cluster; its name is "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={ipamconfig,ipamconfigs}
// +kubebuilder:printcolumn:name="StrictAffinity",type=boolean,JSONPath=`.spec.strictAffinity`
// +kubebuilder:printcolumn:name="MaxBlocksPerHost",type=integer,JSONPath=`.spec.maxBlocksPerHost`
// +kubebuilder:printcolumn:name="AutoAllocateBlocks",type=boolean,JSONPath=`.spec.autoAllocateBlocks`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="metadata.name of the one IPAMConfiguration must be default"
type IPAMConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAMConfigurationSpec `json:"spec,omitempty"`
}

// IPAMConfigurationList is a list of IPAMConfigurations.
//
// +kubebuilder:object:root=true
type IPAMConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPAMConfiguration `json:"items"`
}

// VMAddressPersistence says whether virtual machines keep their addresses.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type VMAddressPersistence string

// The values of .spec.kubeVirtVMAddressPersistence.
const (
	VMAddressPersistenceEnabled  VMAddressPersistence = "Enabled"
	VMAddressPersistenceDisabled VMAddressPersistence = "Disabled"
)

// IPAMConfigurationSpec is what an IPAMConfiguration wants.
type IPAMConfigurationSpec struct {
	// StrictAffinity: a node uses addresses of its own blocks only.
	//
	// +kubebuilder:default=false
	StrictAffinity bool `json:"strictAffinity"`
	// AutoAllocateBlocks: nodes claim blocks when they need them. Nil means true, the
	// schema's default, where no API server fills it in.
	//
	// +kubebuilder:default=true
	// +required
	AutoAllocateBlocks *bool `json:"autoAllocateBlocks,omitempty"`
	// MaxBlocksPerHost is how many blocks a node may claim; 0 means 20.
	//
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	MaxBlocksPerHost int32 `json:"maxBlocksPerHost,omitempty"`
	// IPCooldownSeconds is how long a released address rests.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1200
	IPCooldownSeconds *int32 `json:"ipCooldownSeconds,omitempty"`
	// KubeVirtVMAddressPersistence: virtual machines keep their addresses.
	KubeVirtVMAddressPersistence *VMAddressPersistence `json:"kubeVirtVMAddressPersistence,omitempty"`
}

// IPReservation keeps addresses from being given to pods.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type IPReservation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPReservationSpec `json:"spec,omitempty"`
}

// IPReservationList is a list of IPReservations.
//
// +kubebuilder:object:root=true
type IPReservationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPReservation `json:"items"`
}

// IPReservationSpec is what an IPReservation wants.
type IPReservationSpec struct {
	// ReservedCIDRs are ranges and single addresses.
	//
	// +kubebuilder:validation:MaxItems=100000
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a network such as 192.0.2.0/24, without bits outside its mask, or an address"
	// +listType=set
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty"`
}

// IPAMBlock is a block of addresses: who owns it and who holds which of its addresses.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Affinity",type=string,JSONPath=`.spec.affinity`
// +kubebuilder:printcolumn:name="ClaimTime",type=date,JSONPath=`.spec.affinityClaimTime`
// +kubebuilder:selectablefield:JSONPath=`.spec.affinity`
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.spec.cidr) || self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",message="metadata.name must be spec.cidr with dashes, as in 10-244-0-0-26, so that a block has one owner"
// +kubebuilder:validation:XValidation:rule="self.spec.cidr == oldSelf.spec.cidr",message="spec.cidr cannot be changed"
type IPAMBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec IPAMBlockSpec `json:"spec,omitempty"`
}

// IPAMBlockList is a list of IPAMBlocks.
//
// +kubebuilder:object:root=true
type IPAMBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPAMBlock `json:"items"`
}

// IPAMBlockSpec is the state of a block.
type IPAMBlockSpec struct {
	// CIDR of the block; its BlockName is the object's name.
	//
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=49
	CIDR string `json:"cidr"`
	// Affinity is "host:<node>", "virtual:<name>" or nil.
	//
	// +kubebuilder:validation:Pattern=`^(host|virtual):[a-zA-Z0-9\.\-_]+$`
	Affinity *string `json:"affinity,omitempty"`
	// AffinityClaimTime is when Affinity was set.
	AffinityClaimTime *metav1.Time `json:"affinityClaimTime,omitempty"`
	// Allocations has one element for each address of the block: null when it is free,
	// otherwise an index into Attributes.
	//
	// +listType=atomic
	Allocations []*int `json:"allocations"`
	// Unallocated lists the free ordinals, longest idle first.
	//
	// +listType=atomic
	Unallocated []int `json:"unallocated"`
	// Attributes of the allocations.
	//
	// +listType=atomic
	Attributes []AllocationAttribute `json:"attributes"`
	// SequenceNumber grows with each change of the block.
	//
	// +kubebuilder:default=0
	// +optional
	SequenceNumber uint64 `json:"sequenceNumber"`
	// SequenceNumberForAllocation is, for each allocated ordinal, the sequence number
	// of its allocation.
	//
	// +optional
	SequenceNumberForAllocation map[string]uint64 `json:"sequenceNumberForAllocation,omitempty"`
	// StrictAffinity: only the owner may take addresses.
	StrictAffinity bool `json:"strictAffinity"`
	// Deleted marks a block that is about to be deleted: it counts as gone.
	//
	// +optional
	Deleted bool `json:"deleted,omitempty"`
}

// AllocationAttribute describes the holder of one or more addresses.
type AllocationAttribute struct {
	// HandleID names the holder: "<network>.<containerID>".
	HandleID *string `json:"handle_id,omitempty"`
	// ActiveOwnerAttrs describe the holder (pod, namespace, node, timestamp).
	ActiveOwnerAttrs map[string]string `json:"secondary,omitempty"`
	// AlternateOwnerAttrs describe who takes over.
	AlternateOwnerAttrs map[string]string `json:"alternateOwnerAttrs,omitempty"`
	// ReleasedAt is when the address was released; it rests from then on.
	ReleasedAt *metav1.Time `json:"releasedAt,omitempty"`
}

var blockNameReplacer = strings.NewReplacer(".", "-", ":", "-", "/", "-")

// BlockName is the name of the IPAMBlock of a block, in Calico's form: the masked CIDR
// with dots, colons and the slash as dashes, "10-244-0-0-26", "fd00-10-244---122".
func BlockName(cidr netip.Prefix) string {
	return blockNameReplacer.Replace(cidr.Masked().String())
}
