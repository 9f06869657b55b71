package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/model"
)

// Policy is how policy is enforced on this node.
type Policy struct {
	Backend string `json:"backend,omitempty"` // nftables, or iptables with its own; empty until the datastore has said
	Synced  bool   `json:"synced"`            // what was there at the start is in force; before, an earlier agent's rules are
	// Waiting: changes are held back until what Missing names was read.
	Waiting bool     `json:"waiting,omitempty"`
	Missing []string `json:"missing,omitempty"`
	Error   string   `json:"error,omitempty"` // why rules are not in the kernel

	Endpoints int `json:"endpoints"` // pods and interfaces of this node
	Policies  int `json:"policies"`  // in force for one of them
	Chains    int `json:"chains"`    // of policies, one for each direction
	Sets      int `json:"sets"`      // of one family
	Members   int `json:"members"`   // of the sets

	// Changes are those that the datastore told and the kernel took, since the agent started.
	Changes       uint64  `json:"changes"`
	ChangeSeconds float64 `json:"changeSeconds"` // what they took together
	LastChange    float64 `json:"lastChange"`    // what the last one took, seconds

	Connections Connections `json:"connections"`
	// Announcements are how nodes tell each other of new pods; nil without Kubernetes.
	Announcements *announce.Status `json:"announcements,omitempty"`
}

// Connections are those that policy is asked about again, since the agent started.
type Connections struct {
	Rounds   uint64  `json:"rounds"`             // of judging
	Failures uint64  `json:"failures,omitempty"` // of those that did not end well
	Cut      uint64  `json:"cut"`                // forbidden by a change
	Restored uint64  `json:"restored"`           // allowed again
	Held     int     `json:"held"`               // cut and still known to the kernel
	Delay    float64 `json:"delay"`              // seconds from the last change to the end of the round about it
}

// PolicyDetail is which policies are in force, and for whom on this node.
type PolicyDetail struct {
	Policies  []PolicyInForce  `json:"policies"`
	Endpoints []PolicyEndpoint `json:"endpoints"`
	// CountersError says why packets were not counted; all numbers are then 0.
	CountersError string `json:"countersError,omitempty"`
}

// PolicyInForce is a policy that is in force somewhere in the cluster.
type PolicyInForce struct {
	ID   model.PolicyID `json:"policy"`
	Tier string         `json:"tier"`
	// Order within the tier, and that of the tier; nil: the last.
	TierOrder *float64 `json:"tierOrder,omitempty"`
	Order     *float64 `json:"order,omitempty"`
	// Endpoints of this node that it holds for.
	Endpoints int          `json:"endpoints"`
	Staged    bool         `json:"staged,omitempty"`    // it is counted and not enforced
	Untracked bool         `json:"untracked,omitempty"` // doNotTrack
	PreDNAT   bool         `json:"preDNAT,omitempty"`
	Ingress   bool         `json:"ingress"` // it holds for packets to its endpoints
	Egress    bool         `json:"egress"`  // and for those from them
	Rules     []PolicyRule `json:"rules,omitempty"`
}

