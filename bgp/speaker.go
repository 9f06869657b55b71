// Package bgp decides, without any I/O, what the BGP speaker of one node should do: which
// sessions it keeps and what it advertises over them. It owns the meaning of Calico's
// BGPConfiguration, BGPPeer and of the route reflector annotations; how the speaker is
// brought there is the matter of bgp/gobgp.
package bgp

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// Defaults of a session.
const (
	DefaultPort        = 179
	DefaultHoldTime    = 90 * time.Second
	DefaultRestartTime = 120 * time.Second
)

// MaxPasswordLen is the longest TCP MD5 key that Linux takes, in bytes
// (include/uapi/linux/tcp.h, TCP_MD5SIG_MAXKEYLEN).
const MaxPasswordLen = 80

// Speaker is the whole desired state of this node's BGP speaker. Equal inputs give equal
// Speakers: every slice is sorted.
type Speaker struct {
	ASN        uint32
	RouterID   netip.Addr // always IPv4 in form (RFC 6286)
	ListenPort uint16
	// ListenAddrs are the addresses to listen on, one of each family that the node has:
	// the unspecified address, or the node's own with bindMode NodeIP.
	ListenAddrs []netip.Addr
	Peers       []Peer   // by Addr, which is unique
	Adverts     []Advert // by Prefix, which is unique
	// Own are this node's addresses: a route to one of them is taken from nobody.
	Own []netip.Addr
	// Near are the addresses of other nodes on the subnets that this node's addresses
	// stand in. A route to one of them that an eBGP peer tells is passed on to nobody: who
	// is on the subnet needs none, and would be led away from it.
	Near []netip.Addr
}

// Peer is one session. An IPv4 session carries IPv4 unicast and an IPv6 one IPv6 unicast.
type Peer struct {
	Addr     netip.Addr
	Port     uint16 // never 0
	ASN      uint32
	LocalASN uint32 // never 0: the AS number that this node shows on the session
	Password string // TCP MD5 (RFC 2385); secret, never logged; empty means none
	// LocalAddr is the address the session must start from; the zero Addr leaves the
	// choice to the kernel.
	LocalAddr netip.Addr
	// TTLSecurity is the number of hops to the peer with GTSM (RFC 5082); 0 means off.
	TTLSecurity uint8
	// Multihop lets an eBGP session cross routers.
	Multihop bool
	// RRClient makes the peer a client of this route reflector of cluster ClusterID
	// (RFC 4456).
	RRClient  bool
	ClusterID netip.Addr
	// SameCluster is set where both ends reflect routes for one cluster: the peer would drop
	// what this node reflects to it (RFC 4456, section 8), and has it from the clients.
	SameCluster bool
	// RestartTime is how long the peer shall keep our routes while we restart (RFC 4724,
	// section 3), whole seconds.
	RestartTime time.Duration
	Keepalive   time.Duration
	HoldTime    time.Duration
	AllowOwnAS  int // how often our AS number may stand in the AS_PATH of what it sends
	NextHopMode model.NextHopMode
	Mesh        bool   // from the node-to-node mesh
	Resource    string // name of the BGPPeer; empty for Mesh
	Node        string // the node at the other end, where it is one of ours
}

// IBGP reports whether the session is internal.
func (p *Peer) IBGP() bool { return p.ASN == p.LocalASN }

// MinTTL is the lowest TTL accepted from the peer with GTSM (RFC 5082, section 3), as BIRD
// and Calico count hops: a neighbour on the link is one hop away and must send 255.
func (p *Peer) MinTTL() uint8 { return 255 - p.TTLSecurity + 1 }

// SameSession reports whether p and o are set up alike; where they come from does not count.
func (p Peer) SameSession(o Peer) bool {
	p.Mesh, p.Resource, p.Node = o.Mesh, o.Resource, o.Node
	return p == o
}

// LogValue keeps the password out of logs.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.String("address", p.Addr.String()), slog.Uint64("asn", uint64(p.ASN)))
}

// Advert is a prefix that this node originates.
type Advert struct {
	Prefix      netip.Prefix
	Communities []string // "aa:nn" (RFC 1997) or "aa:bb:cc" (RFC 8092); sorted, unique
}

// Equal reports whether both say the same.
func (a Advert) Equal(o Advert) bool {
	return a.Prefix == o.Prefix && slices.Equal(a.Communities, o.Communities)
}

// SameGlobal reports whether both can be served by one running BGP instance: what it cannot
// change while it runs is equal.
func (s *Speaker) SameGlobal(o *Speaker) bool {
	return s.ASN == o.ASN && s.RouterID == o.RouterID && s.ListenPort == o.ListenPort &&
		slices.Equal(s.ListenAddrs, o.ListenAddrs)
}
