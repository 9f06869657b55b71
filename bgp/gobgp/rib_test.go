package gobgp

import (
	"net/netip"
	"reflect"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/internal/model"
)

func learned(t *testing.T, prefix, hop string) *api.Path {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	path := &api.Path{Family: familyOf(p.Addr().Is6()), NeighborIp: "10.0.0.9"}
	put := func(m proto.Message) *anypb.Any {
		x, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	path.Nlri = put(&api.IPAddressPrefix{Prefix: p.Addr().String(), PrefixLen: uint32(p.Bits())})
	path.Pattrs = append(path.Pattrs, put(&api.OriginAttribute{}), put(&api.AsPathAttribute{}))
	if p.Addr().Is6() {
		path.Pattrs = append(path.Pattrs, put(&api.MpReachNLRIAttribute{Family: path.Family, NextHops: []string{hop, "fe80::1"}, Nlris: []*anypb.Any{path.Nlri}}))
	} else {
		path.Pattrs = append(path.Pattrs, put(&api.NextHopAttribute{NextHop: hop}))
	}
	return path
}

func TestDecode(t *testing.T) {
	via := func(hops ...string) (out []model.NextHop) {
		for _, h := range hops {
			out = append(out, model.NextHop{Addr: netip.MustParseAddr(h)})
		}
		return out
	}
	p4, q4, p6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2001:db8::/32")
	withdrawn := learned(t, "192.0.2.0/24", "10.0.0.9")
	withdrawn.IsWithdraw = true
	own, err := localPath(bgp.Advert{Prefix: p4})
	if err != nil {
		t.Fatal(err)
	}
	own.NeighborIp = "<nil>"
	other := learned(t, "192.0.2.0/24", "10.0.0.9")
	other.Family = &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_MULTICAST}
	broken := learned(t, "192.0.2.0/24", "10.0.0.9")
	broken.Nlri.Value = []byte{0xff, 0xff, 0xff}
	for name, c := range map[string]struct {
		paths []*api.Path
		want  []change
	}{
		"nothing":      {},
		"one":          {[]*api.Path{learned(t, "192.0.2.0/24", "10.0.0.9")}, []change{{prefix: p4, hops: via("10.0.0.9")}}},
		"host bits":    {[]*api.Path{learned(t, "192.0.2.77/24", "10.0.0.9")}, []change{{prefix: p4, hops: via("10.0.0.9")}}},
		"default":      {[]*api.Path{learned(t, "0.0.0.0/0", "10.0.0.9")}, []change{{prefix: q4, hops: via("10.0.0.9")}}},
		"IPv6":         {[]*api.Path{learned(t, "2001:db8::/32", "fd00::9")}, []change{{prefix: p6, hops: via("fd00::9")}}},
		"link-local":   {[]*api.Path{learned(t, "2001:db8::/32", "fe80::9")}, []change{{prefix: p6}}},
		"unresolvable": {[]*api.Path{learned(t, "192.0.2.0/24", "0.0.0.0")}, []change{{prefix: p4}}},
		"martian":      {[]*api.Path{learned(t, "127.0.0.53/32", "10.0.0.9")}, []change{{prefix: netip.MustParsePrefix("127.0.0.53/32"), martian: true}}},
		"withdrawn":    {[]*api.Path{withdrawn}, []change{{prefix: p4}}},
		"own":          {[]*api.Path{own}, []change{{prefix: p4, local: true}}},
		"other family": {[]*api.Path{other}, nil},
		"broken":       {[]*api.Path{broken}, nil},
		"ECMP, sorted and without duplicates, and another prefix": {
			[]*api.Path{
				learned(t, "192.0.2.0/24", "10.0.0.9"), learned(t, "192.0.2.0/24", "10.0.0.8"), learned(t, "192.0.2.0/24", "10.0.0.9"),
				learned(t, "0.0.0.0/0", "10.0.0.7"),
			},
			[]change{{prefix: p4, hops: via("10.0.0.8", "10.0.0.9")}, {prefix: q4, hops: via("10.0.0.7")}},
		},
	} {
		if got := decode(c.paths); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestMartian(t *testing.T) {
	for s, want := range map[string]bool{
		"0.0.0.0/0": false, "0.0.0.0/1": false, "96.0.0.0/3": false, "10.0.0.0/8": false, "100.64.0.1/32": false, "126.0.0.0/7": false,
		"169.253.0.0/16": false, "169.0.0.0/8": false, "223.255.255.0/24": false, "240.0.0.0/4": false, "255.255.255.254/32": false,
		"0.0.0.0/8": true, "0.0.0.0/32": true, "127.0.0.0/8": true, "127.0.0.53/32": true, "169.254.0.0/16": true,
		"169.254.169.254/32": true, "224.0.0.0/4": true, "239.255.255.255/32": true, "255.255.255.255/32": true,
		"::/0": false, "2000::/3": false, "fd00::/8": false, "fc00::/7": false, "fe00::/7": false, "fe80::/9": false, "fec0::/10": false,
		"64:ff9b::/96": false, "::/64": false,
		"::/128": true, "::1/128": true, "::ffff:0.0.0.0/96": true, "::ffff:10.0.0.1/128": true, "fe80::/10": true, "fe80::/64": true,
		"febf::1/128": true, "ff00::/8": true, "ff02::1/128": true,
	} {
		if got := martian(netip.MustParsePrefix(s).Masked()); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

func TestCommunities(t *testing.T) {
	want := []string{"1:2:3", "4200000000:1:2", "64512:7", "65535:65281"}
	path, err := localPath(bgp.Advert{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Communities: want})
	if err != nil {
		t.Fatal(err)
	}
	if got := communitiesOf(path); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, bad := range []string{"", "1", "1:2:3:4", "65536:1", "a:1", "1:-1", "4294967296:1:1"} {
		if _, _, err := parseCommunities([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	p := netip.MustParsePrefix("192.0.2.0/24")
	nlri, _ := anypb.New(&api.IPAddressPrefix{Prefix: p.Addr().String(), PrefixLen: 24})
	hop, _ := anypb.New(&api.NextHopAttribute{NextHop: "10.0.0.9"})
	paths := []*api.Path{{Family: familyOf(false), NeighborIp: "10.0.0.9", Nlri: nlri, Pattrs: []*anypb.Any{hop}}}
	for b.Loop() {
		if len(decode(paths)) != 1 {
			b.Fatal()
		}
	}
}
