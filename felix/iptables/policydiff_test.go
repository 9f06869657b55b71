package iptables_test

import (
	"testing"

	"github.com/causeway-net/causeway/felix/felixtest/kerneltest"
	"github.com/causeway-net/causeway/felix/iptables"
)

// TestPolicyAgainstGoldenModel sends random packets through random policies in both forms of
// iptables; the golden model says which must arrive.
func TestPolicyAgainstGoldenModel(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			kerneltest.Differential(t, func(t *testing.T, l *kerneltest.Lab) kerneltest.Backend { return startPolicy(t, l, b) })
		})
	}
}
