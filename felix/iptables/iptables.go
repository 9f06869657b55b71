// Package iptables owns Causeway's chains and hook rules in one family's iptables: the
// chains whose names begin with "cali" and, in everybody's chains, the rules that carry
// our mark. It brings them to the state declared by Set and Update, heals what others do
// to them, and touches nothing else.
//
// Ownership stands in the kernel, never in memory alone. Every rule written carries a
// comment "cali:" and sixteen characters, a digest of the rule. The mark finds our rules
// in chains that are not ours, and makes a restarted agent recognise rules that are as
// they should be, so that it leaves them and their counters alone. Calico marks its
// chains and rules the same way: what Calico left behind in a table is pruned as ours.
//
// All changes of a table are one iptables-restore --noflush transaction, which names our
// chains only: old rules hold until the new ones are complete (I2, I3). Where the kernel
// refuses a chain, that chain keeps the last version the kernel took, and all others go
// on (I6).
//
// A table once written to stays, empty, after Remove: iptables has no way to take a table
// away again.
package iptables

import (
	"fmt"
	"log/slog"
	"time"
)

// Family is the IP version whose rules a Reconciler owns.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Backend is the kernel subsystem behind the host's iptables.
type Backend string

// The backends. Auto asks Detect.
const (
	Auto   Backend = ""
	Legacy Backend = "legacy"
	NFT    Backend = "nft"
)

// Table is the name of one of the kernel's tables.
type Table string

// The tables, in the order the Reconciler writes them.
const (
	Raw    Table = "raw"
	Mangle Table = "mangle"
	NAT    Table = "nat"
	Filter Table = "filter"
)

var tables = []Table{Raw, Mangle, NAT, Filter}

// Prefix begins the name of every chain that is ours.
const Prefix = "cali"

// MaxChainName is the longest name of a chain, in bytes (XT_EXTENSION_MAXNAMELEN less
// its end, include/uapi/linux/netfilter/x_tables.h).
const MaxChainName = 28

// Chain is one of our chains.
type Chain struct {
	Name  string // required; begins with Prefix, at most MaxChainName bytes
	Rules []Rule
	// Fallback stands in for Rules when the kernel refuses them and has no earlier
	// version of the chain to keep, or an empty one. Where an empty chain would let packets through that
	// must not pass, it is a rule that drops. Optional: the chain is then empty.
	Fallback []Rule
	// Adopt: whoever decides on the chain has not spoken yet. What the kernel holds under
	// its name stays as it is, and Rules are only what is made where it holds nothing. A
	// later Set or Update without Adopt ends that.
	Adopt bool
}

// Hook is a rule of ours in a chain that is not ours.
type Hook struct {
	Chain string // required: the kernel's chain, such as "PREROUTING"
	Rule  Rule
	// Append puts the rule behind everybody's; otherwise it stands before them. Several
	// hooks of one chain stand in the order in which TableState lists them.
	Append bool
}

// TableState is all that is wanted in one table.
type TableState struct {
	Chains []Chain
	Hooks  []Hook
	// IfThere: in a table in which nothing of ours stands, nothing is made, and the table
	// itself is not made either.
	IfThere bool
}

// Config says whose rules a Reconciler owns and how it reaches them.
type Config struct {
	Family  Family       // required
	Log     *slog.Logger // required
	Backend Backend      // optional: Auto decides when Run starts; see Detect
	// Kernel replaces the host's iptables programs; Backend and LockTimeout then mean
	// nothing. Optional.
	Kernel Kernel
	// Resync is the longest time until somebody else's change is healed. Optional: 90 s
	// where the kernel tells of changes (nft), 30 s where it does not (legacy).
	Resync time.Duration
	// LockTimeout is how long one call waits for /run/xtables.lock, in whole seconds.
	// Optional: 10 s.
	LockTimeout time.Duration
	// Healed is called when rules of ours stand again that somebody else had changed or taken
	// away: what they were to keep out may have come in meanwhile. It must not wait. Optional.
	Healed func()
}

// Defaults of Config.
const (
	DefaultLockTimeout  = 10 * time.Second
	resyncWhereWatched  = 90 * time.Second
	resyncWhereNotKnown = 30 * time.Second
)
