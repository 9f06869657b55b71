package model

import (
	"net/netip"
	"time"
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

	// IPIPOff and VXLANOff switch an encapsulation off whatever the pools say (ipipEnabled,
	// vxlanEnabled false).
	IPIPOff, VXLANOff bool
	// TunnelMTU is the MTU of each tunnel's device in bytes (ipipMTU, vxlanMTU, vxlanMTUV6);
	// 0: the uplink's less the overhead.
	TunnelMTU [Tunnels]int
	// MTULinks, when not empty, is a regular expression for the names of the links whose
	// least MTU is the node's (mtuIfacePattern); otherwise those that carry the node's
	// address are meant.
	MTULinks  string
	VXLANVNI  int // vxlanVNI; 0: DefaultVXLANVNI
	VXLANPort int // vxlanPort; 0: DefaultVXLANPort
	// PodsIPIP and PodsVXLAN let pods send encapsulated packets of their own
	// (allowIPIPPacketsFromWorkloads, allowVXLANPacketsFromWorkloads).
	PodsIPIP, PodsVXLAN bool
	// ExternalNodes may send encapsulated packets to this node, too (externalNodesList).
	ExternalNodes []netip.Prefix
	// ChecksumOffload leaves the checksum of VXLAN's inner packets to the hardware
	// (featureDetectOverride ChecksumOffloadBroken=false).
	ChecksumOffload bool
	// IPTables forces the backend (iptablesBackend): "legacy", "nft", or empty for what the
	// agent was started with.
	IPTables string
	// NFTables has policy enforced by nftables (nftablesMode Enabled) and not by iptables.
	NFTables bool
	// RoutesResync and RulesResync are how often routes and rules are read in full
	// (routeRefreshInterval, iptablesRefreshInterval); 0: the agent's own.
	RoutesResync, RulesResync time.Duration
}
