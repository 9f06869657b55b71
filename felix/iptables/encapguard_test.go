package iptables_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/encapguard"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
	vocabulary "github.com/causeway-net/causeway/internal/model"
)

// TestAdopt: a chain that nobody has decided on yet stays as it is in the kernel, with its
// counters; once it is decided on, only what is not so is written.
func TestAdopt(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		drop := iptables.Rule{Match: []string{"-p", "udp", "-m", "udp", "--dport", "4789"}, Action: iptables.Drop()}
		ours := iptables.Chain{Name: "cali-mine", Rules: []iptables.Rule{drop, {Match: []string{"-s", "10.0.0.0/8"}, Action: iptables.Jump("cali-deep")}}}
		deep := iptables.Chain{Name: "cali-deep", Rules: []iptables.Rule{{Action: iptables.Return()}}}
		hooks := []iptables.Hook{{Chain: "OUTPUT", Rule: iptables.Rule{Action: iptables.Jump("cali-mine")}}}
		undecided := iptables.TableState{Hooks: hooks, Chains: []iptables.Chain{{Name: "cali-mine", Adopt: true}}}

		rec, stop := r.start(t)
		rec.Set(iptables.Filter, undecided)
		wait(t, rec)
		if got := r.rules(iptables.Filter); !strings.Contains(got, ":cali-mine -\n") || strings.Contains(got, "-A cali-mine") {
			t.Errorf("where there is nothing to adopt:\n%s", got)
		}
		rec.Update(iptables.Filter, []iptables.Chain{ours, deep}, nil)
		wait(t, rec)
		stop()
		r.traffic()
		before := r.dump(iptables.Filter)
		if !strings.Contains(before, "cali-deep") {
			t.Fatalf("nothing to adopt:\n%s", before)
		}

		rec, stop = r.start(t)
		r.kernel.took()
		rec.Set(iptables.Filter, undecided)
		wait(t, rec)
		rec.PokeResync()
		rec.Set(iptables.Filter, undecided)
		wait(t, rec)
		if got := r.dump(iptables.Filter); got != before || len(r.kernel.took()) > 0 {
			t.Errorf("adoption turned\n%s\ninto\n%s", before, got)
		}
		rec.Update(iptables.Filter, []iptables.Chain{ours, deep}, nil)
		wait(t, rec)
		if s := r.kernel.took(); len(s) > 0 || r.dump(iptables.Filter) != before {
			t.Errorf("the same decision wrote %q", s)
		}
		stop()

		// Somebody changed a rule and left our mark on it.
		mark := anyMark.FindString(r.dump(iptables.Filter)[strings.Index(before, "-A cali-mine"):])
		r.must(t, "*filter\n-R cali-mine 1 -p udp -m udp --dport 53 -m comment --comment "+mark+" -j DROP\nCOMMIT\n")
		rec, _ = r.start(t)
		rec.Set(iptables.Filter, undecided)
		wait(t, rec)
		if !strings.Contains(r.dump(iptables.Filter), "--dport 53") {
			t.Error("an undecided chain was changed")
		}
		rec.Update(iptables.Filter, []iptables.Chain{ours, deep}, nil)
		wait(t, rec)
		if got := r.chain(iptables.Filter, "cali-mine"); len(got) != 2 || !strings.Contains(got[0], "--dport 4789") {
			t.Errorf("decided on, the chain is %q", got)
		}
		rec.Update(iptables.Filter, []iptables.Chain{{Name: "cali-mine"}}, []string{"cali-deep"})
		wait(t, rec)
		if got := r.rules(iptables.Filter); strings.Contains(got, "-A cali-mine") || strings.Contains(got, "cali-deep") {
			t.Errorf("decided on as empty:\n%s", got)
		}
	})
}

// site is a host with pods' links, a fabric beside it, and a guard.
type site struct {
	netns      string
	guard      *encapguard.Guard
	rec4, rec6 *iptables.Reconciler
}

