package nftables

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// dialect is what rules of policy need to know to become rules of nftables.
type dialect struct{ marks policy.Marks }

// verdict is the bits that the chains of one endpoint leave; they are cleared before.
func (d dialect) verdict() uint32 { return d.marks.Accept | d.marks.Pass }

func setBits(bits uint32) string   { return fmt.Sprintf("meta mark set meta mark or %#x", bits) }
func clearBits(bits uint32) string { return fmt.Sprintf("meta mark set meta mark and %#x", ^bits) }

// marked matches packets that carry one of the bits; unmarked those that carry none.
func marked(bits uint32) string   { return fmt.Sprintf("meta mark and %#x != 0", bits) }
func unmarked(bits uint32) string { return fmt.Sprintf("meta mark and %#x == 0", bits) }

// and joins the parts of a rule.
func and(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

// hashed makes a name of what does not fit into one.
func hashed(prefix string, of ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(of, "\x00")))
	return prefix + base64.RawURLEncoding.EncodeToString(sum[:])[:16]
}

// policyChain names the chain of a policy, and chain6 the chain that it leaves IPv6 to. The marks are
// part of what the name is made of: chains of an agent that used others may still be in force beside ours.
func (d dialect) policyChain(id policy.ChainID) string {
	return hashed("p-", string(id.Policy.Kind), id.Policy.Namespace, id.Policy.Name, id.Direction.String(), fmt.Sprint(d.marks))
}

func (d dialect) chain6(id policy.ChainID) string { return d.policyChain(id) + "-6" }

// ifaceChain names a chain of an interface. A hash is longer than any interface's name.
func ifaceChain(prefix, name string) string {
	if !identifier(name) {
		return hashed(prefix, name)
	}
	return prefix + name
}

// chainsOf makes the chains of a policy; v6 is nil where IPv6 meets no rule.
func (d dialect) chainsOf(c *policy.Chain) (v4, v6 *chain) {
	leave := rule{text: "meta nfproto ipv6 return", comment: c.ID.String()}
	if rules := d.rules(nil, c.ID, c.IPv6, policy.IPv6); len(rules) > 0 {
		v6 = &chain{name: d.chain6(c.ID), rules: rules}
		leave.text = "meta nfproto ipv6 goto " + v6.name
	}
	return &chain{name: d.policyChain(c.ID), rules: d.rules([]rule{leave}, c.ID, c.IPv4, policy.IPv4)}, v6
}

func (d dialect) rules(out []rule, id policy.ChainID, from []policy.Rule, f policy.Family) []rule {
	for i := range from {
		for _, text := range d.rule(&from[i], f) {
			out = append(out, rule{text, remark(id, &from[i])})
		}
	}
	return out
}

// remark tells who reads the table which rule of which policy a rule comes of.
func remark(id policy.ChainID, r *policy.Rule) string { return fmt.Sprintf("%d %s", r.Index, id) }

// spread is up to how many ports or ranges become a rule each. More are a set of the rule's
// own, which nft asks the kernel for whenever anything changes.
const spread = 4

// rule makes the rules of nftables that r comes to.
func (d dialect) rule(r *policy.Rule, f policy.Family) []string {
	if r.NotProtocol != 0 && r.NotProtocol == r.Protocol {
		return nil // matches nothing
	}
	head, ok := d.match(r, f)
	if !ok {
		return nil
	}
	end := d.action(r)
	var out []string
	for _, src := range portMatches("th sport", r.Src.Ports) {
		for _, dst := range portMatches("th dport", r.Dst.Ports) {
			out = append(out, and(head, src, dst, end))
		}
	}
	return out
}

func portRange(p model.PortRange) string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// portMatches are the ways to match ports, one of which must; no ports are one empty match.
func portMatches(what string, ports []model.PortRange) []string {
	if len(ports) == 0 {
		return []string{""}
	}
	var list []string
	for _, p := range ports {
		list = append(list, portRange(p))
	}
	if len(list) > spread {
		return []string{what + " { " + strings.Join(list, ", ") + " }"}
	}
	for i := range list {
		list[i] = what + " " + list[i]
	}
	return list
}

func (d dialect) action(r *policy.Rule) string {
	switch r.Action {
	case policy.Allow:
		return "counter " + setBits(d.marks.Accept) + " return"
	case policy.Pass:
		return "counter " + setBits(d.marks.Pass) + " return"
	case policy.Deny:
		return "counter drop"
	case policy.Return:
		return "counter return"
	case policy.Log:
		return fmt.Sprintf("limit rate %d/minute burst %d packets counter log prefix \"%s \" level notice", r.Log.PerMinute, r.Log.Burst, plain(r.Log.Prefix))
	}
	return "counter" // policy.Count
}

