package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Tier is a group of policies. Tiers are asked in order; a packet that a tier's policies
// select and none of them decides on meets the tier's default action.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="DefaultAction",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.conditions[?(@.type=='Ready')].reason`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="metadata.name of a tier must be up to 63 lower case letters, digits and '-', without dots"
// +kubebuilder:validation:XValidation:rule="self.metadata.name != 'default' || has(self.spec) && has(self.spec.order) && self.spec.order == 1000000.0",message="spec.order of the tier default must be 1000000"
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['adminnetworkpolicy', 'kube-admin']) || has(self.spec) && has(self.spec.order) && self.spec.order == 1000.0",message="spec.order of the tier for admin policies must be 1000"
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['baselineadminnetworkpolicy', 'kube-baseline']) || has(self.spec) && has(self.spec.order) && self.spec.order == 10000000.0",message="spec.order of the tier for baseline policies must be 10000000"
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   TierSpec    `json:"spec,omitempty"`
	Status *TierStatus `json:"status,omitempty"`
}

// TierList is a list of Tiers.
//
// +kubebuilder:object:root=true
type TierList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Tier `json:"items"`
}

// The order of the tier that policies without a tier are in.
const (
	DefaultTier      = "default"
	DefaultTierOrder = 1000000
)

// TierAction is what becomes of a packet at the end of a tier.
//
// +kubebuilder:validation:Enum=Pass;Deny
type TierAction string

// The values of a tier's .spec.defaultAction.
const (
	TierPass TierAction = "Pass"
	TierDeny TierAction = "Deny"
)

// TierSpec is what a Tier wants.
type TierSpec struct {
	// Order of the tier, lowest first; a tier without one comes last.
	Order *float64 `json:"order,omitempty"`
	// DefaultAction meets packets that the tier's policies select and do not decide on.
	//
	// +kubebuilder:default=Deny
	DefaultAction *TierAction `json:"defaultAction,omitempty"`
}

// TierStatus is what became of a Tier.
type TierStatus struct {
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
