package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Family is the family of addresses.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Direction is seen from the endpoint: Ingress is to it, Egress from it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// SetKind says what the members of a set are.
type SetKind uint8

// The kinds.
const (
	SetIP     SetKind = iota // single addresses: ipset hash:ip
	SetNet                   // disjoint prefixes, none of length 0: ipset hash:net, nftables interval
	SetIPPort                // address, protocol and port: ipset hash:ip,port
)

// SetID names a set: two letters or digits for kind and family, then a hash of what
// defines its content. 22 letters and digits, the first a letter, so that a backend can put up
// to 9 characters of its own before it (ipset names have at most 31).
//
// The same definition has the same ID in every run and on every node; a set's kind and
// family never change.
type SetID string

// Member is one member of a set.
type Member struct {
	Prefix   netip.Prefix // masked; a single address in SetIP and SetIPPort
	Protocol uint8        // SetIPPort only
	Port     uint16       // SetIPPort only
}

// Compare orders members.
func (m Member) Compare(o Member) int {
	return cmp.Or(m.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(m.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(m.Protocol, o.Protocol), cmp.Compare(m.Port, o.Port))
}

// Set is a set of addresses with all its members.
type Set struct {
	ID      SetID
	Kind    SetKind
	Family  Family
	Origin  string   // what defines it, for who reads the kernel's state: a selector, a Service
	Members []Member // sorted, without duplicates; of one family
}

// SetChange is what changed in a set that the backend has already.
type SetChange struct {
	ID          SetID
	Kind        SetKind
	Family      Family
	Add, Remove []Member // sorted; Add holds none that is there, Remove only such as are there
}

// ChainID names the chain of one policy in one direction, shared by all endpoints.
type ChainID struct {
	Policy    model.PolicyID
	Direction Direction
}

// Compare orders chains.
func (id ChainID) Compare(o ChainID) int {
	return cmp.Or(id.Policy.Compare(o.Policy), cmp.Compare(id.Direction, o.Direction))
}

func (id ChainID) String() string { return id.Policy.String() + " " + id.Direction.String() }

// Layer is where in a packet's way a chain stands.
type Layer uint8

// The layers.
const (
	LayerFilter    Layer = iota // table filter: INPUT, OUTPUT and FORWARD
	LayerUntracked              // table raw, before connection tracking
	LayerPreDNAT                // table mangle PREROUTING, before kube-proxy translates
)

// Chain is the rules of one policy in one direction. A packet that no rule ends goes on
// with the next policy of the tier.
type Chain struct {
	ID         ChainID
	Layer      Layer
	IPv4, IPv6 []Rule // each complete for its family
}

// Action is what a rule does with the packets it matches.
type Action uint8

// The actions.
const (
	Allow  Action = iota + 1 // the endpoint's policy allows the packet: its other tiers are not asked
	Deny                     // drop
	Pass                     // leave this tier; the next one decides
	Log                      // log and go on with the next rule
	Return                   // leave this chain; the next policy of the tier is asked. A staged policy's Allow, Deny and Pass
	Count                    // count and go on with the next rule. A staged policy's Log
)

func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	case Pass:
		return "pass"
	case Log:
		return "log"
	case Return:
		return "return"
	case Count:
		return "count"
	}
	return "none"
}

// Rule is one rule. All that it says must match; what is zero or empty is not asked for.
// Everything in it can stand in one rule of iptables, but for port lists longer than what
// multiport takes: Ports are then several rules, NotPorts several matches of one rule.
type Rule struct {
	Action Action
	Index  int // of the rule in the policy's list for this direction; several rules can come of one
	// Log is set with action Log only.
	Log *LogOptions
	// Protocol and NotProtocol are IANA numbers; 0: any. Protocol is one with ports
	// whenever Ports or NotPorts of an end are set.
	Protocol, NotProtocol uint8
	// ICMP and NotICMP stand only beside Protocol ICMP in IPv4 and ICMPv6 in IPv6.
	ICMP, NotICMP *ICMPMatch
	Src, Dst      Peer
}

