// Package v3 owns the Go types of Calico's API projectcalico.org/v3 that Causeway reads:
// IPPool, BGPConfiguration, BGPPeer, IPAMConfiguration, IPReservation and IPAMBlock, with
// every field of the schema, also those that Causeway does not act on. It holds no logic:
// defaults and validation live in internal/watch.
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
	KindIPPool            = "IPPool"
	KindBGPConfiguration  = "BGPConfiguration"
	KindBGPPeer           = "BGPPeer"
	KindIPAMConfiguration = "IPAMConfiguration"
	KindIPReservation     = "IPReservation"
	KindIPAMBlock         = "IPAMBlock"
)

var schemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
	s.AddKnownTypes(SchemeGroupVersion,
		&IPPool{}, &IPPoolList{},
		&BGPConfiguration{}, &BGPConfigurationList{},
		&BGPPeer{}, &BGPPeerList{},
		&IPAMConfiguration{}, &IPAMConfigurationList{},
		&IPReservation{}, &IPReservationList{},
		&IPAMBlock{}, &IPAMBlockList{},
	)
	metav1.AddToGroupVersion(s, SchemeGroupVersion)
	return nil
})

// AddToScheme registers the types of this package.
var AddToScheme = schemeBuilder.AddToScheme
