package nftables_test

import (
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
)

// TestPolicyAgainstGoldenModel sends random packets through random policies; the golden model
// says which must arrive.
func TestPolicyAgainstGoldenModel(t *testing.T) {
	kerneltest.Differential(t, func(t *testing.T, l *kerneltest.Lab) kerneltest.Backend { return start(t, l) })
}

func TestPolicyScenarios(t *testing.T) { kerneltest.Scenarios(t, starting) }
