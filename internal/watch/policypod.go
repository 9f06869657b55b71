package watch

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-net/causeway/internal/model"
)

const (
	// annotationStaticUID holds, in the mirror of a static pod, what the runtime takes for its UID
	// (kubernetes pkg/kubelet/types, ConfigHashAnnotationKey).
	annotationStaticUID = "kubernetes.io/config.hash"
	// AnnotationAllowedSources grants a pod prefixes to send from, as a JSON list.
	AnnotationAllowedSources = "cni.projectcalico.org/allowedSourcePrefixes"
)

// Pod is what policy needs to know of a pod's object.
type Pod struct {
	Namespace, Name string
	// UID of the object; StaticUID is the one that a runtime knows a static pod by.
	UID, StaticUID string
	Node           string // it is bound to
	Labels         map[string]string
	ServiceAccount string
	Addresses      []netip.Addr // as its kubelet says; empty while it has none
	Ports          []model.EndpointPort
	// AllowedSources are those asked for. Whether they are granted FelixConfiguration says.
	AllowedSources []netip.Prefix
	// Problem says what is wrong with the pod's annotations; empty: nothing.
	Problem string
	// Terminating: it is being deleted. Once its sandbox is gone no other comes.
	Terminating bool
}

// Is reports whether the pod is the one that a runtime means by uid; empty means any.
func (p *Pod) Is(uid string) bool { return uid == "" || uid == p.UID || uid == p.StaticUID }

// Equal reports whether both say the same.
func (p *Pod) Equal(o *Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.StaticUID == o.StaticUID && p.Node == o.Node &&
		p.ServiceAccount == o.ServiceAccount && p.Problem == o.Problem && p.Terminating == o.Terminating && maps.Equal(p.Labels, o.Labels) &&
		slices.Equal(p.Addresses, o.Addresses) && slices.Equal(p.Ports, o.Ports) && slices.Equal(p.AllowedSources, o.AllowedSources)
}

// ReadPod takes from a pod what policy needs; ok is false when policy has nothing to do with it,
// because it has its node's network or has ended.
func ReadPod(p *corev1.Pod) (out Pod, ok bool) {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return Pod{}, false
	}
	out = Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), StaticUID: p.Annotations[annotationStaticUID],
		Node: p.Spec.NodeName, Labels: p.Labels, ServiceAccount: p.Spec.ServiceAccountName,
		Terminating: p.DeletionTimestamp != nil,
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.Name != "" && port.ContainerPort > 0 && port.ContainerPort <= 65535 {
					protocol := model.ProtocolTCP
					switch port.Protocol {
					case corev1.ProtocolUDP:
						protocol = model.ProtocolUDP
					case corev1.ProtocolSCTP:
						protocol = model.ProtocolSCTP
					}
					out.Ports = append(out.Ports, model.EndpointPort{Name: port.Name, Protocol: protocol, Port: uint16(port.ContainerPort)})
				}
			}
		}
	}
	if text := p.Annotations[AnnotationAllowedSources]; text != "" {
		out.AllowedSources, out.Problem = parseSources(text)
	}
	return out, true
}

func parseSources(text string) ([]netip.Prefix, string) {
	bad := func(what string) ([]netip.Prefix, string) {
		return nil, fmt.Sprintf(`is %q, which %s; must be a list in JSON, such as ["192.0.2.0/24"]; nothing is granted`, text, what)
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return bad("is no list of strings")
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return bad("has " + s + ", which is no network")
		}
		out = append(out, p.Masked())
	}
	return out, ""
}

// StripPod cuts a pod to what ReadPod reads.
func StripPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{}
	out.Name, out.Namespace, out.UID, out.ResourceVersion, out.Labels = p.Name, p.Namespace, p.UID, p.ResourceVersion, p.Labels
	out.DeletionTimestamp = p.DeletionTimestamp
	for _, key := range []string{annotationStaticUID, AnnotationAllowedSources} {
		if v, ok := p.Annotations[key]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = v
		}
	}
	out.Spec.NodeName, out.Spec.HostNetwork, out.Spec.ServiceAccountName = p.Spec.NodeName, p.Spec.HostNetwork, p.Spec.ServiceAccountName
	out.Spec.InitContainers, out.Spec.Containers = namedPorts(p.Spec.InitContainers), namedPorts(p.Spec.Containers)
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	return out
}

func namedPorts(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range in {
		if slices.ContainsFunc(in[i].Ports, func(p corev1.ContainerPort) bool { return p.Name != "" }) {
			out = append(out, corev1.Container{Ports: in[i].Ports})
		}
	}
	return out
}

// ReadSlice takes the endpoints of a Service from one of its EndpointSlices. Those that are not
// ready count, too, as in Calico: what happens to their packets is not policy's concern.
func ReadSlice(s *discoveryv1.EndpointSlice) (model.ServiceID, []model.ServiceEndpoint) {
	id := model.ServiceID{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	if id.Name == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return id, nil
	}
	var out []model.ServiceEndpoint
	for i := range s.Endpoints {
		for _, text := range s.Endpoints[i].Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			a = a.Unmap()
			if len(s.Ports) == 0 {
				out = append(out, model.ServiceEndpoint{Addr: a})
			}
			for _, p := range s.Ports {
				if p.Port == nil || *p.Port < 1 || *p.Port > 65535 { // all ports: only its address can match
					out = append(out, model.ServiceEndpoint{Addr: a})
					continue
				}
				protocol := model.ProtocolTCP
				if p.Protocol != nil && *p.Protocol == corev1.ProtocolUDP {
					protocol = model.ProtocolUDP
				} else if p.Protocol != nil && *p.Protocol == corev1.ProtocolSCTP {
					protocol = model.ProtocolSCTP
				}
				out = append(out, model.ServiceEndpoint{Addr: a, Protocol: protocol, Port: uint16(*p.Port)})
			}
		}
	}
	return id, out
}
