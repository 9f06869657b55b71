// Package felixtest owns what policy is tested with: the golden model, which says in the
// slowest and most obvious way what becomes of a packet, straight from the documentation of
// the kinds of policy; random clusters, changes and packets; and the judge that compares
// engine and tracer with the golden model and makes a small case of what they disagree about.
//
// Backends send the same packets through real kernels and ask the same model.
package felixtest

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// World is a cluster's state as policy sees it, and with Verdict the golden model. Nothing is
// computed ahead: each question reads all of it.
type World struct {
	Host            model.HostPolicy
	Tiers           map[string]model.Tier
	GoneTiers       map[string]bool                 // removed, with policies still in force
	Policies        map[model.PolicyID]model.Policy // in force
	Waiting         map[model.PolicyID]model.Policy // whose tier is not there
	Endpoints       map[model.PolicyEndpointID]model.PolicyEndpoint
	Namespaces      map[string]model.Namespace
	ServiceAccounts map[[2]string]model.ServiceAccount
	NetworkSets     map[model.NetworkSetID]model.NetworkSet
	Nodes           map[string]model.PolicyNode
	Services        map[model.ServiceID]model.ServiceEndpoints

	selectors parsed
}

// builtinTiers are there without being made.
var builtinTiers = []model.Tier{
	{Name: model.TierAdmin, Order: 1000, DefaultAction: model.RulePass},
	{Name: model.TierDefault, Order: 1000000, DefaultAction: model.RuleDeny},
	{Name: model.TierBaseline, Order: 10000000, DefaultAction: model.RulePass},
}

// NewWorld makes a World that knows the tiers that are always there.
func NewWorld() *World {
	w := &World{
		Tiers: map[string]model.Tier{}, GoneTiers: map[string]bool{},
		Policies: map[model.PolicyID]model.Policy{}, Waiting: map[model.PolicyID]model.Policy{},
		Endpoints: map[model.PolicyEndpointID]model.PolicyEndpoint{}, Namespaces: map[string]model.Namespace{},
		ServiceAccounts: map[[2]string]model.ServiceAccount{}, NetworkSets: map[model.NetworkSetID]model.NetworkSet{},
		Nodes: map[string]model.PolicyNode{}, Services: map[model.ServiceID]model.ServiceEndpoints{},
		selectors: parsed{},
	}
	for _, t := range builtinTiers {
		w.Tiers[t.Name] = t
	}
	return w
}

// Verdict is what becomes of a packet.
type Verdict struct {
	Allowed   bool
	Untracked bool
	At        trace.Point // where a packet that is not allowed ends
}

// word is what policies say of a packet at one endpoint. The empty word: nothing.
type word = model.RuleAction

// layer is which policies are asked.
type layer int

const (
	local     layer = iota // to and from workloads, and to and from the host itself
	forwarded              // through a host endpoint
	untracked
	preDNAT
)

