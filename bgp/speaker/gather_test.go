package speaker

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// sink is the client's end: it notes each message as the prefixes in it.
type sink struct {
	grpc.ServerStream
	mu   sync.Mutex
	got  []string
	fail error
}

func (s *sink) SendMsg(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ev := m.(*api.WatchEventResponse)
	line := "peer"
	if ev.GetTable() != nil {
		line = ""
		for _, p := range ev.GetTable().Paths {
			line += string(p.Nlri.GetValue()) + fmt.Sprint(len(p.Pattrs))
		}
	}
	s.got = append(s.got, line)
	return s.fail
}

func (s *sink) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func table(prefixes ...string) *api.WatchEventResponse {
	t := &api.WatchEventResponse_TableEvent{}
	for _, p := range prefixes {
		path := &api.Path{}
		if p != "eor" {
			path.Nlri = &anypb.Any{TypeUrl: "type.googleapis.com/apipb.IPAddressPrefix", Value: []byte(p)}
			path.Pattrs = []*anypb.Any{{TypeUrl: "type.googleapis.com/apipb.OriginAttribute"}, {TypeUrl: "type.googleapis.com/apipb.NextHopAttribute"}}
		}
		t.Paths = append(t.Paths, path)
	}
	return &api.WatchEventResponse{Event: &api.WatchEventResponse_Table{Table: t}}
}

func TestGather(t *testing.T) {
	peer := &api.WatchEventResponse{Event: &api.WatchEventResponse_Peer{Peer: &api.WatchEventResponse_PeerEvent{}}}
	s := &sink{}
	g := gather(s)
	for _, m := range []*api.WatchEventResponse{
		table("a", "a"), table("b"), // together
		table("b"),       // another generation of b: never in one message with the first
		table("c"), peer, // the peer event stays behind the routes
		table("d"), table("eor"), table("e"),
	} {
		if err := g.SendMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	g.close()
	if want := []string{"a1a1b1", "b1c1", "peer", "d1", "0", "e1"}; !slices.Equal(s.seen(), want) {
		t.Errorf("sent %q, want %q", s.seen(), want)
	}
}

func TestGatherInTime(t *testing.T) {
	s := &sink{}
	g := gather(s)
	defer g.close()
	if err := g.SendMsg(table("a")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(s.seen()) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("a lone route was never sent")
		}
		time.Sleep(time.Millisecond)
	}
	// The error of a send that nobody waited for ends the stream at the next one.
	broken := errors.New("broken")
	s.mu.Lock()
	s.fail = broken
	s.mu.Unlock()
	var err error
	for deadline := time.Now().Add(10 * time.Second); err == nil; {
		if time.Now().After(deadline) {
			t.Fatal("a broken stream is never noticed")
		}
		err = g.SendMsg(table("b"))
	}
	if !errors.Is(err, broken) {
		t.Errorf("the stream ends with %v", err)
	}
}

func TestGatherBounds(t *testing.T) {
	s := &sink{}
	g := gather(s)
	for i := range gatherPaths {
		if err := g.SendMsg(table(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
	}
	g.close()
	if n := len(s.seen()); n == 0 || n > gatherPaths/8 {
		t.Errorf("%d messages of %d routes", n, gatherPaths)
	}
}
