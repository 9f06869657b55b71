package policy

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Fan is a short way through a run of a tier's chains which all ask for the destination port: a packet
// that is in none of the ranges passes the whole run, and one that is in a range need be sent
// to that range's chains alone, in their order. The others have no rule that could match it.
type Fan struct {
	ID       string     // made of which chains the run has, and nothing else; 26 letters and digits
	From, To int        // the run is Chains[From:To] of the tier
	Ranges   []FanRange // disjoint, sorted
}

// FanRange is some ports of one protocol, and who asks for them.
type FanRange struct {
	Protocol uint8
	Ports    model.PortRange
	Chains   []int // of the run, ascending, never empty
}

// fanMost bounds what a fan sends packets to, all ranges together, for each chain of the run: ranges that
// overlap without end would make it longer than what it stands for.
const fanMost = 8

// Equal reports whether both are the same way, in the same place of a tier.
func (f *Fan) Equal(o *Fan) bool { return f.From == o.From && f.To == o.To && f.alike(o) }

// alike reports whether both are the same way, through the same chains.
func (f *Fan) alike(o *Fan) bool {
	return f.ID == o.ID && slices.EqualFunc(f.Ranges, o.Ranges, func(a, b FanRange) bool {
		return a.Protocol == b.Protocol && a.Ports == b.Ports && slices.Equal(a.Chains, b.Chains)
	})
}

// asked is the destination ports outside of which no rule of a chain matches, sorted.
type asked []portsOf

// portsOf is some ports of one protocol.
type portsOf struct {
	protocol uint8
	ports    model.PortRange
}

// asked returns what the chain's rules ask for; nil: one matches whatever the port.
func (c *Chain) asked() asked {
	ports := asked{}
	for _, rules := range [2][]Rule{c.IPv4, c.IPv6} {
		for i := range rules {
			r := &rules[i]
			if r.Protocol == 0 || len(r.Dst.Ports) == 0 {
				return nil
			}
			for _, p := range r.Dst.Ports {
				ports = append(ports, portsOf{r.Protocol, p})
			}
		}
	}
	slices.SortFunc(ports, func(a, b portsOf) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.ports.First, b.ports.First), cmp.Compare(a.ports.Last, b.ports.Last))
	})
	return slices.Compact(ports)
}

// fans finds the runs of a tier's chains, at least so long, that a fan can stand for.
func fans(ids []ChainID, by []asked, least int) (out []Fan) {
	from := 0
	end := func(to int) {
		if to-from >= least {
			if ranges := fanRanges(by[from:to]); ranges != nil {
				out = append(out, Fan{fanID(ids[from:to]), from, to, ranges})
			}
		}
		from = to + 1
	}
	for i, ports := range by {
		if ports == nil {
			end(i)
		}
	}
	end(len(by))
	return out
}

func fanID(ids []ChainID) string {
	h := sha256.New()
	for _, id := range ids {
		fmt.Fprintf(h, "%s\x00", id)
	}
	return idEncoding.EncodeToString(h.Sum(nil)[:16])
}

// edge is where a chain begins to ask for ports, or ceases to.
type edge struct {
	protocol uint8
	at       int // the first port of what begins, or the first after what ends
	chain    int
	by       int // 1 or -1
}

// fanRanges walks along the ports of each protocol, and notes which chains of a run ask for them. It returns
// nil where that is no shortcut.
func fanRanges(run []asked) []FanRange {
	var edges []edge
	for i := range run {
		for _, p := range run[i] {
			edges = append(edges, edge{p.protocol, int(p.ports.First), i, 1}, edge{p.protocol, int(p.ports.Last) + 1, i, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.at, b.at)) })
	out := []FanRange{}
	times := map[int]int{} // how many of a chain's ranges hold the port
	var now []int          // the chains that ask for it, ascending
	size := 0
	for i, e := range edges {
		if times[e.chain] += e.by; times[e.chain] == 0 || times[e.chain] == e.by {
			at, _ := slices.BinarySearch(now, e.chain)
			if e.by > 0 {
				now = slices.Insert(now, at, e.chain)
			} else {
				now = slices.Delete(now, at, at+1)
			}
		}
		if len(now) == 0 || edges[i+1].at == e.at { // what began has an end: there is a next edge, of this protocol
			continue
		}
		r := FanRange{e.protocol, model.PortRange{First: uint16(e.at), Last: uint16(edges[i+1].at - 1)}, slices.Clone(now)}
		if n := len(out); n > 0 && out[n-1].continues(&r) {
			out[n-1].Ports.Last = r.Ports.Last
			continue
		}
		if size += len(now); size > fanMost*len(run) {
			return nil
		}
		out = append(out, r)
	}
	if 4*size > 3*len(run)*len(out) { // a packet that is in a range would meet most chains all the same
		return nil
	}
	return out
}

