package iptables

// ReversePathChain is the chain that ReversePath fills.
const ReversePathChain = "cali-PREROUTING"

// ReversePath is the state of table raw that drops, in either family, packets that come
// in on an interface whose name begins with prefix unless the route back to their source
// leaves by that interface: a pod sends from its own addresses only.
//
// It is a rule in IPv4 too, because the kernel takes the higher of conf.all.rp_filter and
// the interface's, and 2 (loose), which systemd sets for all, is the higher number. (On an
// interface without an IPv4 address loose is as strict as 1: fib_validate_source in
// net/ipv4/fib_frontend.c ends at last_resort. But an address is easily given.)
//
// In table raw nothing spoofed makes a connection tracking entry. What the match lets pass
// without a route (net/ipv4/netfilter/ipt_rpfilter.c, net/ipv6/netfilter/ip6t_rpfilter.c):
// the source 0.0.0.0 to 255.255.255.255 or local multicast (DHCP), and the source ::
// (duplicate address detection), which is never forwarded. A link-local IPv6 source
// is looked up on the interface itself, so neighbour discovery passes by the link's own
// fe80::/64 route; the host's own link-local address as a source is dropped like every
// address of the host. 169.254.1.1 needs no rule: it is spoken to by ARP alone.
//
// What the pods' rule lets pass goes on to EncapGuardChain. Until Update gives that chain its
// rules, those of an earlier agent stay.
func ReversePath(prefix string) TableState {
	return TableState{
		Chains: []Chain{{
			Name: ReversePathChain,
			Rules: []Rule{{
				Match:  []string{"-i", prefix + "+", "-m", "rpfilter", "--invert"},
				Action: Drop(),
			}, {
				Action: Jump(EncapGuardChain),
			}},
		}, {
			Name: EncapGuardChain, Adopt: true,
		}},
		Hooks: []Hook{{Chain: "PREROUTING", Rule: Rule{Action: Jump(ReversePathChain)}}},
	}
}
