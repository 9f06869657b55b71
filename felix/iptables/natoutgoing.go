package iptables

import (
	"fmt"
	"net/netip"

	"github.com/causeway-net/causeway/internal/model"
)

// The chains that NATOutgoing fills; their names are Calico's.
const (
	PostroutingChain = "cali-POSTROUTING"
	NATOutgoingChain = "cali-nat-outgoing"
)

// NATOutgoing is the state of table nat that gives connections another source as n says. The
// kernel asks table nat about the first packet of a connection only and keeps to the answer:
// whatever changes here, a connection that stands keeps its addresses (I3).
//
// The kernel tracks connections, and translates them, as long as some rule in the namespace
// asks for it (nf_ct_netns_get; kube-proxy's do). So when there is nothing to translate any
// more, one rule stays that asks; where nothing was translated before, none is made. What was
// not tracked when the first state with translation comes, is new to the kernel then, and
// connections to the outside end. To have all of them tracked for that day would cost every
// packet of nodes that translate nothing.
//
// The hook stands behind everybody's. What kube-proxy has marked for masquerading, its own
// rule masquerades, and takes the mark away again, before a packet gets here: it must not
// travel on with the mark, as inside a tunnel, where it would be taken for another packet's.
func NATOutgoing(n model.OutgoingNAT) TableState {
	hooks := []Hook{{Chain: "POSTROUTING", Rule: Rule{Action: Jump(PostroutingChain)}, Append: true}}
	if len(n.Sources) == 0 {
		return TableState{IfThere: true, Hooks: hooks, Chains: []Chain{{Name: PostroutingChain, Rules: []Rule{{
			Match: []string{"-m", "conntrack", "--ctstate", "NEW"}, Comment: "translates nothing; keeps connections tracked",
		}}}}}
	}
	var by []string
	if n.Interface != "" {
		by = []string{"-o", n.Interface}
	}
	var dispatch, chain []Rule
	for _, p := range n.Sources {
		dispatch = append(dispatch, Rule{Match: append(Source(p), by...), Action: Jump(NATOutgoingChain)})
	}
	for _, p := range n.Exempt {
		chain = append(chain, Rule{Match: Destination(p), Action: Return()})
	}
	if n.Ports != (model.PortRange{}) {
		for _, protocol := range []string{"tcp", "udp"} {
			chain = append(chain, Rule{Match: []string{"-p", protocol}, Action: translate(n.Address, n.Ports)})
		}
	}
	chain = append(chain, Rule{Action: translate(n.Address, model.PortRange{})})
	return TableState{
		Chains: []Chain{{Name: PostroutingChain, Rules: dispatch}, {Name: NATOutgoingChain, Rules: chain}},
		Hooks:  hooks,
	}
}

// translate gives a connection that source and a port of that range. The port is chosen at
// random: two connections that the kernel handles at once seldom choose the same, which
// would cost one of them its first packet.
func translate(source netip.Addr, ports model.PortRange) Action {
	options := []string{}
	some := ports != model.PortRange{}
	text := fmt.Sprintf("%d-%d", ports.First, ports.Last)
	switch {
	case source.IsValid() && some && source.Is6():
		options = append(options, "--to-source", fmt.Sprintf("[%s]:%s", source, text))
	case source.IsValid() && some:
		options = append(options, "--to-source", fmt.Sprintf("%s:%s", source, text))
	case source.IsValid():
		options = append(options, "--to-source", source.String())
	case some:
		options = append(options, "--to-ports", text)
	}
	options = append(options, "--random-fully")
	if source.IsValid() {
		return Target("SNAT", options...)
	}
	return Target("MASQUERADE", options...)
}
