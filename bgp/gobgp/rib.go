package gobgp

import (
	"net/netip"
	"slices"
	"strings"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/causeway-net/causeway/internal/model"
)

// change is what became of one prefix: the whole new set of next hops, or none.
type change struct {
	prefix netip.Prefix
	hops   []model.NextHop // sorted, unique; empty: no learned route any more
	local  bool            // the best path is one that was put into the speaker over its API
	// martian: it has next hops and they are left out, since nobody may lead there.
	martian bool
}

// decode turns a table event into changes. With multipath on, an event holds the best paths of
// each changed prefix, together and complete; what left the set is not mentioned.
func decode(paths []*api.Path) []change {
	var out []change
	for _, p := range paths {
		prefix, ok := prefixOf(p)
		if !ok {
			continue
		}
		if n := len(out); n == 0 || out[n-1].prefix != prefix {
			out = append(out, change{prefix: prefix})
		}
		c := &out[len(out)-1]
		switch {
		case p.IsWithdraw || p.IsNexthopInvalid:
		case isLocal(p):
			c.local = true
		case martian(prefix):
			c.martian = true
		default:
			if a, ok := nextHopOf(p); ok {
				c.hops = append(c.hops, model.NextHop{Addr: a})
			}
		}
	}
	for i := range out {
		if h := out[i].hops; len(h) > 1 {
			slices.SortFunc(h, model.NextHop.Compare)
			out[i].hops = slices.Compact(h)
		}
	}
	return out
}

// martians are destinations that no router may tell a host the way to: the host itself, its
// links and multicast (RFC 1122 section 3.2.1.3, RFC 3927 section 7, RFC 4291 section 2.5). A
// route to 169.254.169.254 or ::1 would take traffic that never leaves the host or its link.
var martians = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/96"), // unspecified, loopback and IPv4-compatible
	netip.MustParsePrefix("::ffff:0.0.0.0/96"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// martian reports whether the whole prefix lies in one of martians. A wider one, as a default
// route, says nothing of them.
func martian(p netip.Prefix) bool {
	a := p.Addr()
	if a.Is4() {
		// The hot path: nearly every prefix is none of these.
		switch b := a.As4()[0]; {
		case b > 0 && b < 127, b > 127 && b < 169, b > 169 && b < 224, b >= 240 && b < 255:
			return false
		}
	} else if b := a.As16()[0]; b > 0 && b < 0xfe {
		return false
	}
	for _, m := range martians {
		if p.Bits() >= m.Bits() && m.Contains(a) {
			return true
		}
	}
	return false
}

// isLocal reports whether the path came over the API: GoBGP gives it a source without address.
func isLocal(p *api.Path) bool { return p.NeighborIp == "" || p.NeighborIp == "<nil>" }

// isEOR reports whether a path of a table event stands for an End-of-RIB marker.
func isEOR(p *api.Path) bool { return p.Nlri == nil && len(p.NlriBinary) == 0 }

func unicast(f *api.Family) bool {
	return f != nil && f.Safi == api.Family_SAFI_UNICAST && (f.Afi == api.Family_AFI_IP || f.Afi == api.Family_AFI_IP6)
}

// prefixOf reads the NLRI of an IPv4 or IPv6 unicast path.
func prefixOf(p *api.Path) (netip.Prefix, bool) {
	if !unicast(p.Family) || p.Nlri == nil || !is(p.Nlri, "IPAddressPrefix") {
		return netip.Prefix{}, false
	}
	var bits uint64
	var text string
	eachField(p.Nlri.Value, func(n protowire.Number, v uint64, b []byte) {
		switch n {
		case 1:
			bits = v
		case 2:
			text = string(b)
		}
	})
	a, err := netip.ParseAddr(text)
	if err != nil || bits > 128 {
		return netip.Prefix{}, false
	}
	prefix, err := a.Prefix(int(bits))
	return prefix, err == nil
}

// nextHopOf returns the path's next hop, if it is one that the kernel could resolve: a
// link-local or unspecified one is not, without a link.
func nextHopOf(p *api.Path) (netip.Addr, bool) {
	for _, attr := range p.Pattrs {
		var field protowire.Number
		switch {
		case is(attr, "NextHopAttribute"):
			field = 1
		case is(attr, "MpReachNLRIAttribute"):
			field = 2
		default:
			continue
		}
		var found netip.Addr
		eachField(attr.Value, func(n protowire.Number, _ uint64, b []byte) {
			if n != field || found.IsValid() {
				return
			}
			a, err := netip.ParseAddr(string(b))
			a = a.Unmap().WithZone("")
			if err == nil && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsLoopback() && !a.IsMulticast() {
				found = a
			}
		})
		if found.IsValid() {
			return found, true
		}
	}
	return netip.Addr{}, false
}

// is reports whether the message is GoBGP's of that name.
func is(m *anypb.Any, name string) bool {
	s, ok := strings.CutSuffix(m.TypeUrl, name)
	return ok && strings.HasSuffix(s, ".")
}

// eachField calls f with the varint and the bytes fields of a message; at a malformed one it
// stops. It spares the hot path an allocation per message that protobuf's own decoder costs.
func eachField(m []byte, f func(n protowire.Number, v uint64, b []byte)) {
	for len(m) > 0 {
		n, typ, l := protowire.ConsumeTag(m)
		if l < 0 {
			return
		}
		m = m[l:]
		switch typ {
		case protowire.VarintType:
			v, l := protowire.ConsumeVarint(m)
			if l < 0 {
				return
			}
			f(n, v, nil)
			m = m[l:]
		case protowire.BytesType:
			b, l := protowire.ConsumeBytes(m)
			if l < 0 {
				return
			}
			f(n, 0, b)
			m = m[l:]
		default:
			if l = protowire.ConsumeFieldValue(n, typ, m); l < 0 {
				return
			}
			m = m[l:]
		}
	}
}
