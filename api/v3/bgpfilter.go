package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPFilter says which routes pass the sessions of the BGPPeers that name it, and with what
// attributes. The first rule that matches decides; a route that none matches passes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type BGPFilter struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPFilterSpec `json:"spec,omitempty"`
}

// BGPFilterList is a list of BGPFilters.
//
// +kubebuilder:object:root=true
type BGPFilterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPFilter `json:"items"`
}

// BGPFilterSpec is what a BGPFilter wants.
type BGPFilterSpec struct {
	// ExportV4 are the rules for IPv4 routes that are sent.
	//
	// +listType=atomic
	ExportV4 []BGPFilterRuleV4 `json:"exportV4,omitempty"`
	// ImportV4 are the rules for IPv4 routes that are received.
	//
	// +listType=atomic
	ImportV4 []BGPFilterRuleV4 `json:"importV4,omitempty"`
	// ExportV6 are the rules for IPv6 routes that are sent.
	//
	// +listType=atomic
	ExportV6 []BGPFilterRuleV6 `json:"exportV6,omitempty"`
	// ImportV6 are the rules for IPv6 routes that are received.
	//
	// +listType=atomic
	ImportV6 []BGPFilterRuleV6 `json:"importV6,omitempty"`
}

// BGPFilterAction is what becomes of a route.
//
// +kubebuilder:validation:Enum=Accept;Reject
type BGPFilterAction string

// The values of a rule's .action.
const (
	BGPFilterAccept BGPFilterAction = "Accept"
	BGPFilterReject BGPFilterAction = "Reject"
)

// BGPFilterMatchOperator says how a prefix is compared with a CIDR.
//
// +kubebuilder:validation:Enum=Equal;NotEqual;In;NotIn
type BGPFilterMatchOperator string

// The values of a rule's .matchOperator.
const (
	BGPFilterMatchEqual    BGPFilterMatchOperator = "Equal"
	BGPFilterMatchNotEqual BGPFilterMatchOperator = "NotEqual"
	BGPFilterMatchIn       BGPFilterMatchOperator = "In"
	BGPFilterMatchNotIn    BGPFilterMatchOperator = "NotIn"
)

// BGPFilterMatchSource is where a route came from.
//
// +kubebuilder:validation:Enum=RemotePeers
type BGPFilterMatchSource string

// BGPFilterSourceRemotePeers are routes that came over BGP.
const BGPFilterSourceRemotePeers BGPFilterMatchSource = "RemotePeers"

// BGPFilterPeerType is the kind of a session.
//
// +kubebuilder:validation:Enum=eBGP;iBGP
type BGPFilterPeerType string

// The values of a rule's .peerType.
const (
	BGPFilterPeerTypeEBGP BGPFilterPeerType = "eBGP"
	BGPFilterPeerTypeIBGP BGPFilterPeerType = "iBGP"
)

