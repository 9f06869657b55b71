package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/ipamtest"
)

func TestPoolChoice(t *testing.T) {
	off := func(p *model.Pool) { p.Disabled = true }
	manual := func(p *model.Pool) { p.Manual = true }
	on := func(s string) func(*model.Pool) { return func(p *model.Pool) { p.NodeSelector = sel(t, s) } }
	ns := func(s string) func(*model.Pool) { return func(p *model.Pool) { p.NamespaceSelector = sel(t, s) } }
	tunnel := func(p *model.Pool) { p.AllowedUses = []model.Use{model.UseTunnel} }
	for name, c := range map[string]struct {
		pools  []model.Pool
		change func(*model.AddressRequest)
		want   string // prefix of the first address
		err    error
		text   string
	}{
		"no pool":       {nil, nil, "", ipam.ErrNoPool, "there is no IPPool"},
		"by name order": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26), pool(t, "b", "10.2.0.0/24", 26)}, nil, "10.1.", nil, ""},
		"disabled":      {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, off), pool(t, "b", "10.2.0.0/24", 26)}, nil, "10.2.", nil, ""},
		"other node":    {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, on("rack == 'n2'"))}, nil, "", ipam.ErrNoPool, "nodeSelector"},
		"no workloads":  {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, tunnel)}, nil, "", ipam.ErrNoPool, "allowedUses"},
		"manual":        {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)}, nil, "", ipam.ErrNoPool, "Manual"},
		"manual by name": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"a"} }, "10.1.", nil, ""},
		"manual by CIDR": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"10.1.0.0/24"} }, "10.1.", nil, ""},
		"order of the request": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26), pool(t, "b", "10.2.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"b", "a"} }, "10.2.", nil, ""},
		"unknown": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv4Pools = []string{"x"} }, "", ipam.ErrNoPool, `"x"`},
		"wrong family": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.IPv6Pools = []string{"a"} }, "", ipam.ErrNoPool, "family"},
		"namespace":         {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("team == 'x'"))}, func(r *model.AddressRequest) { r.NamespaceLabels = map[string]string{"team": "x"} }, "10.1.", nil, ""},
		"other namespace":   {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("team == 'x'"))}, func(r *model.AddressRequest) { r.NamespaceLabels = map[string]string{} }, "", ipam.ErrNoPool, "namespaceSelector"},
		"unknown namespace": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, ns("!has(team)"))}, nil, "", ipam.ErrNoPool, "not known"},
		"static": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, manual)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "10.1.0.77", nil, ""},
		"static nowhere": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.77")} }, "", ipam.ErrNotInPool, ""},
		"static disabled": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, off)},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "", ipam.ErrNotInPool, "disabled"},
		"static elsewhere": {[]model.Pool{pool(t, "a", "10.1.0.0/24", 26, on("rack == 'n2'"))},
			func(r *model.AddressRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.77")} }, "", ipam.ErrNoPool, "nodeSelector"},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, "n1", ipamtest.NewStore(), snapshot(c.pools...))
			r := req("c")
			if c.change != nil {
				c.change(&r)
			}
			ep, err := b.Assign(ctx, r)
			if !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v, want %v with %q", err, c.err, c.text)
			}
			if err == nil && !strings.HasPrefix(ep.Addresses[0].String(), c.want) {
				t.Errorf("got %v, want %s", ep.Addresses, c.want)
			}
		})
	}
}

func TestPrivateFolderNeedsPinnedPools(t *testing.T) {
	private := func(c *ipam.Config) { c.Private = true }
	b := open(t, "n1", ipamtest.NewStore(), snapshot(pool(t, "a", "10.1.0.0/24", 26)), private)
	if err := b.Ready(); !errors.Is(err, ipam.ErrNoPool) || !strings.Contains(err.Error(), "kubernetes.io/hostname") {
		t.Errorf("Ready: %v", err)
	}
	r := req("c")
	r.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.1")}
	if _, err := b.Assign(ctx, r); !errors.Is(err, ipam.ErrNotInPool) {
		t.Errorf("static: %v", err)
	}
	b.Set(snapshot(pool(t, "a", "10.1.0.0/24", 26, func(p *model.Pool) { p.NodeSelector = sel(t, "kubernetes.io/hostname == 'n1'") })))
	if err := b.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	b.add(req("c"))
}

func TestReady(t *testing.T) {
	b := open(t, "n1", ipamtest.NewStore(), nil)
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("without a snapshot: %v", err)
	}
	b.Set(&model.Snapshot{})
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) || !strings.Contains(err.Error(), "Node n1") {
		t.Errorf("without a node: %v", err)
	}
	b.Set(snapshot(pool(t, "a", "10.0.0.0/30", 30)))
	if err := b.Ready(); err != nil {
		t.Errorf("with a pool: %v", err)
	}
	for i := range 4 {
		b.add(req(fmt.Sprint(i)))
	}
	if _, err := b.Assign(ctx, req("5")); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("fifth of four: %v", err)
	}
	if err := b.Ready(); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("exhausted: %v", err)
	}
	b.Close()
	if err := b.Ready(); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("closed: %v", err)
	}
}

// TestWhyNothingIsFree: what a pod's event shows names each pool and why it could not serve.
func TestWhyNothingIsFree(t *testing.T) {
	s := ipamtest.NewStore()
	pools := []model.Pool{
		pool(t, "a", "10.0.0.0/30", 30), pool(t, "b", "10.0.1.0/30", 30),
		pool(t, "c", "10.0.2.0/30", 30, func(p *model.Pool) { p.Disabled = true }),
		pool(t, "d", "10.0.3.0/30", 30, func(p *model.Pool) { p.NodeSelector = sel(t, "rack == 'n2'") }),
		pool(t, "e", "10.0.4.0/30", 30, func(p *model.Pool) { p.NamespaceSelector = sel(t, "team == 'x'") }),
	}
	n1, n2 := open(t, "n1", s, snapshot(pools...)), open(t, "n2", s, snapshot(pools[0]))
	for i := range 4 {
		n2.add(req(fmt.Sprint("o", i)))
	}
	ask := func(id string) model.AddressRequest {
		r := req(id)
		r.NamespaceLabels = map[string]string{"team": "y"}
		return r
	}
	for i := range 4 {
		n1.add(ask(fmt.Sprint(i)))
	}
	_, err := n1.Assign(ctx, ask("x"))
	if !errors.Is(err, ipam.ErrExhausted) {
		t.Fatalf("%v, want ErrExhausted", err)
	}
	want := `assign x/eth0: no free address on node n1: ` +
		`pool a (10.0.0.0/30): every block has an owner, and no block of another node has a free address; ` +
		`pool b (10.0.1.0/30): every block has an owner, and no block of another node has a free address; ` +
		`pool c: .spec.disabled is true; pool d: .spec.nodeSelector "rack == \"n2\"" does not select node n1; ` +
		`pool e: .spec.namespaceSelector "team == \"x\"" does not select namespace "ns"`
	if err.Error() != want {
		t.Errorf("got\n%s\nwant\n%s", err, want)
	}
}