// Verdict takes the packet along its way.
func (w *World) Verdict(p trace.Packet) Verdict {
	var v Verdict
	drop := func(at trace.Point) Verdict { return Verdict{At: at, Untracked: v.Untracked} }
	fromPod, toPod := strings.HasPrefix(p.In, trace.WorkloadPrefix), strings.HasPrefix(p.Out, trace.WorkloadPrefix)
	in, out := w.at(p.In), w.at(p.Out)
	first := p
	if p.FirstDst.IsValid() {
		first.Dst, first.DstPort = p.FirstDst, p.FirstDstPort
	}

	// A pod sends from its own addresses only.
	if fromPod && (in == nil || !slices.Contains(in.Addresses, p.Src) && !anyNet(in.AllowedSources, p.Src)) {
		return drop(trace.SourceCheck)
	}

	// Before it is tracked and before Services are translated. There the failsafe ports are
	// open, and, as nothing is tracked, what answers from them.
	if in != nil && !fromPod {
		safe := isFailsafe(w.Host.FailsafeIn, p.Protocol, first.DstPort, p.Src)
		answer := isFailsafe(w.Host.FailsafeOut, p.Protocol, p.SrcPort, p.Src)
		if !safe && !answer {
			switch w.ask(in, ingress, untracked, first) {
			case model.RuleDeny:
				return drop(trace.UntrackedIngress)
			case model.RuleAllow:
				v.Untracked = true
			}
		}
		if !safe && !v.Untracked && w.ask(in, ingress, preDNAT, first) == model.RuleDeny {
			return drop(trace.PreDNAT)
		}
	}

	switch {
	case p.In == "" && p.Out == "":

	case p.In == "": // from the host
		if toPod || out == nil {
			break // it reaches its own pods always (probes)
		}
		if !isFailsafe(w.Host.FailsafeOut, p.Protocol, p.DstPort, p.Dst) {
			if !isFailsafe(w.Host.FailsafeIn, p.Protocol, p.SrcPort, p.Dst) {
				switch w.ask(out, egress, untracked, p) {
				case model.RuleDeny:
					return drop(trace.UntrackedEgress)
				case model.RuleAllow:
					v.Untracked = true
				}
			}
			if !v.Untracked && w.ask(out, egress, local, p) == model.RuleDeny {
				return drop(trace.HostEgress)
			}
		}

	case p.Out == "" && fromPod: // from a pod to its own host
		if w.ask(in, egress, local, p) == model.RuleDeny {
			return drop(trace.WorkloadEgress)
		}
		if w.Host.EndpointToHost != model.EndpointToHostAccept && w.Host.EndpointToHost != model.EndpointToHostReturn {
			return drop(trace.ToHost)
		}

	case p.Out == "": // from elsewhere to the host
		if in != nil && !v.Untracked && !isFailsafe(w.Host.FailsafeIn, p.Protocol, p.DstPort, p.Src) &&
			w.ask(in, ingress, local, p) == model.RuleDeny {
			return drop(trace.HostIngress)
		}

	default: // forwarded
		if in != nil && !fromPod && !v.Untracked && w.ask(in, ingress, forwarded, p) == model.RuleDeny {
			return drop(trace.ForwardIngress)
		}
		if fromPod && w.ask(in, egress, local, p) == model.RuleDeny {
			return drop(trace.WorkloadEgress)
		}
		if toPod && (out == nil || w.ask(out, ingress, local, p) == model.RuleDeny) {
			return drop(trace.WorkloadIngress)
		}
		if out != nil && !toPod && !v.Untracked && w.ask(out, egress, forwarded, p) == model.RuleDeny {
			return drop(trace.ForwardEgress)
		}
	}
	v.Allowed = true
	return v
}

// Possible reports whether routing could take the packet its way: what ends on the host or
// at a workload's link is for an address that is theirs, and what they send is from one,
// and no endpoint of another node claims to have it too. Of other packets nobody says whose
// named ports they meet.
func (w *World) Possible(p trace.Packet) bool {
	elsewhere := func(a netip.Addr) bool {
		for _, e := range w.Endpoints {
			if e.Interface == "" && slices.Contains(e.Addresses, a) {
				return true
			}
		}
		return false
	}
	own := func(link string) bool { return link == "" || strings.HasPrefix(link, trace.WorkloadPrefix) }
	in, out := w.at(p.In), w.at(p.Out)
	spoofed := own(p.In) && in != nil && !slices.Contains(in.Addresses, p.Src) && !anyNet(in.AllowedSources, p.Src)
	if own(p.In) && !spoofed && elsewhere(p.Src) || own(p.Out) && elsewhere(p.Dst) {
		return false
	}
	return !own(p.Out) || out == nil || slices.Contains(out.Addresses, p.Dst)
}

// at finds the local endpoint behind an interface: the workload or host endpoint that names it, or
// else, where it is no workload's, the host endpoint of all interfaces.
func (w *World) at(link string) *model.PolicyEndpoint {
	if link == "" {
		return nil
	}
	var every *model.PolicyEndpoint
	for _, e := range w.Endpoints {
		switch e.Interface {
		case link:
			return &e
		case "*":
			every = &e
		}
	}
	if strings.HasPrefix(link, trace.WorkloadPrefix) {
		return nil
	}
	return every
}

