// Package status is what an agent says about itself: one value, served as JSON on the
// agent's socket and turned into metrics, so that every surface shows the same.
package status

import (
	"net/netip"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// Status is the state of one agent at one moment.
type Status struct {
	Node     string    `json:"node"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	NotReady string    `json:"notReady,omitempty"` // why
	Warnings []string  `json:"warnings,omitempty"` // what needs somebody while the node is ready
	MTU      int       `json:"mtu"`                // of new pods, bytes

	// Source is where objects come from, and Snapshot the revision in force; 0 before the
	// first.
	Source   Source `json:"source"`
	Snapshot uint64 `json:"snapshot"`
	// Network is what the node's condition NetworkUnavailable rests on; empty without
	// Kubernetes.
	Network *Network `json:"network,omitempty"`
	// AddressChanges counts how often another address of this node was found than the one
	// in force (IP autodetection), since the agent started. With Kubernetes Network says more.
	AddressChanges int `json:"addressChanges,omitempty"`

	Problems  []model.Problem  `json:"problems,omitempty"`
	Pools     []Pool           `json:"pools,omitempty"`
	Blocks    []netip.Prefix   `json:"blocks,omitempty"` // of this node
	Endpoints []model.Endpoint `json:"endpoints,omitempty"`
	Speaker   Speaker          `json:"speaker"`
	Peers     []Peer           `json:"peers,omitempty"`
	Adverts   []netip.Prefix   `json:"adverts,omitempty"`
	Routes    Routes           `json:"routes"`

	Encapsulation Encapsulation `json:"encapsulation,omitzero"`
	Policy        Policy        `json:"policy,omitzero"`
}

// Source is the datastore as the agent sees it.
type Source struct {
	Datastore string `json:"datastore"`       // as --datastore names it
	Error     string `json:"error,omitempty"` // why what is in force may be old
}

// Network says what other programs of Kubernetes are told of this node.
type Network struct {
	Addresses      []netip.Prefix `json:"addresses,omitempty"`   // as the Node's annotations have them
	Unavailable    string         `json:"unavailable,omitempty"` // why the node cannot carry traffic
	Condition      string         `json:"condition,omitempty"`   // NetworkUnavailable as it stands: False is well
	AddressChanges int            `json:"addressChanges"`        // since the agent started
	EventsDropped  int            `json:"eventsDropped"`         // for the sake of the API server
	Error          string         `json:"error,omitempty"`       // why the Node could not be read or written
}

// Pool is an IPPool in force, as far as an operator asks for it first.
type Pool struct {
	Name     string       `json:"name"`
	CIDR     netip.Prefix `json:"cidr"`
	Disabled bool         `json:"disabled,omitempty"`
}

// Speaker is the BGP child process.
type Speaker struct {
	PID      int  `json:"pid,omitempty"` // 0 while none runs
	Restarts int  `json:"restarts"`      // deaths since the agent started
	Synced   bool `json:"synced"`        // every peer that is not held back has sent its routes
	// LastDeath says what the speaker died of last.
	LastDeath string `json:"lastDeath,omitempty"`
	Error     string `json:"error,omitempty"` // why the desired state is not reached
}

// Peer is one BGP session.
type Peer struct {
	Address    netip.Addr `json:"address"`
	ASN        uint32     `json:"asn"`
	Resource   string     `json:"resource,omitempty"` // the BGPPeer, or "mesh"
	State      string     `json:"state"`              // RFC 4271 section 8.2.2, or "HeldBack"
	Since      time.Time  `json:"since,omitzero"`     // of State
	Received   uint64     `json:"received"`           // routes in AdjRibIn
	Accepted   uint64     `json:"accepted"`
	Advertised uint64     `json:"advertised"`
	HeldBack   *HeldBack  `json:"heldBack,omitempty"`
	Error      string     `json:"error,omitempty"`
}

// HeldBack says why a peer is kept away: its messages ended the speaker more than once.
type HeldBack struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// Encapsulation is how packets reach pods across subnets.
type Encapsulation struct {
	Tunnels []Tunnel `json:"tunnels,omitempty"` // those that the node needs, or still has
	Routes  int      `json:"routes,omitempty"`  // made of blocks
	Waiting string   `json:"waiting,omitempty"` // what a change that is under way waits for
	Error   string   `json:"error,omitempty"`   // what keeps it from going on; it is tried again
}

// Tunnel is an encapsulation device.
type Tunnel struct {
	Device      string     `json:"device"`
	Wanted      bool       `json:"wanted"`
	Up          bool       `json:"up"`
	Held        bool       `json:"held,omitempty"` // it cannot be made: what would go through it stays as it was
	Address     netip.Addr `json:"address,omitzero"`
	MTU         int        `json:"mtu,omitempty"` // bytes, in the kernel
	Peers       int        `json:"peers"`         // nodes whose entries are in the kernel; IPIP needs none
	PeersWanted int        `json:"peersWanted"`
	Errors      []string   `json:"errors,omitempty"`
	ErrorCount  int        `json:"errorCount,omitempty"`
}

// Routes is the route table's state.
type Routes struct {
	ByOwner    map[string]int `json:"byOwner"`           // in the kernel, by owner
	Pending    int            `json:"pending,omitempty"` // prefixes still to be looked at
	Stale      int            `json:"stale,omitempty"`   // of an earlier agent, kept until every owner has spoken
	Unresolved []string       `json:"unresolved,omitempty"`
	Conflicts  []string       `json:"conflicts,omitempty"`
	Errors     []string       `json:"errors,omitempty"`
	// LeftOut are learned routes that would lead a node's or a peer's address off its subnet.
	LeftOut []string `json:"leftOut,omitempty"`
	// The counts are of all; the lists stop at 100.
	LeftOutCount  int `json:"leftOutCount,omitempty"`
	ConflictCount int `json:"conflictCount,omitempty"`
	ErrorCount    int `json:"errorCount,omitempty"`
}
