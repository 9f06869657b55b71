package iptables

// ReversePathChain is the chain that ReversePath sends spoofed packets to. Its rules are policy's
// where there is any: what workloads may send from beside their addresses returns from it.
const ReversePathChain = "cali-rpf-fail"

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
// The second hook goes to EncapGuardChain. Until Update gives that chain its rules, those of
// an earlier agent stay.
func ReversePath(prefix string) TableState {
	return TableState{
		Chains: []Chain{{
			Name:  ReversePathChain,
			Rules: []Rule{{Action: Drop(), Comment: "not its address"}},
		}, {
			Name: EncapGuardChain, Adopt: true,
		}},
		Hooks: sourceHooks(prefix),
	}
}

// sourceHooks say which packets have a source to be asked about. Every packet of the node meets
// them, so they are few, and match before they go anywhere: of TCP, which is most, only what
// pods send meets anything dearer than what is native to nftables, and nothing that is allowed goes to a chain.
func sourceHooks(prefix string) []Hook {
	return []Hook{
		{Chain: "PREROUTING", Rule: Rule{Match: []string{"-i", prefix + "+", "-m", "rpfilter", "--invert"}, Action: Jump(ReversePathChain)}},
		{Chain: "PREROUTING", Rule: Rule{Match: []string{"!", "-p", "tcp"}, Action: Jump(EncapGuardChain)}},
	}
}
