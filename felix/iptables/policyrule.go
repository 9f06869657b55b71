package iptables

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// dialect is what rules of policy need to know to become rules of iptables.
type dialect struct {
	family Family
	marks  policy.Marks
}

// Chains that set the mark of a verdict. A rule goes to them, and does not call them: at
// their end the packet is back where the chain of the rule was called.
const (
	allowChain   = "cali-allow"
	passChain    = "cali-pass"
	noTrackChain = "cali-notrack"
)

// hashed makes a chain's name of what does not fit into one.
func hashed(prefix string, of ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(of, "\x00")))
	return prefix + base64.RawURLEncoding.EncodeToString(sum[:])[:16]
}

// policyChain names the chain of a policy. The marks are part of what the name is made of: chains of
// an agent that used others may still be in force beside ours.
func (d dialect) policyChain(id policy.ChainID) string {
	return hashed("cali-p-", string(id.Policy.Kind), id.Policy.Namespace, id.Policy.Name, id.Direction.String(), fmt.Sprint(d.marks))
}

// setName is the name of a set of policy's as felix/ipset has it.
func setName(id policy.SetID) string {
	if _, family, _ := policy.KindOf(id); family == policy.IPv6 {
		return ipset.Prefix6 + string(id)
	}
	return ipset.Prefix4 + string(id)
}

func hexMask(value, mask uint32) string { return fmt.Sprintf("%#x/%#x", value, mask) }

// marked matches packets that carry all bits; unmarked those that carry none.
func marked(bits uint32) []string   { return []string{"-m", "mark", "--mark", hexMask(bits, bits)} }
func unmarked(bits uint32) []string { return []string{"-m", "mark", "--mark", hexMask0(bits)} }

// hexMask0 is a zero under a mask as iptables prints it.
func hexMask0(mask uint32) string { return fmt.Sprintf("0x0/%#x", mask) }

func setBits(bits uint32) Action   { return Target("MARK", "--set-xmark", hexMask(bits, bits)) }
func clearBits(bits uint32) Action { return Target("MARK", "--set-xmark", hexMask0(bits)) }

func state(s string) []string { return []string{"-m", "conntrack", "--ctstate", s} }

const established = "RELATED,ESTABLISHED"

// prints are the names by which iptables-save prints protocols.
var prints = map[uint8]string{
	model.ProtocolICMP: "icmp", model.ProtocolTCP: "tcp", model.ProtocolUDP: "udp", model.ProtocolICMPv6: "ipv6-icmp",
	model.ProtocolSCTP: "sctp", model.ProtocolUDPLite: "udplite",
}

func protocol(p uint8) string {
	if s, ok := prints[p]; ok {
		return s
	}
	return strconv.Itoa(int(p))
}

// chain makes the chain of a policy for the family. Refused, it drops: nobody can say what
// it would have let pass.
func (d dialect) chain(c *policy.Chain) Chain {
	return Chain{Name: d.policyChain(c.ID), Rules: d.rules(c), Fallback: []Rule{{Action: Drop(), Comment: c.ID.String() + " is refused"}}}
}

func (d dialect) rules(c *policy.Chain) []Rule {
	from := c.IPv4
	if d.family == IPv6 {
		from = c.IPv6
	}
	out := make([]Rule, 0, len(from))
	for i := range from {
		out = d.rule(out, &from[i], remark(c.ID, &from[i]))
	}
	return out
}

// remark tells who reads iptables-save which rule of which policy a rule comes of.
func remark(id policy.ChainID, r *policy.Rule) string { return fmt.Sprintf("%s %d", id, r.Index) }

// rule appends the rules of iptables that r comes to: one, or several where its lists of
// ports are longer than what one can hold.
func (d dialect) rule(out []Rule, r *policy.Rule, comment string) []Rule {
	if r.NotProtocol != 0 && r.NotProtocol == r.Protocol {
		return out // matches nothing
	}
	action := d.action(r)
	for _, src := range portLists(r.Src.Ports) {
		for _, dst := range portLists(r.Dst.Ports) {
			out = append(out, Rule{Match: d.match(r, src, dst), Action: action, Comment: comment})
		}
	}
	return out
}

