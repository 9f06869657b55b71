package last

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

func compile(t *testing.T, s string) model.Selector {
	t.Helper()
	sel, err := selector.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func full(t *testing.T) *model.Snapshot {
	return &model.Snapshot{
		Revision: 7,
		Nodes: []model.Node{{
			Name: "n1", Labels: map[string]string{"rack": "1"}, IPv4: netip.MustParsePrefix("192.0.2.1/24"),
			ASN: 64513, ListenPort: 1790, RouteReflectorClusterID: netip.MustParseAddr("1.2.3.4"),
			Tunnels: [model.Tunnels]model.TunnelEnd{{Addr: netip.MustParseAddr("10.0.0.2")}, {Addr: netip.MustParseAddr("10.0.0.3"), MAC: "66:1e:0c:8a:12:01"}},
		}},
		Pools: []model.Pool{{
			Name: "a", CIDR: netip.MustParsePrefix("10.0.0.0/16"), BlockSize: 26, NodeSelector: compile(t, "rack == '1'"),
			AllowedUses: []model.Use{model.UseWorkload}, VXLANMode: model.EncapNever,
		}},
		Blocks:       []model.Block{{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Node: "n1", Lent: []model.Loan{{Addr: netip.MustParseAddr("10.0.0.5"), Node: "n2"}}}},
		BlocksKnown:  true,
		Reservations: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
		IPAM:         model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 20, Cooldown: time.Minute},
		BGP:          model.BGPConfig{ASN: 64512, Mesh: true, ListenPort: 179, RoutePriority4: 1024, PrefixCommunities: []model.PrefixCommunities{{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Communities: []string{"1:2"}}}},
		Felix:        model.Felix{NATOutgoingAddress: netip.MustParseAddr("192.0.2.9"), NATPorts: model.PortRange{First: 1024, Last: 2047}, NATExcludesHosts: true, NATInterface: "eth+", VXLANOff: true, TunnelMTU: [model.Tunnels]int{1480, 0, 1430}, ExternalNodes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, RoutesResync: time.Minute},
		Peers:        []model.BGPPeer{{Name: "tor", NodeSelector: compile(t, "all()"), PeerIP: netip.MustParseAddr("192.0.2.254"), ASN: 65001, RestartTime: time.Minute}},
		Problems:     []model.Problem{{Object: model.Object{Kind: "IPPool", Name: "b"}, Message: "is wrong"}},
	}
}

// TestRoundTrip shows that the next agent gets what this one had.
func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	if _, err := Load(path, "n1"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a file: %v", err)
	}
	k := NewKeeper(path, "n1", slog.New(slog.DiscardHandler), func(*model.Snapshot) {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	want := full(t)
	k.Publish(want)
	var got *model.Snapshot
	for deadline := time.Now().Add(10 * time.Second); got == nil; time.Sleep(time.Millisecond) {
		got, _ = Load(path, "n1")
		if time.Now().After(deadline) {
			t.Fatal("nothing was written")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, pair := range [][2]model.Selector{{got.Pools[0].NodeSelector, want.Pools[0].NodeSelector}, {got.Peers[0].NodeSelector, want.Peers[0].NodeSelector}} {
		if pair[0].String() != pair[1].String() {
			t.Errorf("selector %q, want %q", pair[0], pair[1])
		}
	}
	if got.Pools[0].NamespaceSelector != nil || got.Peers[0].PeerSelector != nil {
		t.Error("selectors that were not there are")
	}
	for _, s := range []*model.Snapshot{got, want} {
		s.Pools[0].NodeSelector, s.Peers[0].NodeSelector = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%+v, written\n%+v", got, want)
	}
	if _, err := Load(path, "n2"); err == nil {
		t.Error("another node's snapshot was taken")
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want mode 0600", fi.Mode(), err)
	}
}

// TestRecall shows that what an earlier agent kept is published once, and only while the
// source has not told.
func TestRecall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	var got []*model.Snapshot
	open := func() *Keeper {
		return NewKeeper(path, "n1", slog.New(slog.DiscardHandler), func(s *model.Snapshot) { got = append(got, s) })
	}
	if open().recall(); len(got) != 0 {
		t.Fatal("something was published without a file")
	}
	if err := open().write(full(t)); err != nil {
		t.Fatal(err)
	}
	k := open()
	if k.recall(); len(got) != 1 || got[0].Revision != 7 {
		t.Fatalf("published %v, want what was kept", got)
	}
	if !got[0].BlocksKnown {
		t.Error("without VXLAN nothing is to be known of blocks")
	}
	vxlan := full(t)
	vxlan.Pools[0].VXLANMode = model.EncapCrossSubnet
	if err := open().write(vxlan); err != nil {
		t.Fatal(err)
	}
	if open().recall(); len(got) != 2 || got[1].BlocksKnown || len(got[1].Blocks) != 1 {
		t.Errorf("blocks of earlier are taken for all that there are: %+v", got[1])
	}
	got = got[:1]
	newer := &model.Snapshot{Revision: 1}
	k.Publish(newer)
	if k.recall(); len(got) != 2 || got[1] != newer {
		t.Errorf("published %v, want the source's and nothing after it", got)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if open().recall(); len(got) != 2 {
		t.Error("a broken file was published")
	}
}

// TestNoSecret shows that no password reaches the disk, and that what lacks it is neither
// used without one nor taken for unwanted.
func TestNoSecret(t *testing.T) {
	snap := full(t)
	snap.Peers[0].Password, snap.BGP.MeshPassword = "hunter2", "hunter3"
	data, err := encode("n1", snap)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "hunter") {
		t.Errorf("a password stands in %s", data)
	}
	got, err := decode("n1", data)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Peers) > 0 || got.BGP.Mesh || !got.BGP.Unknown {
		t.Errorf("peers %v, mesh %v, unknown %v: want none, false, true", got.Peers, got.BGP.Mesh, got.BGP.Unknown)
	}
	if snap.Peers[0].Password == "" || snap.BGP.MeshPassword == "" {
		t.Error("the snapshot itself was changed")
	}
}

// TestFields fails when the snapshot gets a field of an interface type that is not carried.
func TestFields(t *testing.T) {
	known := map[string]bool{"Pool.NodeSelector": true, "Pool.NamespaceSelector": true, "BGPPeer.NodeSelector": true, "BGPPeer.PeerSelector": true}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer:
			walk(typ.Elem())
		case reflect.Struct:
			if typ.PkgPath() != reflect.TypeFor[model.Snapshot]().PkgPath() {
				return
			}
			for i := range typ.NumField() {
				f := typ.Field(i)
				if f.Type.Kind() == reflect.Interface && !known[typ.Name()+"."+f.Name] {
					t.Errorf("%s.%s is an interface, which the file does not carry", typ.Name(), f.Name)
				}
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[model.Snapshot]())
}
