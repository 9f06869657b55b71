package conntrack_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/conntrack"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// The rules of a node: those of a policy backend, in short, and kube-proxy's. Connections
// carry a bit of somebody else's. $D is where a new deny is put.
const restore = `*mangle
-A PREROUTING -j CONNMARK --set-xmark 0x4000/0x4000
COMMIT
*nat
-A PREROUTING -d $V/$B -p tcp --dport 80 -j DNAT --to-destination $S:8001
-A PREROUTING -d $V/$B -p udp --dport 80 -j DNAT --to-destination $S:8001
-A PREROUTING -d $V/$B -p tcp --dport 81 -j DNAT --to-destination $S:8002
-A PREROUTING -d $V/$B -p udp --dport 81 -j DNAT --to-destination $S:8002
-A POSTROUTING -m conntrack --ctorigdst $V --ctorigdstport 81 -j MASQUERADE
COMMIT
*filter
-N deny
-A FORWARD -m connmark --mark 0x100000/0x100000 -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j deny
COMMIT
`

const ruleset = `table inet causeway {
	chain somebody { type filter hook prerouting priority -150; ct mark set ct mark or 0x4000; }
	chain services {
		type nat hook prerouting priority -100;
		meta l4proto { tcp, udp } $F daddr $V th dport 80 dnat $F to $S:8001
		meta l4proto { tcp, udp } $F daddr $V th dport 81 meta mark set 0x8000 dnat $F to $S:8002
	}
	chain masquerading { type nat hook postrouting priority 100; meta mark 0x8000 masquerade; }
	chain denied { }
	chain forward {
		type filter hook forward priority 0;
		ct mark & 0x100000 == 0x100000 drop
		ct state established,related accept
		jump denied
	}
}
`

type backend struct {
	name  string
	v6    bool
	load  string // command that takes the rules on stdin
	rules string
	deny  string // command that forbids $C to speak to $S, ports 8000 to 8002
	allow string // and the one that takes that back
}

var backends = []backend{
	{"legacy", false, "iptables-legacy-restore", restore, "iptables-legacy -A deny -s $C -d $S -m multiport -p $P --dports 8000:8002 -j DROP", "iptables-legacy -F deny"},
	{"iptables-nft", true, "ip6tables-nft-restore", restore, "ip6tables-nft -A deny -s $C -d $S -m multiport -p $P --dports 8000:8002 -j DROP", "ip6tables-nft -F deny"},
	{"nft", false, "nft -f -", ruleset, "nft add rule inet causeway denied $F saddr $C $F daddr $S $P dport 8000-8002 drop", "nft flush chain inet causeway denied"},
}

// tooLong is how long after the rules nothing may pass any more that they forbid. A second is
// promised, on a computer that does nothing else; test/topology/policy holds it.
const tooLong = 5 * time.Second

