package v3

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPConfiguration is the BGP configuration of the cluster (name "default") or of one
// node (name "node.<node>").
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={bgpconfig,bgpconfigs}
type BGPConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPConfigurationSpec `json:"spec,omitempty"`
}

// BGPConfigurationList is a list of BGPConfigurations.
//
// +kubebuilder:object:root=true
type BGPConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPConfiguration `json:"items"`
}

// BindMode says which addresses BGP listens on.
//
// +kubebuilder:validation:Enum=None;NodeIP
type BindMode string

// The values of .spec.bindMode.
const (
	BindModeNone   BindMode = "None"
	BindModeNodeIP BindMode = "NodeIP"
)

// ProgramClusterRoutes says which of the cluster's routes BGP programs.
//
// +kubebuilder:validation:Enum=Enabled;Disabled;EnabledIPIPOnly;EnabledNoEncapOnly
type ProgramClusterRoutes string

// The values of .spec.programClusterRoutes.
const (
	ProgramClusterRoutesEnabled            ProgramClusterRoutes = "Enabled"
	ProgramClusterRoutesDisabled           ProgramClusterRoutes = "Disabled"
	ProgramClusterRoutesEnabledIPIPOnly    ProgramClusterRoutes = "EnabledIPIPOnly"
	ProgramClusterRoutesEnabledNoEncapOnly ProgramClusterRoutes = "EnabledNoEncapOnly"
)

// ServiceLoadBalancerAggregation says whether LoadBalancer addresses are advertised as
// their range or one by one.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type ServiceLoadBalancerAggregation string

// The values of .spec.serviceLoadBalancerAggregation.
const (
	ServiceLoadBalancerAggregationEnabled  ServiceLoadBalancerAggregation = "Enabled"
	ServiceLoadBalancerAggregationDisabled ServiceLoadBalancerAggregation = "Disabled"
)

// BGPConfigurationSpec is what a BGPConfiguration wants.
type BGPConfigurationSpec struct {
	// LogSeverityScreen is the log level of the BGP daemon.
	//
	// +kubebuilder:default=Info
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityScreen string `json:"logSeverityScreen,omitempty"`
	// NodeToNodeMeshEnabled: all nodes peer with each other; default true.
	NodeToNodeMeshEnabled *bool `json:"nodeToNodeMeshEnabled,omitempty"`
	// ASNumber of nodes that have none of their own; default 64512. Unsigned although
	// the schema says int32: AS numbers reach 4294967295 (RFC 6793).
	ASNumber *uint32 `json:"asNumber,omitempty"`
	// ServiceLoadBalancerIPs are the ranges of LoadBalancer addresses to advertise.
	//
	// +listType=atomic
	ServiceLoadBalancerIPs []ServiceLoadBalancerIPBlock `json:"serviceLoadBalancerIPs,omitempty"`
	// ServiceExternalIPs are the ranges of external addresses to advertise.
	//
	// +listType=atomic
	ServiceExternalIPs []ServiceExternalIPBlock `json:"serviceExternalIPs,omitempty"`
	// ServiceClusterIPs are the ranges of cluster addresses to advertise.
	//
	// +listType=atomic
	ServiceClusterIPs []ServiceClusterIPBlock `json:"serviceClusterIPs,omitempty"`
	// ServiceLoadBalancerAggregation: advertise ranges instead of single addresses.
	//
	// +kubebuilder:default=Enabled
	ServiceLoadBalancerAggregation ServiceLoadBalancerAggregation `json:"serviceLoadBalancerAggregation,omitempty"`
	// Communities names community values for use in PrefixAdvertisements.
	//
	// +kubebuilder:validation:MaxItems=500
	// +listType=atomic
	Communities []Community `json:"communities,omitempty"`
	// PrefixAdvertisements attaches communities to what is advertised in a range.
	//
	// +kubebuilder:validation:MaxItems=500
	// +listType=atomic
	PrefixAdvertisements []PrefixAdvertisement `json:"prefixAdvertisements,omitempty"`
	// ListenPort is the TCP port of BGP; default 179.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	ListenPort *int `json:"listenPort,omitempty"`
	// NodeMeshPassword is the TCP MD5 password of the node mesh.
	NodeMeshPassword *BGPPassword `json:"nodeMeshPassword,omitempty"`
	// NodeMeshMaxRestartTime is the graceful restart time of the node mesh.
	//
	// +kubebuilder:validation:Type=string
	NodeMeshMaxRestartTime *metav1.Duration `json:"nodeMeshMaxRestartTime,omitempty"`
	// BindMode NodeIP: listen on the node's addresses only.
	BindMode *BindMode `json:"bindMode,omitempty"`
	// IgnoredInterfaces are left out when direct routes are read.
	//
	// +listType=set
	IgnoredInterfaces []string `json:"ignoredInterfaces,omitempty"`
	// LocalWorkloadPeeringIPV4 is the address that local workloads peer with.
	LocalWorkloadPeeringIPV4 string `json:"localWorkloadPeeringIPV4,omitempty"`
	// LocalWorkloadPeeringIPV6 is the address that local workloads peer with.
	LocalWorkloadPeeringIPV6 string `json:"localWorkloadPeeringIPV6,omitempty"`
	// ProgramClusterRoutes says which of the cluster's routes BGP programs.
	ProgramClusterRoutes *ProgramClusterRoutes `json:"programClusterRoutes,omitempty"`
	// IPv4NormalRoutePriority is the kernel metric of learned IPv4 routes; default 1024.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv4NormalRoutePriority *int `json:"ipv4NormalRoutePriority,omitempty"`
	// IPv6NormalRoutePriority is the kernel metric of learned IPv6 routes; default 1024.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv6NormalRoutePriority *int `json:"ipv6NormalRoutePriority,omitempty"`
}

// ServiceLoadBalancerIPBlock is a range of LoadBalancer addresses.
//
// +structType=atomic
type ServiceLoadBalancerIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr,omitempty"`
}

// ServiceExternalIPBlock is a range of external addresses.
//
// +structType=atomic
type ServiceExternalIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr,omitempty"`
}

// ServiceClusterIPBlock is a range of cluster addresses.
//
// +structType=atomic
type ServiceClusterIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr,omitempty"`
}

// Community gives a community value a name.
//
// +structType=atomic
type Community struct {
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Value is "aa:nn" (RFC 1997) or "aa:nn:mm" (RFC 8092).
	//
	// +kubebuilder:validation:MaxLength=40
	// +kubebuilder:validation:Pattern=`^(\d+):(\d+)$|^(\d+):(\d+):(\d+)$`
	Value string `json:"value,omitempty"`
}

// PrefixAdvertisement attaches communities, by name or value, to a range.
//
// +structType=atomic
type PrefixAdvertisement struct {
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr,omitempty"`
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	Communities []string `json:"communities,omitempty"`
}

// BGPPassword says where the password of a session is.
type BGPPassword struct {
	// SecretKeyRef selects a key of a Secret in the namespace of the agent.
	SecretKeyRef *corev1.SecretKeySelector `json:"secretKeyRef,omitempty"`
}