// isFailsafe reports whether a port is one that host endpoints never close.
func isFailsafe(ports []model.FailsafePort, protocol uint8, port uint16, other netip.Addr) bool {
	for _, f := range ports {
		if f.Protocol == protocol && f.Port == port && (f.Net == netip.Prefix{} || f.Net.Contains(other)) {
			return true
		}
	}
	return false
}

// ask puts the packet to the policies of an endpoint: the tiers in order, in each of them the
// policies that select the endpoint and hold for the direction and the layer, in each of these
// the rules.
func (w *World) ask(e *model.PolicyEndpoint, dir Direction, at layer, p trace.Packet) word {
	if e.ID.Kind == model.EndpointWorkload {
		if _, known := w.Namespaces[e.ID.Namespace]; e.Unknown || !known && e.ID.Namespace != "" {
			return model.RuleDeny
		}
	}
	tiers := slices.SortedFunc(maps.Values(w.Tiers), func(a, b model.Tier) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), strings.Compare(a.Name, b.Name))
	})
	for _, tier := range tiers {
		policies := w.holding(e, dir, at, tier.Name)
		if len(policies) == 0 {
			continue
		}
		switch w.askPolicies(policies, dir, p) {
		case model.RuleAllow:
			return model.RuleAllow
		case model.RuleDeny:
			return model.RuleDeny
		case model.RulePass:
			continue
		}
		if (at == local || at == forwarded) && tier.DefaultAction == model.RuleDeny {
			return model.RuleDeny
		}
	}
	switch {
	case at != local:
		return ""
	case e.ID.Kind == model.EndpointWorkload:
		return model.RuleAllow
	}
	for _, profile := range e.Profiles {
		if profile == "projectcalico-default-allow" || strings.HasPrefix(profile, "kns.") {
			return model.RuleAllow
		}
	}
	return model.RuleDeny
}

// Direction is seen from the endpoint.
type Direction bool

// holding lists the policies of a tier that are enforced for the endpoint, in order.
func (w *World) holding(e *model.PolicyEndpoint, dir Direction, at layer, tier string) []model.Policy {
	var out []model.Policy
	for _, pol := range w.Policies {
		if pol.Tier != tier || pol.ID.Kind.Staged() || dir == ingress && !pol.ForIngress || dir == egress && !pol.ForEgress {
			continue
		}
		switch at {
		case untracked:
			if !pol.Untracked {
				continue
			}
		case preDNAT:
			if !pol.PreDNAT {
				continue
			}
		case forwarded:
			if pol.Untracked || pol.PreDNAT || !pol.ApplyOnForward {
				continue
			}
		case local:
			if pol.Untracked || pol.PreDNAT {
				continue
			}
		}
		if w.subject(&pol, e) {
			out = append(out, pol)
		}
	}
	slices.SortFunc(out, func(a, b model.Policy) int { return cmp.Or(cmp.Compare(a.Order, b.Order), a.ID.Compare(b.ID)) })
	return out
}

// askPolicies puts the packet to the policies of one tier; the empty word: none decides.
func (w *World) askPolicies(policies []model.Policy, dir Direction, p trace.Packet) word {
	for _, pol := range policies {
		rules := pol.Ingress
		if dir == egress {
			rules = pol.Egress
		}
		for _, r := range rules {
			if !w.rule(&pol, &r, p) {
				continue
			}
			switch {
			case r.Action == model.RuleLog:
			case r.HTTP:
				return model.RuleDeny
			default:
				return r.Action
			}
		}
	}
	return ""
}

// subject reports whether the policy selects the endpoint.
func (w *World) subject(pol *model.Policy, e *model.PolicyEndpoint) bool {
	if e.Unknown {
		return false
	}
	pod := e.ID.Kind == model.EndpointWorkload
	if !pod && (pol.ID.Kind.PodsOnly() || pol.ID.Namespace != "") {
		return false
	}
	if pol.ID.Namespace != "" && e.ID.Namespace != pol.ID.Namespace {
		return false
	}
	s := pol.Subject
	return w.selects(s.Selector, w.labels(e), e.ID.Namespace) &&
		(s.NamespaceSelector == "" || w.namespaceSelects(s.NamespaceSelector, e.ID.Namespace)) &&
		(s.ServiceAccountSelector == "" || w.accountSelects(s.ServiceAccountSelector, e))
}

