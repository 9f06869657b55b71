package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CalicoNodeStatus asks a node how it is; the node answers in the status.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Classes",type=string,JSONPath=`.spec.classes`
type CalicoNodeStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   CalicoNodeStatusSpec    `json:"spec,omitempty"`
	Status *CalicoNodeStatusStatus `json:"status,omitempty"`
}

// CalicoNodeStatusList is a list of CalicoNodeStatuses.
//
// +kubebuilder:object:root=true
type CalicoNodeStatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CalicoNodeStatus `json:"items"`
}

// NodeStatusClass is a part of a node's status.
//
// +kubebuilder:validation:Enum=Agent;BGP;Routes
type NodeStatusClass string

// The values of .spec.classes.
const (
	NodeStatusClassAgent  NodeStatusClass = "Agent"
	NodeStatusClassBGP    NodeStatusClass = "BGP"
	NodeStatusClassRoutes NodeStatusClass = "Routes"
)

// CalicoNodeStatusSpec is what a CalicoNodeStatus asks.
type CalicoNodeStatusSpec struct {
	// Node that is asked.
	Node string `json:"node,omitempty"`
	// Classes of status that are wanted.
	//
	// +listType=set
	Classes []NodeStatusClass `json:"classes,omitempty"`
	// UpdatePeriodSeconds is how often the node answers; 0: never.
	UpdatePeriodSeconds *uint32 `json:"updatePeriodSeconds,omitempty"`
}

// CalicoNodeStatusStatus is what the node answered.
type CalicoNodeStatusStatus struct {
	// LastUpdated is when the node answered.
	//
	// +nullable
	LastUpdated metav1.Time           `json:"lastUpdated,omitempty"`
	Agent       CalicoNodeAgentStatus `json:"agent,omitempty"`
	BGP         CalicoNodeBGPStatus   `json:"bgp,omitempty"`
	Routes      CalicoNodeRouteStatus `json:"routes,omitempty"`
}

// CalicoNodeAgentStatus is the state of the BGP daemons.
type CalicoNodeAgentStatus struct {
	BIRDV4 BGPDaemonStatus `json:"birdV4,omitempty"`
	BIRDV6 BGPDaemonStatus `json:"birdV6,omitempty"`
}

// BGPDaemonStatus is the state of a BGP daemon.
type BGPDaemonStatus struct {
	// +kubebuilder:validation:Enum=Ready;NotReady
	State                   string `json:"state,omitempty"`
	Version                 string `json:"version,omitempty"`
	LastBootTime            string `json:"lastBootTime,omitempty"`
	LastReconfigurationTime string `json:"lastReconfigurationTime,omitempty"`
	RouterID                string `json:"routerID,omitempty"`
}

// CalicoNodeBGPStatus is the state of the node's sessions.
type CalicoNodeBGPStatus struct {
	NumberEstablishedV4    int `json:"numberEstablishedV4"`
	NumberNotEstablishedV4 int `json:"numberNotEstablishedV4"`
	NumberEstablishedV6    int `json:"numberEstablishedV6"`
	NumberNotEstablishedV6 int `json:"numberNotEstablishedV6"`
	// +listType=atomic
	PeersV4 []CalicoNodePeer `json:"peersV4,omitempty"`
	// +listType=atomic
	PeersV6 []CalicoNodePeer `json:"peersV6,omitempty"`
}

// CalicoNodePeer is the state of one session.
type CalicoNodePeer struct {
	PeerIP string `json:"peerIP,omitempty"`
	// +kubebuilder:validation:Enum=NodeMesh;NodePeer;GlobalPeer
	Type string `json:"type,omitempty"`
	// +kubebuilder:validation:Enum=Idle;Connect;Active;OpenSent;OpenConfirm;Established;Close
	State string `json:"state,omitempty"`
	// Since is when the session came into that state.
	Since string `json:"since,omitempty"`
}

// CalicoNodeRouteStatus are the node's routes.
type CalicoNodeRouteStatus struct {
	// +listType=atomic
	RoutesV4 []CalicoNodeRoute `json:"routesV4,omitempty"`
	// +listType=atomic
	RoutesV6 []CalicoNodeRoute `json:"routesV6,omitempty"`
}

// CalicoNodeRoute is one route.
type CalicoNodeRoute struct {
	// +kubebuilder:validation:Enum=FIB;RIB
	Type        string `json:"type,omitempty"`
	Destination string `json:"destination,omitempty"`
	Gateway     string `json:"gateway,omitempty"`
	Interface   string `json:"interface,omitempty"`
	// LearnedFrom is where the route came from.
	LearnedFrom CalicoNodeRouteLearnedFrom `json:"learnedFrom,omitempty"`
}

// CalicoNodeRouteLearnedFrom is where a route came from.
type CalicoNodeRouteLearnedFrom struct {
	// +kubebuilder:validation:Enum=Kernel;Static;Direct;NodeMesh;BGPPeer
	SourceType string `json:"sourceType,omitempty"`
	PeerIP     string `json:"peerIP,omitempty"`
}
