// Package model is the vocabulary that every part of Causeway understands: what the
// cluster is (Snapshot), what runs on this node (Endpoint) and what should stand in the
// kernel (Route). It holds data and no behaviour beyond ordering and identity, and it
// imports the standard library only, so that pure packages can depend on it alone.
//
// Values reachable from a published Snapshot are immutable: whoever wants another state
// makes another value.
package model

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Object names one resource of the datastore, for logs, errors and conditions.
type Object struct {
	Kind      string `json:"kind"`                // "IPPool", "BGPPeer", "Node", ...
	Namespace string `json:"namespace,omitempty"` // empty for cluster-scoped kinds
	Name      string `json:"name"`
}

func (o Object) String() string {
	if o.Namespace != "" {
		return o.Kind + " " + o.Namespace + "/" + o.Name
	}
	return o.Kind + " " + o.Name
}

// Problem is something in the datastore that disables itself or is not acted on (I6).
// Problems are part of the Snapshot, so that every surface shows the same ones.
type Problem struct {
	Object  Object `json:"object"`
	Source  string `json:"source,omitempty"`  // where it was read: "pools.yaml document 2"; empty for the Kubernetes API
	Field   string `json:"field,omitempty"`   // JSON path, ".spec.blockSize"; empty when the whole object is meant
	Message string `json:"message"`           // what is wrong and what would be right
	Ignored bool   `json:"ignored,omitempty"` // true: the object is in force and only Field is not acted on; false: the object (or its newest version) is not in force
}

func (p Problem) String() string {
	s := p.Object.String()
	if p.Source != "" {
		s = p.Source + ": " + s
	}
	if p.Field != "" {
		s += ": " + p.Field
	}
	return s + ": " + p.Message
}

// Selector is a compiled Calico selector; internal/selector makes them.
type Selector interface {
	Matches(labels map[string]string) bool
	String() string
}

// Snapshot is everything the agent knows about the cluster at one moment, already
// validated and defaulted. Slices are sorted by name or address.
type Snapshot struct {
	Revision uint64 // grows with every snapshot published by one source
	Nodes    []Node
	Pools    []Pool
	// Blocks are those this node needs: its own, those it borrows from, and all of them where
	// routes come from blocks (VXLAN).
	Blocks []Block
	// BlocksKnown: Blocks holds all that this node needs. While it does not, a block that is
	// missing may be there, and no route that a block made may be taken for stale (I4).
	BlocksKnown  bool
	Reservations []netip.Prefix
	IPAM         IPAMConfig
	BGP          BGPConfig // cluster-wide configuration with this node's overrides merged in
	Felix        Felix     // cluster-wide configuration with this node's overrides merged in
	Peers        []BGPPeer
	Problems     []Problem
}

// Node returns the node with that name, or nil.
func (s *Snapshot) Node(name string) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, name, func(n Node, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return &s.Nodes[i]
}

// Node is what other nodes and BGP need to know of a node.
type Node struct {
	Name   string
	Labels map[string]string
	// IPv4 and IPv6 are the addresses the node is reached at, with the length of the
	// subnet they stand in; the zero Prefix where the node has none. The length is that
	// of the address alone (32, 128) when the datastore does not tell.
	IPv4, IPv6 netip.Prefix
	// ASN is the node's own AS number (annotation projectcalico.org/ASNumber); 0 means
	// the cluster's.
	ASN uint32
	// ListenPort is where the node's speaker takes sessions (listenPort of its own
	// BGPConfiguration or of the cluster's); 0 means 179.
	ListenPort uint16
	// RouteReflectorClusterID makes the node a route reflector (RFC 4456); the zero
	// Addr means it is none. Annotation projectcalico.org/RouteReflectorClusterID.
	RouteReflectorClusterID netip.Addr
	// Tunnels are the node's ends of the encapsulations, by Tunnel.
	Tunnels [Tunnels]TunnelEnd
}

// Address is the address the node is reached at in one family; the zero Addr: it has none.
func (n *Node) Address(v6 bool) netip.Addr {
	if v6 {
		return n.IPv6.Addr()
	}
	return n.IPv4.Addr()
}

// EncapMode says when a pool's traffic is encapsulated.
type EncapMode string

// The modes of .spec.ipipMode and .spec.vxlanMode.
const (
	EncapNever       EncapMode = "Never"
	EncapAlways      EncapMode = "Always"
	EncapCrossSubnet EncapMode = "CrossSubnet"
)

// Use is one of a pool's .spec.allowedUses.
type Use string

