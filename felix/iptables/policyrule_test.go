package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// lookup walks the tree as the kernel does: it returns the chain that a packet of the
// interface ends in, and how many rules it met.
func lookup(t *testing.T, chains []Chain, root, iface string) (leaf string, met int) {
	t.Helper()
	byName := map[string]Chain{}
	for _, c := range chains {
		if _, twice := byName[c.Name]; twice || len(c.Name) > MaxChainName {
			t.Fatalf("chain %s", c.Name)
		}
		byName[c.Name] = c
	}
	at := root
walk:
	for {
		c, node := byName[at]
		if !node {
			return at, met
		}
		for _, r := range c.Rules {
			met++
			begin, wild := strings.CutSuffix(r.Match[1], "+")
			if r.Match[0] != "-i" || r.Action[0] != "-g" || len(r.Match[1]) > 15 {
				t.Fatalf("rule %v %v", r.Match, r.Action)
			}
			if iface == begin || wild && strings.HasPrefix(iface, begin) {
				at = r.Action[1]
				continue walk
			}
		}
		return "", met
	}
}

func TestDispatch(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	node, leaf := func(b string) string { return "cali-de-" + b }, func(n string) string { return "cali-we-" + n }
	check := func(names []string, others ...string) (most int) {
		t.Helper()
		slices.Sort(names)
		names = slices.Compact(names)
		chains := dispatch(names, "-i", "root", node, leaf)
		for _, n := range names {
			got, met := lookup(t, chains, "root", n)
			if most = max(most, met); got != leaf(n) {
				t.Fatalf("%s of %v: %q", n, names, got)
			}
		}
		for _, n := range others {
			if got, _ := lookup(t, chains, "root", n); !slices.Contains(names, n) && got != "" {
				t.Fatalf("%s, none of %v: %q", n, names, got)
			}
		}
		return most
	}
	check(nil, "cali0")
	long := []string{"cali"}
	for len(long[len(long)-1]) < 15 { // each begins the next
		long = append(long, long[len(long)-1]+"a", long[len(long)-1]+"b")
	}
	check(long, "calia0", "eth0")
	for _, n := range []int{1, 10, 110, 500, 2000} {
		var names, others []string
		for range n {
			names = append(names, fmt.Sprintf("cali%011x", rng.Uint64()&0xfffffffffff))
			others = append(others, names[0][:4+rng.IntN(11)], fmt.Sprintf("cali%011x", rng.Uint64()&0xfffffffffff))
		}
		most := check(names, others...)
		t.Logf("%d names: at most %d rules", n, most)
		if most > 60 {
			t.Errorf("%d names: %d rules", n, most)
		}
	}
	for range 300 {
		var names, others []string
		for range rng.IntN(60) {
			n := "cali"
			for range rng.IntN(8) {
				n += string(rune('a' + rng.IntN(2)))
			}
			names, others = append(names, n), append(others, n+"a", n[:len(n)-1])
		}
		check(names, others...)
	}
}

func TestPolicyRules(t *testing.T) {
	marks, _ := policy.NewMarks(policy.DefaultMarkMask)
	var many []model.PortRange
	for i := range 16 {
		many = append(many, model.PortRange{First: uint16(10 * i), Last: uint16(10*i + i%2)})
	}
	p := netip.MustParsePrefix
	a4, p4 := policy.SetID("a4aaaaaaaaaaaaaaaaaaaa"), policy.SetID("p4bbbbbbbbbbbbbbbbbbbb")
	for _, c := range []struct {
		family Family
		rule   policy.Rule
		want   []string
	}{
		{IPv4, policy.Rule{Action: policy.Allow}, []string{"-g cali-allow"}},
		{IPv4, policy.Rule{Action: policy.Pass, NotProtocol: 17}, []string{"! -p udp -g cali-pass"}},
		{IPv4, policy.Rule{Action: policy.Return, Protocol: 47}, []string{"-p 47 -j RETURN"}},
		{IPv4, policy.Rule{Action: policy.Count}, []string{""}},
		{IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, NotProtocol: 17}, []string{"-p tcp -j DROP"}},
		{IPv4, policy.Rule{Action: policy.Deny, Protocol: 6, NotProtocol: 6}, nil},
		{IPv4, policy.Rule{Action: policy.Deny, Src: policy.Peer{Net: p("10.0.0.0/8"), NotIn: []policy.SetID{a4}}, Dst: policy.Peer{NotNet: p("10.1.0.0/16"), InPort: []policy.SetID{p4}}},
			[]string{"-s 10.0.0.0/8 ! -d 10.1.0.0/16 -m set ! --match-set cali40a4aaaaaaaaaaaaaaaaaaaa src -m set --match-set cali40p4bbbbbbbbbbbbbbbbbbbb dst,dst -j DROP"}},
		{IPv4, policy.Rule{Action: policy.Log, Log: &policy.LogOptions{Prefix: strings.Repeat("x", 29), PerMinute: 60, Burst: 10}},
			[]string{"-m limit --limit 60/minute --limit-burst 10 -j LOG --log-prefix xxxxxxxxxxxxxxxxxxxxxxxxxxxxx --log-level 5"}},
		{IPv4, policy.Rule{Action: policy.Deny, Protocol: 1, ICMP: &policy.ICMPMatch{Type: 3, AnyCode: true}, NotICMP: &policy.ICMPMatch{Type: 3, Code: 1}},
			[]string{"-p icmp -m icmp --icmp-type 3 -m icmp ! --icmp-type 3/1 -j DROP"}},
		{IPv4, policy.Rule{Action: policy.Deny, Protocol: 1, NotICMP: &policy.ICMPMatch{Type: 255, Code: 1}}, []string{`-p icmp -m u32 ! --u32 "0>>22&0x3c@0>>16=65281" -j DROP`}},
		{IPv6, policy.Rule{Action: policy.Deny, Protocol: 58, ICMP: &policy.ICMPMatch{Type: 128, AnyCode: true}}, []string{"-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DROP"}},
		{IPv4, policy.Rule{Action: policy.Allow, Protocol: 6, Dst: policy.Peer{Ports: many}}, []string{
			"-p tcp -m multiport --dports 0,10:11,20,30:31,40,50:51,60,70:71,80,90:91 -g cali-allow",
			"-p tcp -m multiport --dports 100,110:111,120,130:131,140,150:151 -g cali-allow"}},
		{IPv4, policy.Rule{Action: policy.Allow, Protocol: 6, Src: policy.Peer{NotPorts: many}}, []string{
			"-p tcp -m multiport ! --sports 0,10:11,20,30:31,40,50:51,60,70:71,80,90:91 -m multiport ! --sports 100,110:111,120,130:131,140,150:151 -g cali-allow"}},
	} {
		var got []string
		for _, r := range (dialect{c.family, marks}).rule(nil, &c.rule, "") {
			l, err := compile(r)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l.text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}
