package ipam

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Errors of a Store.
var (
	ErrExists   = errors.New("block or an overlapping one exists")
	ErrConflict = errors.New("block was changed by another writer")
	ErrNotFound = errors.New("block does not exist")
)

// Store keeps blocks and changes them by compare-and-swap. Reads are linearizable: they
// show every write that was answered before them. Any error but the three above means
// that the outcome is unknown: the write may have been done, or may be done later.
// Blocks handed in and out are copies.
type Store interface {
	// Create claims b.CIDR in one atomic step and sets b.Revision. ErrExists when that
	// block or one that overlaps it exists.
	Create(ctx context.Context, b *Block) error
	// Update replaces the block and sets b.Revision. ErrConflict when the stored
	// revision is not b.Revision, ErrNotFound when there is no such block.
	Update(ctx context.Context, b *Block) error
	// Delete removes the block if its revision is still b.Revision: ErrConflict,
	// ErrNotFound.
	Delete(ctx context.Context, b *Block) error
	// Get reads one block: ErrNotFound.
	Get(ctx context.Context, cidr netip.Prefix) (*Block, error)
	// List reads the blocks that q selects, in no particular order and, where there may be
	// many, page by page as the loop goes on. One that cannot be read is left out (and
	// reported by the Store); its CIDR stays claimed. An error is the last that is yielded.
	List(ctx context.Context, q Query) iter.Seq2[*Block, error]
	// Claimed returns the CIDRs of all blocks, those that cannot be read included. Unless
	// it is to be fresh the answer may be some seconds old.
	Claimed(ctx context.Context, fresh bool) ([]netip.Prefix, error)
}

// Query says which blocks a List reads; the zero Query reads all.
type Query struct {
	Owner    string // those that this node owns
	Borrower string // those of others in which this node has addresses
}

// Selects reports whether q selects b.
func (q Query) Selects(b *Block) bool {
	switch {
	case q.Owner != "":
		return b.Node() == q.Owner
	case q.Borrower != "":
		return slices.Contains(b.Borrowers(), q.Borrower)
	}
	return true
}

