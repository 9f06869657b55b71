package speaker

import (
	"bytes"
	"strings"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
)

// Bounds of a gathered message.
const (
	gatherPaths = 256
	gatherFor   = time.Millisecond
)

// gathered makes one message of many table events of the agent's watch, and leaves out of
// their paths what the agent does not look at. GoBGP sends an event for each UPDATE, with
// every attribute; with a hundred thousand routes that is most of what their way to the
// kernel costs. Others' watches see what GoBGP sends.
type gathered struct {
	grpc.ServerStream

	mu    sync.Mutex // guards what follows, and keeps sends one after the other
	batch []*api.Path
	timer *time.Timer
	err   error // of a send that nobody waited for; the next one returns it
}

func gather(ss grpc.ServerStream) *gathered {
	g := &gathered{ServerStream: ss}
	g.timer = time.AfterFunc(time.Hour, g.flushLate)
	g.timer.Stop()
	return g
}

// SendMsg sends m, or keeps its paths for at most gatherFor. The order of events stays.
func (g *gathered) SendMsg(m any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	ev, _ := m.(*api.WatchEventResponse)
	paths := ev.GetTable().GetPaths()
	if len(paths) == 0 || paths[0].Nlri == nil { // a peer event, or an End-of-RIB marker
		if err := g.flush(); err != nil {
			return err
		}
		return g.ServerStream.SendMsg(m)
	}
	// The reader takes a run of paths of one prefix for the whole set of them, so that two
	// events of one prefix must not meet.
	if n := len(g.batch); n > 0 && sameNLRI(g.batch[n-1], paths[0]) {
		if err := g.flush(); err != nil {
			return err
		}
	}
	if len(g.batch) == 0 {
		g.timer.Reset(gatherFor)
	}
	for _, p := range paths {
		g.batch = append(g.batch, slim(p))
	}
	if len(g.batch) >= gatherPaths {
		return g.flush()
	}
	return nil
}

// close sends what is left, when the watch is over.
func (g *gathered) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer.Stop()
	_ = g.flush() // nobody reads any more
}

func (g *gathered) flushLate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = g.flush()
}

// flush is called with mu held.
func (g *gathered) flush() error {
	if len(g.batch) == 0 {
		return nil
	}
	g.timer.Stop()
	m := &api.WatchEventResponse{Event: &api.WatchEventResponse_Table{Table: &api.WatchEventResponse_TableEvent{Paths: g.batch}}}
	g.batch = nil
	return g.ServerStream.SendMsg(m)
}

func sameNLRI(a, b *api.Path) bool {
	return a.Nlri != nil && b.Nlri != nil && bytes.Equal(a.Nlri.Value, b.Nlri.Value) && a.Nlri.TypeUrl == b.Nlri.TypeUrl
}

// slim keeps what bgp/gobgp decodes of a path (rib.go there).
func slim(p *api.Path) *api.Path {
	out := &api.Path{
		Nlri: p.Nlri, Family: p.Family, NeighborIp: p.NeighborIp,
		IsWithdraw: p.IsWithdraw, IsNexthopInvalid: p.IsNexthopInvalid,
	}
	for _, attr := range p.Pattrs {
		if strings.HasSuffix(attr.TypeUrl, ".NextHopAttribute") || strings.HasSuffix(attr.TypeUrl, ".MpReachNLRIAttribute") {
			out.Pattrs = append(out.Pattrs, attr)
		}
	}
	return out
}