// BGPCommunityValue is "aa:nn" with numbers up to 65535 (RFC 1997) or "aa:nn:mm" with
// numbers up to 4294967295 (RFC 8092).
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^(([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]):([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])|([0-9]|[1-9][0-9]{1,8}|[1-3][0-9]{9}|4[0-1][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[0-1][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]):([0-9]|[1-9][0-9]{1,8}|[1-3][0-9]{9}|4[0-1][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[0-1][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]):([0-9]|[1-9][0-9]{1,8}|[1-3][0-9]{9}|4[0-1][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[0-1][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]))$`
type BGPCommunityValue string

// BGPFilterCommunityMatch matches routes that carry a community.
//
// +structType=atomic
type BGPFilterCommunityMatch struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1
	// +listType=atomic
	Values []BGPCommunityValue `json:"values"`
}

// BGPFilterOperation changes a route. Exactly one of its fields is set.
//
// +structType=atomic
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:MaxProperties=1
type BGPFilterOperation struct {
	AddCommunity  *BGPFilterAddCommunity  `json:"addCommunity,omitempty"`
	PrependASPath *BGPFilterPrependASPath `json:"prependASPath,omitempty"`
	SetPriority   *BGPFilterSetPriority   `json:"setPriority,omitempty"`
}

// BGPFilterAddCommunity adds a community to those that the route carries.
//
// +structType=atomic
type BGPFilterAddCommunity struct {
	Value BGPCommunityValue `json:"value"`
}

// BGPFilterPrependASPath puts AS numbers before the route's AS path, the first one first.
//
// +structType=atomic
type BGPFilterPrependASPath struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +kubebuilder:validation:items:Format=int64
	// +kubebuilder:validation:items:Minimum=0
	// +kubebuilder:validation:items:Maximum=4294967295
	// +listType=atomic
	Prefix []uint32 `json:"prefix"`
}

// BGPFilterSetPriority sets the kernel metric of the route.
//
// +structType=atomic
type BGPFilterSetPriority struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	Value int `json:"value"`
}

// BGPFilterRuleV4 matches IPv4 routes and says what becomes of them. All that it says must
// match.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && size(self.cidr) > 0 || !(has(self.matchOperator) && size(self.matchOperator) > 0)",message="matchOperator is set without cidr; add the cidr"
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && size(self.cidr) > 0) || has(self.matchOperator) && size(self.matchOperator) > 0",message="cidr is set without matchOperator; must be one of Equal, NotEqual, In, NotIn"
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && size(self.cidr) > 0 || !has(self.prefixLength)",message="prefixLength is set without cidr; add the cidr"
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && isCIDR(self.cidr)) || cidr(self.cidr).ip().family() == 4",message="cidr must be an IPv4 network"
type BGPFilterRuleV4 struct {
	// CIDR that the route's prefix is compared with, by MatchOperator.
	//
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=18
	CIDR string `json:"cidr,omitempty"`
	// PrefixLength of the route, within CIDR.
	PrefixLength *BGPFilterPrefixLengthV4 `json:"prefixLength,omitempty"`
	// Source RemotePeers: the route came over BGP.
	Source BGPFilterMatchSource `json:"source,omitempty"`
	// Interface that the route points to; a final "*" stands for any ending.
	//
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface,omitempty"`
	// MatchOperator says how the route's prefix is compared with CIDR.
	MatchOperator BGPFilterMatchOperator `json:"matchOperator,omitempty"`
	// PeerType is the kind of the session.
	PeerType BGPFilterPeerType `json:"peerType,omitempty"`
	// Communities that the route must carry.
	Communities *BGPFilterCommunityMatch `json:"communities,omitempty"`
	// ASPathPrefix is how the route's AS path must begin. Unsigned although the schema
	// says int32: AS numbers reach 4294967295 (RFC 6793).
	//
	// +kubebuilder:validation:items:Format=int64
	// +kubebuilder:validation:items:Minimum=0
	// +kubebuilder:validation:items:Maximum=4294967295
	// +listType=atomic
	ASPathPrefix []uint32 `json:"asPathPrefix,omitempty"`
	// Priority is the kernel metric that the route must have.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	Priority *int            `json:"priority,omitempty"`
	Action   BGPFilterAction `json:"action"`
	// Operations on the route, in order.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +listType=atomic
	Operations []BGPFilterOperation `json:"operations,omitempty"`
}

// BGPFilterPrefixLengthV4 is a range of prefix lengths, both ends included.
//
// +structType=atomic
type BGPFilterPrefixLengthV4 struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=32
	Min *int32 `json:"min,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=32
	Max *int32 `json:"max,omitempty"`
}

// BGPFilterRuleV6 matches IPv6 routes and says what becomes of them. All that it says must
// match.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && size(self.cidr) > 0 || !(has(self.matchOperator) && size(self.matchOperator) > 0)",message="matchOperator is set without cidr; add the cidr"
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && size(self.cidr) > 0) || has(self.matchOperator) && size(self.matchOperator) > 0",message="cidr is set without matchOperator; must be one of Equal, NotEqual, In, NotIn"
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && size(self.cidr) > 0 || !has(self.prefixLength)",message="prefixLength is set without cidr; add the cidr"
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && isCIDR(self.cidr)) || cidr(self.cidr).ip().family() == 6",message="cidr must be an IPv6 network"
type BGPFilterRuleV6 struct {
	// CIDR that the route's prefix is compared with, by MatchOperator.
	//
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=43
	CIDR string `json:"cidr,omitempty"`
	// PrefixLength of the route, within CIDR.
	PrefixLength *BGPFilterPrefixLengthV6 `json:"prefixLength,omitempty"`
	// Source RemotePeers: the route came over BGP.
	Source BGPFilterMatchSource `json:"source,omitempty"`
	// Interface that the route points to; a final "*" stands for any ending.
	//
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface,omitempty"`
	// MatchOperator says how the route's prefix is compared with CIDR.
	MatchOperator BGPFilterMatchOperator `json:"matchOperator,omitempty"`
	// PeerType is the kind of the session.
	PeerType BGPFilterPeerType `json:"peerType,omitempty"`
	// Communities that the route must carry.
	Communities *BGPFilterCommunityMatch `json:"communities,omitempty"`
	// ASPathPrefix is how the route's AS path must begin. Unsigned although the schema
	// says int32: AS numbers reach 4294967295 (RFC 6793).
	//
	// +kubebuilder:validation:items:Format=int64
	// +kubebuilder:validation:items:Minimum=0
	// +kubebuilder:validation:items:Maximum=4294967295
	// +listType=atomic
	ASPathPrefix []uint32 `json:"asPathPrefix,omitempty"`
	// Priority is the kernel metric that the route must have.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	Priority *int            `json:"priority,omitempty"`
	Action   BGPFilterAction `json:"action"`
	// Operations on the route, in order.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +listType=atomic
	Operations []BGPFilterOperation `json:"operations,omitempty"`
}

// BGPFilterPrefixLengthV6 is a range of prefix lengths, both ends included.
//
// +structType=atomic
type BGPFilterPrefixLengthV6 struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	Min *int32 `json:"min,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	Max *int32 `json:"max,omitempty"`
}
