package nftables

import (
	"context"

	"sigs.k8s.io/knftables"
)

// Kernel is where the table stands. Host is the real one.
type Kernel interface {
	// NewTransaction begins a transaction on the table.
	NewTransaction() *knftables.Transaction
	// Run brings a transaction into the kernel, or nothing of it.
	Run(ctx context.Context, tx *knftables.Transaction) error
	// Edit has members come and go in sets and maps that are there, in this order, or none of
	// them. It is Run for what needs no nft(8): a hundredth of its time.
	Edit(ctx context.Context, members []Member) error
	// Read returns what stands in the table.
	Read(ctx context.Context) (State, error)
	// Count hands over how much each rule of the table has met.
	Count(ctx context.Context, f func(chain, comment string, packets, bytes uint64)) error
	// Watch tells of transactions that touch the table until ctx is done, then it returns
	// nil. It calls lost when it begins, and whenever it may have missed some.
	Watch(ctx context.Context, lost func(), changed func(Change)) error
}

// Change is one transaction that touched the table.
type Change struct {
	Numbers []uint32 // that it put into the set of transactions' numbers
}

// Member is a member of a set or map that comes or goes.
type Member struct {
	Set string
	// Key is the kernel's bytes: each field padded to four. Where Ranges are, it is the first key of the range
	// and then the last, of the same length.
	Key     string
	Ranges  bool
	Verdict string // of a map's member: the chain that it calls, or leave
	Gone    bool
}

// State is what stands in the table.
type State struct {
	there  bool // the table is
	chains map[string]standing
	sets   map[string]*content // those with a name; maps among them
	// odd says what there is that no agent makes and nobody can mend but by making all anew.
	odd string
}

func newState() State {
	return State{there: true, chains: map[string]standing{}, sets: map[string]*content{}}
}

// standing is a chain in the kernel.
type standing struct {
	base    base     // zero: others go to it
	digests []string // of its rules, as their comments have them; empty text for those without
}

// content is a set or map in the kernel.
type content struct {
	keyLen  int
	flags   uint32            // flagInterval and flagMap only
	members map[string]string // key → chain that a dispatch calls, or another verdict
}