// TestCut opens connections of TCP and UDP, directly, through a Service, and masqueraded,
// and forbids them while both ends send: they are cut within a second, no other
// one loses a frame, and they go on when they are allowed again.
func TestCut(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			client, server, other := podAddr(b.v6, 0), podAddr(b.v6, 1), podAddr(b.v6, 2)
			service, family, bits := netip.MustParseAddr("10.96.0.1"), "ip", "32"
			if b.v6 {
				service, family, bits = netip.MustParseAddr("fd96::1"), "ip6", "128"
			}
			words := func(s, proto string) string {
				dst := server.String()
				if b.v6 {
					s = strings.ReplaceAll(s, "$S:", "["+dst+"]:")
				}
				return strings.NewReplacer("$S", dst, "$V", service.String(), "$C", client.String(), "$F", family, "$B", bits, "$P", proto).Replace(s)
			}
			n.feed(t, b.load, words(b.rules, ""))

			p := &oracle{}
			c := n.running(t, p)
			c.InSync()
			to := func(ns, network string, target netip.Addr, port, serve uint16) *talk {
				return dial(t, network, ns, netip.AddrPortFrom(target, port), n.pods[1], netip.AddrPortFrom(server, serve))
			}
			var forbidden, allowed []*talk
			for _, network := range []string{"tcp", "udp"} {
				forbidden = append(forbidden,
					to(n.pods[0], network, server, 8000, 8000),
					to(n.pods[0], network, service, 80, 8001),
					to(n.pods[0], network, service, 81, 8002))
				allowed = append(allowed,
					to(n.pods[0], network, server, 9000, 9000),
					to(n.pods[2], network, server, 9001, 9001),
					to(n.name, network, server, 9002, 9002),
					dial(t, network, n.pods[1], netip.AddrPortFrom(client, 8000), n.pods[0], netip.AddrPortFrom(client, 8000)),
					dial(t, network, n.pods[0], netip.AddrPortFrom(other, 8000), n.pods[2], netip.AddrPortFrom(other, 8000)))
			}

			// First the rules, then the verdict, then the poke.
			for range 2 {
				for _, proto := range []string{"tcp", "udp"} {
					shell(t, "ip netns exec "+n.name+" "+words(b.deny, proto))
				}
				p.forbid(func(f *conntrack.Flow) bool {
					return f.Source.Addr() == client && f.Destination.Addr() == server && f.Destination.Port() >= 8000 && f.Destination.Port() <= 8002
				})
				before, since := c.Stats(), time.Now()
				c.Poke(client)
				until(t, "the marks", func() bool { return c.Stats().Cut-before.Cut >= uint64(len(forbidden)) })
				for _, k := range forbidden {
					if d := k.cut(t, since); d > tooLong {
						t.Errorf("%s: cut after %v", k.name, d)
					}
				}
				if got := c.Stats().Cut - before.Cut; got != uint64(len(forbidden)) {
					t.Errorf("%d connections were cut; %d are forbidden", got, len(forbidden))
				}
				for _, k := range allowed {
					k.hears(t)
				}
				shell(t, "ip netns exec "+n.name+" "+b.allow)
				p.forbid(func(*conntrack.Flow) bool { return false })
				c.Poke(server) // the other end: it is the same flow
				for _, k := range forbidden {
					k.hears(t)
				}
			}
			if s := c.Stats(); s.Cut != s.Cleared || s.Failures != 0 {
				t.Errorf("after all: %+v", s)
			}
			for _, k := range allowed {
				k.whole(t)
			}
			for s, f := range n.flows(t) {
				if f.Mark != 0x4000 && f.Source.Addr() != hostAddr(b.v6, 1) {
					t.Errorf("%s: mark %#x, want another's 0x4000 alone", s, f.Mark)
				}
			}
		})
	}
}

// TestBeginWhileForbidden opens connections all the while a deny comes: those that begin before the
// rules stand are cut, those that begin later meet the rules, and a second
// after the poke nothing comes through, from whichever end.
func TestBeginWhileForbidden(t *testing.T) {
	n := newNode(t)
	client, server := podAddr(false, 0), podAddr(false, 1)
	n.feed(t, "iptables-legacy-restore", strings.NewReplacer("$S", server.String(), "$V", "10.96.0.1", "$B", "32").Replace(restore))
	p := &oracle{}
	c := n.running(t, p)
	c.InSync()
	s := newStorm(t, n.pods[0], n.pods[1], netip.AddrPortFrom(server, 7000))
	until(t, "connections", func() bool { return s.opened.Load() > 300 && s.heard[0].Load() > 300 })
	shell(t, "ip netns exec "+n.name+" iptables-legacy -A deny -s "+client.String()+" -d "+server.String()+" -j DROP")
	p.forbid(func(f *conntrack.Flow) bool { return f.Source.Addr() == client && f.Destination.Addr() == server })
	c.Poke(client)
	since := time.Now()
	opened := s.opened.Load()
	until(t, "silence", func() bool {
		return time.Since(time.Unix(0, max(s.last[0].Load(), s.last[1].Load()))) > time.Second && s.opened.Load() > opened+100
	})
	for side, who := range []string{"client", "server"} {
		if d := time.Unix(0, s.last[side].Load()).Sub(since); d > tooLong {
			t.Errorf("the %s hears the other end %v after the poke", who, d)
		}
	}
	t.Logf("%d connections before, %d after, %d cut", opened, s.opened.Load()-opened, c.Stats().Cut)
}

