package v3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterInformation describes the cluster; its name is "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=clusterinformations,scope=Cluster,shortName={clusterinfo,clusterinfos}
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.calicoVersion`
// +kubebuilder:printcolumn:name="Ready",type=boolean,JSONPath=`.spec.datastoreReady`
// +kubebuilder:printcolumn:name="Types",type=string,JSONPath=`.spec.clusterType`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="metadata.name of the one ClusterInformation must be default"
type ClusterInformation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ClusterInformationSpec `json:"spec,omitempty"`
}

// ClusterInformationList is a list of ClusterInformations.
//
// +kubebuilder:object:root=true
type ClusterInformationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ClusterInformation `json:"items"`
}

// ClusterInformationSpec is what is known of the cluster.
type ClusterInformationSpec struct {
	// ClusterGUID identifies the cluster.
	ClusterGUID string `json:"clusterGUID,omitempty"`
	// ClusterType is a list of words, separated by commas.
	ClusterType string `json:"clusterType,omitempty"`
	// CalicoVersion is the version of Calico that runs.
	CalicoVersion string `json:"calicoVersion,omitempty"`
	// DatastoreReady false: agents leave the datastore alone, as during an upgrade.
	DatastoreReady *bool `json:"datastoreReady,omitempty"`
	// Variant of Calico.
	Variant string `json:"variant,omitempty"`
}
