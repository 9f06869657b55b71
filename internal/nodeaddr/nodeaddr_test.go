package nodeaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		v6   bool
		want string // String, or an error's words after "!"
	}{
		{"", false, "kubernetes-internal-ip"},
		{"kubernetes-internal-ip", true, "kubernetes-internal-ip"},
		{" first-found ", false, "first-found"},
		{"none", true, "none"}, {"off", true, "none"},
		{"can-reach=192.0.2.1", false, "can-reach=192.0.2.1"},
		{"can-reach=www.example.net", false, "can-reach=www.example.net"},
		{"can-reach=2001:db8::1", true, "can-reach=2001:db8::1"},
		{"interface=eth0, en.*", false, "interface=eth0, en.*"},
		{"skip-interface=^enp6s0f0,eth[3-9]", false, "skip-interface=^enp6s0f0,eth[3-9]"},
		{"cidr=10.0.0.0/8,192.0.2.0/24", false, "cidr=10.0.0.0/8,192.0.2.0/24"},
		{"cidr=10.0.0.0/8,fd00::/8", true, "cidr=10.0.0.0/8,fd00::/8"},

		{"firstfound", false, `!"firstfound": no such method; want kubernetes-internal-ip, first-found,`},
		{"interface", false, "!interface needs a value"},
		{"first-found=eth0", false, "!first-found takes no value"},
		{"none=1", false, "!none takes no value"},
		{"interface=eth0,", false, "!an empty regular expression"},
		{"interface=eth(", false, `!regular expression "eth("`},
		{"cidr=10.0.0.0", false, `!"10.0.0.0" is no CIDR`},
		{"cidr=fd00::/8", false, "!none of them is IPv4"},
		{"can-reach=", false, `!"" is neither`},
		{"can-reach=192.0.2.1:80", false, "!is neither an address nor a name"},
		{"can-reach=2001:db8::1", false, "!2001:db8::1 is no IPv4 address"},
		{"can-reach=192.0.2.1", true, "!192.0.2.1 is no IPv6 address"},
	} {
		m, err := Parse(c.in, c.v6)
		got := m.String()
		if err != nil {
			got = "!" + err.Error()
		}
		if words, isErr := strings.CutPrefix(c.want, "!"); isErr && !(err != nil && strings.Contains(got, words)) || !isErr && got != c.want {
			t.Errorf("%q: %s, want %s", c.in, got, c.want)
		}
	}
}

// links reads "index name[:kind][@master] flags addr,...", one a line: flags "u" is up and
// running, "n" up without a carrier, "d" down, "l" loopback; an address may be followed by
// s (secondary), p (deprecated) or t (tentative).
func links(t *testing.T, text string) (out []Link) {
	t.Helper()
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var l Link
		fmt.Sscan(f[0], &l.Index)
		name, master, _ := strings.Cut(f[1], "@")
		fmt.Sscan(master, &l.Master)
		l.Name, l.Kind, _ = strings.Cut(name, ":")
		l.Loopback = strings.Contains(f[2], "l")
		l.Up = !strings.Contains(f[2], "d")
		l.Running = l.Up && !strings.Contains(f[2], "n")
		for _, s := range f[3:] {
			a := Addr{Prefix: netip.MustParsePrefix(strings.TrimRight(s, "spt"))}
			a.Secondary, a.Deprecated, a.Tentative = strings.HasSuffix(s, "s"), strings.HasSuffix(s, "p"), strings.HasSuffix(s, "t")
			l.Addrs = append(l.Addrs, a)
		}
		out = append(out, l)
	}
	return out
}

const host = `
	1 lo l 10.255.0.9/32
	2 eth0 u 192.0.2.10/24 192.0.2.100/32 192.0.2.11/24s 2001:db8::5/128 2001:db8::aaaa/64s 2001:db8::a/64
	3 eth1 u 10.1.0.10/16 fd00:1::10/64
	4 docker0:bridge u 172.17.0.1/16
	5 br-0123456789ab:bridge u 10.1.77.1/24
	6 veth1:veth@4 u
	7 calic0ffee:veth u 10.1.3.3/32
	8 vxlan.calico:vxlan u 10.1.9.9/32
	9 tunl0:ipip u 10.1.9.8/32
	10 kube-ipvs0:dummy d 10.1.5.5/32
	11 virbr0:bridge u 192.168.122.1/24`

