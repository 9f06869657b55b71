// Package suite is Causeway's own proof on a whole Kubernetes cluster: scenarios in which
// it is installed as a user installs it, and real kubelets' pods talk. A scenario is a
// file NAME_test.go; workload_test.go has what they share, and traffic_test.go sends
// traffic and counts what is lost.
//
// TestMain attaches to the cluster that is up (`make cluster-up`) or brings one up, and
// installs Causeway where it is not, with CAUSEWAY_INSTALL=helm by its chart. CAUSEWAY_CLUSTER
// names another cluster than the default one, CAUSEWAY_PROXY_MODE is kube-proxy's mode in
// a cluster that is brought up, CAUSEWAY_CLUSTER_KEEP=1 leaves that up, and
// CAUSEWAY_CLUSTER_LOGS is the folder for logs of a failure.
package suite
