package ipset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A burst is what one sendmsg carries: the kernel runs its messages one after the other
	// and answers those that fail; only the last one asks for an acknowledgement.
	burstBytes    = 128 << 10
	burstMessages = 512
	messageBytes  = 24 << 10 // of members in one message; an attribute has at most 64 KiB
	sendBuffer    = 1 << 20
	receiveBuffer = 16 << 20  // a refusal repeats the message; memory is taken only while answers queue
	readSize      = 256 << 10 // more than the largest message
	answerTime    = 20 * time.Second
)

// revisions are the revisions of the types that we ask for, where the kernel has them:
// the first that take all protocols with ports, prefixes of length 0 with interfaces, and
// nomatch, which an operator may want to add by hand for a minute. An older ipset program on
// the host could not show sets of later ones.
var revisions = map[Type]uint8{HashIP: 0, HashNet: 2, HashIPPort: 1, HashNetPort: 3, HashNetIface: 2}

// Host is the host's own ipset, over one netlink socket. It is opened when first used, and
// again after trouble.
type Host struct {
	// enter runs a function in the network namespace that is meant; nil: the caller's.
	enter func(func() error) error

	mu        sync.Mutex
	fd        int // -1: not open
	seq       uint32
	read      []byte
	enc       encoder
	revisions map[kind]uint8 // that this kernel takes
}

// NewHost makes the ipset of the network namespace that the caller of its methods is in
// when the first of them is called.
func NewHost() *Host { return &Host{fd: -1, revisions: map[kind]uint8{}} }

// Close closes the socket; the next use opens one again.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut()
	return nil
}

func (h *Host) shut() {
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
	h.fd = -1
}

func (h *Host) open() error {
	if h.fd >= 0 {
		return nil
	}
	if h.read == nil {
		h.read = make([]byte, readSize)
	}
	in := h.enter
	if in == nil {
		in = func(f func() error) error { return f() }
	}
	return in(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		tv := unix.NsecToTimeval(answerTime.Nanoseconds())
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		)
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("netlink socket: %w", err)
		}
		h.fd = fd
		return nil
	})
}

