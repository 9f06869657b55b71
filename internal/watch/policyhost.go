package watch

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// hostEndpoint is the converted form of a HostEndpoint. endpoint has no Interface yet.
type hostEndpoint struct {
	endpoint model.PolicyEndpoint
	node     string
	iface    string // interfaceName; empty: that with one of the addresses
}

// allInterfaces is the interfaceName of a HostEndpoint for the whole node.
const allInterfaces = "*"

func (c *checker) hostEndpoint(h *v3.HostEndpoint) hostEndpoint {
	s := &h.Spec
	out := hostEndpoint{node: s.Node, iface: s.InterfaceName, endpoint: model.PolicyEndpoint{
		ID:     model.PolicyEndpointID{Kind: model.EndpointHost, Name: h.Name},
		Labels: h.Labels, Profiles: s.Profiles,
	}}
	if s.Node == "" {
		c.bad(".spec.node", "is missing; must be the name of the node")
	}
	if s.InterfaceName == "" && len(s.ExpectedIPs) == 0 {
		c.bad(".spec.interfaceName", `and expectedIPs are both missing; must be an interface of the node or "*", or expectedIPs the addresses of one`)
	}
	if len(s.InterfaceName) > 15 || strings.ContainsAny(s.InterfaceName, "/ \t\n") {
		c.bad(".spec.interfaceName", `is %q; must be the name of an interface, at most 15 characters, or "*"`, s.InterfaceName)
	}
	for i, a := range s.ExpectedIPs {
		addr, err := netip.ParseAddr(a)
		if err != nil || addr.Zone() != "" {
			c.bad(at(".spec.expectedIPs", i), "is %q; must be an address, such as 192.0.2.1", a)
			continue
		}
		out.endpoint.Addresses = append(out.endpoint.Addresses, addr.Unmap())
	}
	for i := range s.Ports {
		p, field := &s.Ports[i], at(".spec.ports", i)
		protocol := c.protocol(field+".protocol", &p.Protocol)
		switch {
		case !portsOf(protocol):
			c.bad(field+".protocol", "is %q; must be one with ports: TCP, UDP or SCTP", p.Protocol.String())
		case !portName.MatchString(p.Name):
			c.bad(field+".name", "is %q; must be a name of letters, digits, '_', '.' and '-'", p.Name)
		case p.Port == 0:
			c.bad(field+".port", "is 0; must be 1 to 65535")
		}
		out.endpoint.Ports = append(out.endpoint.Ports, model.EndpointPort{Name: p.Name, Protocol: protocol, Port: p.Port})
	}
	for i, name := range s.Profiles {
		if name != profileAllow && !strings.HasPrefix(name, "kns.") {
			c.ignored(at(".spec.profiles", i), "is %q, which does nothing; profiles are not acted on but %s and kns.<namespace>", name, profileAllow)
		}
	}
	return out
}

// What Calico puts on HostEndpoints that it makes by itself.
const (
	profileAllow   = "projectcalico-default-allow"
	autoSuffix     = "-auto-hep"
	labelCreatedBy = "projectcalico.org/created-by"
	createdBy      = "calico-kube-controllers"
)

// autoHostEndpoint is that of a node as a whole, which policies can select like one that
// somebody wrote. What no policy selects passes.
func autoHostEndpoint(n *model.Node) hostEndpoint {
	labels := make(map[string]string, len(n.Labels)+1)
	for k, v := range n.Labels {
		labels[k] = v
	}
	labels[labelCreatedBy] = createdBy
	return hostEndpoint{node: n.Name, iface: allInterfaces, endpoint: model.PolicyEndpoint{
		ID:     model.PolicyEndpointID{Kind: model.EndpointHost, Name: n.Name + autoSuffix},
		Labels: labels, Addresses: nodeAddresses(n), Profiles: []string{profileAllow},
	}}
}

