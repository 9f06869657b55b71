package iptables_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/iptables"
	vocabulary "github.com/causeway-net/causeway/internal/model"
)

func networks(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestNATOutgoingRules holds the rules of each setting, as the kernel shows them, and that
// each can follow each.
func TestNATOutgoingRules(t *testing.T) {
	ports := vocabulary.PortRange{First: 32768, Last: 65535}
	four, six := networks("10.244.0.0/16", "10.250.0.0/16"), networks("fd00:10:244::/64")
	for family, cases := range map[iptables.Family][]struct {
		nat  vocabulary.OutgoingNAT
		want []string // of the chain behind the dispatch
	}{
		iptables.IPv4: {
			{vocabulary.OutgoingNAT{Sources: four[:1], Exempt: four}, []string{
				"-d 10.244.0.0/16 -j RETURN", "-d 10.250.0.0/16 -j RETURN", "-j MASQUERADE --random-fully"}},
			{vocabulary.OutgoingNAT{Sources: four, Exempt: four, Interface: "eth+"}, []string{
				"-d 10.244.0.0/16 -j RETURN", "-d 10.250.0.0/16 -j RETURN", "-j MASQUERADE --random-fully"}},
			{vocabulary.OutgoingNAT{Sources: four[:1], Exempt: four[:1], Ports: ports}, []string{
				"-d 10.244.0.0/16 -j RETURN", "-p tcp -j MASQUERADE --to-ports 32768-65535 --random-fully",
				"-p udp -j MASQUERADE --to-ports 32768-65535 --random-fully", "-j MASQUERADE --random-fully"}},
			{vocabulary.OutgoingNAT{Sources: four[:1], Exempt: four[:1], Address: netip.MustParseAddr("192.0.2.9")}, []string{
				"-d 10.244.0.0/16 -j RETURN", "-j SNAT --to-source 192.0.2.9 --random-fully"}},
			{vocabulary.OutgoingNAT{Sources: four[:1], Exempt: four[:1], Address: netip.MustParseAddr("192.0.2.9"), Ports: ports}, []string{
				"-d 10.244.0.0/16 -j RETURN", "-p tcp -j SNAT --to-source 192.0.2.9:32768-65535 --random-fully",
				"-p udp -j SNAT --to-source 192.0.2.9:32768-65535 --random-fully", "-j SNAT --to-source 192.0.2.9 --random-fully"}},
		},
		iptables.IPv6: {
			{vocabulary.OutgoingNAT{Sources: six, Exempt: six, Interface: "eth0"}, []string{
				"-d fd00:10:244::/64 -j RETURN", "-j MASQUERADE --random-fully"}},
			{vocabulary.OutgoingNAT{Sources: six, Exempt: six, Address: netip.MustParseAddr("2001:db8::9"), Ports: ports}, []string{
				"-d fd00:10:244::/64 -j RETURN", "-p tcp -j SNAT --to-source [2001:db8::9]:32768-65535 --random-fully",
				"-p udp -j SNAT --to-source [2001:db8::9]:32768-65535 --random-fully", "-j SNAT --to-source 2001:db8::9 --random-fully"}},
		},
	} {
		t.Run(family.String(), func(t *testing.T) {
			rigs(t, family, func(t *testing.T, r *rig) {
				rec, stop := r.start(t)
				rec.Set(iptables.NAT, iptables.NATOutgoing(vocabulary.OutgoingNAT{}))
				wait(t, rec)
				if all, err := r.kernel.Save(t.Context(), ""); err != nil || strings.Contains(string(all), "*nat") && r.netns != "" {
					t.Errorf("a table in which nothing is wanted was made: %v\n%s", err, all)
				}
				for i := range 2 * len(cases) {
					c := cases[i%len(cases)]
					rec.Set(iptables.NAT, iptables.NATOutgoing(c.nat))
					wait(t, rec)
					var dispatch []string
					for _, p := range c.nat.Sources {
						rule := "-s " + p.String()
						if c.nat.Interface != "" {
							rule += " -o " + c.nat.Interface
						}
						dispatch = append(dispatch, rule+" -j cali-nat-outgoing")
					}
					for chain, want := range map[string][]string{
						"POSTROUTING": {"-j cali-POSTROUTING"}, "cali-POSTROUTING": dispatch, "cali-nat-outgoing": c.want,
					} {
						if got := rulesOf(r.dump(iptables.NAT), chain); !slices.Equal(got, want) {
							t.Errorf("%+v: %s holds\n%s\nwant\n%s", c.nat, chain, strings.Join(got, "\n"), strings.Join(want, "\n"))
						}
					}
					r.kernel.took()
					rec.Set(iptables.NAT, iptables.NATOutgoing(c.nat))
					wait(t, rec)
					if n := r.kernel.took(); len(n) > 0 {
						t.Errorf("the same again writes %q", n)
					}
				}
				// One rule stays, in the life of this Reconciler and of the next, which makes the
				// kernel track connections.
				rec.Set(iptables.NAT, iptables.NATOutgoing(vocabulary.OutgoingNAT{}))
				wait(t, rec)
				holds := func() {
					t.Helper()
					d := r.dump(iptables.NAT)
					rules := rulesOf(d, "cali-POSTROUTING")
					if len(rules) != 1 || !strings.HasPrefix(rules[0], "-m conntrack --ctstate NEW") || strings.Contains(rules[0], "-j") ||
						len(rulesOf(d, "POSTROUTING")) != 1 || strings.Contains(d, "cali-nat-outgoing") {
						t.Errorf("left behind:\n%s", d)
					}
				}
				holds()
				stop()
				r.kernel.took()
				next, stop := r.start(t)
				next.Set(iptables.NAT, iptables.NATOutgoing(vocabulary.OutgoingNAT{}))
				wait(t, next)
				holds()
				if n := r.kernel.took(); len(n) > 0 {
					t.Errorf("the next one writes %q", n)
				}
				stop()
				if err := iptables.Remove(t.Context(), iptables.Config{Family: family, Kernel: r.kernel}); err != nil || strings.Contains(r.dump(iptables.NAT), iptables.Prefix) {
					t.Errorf("%v; Remove left\n%s", err, r.dump(iptables.NAT))
				}
			})
		})
	}
}

// rulesOf are the rules of one chain without counters and marks.
func rulesOf(dump, chain string) []string {
	var out []string
	for l := range strings.Lines(dump) {
		_, rule, ok := strings.Cut(strings.TrimSpace(l), "-A "+chain+" ")
		if !ok {
			continue
		}
		if before, rest, marked := strings.Cut(rule, `-m comment --comment `); marked {
			_, after, _ := strings.Cut(rest, " ")
			rule = before + after
		}
		out = append(out, rule)
	}
	return out
}

// TestNATOutgoingHook holds our hook behind those of others, whoever comes later, so that
// kube-proxy takes its mark away from what it masquerades.
func TestNATOutgoingHook(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		if err := r.foreign("*nat\n:KUBE-POSTROUTING - [0:0]\n-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n"); err != nil {
			t.Fatal(err)
		}
		rec, _ := r.start(t)
		pods := networks("10.244.0.0/16")
		rec.Set(iptables.NAT, iptables.NATOutgoing(vocabulary.OutgoingNAT{Sources: pods, Exempt: pods}))
		wait(t, rec)
		if err := r.foreign("*nat\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n"); err != nil {
			t.Fatal(err)
		}
		want := []string{"-j KUBE-POSTROUTING", "-s 172.17.0.0/16 -j MASQUERADE", "-j cali-POSTROUTING"}
		eventually(t, func() string {
			if got := rulesOf(r.dump(iptables.NAT), "POSTROUTING"); !slices.Equal(got, want) {
				return fmt.Sprintf("POSTROUTING holds %q, want %q", got, want)
			}
			return ""
		})
		rec.Set(iptables.NAT, iptables.NATOutgoing(vocabulary.OutgoingNAT{}))
		wait(t, rec)
		if got := rulesOf(r.dump(iptables.NAT), "POSTROUTING"); !slices.Equal(got, want) {
			t.Errorf("after that POSTROUTING holds %q, want %q", got, want)
		}
	})
}