// guarded starts all that guards a namespace, as cmd/causeway wires it.
func guarded(t *testing.T, ns string, b iptables.Backend) site {
	t.Helper()
	v4 := &rig{family: iptables.IPv4, backend: b, netns: ns, kernel: &spy{Kernel: iptables.NewHost(iptables.IPv4, b, 0).Within(entering(ns))}}
	v6 := &rig{family: iptables.IPv6, backend: b, netns: ns, kernel: &spy{Kernel: iptables.NewHost(iptables.IPv6, b, 0).Within(entering(ns))}}
	s := site{netns: ns}
	s.rec4, _ = v4.start(t)
	s.rec6, _ = v6.start(t)
	for _, r := range []*iptables.Reconciler{s.rec4, s.rec6} {
		r.Set(iptables.Raw, iptables.ReversePath("cali"))
		wait(t, r)
	}
	host := ipset.NewHost()
	if err := entering(ns)(func() error { _, err := host.Headers(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	sets, err := ipset.New(ipset.Config{Log: discard(), Owners: []string{encapguard.Owner}, Kernel: host})
	if err != nil {
		t.Fatal(err)
	}
	s.guard, err = encapguard.New(encapguard.Config{Log: discard(), Rules4: s.rec4, Rules6: s.rec6, Sets: sets,
		Forget: func() error { return entering(ns)(encapguard.ForgetTranslated) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- sets.Run(ctx) }()
	go func() { ended <- s.guard.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func (s site) set(t *testing.T, v4, v6 vocabulary.EncapGuard) {
	t.Helper()
	s.guard.Set(v4, v6)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.guard.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// forge sends one packet of a pod's or stranger's making from a namespace: inner packets
// are UDP, the outer ones what they claim to be.
func forge(t *testing.T, ns, kind string, from, to netip.Addr) {
	t.Helper()
	err := entering(ns)(func() error {
		if kind == "ipip" {
			return sendIPIP(from, to)
		}
		d := net.Dialer{Timeout: time.Second, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		c, err := d.Dial("udp", netip.AddrPortFrom(to, 4789).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte{8, 0, 0, 0, 0, 16, 0, 0, 1, 2, 3, 4})
		return err
	})
	if err != nil {
		t.Fatalf("%s from %s to %s: %v", kind, from, to, err)
	}
}

// sendIPIP needs no ipip module: the header is made by hand.
func sendIPIP(from, to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	header := func(protocol byte, from, to netip.Addr, payload []byte) []byte {
		h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		h = append(append(h, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
		sum := uint32(0)
		for i := 0; i < len(h); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(h[i:]))
		}
		binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
		return append(h, payload...)
	}
	inner := header(unix.IPPROTO_UDP, netip.MustParseAddr("10.65.9.9"), netip.MustParseAddr("10.65.0.2"), []byte{0, 1, 0, 2, 0, 8, 0, 0})
	return unix.Sendto(fd, header(unix.IPPROTO_IPIP, from, to, inner), 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// TestEncapGuardPackets sends real packets to a node and, from its pod, to others: what a
// node sent is taken, and what a stranger or a pod made up is not, above all not what
// natOutgoing would make look like the node's. Who counts is the last hook before the
// kernel's own tunnels, so that none of them is needed.
func TestEncapGuardPackets(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			node, pod, peer := namespace(t), namespace(t), namespace(t)
			in := func(ns, command string) string {
				t.Helper()
				return shell(t, append([]string{"ip", "netns", "exec", ns}, strings.Fields(command)...)...)
			}
			for _, ns := range []string{node, peer, pod} {
				for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
					"net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.forwarding=1"} {
					in(ns, "sysctl -qw "+s)
				}
			}
			in(node, "ip link add cali0123456789a type veth peer eth0 netns "+pod)
			in(node, "ip link add eth0 type veth peer eth0 netns "+peer)
			in(node, "ip link set cali0123456789a up")
			in(node, "sysctl -qw net.ipv4.conf.cali0123456789a.proxy_arp=1")
			in(node, "ip address add fe80::1/64 dev cali0123456789a nodad")
			in(node, "ip route add 10.65.0.2/32 dev cali0123456789a")
			in(node, "ip route add fd00:65::2/128 dev cali0123456789a")
			in(pod, "ip link set eth0 up")
			in(pod, "ip address add 10.65.0.2/32 dev eth0")
			in(pod, "ip address add fd00:65::2/128 dev eth0 nodad")
			in(pod, "ip route add 169.254.1.1 dev eth0 scope link")
			in(pod, "ip route add default via 169.254.1.1")
			in(pod, "ip route add default via fe80::1 dev eth0")
			// The peer is a node at .2 and lends its other addresses to strangers.
			in(node, "ip address add 192.0.2.1/24 dev eth0")
			in(node, "ip address add 2001:db8::1/64 dev eth0 nodad")
			in(node, "ip link set eth0 up")
			in(node, "ip route add default via 192.0.2.2") // proxy ARP answers for what is routed
			in(peer, "ip link set eth0 up")
			for _, a := range []string{"192.0.2.2/24", "192.0.2.66/24", "192.0.2.77/24"} {
				in(peer, "ip address add "+a+" dev eth0")
			}
			for _, a := range []string{"2001:db8::2/64", "2001:db8::66/64"} {
				in(peer, "ip address add "+a+" dev eth0 nodad")
			}
			in(peer, "ip route add default via 192.0.2.1")
			in(peer, "ip route add default via 2001:db8::1")
			// natOutgoing, as the node has it.
			in(node, "iptables-"+string(b)+" -t nat -A POSTROUTING -s 10.65.0.0/16 ! -d 10.65.0.0/16 -j MASQUERADE")
			in(node, "ip6tables-"+string(b)+" -t nat -A POSTROUTING -s fd00:65::/64 ! -d fd00:65::/64 -j MASQUERADE")
			for _, ns := range []string{node, peer} {
				for _, tool := range []string{"iptables-", "ip6tables-"} {
					in(ns, tool+string(b)+" -t mangle -A INPUT -p udp --dport 4789 -j DROP")
				}
				in(ns, "iptables-"+string(b)+" -t mangle -A INPUT -p 4 -j DROP")
				in(ns, "iptables-"+string(b)+" -t mangle -A FORWARD -p udp --dport 4789")
			}
			taken := func(ns string, v6 bool, what string) string {
				tool := map[bool]string{false: "iptables-", true: "ip6tables-"}[v6] + string(b)
				for l := range strings.Lines(in(ns, tool+" -t mangle -nvxL INPUT")) {
					if f := strings.Fields(l); len(f) > 3 && strings.Contains(l, map[bool]string{true: " 4 ", false: " dpt:4789"}[what == "ipip"]) ||
						len(f) > 3 && what == "ipip" && (f[3] == "4" || f[3] == "ipencap") {
						return f[0]
					}
				}
				t.Fatalf("no counter for %s in %s", what, ns)
				return ""
			}
			zero := func() {
				for _, ns := range []string{node, peer} {
					in(ns, "iptables-"+string(b)+" -t mangle -Z")
					in(ns, "ip6tables-"+string(b)+" -t mangle -Z")
				}
			}
			type packet struct {
				from, kind string
				src, dst   string
				at         string // who is to count it
			}
			fromPeer := func(kind, src, dst string) packet { return packet{peer, kind, src, dst, node} }
			arrives := func(p packet) bool {
				t.Helper()
				zero()
				src, dst := netip.MustParseAddr(p.src), netip.MustParseAddr(p.dst)
				// Three packets, and then one that nobody may stop, behind which nothing is on its way.
				for range 3 {
					forge(t, p.from, p.kind, src, dst)
				}
				ping := exec.Command("ip", "netns", "exec", p.from, "ping", "-q", "-c", "1", "-W", "5", "-I", p.src, p.dst)
				if out, err := ping.CombinedOutput(); err != nil {
					t.Fatalf("ordinary packets from %s to %s do not pass: %v\n%s", p.src, p.dst, err, out)
				}
				switch n := taken(p.at, dst.Is6(), p.kind); n {
				case "3":
					return true
				case "0":
					return false
				default:
					t.Fatalf("%s of 3 packets %+v arrived", n, p)
					return false
				}
			}
			real := []packet{
				fromPeer("ipip", "192.0.2.2", "192.0.2.1"), fromPeer("vxlan", "192.0.2.2", "192.0.2.1"), fromPeer("vxlan", "2001:db8::2", "2001:db8::1"),
				fromPeer("ipip", "192.0.2.77", "192.0.2.1"), // a node that is not in the cluster
			}
			spoofed := []packet{
				fromPeer("ipip", "192.0.2.66", "192.0.2.1"), fromPeer("vxlan", "192.0.2.66", "192.0.2.1"), fromPeer("vxlan", "2001:db8::66", "2001:db8::1"),
			}
			// From the pod: to its own node, to the peer under the pod's own address (which the
			// peer's guard stops), and to the peer under the node's.
			own := []packet{
				{pod, "ipip", "10.65.0.2", "192.0.2.1", node}, {pod, "vxlan", "10.65.0.2", "192.0.2.1", node}, {pod, "vxlan", "fd00:65::2", "2001:db8::1", node},
			}
			masked := []packet{
				{pod, "ipip", "10.65.0.2", "192.0.2.2", peer}, {pod, "vxlan", "10.65.0.2", "192.0.2.2", peer}, {pod, "vxlan", "fd00:65::2", "2001:db8::2", peer},
			}
			expect := func(when string, want bool, packets ...[]packet) {
				t.Helper()
				for _, ps := range packets {
					for _, p := range ps {
						if got := arrives(p); got != want {
							t.Errorf("%s: %s from %s to %s: arrives: %v, want %v", when, p.kind, p.src, p.dst, got, want)
						}
					}
				}
			}
			expect("without a guard", true, real, spoofed, own)

			there, here := guarded(t, peer, b), guarded(t, node, b)
			v4 := vocabulary.EncapGuard{IPIP: true, VXLANPort: 4789, Sources: networks("192.0.2.1/32", "192.0.2.2/32", "192.0.2.76/31")}
			v6 := vocabulary.EncapGuard{VXLANPort: 4789, Sources: networks("2001:db8::1/128", "2001:db8::2/128")}
			there.set(t, v4, v6)
			expect("the peer is guarded, this node is not: what natOutgoing covers up passes the peer's guard", true, masked)
			// The pod has become the peer's other end of IPIP, which has no ports: until the guard
			// stands, the node hands it the peer's packets.
			expect("after that", false, real[:1])
			here.set(t, v4, v6)
			expect("guarded", true, real)
			expect("guarded", false, spoofed, own, masked)

			// Pods that may send such packets are no nodes all the same.
			loose4, loose6 := v4, v6
			loose4.PodsIPIP, loose4.PodsVXLAN, loose6.PodsVXLAN = true, true, true
			here.set(t, loose4, loose6)
			expect("pods may", true, real, masked)
			expect("pods may", false, spoofed, own)

			// One encapsulation alone.
			here.set(t, vocabulary.EncapGuard{IPIP: true, Sources: v4.Sources}, vocabulary.EncapGuard{})
			expect("IPIP only", false, []packet{spoofed[0], own[0], masked[0]})
			expect("IPIP only", true, []packet{spoofed[1], spoofed[2], own[1], own[2], masked[1], masked[2]}, real)
			if out := in(node, "ipset list -n"); strings.TrimSpace(out) != encapguard.Set4 {
				t.Errorf("sets: %q", out)
			}
			here.set(t, vocabulary.EncapGuard{}, vocabulary.EncapGuard{})
			expect("no tunnels", true, real, spoofed, own, masked)
			eventually(t, func() string {
				if out := in(node, "ipset list -n"); out != "" {
					return fmt.Sprintf("sets: %q", out)
				}
				return ""
			})
		})
	}
}
