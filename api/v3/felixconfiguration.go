package v3

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// FelixConfiguration configures the dataplane of all nodes (name "default"), of one node
// (name "node.<node>") or of the nodes that its nodeSelector selects.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type FelixConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec FelixConfigurationSpec `json:"spec,omitempty"`
}

// FelixConfigurationList is a list of FelixConfigurations.
//
// +kubebuilder:object:root=true
type FelixConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []FelixConfiguration `json:"items"`
}

// DSCP is a differentiated services code point: a number up to 63 or a name such as EF.
//
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:Pattern=`^.*`
type DSCP struct {
	intstr.IntOrString `json:",inline"`
}

// RouteTableRange is a range of routing tables, both ends included.
type RouteTableRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// RouteTableIDRange is a range of routing tables, both ends included.
type RouteTableIDRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// ProtoPort is a port of a protocol, and of a network when one is given.
type ProtoPort struct {
	// Protocol is TCP, UDP or SCTP, in any case.
	Protocol string `json:"protocol,omitempty"`
	Port     uint16 `json:"port"`
	// Net is the network at the other end.
	Net string `json:"net,omitempty"`
}

// HealthTimeoutOverride is the timeout of one health report.
type HealthTimeoutOverride struct {
	Name string `json:"name"`
	// +kubebuilder:validation:Type=string
	Timeout metav1.Duration `json:"timeout"`
}

// BPFConntrackTimeout is a duration, or "Auto" for what the kernel's own conntrack uses.
//
// +kubebuilder:validation:Pattern=`^(([0-9]*(\.[0-9]*)?(ms|s|h|m|us)+)+|Auto)$`
type BPFConntrackTimeout string

// BPFConntrackTimeouts are the ages at which entries of the eBPF conntrack table end.
type BPFConntrackTimeouts struct {
	CreationGracePeriod *BPFConntrackTimeout `json:"creationGracePeriod,omitempty"`
	TCPSynSent          *BPFConntrackTimeout `json:"tcpSynSent,omitempty"`
	TCPEstablished      *BPFConntrackTimeout `json:"tcpEstablished,omitempty"`
	TCPFinsSeen         *BPFConntrackTimeout `json:"tcpFinsSeen,omitempty"`
	TCPResetSeen        *BPFConntrackTimeout `json:"tcpResetSeen,omitempty"`
	UDPTimeout          *BPFConntrackTimeout `json:"udpTimeout,omitempty"`
	GenericTimeout      *BPFConntrackTimeout `json:"genericTimeout,omitempty"`
	ICMPTimeout         *BPFConntrackTimeout `json:"icmpTimeout,omitempty"`
}

