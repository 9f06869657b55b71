package bgp

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// Input is what Desired decides from.
type Input struct {
	Snapshot *model.Snapshot
	Node     string       // name of this node
	Local    []netip.Addr // addresses of the pods wired on this node
}

// Desired returns the speaker that this node should run, and what in the datastore keeps it
// from more. It returns a nil Speaker when none can be worked out: the node is unknown or has
// no address. It is deterministic.
func Desired(in Input) (*Speaker, []model.Problem) {
	b := builder{Input: in, self: in.Snapshot.Node(in.Node), sessions: map[netip.Addr]Peer{}}
	if b.self == nil {
		return nil, []model.Problem{{
			Object:  model.Object{Kind: "Node", Name: in.Node},
			Message: "BGP cannot be configured, and goes on as it was if it ran: there is no such Node in the datastore; its metadata.name must be this node's name",
		}}
	}
	if !b.self.IPv4.IsValid() && !b.self.IPv6.IsValid() {
		return nil, []model.Problem{{
			Object:  model.Object{Kind: "Node", Name: in.Node},
			Field:   ".status.addresses",
			Message: "BGP cannot be configured, and goes on as it was if it ran: the node has no address; an InternalIP or the annotation projectcalico.org/IPv4Address is needed",
		}}
	}
	s := &Speaker{
		ASN:        b.asn(b.self),
		RouterID:   routerID(b.self),
		ListenPort: in.Snapshot.BGP.ListenPort,
	}
	for _, a := range []netip.Prefix{b.self.IPv4, b.self.IPv6} {
		switch {
		case !a.IsValid():
		case in.Snapshot.BGP.BindNodeIP:
			s.ListenAddrs = append(s.ListenAddrs, a.Addr())
		case a.Addr().Is4():
			s.ListenAddrs = append(s.ListenAddrs, netip.IPv4Unspecified())
		default:
			s.ListenAddrs = append(s.ListenAddrs, netip.IPv6Unspecified())
		}
	}
	// Of two BGPPeers that contradict each other the older one is in force, so that a new
	// one ends no session that works; then the first by name.
	b.peers = slices.SortedStableFunc(slices.Values(in.Snapshot.Peers), func(x, y model.BGPPeer) int { return x.Created.Compare(y.Created) })
	b.resources()
	b.reverse()
	b.mesh()
	for _, p := range b.sessions {
		s.Peers = append(s.Peers, p)
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int { return a.Addr.Compare(b.Addr) })
	s.Adverts = b.adverts()
	s.Own = addresses(b.self)
	s.Near = b.near()
	return s, b.problems
}

// builder collects the sessions of one node. The first that claims an address has it.
type builder struct {
	Input
	self     *model.Node
	peers    []model.BGPPeer // in the order in which they win
	sessions map[netip.Addr]Peer
	problems []model.Problem
}

func (b *builder) asn(n *model.Node) uint32 { return cmp.Or(n.ASN, b.Snapshot.BGP.ASN) }

// own returns this node's address of the family of a, or the zero Addr.
func (b *builder) own(a netip.Addr) netip.Addr { return family(b.self, a) }

func family(n *model.Node, a netip.Addr) netip.Addr {
	if a.Is4() {
		return n.IPv4.Addr()
	}
	return n.IPv6.Addr()
}

