// Package api_test shows, with a real API server, that the CRDs and admission policies of
// deploy do what Calico's users expect of them.
package api_test

import (
	"testing"

	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

var config *rest.Config

func TestMain(m *testing.M) { apiserver.Main(m, func(c *rest.Config) { config = c }) }

const crds = "../../../deploy/crds"

func TestCRDs(t *testing.T) {
	if err := apiserver.Apply(t.Context(), config, crds); err != nil {
		t.Fatal(err)
	}
}