func TestChoose(t *testing.T) {
	a := netip.MustParseAddr
	const vips = `
		1 lo l
		2 eth0 u 192.0.2.100/32 192.0.2.10/24`
	for name, c := range map[string]struct {
		method string
		v6     bool
		links  string
		view   View
		want   string // "address link", or an error's words after "!"
	}{
		"first-found":                             {"first-found", false, host, View{}, "192.0.2.10/24 eth0"},
		"first-found IPv6":                        {"first-found", true, host, View{}, "2001:db8::a/64 eth0"},
		"by index, not by order":                  {"first-found", false, "3 eth1 u 10.1.0.1/16\n 2 eth0 u 10.0.0.1/16", View{}, "10.0.0.1/16 eth0"},
		"a VIP that comes first":                  {"first-found", false, vips, View{}, "192.0.2.10/24 eth0"},
		"a VIP that was in force":                 {"first-found", false, vips, View{Prefer: netip.MustParsePrefix("192.0.2.100/32")}, "192.0.2.10/24 eth0"},
		"a host mask and no other":                {"first-found", false, "2 ens4 u 10.128.0.2/32", View{}, "10.128.0.2/32 ens4"},
		"a host mask, and a VIP came":             {"first-found", false, "2 ens4 u 10.128.0.99/32 10.128.0.2/32", View{Prefer: netip.MustParsePrefix("10.128.0.2/32")}, "10.128.0.2/32 ens4"},
		"two subnets: the one in force":           {"first-found", false, "2 e u 10.0.0.1/24 10.0.1.1/24", View{Prefer: netip.MustParsePrefix("10.0.1.1/24")}, "10.0.1.1/24 e"},
		"a secondary one was in force":            {"first-found", false, "2 e u 10.0.0.1/24 10.0.0.2/24s", View{Prefer: netip.MustParsePrefix("10.0.0.2/24")}, "10.0.0.1/24 e"},
		"deprecated and tentative ones":           {"first-found", true, "2 e u fd00::1/64t fd00::2/64p fd00::3/64", View{}, "fd00::3/64 e"},
		"a link that is down":                     {"first-found", false, "2 eth0 d 10.0.0.1/24\n 3 eth1 u 10.0.1.1/24", View{}, "10.0.1.1/24 eth1"},
		"a link without a carrier":                {"first-found", false, "2 eth0 n 10.0.0.1/24\n 3 eth1 u 10.0.1.1/24", View{}, "10.0.0.1/24 eth0"},
		"only docker":                             {"first-found", false, "2 eth0 u\n 4 docker0:bridge u 172.17.0.1/16", View{}, "!no link that is up and leads out of the node has an IPv4 address (there are: eth0, docker0 172.17.0.1/16)"},
		"a bridge of machines alone":              {"first-found", false, "2 br7:bridge u 10.7.0.1/24\n 3 tap0:tun@2 u\n 4 eth0 u 10.0.0.1/24", View{}, "10.0.0.1/24 eth0"},
		"a bridge with the uplink in it":          {"first-found", false, "2 enp1s0:device@4 u\n 3 tap0:tun@4 u\n 4 br0:bridge u 10.7.0.1/24\n 5 eth9 u 10.0.0.1/24", View{}, "10.7.0.1/24 br0"},
		"a bridge with a bond's VLAN in it":       {"first-found", false, "2 bond0:bond u\n 3 bond0.7:vlan@4 u\n 4 br0:bridge u 10.7.0.1/24", View{}, "10.7.0.1/24 br0"},
		"link-local addresses alone":              {"first-found", true, "2 eth0 u fe80::1/64", View{}, "!has an IPv6 address"},
		"routing to the host":                     {"first-found", false, "1 lo l 10.255.0.9/32\n 2 eth0 u\n 3 eth1 u", View{}, "10.255.0.9/32 lo"},
		"loopback beside an uplink":               {"first-found", false, "1 lo l 10.255.0.9/32\n 2 eth0 u 10.0.0.1/31", View{}, "10.0.0.1/31 eth0"},
		"family with no address":                  {"first-found", true, "2 eth0 u 10.0.0.1/24", View{}, "!first-found: no link"},
		"skip-interface":                          {"skip-interface=eth0", false, host, View{}, "10.1.0.10/16 eth1"},
		"skip-interface keeps the usual away":     {"skip-interface=eth.*", false, host, View{}, "10.255.0.9/32 lo"},
		"skip all":                                {"skip-interface=eth.*,lo", false, host, View{}, "!is not skipped"},
		"interface":                               {"interface=eth1", false, host, View{}, "10.1.0.10/16 eth1"},
		"interface, first by index":               {"interface=eth1,eth0", false, host, View{}, "192.0.2.10/24 eth0"},
		"interface, any part of the name":         {"interface=h1", false, host, View{}, "10.1.0.10/16 eth1"},
		"interface names a bridge":                {"interface=virbr0", false, host, View{}, "192.168.122.1/24 virbr0"},
		"interface names all":                     {"interface=.*", false, host, View{}, "192.0.2.10/24 eth0"},
		"interface names the loopback":            {"interface=^lo$", false, host, View{}, "10.255.0.9/32 lo"},
		"interface names pods":                    {"interface=cali.*,vxlan.*,tunl0", false, host, View{}, "!whose name matches"},
		"cidr":                                    {"cidr=10.1.0.0/16", false, host, View{}, "10.1.0.10/16 eth1"},
		"cidr of a bridge alone":                  {"cidr=10.1.77.0/24", false, host, View{}, "10.1.77.1/24 br-0123456789ab"},
		"cidr of the loopback":                    {"cidr=10.255.0.0/16", false, host, View{}, "10.255.0.9/32 lo"},
		"cidr of a VIP":                           {"cidr=192.0.2.100/32", false, host, View{}, "192.0.2.100/32 eth0"},
		"cidr, second":                            {"cidr=198.51.100.0/24,192.0.2.0/24", false, host, View{}, "192.0.2.10/24 eth0"},
		"cidr of pods":                            {"cidr=10.1.3.0/24", false, host, View{}, "!has an IPv4 address in there"},
		"cidr IPv6":                               {"cidr=fd00::/8", true, host, View{}, "fd00:1::10/64 eth1"},
		"can-reach":                               {"can-reach=10.1.2.3", false, host, View{Source: a("10.1.0.10")}, "10.1.0.10/16 eth1"},
		"can-reach, no route":                     {"can-reach=10.1.2.3", false, host, View{Why: errors.New("network is unreachable")}, "!can-reach=10.1.2.3: network is unreachable"},
		"can-reach by the loopback":               {"can-reach=10.1.2.3", false, host, View{Source: a("10.255.0.9")}, "10.255.0.9/32 lo"},
		"can-reach by a source on both":           {"can-reach=10.1.2.3", false, "1 lo l 10.0.0.1/32\n 2 eth0 u 10.0.0.1/24", View{Source: a("10.0.0.1")}, "10.0.0.1/24 eth0"},
		"can-reach a VIP that is here":            {"can-reach=192.0.2.100", false, host, View{Source: a("192.0.2.100"), Own: true}, "192.0.2.10/24 eth0"},
		"can-reach its own address":               {"can-reach=10.1.0.10", false, host, View{Source: a("10.1.0.10"), Own: true}, "10.1.0.10/16 eth1"},
		"can-reach a VIP beside a host's address": {"can-reach=10.128.0.99", false, "2 ens4 u 10.128.0.99/32 10.128.0.2/32", View{Source: a("10.128.0.99"), Own: true, Prefer: netip.MustParsePrefix("10.128.0.2/32")}, "10.128.0.2/32 ens4"},
		"can-reach through a tunnel of ours":      {"can-reach=10.1.2.3", false, host, View{Source: a("10.1.9.9")}, "!which no link that leads out of the node has"},
	} {
		m, err := Parse(c.method, c.v6)
		if err != nil {
			t.Fatal(err)
		}
		c.view.Links = links(t, c.links)
		got, err := Choose(m, c.v6, c.view)
		have := got.Prefix.String() + " " + got.Link
		if err != nil {
			have = "!" + err.Error()
		}
		if words, isErr := strings.CutPrefix(c.want, "!"); isErr && !(err != nil && strings.Contains(have, words)) || !isErr && have != c.want {
			t.Errorf("%s: %s, want %s", name, have, c.want)
		}
	}
}

