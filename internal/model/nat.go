package model

import (
	"net/netip"
	"slices"
)

// PortRange is a range of TCP or UDP ports, both ends included; the zero value means any.
type PortRange struct{ First, Last uint16 }

// OutgoingNAT says which connections leave a node under another source, in one family. It
// translates nothing when Sources is empty. Prefixes are sorted, and none holds another.
type OutgoingNAT struct {
	Sources   []netip.Prefix // networks of pods whose connections are translated
	Exempt    []netip.Prefix // destinations that are not translated for
	Address   netip.Addr     // the source they get; zero: that of the interface they leave by
	Ports     PortRange      // the source ports they get; zero: any
	Interface string         // they must leave by it ("eth+": one whose name begins so); empty: any
}

// Equal reports whether both say the same.
func (n OutgoingNAT) Equal(o OutgoingNAT) bool {
	return slices.Equal(n.Sources, o.Sources) && slices.Equal(n.Exempt, o.Exempt) &&
		n.Address == o.Address && n.Ports == o.Ports && n.Interface == o.Interface
}
