package watch

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// maxRules is how many rules a policy may have in one direction, as the CRDs have it.
const maxRules = 1024

func at(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func (c *checker) rules(id model.PolicyID, field string, in []v3.Rule, ingress bool) []model.Rule {
	if len(in) > maxRules {
		c.bad(field, "has %d rules; at most %d are allowed", len(in), maxRules)
		return nil
	}
	var out []model.Rule
	for i := range in {
		out = append(out, c.rule(id, at(field, i), &in[i], ingress))
	}
	return out
}

// protocols are those that have names in the API, in lower case.
var protocols = map[string]uint8{
	"tcp": model.ProtocolTCP, "udp": model.ProtocolUDP, "icmp": model.ProtocolICMP, "icmpv6": model.ProtocolICMPv6,
	"sctp": model.ProtocolSCTP, "udplite": model.ProtocolUDPLite,
}

// protocol reads a name or number; nil and empty: 0.
func (c *checker) protocol(field string, p *v3.Protocol) uint8 {
	if p == nil || p.Type == intstr.String && p.StrVal == "" {
		return 0
	}
	if p.Type == intstr.String {
		if n, ok := protocols[strings.ToLower(p.StrVal)]; ok {
			return n
		}
	}
	n, err := strconv.ParseUint(p.String(), 10, 8)
	if err != nil || n == 0 {
		c.bad(field, "is %q; must be TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255", p.String())
	}
	return uint8(n)
}

// portsOf reports whether the protocol has ports that rules can match.
func portsOf(p uint8) bool {
	switch p {
	case model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP, model.ProtocolUDPLite:
		return true
	}
	return false
}

func (c *checker) rule(id model.PolicyID, field string, r *v3.Rule, ingress bool) model.Rule {
	enum(c, field+".action", r.Action, v3.Allow, v3.Deny, v3.Log, v3.Pass)
	if r.Action == "" {
		c.bad(field+".action", "is missing; must be Allow, Deny, Log or Pass")
	}
	out := model.Rule{
		Action: model.RuleAction(r.Action), HTTP: r.HTTP != nil,
		Protocol: c.protocol(field+".protocol", r.Protocol), NotProtocol: c.protocol(field+".notProtocol", r.NotProtocol),
	}
	if r.IPVersion != nil {
		if out.IPVersion = *r.IPVersion; out.IPVersion != 4 && out.IPVersion != 6 {
			c.bad(field+".ipVersion", "is %d; must be 4 or 6", out.IPVersion)
		}
	}
	for _, p := range []uint8{out.Protocol, out.NotProtocol} {
		switch {
		case p == model.ProtocolICMP && out.IPVersion == 6:
			c.bad(field+".ipVersion", "is 6 with protocol ICMP; the one of IPv6 is ICMPv6")
		case p == model.ProtocolICMPv6 && out.IPVersion == 4:
			c.bad(field+".ipVersion", "is 4 with protocol ICMPv6; the one of IPv4 is ICMP")
		}
	}
	out.ICMP = c.icmp(field+".icmp", r.ICMP, out.Protocol)
	out.NotICMP = c.icmp(field+".notICMP", r.NotICMP, out.Protocol)
	if r.HTTP != nil {
		switch {
		case !ingress:
			c.bad(field+".http", "is set; it can stand in ingress rules only")
		case r.Action != v3.Allow:
			c.bad(field+".http", "is set in a rule with action %s; it can stand beside Allow only", r.Action)
		case out.Protocol != 0 && out.Protocol != model.ProtocolTCP:
			c.bad(field+".http", "is set with another protocol than TCP; the protocol must be TCP")
		case out.NotProtocol == 0:
			out.Protocol = model.ProtocolTCP // requests travel in nothing else
		}
	}
	out.Source = c.entity(id, field+".source", &r.Source, out.Protocol, ingress)
	out.Destination = c.entity(id, field+".destination", &r.Destination, out.Protocol, !ingress)
	return out
}

func (c *checker) icmp(field string, f *v3.ICMPFields, protocol uint8) *model.ICMPMatch {
	if f == nil {
		return nil
	}
	if protocol != model.ProtocolICMP && protocol != model.ProtocolICMPv6 {
		c.bad(field, "is set; the rule's protocol must then be ICMP or ICMPv6")
	}
	if f.Type == nil {
		if f.Code != nil {
			c.bad(field+".code", "is set without type; add the type")
		}
		return nil
	}
	if *f.Type < 0 || *f.Type > 254 {
		c.bad(field+".type", "is %d; must be 0 to 254", *f.Type)
	}
	if f.Code != nil && (*f.Code < 0 || *f.Code > 255) {
		c.bad(field+".code", "is %d; must be 0 to 255", *f.Code)
	}
	return &model.ICMPMatch{Type: *f.Type, Code: f.Code}
}

// entity converts one end of a rule. remote: it is the other end than that of the endpoint
// that the policy holds for.
func (c *checker) entity(id model.PolicyID, field string, e *v3.EntityRule, protocol uint8, remote bool) model.EntityRule {
	out := model.EntityRule{
		Nets: c.nets(field+".nets", e.Nets), NotNets: c.nets(field+".notNets", e.NotNets),
		Selector: c.noGlobal(field+".selector", e.Selector), NotSelector: c.text(field+".notSelector", e.NotSelector),
		NamespaceSelector: c.text(field+".namespaceSelector", e.NamespaceSelector),
		Ports:             c.ports(field+".ports", e.Ports, protocol), NotPorts: c.ports(field+".notPorts", e.NotPorts, protocol),
	}
	if a := e.ServiceAccounts; a != nil {
		out.ServiceAccounts = a.Names
		out.ServiceAccountSelector = c.noGlobal(field+".serviceAccounts.selector", a.Selector)
	}
	s := e.Services
	if s == nil {
		return out
	}
	field += ".services"
	out.Service = &model.ServiceID{Namespace: s.Namespace, Name: s.Name}
	if s.Namespace == "" {
		out.Service.Namespace = id.Namespace
	}
	switch {
	case !remote:
		c.bad(field, "is set; a rule can name a Service at the other end only: the source of ingress, the destination of egress")
	case s.Name == "":
		c.bad(field+".name", "is missing; must be the name of a Service")
	case out.Service.Namespace == "":
		c.bad(field+".namespace", "is missing; a policy without a namespace must name that of the Service")
	case e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || len(e.Nets)+len(e.NotNets) > 0:
		c.bad(field, "stands beside selectors, service accounts or networks; it must stand alone")
	case len(e.Ports)+len(e.NotPorts) > 0 && strings.HasSuffix(field, ".destination.services"):
		c.bad(field, "stands beside ports; the Service's own ports are matched")
	}
	return out
}

// nets reads networks and single addresses; bits outside the mask do not matter.
func (c *checker) nets(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		if p, ok := c.network(at(field, i), s); ok {
			out = append(out, p)
		}
	}
	return out
}

