package iptables

import (
	"fmt"
	"strconv"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// fanGroup begins the names of fans' groups.
const fanGroup = "/fan/"

// fanChain names a node of a fan. The marks are part of the name as of a policy's chain.
func (d dialect) fanChain(id string, node *policy.FanNode) string {
	return hashed("cali-f-", id, node.String(), fmt.Sprint(d.marks))
}

// fan has an interface go by the fans of these paths.
func (s *ruleset) fan(e *edit, iface string, paths ...*policy.Path) {
	made, gone := s.fans.Set(iface, paths...)
	for _, f := range made {
		s.put(e, Filter, fanGroup+f.ID, s.fanChains(f))
	}
	for _, id := range gone {
		s.put(e, Filter, fanGroup+id, nil)
	}
}

// fanChains makes the chains of a fan. From one node to the next, and to a single policy, a packet
// goes without a way back: what is through returns to the workload's chain.
func (s *ruleset) fanChains(f policy.MadeFan) (out []Chain) {
	refused := []Rule{{Action: Drop(), Comment: "policies by port: the rules are refused"}}
	nodes := f.Tree()
	for i := range nodes {
		node := &nodes[i]
		c := Chain{Name: s.fanChain(f.ID, node), Fallback: refused}
		for _, w := range node.Ways {
			next := s.fanChain(f.ID, &nodes[w.Node])
			if w.Node == 0 {
				next = s.policyChain(f.Run[w.Chain])
			}
			c.Rules = append(c.Rules, Rule{Match: destinationPorts(w.Protocol, w.Ports), Action: Goto(next)})
		}
		for j, of := range node.Chains {
			c.Rules = append(c.Rules, s.asking(s.policyChain(f.Run[of]), j > 0))
		}
		out = append(out, c)
	}
	return out
}

// destinationPorts matches ports of a protocol, where it can by what is native to nftables.
func destinationPorts(proto uint8, ports model.PortRange) []string {
	text := strconv.Itoa(int(ports.First))
	if ports.Last != ports.First {
		text += ":" + strconv.Itoa(int(ports.Last))
	}
	switch {
	case ports == model.PortRange{Last: 65535}: // which tcp and udp do not print
		return []string{"-p", protocol(proto)}
	case proto == model.ProtocolTCP || proto == model.ProtocolUDP:
		return []string{"-p", protocol(proto), "-m", protocol(proto), "--dport", text}
	}
	return []string{"-p", protocol(proto), "-m", "multiport", "--dports", text}
}