// TestFollow walks through what can happen to the link and address in force. Each step says
// what the links are from that second on; what is in force and when it changed must come out.
func TestFollow(t *testing.T) {
	const (
		both     = "2 eth0 u 10.0.0.1/24\n 3 eth1 u 10.0.1.1/24"
		gone     = "2 eth0 u\n 3 eth1 u 10.0.1.1/24"
		down     = "2 eth0 d 10.0.0.1/24\n 3 eth1 u 10.0.1.1/24"
		down6    = "2 eth0 d\n 3 eth1 u 10.0.1.1/24" // as IPv6 addresses go
		unplug   = "2 eth0 n\n 3 eth1 u 10.0.1.1/24"
		unlinked = "3 eth1 u 10.0.1.1/24"
		moved    = "2 eth0 u 10.0.0.2/24\n 3 eth1 u 10.0.1.1/24"
		longer   = "2 eth0 u 10.0.0.1/25\n 3 eth1 u 10.0.1.1/24"
		nothing  = "2 eth0 u\n 3 eth1 u"
		vip      = "1 lo l 10.9.9.9/32\n 2 eth0 u"
		vipToo   = "1 lo l 10.9.9.9/32\n 2 eth0 u 10.0.0.1/24"
	)
	type step struct {
		at    int // s
		links string
	}
	for name, c := range map[string]struct {
		seed  string
		steps []step
		want  string // "s:address ..." of every change
	}{
		"first":                                 {"", []step{{0, both}, {100, both}}, "0:10.0.0.1/24"},
		"first, late":                           {"", []step{{0, nothing}, {7, both}}, "7:10.0.0.1/24"},
		"a virtual address is earlier":          {"", []step{{0, vip}, {4, vipToo}, {60, vipToo}}, "4:10.0.0.1/24"},
		"a host address alone":                  {"", []step{{0, vip}, {60, vip}}, "5:10.9.9.9/32"},
		"a host address that is known":          {"10.9.9.9/32", []step{{0, vip}, {60, vip}}, "0:10.9.9.9/32"},
		"a flap of a second":                    {"", []step{{0, both}, {10, gone}, {11, both}, {12, gone}, {13, both}, {60, both}}, "0:10.0.0.1/24"},
		"the address is gone":                   {"", []step{{0, both}, {10, gone}, {60, gone}}, "0:10.0.0.1/24 15:10.0.1.1/24"},
		"and comes back later":                  {"", []step{{0, both}, {10, gone}, {60, both}, {90, both}}, "0:10.0.0.1/24 15:10.0.1.1/24 65:10.0.0.1/24"},
		"all are gone":                          {"", []step{{0, both}, {10, nothing}, {600, nothing}}, "0:10.0.0.1/24"},
		"moved":                                 {"", []step{{0, both}, {10, moved}, {60, moved}}, "0:10.0.0.1/24 15:10.0.0.2/24"},
		"another length":                        {"", []step{{0, both}, {10, longer}, {60, longer}}, "0:10.0.0.1/24 15:10.0.0.1/25"},
		"the link is down for an hour":          {"", []step{{0, both}, {10, down}, {3600, both}, {3700, both}}, "0:10.0.0.1/24"},
		"and its address is gone with it":       {"", []step{{0, both}, {10, down6}, {3600, gone}, {3620, both}, {3700, both}}, "0:10.0.0.1/24"},
		"down, and up without its address":      {"", []step{{0, both}, {10, down6}, {100, gone}, {200, gone}}, "0:10.0.0.1/24 130:10.0.1.1/24"},
		"no carrier":                            {"", []step{{0, both}, {10, unplug}, {600, unplug}}, "0:10.0.0.1/24"},
		"the link is gone":                      {"", []step{{0, both}, {10, unlinked}, {60, unlinked}}, "0:10.0.0.1/24 15:10.0.1.1/24"},
		"others alternate":                      {"", []step{{0, both}, {10, moved}, {13, gone}, {16, moved}, {19, gone}, {22, moved}, {60, moved}}, "0:10.0.0.1/24 27:10.0.0.2/24"},
		"restart":                               {"10.0.0.1/24", []step{{0, both}, {60, both}}, "0:10.0.0.1/24"},
		"restart while the link is down":        {"10.0.0.1/24", []step{{0, down}, {3600, down}, {3700, both}}, ""},
		"boot before the link is configured":    {"10.0.0.1/24", []step{{0, gone}, {20, both}, {100, both}}, ""},
		"boot with another address":             {"10.0.0.1/24", []step{{0, moved}, {100, moved}}, "30:10.0.0.2/24"},
		"another method since":                  {"10.0.1.1/24", []step{{0, both}, {60, both}}, "0:10.0.0.1/24"},
		"InternalIP behind address translation": {"203.0.113.1/32", []step{{0, both}}, "0:10.0.0.1/24"},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := Parse("first-found", false)
			var f Follower
			start := time.Unix(1e9, 0)
			if c.seed != "" {
				f.Seed(start, netip.MustParsePrefix(c.seed), links(t, c.steps[0].links))
			}
			var got []string
			i, wake := 0, 0
			for s := 0; s <= c.steps[len(c.steps)-1].at; s++ {
				for i+1 < len(c.steps) && c.steps[i+1].at <= s {
					i, wake = i+1, s
				}
				if s < wake || s < c.steps[0].at {
					continue // nothing happens: Step is called only when it asked for it
				}
				ls := links(t, c.steps[i].links)
				found, _ := Choose(m, false, View{Links: ls, Prefer: f.Prefer()})
				changed, again := f.Step(start.Add(time.Duration(s)*time.Second), found, ls)
				if changed {
					got = append(got, fmt.Sprintf("%d:%s", s, f.Current().Prefix))
				}
				if wake = 1 << 30; again > 0 {
					wake = s + int((again+time.Second-1)/time.Second)
				}
			}
			if have := strings.Join(got, " "); have != c.want {
				t.Errorf("changes %q, want %q", have, c.want)
			}
		})
	}
}
