package policy

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// Invalid is the error of an object that is not in force, with all that is wrong with it.
type Invalid struct{ Problems []model.Problem }

func (e *Invalid) Error() string {
	s := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		s[i] = p.String()
	}
	return strings.Join(s, "; ")
}

// compiled is a valid policy in the form that rules are made of.
type compiled struct {
	tier             string
	order            float64
	subject          *selector.Selector
	holds            [2]bool // by Direction
	rules            [2][]ruleForm
	layer            Layer
	forward, needed  bool
	hostsToo, staged bool
	remotePods       bool            // its rules select pods that may be anywhere
	notes            []model.Problem // what is in force and not acted on
}

// ruleForm is a rule before it is split by family and by what one rule of a kernel can match.
type ruleForm struct {
	action                Action
	would                 Action // what the rule does, or would do were its policy not staged
	families              [2]bool
	protocol, notProtocol uint8
	icmp, notICMP         *ICMPMatch
	src, dst              peerForm
}

// peerForm is one end of a rule.
type peerForm struct {
	nets [2]netForm
	// in is what the address must be in, and notIn what it must not: sources selector,
	// nodes and service. inPort is a Service with its ports.
	in, notIn, inPort []setForm
	// ports or one of named must match; neither means any. of are the ports' numbers.
	ports, notPorts []model.PortRange
	named, notNamed []setForm
}

// netForm is the fixed prefixes of one family. No prefixes and neither flag: any address.
type netForm struct {
	none bool // no address at all
	not  bool // the address is outside of nets
	nets []netip.Prefix
}

// setForm is a set that the rule refers to; the selector is nil for a Service.
type setForm struct {
	definition
	selector *selector.Selector
}

// compiler collects what is wrong with one object.
type compiler struct {
	id       model.PolicyID
	problems []model.Problem
	notes    []model.Problem
	forward  bool
}

func (c *compiler) wrong(field, format string, args ...any) {
	c.problems = append(c.problems, model.Problem{Object: c.id.Object(), Field: field, Message: fmt.Sprintf(format, args...)})
}

// compile checks a policy as far as it can be checked alone. The error is an *Invalid.
func compile(p *model.Policy) (*compiled, error) {
	c := &compiler{id: p.ID, forward: p.ApplyOnForward}
	out := &compiled{
		tier: p.Tier, order: p.Order, holds: [2]bool{p.ForIngress, p.ForEgress}, forward: p.ApplyOnForward,
		needed: p.AssumeNeeded, staged: p.ID.Kind.Staged(), hostsToo: p.ID.Namespace == "" && !p.ID.Kind.PodsOnly(),
	}
	if p.ID.Name == "" {
		c.wrong(".metadata.name", "is empty; must be the policy's name")
	}
	if p.Tier == "" {
		c.wrong(".spec.tier", "is empty; must be the name of a Tier")
	}
	if math.IsNaN(p.Order) {
		c.wrong(".spec.order", "is not a number; must be one")
	}
	if !p.ForIngress && !p.ForEgress {
		c.wrong(".spec.types", "is empty; must name Ingress, Egress or both")
	}
	switch {
	case p.Untracked && p.PreDNAT:
		c.wrong(".spec.doNotTrack", "and preDNAT are both true; one of them must be false")
	case p.Untracked:
		out.layer = LayerUntracked
	case p.PreDNAT:
		out.layer = LayerPreDNAT
		if p.ForEgress {
			c.wrong(".spec.types", "contains Egress; must be Ingress alone with preDNAT")
		}
	}
	if (p.Untracked || p.PreDNAT) && !p.ApplyOnForward {
		c.wrong(".spec.applyOnForward", "is false; must be true with doNotTrack or preDNAT")
	}
	out.subject = c.subject(p)
	for d, rules := range [2][]model.Rule{p.Ingress, p.Egress} {
		if out.holds[d] {
			out.rules[d] = c.rules(Direction(d), rules, out.staged)
		}
	}
	if len(c.problems) > 0 {
		return nil, &Invalid{c.problems}
	}
	out.notes, out.remotePods = c.notes, out.remote()
	return out, nil
}

func (c *compiler) subject(p *model.Policy) *selector.Selector {
	of := []*selector.Selector{
		c.selector(".spec.selector", p.Subject.Selector),
		c.namespaces(".spec.namespaceSelector", p.Subject.NamespaceSelector),
		c.accounts(".spec.serviceAccountSelector", p.Subject.ServiceAccountSelector),
	}
	if p.ID.Namespace != "" {
		of = append(of, selector.In(labelNamespace, p.ID.Namespace))
	}
	if p.ID.Kind.PodsOnly() {
		of = append(of, selector.In(labelOrchestrator, orchestrator))
	}
	return selector.And(of...)
}

