package main

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/causeway-net/causeway/bgp/gobgp"
	"github.com/causeway-net/causeway/internal/model"
)

// TestNodeLost holds I4: a Node that is no longer in the datastore ends no session.
func TestNodeLost(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	a := &agent{o: options{nodeName: "n1"}, log: log, snap: &model.Snapshot{}, bgp: gobgp.New(gobgp.Config{Log: log}), marked: true}
	nobody := &model.Snapshot{Revision: 1}
	there := &model.Snapshot{
		Revision: 2,
		Nodes:    []model.Node{{Name: "n1", IPv4: netip.MustParsePrefix("192.0.2.1/24")}},
		Blocks:   []model.Block{{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Node: "n1"}},
		BGP:      model.BGPConfig{ASN: 64512, ListenPort: 179},
	}
	for i, step := range []struct {
		snap     *model.Snapshot
		wanted   bool
		problems int
	}{{a.snap, false, 0}, {nobody, false, 1}, {there, true, 0}, {nobody, true, 1}, {there, true, 0}} {
		a.snap = step.snap
		a.advertise()
		st := a.bgp.Status()
		if st.Wanted != step.wanted || len(st.Adverts) != len(a.adverts) || step.wanted && len(st.Adverts) != 1 || len(a.bgpProblems) != step.problems {
			t.Errorf("step %d: %+v, adverts %v, problems %v", i, st, a.adverts, a.bgpProblems)
		}
	}
}
