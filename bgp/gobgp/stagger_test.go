package gobgp

import (
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/bgp"
)

// TestTurns: an edit that changes every session replaces them one after the other, so that a
// route which several peers tell never goes away.
func TestTurns(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	routers := []*router{l.router(65001), l.router(65002), l.router(65003)}
	const shared = "192.0.2.0/24"
	l.advertise("10.244.1.0/26")
	l.start()
	for _, r := range routers {
		r.bird([]string{shared}, "")
	}
	l.up(routers...)
	l.eventually("ECMP", func() bool { return len(l.routes.via(shared)) == len(routers) })
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })

	since := map[*router]time.Time{}
	for _, r := range routers {
		since[r] = l.status(r.addr).Since
		l.peer(r.addr).RestartTime = time.Minute
	}
	begin, fewest := time.Now(), len(routers)
	l.set()
	l.eventually("all sessions are new ones", func() bool {
		fewest = min(fewest, len(l.routes.via(shared)))
		return !slices.ContainsFunc(routers, func(r *router) bool {
			s := l.status(r.addr)
			return s.State != "Established" || s.Since.Equal(since[r])
		})
	})
	t.Logf("three sessions were replaced in %v", time.Since(begin).Round(time.Millisecond))
	l.eventually("ECMP again", func() bool { return len(l.routes.via(shared)) == len(routers) })
	if lost := l.routes.lost(); len(lost) > 0 || fewest != len(routers)-1 {
		t.Errorf("%d of %d peers told the route at worst; it was withdrawn: %v", fewest, len(routers), lost)
	}
}

// TestTurnsGoOn: a peer that does not come back, since it has not got the new password yet, does
// not keep the others from theirs for long.
func TestTurnsGoOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	old := func(p *bgp.Peer) { p.Password = "old" }
	a, b := l.router(65001, old), l.router(65002, old)
	pace := defaultPace
	pace.replace = 700 * time.Millisecond
	l.startPaced(pace)
	for _, r := range []*router{a, b} {
		r.bird(nil, `password "old";`)
	}
	l.up(a, b)
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })
	for _, r := range []*router{a, b} {
		l.peer(r.addr).Password = "new"
	}
	l.set()
	down := func(r *router) bool { return l.status(r.addr).State != "Established" }
	l.eventually("the first is replaced", func() bool { return down(a) || down(b) })
	if down(a) && down(b) {
		t.Error("both are down at once")
	}
	l.eventually("the second is replaced", func() bool { return down(a) && down(b) })
	for _, r := range []*router{a, b} {
		r.birdConfig(nil, `password "new";`)
		r.birdc("configure")
	}
	l.up(a, b)
}

// TestMeshAtOnce: sessions of the mesh do not wait for each other, and neither does one that
// becomes somebody else's.
func TestMeshAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	mesh := func(p *bgp.Peer) { p.Mesh = true }
	a, b := l.router(ownASN, mesh), l.router(ownASN, mesh)
	pace := defaultPace
	pace.replace = time.Hour
	l.startPaced(pace)
	for _, r := range []*router{a, b} {
		r.bird(nil, "")
	}
	l.up(a, b)
	l.eventually("sync", func() bool { return l.routes.syncs() == 1 })
	for _, r := range []*router{a, b} {
		l.peer(r.addr).Password = "new" // which they do not know
	}
	l.set()
	l.eventually("both are replaced", func() bool { return l.status(a.addr).State != "Established" && l.status(b.addr).State != "Established" })
}