// TestNATOutgoingPackets sends from a pod, from its node and through its node. Who they
// are, the far end sees and answers.
func TestNATOutgoingPackets(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			v4 := realRig(t, iptables.IPv4, b)
			node, pod, transit, far := v4.netns, namespace(t), namespace(t), namespace(t)
			in := func(ns, command string) {
				t.Helper()
				shell(t, append([]string{"ip", "netns", "exec", ns}, strings.Fields(command)...)...)
			}
			for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"} {
				in(node, "sysctl -qw "+s)
			}
			for dev, w := range map[string]struct {
				peer         string
				ours, theirs [2]string
			}{
				"cali0": {pod, [2]string{"10.244.0.1/24", "fd00:10:244::1/64"}, [2]string{"10.244.0.2/24", "fd00:10:244::2/64"}},
				"eth1":  {transit, [2]string{"10.1.0.1/24", "fd00:1::1/64"}, [2]string{"10.1.0.2/24", "fd00:1::2/64"}},
				"eth0":  {far, [2]string{"192.0.2.1/24", "2001:db8::1/64"}, [2]string{"192.0.2.2/24", "2001:db8::2/64"}},
			} {
				in(node, "ip link add "+dev+" type veth peer eth0 netns "+w.peer)
				for i := range 2 {
					in(node, "ip address add "+w.ours[i]+" dev "+dev+[]string{"", " nodad"}[i])
					in(w.peer, "ip address add "+w.theirs[i]+" dev eth0"+[]string{"", " nodad"}[i])
				}
				in(node, "ip link set "+dev+" up")
				in(w.peer, "ip link set eth0 up")
				for i := range 2 {
					gateway, _, _ := strings.Cut(w.ours[i], "/")
					in(w.peer, "ip route add default via "+gateway)
				}
			}
			in(node, "ip address add 192.0.2.9/24 dev eth0")
			in(node, "ip address add 2001:db8::9/64 dev eth0 nodad preferred_lft 0")

			// Connections are tracked on every node on which kube-proxy runs. This rule goes when
			// ours has been there.
			kubeProxy := func(verb string) {
				for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
					in(node, program(family, b, "")+" -t nat "+verb+" POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE")
				}
			}
			kubeProxy("-A")
			rec4, _ := v4.start(t)
			v6 := &rig{family: iptables.IPv6, backend: b, netns: node, kernel: &spy{Kernel: iptables.NewHost(iptables.IPv6, b, 0).Within(entering(node))}}
			rec6, _ := v6.start(t)
			var open []*caller
			for i, f := range []struct {
				rec                       *iptables.Reconciler
				pods                      netip.Prefix
				pod, node, other, transit string
				far                       netip.Addr
			}{
				{rec4, netip.MustParsePrefix("10.244.0.0/24"), "10.244.0.2", "192.0.2.1", "192.0.2.9", "10.1.0.2", netip.MustParseAddr("192.0.2.2")},
				{rec6, netip.MustParsePrefix("fd00:10:244::/64"), "fd00:10:244::2", "2001:db8::1", "2001:db8::9", "fd00:1::2", netip.MustParseAddr("2001:db8::2")},
			} {
				to := answer(t, far, f.far)
				set := func(n vocabulary.OutgoingNAT) {
					t.Helper()
					f.rec.Set(iptables.NAT, iptables.NATOutgoing(n))
					wait(t, f.rec)
				}
				sees := func(from string, want string) netip.AddrPort {
					t.Helper()
					c := call(t, from, to)
					defer c.conn.Close()
					got := c.ask(t)
					if got.Addr().String() != want {
						t.Errorf("IPv%d: from %s the far end sees %s, want %s", 4+2*i, from, got, want)
					}
					return got
				}
				on := vocabulary.OutgoingNAT{Sources: []netip.Prefix{f.pods}, Exempt: []netip.Prefix{f.pods}}
				set(vocabulary.OutgoingNAT{})
				sees(pod, f.pod)
				bare := call(t, pod, to)
				bare.ask(t)

				set(on)
				sees(pod, f.node)
				sees(node, f.node)
				sees(transit, f.transit)
				translated := call(t, pod, to)
				translated.ask(t)

				if i == 1 {
					kubeProxy("-D")
				}
				on.Address, on.Ports = netip.MustParseAddr(f.other), vocabulary.PortRange{First: 40000, Last: 40009}
				set(on)
				if got := sees(pod, f.other); got.Port() < 40000 || got.Port() > 40009 {
					t.Errorf("source %s, want a port of 40000-40009", got)
				}
				on.Address = netip.Addr{}
				set(on)
				if got := sees(pod, f.node); got.Port() < 40000 || got.Port() > 40009 {
					t.Errorf("source %s, want a port of 40000-40009", got)
				}
				on.Interface = "eth1"
				set(on)
				sees(pod, f.pod)
				on.Interface = "eth+"
				set(on)
				sees(pod, f.node)
				on.Exempt = append(on.Exempt, netip.PrefixFrom(f.far, f.far.BitLen()))
				set(on)
				sees(pod, f.pod)
				// Both connections stand through all of it.
				bare.ask(t)
				translated.ask(t)
				set(vocabulary.OutgoingNAT{})
				sees(pod, f.pod)
				bare.ask(t)
				translated.ask(t)
				open = append(open, bare, translated)
				if bare.seen.Addr().String() != f.pod || translated.seen.Addr().String() != f.node {
					t.Errorf("connections from %s and %s, want %s and %s", bare.seen, translated.seen, f.pod, f.node)
				}
			}
			for _, c := range open {
				c.ask(t)
			}
		})
	}
}

