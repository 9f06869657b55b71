package nftables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

func TestRules(t *testing.T) {
	marks, _ := policy.NewMarks(policy.DefaultMarkMask)
	var many []model.PortRange
	for i := range 5 {
		many = append(many, model.PortRange{First: uint16(10 * i), Last: uint16(10*i + i%2)})
	}
	p := netip.MustParsePrefix
	a4, n4, n6, p4 := policy.SetID("a4aaaaaaaaaaaaaaaaaaaa"), policy.SetID("n4bbbbbbbbbbbbbbbbbbbb"), policy.SetID("n6cccccccccccccccccccc"), policy.SetID("p4dddddddddddddddddddd")
	for _, c := range []struct {
		family policy.Family
		rule   policy.Rule
		want   []string
	}{
		{policy.IPv4, policy.Rule{Action: policy.Allow}, []string{"counter meta mark set meta mark or 0x10000 return"}},
		{policy.IPv4, policy.Rule{Action: policy.Pass, NotProtocol: 17}, []string{"meta l4proto != 17 counter meta mark set meta mark or 0x20000 return"}},
		{policy.IPv4, policy.Rule{Action: policy.Return, Protocol: 47}, []string{"meta l4proto 47 counter return"}},
		{policy.IPv4, policy.Rule{Action: policy.Count}, []string{"counter"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, NotProtocol: 17}, []string{"meta l4proto 6 counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, NotProtocol: 6}, nil},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Src: policy.Peer{NotNet: p("0.0.0.0/0")}}, nil},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Src: policy.Peer{Net: p("0.0.0.0/0")}}, []string{"counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Src: policy.Peer{Net: p("10.0.0.0/8"), NotIn: []policy.SetID{a4}}, Dst: policy.Peer{NotNet: p("10.1.0.0/16"), InPort: []policy.SetID{p4}, In: []policy.SetID{n4}}},
			[]string{"ip saddr 10.0.0.0/8 ip daddr != 10.1.0.0/16 ip saddr != @a4aaaaaaaaaaaaaaaaaaaa ip daddr . meta nfproto @n4bbbbbbbbbbbbbbbbbbbb ip daddr . meta l4proto . th dport @p4dddddddddddddddddddd counter drop"}},
		{policy.IPv6, policy.Rule{Action: policy.Deny, Src: policy.Peer{NotIn: []policy.SetID{n6}}}, []string{"ip6 saddr . meta nfproto != @n6cccccccccccccccccccc counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Log, Log: &policy.LogOptions{Prefix: "a \"b\"\n$c", PerMinute: 60, Burst: 10}},
			[]string{`limit rate 60/minute burst 10 packets counter log prefix "a _b___c " level notice`}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 1, ICMP: &policy.ICMPMatch{Type: 3, AnyCode: true}, NotICMP: &policy.ICMPMatch{Type: 3, Code: 1}},
			[]string{"meta l4proto 1 icmp type 3 icmp type . icmp code != { 3 . 1 } counter drop"}},
		{policy.IPv6, policy.Rule{Action: policy.Deny, Protocol: 58, ICMP: &policy.ICMPMatch{Type: 128, Code: 0}, NotICMP: &policy.ICMPMatch{Type: 1, AnyCode: true}},
			[]string{"meta l4proto 58 icmpv6 type 128 icmpv6 code 0 icmpv6 type != 1 counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, Dst: policy.Peer{Ports: many[:2]}}, []string{
			"meta l4proto 6 th dport 0 counter drop", "meta l4proto 6 th dport 10-11 counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, Src: policy.Peer{Ports: many}}, []string{"meta l4proto 6 th sport { 0, 10-11, 20, 30-31, 40 } counter drop"}},
		{policy.IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, Src: policy.Peer{NotPorts: many[:2]}}, []string{"meta l4proto 6 th sport != 0 th sport != 10-11 counter drop"}},
	} {
		if got := (dialect{marks}).rule(&c.rule, c.family); !slices.Equal(got, c.want) {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string][2]bool{"eth0": {true, true}, "eth0.100": {true, true}, "eth0:1": {true, false}, `a"b`: {}, "a*": {}, "a$b": {}, "a b": {}, "é": {}, "averyverylongna-": {false, true}} {
		if expressible(name) != want[0] || identifier(name) != want[1] {
			t.Errorf("%q: expressible %v, identifier %v", name, expressible(name), identifier(name))
		}
	}
	long := rule{"drop", strings.Repeat("é\"x", 100)}.remark()
	if len(long) >= commentMax || strings.ContainsAny(long, "\"é") || !strings.HasPrefix(long, rule{"drop", strings.Repeat("é\"x", 100)}.digest()+" ") {
		t.Errorf("%q", long)
	}
}

// TestKeys has what is wanted and what the kernel says be one and the same.
func TestKeys(t *testing.T) {
	for _, c := range []struct {
		s    set
		key  string
		text string
	}{
		{set{kind: kindIP, family: policy.IPv4}, "\x0a\x00\x00\x01", "10.0.0.1"},
		{set{kind: kindDispatch}, ifaceKey("cali0"), `"cali0"`},
		{set{kind: kindSource, family: policy.IPv6}, sourceKey("cali0", netip.MustParsePrefix("fd00::1/128")), `"cali0" . fd00::1`},
		{set{kind: kindGrant, family: policy.IPv4}, grantKey("cali0", netip.MustParsePrefix("0.0.0.0/0")), `"cali0" . 0.0.0.0/0`},
		{set{kind: kindGrant, family: policy.IPv6}, grantKey("cali0", netip.MustParsePrefix("fd00::/9")), `"cali0" . fd00::/9`},
		{set{kind: kindNet, family: policy.IPv4}, (&set{kind: kindNet, family: policy.IPv4}).memberKey(policy.Member{Prefix: netip.MustParsePrefix("10.1.0.0/17")}), "10.1.0.0/17 . ipv4"},
		{set{kind: kindNet, family: policy.IPv6}, (&set{kind: kindNet, family: policy.IPv6}).memberKey(policy.Member{Prefix: netip.MustParsePrefix("fd00::1/128")}), "fd00::1 . ipv6"},
		{set{kind: kindNet, family: policy.IPv4}, "\x0a\x00\x00\x01\x02\x00\x00\x00\x0a\x00\x00\x04\x02\x00\x00\x00", "10.0.0.1-10.0.0.4 . ipv4"},
		{set{kind: kindIPPort, family: policy.IPv4}, (&set{kind: kindIPPort, family: policy.IPv4}).memberKey(policy.Member{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Protocol: 17, Port: 53}), "10.0.0.1 . 17 . 53"},
		{set{kind: kindNumber}, numberKey(7), "7"},
	} {
		if got := strings.Join(c.s.text(c.key), " . "); got != c.text {
			t.Errorf("%q: %s; want %s", c.key, got, c.text)
		}
		want := c.s.keyLen()
		if c.s.ranges() {
			want *= 2
		}
		if len(c.key) != want {
			t.Errorf("%s: key of %d bytes; want %d", c.text, len(c.key), want)
		}
	}
}