// ip begins what is asked about addresses.
func ip(f policy.Family) string {
	if f == policy.IPv6 {
		return "ip6"
	}
	return "ip"
}

// match is everything that r asks for, but its lists of ports that one of must match. ok is false when nothing can.
func (d dialect) match(r *policy.Rule, f policy.Family) (text string, ok bool) {
	var m []string
	ends := []struct {
		peer       *policy.Peer
		addr, port string
	}{{&r.Src, ip(f) + " saddr", "th sport"}, {&r.Dst, ip(f) + " daddr", "th dport"}}
	for _, e := range ends {
		if n := e.peer.Net; n.IsValid() && n.Bits() > 0 {
			m = append(m, e.addr+" "+n.Masked().String())
		}
		if n := e.peer.NotNet; n.IsValid() {
			if n.Bits() == 0 {
				return "", false
			}
			m = append(m, e.addr+" != "+n.Masked().String())
		}
	}
	if r.Protocol != 0 {
		m = append(m, fmt.Sprintf("meta l4proto %d", r.Protocol))
	} else if r.NotProtocol != 0 {
		m = append(m, fmt.Sprintf("meta l4proto != %d", r.NotProtocol))
	}
	m = append(m, icmp(r.ICMP, f, false)...)
	m = append(m, icmp(r.NotICMP, f, true)...)
	for _, e := range ends {
		ask := func(not string, ids []policy.SetID, port bool) {
			for _, id := range ids {
				what := e.addr
				switch k, _, _ := policy.KindOf(id); {
				case port:
					what += " . meta l4proto . " + e.port
				case k == policy.SetNet:
					what += " . meta nfproto"
				}
				m = append(m, what+" "+not+"@"+string(id))
			}
		}
		ask("", e.peer.In, false)
		ask("!= ", e.peer.NotIn, false)
		for _, p := range e.peer.NotPorts {
			m = append(m, e.port+" != "+portRange(p))
		}
		ask("", e.peer.InPort, true)
		ask("!= ", e.peer.NotInPort, true)
	}
	return and(m...), true
}

func icmp(m *policy.ICMPMatch, f policy.Family, not bool) []string {
	if m == nil {
		return nil
	}
	name := "icmp"
	if f == policy.IPv6 {
		name = "icmpv6"
	}
	unless := ""
	if not {
		unless = "!= "
	}
	switch {
	case m.AnyCode:
		return []string{fmt.Sprintf("%s type %s%d", name, unless, m.Type)}
	case not: // as one field: neither alone may differ
		return []string{fmt.Sprintf("%s type . %s code != { %d . %d }", name, name, m.Type, m.Code)}
	}
	return []string{fmt.Sprintf("%s type %d %s code %d", name, m.Type, name, m.Code)}
}

// asking has a chain asked; after others: unless one of those has decided.
func (d dialect) asking(chain string, after bool) string {
	if after {
		return and(unmarked(d.verdict()), "jump", chain)
	}
	return "jump " + chain
}

// path makes the rules of a path. The verdict bits are clear before. allowed is what
// happens to what a rule allows, and fallen to what meets a default that allows; empty:
// it goes on.
func (d dialect) path(p *policy.Path, allowed, fallen string) []rule {
	var out []rule
	add := func(comment string, parts ...string) { out = append(out, rule{and(parts...), comment}) }
	for i, tier := range p.Tiers {
		if i > 0 {
			add("", clearBits(d.marks.Pass))
		}
		first := len(out)
		ask := func(comment, chain string) { out = append(out, rule{d.asking(chain, len(out) > first), comment}) }
		done := 0 // up to here chains are asked
		for k := range tier.Fans {
			f := &tier.Fans[k]
			for _, id := range tier.Chains[done:f.From] {
				ask(id.String(), d.policyChain(id))
			}
			if len(f.Ranges) > 0 {
				ask(fmt.Sprintf("%d policies, by port", f.To-f.From), d.fanChain(f.ID, &policy.FanNode{}))
			}
			done = f.To
		}
		for _, id := range tier.Chains[done:] {
			ask(id.String(), d.policyChain(id))
		}
		add("", marked(d.marks.Accept), allowed)
		if tier.End == policy.Deny {
			add("end of tier "+tier.Name, unmarked(d.marks.Pass), "counter drop")
		}
	}
	switch {
	case p.Default == policy.Deny:
		add("no policy allows it", "counter drop")
	case p.Default == policy.Allow && fallen != "":
		add("", fallen)
	}
	return out
}

// familyOf is the family of an address or prefix.
func familyOf(a netip.Addr) policy.Family {
	if a.Is4() {
		return policy.IPv4
	}
	return policy.IPv6
}
