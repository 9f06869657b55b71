package nodeaddr

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Link is an interface of the node.
type Link struct {
	Name     string
	Index    int
	Kind     string // as `ip -d link` prints it: "bridge", "veth", ...; "device" or empty: hardware
	Master   int    // the Index of the bridge or bond it is a port of; 0: none
	Up       bool   // IFF_UP: somebody switched it on
	Running  bool   // IFF_RUNNING: it has a carrier
	Loopback bool
	Addrs    []Addr // in the kernel's order, those of a global scope only
}

// Addr is an address of a Link, with the length of its subnet.
type Addr struct {
	netip.Prefix
	Secondary  bool // IPv4: not the first of its subnet; IPv6: temporary (RFC 8981)
	Deprecated bool // IPv6: only for connections that stand
	Tentative  bool // IPv6: not known to be the node's alone, or known not to be (RFC 4862)
}

// Choice is an address and the link that has it.
type Choice struct {
	Prefix netip.Prefix
	Link   string
}

// View is what Choose looks at.
type View struct {
	Links []Link
	// Source is what the kernel sends from to the destination of CanReach; the zero Addr
	// when it has no route, and Why says so.
	Source netip.Addr
	Why    error
	// Own says that the destination is an address of this node itself: a virtual one that is
	// here now.
	Own bool
	// Prefer is an address that is not left for another one of its link that is no better.
	Prefer netip.Prefix
}

// ours are the links of pods and of our own tunnels, which lead to no node.
var ours = regexp.MustCompile(`^(cali|tunl|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali)`)

// Ours reports whether a link of that name is a pod's or one of our own tunnels: it never
// carries the node's address.
func Ours(name string) bool { return ours.MatchString(name) }

// internal are the links that FirstFound leaves out: Calico's list, and what other networks
// and container runtimes make. Docker's own networks are br- and 12 hex digits.
var internal = regexp.MustCompile(`^(docker|cbr|dummy|virbr|lxcbr|lxdbr|veth|lo$|flannel|kube-ipvs|kube-bridge|kube-dummy|cni|nodelocaldns` +
	`|podman|nerdctl|br-[0-9a-f]{12}$|lxc|weave|cilium_|antrea-|ovn-k8s|tailscale)`)

// Internal reports whether a link most likely leads to nothing but this node's own
// containers and machines, by its name or because it is a bridge without a port that
// leads out. It says nothing of those that are Ours.
func Internal(l Link, all []Link) bool {
	if internal.MatchString(l.Name) {
		return true
	}
	if l.Kind != "bridge" {
		return false
	}
	return !slices.ContainsFunc(all, func(port Link) bool {
		return port.Master == l.Index && port.Index != l.Index && (port.Kind == "" || slices.Contains(uplinkKinds, port.Kind))
	})
}

// uplinkKinds are the kinds of links that lead out of the machine when they are a bridge's port.
var uplinkKinds = []string{"device", "bond", "team", "vlan"}

// ranks of links; lower ones are taken first, and each in order of Index.
const (
	plain    = iota
	inner    // Internal
	loopback // carries a node's address with routing to the host
	never
)

// Choose returns the node's address of one family as the method says, or an error that says
// why there is none. The method must be one that Detects.
//
// Of the links in question the first one by index that is up counts, and of its addresses
// the first that is primary, has the mask of a subnet and is not deprecated. A host address
// (/32, /128) is most often a virtual one that will move to another node, and is taken only
// when the link has no other. The loopback counts when no other link has what is wanted.
func Choose(m Method, v6 bool, v View) (Choice, error) {
	if m.Kind == CanReach {
		return m.reach(v6, v)
	}
	links := slices.Clone(v.Links)
	slices.SortStableFunc(links, func(a, b Link) int {
		return cmp.Or(cmp.Compare(m.rank(a, v.Links), m.rank(b, v.Links)), cmp.Compare(a.Index, b.Index))
	})
	for _, l := range links {
		if m.rank(l, v.Links) == never {
			continue
		}
		if p := pick(l, v6, v.Prefer, m.Kind == CIDR, m.contains); p.IsValid() {
			return Choice{p, l.Name}, nil
		}
	}
	what := map[Kind]string{
		FirstFound:    "no link that is up and leads out of the node has an %s address",
		Interface:     "no link that is up and whose name matches has an %s address",
		SkipInterface: "no link that is up, leads out of the node and is not skipped has an %s address",
		CIDR:          "no link that is up has an %s address in there",
	}[m.Kind]
	return Choice{}, fmt.Errorf("%s: "+what+" (there are: %s)", m, family(v6), listing(v.Links, v6))
}

// rank says when a link's turn is.
func (m Method) rank(l Link, all []Link) int {
	switch {
	case !l.Up || Ours(l.Name):
		return never
	case m.Kind == Interface && !m.matches(l.Name), m.Kind == SkipInterface && m.matches(l.Name):
		return never
	case l.Loopback:
		return loopback
	case m.Kind == Interface || !Internal(l, all):
		return plain
	case m.Kind == CIDR:
		return inner
	}
	return never
}

// reach is what the kernel sends from. Where the destination is this node's own address, as
// a virtual one of the API server can be, the kernel answers with just that; then the link
// that has it counts.
func (m Method) reach(v6 bool, v View) (Choice, error) {
	if !v.Source.IsValid() {
		return Choice{}, fmt.Errorf("%s: %w", m, v.Why)
	}
	var out Choice
	for _, l := range v.Links {
		if !l.Up || Ours(l.Name) {
			continue
		}
		for _, a := range l.Addrs {
			if a.Addr() != v.Source || out.Prefix.IsValid() && out.Prefix.Bits() <= a.Bits() {
				continue // a copy with a host's mask is what routing to the host puts on the loopback
			}
			if out = (Choice{a.Prefix, l.Name}); v.Own {
				out.Prefix = pick(l, v6, v.Prefer, false, nil)
			}
		}
	}
	if !out.Prefix.IsValid() {
		return Choice{}, fmt.Errorf("%s: the kernel sends from %s, which no link that leads out of the node has (there are: %s)", m, v.Source, listing(v.Links, v6))
	}
	return out, nil
}

func has(l Link, a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(own Addr) bool { return own.Addr() == a })
}

// pick returns the address of a link that others should use, or the zero Prefix. With only
// set the address must pass.
func pick(l Link, v6 bool, prefer netip.Prefix, only bool, pass func(netip.Addr) bool) netip.Prefix {
	best, bestScore := netip.Prefix{}, 0
	for _, a := range l.Addrs {
		if a.Addr().Is6() != v6 || a.Tentative || !a.Addr().IsGlobalUnicast() || only && !pass(a.Addr()) {
			continue
		}
		score := 1
		if !a.IsSingleIP() {
			score += 8
		}
		if !a.Deprecated {
			score += 4
		}
		if !a.Secondary {
			score += 2
		}
		if score > bestScore || score == bestScore && a.Prefix == prefer {
			best, bestScore = a.Prefix, score
		}
	}
	return best
}

// listing names the links and their addresses of one family, for errors.
func listing(links []Link, v6 bool) string {
	var out []string
	for _, l := range links {
		if Ours(l.Name) {
			continue
		}
		s := l.Name
		if !l.Up {
			s += " (down)"
		}
		for _, a := range l.Addrs {
			if a.Addr().Is6() == v6 {
				s += " " + a.String()
			}
		}
		if out = append(out, s); len(out) == 20 {
			out = append(out, "and more")
			break
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