// selector parses a selector of an object's own labels. global() means what all() does: it
// tells apart namespaces only.
func (c *compiler) selector(field, text string) *selector.Selector {
	s, err := selector.Parse(text)
	if err != nil {
		var e *selector.Error
		if errors.As(err, &e) {
			c.wrong(field, "%q: column %d: expected %s, found %s", e.Selector, e.Column, e.Expected, e.Found)
		} else {
			c.wrong(field, "%v", err)
		}
		return selector.All()
	}
	if s.NamesGlobal() {
		s = s.Rewrite("", selector.All(), selector.All())
	}
	return s
}

// namespaces parses a selector of namespaces' labels: what it matches is in a namespace
// whose labels match. global() matches what is in none.
func (c *compiler) namespaces(field, text string) *selector.Selector {
	if strings.TrimSpace(text) == "" {
		return selector.All()
	}
	s, err := selector.Parse(text)
	if err != nil {
		return c.selector(field, text)
	}
	there := selector.Has(labelNamespace)
	out := s.Rewrite(namespacePrefix, there, selector.Not(there))
	if s.NamesGlobal() {
		return out
	}
	return selector.And(out, there)
}

// accounts parses a selector of service accounts' labels.
func (c *compiler) accounts(field, text string) *selector.Selector {
	if strings.TrimSpace(text) == "" {
		return selector.All()
	}
	s := c.selector(field, text)
	there := selector.Has(labelAccount)
	return selector.And(s.Rewrite(accountPrefix, there, there), there)
}

func (c *compiler) rules(d Direction, rules []model.Rule, staged bool) []ruleForm {
	out := make([]ruleForm, len(rules))
	for i := range rules {
		out[i] = c.rule(fmt.Sprintf(".spec.%s[%d]", d, i), d, &rules[i], staged)
	}
	return out
}

var actions = map[model.RuleAction]Action{model.RuleAllow: Allow, model.RuleDeny: Deny, model.RulePass: Pass, model.RuleLog: Log}

func (c *compiler) rule(field string, d Direction, r *model.Rule, staged bool) ruleForm {
	out := ruleForm{protocol: r.Protocol, notProtocol: r.NotProtocol, families: [2]bool{true, true}}
	action, ok := actions[r.Action]
	if !ok {
		c.wrong(field+".action", "is %q; must be Allow, Deny, Pass or Log", r.Action)
	}
	if r.HTTP {
		msg := "is not supported and not looked at"
		if action == Allow || action == Pass {
			action, msg = Deny, "is not supported: the rule denies what the rest of it matches"
		}
		c.notes = append(c.notes, model.Problem{Object: c.id.Object(), Field: field + ".http", Message: msg, Ignored: true})
	}
	out.would = action
	switch {
	case !staged:
		out.action = action
	case action == Log:
		out.action = Count
	default:
		out.action = Return
	}
	switch r.IPVersion {
	case 0:
	case 4, 6:
		out.families = [2]bool{r.IPVersion == 4, r.IPVersion == 6}
	default:
		c.wrong(field+".ipVersion", "is %d; must be 4 or 6", r.IPVersion)
	}
	out.icmp, out.notICMP = c.icmp(field+".icmp", r, r.ICMP), c.icmp(field+".notICMP", r, r.NotICMP)
	if out.icmp != nil || out.notICMP != nil {
		out.families[0] = out.families[0] && r.Protocol == model.ProtocolICMP
		out.families[1] = out.families[1] && r.Protocol == model.ProtocolICMPv6
	}
	out.src = c.peer(field+".source", &r.Source, r, d == Egress, false)
	out.dst = c.peer(field+".destination", &r.Destination, r, d == Ingress, true)
	return out
}

func (c *compiler) icmp(field string, r *model.Rule, m *model.ICMPMatch) *ICMPMatch {
	if m == nil {
		return nil
	}
	if r.Protocol != model.ProtocolICMP && r.Protocol != model.ProtocolICMPv6 {
		c.wrong(field, "is set with protocol %s; the protocol must be ICMP or ICMPv6", protocolName(r.Protocol))
	}
	if m.Type < 0 || m.Type > 255 {
		c.wrong(field+".type", "is %d; must be 0 to 255", m.Type)
	}
	out := &ICMPMatch{Type: uint8(m.Type), AnyCode: m.Code == nil}
	if m.Code != nil {
		if *m.Code < 0 || *m.Code > 255 {
			c.wrong(field+".code", "is %d; must be 0 to 255", *m.Code)
		}
		out.Code = uint8(*m.Code)
	}
	return out
}