// TestOlderFlows are judged once policy is known, and not before.
func TestOlderFlows(t *testing.T) {
	n := newNode(t)
	client, server := podAddr(false, 0), podAddr(false, 1)
	n.feed(t, "iptables-legacy-restore", strings.NewReplacer("$S", server.String(), "$V", "10.96.0.1", "$B", "32").Replace(restore))
	k := dial(t, "tcp", n.pods[0], netip.AddrPortFrom(server, 8000), n.pods[1], netip.AddrPortFrom(server, 8000))
	p := &oracle{}
	p.forbid(func(f *conntrack.Flow) bool { return f.Source.Addr() == client })
	c := n.running(t, p)
	c.Poke(client)
	for range 20 {
		k.hears(t)
	}
	if s := c.Stats(); s.Rounds != 0 {
		t.Errorf("judged before all policy was known: %+v", s)
	}
	since := time.Now()
	c.InSync()
	until(t, "the mark", func() bool { return c.Stats().Cut == 1 })
	if d := k.cut(t, since); d > tooLong {
		t.Errorf("cut after %v", d)
	}
	until(t, "the count of marks", func() bool { return c.Stats().Marked == 1 })
}

// TestJudgedByPolicy takes the verdict from the rules that an engine makes: a policy that comes to
// forbid one pod what it had open through a Service cuts that alone, from whichever end
// packets come, and the host's own connection to the same port stays.
func TestJudgedByPolicy(t *testing.T) {
	n := newNode(t)
	server := podAddr(false, 1)
	n.feed(t, "iptables-legacy-restore", strings.NewReplacer("$S", server.String(), "$V", "10.96.0.1", "$B", "32").Replace(restore))
	r := &rules{policy.New(policy.Config{}), conntrack.NewJudge(n.table.Route)}
	r.SetNamespace(model.Namespace{Name: "red"})
	for i, name := range []string{"web", "db", "else"} {
		r.pod(t, name, fmt.Sprintf("cali%d", i), podAddr(false, i).String())
	}
	set := func(p model.Policy) {
		t.Helper()
		if err := r.SetPolicy(p); err != nil {
			t.Fatal(err)
		}
	}
	open := only("db", "web", 8001)
	open.Ingress = append(open.Ingress, only("db", "else", 9001).Ingress...)
	set(open)
	r.flush(t)
	c := run(t, conntrack.Config{Log: slog.New(slog.DiscardHandler), Bit: bit, Verdict: r.Verdict, Kernel: n.table})
	c.InSync()

	serve := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(server, port) }
	web := dial(t, "tcp", n.pods[0], netip.MustParseAddrPort("10.96.0.1:80"), n.pods[1], serve(8001))
	others := []*talk{
		dial(t, "udp", n.pods[2], serve(9001), n.pods[1], serve(9001)),
		dial(t, "tcp", n.name, serve(9002), n.pods[1], serve(9002)),
	}
	// What the rules here let through, policy does not: UDP was never allowed.
	c.Poke(server)
	until(t, "the mark", func() bool { return c.Stats().Cut == 1 })
	others[0].cut(t, time.Now())
	set(only("db", "else", 9001))
	shell(t, "ip netns exec "+n.name+" iptables-legacy -A deny -s "+podAddr(false, 0).String()+" -d "+server.String()+" -j DROP")
	since := time.Now()
	r.flush(t).Poke(c)
	until(t, "the mark", func() bool { return c.Stats().Cut == 2 })
	if d := web.cut(t, since); d > tooLong {
		t.Errorf("cut after %v", d)
	}
	others[1].hears(t)
	set(open)
	shell(t, "ip netns exec "+n.name+" iptables-legacy -F deny")
	r.flush(t).Poke(c)
	web.hears(t)
	if s := c.Stats(); s.Cut != 2 || s.Cleared != 1 {
		t.Errorf("%+v", s)
	}
}