func addresses(n *model.Node) []netip.Addr {
	var out []netip.Addr
	for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
		if p.IsValid() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// near lists the addresses of other nodes within this node's subnets. A length that the
// datastore does not tell (32, 128) makes no subnet.
func (b *builder) near() []netip.Addr {
	var out []netip.Addr
	for i := range b.Snapshot.Nodes {
		n := &b.Snapshot.Nodes[i]
		if n.Name == b.self.Name {
			continue
		}
		for _, a := range addresses(n) {
			if b.self.IPv4.Contains(a) || b.self.IPv6.Contains(a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// nodeAt returns the node that has the address, or nil.
func (b *builder) nodeAt(a netip.Addr) *model.Node {
	for i := range b.Snapshot.Nodes {
		if n := &b.Snapshot.Nodes[i]; n.IPv4.Addr() == a || n.IPv6.Addr() == a {
			return n
		}
	}
	return nil
}

func (b *builder) problem(resource, field, format string, args ...any) {
	b.problems = append(b.problems, model.Problem{
		Object:  model.Object{Kind: "BGPPeer", Name: resource},
		Field:   field,
		Message: fmt.Sprintf(format, args...),
	})
}

// applies reports whether the resource is in force on the node.
func applies(r *model.BGPPeer, n *model.Node) bool {
	switch {
	case r.Node != "":
		return r.Node == n.Name
	case r.NodeSelector != nil:
		return r.NodeSelector.Matches(n.Labels)
	}
	return true
}

// resources adds the sessions of the BGPPeers in force on this node.
func (b *builder) resources() {
	for i := range b.peers {
		r := &b.peers[i]
		if !applies(r, b.self) {
			continue
		}
		if r.PeerSelector == nil {
			b.direct(r)
			continue
		}
		for j := range b.Snapshot.Nodes {
			n := &b.Snapshot.Nodes[j]
			if n.Name != b.self.Name && r.PeerSelector.Matches(n.Labels) {
				b.toNode(r, n)
			}
		}
	}
}

// reverse adds the sessions of BGPPeers of other nodes that select this one.
func (b *builder) reverse() {
	for i := range b.peers {
		r := &b.peers[i]
		if r.PeerSelector == nil || !r.ReversePeering || !r.PeerSelector.Matches(b.self.Labels) {
			continue
		}
		for j := range b.Snapshot.Nodes {
			n := &b.Snapshot.Nodes[j]
			if n.Name == b.self.Name || !applies(r, n) {
				continue
			}
			// The resource's own localASNumber is what the other node shows us.
			back := *r
			back.LocalASN = 0
			b.toNodeAs(&back, n, cmp.Or(r.LocalASN, b.asn(n)))
		}
	}
}

// direct adds the session of a resource with peerIP.
func (b *builder) direct(r *model.BGPPeer) {
	a := r.PeerIP.Unmap()
	if !a.IsValid() {
		b.problem(r.Name, ".spec.peerIP", "either peerIP or peerSelector must say who the peer is")
		return
	}
	if slices.Contains(addresses(b.self), a) {
		return // a peer of the other nodes
	}
	port, asn := r.PeerPort, r.ASN
	n := b.nodeAt(a)
	if n != nil {
		port, asn = cmp.Or(port, n.ListenPort), cmp.Or(asn, b.asn(n))
	}
	if asn == 0 {
		b.problem(r.Name, ".spec.asNumber", "the peer's AS number is needed with peerIP %s, which is no node of the cluster", a)
		return
	}
	b.session(r, a, cmp.Or(port, DefaultPort), asn, n)
}

// toNode adds a session to every address of a node that peerSelector selects.
func (b *builder) toNode(r *model.BGPPeer, n *model.Node) { b.toNodeAs(r, n, b.asn(n)) }

func (b *builder) toNodeAs(r *model.BGPPeer, n *model.Node, asn uint32) {
	for _, a := range addresses(n) {
		// A node without one of the families simply has fewer sessions.
		if b.own(a).IsValid() {
			b.session(r, a, cmp.Or(n.ListenPort, DefaultPort), asn, n)
		}
	}
}

func (b *builder) session(r *model.BGPPeer, a netip.Addr, port uint16, asn uint32, n *model.Node) {
	p := Peer{
		Addr: a, Port: port, ASN: asn,
		LocalASN:    cmp.Or(r.LocalASN, b.asn(b.self)),
		Password:    r.Password,
		TTLSecurity: r.TTLSecurity,
		RestartTime: cmp.Or(r.RestartTime, DefaultRestartTime),
		Keepalive:   r.KeepaliveTime,
		AllowOwnAS:  r.AllowOwnAS,
		NextHopMode: r.NextHopMode,
		Resource:    r.Name,
	}
	if len(p.Password) > MaxPasswordLen {
		b.problem(r.Name, ".spec.password", "the secret's value has %d bytes; TCP MD5 takes at most %d", len(p.Password), MaxPasswordLen)
		return
	}
	if p.ASN == b.asn(b.self) && p.LocalASN != p.ASN {
		// GoBGP takes the routes of such a session for internal ones and would pass them
		// on to eBGP peers.
		b.problem(r.Name, ".spec.localASNumber", "%d cannot be shown to a peer of the node's own AS %d; leave localASNumber out", p.LocalASN, p.ASN)
		return
	}
	if r.SourceNodeIP {
		if p.LocalAddr = b.own(a); !p.LocalAddr.IsValid() {
			b.problem(r.Name, ".spec.sourceAddress", "UseNodeIP needs an address of the family of %s, and node %s has none; give it one or set sourceAddress to None", a, b.self.Name)
			return
		}
	}
	b.add(p, n)
}

// mesh adds a session to every other node that, like this one, is no route reflector.
func (b *builder) mesh() {
	cfg := &b.Snapshot.BGP
	if !cfg.Mesh || b.self.RouteReflectorClusterID.IsValid() {
		return
	}
	if len(cfg.MeshPassword) > MaxPasswordLen {
		b.problems = append(b.problems, model.Problem{
			Object:  model.Object{Kind: "BGPConfiguration", Name: "default"},
			Field:   ".spec.nodeMeshPassword",
			Message: fmt.Sprintf("the mesh is off: the secret's value has %d bytes; TCP MD5 takes at most %d", len(cfg.MeshPassword), MaxPasswordLen),
		})
		return
	}
	for i := range b.Snapshot.Nodes {
		n := &b.Snapshot.Nodes[i]
		if n.Name == b.self.Name || n.RouteReflectorClusterID.IsValid() {
			continue
		}
		for _, a := range addresses(n) {
			if !b.own(a).IsValid() {
				continue
			}
			b.add(Peer{
				Addr: a, Port: cmp.Or(n.ListenPort, DefaultPort), ASN: b.asn(n), LocalASN: b.asn(b.self),
				Password:    cfg.MeshPassword,
				LocalAddr:   b.own(a),
				RestartTime: cmp.Or(cfg.MeshRestartTime, DefaultRestartTime),
				Mesh:        true,
			}, n)
		}
	}
}

// add completes p and keeps it, unless its address is already taken. n is the node at the
// other end, or nil.
func (b *builder) add(p Peer, n *model.Node) {
	if slices.Contains(addresses(b.self), p.Addr) {
		return
	}
	var cluster netip.Addr
	if n != nil {
		p.Node, cluster = n.Name, n.RouteReflectorClusterID
	}
	if own := b.self.RouteReflectorClusterID; own.IsValid() && p.IBGP() {
		if p.SameCluster = cluster == own; !p.SameCluster {
			p.RRClient, p.ClusterID = true, own
		}
	}
	p.Multihop = !p.IBGP() && p.TTLSecurity == 0
	p.NextHopMode = cmp.Or(p.NextHopMode, model.NextHopAuto)
	// RFC 4724 gives the restart time twelve bits.
	p.RestartTime = min(p.RestartTime, 4095*time.Second)
	p.HoldTime = min(max(DefaultHoldTime, 3*p.Keepalive), 65535*time.Second)
	p.Keepalive = cmp.Or(p.Keepalive, p.HoldTime/3)

	old, taken := b.sessions[p.Addr]
	if !taken {
		b.sessions[p.Addr] = p
		return
	}
	// A BGPPeer says more than the mesh does; and a session that another resource asks
	// for in the same way is the same session.
	if p.Mesh || old.Resource == p.Resource || old.SameSession(p) {
		return
	}
	b.problem(p.Resource, contradiction(old, p), "session with %s is set up by BGPPeer %s in another way; only one of them can be in force, make them equal or delete one", p.Addr, old.Resource)
}

// contradiction names the first field in which two resources for one address differ.
func contradiction(a, b Peer) string {
	switch {
	case a.ASN != b.ASN:
		return ".spec.asNumber"
	case a.Port != b.Port:
		return ".spec.peerIP"
	case a.LocalASN != b.LocalASN:
		return ".spec.localASNumber"
	case a.Password != b.Password:
		return ".spec.password"
	case a.LocalAddr != b.LocalAddr:
		return ".spec.sourceAddress"
	case a.TTLSecurity != b.TTLSecurity:
		return ".spec.ttlSecurity"
	case a.RestartTime != b.RestartTime:
		return ".spec.maxRestartTime"
	case a.Keepalive != b.Keepalive:
		return ".spec.keepaliveTime"
	case a.AllowOwnAS != b.AllowOwnAS:
		return ".spec.numAllowedLocalASNumbers"
	case a.NextHopMode != b.NextHopMode:
		return ".spec.nextHopMode"
	}
	return ".spec"
}

// adverts lists this node's blocks and the pod addresses outside them, save those of pools
// with disableBGPExport.
func (b *builder) adverts() []Advert {
	own := map[netip.Prefix]bool{}
	var out []netip.Prefix
	for _, blk := range b.Snapshot.Blocks {
		if blk.Node == b.Node {
			own[blk.CIDR.Masked()] = true
			out = append(out, blk.CIDR.Masked())
		}
	}
	inOwn := func(a netip.Addr) bool {
		for p := range own {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	for _, a := range b.Local {
		if a = a.Unmap(); a.IsValid() && !inOwn(a) {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(out, ComparePrefix)
	out = slices.Compact(out)
	adverts := make([]Advert, 0, len(out))
	for _, p := range out {
		if pool := b.pool(p); pool == nil || !pool.DisableBGPExport {
			adverts = append(adverts, Advert{Prefix: p, Communities: b.communities(p)})
		}
	}
	return adverts
}

// pool returns the most specific pool that p lies in, or nil.
func (b *builder) pool(p netip.Prefix) *model.Pool {
	var best *model.Pool
	for i := range b.Snapshot.Pools {
		if c := &b.Snapshot.Pools[i]; within(p, c.CIDR) && (best == nil || c.CIDR.Bits() > best.CIDR.Bits()) {
			best = c
		}
	}
	return best
}

// communities is the union of those of every CIDR that p lies in, as in Calico, where each
// matching entry of prefixAdvertisements adds its own.
func (b *builder) communities(p netip.Prefix) []string {
	var out []string
	for _, c := range b.Snapshot.BGP.PrefixCommunities {
		if within(p, c.CIDR) {
			out = append(out, c.Communities...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func within(p, cidr netip.Prefix) bool {
	return cidr.IsValid() && cidr.Bits() <= p.Bits() && cidr.Contains(p.Addr())
}

// ComparePrefix orders prefixes by family, address and length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// routerID is the node's IPv4 address, or a number drawn from its name for a node without
// one: unique with near certainty, stable, and within 1.0.0.0 to 223.255.255.255.
func routerID(n *model.Node) netip.Addr {
	if n.IPv4.IsValid() {
		return n.IPv4.Addr()
	}
	h := sha256.Sum256([]byte(n.Name))
	return netip.AddrFrom4([4]byte{1 + h[0]%223, h[1], h[2], h[3]})
}