func protocolName(p uint8) string {
	switch p {
	case 0:
		return "any"
	case model.ProtocolICMP:
		return "ICMP"
	case model.ProtocolTCP:
		return "TCP"
	case model.ProtocolUDP:
		return "UDP"
	case model.ProtocolICMPv6:
		return "ICMPv6"
	case model.ProtocolSCTP:
		return "SCTP"
	case model.ProtocolUDPLite:
		return "UDPLite"
	}
	return fmt.Sprint(p)
}

// hasPorts lists the protocols whose ports rules can match.
var hasPorts = []uint8{model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP, model.ProtocolUDPLite}

// peer compiles one end of a rule. own: it is the end of the endpoint that the policy holds
// for. dst: it is the destination.
func (c *compiler) peer(field string, e *model.EntityRule, r *model.Rule, own, dst bool) peerForm {
	var out peerForm
	nets, not := c.prefixes(field+".nets", e.Nets), c.prefixes(field+".notNets", e.NotNets)
	for i, f := range families {
		out.nets[i] = netsForm(ofFamily(nets, f), len(e.Nets) > 0, ofFamily(not, f))
	}
	positive := c.matching(field, e)
	if positive != nil {
		out.in = append(out.in, setForm{definition{source: fromSelector, text: positive.String()}, positive})
	}
	if e.NotSelector != "" {
		s := c.selector(field+".notSelector", e.NotSelector)
		if c.id.Kind.PodsOnly() {
			s = selector.And(s, selector.In(labelOrchestrator, orchestrator))
		}
		out.notIn = append(out.notIn, setForm{definition{source: fromSelector, text: s.String()}, s})
	}
	if e.NodeSelector != "" {
		if positive != nil || e.NotSelector != "" || e.Service != nil {
			c.wrong(field+".nodeSelector", "stands beside another selector; it must stand alone")
		}
		s := c.selector(field+".nodeSelector", e.NodeSelector)
		out.in = append(out.in, setForm{definition{source: fromNodes, text: s.String()}, s})
	}
	if e.Service != nil {
		c.service(field, e, dst, positive != nil, &out)
	}
	out.ports, out.named = c.ports(field+".ports", e.Ports, r, positive, own)
	out.notPorts, out.notNamed = c.ports(field+".notPorts", e.NotPorts, r, positive, own)
	return out
}

func (c *compiler) prefixes(field string, nets []netip.Prefix) []netip.Prefix {
	for i, p := range nets {
		if !p.IsValid() || p.Addr().Is4In6() {
			c.wrong(fmt.Sprintf("%s[%d]", field, i), "is %s; must be a network such as 192.0.2.0/24 or 2001:db8::/32", p)
			return nil
		}
	}
	return nets
}

// netsForm is nets less not, or all less not where nets are not asked for. All are of one family.
func netsForm(nets []netip.Prefix, asked bool, not []netip.Prefix) netForm {
	var out netForm
	if asked {
		out.nets = without(nets, not)
		out.none = len(out.nets) == 0
		if !out.none && out.nets[0].Bits() == 0 {
			out.nets = nil // all addresses
		}
		return out
	}
	out.nets = joined(not)
	out.not = len(out.nets) > 0
	if out.not && out.nets[0].Bits() == 0 {
		return netForm{none: true}
	}
	return out
}

// matching makes one selector of all that the rule says of labels; nil when it says nothing.
func (c *compiler) matching(field string, e *model.EntityRule) *selector.Selector {
	if e.Selector == "" && e.NamespaceSelector == "" && len(e.ServiceAccounts) == 0 && e.ServiceAccountSelector == "" {
		return nil
	}
	of := []*selector.Selector{
		c.selector(field+".selector", e.Selector),
		c.namespaces(field+".namespaceSelector", e.NamespaceSelector),
		c.accounts(field+".serviceAccounts.selector", e.ServiceAccountSelector),
	}
	if len(e.ServiceAccounts) > 0 {
		of = append(of, selector.In(labelAccount, e.ServiceAccounts...))
	}
	if e.NamespaceSelector == "" && c.id.Namespace != "" {
		of = append(of, selector.In(labelNamespace, c.id.Namespace))
	}
	if c.id.Kind.PodsOnly() {
		of = append(of, selector.In(labelOrchestrator, orchestrator))
	}
	return selector.And(of...)
}

