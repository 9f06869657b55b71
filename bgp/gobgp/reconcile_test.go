package gobgp

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/internal/model"
)

// TestExport holds DESIGN §4.9 against BIRD: own prefixes go everywhere, internal routes to
// external peers, external routes to internal ones and to no other external one.
func TestExport(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ext1, ext2, internal := l.router(65001), l.router(65002), l.router(ownASN)
	l.advertise("10.244.1.0/26")
	l.want.Adverts[0].Communities = []string{"64512:7", "64512:1:2"}
	l.start()
	ext1.bird([]string{"192.0.2.0/24"}, "")
	ext2.bird([]string{"198.51.100.0/24"}, "")
	internal.bird([]string{"203.0.113.0/24"}, "")
	l.up(ext1, ext2, internal)
	for _, r := range []*router{ext1, ext2, internal} {
		l.eventually("own block at "+r.name, func() bool { return r.has("10.244.1.0/26") })
		if d := r.details("10.244.1.0/26"); !strings.Contains(d, "(64512,7)") || !strings.Contains(d, "(64512, 1, 2)") || !strings.Contains(d, "next_hop: "+r.far.String()) {
			t.Errorf("own block at %s:\n%s", r.name, d)
		}
	}
	l.eventually("internal route at the external peers", func() bool { return ext1.has("203.0.113.0/24") && ext2.has("203.0.113.0/24") })
	l.eventually("external routes at the internal peer", func() bool { return internal.has("192.0.2.0/24") && internal.has("198.51.100.0/24") })
	if d := internal.details("192.0.2.0/24"); !strings.Contains(d, "next_hop: "+ext1.addr.String()) {
		t.Errorf("the next hop of an external route must be kept:\n%s", d)
	}
	l.eventually("routes at the node", func() bool { return l.routes.len() == 3 })
	if ext1.has("198.51.100.0/24") || ext2.has("192.0.2.0/24") {
		t.Error("the node is a transit between its external peers")
	}
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })

	// Another next hop mode takes effect without a bounce.
	l.peer(internal.addr).NextHopMode = model.NextHopSelf
	l.set()
	l.eventually("next hop self", func() bool {
		return strings.Contains(internal.details("192.0.2.0/24"), "next_hop: "+internal.far.String())
	})
	l.peer(internal.addr).NextHopMode = model.NextHopAuto
	l.peer(ext1.addr).NextHopMode = model.NextHopKeep
	l.set()
	l.eventually("next hop auto", func() bool {
		return strings.Contains(internal.details("192.0.2.0/24"), "next_hop: "+ext1.addr.String())
	})
	l.eventually("next hop keep", func() bool {
		return strings.Contains(ext1.details("203.0.113.0/24"), "next_hop: "+internal.addr.String())
	})
	for _, r := range []*router{ext1, ext2, internal} {
		if s := l.status(r.addr); s.Flaps != 0 || s.State != "Established" {
			t.Errorf("%s: %+v", r.name, s)
		}
	}
	l.eventually("counts", func() bool {
		s := l.status(ext1.addr)
		return s.Received == 1 && s.Accepted == 1 && s.Advertised == 2
	})
}