// Collect returns the blocks of a List as a slice.
func Collect(list iter.Seq2[*Block, error]) ([]*Block, error) {
	var out []*Block
	for b, err := range list {
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// StashPrefix begins the handle of an address that a node has put by: the node's name
// follows.
const StashPrefix = "causeway-stash-"

// Attributes of an allocation, with Calico's names; AttrInterface is ours.
const (
	AttrPod       = "pod"
	AttrNamespace = "namespace"
	AttrNode      = "node"
	AttrTimestamp = "timestamp"
	AttrType      = "type"
	AttrInterface = "interface"
)

// hostAffinity begins the affinity of a block that a node owns.
const hostAffinity = "host:"

// Slot is one address of a block.
type Slot struct {
	Handle string            // who has it; empty: free
	Attrs  map[string]string // immutable; nil when free
	// ReleasedAt is when a free address was given back; zero once it has rested for the
	// cooldown, and for one that was never used. One that was asked for by name while it
	// rested keeps it beside the stash mark.
	ReleasedAt time.Time
}

// Block is an IPAMBlock: a CIDR, who owns it, and who has each address.
type Block struct {
	CIDR      netip.Prefix
	Affinity  string    // "host:<node>", "virtual:<what>" or empty
	ClaimTime time.Time // when Affinity was set; zero when unknown
	Slots     []Slot    // one for each address, in order
	// Unallocated lists exactly the slots without a handle, longest idle first.
	Unallocated []int
	// Revision is the Store's and opaque: it differs between any two states that a block
	// of this CIDR ever had.
	Revision string
	// Stored is the Store's own: what a stored block has beyond what is said here, for a
	// Store that keeps it through an Update. It is never changed in place.
	Stored any
}

// NewBlock returns an empty block owned by node.
func NewBlock(cidr netip.Prefix, node string, now time.Time) *Block {
	n := 1 << (cidr.Addr().BitLen() - cidr.Bits())
	b := &Block{CIDR: cidr, Affinity: hostAffinity + node, ClaimTime: now, Slots: make([]Slot, n), Unallocated: make([]int, n)}
	for i := range b.Unallocated {
		b.Unallocated[i] = i
	}
	return b
}

// Node returns the node that owns the block, or "".
func (b *Block) Node() string {
	n, ok := strings.CutPrefix(b.Affinity, hostAffinity)
	if !ok {
		return ""
	}
	return n
}

// Borrowers returns the nodes that have addresses in the block and do not own it, sorted.
func (b *Block) Borrowers() []string {
	var out []string
	owner := b.Node()
	for _, s := range b.Slots {
		node := s.Attrs[AttrNode]
		if s.Handle == "" || node == "" || node == owner {
			continue
		}
		if i, ok := slices.BinarySearch(out, node); !ok {
			out = slices.Insert(out, i, node)
		}
	}
	return out
}

// Clone returns a copy that shares nothing that changes.
func (b *Block) Clone() *Block {
	c := *b
	c.Slots = slices.Clone(b.Slots)
	c.Unallocated = slices.Clone(b.Unallocated)
	return &c
}

// Addr returns the address of slot i.
func (b *Block) Addr(i int) netip.Addr {
	return addrOf(toU128(b.CIDR.Addr()).add(u128{lo: uint64(i)}), b.CIDR.Addr().Is4())
}

// Ordinal returns the slot of an address inside b.CIDR.
func (b *Block) Ordinal(a netip.Addr) int { return int(toU128(a).sub(toU128(b.CIDR.Addr())).lo) }

// Free returns how many addresses have no handle.
func (b *Block) Free() int { return len(b.Unallocated) }

// Check returns what is wrong with the block, or nil.
func (b *Block) Check() error {
	if !b.CIDR.IsValid() || b.CIDR != b.CIDR.Masked() {
		return fmt.Errorf("block %s: cidr: want a network address with its length", b.CIDR)
	}
	if host := b.CIDR.Addr().BitLen() - b.CIDR.Bits(); host > 12 || len(b.Slots) != 1<<host {
		return fmt.Errorf("block %s: allocations: %d of them, want one for each address and 4096 at most", b.CIDR, len(b.Slots))
	}
	free := make(map[int]bool, len(b.Unallocated))
	for _, i := range b.Unallocated {
		switch {
		case i < 0 || i >= len(b.Slots):
			return fmt.Errorf("block %s: unallocated: %d is outside the block", b.CIDR, i)
		case free[i]:
			return fmt.Errorf("block %s: unallocated: %d is named twice", b.CIDR, i)
		case b.Slots[i].Handle != "":
			return fmt.Errorf("block %s: unallocated: %d has the handle %s", b.CIDR, i, b.Slots[i].Handle)
		}
		free[i] = true
	}
	for i, s := range b.Slots {
		if s.Handle == "" && !free[i] {
			return fmt.Errorf("block %s: unallocated: %d has no handle and is missing", b.CIDR, i)
		}
	}
	return nil
}

// Equal reports whether both blocks say the same; revisions are not compared.
func (b *Block) Equal(o *Block) bool {
	return b.CIDR == o.CIDR && b.Affinity == o.Affinity && b.ClaimTime.Equal(o.ClaimTime) &&
		slices.Equal(b.Unallocated, o.Unallocated) &&
		slices.EqualFunc(b.Slots, o.Slots, func(x, y Slot) bool {
			return x.Handle == y.Handle && x.ReleasedAt.Equal(y.ReleasedAt) && maps.Equal(x.Attrs, y.Attrs)
		})
}

// set gives slot i to a handle.
func (b *Block) set(i int, handle string, attrs map[string]string) {
	if b.Slots[i].Handle == "" {
		b.Unallocated = slices.DeleteFunc(b.Unallocated, func(n int) bool { return n == i })
	}
	b.Slots[i] = Slot{Handle: handle, Attrs: attrs}
}

// release frees slot i, which takes its place in the queue by the time of its release. A
// zero time means that nobody used it: then it goes back to the head of the queue. A mark
// that says that it still rests from a later release keeps that one.
func (b *Block) release(i int, at time.Time) {
	at = later(at, b.Slots[i].ReleasedAt)
	b.Slots[i] = Slot{ReleasedAt: at}
	if !at.IsZero() {
		n := len(b.Unallocated)
		for n > 0 && b.Slots[b.Unallocated[n-1]].ReleasedAt.After(at) {
			n-- // that one was written sooner and released later
		}
		b.Unallocated = slices.Insert(b.Unallocated, n, i)
		return
	}
	at0, _ := slices.BinarySearchFunc(b.Unallocated, i, func(n, i int) int {
		if b.Slots[n].ReleasedAt.IsZero() && n < i {
			return -1
		}
		return 1
	})
	b.Unallocated = slices.Insert(b.Unallocated, at0, i)
}

func later(x, y time.Time) time.Time {
	if y.After(x) {
		return y
	}
	return x
}

// rested forgets when addresses were released that have been free for the cooldown.
func (b *Block) rested(now time.Time, cooldown time.Duration) {
	for _, i := range b.Unallocated {
		if at := b.Slots[i].ReleasedAt; !at.IsZero() && !at.Add(cooldown).After(now) {
			b.Slots[i].ReleasedAt = time.Time{}
		}
	}
}

// resting reports whether any address still has to rest.
func (b *Block) resting(now time.Time, cooldown time.Duration) bool {
	return slices.ContainsFunc(b.Slots, func(s Slot) bool {
		return s.Handle == "" && s.ReleasedAt.Add(cooldown).After(now) && !s.ReleasedAt.IsZero()
	})
}

// pick returns up to n slots that may be given out, longest idle first.
func (b *Block) pick(n int, now time.Time, cooldown time.Duration, not func(netip.Addr) bool) []int {
	var out []int
	for _, i := range b.Unallocated {
		if len(out) >= n {
			break
		}
		if at := b.Slots[i].ReleasedAt; !at.IsZero() && at.Add(cooldown).After(now) {
			continue
		}
		if not(b.Addr(i)) {
			continue
		}
		out = append(out, i)
	}
	return out
}
