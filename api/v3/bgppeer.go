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

	// +required
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
//
// +kubebuilder:validation:XValidation:rule="!(has(self.node) && size(self.node) > 0) || !(has(self.nodeSelector) && size(self.nodeSelector) > 0)",message="node and nodeSelector are both set; remove one of them"
// +kubebuilder:validation:XValidation:rule="(has(self.peerIP) && size(self.peerIP) > 0) || (has(self.peerSelector) && size(self.peerSelector) > 0) || (has(self.localWorkloadSelector) && size(self.localWorkloadSelector) > 0)",message="peerIP is missing; must be the address of the peer, or peerSelector must select nodes"
// +kubebuilder:validation:XValidation:rule="!((has(self.peerIP) && size(self.peerIP) > 0) && (has(self.peerSelector) && size(self.peerSelector) > 0) || (has(self.peerIP) && size(self.peerIP) > 0) && (has(self.localWorkloadSelector) && size(self.localWorkloadSelector) > 0) || (has(self.peerSelector) && size(self.peerSelector) > 0) && (has(self.localWorkloadSelector) && size(self.localWorkloadSelector) > 0))",message="only one of peerIP, peerSelector and localWorkloadSelector can be set"
// +kubebuilder:validation:XValidation:rule="!((has(self.peerIP) && size(self.peerIP) > 0) || (has(self.localWorkloadSelector) && size(self.localWorkloadSelector) > 0)) || has(self.asNumber) && self.asNumber != 0",message="asNumber is missing; must be the AS number of the peer, 1 to 4294967295"
// +kubebuilder:validation:XValidation:rule="!(has(self.peerSelector) && size(self.peerSelector) > 0) || !has(self.asNumber) || self.asNumber == 0",message="asNumber is set beside peerSelector; remove it, nodes have their own AS numbers"
// +kubebuilder:validation:XValidation:rule="!(has(self.peerIP) && size(self.peerIP) > 0) || isIP(self.peerIP.split('%')[0]) || self.peerIP.matches('^::(ffff|FFFF):[0-9.]+$') || (self.peerIP.matches('^[0-9.]+:[0-9]{1,5}$') && isIP(self.peerIP.split(':')[0]) && int(self.peerIP.split(':')[1]) >= 1 && int(self.peerIP.split(':')[1]) <= 65535 || self.peerIP.matches('^[[][0-9a-fA-F:.]+(%[^]]+)?[]]:[0-9]{1,5}$') && isIP(self.peerIP.split(']')[0].substring(1).split('%')[0]) && int(self.peerIP.split(']:')[1]) >= 1 && int(self.peerIP.split(']:')[1]) <= 65535)",message="peerIP must be an address and, if wanted, a port from 1 to 65535, as in 192.0.2.1, 192.0.2.1:179, 2001:db8::1 or [2001:db8::1]:179"
// +kubebuilder:validation:XValidation:rule="!(has(self.peerIP) && isIP(self.peerIP)) || !ip(self.peerIP).isUnspecified() && !(ip(self.peerIP).isLinkLocalUnicast() && ip(self.peerIP).family() == 6)",message="peerIP is no address of one peer: a link-local address must name its interface, as in fe80::1%eth0"
// +kubebuilder:validation:XValidation:rule="!(has(self.reachableBy) && size(self.reachableBy) > 0) || (has(self.peerIP) && size(self.peerIP) > 0)",message="reachableBy is set without peerIP; remove it"
// +kubebuilder:validation:XValidation:rule="!(has(self.reachableBy) && size(self.reachableBy) > 0) || isIP(self.reachableBy) && (!(has(self.peerIP) && size(self.peerIP) > 0) || (ip(self.reachableBy).family() == 6) == (self.peerIP.matches('^[[]|^[^.:]*:[^:]*:')))",message="reachableBy must be the address of the gateway to the peer, of the same family as peerIP"
// +kubebuilder:validation:XValidation:rule="!(has(self.keepOriginalNextHop) && self.keepOriginalNextHop && has(self.nextHopMode))",message="keepOriginalNextHop and nextHopMode are both set; remove keepOriginalNextHop"
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
	//
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	ASNumber uint32 `json:"asNumber,omitempty"`
	// LocalASNumber to use in this session; default the node's.
	//
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
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
	// MaxRestartTime is the graceful restart time (RFC 4724): whole seconds, 1 to 4095.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('4095s') && duration(self).getMilliseconds() in [0, duration(self).getSeconds() * 1000]",message="must be whole seconds from 1s to 4095s"
	MaxRestartTime *metav1.Duration `json:"maxRestartTime,omitempty"`
	// KeepaliveTime between two KEEPALIVE messages (RFC 4271): whole seconds, 1 to 21845.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('21845s') && duration(self).getMilliseconds() in [0, duration(self).getSeconds() * 1000]",message="must be whole seconds from 1s to 21845s"
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`
	// NumAllowedLocalASNumbers is how often the local AS number may stand in the AS
	// path of a route that is accepted.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	NumAllowedLocalASNumbers *int32 `json:"numAllowedLocalASNumbers,omitempty"`
	// TTLSecurity is the number of hops to the peer (RFC 5082).
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
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