// TestOnlyWhatChanged changes one thing after another and watches that nothing else moves.
func TestOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	still := l.router(65001)
	moved := l.router(65002, func(p *bgp.Peer) { p.Password = "first" })
	l.advertise("10.244.1.0/26")
	l.start()
	still.bird([]string{"192.0.2.0/24"}, "")
	moved.bird([]string{"198.51.100.0/24"}, `password "first";`)
	l.up(still, moved)
	l.eventually("both routes", func() bool { return l.routes.len() == 2 })

	l.advertise("10.244.2.0/26", "10.244.9.9/32")
	l.set()
	l.eventually("new adverts", func() bool { return still.has("10.244.2.0/26") && moved.has("10.244.9.9/32") })
	l.want.Adverts = slices.Delete(l.want.Adverts, 0, 1)
	l.set()
	l.eventually("withdrawn advert", func() bool { return !still.has("10.244.1.0/26") })
	l.want.Adverts[0].Communities = []string{"64512:9"}
	l.set()
	l.eventually("changed communities", func() bool { return strings.Contains(still.details("10.244.2.0/26"), "(64512,9)") })

	// Where a session comes from is no reason to bounce it.
	l.peer(moved.addr).Resource = "other"
	l.set()
	if s := l.status(moved.addr); s.Resource != "other" || s.Flaps != 0 {
		t.Errorf("%+v", s)
	}

	// The password changes: that session alone bounces, and comes back when the peer knows it.
	l.peer(moved.addr).Password = "second"
	l.set()
	l.eventually("bounce", func() bool { return l.status(moved.addr).State != "Established" })
	l.eventually("route of the bounced peer gone", func() bool { return l.routes.via("198.51.100.0/24") == nil })
	moved.birdConfig([]string{"198.51.100.0/24"}, `password "second";`)
	moved.birdc("configure")
	l.up(moved)

	// The peer goes, and comes back without a password: the listener's key must be gone too,
	// so the node is made to wait for the peer's connection.
	p := *l.peer(moved.addr)
	l.want.Peers = slices.DeleteFunc(l.want.Peers, func(p bgp.Peer) bool { return p.Addr == moved.addr })
	l.set()
	l.eventually("removal", func() bool { return l.routes.via("198.51.100.0/24") == nil })
	moved.birdConfig([]string{"198.51.100.0/24"}, "")
	moved.birdc("configure")
	p.Password, p.Port = "", 1790
	l.want.Peers = append(l.want.Peers, p)
	l.set()
	l.up(moved)
	if s := l.status(still.addr); s.Flaps != 0 || s.State != "Established" {
		t.Errorf("the other session moved: %+v", s)
	}
	if r := l.node.Status().Restarts; r != 0 {
		t.Errorf("%d restarts", r)
	}

	// Another AS number is another BGP instance.
	pid := l.node.Status().PID
	l.want.ASN = 64999
	for i := range l.want.Peers {
		l.want.Peers[i].LocalASN = 64999
	}
	l.set()
	l.eventually("new instance", func() bool { s := l.node.Status(); return s.PID != 0 && s.PID != pid })
	l.node.Set(nil)
	l.eventually("no speaker", func() bool { return !l.node.Status().Running && l.routes.len() == 0 })
}

// TestECMP takes equally good paths from different ASes together, and follows members that
// leave and return.
func TestECMP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.router(65001), l.router(65002)
	l.start()
	const shared = "192.0.2.0/24"
	a.bird([]string{shared}, "")
	b.bird([]string{shared}, "")
	both := []netip.Addr{a.addr, b.addr}
	l.eventually("both next hops", func() bool { return slices.Equal(l.routes.via(shared), both) })
	b.birdConfig(nil, "")
	b.birdc("configure")
	l.eventually("one next hop", func() bool { return slices.Equal(l.routes.via(shared), both[:1]) })
	b.birdConfig([]string{shared}, "")
	b.birdc("configure")
	l.eventually("both again", func() bool { return slices.Equal(l.routes.via(shared), both) })
	a.birdc("disable", "node")
	l.eventually("the other", func() bool { return slices.Equal(l.routes.via(shared), both[1:]) })

	// An own path hides the learned ones, and gives them free again.
	l.advertise(shared)
	l.set()
	l.eventually("hidden", func() bool { return l.routes.via(shared) == nil })
	l.want.Adverts = nil
	l.set()
	l.eventually("free", func() bool { return slices.Equal(l.routes.via(shared), both[1:]) })
}

