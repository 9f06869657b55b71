package apiserver_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var config *rest.Config

func TestMain(m *testing.M) { apiserver.Main(m, func(c *rest.Config) { config = c }) }

// TestCore shows that the server answers the core clients.
func TestCore(t *testing.T) {
	c, err := kubeapi.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Core.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
}
