// Package nodeaddr owns the choice of the address that a node is reached at: Calico's
// autodetection methods as a pure function over the links of the node (Choose), and when a
// change of what it says counts (Follower). It reads no kernel and has no clock.
package nodeaddr

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Kind is a way to find the node's address; the names are those of Calico's
// IP_AUTODETECTION_METHOD.
type Kind uint8

// The ways.
const (
	KubernetesInternalIP Kind = iota // what the datastore says of the Node; nothing is looked for
	FirstFound                       // of the first link that is up and no bridge, pod, tunnel or the like
	CanReach                         // what the kernel sends from to a destination
	Interface                        // of the first link that is up and whose name matches
	SkipInterface                    // FirstFound without the links whose names match
	CIDR                             // the first that lies in one of some networks
	None                             // the node has no address of this family
)

var kindNames = [...]string{"kubernetes-internal-ip", "first-found", "can-reach", "interface", "skip-interface", "cidr", "none"}

// Method says how the address of one family is found. Its zero value is
// kubernetes-internal-ip.
type Method struct {
	Kind Kind
	// Dest is the destination of CanReach, an address or a name.
	Dest string

	text    string
	names   []*regexp.Regexp
	subnets []netip.Prefix
}

// String is the method as Parse reads it.
func (m Method) String() string {
	if m.text == "" {
		return kindNames[m.Kind]
	}
	return m.text
}

// Detects reports whether the address is found by looking at the node's links; otherwise the
// datastore says it, or there is none.
func (m Method) Detects() bool { return m.Kind != KubernetesInternalIP && m.Kind != None }

const wanted = "want kubernetes-internal-ip, first-found, can-reach=ADDRESS-OR-NAME, interface=REGEX[,REGEX], skip-interface=REGEX[,REGEX], cidr=CIDR[,CIDR], or none"

// Parse reads a method of one family in Calico's form: "kubernetes-internal-ip",
// "first-found", "can-reach=ADDRESS-OR-NAME", "interface=REGEX[,REGEX]",
// "skip-interface=REGEX[,REGEX]", "cidr=CIDR[,CIDR]", or "none" (also "off"). The empty
// string is kubernetes-internal-ip. As in Calico a regular expression matches any part of a
// name, and none can contain a comma.
func Parse(s string, v6 bool) (Method, error) {
	bad := func(format string, args ...any) (Method, error) {
		return Method{}, fmt.Errorf("%q: %s; %s", s, fmt.Sprintf(format, args...), wanted)
	}
	name, value, valued := strings.Cut(strings.TrimSpace(s), "=")
	m := Method{text: strings.TrimSpace(s)}
	switch name {
	case "", "kubernetes-internal-ip":
		m.Kind, m.text = KubernetesInternalIP, ""
	case "first-found":
		m.Kind = FirstFound
	case "none", "off":
		m.Kind, m.text = None, ""
	case "can-reach":
		m.Kind = CanReach
	case "interface":
		m.Kind = Interface
	case "skip-interface":
		m.Kind = SkipInterface
	case "cidr":
		m.Kind = CIDR
	default:
		return bad("no such method")
	}
	if takes := m.Kind >= CanReach && m.Kind <= CIDR; takes != valued {
		if valued {
			return bad("%s takes no value", name)
		}
		return bad("%s needs a value", name)
	}
	switch m.Kind {
	case CanReach:
		m.Dest = strings.TrimSpace(value)
		if a, err := netip.ParseAddr(m.Dest); err == nil && a.Unmap().Is4() == v6 {
			return bad("%s is no %s address", m.Dest, family(v6))
		} else if err != nil && (m.Dest == "" || strings.ContainsAny(m.Dest, " ,/:")) {
			return bad("%q is neither an address nor a name", m.Dest)
		}
	case Interface, SkipInterface:
		for _, r := range strings.Split(value, ",") {
			re, err := regexp.Compile(strings.TrimSpace(r))
			switch {
			case err != nil:
				return bad("regular expression %q: %v", r, err)
			case strings.TrimSpace(r) == "":
				return bad("an empty regular expression matches every link")
			}
			m.names = append(m.names, re)
		}
	case CIDR:
		for _, c := range strings.Split(value, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(c))
			if err != nil {
				return bad("%q is no CIDR", c)
			}
			if p.Addr().Is6() == v6 { // the others can match nothing; one list may serve both families
				m.subnets = append(m.subnets, p.Masked())
			}
		}
		if len(m.subnets) == 0 {
			return bad("none of them is %s", family(v6))
		}
	}
	return m, nil
}

func (m Method) matches(name string) bool {
	for _, re := range m.names {
		if re.MatchString(name) {
			return true
		}
	}
	return false
}

func (m Method) contains(a netip.Addr) bool {
	for _, p := range m.subnets {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
