package gobgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/causeway-net/causeway/bgp"
)

// Timers of the speaker, seconds. GoBGP waits once to twice connectRetry between two attempts
// and gives up on one after connectRetry-1, at least 1: with its default of 120 a peer that was
// away for a moment stays away for minutes.
const (
	connectRetry   = 1
	idleAfterReset = 1
)

// apiPeer is the peer as GoBGP wants it. restarting sets the restart bits (RFC 4724, section 3).
func apiPeer(p bgp.Peer, restarting bool) *api.Peer {
	out := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Addr.String(),
			PeerAsn:         p.ASN,
			LocalAsn:        p.LocalASN,
			AuthPassword:    p.Password,
			AllowOwnAsn:     uint32(p.AllowOwnAS),
			Description:     description(p),
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:           connectRetry,
			HoldTime:               seconds(p.HoldTime),
			KeepaliveInterval:      seconds(p.Keepalive),
			IdleHoldTimeAfterReset: idleAfterReset,
		}},
		Transport: &api.Transport{RemotePort: uint32(p.Port)},
		GracefulRestart: &api.GracefulRestart{
			Enabled:         true,
			RestartTime:     uint32(seconds(p.RestartTime)),
			DeferralTime:    uint32(seconds(deferralTime)),
			LocalRestarting: restarting,
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: familyOf(p.Addr.Is6()), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		}},
	}
	if p.LocalAddr.IsValid() {
		out.Transport.LocalAddress = p.LocalAddr.String()
	}
	if p.TTLSecurity > 0 {
		out.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: uint32(p.MinTTL())}
	} else if p.Multihop {
		out.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	}
	if p.RRClient {
		out.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: p.ClusterID.String()}
	}
	return out
}

// description tells the reader of `gobgp neighbor` where a session comes from. It plays no part
// in comparisons: GoBGP bounces a session whose description changes.
func description(p bgp.Peer) string {
	switch {
	case p.Mesh:
		return "mesh: node " + p.Node
	case p.Node != "":
		return "BGPPeer " + p.Resource + ": node " + p.Node
	}
	return "BGPPeer " + p.Resource
}

func seconds(d time.Duration) uint64 { return uint64(max(d, time.Second) / time.Second) }

// sameSession reports whether nothing changed that the session must bounce for. The next hop
// mode is a matter of policy.
func sameSession(a, b bgp.Peer) bool {
	a.NextHopMode = b.NextHopMode
	return a.SameSession(b)
}

// asApplied reports whether the speaker has the peer as it was added. The password cannot be
// compared: it is blanked in answers.
func asApplied(p bgp.Peer, have *api.Peer) bool {
	want := apiPeer(p, false)
	c, t, tr, g := have.GetConf(), have.GetTimers().GetConfig(), have.GetTransport(), have.GetGracefulRestart()
	cluster := ""
	if p.RRClient {
		cluster = p.ClusterID.String()
	}
	families := len(have.GetAfiSafis()) == 1 && proto.Equal(have.AfiSafis[0].GetConfig().GetFamily(), want.AfiSafis[0].Config.Family)
	return c.GetPeerAsn() == want.Conf.PeerAsn && c.GetLocalAsn() == want.Conf.LocalAsn &&
		c.GetAllowOwnAsn() == want.Conf.AllowOwnAsn && !c.GetAdminDown() && have.GetState().GetAdminState() == api.PeerState_UP &&
		c.GetPeerGroup() == "" && c.GetVrf() == "" && c.GetRemovePrivate() == api.RemovePrivate_REMOVE_NONE && !c.GetReplacePeerAsn() &&
		t.GetConnectRetry() == want.Timers.Config.ConnectRetry && t.GetHoldTime() == want.Timers.Config.HoldTime &&
		t.GetKeepaliveInterval() == want.Timers.Config.KeepaliveInterval &&
		tr.GetRemotePort() == want.Transport.RemotePort && !tr.GetPassiveMode() && tr.GetBindInterface() == "" &&
		(want.Transport.LocalAddress == "" || tr.GetLocalAddress() == want.Transport.LocalAddress) &&
		g.GetEnabled() && g.GetRestartTime() == want.GracefulRestart.RestartTime && g.GetDeferralTime() == want.GracefulRestart.DeferralTime &&
		have.GetTtlSecurity().GetEnabled() == want.TtlSecurity.GetEnabled() && have.GetTtlSecurity().GetTtlMin() == want.TtlSecurity.GetTtlMin() &&
		have.GetEbgpMultihop().GetEnabled() == want.EbgpMultihop.GetEnabled() &&
		have.GetRouteReflector().GetRouteReflectorClient() == p.RRClient &&
		have.GetRouteReflector().GetRouteReflectorClusterId() == cluster &&
		!have.GetRouteServer().GetRouteServerClient() && families
}

