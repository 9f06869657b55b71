package dataplane

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestWorkloadRoutes(t *testing.T) {
	ep := model.Endpoint{Addresses: []netip.Addr{addr("10.244.0.5"), addr("fd00::5")}}
	if got := WorkloadRoutes(ep); got != nil {
		t.Errorf("an endpoint without link has routes %v", got)
	}
	ep.HostInterface = "cali0123456789a"
	got := WorkloadRoutes(ep)
	want := []model.Route{
		{Prefix: prefix("10.244.0.5/32"), NextHops: []model.NextHop{{Device: "cali0123456789a"}}},
		{Prefix: prefix("fd00::5/128"), NextHops: []model.NextHop{{Device: "cali0123456789a"}}},
	}
	if !slices.EqualFunc(got, want, model.Route.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBlockRoutes(t *testing.T) {
	snap := &model.Snapshot{Blocks: []model.Block{
		{CIDR: prefix("10.244.0.0/26"), Node: "a"},
		{CIDR: prefix("10.244.0.64/26"), Node: "b"},
		{CIDR: prefix("10.245.0.1/32"), Node: "a"},
		{CIDR: prefix("fd00::/122"), Node: "a"},
	}}
	got := Prefixes(BlockRoutes(OwnBlocks(snap, "a")))
	if want := []netip.Prefix{prefix("10.244.0.0/26"), prefix("fd00::/122")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOutside(t *testing.T) {
	snap := &model.Snapshot{Blocks: []model.Block{{CIDR: prefix("10.244.0.0/26"), Node: "a"}, {CIDR: prefix("10.244.0.64/26"), Node: "b"}}}
	eps := []model.Endpoint{
		{HostInterface: "cali1", Addresses: []netip.Addr{addr("10.244.0.70")}},
		{HostInterface: "cali2", Addresses: []netip.Addr{addr("10.244.0.1"), addr("fd00::1")}},
		{Addresses: []netip.Addr{addr("10.244.0.71")}}, // not wired
	}
	for i, want := range [][]netip.Addr{{addr("10.244.0.70")}, {addr("fd00::1")}, nil} {
		if got := Outside(OwnBlocks(snap, "a"), eps[i]); !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", eps[i].Addresses, got, want)
		}
	}
}

func TestGuarded(t *testing.T) {
	snap := &model.Snapshot{
		Nodes: []model.Node{{Name: "a", IPv4: prefix("192.0.2.1/24"), IPv6: prefix("fd00::1/64")}, {Name: "b", IPv4: prefix("192.0.2.2/32")}},
		Peers: []model.BGPPeer{{Name: "tor", PeerIP: addr("192.0.2.254")}, {Name: "by-selector"}},
	}
	own, others := Guarded(snap, "a")
	if want := []netip.Addr{addr("192.0.2.1"), addr("fd00::1")}; !slices.Equal(own, want) {
		t.Errorf("own: got %v, want %v", own, want)
	}
	if want := []netip.Addr{addr("192.0.2.2"), addr("192.0.2.254")}; !slices.Equal(others, want) {
		t.Errorf("others: got %v, want %v", others, want)
	}
}