// LogOptions say how packets are logged.
type LogOptions struct {
	Prefix    string // at most 29 bytes (LOG --log-prefix), without the blank that separates it
	PerMinute int    // packets logged a minute
	Burst     int    // and how many at once
}

// ICMPMatch matches the type and, unless AnyCode, the code of a message.
type ICMPMatch struct {
	Type, Code uint8
	AnyCode    bool
}

// Peer matches one end of a packet's way.
type Peer struct {
	// Net and NotNet are of the chain's family; at most one of the two is set, so that both iptables
	// (which has one -s and one -d) and nftables take them. The zero Prefix: not asked for.
	Net, NotNet netip.Prefix
	// In: the address is in every one of these sets; NotIn: in none. Kinds SetIP and SetNet.
	In, NotIn []SetID
	// Ports: the port is in one of them; NotPorts: in none. Sorted, disjoint, not adjacent.
	Ports, NotPorts []model.PortRange
	// InPort: address, protocol and port are in every one of these sets; NotInPort: in none.
	// Kind SetIPPort. They may stand without Protocol.
	InPort, NotInPort []SetID
}

// Path is what decides on the packets of one endpoint in one direction.
type Path struct {
	Tiers []Tier
	// Default meets what no tier decides: Allow, or Deny; 0 where such packets go on to what
	// comes next (untracked, preDNAT).
	Default Action
}

// Tier is the policies of one tier that select the endpoint.
type Tier struct {
	Name   string
	Chains []ChainID // in order, staged ones among them; never empty
	// Fans stand for long runs of Chains, in order; workloads have them. Who asks the chains one after
	// the other, and knows nothing of fans, decides the same.
	Fans []Fan
	// End meets what no chain decided: Deny, or Pass: the next tier is asked.
	End Action
}

// Endpoint is a local endpoint as it is dispatched to.
type Endpoint struct {
	ID        model.PolicyEndpointID
	Interface string // unique among endpoints; "*" (hosts only): every interface that is no workload's and no other host endpoint's
	// Addresses are a workload's own, and Sources what it may send from: its addresses and
	// those granted. Sorted. A pod that is bound to this node and not attached yet has neither: its
	// chains are made ahead, so that to attach it changes sets alone.
	Addresses []netip.Addr
	Sources   []netip.Prefix

	// Ingress and Egress decide in the filter table: for a workload on all packets to and
	// from it (but what its own host sends to it, which always passes); for a host on those
	// that end or begin on the host, after the failsafes.
	Ingress, Egress Path
	// The rest is for hosts only. ForwardIngress and ForwardEgress decide on what the host
	// forwards in and out by the interface; what they do not decide goes on to the workload's policy.
	ForwardIngress, ForwardEgress Path
	// UntrackedIngress and UntrackedEgress come first, before connection tracking, for forwarded
	// packets too; what they allow is not tracked and passes the host's other paths.
	UntrackedIngress, UntrackedEgress Path
	// PreDNAT comes next, for incoming and forwarded packets; what it allows goes on.
	PreDNAT Path
}

// Open reports whether no policy selects the workload: all that it sends from its own addresses, and all
// that is sent to it, passes. A host endpoint is never open.
func (e *Endpoint) Open() bool {
	free := func(p *Path) bool { return len(p.Tiers) == 0 && p.Default == Allow }
	return e.ID.Kind == model.EndpointWorkload && free(&e.Ingress) && free(&e.Egress)
}

// Expected reports whether nothing of the workload is attached yet: it has rules, and nobody
// sends or receives by them.
func (e *Endpoint) Expected() bool {
	return e.ID.Kind == model.EndpointWorkload && len(e.Addresses)+len(e.Sources) == 0
}