// continues reports whether o goes on where r ends, with the same chains.
func (r *FanRange) continues(o *FanRange) bool {
	return r.Protocol == o.Protocol && int(r.Ports.Last)+1 == int(o.Ports.First) && slices.Equal(r.Chains, o.Chains)
}

// fanFew is up to how many ranges a node tells apart one by one. A packet is compared with about half of them.
const fanFew = 12

// FanNode is a node of the tree that a fan makes for those who have no map from ports to chains, or
// only a dear one. Ports part by their value, four bits at a time, and a node is known by its ports: a
// range that comes or goes changes few nodes of many.
type FanNode struct {
	// Protocol and Ports are those of the packets that come here, and no other node's. The root, where
	// all come, has none.
	Protocol uint8
	Ports    model.PortRange
	// Ways are disjoint, and at most 16 of a protocol; a packet that has none of them is through.
	Ways []FanWay
	// Chains, of the run, are asked one after the other, as long as none has decided. A node has
	// either of the two.
	Chains []int
}

// FanWay is that of packets of some ports.
type FanWay struct {
	Protocol uint8
	Ports    model.PortRange
	Node     int // where it leads; 0: to a single chain
	Chain    int // which then is this one of the run
}

// String is the protocol's number and the ports, or for the root "all".
func (n *FanNode) String() string {
	if n.Protocol == 0 {
		return "all"
	}
	return fmt.Sprintf("%d-%d-%d", n.Protocol, n.Ports.First, n.Ports.Last)
}

// Tree returns the nodes, the root first. Each is reached from one other only, which comes before it.
func (f *Fan) Tree() []FanNode {
	nodes := []FanNode{{}}
	for at := 0; at < len(f.Ranges); {
		end := at
		for end < len(f.Ranges) && f.Ranges[end].Protocol == f.Ranges[at].Protocol {
			end++
		}
		nodes = fanGrow(nodes, 0, f.Ranges[at:end])
		at = end
	}
	return nodes
}

// fanGrow adds the ways of ranges, of one protocol, to a node.
func fanGrow(nodes []FanNode, at int, ranges []FanRange) []FanNode {
	way := func(w FanWay) { nodes[at].Ways = append(nodes[at].Ways, w) }
	end := func(r FanRange) {
		w := FanWay{Protocol: r.Protocol, Ports: r.Ports}
		if len(r.Chains) > 1 {
			w.Node, nodes = len(nodes), append(nodes, FanNode{Protocol: r.Protocol, Ports: r.Ports, Chains: r.Chains})
		} else {
			w.Chain = r.Chains[0]
		}
		way(w)
	}
	if len(ranges) <= fanFew {
		for _, r := range ranges {
			end(r)
		}
		return nodes
	}
	first, last := ranges[0].Ports.First, ranges[len(ranges)-1].Ports.Last
	shift := 12
	for first>>shift == last>>shift {
		shift -= 4
	}
	for from := int(first) >> shift; from <= int(last)>>shift; from++ {
		ports := model.PortRange{First: uint16(from << shift), Last: uint16((from+1)<<shift - 1)}
		some := within(ranges, ports)
		switch len(some) {
		case 0:
			continue
		case 1:
			end(some[0])
			continue
		}
		w := FanWay{Protocol: some[0].Protocol, Ports: ports, Node: len(nodes)}
		way(w)
		nodes = fanGrow(append(nodes, FanNode{Protocol: w.Protocol, Ports: ports}), w.Node, some)
	}
	return nodes
}

// within cuts ranges to those ports.
func within(ranges []FanRange, ports model.PortRange) (out []FanRange) {
	for _, r := range ranges {
		r.Ports = model.PortRange{First: max(r.Ports.First, ports.First), Last: min(r.Ports.Last, ports.Last)}
		if r.Ports.First <= r.Ports.Last {
			out = append(out, r)
		}
	}
	return out
}