func (c *compiler) service(field string, e *model.EntityRule, dst, selects bool, out *peerForm) {
	if e.Service.Name == "" || e.Service.Namespace == "" {
		c.wrong(field+".services", "has no name or no namespace; must name a Service and its namespace")
	}
	if selects || e.NotSelector != "" || len(e.Nets) > 0 || len(e.NotNets) > 0 {
		c.wrong(field+".services", "stands beside selectors or networks; it must stand alone")
	}
	if dst && (len(e.Ports) > 0 || len(e.NotPorts) > 0) {
		c.wrong(field+".services", "stands beside ports; the Service's own ports are matched")
	}
	text := e.Service.Namespace + "/" + e.Service.Name
	if dst {
		out.inPort = append(out.inPort, setForm{definition: definition{source: fromServicePort, text: text}})
	} else {
		out.in = append(out.in, setForm{definition: definition{source: fromService, text: text}})
	}
}

// ports compiles port numbers into sorted ranges and names into sets of the endpoints that
// the rule selects.
func (c *compiler) ports(field string, ports []model.RulePort, r *model.Rule, selects *selector.Selector, own bool) (ranges []model.PortRange, named []setForm) {
	if len(ports) == 0 {
		return nil, nil
	}
	if !slices.Contains(hasPorts, r.Protocol) {
		c.wrong(field, "is set with protocol %s; the protocol must be one with ports: TCP, UDP, SCTP or UDPLite", protocolName(r.Protocol))
	}
	for i, p := range ports {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case p.Name != "":
			s := selects
			if s == nil {
				s = selector.All()
				if c.id.Kind.PodsOnly() {
					s = selector.In(labelOrchestrator, orchestrator)
				}
			}
			// A packet's own end is an address of this node, unless the host forwards it.
			d := definition{source: fromPorts, text: s.String(), port: p.Name, protocol: r.Protocol, local: own && !c.forward}
			if !slices.ContainsFunc(named, func(o setForm) bool { return o.definition == d }) {
				named = append(named, setForm{d, s})
			}
		case p.First < 0 || p.First > 65535:
			c.wrong(at, "is port %d; must be 0 to 65535", p.First)
		case p.Last < 0 || p.Last > 65535:
			c.wrong(at, "ends with port %d; must be 0 to 65535", p.Last)
		case p.Last < p.First:
			c.wrong(at, "ends with port %d before it begins with %d; the end must not be below the beginning", p.Last, p.First)
		default:
			ranges = append(ranges, model.PortRange{First: uint16(p.First), Last: uint16(p.Last)})
		}
	}
	return joinedPorts(ranges), named
}

// joinedPorts sorts ranges and joins those that overlap or touch.
func joinedPorts(ranges []model.PortRange) []model.PortRange {
	slices.SortFunc(ranges, func(a, b model.PortRange) int { return int(a.First) - int(b.First) })
	var out []model.PortRange
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// setUse is a set of one family.
type setUse struct {
	form setForm
	fam  int
}

// each calls f for every set that the policy's rules name, given which families have
// addresses at all; for some more than once.
func (c *compiled) each(seen [2]bool, f func(setUse)) {
	for d := range c.rules {
		for i := range c.rules[d] {
			r := &c.rules[d][i]
			for fam := range families {
				if !r.families[fam] || r.src.void(fam, seen) || r.dst.void(fam, seen) {
					continue
				}
				r.src.each(fam, seen, f)
				r.dst.each(fam, seen, f)
			}
		}
	}
}

// byName reports whether named ports are the only ones that match.
func (f *peerForm) byName() bool { return len(f.ports) == 0 && len(f.named) > 0 }

// void reports whether nothing matches. Without an address of the family in the world its
// sets are not there: nobody is in them.
func (f *peerForm) void(fam int, seen [2]bool) bool {
	return f.nets[fam].none || !seen[fam] && (len(f.in)+len(f.inPort) > 0 || f.byName())
}

func (f *peerForm) each(fam int, seen [2]bool, use func(setUse)) {
	if n := &f.nets[fam]; len(n.nets) > 1 {
		use(setUse{setForm{definition: netsDefinition(n.nets)}, fam})
	}
	if !seen[fam] {
		return
	}
	for _, s := range f.in {
		if !f.byName() || !s.implied() {
			use(setUse{s, fam})
		}
	}
	for _, forms := range [4][]setForm{f.notIn, f.inPort, f.named, f.notNamed} {
		for _, s := range forms {
			use(setUse{s, fam})
		}
	}
}

// implied reports whether the sets of named ports beside this one hold only addresses that
// are in it.
func (s *setForm) implied() bool { return s.source == fromSelector }

// remote reports whether the policy selects pods that may be anywhere.
func (c *compiled) remote() bool {
	remote := false
	c.each([2]bool{true, true}, func(u setUse) {
		remote = remote || u.form.source == fromSelector || u.form.source == fromPorts && !u.form.local
	})
	return remote
}

func netsDefinition(nets []netip.Prefix) definition {
	return definition{source: fromNets, text: netsText(nets)}
}
