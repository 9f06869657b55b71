package v3

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PolicyFields are what all policies have. They are checked as one: what holds for a policy
// holds for a staged one.
//
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || self.egress.all(r, !has(r.source) || !has(r.source.services))",message="egress: source.services is set; an egress rule can name services in its destination only"
// +kubebuilder:validation:XValidation:rule="!has(self.ingress) || self.ingress.all(r, !has(r.destination) || !has(r.destination.services))",message="ingress: destination.services is set; an ingress rule can name services in its source only"
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || self.egress.all(r, !has(r.http))",message="egress: http is set; it can stand in ingress rules only"
// +kubebuilder:validation:XValidation:rule="!has(self.selector) || !self.selector.contains('global(')",message="selector contains global(), which can stand in a rule's namespaceSelector only"
// +kubebuilder:validation:XValidation:rule="!has(self.serviceAccountSelector) || !self.serviceAccountSelector.contains('global(')",message="serviceAccountSelector contains global(), which can stand in a rule's namespaceSelector only"
type PolicyFields struct {
	// Tier that the policy belongs to.
	//
	// +kubebuilder:default=default
	Tier string `json:"tier,omitempty"`
	// Order within the tier, lowest first; a policy without one comes last. Of equal ones
	// the first by name goes first.
	Order *float64 `json:"order,omitempty"`
	// Ingress rules, in order. A packet that none matches is denied.
	//
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Ingress []Rule `json:"ingress,omitempty"`
	// Egress rules, in order. A packet that none matches is denied.
	//
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Egress []Rule `json:"egress,omitempty"`
	// Selector selects the endpoints that the policy holds for; default all.
	//
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
	// Types are the directions that the policy holds for. Default: those that have rules,
	// or Ingress when none has.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	Types []PolicyType `json:"types,omitempty"`
	// ServiceAccountSelector selects pods by the labels of their service accounts.
	//
	// +kubebuilder:validation:MaxLength=1024
	ServiceAccountSelector string `json:"serviceAccountSelector,omitempty"`
	// PerformanceHints tell how the policy is best programmed.
	//
	// +listType=set
	PerformanceHints []PolicyPerformanceHint `json:"performanceHints,omitempty"`
}

// NetworkPolicy is a policy for the pods of one namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={cnp,caliconetworkpolicy}
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NetworkPolicySpec `json:"spec,omitempty"`
}

// NetworkPolicyList is a list of NetworkPolicies.
//
// +kubebuilder:object:root=true
type NetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []NetworkPolicy `json:"items"`
}

// NetworkPolicySpec is what a NetworkPolicy wants.
type NetworkPolicySpec struct {
	PolicyFields `json:",inline"`
}

// GlobalNetworkPolicy is a policy for pods of any namespace and for hosts.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={gnp,cgnp}
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GlobalNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec GlobalNetworkPolicySpec `json:"spec,omitempty"`
}

// GlobalNetworkPolicyList is a list of GlobalNetworkPolicies.
//
// +kubebuilder:object:root=true
type GlobalNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GlobalNetworkPolicy `json:"items"`
}

// GlobalNetworkPolicySpec is what a GlobalNetworkPolicy wants.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.doNotTrack) && self.doNotTrack && has(self.preDNAT) && self.preDNAT)",message="doNotTrack and preDNAT are both true; one of them must be false"
// +kubebuilder:validation:XValidation:rule="!(has(self.doNotTrack) && self.doNotTrack || has(self.preDNAT) && self.preDNAT) || has(self.applyOnForward) && self.applyOnForward",message="applyOnForward must be true with doNotTrack or preDNAT"
// +kubebuilder:validation:XValidation:rule="!(has(self.preDNAT) && self.preDNAT) || !(has(self.egress) && size(self.egress) > 0)",message="egress has rules, but a preDNAT policy holds for ingress only"
// +kubebuilder:validation:XValidation:rule="!(has(self.preDNAT) && self.preDNAT) || !has(self.types) || !('Egress' in self.types)",message="types contains Egress, but a preDNAT policy holds for ingress only"
// +kubebuilder:validation:XValidation:rule="!has(self.ingress) || self.ingress.all(r, !has(r.source) || !has(r.source.services) || has(r.source.services.namespace) && size(r.source.services.namespace) > 0)",message="ingress: source.services.namespace is missing; a policy without a namespace must name that of the Service"
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || self.egress.all(r, !has(r.destination) || !has(r.destination.services) || has(r.destination.services.namespace) && size(r.destination.services.namespace) > 0)",message="egress: destination.services.namespace is missing; a policy without a namespace must name that of the Service"
// +kubebuilder:validation:XValidation:rule="!has(self.namespaceSelector) || !self.namespaceSelector.contains('global(')",message="namespaceSelector contains global(), which can stand in a rule's namespaceSelector only"
type GlobalNetworkPolicySpec struct {
	PolicyFields `json:",inline"`
	// DoNotTrack: the policy holds before connection tracking, whose packets it skips.
	DoNotTrack bool `json:"doNotTrack,omitempty"`
	// PreDNAT: the policy holds before addresses of services are translated.
	PreDNAT bool `json:"preDNAT,omitempty"`
	// ApplyOnForward: the policy holds for packets that a host endpoint forwards, too.
	ApplyOnForward bool `json:"applyOnForward,omitempty"`
	// NamespaceSelector selects the namespaces of the pods that the policy holds for.
	//
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
}