func nodeAddresses(n *model.Node) []netip.Addr {
	var out []netip.Addr
	for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
		if p.IsValid() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// kubeControllers is what agents act on of the KubeControllersConfiguration.
type kubeControllers struct{ autoHost bool }

func (c *checker) kubeControllersConfiguration(k *v3.KubeControllersConfiguration) kubeControllers {
	if k.Name != defaultConfiguration {
		c.bad(".metadata.name", `is %q; must be "default"`, k.Name)
	}
	var out kubeControllers
	if n := k.Spec.Controllers.Node; n != nil && n.HostEndpoint != nil {
		h := n.HostEndpoint
		out.autoHost = string(h.AutoCreate) == "Enabled" && h.CreateDefaultHostEndpoint != "Disabled"
		if len(h.Templates) > 0 {
			c.ignored(".spec.controllers.node.hostEndpoint.templates", "is not acted on: no HostEndpoints are made of interfaces; write them")
		}
	}
	return out
}

// hostPolicy is what a FelixConfiguration says of policy; nil where it says nothing.
type hostPolicy struct {
	in, out  *[]model.FailsafePort
	toHost   model.EndpointToHostAction
	spoofing *bool // workloadSourceSpoofing Any
}

// felixPolicyFields are the fields that hostPolicy holds.
var felixPolicyFields = []string{"defaultEndpointToHostAction", "failsafeInboundHostPorts", "failsafeOutboundHostPorts", "workloadSourceSpoofing"}

func (c *checker) hostPolicy(s *v3.FelixConfigurationSpec) hostPolicy {
	out := hostPolicy{in: c.failsafe(".spec.failsafeInboundHostPorts", s.FailsafeInboundHostPorts), out: c.failsafe(".spec.failsafeOutboundHostPorts", s.FailsafeOutboundHostPorts)}
	switch a := s.DefaultEndpointToHostAction; strings.ToLower(a) {
	case "":
	case "drop":
		out.toHost = model.EndpointToHostDrop
	case "accept":
		out.toHost = model.EndpointToHostAccept
	case "return":
		out.toHost = model.EndpointToHostReturn
	default:
		c.bad(".spec.defaultEndpointToHostAction", "is %q; must be Drop, Accept or Return", a)
	}
	switch v := s.WorkloadSourceSpoofing; strings.ToLower(v) {
	case "":
	case "any", "disabled":
		any := strings.EqualFold(v, "any")
		out.spoofing = &any
	default:
		c.bad(".spec.workloadSourceSpoofing", "is %q; must be Disabled or Any", v)
	}
	return out
}

func (c *checker) failsafe(field string, in *[]v3.ProtoPort) *[]model.FailsafePort {
	if in == nil {
		return nil
	}
	out := make([]model.FailsafePort, 0, len(*in))
	for i, p := range *in {
		field := at(field, i)
		f := model.FailsafePort{Protocol: protocols[strings.ToLower(cmp.Or(p.Protocol, "tcp"))], Port: p.Port}
		if f.Protocol != model.ProtocolTCP && f.Protocol != model.ProtocolUDP && f.Protocol != model.ProtocolSCTP {
			c.bad(field+".protocol", "is %q; must be TCP, UDP or SCTP", p.Protocol)
		}
		if p.Port == 0 {
			c.bad(field+".port", "is 0; must be 1 to 65535")
		}
		if p.Net != "" {
			f.Net, _ = c.network(field+".net", p.Net)
		}
		out = append(out, f)
	}
	return &out
}

// Ports that host endpoints never close by default, as in Calico: SSH, BGP, etcd, Typha and the
// API server; DHCP, and DNS outwards.
func defaultFailsafe() (in, out []model.FailsafePort) {
	tcp := []uint16{179, 2379, 2380, 5473, 6443, 6666, 6667}
	in = append(in, model.FailsafePort{Protocol: model.ProtocolTCP, Port: 22}, model.FailsafePort{Protocol: model.ProtocolUDP, Port: 68})
	out = append(out, model.FailsafePort{Protocol: model.ProtocolUDP, Port: 53}, model.FailsafePort{Protocol: model.ProtocolUDP, Port: 67})
	for _, p := range tcp {
		in = append(in, model.FailsafePort{Protocol: model.ProtocolTCP, Port: p})
		out = append(out, model.FailsafePort{Protocol: model.ProtocolTCP, Port: p})
	}
	return in, out
}

// mergeHost is what the configurations say together, a later one before an earlier one. Where they say
// nothing of defaultEndpointToHostAction it is Accept, as in every Calico that its manifests or its
// operator installed (they set FELIX_DEFAULTENDPOINTTOHOSTACTION): with felix's own Drop no pod of
// a control plane node reaches the API server.
func mergeHost(configs ...hostPolicy) (h model.HostPolicy, spoofing bool) {
	h.FailsafeIn, h.FailsafeOut = defaultFailsafe()
	h.EndpointToHost = model.EndpointToHostAccept
	for _, c := range configs {
		if c.in != nil {
			h.FailsafeIn = *c.in
		}
		if c.out != nil {
			h.FailsafeOut = *c.out
		}
		h.EndpointToHost = cmp.Or(c.toHost, h.EndpointToHost)
		if c.spoofing != nil {
			spoofing = *c.spoofing
		}
	}
	return h, spoofing
}

// interfaceOf finds the interface of a HostEndpoint of this node; empty: there is none.
func (h *hostEndpoint) interfaceOf(interfaces map[string][]netip.Addr) string {
	if h.iface != "" {
		return h.iface
	}
	found := ""
	for name, addrs := range interfaces {
		if (found == "" || name < found) && slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(h.endpoint.Addresses, a) }) {
			found = name
		}
	}
	return found
}