func familyOf(v6 bool) *api.Family {
	if v6 {
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

// localPath is an advert as GoBGP wants it. The unspecified next hop becomes the local address
// of each session.
func localPath(a bgp.Advert) (*api.Path, error) {
	v6 := a.Prefix.Addr().Is6()
	nlri := &api.IPAddressPrefix{Prefix: a.Prefix.Addr().String(), PrefixLen: uint32(a.Prefix.Bits())}
	path := &api.Path{Family: familyOf(v6)}
	attrs := []proto.Message{&api.OriginAttribute{Origin: 0}}
	var err error
	if path.Nlri, err = anypb.New(nlri); err != nil {
		return nil, err
	}
	if v6 {
		attrs = append(attrs, &api.MpReachNLRIAttribute{Family: path.Family, NextHops: []string{"::"}, Nlris: []*anypb.Any{path.Nlri}})
	} else {
		attrs = append(attrs, &api.NextHopAttribute{NextHop: "0.0.0.0"})
	}
	plain, large, err := parseCommunities(a.Communities)
	if err != nil {
		return nil, err
	}
	if len(plain) > 0 {
		attrs = append(attrs, &api.CommunitiesAttribute{Communities: plain})
	}
	if len(large) > 0 {
		attrs = append(attrs, &api.LargeCommunitiesAttribute{Communities: large})
	}
	for _, m := range attrs {
		x, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		path.Pattrs = append(path.Pattrs, x)
	}
	return path, nil
}

// parseCommunities reads "aa:nn" (RFC 1997) and "aa:bb:cc" (RFC 8092).
func parseCommunities(in []string) (plain []uint32, large []*api.LargeCommunity, err error) {
	for _, s := range in {
		parts := strings.Split(s, ":")
		n := make([]uint32, len(parts))
		for i, p := range parts {
			bits := 32
			if len(parts) == 2 {
				bits = 16
			}
			v, err := strconv.ParseUint(p, 10, bits)
			if err != nil {
				return nil, nil, fmt.Errorf("community %q: want aa:nn or aa:bb:cc", s)
			}
			n[i] = uint32(v)
		}
		switch len(n) {
		case 2:
			plain = append(plain, n[0]<<16|n[1])
		case 3:
			large = append(large, &api.LargeCommunity{GlobalAdmin: n[0], LocalData1: n[1], LocalData2: n[2]})
		default:
			return nil, nil, fmt.Errorf("community %q: want aa:nn or aa:bb:cc", s)
		}
	}
	return plain, large, nil
}

// communitiesOf is the inverse: what a path carries, as an Advert has it.
func communitiesOf(p *api.Path) []string {
	var out []string
	for _, attr := range p.Pattrs {
		switch {
		case is(attr, "LargeCommunitiesAttribute"):
			var m api.LargeCommunitiesAttribute
			if attr.UnmarshalTo(&m) == nil {
				for _, c := range m.Communities {
					out = append(out, fmt.Sprintf("%d:%d:%d", c.GlobalAdmin, c.LocalData1, c.LocalData2))
				}
			}
		case is(attr, "CommunitiesAttribute"):
			var m api.CommunitiesAttribute
			if attr.UnmarshalTo(&m) == nil {
				for _, c := range m.Communities {
					out = append(out, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// host is the address as a prefix of one, which is how GoBGP wants it in a neighbor set.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
