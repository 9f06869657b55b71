package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// packet is what rules can see of one.
type packet struct {
	src, dst           netip.Addr
	protocol           uint8
	srcPort, dstPort   uint16
	icmpType, icmpCode uint8
}

// packet makes one that the endpoint could send or get. Its own end is an address of its own:
// named ports of the own end are those of the endpoint.
func (g generator) packet(m model.PolicyEndpoint, d Direction) packet {
	p := packet{protocol: pick(g, 1, model.ProtocolTCP, model.ProtocolUDP, 58, 132), srcPort: pick(g, uint16(53), 80, 79, 8080), dstPort: pick(g, uint16(53), 80, 79, 8080), icmpType: pick(g, uint8(8), 128), icmpCode: uint8(g.IntN(2))}
	v4, v6 := g.addr()
	own := pick(g, v4, v6)
	if len(m.Addresses) > 0 && m.ID.Kind == model.EndpointWorkload {
		own = pick(g, m.Addresses...)
	}
	v4, v6 = g.addr()
	other := v6
	if own.Is4() {
		other = pick(g, v4, v4, v4, netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.0.0.200"))
	}
	if p.src, p.dst = own, other; d == Ingress {
		p.src, p.dst = other, own
	}
	return p
}

// verdict walks the rules.
func (p *Program) verdict(t *testing.T, ep *Endpoint, l Layer, forward bool, d Direction, pkt packet) (a Action, why string) {
	t.Helper()
	paths := map[Layer][2]*Path{LayerFilter: {&ep.Ingress, &ep.Egress}, LayerUntracked: {&ep.UntrackedIngress, &ep.UntrackedEgress}, LayerPreDNAT: {&ep.PreDNAT, nil}}
	path := paths[l][d]
	if forward {
		path = [2]*Path{&ep.ForwardIngress, &ep.ForwardEgress}[d]
	}
	for _, tier := range path.Tiers {
		decided := tier.End
	chains:
		for _, id := range tier.Chains {
			c := p.Chains[id]
			if c.Layer != l {
				t.Fatalf("chain %s is of layer %d", id, c.Layer)
			}
			rules := c.IPv4
			if !pkt.src.Is4() {
				rules = c.IPv6
			}
			for i := range rules {
				if !p.matches(&rules[i], pkt) {
					continue
				}
				switch a := rules[i].Action; a {
				case Allow, Deny:
					return a, fmt.Sprint(id, " rule ", rules[i].Index)
				case Pass:
					decided = Pass
					break chains
				case Return:
					continue chains
				}
			}
		}
		if decided == Deny {
			return Deny, "end of tier " + tier.Name
		}
	}
	return path.Default, "end"
}

func (p *Program) matches(r *Rule, k packet) bool {
	if r.Protocol != 0 && r.Protocol != k.protocol || r.NotProtocol != 0 && r.NotProtocol == k.protocol {
		return false
	}
	is := func(m *ICMPMatch) bool { return m.Type == k.icmpType && (m.AnyCode || m.Code == k.icmpCode) }
	if r.ICMP != nil && !is(r.ICMP) || r.NotICMP != nil && is(r.NotICMP) {
		return false
	}
	return p.end(&r.Src, k.src, k.protocol, k.srcPort) && p.end(&r.Dst, k.dst, k.protocol, k.dstPort)
}

func (p *Program) end(e *Peer, a netip.Addr, proto uint8, port uint16) bool {
	if e.Net.IsValid() && !e.Net.Contains(a) || e.NotNet.IsValid() && e.NotNet.Contains(a) || e.Net.IsValid() && e.NotNet.IsValid() {
		return false
	}
	in := func(id SetID) bool {
		for m := range p.Sets[id] {
			if m.Prefix.Contains(a) {
				return true
			}
		}
		return false
	}
	inPort := func(id SetID) bool {
		_, there := p.Sets[id][Member{netip.PrefixFrom(a, a.BitLen()), proto, port}]
		return there
	}
	inRange := func(r model.PortRange) bool { return r.First <= port && port <= r.Last }
	for _, id := range e.In {
		if !in(id) {
			return false
		}
	}
	for _, id := range e.InPort {
		if !inPort(id) {
			return false
		}
	}
	return !slices.ContainsFunc(e.NotIn, in) && !slices.ContainsFunc(e.NotInPort, inPort) &&
		(len(e.Ports) == 0 || slices.ContainsFunc(e.Ports, inRange)) && !slices.ContainsFunc(e.NotPorts, inRange)
}

// verdict is the oracle's: it looks at every object for every packet, in the words of
// model's comments.
func (w *world) verdict(t *testing.T, m model.PolicyEndpoint, l Layer, forward bool, d Direction, k packet) (a Action, why string) {
	t.Helper()
	host := m.ID.Kind == model.EndpointHost
	_, known := w.namespaces[m.ID.Namespace]
	if m.Unknown || !host && !known {
		return Deny, "unknown"
	}
	tiers := []model.Tier{{Name: model.TierAdmin, Order: 1000, DefaultAction: model.RulePass}}
	if _, ok := w.tiers["default"]; !ok {
		tiers = append(tiers, model.Tier{Name: "default", Order: 1e6, DefaultAction: model.RuleDeny})
	}
	for _, x := range w.tiers {
		tiers = append(tiers, x)
	}
	slices.SortFunc(tiers, func(a, b model.Tier) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), strings.Compare(a.Name, b.Name))
	})
	of := make([]model.Policy, 0, len(w.policies))
	for _, p := range w.policies {
		layer := LayerFilter
		if p.Untracked {
			layer = LayerUntracked
		} else if p.PreDNAT {
			layer = LayerPreDNAT
		}
		holds := p.ForIngress
		if d == Egress {
			holds = p.ForEgress
		}
		if layer == l && holds && (!forward || p.ApplyOnForward) && !p.ID.Kind.Staged() && w.subject(t, &p, m) {
			of = append(of, p)
		}
	}
	slices.SortFunc(of, func(a, b model.Policy) int { return cmp.Or(cmp.Compare(a.Order, b.Order), a.ID.Compare(b.ID)) })
