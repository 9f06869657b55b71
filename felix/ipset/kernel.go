package ipset

import (
	"context"
	"errors"
	"fmt"
)

// Kernel is the ipsets of one network namespace. NewHost makes the host's; package
// ipsettest has one in memory.
type Kernel interface {
	// Headers returns all sets, ours and others'. ErrUnsupported says that the kernel has
	// no ipset at all.
	Headers(ctx context.Context) ([]Header, error)
	// List calls begin with a set's header and then each with every member of it.
	// ErrNotExist says that there is no such set.
	List(ctx context.Context, name string, begin func(Header), each func(Listed)) error
	// Apply runs commands in order and returns the result of each; one that fails stops no
	// other. Members that are there already are added without an error, and those that are
	// not there deleted without one. Its second result is about the way to the kernel: what
	// happened then is unknown.
	Apply(ctx context.Context, commands []Command) ([]error, error)
}

// Header is a set without its members.
type Header struct {
	Name       string
	Type       Type
	Family     Family // 0: none that we know
	MaxElem    int
	Elements   int
	References int
	// Odd is set when the set has something that ours have not, such as timeouts.
	Odd bool
}

// Listed is a member as it stands in the kernel.
type Listed struct {
	Member
	// Odd: it has a flag that ours have not, such as nomatch; to add it again clears that.
	Odd bool
}

// Verb is what a Command does.
type Verb uint8

// The verbs.
const (
	Create  Verb = iota + 1 // fails with ErrExist when there is a set of that name
	Destroy                 // fails with ErrBusy as long as a rule refers to the set
	Swap                    // exchanges the contents of two sets; fails with ErrMismatch when they are of different types
	Add
	Del
)

// Command is one change.
type Command struct {
	Verb    Verb
	Name    string
	With    string // Swap: the other set
	Type    Type
	Family  Family
	MaxElem int      // Create
	Size    int      // Create: how many members to expect
	Members []Member // Add and Del
}

// Errors of commands and lists.
var (
	ErrExist       = errors.New("a set of that name exists")
	ErrNotExist    = errors.New("no such set")
	ErrBusy        = errors.New("a rule refers to it")
	ErrMismatch    = errors.New("the sets are of different types")
	ErrFull        = errors.New("the set is full")
	ErrUnsupported = errors.New("the kernel has no ipset (module ip_set)")
)

// MemberError is the refusal of one member. Others of the same command may not have been
// looked at.
type MemberError struct {
	Index int // in Command.Members
	Err   error
}

func (e *MemberError) Error() string { return fmt.Sprintf("member %d: %v", e.Index+1, e.Err) }

// Unwrap returns the reason.
func (e *MemberError) Unwrap() error { return e.Err }
