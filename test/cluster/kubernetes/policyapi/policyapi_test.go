// Package policyapi is upstream's conformance suite of ClusterNetworkPolicy, on the test
// cluster: what `make conformance` runs as clusternetpol.
//
// The suite brings its own pods. Their image is changed on its way to the API server, since
// images cannot be pulled here: agnhost's tag is the one that the cluster has.
package policyapi

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	"sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

var (
	kubeconfig = flag.String("kubeconfig", "", "`file` with an administrator's access")
	agnhost    = flag.String("agnhost", "", "`image` that the cluster has")
)

// TestClusterNetworkPolicy runs all tests, of the standard and of the experimental channel.
// -test.run picks some of them, as TestClusterNetworkPolicy/NAME.
func TestClusterNetworkPolicy(t *testing.T) {
	if *kubeconfig == "" || *agnhost == "" {
		t.Fatal("-kubeconfig and -agnhost are required: `make conformance` sets them")
	}
	access, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	access.QPS, access.Burst = 100, 200
	clients, err := kubernetes.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := client.NewWithWatch(access, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := v1alpha2.Install(objects.Scheme()); err != nil {
		t.Fatal(err)
	}
	timeouts := config.DefaultTimeoutConfig()
	// Nodes that share one computer take their time. How fast policy is in force is measured
	// elsewhere: here ten seconds can pass in one probe's `exec`, with nothing to see of policy.
	timeouts.NamespacesMustBeReady, timeouts.PokeTimeout = 10*time.Minute, 40*time.Second
	s := suite.New(suite.Options{
		Client: interceptor.NewClient(objects, interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if err := localImages(o); err != nil {
					return err
				}
				return c.Create(ctx, o, opts...)
			}}),
		ClientSet:                  clients,
		KubeConfig:                 *access,
		CleanupBaseResources:       true,
		EnableAllSupportedFeatures: true,
		TimeoutConfig:              timeouts,
	})
	s.Setup(t)
	s.Run(t, tests.ConformanceTests)
}

// localImages gives the containers of a StatefulSet the image that the cluster has.
func localImages(o client.Object) error {
	u, ok := o.(*unstructured.Unstructured)
	if !ok || u.GetKind() != "StatefulSet" {
		return nil
	}
	path := []string{"spec", "template", "spec", "containers"}
	containers, _, err := unstructured.NestedSlice(u.Object, path...)
	if err != nil {
		return err
	}
	for _, c := range containers {
		c.(map[string]any)["image"] = *agnhost
	}
	return unstructured.SetNestedSlice(u.Object, containers, path...)
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}