func (d dialect) action(r *policy.Rule) Action {
	switch r.Action {
	case policy.Allow:
		return Goto(allowChain)
	case policy.Pass:
		return Goto(passChain)
	case policy.Deny:
		return Drop()
	case policy.Return:
		return Return()
	case policy.Log:
		prefix := r.Log.Prefix + " "
		return Target("LOG", "--log-prefix", prefix[:min(len(prefix), 29)], "--log-level", "5")
	}
	return nil // policy.Count
}

// match is everything that r asks for. iptables-save prints it in this order.
func (d dialect) match(r *policy.Rule, src, dst string) []string {
	var m []string
	for _, end := range []struct {
		flag string
		peer *policy.Peer
	}{{"-s", &r.Src}, {"-d", &r.Dst}} {
		if end.peer.Net.IsValid() {
			m = append(m, end.flag, end.peer.Net.String())
		} else if end.peer.NotNet.IsValid() {
			m = append(m, "!", end.flag, end.peer.NotNet.String())
		}
	}
	switch {
	case r.Protocol != 0:
		m = append(m, "-p", protocol(r.Protocol))
	case r.NotProtocol != 0:
		m = append(m, "!", "-p", protocol(r.NotProtocol))
	}
	m = append(m, d.icmp(r.ICMP, false)...)
	m = append(m, d.icmp(r.NotICMP, true)...)
	for _, end := range []struct {
		peer            *policy.Peer
		ports           string
		flag, side, at2 string
	}{{&r.Src, src, "--sports", "src", "src,src"}, {&r.Dst, dst, "--dports", "dst", "dst,dst"}} {
		for _, id := range end.peer.In {
			m = append(m, "-m", "set", "--match-set", setName(id), end.side)
		}
		for _, id := range end.peer.NotIn {
			m = append(m, "-m", "set", "!", "--match-set", setName(id), end.side)
		}
		if end.ports != "" {
			m = append(m, "-m", "multiport", end.flag, end.ports)
		}
		if len(end.peer.NotPorts) > 0 {
			for _, list := range portLists(end.peer.NotPorts) {
				m = append(m, "-m", "multiport", "!", end.flag, list)
			}
		}
		for _, id := range end.peer.InPort {
			m = append(m, "-m", "set", "--match-set", setName(id), end.at2)
		}
		for _, id := range end.peer.NotInPort {
			m = append(m, "-m", "set", "!", "--match-set", setName(id), end.at2)
		}
	}
	if r.Log != nil {
		m = append(m, "-m", "limit", "--limit", fmt.Sprintf("%d/minute", r.Log.PerMinute), "--limit-burst", strconv.Itoa(r.Log.Burst))
	}
	return m
}

func (d dialect) icmp(m *policy.ICMPMatch, not bool) []string {
	if m == nil {
		return nil
	}
	invert := func(args ...string) []string {
		if not {
			args = slices.Insert(args, 2, "!")
		}
		return args
	}
	value := strconv.Itoa(int(m.Type))
	if !m.AnyCode {
		value += "/" + strconv.Itoa(int(m.Code))
	}
	switch {
	case d.family == IPv6:
		return invert("-m", "icmp6", "--icmpv6-type", value)
	case m.Type == 255: // which stands for any in the match of ICMP (icmp_type_code_match, net/ipv4/netfilter/ip_tables.c)
		if m.AnyCode {
			return invert("-m", "u32", "--u32", "0>>22&0x3c@0>>24=255")
		}
		return invert("-m", "u32", "--u32", fmt.Sprintf("0>>22&0x3c@0>>16=%d", 255<<8|int(m.Code)))
	}
	return invert("-m", "icmp", "--icmp-type", value)
}

// maxPorts is how many numbers one multiport match holds; a range takes two (XT_MULTI_PORTS,
// include/uapi/linux/netfilter/xt_multiport.h).
const maxPorts = 15

// portLists cuts ports into lists that a match can hold; no ports are one empty list.
func portLists(ports []model.PortRange) []string {
	var (
		out  []string
		list []string
		n    int
	)
	for _, p := range ports {
		text, takes := strconv.Itoa(int(p.First)), 1
		if p.Last != p.First {
			text, takes = text+":"+strconv.Itoa(int(p.Last)), 2
		}
		if n+takes > maxPorts {
			out, list, n = append(out, strings.Join(list, ",")), nil, 0
		}
		list, n = append(list, text), n+takes
	}
	return append(out, strings.Join(list, ","))
}

// of reports whether an address or prefix is of the family.
func (f Family) of(a netip.Addr) bool { return a.Is4() == (f == IPv4) }
