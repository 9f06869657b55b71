package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPPeer is a BGP neighbor of some or all nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="Node Selector",type=string,JSONPath=`.spec.nodeSelector`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Local ASN",type=string,JSONPath=`.spec.localASNumber`
// +kubebuilder:printcolumn:name="Peer Selector",type=string,JSONPath=`.spec.peerSelector`
// +kubebuilder:printcolumn:name="Peer IP",type=string,JSONPath=`.spec.peerIP`
// +kubebuilder:printcolumn:name="Peer ASN",type=string,JSONPath=`.spec.asNumber`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPPeerSpec `json:"spec,omitempty"`
}

// BGPPeerList is a list of BGPPeers.
//
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPPeer `json:"items"`
}

// SourceAddress says which local address a session starts from.
//
// +kubebuilder:validation:Enum=UseNodeIP;None
type SourceAddress string

// The values of .spec.sourceAddress.
const (
	SourceAddressUseNodeIP SourceAddress = "UseNodeIP"
	SourceAddressNone      SourceAddress = "None"
)

// NextHopMode says what next hop is sent to the peer.
//
// +kubebuilder:validation:Enum=Auto;Self;Keep
type NextHopMode string

// The values of .spec.nextHopMode.
const (
	NextHopModeAuto NextHopMode = "Auto"
	NextHopModeSelf NextHopMode = "Self"
	NextHopModeKeep NextHopMode = "Keep"
)

// ReversePeering says whether selected peers peer back.
//
// +kubebuilder:validation:Enum=Auto;Manual
type ReversePeering string

// The values of .spec.reversePeering.
const (
	ReversePeeringAuto   ReversePeering = "Auto"
	ReversePeeringManual ReversePeering = "Manual"
)

// BGPPeerSpec is what a BGPPeer wants.
type BGPPeerSpec struct {
	// Node that peers; excludes NodeSelector. Both empty mean all nodes.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`
	// NodeSelector selects the nodes that peer.
	//
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// PeerIP is the address of the peer, "1.2.3.4", "1.2.3.4:179", "fd00::1" or
	// "[fd00::1]:179"; excludes PeerSelector.
	//
	// +kubebuilder:validation:MaxLength=64
	PeerIP string `json:"peerIP,omitempty"`
	// ASNumber of the peer; required with PeerIP. Unsigned although the schema says
	// int32: AS numbers reach 4294967295 (RFC 6793).
	ASNumber uint32 `json:"asNumber,omitempty"`
	// LocalASNumber to use in this session; default the node's.
	LocalASNumber *uint32 `json:"localASNumber,omitempty"`
	// PeerSelector selects the nodes to peer with.
	//
	// +kubebuilder:validation:MaxLength=1024
	PeerSelector string `json:"peerSelector,omitempty"`
	// KeepOriginalNextHop: send routes with the next hop they came with.
	KeepOriginalNextHop bool `json:"keepOriginalNextHop,omitempty"`
	// NextHopMode says what next hop is sent; excludes KeepOriginalNextHop.
	NextHopMode *NextHopMode `json:"nextHopMode,omitempty"`
	// Password of the session (TCP MD5, RFC 2385).
	Password *BGPPassword `json:"password,omitempty"`
	// SourceAddress the session starts from; default UseNodeIP.
	SourceAddress SourceAddress `json:"sourceAddress,omitempty"`
	// MaxRestartTime is the graceful restart time (RFC 4724).
	//
	// +kubebuilder:validation:Type=string
	MaxRestartTime *metav1.Duration `json:"maxRestartTime,omitempty"`
	// KeepaliveTime between two KEEPALIVE messages (RFC 4271).
	//
	// +kubebuilder:validation:Type=string
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`
	// NumAllowedLocalASNumbers is how often the local AS number may stand in the AS
	// path of a route that is accepted.
	NumAllowedLocalASNumbers *int32 `json:"numAllowedLocalASNumbers,omitempty"`
	// TTLSecurity is the number of hops to the peer (RFC 5082).
	TTLSecurity *int `json:"ttlSecurity,omitempty"`
	// ReachableBy is the gateway to the peer.
	//
	// +kubebuilder:validation:MaxLength=64
	ReachableBy string `json:"reachableBy,omitempty"`
	// Filters are the BGPFilters of the session, in order.
	//
	// +listType=atomic
	Filters []string `json:"filters,omitempty"`
	// LocalWorkloadSelector selects local workloads to peer with.
	//
	// +kubebuilder:validation:MaxLength=1024
	LocalWorkloadSelector string `json:"localWorkloadSelector,omitempty"`
	// ReversePeering Auto: nodes that PeerSelector selects peer back.
	ReversePeering *ReversePeering `json:"reversePeering,omitempty"`
}