// labels are what a selector sees of an endpoint: its own, and what Calico adds.
func (w *World) labels(e *model.PolicyEndpoint) map[string]string {
	out := map[string]string{}
	maps.Copy(out, e.Labels)
	if e.ID.Kind == model.EndpointWorkload {
		out["projectcalico.org/orchestrator"] = "k8s"
		if e.ID.Namespace != "" {
			out["projectcalico.org/namespace"] = e.ID.Namespace
		}
		if e.ServiceAccount != "" {
			out["projectcalico.org/serviceaccount"] = e.ServiceAccount
		}
	}
	return out
}

func (w *World) selects(selector string, labels map[string]string, namespace string) bool {
	return w.selectors.parse(selector)(labels, namespace == "")
}

// namespaceSelects puts a namespace selector, which is not empty, to a namespace. What has
// no namespace is selected where the selector says global() only; a namespace that was not
// seen has no labels.
func (w *World) namespaceSelects(selector, namespace string) bool {
	if namespace == "" && !strings.Contains(selector, "global()") {
		return false
	}
	labels := map[string]string{}
	if ns, known := w.Namespaces[namespace]; known {
		maps.Copy(labels, ns.Labels)
		labels["projectcalico.org/name"] = namespace
	}
	return w.selectors.parse(selector)(labels, namespace == "")
}

// accountSelects puts a service account selector, which is not empty, to a pod's account.
func (w *World) accountSelects(selector string, e *model.PolicyEndpoint) bool {
	if e.ID.Kind != model.EndpointWorkload || e.ServiceAccount == "" {
		return false
	}
	labels := map[string]string{}
	if sa, known := w.ServiceAccounts[[2]string{e.ID.Namespace, e.ServiceAccount}]; known {
		maps.Copy(labels, sa.Labels)
		labels["projectcalico.org/name"] = e.ServiceAccount
	}
	return w.selectors.parse(selector)(labels, false)
}

// rule reports whether the rule matches the packet.
func (w *World) rule(pol *model.Policy, r *model.Rule, p trace.Packet) bool {
	version := 6
	if p.Src.Is4() {
		version = 4
	}
	switch {
	case r.IPVersion != 0 && r.IPVersion != version,
		r.Protocol != 0 && r.Protocol != p.Protocol,
		r.NotProtocol != 0 && r.NotProtocol == p.Protocol,
		r.ICMP != nil && !isICMP(r.ICMP, p),
		r.NotICMP != nil && isICMP(r.NotICMP, p):
		return false
	}
	return w.entity(pol, &r.Source, p.Src, p.SrcPort, p.Protocol, false) && w.entity(pol, &r.Destination, p.Dst, p.DstPort, p.Protocol, true)
}

func isICMP(m *model.ICMPMatch, p trace.Packet) bool {
	return m.Type == int(p.ICMPType) && (m.Code == nil || *m.Code == int(p.ICMPCode))
}

// entity reports whether one end of the packet's way matches.
func (w *World) entity(pol *model.Policy, r *model.EntityRule, a netip.Addr, port uint16, protocol uint8, destination bool) bool {
	if len(r.Nets) > 0 && !anyNet(r.Nets, a) || anyNet(r.NotNets, a) {
		return false
	}
	if selectsSomething(r) && !w.anyone(pol, r, a) {
		return false
	}
	if r.NotSelector != "" && w.anyone(pol, &model.EntityRule{NamespaceSelector: "all() || global()", Selector: r.NotSelector}, a) {
		return false
	}
	if r.NodeSelector != "" && !w.anyNode(r.NodeSelector, a) {
		return false
	}
	if r.Service != nil && !w.behind(*r.Service, a, port, protocol, destination) {
		return false
	}
	if len(r.Ports) > 0 && !w.anyPort(pol, r, r.Ports, a, port, protocol) {
		return false
	}
	return !w.anyPort(pol, r, r.NotPorts, a, port, protocol)
}

