package iptables

import (
	"fmt"

	"github.com/causeway-net/causeway/internal/model"
)

// EncapGuardChain is the chain that EncapGuard fills. ReversePath makes it, and has packets other
// than TCP go to it.
const EncapGuardChain = "cali-encap-guard"

// EncapGuard is the chain of table raw that drops, in one family, encapsulated packets to an
// address of this node unless set, an ipset of type hash:net, holds their source: what is
// inside of a tunnel's packet reaches pods as if a node had sent it. And it drops those that come in
// on an interface whose name begins with prefix, whoever they are for: natOutgoing would
// give a packet that a pod made up the node's own address, and the other node would take it.
// Pods that are allowed to send them (PodsIPIP, PodsVXLAN) are nobody's nodes either.
//
// In table raw, before connection tracking, a flood makes no entries, and a rule that came
// later ends flows that stand. The kernel puts fragments together before, where it tracks connections; where it does
// not, the first fragment, which has the ports, is dropped, and the others come to nothing.
//
// Where the kernel cannot match sets, nobody's packets are taken: no tunnel works, and none is open.
func EncapGuard(g model.EncapGuard, prefix, set string) Chain {
	out := Chain{Name: EncapGuardChain}
	guard := func(what string, match []string, pods bool) {
		if !pods {
			r := Rule{Match: append([]string{"-i", prefix + "+"}, match...), Action: Drop(), Comment: what + " of a pod's own making"}
			out.Rules, out.Fallback = append(out.Rules, r), append(out.Fallback, r)
		}
		local := []string{"-m", "addrtype", "--dst-type", "LOCAL"}
		nodes := []string{"-m", "set", "!", "--match-set", set, "src"}
		comment := what + " that no node sent"
		out.Rules = append(out.Rules, Rule{Match: append(append(match[:len(match):len(match)], nodes...), local...), Action: Drop(), Comment: comment})
		out.Fallback = append(out.Fallback, Rule{Match: append(match[:len(match):len(match)], local...), Action: Drop(), Comment: comment})
	}
	if g.IPIP {
		guard("IPIP", []string{"-p", "4"}, g.PodsIPIP)
	}
	if g.VXLANPort != 0 {
		guard("VXLAN", []string{"-p", "udp", "-m", "udp", "--dport", fmt.Sprint(g.VXLANPort)}, g.PodsVXLAN)
	}
	return out
}
