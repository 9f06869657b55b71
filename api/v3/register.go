// Package v3 owns the Go types of Calico's API projectcalico.org/v3: all kinds, with every
// field of the schema, also those that Causeway does not act on. Its markers make the CRDs in
// deploy/crds, whose rules refuse what no agent could act on. It holds no logic: defaults and
// validation of what is read live in internal/watch.
//
// +kubebuilder:object:generate=true
// +groupName=projectcalico.org
package v3

//go:generate go run ./gencrds

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group.
const GroupName = "projectcalico.org"

// SchemeGroupVersion is the API group and version of this package.
var SchemeGroupVersion = schema.GroupVersion{Group: GroupName, Version: "v3"}

// The kinds of this package.
const (
	KindIPPool                        = "IPPool"
	KindBGPConfiguration              = "BGPConfiguration"
	KindBGPPeer                       = "BGPPeer"
	KindBGPFilter                     = "BGPFilter"
	KindIPAMConfiguration             = "IPAMConfiguration"
	KindIPReservation                 = "IPReservation"
	KindIPAMBlock                     = "IPAMBlock"
	KindBlockAffinity                 = "BlockAffinity"
	KindIPAMHandle                    = "IPAMHandle"
	KindFelixConfiguration            = "FelixConfiguration"
	KindKubeControllersConfiguration  = "KubeControllersConfiguration"
	KindClusterInformation            = "ClusterInformation"
	KindCalicoNodeStatus              = "CalicoNodeStatus"
	KindTier                          = "Tier"
	KindNetworkPolicy                 = "NetworkPolicy"
	KindGlobalNetworkPolicy           = "GlobalNetworkPolicy"
	KindStagedNetworkPolicy           = "StagedNetworkPolicy"
	KindStagedGlobalNetworkPolicy     = "StagedGlobalNetworkPolicy"
	KindStagedKubernetesNetworkPolicy = "StagedKubernetesNetworkPolicy"
	KindNetworkSet                    = "NetworkSet"
	KindGlobalNetworkSet              = "GlobalNetworkSet"
	KindHostEndpoint                  = "HostEndpoint"
)

var schemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
	s.AddKnownTypes(SchemeGroupVersion,
		&IPPool{}, &IPPoolList{},
		&BGPConfiguration{}, &BGPConfigurationList{},
		&BGPPeer{}, &BGPPeerList{},
		&BGPFilter{}, &BGPFilterList{},
		&IPAMConfiguration{}, &IPAMConfigurationList{},
		&IPReservation{}, &IPReservationList{},
		&IPAMBlock{}, &IPAMBlockList{},
		&BlockAffinity{}, &BlockAffinityList{},
		&IPAMHandle{}, &IPAMHandleList{},
		&FelixConfiguration{}, &FelixConfigurationList{},
		&KubeControllersConfiguration{}, &KubeControllersConfigurationList{},
		&ClusterInformation{}, &ClusterInformationList{},
		&CalicoNodeStatus{}, &CalicoNodeStatusList{},
		&Tier{}, &TierList{},
		&NetworkPolicy{}, &NetworkPolicyList{},
		&GlobalNetworkPolicy{}, &GlobalNetworkPolicyList{},
		&StagedNetworkPolicy{}, &StagedNetworkPolicyList{},
		&StagedGlobalNetworkPolicy{}, &StagedGlobalNetworkPolicyList{},
		&StagedKubernetesNetworkPolicy{}, &StagedKubernetesNetworkPolicyList{},
		&NetworkSet{}, &NetworkSetList{},
		&GlobalNetworkSet{}, &GlobalNetworkSetList{},
		&HostEndpoint{}, &HostEndpointList{},
	)
	metav1.AddToGroupVersion(s, SchemeGroupVersion)
	return nil
})

// AddToScheme registers the types of this package.
var AddToScheme = schemeBuilder.AddToScheme