// TestRouteReflector passes routes of one client to another.
func TestRouteReflector(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	client := func(p *bgp.Peer) { p.RRClient, p.ClusterID = true, netip.MustParseAddr("1.2.3.4") }
	a, b, plain := l.router(ownASN, client), l.router(ownASN, client), l.router(ownASN)
	l.start()
	a.bird([]string{"192.0.2.0/24"}, "")
	b.bird([]string{"198.51.100.0/24"}, "")
	plain.bird([]string{"203.0.113.0/24"}, "")
	l.eventually("reflected", func() bool {
		return a.has("198.51.100.0/24") && b.has("192.0.2.0/24") && a.has("203.0.113.0/24") && plain.has("192.0.2.0/24")
	})
	if d := b.details("192.0.2.0/24"); !strings.Contains(d, "1.2.3.4") || !strings.Contains(d, "next_hop: "+a.addr.String()) {
		t.Errorf("no cluster id or another next hop:\n%s", d)
	}

	// GoBGP would ignore this change in silence.
	l.peer(b.addr).RRClient = false
	l.peer(b.addr).ClusterID = netip.Addr{}
	l.set()
	l.eventually("no client any more", func() bool { return !b.has("203.0.113.0/24") && b.has("192.0.2.0/24") })
	if s := l.status(a.addr); s.Flaps != 0 {
		t.Errorf("%+v", s)
	}
}

// TestDrift changes the speaker behind the agent's back in every way the CLI has.
func TestDrift(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.router(65001), l.router(65002)
	l.advertise("10.244.1.0/26")
	l.start()
	a.bird([]string{"192.0.2.0/24"}, "")
	b.bird([]string{"198.51.100.0/24"}, "")
	l.up(a, b)
	l.eventually("advert", func() bool { return a.has("10.244.1.0/26") && b.has("10.244.1.0/26") })

	ctx := context.Background()
	conn, err := l.inst.Load().Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := api.NewGobgpApiClient(conn)
	resync := func() {
		l.node.mu.Lock()
		defer l.node.mu.Unlock()
		l.node.life.loop.PokeResync()
	}
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	path := func(p string) *api.Path {
		x, err := localPath(bgp.Advert{Prefix: netip.MustParsePrefix(p)})
		check("path", err)
		return x
	}

	_, err = c.DeletePath(ctx, &api.DeletePathRequest{Path: path("10.244.1.0/26"), Family: familyOf(false)})
	check("delete the advert", err)
	l.eventually("advert gone", func() bool { return !a.has("10.244.1.0/26") })
	_, err = c.AddPath(ctx, &api.AddPathRequest{Path: path("10.99.0.0/16")})
	check("add a path", err)
	l.eventually("foreign path", func() bool { return a.has("10.99.0.0/16") })
	resync()
	l.eventually("advert back, foreign path gone", func() bool { return a.has("10.244.1.0/26") && !a.has("10.99.0.0/16") })

	_, err = c.DisablePeer(ctx, &api.DisablePeerRequest{Address: a.addr.String()})
	check("disable a peer", err)
	l.eventually("session down", func() bool { return l.status(a.addr).State != "Established" })
	_, err = c.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{Conf: &api.PeerConf{NeighborAddress: "10.255.0.1", PeerAsn: 1, AuthPassword: "x"}}})
	check("add a peer", err)
	resync()
	l.up(a)
	peers := func() (out []string) {
		s, err := c.ListPeer(ctx, &api.ListPeerRequest{})
		check("list", list(s, err, func(x *api.ListPeerResponse) { out = append(out, x.Peer.State.NeighborAddress) }))
		return out
	}
	l.eventually("foreign peer gone", func() bool { return len(peers()) == 2 })
	_, err = c.DeletePeer(ctx, &api.DeletePeerRequest{Address: a.addr.String()})
	check("delete a peer", err)
	l.eventually("session gone", func() bool { return l.status(a.addr).State != "Established" })
	resync()
	l.up(a, b)
	if s := l.status(b.addr); s.Flaps != 0 {
		t.Errorf("the other session moved: %+v", s)
	}

	_, err = c.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_EXPORT, DefaultAction: api.RouteAction_ACCEPT,
	}})
	check("drop the policy", err)
	_, err = c.ResetPeer(ctx, &api.ResetPeerRequest{Address: "all", Soft: true, Direction: api.ResetPeerRequest_OUT})
	check("send again", err)
	l.eventually("leak", func() bool { return a.has("198.51.100.0/24") })
	resync()
	l.eventually("leak mended", func() bool { return !a.has("198.51.100.0/24") && a.has("10.244.1.0/26") })

	_, err = c.StopBgp(ctx, &api.StopBgpRequest{})
	check("stop", err)
	resync()
	l.up(a, b)
	l.eventually("all back", func() bool { return a.has("10.244.1.0/26") && l.routes.len() == 2 })
}