// StagedAction says what becomes of the policy that a staged one stands for.
//
// +kubebuilder:validation:Enum=Set;Delete;Learn;Ignore
type StagedAction string

// The values of a staged policy's .spec.stagedAction.
const (
	StagedActionSet    StagedAction = "Set"
	StagedActionDelete StagedAction = "Delete"
	StagedActionLearn  StagedAction = "Learn"
	StagedActionIgnore StagedAction = "Ignore"
)

// StagedNetworkPolicy is a NetworkPolicy that is looked at and not enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={scnp,snp}
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
type StagedNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec StagedNetworkPolicySpec `json:"spec,omitempty"`
}

// StagedNetworkPolicyList is a list of StagedNetworkPolicies.
//
// +kubebuilder:object:root=true
type StagedNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []StagedNetworkPolicy `json:"items"`
}

// StagedNetworkPolicySpec is what a StagedNetworkPolicy wants.
//
// +kubebuilder:validation:XValidation:rule="!has(self.stagedAction) || self.stagedAction != 'Delete' || !(has(self.order) || has(self.ingress) || has(self.egress) || has(self.selector) || has(self.types) || has(self.serviceAccountSelector) || has(self.performanceHints))",message="stagedAction is Delete; no other field than tier can be set beside it"
type StagedNetworkPolicySpec struct {
	// StagedAction says what becomes of the policy of this name.
	//
	// +kubebuilder:default=Set
	StagedAction      StagedAction `json:"stagedAction,omitempty"`
	NetworkPolicySpec `json:",inline"`
}

// StagedGlobalNetworkPolicy is a GlobalNetworkPolicy that is looked at and not enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=sgnp
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
type StagedGlobalNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec StagedGlobalNetworkPolicySpec `json:"spec,omitempty"`
}

// StagedGlobalNetworkPolicyList is a list of StagedGlobalNetworkPolicies.
//
// +kubebuilder:object:root=true
type StagedGlobalNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []StagedGlobalNetworkPolicy `json:"items"`
}

// StagedGlobalNetworkPolicySpec is what a StagedGlobalNetworkPolicy wants.
//
// +kubebuilder:validation:XValidation:rule="!has(self.stagedAction) || self.stagedAction != 'Delete' || !(has(self.order) || has(self.ingress) || has(self.egress) || has(self.selector) || has(self.types) || has(self.serviceAccountSelector) || has(self.performanceHints) || has(self.namespaceSelector) || has(self.doNotTrack) || has(self.preDNAT) || has(self.applyOnForward))",message="stagedAction is Delete; no other field than tier can be set beside it"
type StagedGlobalNetworkPolicySpec struct {
	// StagedAction says what becomes of the policy of this name.
	//
	// +kubebuilder:default=Set
	StagedAction            StagedAction `json:"stagedAction,omitempty"`
	GlobalNetworkPolicySpec `json:",inline"`
}

// StagedKubernetesNetworkPolicy is a NetworkPolicy of networking.k8s.io that is looked at
// and not enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=sknp
type StagedKubernetesNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec StagedKubernetesNetworkPolicySpec `json:"spec,omitempty"`
}

// StagedKubernetesNetworkPolicyList is a list of StagedKubernetesNetworkPolicies.
//
// +kubebuilder:object:root=true
type StagedKubernetesNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []StagedKubernetesNetworkPolicy `json:"items"`
}

// StagedKubernetesNetworkPolicySpec is what a StagedKubernetesNetworkPolicy wants: the
// fields of networking.k8s.io/v1.
//
// +kubebuilder:validation:XValidation:rule="!has(self.stagedAction) || self.stagedAction != 'Delete' || !(has(self.ingress) || has(self.egress) || has(self.policyTypes) || has(self.podSelector) && (has(self.podSelector.matchLabels) || has(self.podSelector.matchExpressions)))",message="stagedAction is Delete; no other field can be set beside it"
type StagedKubernetesNetworkPolicySpec struct {
	// StagedAction says what becomes of the policy of this name.
	//
	// +kubebuilder:default=Set
	StagedAction StagedAction `json:"stagedAction,omitempty"`
	// PodSelector selects the pods that the policy holds for.
	PodSelector metav1.LabelSelector `json:"podSelector,omitempty"`
	// Ingress rules.
	//
	// +listType=atomic
	Ingress []networkingv1.NetworkPolicyIngressRule `json:"ingress,omitempty"`
	// Egress rules.
	//
	// +listType=atomic
	Egress []networkingv1.NetworkPolicyEgressRule `json:"egress,omitempty"`
	// PolicyTypes are the directions that the policy holds for.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	PolicyTypes []networkingv1.PolicyType `json:"policyTypes,omitempty"`
}
