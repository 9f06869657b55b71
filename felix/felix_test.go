package felix

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// fakeRoutes keeps candidates as the route table would.
type fakeRoutes struct {
	have   map[model.Owner]map[netip.Prefix]model.Route
	synced []model.Owner
	// guarded are the addresses of this node, and of others.
	guarded [2][]netip.Addr
}

func newFakeRoutes() *fakeRoutes {
	return &fakeRoutes{have: map[model.Owner]map[netip.Prefix]model.Route{}}
}

func (f *fakeRoutes) Replace(o model.Owner, rs []model.Route) {
	f.have[o] = map[netip.Prefix]model.Route{}
	f.Update(o, model.RouteUpdate{Set: rs})
}

func (f *fakeRoutes) Update(o model.Owner, u model.RouteUpdate) {
	for _, r := range u.Set {
		f.have[o][r.Prefix] = r
	}
	for _, p := range u.Delete {
		delete(f.have[o], p)
	}
}
func (f *fakeRoutes) Guard(own, others []netip.Addr) {
	f.guarded = [2][]netip.Addr{own, others}
}
func (f *fakeRoutes) InSync(o model.Owner) { f.synced = append(f.synced, o) }
func (f *fakeRoutes) Wait(_ context.Context, ps ...netip.Prefix) error {
	for _, p := range ps {
		if _, ok := f.have[model.OwnerWorkload][p]; !ok {
			return errors.New("waiting for a route nobody asked for: " + p.String())
		}
	}
	return nil
}

type fakeRules struct{ err error }

func (f fakeRules) Wait(context.Context) error { return f.err }

// fakePolicy is who was attached and not detached.
type fakePolicy struct {
	have map[model.AttachmentKey]model.Endpoint
	own  []netip.Prefix
	lent []netip.Addr
	err  error
}

func newFakePolicy() *fakePolicy { return &fakePolicy{have: map[model.AttachmentKey]model.Endpoint{}} }

func (f *fakePolicy) Restore(eps ...model.Endpoint) {
	for _, ep := range eps {
		f.have[ep.Key] = ep
	}
}

func (f *fakePolicy) Attach(_ context.Context, ep model.Endpoint) error {
	f.have[ep.Key] = ep
	return f.err
}
func (f *fakePolicy) Detach(ep model.Endpoint) { delete(f.have, ep.Key) }
func (f *fakePolicy) SetBlocks(own []netip.Prefix, lent []netip.Addr) {
	f.own, f.lent = own, lent
}

func noNAT(_, _ model.OutgoingNAT) {}

func endpoint(id, addr string) model.Endpoint {
	return model.Endpoint{
		Key: model.AttachmentKey{ContainerID: id, IfName: "eth0"}, HostInterface: "cali" + id,
		Addresses: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

func TestLifeOfAPod(t *testing.T) {
	routes, policy, outside := newFakeRoutes(), newFakePolicy(), []netip.Addr(nil)
	d := New(Config{Node: "a", Routes: routes, Rules: []Rules{fakeRules{}}, Policy: policy, Outside: func(a []netip.Addr) { outside = a }, NAT: noNAT},
		[]model.Endpoint{endpoint("old", "10.0.0.1")})
	if _, ok := routes.have[model.OwnerWorkload][netip.MustParsePrefix("10.0.0.1/32")]; !ok {
		t.Error("a pod of the journal has no route")
	}
	if !slices.Equal(routes.synced, []model.Owner{model.OwnerWorkload}) {
		t.Errorf("in sync before the snapshot: %v", routes.synced)
	}

	d.Set(&model.Snapshot{
		Nodes: []model.Node{{Name: "a", IPv4: netip.MustParsePrefix("192.0.2.1/24"), Tunnels: [model.Tunnels]model.TunnelEnd{{Addr: netip.MustParseAddr("10.0.0.8")}}}, {Name: "b", IPv4: netip.MustParsePrefix("192.0.2.2/24")}},
		Blocks: []model.Block{
			{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Node: "a", Lent: []model.Loan{{Addr: netip.MustParseAddr("10.0.0.9"), Node: "b"}}},
			{CIDR: netip.MustParsePrefix("10.0.0.64/26"), Node: "b", Lent: []model.Loan{{Addr: netip.MustParseAddr("10.0.0.70"), Node: "a"}}},
		},
	})
	if g := routes.guarded; !slices.Equal(g[0], []netip.Addr{netip.MustParseAddr("192.0.2.1")}) || !slices.Equal(g[1], []netip.Addr{netip.MustParseAddr("192.0.2.2")}) {
		t.Errorf("guarded: %v", g)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.8")}; len(policy.own) != 1 || !slices.Equal(policy.lent, want) {
		t.Errorf("policy knows of the blocks %v, lent %v, want one and %v", policy.own, policy.lent, want)
	}
	if len(routes.have[model.OwnerBlock]) != 1 || len(outside) != 0 {
		t.Errorf("blocks %v, outside %v", routes.have[model.OwnerBlock], outside)
	}

	ctx := context.Background()
	borrowed := endpoint("new", "10.0.0.70")
	if err := d.Attach(ctx, borrowed); err != nil {
		t.Fatal(err)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.0.0.70")}; !slices.Equal(outside, want) {
		t.Errorf("outside %v, want %v", outside, want)
	}
	if err := d.Detach(ctx, borrowed); err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(ctx, borrowed); err != nil {
		t.Errorf("second Detach: %v", err)
	}
	if len(outside) != 0 || len(routes.have[model.OwnerWorkload]) != 1 || len(policy.have) != 1 {
		t.Errorf("after Detach: outside %v, routes %v, policy of %v", outside, routes.have[model.OwnerWorkload], policy.have)
	}
}

// TestOutside walks at random: what is told of addresses outside the blocks must at each
// moment be what all pods and blocks together say.
func TestOutside(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var told []netip.Addr
	routes := newFakeRoutes()
	d := New(Config{Node: "a", Routes: routes, Policy: newFakePolicy(), Outside: func(a []netip.Addr) { told = a }, NAT: noNAT}, []model.Endpoint{endpoint("0", "10.0.0.0")})
	pods := map[int]bool{0: true}
	var blocks []model.Block
	for step := range 2000 {
		switch i := random.IntN(256); {
		case step%10 == 0:
			blocks = nil
			for b := range 8 {
				if node := []string{"a", "b", ""}[random.IntN(3)]; node != "" {
					blocks = append(blocks, model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(32 * b)}), 27), Node: node})
				}
			}
			d.Set(&model.Snapshot{Blocks: blocks})
		case pods[i]:
			delete(pods, i)
			if err := d.Detach(t.Context(), endpoint(strconv.Itoa(i), "10.0.0."+strconv.Itoa(i))); err != nil {
				t.Fatal(err)
			}
		default:
			pods[i] = true
			for range 1 + random.IntN(2) { // an ADD may be repeated
				if err := d.Attach(t.Context(), endpoint(strconv.Itoa(i), "10.0.0."+strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
			}
		}
		var want []netip.Addr
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			own := slices.ContainsFunc(blocks, func(b model.Block) bool { return b.Node == "a" && b.CIDR.Contains(a) })
			if pods[i] && !own {
				want = append(want, a)
			}
		}
		if !slices.Equal(told, want) {
			t.Fatalf("step %d: told %v, want %v", step, told, want)
		}
	}
}

