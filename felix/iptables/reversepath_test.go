package iptables_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/iptables"
)

// TestReversePathPackets sends real packets from a pod through a node to the fabric. The
// kernel's own IPv4 filter is off, so that only the rules work. What the pod sends from its
// own addresses arrives; what it sends from anybody else's arrives as long as the rules
// are not there, and never once they are. Its neighbour discovery works throughout.
func TestReversePathPackets(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			v4, v6 := realRig(t, iptables.IPv4, b), &rig{}
			node, pod, fabric := v4.netns, namespace(t), namespace(t)
			in := func(ns, command string) string {
				t.Helper()
				return shell(t, append([]string{"ip", "netns", "exec", ns}, strings.Fields(command)...)...)
			}
			for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"} {
				in(node, "sysctl -qw "+s)
			}
			in(fabric, "sysctl -qw net.ipv6.conf.default.accept_dad=0")
			in(node, "ip link add cali0123456789a type veth peer eth0 netns "+pod)
			in(node, "ip link add eth0 type veth peer eth0 netns "+fabric)
			// The pod, as cni-plugin/veth wires it.
			in(node, "ip link set cali0123456789a up")
			in(node, "sysctl -qw net.ipv4.conf.cali0123456789a.proxy_arp=1")
			in(node, "ip route add 10.65.0.2/32 dev cali0123456789a")
			in(node, "ip route add fd00:65::2/128 dev cali0123456789a")
			in(pod, "ip link set eth0 up")
			in(pod, "ip address add 10.65.0.2/32 dev eth0")
			in(pod, "ip address add fd00:65::2/128 dev eth0 nodad")
			in(pod, "ip route add 169.254.1.1 dev eth0 scope link")
			in(pod, "ip route add default via 169.254.1.1")
			eventually(t, func() string {
				if !strings.Contains(in(node, "ip -6 address show dev cali0123456789a"), "fe80") {
					return "the node's end has no link-local address"
				}
				return ""
			})
			gateway := ""
			for _, f := range strings.Fields(in(node, "ip -6 address show dev cali0123456789a")) {
				if strings.HasPrefix(f, "fe80") {
					gateway, _, _ = strings.Cut(f, "/")
				}
			}
			in(pod, "ip route add default via "+gateway+" dev eth0")
			// The fabric routes everything to the node, so that answers to spoofed sources
			// would come back too.
			in(node, "ip address add 192.0.2.1/24 dev eth0")
			in(node, "ip address add 2001:db8::1/64 dev eth0 nodad")
			in(node, "ip link set eth0 up")
			in(fabric, "ip address add 192.0.2.2/24 dev eth0")
			in(fabric, "ip address add 2001:db8::2/64 dev eth0 nodad")
			in(fabric, "ip link set eth0 up")
			in(node, "ip route add default via 192.0.2.2")
			in(node, "ip route add default via 2001:db8::2")
			in(fabric, "ip route add default via 192.0.2.1")
			in(fabric, "ip route add default via 2001:db8::1")
			// Sources: another pod's, the fabric's, one of the internet's, the node's own.
			spoofed := map[string][]string{
				"iptables-legacy":  {"10.65.0.3", "192.0.2.2", "198.51.100.7", "192.0.2.1", "169.254.7.7"},
				"ip6tables-legacy": {"fd00:65::3", "2001:db8::77", "2001:db8:f::7", "2001:db8::1"},
			}
			arrived := func(program, source string) bool {
				out := in(fabric, program+" -t raw -nvxL PREROUTING")
				for l := range strings.Lines(out) {
					if f := strings.Fields(l); len(f) > 7 && strings.Contains(l, " "+source+" ") {
						return f[0] != "0"
					}
				}
				t.Fatalf("no counter for %s:\n%s", source, out)
				return false
			}
			spoof := func(program, source, to string) bool {
				t.Helper()
				in(fabric, program+" -t raw -F PREROUTING")
				in(fabric, program+" -t raw -A PREROUTING -s "+source+" -i eth0 -p "+map[bool]string{true: "icmp", false: "ipv6-icmp"}[to == "192.0.2.2"]+" -j DROP")
				in(pod, "ip address add "+source+map[bool]string{true: "/32", false: "/128 nodad"}[to == "192.0.2.2"]+" dev lo")
				_ = exec.Command("ip", "netns", "exec", pod, "ping", "-q", "-c", "2", "-i", "0.05", "-W", "0.1", "-I", source, to).Run()
				in(pod, "ip address del "+source+map[bool]string{true: "/32", false: "/128"}[to == "192.0.2.2"]+" dev lo")
				return arrived(program, source)
			}
			own := func() {
				t.Helper()
				in(fabric, "iptables-legacy -t raw -F PREROUTING")
				in(fabric, "ip6tables-legacy -t raw -F PREROUTING")
				in(pod, "ping -q -c 2 -i 0.05 -w 3 192.0.2.2")
				in(pod, "ping -q -c 2 -i 0.05 -w 3 192.0.2.1") // the node itself
				in(pod, "ip -6 neighbour flush dev eth0")
				in(pod, "ping -q -c 2 -i 0.05 -w 3 2001:db8::2")
				in(pod, "ping -q -c 2 -i 0.05 -w 3 "+gateway+"%eth0") // from its link-local address
				in(node, "ip -6 neighbour flush dev cali0123456789a")
				in(node, "ping -q -c 2 -i 0.05 -w 3 fd00:65::2") // the node asks for the pod
			}
			own()
			if !spoof("iptables-legacy", "10.65.0.3", "192.0.2.2") || !spoof("ip6tables-legacy", "fd00:65::3", "2001:db8::2") {
				t.Fatal("spoofed packets do not arrive without the rules: the test shows nothing")
			}

			rec4, _ := v4.start(t)
			*v6 = rig{family: iptables.IPv6, backend: b, netns: node, kernel: &spy{Kernel: iptables.NewHost(iptables.IPv6, b, 0).Within(entering(node))}}
			rec6, _ := v6.start(t)
			rec4.Set(iptables.Raw, iptables.ReversePath("cali"))
			rec6.Set(iptables.Raw, iptables.ReversePath("cali"))
			wait(t, rec4)
			wait(t, rec6)

			own()
			for program, sources := range spoofed {
				to := map[string]string{"iptables-legacy": "192.0.2.2", "ip6tables-legacy": "2001:db8::2"}[program]
				for _, source := range sources {
					if source == to {
						continue
					}
					if spoof(program, source, to) {
						t.Errorf("a packet from %s reached the fabric", source)
					}
				}
			}
			own()
			// Duplicate address detection speaks from ::, and must reach the node to find
			// that the gateway's address is taken.
			in(pod, "sysctl -qw net.ipv6.conf.all.accept_dad=1")
			in(pod, "sysctl -qw net.ipv6.conf.eth0.accept_dad=1")
			in(pod, fmt.Sprintf("ip address add %s/64 dev eth0", gateway))
			eventually(t, func() string {
				if out := in(pod, "ip -6 address show dev eth0"); !strings.Contains(out, "dadfailed") {
					return "the pod was not told that the gateway's address is taken:\n" + out
				}
				return ""
			})
		})
	}
}