// The uses of a pool.
const (
	UseWorkload     Use = "Workload"
	UseTunnel       Use = "Tunnel"
	UseLoadBalancer Use = "LoadBalancer"
)

// Pool is an IPPool in force.
type Pool struct {
	Name              string
	CIDR              netip.Prefix
	BlockSize         int // prefix length of a block, 20-32 for IPv4 and 116-128 for IPv6
	NodeSelector      Selector
	NamespaceSelector Selector // nil selects all
	IPIPMode          EncapMode
	VXLANMode         EncapMode
	NATOutgoing       bool
	Disabled          bool // no new addresses; those allocated live on
	DisableBGPExport  bool
	Manual            bool  // assignmentMode Manual: only on request by name or address
	AllowedUses       []Use // empty only when a pool for tunnels alone is being deleted
}

// Allows reports whether the pool may be used so.
func (p *Pool) Allows(u Use) bool { return slices.Contains(p.AllowedUses, u) }

// Block is an IPAMBlock as the parts outside ipam see it.
type Block struct {
	CIDR netip.Prefix
	Node string // the node that owns the block; empty when it has no affinity
	// Lent are its addresses that other nodes hold, sorted.
	Lent []Loan
}

// Loan is an address of a block that another node than the owner holds.
type Loan struct {
	Addr netip.Addr
	Node string
}

// IPAMConfig is the IPAMConfiguration named "default", defaulted.
type IPAMConfig struct {
	StrictAffinity     bool
	AutoAllocateBlocks bool
	MaxBlocksPerHost   int           // never 0: defaulted to 20
	Cooldown           time.Duration // how long a released address rests
}

// BGPConfig is the BGPConfiguration "default" merged with "node.<name>" for this node.
type BGPConfig struct {
	// Unknown: the configuration is there and no version of it was ever valid. What follows
	// are defaults without the mesh, and peers that are not known now may have told routes
	// that the kernel still holds.
	Unknown         bool
	ASN             uint32 // never 0: defaulted to 64512
	Mesh            bool   // nodeToNodeMeshEnabled, default true
	MeshPassword    string // secret; never logged
	MeshRestartTime time.Duration
	ListenPort      uint16 // never 0: defaulted to 179
	BindNodeIP      bool   // bindMode NodeIP: listen on the node's addresses only
	// Communities attached to adverts inside a prefix (prefixAdvertisements, with named
	// communities resolved); each is "aa:nn" (RFC 1997) or "aa:bb:cc" (RFC 8092).
	PrefixCommunities []PrefixCommunities
	// RoutePriority4 and RoutePriority6 are the kernel metrics of learned routes
	// (ipv4NormalRoutePriority, ipv6NormalRoutePriority), defaulted to 1024.
	RoutePriority4, RoutePriority6 int
}

// PrefixCommunities attaches communities to what is advertised within CIDR.
type PrefixCommunities struct {
	CIDR        netip.Prefix
	Communities []string
}

// BGPPeer is a BGPPeer resource in force. Which nodes it applies to and which addresses
// it stands for is decided in package bgp.
type BGPPeer struct {
	Name    string
	Created time.Time // zero in a folder, which does not tell
	// Scope: Node names one node, NodeSelector selects several; both empty mean all.
	Node         string
	NodeSelector Selector
	// Remote end: either PeerIP (with PeerPort, 0 meaning 179 or the peer node's
	// listenPort) and ASN, or PeerSelector, which selects nodes.
	PeerIP       netip.Addr
	PeerPort     uint16
	PeerSelector Selector
	ASN          uint32
	LocalASN     uint32 // 0: the node's
	Password     string // secret; never logged
	// SourceNodeIP: the session starts from the node's address (sourceAddress
	// UseNodeIP, the default); otherwise from the address the kernel picks.
	SourceNodeIP  bool
	TTLSecurity   uint8         // hops, RFC 5082; 0: off, eBGP is multihop
	KeepaliveTime time.Duration // 0: GoBGP's default, a third of the hold time
	RestartTime   time.Duration // graceful restart time announced, 0: default 120 s
	AllowOwnAS    int           // numAllowedLocalASNumbers
	NextHopMode   NextHopMode
	// ReversePeering makes the selected nodes peer back, when PeerSelector is set.
	ReversePeering bool
}

// NextHopMode is .spec.nextHopMode of a BGPPeer.
type NextHopMode string

// The modes: Auto sends own routes with the session's address and leaves the next hop of
// others' as BGP has it; Self and Keep force one or the other.
const (
	NextHopAuto NextHopMode = "Auto"
	NextHopSelf NextHopMode = "Self"
	NextHopKeep NextHopMode = "Keep"
)