// TestIPv6 keeps an IPv6 session with TTL security for IPv6 routes alone, and brings it back after
// a death together with another one.
func TestIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.router(65001), l.router(65002)
	for i, r := range []*router{a, b} {
		far := netip.MustParseAddr(fmt.Sprintf("fd00:%d:%d::1", l.id, i))
		must(t, "ip", "addr", "add", far.String()+"/64", "dev", "v"+r.name, "nodad")
		near := netip.MustParseAddr(fmt.Sprintf("fd00:%d:%d::2", l.id, i))
		r.run("ip", "addr", "add", near.String()+"/64", "dev", "eth0", "nodad")
		p := l.peer(r.addr)
		p.Addr, p.LocalAddr, p.TTLSecurity, p.Multihop = near, far, 1, false
		l.want.ListenAddrs[i] = far
		r.write("bird.conf", fmt.Sprintf(`
router id %s;
protocol device {}
protocol static { ipv6; route 2001:db8:%d::/48 blackhole; }
protocol bgp node {
  local %s as %d;
  neighbor %s as %d;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  direct; ttl security on;
  graceful restart on;
  ipv6 { import all; export where source = RTS_STATIC; };
}
`, r.addr, i, near, r.asn, far, ownASN))
		r.addr, r.far = near, far
	}
	l.advertise("fd44::40/122")
	l.start()
	for _, r := range []*router{a, b} {
		r.daemon(io.Discard, "bird", "-f", "-c", r.dir+"/bird.conf", "-s", r.dir+"/ctl", "-P", r.dir+"/pid")
	}
	l.up(a, b)
	l.eventually("routes", func() bool {
		return slices.Equal(l.routes.via("2001:db8:0::/48"), []netip.Addr{a.addr}) && slices.Equal(l.routes.via("2001:db8:1::/48"), []netip.Addr{b.addr})
	})
	l.eventually("advert", func() bool {
		return strings.Contains(a.details("fd44::40/122"), "next_hop: "+a.far.String()) && b.has("fd44::40/122")
	})
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })
	l.kill()
	l.eventually("return", func() bool { return l.routes.syncs() == 2 && a.has("fd44::40/122") && b.has("fd44::40/122") })
	if lost := l.routes.lost(); len(lost) != 0 {
		t.Errorf("the node dropped %v", lost)
	}
	if strings.Contains(l.log.String(), "no restart gate") {
		t.Error("the gate does not work over IPv6")
	}
}

// TestFullTable takes a full table, and lets go of it.
func TestFullTable(t *testing.T) {
	l := newLab(t)
	big := l.router(65001)
	const n = fullTable
	routes := make([]string, n)
	for i := range routes {
		routes[i] = fmt.Sprintf("20.%d.%d.%d/32", i>>16, i>>8&255, i&255)
	}
	l.start()
	big.bird(routes, "")
	l.within(60*time.Second, "first route", func() bool { return l.routes.len() > 0 })
	begin := time.Now()
	l.within(60*time.Second, "all routes", func() bool { return l.routes.len() == n })
	t.Logf("%d routes in %v", n, time.Since(begin))
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })
	big.birdc("disable", "node")
	l.within(60*time.Second, "no route", func() bool { return l.routes.len() == 0 })
}