// answer takes TCP connections in a namespace until the test ends, and tells each for every
// line who it is.
func answer(t *testing.T, ns string, at netip.Addr) netip.AddrPort {
	t.Helper()
	var l *net.TCPListener
	err := entering(ns)(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return // the test has ended
			}
			go func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					fmt.Fprintln(c, c.RemoteAddr())
				}
			}()
		}
	}()
	return netip.AddrPortFrom(at, uint16(l.Addr().(*net.TCPAddr).Port))
}

// caller is a connection to one who answers.
type caller struct {
	conn *net.TCPConn
	in   *bufio.Scanner
	seen netip.AddrPort // who the other end sees; the same from the first answer on
}

func call(t *testing.T, ns string, to netip.AddrPort) *caller {
	t.Helper()
	var c net.Conn
	err := entering(ns)(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &caller{conn: c.(*net.TCPConn), in: bufio.NewScanner(c)}
}

func (c *caller) ask(t *testing.T) netip.AddrPort {
	t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(c.conn, "who am I"); err != nil {
		t.Fatal(err)
	}
	if !c.in.Scan() {
		t.Fatalf("no answer: %v", c.in.Err())
	}
	got := netip.MustParseAddrPort(c.in.Text())
	if c.seen.IsValid() && got != c.seen {
		t.Errorf("a connection came from %s and comes from %s now", c.seen, got)
	}
	c.seen = got
	return got
}
