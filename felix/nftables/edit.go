package nftables

import (
	"context"
	"errors"
	"fmt"
	"time"

	netfilter "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// buffer is how much of a transaction, and of the kernel's answers to it, the socket of an Edit
// holds: some 50,000 members. What is more the kernel refuses.
const buffer = 8 << 20

// Edit has members come and go over netlink, in one transaction.
//
// Its socket lives as long as the transaction does: an answer that nobody has read can so be
// no answer to another.
func (h *Host) Edit(ctx context.Context, members []Member) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.within(func() error {
		few := len(members) <= together
		conn, err := netfilter.New(netfilter.WithSockOptions(func(c *netlink.Conn) error {
			errs := []error{c.SetReadDeadline(time.Now().Add(slow))} // answers are there when the kernel has taken all
			if !few {
				errs = append(errs, c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
			}
			return errors.Join(errs...)
		}))
		if err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		table := &netfilter.Table{Name: TableName, Family: netfilter.TableFamilyINet}
		for len(members) > 0 {
			first, n := members[0], 1
			for n < len(members) && n < together && members[n].Set == first.Set && members[n].Gone == first.Gone {
				n++
			}
			elements := make([]netfilter.SetElement, n)
			for i := range elements {
				elements[i] = members[i].element()
			}
			set, change := &netfilter.Set{Table: table, Name: first.Set}, conn.SetAddElements
			if first.Gone {
				change = conn.SetDeleteElements
			}
			if err := change(set, elements); err != nil {
				return fmt.Errorf("set %s: %w", first.Set, err)
			}
			members = members[n:]
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		return nil
	})
}

// element is the member as a message has it. All our ranges are of concatenations, which have
// both ends in one element.
func (m *Member) element() netfilter.SetElement {
	e := netfilter.SetElement{Key: []byte(m.Key)}
	if m.Ranges {
		e.Key, e.KeyEnd = []byte(m.Key[:len(m.Key)/2]), []byte(m.Key[len(m.Key)/2:])
	}
	if m.Chain != "" && !m.Gone {
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: m.Chain}
	}
	return e
}
