package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// KubeControllersConfiguration configures Calico's cluster-wide controllers; its name is
// "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={kcc,kccs}
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="metadata.name of the one KubeControllersConfiguration must be default"
type KubeControllersConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   KubeControllersConfigurationSpec    `json:"spec,omitempty"`
	Status *KubeControllersConfigurationStatus `json:"status,omitempty"`
}

// KubeControllersConfigurationList is a list of KubeControllersConfigurations.
//
// +kubebuilder:object:root=true
type KubeControllersConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []KubeControllersConfiguration `json:"items"`
}

// Toggle switches something.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type Toggle string

// The values of a Toggle.
const (
	Enabled  Toggle = "Enabled"
	Disabled Toggle = "Disabled"
)

// AssignIPs says which Services get LoadBalancer addresses.
//
// +kubebuilder:validation:Enum=AllServices;RequestedServicesOnly
type AssignIPs string

// The values of .spec.controllers.loadBalancer.assignIPs.
const (
	AllServices           AssignIPs = "AllServices"
	RequestedServicesOnly AssignIPs = "RequestedServicesOnly"
)

// KubeControllersConfigurationSpec is what a KubeControllersConfiguration wants.
type KubeControllersConfigurationSpec struct {
	// LogSeverityScreen is the level of the log on stdout.
	//
	// +kubebuilder:validation:Enum=None;Debug;Info;Warning;Error;Fatal;Panic
	LogSeverityScreen string `json:"logSeverityScreen,omitempty"`
	// HealthChecks are served.
	//
	// +kubebuilder:default=Enabled
	HealthChecks Toggle `json:"healthChecks,omitempty"`
	// EtcdV3CompactionPeriod is how often etcd is compacted.
	//
	// +kubebuilder:validation:Type=string
	EtcdV3CompactionPeriod *metav1.Duration `json:"etcdV3CompactionPeriod,omitempty"`
	// PrometheusMetricsPort is the port of metrics; 0: none.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	PrometheusMetricsPort *int `json:"prometheusMetricsPort,omitempty"`
	// Controllers that run; one that is not set does not.
	Controllers ControllersConfig `json:"controllers"`
	// DebugProfilePort is the port of the profiler; 0: none.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	DebugProfilePort *int32 `json:"debugProfilePort,omitempty"`
}

// ControllersConfig configures the controllers.
type ControllersConfig struct {
	// Node removes what belongs to nodes that are gone.
	Node *NodeControllerConfig `json:"node,omitempty"`
	// Policy copies the policies of Kubernetes to etcd.
	Policy *PolicyControllerConfig `json:"policy,omitempty"`
	// WorkloadEndpoint copies the labels of pods to etcd.
	WorkloadEndpoint *WorkloadEndpointControllerConfig `json:"workloadEndpoint,omitempty"`
	// ServiceAccount copies service accounts to etcd.
	ServiceAccount *ServiceAccountControllerConfig `json:"serviceAccount,omitempty"`
	// Namespace copies namespaces to etcd.
	Namespace *NamespaceControllerConfig `json:"namespace,omitempty"`
	// LoadBalancer gives Services their LoadBalancer addresses.
	LoadBalancer *LoadBalancerControllerConfig `json:"loadBalancer,omitempty"`
	// Migration renames objects of older versions.
	Migration *MigrationControllerConfig `json:"migration,omitempty"`
}

// NodeControllerConfig configures the node controller.
type NodeControllerConfig struct {
	// ReconcilerPeriod is how often everything is compared.
	//
	// +kubebuilder:validation:Type=string
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
	// SyncLabels copies the labels of Kubernetes' nodes.
	SyncLabels Toggle `json:"syncLabels,omitempty"`
	// HostEndpoint makes HostEndpoints for nodes.
	HostEndpoint *AutoHostEndpointConfig `json:"hostEndpoint,omitempty"`
	// LeakGracePeriod is how long an address that nobody seems to hold is kept.
	//
	// +kubebuilder:validation:Type=string
	LeakGracePeriod *metav1.Duration `json:"leakGracePeriod,omitempty"`
}

// AutoHostEndpointConfig says which HostEndpoints are made for nodes.
type AutoHostEndpointConfig struct {
	// AutoCreate makes them.
	AutoCreate Toggle `json:"autoCreate,omitempty"`
	// CreateDefaultHostEndpoint makes one for each node as a whole: Enabled or Disabled.
	CreateDefaultHostEndpoint string `json:"createDefaultHostEndpoint,omitempty"`
	// Templates make one for each interface that they match.
	//
	// +listType=atomic
	Templates []HostEndpointTemplate `json:"templates,omitempty"`
}

// HostEndpointTemplate makes HostEndpoints of interfaces.
type HostEndpointTemplate struct {
	// GenerateName is part of the name of what is made.
	//
	// +kubebuilder:validation:MaxLength=253
	GenerateName string `json:"generateName,omitempty"`
	// InterfaceCIDRs match interfaces by their addresses.
	//
	// +listType=set
	InterfaceCIDRs []string `json:"interfaceCIDRs,omitempty"`
	// InterfacePattern is a regular expression that matches interfaces by their names.
	InterfacePattern string            `json:"interfacePattern,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Annotations      map[string]string `json:"annotations,omitempty"`
	// NodeSelector selects the nodes.
	NodeSelector string `json:"nodeSelector,omitempty"`
}

// PolicyControllerConfig configures the policy controller.
type PolicyControllerConfig struct {
	// ReconcilerPeriod is how often everything is compared.
	//
	// +kubebuilder:validation:Type=string
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
}

// WorkloadEndpointControllerConfig configures the workload endpoint controller.
type WorkloadEndpointControllerConfig struct {
	// ReconcilerPeriod is how often everything is compared.
	//
	// +kubebuilder:validation:Type=string
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
}

// ServiceAccountControllerConfig configures the service account controller.
type ServiceAccountControllerConfig struct {
	// ReconcilerPeriod is how often everything is compared.
	//
	// +kubebuilder:validation:Type=string
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
}

// NamespaceControllerConfig configures the namespace controller.
type NamespaceControllerConfig struct {
	// ReconcilerPeriod is how often everything is compared.
	//
	// +kubebuilder:validation:Type=string
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
}

// LoadBalancerControllerConfig configures the load balancer controller.
type LoadBalancerControllerConfig struct {
	// AssignIPs says which Services get addresses.
	//
	// +kubebuilder:default=AllServices
	AssignIPs AssignIPs `json:"assignIPs,omitempty"`
}

// MigrationControllerConfig configures the migration controller.
type MigrationControllerConfig struct {
	// PolicyNameMigrator renames policies whose names have the tier as a prefix.
	//
	// +kubebuilder:default=Enabled
	// +kubebuilder:validation:Enum=Disabled;Enabled
	PolicyNameMigrator string `json:"policyNameMigrator,omitempty"`
}

// KubeControllersConfigurationStatus is what the controllers run with.
type KubeControllersConfigurationStatus struct {
	// RunningConfig is the configuration in force.
	RunningConfig *KubeControllersConfigurationSpec `json:"runningConfig,omitempty"`
	// EnvironmentVars override the configuration.
	EnvironmentVars map[string]string `json:"environmentVars,omitempty"`
}
