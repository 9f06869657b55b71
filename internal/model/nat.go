package model

import (
	"net/netip"
	"slices"
)

// Felix is the FelixConfiguration "default" merged with "node.<name>" for this node: the
// fields that something acts on. Its zero value is Calico's defaults.
type Felix struct {
	// NATOutgoingAddress is the source of what natOutgoing translates, in its family
	// (natOutgoingAddress); the zero Addr means that of the interface it leaves by.
	NATOutgoingAddress netip.Addr
	// NATPorts are the source ports of what natOutgoing translates (natPortRange); the
	// zero PortRange means any.
	NATPorts PortRange
	// NATExcludesHosts: addresses of nodes are not translated for, either
	// (natOutgoingExclusions IPPoolsAndHostIPs).
	NATExcludesHosts bool
	// NATInterface is the interface that natOutgoing is limited to, with "+" at the end
	// for all whose names begin so (iptablesNATOutgoingInterfaceFilter); empty means all.
	NATInterface string
}

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