// receive reads once and walks the messages.
func (h *Host) receive(each func(typ uint16, seq uint32, body []byte) error) error {
	var n int
	var err error
	for {
		if n, err = unix.Read(h.fd, h.read); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for b := h.read[:n]; len(b) >= nlHeader; {
		size := int(ne.Uint32(b))
		if size < nlHeader || size > len(b) {
			return errors.New("netlink: malformed message")
		}
		if err := each(ne.Uint16(b[4:]), ne.Uint32(b[8:]), b[nlHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// ask sends one request and hands over its answers; the result is the kernel's code.
func (h *Host) ask(cmd uint8, flags uint16, fill func(*encoder), each func(body []byte) error) (code int, err error) {
	if err := h.open(); err != nil {
		return 0, err
	}
	h.seq++
	seq := h.seq
	e := &h.enc
	e.buf = e.buf[:0]
	at := e.begin(cmd, flags, seq)
	fill(e)
	e.end(at)
	defer func() {
		if err != nil {
			h.shut() // answers may be on their way
		}
	}()
	if _, err := unix.Write(h.fd, e.buf); err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	var broken error
	for done := false; !done; {
		err := h.receive(func(typ uint16, s uint32, body []byte) error {
			if s != seq {
				return nil
			}
			switch typ {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if len(body) >= 4 {
					code = -int(int32(ne.Uint32(body)))
				}
				done = true
			default:
				broken = errors.Join(broken, each(body))
				done = flags&unix.NLM_F_DUMP == 0 && flags&unix.NLM_F_ACK == 0
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return code, broken
}

// list is one dump, repeated when it was interrupted.
func (h *Host) list(ctx context.Context, fill func(*encoder), begin func(Header), member func(Listed)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l := listing{header: begin, member: member}
		code, err := h.ask(cmdList, unix.NLM_F_DUMP|unix.NLM_F_ACK, fill, l.message)
		switch {
		case err != nil:
			return err
		case code == int(unix.EINTR):
			continue
		}
		return reason(code)
	}
}

// Headers implements Kernel.
func (h *Host) Headers(ctx context.Context) ([]Header, error) {
	var out []Header
	err := h.list(ctx, func(e *encoder) { e.be32(attrFlags, listHeader) }, func(x Header) { out = append(out, x) }, nil)
	switch {
	case errors.Is(err, unix.EINVAL): // no such subsystem of nfnetlink
		return nil, ErrUnsupported
	case errors.Is(err, ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("listing ipsets: %w", err)
	}
	return out, nil
}

// List implements Kernel.
func (h *Host) List(ctx context.Context, name string, begin func(Header), each func(Listed)) error {
	return h.list(ctx, func(e *encoder) { e.text(attrSetName, name) }, begin, each)
}

// revision asks the kernel which revisions of a type it has, and takes ours or the nearest.
func (h *Host) revision(t Type, f Family) (uint8, error) {
	k := kind{t, f}
	if v, ok := h.revisions[k]; ok {
		return v, nil
	}
	lowest, highest := uint8(0), uint8(0)
	code, err := h.ask(cmdType, 0, func(e *encoder) {
		e.text(attrTypeName, string(t))
		e.u8(attrFamily, af(f))
	}, func(body []byte) error {
		return attributes(body[min(nfHeader, len(body)):], func(typ uint16, v []byte) {
			switch typ {
			case attrRevision:
				highest = uint8(number(v))
			case attrRevisionMin:
				lowest = uint8(number(v))
			}
		})
	})
	if err != nil || code != 0 {
		return revisions[t], err // creation will say what is wrong
	}
	v := max(lowest, min(highest, revisions[t]))
	h.revisions[k] = v
	return v, nil
}

// piece is one message: of that command, with its members from first on.
type piece struct {
	command int
	first   int
}

// Apply implements Kernel.
func (h *Host) Apply(ctx context.Context, commands []Command) ([]error, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	results := make([]error, len(commands))
	for i := range commands {
		if c := &commands[i]; c.Verb == Create {
			if _, err := h.revision(c.Type, c.Family); err != nil {
				return nil, err
			}
		}
	}
	if err := h.open(); err != nil {
		return nil, err
	}
	var burst []piece
	e := &h.enc
	e.buf = e.buf[:0]
	last := 0 // where the last message begins
	flush := func() error {
		if len(burst) == 0 {
			return nil
		}
		ne.PutUint16(e.buf[last+6:], ne.Uint16(e.buf[last+6:])|unix.NLM_F_ACK)
		err := h.exchange(e.buf, burst, results)
		burst, e.buf = burst[:0], e.buf[:0]
		return err
	}
	for i := range commands {
		for from, more := 0, true; more; {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if len(burst) == burstMessages || len(e.buf) > burstBytes {
				if err := flush(); err != nil {
					return nil, err
				}
			}
			h.seq++
			last = len(e.buf)
			burst = append(burst, piece{i, from})
			from, more = h.encode(&commands[i], from)
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return results, nil
}

// encode appends one message of a command, and says where the next one goes on.
func (h *Host) encode(c *Command, from int) (next int, more bool) {
	e := &h.enc
	switch c.Verb {
	case Create:
		at := e.begin(cmdCreate, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h.seq)
		v, ok := h.revisions[kind{c.Type, c.Family}]
		if !ok {
			v = revisions[c.Type]
		}
		e.create(c, v)
		e.end(at)
	case Destroy:
		at := e.begin(cmdDestroy, 0, h.seq)
		e.text(attrSetName, c.Name)
		e.end(at)
	case Swap:
		at := e.begin(cmdSwap, 0, h.seq)
		e.text(attrSetName, c.Name)
		e.text(attrTypeName, c.With)
		e.end(at)
	case Add, Del:
		cmd := uint8(cmdAdd)
		if c.Verb == Del {
			cmd = cmdDel
		}
		at := e.begin(cmd, 0, h.seq)
		e.text(attrSetName, c.Name)
		e.u32(attrLineNo, 0)
		adt := e.open(attrADT | nested)
		for ; from < len(c.Members) && len(e.buf)-adt < messageBytes; from++ {
			e.member(c.Type, c.Members[from], from+1)
		}
		e.shut(adt)
		e.end(at)
		return from, from < len(c.Members)
	}
	return 0, false
}

// exchange sends a burst and takes its answers. An error is about the way to the kernel.
func (h *Host) exchange(text []byte, burst []piece, results []error) (err error) {
	defer func() {
		if err != nil {
			h.shut()
		}
	}()
	if _, err := unix.Write(h.fd, text); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for done := false; !done; {
		err := h.receive(func(typ uint16, seq uint32, body []byte) error {
			i := len(burst) - 1 - int(h.seq-seq)
			if typ != unix.NLMSG_ERROR || len(body) < 4 || i < 0 || i >= len(burst) {
				return nil
			}
			done = done || i == len(burst)-1
			if code := -int(int32(ne.Uint32(body))); code != 0 && results[burst[i].command] == nil {
				results[burst[i].command] = refusal(code, body)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// refusal reads the answer to a message that failed. When a member is to blame the kernel
// repeats the message, with the member's line in it (call_ad in
// net/netfilter/ipset/ip_set_core.c).
func refusal(code int, body []byte) error {
	err := reason(code)
	const before = 4 + nlHeader + nfHeader // the code, and the headers of the message
	aboutSet := []error{ErrNotExist, ErrFull, ErrBusy, ErrExist, unix.ENOMEM, unix.EINTR, unix.EPERM}
	if slices.Contains(aboutSet, err) || len(body) <= before {
		return err
	}
	line := 0 // counted from 1; the kernel tells of no line 0
	_ = attributes(body[before:], func(typ uint16, v []byte) {
		if typ == attrLineNo && len(v) == 4 {
			line = int(ne.Uint32(v))
		}
	})
	if line == 0 {
		return err
	}
	return &MemberError{Index: line - 1, Err: err}
}
