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
// Its socket stays open until the context ends that it was opened with: the kernel lets nobody
// close one before it has freed what transactions took away (nft_rcv_nl_event), 10 ms and more.
func (h *Host) Edit(ctx context.Context, members []Member) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.edit.Lock()
	defer h.edit.Unlock()
	if h.conn == nil {
		conn := &editor{}
		if err := h.within(conn.open); err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		h.conn = conn
		conn.stop = context.AfterFunc(ctx, func() {
			h.edit.Lock()
			defer h.edit.Unlock()
			if h.conn == conn {
				h.disconnect()
			}
		})
	}
	if err := h.conn.write(members); err != nil {
		h.disconnect() // there may be answers left that would be taken for the next transaction's
		return fmt.Errorf("nf_tables: %w", err)
	}
	return nil
}

func (h *Host) disconnect() {
	h.conn.stop()
	_ = h.conn.CloseLasting()
	h.conn = nil
}

// editor is the socket of Edit.
type editor struct {
	*netfilter.Conn
	sock *netlink.Conn
	stop func() bool // ends the wait for the context
}

// open opens it in the thread's namespace.
func (e *editor) open() (err error) {
	e.Conn, err = netfilter.New(netfilter.AsLasting(), netfilter.WithSockOptions(func(c *netlink.Conn) error {
		e.sock = c
		return errors.Join(c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
	}))
	return err
}

// patience is how long a transaction and the kernel's answers to it may take. They are there when it is
// through, which takes it a second for thousands of members on a machine that is busy.
const patience = 5 * time.Second

// write brings members in, in one transaction.
func (e *editor) write(members []Member) error {
	if err := errors.Join(e.sock.SetReadDeadline(time.Now().Add(patience)), queue(e.Conn, members)); err != nil {
		return err
	}
	return e.Flush()
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
