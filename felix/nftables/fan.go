package nftables

import (
	"fmt"

	"github.com/causeway-net/causeway/felix/policy"
)

// fanGroup begins the names of fans' groups.
const fanGroup = "/fan/"

// fanChain names a node of a fan. The marks are part of the name as of a policy's chain.
func (d dialect) fanChain(id string, node *policy.FanNode) string {
	return hashed("f-", id, fmt.Sprint(d.marks)) + "-" + node.String()
}

// fan has an interface go by the fans of these paths.
func (s *ruleset) fan(iface string, paths ...*policy.Path) {
	made, gone := s.fans.Set(iface, paths...)
	for _, f := range made {
		s.put(fanGroup+f.ID, s.fanChains(f))
	}
	for _, id := range gone {
		s.put(fanGroup+id, nil)
	}
}

// fanChains makes the chains of a fan. From one node to the next, and to a single policy, a packet
// goes without a way back: what is through returns to the workload's chain.
//
// They are a tree, and no verdict map: nft asks the kernel for all members of all sets of rules whenever
// anything changes.
func (s *ruleset) fanChains(f policy.MadeFan) (out []*chain) {
	nodes := f.Tree()
	for i := range nodes {
		node := &nodes[i]
		c := &chain{name: s.fanChain(f.ID, node)}
		for _, w := range node.Ways {
			next, comment := s.fanChain(f.ID, &nodes[w.Node]), ""
			if w.Node == 0 {
				id := f.Run[w.Chain]
				next, comment = s.policyChain(id), id.String()
			}
			c.rules = append(c.rules, rule{fmt.Sprintf("meta l4proto %d th dport %s goto %s", w.Protocol, portRange(w.Ports), next), comment})
		}
		for j, of := range node.Chains {
			id := f.Run[of]
			c.rules = append(c.rules, rule{s.asking(s.policyChain(id), j > 0), id.String()})
		}
		out = append(out, c)
	}
	return out
}
