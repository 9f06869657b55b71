package ipam_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

// TestBlocksOfHostsAreNotClaimed: a pool over the nodes' own subnet cuts no node off. Its
// blocks that hold a node or a ToR stay unclaimed, also for who asks for an address in them.
func TestBlocksOfHostsAreNotClaimed(t *testing.T) {
	s := ipamtest.NewStore()
	snap := snapshot(pool(t, "a", "192.0.2.0/28", 30)) // .0, .4, .8, .12
	snap.Nodes[0].IPv4 = netip.MustParsePrefix("192.0.2.5/24")
	snap.Nodes[1].IPv4 = netip.MustParsePrefix("192.0.2.9/24")
	snap.Peers = []model.BGPPeer{{Name: "tor", PeerIP: netip.MustParseAddr("192.0.2.1")}}
	b := open(t, "n1", s, snap)
	for _, id := range []string{"1", "2", "3", "4"} {
		if got := b.add(req(id)); !netip.MustParsePrefix("192.0.2.12/30").Contains(netip.MustParseAddr(got[0])) {
			t.Errorf("%s was given; only 192.0.2.12/30 has no host", got)
		}
	}
	if _, err := b.Assign(ctx, req("5")); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "192.0.2.5 of Node n1") {
		t.Errorf("%v, want ErrExhausted that names a node", err)
	}
	for _, addr := range []string{"192.0.2.0", "192.0.2.1", "192.0.2.5", "192.0.2.10"} {
		r := req("x" + addr)
		r.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
		if _, err := b.Assign(ctx, r); !errors.Is(err, ipam.ErrReserved) {
			t.Errorf("%s on request: %v, want ErrReserved", addr, err)
		}
	}
	b.flush()
	if got := blocks(t, s); len(got) != 1 || got["192.0.2.12/30"] == nil {
		t.Errorf("blocks %v, want 192.0.2.12/30 alone", got)
	}
	problems := b.Problems()
	if len(problems) != 1 || problems[0].Object.Name != "a" || problems[0].Field != ".spec.cidr" || !strings.Contains(problems[0].Message, "192.0.2.5, the address of Node n1") {
		t.Errorf("problems %v, want one of .spec.cidr of IPPool a that names Node n1", problems)
	}
}

// TestPeerThatIsAPod: the address of a router that is a pod is one of a pool, and keeps no
// block from being claimed.
func TestPeerThatIsAPod(t *testing.T) {
	snap := snapshot(pool(t, "a", "10.0.0.0/30", 30))
	snap.Nodes[0].IPv4 = netip.MustParsePrefix("192.0.2.5/24")
	snap.Peers = []model.BGPPeer{{Name: "router", PeerIP: netip.MustParseAddr("10.0.0.1")}}
	b := open(t, "n1", ipamtest.NewStore(), snap)
	b.add(req("1"))
	if p := b.Problems(); len(p) != 0 {
		t.Errorf("problems %v, want none", p)
	}
}
