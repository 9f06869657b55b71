package policy

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// chain makes a policy's rules for one direction.
func (e *Engine) chain(id ChainID, c *compiled) *Chain {
	out := &Chain{ID: id, Layer: c.layer}
	for n := range c.rules[id.Direction] {
		r := &c.rules[id.Direction][n]
		if r.families[0] {
			out.IPv4 = e.split(out.IPv4, r, n, 0)
		}
		if r.families[1] {
			out.IPv6 = e.split(out.IPv6, r, n, 1)
		}
	}
	return out
}

// split appends what one rule is in one family: a rule for every pair of alternatives at its
// ends, or nothing when it matches nothing.
func (e *Engine) split(to []Rule, r *ruleForm, index, fam int) []Rule {
	if r.src.void(fam, e.seen) || r.dst.void(fam, e.seen) {
		return to
	}
	src, dst := e.ends(&r.src, fam), e.ends(&r.dst, fam)
	for i := range src {
		for j := range dst {
			out := Rule{Action: r.action, Index: index, Protocol: r.protocol, NotProtocol: r.notProtocol, ICMP: r.icmp, NotICMP: r.notICMP, Src: src[i], Dst: dst[j]}
			if r.action == Log {
				out.Log = e.log
			}
			to = append(to, out)
		}
	}
	return to
}

// ends lists the alternatives of one end, which is not void.
func (e *Engine) ends(f *peerForm, fam int) []Peer {
	var p Peer
	n := &f.nets[fam]
	switch {
	case len(n.nets) == 1 && n.not:
		p.NotNet = n.nets[0]
	case len(n.nets) == 1:
		p.Net = n.nets[0]
	case len(n.nets) > 1:
		id := e.sets[netsDefinition(n.nets)].fam[fam].id
		if n.not {
			p.NotIn = append(p.NotIn, id)
		} else {
			p.In = append(p.In, id)
		}
	}
	ids := func(to []SetID, of []setForm) []SetID {
		if e.seen[fam] {
			for _, s := range of {
				to = append(to, e.sets[s.definition].fam[fam].id)
			}
		}
		return to
	}
	p.NotIn, p.InPort = ids(p.NotIn, f.notIn), ids(nil, f.inPort)
	p.NotPorts, p.NotInPort = f.notPorts, ids(nil, f.notNamed)
	fixed := slices.Clip(p.In)
	if !f.byName() {
		p.In = ids(p.In, f.in)
	}
	if len(f.ports)+len(f.named) == 0 {
		return []Peer{p}
	}
	var out []Peer
	if len(f.ports) > 0 {
		q := p
		q.Ports = f.ports
		out = append(out, q)
	}
	for _, named := range ids(nil, f.named) {
		q := p
		q.In = fixed
		for i := range f.in {
			if !f.in[i].implied() {
				q.In = ids(slices.Clip(q.In), f.in[i:i+1])
			}
		}
		q.InPort = append(slices.Clip(p.InPort), named)
		out = append(out, q)
	}
	return out
}

// paths are those of all endpoints of a group.
type paths struct {
	filter, forward, untracked, preDNAT [2]Path
}

// endpoint makes a local endpoint's dispatch.
func (e *Engine) endpoint(ep *endpoint) *Endpoint {
	out := &Endpoint{ID: ep.id, Interface: ep.iface}
	host := ep.id.Kind == model.EndpointHost
	if !host {
		for _, p := range ep.item.prefixes {
			out.Addresses = append(out.Addresses, p.Addr())
		}
		out.Sources = ep.sources
	}
	g := ep.here.group
	if g == nil || !host && ep.id.Namespace != "" && !g.ns.known {
		// Nobody knows which policies it has: nothing passes.
		out.Ingress.Default, out.Egress.Default = Deny, Deny
		if host {
			out.ForwardIngress.Default, out.ForwardEgress.Default = Deny, Deny
		}
		return out
	}
	if g.asked != e.flushes {
		g.asked, g.paths = e.flushes, e.groupPaths(g)
	}
	out.Ingress, out.Egress = g.paths.filter[Ingress], g.paths.filter[Egress]
	if !host {
		out.Ingress.Default, out.Egress.Default = Allow, Allow
		return out
	}
	out.Ingress.Default, out.Egress.Default = Deny, Deny
	if ep.profiles {
		out.Ingress.Default, out.Egress.Default = Allow, Allow
	}
	out.ForwardIngress, out.ForwardEgress = g.paths.forward[Ingress], g.paths.forward[Egress]
	out.ForwardIngress.Default, out.ForwardEgress.Default = Allow, Allow
	out.UntrackedIngress, out.UntrackedEgress = g.paths.untracked[Ingress], g.paths.untracked[Egress]
	out.PreDNAT = g.paths.preDNAT[Ingress]
	return out
}

// groupPaths makes the tiers of a group of local endpoints; the defaults are the endpoint's.
func (e *Engine) groupPaths(g *group) *paths {
	host := g.class == classHost
	var of []*policy
	for _, s := range g.matches {
		for _, p := range s.policies {
			if p.now.holdsFor(g.items[0].endpoint) {
				of = append(of, p)
			}
		}
	}
	slices.SortFunc(of, e.comparePolicies)
	out := &paths{}
	least := e.fanLeast
	if host {
		least = math.MaxInt // hosts are few, and seldom have many policies
	}
	for len(of) > 0 {
		t := e.tiers[of[0].now.tier]
		n := slices.IndexFunc(of, func(p *policy) bool { return p.now.tier != t.Name })
		if n < 0 {
			n = len(of)
		}
		for dir := range Egress + 1 {
			add := func(to *[2]Path, end bool, take func(*compiled) bool) {
				if tier, any := tierOf(t, of[:n], dir, end, least, take); any {
					to[dir].Tiers = append(to[dir].Tiers, tier)
				}
			}
			add(&out.filter, true, func(c *compiled) bool { return c.layer == LayerFilter })
			if host {
				add(&out.forward, true, func(c *compiled) bool { return c.layer == LayerFilter && c.forward })
				add(&out.untracked, false, func(c *compiled) bool { return c.layer == LayerUntracked })
				add(&out.preDNAT, false, func(c *compiled) bool { return c.layer == LayerPreDNAT })
			}
		}
		of = of[n:]
	}
	return out
}

// tierOf lists the policies of a tier that hold for the direction. end: what they do not
// decide on meets the tier's default action, unless all are staged. least is how long a fan's run is.
func tierOf(t *tier, of []*policy, dir Direction, end bool, least int, take func(*compiled) bool) (out Tier, any bool) {
	out = Tier{Name: t.Name, End: Pass}
	var by []asked
	for _, p := range of {
		if !p.now.holds[dir] || !take(p.now) {
			continue
		}
		out.Chains = append(out.Chains, ChainID{p.id, dir})
		by = append(by, p.asked[dir])
		if end && !p.now.staged && t.DefaultAction == model.RuleDeny {
			out.End = Deny
		}
	}
	out.Fans = fans(out.Chains, by, least)
	return out, len(out.Chains) > 0
}

// comparePolicies puts policies in force in the order in which they are asked.
func (e *Engine) comparePolicies(a, b *policy) int {
	if a.now.tier != b.now.tier {
		return cmp.Or(cmp.Compare(e.tiers[a.now.tier].Order, e.tiers[b.now.tier].Order), strings.Compare(a.now.tier, b.now.tier))
	}
	return cmp.Or(cmp.Compare(a.now.order, b.now.order), a.id.Compare(b.id))
}