func selectsSomething(r *model.EntityRule) bool {
	return r.Selector != "" || r.NamespaceSelector != "" || len(r.ServiceAccounts) > 0 || r.ServiceAccountSelector != ""
}

// anyone reports whether an endpoint or network set that the rule selects has the address.
func (w *World) anyone(pol *model.Policy, r *model.EntityRule, a netip.Addr) bool {
	for _, e := range w.Endpoints {
		if slices.Contains(e.Addresses, a) && w.chosen(pol, r, &e) {
			return true
		}
	}
	if pol.ID.Kind.PodsOnly() || len(r.ServiceAccounts) > 0 || r.ServiceAccountSelector != "" {
		return false
	}
	for _, s := range w.NetworkSets {
		if !anyNet(s.Nets, a) || !w.chosenNamespace(pol, r, s.ID.Namespace) {
			continue
		}
		labels := map[string]string{}
		maps.Copy(labels, s.Labels)
		if s.ID.Namespace != "" {
			labels["projectcalico.org/namespace"] = s.ID.Namespace
		}
		if w.selects(r.Selector, labels, s.ID.Namespace) {
			return true
		}
	}
	return false
}

// chosen reports whether the rule selects the endpoint; a rule without selectors selects all.
func (w *World) chosen(pol *model.Policy, r *model.EntityRule, e *model.PolicyEndpoint) bool {
	if e.Unknown || pol.ID.Kind.PodsOnly() && e.ID.Kind != model.EndpointWorkload {
		return false
	}
	if !w.chosenNamespace(pol, r, e.ID.Namespace) || !w.selects(r.Selector, w.labels(e), e.ID.Namespace) {
		return false
	}
	if len(r.ServiceAccounts) > 0 && (e.ID.Kind != model.EndpointWorkload || !slices.Contains(r.ServiceAccounts, e.ServiceAccount)) {
		return false
	}
	return r.ServiceAccountSelector == "" || w.accountSelects(r.ServiceAccountSelector, e)
}

// chosenNamespace reports whether the rule means a namespace: what its namespace selector
// selects, or else, in a policy with a namespace that selects something, that one.
func (w *World) chosenNamespace(pol *model.Policy, r *model.EntityRule, namespace string) bool {
	switch {
	case r.NamespaceSelector != "":
		return w.namespaceSelects(r.NamespaceSelector, namespace)
	case pol.ID.Namespace != "" && selectsSomething(r):
		return namespace == pol.ID.Namespace
	}
	return true
}

func (w *World) anyNode(selector string, a netip.Addr) bool {
	for _, n := range w.Nodes {
		if slices.Contains(n.Addresses, a) && w.selectors.parse(selector)(n.Labels, true) {
			return true
		}
	}
	return false
}

// behind reports whether the address, and in the destination protocol and port, is an endpoint of the Service.
func (w *World) behind(id model.ServiceID, a netip.Addr, port uint16, protocol uint8, destination bool) bool {
	for _, e := range w.Services[id].Endpoints {
		if e.Addr == a && (!destination || e.Port != 0 && e.Port == port && e.Protocol == protocol) {
			return true
		}
	}
	return false
}

// anyPort reports whether one of the ports is the packet's.
func (w *World) anyPort(pol *model.Policy, r *model.EntityRule, ports []model.RulePort, a netip.Addr, port uint16, protocol uint8) bool {
	for _, want := range ports {
		if want.Name == "" {
			if want.First <= int(port) && int(port) <= want.Last {
				return true
			}
			continue
		}
		for _, e := range w.Endpoints {
			if slices.Contains(e.Addresses, a) && w.chosen(pol, r, &e) &&
				slices.Contains(e.Ports, model.EndpointPort{Name: want.Name, Protocol: protocol, Port: port}) {
				return true
			}
		}
	}
	return false
}

func anyNet(nets []netip.Prefix, a netip.Addr) bool {
	for _, n := range nets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// ingress and egress are the directions.
const (
	ingress Direction = false
	egress  Direction = true
)

// inf is the order of what has none.
var inf = math.Inf(1)
