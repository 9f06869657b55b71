package policy

import (
	"fmt"
	"math/bits"
)

// DefaultMarkMask is FelixConfiguration's iptablesMarkMask where it says nothing.
const DefaultMarkMask uint32 = 0xffff0000

// Marks are the bits of a packet's mark, and one of its connection's, that both backends use.
// All others' bits stay as they are.
type Marks struct {
	Accept    uint32 // the endpoint in question allows the packet
	Pass      uint32 // a rule left the tier
	Untracked uint32 // an untracked policy allowed the packet; from table raw to the end of its way
	// Translated: a packet of the host's own was given another destination, so that the interface
	// it leaves by is known after routing only.
	Translated uint32
	// Forbidden is a bit of the connection's mark (connmark): policy forbids what it once
	// allowed. Packets of such connections are dropped before anything else is asked.
	Forbidden uint32
}

// NewMarks takes the lowest bits of a mask. The error says how many it would need.
func NewMarks(mask uint32) (Marks, error) {
	if n := bits.OnesCount32(mask); n < 5 {
		return Marks{}, fmt.Errorf("mark mask %#x has %d bits; policy needs 5", mask, n)
	}
	var m Marks
	for _, b := range []*uint32{&m.Accept, &m.Pass, &m.Untracked, &m.Translated, &m.Forbidden} {
		*b = mask & -mask
		mask &^= *b
	}
	return m, nil
}

// Counter says how much met one rule of a policy, on this node, since the rule came to
// stand in the kernel as it is.
type Counter struct {
	Chain          ChainID
	Index          int // Rule.Index: of the rule in the policy's list
	Action         Action
	Family         Family
	Packets, Bytes uint64
}