next:
	for _, tier := range tiers {
		selected := false
		for _, p := range of {
			if p.Tier != tier.Name {
				continue
			}
			selected = true
			rules := p.Ingress
			if d == Egress {
				rules = p.Egress
			}
			for i, r := range rules {
				if !w.ruleMatches(t, &p, &r, m, d, k) {
					continue
				}
				action := r.Action
				if r.HTTP && (action == model.RuleAllow || action == model.RulePass) {
					action = model.RuleDeny
				}
				switch action {
				case model.RuleAllow:
					return Allow, fmt.Sprint(p.ID, " rule ", i)
				case model.RuleDeny:
					return Deny, fmt.Sprint(p.ID, " rule ", i)
				case model.RulePass:
					continue next
				}
			}
		}
		if selected && tier.DefaultAction == model.RuleDeny && l == LayerFilter {
			return Deny, "end of tier " + tier.Name
		}
	}
	switch {
	case l != LayerFilter:
		return 0, "end"
	case forward, !host, slices.Contains(m.Profiles, "projectcalico-default-allow"):
		return Allow, "end"
	}
	return Deny, "end"
}

// labelsOf is all that selectors see of an endpoint.
func (w *world) labelsOf(m model.PolicyEndpoint) map[string]string {
	out := w.inNamespace(m.Labels, m.ID.Namespace)
	if m.ID.Kind == model.EndpointWorkload {
		out[labelOrchestrator] = "k8s"
		if m.ServiceAccount != "" {
			out[labelAccount] = m.ServiceAccount
		}
		if sa, ok := w.accounts[accountKey{m.ID.Namespace, m.ServiceAccount}]; ok {
			for k, v := range sa.Labels {
				out["pcsa."+k] = v
			}
			out["pcsa.projectcalico.org/name"] = sa.Name
		}
	}
	return out
}

func (w *world) inNamespace(labels map[string]string, ns string) map[string]string {
	out := maps.Clone(labels)
	if ns == "" {
		return out
	}
	out[labelNamespace] = ns
	if n, ok := w.namespaces[ns]; ok {
		for k, v := range n.Labels {
			out["pcns."+k] = v
		}
		out["pcns.projectcalico.org/name"] = ns
	}
	return out
}

// cutPrefix is the labels that namespace or service account handed down.
func cutPrefix(labels map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if k, ok := strings.CutPrefix(k, prefix); ok {
			out[k] = v
		}
	}
	return out
}

func sees(t *testing.T, text string, labels map[string]string) bool {
	t.Helper()
	s, err := selector.Parse(text)
	must(t, err)
	return s.Matches(labels)
}

// where asks namespace and service account selectors.
func where(t *testing.T, nsSelector, saSelector string, labels map[string]string) bool {
	t.Helper()
	_, in := labels[labelNamespace]
	switch nsSelector {
	case "":
	case "global()":
		if in {
			return false
		}
	default:
		if !in || !sees(t, nsSelector, cutPrefix(labels, "pcns.")) {
			return false
		}
	}
	_, has := labels[labelAccount]
	return saSelector == "" || has && sees(t, saSelector, cutPrefix(labels, "pcsa."))
}

