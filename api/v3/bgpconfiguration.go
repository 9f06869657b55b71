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
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default' || self.metadata.name.startsWith('node.') && size(self.metadata.name) > 5",message="metadata.name must be default for the cluster, or node. and the name of a node"
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.startsWith('node.') || !has(self.spec) || !has(self.spec.asNumber)",message="spec.asNumber can be set in default only; a node's own AS number is its annotation projectcalico.org/ASNumber"
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.startsWith('node.') || !has(self.spec) || !has(self.spec.nodeToNodeMeshEnabled)",message="spec.nodeToNodeMeshEnabled can be set in default only"
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
//
// +kubebuilder:validation:XValidation:rule="!has(self.nodeMeshPassword) || !has(self.nodeToNodeMeshEnabled) || self.nodeToNodeMeshEnabled",message="nodeMeshPassword is set while nodeToNodeMeshEnabled is false; remove one of them"
// +kubebuilder:validation:XValidation:rule="!has(self.nodeMeshMaxRestartTime) || !has(self.nodeToNodeMeshEnabled) || self.nodeToNodeMeshEnabled",message="nodeMeshMaxRestartTime is set while nodeToNodeMeshEnabled is false; remove one of them"
// +kubebuilder:validation:XValidation:rule="!has(self.communities) || self.communities.all(c, has(c.name) && size(c.name) > 0)",message="communities: each needs a name"
// +kubebuilder:validation:XValidation:rule="!has(self.communities) || self.communities.all(c, has(c.value))",message="communities: each needs a value"
// +kubebuilder:validation:XValidation:rule="!has(self.localWorkloadPeeringIPV4) || size(self.localWorkloadPeeringIPV4) == 0 || isIP(self.localWorkloadPeeringIPV4) && ip(self.localWorkloadPeeringIPV4).family() == 4",message="localWorkloadPeeringIPV4 must be an IPv4 address"
// +kubebuilder:validation:XValidation:rule="!has(self.localWorkloadPeeringIPV6) || size(self.localWorkloadPeeringIPV6) == 0 || isIP(self.localWorkloadPeeringIPV6) && ip(self.localWorkloadPeeringIPV6).family() == 6",message="localWorkloadPeeringIPV6 must be an IPv6 address"
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
	//
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	ASNumber *uint32 `json:"asNumber,omitempty"`
	// ServiceLoadBalancerIPs are the ranges of LoadBalancer addresses to advertise.
	//
	// +kubebuilder:validation:MaxItems=10000
	// +listType=atomic
	ServiceLoadBalancerIPs []ServiceLoadBalancerIPBlock `json:"serviceLoadBalancerIPs,omitempty"`
	// ServiceExternalIPs are the ranges of external addresses to advertise.
	//
	// +kubebuilder:validation:MaxItems=10000
	// +listType=atomic
	ServiceExternalIPs []ServiceExternalIPBlock `json:"serviceExternalIPs,omitempty"`
	// ServiceClusterIPs are the ranges of cluster addresses to advertise.
	//
	// +kubebuilder:validation:MaxItems=10000
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
	// NodeMeshMaxRestartTime is the graceful restart time of the node mesh: whole seconds, 1
	// to 4095.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('4095s') && duration(self).getMilliseconds() in [0, duration(self).getSeconds() * 1000]",message="must be whole seconds from 1s to 4095s"
	NodeMeshMaxRestartTime *metav1.Duration `json:"nodeMeshMaxRestartTime,omitempty"`
	// BindMode NodeIP: listen on the node's addresses only.
	BindMode *BindMode `json:"bindMode,omitempty"`
	// IgnoredInterfaces are left out when direct routes are read.
	//
	// +listType=set
	IgnoredInterfaces []string `json:"ignoredInterfaces,omitempty"`
	// LocalWorkloadPeeringIPV4 is the address that local workloads peer with.
	//
	// +kubebuilder:validation:MaxLength=45
	LocalWorkloadPeeringIPV4 string `json:"localWorkloadPeeringIPV4,omitempty"`
	// LocalWorkloadPeeringIPV6 is the address that local workloads peer with.
	//
	// +kubebuilder:validation:MaxLength=45
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
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && (!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked())",message="cidr is missing or has bits set outside its mask"
type ServiceLoadBalancerIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=49
	CIDR string `json:"cidr,omitempty"`
}

// ServiceExternalIPBlock is a range of external addresses.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && (!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked())",message="cidr is missing or has bits set outside its mask"
type ServiceExternalIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=49
	CIDR string `json:"cidr,omitempty"`
}

// ServiceClusterIPBlock is a range of cluster addresses.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && (!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked())",message="cidr is missing or has bits set outside its mask"
type ServiceClusterIPBlock struct {
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=49
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
	// +kubebuilder:validation:XValidation:rule="self.split(':').all(p, size(p) <= 10 && int(p) <= (size(self.split(':')) == 2 ? 65535 : 4294967295))",message="must be aa:nn with numbers up to 65535, or aa:nn:mm with numbers up to 4294967295"
	Value string `json:"value,omitempty"`
}

// PrefixAdvertisement attaches communities, by name or value, to a range.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.cidr) && (!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked())",message="cidr is missing or has bits set outside its mask"
type PrefixAdvertisement struct {
	// +kubebuilder:validation:Format=cidr
	// +kubebuilder:validation:MaxLength=49
	CIDR string `json:"cidr,omitempty"`
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	Communities []string `json:"communities,omitempty"`
}

// BGPPassword says where the password of a session is.
//
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) && has(self.secretKeyRef.name) && size(self.secretKeyRef.name) > 0 && size(self.secretKeyRef.key) > 0",message="secretKeyRef must name the Secret and the key that hold the password"
type BGPPassword struct {
	// SecretKeyRef selects a key of a Secret in the namespace of the agent.
	SecretKeyRef *corev1.SecretKeySelector `json:"secretKeyRef,omitempty"`
}