// PolicyRule is a rule and what met it: the first packets of connections, and all packets where
// connections are not tracked, since the rule stands in the kernel as it is.
type PolicyRule struct {
	Direction string `json:"direction"` // ingress or egress
	Index     int    `json:"index"`     // in the policy's list
	Action    string `json:"action"`    // allow, deny, pass or log; of a staged policy, what it would do
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// PolicyEndpoint is a pod, or an interface of the host, and what is asked about its packets.
type PolicyEndpoint struct {
	Kind      string       `json:"kind"` // Pod or HostEndpoint
	Namespace string       `json:"namespace,omitempty"`
	Name      string       `json:"name"`
	Interface string       `json:"interface"` // "*": all that are nobody else's
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Paths     []PolicyPath `json:"paths"`
}

// PolicyPath is what decides on an endpoint's packets at one place.
type PolicyPath struct {
	Place string       `json:"place"` // ingress, egress, or for hosts "forward ingress" and so on
	Tiers []PolicyTier `json:"tiers,omitempty"`
	// Default meets what no tier decides: allow, deny, or "go on" to what comes next.
	Default string `json:"default"`
}

// PolicyTier is the policies of one tier that hold for an endpoint, in order.
type PolicyTier struct {
	Name     string           `json:"name"`
	Policies []model.PolicyID `json:"policies"`
	End      string           `json:"end"` // what meets packets that none of them decides on: deny or pass
}

// Question is a connection that somebody would open.
type Question struct {
	From, To           End
	Protocol           uint8 // IANA
	Port, SourcePort   uint16
	ICMPType, ICMPCode uint8
}

// End is one end of it: a pod, or, where Addr is valid, an address.
type End struct {
	Namespace, Name string
	Addr            netip.Addr
}

// ephemeral is the source port of whoever does not say one (RFC 6335 section 6).
const ephemeral = 49152

var protocols = map[string]uint8{
	"tcp": model.ProtocolTCP, "udp": model.ProtocolUDP, "sctp": model.ProtocolSCTP, "udplite": model.ProtocolUDPLite, "icmp": model.ProtocolICMP, "icmpv6": model.ProtocolICMPv6,
}

// ParseQuestion reads the parameters of /trace: from and to (NAMESPACE/POD or an address),
// protocol (default tcp), port, source-port, icmp-type, icmp-code. The error names the parameter and says
// what would be right.
func ParseQuestion(v url.Values) (q Question, err error) {
	for name := range v {
		switch name {
		case "from", "to", "protocol", "port", "source-port", "icmp-type", "icmp-code":
		default:
			return q, fmt.Errorf("%s: there is no such parameter", name)
		}
	}
	if q.From, err = parseEnd("from", v.Get("from")); err != nil {
		return q, err
	}
	if q.To, err = parseEnd("to", v.Get("to")); err != nil {
		return q, err
	}
	name := cmp.Or(strings.ToLower(v.Get("protocol")), "tcp")
	var known bool
	if q.Protocol, known = protocols[name]; !known {
		n, err := strconv.ParseUint(name, 10, 8)
		if err != nil || n == 0 {
			return q, fmt.Errorf("protocol: is %q; must be tcp, udp, sctp, udplite, icmp, icmpv6 or a number from 1 to 255", name)
		}
		q.Protocol = uint8(n)
	}
	number := func(name string, most, otherwise uint64) uint64 {
		text := v.Get(name)
		if text == "" {
			return otherwise
		}
		n, bad := strconv.ParseUint(text, 10, 64)
		if (bad != nil || n > most) && err == nil {
			err = fmt.Errorf("%s: is %q; must be a number from 0 to %d", name, text, most)
		}
		return n
	}
	q.Port, q.SourcePort = uint16(number("port", 65535, 0)), uint16(number("source-port", 65535, ephemeral))
	echo := uint64(8)
	if q.Protocol == model.ProtocolICMPv6 {
		echo = 128
	}
	q.ICMPType, q.ICMPCode = uint8(number("icmp-type", 255, echo)), uint8(number("icmp-code", 255, 0))
	if err != nil {
		return q, err
	}
	switch q.Protocol {
	case model.ProtocolTCP, model.ProtocolUDP, model.ProtocolSCTP, model.ProtocolUDPLite:
		if v.Get("port") == "" {
			return q, fmt.Errorf("port: is missing; protocol %s needs one, from 0 to 65535", name)
		}
	default:
		if v.Get("port") != "" {
			return q, fmt.Errorf("port: is %s; protocol %s has none", v.Get("port"), name)
		}
	}
	return q, nil
}

func parseEnd(which, text string) (End, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return End{Addr: a}, nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return End{}, fmt.Errorf("%s: is %q; must be NAMESPACE/POD, or an address as 10.244.1.7", which, text)
	}
	return End{Namespace: namespace, Name: name}, nil
}

// Answer is what the rules that stand in the kernel do with the first packet of a connection.
type Answer struct {
	Packet    string `json:"packet"`
	Allowed   bool   `json:"allowed"`             // as far as this node knows
	Untracked bool   `json:"untracked,omitempty"` // its connection is not tracked
	// Elsewhere are the ends of the connection that are no pods of this node and not its own
	// addresses: what the rules of their own nodes say is not in the answer.
	Elsewhere []string `json:"elsewhere,omitempty"`
	Stages    []Stage  `json:"stages,omitempty"`
}

// Stage is a place on the packet's way, and what happened there.
type Stage struct {
	Place     string `json:"place"`              // felix/trace.Point
	Endpoint  string `json:"endpoint,omitempty"` // "Pod NAMESPACE/NAME" or "HostEndpoint NAME"
	Interface string `json:"interface,omitempty"`
	Decision  string `json:"decision"`       // allow, deny, or "go on"
	Reason    string `json:"reason"`         // felix/trace.Reason
	Tier      string `json:"tier,omitempty"` // that decided
	Hits      []Hit  `json:"rules,omitempty"`
}

// Hit is a rule that the packet matched; the last one of a stage whose reason is "rule" decided.
type Hit struct {
	Tier      string         `json:"tier"`
	Policy    model.PolicyID `json:"policy"`
	Direction string         `json:"direction"`
	Index     int            `json:"index"`
	Action    string         `json:"action"` // of a staged policy, what it would do
	Staged    bool           `json:"staged,omitempty"`
}