// Delta is what has changed since the last one. Its fields stand in the order in which they
// are applied, so that no rule ever names a set or chain that is not there, and none is
// removed that is still named (I2). What is in one field can be applied in any order or at once.
type Delta struct {
	Host          *model.HostPolicy // nil: as before
	NewSets       []Set
	ChangedSets   []SetChange
	Chains        []Chain    // new, or to be replaced as a whole
	Endpoints     []Endpoint // new, or to be replaced as a whole
	GoneEndpoints []string   // interfaces
	GoneChains    []ChainID
	GoneSets      []SetID
}

// Empty reports whether nothing has changed.
func (d *Delta) Empty() bool {
	return d.Host == nil && len(d.NewSets)+len(d.ChangedSets)+len(d.Chains)+len(d.Endpoints)+
		len(d.GoneEndpoints)+len(d.GoneChains)+len(d.GoneSets) == 0
}

// Equal reports whether both are the same rule.
func (r *Rule) Equal(o *Rule) bool {
	return r.Action == o.Action && r.Index == o.Index && equalPtr(r.Log, o.Log) && r.Protocol == o.Protocol && r.NotProtocol == o.NotProtocol &&
		equalPtr(r.ICMP, o.ICMP) && equalPtr(r.NotICMP, o.NotICMP) && r.Src.Equal(&o.Src) && r.Dst.Equal(&o.Dst)
}

// Equal reports whether both match the same.
func (p *Peer) Equal(o *Peer) bool {
	return p.Net == o.Net && p.NotNet == o.NotNet && slices.Equal(p.In, o.In) && slices.Equal(p.NotIn, o.NotIn) &&
		slices.Equal(p.Ports, o.Ports) && slices.Equal(p.NotPorts, o.NotPorts) && slices.Equal(p.InPort, o.InPort) && slices.Equal(p.NotInPort, o.NotInPort)
}

// Equal reports whether both have the same rules.
func (c *Chain) Equal(o *Chain) bool {
	same := func(a, b Rule) bool { return a.Equal(&b) }
	return c.ID == o.ID && c.Layer == o.Layer && slices.EqualFunc(c.IPv4, o.IPv4, same) && slices.EqualFunc(c.IPv6, o.IPv6, same)
}

// Equal reports whether both decide alike.
func (p *Path) Equal(o *Path) bool {
	return p.Default == o.Default && slices.EqualFunc(p.Tiers, o.Tiers, func(a, b Tier) bool {
		return a.Name == b.Name && a.End == b.End && slices.Equal(a.Chains, b.Chains) &&
			slices.EqualFunc(a.Fans, b.Fans, func(f, g Fan) bool { return f.Equal(&g) })
	})
}

// Equal reports whether both are the same.
func (e *Endpoint) Equal(o *Endpoint) bool {
	return e.ID == o.ID && e.Interface == o.Interface && slices.Equal(e.Addresses, o.Addresses) && slices.Equal(e.Sources, o.Sources) &&
		e.Ingress.Equal(&o.Ingress) && e.Egress.Equal(&o.Egress) &&
		e.ForwardIngress.Equal(&o.ForwardIngress) && e.ForwardEgress.Equal(&o.ForwardEgress) &&
		e.UntrackedIngress.Equal(&o.UntrackedIngress) && e.UntrackedEgress.Equal(&o.UntrackedEgress) && e.PreDNAT.Equal(&o.PreDNAT)
}

func equalPtr[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// letters of the kinds in a SetID.
var kindLetters = [...]string{SetIP: "a", SetNet: "n", SetIPPort: "p"}

// KindOf tells kind and family of a set by its ID; ok is false when it is none.
func KindOf(id SetID) (kind SetKind, family Family, ok bool) {
	if len(id) != setIDLen || (id[1] != '4' && id[1] != '6') {
		return 0, 0, false
	}
	k := slices.IndexFunc(kindLetters[:], func(l string) bool { return strings.HasPrefix(string(id), l) })
	return SetKind(max(k, 0)), Family(id[1] - '0'), k >= 0
}

const setIDLen = 22