// FelixConfigurationSpec is what a FelixConfiguration wants. It has one field for each of
// the schema's, which makes it long. A field that is not set leaves what a wider object, or
// the default, says.
//
// +kubebuilder:validation:XValidation:rule="!has(self.routeTableRange) || !has(self.routeTableRanges)",message="routeTableRange and routeTableRanges are both set; remove routeTableRange"
type FelixConfigurationSpec struct {
	// NodeSelector selects the nodes that this object holds for.
	//
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// LogSeverityScreen is the level of the log on stdout.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityScreen string `json:"logSeverityScreen,omitempty"`
	// LogSeverityFile is the level of the log file.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityFile string `json:"logSeverityFile,omitempty"`
	// LogSeveritySys is the level of what goes to syslog.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeveritySys string `json:"logSeveritySys,omitempty"`
	// LogFilePath is the log file.
	LogFilePath string `json:"logFilePath,omitempty"`
	// LogPrefix is the prefix of packets that Log rules log; %n, %p, %k and %t stand for the
	// policy.
	//
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9%: /_-])*$`
	LogPrefix string `json:"logPrefix,omitempty"`
	// LogDebugFilenameRegex selects the source files whose debug lines are logged.
	LogDebugFilenameRegex string `json:"logDebugFilenameRegex,omitempty"`
	// LogActionRateLimit limits what Log rules log, as in "10/second".
	//
	// +kubebuilder:validation:Pattern=`^[1-9]\d{0,3}/(?:second|minute|hour|day)$`
	LogActionRateLimit string `json:"logActionRateLimit,omitempty"`
	// LogActionRateLimitBurst is how many packets Log rules log before the limit holds.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9999
	LogActionRateLimitBurst *int `json:"logActionRateLimitBurst,omitempty"`
	// DataplaneDriver is the program that serves as an external dataplane.
	DataplaneDriver string `json:"dataplaneDriver,omitempty"`
	// UseInternalDataplaneDriver uses the built-in dataplane.
	UseInternalDataplaneDriver *bool `json:"useInternalDataplaneDriver,omitempty"`
	// DataplaneWatchdogTimeout is how long the dataplane may be silent before it counts as
	// dead.
	//
	// +kubebuilder:validation:Type=string
	DataplaneWatchdogTimeout *metav1.Duration `json:"dataplaneWatchdogTimeout,omitempty"`
	// FeatureDetectOverride overrides what was detected of the kernel:
	// "name=true,name=false".
	//
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9-_]+=(true|false|),)*([a-zA-Z0-9-_]+=(true|false|))?$`
	FeatureDetectOverride string `json:"featureDetectOverride,omitempty"`
	// FeatureGates switches experiments: "name=value,name=value".
	//
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9-_]+=([^=]+),)*([a-zA-Z0-9-_]+=([^=]+))?$`
	FeatureGates string `json:"featureGates,omitempty"`
	// PolicySyncPathPrefix is the folder of the policy sync socket.
	PolicySyncPathPrefix string `json:"policySyncPathPrefix,omitempty"`
	// OpenstackRegion is the OpenStack region of this cluster.
	OpenstackRegion string `json:"openstackRegion,omitempty"`
	// ExternalNodesList are addresses outside the cluster that may send encapsulated
	// packets.
	ExternalNodesList *[]string `json:"externalNodesList,omitempty"`
	// RequireMTUFile makes a missing MTU file an error.
	RequireMTUFile *bool `json:"requireMTUFile,omitempty"`
	// MTUIfacePattern is a regular expression of the interfaces whose MTU counts.
	MTUIfacePattern string `json:"mtuIfacePattern,omitempty"`
	// MetadataAddr is the address of the cloud's metadata service.
	MetadataAddr string `json:"metadataAddr,omitempty"`
	// MetadataPort is the port of the cloud's metadata service.
	MetadataPort *int `json:"metadataPort,omitempty"`
	// IPv6Support programs IPv6.
	IPv6Support *bool `json:"ipv6Support,omitempty"`
	// InterfacePrefix are the prefixes of workloads' interfaces, separated by commas.
	InterfacePrefix string `json:"interfacePrefix,omitempty"`
	// InterfaceExclude are interfaces that are no host interfaces, separated by commas.
	InterfaceExclude string `json:"interfaceExclude,omitempty"`
	// InterfaceRefreshInterval is how often interfaces are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	InterfaceRefreshInterval *metav1.Duration `json:"interfaceRefreshInterval,omitempty"`
	// NetlinkTimeout is how long a netlink request may take.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	NetlinkTimeout *metav1.Duration `json:"netlinkTimeout,omitempty"`
	// WindowsManageFirewallRules manages the firewall of Windows nodes.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	WindowsManageFirewallRules *string `json:"windowsManageFirewallRules,omitempty"`
	// FloatingIPs serves addresses that are mapped to pods.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	FloatingIPs *string `json:"floatingIPs,omitempty"`
	// SidecarAccelerationEnabled short-cuts traffic to sidecars.
	SidecarAccelerationEnabled *bool `json:"sidecarAccelerationEnabled,omitempty"`
	// IstioAmbientMode works beside Istio's ambient mode.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	IstioAmbientMode *string `json:"istioAmbientMode,omitempty"`
	// IstioDSCPMark is the DSCP that marks traffic of Istio.
	IstioDSCPMark *DSCP `json:"istioDSCPMark,omitempty"`
	// IPForwarding switches on IP forwarding on the host.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	IPForwarding *string `json:"ipForwarding,omitempty"`

	// RouteRefreshInterval is how often routes are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	RouteRefreshInterval *metav1.Duration `json:"routeRefreshInterval,omitempty"`
	// RouteSyncDisabled leaves routes alone.
	RouteSyncDisabled *bool `json:"routeSyncDisabled,omitempty"`
	// RouteSource is what routes are made of: WorkloadIPs or CalicoIPAM.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(WorkloadIPs|CalicoIPAM)?$`
	RouteSource string `json:"routeSource,omitempty"`
	// RouteTableRange is the range of routing tables to use; deprecated, use
	// routeTableRanges.
	RouteTableRange *RouteTableRange `json:"routeTableRange,omitempty"`
	// RouteTableRanges are the ranges of routing tables to use.
	RouteTableRanges *[]RouteTableIDRange `json:"routeTableRanges,omitempty"`
	// RemoveExternalRoutes removes routes to workload interfaces that others added.
	RemoveExternalRoutes *bool `json:"removeExternalRoutes,omitempty"`
	// DeviceRouteProtocol is the protocol number of routes (rtnetlink rtm_protocol).
	DeviceRouteProtocol *int `json:"deviceRouteProtocol,omitempty"`
	// DeviceRouteSourceAddress is the source address of IPv4 routes to workloads.
	//
	// +kubebuilder:validation:MaxLength=45
	DeviceRouteSourceAddress string `json:"deviceRouteSourceAddress,omitempty"`
	// DeviceRouteSourceAddressIPv6 is the source address of IPv6 routes to workloads.
	//
	// +kubebuilder:validation:MaxLength=45
	DeviceRouteSourceAddressIPv6 string `json:"deviceRouteSourceAddressIPv6,omitempty"`
	// IPv4NormalRoutePriority is the metric of IPv4 routes.
	IPv4NormalRoutePriority *int `json:"ipv4NormalRoutePriority,omitempty"`
	// IPv4ElevatedRoutePriority is the metric of IPv4 routes that win over the normal ones.
	IPv4ElevatedRoutePriority *int `json:"ipv4ElevatedRoutePriority,omitempty"`
	// IPv6NormalRoutePriority is the metric of IPv6 routes.
	IPv6NormalRoutePriority *int `json:"ipv6NormalRoutePriority,omitempty"`
	// IPv6ElevatedRoutePriority is the metric of IPv6 routes that win over the normal ones.
	IPv6ElevatedRoutePriority *int `json:"ipv6ElevatedRoutePriority,omitempty"`
	// LiveMigrationRouteConvergenceTime is how long routes of a virtual machine that moves
	// may take to settle.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	LiveMigrationRouteConvergenceTime *metav1.Duration `json:"liveMigrationRouteConvergenceTime,omitempty"`
	// ProgramClusterRoutes says which of the cluster's routes are programmed here and not by
	// BGP.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled;EnabledIPIPOnly;EnabledNoEncapOnly
	ProgramClusterRoutes *string `json:"programClusterRoutes,omitempty"`
	// LocalSubnetL2Reachability answers ARP and neighbour discovery for pods and load
	// balancers on the local subnet.
	//
	// +kubebuilder:validation:Enum=Disabled;PodsAndLoadBalancers
	LocalSubnetL2Reachability *string `json:"localSubnetL2Reachability,omitempty"`
	// LocalSubnetL2ReachabilityRefreshInterval is how often those answers are set up again.
	//
	// +kubebuilder:validation:Type=string
	LocalSubnetL2ReachabilityRefreshInterval *metav1.Duration `json:"localSubnetL2ReachabilityRefreshInterval,omitempty"`
	// WorkloadSourceSpoofing lets workloads ask to send from other addresses.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Any)?$`
	WorkloadSourceSpoofing string `json:"workloadSourceSpoofing,omitempty"`

	// IptablesBackend is the iptables variant.
	//
	// +kubebuilder:validation:Enum=Legacy;NFT;Auto
	// +kubebuilder:validation:Pattern=`^(?i)(Auto|Legacy|NFT)?$`
	IptablesBackend *string `json:"iptablesBackend,omitempty"`
	// IptablesRefreshInterval is how often the rules are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesRefreshInterval *metav1.Duration `json:"iptablesRefreshInterval,omitempty"`
	// IptablesPostWriteCheckInterval is how soon after a write the rules are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesPostWriteCheckInterval *metav1.Duration `json:"iptablesPostWriteCheckInterval,omitempty"`
	// IptablesLockProbeInterval is how often the lock of iptables is tried.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesLockProbeInterval *metav1.Duration `json:"iptablesLockProbeInterval,omitempty"`
	// IptablesMarkMask are the bits of packet marks to use.
	//
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	IptablesMarkMask *uint32 `json:"iptablesMarkMask,omitempty"`
	// IptablesFilterAllowAction is what happens to allowed packets in the filter table.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	IptablesFilterAllowAction string `json:"iptablesFilterAllowAction,omitempty"`
	// IptablesFilterDenyAction is what happens to denied packets in the filter table.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject)?$`
	IptablesFilterDenyAction string `json:"iptablesFilterDenyAction,omitempty"`
	// IptablesMangleAllowAction is what happens to allowed packets in the mangle table.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	IptablesMangleAllowAction string `json:"iptablesMangleAllowAction,omitempty"`
	// IptablesNATOutgoingInterfaceFilter is the interface that natOutgoing is limited to.
	IptablesNATOutgoingInterfaceFilter string `json:"iptablesNATOutgoingInterfaceFilter,omitempty"`
	// ChainInsertMode inserts or appends the hook rules.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Insert|Append)?$`
	ChainInsertMode string `json:"chainInsertMode,omitempty"`
	// DefaultEndpointToHostAction is what happens to packets from a workload to its own
	// host.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Accept|Return)?$`
	DefaultEndpointToHostAction string `json:"defaultEndpointToHostAction,omitempty"`
	// FailsafeInboundHostPorts are ports that host endpoints always accept.
	FailsafeInboundHostPorts *[]ProtoPort `json:"failsafeInboundHostPorts,omitempty"`
	// FailsafeOutboundHostPorts are ports that host endpoints may always call.
	FailsafeOutboundHostPorts *[]ProtoPort `json:"failsafeOutboundHostPorts,omitempty"`
	// DisableConntrackInvalidCheck lets packets pass that conntrack calls invalid.
	DisableConntrackInvalidCheck *bool `json:"disableConntrackInvalidCheck,omitempty"`
	// ServiceLoopPrevention is what happens to packets to service addresses that nothing
	// serves.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject|Disabled)?$`
	ServiceLoopPrevention string `json:"serviceLoopPrevention,omitempty"`
	// NATPortRange is the range of ports for natOutgoing.
	NATPortRange *Port `json:"natPortRange,omitempty"`
	// NATOutgoingAddress is the source address for natOutgoing.
	//
	// +kubebuilder:validation:MaxLength=45
	NATOutgoingAddress string `json:"natOutgoingAddress,omitempty"`
	// NATOutgoingExclusions are the destinations that are not translated.
	//
	// +kubebuilder:validation:Enum=IPPoolsOnly;IPPoolsAndHostIPs
	NATOutgoingExclusions *string `json:"natOutgoingExclusions,omitempty"`
	// KubeNodePortRanges are the node ports that policies before DNAT let pass.
	//
	// +kubebuilder:validation:MaxItems=7
	KubeNodePortRanges *[]Port `json:"kubeNodePortRanges,omitempty"`
	// IPSetsRefreshInterval is how often IP sets are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IPSetsRefreshInterval *metav1.Duration `json:"ipsetsRefreshInterval,omitempty"`
	// MaxIpsetSize is the largest number of members of an IP set.
	MaxIpsetSize *int `json:"maxIpsetSize,omitempty"`
	// AllowIPIPPacketsFromWorkloads lets workloads send IPIP packets.
	AllowIPIPPacketsFromWorkloads *bool `json:"allowIPIPPacketsFromWorkloads,omitempty"`
	// AllowVXLANPacketsFromWorkloads lets workloads send VXLAN packets.
	AllowVXLANPacketsFromWorkloads *bool `json:"allowVXLANPacketsFromWorkloads,omitempty"`
	// NftablesMode uses nftables.
	//
	// +kubebuilder:default=Auto
	// +kubebuilder:validation:Enum=Disabled;Enabled;Auto
	NftablesMode *string `json:"nftablesMode,omitempty"`
	// NftablesRefreshInterval is how often the rules of nftables are read again.
	//
	// +kubebuilder:validation:Type=string
	NftablesRefreshInterval *metav1.Duration `json:"nftablesRefreshInterval,omitempty"`
	// NftablesFilterAllowAction is what happens to allowed packets in the filter chains.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	NftablesFilterAllowAction string `json:"nftablesFilterAllowAction,omitempty"`
	// NftablesFilterDenyAction is what happens to denied packets in the filter chains.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject)?$`
	NftablesFilterDenyAction string `json:"nftablesFilterDenyAction,omitempty"`
	// NftablesMangleAllowAction is what happens to allowed packets in the mangle chains.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	NftablesMangleAllowAction string `json:"nftablesMangleAllowAction,omitempty"`
	// NftablesMarkMask are the bits of packet marks to use.
	//
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	NftablesMarkMask *uint32 `json:"nftablesMarkMask,omitempty"`
	// NftablesFlowTableOffload sends established flows through a flow table.
	//
	// +kubebuilder:default=Disabled
	// +kubebuilder:validation:Enum=All;Disabled
	NftablesFlowTableOffload *string `json:"nftablesFlowTableOffload,omitempty"`
	// NftablesFlowTableDataIfacePattern is a regular expression of the interfaces of the
	// flow table.
	NftablesFlowTableDataIfacePattern string `json:"nftablesFlowTableDataIfacePattern,omitempty"`
	// XDPEnabled drops early with XDP where policies allow it.
	XDPEnabled *bool `json:"xdpEnabled,omitempty"`
	// XDPRefreshInterval is how often XDP programs are read again.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	XDPRefreshInterval *metav1.Duration `json:"xdpRefreshInterval,omitempty"`
	// GenericXDPEnabled uses generic XDP where the driver has none.
	GenericXDPEnabled *bool `json:"genericXDPEnabled,omitempty"`

	// IPIPEnabled has an IPIP device; by default when a pool asks for it.
	IPIPEnabled *bool `json:"ipipEnabled,omitempty"`
	// IPIPMTU is the MTU of the IPIP device.
	IPIPMTU *int `json:"ipipMTU,omitempty"`
	// VXLANEnabled has a VXLAN device; by default when a pool asks for it.
	VXLANEnabled *bool `json:"vxlanEnabled,omitempty"`
	// VXLANMTU is the MTU of the VXLAN device for IPv4.
	VXLANMTU *int `json:"vxlanMTU,omitempty"`
	// VXLANMTUV6 is the MTU of the VXLAN device for IPv6.
	VXLANMTUV6 *int `json:"vxlanMTUV6,omitempty"`
	// VXLANPort is the UDP port of VXLAN.
	VXLANPort *int `json:"vxlanPort,omitempty"`
	// VXLANVNI is the network identifier of VXLAN.
	VXLANVNI *int `json:"vxlanVNI,omitempty"`
	// AWSSrcDstCheck switches the source check of EC2 instances.
	//
	// +kubebuilder:validation:Enum=DoNothing;Enable;Disable
	AWSSrcDstCheck *string `json:"awsSrcDstCheck,omitempty"`

	// WireguardEnabled encrypts IPv4 between nodes.
	WireguardEnabled *bool `json:"wireguardEnabled,omitempty"`
	// WireguardEnabledV6 encrypts IPv6 between nodes.
	WireguardEnabledV6 *bool `json:"wireguardEnabledV6,omitempty"`
	// WireguardListeningPort is the UDP port for IPv4.
	WireguardListeningPort *int `json:"wireguardListeningPort,omitempty"`
	// WireguardListeningPortV6 is the UDP port for IPv6.
	WireguardListeningPortV6 *int `json:"wireguardListeningPortV6,omitempty"`
	// WireguardRoutingRulePriority is the priority of the routing rule.
	WireguardRoutingRulePriority *int `json:"wireguardRoutingRulePriority,omitempty"`
	// WireguardInterfaceName is the device for IPv4.
	WireguardInterfaceName string `json:"wireguardInterfaceName,omitempty"`
	// WireguardInterfaceNameV6 is the device for IPv6.
	WireguardInterfaceNameV6 string `json:"wireguardInterfaceNameV6,omitempty"`
	// WireguardMTU is the MTU of the device for IPv4.
	WireguardMTU *int `json:"wireguardMTU,omitempty"`
	// WireguardMTUV6 is the MTU of the device for IPv6.
	WireguardMTUV6 *int `json:"wireguardMTUV6,omitempty"`
	// WireguardHostEncryptionEnabled encrypts what hosts send to each other too.
	WireguardHostEncryptionEnabled *bool `json:"wireguardHostEncryptionEnabled,omitempty"`
	// WireguardKeepAlive is how often an idle peer hears of this one.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	WireguardKeepAlive *metav1.Duration `json:"wireguardKeepAlive,omitempty"`
	// WireguardThreadingEnabled polls the devices in threads.
	WireguardThreadingEnabled *bool `json:"wireguardThreadingEnabled,omitempty"`

	// HealthEnabled serves health checks.
	HealthEnabled *bool `json:"healthEnabled,omitempty"`
	// HealthHost is the address of health checks.
	HealthHost string `json:"healthHost,omitempty"`
	// HealthPort is the port of health checks.
	HealthPort *int `json:"healthPort,omitempty"`
	// HealthTimeoutOverrides are timeouts of single health reports.
	//
	// +listType=atomic
	HealthTimeoutOverrides []HealthTimeoutOverride `json:"healthTimeoutOverrides,omitempty"`
	// EndpointReportingEnabled reports the state of endpoints.
	EndpointReportingEnabled *bool `json:"endpointReportingEnabled,omitempty"`
	// EndpointReportingDelay is how long such reports wait.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	EndpointReportingDelay *metav1.Duration `json:"endpointReportingDelay,omitempty"`
	// EndpointStatusPathPrefix is the folder of files that tell the state of endpoints.
	EndpointStatusPathPrefix string `json:"endpointStatusPathPrefix,omitempty"`
	// ReportingInterval is how often the agent reports its own state.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	ReportingInterval *metav1.Duration `json:"reportingInterval,omitempty"`
	// ReportingTTL is how long such a report is valid.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	ReportingTTL *metav1.Duration `json:"reportingTTL,omitempty"`
	// UsageReportingEnabled reports usage to the vendor.
	UsageReportingEnabled *bool `json:"usageReportingEnabled,omitempty"`
	// UsageReportingInitialDelay is how long the first such report waits.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	UsageReportingInitialDelay *metav1.Duration `json:"usageReportingInitialDelay,omitempty"`
	// UsageReportingInterval is how often usage is reported.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	UsageReportingInterval *metav1.Duration `json:"usageReportingInterval,omitempty"`
	// PrometheusMetricsEnabled serves metrics.
	PrometheusMetricsEnabled *bool `json:"prometheusMetricsEnabled,omitempty"`
	// PrometheusMetricsHost is the address of metrics.
	PrometheusMetricsHost string `json:"prometheusMetricsHost,omitempty"`
	// PrometheusMetricsPort is the port of metrics.
	PrometheusMetricsPort *int `json:"prometheusMetricsPort,omitempty"`
	// PrometheusMetricsCAFile is the authority of clients of metrics.
	PrometheusMetricsCAFile string `json:"prometheusMetricsCAFile,omitempty"`
	// PrometheusMetricsCertFile is the certificate of metrics.
	PrometheusMetricsCertFile string `json:"prometheusMetricsCertFile,omitempty"`
	// PrometheusMetricsKeyFile is the key of that certificate.
	PrometheusMetricsKeyFile string `json:"prometheusMetricsKeyFile,omitempty"`
	// PrometheusMetricsClientAuth is how clients of metrics prove who they are.
	//
	// +kubebuilder:validation:Enum=RequireAndVerifyClientCert;RequireAnyClientCert;VerifyClientCertIfGiven;NoClientCert
	PrometheusMetricsClientAuth *string `json:"prometheusMetricsClientAuth,omitempty"`
	// PrometheusGoMetricsEnabled adds metrics of the Go runtime.
	PrometheusGoMetricsEnabled *bool `json:"prometheusGoMetricsEnabled,omitempty"`
	// PrometheusProcessMetricsEnabled adds metrics of the process.
	PrometheusProcessMetricsEnabled *bool `json:"prometheusProcessMetricsEnabled,omitempty"`
	// PrometheusWireGuardMetricsEnabled adds metrics of WireGuard.
	PrometheusWireGuardMetricsEnabled *bool `json:"prometheusWireGuardMetricsEnabled,omitempty"`
	// FlowLogsFlushInterval is how often flows are reported.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	FlowLogsFlushInterval *metav1.Duration `json:"flowLogsFlushInterval,omitempty"`
	// FlowLogsCollectorDebugTrace logs the work of the flow collector.
	FlowLogsCollectorDebugTrace *bool `json:"flowLogsCollectorDebugTrace,omitempty"`
	// FlowLogsGoldmaneServer is where flows are reported to.
	FlowLogsGoldmaneServer string `json:"flowLogsGoldmaneServer,omitempty"`
	// FlowLogsLocalReporter serves flows on a socket of the node.
	//
	// +kubebuilder:validation:Enum=Disabled;Enabled
	FlowLogsLocalReporter *string `json:"flowLogsLocalReporter,omitempty"`
	// FlowLogsPolicyEvaluationMode evaluates policies for flows again while they last.
	//
	// +kubebuilder:validation:Enum=None;Continuous
	FlowLogsPolicyEvaluationMode *string `json:"flowLogsPolicyEvaluationMode,omitempty"`
	// DebugDisableLogDropping never drops log lines.
	DebugDisableLogDropping *bool `json:"debugDisableLogDropping,omitempty"`
	// DebugHost is the address of the profiler.
	DebugHost string `json:"debugHost,omitempty"`
	// DebugPort is the port of the profiler.
	DebugPort *int `json:"debugPort,omitempty"`
	// DebugMemoryProfilePath is where memory profiles go.
	DebugMemoryProfilePath string `json:"debugMemoryProfilePath,omitempty"`
	// DebugSimulateCalcGraphHangAfter simulates a hang, for tests.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateCalcGraphHangAfter *metav1.Duration `json:"debugSimulateCalcGraphHangAfter,omitempty"`
	// DebugSimulateDataplaneApplyDelay simulates a delay, for tests.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateDataplaneApplyDelay *metav1.Duration `json:"debugSimulateDataplaneApplyDelay,omitempty"`
	// DebugSimulateDataplaneHangAfter simulates a hang, for tests.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateDataplaneHangAfter *metav1.Duration `json:"debugSimulateDataplaneHangAfter,omitempty"`
	// GoGCThreshold is the threshold of the garbage collector, in percent.
	GoGCThreshold *int `json:"goGCThreshold,omitempty"`
	// GoMaxProcs is the number of threads that run Go code.
	GoMaxProcs *int `json:"goMaxProcs,omitempty"`
	// GoMemoryLimitMB is the memory limit of the Go runtime, in MiB.
	GoMemoryLimitMB *int `json:"goMemoryLimitMB,omitempty"`

	// BPFEnabled uses the eBPF dataplane.
	BPFEnabled *bool `json:"bpfEnabled,omitempty"`
	// BPFDisableUnprivileged forbids eBPF to unprivileged users.
	BPFDisableUnprivileged *bool `json:"bpfDisableUnprivileged,omitempty"`
	// BPFJITHardening sets the hardening of the JIT.
	//
	// +kubebuilder:validation:Enum=Auto;Strict
	BPFJITHardening *string `json:"bpfJITHardening,omitempty"`
	// BPFLogLevel is the level of the programs' log.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Off|Info|Debug)?$`
	BPFLogLevel string `json:"bpfLogLevel,omitempty"`
	// BPFLogFilters are filters of that log, by interface.
	BPFLogFilters *map[string]string `json:"bpfLogFilters,omitempty"`
	// BPFCTLBLogFilter is the filter of the connect-time load balancer's log.
	BPFCTLBLogFilter string `json:"bpfCTLBLogFilter,omitempty"`
	// BPFDataIfacePattern is a regular expression of the interfaces to the outside.
	BPFDataIfacePattern string `json:"bpfDataIfacePattern,omitempty"`
	// BPFL3IfacePattern is a regular expression of interfaces without link layer.
	BPFL3IfacePattern string `json:"bpfL3IfacePattern,omitempty"`
	// BPFAttachType is how programs are attached.
	//
	// +kubebuilder:validation:Enum=TC;TCX;Netkit
	BPFAttachType *string `json:"bpfAttachType,omitempty"`
	// BPFConnectTimeLoadBalancing resolves services when a socket connects.
	//
	// +kubebuilder:validation:Enum=TCP;Enabled;Disabled
	BPFConnectTimeLoadBalancing *string `json:"bpfConnectTimeLoadBalancing,omitempty"`
	// BPFConnectTimeLoadBalancingEnabled resolves services when a socket connects;
	// deprecated, use bpfConnectTimeLoadBalancing.
	BPFConnectTimeLoadBalancingEnabled *bool `json:"bpfConnectTimeLoadBalancingEnabled,omitempty"`
	// BPFConntrackLogLevel is the level of the conntrack log.
	//
	// +kubebuilder:validation:Enum=Off;Debug
	BPFConntrackLogLevel *string `json:"bpfConntrackLogLevel,omitempty"`
	// BPFConntrackMode is who removes old conntrack entries.
	//
	// +kubebuilder:validation:Enum=Auto;Userspace;BPFProgram
	BPFConntrackMode *string `json:"bpfConntrackMode,omitempty"`
	// BPFConntrackTimeouts are the ages at which conntrack entries end.
	BPFConntrackTimeouts *BPFConntrackTimeouts `json:"bpfConntrackTimeouts,omitempty"`
	// BPFDSROptoutCIDRs are clients that get no direct server return.
	BPFDSROptoutCIDRs *[]string `json:"bpfDSROptoutCIDRs,omitempty"`
	// BPFDisableGROForIfaces is a regular expression of interfaces without generic receive
	// offload.
	BPFDisableGROForIfaces string `json:"bpfDisableGROForIfaces,omitempty"`
	// BPFEnforceRPF is the reverse path filter.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Strict|Loose)?$`
	BPFEnforceRPF string `json:"bpfEnforceRPF,omitempty"`
	// BPFExcludeCIDRsFromNAT are service addresses that are left alone.
	BPFExcludeCIDRsFromNAT *[]string `json:"bpfExcludeCIDRsFromNAT,omitempty"`
	// BPFExportBufferSizeMB is the size of the buffer for events, in MiB.
	BPFExportBufferSizeMB *int `json:"bpfExportBufferSizeMB,omitempty"`
	// BPFExtToServiceConnmark is the mark of connections from outside to services.
	BPFExtToServiceConnmark *int `json:"bpfExtToServiceConnmark,omitempty"`
	// BPFExternalServiceMode is how packets from outside reach a service's node.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Tunnel|DSR)?$`
	BPFExternalServiceMode string `json:"bpfExternalServiceMode,omitempty"`
	// BPFForceTrackPacketsFromIfaces are interfaces whose packets the kernel's conntrack
	// sees.
	BPFForceTrackPacketsFromIfaces *[]string `json:"bpfForceTrackPacketsFromIfaces,omitempty"`
	// BPFHostConntrackBypass keeps forwarded packets from the kernel's conntrack.
	BPFHostConntrackBypass *bool `json:"bpfHostConntrackBypass,omitempty"`
	// BPFHostNetworkedNATWithoutCTLB resolves services of host processes without the
	// connect-time load balancer.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	BPFHostNetworkedNATWithoutCTLB *string `json:"bpfHostNetworkedNATWithoutCTLB,omitempty"`
	// BPFIPFragTimeout is how long fragments are kept.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	BPFIPFragTimeout *metav1.Duration `json:"bpfIPFragTimeout,omitempty"`
	// BPFIPFragmentReassemblyEnabled puts fragments together.
	BPFIPFragmentReassemblyEnabled *bool `json:"bpfIPFragmentReassemblyEnabled,omitempty"`
	// BPFKubeProxyHealthzPort is the port of health checks in kube-proxy's place.
	BPFKubeProxyHealthzPort *int `json:"bpfKubeProxyHealthzPort,omitempty"`
	// BPFKubeProxyIptablesCleanupEnabled removes the rules of kube-proxy.
	BPFKubeProxyIptablesCleanupEnabled *bool `json:"bpfKubeProxyIptablesCleanupEnabled,omitempty"`
	// BPFKubeProxyMinSyncPeriod is the shortest time between two updates of services.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	BPFKubeProxyMinSyncPeriod *metav1.Duration `json:"bpfKubeProxyMinSyncPeriod,omitempty"`
	// BPFMaglevMaxEndpointsPerService is the largest number of endpoints of a service with
	// Maglev.
	BPFMaglevMaxEndpointsPerService *int `json:"bpfMaglevMaxEndpointsPerService,omitempty"`
	// BPFMaglevMaxServices is the largest number of services with Maglev.
	BPFMaglevMaxServices *int `json:"bpfMaglevMaxServices,omitempty"`
	// BPFMapSizeConntrack is the size of the conntrack map.
	BPFMapSizeConntrack *int `json:"bpfMapSizeConntrack,omitempty"`
	// BPFMapSizeConntrackCleanupQueue is the size of the queue of conntrack entries to
	// remove.
	//
	// +kubebuilder:validation:Minimum=1
	BPFMapSizeConntrackCleanupQueue *int `json:"bpfMapSizeConntrackCleanupQueue,omitempty"`
	// BPFMapSizeConntrackScaling is how the conntrack map grows.
	//
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|DoubleIfFull)?$`
	BPFMapSizeConntrackScaling string `json:"bpfMapSizeConntrackScaling,omitempty"`
	// BPFMapSizePerCpuConntrack is the size of the conntrack map for each CPU.
	BPFMapSizePerCpuConntrack *int `json:"bpfMapSizePerCpuConntrack,omitempty"`
	// BPFMapSizeIPSets is the size of the map of IP sets.
	BPFMapSizeIPSets *int `json:"bpfMapSizeIPSets,omitempty"`
	// BPFMapSizeIfState is the size of the map of interfaces.
	BPFMapSizeIfState *int `json:"bpfMapSizeIfState,omitempty"`
	// BPFMapSizeNATAffinity is the size of the map of session affinity.
	BPFMapSizeNATAffinity *int `json:"bpfMapSizeNATAffinity,omitempty"`
	// BPFMapSizeNATBackend is the size of the map of service backends.
	BPFMapSizeNATBackend *int `json:"bpfMapSizeNATBackend,omitempty"`
	// BPFMapSizeNATFrontend is the size of the map of service addresses.
	BPFMapSizeNATFrontend *int `json:"bpfMapSizeNATFrontend,omitempty"`
	// BPFMapSizeRoute is the size of the map of routes.
	BPFMapSizeRoute *int `json:"bpfMapSizeRoute,omitempty"`
	// BPFOverlayHostSourceIP is the source address of the host's packets into the overlay.
	//
	// +kubebuilder:validation:Enum=TunnelAddress;HostAddress
	BPFOverlayHostSourceIP *string `json:"bpfOverlayHostSourceIP,omitempty"`
	// BPFPSNATPorts is the range of ports for clashes of source ports.
	BPFPSNATPorts *Port `json:"bpfPSNATPorts,omitempty"`
	// BPFPolicyDebugEnabled keeps the policies' instructions readable.
	BPFPolicyDebugEnabled *bool `json:"bpfPolicyDebugEnabled,omitempty"`
	// BPFProfiling measures the programs.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	BPFProfiling *string `json:"bpfProfiling,omitempty"`
	// BPFRedirectToPeer hands packets to a workload's own end of its link.
	//
	// +kubebuilder:validation:Enum=Enabled;Disabled
	BPFRedirectToPeer *string `json:"bpfRedirectToPeer,omitempty"`
	// CgroupV2Path is where cgroup v2 is mounted.
	CgroupV2Path string `json:"cgroupV2Path,omitempty"`
}