func (c *checker) network(field, s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
			return netip.PrefixFrom(a, a.BitLen()), true
		}
	}
	if err != nil || p.Addr().Is4In6() {
		c.bad(field, "is %q; must be a network such as 192.0.2.0/24 or 2001:db8::/32", s)
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

var portName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

func (c *checker) ports(field string, in []v3.Port, protocol uint8) []model.RulePort {
	if len(in) > 0 && !portsOf(protocol) {
		c.bad(field, "is set; the rule's protocol must then be one with ports: TCP, UDP, SCTP or UDPLite")
	}
	var out []model.RulePort
	for i, p := range in {
		out = append(out, c.port(at(field, i), p.String()))
	}
	return out
}

// port reads a number, a range "80:90" or a name.
func (c *checker) port(field, s string) model.RulePort {
	first, last, isRange := strings.Cut(s, ":")
	if !isRange {
		last = first
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(last)
	switch {
	case !isRange && err1 != nil && portName.MatchString(s):
		return model.RulePort{Name: s}
	case err1 != nil || err2 != nil || a < 0 || a > 65535 || b < 0 || b > 65535:
		c.bad(field, `is %q; must be a port from 0 to 65535, a range such as "80:90", or the name of a port`, s)
	case b < a:
		c.bad(field, `is %q; the end of the range must not be below its beginning`, s)
	}
	return model.RulePort{First: a, Last: b}
}
