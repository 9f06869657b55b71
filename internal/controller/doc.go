// Package controller owns what is cluster-wide: addresses and blocks that nodes which are
// gone left behind, the default pools and tiers of a new cluster, the conditions of pools,
// the addresses of Services of type LoadBalancer, the key that agents share, and what is said
// of policies that are wrong. One replica at a time works, under a Lease; blocks change by compare-and-swap alone, as everywhere, so
// that even two at once would do no harm.
//
// # Rights
//
// Exactly these are used, and no others:
//
//	in the controller's own namespace (Role):
//	  coordination.k8s.io  leases                             create
//	  coordination.k8s.io  leases causeway-controller         get, update
//	  core                 secrets                            create
//	  core                 secrets causeway-announce          get
//	in kube-system (Role):
//	  core                 configmaps kubeadm-config, kube-proxy   get
//	in the cluster (ClusterRole):
//	  core                 nodes                              get, list, watch
//	  core                 pods                               list
//	  core                 services                           list, watch
//	  core                 services/status                    patch
//	  events.k8s.io        events                             create, patch
//	  networking.k8s.io    servicecidrs                       list
//	  networking.k8s.io    networkpolicies                    list, watch
//	  policy.networking.k8s.io  clusternetworkpolicies         list
//	  policy.networking.k8s.io  clusternetworkpolicies/status  patch
//	  projectcalico.org    ippools                            list, watch, create, patch
//	  projectcalico.org    ippools/status                     patch
//	  projectcalico.org    ipamblocks                         list, watch, create, update, delete
//	  projectcalico.org    ipamconfigurations                 list, watch
//	  projectcalico.org    ipreservations                     list, watch
//	  projectcalico.org    kubecontrollersconfigurations      list, watch
//	  projectcalico.org    clusterinformations                get, create, patch
//	  projectcalico.org    tiers                              list, watch, create
//	  projectcalico.org    tiers/status                       patch
//	  projectcalico.org    networkpolicies                    list, watch
//	  projectcalico.org    globalnetworkpolicies              list, watch
//	  projectcalico.org    stagednetworkpolicies              list, watch
//	  projectcalico.org    stagedglobalnetworkpolicies        list, watch
//	  projectcalico.org    stagedkubernetesnetworkpolicies    list, watch
//
// IPAMHandle and BlockAffinity objects, which Calico keeps beside its blocks, are never
// touched: they are not ours.
package controller