// TestNAT tells what is translated with the first snapshot, and later only what is new.
func TestNAT(t *testing.T) {
	var told [][2]model.OutgoingNAT
	d := New(Config{Node: "a", Routes: newFakeRoutes(), Policy: newFakePolicy(), Outside: func([]netip.Addr) {}, NAT: func(v4, v6 model.OutgoingNAT) {
		told = append(told, [2]model.OutgoingNAT{v4, v6})
	}}, nil)
	pools := func(nat bool) []model.Pool {
		uses := []model.Use{model.UseWorkload}
		return []model.Pool{{CIDR: netip.MustParsePrefix("10.0.0.0/16"), AllowedUses: uses}, {CIDR: netip.MustParsePrefix("fd00::/64"), NATOutgoing: nat, AllowedUses: uses}}
	}
	own := []netip.Prefix{netip.MustParsePrefix("fd00::/64")}
	on := model.OutgoingNAT{Sources: own, Exempt: own}
	for i, step := range []struct {
		snap *model.Snapshot
		told int
		v6   model.OutgoingNAT
	}{
		{&model.Snapshot{Pools: pools(false)}, 1, model.OutgoingNAT{}},
		{&model.Snapshot{Pools: pools(false), Revision: 2}, 1, model.OutgoingNAT{}},
		{&model.Snapshot{Pools: pools(true)}, 2, on},
		{&model.Snapshot{Pools: pools(true), Blocks: []model.Block{{CIDR: netip.MustParsePrefix("fd00::/122"), Node: "a"}}}, 2, on},
		{&model.Snapshot{}, 3, model.OutgoingNAT{}},
	} {
		d.Set(step.snap)
		if n := len(told); n != step.told || !told[n-1][0].Equal(model.OutgoingNAT{}) || !told[n-1][1].Equal(step.v6) {
			t.Errorf("step %d: told %+v", i, told)
		}
	}
}

// TestNoRulesNoRoute holds I2: no route makes a pod reachable before its rules and its policy are in.
func TestNoRulesNoRoute(t *testing.T) {
	broken := errors.New("no iptables")
	for what, cfg := range map[string]Config{
		"rules":  {Rules: []Rules{fakeRules{broken}}, Policy: newFakePolicy()},
		"policy": {Policy: &fakePolicy{have: map[model.AttachmentKey]model.Endpoint{}, err: broken}},
	} {
		routes := newFakeRoutes()
		cfg.Node, cfg.Routes, cfg.Outside, cfg.NAT = "a", routes, func([]netip.Addr) {}, noNAT
		d := New(cfg, nil)
		ep := endpoint("x", "10.0.0.1")
		if err := d.Attach(context.Background(), ep); !errors.Is(err, broken) {
			t.Errorf("%s: Attach: %v", what, err)
		}
		if len(routes.have[model.OwnerWorkload]) != 0 {
			t.Errorf("a route without %s", what)
		}
		if err := d.Detach(context.Background(), ep); err != nil || len(cfg.Policy.(*fakePolicy).have) != 0 {
			t.Errorf("%s: Detach after it: %v, left %v", what, err, cfg.Policy.(*fakePolicy).have)
		}
	}
}
