package nftables_test

import (
	"flag"
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
)

// One packet costs less here than with iptables, and more are sent unless a flag says how many.
func init() { _ = flag.Set("kernel-packets", "20000") }

// TestPolicyAgainstGoldenModel sends random packets through random policies; the golden model
// says which must arrive.
func TestPolicyAgainstGoldenModel(t *testing.T) {
	kerneltest.Differential(t, func(t *testing.T, l *kerneltest.Lab) kerneltest.Backend { return start(t, l) })
}

func TestPolicyScenarios(t *testing.T) { kerneltest.Scenarios(t, starting) }
