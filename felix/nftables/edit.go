package nftables

import (
	"context"
	"errors"
	"fmt"

	netfilter "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// buffer is how much of a transaction, and of the kernel's answers to it, the socket of an Edit
// holds: some 50,000 members. What is more the kernel refuses.
const buffer = 8 << 20

// Edit has members come and go over netlink, in one transaction.
//
// Its socket stays open until the context ends that it was opened with: the kernel lets nobody
// close one before it has freed what transactions took away (nft_rcv_nl_event), 10 ms and more.
func (h *Host) Edit(ctx context.Context, members []Member) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.edit.Lock()
	defer h.edit.Unlock()
	if h.conn == nil {
		if err := h.within(h.connect); err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		conn := h.conn
		context.AfterFunc(ctx, func() { h.disconnect(conn) })
	}
	err := queue(h.conn, members)
	if err == nil {
		err = h.conn.Flush()
	}
	if err != nil { // there may be answers left that would be taken for the next transaction's
		h.drop()
		return fmt.Errorf("nf_tables: %w", err)
	}
	return nil
}

// connect opens the socket of Edit.
func (h *Host) connect() (err error) {
	h.conn, err = netfilter.New(netfilter.AsLasting(), netfilter.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
	}))
	if err != nil {
		h.conn = nil
	}
	return err
}

func (h *Host) disconnect(conn *netfilter.Conn) {
	h.edit.Lock()
	defer h.edit.Unlock()
	if h.conn == conn {
		h.drop()
	}
}

func (h *Host) drop() {
	_ = h.conn.CloseLasting()
	h.conn = nil
}

// queue makes the messages: one for each set, and for what comes and what goes.
func queue(conn *netfilter.Conn, members []Member) error {
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
		change := conn.SetAddElements
		if first.Gone {
			change = conn.SetDeleteElements
		}
		if err := change(&netfilter.Set{Table: table, Name: first.Set}, elements); err != nil {
			return fmt.Errorf("set %s: %w", first.Set, err)
		}
		members = members[n:]
	}
	return nil
}

// element is the member as a message has it. All our ranges are of concatenations, which have
// both ends in one element.
func (m *Member) element() netfilter.SetElement {
	e := netfilter.SetElement{Key: []byte(m.Key)}
	if m.Ranges {
		e.Key, e.KeyEnd = []byte(m.Key[:len(m.Key)/2]), []byte(m.Key[len(m.Key)/2:])
	}
	switch {
	case m.Gone || m.Verdict == "":
	case m.Verdict == leave:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictReturn}
	default:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: m.Verdict}
	}
	return e
}
