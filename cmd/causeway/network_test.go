package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/bgp/gobgp"
	watchkube "github.com/causeway-net/causeway/internal/watch/kube"
)

// TestReachable: what NetworkUnavailable asks of BGP.
func TestReachable(t *testing.T) {
	peer := func(state string, mesh bool) gobgp.PeerStatus {
		return gobgp.PeerStatus{Addr: netip.MustParseAddr("192.0.2.1"), State: state, Mesh: mesh}
	}
	const up, down = "Established", "Active"
	for name, c := range map[string]struct {
		wanted, synced bool
		peers          []gobgp.PeerStatus
		want           string
	}{
		"no address of this node":            {false, false, nil, "no address"},
		"alone":                              {true, false, nil, ""},
		"starting":                           {true, false, []gobgp.PeerStatus{peer(down, true)}, "0 of 1"},
		"established, not in sync":           {true, false, []gobgp.PeerStatus{peer(up, false)}, "1 of 1"},
		"in sync":                            {true, true, []gobgp.PeerStatus{peer(up, false), peer(down, false)}, ""},
		"the whole mesh is away":             {true, true, []gobgp.PeerStatus{peer(down, true)}, ""},
		"the fabric is away":                 {true, true, []gobgp.PeerStatus{peer(down, false)}, "no BGP session is established; peers: 192.0.2.1"},
		"the fabric is away, the mesh is up": {true, true, []gobgp.PeerStatus{peer(down, false), peer(up, true)}, ""},
	} {
		err := reachable(gobgp.Status{Wanted: c.wanted, Peers: c.peers}, c.synced)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestWatchTrouble: a kind that is not installed is no trouble of the datastore.
func TestWatchTrouble(t *testing.T) {
	optional := watchkube.WatchStatus{Name: "bgpfilters", Failing: "not found"}
	needed := watchkube.WatchStatus{Name: "nodes", Needed: true, Failing: "connection refused"}
	for name, c := range map[string]struct {
		st   watchkube.Status
		want string
	}{
		"starting":           {watchkube.Status{Answering: true}, "not everything was read yet"},
		"well":               {watchkube.Status{Synced: true, Answering: true, Watches: []watchkube.WatchStatus{optional}}, ""},
		"a needed one fails": {watchkube.Status{Synced: true, Answering: true, Watches: []watchkube.WatchStatus{optional, needed}}, "1 watches fail, that of nodes: connection refused"},
		"away":               {watchkube.Status{Synced: true, Watches: []watchkube.WatchStatus{optional, needed}}, "2 watches fail"},
	} {
		err := watchTrouble(c.st)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