func (w *world) subject(t *testing.T, p *model.Policy, m model.PolicyEndpoint) bool {
	host := m.ID.Kind == model.EndpointHost
	if host && (p.ID.Namespace != "" || p.ID.Kind.PodsOnly()) || !host && (p.Untracked || p.PreDNAT) || p.ID.Namespace != "" && p.ID.Namespace != m.ID.Namespace {
		return false
	}
	l := w.labelsOf(m)
	return sees(t, p.Subject.Selector, l) && where(t, p.Subject.NamespaceSelector, p.Subject.ServiceAccountSelector, l)
}

func (w *world) ruleMatches(t *testing.T, p *model.Policy, r *model.Rule, m model.PolicyEndpoint, d Direction, k packet) bool {
	version := 6
	if k.src.Is4() {
		version = 4
	}
	if r.IPVersion != 0 && r.IPVersion != version || r.Protocol != 0 && r.Protocol != k.protocol || r.NotProtocol != 0 && r.NotProtocol == k.protocol {
		return false
	}
	// ICMP is of IPv4 and ICMPv6 of IPv6.
	is := func(m *model.ICMPMatch) bool {
		return m.Type == int(k.icmpType) && (m.Code == nil || *m.Code == int(k.icmpCode))
	}
	if (r.ICMP != nil || r.NotICMP != nil) && (k.protocol == 1) != (version == 4) {
		return false
	}
	if r.ICMP != nil && !is(r.ICMP) || r.NotICMP != nil && is(r.NotICMP) {
		return false
	}
	return w.entity(t, p, &r.Source, r, m, d == Egress, k.src, k.protocol, k.srcPort, false) &&
		w.entity(t, p, &r.Destination, r, m, d == Ingress, k.dst, k.protocol, k.dstPort, true)
}

func (w *world) entity(t *testing.T, p *model.Policy, e *model.EntityRule, r *model.Rule, m model.PolicyEndpoint, own bool, a netip.Addr, proto uint8, port uint16, dst bool) bool {
	holds := func(n netip.Prefix) bool { return n.Contains(a) }
	if len(e.Nets) > 0 && !slices.ContainsFunc(e.Nets, holds) || slices.ContainsFunc(e.NotNets, holds) {
		return false
	}
	if e.Service != nil {
		return slices.ContainsFunc(w.services[*e.Service].Endpoints, func(s model.ServiceEndpoint) bool {
			return s.Addr == a && (!dst || s.Port != 0 && s.Protocol == proto && s.Port == port)
		})
	}
	if e.NodeSelector != "" {
		found := false
		for _, n := range w.nodes {
			found = found || slices.Contains(n.Addresses, a) && sees(t, e.NodeSelector, n.Labels)
		}
		return found
	}
	selected := func(l map[string]string) bool {
		if p.ID.Kind.PodsOnly() && l[labelOrchestrator] != "k8s" {
			return false
		}
		asks := e.Selector != "" || e.NamespaceSelector != "" || len(e.ServiceAccounts) > 0 || e.ServiceAccountSelector != ""
		if asks && e.NamespaceSelector == "" && p.ID.Namespace != "" && l[labelNamespace] != p.ID.Namespace {
			return false
		}
		return sees(t, e.Selector, l) && where(t, e.NamespaceSelector, e.ServiceAccountSelector, l) &&
			(len(e.ServiceAccounts) == 0 || slices.Contains(e.ServiceAccounts, l[labelAccount]))
	}
	notSelected := func(l map[string]string) bool {
		return e.NotSelector != "" && (!p.ID.Kind.PodsOnly() || l[labelOrchestrator] == "k8s") && sees(t, e.NotSelector, l)
	}
	// Who has the address, and which of the rule's named ports are its at this packet's port.
	found := e.Selector == "" && e.NamespaceSelector == "" && len(e.ServiceAccounts) == 0 && e.ServiceAccountSelector == ""
	names := map[string]bool{}
	for _, x := range w.endpoints {
		if x.Unknown || !slices.Contains(x.Addresses, a) {
			continue
		}
		l := w.labelsOf(x)
		if notSelected(l) {
			return false
		}
		if !selected(l) {
			continue
		}
		found = true
		if own && !p.ApplyOnForward && x.Interface == "" {
			continue // a port of the own end is one of this node's
		}
		for _, q := range x.Ports {
			names[q.Name] = names[q.Name] || q.Protocol == proto && q.Port == port
		}
	}
	for _, n := range w.netsets {
		if slices.ContainsFunc(n.Nets, holds) {
			l := w.inNamespace(n.Labels, n.ID.Namespace)
			if notSelected(l) {
				return false
			}
			found = found || selected(l)
		}
	}
	has := func(q model.RulePort) bool {
		if q.Name != "" {
			return names[q.Name]
		}
		return q.First <= int(port) && int(port) <= q.Last
	}
	return found && (len(e.Ports) == 0 || slices.ContainsFunc(e.Ports, has)) && !slices.ContainsFunc(e.NotPorts, has)
}
